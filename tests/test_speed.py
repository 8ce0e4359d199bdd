"""studies/speed.py: its record, and the tables of the page."""

import json

import pytest

import bench
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
    monkeypatch.setattr(speed, "PATH", tmp_path / "speed.json")
    monkeypatch.setattr(bench, "bench", lambda *options: RECORD | {"device": "cpu", "threads": 1})
    speed.main([])
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["rates"] == RECORD["rates"]
    assert record["command"].startswith(
        "python bench.py --device cpu --precision float32 --model cnn"
    )
    assert "deepshap" in capsys.readouterr().out


def test_a_row_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        speed.main(["cnn"])
    assert stopped.value.code == 2
    assert "'cnn'" in capsys.readouterr().err
