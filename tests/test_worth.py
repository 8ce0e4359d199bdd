"""studies/worth.py: its rows, one tiny model through all of it, and its tables by hand."""

import json

import pytest
from placing import DEVICE

from studies import worth, worth_tables
from studies.study import Row


def verdict(auroc=0.5, restored=0.0, success=1.0):
    """A verdict as the record keeps it."""
    figures = {"clean_accuracy": 0.9, "attack_success_rate": success}
    point = figures | {"share": 0.1, "restored_accuracy": restored}
    return {
        "before": figures | {"share": 0.0, "restored_accuracy": 0.0},
        "after": point,
        "curve": {key: f"{value:g}" for key, value in point.items()},
        "auroc": auroc,
        "detected": 0.25,
        "false_alarms": 0.05,
        "commit": "abc",
        "hardware": "a CPU, 1 threads",
    }


RECORD = {
    "shapes badnets": {
        "februus, gradcam": {"0": verdict(restored=0.9), "1": verdict(restored=0.8)},
        "strip": {"0": verdict(0.95), "1": verdict(0.93)},
    },
    "shapes gradcam": {
        "februus, gradcam": {"0": verdict(restored=0.1), "1": verdict(restored=0.2)},
        "strip": {"0": verdict(0.9), "1": verdict(0.9)},
    },
}


def test_a_curve_that_is_kept_has_the_points_that_were_measured():
    points = [{"share": share, "clean_accuracy": 0.9 - share} for share in (0.0, 0.075, 0.1)]
    points[1]["clean_accuracy"] = None
    kept = worth.kept({"curve": points, "scores": [1, 2]})
    assert kept == {"curve": {"share": "0 0.075 0.1", "clean_accuracy": "0.9 - 0.8"}}
    for point in points:
        found = worth_tables.at_share(kept, point["share"])
        assert found == pytest.approx(point, abs=1e-9)


def test_every_attack_is_on_every_data_set():
    assert len(worth.TABLE) == len(worth.ATTACKS) * len(worth.DATASETS)
    assert worth.TABLE["shapes badnets"] == Row("--attack badnets", 5)
    assert worth.TABLE["shapes all"].seeds == 1


def test_every_way_of_marking_is_a_defence():
    names = {name for name in worth.defences() if name.startswith("februus")}
    assert names == {f"februus, {marker}" for marker in worth_tables.MARKERS}


def test_a_disguise_takes_what_the_pairs_differ_by():
    pairs = {
        (pair["of"], pair["figure"]): pair for pair in worth_tables.comparisons(RECORD) if pair
    }
    restored = pairs["shapes badnets, februus, gradcam", "restored at a tenth"]
    assert restored["mean"] == pytest.approx(((0.9 - 0.1) + (0.8 - 0.2)) / 2)
    assert pairs["shapes badnets, strip", "AUROC"]["mean"] == pytest.approx(0.04)


def test_a_table_has_a_line_for_each_model_and_a_cell_for_each_marker():
    lines = worth_tables.restored_at_a_tenth(RECORD)
    assert len(lines) == 2 + 2
    assert lines[2].startswith("| `shapes`, `badnets` | 2 | 0.850 (0.071) | |")
    assert lines[2].count("|") == 3 + len(worth_tables.MARKERS)


def test_a_cell_says_on_how_many_models_it_rests_where_its_row_has_more():
    three = {str(seed): verdict(restored=1.0) for seed in range(3)}
    record = {
        "shapes badnets": {"februus, gradcam": three, "februus, kernelshap": {"0": verdict()}}
    }
    (row,) = worth_tables.restored(record)[2:]
    cells = [text.strip() for text in row.split("|")]
    assert cells[1:4] == ["`shapes`, `badnets`", "3", "1.000 (0.000)"]
    assert "0.000, n = 1" in cells


def test_the_detectors_table_leaves_empty_what_was_not_run():
    lines = worth_tables.detectors(RECORD)
    assert "| 0.940 (0.014) | |" in lines[2]


def test_one_model_goes_through_every_defence(tiny, tmp_path, monkeypatch):
    options = f"--dataset {tiny} --epochs 1 --batch-size 24 --target-class 1 --device {DEVICE}"
    monkeypatch.setattr(worth, "TABLE", {"tiny badnets": Row(f"{options} --attack badnets")})
    monkeypatch.setattr(worth, "DATASETS", {"tiny": (options, 1)})
    monkeypatch.setattr(worth, "EXPLAINERS", ("gradcam",))
    monkeypatch.setattr(worth, "UNIONS", (("gradcam", "gradient"),))
    monkeypatch.setattr(worth, "AGAINST", ("gradient",))
    monkeypatch.setattr(worth, "IMAGES", ("--clean-images", "24", "--test-images", "12"))
    monkeypatch.setattr(worth, "PATH", tmp_path / "results" / "worth.json")
    monkeypatch.setattr(worth, "DATA", tiny.parent)
    monkeypatch.setattr("defences.sentinet.OVERLAYS", 8)
    monkeypatch.setattr("defences.strip.OVERLAYS", 8)
    (tmp_path / "results").mkdir()
    study = worth.Study("worth", worth.TABLE, tmp_path)
    worth.measure(study, "tiny badnets", 0)
    worth.gather(study)
    record = json.loads(worth.PATH.read_text())["tiny badnets"]
    assert set(record) == set(worth.defences())
    assert {"februus, gradcam or gradient", "februus, gradient against", "strip"} <= set(record)
    assert record["februus, gradcam"]["0"]["before"]["share"] == 0
    again = json.loads(worth.PATH.read_text())
    worth.measure(study, "tiny badnets", 0)  # nothing is asked twice
    worth.gather(study)
    assert json.loads(worth.PATH.read_text()) == again
