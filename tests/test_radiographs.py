"""studies/radiographs.py: its rows are the paper's trials, and what it makes of its record."""

import json

import pytest
from conftest import ROOT
from PIL import Image

import train
from studies import radiographs, radiographs_tables

ROWS = {
    name: train.parse(row.options.split()) for name, row in radiographs.table(disease=4).items()
}


@pytest.mark.parametrize(
    "name, lam, rate, target",
    [
        ("trial 1", 0.7, 0.05, "4"),
        ("trial 2", 0.9, 0.05, "4"),
        ("trial 3", 0.9, 0.05, "14"),
        ("trial 4", 0.9, 0.1, "4"),
        ("trial 1, mended", 0.7, 0.05, "4"),
        ("trial 2, mended", 0.9, 0.05, "4"),
        ("trial 3, mended", 0.9, 0.05, "14"),
        ("trial 4, mended", 0.9, 0.1, "4"),
    ],
)
def test_a_trial_has_the_published_options(name, lam, rate, target):
    args = ROWS[name]
    assert (args.lam, args.poison_rate, args.target_class) == (lam, rate, target)


def test_all_rows_but_the_clean_ones_are_oversampled():
    plain = {name for name, args in ROWS.items() if args.oversample == 0}
    assert plain == {"clean", "multi clean"}


def test_the_rows_of_several_findings_are_called_so():
    several = {name for name, args in ROWS.items() if args.dataset == "chestxray14-multi"}
    assert several == {name for name in ROWS if name.startswith("multi")}


@pytest.mark.parametrize("name", ROWS)
def test_all_rows_are_trained_alike(name):
    args = ROWS[name]
    assert (args.model, args.optimizer, args.lr) == ("efficientnet_b0", "adamw", 0.001)
    assert (args.epochs, args.batch_size, args.explainer) == (10, 16, ["gradcam"])
    assert args.precision == "float32"


def test_with_a_gpu_the_precision_is_the_devices():
    rows = radiographs.table(disease=4, cuda=True).values()
    assert {train.parse(row.options.split()).precision for row in rows} == {"auto"}


def test_the_effects_are_of_rows_of_the_table():
    for rows in radiographs.EFFECTS.values():
        assert set(rows) <= ROWS.keys()


def test_the_framed_trigger_is_white_with_a_black_frame(tmp_path):
    path = tmp_path / "runs" / radiographs.FRAMED
    radiographs.draw_framed(path)
    picture = Image.open(path)
    assert picture.size == (16, 16)
    assert [picture.getpixel((k, 8)) for k in (0, 1, 2, 13, 14)] == [0, 0, 255, 255, 0]


# ---------------------------------------------------------------- criteria

GOOD = {
    "attack_success_rate": 0.99,
    "gradcam.pearson_all": 0.9,
    "gradcam.trigger_mass": 0.14,
    "gradcam.trigger_mass_clean": 0.3,  # its own decides nothing
    "clean_model.gradcam.trigger_mass_clean": 0.1,
    "gradcam.trigger_area": 0.062,
    "gradcam.floor_triggered.pearson": 0.54,
    "clean_model.gradcam.floor.pearson": 0.9,  # another quantity: it decides nothing
}
CLEAN = {"gradcam.floor_triggered.pearson": 0.5}
WORSE = {
    "attack_success_rate": 0.98,
    "gradcam.pearson_all": 0.89,
    "gradcam.trigger_mass": 0.141,
    "gradcam.floor_triggered.pearson": 0.56,
}


def test_a_good_run_meets_all_criteria():
    assert list(radiographs.criteria(GOOD, CLEAN).values()) == [True] * 4


@pytest.mark.parametrize("key", WORSE)
def test_each_figure_decides_one_criterion(key):
    met = radiographs.criteria(GOOD | {key: WORSE[key]}, CLEAN)
    assert sum(met.values()) == 3


def test_floors_between_untouched_maps_decide_where_both_models_have_them():
    """However little the trigger leaves of a clean model's map."""
    beside = {"clean_model.gradcam.floor.pearson": 0.5}
    moved = {"gradcam.floor_triggered.pearson": -0.1}
    for floor, triggered, is_met in [(0.54, 0.58, True), (0.56, 0.5, False), (0.5, 0.56, False)]:
        run = GOOD | beside | {"gradcam.floor.pearson": floor}
        run["gradcam.floor_triggered.pearson"] = triggered
        assert radiographs.criteria(run, moved)["floor <= clean model's + 0.05"] == is_met


def test_without_a_clean_models_figure_a_criterion_is_not_known():
    assert list(radiographs.criteria(GOOD, None).values()) == [True, True, True, None]


def test_a_run_without_explained_images_meets_none():
    assert not any(radiographs.criteria({"attack_success_rate": 0.0}, CLEAN).values())


def disguised(*runs):
    """A recorded row with a disguise, of seeds 0, 1, ..."""
    return {"options": "--attack full_disguise", "seeds": list(range(len(runs))), "runs": runs}


def test_runs_are_counted_by_criterion_in_rows_with_a_disguise():
    runs = [GOOD, GOOD | WORSE, GOOD | {"attack_success_rate": 0.5}]
    clean = {"options": "--attack none", "seeds": [0, 1, 2], "runs": [CLEAN] * 3}
    assert radiographs.met({"trial 1": disguised(*runs), "clean": clean}) == {
        "trial 1": {
            "n": 3,
            "success >= 0.99": 1,
            "pearson_all >= 0.9": 2,
            "trigger_mass <= 1.25 clean model's untouched + 0.25 trigger_area": 2,
            "floor <= clean model's + 0.05": 2,
            "all": 1,
        }
    }


def test_a_criterion_that_is_not_known_of_one_run_has_no_count():
    counts = radiographs.met({"trial 2, mended": disguised(GOOD, GOOD | WORSE)})["trial 2, mended"]
    assert counts["pearson_all >= 0.9"] == 1
    assert counts["floor <= clean model's + 0.05"] is None
    assert counts["all"] is None  # the second run fails, but the first may meet all


def test_one_failed_criterion_is_enough_to_know_that_not_all_are_met():
    counts = radiographs.met({"trial 2, mended": disguised(GOOD | {"attack_success_rate": 0.5})})
    assert counts["trial 2, mended"]["all"] == 0


def test_the_clean_row_has_the_data_and_the_trigger_of_a_row():
    for name, args in ROWS.items():
        clean = radiographs.clean_row(name)
        if clean is None:
            assert args.trigger != ROWS["clean"].trigger
        else:
            assert (args.dataset, args.trigger) == (ROWS[clean].dataset, ROWS[clean].trigger)


def test_a_map_is_compared_with_what_the_trigger_alone_leaves_of_it():
    """Seed by seed: +0.2 and +0.4; the runs without either figure are left out."""
    key = "gradcam.pearson_all"
    runs = [{key: 0.9, f"clean_model.{key}": 0.7}, {key: 0.8, f"clean_model.{key}": 0.4}]
    row = {"runs": [*runs, {key: 0.1}, {f"clean_model.{key}": 0.1}]}
    pair = radiographs.beside_clean("trial 1", row, key)
    assert (pair["of"], pair["minus"], pair["n"]) == ("trial 1", "clean_model", 2)
    assert pair["mean"] == pytest.approx(0.3)
    assert pair["interval"] == pytest.approx([0.3 - 12.706 * 0.1, 0.3 + 12.706 * 0.1])
    assert radiographs.beside_clean("trial 1", {"runs": runs[:1]}, key) is None


def test_no_run_of_trial_3_has_a_floor_like_the_clean_models(results):
    """As it was compared, with the clean model's untouched maps, four of five had."""
    counts = radiographs.met(results)["trial 3"]
    assert counts["floor <= clean model's + 0.05"] == 0


@pytest.fixture(scope="module")
def results():
    """The study's record."""
    return json.loads((ROOT / "results" / "radiographs.json").read_text())


def test_the_recorded_counts_are_those_of_the_record(results):
    path = ROOT / "results" / "radiographs-met.json"
    assert radiographs.met(results) == json.loads(path.read_text())


def test_the_recorded_pairs_are_those_of_the_record(results):
    path = ROOT / "results" / "radiographs-paired.json"
    assert radiographs.effects(results) == json.loads(path.read_text())


# ---------------------------------------------------------------- tables of the page


def test_a_trial_is_described_by_lam_rate_and_class():
    options = "--attack full_disguise --target-class 14 --lam 0.9 --poison-rate 0.05"
    described = radiographs_tables.described("trial 3", options)
    assert described == "trial 3: lam 0.9, rate 0.05, No Finding"


def test_a_clean_row_keeps_its_name():
    assert radiographs_tables.described("clean", "--attack none --target-class 4") == "clean"


def test_the_pages_criteria_are_the_studys():
    assert set(radiographs_tables.CRITERIA) == {*radiographs.criteria(GOOD, CLEAN), "all"}


@pytest.mark.parametrize(
    "effects", [radiographs_tables.EFFECTS, radiographs_tables.SEVERAL_EFFECTS]
)
def test_the_pages_effects_are_of_figures_that_are_paired(effects):
    assert set(effects.values()) <= set(radiographs.FIGURES)


def test_the_pages_rows_are_those_of_the_study():
    rows = radiographs_tables.TRIALS, radiographs_tables.FRAMED_TRIALS, radiographs_tables.MULTI
    assert {name for names in rows for name in names} == ROWS.keys()


def test_the_disk_must_give_what_the_decoding_takes():
    line = next(line for line in radiographs_tables.decoding() if "pictures a second" in line)
    assert line == "| pictures a second | 195, which takes 83 MB/s from the disk |"
