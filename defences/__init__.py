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
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import nn

import hooks
from cli import number
from data import normalise
from metrics import mean_or_none
from subject import Subject

# An anomaly index above this flags a class: Wang et al. 2019 and Huang et al. 2019.
PUBLISHED_THRESHOLD = 2.0
CLASSES_SHOWN = 10  # rows of the table of an anomaly index


# ---------------------------------------------------------------- what a defence is given


@dataclass
class Audit:
    """A checkpoint, and what its auditor has.

    subject: the checkpoint with its model and data. Its trigger is for the score alone: no verdict
    may depend on it.
    pixels: clean images float [N, C, H, W] in [0, 1], held out of training; labels: int64 [N].
    inputs: the same images, normalised.
    options: the options of the command line.
    say: is told what is being done, for the line of progress.
    """

    subject: Subject
    pixels: torch.Tensor
    labels: torch.Tensor
    inputs: torch.Tensor
    options: argparse.Namespace
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
    picture: the figure, or None.
    """

    backdoored: bool | None
    lines: list
    flagged: list = field(default_factory=list)
    index: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)
    repaired: tuple | None = None
    picture: Image.Image | None = None


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
        default=PUBLISHED_THRESHOLD,
        help="flag a class whose anomaly index is above this",
    )


def verdict_by_index(audit, index, columns, picture):
    """A Verdict that flags the classes whose anomaly index is above the threshold.

    index: float64 [K]; columns: {title: [K] values}, shown beside the index.
    """
    flagged = (index > audit.options.threshold).nonzero()[:, 0].tolist()
    scores = {title: [float(value) for value in values] for title, values in columns.items()}
    return Verdict(
        backdoored=bool(flagged),
        lines=index_table(audit.subject.classes, index, flagged, scores),
        flagged=flagged,
        index=dict(enumerate(index.tolist())),
        details={"threshold": audit.options.threshold, "scores": scores},
        picture=picture,
    )


def index_table(class_names, index, flagged, columns):
    """Lines of a table, the classes of the highest index first."""
    lines = [f"{'class':<32}{'index':>8}" + "".join(f"{title:>14}" for title in columns)]
    for k in index.argsort(descending=True)[:CLASSES_SHOWN].tolist():
        cells = "".join(f"{values[k]:>14.4g}" for values in columns.values())
        mark = "  FLAGGED" if k in flagged else ""
        lines.append(f"{k:>3} {class_names[k]:<28}{float(index[k]):>8.2f}{cells}{mark}")
    return lines


# ---------------------------------------------------------------- asking a model


@contextlib.contextmanager
def frozen(model):
    """Within the block the model is as in hooks.answering, and its weights need no gradients."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with hooks.answering(model):
        try:
            for weight in trained:
                weight.requires_grad_(False)
            yield
        finally:
            for weight in trained:
                weight.requires_grad_(True)


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
