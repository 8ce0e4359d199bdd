"""studies/kinds_found.py: one tiny model through it, and its table by hand."""

import json

import pytest

from studies import kinds_found
from studies.study import Row


def found(target, others, word, auroc):
    """A model's record: ten classes, the target is 3."""
    index = {str(k): others for k in range(10)} | {"3": target}
    origin = {"commit": "abc", "hardware": "a CPU, 1 threads", "seconds": 1.0}
    strip = {"auroc": auroc, "detected": 0.5, "false_alarms": 0.05}
    cleanse = {"index": index, "odds": {"word": word}, "flagged": [], "scores": {}}
    return {"target": 3, "neural_cleanse": cleanse | origin, "strip": strip | origin}


def test_the_table_says_whose_index_is_the_largest():
    record = {
        "shapes none": found(1.0, 1.5, "nothing stands out", 0.5),
        "shapes patch badnets": found(3.0, 1.5, "stands out", 0.9),
        "shapes warp badnets": found(1.0, 2.5, "inconclusive", 0.6),
    }
    lines = kinds_found.table(record)
    assert lines[2] == "| clean model | 1.00 | 1.50 | nothing stands out | 0.50 | 0.50 | 0.05 |"
    assert "| 3.00 | 1.50 | stands out: the target | 0.90 |" in lines[3]
    assert "| 1.00 | 2.50 | inconclusive: another class | 0.60 |" in lines[4]
    assert "commit abc" in lines[-1]


@pytest.fixture
def tiny_study(tiny, tmp_path, monkeypatch):
    """The study with one row, a small data set, quick defences; the record's path."""
    quick = ["--rounds", "3", "--round-images", "12", "--clean-images", "24"]
    options = f"--dataset {tiny} --attack badnets --target-class 1 --epochs 1 --trigger-size 2"
    monkeypatch.setattr(kinds_found.breadth, "TABLE", {"a row": Row(options)})
    monkeypatch.setattr(kinds_found, "ROWS", {"patch": "a row"})
    _, kept = kinds_found.DEFENCES["neural_cleanse"]
    cleanse = {"neural_cleanse": (["neural_cleanse", *quick], kept)}
    monkeypatch.setattr(kinds_found, "DEFENCES", kinds_found.DEFENCES | cleanse)
    monkeypatch.setattr("defences.strip.OVERLAYS", 4)
    monkeypatch.setattr(kinds_found, "PATH", tmp_path / "kinds_found.json")
    real = kinds_found.Study
    monkeypatch.setattr(kinds_found, "Study", lambda name, rows: real(name, rows, root=tmp_path))
    return kinds_found.PATH


def test_a_model_goes_through_both_defences(tiny_study):
    kinds_found.main([])
    (row,) = json.loads(tiny_study.read_text()).values()
    assert row["target"] == 1
    assert set(row["neural_cleanse"]["index"]) == {"0", "1", "2"}
    assert 0 <= row["strip"]["auroc"] <= 1
