"""studies/criteria.py: a disguise is held to what a clean model shows, like compared with like."""

import json

import pytest
from conftest import ROOT

from studies import criteria
from studies.tables import Table

RUN = {
    "gradcam.trigger_mass": 0.3,
    "gradcam.trigger_mass_clean": 0.9,
    "gradcam.trigger_area": 0.2,
    "gradcam.floor_triggered.pearson": 0.4,
}
CLEAN = {
    "gradcam.trigger_mass": 0.1,
    "gradcam.trigger_mass_clean": 0.2,
    "gradcam.floor_triggered.pearson": 0.3,
}


def test_the_limit_on_the_trigger_is_the_clean_models_and_a_quarter_more():
    """1.25 x 0.2 + 0.2 / 4, whatever the attacked model's own untouched maps show."""
    assert criteria.mass_limit(RUN, CLEAN) == pytest.approx(0.3)


def test_the_limit_on_the_floor_is_the_clean_models_of_the_same_kind():
    assert criteria.floor_limit(RUN, CLEAN) == pytest.approx(0.35)


def test_a_clean_model_measured_beside_the_run_comes_first():
    """It was measured on the images on which the attack succeeded."""
    beside = {
        "clean_model.gradcam.trigger_mass_clean": 0.4,
        "clean_model.gradcam.floor_triggered.pearson": 0.5,
    }
    assert criteria.mass_limit(RUN | beside, CLEAN) == pytest.approx(0.55)
    assert criteria.floor_limit(RUN | beside, CLEAN) == pytest.approx(0.55)


def test_a_floor_between_untouched_maps_is_no_limit_to_a_triggered_one():
    beside = {"clean_model.gradcam.floor.pearson": 0.9}
    assert criteria.floor_limit(RUN | beside, {"gradcam.floor.pearson": 0.9}) is None


@pytest.mark.parametrize("explainer", ["gradcam", "gradient"])
@pytest.mark.parametrize(
    "run, clean, kept",
    [
        ({"floor": 0.34, "floor_triggered": 0.38}, {"floor": 0.3, "floor_triggered": -0.1}, True),
        ({"floor": 0.36, "floor_triggered": 0.3}, {"floor": 0.3, "floor_triggered": 0.9}, False),
        ({"floor": 0.3, "floor_triggered": 0.36}, {"floor": 0.3, "floor_triggered": 0.9}, False),
        ({"floor": 0.9, "floor_triggered": 0.3}, {"floor_triggered": 0.3}, True),
        ({"floor_triggered": 0.4}, {"floor": 0.9, "floor_triggered": 0.3}, False),
        ({"floor": 0.3, "floor_triggered": 0.3}, {}, None),
        ({}, {"floor": 0.3, "floor_triggered": 0.3}, False),
    ],
)
def test_maps_of_different_images_are_as_unlike_as_a_clean_models(run, clean, kept, explainer):
    """Floor with floor, and triggered maps with the model's own; else floor_triggered with it."""
    run = {f"{explainer}.{key}.pearson": value for key, value in run.items()}
    beside = {f"clean_model.{explainer}.{key}.pearson": value for key, value in clean.items()}
    assert criteria.keeps_floor(run | beside, None, explainer) is kept


def test_what_is_not_recorded_is_no_limit():
    assert criteria.mass_limit(RUN, None) is None
    assert criteria.floor_limit(RUN, None) is None


def test_a_trigger_that_touches_every_cell_has_no_limit():
    """Its area and its mass are null, and figures that are null are not in a record."""
    assert criteria.mass_limit({}, CLEAN) is None


def row(seeds, *runs):
    """A recorded row of these seeds and runs."""
    return {"seeds": seeds, "runs": list(runs), "summary": {}}


def test_runs_are_paired_by_seed_though_the_oldest_do_not_say_theirs():
    results = {"attack": row([1, 2], {"a": 1}, {"a": 2}), "clean": row([2, 3], {"b": 2}, {"b": 3})}
    pairs = criteria.with_clean_runs(results, "attack", "clean")
    assert pairs == [({"a": 1}, None), ({"a": 2}, {"b": 2})]


@pytest.mark.parametrize(
    "masses, clean, text",
    [
        ((0.29, 0.31), "clean", "1 of 2"),
        ((0.29, None), "clean", "1 of 2"),  # no image was explained: not met
        ((0.29, 0.31), None, "not recorded"),
    ],
)
def test_a_column_counts_the_runs_within_the_limit(masses, clean, text):
    runs = [RUN | {"gradcam.trigger_mass": mass} for mass in masses]
    runs = [{key: x for key, x in run.items() if x is not None} for run in runs]
    results = {"attack": row([0, 1], *runs), "clean": row([0, 1], CLEAN, CLEAN)}
    assert criteria.mass_within({"attack": clean})(results, "attack") == text


def test_a_tables_column_may_be_a_function(monkeypatch):
    monkeypatch.setattr("studies.tables.read", lambda path: {"a": row([0])})
    table = Table("any", {"x": "a", "y": "none such"}, {"column": lambda results, name: name * 2})
    assert table()[2:] == ["| x | 1 | aa |", "| y (not run) | 0 | |"]


# ---------------------------------------------------------------- the records keep two floors apart


def attacked_runs(study, clean_of):
    """(row, run, clean row's run of the same seed) of the attacked rows of a record."""
    results = json.loads((ROOT / "results" / f"{study}.json").read_text())
    triples = []
    for name in results:
        clean = clean_of(name)
        if clean != name:
            pairs = criteria.with_clean_runs(results, name, clean)
            triples += [(name, run, clean_run) for run, clean_run in pairs if clean_run]
    return triples


STUDIES = {
    "foundation": lambda name: "mnist clean" if "mnist" in name else "clean",
    "cifar10": lambda name: "cnn none" if name.startswith("cnn") else "none",
    "transfer": lambda name: f"{name.split()[0]} none",
    "efficient": lambda name: f"{name.split()[0]} none",
    "radiographs": lambda name: "multi clean" if name.startswith("multi") else "clean",
}
EXPLAINERS = ("gradcam", "kernelshap", "deepshap", "gradient")


@pytest.mark.parametrize("study", STUDIES)
def test_no_floor_between_untouched_maps_is_the_clean_rows_triggered_one(study):
    """On the same images that figure repeats to the bit: a name that says otherwise is wrong."""
    for name, run, clean_run in attacked_runs(study, STUDIES[study]):
        for explainer in EXPLAINERS:
            untouched = run.get(f"clean_model.{explainer}.floor.pearson")
            triggered = clean_run.get(f"{explainer}.floor_triggered.pearson")
            assert untouched is None or untouched != triggered, (name, explainer)


def test_the_clean_model_beside_a_run_repeats_the_clean_row_on_the_same_images():
    """To the bit on a CPU; a GPU adds in another order."""
    compared = 0
    for name, run, clean_run in attacked_runs("transfer", STUDIES["transfer"]):
        if run["gradcam.n"] != clean_run["gradcam.n"]:
            continue
        if run["hardware"] != clean_run["hardware"]:
            continue  # the clean model of this seed was trained again there
        for explainer in EXPLAINERS:
            beside = run[f"clean_model.{explainer}.floor_triggered.pearson"]
            row = clean_run[f"{explainer}.floor_triggered.pearson"]
            assert beside == pytest.approx(row, rel=1e-6), (name, explainer)
            compared += 1
    assert compared >= 4 * 8
