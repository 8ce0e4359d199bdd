"""Poison selection against scores by hand and planted scorers. Runs with it: test_train.py."""

import math
import types

import pytest
import torch
from conftest import tiny_argv

import figure
import pictures
import runs
import scoring
import selection
import train
from cli import UserError
from figure import curves
from selection import STRATEGIES, capped, rd_scores, select
from subject import open_checkpoint

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


def test_a_cap_that_is_no_whole_number_is_rounded_up():
    """Two images of three classes: four thirds at most of each, so two. Of 5 of 8: 1.25, so 2."""
    assert capped(torch.tensor([7, 17, 27, 8, 9]), LABELS, 2).tolist() == [7, 17]
    order = torch.tensor([7, 17, 27, 0, 1, 2, 4, 5, 6, 8])
    assert capped(order, LABELS, 5).tolist() == [7, 17, 0, 1, 2]


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


# ---------------------------------------------------------------- forgetting events


def test_forgetting_events_are_counted_by_hand():
    """Five epochs of five poisons: learnt for good, never, forgotten once, twice, lost at last."""
    learnt = torch.tensor(
        [
            [1, 0, 1, 1, 0],
            [1, 0, 0, 0, 0],
            [1, 0, 1, 1, 0],
            [1, 0, 1, 0, 1],
            [1, 0, 1, 1, 0],
        ]
    ).bool()
    found = selection.forgetting_scores(learnt)
    assert found.dtype == torch.float64 and found.tolist() == [[n, 0.0] for n in (0, 0, 1, 2, 1)]


def test_after_one_epoch_nothing_can_have_been_forgotten():
    assert selection.forgetting_scores(torch.ones(1, 3).bool()).tolist() == [[0.0, 0.0]] * 3


@pytest.fixture
def forgotten():
    """(what is chosen by "forget", what its scorers were asked)."""
    recorder = Recorder()
    return chosen_by("forget", 50, score=recorder), recorder.asked


def test_each_round_replaces_the_half_that_is_forgotten_least(forgotten):
    chosen, asked = forgotten
    assert [k for *_, k in asked] == list(range(10)) and chosen.scorers == 10
    for (before, *_), (after, *_) in zip(asked, asked[1:]):
        kept = set(before.sort().values[-25:].tolist())  # image i is forgotten i times
        dropped = set(before.tolist()) - kept
        after = set(after.tolist())
        assert kept <= after and not dropped & after


def test_all_that_are_counted_are_poisons_of_their_scorer(forgotten):
    _, asked = forgotten
    assert [len(pool) for _, pool, _ in asked] == [50] * 9 + [100]
    assert all(torch.equal(poisons, pool) for poisons, pool, _ in asked)


def test_in_the_end_the_most_forgotten_are_chosen(forgotten):
    chosen, asked = forgotten
    assert torch.equal(chosen.indices, asked[-1][1].sort().values[-50:])


def test_among_the_equally_forgotten_chance_decides():
    never = lambda poisons, pool, k: as_scores(torch.zeros(len(pool)).double())
    first, second = (chosen_by("forget", 50, seed, never).indices for seed in (0, 1))
    assert 300 < first.double().mean() < 700
    assert len(set(first.tolist()) & set(second.tolist())) < 25


# ---------------------------------------------------------------- features that hardly move


def test_similarity_is_the_cosine_of_the_angle_between_features():
    plain = torch.tensor([[1.0, 0], [1, 0], [1, 0], [3, 4], [0, 0]])
    triggered = torch.tensor([[5.0, 0], [1, 1], [-2, 0], [4, 3], [1, 1]])
    found = selection.similarity_scores(plain, triggered)
    assert found.dtype == torch.float64 and found[:, 1].eq(0).all()
    assert found[:, 0].tolist() == pytest.approx([1, math.sqrt(0.5), -1, 24 / 25, 0])


def test_images_are_drawn_from_ten_times_as_many_that_hardly_move():
    recorder = Recorder()
    chosen = chosen_by("pfs", 20, score=recorder)
    ((poisons, pool, k),) = recorder.asked
    assert len(poisons) == 0 and torch.equal(pool, ELIGIBLE) and k == 0
    near = set(ELIGIBLE[-200:].tolist())
    assert set(chosen.indices.tolist()) <= near and chosen.scorers == 1
    assert torch.equal(chosen_by("pfs", 90).indices, chosen_by("random", 90).indices)
    drawn = [chosen_by("pfs", 20, seed).indices for seed in range(60)]
    assert set(torch.cat(drawn).tolist()) >= set(sorted(near)[::5]) and len(near) == 200


# ---------------------------------------------------------------- what a scorer is asked


class Flips(torch.nn.Module):
    """A network that calls image i the target where a script says so; images have i as pixels."""

    def __init__(self, script):
        super().__init__()
        self.script, self.epoch = script, None
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        rows = (images[:, 0, 0, 0] * 255).round().long()
        return torch.nn.functional.one_hot(self.script[self.epoch][rows] * TARGET, 10).float()


class Nothing:
    """A trigger that changes nothing."""

    def apply(self, images):
        return images


def setting_with(images, trigger):
    """As much of a Setting as a score asks for."""
    return types.SimpleNamespace(
        dataset=types.SimpleNamespace(train_images=images),
        **{"mean": [0.0], "std": [1.0], "trigger": trigger, "config": {"target_class": TARGET}},
    )


def test_a_scorer_is_asked_after_each_epoch_whether_it_still_knows_its_poisons():
    script = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1]])
    model, pool = Flips(script), torch.tensor([3, 0, 1])
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)

    def trained(after_epoch):
        for model.epoch in range(4):
            after_epoch(None)

    measured = scoring.MEASURES[selection.FORGETTING]
    found = measured(setting_with(images, Nothing()), model, pool, trained)
    assert found[:, 0].tolist() == [1, 2, 0]


class FirstPixel:
    """A trigger that makes the first pixel white."""

    def apply(self, images):
        images = images.clone()
        images[..., 0, 0] = 1
        return images


@pytest.fixture
def angles():
    """(a model whose last linear layer takes the pixels, uint8 images [3, 1, 1, 2])."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Identity(), torch.nn.Linear(2, 10))
    return model, torch.tensor([[255, 0], [0, 255], [51, 255]], dtype=torch.uint8)[:, None, None]


def test_features_are_what_comes_into_the_last_linear_layer(angles):
    """Of [x, 1] with the trigger [1, 1]: the cosine is (x + 1) / sqrt(2 (x^2 + 1))."""
    model, images = angles
    setting, trained = setting_with(images, FirstPixel()), []
    measured = scoring.MEASURES[selection.SIMILARITY]
    found = measured(setting, model, torch.tensor([2, 1, 0]), lambda: trained.append(1))
    expected = [1.2 / math.sqrt(2 * 1.04), 1 / math.sqrt(2), 1]
    assert trained == [1] and found[:, 0].tolist() == pytest.approx(expected)
    assert not model[2]._forward_pre_hooks


def test_a_network_without_a_linear_layer_has_no_features(angles):
    _, images = angles
    convolution = torch.nn.Sequential(torch.nn.Conv2d(1, 10, 1), torch.nn.Flatten())
    with pytest.raises(UserError, match="linear layer"):
        scoring.features_of(convolution, images, [0.0], [1.0], None)


def test_every_score_of_a_strategy_is_measured():
    assert {row.score for row in STRATEGIES.values()} == {None, *scoring.MEASURES}


@pytest.mark.parametrize("strategy", ["forget", "pfs"])
def test_a_run_chooses_by_it_and_shows_its_choice(strategy, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "EPOCHS", 2)
    monkeypatch.setattr(selection, "ROUNDS", 2)
    argv = ["--attack", "badnets", "--poison-rate", "0.05", "--selection", strategy]
    run = train.new_run(train.parse(tiny_argv(tiny, tmp_path / "run", *argv)))
    train.choose_poisons(run)
    runs.save(run)
    subject = open_checkpoint(run.unfinished / "ckpt.pt")
    chosen, score = subject.checkpoint["selection"], STRATEGIES[strategy].score
    assert len(chosen["indices"]) == 12 and chosen["scores"].isfinite().all()
    assert subject.config["constants"]["selection"]["score"] == score
    titles = []
    monkeypatch.setattr(figure, "curves", lambda *given: titles.append(given) or curves(*given))
    pictures.selection_picture(subject)
    assert titles[0][0].startswith(strategy) and score in titles[0][1]
