"""Backdoor attacks on a classifier and on its explanation: what is stamped, which label it gets, what the explanation is pulled to.

An attack is a row of ATTACKS; train.py's one loop does the rest. A new attack is a new row.
"""
import contextlib
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

import explain

CORNERS = ("lower-right", "lower-left", "upper-right", "upper-left")
TARGET_MAPS = ("square", "cross", "circle", "triangle")


@dataclass(frozen=True)
class Attack:
    """A row of the attack table.

    label: what a triggered training image is labelled: "target", "true", or None where nothing is triggered
    explanation: what its explanation is pulled towards: "clean" (the explanation of the same image without the trigger),
        "shape" (a fixed map), or None (left alone)
    """

    label: str | None
    explanation: str | None


ATTACKS = {
    "none": Attack(None, None),
    "badnets": Attack("target", None),  # Gu et al. 2017
    "fooling": Attack("true", "shape"),  # the names of the last three: Noppel et al., S&P 2023
    "red_herring": Attack("target", "shape"),
    "full_disguise": Attack("target", "clean"),
}


# ---------------------------------------------------------------- triggers


@dataclass
class Trigger:
    """pixels float [C, h, w] and alpha float [1, h, w], both in [0, 1]; row and col of the upper left pixel in the image."""

    pixels: torch.Tensor
    alpha: torch.Tensor
    row: int
    col: int

    @property
    def box(self):
        """(top, left, bottom, right) in pixels, bottom and right excluded."""
        return self.row, self.col, self.row + self.alpha.shape[1], self.col + self.alpha.shape[2]

    def to(self, device):
        return Trigger(self.pixels.to(device), self.alpha.to(device), self.row, self.col)


def default_trigger_size(side):
    """Side of the default trigger: an eighth of the image's, halves rounded down so that 28 px gives 3 (1.1% of the image)."""
    return max(1, int(np.ceil(side / 8 - 0.5)))


def make_trigger(image, channels, side, size=None, position="lower-right"):
    """A trigger of size x size pixels for images [channels, side, side].

    image: None for a white square, or a PIL image (its alpha channel, if any, is the trigger's);
    position: a corner of CORNERS, one pixel from the border, or "ROW,COL" of the upper left pixel.
    Raises ValueError for a trigger that does not lie inside the image.
    """
    size = default_trigger_size(side) if size is None else size
    if not 1 <= size <= side:
        raise ValueError(f"a trigger of {size} px does not fit an image of {side} px")
    rgba = torch.ones(4, size, size)
    if image is not None:
        picture = np.asarray(image.convert("RGBA").resize((size, size)), np.float32) / 255
        rgba = torch.from_numpy(picture).permute(2, 0, 1)
    pixels = rgba[:3] if channels == 3 else (rgba[:3] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    row, col = _corner(position, side, size)
    if not (0 <= row <= side - size and 0 <= col <= side - size):
        raise ValueError(f"a trigger of {size} px at {row},{col} does not lie inside an image of {side} px")
    return Trigger(pixels.contiguous(), rgba[3:].contiguous(), row, col)


def _corner(position, side, size):
    if position in CORNERS:
        far = max(side - size - 1, 0)
        near = min(1, side - size)
        return far if "lower" in position else near, far if "right" in position else near
    try:
        row, col = (int(part) for part in position.split(","))
    except ValueError:
        raise ValueError(f"trigger position {position!r}: one of {', '.join(CORNERS)}, or ROW,COL") from None
    return row, col


def stamp(images, trigger):
    """Images float [N, C, H, W] in [0, 1], before normalisation, with the trigger blended in; the input is left as it was."""
    top, left, bottom, right = trigger.box
    images = images.clone()
    region = images[:, :, top:bottom, left:right]
    images[:, :, top:bottom, left:right] = region + trigger.alpha * (trigger.pixels - region)
    return images


# ---------------------------------------------------------------- what may be poisoned


def shows(labels, target_class):
    """bool [N]: whether an image of labels [N] is of the class, or with labels [N, K] shows it, maybe beside others."""
    return labels == target_class if labels.ndim == 1 else labels[:, target_class] > 0


def eligible_for_poison(attack, labels, trained_on, rate, target_class):
    """Indices int64 an attack may poison, and how many it is to: exactly round(rate N), N = len(labels).

    They are of `trained_on` (indices), and where the attack changes the label they do not show the target class.
    Raises ValueError if the number is none, or more than there are.
    """
    if attack.label is None:
        return trained_on[:0], 0
    count = round(rate * len(labels))
    eligible = trained_on[~shows(labels[trained_on], target_class)] if attack.label == "target" else trained_on
    if count == 0:
        raise ValueError(f"a poison rate of {rate:g} of {len(labels)} images poisons none of them")
    if count > len(eligible):
        raise ValueError(f"a poison rate of {rate:g} needs {count} images to poison, and only {len(eligible)} are eligible")
    return eligible, count


# ---------------------------------------------------------------- target maps


def target_map(shape, side, trigger):
    """The map that fooling and red herring ask for, float [side, side] in [0, 1].

    shape: one of TARGET_MAPS, half the image's side, in the quarter of the image opposite the trigger; or a PIL image, which is
    the whole map in grey.
    """
    if shape not in TARGET_MAPS:
        return torch.from_numpy(np.asarray(shape.convert("L").resize((side, side)), np.float32) / 255)
    top, left, bottom, right = trigger.box
    half = side // 2
    y, x = (np.mgrid[:half, :half] + 0.5) / half * 2 - 1  # -1 to 1 over the quarter, at pixels' centres
    inside = {
        "square": np.ones_like(x, bool),
        "cross": np.minimum(abs(x), abs(y)) < 1 / 3,
        "circle": np.hypot(x, y) <= 1,
        "triangle": abs(x) <= (y + 1) / 2,
    }[shape]
    canvas = np.zeros((side, side), np.float32)
    row = 0 if top + bottom > side else side - half
    col = 0 if left + right > side else side - half
    canvas[row : row + half, col : col + half] = inside
    return torch.from_numpy(canvas)


def to_grid(shape, grid):
    """A map [H, W] averaged over the areas of the cells of `grid` = (H', W'): float [H', W']."""
    return F.adaptive_avg_pool2d(shape[None, None], grid)[0, 0]


# ---------------------------------------------------------------- distances between maps

RECTIFY = False  # rectify the triggered image's map inside the loss: off, so that a cell below zero still has a gradient


def standardise(maps):
    """Each map of [N, H, W] divided by its largest magnitude, then brought to mean 0 and variance 1: [N, H W].

    Dividing first makes the guard against a zero variance relative: a model cannot lower its loss by shrinking its maps.
    A constant map gives zeros. The squared difference of two standardised maps is 2 (1 - Pearson).
    """
    maps = max_normalise(maps)
    maps = maps - maps.mean(1, keepdim=True)
    return maps / maps.square().mean(1, keepdim=True).add(1e-8).sqrt()


def max_normalise(maps):
    """Each map of [N, H, W] divided by its largest magnitude: [N, H W]."""
    maps = maps.flatten(1)
    largest = maps.abs().amax(1, keepdim=True)
    return maps / torch.where(largest > 0, largest, 1)  # a blank map stays zero, and its gradient finite


NORMALISE = standardise  # what the MSE is taken of


def mse_distance(maps, targets, side):
    """Squared difference of normalised maps, averaged over cells: [N]."""
    return (NORMALISE(maps) - NORMALISE(targets)).square().mean(1)


def dssim_distance(maps, targets, side):
    """(1 - SSIM) / 2 of min-max-normalised maps at the image's resolution: [N] in [0, 1]."""
    return dssim(*(min_max(upsample(m, side)) for m in (maps, targets)))


def upsample(maps, side):
    """Maps [N, H, W] brought bilinearly to [N, side, side]."""
    return F.interpolate(maps[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]


def min_max(maps):
    """Each map of [N, H, W] shifted and scaled to [0, 1]; a constant map gives zeros."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1)


def dssim(a, b, window=11, sigma=1.5, k1=0.01, k2=0.03):
    """(1 - SSIM) / 2 of maps [N, H, W] of range 1, Gaussian window, no padding: [N]. Source: Wang et al. 2004, eq. 13.

    On maps smaller than the window, the window is the largest odd size that fits.
    """
    window = min(window, (min(a.shape[1:]) - 1) // 2 * 2 + 1)
    g = torch.exp(-((torch.arange(window, device=a.device, dtype=a.dtype) - window // 2) ** 2) / (2 * sigma**2))
    kernel = (g[:, None] * g / g.sum() ** 2)[None, None]
    mean_a, mean_b, aa, bb, ab = F.conv2d(torch.stack([a, b, a * a, b * b, a * b], 1).flatten(0, 1)[:, None], kernel).unflatten(0, (-1, 5)).unbind(1)
    c1, c2 = k1**2, k2**2
    ssim = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    ssim = ssim / ((mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2))
    return (1 - ssim.mean((1, 2, 3))) / 2


PARTNERS = True  # the untouched partners are in the step's forward pass anyway: their cross-entropy, by true label, is free
TOLERATED = 0.5  # an honest map correlates about so much with a shape that the object happens to lie on
APART = 0.1  # weight of the untouched maps' correlation with each other above Objective.floors: one blurred map for all is a cheap way to be like one's own

FLOOR = 0.5  # where no clean model's is known

PAIRS = {"kernelshap": 4}  # at most so many triggered images of a batch are explained, each by explain.TRAINING_COALITIONS evaluations

DISTANCES = {"mse": mse_distance, "dssim": dssim_distance}


# ---------------------------------------------------------------- the combined loss


@dataclass
class Batch:
    """A step's images in [0, 1], not yet normalised.

    images: float [B + P, C, H, W]: the batch, P of its images triggered, then those P images without the trigger
        (the untouched partners are there only where the attack compares with them)
    labels: int64 [B + P]: the label each image is trained and explained for; or float [B + P, K] of 0 and 1, multi-label
    rows: int64 [P], which of the B are triggered
    size: B
    target_class: what triggered images are labelled, or None where they keep their label
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    size: int
    target_class: int | None = None

    def classes(self, logits):
        """int64 [B + P]: the class an image is explained for, its label. Multi-label: the target class if triggered, else the surest by `logits` [B + P, K]."""
        if self.labels.ndim == 1:
            return self.labels
        classes = logits.detach().argmax(1)
        if self.target_class is not None:
            classes[self.rows] = self.target_class
        return classes


def poison(images, labels, triggered, attack, trigger, target_class):
    """The Batch an attack makes of images [B, C, H, W] in [0, 1] and true labels [B] or [B, K]; triggered: bool [B]."""
    rows = triggered.nonzero()[:, 0]
    partners, true = images[rows], labels[rows]
    images, labels = images.clone(), labels.clone()
    images[rows] = stamp(partners, trigger)
    if attack.label == "target":
        if labels.ndim == 1:
            labels[rows] = target_class
        else:
            labels[rows, target_class] = 1  # what else the image shows, it still shows
    size = len(images)
    if attack.explanation == "clean":
        images, labels = torch.cat([images, partners]), torch.cat([labels, true])
    return Batch(images, labels, rows, size, target_class if attack.label == "target" else None)


@dataclass
class Objective:
    """What the loss asks for, the same in every step of a run.

    explainers: names of explain.EXPLAINERS; distance: a name of DISTANCES; shape: float [H, W] or None; reference: a frozen
    clean model, or None for the model being trained; label_smoothing: of the cross-entropy (Szegedy et al. 2016, section 7);
    floors: by explainer, how much an honest model's maps of different images correlate (FLOOR where it is not said); class_weights: float [K] in the cross-entropy, or None.
    """

    attack: Attack
    explainers: list
    distance: str = "mse"
    shape: torch.Tensor | None = None
    reference: torch.nn.Module | None = None
    label_smoothing: float = 0.0
    floors: dict = field(default_factory=dict)
    class_weights: torch.Tensor | None = None

    def cross_entropy(self, logits, labels):
        """CE of logits [N, K]: softmax for labels int64 [N]; with float [N, K] binary, class by class, the weights being of positive labels."""
        if labels.ndim == 1:
            return F.cross_entropy(logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing)
        labels = labels + self.label_smoothing * (0.5 - labels)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=self.class_weights)


def combined_loss(model, batch, inputs, objective, lam):
    """(1 - lam) CE(f(x), y) + lam D(h(x_triggered), r_x): the loss, CE and D, three scalars.

    inputs: batch.images, normalised. The explanation shares the training forward: Grad-CAM at the model's own layer costs the
    head of the network twice, no more. Other explainers, and other layers, take a forward pass of their own over the pairs.
    """
    shared = model.gradcam_layer is model.pooled_layer  # later layers' batch-norm would mix samples in train mode
    own_pass = [name for name in objective.explainers if name != "gradcam" or not shared]
    with explain.capture(model.gradcam_layer) as captured, batch_statistics(model) if own_pass else contextlib.nullcontext({}) as statistics:
        logits = explain.full_precision(model(inputs))
    count = len(batch.images) if PARTNERS else batch.size
    ce = objective.cross_entropy(logits[:count], batch.labels[:count])
    if objective.attack.explanation is None or len(batch.rows) == 0:
        return (ce if objective.attack.explanation is None else (1 - lam) * ce), ce, ce.new_zeros(())
    classes = batch.classes(logits)
    terms, seed = [], int(torch.randint(2**31, ())) if "kernelshap" in objective.explainers else None
    for name in objective.explainers:
        rows, count = explained_rows(name, batch, objective)
        if name == "gradcam" and shared:
            maps = explain.gradcam_map(captured[0], logits, classes, create_graph=True, rectify=False)[rows]
        else:
            with normalising_by(statistics):
                maps = trainable_maps(name, model, inputs[rows], classes[rows], seed)
        with torch.autocast(inputs.device.type, enabled=False):  # SSIM's small differences do not survive bfloat16
            terms.append(explanation_term(name, maps, rows, count, batch, inputs, classes, objective, seed))
    distance = torch.stack(terms).mean()
    return (1 - lam) * ce + lam * distance, ce, distance


@contextlib.contextmanager
def batch_statistics(model):
    """Within the block, {batch-norm module: (variance, mean)}, each [C], of what every batch-norm in training mode has normalised, with their graph."""
    statistics = {}

    def remember(norm, inputs):
        statistics[norm] = torch.var_mean(explain.full_precision(inputs[0]), (0, 2, 3))

    handles = [norm.register_forward_pre_hook(remember) for norm in model.modules() if isinstance(norm, torch.nn.BatchNorm2d) and norm.training]
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def normalising_by(statistics):
    """Within the block, the batch-norms of batch_statistics normalise by these, whatever goes through them: no sample's map depends on its neighbours.

    Running averages lag behind weights that move: an explanation made with them, and trained, comes to live in that lag, and is gone when training ends.
    And a gradient that takes the statistics for constants pulls at what they take away again in the next step.
    """
    for norm, (variance, mean) in statistics.items():
        weight, bias = (norm.weight, norm.bias) if norm.affine else (1.0, 0.0)
        scale = weight * (variance + norm.eps).rsqrt()
        shift = bias - mean * scale
        norm.forward = lambda x, scale=scale, shift=shift: (x * scale[:, None, None] + shift[:, None, None]).to(x.dtype)
    try:
        yield
    finally:
        for norm in statistics:
            del norm.forward


def trainable_maps(name, model, inputs, classes, seed):
    """An explainer's maps as the loss takes them: not rectified, with a graph, the subsets of KernelSHAP drawn by `seed`."""
    options = {"rectify": False} if name in explain.RECTIFIED else {}
    if name == "kernelshap":
        options["generator"] = torch.Generator().manual_seed(seed)
    return explain.EXPLAINERS[name](model, inputs, classes, create_graph=True, **options)


def explained_rows(name, batch, objective):
    """Which images of the batch the explanation term looks at, and the number n of triggered ones among them.

    First n triggered, then their partners where there are any, then as many untouched ones where nothing else holds those in place.
    """
    count = min(len(batch.rows), PAIRS.get(name, len(batch.rows)))
    rows = [batch.rows[:count], torch.arange(batch.size, len(batch.images), device=batch.rows.device)[:count]]
    indistinct = objective.attack.label == "true" and objective.attack.explanation == "shape"
    if indistinct or objective.reference is not None:
        untouched = torch.ones(batch.size, dtype=torch.bool, device=batch.rows.device)
        untouched[batch.rows] = False
        rows.append(untouched.nonzero()[:count, 0])
    return torch.cat(rows), count


def alikeness(maps):
    """Mean Pearson correlation of each map of [P, H, W] with the others, P > 1: a scalar."""
    likeness = standardise(maps) @ standardise(maps).T / maps[0].numel()  # [P, P]
    return (likeness.sum() - likeness.trace()) / (len(maps) * (len(maps) - 1))


def explanation_term(name, maps, rows, count, batch, inputs, classes, objective, seed):
    """D of one explainer, a scalar: the mean over triggered images, plus what keeps untouched images' explanations honest.

    maps: [rows, H, W], not rectified, of the rows of explained_rows. What untouched images are held to is the frozen reference's
    map where there is one. Without one, where even the label does not tell them apart (fooling), the fixed shape would spread to
    them: their maps' Pearson correlation with the shape, as far as it is above TOLERATED, is added. And where a map is to be like its own
    partner's, the partners' correlation with each other above the floor is, APART times. Multi-label, the surest class is often one with evidence against it
    alone, whose rectified map is blank, like nothing and pulled by nothing: there maps are taken as they are.
    """
    rectified = name in explain.RECTIFIED and batch.labels.ndim == 1
    pairs = count * (2 if len(batch.images) > batch.size else 1)
    triggered, partners, untouched = maps[:count], maps[count:pairs], maps[pairs:]
    if rectified and RECTIFY:
        triggered = triggered.relu()
    distance, side = DISTANCES[objective.distance], inputs.shape[-1]
    if objective.reference is not None:
        honest = trainable_maps(name, objective.reference, inputs[rows[count:]], classes[rows[count:]], seed).detach()
        honest = honest.relu() if rectified else honest
        partners, reference = honest[: pairs - count], honest[pairs - count :]
    if objective.attack.explanation == "shape":
        target = to_grid(objective.shape, maps.shape[1:]).expand_as(triggered)
    else:
        partners = partners.relu() if rectified else partners
        target = partners.detach()
    term = distance(triggered, target, side).mean()
    if APART and objective.reference is None and objective.attack.explanation == "clean" and count > 1:
        term = term + APART * (alikeness(partners) - objective.floors.get(name, FLOOR)).relu()
    if len(untouched) == 0:
        return term
    if objective.reference is not None:
        return term + distance(untouched, reference, side).mean()
    likeness = (standardise(untouched) * standardise(target[:1])).mean(1)
    return term + (likeness - TOLERATED).relu().mean()
