"""The words of a verdict against counts by hand, and the table against the record."""

import json

import pytest
import torch
from conftest import ROOT
from planted import audit_of

import defences
import defend
import odds
from odds import DOUBT, LIMIT, Odds, odds_of

SEARCH = {"rounds": 200, "round_images": 64, "seed": 3}
TEN = [float(k) for k in range(1, 11)]


@pytest.mark.parametrize(
    "value, as_far, word, backdoored",
    [
        (10.5, 0, "stands out", True),
        (10.0, 1, "inconclusive", None),
        (8.5, 2, "inconclusive", None),
        (8.0, 3, "nothing stands out", False),
        (0.0, 10, "nothing stands out", False),
    ],
)
def test_a_word_says_how_many_clean_models_get_as_far(value, as_far, word, backdoored):
    found = odds_of("any", {}, "mine", value, TEN)
    assert (found.as_far, found.count) == (as_far, 10)
    assert (found.word, found.backdoored) == (word, backdoored)
    assert found.chance == pytest.approx((as_far + 1) / 11)


def test_of_few_clean_models_nothing_can_stand_out():
    assert odds_of("any", {}, "mine", 99.0, [1.0, 2.0]).word == "nothing stands out"
    assert odds_of("any", {}, "mine", 99.0, [1.0] * 3).word == "inconclusive"


def test_the_chance_is_right_where_clean_models_are_alike():
    """Of n + 1 exchangeable values each is as likely to be the largest."""
    for n in (9, 10, 30):
        as_far = [Odds(k, n, "").chance for k in range(n + 1)]
        assert sum(chance <= LIMIT for chance in as_far) / (n + 1) <= LIMIT
        assert sum(chance <= DOUBT for chance in as_far) / (n + 1) <= DOUBT


def test_it_says_which_models_they_are():
    assert odds_of("neural_cleanse", SEARCH, "mnist", 99.0).what == "clean models of mnist"
    assert (
        odds_of("neural_cleanse", SEARCH, "mnist", 99.0).sentence().startswith("none of 10 clean")
    )
    pooled = odds_of("neural_cleanse", SEARCH, "photos.npz", 99.0)
    assert pooled.count == 30
    assert "shapes" in pooled.what


def test_a_method_without_clean_models_has_no_odds():
    assert odds_of("strip", {}, "shapes", 1.0) is None


@pytest.mark.parametrize("other", [{"rounds": 9}, {"round_images": 12}, {"round_images": None}])
def test_other_options_have_no_odds(other):
    assert odds_of("neural_cleanse", SEARCH | other, "shapes", 9.0) is None


def test_a_longer_round_has_the_same_odds():
    longer = SEARCH | {"round_images": 128}
    assert odds_of("neural_cleanse", longer, "shapes", 2.2).word == "stands out"


@pytest.mark.parametrize("noise", [[2.0], [2.0, 6.0, 9.0]])
def test_some_of_several_levels_of_noise_are_other_options(noise):
    asked = {"noise": [2.0, 6.0], "feature_weights": None}
    assert odds_of("neuroninspect", asked, "shapes", 9.0) is not None
    assert odds_of("neuroninspect", asked | {"noise": noise}, "shapes", 9.0) is None


@pytest.mark.parametrize("method", ["neural_cleanse", "neuroninspect"])
def test_the_defaults_are_what_the_clean_models_were_measured_with(method):
    args = defend.parse([method, "ckpt.pt"])
    assert odds_of(method, vars(args), "shapes", 9.0) is not None


def test_the_table_is_the_records():
    zoo = json.loads((ROOT / "results" / "audits.json").read_text())["zoo"]
    for method, known in json.loads(odds.TABLE.read_text()).items():
        for data, values in known["models"].items():
            runs = zoo[data]["none"].values()
            assert values == [max(run[method]["index"].values()) for run in runs]


def test_every_class_that_stands_out_is_flagged(disguised):
    audit = audit_of(disguised, "neuroninspect")
    audit.calibration = TEN
    index = torch.tensor([11.0, 0.5, 10.5], dtype=torch.float64)
    verdict = defences.verdict_by_index(audit, index, {}, None)
    assert verdict.flagged == [0, 2]
    assert verdict.backdoored is True
    assert "'0', '2'" in defences.conclusion(audit, verdict)


def test_where_it_is_inconclusive_none_is_flagged(disguised):
    audit = audit_of(disguised, "neuroninspect")
    audit.calibration = TEN
    index = torch.tensor([9.0, 0.5, 8.5], dtype=torch.float64)
    verdict = defences.verdict_by_index(audit, index, {}, None)
    assert (verdict.flagged, verdict.backdoored) == ([], None)
