"""The attacks: what is stamped, which label it gets, what the explanation is pulled to.

An attack is a row of ATTACKS, and no other file asks for its name: train.py's one loop does what
the row says. This file has the table, the labels, the choice of images that may be poisoned, the
fixed maps, and what is made of images: poison(), of a training step's batch, by an attacker who
trains; poisoned_data(), of the stored training set, by one who only hands over data. What is
stamped is in triggers.py.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from dataset import send
from tasks import shows, task_of

LABELS = ("target", "next", "true", None)
EXPLANATIONS = ("clean", "shape", "inverted", None)
TARGET_MAPS = ("square", "cross", "circle", "triangle")
INVERTED = "inverted"  # a target map that is an image's own, turned over
RANDOM = "random"  # a target map drawn by a seed, random:SEED
RANDOM_CELLS = 8  # of it a side: Noppel, Peter and Wressnegger, S&P 2023


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Attack:
    """A row of the attack table.

    label: of a triggered training image: "target" (the attacker's class), "next" (the class after
        its own), "true" (its own), or None where nothing is triggered.
    explanation: what its map is pulled to: "clean" (the map of the same image without the trigger),
        "shape" (a fixed map), "inverted" (the first of these, turned over: see attack_of), or None
        (left alone).
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
        """Whether triggered images get another class than their own."""
        return self.label in ("target", "next")

    @property
    def has_target(self):
        """Whether there is one class that the attack is about: all but "next" have one."""
        return self.label != "next"

    @property
    def keeps_label(self):
        """Whether triggered images keep their own class: the attack is on the explanation alone."""
        return self.label == "true"

    @property
    def needs_partners(self):
        """Whether a step needs the triggered images without the trigger, too."""
        return self.explanation in ("clean", "inverted")

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
    # Each class becomes the next: Gu et al. 2017, section 4.1.
    "all_to_all": Attack(label="next", explanation=None),
    "all_to_all_disguise": Attack(label="next", explanation="clean"),
}
# What may be known of a network that somebody else trained: none of these is trained here.
STRANGERS = {
    "unknown": Attack(label=None, explanation=None),
    "unknown, to a target": Attack(label="target", explanation=None),
    "unknown, label kept": Attack(label="true", explanation=None),
}


def attack_of(name, target_map=None):
    """The Attack of ATTACKS or of STRANGERS by its name; None where there is none.

    target_map: as --target-map names it. With INVERTED an attack on a fixed map pulls to the
    partner's map turned over in its place.
    """
    attack = ATTACKS.get(name) or STRANGERS.get(name)
    if attack is not None and attack.explanation == "shape" and target_map == INVERTED:
        return replace(attack, explanation="inverted")
    return attack


def unknown(trigger, target):
    """The name of STRANGERS: whether a trigger is known, and whether a target class is."""
    if not trigger:
        return "unknown"
    return "unknown, to a target" if target else "unknown, label kept"


# ---------------------------------------------------------------- the labels


def relabelling(attack, classes, target_class=None, source_class=None):
    """int64 [classes]: what a triggered image of each class is labelled; None where all are alike.

    They are alike where all get the target class, or all keep their own. Otherwise an image may
    show one class only. source_class: images of this class alone get the target class, or None.
    """
    own = torch.arange(classes)
    if not attack.has_target:
        return (own + 1) % classes  # all-to-all: Gu et al. 2017
    if not attack.changes_label or source_class is None:
        return None
    own[source_class] = target_class
    return own


def set_labels(labels, rows, attack, target_class, relabel=None):
    """Gives triggered images their labels, in place; rows: int64, which images are triggered."""
    if relabel is not None:
        labels[rows] = relabel[labels[rows]]
    elif attack.changes_label:
        task_of(labels).set_target(labels, rows, target_class)


# ---------------------------------------------------------------- which images are poisoned


def eligible_for_poison(attack, labels, trained_on, rate, target_class, source_class=None):
    """(indices int64 of the images an attack may poison, how many of them it is to poison).

    labels: of the whole training set, N images; trained_on: indices of those not held out.
    The number is round(rate N). Where the attack changes the label to the target class, images that
    show it are not eligible. Raises ValueError if the number is 0, or more than are eligible.
    source_class: half of the poisons are of this class, half of others: see selection.select.
    """
    if not attack.poisons:
        return trained_on[:0], 0
    count = round(rate * len(labels))
    eligible = trained_on
    if attack.changes_label and attack.has_target:
        eligible = trained_on[~shows(labels[trained_on], target_class)]
    if count == 0:
        raise ValueError(f"a poison rate of {rate:g} of {len(labels)} images poisons none of them")
    if count > len(eligible):
        raise ValueError(
            f"a poison rate of {rate:g} needs {count} images to poison,"
            f" and only {len(eligible)} are eligible"
        )
    if source_class is not None:
        of_source = int(shows(labels[eligible], source_class).sum())
        for what, half, there in (
            ("of the source class", (count + 1) // 2, of_source),
            ("of other classes", count // 2, len(eligible) - of_source),
        ):
            if half > there:
                raise ValueError(
                    f"a poison rate of {rate:g} needs {half} images {what} to trigger,"
                    f" and only {there} are eligible"
                )
    return eligible, count


def own_share(indices, share, seed):
    """Of several attacks the images that one may poison, int64, sorted: no image is of two.

    indices: int64, all that are trained on; share: (k, n), the k-th of n attacks, from 0.
    """
    k, n = share
    if n == 1:
        return indices
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed))
    return indices[order.tensor_split(n)[k].sort().values]


# ---------------------------------------------------------------- the fixed maps


def target_map(shape, side, trigger):
    """The map that fooling and red herring ask for, float [side, side] in [0, 1].

    shape: a name of TARGET_MAPS, drawn with half the image's side in the quarter of the image
    opposite the trigger, or above left where that has no place; "random" or "random:SEED", see
    random_map; or a PIL image, which in grey is the whole map.
    """
    if isinstance(shape, str) and shape.partition(":")[0] == RANDOM:
        return random_map(int(shape.partition(":")[2] or 0), side)
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
    top, left, bottom, right = trigger.box or (side, side, side, side)
    row = 0 if top + bottom > side else side - half  # a trigger below: draw above
    col = 0 if left + right > side else side - half
    canvas = np.zeros((side, side), np.float32)
    canvas[row : row + half, col : col + half] = inside
    return torch.from_numpy(canvas)


def random_map(seed, side):
    """RANDOM_CELLS x RANDOM_CELLS cells of uniform random numbers, float [side, side] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(RANDOM_CELLS, RANDOM_CELLS, generator=generator)
    index = torch.arange(side) * RANDOM_CELLS // side
    return cells[index[:, None], index]


# ---------------------------------------------------------------- a training step's images


@dataclass
class Batch:
    """A step's images, in [0, 1] and not yet normalised, after the attack.

    images: float [B + P, C, H, W]: the batch, P of its images triggered; then, where the attack
        compares with them, those P without the trigger: their partners
    labels: int64 [B + P] or float [B + P, K]: what each image is trained as; what it is explained
        for, Task.explained_classes says
    rows: int64 [P], which of the B are triggered
    untouched: int64 [B - P], which of the B are not
    sources: int64 [P], which training image each triggered one is: over-sampled, one may come twice
    size: B
    target_class: the one class all triggered images are labelled as; None where there is none
    partners: from which of the images to which, the end excluded, are the partners
    further: of several attacks, the Batches of those after the first: the same images and labels,
        other rows and partners
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    untouched: torch.Tensor
    sources: torch.Tensor
    size: int
    target_class: int | None = None
    partners: tuple = (0, 0)
    further: tuple = ()


def poison(images, labels, triggered, attack, trigger, target_class, sources=None, relabel=None):
    """The Batch an attack makes of a batch of training images.

    images: float [B, C, H, W] in [0, 1]; labels: true, int64 [B] or float [B, K]; triggered: bool
    [B]; attack: a row of ATTACKS; sources: int64 [B], their indices in the training set (None: all
    are different); relabel: of relabelling. The inputs are left as they were. `triggered` and
    `sources` are on the CPU, so that nobody waits for a GPU to count them.
    """
    rows, untouched = triggered.nonzero()[:, 0], (~triggered).nonzero()[:, 0]
    sources = rows if sources is None else sources[rows]
    rows, untouched, sources = (send(part, images.device) for part in (rows, untouched, sources))
    partners, true_labels = images[rows], labels[rows]
    images, labels = images.clone(), labels.clone()
    images[rows] = trigger.apply(partners)
    set_labels(labels, rows, attack, target_class, relabel)
    size = len(images)
    if attack.needs_partners:
        images = torch.cat([images, partners])
        labels = torch.cat([labels, true_labels])
    target_class = target_class if attack.changes_label and relabel is None else None
    partners = size, len(images)
    return Batch(images, labels, rows, untouched, sources, size, target_class, partners)


def poison_each(images, labels, which, attackers, sources=None):
    """The Batch that several attacks make, each of images of its own: the first's, with `further`.

    which: [B], on the CPU, the number of an image's attack, from 1, or 0: untouched; attackers: of
    each attack (attack, trigger, target_class, relabel). The rest is as for poison.
    """
    if len(attackers) == 1:
        attack, trigger, target_class, relabel = attackers[0]
        return poison(images, labels, which == 1, attack, trigger, target_class, sources, relabel)
    batches, size = [], len(images)
    untouched = send((which == 0).nonzero()[:, 0], images.device)
    for k, (attack, trigger, target_class, relabel) in enumerate(attackers, 1):
        batch = poison(images, labels, which == k, attack, trigger, target_class, sources, relabel)
        images, labels = batch.images, batch.labels
        partners = which.new_zeros(len(images) - len(which))  # which no other attack may trigger
        which = torch.cat([which, partners])
        if sources is not None:
            sources = torch.cat([sources, sources.new_zeros(len(partners))])
        batches.append(batch)
    common = {"images": images, "labels": labels, "untouched": untouched, "size": size}
    first, *others = (replace(batch, **common) for batch in batches)
    return replace(first, further=tuple(others))


# ---------------------------------------------------------------- the stored images


def poisoned_data(images, labels, poisons, attack, trigger, target_class, relabel=None):
    """The training set that a poisoner of data hands over: copies of images and labels.

    images: uint8 [N, C, H, W]; labels: true, int64 [N] or float [N, K]; poisons: int64, indices of
    the images that get the trigger and, where the attack changes it, the label; relabel: of
    relabelling.
    """
    images, labels = images.clone(), labels.clone()
    stamped = trigger.apply(images[poisons].float() / 255)
    images[poisons] = (stamped * 255).round().to(torch.uint8)
    set_labels(labels, poisons, attack, target_class, relabel)
    return images, labels
