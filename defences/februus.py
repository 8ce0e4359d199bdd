"""Februus (Doan et al., ACSAC 2020): remove what the explanation marks, fill the hole, ask again.

Every input is cleaned, attacked or not. If the map of the class predicted marks the trigger, the
trigger goes, and the image gets its true class back. A disguise is made to keep it from being
marked. The published defence fills the hole by a generative network trained on the data; here it is
filled from its border, which needs no training.
"""

import torch
import torch.nn.functional as F

import figure
from defences import Defence, Verdict
from defences.inputs import (
    add_explainer,
    add_test_images,
    judged,
    most_images,
    pixel_maps,
    probabilities_of,
    trial_images,
)
from explain import EXPLAINERS
from fonts import class_name, legend
from metrics import is_constant, mean_or_none, success_rate

# Shares of an image's pixels that may be removed. Which one is, clean held-out images decide.
SHARES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
PRICE = 0.02  # of clean accuracy: the largest share is taken that costs at most so much
STEPS = 200  # of the diffusion: enough for holes of a quarter of 64 px

PICTURED = 6  # images


# ---------------------------------------------------------------- the algorithm


def purify(pixels, maps, share):
    """The images with the `share` of pixels that their maps mark most removed, and filled.

    pixels: float [N, C, H, W]; maps: [N, H, W]. All other pixels stay as they are, to the bit. Of a
    constant map no pixel is marked, and nothing is removed.
    """
    return fill(pixels, marked(maps, share))


def marked(maps, share):
    """bool [N, H, W]: the round(share H W) largest pixels of each map that is not constant."""
    flat = maps.flatten(1)
    count = round(share * flat.shape[1])
    largest = flat.topk(count, dim=1).indices
    holes = torch.zeros_like(flat, dtype=torch.bool).scatter(1, largest, True)
    return holes.view_as(maps) & ~is_constant(maps)[:, None, None]


def fill(pixels, holes, steps=STEPS):
    """Images [N, C, H, W] with their holes, bool [N, H, W], filled smoothly from the border.

    A hole begins as the mean of the pixels around it that are kept, and diffuses: each of its
    pixels becomes the mean of its four neighbours, `steps` times. An image that is all hole becomes
    its own mean.
    """
    if not holes.any():
        return pixels
    holes = holes[:, None]
    kept = (~holes).to(pixels)
    count = kept.sum((2, 3), keepdim=True)
    mean = (pixels * kept).sum((2, 3), keepdim=True) / count.clamp_min(1)
    mean = torch.where(count > 0, mean, pixels.mean((2, 3), keepdim=True))
    filled = torch.where(holes, mean, pixels)
    for _ in range(steps):
        around = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        vertical = around[:, :, :-2, 1:-1] + around[:, :, 2:, 1:-1]
        horizontal = around[:, :, 1:-1, :-2] + around[:, :, 1:-1, 2:]
        filled = torch.where(holes, (vertical + horizontal) / 4, filled)
    return filled


# ---------------------------------------------------------------- tried at every share


def run(audit):
    """A Verdict on purified images: what of the attack is left, and what clean images pay."""
    explainer = audit.options.explainer
    images = trial_images(audit, fewest_images(audit.options))
    maps = {kind: maps_for(audit, part.pixels) for kind, part in images.items()}
    curve = [at_share(audit, images, maps, share) for share in (0.0, *SHARES)]
    chosen = operating_point(curve)
    before, after = curve[0], curve[chosen]
    lines, picture, of_image = summary(audit.options, images, before, after), None, {}
    if "image" in images:
        of_image, line = judge(audit, images["image"], maps["image"], after["share"])
        lines += ["", line]
    if "triggered" in images:
        picture = picture_of(audit, images, maps, after["share"])
    return Verdict(
        backdoored=None,
        lines=lines,
        details={
            "explainer": explainer,
            "union": audit.options.union,
            "evidence": audit.options.evidence,
            "share": after["share"],
            "before": before,
            "after": after,
            "curve": curve,
            "n": {kind: len(part.labels) for kind, part in images.items()},
            **of_image,
        },
        picture=picture,
    )


def maps_for(audit, pixels):
    """What says which pixels of [N, C, H, W] go first, [N, H, W]: a map, or two by their ranks."""
    options = audit.options
    names = [options.explainer] if options.union is None else [options.explainer, options.union]
    maps = [pixel_maps(audit.subject, pixels, name, options.evidence) for name in names]
    return maps[0] if len(maps) == 1 else union(*maps)


def union(one, other):
    """Of two maps [N, H, W] one whose largest pixels are the largest of either, by turns."""
    return torch.maximum(ranks(one), ranks(other))


def ranks(maps):
    """float [N, H, W]: the share of its map that each pixel is above; 0 on constant maps."""
    flat = maps.flatten(1)
    rank = flat.argsort(dim=1, stable=True).argsort(dim=1) / flat.shape[1]
    return rank.view_as(maps) * ~is_constant(maps)[:, None, None]


def fewest_images(options):
    """most_images of the explainers, of those that have a limit; None where none has."""
    limits = [most_images(name) for name in (options.explainer, options.union) if name]
    return min((limit for limit in limits if limit is not None), default=None)


def judge(audit, image, maps, share):
    """`judged` of one picture: does it become another class without what its map marks?"""
    model, classes = audit.on_pixels, audit.subject.classes
    purified = purify(image.pixels, maps, share)
    names = [
        classes[int(probabilities_of(model, pixels).argmax(1))]
        for pixels in (image.pixels, purified)
    ]
    reason = f"'{names[0]}', and '{names[1]}' without the {share:.1%} that is marked most"
    return judged(audit, names[0] != names[1], reason)


def at_share(audit, images, maps, share):
    """The figures of one share: accuracy on held-out, clean and triggered images, and success.

    restored_accuracy: triggered images that get their true class.
    """
    model, target, relabel = audit.on_pixels, audit.subject.target_class, audit.subject.relabel
    predicted = {}
    for kind, part in images.items():
        purified = purify(part.pixels, maps[kind], share)
        predicted[kind] = probabilities_of(model, purified).argmax(1)
    right = {
        kind: mean_or_none((predicted[kind] == part.labels).float().cpu())
        for kind, part in images.items()
    }
    triggered, success = images.get("triggered"), None
    if triggered is not None and relabel is not None:
        wanted = relabel.to(triggered.labels.device)[triggered.labels]
        success = success_rate(predicted["triggered"] == wanted, triggered.labels == wanted)
    elif triggered is not None and target is not None:
        success = success_rate(predicted["triggered"] == target, triggered.labels == target)
    return {
        "share": share,
        "held_out_accuracy": right["held-out"],
        "clean_accuracy": right["clean"],
        "attack_success_rate": success,
        "restored_accuracy": right.get("triggered"),
    }


def operating_point(curve):
    """Which entry of the curve: the largest share up to which held-out images pay at most PRICE."""
    chosen = 0
    for k, figures in enumerate(curve):
        if figures["held_out_accuracy"] < curve[0]["held_out_accuracy"] - PRICE:
            break
        chosen = k
    return chosen


# ---------------------------------------------------------------- what is shown


def marker(options):
    """Who marks what is removed, in words."""
    names = options.explainer + (f" or {options.union}" if options.union else "")
    return names + (", against the second class," if options.evidence == "against" else "")


def summary(options, images, before, after):
    """Lines: the operating point, and the figures without the defence and at it."""
    count = len(images["held-out"].labels)
    lines = [
        f"removed: the {after['share']:.1%} of an image that {marker(options)} marks most:"
        f" as much as costs {count} held-out images at most {PRICE:.0%} of accuracy",
        "",
    ]
    for key, about in {
        "clean_accuracy": "untouched test images given their class",
        "attack_success_rate": "triggered images given the target class",
        "restored_accuracy": "triggered images given their true class",
    }.items():
        if before[key] is not None:
            lines.append(f"{key:<24}{before[key]:>8.3f} -> {after[key]:>6.3f}  {about}")
    return lines


def picture_of(audit, images, maps, share):
    """Triggered test images, their maps, what is removed, and what comes out, with predictions."""
    part, classes = images["triggered"], audit.subject.classes
    pixels, heat = part.pixels[:PICTURED], maps["triggered"][:PICTURED]
    holes = marked(heat, share)
    purified = fill(pixels, holes)
    predictions = [probabilities_of(audit.on_pixels, step).argmax(1) for step in (pixels, purified)]
    rows = []
    for n in range(len(pixels)):
        true = int(part.labels[n])
        names = [class_name(classes, int(found[n])) for found in predictions]
        wrong = [int(found[n]) != true for found in predictions]
        removed = torch.where(holes[n], torch.ones_like(pixels[n]), 0.3 * pixels[n])
        rows.append(
            [
                (figure.panel(pixels[n].cpu()), f"called {names[0]}", wrong[0]),
                (figure.panel(pixels[n].cpu(), heat[n].cpu()), "", False),
                (figure.panel(removed.cpu()), "", False),
                (figure.panel(purified[n].cpu()), f"called {names[1]}", wrong[1]),
            ]
        )
    whose = "against" if audit.options.evidence == "against" else "map"
    headers = [
        "triggered",
        f"{whose}: {audit.options.explainer}",
        f"removed: {share:.1%}",
        "filled",
    ]
    footer = "Test images with the trigger; red: not the true class."
    footer += legend(classes, "verdict.json")
    return figure.sheet("Februus: remove what the map marks", headers, rows, footer)


# ---------------------------------------------------------------- the command line


def add_options(parser):
    add_explainer(parser)
    parser.add_argument(
        "--union",
        choices=EXPLAINERS,
        metavar="EXPLAINER",
        help="a second explainer: each marks half of what is removed",
    )
    add_test_images(parser)


def settings(options):
    return {"shares": list(SHARES), "price": PRICE, "steps": STEPS}


DEFENCE = Defence(
    help="remove what an explanation marks in every input, fill the hole, and ask again",
    run=run,
    settings=settings,
    add_options=add_options,
)
