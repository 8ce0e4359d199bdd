"""Two estimators of Shapley values from a sample of coalitions, for any game of M players.

    coalitions, slopes = least_squares(players, count, generator)       # KernelSHAP, as published
    coalitions, slopes = gaussian_process(players, count, generator)    # our own

A game gives each coalition S of its players a worth v(S). An estimator draws `count` coalitions in
pairs of complements and returns one of each pair, bool [K, M], with slopes float64 [1 + K, M]. The
Shapley values of the M players are then, in every game, the sum over S, the full coalition first
and then each of `coalitions`, of (v(S) - v(complement of S)) slope_S.

By both estimators the values add up to v(full) - v(empty), and are exact where a coalition's worth
is a sum over its members. From all coalitions they are exact in every game.
"""

import itertools
import math

import numpy as np
import torch

# How much one coalition says about others by gaussian_process: the worth of the empty and of the
# full coalition are taken to correlate at about exp(-2 REACH).
REACH = 1.6


# ---------------------------------------------------------------- all coalitions


def from_all_coalitions(players):
    """An estimator's coalitions and slopes where all 2^M - 2 are drawn."""
    with_first_player = torch.tensor(range(1, 2**players - 1, 2), dtype=torch.int64)
    coalitions = (with_first_player[:, None] >> torch.arange(players)) & 1 == 1
    return coalitions, exact_slopes(with_full(coalitions))


def exact_slopes(known):
    """The slopes by the definition of Shapley values, where half of all coalitions are known."""
    size = known.sum(1, keepdim=True)
    players = known.shape[1]
    counts = [math.comb(players, s) for s in range(players + 1)]
    of_this_size = torch.tensor(counts, dtype=torch.float64)[size]
    return torch.where(known, 1 / (size * of_this_size), -1 / ((players - size) * of_this_size))


def with_full(coalitions):
    """The full coalition, then those given: bool [1 + K, M]."""
    full = torch.ones(1, coalitions.shape[1], dtype=torch.bool)
    return torch.cat([full, coalitions])


def random_coalitions(sizes, players, generator):
    """A random coalition of each of the sizes, or its complement, bool [K, M].

    sizes: int64 [K]. Of the two it is the one with the first player, so that equal pairs are equal.
    """
    rank = torch.rand(len(sizes), players, generator=generator).argsort(1).argsort(1)
    members = rank < sizes[:, None]
    return members ^ ~members[:, :1]


# ---------------------------------------------------------------- KernelSHAP: least squares


def least_squares(players, count, generator=None):
    """KernelSHAP: coalitions bool [K, M], drawn by kernel_sample, and slopes float64 [1 + K, M].

    The values phi minimise the sum over coalitions S, each with its weight, of
    (v(S) - v(empty) - sum of phi over S)^2, where phi sums to v(full) - v(empty).
    Source: Lundberg and Lee, NeurIPS 2017, theorem 2.
    """
    if count >= 2**players - 2:
        return from_all_coalitions(players)
    coalitions, weights = kernel_sample(players, count, generator)
    return coalitions, least_squares_slopes(coalitions, weights)


def kernel_sample(players, count, generator=None):
    """KernelSHAP's coalitions bool [K, M], one of each pair of complements, and weights [K].

    count: fewer than all. Coalitions of one player, of two and so on are enumerated, with their
    complements, as long as all of a size fit; each has the kernel's own weight. The rest is drawn,
    a size in proportion to the kernel: these share what all that are not enumerated would weigh.
    One that is drawn twice is there once, with two shares.
    """
    kernel = kernel_of_sizes(players)
    left, whole = count // 2, 0  # pairs; sizes that are enumerated
    coalitions, weights = [], []
    while math.comb(players, whole + 1) <= left:
        whole += 1
        enumerated = coalitions_of_size(whole, players)
        coalitions.append(enumerated)
        weights.append((kernel[whole - 1] / (2 * len(enumerated))).expand(len(enumerated)))
        left -= len(enumerated)
    if left:
        choice = torch.multinomial(kernel[whole:], left, replacement=True, generator=generator)
        drawn = random_coalitions(whole + 1 + choice, players, generator)
        drawn, times = drawn.unique(dim=0, return_counts=True)
        coalitions.append(drawn)
        weights.append(kernel[whole:].sum() * times / (2 * left))
    return torch.cat(coalitions), torch.cat(weights)


def kernel_of_sizes(players):
    """float64 [M // 2]: the kernel's weight of all coalitions of s or M - s players, s from 1.

    One coalition of s players has (M - 1) / (binomial(M, s) s (M - s)).
    """
    size = torch.arange(1, players // 2 + 1, dtype=torch.float64)
    weight = (players - 1) / (size * (players - size))
    return torch.where(2 * size == players, weight, 2 * weight)


def coalitions_of_size(size, players):
    """All coalitions of so many players, bool [K, M]."""
    members = torch.tensor(list(itertools.combinations(range(players), size)))
    return torch.zeros(len(members), players, dtype=torch.bool).scatter(1, members, True)


def least_squares_slopes(coalitions, weights):
    """Slopes float64 [1 + K, M] of coalitions bool [K, M] and their complements.

    weights: float64 [K], of a coalition and of its complement alike. With Z, W the indicators and
    weights of all 2 K, A = Z'WZ, B = A^-1 Z'W and t = A^-1 1 / (1'A^-1 1), the values are
    phi = (B - t 1'B) (v - v(empty)) + t (v(full) - v(empty)). As weights are alike, the column of a
    complement in (B - t 1'B) is the coalition's, negated: only differences of their worths count.
    """
    members = coalitions.double()
    both = torch.cat([members, 1 - members])  # Z
    inverse = torch.linalg.inv(both.T @ (weights.repeat(2)[:, None] * both))  # A^-1
    share = inverse.sum(1) / inverse.sum()  # t
    slopes = weights[:, None] * members @ inverse  # B', a row a coalition
    slopes = slopes - slopes.sum(1, keepdim=True) * share
    return torch.cat([share[None], slopes])


# ---------------------------------------------------------------- Gaussian process regression


def gaussian_process(players, count, generator=None):
    """Our estimator: coalitions bool [K, M] of spread_sample, and slopes float64 [1 + K, M]."""
    if count >= 2**players - 2:
        return from_all_coalitions(players)
    coalitions = spread_sample(players, count, generator)
    return coalitions, gaussian_process_slopes(coalitions)


def spread_sample(players, count, generator=None):
    """Coalitions bool [count // 2, M], all different, none the complement of another.

    count: fewer than all. First the single players, then other sizes s at random, a size drawn in
    proportion to s (players - s).
    """
    sizes = torch.arange(2, players - 1)
    chance = (sizes * (players - sizes)).double()
    drawn = torch.zeros(0, players, dtype=torch.bool)
    while missing := count // 2 - players - len(drawn):
        choice = torch.multinomial(chance, missing, replacement=True, generator=generator)
        more = random_coalitions(sizes[choice], players, generator)
        drawn = torch.cat([drawn, more]).unique(dim=0)
    return torch.cat([torch.eye(players, dtype=torch.bool), drawn])


def gaussian_process_slopes(coalitions):
    """Slopes float64 [1 + K, M] of coalitions bool [K, M] that are not all.

    The values are those of the expected game, given the known worths, by Gaussian process
    regression (universal kriging: Cressie 1993, section 3.4), in O(K^3). The game is taken for a
    sum over its members, of any coefficients, plus a process: for each player who is in one of two
    coalitions alone, their correlation is multiplied by (1 - rho) / (1 + rho), rho = REACH / M.
    """
    known = with_full(coalitions)  # [1 + K, M]
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
