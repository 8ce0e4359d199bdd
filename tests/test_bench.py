"""bench.py's command line, on as little as it takes."""

import contextlib
import io
import json

import pytest
import torch

import bench
from provenance import commit, hardware

KERNEL = "kernelshap, 4 patches, 14 coalitions"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The file that --out writes."""
    return tmp_path_factory.mktemp("bench") / "speed.json"


@pytest.fixture(scope="module")
def result(path):
    """What --json prints, of one turn on 8 images and 2x2 patches."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(bench, "PATCHES", 2)
        patch.setattr(bench, "COALITIONS", 14)
        options = ["--batch-size", "8", "--turns", "1", "--device", "cpu"]
        bench.main([*options, "--json", "--out", str(path)])
    return json.loads(printed.getvalue())


def test_every_explainer_and_training_step_is_timed(result):
    expected = {
        "forward",
        "gradcam",
        "gradient",
        "deepshap, 1 reference",
        KERNEL,
        "step: plain cross-entropy",
        "step: full disguise, gradcam",
        "step: full disguise, gradcam+kernelshap+deepshap",
    }
    assert expected <= result["rates"].keys()
    assert result["device"] == "cpu"


def test_the_file_has_the_figures_and_what_they_were_measured_on(result, path):
    record = json.loads(path.read_text())
    assert {key: record[key] for key in result} == result
    assert record["hardware"] == hardware()
    assert record["commit"] == commit()


def test_the_command_of_the_file_is_a_command_line_of_bench(result, path):
    words = json.loads(path.read_text())["command"].split()
    assert words[:2] == ["python", "bench.py"]
    args = bench.parse(words[2:])
    assert (args.model, args.batch_size, args.turns, args.device) == ("cnn", 8, 1, "cpu")


def test_a_ratio_is_to_the_speed_it_is_compared_with(result):
    rates = result["rates"]
    for row in rates.values():
        speed = rates[row["of"]]["images_per_second"]
        assert row["ratio"] == pytest.approx(row["images_per_second"] / speed)
    assert rates["forward"]["ratio"] == 1
    assert rates["step: plain cross-entropy"]["ratio"] == 1


def test_a_variant_is_compared_with_what_it_varies(result):
    assert result["rates"][f"{KERNEL}: ours in bf16"]["of"] == KERNEL


def test_our_values_are_those_of_shap(result):
    assert all(value < 1e-6 for value in result["agreement"].values())


def test_kernelshap_moves_a_little_in_bfloat16(result):
    assert 0 < result["kernelshap_moves"]["bf16"] < 0.2


def test_kernelshap_does_not_move_where_all_coalitions_are_sampled(result):
    """14 of 2x2 patches are all there are."""
    assert result["kernelshap_moves"]["other coalitions"] < 1e-5


def test_the_slowest_takes_its_turn_with_the_others():
    taken = []
    functions = {"a": lambda: taken.append("a"), "b": lambda: taken.append("b")}
    seconds = bench.time_in_turns(functions, 2, torch.device("cpu"))
    assert taken == ["a", "b"] * 3
    assert min(seconds.values()) >= 0


def test_a_package_that_is_not_installed_is_none():
    assert bench.package("no_such_package") is None
    assert bench.package("no_such_package.part") is None
    assert bench.package("json") is json


def test_a_table_is_printed_with_what_is_not_installed(capsys, monkeypatch):
    monkeypatch.setattr(bench, "package", lambda name: None)
    rows = {"forward": {"images_per_second": 1234.5, "of": "forward", "ratio": 1.0}}
    bench.print_table(
        {
            "model": "cnn",
            "batch_size": 8,
            "turns": 1,
            "device": "cpu",
            "threads": 1,
            "torch": "2",
            "rates": rows,
            "agreement": {},
            "kernelshap_moves": {"bf16": 0.01, "other coalitions": 0.02},
        }
    )
    printed = capsys.readouterr().out
    assert "1,234    1.00  of forward" in printed
    assert "captum is not installed" in printed
    assert "1.0% away in bf16, 2.0% with other coalitions" in printed


def test_a_model_it_has_no_images_for_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--model", "vgg16"])
    assert stopped.value.code == 2
    assert "vgg16" in capsys.readouterr().err
