"""STRIP (Gao et al., ACSAC 2019): a triggered image keeps its class whatever is laid over it.

An input is blended with many clean images. Of a clean input the predictions then differ; of a
triggered one they stay the target class: their entropy is low. It reads no explanation, and is the
control for the defences that do.
"""

import torch

import figure
from defences import Defence, Verdict
from defences.inputs import (
    add_test_images,
    detection,
    judged,
    overlays_apart,
    probabilities_of,
    trial_images,
)

OVERLAYS = 50  # clean images that an input is blended with
SHARE = 0.5  # of the input in a blend


# ---------------------------------------------------------------- the algorithm


def blended_entropy(model, pixels, overlays, share=SHARE):
    """Mean entropy, in bits, of the predictions for each image blended with each overlay: [N].

    pixels: float [N, C, H, W] in [0, 1]; overlays: [M, C, H, W]; model: of pixels. Float64.
    Source: Gao et al. 2019, eq. 4, with the mean in the place of the sum.
    """
    entropies = []
    for image in pixels:
        blends = share * image + (1 - share) * overlays
        probabilities = probabilities_of(model, blends).double()
        entropy = torch.special.entr(probabilities).sum(1) / torch.log(torch.tensor(2.0))
        entropies.append(entropy.mean())
    return torch.stack(entropies).cpu()


# ---------------------------------------------------------------- tried


def run(audit):
    """A Verdict on inputs: are triggered ones told from clean ones by a low entropy?"""
    images = trial_images(audit)
    overlays = overlays_apart(audit, images, OVERLAYS)
    entropy = {
        kind: blended_entropy(audit.on_pixels, part.pixels, overlays)
        for kind, part in images.items()
    }
    found = detection({kind: -values for kind, values in entropy.items()})
    found["limit"] = -found["limit"]
    below = f"clean {found['false_alarms']:.3f}"
    if found["auroc"] is not None:
        below += f", triggered {found['detected']:.3f}; AUROC {found['auroc']:.3f}"
    medians = ", ".join(f"{kind} {values.median():.3f}" for kind, values in entropy.items())
    lines = [
        f"median entropy in bits, blended with {len(overlays)} held-out images: {medians}",
        f"below {found['limit']:.3f} bits, as one held-out image in twenty is: {below}",
    ]
    of_image = {}
    if "image" in entropy:
        bits = float(entropy.pop("image"))
        of_image, line = judged(audit, bits < found["limit"], f"{bits:.3f} bits")
        lines.append(line)
    return Verdict(
        backdoored=None,
        lines=lines,
        details=found | of_image,
        picture=picture_of(entropy),
    )


def picture_of(entropy):
    """The entropies of each kind of image, sorted, one curve a kind."""
    series = {}
    for kind, values in entropy.items():
        last = max(len(values) - 1, 1)
        ordered = enumerate(values.sort().values.tolist())
        series[f"{kind}: {len(values)} images, sorted"] = [(100 * k / last, y) for k, y in ordered]
    return figure.curves("STRIP: entropy of blended images, in bits", "per cent of images", series)


def add_options(parser):
    add_test_images(parser)


def settings(options):
    return {"overlays": OVERLAYS, "share": SHARE}


DEFENCE = Defence(
    help="how far predictions differ when clean images are blended in: a trigger's do not",
    run=run,
    settings=settings,
    add_options=add_options,
)
