"""studies/speed.py: its record, and the tables of the page."""

import json

import pytest
import torch

import bench
import provenance
from studies import speed

RECORD = {
    "model": "cnn",
    "batch_size": 64,
    "turns": 5,
    "training_precision": "float32",
    "torch": "2",
    "hardware": "a computer, 1 threads",
    "commit": "abc",
    "rates": {
        "forward": {"images_per_second": 1234.5, "of": "forward", "ratio": 1.0},
        "deepshap": {"images_per_second": 4.32, "of": "forward", "ratio": 0.25},
    },
    "agreement": {"deepshap": 1.2e-15},
    "kernelshap_moves": {"bf16": 0.037, "other coalitions": 0.16},
}


def test_what_is_compared_with_nothing_has_its_speed_alone():
    assert speed.rates(RECORD)[2] == "| forward | 1,234 | | | |"


def test_a_quarter_of_the_speed_is_four_times_the_time():
    assert speed.rates(RECORD)[3] == "| deepshap | 4.32 | forward | 0.25 | 4.00 |"


@pytest.mark.parametrize(
    "value, text", [(1771.2, "1,771"), (617.4, "617"), (1.64, "1.64"), (0.00162, "0.0016")]
)
def test_a_number_is_shown_without_an_exponent(value, text):
    assert speed.readable(value) == text


def test_the_note_says_what_was_measured_on_what():
    assert speed.rates(RECORD)[-1] == (
        "*cnn, 64 images of 32 px, training in float32, median of 5 turns, torch 2; "
        "a computer, 1 thread; commit abc.*"
    )


def test_differences_are_shown_with_what_is_compared():
    lines = speed.agreement(RECORD)
    assert lines[2].startswith("| DeepSHAP, ours and shap's | 1e-15 |")
    assert lines[3].startswith("| KernelSHAP, in bfloat16 and in float32 | 3.7% |")


def test_the_study_writes_what_bench_returns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    found = RECORD | {"device": "cpu", "threads": 1}
    monkeypatch.setattr(bench, "bench", lambda *options: found)
    speed.main(["cnn", "resnet18"])
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["rates"] == RECORD["rates"]
    assert record["command"].startswith(
        "python bench.py --device cpu --precision float32 --model cnn"
    )
    record = json.loads((tmp_path / "speed-resnet18.json").read_text())
    assert record["command"].startswith("python bench.py steps --device cpu")
    assert "--model resnet18" in record["command"]
    assert "deepshap" in capsys.readouterr().out


def test_the_study_is_of_the_cpu_where_there_is_a_gpu_too(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices, found = [], RECORD | {"device": "cpu", "threads": 1}
    del found["hardware"]
    monkeypatch.setattr(bench, "bench", lambda given, *_: devices.append(given.device) or found)
    speed.main(["cnn"])
    assert devices == [torch.device("cpu")]
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["hardware"].startswith(provenance.processor())


def test_all_records_are_command_lines_of_bench():
    for words in speed.RECORDS.values():
        bench.parse(words)


def test_the_note_says_by_which_clock():
    assert (
        "torch 2, seconds that the process computed;" in speed.rates(RECORD | {"clock": "cpu"})[-1]
    )


def of_part(name, figures):
    """RECORD with a part of bench.py's in it."""
    return RECORD | {"parts": {name: figures}}


KERNELSHAP = {
    "patches": 16,
    "coalitions": 512,
    "images": 4,
    "draws": 5,
    "accuracy": 0.5,
    "errors": {"gpshap": {"64": 0.1, "128": 0.05}},
    "peers": {"shap": {"error": 0.08, "seconds": 4.0}, "captum": {"error": 0.01, "seconds": 2.0}},
    "same_error": [
        {"explainer": "gpshap", "coalitions": 128, "peer": "shap", "seconds": 0.5},
        {"explainer": "gpshap", "coalitions": None, "peer": "captum", "seconds": None},
    ],
    "forward_share": 0.9,
}


def test_ours_stands_beside_the_peer_whose_error_it_reaches():
    lines = speed.same_error(of_part("kernelshap", KERNELSHAP))
    assert lines[2] == "| shap's KernelSHAP | 512 | 8.0% | 4.00 | |"
    assert lines[4] == "| gpshap | 128 | 5.0% | 0.50 | shap: 0.12 |"
    assert lines[5] == "| gpshap | more | | | captum |"
    assert "forward passes alone take 90% of kernelshap's time at 512;" in lines[-1]


def test_errors_stand_by_number_of_coalitions():
    lines = speed.errors(of_part("kernelshap", KERNELSHAP))
    assert lines[0] == "| coalitions | 64 | 128 |"
    assert lines[2] == "| gpshap | 10.0% | 5.0% |"


def test_a_search_stands_with_its_speed():
    row = {"images_a_round": 64, "images_per_second": 1280.0, "seconds_a_round": 0.5}
    lines = speed.cleanse(of_part("cleanse", {"as published": row}))
    assert lines[2] == "| as published | 64 | 1,280 | 0.50 |"


def test_memory_is_without_the_maps():
    of_count = {"100": {"working": 30_000_000, "maps": 0}}
    of_count["1000"] = {"working": 33_000_000, "maps": 3_000_000}
    lines = speed.memory(of_part("memory", {"gradient": of_count}))
    assert lines[0] == "| explainer | 100 images | 1,000 images | their maps |"
    assert lines[2] == "| gradient | 30 | 30 | 3.0 |"


def test_parts_of_the_command_add_up():
    found = {"options": "--attack none", "seconds": {"training": 30.0, "measuring": 10.0}}
    lines = speed.parts_of_command(of_part("command", found))
    assert lines[2:5] == [
        "| training | 30.0 | 75% |",
        "| measuring | 10.0 | 25% |",
        "| all | 40.0 | 100% |",
    ]


def test_a_row_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        speed.main(["vgg16"])
    assert stopped.value.code == 2
    assert "'vgg16'" in capsys.readouterr().err
