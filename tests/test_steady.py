"""studies/steady.py: its sections on a model of seconds, and its tables by hand."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, train_tiny

import odds
from defences import anomaly_index, neural_cleanse, neuroninspect
from studies import steady, steady_tables
from studies.steady_tables import STATISTICS, STATISTICS_SHOWN

# ---------------------------------------------------------------- statistics


def test_now_is_the_index_of_neural_cleanse():
    norms = torch.tensor([12.0, 24, 25, 31, 50], dtype=torch.float64)
    every = torch.ones(5, dtype=torch.bool)
    torch.testing.assert_close(STATISTICS["now"](norms), neural_cleanse.mask_index(norms, every))


@pytest.mark.parametrize("statistic", STATISTICS.values(), ids=STATISTICS)
def test_no_statistic_asks_for_more_than_shares_of_the_median(statistic):
    norms = torch.tensor([12.0, 24, 25, 31, 50], dtype=torch.float64)
    torch.testing.assert_close(statistic(norms), statistic(norms / 25))
    assert statistic(norms).argmax() == 0


def test_a_class_is_measured_beside_the_same_class_of_clean_models():
    """Columns of mean 1 and deviation 1, and of mean 0 and deviation 2."""
    known = torch.tensor([[0.0, 2], [1, 0], [2, -2]], dtype=torch.float64)
    values = torch.tensor([[4.0, 4], [1, 1]], dtype=torch.float64)
    assert steady_tables.largest_beside(values, known).tolist() == [3, 0.5]


def test_of_the_recorded_models_the_statistic_now_is_the_recorded_index():
    recorded = json.loads((ROOT / "results" / "audits.json").read_text())["zoo"]["gtsrb"]
    for kind, runs in steady_tables.recorded("gtsrb").items():
        for seed, run in runs.items():
            index = torch.tensor(list(recorded[kind][seed]["neural_cleanse"]["index"].values()))
            torch.testing.assert_close(
                STATISTICS["now"](steady_tables.norms_of(run)), index.double(), rtol=1e-6, atol=0
            )


def test_the_published_index_of_the_recorded_models_is_the_recorded_one():
    """From shares of the median, which the record has, as from the norms, which it does not."""
    recorded = json.loads((ROOT / "results" / "audits.json").read_text())["zoo"]["shapes"]
    for kind, runs in steady_tables.recorded().items():
        for seed, run in runs.items():
            index = recorded[kind][seed]["neural_cleanse, published index"]["index"]
            expected = torch.tensor([index[str(k)] for k in range(10)], dtype=torch.float64)
            torch.testing.assert_close(
                anomaly_index(steady_tables.norms_of(run)), expected, rtol=1e-6, atol=1e-9
            )


def test_the_limit_is_the_largest_of_the_table_of_clean_models():
    clean = json.loads(odds.TABLE.read_text())["neural_cleanse"]["models"]["shapes"]
    assert steady_tables.limit_of(STATISTICS["now"]) == pytest.approx(max(clean))


# ---------------------------------------------------------------- tables by hand


def run_of(norms, target=0):
    """A run of the record."""
    return {
        "|mask|_1": norms,
        "qualified": [1.0] * len(norms),
        "target": target,
        "attack_success_rate": 0.99,
        "hardware": "a CPU, 1 threads",
        "commit": "abc",
    }


SMALL, LARGE = [10.0, 40, 41, 43], [30.0, 40, 41, 43]  # indices 4.05 and 1.35
RECORD = {
    "repeat": {
        "disguised": {
            "64": {
                "0": run_of([40.0, 41, 43, 10], 3),
                "1": run_of([40.0, 41, 43, 12], 3),
            },
        },
        "clean": {"64": {"0": run_of(LARGE), "1": run_of([40.0, 30, 41, 43])}},
    },
    "zoo": {
        "badnets": {"1": run_of(SMALL), "2": run_of(SMALL, target=2)},
        "none": {"3": run_of(LARGE), "4": run_of(SMALL)},
    },
}


def cells(line):
    """The cells of a line of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_of_the_same_model_it_is_counted_how_often_it_is_above_the_limit():
    disguised, clean = map(cells, steady_tables.repeat(RECORD)[2:4])
    assert (disguised[2:4], disguised[-2:]) == (["2", "2"], ["3.38 to 4.05", "2"])
    assert (clean[2:4], clean[-2:]) == (["2", ""], ["1.35 to 1.35", "0"])


def test_masks_by_one_beginning_and_by_all_are_in_order_of_size():
    trials = {"0": {"1": 17.84, "2": 12.0}, "1": {"1": 12.3, "2": 12.3}}
    lines = steady_tables.beginnings({"beginnings": {"64": trials}})
    assert cells(lines[2]) == ["64", "1", "12.3, 17.8"]
    assert cells(lines[3]) == ["64", "2", "12.0, 12.3"]


def test_the_halves_of_the_recorded_models_share_none():
    kinds = steady_tables.recorded()
    odd, even = steady_tables.of_seeds(kinds, 1), steady_tables.of_seeds(kinds, 0)
    for kind, runs in kinds.items():
        assert sorted([*odd[kind], *even[kind]], key=int) == list(runs)
        assert not odd[kind].keys() & even[kind].keys()


def test_of_the_new_models_targets_and_false_alarms_are_counted():
    lines = steady_tables.zoo(RECORD)
    (now,) = [cells(line) for line in lines if line.startswith(f"| {STATISTICS_SHOWN['now']}")]
    # Both are above the limit, one with its target first; a clean one is, too. Of four pairs, two
    # are in order, and two are equal.
    assert now[1:4] == ["badnets", "0.75", "1 of 2"]
    assert now[5:] == ["1 of 2", "1", "1 of 2"]
    assert lines[-1].startswith("*the backdoors' success is 0.990 or more")


def test_a_class_that_no_patch_reached_is_no_norm():
    with pytest.raises(ValueError, match="not reached"):
        steady_tables.norms_of(run_of(SMALL) | {"qualified": [1.0, 1.0, 0.0, 1.0]})


# ---------------------------------------------------------------- the sections


@pytest.fixture(scope="module")
def backdoored(tiny, tmp_path_factory):
    """The checkpoint of a badnets run on the small data set."""
    folder = tmp_path_factory.mktemp("steady") / "run"
    return train_tiny(tiny, folder, "--attack", "badnets") / "ckpt.pt"


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The record's path, and the options of every search; verdicts are made up."""
    options = []

    def audited(checkpoint, *words):
        options.append(words)
        scores = {"|mask|_1": [1.23456, 2.0], "qualified": [1.0, 1.0]}
        return {"scores": scores, "seconds": 1.0, "commit": "abc"}

    monkeypatch.setattr(steady, "PATH", tmp_path / "steady.json")

    monkeypatch.setattr(steady, "audited", audited)
    monkeypatch.setattr(steady, "train", SimpleNamespace(main=lambda argv: None))
    monkeypatch.setattr(steady, "features", lambda checkpoint: {"first": []})
    return tmp_path / "steady.json", options


def test_both_models_are_searched_under_every_seed_and_round(asked):
    path, options = asked
    steady.main(["repeat"])
    kept = json.loads(path.read_text())["repeat"]
    assert len(options) == len(set(options)) * 2 == 2 * 10 * 2
    assert list(kept) == list(steady.TWICE)
    assert list(kept["clean"]) == ["64", "128"]
    assert kept["clean"]["128"]["19"]["|mask|_1"] == [1.2346, 2.0]


def test_of_all_beginnings_the_targets_mask_is_no_larger(backdoored, monkeypatch):
    search = neural_cleanse.neural_cleanse

    def short_search(*args, **options):
        return search(*args, **options | {"rounds": 6})

    monkeypatch.setattr(neural_cleanse, "SUCCESS", 0.2)
    monkeypatch.setattr(neural_cleanse, "neural_cleanse", short_search)
    monkeypatch.setattr(steady, "TARGET", 1)
    audit = steady.audit_of(backdoored, "neural_cleanse", "--round-images", "16")
    found = steady.masks_of_target(audit)
    assert list(found) == [str(k + 1) for k in range(neural_cleanse.RESTARTS - 1)]
    norms = list(found.values())
    assert all(later <= 1.001 * earlier for earlier, later in zip(norms, norms[1:]))
    assert norms[-1] > 0


def test_every_new_model_is_kept_with_its_target(asked, backdoored, monkeypatch):
    path, _ = asked
    monkeypatch.setattr(steady, "zoo_model", lambda *which: backdoored)
    steady.main(["zoo"])
    kept = json.loads(path.read_text())["zoo"]
    assert [len(kept[kind]) for kind in steady.ZOO] == [6, 6, 12]
    run = kept["badnets"]["111"]
    assert run["target"] == (3 * 111 + 2) % 10
    assert {"clean_accuracy", "attack_success_rate", "seconds", "commit"} <= run.keys()


def test_both_draws_of_images_are_asked_and_both_together(backdoored, monkeypatch):
    monkeypatch.setattr(steady, "DRAW", 6)
    monkeypatch.setattr(neuroninspect, "SAMPLES", 1)
    features = {name: torch.tensor(part) for name, part in steady.features(backdoored).items()}
    assert list(features) == ["first", "second", "both"]
    assert {tuple(part.shape) for part in features.values()} == {(2, 3, 3)}
    assert not torch.equal(features["first"], features["second"])


def test_noise_is_above_the_published_limit_more_often_in_more_classes(monkeypatch):
    monkeypatch.setattr(steady, "MODELS_OF_NOISE", 100)
    few, many = steady.of_noise(10), steady.of_noise(43)
    assert 0.5 < (few > 2).double().mean() < (many > 2).double().mean()


def test_no_seed_is_one_of_the_other_zoos():
    seeds = [seed for part in steady.ZOO.values() for seed in part]
    assert len(seeds) == len(set(seeds)) == 24
    assert min(seeds) > 103


def test_a_section_that_is_none_is_refused(asked):
    with pytest.raises(SystemExit):
        steady.main(["nothing"])
    assert asked[1] == []
