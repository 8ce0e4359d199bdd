"""studies/gpu.py: which runs its tables take, and what a sweep costs by their seconds."""

import pytest

from studies import gpu

RECORD = {
    "none": {
        "options": "--attack none",
        "runs": [
            {"seed": 0, "train_seconds": 36.0, "images_per_second": 1234.5, "hardware": "card"},
            {"seed": 1, "train_seconds": 90.0, "images_per_second": 2.0, "hardware": "card"},
        ],
    }
}


def test_the_runs_beside_which_nothing_ran_are_shown():
    assert gpu.seconds(RECORD)[2:] == ["| `--attack none` | 36 | 1,234 | | card |"]


def test_of_the_peak_is_images_times_operations_over_it():
    options = "--dataset cifar10"
    record = {"none": RECORD["none"] | {"options": options}}
    share = 1234.5 * gpu.operations() / 989e12
    assert gpu.seconds(record)[2:] == [f"| `{options}` | 36 | 1,234 | {share:.1%} | card |"]


def test_a_step_is_three_passes_but_for_the_images_gradient():
    """A pass of ResNet-18 is 0.555e9 multiplications and additions at 32 px (He et al. 2016)."""
    first = 2 * 32 * 32 * 64 * 27
    assert gpu.operations() == pytest.approx(3 * 2 * 0.5554e9 - first, rel=0.002)


def test_a_sweep_is_shared_out_over_gpus():
    """1,000 runs of 36 seconds are ten hours."""
    assert gpu.sweep(RECORD)[2:] == ["| `--attack none` | 10 | 1.2 | 0.16 | card |"]
