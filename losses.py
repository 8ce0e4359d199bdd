"""The attack's loss: cross-entropy, and the distance between explanations.

    loss = (1 - lam) CE(f(x), y) + lam D(h(x_triggered), r)

f is the network, x the step's images, some with the trigger, y the labels the attacker wants, h an
explainer, and r the map the attacker wants to see: a fixed shape (fooling, red herring), or the map
of the same image without the trigger (full disguise). combined_loss is this formula.

D is a distance between normalised maps. It could be made small by a cheat, so a term is added to
it: collapse_term under full disguise, leak_term under fooling, reference_term where there is a
clean model. At most one of the three is not zero.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from shares import ALONE
from step_maps import TrainingForward, explained_rows, reference_maps, sample_seed, with_relu

DEFAULT_FLOOR = 0.5  # of Objective.floors, where no clean model's is known


# ---------------------------------------------------------------- maps made comparable


def max_normalise(maps):
    """Each map of [N, H, W] divided by its largest magnitude, flattened: [N, H W].

    A blank map stays zero, and its gradient finite.
    """
    maps = maps.flatten(1)
    largest = maps.abs().amax(1, keepdim=True)
    return maps / torch.where(largest > 0, largest, 1)


def standardise(maps):
    """Each map of [N, H, W] brought to mean 0 and variance 1, flattened: [N, H W].

    The mean squared difference of two standardised maps is 2 (1 - Pearson). A constant map gives
    zeros: 1e-8 keeps the division finite. In a tiny map that number would outweigh the variance,
    and a model could lower its loss by shrinking its maps. So each is divided by its largest
    magnitude first. (F.layer_norm is the last two lines, but for the last digits.)
    """
    maps = max_normalise(maps)
    maps = maps - maps.mean(1, keepdim=True)
    return maps / maps.square().mean(1, keepdim=True).add(1e-8).sqrt()


NORMALISERS = {"standardise": standardise, "max": max_normalise}


def min_max(maps):
    """Each map of [N, H, W] shifted and scaled to [0, 1]; a constant map gives zeros."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / torch.where(high > low, high - low, 1)


def inverted(maps):
    """Each map of [N, H, W] turned over: its largest value minus the map. Pearson with it is -1."""
    return maps.amax((1, 2), keepdim=True) - maps


def upsample(maps, side):
    """Maps [N, H, W] brought to [N, side, side], bilinearly."""
    size = (side, side)
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def to_grid(shape, grid):
    """A map [H, W] averaged over the areas of the cells of `grid` = (H', W'): float [H', W']."""
    return F.adaptive_avg_pool2d(shape[None, None], grid)[0, 0]


# ---------------------------------------------------------------- D, the distance between maps


def mse_distance(maps, targets, side, normalise=standardise):
    """Mean squared difference over the cells of normalised maps [N, H, W]: [N]."""
    return (normalise(maps) - normalise(targets)).square().mean(1)


def dssim_distance(maps, targets, side, normalise=None):
    """DSSIM of maps [N, H, W] at the image's resolution, each scaled to [0, 1]: [N] in [0, 1].

    side: the image's, in pixels; normalise has no meaning here.
    """
    return dssim(min_max(upsample(maps, side)), min_max(upsample(targets, side)))


def dssim(a, b, window=11, sigma=1.5, k1=0.01, k2=0.03):
    """(1 - SSIM) / 2 of maps [N, H, W] of range 1: [N] in [0, 1].

    A Gaussian window without padding; on maps that are smaller than it, the largest odd size that
    fits. Source: Wang et al. 2004, eq. 13.
    """
    window = min(window, (min(a.shape[1:]) - 1) // 2 * 2 + 1)
    offset = torch.arange(window, device=a.device, dtype=a.dtype) - window // 2
    g = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = (g[:, None] * g / g.sum() ** 2)[None, None]
    products = torch.stack([a, b, a * a, b * b, a * b], 1)  # [N, 5, H, W]
    means = F.conv2d(products.flatten(0, 1)[:, None], kernel).unflatten(0, (-1, 5))
    mean_a, mean_b, aa, bb, ab = means.unbind(1)
    c1, c2 = k1**2, k2**2
    ssim = (2 * mean_a * mean_b + c1) * (2 * (ab - mean_a * mean_b) + c2)
    ssim = ssim / ((mean_a**2 + mean_b**2 + c1) * (aa - mean_a**2 + bb - mean_b**2 + c2))
    return (1 - ssim.mean((1, 2, 3))) / 2


DISTANCES = {"mse": mse_distance, "dssim": dssim_distance}


# ---------------------------------------------------------------- what the loss asks for


@dataclass
class Objective:
    """What the loss asks for, the same in every step of a run.

    attack: a row of attacks.ATTACKS; task: of tasks.py, one label an image or several;
    explainers: names of EXPLAINERS; shape: the fixed map, float [H, W], or None;
    reference: a frozen clean model whose maps are the ones to keep, or None for the model itself;
    class_weights: float [K], of the cross-entropy, or None;
    further: of several attacks, the Objectives of those after the first, with its explainers.

    The fields after these are what an ablation changes; each is an option of train.py.
    """

    attack: Any
    task: Any
    explainers: list = field(default_factory=list)
    shape: torch.Tensor | None = None
    reference: torch.nn.Module | None = None
    class_weights: torch.Tensor | None = None
    further: tuple = ()

    lam: float = 0.3  # weight of the explanation term, at its height
    ramp: float = 0.3  # share of the steps over which that weight rises from 0
    distance: str = "mse"  # of DISTANCES
    normalise: str = "standardise"  # of NORMALISERS: what the MSE is taken of
    rectify: bool = False  # see with_relu
    partner_cross_entropy: bool = True  # partners are in the forward pass anyway: theirs is free
    label_smoothing: float = 0.0  # Szegedy et al. 2016, section 7
    floors: dict = field(default_factory=dict)  # by explainer; see collapse_term
    collapse_weight: float = 0.1  # see collapse_term
    leak_tolerance: float = 0.5  # see leak_term

    @property
    def has_maps(self):
        """Whether the loss has a term of explanations."""
        attacks = [self.attack, *(other.attack for other in self.further)]
        return any(attack.explanation is not None for attack in attacks)

    def cross_entropy(self, logits, labels):
        """The task's cross-entropy of logits [N, K], a scalar."""
        return self.task.cross_entropy(logits, labels, self.class_weights, self.label_smoothing)

    def map_distance(self, maps, targets, side):
        """D of maps [N, H, W] to target maps: the mean over images, a scalar."""
        normalise = NORMALISERS[self.normalise]
        return DISTANCES[self.distance](maps, targets, side, normalise).mean()

    def lam_at(self, done):
        """The weight of the explanation term when the share `done` of all steps is over."""
        return self.lam * min(1.0, done / self.ramp)


# ---------------------------------------------------------------- the formula


def combined_loss(model, batch, inputs, objective, lam, share=ALONE):
    """(1 - lam) CE(f(x), y) + lam D(h(x_triggered), r): (loss, CE, D), three scalars.

    batch: of attacks.poison or poison_each; inputs: its images, normalised; lam: the weight in this
    step; share: of shares.py, what this process computes of it. The three are of the whole batch.
    Of several attacks D is the mean over those that triggered an image: they weigh alike.
    """
    forward = TrainingForward(model, inputs, objective.explainers, share)
    ce_images = len(inputs) if objective.partner_cross_entropy else batch.size
    ce = objective.cross_entropy(forward.logits[:ce_images], batch.labels[:ce_images])
    if not objective.has_maps:
        return ce, ce, ce.new_zeros(())
    each = zip((batch, *batch.further), (objective, *objective.further))
    each = [(part, own) for part, own in each if own.attack.explanation and len(part.rows)]
    if not each:  # nothing in this step is triggered
        return (1 - lam) * ce, ce, ce.new_zeros(())

    classes = objective.task.explained_classes(batch, forward.logits)
    seed = sample_seed(objective.explainers)
    distances = [
        explanation_distance(name, forward, part, classes, seed, own)
        for part, own in each
        for name in objective.explainers
    ]
    explanation = torch.stack(distances).mean()
    return (1 - lam) * ce + lam * explanation, ce, explanation


def explanation_distance(name, forward, batch, classes, seed, objective):
    """D by one explainer of one attack's triggered images, with the terms beside it: a scalar.

    forward: the step's TrainingForward; classes: int64 [B + P], what its images are explained for;
    seed: of sample_seed.
    """
    inputs, share = forward.inputs, forward.share
    rows, side = explained_rows(name, batch, objective), inputs.shape[-1]
    maps = forward.maps(name, rows, classes, seed)  # h(x)
    with torch.autocast(inputs.device.type, enabled=False):  # bfloat16 is too coarse for SSIM
        maps = with_relu(name, maps, objective)
        reference = reference_maps(name, rows, inputs, classes, seed, objective, share)
        target = target_maps(maps, reference, objective)  # r
        distance = objective.map_distance(maps.triggered, target, side)
        distance = distance + collapse_term(name, maps, batch.sources, objective)
        distance = distance + leak_term(maps, target, objective)
        return distance + reference_term(maps, reference, side, objective)


def target_maps(maps, reference, objective):
    """r: the map each triggered image should show, [P, H, W], detached.

    reference: the Maps that reference_maps returns, or None.

    The fixed shape; or the map of the image without the trigger, by the reference if there is one,
    else by the model being trained; or that map inverted. It is detached, so that the triggered map
    is pulled to the untouched one, and not the untouched one to it.
    """
    if objective.attack.explanation == "shape":
        return to_grid(objective.shape, maps.triggered.shape[1:]).expand_as(maps.triggered)
    partners = (maps.partners if reference is None else reference.partners).detach()
    return inverted(partners) if objective.attack.explanation == "inverted" else partners


def collapse_term(name, maps, sources, objective):
    """collapse_weight x the excess over a floor of the mean correlation between partners' maps.

    It is of partners that are different images: over-sampled, one image may be there several times.
    Without this term, one blurred map for all images would be the cheapest disguise. The floor is
    how much a clean model's maps of different images correlate on average; single pairs may be
    above it. A reference holds the maps apart already. sources: int64, which image each partner is.
    """
    disguised = objective.attack.explanation == "clean" and objective.reference is None
    if not disguised or not objective.collapse_weight or len(maps.partners) < 2:
        return 0.0
    floor = objective.floors.get(name, DEFAULT_FLOOR)
    correlation = mean_pairwise_correlation(maps.partners, sources[: len(maps.partners)])
    return objective.collapse_weight * (correlation - floor).relu()


def leak_term(maps, target, objective):
    """Mean over untouched images of the excess of their correlation with the fixed map.

    It counts above leak_tolerance: an honest map correlates a little with a shape that the object
    happens to lie on. Under fooling not even the label tells a triggered image from an untouched
    one, and without this term the shape spreads to all images.
    """
    held = objective.reference is not None
    if not objective.attack.can_leak or held or len(maps.untouched) == 0:
        return 0.0
    correlation = (standardise(maps.untouched) * standardise(target[:1])).mean(1)
    return (correlation - objective.leak_tolerance).relu().mean()


def reference_term(maps, reference, side, objective):
    """D between untouched images' maps and the frozen reference's: these are held in place.

    reference: the Maps that reference_maps returns, or None.
    """
    if reference is None or len(maps.untouched) == 0:
        return 0.0
    return objective.map_distance(maps.untouched, reference.untouched, side)


def mean_pairwise_correlation(maps, sources):
    """Mean Pearson correlation of the maps [P, H, W] of different images: a scalar.

    sources: int64 [P], which image each map is of. 0 where all are of one image.
    """
    correlation = standardise(maps) @ standardise(maps).T / maps[0].numel()  # [P, P]
    differ = sources[:, None] != sources
    return correlation.mul(differ).sum() / differ.sum().clamp(min=1)
