"""studies/gpu.py: which runs its tables take, and what a sweep costs by their seconds."""

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
    assert gpu.seconds(RECORD)[2:] == ["| `--attack none` | 36 | 1,234 | card |"]


def test_a_sweep_is_shared_out_over_gpus():
    """1,000 runs of 36 seconds are ten hours."""
    assert gpu.sweep(RECORD)[2:] == ["| `--attack none` | 10 | 1.2 | 0.16 | card |"]
