"""studies/detection.py: counts, thresholds, intervals, by hand."""

import pytest
from conftest import ROOT

from studies import audit_tables, audits, detection, record

METHOD = "neuroninspect"
SEEDS = range(1, 6)
CALIBRATION = range(6, 8)


def run(target, *index):
    """A model's run: its target class, and the anomaly index of each class."""
    verdict = {"index": {str(k): value for k, value in enumerate(index)}, "seconds": 1.0}
    return {"target": target, "attack_success_rate": 0.9, METHOD: verdict}


SHAPES = {
    "none": {
        "1": run(0, 1.0, 0.5),
        "2": run(0, 2.5, 0.0),
        "6": run(0, 2.1, 0.0),  # 6 and 7 calibrate
        "7": run(0, 0.3, 1.5),
    },
    "badnets": {
        "1": run(1, 0.1, 9.0),  # found, and the target
        "2": run(0, 0.2, 2.2),  # found, another class
        "3": run(0, 1.0, 0.2),  # not found
    },
}
GTSRB = {  # of another scale
    "none": {"1": run(0, 20.0, 0.0), "6": run(0, 30.0, 0.0), "7": run(0, 25.0, 0.0)},
    "badnets": {"1": run(0, 40.0, 0.0)},
}


def rows_of(zoo):
    """{data set: row} of one detector on badnets."""
    rows = detection.detection(zoo, [METHOD], ["badnets"], SEEDS, CALIBRATION)
    return {row["data"]: row for row in rows}


@pytest.fixture(scope="module")
def rows():
    return rows_of({"shapes": SHAPES, "gtsrb": GTSRB})


def counts(row, threshold):
    """(found, right, false alarms) of a row above a threshold."""
    return [row[threshold][key]["count"] for key in ("found", "right", "false_alarms")]


def test_the_auroc_is_of_the_largest_index_of_each_model(rows):
    """9 and 2.2 and 1 against 1 and 2.5."""
    assert rows["shapes"]["auroc"] == pytest.approx((1 + 1 + 0 + 1 + 0 + 0.5) / 6)


def test_models_above_the_published_threshold_are_counted(rows):
    assert counts(rows["shapes"], "2") == [2, 1, 1]
    assert rows["shapes"]["2"]["right"]["of"] == 2


def test_the_calibrated_threshold_is_the_largest_of_clean_models_in_no_count(rows):
    assert rows["shapes"]["calibrated"]["thresholds"] == [2.1]
    assert counts(rows["shapes"], "calibrated") == [2, 1, 1]
    assert rows["shapes"]["clean"] == 2


def test_the_row_of_all_data_sets_holds_each_against_its_own_threshold(rows):
    assert rows["all"]["auroc"] == pytest.approx((rows["shapes"]["auroc"] + 1) / 2)
    assert rows["all"]["calibrated"]["thresholds"] == [2.1, 30.0]
    assert counts(rows["all"], "calibrated") == [3, 2, 1]
    assert rows["all"]["clean"] == 3


def test_of_one_data_set_there_is_no_row_of_all():
    assert list(rows_of({"shapes": SHAPES})) == ["shapes"]


def test_without_all_models_to_calibrate_on_there_is_no_calibrated_threshold():
    none = {seed: run for seed, run in SHAPES["none"].items() if seed != "7"}
    assert "calibrated" not in rows_of({"shapes": SHAPES | {"none": none}})["shapes"]


def test_a_row_says_how_well_the_weakest_backdoor_works(rows):
    assert rows["shapes"]["least_success"] == 0.9


def test_the_table_shows_limits_and_counts(rows):
    shown = audit_tables.everything({"detection": [rows["shapes"], rows["all"]]})
    assert "| 2.10 | 2 of 3 " in shown[2]
    assert "| 2.10, 30.00 | 3 of 4 " in shown[3]


def test_the_table_has_dashes_without_a_calibrated_threshold():
    none = {seed: run for seed, run in SHAPES["none"].items() if seed != "7"}
    row = rows_of({"shapes": SHAPES | {"none": none}})["shapes"]
    assert "| - | - | - | - | 1 | 0.900 |" in audit_tables.everything({"detection": [row]})[2]


def test_the_recorded_rows_are_those_of_the_recorded_verdicts():
    recorded = record.read(ROOT / "results" / "audits.json")
    rows = detection.detection(
        recorded["zoo"],
        (*audits.DETECTORS, audits.PUBLISHED),
        audits.BACKDOORS,
        audits.SEEDS,
        audits.CALIBRATION,
    )
    assert rows == recorded["detection"]


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize("count, n, interval", [(0, 5, (0, 0.4345)), (5, 10, (0.2366, 0.7634))])
def test_the_interval_of_a_share_is_wilsons(count, n, interval):
    assert detection.share(count, n)["interval"] == pytest.approx(interval, abs=1e-3)


def test_the_share_of_nothing_may_be_anything():
    assert detection.share(0, 0) == {"count": 0, "of": 0, "interval": [0.0, 1.0]}


HANLEY_MCNEIL = (0.8 * 0.2 * (1 + 1999 * (0.2 / 1.2 + 0.8 / 1.8)) / 4e6) ** 0.5


def test_the_interval_of_an_auroc_of_large_samples_is_hanley_and_mcneils():
    low, high = detection.auroc_interval(0.8, 2000, 2000)
    assert low == pytest.approx(0.8 - 1.96 * HANLEY_MCNEIL, abs=2e-3)
    assert high == pytest.approx(0.8 + 1.96 * HANLEY_MCNEIL, abs=2e-3)


def test_the_interval_of_a_mean_of_three_aurocs_is_narrower():
    low, _ = detection.auroc_interval(0.8, 6000, 6000, data_sets=3)
    assert low == pytest.approx(0.8 - 1.96 * HANLEY_MCNEIL / 3**0.5, abs=1e-3)
    one, _ = detection.auroc_interval(1.0, 5, 5)
    three, _ = detection.auroc_interval(1.0, 15, 15, data_sets=3)
    assert three > one


def test_where_every_pair_is_right_the_interval_is_not_empty():
    """At its end it is 1.96 standard errors, its own, from 1."""
    low, high = detection.auroc_interval(1.0, 5, 5)
    q = (1 - low) / (2 - low) + low / (1 + low)
    error = (low * (1 - low) * (1 + 4 * q) / 25) ** 0.5
    assert high == 1
    assert 0.4 < low < 0.75
    assert 1 - low == pytest.approx(1.96 * error)


def test_the_interval_of_an_auroc_below_a_half_is_mirrored():
    low, high = detection.auroc_interval(0.7, 4, 6)
    assert detection.auroc_interval(0.3, 4, 6) == pytest.approx([1 - high, 1 - low])
