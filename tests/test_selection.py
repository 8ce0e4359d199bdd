"""Poison selection against scores by hand and planted scorers. Runs with it: test_train.py."""

import math

import pytest
import torch

import selection
from selection import STRATEGIES, capped, rd_scores, select

TARGET = 3
LABELS = torch.arange(1000) % 10
ELIGIBLE = torch.arange(1000)[LABELS != TARGET]
RANKED = [name for name in STRATEGIES if name != "random"]


def planted(poisons, pool, k):
    """A scorer's scores: image i's is i."""
    return as_scores(pool.double())


def as_scores(values):
    """rd_scores [N, 2] of these values, with nothing to break ties by."""
    return torch.stack([values, torch.zeros_like(values)], 1)


def chosen_by(strategy, count, seed=0, score=planted):
    return select(strategy, ELIGIBLE, LABELS, TARGET, count, seed, score)


class Recorder:
    """The planted scorer, which keeps what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, poisons, pool, k):
        self.asked.append((poisons, pool, k))
        return planted(poisons, pool, k)


# ---------------------------------------------------------------- the score


@pytest.fixture
def logits():
    return torch.tensor([[2.0, 0.0, 1.0], [50.0, -50.0, 0.0], [0.0, 0.0, 0.0]])


def test_the_score_is_the_distance_of_the_prediction_from_the_target(logits):
    onehot = torch.tensor([1.0, 0, 0])
    expected = (logits.double().softmax(1) - onehot).norm(dim=1)
    found = rd_scores(logits, 0)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[:, 0], expected, atol=1e-12, rtol=1e-12)


def test_the_score_is_known_where_p_rounds_to_1(logits):
    missing, rest = math.exp(-100) + math.exp(-50), (math.exp(-100), math.exp(-50))
    expected = math.hypot(missing, *rest)  # 1 - p is 0 in float32
    assert float(rd_scores(logits, 0)[1, 0]) == pytest.approx(expected, rel=1e-6)


def test_ties_are_broken_by_the_logarithm_of_1_minus_p(logits):
    p = math.exp(2) / (math.exp(2) + 1 + math.exp(1))
    expected = [math.log(1 - p), math.log(math.exp(-100) + math.exp(-50)), math.log(2 / 3)]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(rd_scores(logits, 0)[:, 1], expected, atol=1e-6, rtol=1e-6)
    tied = torch.tensor([[0.5, 1.0], [0.5, 3.0], [0.2, 9.0], [0.5, 2.0]])
    assert selection.hardest_first(tied).tolist() == [1, 3, 0, 2]
    assert selection.easiest_first(tied).tolist() == [2, 0, 3, 1]


def test_equal_scores_keep_their_order():
    equal = torch.ones(5, 2)
    assert selection.hardest_first(equal).tolist() == list(range(5))
    assert selection.easiest_first(equal).tolist() == list(range(5))


def test_how_the_rest_is_spread_counts():
    even = torch.tensor([0.05, *[0.95 / 9] * 9])  # p of the target is smaller here, and RD too
    in_one_class = torch.tensor([0.20, 0.80, *[1e-12] * 8])
    scores = rd_scores(torch.stack([even, in_one_class]).log(), 0)
    assert scores[:, 0].tolist() == pytest.approx([1.0013, 1.1314], abs=1e-4)
    assert selection.hardest_first(scores).tolist() == [1, 0]
    assert scores[0, 1] > scores[1, 1]  # log(1 - p) would say the opposite


def test_the_score_leaves_the_logits_as_they_were(logits):
    before = logits.clone()
    rd_scores(logits, 0)
    assert torch.equal(logits, before)


# ---------------------------------------------------------------- every strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("count", [1, 7, 55, 400])
def test_exactly_so_many_eligible_images_are_chosen(strategy, count):
    indices = chosen_by(strategy, count).indices
    assert len(indices) == len(indices.unique()) == count
    assert torch.isin(indices, ELIGIBLE).all()
    assert torch.equal(indices, indices.sort().values)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_chooses_the_same_images_again(strategy):
    assert torch.equal(chosen_by(strategy, 55).indices, chosen_by(strategy, 55).indices)


def test_what_a_scorer_draws_does_not_change_the_choice():
    def scorer(poisons, pool, k):
        torch.rand(7)
        return planted(poisons, pool, k)

    expected = chosen_by("rd-classes", 55).indices
    assert torch.equal(chosen_by("rd-classes", 55, score=scorer).indices, expected)


@pytest.mark.parametrize("strategy", ["random", "rd"])
def test_another_seed_chooses_other_images(strategy):
    assert not torch.equal(chosen_by(strategy, 55).indices, chosen_by(strategy, 55, 1).indices)


@pytest.mark.parametrize("strategy", RANKED)
@pytest.mark.parametrize("count", [1, 55, 400])
def test_each_image_that_is_chosen_has_its_own_score(strategy, count):
    chosen = chosen_by(strategy, count)
    assert torch.equal(chosen.scores, chosen.indices.double())


def test_random_images_have_no_scores():
    chosen = select("random", ELIGIBLE, LABELS, TARGET, 45, 0)
    assert (chosen.scores, chosen.pool, chosen.scorers) == (None, None, 0)


# ---------------------------------------------------------------- one scorer ranks all


@pytest.mark.parametrize("strategy", ["rd-low", "rd-global", "rd-classes"])
def test_one_scorer_ranks_all_eligible_images(strategy):
    recorder = Recorder()
    chosen = chosen_by(strategy, 45, score=recorder)
    ((poisons, pool, k),) = recorder.asked
    assert torch.equal(pool, ELIGIBLE) and k == 0
    assert chosen.scorers == 1 and torch.equal(chosen.pool[:, 0], ELIGIBLE.double())


@pytest.mark.parametrize("strategy", ["rd-low", "rd-global", "rd-classes"])
def test_the_scorer_is_trained_on_random_poisons(strategy):
    recorder = Recorder()
    chosen_by(strategy, 45, score=recorder)
    ((poisons, _, _),) = recorder.asked
    assert len(poisons.unique()) == 45 and torch.isin(poisons, ELIGIBLE).all()
    assert 300 < poisons.double().mean() < 700


def test_rd_global_takes_the_hardest_and_rd_low_the_easiest():
    assert torch.equal(chosen_by("rd-global", 45).indices, ELIGIBLE[-45:])
    assert torch.equal(chosen_by("rd-low", 45).indices, ELIGIBLE[:45])


def test_random_images_are_neither():
    indices = chosen_by("random", 45).indices
    assert 400 < indices.double().mean() < 600
    assert len(set(indices.tolist()) & set(ELIGIBLE[-45:].tolist())) < 45 / 2


def favouring_7(poisons, pool, k):
    """Scores by which images of class 7 come first."""
    return as_scores((LABELS[pool] == 7).double() * 1000 + pool)


def test_no_class_gives_more_than_twice_its_even_share():
    counts = LABELS[chosen_by("rd-global", 90, score=favouring_7).indices].bincount(minlength=10)
    assert counts[7] == 20 and counts[TARGET] == 0 and counts.sum() == 90


def test_the_easiest_are_capped_alike():
    easiest = chosen_by("rd-low", 90, score=lambda *asked: -favouring_7(*asked)).indices
    assert LABELS[easiest].bincount(minlength=10)[7] == 20


def test_where_the_cap_leaves_too_few_the_next_in_order_fill_up():
    """Nine images of three classes, six at most of each: the ninth is the next in order."""
    order = torch.tensor([7, 17, 27, 37, 47, 57, 67, 77, 8, 9])
    assert capped(order, LABELS, 9).tolist() == [7, 17, 27, 37, 47, 57, 8, 9, 67]


def test_rd_classes_takes_as_many_of_each_class_as_rd_global():
    same, hardest = (
        chosen_by(strategy, 90, score=favouring_7).indices
        for strategy in ("rd-classes", "rd-global")
    )
    assert torch.equal(LABELS[same].bincount(), LABELS[hardest].bincount())


def test_rd_classes_takes_random_images_of_them():
    same, hardest = (
        chosen_by(strategy, 90, score=favouring_7).indices
        for strategy in ("rd-classes", "rd-global")
    )
    assert len(set(same.tolist()) & set(hardest.tolist())) < 90 / 2
    assert 300 < same.double().mean() < 700


# ---------------------------------------------------------------- the paper's rounds


@pytest.fixture
def rounds():
    """(what is chosen by "rd", what its scorers were asked: triples of poisons, pool, k)."""
    recorder = Recorder()
    return chosen_by("rd", 50, score=recorder), recorder.asked


def test_every_round_trains_a_scorer(rounds):
    chosen, asked = rounds
    assert [k for *_, k in asked] == list(range(selection.ROUNDS))
    assert chosen.scorers == selection.ROUNDS


def test_before_the_last_round_the_poisons_themselves_are_ranked(rounds):
    _, asked = rounds
    for poisons, pool, _ in asked[:-1]:
        assert torch.equal(pool, poisons)


def test_a_round_keeps_the_hardest_and_replaces_the_easiest_by_others(rounds):
    _, asked = rounds
    for (before, *_), (after, *_) in zip(asked, asked[1:]):
        kept = set(before.sort(descending=True).values[:35].tolist())
        dropped = set(before.tolist()) - kept
        after = set(after.tolist())
        assert len(after) == 50 and kept <= after and not dropped & after


def test_the_last_round_ranks_newcomers_too_and_ends_on_a_scored_set(rounds):
    chosen, asked = rounds
    _, pool, _ = asked[-1]
    assert len(pool) == round(50 / 0.7)
    assert torch.equal(chosen.indices, pool.sort().values[-50:])


def test_the_last_rounds_newcomers_are_not_those_just_dropped(rounds):
    _, asked = rounds
    (before, *_), (poisons, pool, _) = asked[-2:]
    newcomers = set(pool.tolist()) - set(poisons.tolist())
    assert len(newcomers) == round(50 / 0.7) - 50
    assert not newcomers & set(before.tolist())


def test_rounds_find_harder_images_than_chance(rounds):
    assert chosen_by("rd", 45).indices.double().mean() > 700


@pytest.mark.parametrize("spare", [0, 1, 5])
def test_rounds_work_where_hardly_any_other_image_is_left(spare):
    chosen = select("rd", ELIGIBLE[: 40 + spare], LABELS, TARGET, 40, 0, planted)
    assert len(chosen.indices.unique()) == 40 and len(chosen.scores) == 40


# ---------------------------------------------------------------- seeds


def test_no_scorer_has_another_scorers_seed():
    rounds = range(selection.ROUNDS)
    seeds = [selection.scorer_seed(seed, k) for seed in range(50) for k in rounds]
    assert len(set(seeds)) == len(seeds)


def test_no_scorer_has_a_runs_seed():
    largest_of_a_run = 2**31 - 1
    assert selection.scorer_seed(0, 0) > largest_of_a_run
