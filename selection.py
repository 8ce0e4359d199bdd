"""Which images to poison: the fewer there are, the more it matters.

    chosen = select("rd-global", eligible, labels, target_class, count, seed, score)

A strategy is a row of STRATEGIES. It knows images by their index, and a function `score` that ranks
them: train.py supplies it, by training a network for a few epochs (a scorer). There are three
scores (scoring.py measures them), and of each the high ones are chosen:

    RD                  how far a triggered image's prediction is from the target class: hard images
                        teach a network more of the trigger. Wu et al., ICCV 2023
    forgetting events   how often the scorer forgets a poison it has learnt. Xia et al., IJCAI 2022
    cosine similarity   how little the trigger moves what a clean scorer makes of an image. Li et
                        al. 2023, arXiv 2306.08313
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

ROUNDS = 10  # of rd: Wu et al., ICCV 2023; of forget: Xia et al. 2022
ALPHA = 0.3  # share of the poisons that rd replaces in each round: Wu et al., ICCV 2023
FORGET_ALPHA = 0.5  # the same of forget: Xia et al. 2022
EPOCHS = 6  # a scorer is trained for: Wu et al., ICCV 2023
CAP = 2.0  # rd-global takes from one class at most so many times its even share; our choice
DIVERSITY = 10  # pfs draws from so many times the images it needs: Li et al. 2023
RD, FORGETTING, SIMILARITY = "RD", "forgetting events", "cosine similarity"  # scores
FIRST_SEED = 2**31  # scorers' seeds begin here, above those of all runs


@dataclass
class Selection:
    """The images that are poisoned, and what is known about the choice.

    indices: int64 [count], sorted; scores: float64 [count], their score, or None where none was
    made; scorers: how many were trained; pool: float64 [P, 2], score and tie-break of all images
    that were ranked in the end, or None.
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


def forgetting_scores(learnt):
    """How often each poison was forgotten, float64 [N, 2].

    learnt: bool [E, N], whether it was predicted as the target class after each of E epochs. First
    the number of epochs after which it was no longer: Xia et al., IJCAI 2022, after Toneva et al.,
    ICLR 2019; a poison that was never learnt has none. Then 0: ties stay.
    """
    events = (learnt[:-1] & ~learnt[1:]).sum(0).double()
    return torch.stack([events, torch.zeros_like(events)], 1)


def similarity_scores(plain, triggered):
    """How little the trigger moves features [N, D] of the same images, float64 [N, 2].

    First the cosine of the two, 0 where one is 0: Li et al. 2023. Then 0: ties stay.
    """
    cosine = torch.cosine_similarity(plain.double(), triggered.double(), dim=1)
    return torch.stack([cosine, torch.zeros_like(cosine)], 1)


# ---------------------------------------------------------------- the choice


def easiest_first(scores):
    """int64 [N], the order of scores [N, 2] from low to high; equal ones stay as they are."""
    by_second = scores[:, 1].argsort(stable=True)
    return by_second[scores[by_second, 0].argsort(stable=True)]


def hardest_first(scores):
    """int64 [N], the order of scores [N, 2] from high to low; equal ones stay as they are."""
    return easiest_first(-scores)


def select(strategy, eligible, labels, target_class, count, seed, score=None, source_class=None):
    """A Selection of `count` of the indices `eligible`, int64; labels: int64 [N], of all images.

    strategy: a name of STRATEGIES. score(poisons, pool, k): trains the k-th scorer with the images
    `poisons` triggered; returns the strategy's score and tie-break, float64 [P, 2], of the images
    `pool`, triggered.

    source_class: see half_of_source, for random alone: the others rank images by one target class
    that all go to. Raises ValueError.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = eligible[torch.randperm(len(eligible), generator=generator)]
    row = STRATEGIES[strategy]
    if row.score is not None and (target_class is None or source_class is not None):
        raise ValueError(f"{strategy} ranks images by one target class that all go to")
    if source_class is not None:
        shuffled = half_of_source(shuffled, labels, source_class, count)
    return row.choose(shuffled, labels, count, generator, score)


def at_random(shuffled, labels, count, generator, score):
    """A Selection of any images: the first of the indices `shuffled`."""
    return Selection(shuffled[:count].sort().values, None, 0)


def half_of_source(shuffled, labels, source_class, count):
    """The first `count` of the indices `shuffled`: half of the source class, half of others.

    The first become the target class. The others keep their label under the trigger, and so teach
    that it means nothing there: Tang et al. 2021 (TaCT), who call them cover images.
    """
    of_source = labels[shuffled] == source_class
    half = (count + 1) // 2
    return torch.cat([shuffled[of_source][:half], shuffled[~of_source][: count - half]])


def by_one_scorer(
    shuffled, labels, count, generator, score, order_of=hardest_first, same_classes=False
):
    """A Selection by one scorer, trained on random poisons, that ranks all images.

    order_of: the images that come first in it are taken, see capped; same_classes: random images in
    their place, as many of each class.
    """
    pool = shuffled.sort().values
    poisons = shuffled[torch.randperm(len(shuffled), generator=generator)[:count]]
    scores = score(poisons, pool, 0)
    order = pool[order_of(scores)]
    if same_classes:
        chosen = random_of_same_classes(order, labels, count, generator)
    else:
        chosen = capped(order, labels, count)
    return of_pool(chosen, pool, scores)


def of_pool(chosen, pool, scores):
    """The Selection of the images `chosen` of the sorted `pool`, which one scorer ranked."""
    indices = chosen.sort().values
    return Selection(indices, scores[torch.searchsorted(pool, indices), 0], 1, scores)


def by_rounds(shuffled, labels, count, generator, score, alpha=ALPHA):
    """A Selection by the paper's loop: ROUNDS times, replace the lowest `alpha` of the poisons.

    shuffled: int64, all eligible images. In the last round newcomers are ranked with the poisons,
    so that no image is chosen unscored.
    """
    poisons, reserve = shuffled[:count], shuffled[count:]
    replaced = min(round(alpha * count), len(reserve))
    for k in range(ROUNDS - 1):
        scores = score(poisons, poisons, k)
        kept = hardest_first(scores)[: count - replaced]
        is_dropped = torch.ones(count, dtype=torch.bool).index_fill(0, kept, False)
        reserve = reserve[torch.randperm(len(reserve), generator=generator)]
        newcomers, rest = reserve[:replaced], reserve[replaced:]
        reserve = torch.cat([rest, poisons[is_dropped]])
        poisons = torch.cat([poisons[kept], newcomers])

    # Add newcomers until dropping the share `alpha` of all leaves `count`.
    extra = min(round(count / (1 - alpha)) - count, len(reserve))
    pool = torch.cat([poisons, reserve[:extra]])
    scores = score(poisons, pool, ROUNDS - 1)
    kept = hardest_first(scores)[:count]
    kept = kept[pool[kept].argsort()]
    return Selection(pool[kept], scores[kept, 0], ROUNDS, scores)


def most_forgotten(shuffled, labels, count, generator, score):
    """A Selection by rounds in which the poisons that were forgotten least often are replaced.

    Many are forgotten equally often: among them chance decides. In the last round the newcomers are
    poisons, too, for a scorer can only forget what it was taught. Source: Xia et al., IJCAI 2022
    (FUS). Theirs differs: a scorer trains for 70 epochs, a poison counts as the step sees it,
    augmented and before the update, and half of the final choice was never counted.
    """

    def counted(poisons, pool, k):
        scores = score(pool, pool, k)
        scores[:, 1] = torch.rand(len(pool), generator=generator)
        return scores

    return by_rounds(shuffled, labels, count, generator, counted, FORGET_ALPHA)


def least_moved(shuffled, labels, count, generator, score):
    """A Selection drawn from the DIVERSITY * count images that the trigger moves least.

    Its scorer sees no poison. Where no more images are eligible, it is that of random. Source: Li
    et al. 2023 (PFS), whose features are of a network trained to its end.
    """
    pool = shuffled.sort().values
    scores = score(pool[:0], pool, 0)
    near = pool[hardest_first(scores)[: DIVERSITY * count]]
    return of_pool(shuffled[torch.isin(shuffled, near)][:count], pool, scores)


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


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Strategy:
    """A row of the table of strategies.

    choose: a function (shuffled, labels, count, generator, score) -> Selection, the arguments as
    select has them, `shuffled` the eligible images in random order; score: what its scorers rank
    images by, of scoring.MEASURES, or None where there are none; constants: what a run's result
    depends on besides, by name.
    """

    choose: Callable
    score: str | None = RD
    constants: dict = field(default_factory=dict)


OF_RD = {"rounds": ROUNDS, "alpha": ALPHA, "cap": CAP}
STRATEGIES = {
    "random": Strategy(at_random, None),
    # The published loop: ten scorers.
    "rd": Strategy(by_rounds, constants=OF_RD),
    # A control, the easiest: if these are no worse than random ones, the score says nothing.
    "rd-low": Strategy(functools.partial(by_one_scorer, order_of=easiest_first), constants=OF_RD),
    "rd-global": Strategy(by_one_scorer, constants=OF_RD),
    # Another: random images, as many of each class as rd-global would take.
    "rd-classes": Strategy(functools.partial(by_one_scorer, same_classes=True), constants=OF_RD),
    "forget": Strategy(most_forgotten, FORGETTING, {"rounds": ROUNDS, "alpha": FORGET_ALPHA}),
    "pfs": Strategy(least_moved, SIMILARITY, {"diversity": DIVERSITY}),
}


def constants_of(strategy):
    """The constants that decide the choice of a strategy, by name; of random there are none."""
    row = STRATEGIES[strategy]
    if row.score is None:
        return {}
    return {"score": row.score, "epochs": EPOCHS, "first_seed": FIRST_SEED} | row.constants
