"""results/study.py: a study of tiny runs, its files read back."""
import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "results"))


def test_a_study_trains_measures_and_continues(tiny, tmp_path, monkeypatch):
    import study

    import attacks

    monkeypatch.setattr(study, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    options = f"--dataset {tiny} --model cnn --epochs 1 --batch-size 24 --target-class 1 --device cpu"
    table = {"none": (f"{options} --attack none", 2, {}),
             "a, b": (f"{options} --attack fooling", 1, {(attacks, "TOLERATED"): 1.0}),
             "kept": (f"{options} --attack fooling --reference {{runs}}/none-{{seed}}/ckpt.pt", 1, {})}
    runs = study.Study("tiny", table, clean=("none",))
    runs.run([])
    results = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert list(results) == list(table) and attacks.TOLERATED == 0.5 and results["none"]["seeds"] == [0, 1]
    assert results["a, b"]["constants"] == {"attacks.TOLERATED": 1.0} and "runs/tiny/none-SEED" in results["kept"]["command"]
    pair = [run["clean_accuracy"] for run in results["none"]["runs"]]
    assert results["none"]["summary"]["clean_accuracy"]["mean"] == pytest.approx(sum(pair) / 2)
    assert results["a, b"]["summary"]["clean_accuracy"]["sd"] is None and results["a, b"]["runs"][0]["images_per_second"] > 0
    assert "clean_model.gradcam.floor.pearson" in results["a, b"]["runs"][0] and "clean_model.gradcam.floor.pearson" in results["kept"]["runs"][0]
    lines = (tmp_path / "results" / "tiny.md").read_text().splitlines()
    assert len(lines) == 5 and lines[3].startswith("| a, b | 1 | ") and (tmp_path / "results" / "tiny-a_b.png").exists()
    trained = (runs.folder("none", 0) / "ckpt.pt").stat().st_mtime_ns
    runs.run(["none"])
    assert (runs.folder("none", 0) / "ckpt.pt").stat().st_mtime_ns == trained
