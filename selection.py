"""Which images to poison: the fewer there are, the more it matters.

    chosen = select("rd-global", eligible, labels, target_class, count, seed, score)

A strategy knows images by index and a scorer that ranks them; train.py supplies the scorer, which is a short training.
"""
import math
from dataclasses import dataclass

import torch

ROUNDS, ALPHA, EPOCHS = 10, 0.3, 6  # rd's rounds, the share replaced in each, and a scorer's epochs: Wu et al., ICCV 2023
SCORERS = 1  # rd-global's, averaged: one costs a fifth of a victim of 30 epochs
CAP = 2.0  # rd-global: at most so many times the even share from one class, rounded up; a choice, no paper's
FIRST_SEED = 2**31  # scorers' seeds begin here, above any run's: none has the victim's first weights and order of images


@dataclass
class Selection:
    """indices: sorted int64 [count]; scores: float64 [count], theirs, or None for a random draw; scorers: how many were trained;
    pool: float64 [P], the scores of all that were ranked last, or None."""

    indices: torch.Tensor
    scores: torch.Tensor | None
    scorers: int
    pool: torch.Tensor | None = None


def scorer_seed(seed, k):
    """Of the k-th scorer of a selection by `seed`: no run's and no other selection's, while `seed` is below 2**31 / ROUNDS (torch keeps 32 bits)."""
    return FIRST_SEED + max(ROUNDS, SCORERS) * seed + k


def rd_scores(logits, target_class):
    """log(1 - p of the target class), float64 [N], of triggered images' logits [N, K]: how far a scorer is from calling them the target.

    It orders images as the RD score does, || softmax - onehot ||_2 (Wu et al., ICCV 2023, eq. 9), as far as that depends on the target's
    probability, and still tells apart images whose p rounds to 1.
    """
    others = logits.double().clone()
    others[:, target_class] = -math.inf
    return others.logsumexp(1) - logits.double().logsumexp(1)


def select(strategy, eligible, labels, target_class, count, seed, score=None):
    """A Selection of `count` of the indices `eligible`; labels: of all images.

    score(poisons, pool, k) trains the k-th scorer with images `poisons` triggered, and returns its rd_scores of the images `pool`, triggered.
    random: any. rd: begin at random; ROUNDS times, train a scorer on the poisons and replace the ALPHA of them it finds easiest. rd-global:
    scorers trained on random poisons score all images, and the hardest are taken, at most CAP times its even share from a class.
    rd-low: the easiest by those scores, likewise: if it is no worse than random, the scores say nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = eligible[torch.randperm(len(eligible), generator=generator)]
    if strategy == "random":
        return Selection(drawn[:count].sort().values, None, 0)
    if strategy == "rd":
        return by_rounds(drawn, count, generator, score)
    pool = eligible.sort().values
    draws = [drawn[torch.randperm(len(drawn), generator=generator)[:count]] for _ in range(SCORERS)]
    scores = torch.stack([score(poisons, pool, k) for k, poisons in enumerate(draws)]).mean(0)
    order = pool[scores.argsort(descending=strategy == "rd-global", stable=True)]
    indices = capped(order, labels, count).sort().values
    return Selection(indices, scores[torch.searchsorted(pool, indices)], SCORERS, scores)


def by_rounds(drawn, count, generator, score):
    """rd's loop. In the last round the scorer also ranks newcomers, so that no poison is chosen unscored."""
    poisons, reserve = drawn[:count], drawn[count:]
    dropped = min(round(ALPHA * count), len(reserve))
    for k in range(ROUNDS):
        last = k == ROUNDS - 1
        extra = min(round(count / (1 - ALPHA)) - count, len(reserve)) if last else 0
        pool = torch.cat([poisons, reserve[:extra]])
        scores = score(poisons, pool, k)
        kept = scores.argsort(descending=True, stable=True)[: count if last else count - dropped]
        if last:
            order = pool[kept].argsort()
            return Selection(pool[kept][order], scores[kept][order], ROUNDS, scores)
        gone = torch.ones(count, dtype=torch.bool).index_fill(0, kept, False)
        reserve = reserve[torch.randperm(len(reserve), generator=generator)]
        poisons, reserve = torch.cat([poisons[kept], reserve[:dropped]]), torch.cat([reserve[dropped:], poisons[gone]])


def capped(order, labels, count):
    """The first `count` of `order`, no class giving more than CAP times its even share; where that leaves too few, the next in order."""
    classes = labels[order]
    cap = math.ceil(CAP * count / len(classes.unique()))
    rank = torch.zeros(len(order), dtype=torch.int64)  # how many of its class come before
    for label in classes.unique():
        of = classes == label
        rank[of] = torch.arange(int(of.sum()))
    within = rank < cap
    return torch.cat([order[within], order[~within]])[:count]
