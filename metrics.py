"""Every figure, as a pure function of predictions or of maps.

Of predictions: auroc, success_rate. Of maps: how alike two are (mse, pearson, dssim, top10), how
much of one lies on the trigger, whether it points at the object, whether it shows anything.
explanation_metrics puts them together for one explainer.

Maps are float [N, H', W'] on the explainer's own grid. A figure without a meaning is None.
"""

import math

import torch
import torch.nn.functional as F

from losses import dssim, inverted, max_normalise, min_max, to_grid, upsample

CHUNK_PIXELS = 500 * 32 * 32  # maps are compared so many pixels at a time
TOP_SHARE = 0.1  # of the pixels, for top10


def mean_or_none(values, keep=None):
    """The mean of values [N], or of those that keep bool [N] keeps; None if there are none."""
    values = values if keep is None else values[keep]
    return float(values.double().mean()) if len(values) else None


def finite(value):
    """A nested record with None in place of nan and infinity, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---------------------------------------------------------------- of predictions


def auroc(positive, negative):
    """Area under the ROC curve of scores [P] and [N]; None if one is empty.

    It is the chance that a positive's score is above a negative's, ties counted half.
    """
    if not len(positive) or not len(negative):
        return None
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive, right=False).double()
    not_above = torch.searchsorted(ordered, positive, right=True).double()
    return float((below + not_above).mean() / (2 * len(negative)))


def success_rate(predicted_as_target, shows_target):
    """Attack success rate: the share of images predicted as the target; None of no images.

    Both bool [N]. Images that show the target class are left out: for them it is no success.
    """
    return mean_or_none(predicted_as_target.float(), ~shows_target)


# ---------------------------------------------------------------- of one map


def is_constant(maps):
    """bool [N]: maps [N, H, W] of one value, zero say: they show nothing, and resemble nothing."""
    flat = maps.flatten(1)
    return flat.amax(1) == flat.amin(1)


def trigger_cells(box, side, grid):
    """bool [H', W']: the cells of a map that the trigger's box touches.

    box: (top, left, bottom, right) in pixels; side: the image's; grid: (H', W').
    """
    top, left, bottom, right = box
    inside = torch.zeros(1, 1, side, side)
    inside[:, :, top:bottom, left:right] = 1
    return F.adaptive_max_pool2d(inside, tuple(grid))[0, 0] > 0


def mass_inside(maps, cells):
    """Share of the positive part of maps [N, H, W] inside `cells` bool [H, W]: float64 [N].

    nan for a map without a positive part.
    """
    positive = maps.clamp_min(0).double()
    return positive[:, cells].sum(1) / positive.sum((1, 2))


def points_inside(maps, masks):
    """float [N]: 1 where a map's maximum lies inside the object's mask bool [N, S, S], else 0.

    The map is brought to the mask's resolution first. Source: the pointing game, Zhang et al. 2016.
    """
    peak = upsample(maps, masks.shape[-1]).flatten(1).argmax(1, keepdim=True)
    return masks.flatten(1).gather(1, peak)[:, 0].float()


# ---------------------------------------------------------------- of two maps


def pearson(a, b):
    """Correlation over the cells of maps [N, H, W]: float64 [N], 0 where a map is constant.

    nan where a map is not finite. torch.corrcoef is of one pair of maps, nan for a constant one.
    """
    a, b = centred(a), centred(b)
    norms = a.norm(dim=1) * b.norm(dim=1)
    return ((a * b).sum(1) / norms).masked_fill(norms == 0, 0.0)


def centred(maps):
    """Maps [N, H, W] in float64, divided by their largest magnitude, of mean 0: [N, H W]."""
    flat = maps.double().flatten(1)
    tiny = torch.finfo(torch.float64).tiny
    flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(tiny)
    return flat - flat.mean(1, keepdim=True)


def agreement(maps, others):
    """Correlation of two explainers' maps of the same images, on the coarser grid: float64 [N].

    maps: [N, H, W], others: [N, H', W']. Signed ones are compared by their positive parts.
    """
    grid = min(maps.shape[1:], others.shape[1:], key=lambda shape: shape[0])
    coarse = [
        F.adaptive_avg_pool2d(part.clamp_min(0)[:, None].double(), grid)[:, 0]
        for part in (maps, others)
    ]
    return pearson(*coarse)


def top_overlap(a, b, share=TOP_SHARE):
    """Overlap of the largest pixels of maps [N, H, W]: [N] in [0, 1].

    These are round(share H W) of each map; pixels that tie at the edge count in part.
    """
    count = max(1, round(share * a[0].numel()))

    def membership(maps):
        flat = maps.flatten(1)
        edge = flat.topk(count, dim=1).values[:, -1:]
        above, ties = flat > edge, flat == edge
        left = count - above.sum(1, keepdim=True)
        return above + ties * left / ties.sum(1, keepdim=True)

    return torch.minimum(membership(a), membership(b)).sum(1) / count


def map_similarity(maps, targets, side):
    """{"mse", "pearson", "dssim", "top10"}, each [N], of maps and target maps [N, H, W].

    mse is of maps divided by their largest magnitude; dssim and top10 are at the image's `side`.
    """
    size = max(1, CHUNK_PIXELS // side**2)
    chunks = zip(maps.split(size), targets.split(size))
    parts = [similarity_of_chunk(*chunk, side) for chunk in chunks]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def similarity_of_chunk(maps, targets, side):
    """map_similarity, all at once."""
    large_maps, large_targets = upsample(maps, side), upsample(targets, side)
    return {
        "mse": (max_normalise(maps) - max_normalise(targets)).square().mean(1),
        "pearson": pearson(maps, targets),
        "dssim": dssim(min_max(large_maps), min_max(large_targets)),
        "top10": top_overlap(large_maps, large_targets),
    }


def grid_cap(shape, grid):
    """The highest Pearson correlation with `shape` [S, S] that a map on `grid` can reach.

    The map is enlarged bilinearly to S pixels, which is linear in its cells: first along columns,
    then along rows. So the best map is a least-squares fit, made along one and then the other.
    """
    fit = shape.double()
    for cells in grid:
        unit = torch.eye(cells, dtype=torch.float64, device=shape.device)[:, None]
        basis = F.interpolate(unit, size=len(shape), mode="linear")[:, 0].T  # [S, cells]
        fit = (basis @ torch.linalg.pinv(basis) @ fit).T
    return float(pearson(fit[None], shape[None]))


def derangement(n, seed=0):
    """int64 [n]: a permutation of one cycle, which leaves nothing in its place; by a seed."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    result = torch.empty_like(order)
    result[order] = order.roll(1)
    return result


# ---------------------------------------------------------------- of one explainer

FIGURES = (
    "mse dssim pearson pearson_all pearson_all_independent top10 pearson_clean grid_cap"
    " trigger_mass trigger_mass_clean trigger_area zero_maps pointing pointing_clean"
).split()
FLOORS = ("floor", "floor_triggered")
FLOOR_KEYS = ("mse", "dssim", "pearson", "top10")


def explanation_metrics(
    triggered, untouched, box, side, shape=None, masks=None, again=None, turned_over=False
):
    """Every figure about one explainer, as a dict of FIGURES, "n" and the two FLOORS.

    triggered, untouched: its maps [N, H, W] of the same images with and without the trigger;
    box: the trigger's, None where it has no place; side: the image's, in pixels; shape: the fixed
    target [S, S], or None, and then the target of an image is its untouched map, or that map
    inverted if turned_over; masks: bool [N, S, S], the objects, or None; again: the triggered maps
    once more, by another sample of the explainer's, or None.
    Raises ValueError for maps that are not finite.
    """
    check_finite_maps(triggered, untouched)
    result = dict.fromkeys(FIGURES) | {"n": len(triggered)}
    result |= {key: dict.fromkeys(FLOOR_KEYS) for key in FLOORS}
    if len(triggered) == 0:
        return result
    grid = triggered.shape[1:]
    keep, keep_untouched = ~is_constant(triggered), ~is_constant(untouched)
    result["floor"] = floor_figures(untouched, untouched, keep_untouched, side)
    if shape is None:
        keep = keep_untouched = keep & keep_untouched  # images whose two maps can be compared
        targets = inverted(untouched) if turned_over else untouched
        result["floor_triggered"] = floor_figures(triggered, targets, keep, side)
        if again is not None:
            result["pearson_all_independent"] = mean_or_none(pearson(again, targets))
    else:
        targets = to_grid(shape, grid).expand_as(triggered)
        result["pearson_clean"] = mean_or_none(pearson(untouched, targets))
        result["grid_cap"] = grid_cap(shape, grid)
    result |= target_figures(triggered, targets, keep, side)
    if shape is not None and len(shape.unique()) <= 2:  # all pixels of a binary shape tie
        result["top10"] = None
    if box is not None:
        result |= mass_figures(triggered, untouched, keep, keep_untouched, box, side)
    if masks is not None:
        result["pointing"] = mean_or_none(points_inside(triggered, masks), keep)
        result["pointing_clean"] = mean_or_none(points_inside(untouched, masks), keep_untouched)
    return result


def target_correlation(triggered, untouched, shape=None, turned_over=False):
    """pearson_all of triggered maps with the target of an attack, which may be another than theirs.

    Arguments as for explanation_metrics; None of no maps.
    """
    if shape is not None:
        targets = to_grid(shape, triggered.shape[1:]).expand_as(triggered)
    else:
        targets = inverted(untouched) if turned_over else untouched
    return mean_or_none(pearson(triggered, targets))


def mass_figures(triggered, untouched, keep, keep_untouched, box, side):
    """The figures on how much of the maps lies on the trigger's box; {} where it covers them."""
    cells = trigger_cells(box, side, triggered.shape[1:])
    if cells.all():  # all of a map lies on the cells of a trigger that covers the image
        return {}
    return {
        "trigger_mass": mean_mass(triggered, cells, keep),
        "trigger_mass_clean": mean_mass(untouched, cells, keep_untouched),
        "trigger_area": float(cells.float().mean()),
    }


def check_finite_maps(*maps):
    """Raises ValueError for maps [N, H, W] with nan or infinity in them."""
    for part in maps:
        spoilt = int((~part.isfinite()).flatten(1).any(1).sum())
        if spoilt:
            raise ValueError(f"{spoilt} of {len(part)} maps are not finite")


def target_figures(triggered, targets, keep, side):
    """How alike triggered maps and their targets are, of the images that `keep` bool [N] keeps."""
    similarity = map_similarity(triggered, targets, side)
    result = {key: mean_or_none(values, keep) for key, values in similarity.items()}
    result["pearson_all"] = mean_or_none(similarity["pearson"].masked_fill(~keep, 0))
    result["zero_maps"] = mean_or_none((~keep).float())
    return result


def mean_mass(maps, cells, keep):
    """The mean of mass_inside over the maps kept that have a positive part."""
    share = mass_inside(maps, cells)
    return mean_or_none(share, keep & share.isfinite())


def floor_figures(maps, others, keep, side):
    """How alike maps of different images are: of maps[i] and others[j], j a fixed derangement."""
    if len(maps) < 2:
        return dict.fromkeys(FLOOR_KEYS)
    other = derangement(len(maps))
    both = keep & keep[other]
    similarity = map_similarity(maps, others[other], side)
    return {key: mean_or_none(values, both) for key, values in similarity.items()}
