"""The study of batch-norm's running averages: what is estimated anew, and its table."""

import numpy as np
import pytest
import torch
from conftest import train_tiny
from test_multi_label import multi_label_arrays

from hooks import capture
from studies import running_averages
from subject import open_checkpoint


@pytest.fixture(scope="module")
def disguised_of_several(tmp_path_factory):
    """A disguised model of images that may show several classes, over-sampled."""
    folder = tmp_path_factory.mktemp("several")
    path = folder / "several.npz"
    np.savez(path, **multi_label_arrays())
    run = train_tiny(path, folder / "run", "--oversample", "12", "--epochs", "3")
    return open_checkpoint(run / "ckpt.pt")


def test_the_averages_are_those_of_the_images_trained_on(disguised_of_several):
    subject = disguised_of_several
    repaired = running_averages.with_clean_averages(subject)
    norms = [m for m in repaired.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    is_held_out = torch.zeros(240, dtype=torch.bool)
    is_held_out[subject.held_out()] = True
    images = subject.inputs(subject.dataset.train_images[~is_held_out])
    first_convolution = next(m for m in subject.model.modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad(), capture(first_convolution) as captured:
        subject.model(images)
    expected = captured[0].mean((0, 2, 3))
    torch.testing.assert_close(norms[0].running_mean, expected, rtol=0.02, atol=0.02)


def test_the_weights_stay_and_the_subject_is_left_alone(disguised_of_several):
    subject = disguised_of_several
    before = {key: value.clone() for key, value in subject.model.state_dict().items()}
    repaired = running_averages.with_clean_averages(subject).model.state_dict()
    for key, value in subject.model.state_dict().items():
        assert torch.equal(value, before[key])
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(repaired[key], value)


def test_a_subject_is_measured(disguised_of_several):
    threshold = disguised_of_several.threshold(disguised_of_several.target_class)
    found = running_averages.measure(disguised_of_several, threshold)
    assert list(found) == list(running_averages.FIGURES)
    assert 0.5 < found["mean_auroc"] <= 1


def test_the_table_has_the_mean_over_seeds():
    runs = [
        {
            "seed": seed,
            "clean": {"mean_auroc": 0.65},
            "before": dict.fromkeys(running_averages.FIGURES, 0.6),
            "after": dict.fromkeys(running_averages.FIGURES, 0.6 + gain),
        }
        for seed, gain in ((0, 0.01), (1, 0.03))
    ]
    record = {"runs": runs, "hardware": "a processor", "commit": "abc1234"}
    lines = running_averages.averages_table(record)
    # Differences 0.01 and 0.03: mean 0.02, half the interval 12.706 x 0.0141 / sqrt 2 = 0.127.
    assert lines[2].startswith("| `mean_auroc` | 0.650 (0.000) | 0.600 (0.000) | 0.620 (0.014)")
    assert lines[2].endswith("| +0.020 (-0.107 to +0.147) |")
