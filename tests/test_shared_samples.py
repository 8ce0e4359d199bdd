"""The study of shared samples: its figures of a planted explainer, and its table."""

import dataclasses
import json

import pytest
import torch

from explain import EXPLAINERS
from studies import shared_samples
from subject import open_checkpoint


@pytest.fixture
def noisy(monkeypatch):
    """An explainer whose maps are noise by its sample alone, of any image."""

    def noise(model, images, classes, *, create_graph=False, generator=None):
        return torch.randn(8, 8, generator=generator).expand(len(images), 8, 8)

    row = dataclasses.replace(EXPLAINERS["gpshap"], function=noise)
    monkeypatch.setitem(EXPLAINERS, "gpshap", row)


def test_one_sample_makes_maps_alike_that_have_nothing_in_common(noisy, disguised):
    part = shared_samples.measure(open_checkpoint(disguised / "ckpt.pt"), "gpshap")
    assert part["shared"] == pytest.approx(1)
    assert all(abs(value) < 0.5 for value in part["independent"] + part["itself"])
    assert len(part["independent"]) == len(part["itself"]) == len(shared_samples.SAMPLES)


def test_an_exact_explainer_is_not_flattered(disguised, monkeypatch):
    exact = dataclasses.replace(EXPLAINERS["deepshap"], sampled=False)
    monkeypatch.setitem(EXPLAINERS, "gpshap", exact)
    part = shared_samples.measure(open_checkpoint(disguised / "ckpt.pt"), "gpshap")
    assert part["independent"] == [part["shared"]] * len(shared_samples.SAMPLES)
    assert part["itself"] == pytest.approx([1] * len(shared_samples.SAMPLES))
    assert 0 < part["n"] <= 40  # test images that are not of the target class


def test_the_table_has_what_sharing_adds():
    part = {"n": 9, "shared": 0.95, "independent": [0.8, 0.9, 0.85], "itself": [0.9, 0.9, 0.9]}
    record = {
        "pearson_all": {"shapes none": {"kernelshap": part}},
        "hardware": "a processor",
        "commit": "abc1234",
    }
    lines = shared_samples.samples_table(json.loads(json.dumps(record)))
    assert lines[2] == (
        "| `shapes`, clean model | `kernelshap` | 9 | 0.950 | 0.850 (0.050) | +0.100"
        " | 0.900 (0.000) |"
    )
