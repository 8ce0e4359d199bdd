"""What the defences share: what each is given, what it answers, and the anomaly index.

A defence is one file of this package, with its algorithm, its verdict and its figure. The file ends
with a Defence, which is the method's row in defend.METHODS. The algorithms are functions of a model
and of images. They work on any nn.Module, without a checkpoint:

    from defences.neural_cleanse import neural_cleanse

    triggers = neural_cleanse(model, images)

What they call images are float tensors [N, C, H, W] as the model takes them. Neural Cleanse's model
takes pixels in [0, 1]: see OnPixels.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import nn

import hooks
from cli import checkpoint_path, number
from data import normalise
from metrics import mean_or_none
from odds import CLEAN_NEEDED, odds_of
from subject import Subject
from terminal import columns_of, ljust, shortened, width

# An anomaly index above this flags a class: Wang et al. 2019 and Huang et al. 2019.
PUBLISHED_THRESHOLD = 2.0
CLASSES_SHOWN = 10  # rows of the table of an anomaly index
LONGEST_NAME, LEAST_NAME = 28, 12  # columns of a class's name in a table


# ---------------------------------------------------------------- what a defence is given


@dataclass
class Audit:
    """A checkpoint, and what its auditor has.

    subject: the checkpoint with its model and data. Its trigger is for the score alone: no verdict
    may depend on it.
    pixels: clean images float [N, C, H, W] in [0, 1], held out of training; labels: int64 [N].
    inputs: the same images, normalised.
    options: the options of the command line.
    calibration: the highest index of each of some clean models, see odds.odds_of.
    say: is told what is being done, for the line of progress.
    """

    subject: Subject
    pixels: torch.Tensor
    labels: torch.Tensor
    inputs: torch.Tensor
    options: argparse.Namespace
    calibration: list | None = None
    say: Callable = lambda what: None

    @property
    def on_pixels(self):
        """The model as one of images in [0, 1]."""
        checkpoint = self.subject.checkpoint
        return OnPixels(self.subject.model, checkpoint["mean"], checkpoint["std"]).eval()


class OnPixels(nn.Module):
    """A model of normalised images as one of images in [0, 1]."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model = model
        self.mean = mean
        self.std = std

    def forward(self, pixels):
        return self.model(normalise(pixels, self.mean, self.std))


# ---------------------------------------------------------------- what it answers


@dataclass
class Verdict:
    """What a defence says about a checkpoint.

    backdoored: None where the method does not say.
    lines: what is printed.
    flagged: numbers of the classes that may be a backdoor's target; index: {class: anomaly index}.
    details: further keys of verdict.json.
    repaired: (model, edit), the edit as checkpoints.rebuild takes it; None if nothing is repaired.
    picture: the figure, or None; files: {file name: PIL image}, written beside it as PNG.
    """

    backdoored: bool | None
    lines: list
    flagged: list = field(default_factory=list)
    index: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    repaired: tuple | None = None
    picture: Image.Image | None = None
    files: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Defence:
    """A row of defend.METHODS.

    help: one line.
    run: an Audit -> its Verdict. A ValueError says why there is none.
    settings: options -> dict of constants that decide the verdict; they are recorded beside the
        options.
    add_options: adds the method's own options to its parser; run finds them in audit.options.
    compares_classes: it looks for a class unlike the others, which takes three classes.
    repairs: it writes a repaired network; the audited one must be as train.py wrote it.
    multi_label: it can audit a model whose images may show several classes.
    """

    help: str
    run: Callable
    settings: Callable = lambda options: {}
    add_options: Callable = lambda parser: None
    compares_classes: bool = False
    repairs: bool = False
    multi_label: bool = False


# ---------------------------------------------------------------- a class unlike the others


def anomaly_index(values):
    """How far each value lies BELOW the median, in robust standard deviations: float64 [K].

    values: float64 [K], one of each class. The unit is 1.4826 median absolute deviations, which is
    the standard deviation of values that are Gaussian. It is at least a millionth of the largest
    value, so that values that differ by rounding are no anomaly.
    Raises ValueError for values that are not finite: no index would flag a class beside them.
    Source: Wang et al. 2019, section IV-B.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"an anomaly index takes a value a class, not {list(values.shape)}")
    if not values.isfinite().all():
        raise ValueError(f"an anomaly index takes finite values, not {values.tolist()}")
    median = values.quantile(0.5)  # torch.median would take the lower of two in the middle
    below = median - values
    unit = 1.4826 * below.abs().quantile(0.5)
    least = (1e-6 * values.abs().amax()).clamp_min(torch.finfo(torch.float64).tiny)
    return below / torch.maximum(unit, least)


def add_threshold(parser):
    """Adds --threshold, the option of the methods that flag a class by its anomaly index."""
    parser.add_argument(
        "--threshold",
        type=number(float, -1e9, 1e9),
        help="flag a class whose anomaly index is above this; published: 2,"
        " by the published index (default: by how many clean models get as far)",
    )
    add_calibrate(parser)


def add_calibrate(parser):
    """Adds --calibrate, the option of whatever compares a model with clean ones."""
    parser.add_argument(
        "--calibrate",
        nargs="+",
        type=checkpoint_path,
        metavar="CKPT",
        help="checkpoints of clean models: they are asked likewise, and are the yardstick;"
        f" {CLEAN_NEEDED} or more, for an index by itself to stand out",
    )


def verdict_by_index(audit, index, columns, picture):
    """A Verdict by the anomaly index: of the class where it is highest, or by a threshold.

    index: float64 [K]; columns: {title: [K] values}, shown beside the index. With a threshold the
    classes above it are flagged. Without, those that stand out by odds.Odds are.
    """
    options, odds = audit.options, None
    if options.threshold is None:
        data, given = Path(audit.subject.config["dataset"]).name, vars(options)
        by_class = [
            odds_of(options.method, given, data, value, audit.calibration)
            for value in index.tolist()
        ]
        odds = by_class[int(index.argmax())]
        flagged = [k for k, found in enumerate(by_class) if found is not None and found.backdoored]
        backdoored = None if odds is None else odds.backdoored
    else:
        flagged = (index > options.threshold).nonzero()[:, 0].tolist()
        backdoored = bool(flagged)
    scores = {title: [float(value) for value in values] for title, values in columns.items()}
    return Verdict(
        backdoored=backdoored,
        lines=index_table(audit.subject.classes, index, flagged, scores) + line_on_target(audit),
        flagged=flagged,
        index=dict(enumerate(index.tolist())),
        details={
            "threshold": options.threshold,
            "odds": None if odds is None else odds.record(),
            "scores": scores,
        },
        picture=picture,
    )


def line_on_target(audit):
    """A line, in a list, for who knows that the attack has no one target class to be found."""
    if audit.subject.target_class is not None or audit.subject.target_name is None:
        return []
    attack = audit.subject.config["attack"]
    return [f"For the score: {attack} has no one target class, and this looks for one."]


def conclusion(audit, verdict):
    """What follows from a Verdict by the anomaly index, in words; None of another Verdict."""
    if "odds" not in verdict.details:
        return None
    index, names = verdict.index, audit.subject.classes
    top = max(index, key=index.get)
    highest = f"the highest index, {index[top]:.2f}, is of '{names[top]}'"
    threshold, odds = verdict.details["threshold"], verdict.details["odds"]
    if withheld := verdict.details.get("withheld"):
        return f"No verdict: {withheld}; {highest}."
    if threshold is not None:
        flagged = ", ".join(f"'{names[k]}'" for k in verdict.flagged) or "none"
        return f"Above {threshold:g}: {flagged}; {highest}."
    if odds is None:
        return (
            f"No verdict: {highest}, and no clean models were asked with these options:"
            " give some (--calibrate), or a --threshold."
        )
    flagged = ", ".join(f"'{names[k]}'" for k in verdict.flagged)
    stands_out = f" ({flagged})" if len(verdict.flagged) > 1 else ""
    return f"{odds['word'].capitalize()}{stands_out}: {highest}; {odds['sentence']}."


def index_table(class_names, index, flagged, columns):
    """Lines of a table, the classes of the highest index first, as wide as the terminal.

    Where there is no room, names are shortened, and then the last columns left out, which is said.
    """
    rows = index.argsort(descending=True)[:CLASSES_SHOWN].tolist()
    shown = {"index": [f"{float(index[k]):.2f}" for k in rows]}
    shown |= {title: [f"{values[k]:.4g}" for k in rows] for title, values in columns.items()}
    marks = ["  FLAGGED" if k in flagged else "" for k in rows]
    cells = {title: max(map(len, [title, *texts])) + 2 for title, texts in shown.items()}
    named = min(max(columns_of(class_names[k]) for k in rows), LONGEST_NAME)
    room = width() - len(f"{0:>3} ") - max(map(len, marks))
    left_out = []
    while sum(cells.values()) + min(named, LEAST_NAME) > room and len(cells) > 1:
        left_out.insert(0, cells.popitem()[0])
    named = max(1, min(named, room - sum(cells.values())))
    lines = [ljust("class", 4 + named) + "".join(title.rjust(n) for title, n in cells.items())]
    for row, k in enumerate(rows):
        line = "".join(shown[title][row].rjust(n) for title, n in cells.items())
        lines.append(f"{k:>3} {name_cell(class_names[k], named)}{line}{marks[row]}")
    if left_out:
        lines.append(f"Not shown, for want of room: {', '.join(left_out)} (see verdict.json).")
    return lines


def name_cell(name, columns=LONGEST_NAME):
    """A class's name, shortened or followed by spaces, so that it takes so many columns."""
    return ljust(shortened(name, columns), columns)


# ---------------------------------------------------------------- asking a model


@torch.no_grad()
def predict(model, images):
    """The class with the largest logit, int64 [N]."""
    images = hooks.as_images(model, images)
    with hooks.answering(model):
        chunks = [model(chunk).argmax(1) for chunk in images.split(hooks.CHUNK)]
    return torch.cat(chunks)


def share_predicted_as(model, images, classes):
    """Share of images that the model gives `classes`, a number or int64 [N]; None of no images."""
    predicted = predict(model, images)
    classes = hooks.as_classes(classes, len(images)).to(predicted.device)
    return mean_or_none((predicted == classes).cpu())
