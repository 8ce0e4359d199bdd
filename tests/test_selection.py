"""Poison selection against hand-computed scores and planted scorers; and train.py's runs with it."""
import json
import math

import pytest
import torch
from conftest import train_tiny
from PIL import Image

import data
import selection
import train

LABELS = torch.arange(1000) % 10
ELIGIBLE = torch.arange(1000)[LABELS != 3]


def planted(poisons, pool, k):
    """Image i's score is i."""
    return pool.double()


def test_scores_by_hand():
    logits = torch.tensor([[2.0, 0.0, 1.0], [50.0, -50.0, 0.0], [0.0, 0.0, 0.0]])
    p = math.exp(2) / (math.exp(2) + 1 + math.exp(1))
    expected = [math.log(1 - p), math.log(math.exp(-100) + math.exp(-50)), math.log(2 / 3)]  # of the second, 1 - p is 0 in float32
    torch.testing.assert_close(selection.rd_scores(logits, 0), torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=1e-6)
    rd = (logits.double().softmax(1) - torch.tensor([1.0, 0, 0])).norm(dim=1)
    assert torch.equal(selection.rd_scores(logits, 0).argsort(), rd.argsort())


@pytest.mark.parametrize("strategy", ["random", "rd", "rd-low", "rd-global"])
@pytest.mark.parametrize("count", [1, 7, 55, 400])
def test_exact_counts_of_eligible_images_the_same_for_a_seed(strategy, count):
    chosen, again, other = (selection.select(strategy, ELIGIBLE, LABELS, 3, count, seed, planted) for seed in (0, 0, 1))
    assert len(chosen.indices) == len(chosen.indices.unique()) == count and torch.isin(chosen.indices, ELIGIBLE).all()
    assert torch.equal(chosen.indices, chosen.indices.sort().values) and torch.equal(chosen.indices, again.indices)
    assert strategy not in ("random", "rd") or count == 1 or not torch.equal(chosen.indices, other.indices)
    assert (chosen.scores is None) == (strategy == "random")
    if chosen.scores is not None:
        assert torch.equal(chosen.scores, chosen.indices.double())  # each has its own score, none is stale


def test_a_planted_scorer_ranks_as_it_must():
    high, low, rounds = (selection.select(name, ELIGIBLE, LABELS, 3, 45, 0, planted).indices for name in ("rd-global", "rd-low", "rd"))
    assert torch.equal(high, ELIGIBLE[-45:]) and torch.equal(low, ELIGIBLE[:45])
    random = selection.select("random", ELIGIBLE, LABELS, 3, 45, 0).indices
    assert rounds.double().mean() > 700 > 600 > random.double().mean() > 400
    assert len(set(high.tolist()) & set(random.tolist())) < 45 / 2


def test_no_class_gives_more_than_its_cap():
    def favourite(poisons, pool, k):
        return (LABELS[pool] == 7).double() * 1000 + pool

    counts = LABELS[selection.select("rd-global", ELIGIBLE, LABELS, 3, 90, 0, favourite).indices].bincount(minlength=10)
    assert counts[7] == 20 and counts.sum() == 90 and counts[3] == 0
    easiest = selection.select("rd-low", ELIGIBLE, LABELS, 3, 90, 0, lambda *asked: -favourite(*asked)).indices
    assert LABELS[easiest].bincount(minlength=10)[7] == 20
    order = torch.tensor([7, 17, 27, 37, 47, 57, 67, 77, 8, 9])  # of three classes nine images, six at most of each: the ninth is the next in order
    assert selection.capped(order, LABELS, 9).tolist() == [7, 17, 27, 37, 47, 57, 8, 9, 67]


def test_rd_global_scores_by_random_poisons_and_averages_its_scorers(monkeypatch):
    monkeypatch.setattr(selection, "SCORERS", 2)
    asked = []

    def scorer(poisons, pool, k):
        asked.append(poisons)
        return pool.double() * (3 if k else -1)

    chosen = selection.select("rd-global", ELIGIBLE, LABELS, 3, 45, 0, scorer)
    assert all(len(p.unique()) == 45 and torch.isin(p, ELIGIBLE).all() and 300 < p.double().mean() < 700 for p in asked) and not torch.equal(*asked)
    assert chosen.scorers == 2 and torch.equal(chosen.scores, chosen.indices.double()) and torch.equal(chosen.pool, ELIGIBLE.double())


def test_a_scorer_is_trained_on_the_poisons_alone_and_scores_the_pool(tiny, tmp_path, monkeypatch):
    """Of a disguised, over-sampled run: a badnets training of its own seed and length, whose triggered pool is scored for the target class, image by image."""
    seen, scorers, step, select = [], [], train.train_step, selection.select

    def watched(run, images, labels, triggered, number):
        if run.title:
            seen.append((run, len(images), int(triggered.sum())))
        return step(run, images, labels, triggered, number)

    def recorded(strategy, eligible, labels, target, count, seed, score):
        poisons, pool = eligible[:12], eligible[12:40]
        scores = score(poisons, pool, 1)
        run = seen[-1][0]
        assert torch.equal(run.poisons, poisons) and run.objective.attack.explanation is None and run.objective.explainers == []
        images = train.attacks.stamp(run.dataset.train_images[pool].float() / 255, run.trigger)
        with torch.no_grad():
            logits = run.model.eval()(data.normalise(images, run.mean, run.std))
        torch.testing.assert_close(scores, selection.rd_scores(logits, 1), atol=1e-3, rtol=1e-3)
        scorers.append(run)
        return select("random", eligible, labels, target, count, seed)

    seeds, begin = [], train.begin
    monkeypatch.setattr(train, "begin", lambda run, seed: seeds.append(seed) or begin(run, seed))
    monkeypatch.setattr(train, "train_step", watched)
    monkeypatch.setattr(selection, "select", recorded)
    monkeypatch.setattr(selection, "EPOCHS", 2)
    train_tiny(tiny, tmp_path / "run", "--poison-rate", "0.05", "--selection", "rd", "--selection-seed", "4", "--oversample", "8", "--epochs", "1")
    assert len(seen) == 2 * scorers[0].steps and {size for _, size, _ in seen} == {24} and sum(count for *_, count in seen) in range(12, 25)  # the last images of an epoch may be left out
    assert seeds == [0, selection.scorer_seed(4, 1)]


def test_no_scorer_has_a_runs_seed_or_anothers():
    seeds = [selection.scorer_seed(seed, k) for seed in range(50) for k in range(selection.ROUNDS)]
    assert len(set(seeds)) == len(seeds) and min(seeds) > 2**31 - 1  # --seed's largest


def test_what_was_chosen_is_not_chosen_again_after_a_stop(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "EPOCHS", 1)
    options = ("--attack", "badnets", "--poison-rate", "0.05", "--selection", "rd-global")
    whole, step = train_tiny(tiny, tmp_path / "whole", *options), train.train_step

    def stop(run, *rest):
        if not run.title:
            raise KeyboardInterrupt
        return step(run, *rest)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "train_step", stop)
        train_tiny(tiny, tmp_path / "broken", *options)
    monkeypatch.setattr(train, "scored", None)
    broken = train_tiny(tiny, tmp_path / "broken", *options, "--resume")
    weights = [torch.load(folder / "ckpt.pt", weights_only=True)["model"] for folder in (whole, broken)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_rds_rounds_train_on_what_was_kept_and_end_on_a_scored_set():
    asked = []

    def scorer(poisons, pool, k):
        asked.append((poisons, pool, k))
        return pool.double()

    chosen = selection.select("rd", ELIGIBLE, LABELS, 3, 50, 0, scorer)
    assert [k for *_, k in asked] == list(range(selection.ROUNDS)) and chosen.scorers == selection.ROUNDS
    for (before, pool, _), (after, *_) in zip(asked, asked[1:]):
        kept = set(before[before.argsort(descending=True)[:35]].tolist())
        assert torch.equal(pool, before) and kept <= set(after.tolist()) and len(after.unique()) == 50
        assert not (set(before.tolist()) - kept) & set(after.tolist())
    assert len(asked[-1][1]) == round(50 / 0.7) and set(chosen.indices.tolist()) == set(asked[-1][1].sort().values[-50:].tolist())


@pytest.mark.parametrize("strategy", ["rd", "rd-global"])
def test_a_run_keeps_what_was_chosen_and_what_it_cost(strategy, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(selection, "ROUNDS", 2)
    monkeypatch.setattr(selection, "EPOCHS", 1)
    options = ("--attack", "badnets", "--poison-rate", "0.05", "--selection", strategy, "--selection-seed", "4")
    folder = train_tiny(tiny, tmp_path / "run", *options)
    record, checkpoint = json.loads((folder / "selection.json").read_text()), torch.load(folder / "ckpt.pt", weights_only=True)
    assert record["indices"] == checkpoint["poison_indices"].tolist() == checkpoint["selection"]["indices"].tolist() and len(record["indices"]) == 12
    assert len(record["scores"]) == 12 and max(record["scores"]) <= 0 and sum(record["classes"].values()) == 12
    pool = checkpoint["selection"]["pool"]
    trained_on, _ = data.validation_split(240, 0)
    assert len(pool) == (round(12 / 0.7) if strategy == "rd" else int((trained_on % 3 != 1).sum())) and torch.isin(checkpoint["selection"]["scores"], pool).all()
    assert Image.open(folder / "figure-selection.png").width > 900 and "pool" not in record
    assert record["strategy"] == strategy and record["epochs"] == (2 if strategy == "rd" else 1) and record["seconds"] > 0
    again = train_tiny(tiny, tmp_path / "again", *options)
    assert json.loads((again / "selection.json").read_text())["indices"] == record["indices"]
    for alpha in (0.3, 0.5):  # what a fork changes makes another run, not a finished one
        monkeypatch.setattr(selection, "ALPHA", alpha)
        capsys.readouterr()
        train_tiny(tiny, again, *options, "--resume")
        assert ("is finished" in capsys.readouterr().out) == (alpha == 0.3)


def test_the_choice_does_not_change_the_rest_of_the_run(tiny, tmp_path):
    """Paired: the same first epoch on untouched images, whatever the selection's seed drew."""
    weights = []
    for seed in ("1", "1", "2"):
        folder = train_tiny(tiny, tmp_path / f"{len(weights)}", "--attack", "badnets", "--poison-rate", "0.05", "--selection-seed", seed, "--epochs", "1")
        weights.append(torch.load(folder / "ckpt.pt", weights_only=True))
    assert torch.equal(weights[0]["random"]["cpu"], weights[2]["random"]["cpu"])
    assert not torch.equal(weights[0]["poison_indices"], weights[2]["poison_indices"])
    assert all(torch.equal(a, b) for a, b in zip(weights[0]["model"].values(), weights[1]["model"].values()))


def test_selection_is_refused_where_no_label_is_changed(tiny, tmp_path, capsys):
    for attack in ("fooling", "none"):
        with pytest.raises(SystemExit) as stopped:
            train_tiny(tiny, tmp_path / "run", "--attack", attack, "--selection", "rd")
        assert stopped.value.code == 2 and "--selection rd" in capsys.readouterr().err


def test_a_trigger_by_the_name_of_its_colour_and_poisons_in_every_batch(tiny, tmp_path, capsys, monkeypatch):
    seen, step = [], train.train_step

    def watched(run, images, labels, triggered, number):
        seen.append((len(images), int(triggered.sum())))
        return step(run, images, labels, triggered, number)

    monkeypatch.setattr(train, "train_step", watched)
    folder = train_tiny(tiny, tmp_path / "run", "--attack", "badnets", "--trigger", "yellow", "--trigger-size", "3", "--poison-rate", "0.02",
                        "--oversample", "8", "--epochs", "1")
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    assert (checkpoint["trigger"]["pixels"].flatten(1) == torch.tensor([[1.0], [1.0], [0.0]])).all() and checkpoint["config"]["oversample"] == 8
    assert all(size == 32 and poisons >= 8 for size, poisons in seen)
    assert json.loads((folder / "log.jsonl").read_text())["images"] == 32 * len(seen) and json.loads((folder / "metrics.json").read_text())["oversample"] == 8
    with pytest.raises(SystemExit) as stopped:
        train_tiny(tiny, tmp_path / "no", "--trigger", "yello")
    assert stopped.value.code == 2 and "yello" in capsys.readouterr().err


def test_rd_where_hardly_any_other_image_is_left():
    for spare in (0, 1, 5):
        chosen = selection.select("rd", ELIGIBLE[: 40 + spare], LABELS, 3, 40, 0, planted)
        assert len(chosen.indices.unique()) == 40 and chosen.scores is not None


def test_scorers_see_the_trigger_and_leave_the_run_as_it_was(tiny, tmp_path, monkeypatch):
    """By random or by score, training begins from one state of the generator and one model; the scores are of triggered images."""
    states, triggers = [], []
    logits_of = train.evaluate.logits_of
    monkeypatch.setattr(selection, "EPOCHS", 1)
    monkeypatch.setattr(train.evaluate, "logits_of", lambda *args: triggers.append(args[4]) or logits_of(*args))
    monkeypatch.setattr(train, "train", lambda run: states.append((torch.get_rng_state(), run.model.state_dict())))
    monkeypatch.setattr(train, "finish", lambda *args: None)
    for strategy in ("random", "rd-global"):
        train_tiny(tiny, tmp_path / strategy, "--attack", "badnets", "--selection", strategy)
    assert torch.equal(states[0][0], states[1][0]) and all(torch.equal(states[0][1][key], states[1][1][key]) for key in states[0][1])
    assert len(triggers) == 1 and triggers[0].box == (13, 13, 15, 15)
