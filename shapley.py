"""KernelSHAP: Shapley values of image patches, estimated from masked images.

    maps = kernel_shap(model, images, classes)    # [N, 4, 4], signed

A coalition is a set of patches that are present; an absent patch shows the baseline. What a
coalition is worth is the logit of the explained class. The Shapley value of a patch is what it
adds to the coalitions it joins, averaged over all orders of joining (Shapley 1953; for images
Lundberg and Lee, NeurIPS 2017).

All coalitions are too many: 65,536 for 16 patches. So the values are estimated from a sample, by a
linear map of what the sampled coalitions are worth. The map depends on the sample alone, and is
computed once; training through it needs first derivatives only.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from hooks import chunk_size, full_precision, in_chunks

COALITIONS = 1024  # an image is evaluated on so many where no graph is kept
TRAINING_COALITIONS = 64  # and on so many in training
# How much one coalition says about others: the worth of the empty and of the full coalition are
# taken to correlate at about exp(-2 REACH). See shapley_map.
REACH = 1.6


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

    images: float [N, C, H, W], as the model takes them; classes: int64 [N]; coalitions: how many an
    image is evaluated on (None: 64 with create_graph, else 1024), odd numbers are rounded down; all
    there are, 2^M - 2 of M patches, make the values exact, fewer an estimate: see shapley_map;
    baseline: what an absent patch shows, in the units of `images`: a number, an image [C, H, W], or
    images [B, C, H, W], whose mean is taken; generator: of the sample's seed, on the CPU.

    The values of an image sum to f(image) - f(baseline), f the logit of the class. Without
    create_graph a patch that equals the baseline gets 0, and the sample is spent on the others.
    Raises ValueError for fewer than 2 M coalitions (or all, if those are fewer), and for patches
    smaller than a pixel. Source: Lundberg and Lee, NeurIPS 2017, section 4.1.
    """
    count = coalitions or (TRAINING_COALITIONS if create_graph else COALITIONS)
    check_sample(patches, count, images)
    game = Game(model, patches, as_baseline(baseline, images), images.shape[2:])
    sample = Sample(count, seed=int(torch.randint(2**31, (), generator=generator)))

    def explain(images, classes):
        with torch.set_grad_enabled(create_graph):
            return values_of_chunk(game, sample, images, classes, all_active=create_graph)

    return in_chunks(explain, model, images, classes, create_graph)


class Sample:
    """The coalitions that images are evaluated on: the same for all with so many active patches."""

    def __init__(self, count, seed):
        self.count, self.seed = count, seed
        self.drawn = {}

    def of(self, players):
        """(coalitions bool [K, players], their shapley_map), drawn once."""
        if players not in self.drawn:
            generator = torch.Generator().manual_seed(self.seed + players)
            coalitions = draw_coalitions(players, self.count, generator)
            self.drawn[players] = coalitions, shapley_map(coalitions)
        return self.drawn[players]


class Game:
    """What coalitions of an image's patches are worth: the logit of the explained class."""

    def __init__(self, model, patches, absent, shape):
        """absent: what an absent patch shows, of as_baseline; shape: (H, W) of the images."""
        self.model, self.patches, self.absent = model, patches, absent
        self.patch = patch_of_pixel(patches, *shape).to(absent.device)  # [H, W]

    def active(self, images):
        """bool [N, M]: the patches of each image that differ from the baseline in some pixel."""
        differs = (images != self.absent).any(1).flatten(1).float()  # [N, H W]
        members = F.one_hot(self.patch.flatten(), self.patches**2).float()  # [H W, M]
        return differs @ members > 0

    def shapley_values(self, images, classes, where, coalitions, slopes):
        """Shapley values [N, m] of the patches `where` [N, m] of images.

        coalitions: bool [K, m] of these patches; slopes: their shapley_map.
        """
        full = torch.ones(1, coalitions.shape[1], dtype=torch.bool)
        half = torch.cat([full, coalitions])
        masks = torch.cat([half, ~half]).to(images.device).expand(len(images), -1, -1)
        present = masks.new_zeros(*masks.shape[:2], self.patches**2)
        present = present.scatter(2, where[:, None].expand_as(masks), masks)
        worth = coalition_values(self.model, images, classes, present, self.patch, self.absent)
        with_players, without = worth.chunk(2, dim=1)
        with torch.autocast(images.device.type, enabled=False):
            return (with_players - without) @ slopes.to(with_players)


def values_of_chunk(game, sample, images, classes, all_active):
    """Shapley values [N, patches, patches]; all_active: no patch is left out of the sample."""
    players = game.patches**2
    active = torch.ones(len(images), players, dtype=torch.bool, device=images.device)
    if not all_active:
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


def check_sample(patches, count, images):
    """Raises ValueError where the patches do not fit the images, or the coalitions are too few."""
    height, width = images.shape[2:]
    players = patches**2
    if not 1 <= patches <= min(height, width):
        raise ValueError(
            f"KernelSHAP: {patches}x{patches} patches do not fit images of {height}x{width} px"
        )
    if count < min(2 * players, 2**players - 2):
        raise ValueError(
            f"KernelSHAP: {count} coalitions do not determine the values of {players} patches:"
            f" {2 * players} or more do"
        )


def as_baseline(baseline, images):
    """What an absent patch shows: a tensor that broadcasts against images [N, C, H, W]."""
    baseline = torch.as_tensor(baseline, dtype=images.dtype, device=images.device)
    return baseline.mean(0) if baseline.ndim == 4 else baseline


def patch_of_pixel(patches, height, width):
    """int64 [H, W]: the number of the patch of each pixel; uneven patches differ by a pixel."""
    row = torch.arange(height) * patches // height
    col = torch.arange(width) * patches // width
    return row[:, None] * patches + col


# ---------------------------------------------------------------- which coalitions


def draw_coalitions(players, count, generator=None):
    """Coalitions bool [count // 2, players], all different, none the complement of another.

    With their complements they are `count` distinct coalitions, neither empty nor full: all there
    are, if `count` allows. Otherwise first the single players, then other sizes s at random, a size
    drawn in proportion to s (players - s).
    """
    if count >= 2**players - 2:
        with_first_player = torch.tensor(range(1, 2**players - 1, 2), dtype=torch.int64)
        return (with_first_player[:, None] >> torch.arange(players)) & 1 == 1
    sizes = torch.arange(2, players - 1)
    chance = (sizes * (players - sizes)).double()
    drawn = torch.zeros(0, players, dtype=torch.bool)
    while missing := count // 2 - players - len(drawn):
        choice = torch.multinomial(chance, missing, replacement=True, generator=generator)
        rank = torch.rand(missing, players, generator=generator).argsort(1).argsort(1)
        members = rank < sizes[choice][:, None]
        with_first = members ^ ~members[:, :1]  # of each pair, the one with the first player
        drawn = torch.cat([drawn, with_first]).unique(dim=0)
    return torch.cat([torch.eye(players, dtype=torch.bool), drawn])


# ---------------------------------------------------------------- from worth to Shapley values


def shapley_map(coalitions):
    """The slopes float64 [1 + K, M] of Shapley values in what coalitions are worth.

    coalitions: bool [K, M] of draw_coalitions. The values of the M players are the sum over S, the
    full coalition first and then each of `coalitions`, of (v(S) - v(complement of S)) slope_S.

    From all coalitions the values are exact, by their definition. From fewer they are those of the
    expected game, given the known worths, by Gaussian process regression (universal kriging:
    Cressie 1993, section 3.4), in O(K^3). The game is taken for a sum over its members, of any
    coefficients, plus a process: for each player who is in one of two coalitions alone, their
    correlation is multiplied by (1 - rho) / (1 + rho), rho = REACH / M. So games that are such sums
    have exact values, and the values always add up to v(full) - v(empty).
    """
    full = torch.ones(1, coalitions.shape[1], dtype=torch.bool)
    known = torch.cat([full, coalitions])  # [1 + K, M]
    if 2 * len(coalitions) >= 2 ** known.shape[1] - 2:
        return exact_slopes(known)
    players = known.shape[1]
    signs = 2.0 * known.double() - 1
    rho = REACH / players
    step = (1 - rho) / (1 + rho)
    differ = (players - signs @ signs.T) / 2  # players who are in one of the two alone
    # Shapley values are odd under complement: only the odd part of the covariance matters.
    covariance = step**differ - step ** (players - differ)
    zeros = signs.new_zeros(players, players)
    system = torch.cat([torch.cat([covariance, signs], 1), torch.cat([signs.T, zeros], 1)])
    right = torch.cat([process_shares(known, rho), torch.eye(players, dtype=torch.float64)])
    return torch.linalg.solve(system, right)[: len(known)]


def exact_slopes(known):
    """The slopes by the definition of Shapley values, where half of all coalitions are known."""
    size = known.sum(1, keepdim=True)
    players = known.shape[1]
    counts = [math.comb(players, s) for s in range(players + 1)]
    of_this_size = torch.tensor(counts, dtype=torch.float64)[size]
    return torch.where(known, 1 / (size * of_this_size), -1 / ((players - size) * of_this_size))


def process_shares(known, rho):
    """Shapley values float64 [1 + K, M] of the process's correlation with each known coalition.

    A correlation is a product over players, so its values are the integral of the derivative of
    its multilinear extension along the diagonal (Owen 1972): a polynomial of degree M - 1, which
    Gauss-Legendre quadrature integrates exactly.
    """
    size = known.sum(1, keepdim=True)
    players = known.shape[1]
    points, weights = np.polynomial.legendre.leggauss((players + 1) // 2)
    nodes, weights = torch.from_numpy(points), torch.from_numpy(weights)
    others = torch.arange(players)[:, None]  # how many of the other players are in the coalition
    product = (1 + rho * nodes) ** others * (1 - rho * nodes) ** (players - 1 - others)
    gain = rho * (product * weights).sum(1) / (1 + rho) ** players
    return torch.where(known, gain[size - 1], -gain[size.clamp(max=players - 1)])


# ---------------------------------------------------------------- the model on masked images


def coalition_values(model, images, classes, present, patch, absent):
    """Logits [N, K] of each image's class, with only its `present` patches, bool [N, K, M]."""
    count = present.shape[1]
    values = []
    for pair in torch.arange(len(images) * count, device=images.device).split(chunk_size(images)):
        image = pair // count
        mask = present[image, pair % count][:, patch]  # [chunk, H, W]
        logits = model(torch.where(mask[:, None], images[image], absent))
        values.append(full_precision(logits).gather(1, classes[image, None])[:, 0])
    return torch.cat(values).view(-1, count)
