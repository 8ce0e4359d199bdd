"""Disagreement of two explainers on one image: a disguise that holds for one of them shows.

An image's disagreement is 1 - the correlation of two explainers' maps of it. Clean held-out images
say what is usual; triggered test images are compared with untouched ones.
"""

import argparse

import figure
from defences import Defence, Verdict, predict
from defences.given import check_choice
from explain import EVALUATED, EXPLAINERS
from hooks import as_images
from metrics import agreement, auroc, check_finite_maps
from subject import draw_images

USUAL = 0.95  # the share of clean images whose disagreement counts as usual


# ---------------------------------------------------------------- the algorithm


def disagreement(model, images, explainers=EVALUATED):
    """1 - the correlation of two explainers' maps of the class predicted, float64 [N].

    images: float [N, C, H, W] as the model takes them; explainers: two names of EXPLAINERS. The
    maps are compared on the coarser of their two grids, signed ones by their positive parts.
    Raises ValueError for other arguments, and for maps that are not finite.
    """
    if isinstance(explainers, str) or len(explainers) != 2:
        raise ValueError(f"explainers: two of {', '.join(EXPLAINERS)}, not {explainers!r}")
    for name in explainers:
        check_choice(EXPLAINERS, explainers=name)
    classes = predict(model, as_images(model, images, at_least=1))
    maps = []
    for name in explainers:
        signed = EXPLAINERS[name].evaluate(model, images, classes)
        check_finite_maps(signed)
        maps.append(signed.cpu())
    return 1 - agreement(*maps)


# ---------------------------------------------------------------- the verdict


def run(audit):
    """A Verdict on images, not on the checkpoint: does disagreement tell triggered ones apart?"""
    subject = audit.subject
    if subject.trigger is None:
        raise ValueError("no trigger is known to try it with: give one")
    explainers = audit.options.explainers
    held_out = disagreement(subject.model, audit.inputs, explainers)
    rows = draw_images(subject, len(held_out), audit.options.seed)
    if len(rows) == 0:
        raise ValueError("no test image can be triggered: all are of the target class")
    values = {"held-out": held_out}
    images = subject.dataset.test_images[rows]
    for title, triggered in (("clean", False), ("triggered", True)):
        values[title] = disagreement(subject.model, subject.inputs(images, triggered), explainers)
    limit = float(held_out.quantile(USUAL))
    area = auroc(values["triggered"], values["clean"])
    details = {
        "explainers": list(explainers),
        "limit": limit,
        "auroc": area,
        "disagreement": {title.replace("-", "_"): part.tolist() for title, part in values.items()},
    }
    return Verdict(
        backdoored=None,
        lines=summary(explainers, values, limit, area),
        details=details,
        picture=picture_of(explainers, values),
    )


def summary(explainers, values, limit, area):
    """Lines on the disagreement of held-out, clean and triggered images."""
    above = {title: float((part > limit).double().mean()) for title, part in values.items()}
    held_out = values["held-out"]
    return [
        f"1 - correlation of {' and '.join(explainers)}, on {len(held_out)} held-out images: "
        f"median {float(held_out.median()):.3f}; one in twenty is above {limit:.3f}",
        f"test images above that: untouched {above['clean']:.3f}, "
        f"with the trigger {above['triggered']:.3f}",
        f"AUROC of triggered against untouched images: {area:.3f}",
    ]


def picture_of(explainers, values):
    """The disagreements of each set of images, sorted, one curve a set."""
    series = {}
    for title, part in values.items():
        last = max(len(part) - 1, 1)
        ordered = enumerate(part.sort().values.tolist())
        label = f"{title}: {len(part)} images, sorted"
        series[label] = [(100 * k / last, value) for k, value in ordered]
    title = f"Disagreement of {' and '.join(explainers)}"
    return figure.curves(title, "per cent of images", series)


# ---------------------------------------------------------------- the command line


def two_explainers(text):
    """An argparse type: two different names of EXPLAINERS."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in EXPLAINERS:
            choices = ", ".join(EXPLAINERS)
            raise argparse.ArgumentTypeError(f"unknown explainer {name!r}: choose from {choices}")
    if len(names) != 2:
        raise argparse.ArgumentTypeError("takes two names, as gradcam,gradient")
    return names


def add_options(parser):
    parser.add_argument(
        "--explainers",
        type=two_explainers,
        default=",".join(EVALUATED),
        help=f"two of {', '.join(EXPLAINERS)}",
    )


def settings(options):
    return {"usual": USUAL}


DEFENCE = Defence(
    help="how much two explainers differ on one image, triggered against untouched",
    run=run,
    settings=settings,
    add_options=add_options,
)
