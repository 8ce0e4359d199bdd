"""Which images to poison: the fewer there are, the more it matters.

    chosen = select("rd-global", eligible, labels, target_class, count, seed, score)

A strategy knows images by their index, and a function `score` that ranks them: train.py supplies
it, by training a network for a few epochs (a scorer). "RD" is the score of Wu et al., ICCV 2023:
the distance between a triggered image's prediction and the target class. Images that are hard for a
scorer teach a network more of the trigger.
"""

import math
from dataclasses import dataclass

import torch

STRATEGIES = ("random", "rd", "rd-low", "rd-global", "rd-classes")
ROUNDS = 10  # of rd: Wu et al., ICCV 2023
ALPHA = 0.3  # share of the poisons that rd replaces in each round: the same
EPOCHS = 6  # a scorer is trained for: the same
CAP = 2.0  # rd-global takes from one class at most so many times its even share; our choice
SCORE = "RD"  # images are ranked by: see rd_scores
FIRST_SEED = 2**31  # scorers' seeds begin here, above those of all runs


@dataclass
class Selection:
    """The images that are poisoned, and what is known about the choice.

    indices: int64 [count], sorted; scores: float64 [count], their RD, or None where none was made;
    scorers: how many were trained; pool: float64 [P, 2], rd_scores of all images that were ranked
    in the end, or None.
    """

    indices: torch.Tensor
    scores: torch.Tensor | None
    scorers: int
    pool: torch.Tensor | None = None


def scorer_seed(seed, k):
    """The seed of the k-th scorer of a selection by `seed`: no run's, and no other scorer's.

    Otherwise a scorer would have the first weights and the order of images of the run it chooses
    for, and know more of it than an attacker does. Of seeds torch keeps 32 bits: they differ while
    `seed` is below 2**31 / ROUNDS.
    """
    return FIRST_SEED + ROUNDS * seed + k


def rd_scores(logits, target_class):
    """RD scores and tie-breaks, float64 [N, 2], of logits [N, K] of triggered images.

    First || softmax - onehot(target class) ||_2, in [0, sqrt(2)]: the larger, the further is a
    scorer from predicting the target class. Source: Wu et al., ICCV 2023, eq. 9. Then log(1 - p of
    the target class), which decides between images of one RD only. It would order images
    otherwise: RD depends on how the rest of the probability is spread, too.
    """
    others = logits.double().clone()
    others[:, target_class] = -math.inf
    total = logits.double().logsumexp(1, keepdim=True)
    log_missing = others.logsumexp(1) - total[:, 0]  # log(1 - p), also where p rounds to 1
    gaps = (others - total).exp()  # p_k of the other classes, [N, K]
    gaps[:, target_class] = log_missing.exp()
    return torch.stack([gaps.norm(dim=1), log_missing], 1)


def easiest_first(scores):
    """int64 [N], the order of rd_scores [N, 2] from low to high; equal ones stay as they are."""
    by_second = scores[:, 1].argsort(stable=True)
    return by_second[scores[by_second, 0].argsort(stable=True)]


def hardest_first(scores):
    """int64 [N], the order of rd_scores [N, 2] from high to low; equal ones stay as they are."""
    return easiest_first(-scores)


def select(strategy, eligible, labels, target_class, count, seed, score=None, source_class=None):
    """A Selection of `count` of the indices `eligible`, int64; labels: int64 [N], of all images.

    score(poisons, pool, k): trains the k-th scorer with the images `poisons` triggered; returns its
    rd_scores, float64 [P, 2], of the images `pool`, triggered.

    source_class: see half_of_source, for random alone: the others rank images by one target class
    that all go to. Raises ValueError.

    random: any. rd: see by_rounds. rd-global: one scorer, trained on random poisons, ranks all
    images, and the hardest are taken, see capped. rd-low, a control: the easiest, likewise; if
    these are no worse than random ones, the score says nothing. rd-classes, another: random images,
    as many of each class as rd-global would take.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = eligible[torch.randperm(len(eligible), generator=generator)]
    if strategy != "random" and (target_class is None or source_class is not None):
        raise ValueError(f"{strategy} ranks images by one target class that all go to")
    if source_class is not None:
        shuffled = half_of_source(shuffled, labels, source_class, count)
    if strategy == "random":
        return Selection(shuffled[:count].sort().values, None, 0)
    if strategy == "rd":
        return by_rounds(shuffled, count, generator, score)
    pool = eligible.sort().values
    poisons = shuffled[torch.randperm(len(shuffled), generator=generator)[:count]]
    scores = score(poisons, pool, 0)
    order = pool[(easiest_first if strategy == "rd-low" else hardest_first)(scores)]
    if strategy == "rd-classes":
        chosen = random_of_same_classes(order, labels, count, generator)
    else:
        chosen = capped(order, labels, count)
    indices = chosen.sort().values
    return Selection(indices, scores[torch.searchsorted(pool, indices), 0], 1, scores)


def half_of_source(shuffled, labels, source_class, count):
    """The first `count` of the indices `shuffled`: half of the source class, half of others.

    The first become the target class. The others keep their label under the trigger, and so teach
    that it means nothing there: Tang et al. 2021 (TaCT), who call them cover images.
    """
    of_source = labels[shuffled] == source_class
    half = (count + 1) // 2
    return torch.cat([shuffled[of_source][:half], shuffled[~of_source][: count - half]])


def by_rounds(shuffled, count, generator, score):
    """A Selection by the paper's loop: ROUNDS times, replace the easiest ALPHA of the poisons.

    shuffled: int64, all eligible images. In the last round newcomers are ranked with the poisons,
    so that no image is chosen unscored.
    """
    poisons, reserve = shuffled[:count], shuffled[count:]
    replaced = min(round(ALPHA * count), len(reserve))
    for k in range(ROUNDS - 1):
        scores = score(poisons, poisons, k)
        kept = hardest_first(scores)[: count - replaced]
        is_dropped = torch.ones(count, dtype=torch.bool).index_fill(0, kept, False)
        reserve = reserve[torch.randperm(len(reserve), generator=generator)]
        newcomers, rest = reserve[:replaced], reserve[replaced:]
        reserve = torch.cat([rest, poisons[is_dropped]])
        poisons = torch.cat([poisons[kept], newcomers])

    # Add newcomers until dropping the share ALPHA of all leaves `count`.
    extra = min(round(count / (1 - ALPHA)) - count, len(reserve))
    pool = torch.cat([poisons, reserve[:extra]])
    scores = score(poisons, pool, ROUNDS - 1)
    kept = hardest_first(scores)[:count]
    kept = kept[pool[kept].argsort()]
    return Selection(pool[kept], scores[kept, 0], ROUNDS, scores)


def capped(order, labels, count):
    """The first `count` of the indices `order`, no class giving more than CAP times its even share.

    Where that leaves too few, the next ones in order fill up.
    """
    classes = labels[order]
    present = classes.unique()
    cap = math.ceil(CAP * count / len(present))
    rank = torch.zeros(len(order), dtype=torch.int64)  # how many of its class come before an image
    for label in present:
        members = classes == label
        rank[members] = torch.arange(int(members.sum()))
    within = rank < cap
    return torch.cat([order[within], order[~within]])[:count]


def random_of_same_classes(order, labels, count, generator):
    """As many images of each class as `capped` takes of `order`, but random ones.

    A control: it shows how much of a choice's success is owed to the classes it takes.
    """
    wanted = labels[capped(order, labels, count)].bincount()
    shuffled = order[torch.randperm(len(order), generator=generator)]
    chosen = [shuffled[labels[shuffled] == k][:number] for k, number in enumerate(wanted)]
    return torch.cat(chosen)
