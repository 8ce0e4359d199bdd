"""bench.py's command line, on as little as it takes."""
import json

import pytest

import bench


def test_every_rate_has_its_floor_and_a_ratio_to_it(monkeypatch, capsys):
    monkeypatch.setattr(bench, "PATCHES", 2)
    monkeypatch.setattr(bench, "COALITIONS", 14)
    bench.main(["--batch-size", "8", "--turns", "1", "--device", "cpu", "--json"])
    result = json.loads(capsys.readouterr().out)
    rates = result["rates"]
    assert {"forward", "gradcam", "gradient", "deepshap, 1 reference", "kernelshap, 4 patches, 14 coalitions", "step: plain cross-entropy",
            "step: full disguise, gradcam", "step: full disguise, gradcam+kernelshap+deepshap"} <= rates.keys()
    for row in rates.values():
        assert row["ratio"] == pytest.approx(row["images_per_second"] / rates[row["of"]]["images_per_second"])
    assert rates["forward"]["ratio"] == rates["step: plain cross-entropy"]["ratio"] == 1 and result["device"] == "cpu"
    assert rates["kernelshap, 4 patches, 14 coalitions: ours in bf16"]["of"] == "kernelshap, 4 patches, 14 coalitions"
    assert all(value < 1e-6 for value in result["agreement"].values())
    assert 0 < result["kernelshap_moves"]["bf16"] < 0.2 and result["kernelshap_moves"]["other coalitions"] < 1e-5  # 14 of 2x2 patches are all there are


def test_the_slowest_takes_its_turn_with_the_others():
    taken = []
    seconds = bench.time_in_turns({"a": lambda: taken.append("a"), "b": lambda: taken.append("b")}, 2, bench.torch.device("cpu"))
    assert taken == ["a", "b"] * 3 and min(seconds.values()) >= 0


def test_a_model_it_has_no_images_for_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--model", "vgg16"])
    assert stopped.value.code == 2 and "vgg16" in capsys.readouterr().err
