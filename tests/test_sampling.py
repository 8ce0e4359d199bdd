"""studies/sampling.py: the order of coalitions, the networks, the record.

What both estimators give is held to exact Shapley values in test_shapley.py.
"""

import json

import pytest
import torch
from placing import DEVICE

from studies import sampling
from studies.study import Row, Study


def test_all_coalitions_are_in_the_order_of_their_binary_numbers():
    coalitions, sizes = sampling.all_coalitions(3)
    assert coalitions[6].tolist() == [False, True, True]
    assert sizes.tolist() == [0, 1, 1, 2, 1, 2, 2, 3]


@pytest.fixture
def networks(tiny, tmp_path, monkeypatch):
    """{name: (model, images, classes)} of the games, on a small data set."""
    options = f"--dataset {tiny} --epochs 1 --batch-size 24 --target-class 1 --device {DEVICE}"
    row = Row(f"{options} --attack none")
    monkeypatch.setattr(sampling.transfer, "TABLE", {"shapes none": row, "mnist none": row})
    monkeypatch.setattr(sampling, "Study", lambda name, table: Study(name, table, tmp_path))
    monkeypatch.setattr(sampling, "DATA", tiny.parent)
    monkeypatch.setattr(sampling, "worth_of_all", lambda *game: game)
    return dict(sampling.games())


def test_the_games_are_two_trained_networks_and_a_random_one(networks):
    assert list(networks) == ["shapes", "mnist", "random weights"]
    for model, images, classes in networks.values():
        assert images.shape == (sampling.IMAGES, 3, 16, 16)
        assert torch.equal(model(images).argmax(1), classes)


def test_the_random_network_has_other_weights_and_ten_classes(networks):
    trained, random = networks["shapes"][0], networks["random weights"][0]
    image = networks["shapes"][1][:1]
    assert trained(image).shape == (1, 3)
    assert random(image).shape == (1, 10)


def test_the_record_says_the_errors_of_both_estimators(tmp_path, monkeypatch, capsys):
    worth = torch.randn(2, 2**8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(sampling, "games", lambda: [("made up", worth)])
    monkeypatch.setattr(sampling, "RESULTS", tmp_path)
    monkeypatch.setattr(sampling, "COUNTS", (40, 2**8))
    sampling.main([])
    record = json.loads((tmp_path / "sampling.json").read_text())
    errors = record["median_relative_error"]["made up"]
    assert list(errors) == ["by_regression", "by_least_squares"]
    for found in errors.values():
        assert found["40"] > 0.01
        assert found["256"] < 1e-10  # all coalitions
    assert record["command"] == "python -m studies.sampling"
    assert "made up, by_regression: 40: " in capsys.readouterr().out


def test_the_table_has_a_line_for_each_network_and_estimator():
    record = {
        "images": 8,
        "draws": 20,
        "hardware": "a computer, 1 threads",
        "commit": "abc",
        "median_relative_error": {"mnist": {"by_regression": {"64": 0.1075, "128": 0.0654}}},
    }
    lines = sampling.error_table(record)
    assert lines[2] == "| trained on MNIST | `gpshap`: Gaussian process, ours | 10.8% | 6.5% |"
    assert lines[-1] == (
        "*8 test images, 20 draws of coalitions; a computer, 1 thread; commit abc.*"
    )
