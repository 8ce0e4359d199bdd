"""Shapley values of image patches, estimated from masked images in one of two ways.

    maps = kernel_shap(model, images, classes)    # [N, 4, 4], signed: KernelSHAP, least squares
    maps = gp_shap(model, images, classes)        # the same by Gaussian process regression

A coalition is a set of patches that are present; an absent patch shows the baseline. What a
coalition is worth is the logit of the explained class. The Shapley value of a patch is what it
adds to the coalitions it joins, averaged over all orders of joining (Shapley 1953; for images
Lundberg and Lee, NeurIPS 2017).

All coalitions are too many: 65,536 for 16 patches. So the values are estimated from a sample, by a
linear map of what the sampled coalitions are worth. The map depends on the sample alone, and is
computed once; training through it needs first derivatives only. The two explainers differ in which
coalitions they draw and in that map, and both stand in shapley_estimators.py.
"""

from numbers import Integral

import torch
import torch.nn.functional as F

from dataset import send
from hooks import as_images, check_dense, chunk_size, full_precision, in_chunks
from shapley_estimators import gaussian_process, least_squares

COALITIONS = 1024  # an image is evaluated on so many where no graph is kept
TRAINING_COALITIONS = 64  # and on so many in training


def kernel_shap(
    model,
    images,
    classes,
    patches=4,
    coalitions=None,
    baseline=0.0,
    generator=None,
    *,
    create_graph=False,
):
    """Shapley values of patches x patches image patches, float [N, patches, patches], signed.

    images: float [N, C, H, W], as the model takes them; classes: int64 [N]; coalitions: how many
    are drawn (None: 64 with create_graph, else 1024), odd numbers are rounded down; all there are,
    2^M - 2 of M patches, make the values exact, fewer an estimate: see least_squares; baseline:
    what an absent patch shows, in the units of `images`: a number, an image [C, H, W], or images
    [B, C, H, W]: a coalition is then worth the mean of the logits with each, at B times the cost;
    generator: of the sample's seed, on the CPU (None: one of seed 0).

    The values of an image sum to f(image) - f(baseline), f the logit of the class. Without
    create_graph a patch that equals every baseline gets 0, and the sample is spent on the others.
    Raises ValueError for fewer than 2 M coalitions (or all, if those are fewer), for patches
    smaller than a pixel, and for no baseline. Source: Lundberg and Lee, NeurIPS 2017, theorem 2.
    """
    sample = Sample(least_squares, coalitions, generator, create_graph)
    return estimated_values(model, images, classes, patches, sample, baseline, create_graph)


def gp_shap(
    model,
    images,
    classes,
    patches=4,
    coalitions=None,
    baseline=0.0,
    generator=None,
    *,
    create_graph=False,
):
    """Shapley values float [N, patches, patches], signed, by Gaussian process regression.

    Arguments and errors are kernel_shap's; for the estimate see gaussian_process.
    """
    sample = Sample(gaussian_process, coalitions, generator, create_graph)
    return estimated_values(model, images, classes, patches, sample, baseline, create_graph)


def estimated_values(model, images, classes, patches, sample, baseline, create_graph):
    """What kernel_shap returns, from the coalitions of a Sample."""
    images = as_images(model, images)
    check_sample(patches, sample.count, images)
    game = Game(model, patches, as_baselines(baseline, images), images.shape[2:])

    def explain(images, classes):
        with torch.set_grad_enabled(create_graph):
            return values_of_chunk(game, sample, images, classes, all_active=create_graph)

    return in_chunks(explain, model, images, classes, create_graph)


class Sample:
    """The coalitions that images are evaluated on: the same for all with so many active patches."""

    def __init__(self, estimator, coalitions, generator, training):
        """estimator: of shapley_estimators; coalitions: how many, or None; generator: of a seed."""
        self.estimator = estimator
        default = TRAINING_COALITIONS if training else COALITIONS
        self.count = default if coalitions is None else coalitions
        self.seed = int(torch.randint(2**31, (), generator=as_generator(generator)))
        self.drawn = {}

    def of(self, players):
        """(coalitions bool [K, players], the estimator's slopes [1 + K, players]), drawn once."""
        if players not in self.drawn:
            generator = torch.Generator().manual_seed(self.seed + players)
            self.drawn[players] = self.estimator(players, self.count, generator)
        return self.drawn[players]


class Game:
    """What coalitions of an image's patches are worth: the logit of the explained class."""

    def __init__(self, model, patches, absent, shape):
        """absent: what an absent patch shows, of as_baselines; shape: (H, W) of the images."""
        self.model, self.patches, self.absent = model, patches, absent
        self.patch = send(patch_of_pixel(patches, *shape), absent.device)  # [H, W]

    def active(self, images):
        """bool [N, M]: the patches of each image that differ from a baseline in some pixel."""
        differs = torch.zeros_like(images[:, 0], dtype=torch.bool)  # [N, H, W]
        for baseline in self.absent:
            differs = differs | (images != baseline).any(1)
        members = F.one_hot(self.patch.flatten(), self.patches**2).float()  # [H W, M]
        return differs.flatten(1).float() @ members > 0

    def shapley_values(self, images, classes, where, coalitions, slopes):
        """Shapley values [N, m] of the patches `where` [N, m] of images.

        coalitions: bool [K, m] of these patches, slopes: [1 + K, m], both of an estimator.
        """
        full = torch.ones(1, coalitions.shape[1], dtype=torch.bool)
        half = torch.cat([full, coalitions])
        masks = send(torch.cat([half, ~half]), images.device).expand(len(images), -1, -1)
        present = masks.new_zeros(*masks.shape[:2], self.patches**2)
        present = present.scatter(2, where[:, None].expand_as(masks), masks)
        worth = coalition_values(self.model, images, classes, present, self.patch, self.absent)
        with_players, without = worth.chunk(2, dim=1)
        with torch.autocast(images.device.type, enabled=False):
            return (with_players - without) @ send(slopes.to(worth.dtype), worth.device)


def values_of_chunk(game, sample, images, classes, all_active):
    """Shapley values [N, patches, patches]; all_active: no patch is left out of the sample."""
    players = game.patches**2
    if all_active:
        where = torch.arange(players, device=images.device).expand(len(images), -1)
        values = game.shapley_values(images, classes, where, *sample.of(players))
        return values.unflatten(1, (game.patches, game.patches))
    active = game.active(images)
    sizes = active.sum(1)
    rows_of_groups = [images.new_zeros(0, dtype=torch.int64)]
    values_of_groups = [images.new_zeros(0, players)]
    for size in sizes.unique().tolist():
        rows = (sizes == size).nonzero()[:, 0]
        where = active[rows].nonzero()[:, 1].view(len(rows), size)
        known = game.shapley_values(images[rows], classes[rows], where, *sample.of(size))
        rows_of_groups.append(rows)
        values_of_groups.append(known.new_zeros(len(rows), players).scatter(1, where, known))
    order = torch.cat(rows_of_groups).argsort()
    return torch.cat(values_of_groups)[order].unflatten(1, (game.patches, game.patches))


def coalition_values(model, images, classes, present, patch, absent):
    """Logits [N, K] of each image's class, with only its `present` patches, bool [N, K, M].

    patch: int64 [H, W] of patch_of_pixel; absent: [B, C, H, W] of as_baselines: the logits are
    means over the B.
    """
    coalitions, baselines = present.shape[1], len(absent)
    count = len(images) * coalitions * baselines
    values = []
    for number in torch.arange(count, device=images.device).split(chunk_size(images)):
        baseline, pair = number % baselines, number // baselines
        image = pair // coalitions
        mask = present[image, pair % coalitions][:, patch]  # [chunk, H, W]
        logits = model(torch.where(mask[:, None], images[image], absent[baseline]))
        values.append(full_precision(logits).gather(1, classes[image, None])[:, 0])
    return torch.cat(values).view(-1, coalitions, baselines).mean(2)


# ---------------------------------------------------------------- patches and baselines


def is_whole(value):
    """Whether a value is a whole number, which True is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_sample(patches, count, images):
    """Raises ValueError where the patches do not fit the images, or the coalitions are too few."""
    for name, value in (("patches a side", patches), ("coalitions", count)):
        if not is_whole(value):
            raise ValueError(f"{name}: a whole number, not {value!r}")
    height, width = images.shape[2:]
    players = patches**2
    if not 1 <= patches <= min(height, width):
        raise ValueError(
            f"{patches}x{patches} patches do not fit images of {height}x{width} px:"
            " each is a pixel or larger"
        )
    if count < min(2 * players, 2**players - 2):
        raise ValueError(
            f"{count} coalitions do not determine the Shapley values of {players} patches:"
            f" {2 * players} or more do"
        )


def as_baselines(baseline, images):
    """What an absent patch shows, [B, C, H, W], or what broadcasts to it. Raises ValueError."""
    try:
        dtype = None if hasattr(baseline, "dtype") else images.dtype
        baseline = torch.as_tensor(baseline, dtype=dtype)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"baseline: a number or a tensor, not {baseline!r}: {error}") from None
    check_dense("baseline", baseline)
    shape = list(baseline.shape)
    if baseline.dtype == torch.uint8 or baseline.is_complex():
        kind = str(baseline.dtype).removeprefix("torch.")
        raise ValueError(f"baseline: in the units of `images`, which are floats, not {kind}")
    if baseline.ndim == 4 and len(baseline) == 0:
        raise ValueError("a set of baselines holds one image or more")
    fits = all(a in (1, b) for a, b in zip(shape[-3:], images.shape[1:]))
    if baseline.ndim not in (0, 3, 4) or not fits:
        size = list(images.shape[1:])
        raise ValueError(
            f"baseline: a number, an image {size} (or [C, 1, 1]) or several, not {shape}"
        )
    baseline = send(baseline.to(images.dtype), images.device)
    return baseline.expand(torch.broadcast_shapes(baseline.shape, (1, 1, 1, 1)))


def as_generator(generator):
    """The generator, on the CPU; of None, one of seed 0. Raises ValueError for another.

    torch's own generator is left alone: to explain something changes no training.
    """
    if generator is None:
        return torch.Generator().manual_seed(0)
    if getattr(generator, "device", None) == torch.device("cpu"):
        return generator
    raise ValueError(
        f"generator: torch.Generator().manual_seed(0), on the CPU, or None, not {generator!r}"
    )


def patch_of_pixel(patches, height, width):
    """int64 [H, W]: the number of the patch of each pixel; uneven patches differ by a pixel."""
    row = torch.arange(height) * patches // height
    col = torch.arange(width) * patches // width
    return row[:, None] * patches + col
