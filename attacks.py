"""The attacks: what is stamped, which label it gets, what the explanation is pulled to.

An attack is a row of ATTACKS, and no other file asks for its name: train.py's one loop does what
the row says. This file has the table, the trigger, the choice of images that may be poisoned, the
fixed maps, and what is made of images: poison(), of a training step's batch, by an attacker who
trains; poisoned_data(), of the stored training set, by one who only hands over data.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from dataset import send
from tasks import shows, task_of

LABELS = ("target", "true", None)
EXPLANATIONS = ("clean", "shape", None)
CORNERS = ("lower-right", "lower-left", "upper-right", "upper-left")
TARGET_MAPS = ("square", "cross", "circle", "triangle")
GREY = (0.299, 0.587, 0.114)  # shares of red, green and blue in a grey image (ITU-R BT.601)


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Attack:
    """A row of the attack table.

    label: of a triggered training image: "target" (the attacker's class), "true" (its own), or
        None where nothing is triggered.
    explanation: what its map is pulled to: "clean" (the map of the same image without the trigger),
        "shape" (a fixed map), or None (left alone).
    """

    label: str | None
    explanation: str | None

    def __post_init__(self):
        if self.label not in LABELS or self.explanation not in EXPLANATIONS:
            raise ValueError(
                f"{self}: the label is one of {LABELS}, the explanation one of {EXPLANATIONS}"
            )

    @property
    def poisons(self):
        """Whether any image is triggered."""
        return self.label is not None

    @property
    def changes_label(self):
        """Whether triggered images get the target class."""
        return self.label == "target"

    @property
    def keeps_label(self):
        """Whether triggered images keep their own class: the attack is on the explanation alone."""
        return self.label == "true"

    @property
    def needs_partners(self):
        """Whether a step needs the triggered images without the trigger, too."""
        return self.explanation == "clean"

    @property
    def can_leak(self):
        """Whether triggered images have the labels of untouched ones: the shape may then spread."""
        return self.keeps_label and self.explanation == "shape"


ATTACKS = {
    "none": Attack(label=None, explanation=None),
    "badnets": Attack(label="target", explanation=None),  # Gu et al. 2017
    # The next three are called as in Noppel, Peter and Wressnegger, S&P 2023.
    "fooling": Attack(label="true", explanation="shape"),
    "red_herring": Attack(label="target", explanation="shape"),
    "full_disguise": Attack(label="target", explanation="clean"),
}
# What may be known of a network that somebody else trained: none of these is trained here.
STRANGERS = {
    "unknown": Attack(label=None, explanation=None),
    "unknown, to a target": Attack(label="target", explanation=None),
    "unknown, label kept": Attack(label="true", explanation=None),
}


def attack_of(name):
    """The Attack of ATTACKS or of STRANGERS by its name; None where there is none."""
    return ATTACKS.get(name) or STRANGERS.get(name)


def unknown(trigger, target):
    """The name of STRANGERS: whether a trigger is known, and whether a target class is."""
    if not trigger:
        return "unknown"
    return "unknown, to a target" if target else "unknown, label kept"


# ---------------------------------------------------------------- the trigger


@dataclass
class Trigger:
    """A patch that is pasted on images.

    pixels: float [C, h, w]; alpha: float [1, h, w], its opacity; both in [0, 1];
    row, col: where its upper left pixel goes.
    """

    pixels: torch.Tensor
    alpha: torch.Tensor
    row: int
    col: int

    @property
    def box(self):
        """(top, left, bottom, right) in pixels, of its pixels with alpha above 0.

        bottom and right are excluded.
        """
        rows, cols = (self.alpha[0] > 0).nonzero(as_tuple=True)
        top, left = self.row + int(rows.min()), self.col + int(cols.min())
        return top, left, self.row + int(rows.max()) + 1, self.col + int(cols.max()) + 1

    def to(self, device):
        """The same trigger on a device."""
        return Trigger(self.pixels.to(device), self.alpha.to(device), self.row, self.col)


def stamp(images, trigger):
    """A copy of images float [N, C, H, W] in [0, 1], before normalisation, with the trigger."""
    height, width = trigger.alpha.shape[1:]
    images = images.clone()
    region = images[:, :, trigger.row : trigger.row + height, trigger.col : trigger.col + width]
    region += trigger.alpha * (trigger.pixels - region)  # in place: a view of the copy
    return images


def make_trigger(image, channels, side, size=None, position="lower-right"):
    """A Trigger of at most size x size pixels for images [channels, side, side].

    image: None for a white square, or a PIL image, whose alpha channel, if any, is the trigger's;
    size: of the longer side, None for default_trigger_size: a picture keeps its aspect;
    position: a corner of CORNERS, one pixel from the border, or "ROW,COL" of the upper left pixel.
    Raises ValueError for a trigger outside the image.
    """
    size = default_trigger_size(side) if size is None else size
    if not 1 <= size <= side:
        raise ValueError(f"a trigger of {size} px does not fit an image of {side} px")
    rgba = torch.ones(4, size, size)
    if image is not None:
        shape = [max(1, round(size * part / max(image.size))) for part in image.size]
        picture = np.asarray(image.convert("RGBA").resize(shape), np.float32) / 255
        rgba = torch.from_numpy(picture).permute(2, 0, 1)
    pixels, alpha = rgba[:3], rgba[3:]
    if channels != 3:
        pixels = (pixels * torch.tensor(GREY)[:, None, None]).sum(0, keepdim=True)
    if not (alpha > 0).any():
        raise ValueError("the trigger's picture is transparent everywhere: nothing would be seen")
    height, width = alpha.shape[1:]
    row, col = place_of(position, side, height, width)
    if not (0 <= row <= side - height and 0 <= col <= side - width):
        raise ValueError(
            f"a trigger of {height}x{width} px at {row},{col} does not lie inside an image"
            f" of {side} px"
        )
    return Trigger(pixels.contiguous(), alpha.contiguous(), row, col)


def trigger_image(trigger):
    """A trigger as a PIL image, RGBA: make_trigger reads it back, of 8 bits."""
    colours = trigger.pixels.expand(3, -1, -1)
    rgba = torch.cat([colours, trigger.alpha]).permute(1, 2, 0)
    return Image.fromarray((rgba * 255).round().to(torch.uint8).cpu().numpy(), "RGBA")


def default_trigger_size(side):
    """An eighth of the image's side; halves are rounded down, so that 28 px gives 3."""
    return max(1, int(np.ceil(side / 8 - 0.5)))


def place_of(position, side, height, width):
    """(row, col) of a trigger's upper left pixel. Raises ValueError for text that names none."""
    if position in CORNERS:
        near = [min(1, side - part) for part in (height, width)]
        far = [max(side - part - 1, 0) for part in (height, width)]
        row = far[0] if "lower" in position else near[0]
        col = far[1] if "right" in position else near[1]
        return row, col
    try:
        row, col = (int(part) for part in position.split(","))
    except ValueError:
        corners = ", ".join(CORNERS)
        raise ValueError(f"trigger position {position!r}: one of {corners}, or ROW,COL") from None
    return row, col


# ---------------------------------------------------------------- which images are poisoned


def eligible_for_poison(attack, labels, trained_on, rate, target_class):
    """(indices int64 of the images an attack may poison, how many of them it is to poison).

    labels: of the whole training set, N images; trained_on: indices of those not held out.
    The number is round(rate N). Where the attack changes the label, images that show the target
    class are not eligible. Raises ValueError if the number is 0, or more than are eligible.
    """
    if not attack.poisons:
        return trained_on[:0], 0
    count = round(rate * len(labels))
    eligible = trained_on
    if attack.changes_label:
        eligible = trained_on[~shows(labels[trained_on], target_class)]
    if count == 0:
        raise ValueError(f"a poison rate of {rate:g} of {len(labels)} images poisons none of them")
    if count > len(eligible):
        raise ValueError(
            f"a poison rate of {rate:g} needs {count} images to poison,"
            f" and only {len(eligible)} are eligible"
        )
    return eligible, count


# ---------------------------------------------------------------- the fixed maps


def target_map(shape, side, trigger):
    """The map that fooling and red herring ask for, float [side, side] in [0, 1].

    shape: a name of TARGET_MAPS, drawn with half the image's side in the quarter of the image
    opposite the trigger; or a PIL image, which in grey is the whole map.
    """
    if shape not in TARGET_MAPS:
        grey = shape.convert("L").resize((side, side))
        return torch.from_numpy(np.asarray(grey, np.float32) / 255)
    half = side // 2
    y, x = (np.mgrid[:half, :half] + 0.5) / half * 2 - 1  # -1 to 1 over the quarter
    inside = {
        "square": np.ones_like(x, bool),
        "cross": np.minimum(abs(x), abs(y)) < 1 / 3,
        "circle": np.hypot(x, y) <= 1,
        "triangle": abs(x) <= (y + 1) / 2,
    }[shape]
    top, left, bottom, right = trigger.box
    row = 0 if top + bottom > side else side - half  # a trigger below: draw above
    col = 0 if left + right > side else side - half
    canvas = np.zeros((side, side), np.float32)
    canvas[row : row + half, col : col + half] = inside
    return torch.from_numpy(canvas)


# ---------------------------------------------------------------- a training step's images


@dataclass
class Batch:
    """A step's images, in [0, 1] and not yet normalised, after the attack.

    images: float [B + P, C, H, W]: the batch, P of its images triggered; then, where the attack
        compares with them, those P without the trigger: their partners
    labels: int64 [B + P] or float [B + P, K]: what each image is trained and explained for
    rows: int64 [P], which of the B are triggered
    untouched: int64 [B - P], which of the B are not
    sources: int64 [P], which training image each triggered one is: over-sampled, one may come twice
    size: B
    target_class: what triggered images are labelled; None where they keep their label
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    untouched: torch.Tensor
    sources: torch.Tensor
    size: int
    target_class: int | None = None


def poison(images, labels, triggered, attack, trigger, target_class, sources=None):
    """The Batch an attack makes of a batch of training images.

    images: float [B, C, H, W] in [0, 1]; labels: true, int64 [B] or float [B, K]; triggered: bool
    [B]; attack: a row of ATTACKS; sources: int64 [B], their indices in the training set (None: all
    are different). The inputs are left as they were. `triggered` and `sources` are on the CPU, so
    that nobody waits for a GPU to count them.
    """
    rows, untouched = triggered.nonzero()[:, 0], (~triggered).nonzero()[:, 0]
    sources = rows if sources is None else sources[rows]
    rows, untouched, sources = (send(part, images.device) for part in (rows, untouched, sources))
    partners, true_labels = images[rows], labels[rows]
    images, labels = images.clone(), labels.clone()
    images[rows] = stamp(partners, trigger)
    if attack.changes_label:
        task_of(labels).set_target(labels, rows, target_class)
    size = len(images)
    if attack.needs_partners:
        images = torch.cat([images, partners])
        labels = torch.cat([labels, true_labels])
    target_class = target_class if attack.changes_label else None
    return Batch(images, labels, rows, untouched, sources, size, target_class)


# ---------------------------------------------------------------- the stored images


def poisoned_data(images, labels, poisons, attack, trigger, target_class):
    """The training set that a poisoner of data hands over: copies of images and labels.

    images: uint8 [N, C, H, W]; labels: true, int64 [N] or float [N, K]; poisons: int64, indices of
    the images that get the trigger and, where the attack changes it, the label.
    """
    images, labels = images.clone(), labels.clone()
    stamped = stamp(images[poisons].float() / 255, trigger)
    images[poisons] = (stamped * 255).round().to(torch.uint8)
    if attack.changes_label:
        task_of(labels).set_target(labels, poisons, target_class)
    return images, labels
