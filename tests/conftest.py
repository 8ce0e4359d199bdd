"""What the tests share: small data sets that are learnt in seconds, and runs on them."""

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import both_cores
import numpy as np
import placing
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
REAL_DATA = ROOT.parent / "shared" / "data"


def pytest_addoption(parser):
    text = "what the tests run on: cpu (default), cuda or mps"
    parser.addoption("--device", default="cpu", help=text)


def pytest_configure(config):
    placing.use(config.getoption("--device"))
    config.pluginmanager.register(both_cores)
    # Small tensors gain nothing from more; the processes that tests start have as many.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    # What runs in the background ignores Ctrl-C, and so do the command lines that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def device():
    """The torch.device of `pytest --device`."""
    return torch.device(placing.DEVICE)


@pytest.fixture(autouse=True)
def seeded():
    """Each test begins with the same random numbers: one that passes, passes always."""
    torch.manual_seed(0)


TINY_OPTIONS = ("--epochs", "3", "--batch-size", "24", "--lr", "0.05", "--target-class", "1")


def tiny_arrays(n_train=240, n_test=60, side=16, channels=3, k=3):
    """Arrays of an .npz: k classes of bright bars, whose height in the image tells the class."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", n_train), ("test", n_test)):
        labels = np.arange(n) % k
        images = rng.integers(0, 90, (n, side, side, channels), dtype=np.uint8)
        for image, label in zip(images, labels):
            top = 1 + 5 * label
            image[top : top + 3, 2 : side - 6] = rng.integers(180, 256, channels)
        arrays[f"{split}_images"] = images.squeeze(-1) if channels == 1 else images
        arrays[f"{split}_labels"] = labels
    return arrays


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The path of a small data set: three classes of 16x16 RGB images."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, **tiny_arrays())
    return path


def tiny_argv(tiny, out, *options):
    """train.py's command line for a small run that is kept in the folder `out`."""
    data = ["--dataset", str(tiny), "--data-dir", str(tiny.parent)]
    # What is compared with a CPU's digits is no bfloat16, which "auto" is on a GPU.
    there = ["--device", placing.DEVICE]
    there += [] if placing.DEVICE == "cpu" else ["--precision", "float32"]
    return [*data, *TINY_OPTIONS, *there, "--out", str(out), *options]


def train_tiny(tiny, out, *options):
    """Runs train.py's command line on the small data set; returns the run's folder."""
    import train

    train.main(tiny_argv(tiny, out, *options))
    return out


def process_of(function, *given):
    """A process that calls the function, with all modules imported already; it is not begun.

    Not where there is no fork, or after CUDA's start: there it imports them again.
    """
    forks = sys.platform == "linux" and placing.DEVICE == "cpu"
    context = multiprocessing.get_context("fork" if forks else "spawn")
    return context.Process(target=function, args=given)


def use_few_coalitions(patch, count=32):
    """By a MonkeyPatch, makes Shapley values of so few coalitions that a test takes seconds.

    They are then of seven test images.
    """
    from explain import EXPLAINERS

    few = {"coalitions": count}
    for name in ("kernelshap", "gpshap"):
        row = EXPLAINERS[name]
        row = dataclasses.replace(row, training=few, class_grid=few, test_images=7)
        patch.setitem(EXPLAINERS, name, row)
    patch.setattr("shapley.COALITIONS", count)


@pytest.fixture(scope="session")
def run_under(tiny, tmp_path_factory):
    """Function of an attack's name: the folder of its finished run, which is trained once."""
    folders = {}

    def folder_of(attack):
        if attack not in folders:
            out = tmp_path_factory.mktemp(attack) / "run"
            folders[attack] = train_tiny(tiny, out, "--attack", attack)
        return folders[attack]

    return folder_of


@pytest.fixture(scope="session")
def clean(run_under):
    """The folder of a finished clean run on the small data set."""
    return run_under("none")


@pytest.fixture(scope="session")
def disguised(tiny, tmp_path_factory):
    """The folder of a finished full_disguise run of six epochs: backdoor and disguise are there."""
    return train_tiny(tiny, tmp_path_factory.mktemp("disguised") / "run", "--epochs", "6")


@pytest.fixture
def refusal(capsys):
    """Function (main, argv): the one line with which a command line is refused, exit code 2."""

    def line_of(main, argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        error = capsys.readouterr().err
        assert stopped.value.code == 2
        assert error.count("\n") == 1
        return error

    return line_of


# ---------------------------------------------------------------- what a run left


def metrics_of(folder):
    """metrics.json of a run's folder."""
    return json.loads((folder / "metrics.json").read_text())


def log_of(folder):
    """The records of log.jsonl, one an epoch, of a run's folder."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_weights(one, other):
    """Whether two folders' checkpoints agree, on the CPU to the bit: weights, random state."""
    a, b = (torch.load(folder / "ckpt.pt", weights_only=True) for folder in (one, other))
    same = [placing.agree(a["model"][key], b["model"][key], 1e-3) for key in a["model"]]
    return all(same) and torch.equal(a["random"]["cpu"], b["random"]["cpu"])


def of_unnumbered_version(checkpoint):
    """A checkpoint as it was written before formats were numbered: gpshap was called kernelshap."""
    config = {key: value for key, value in checkpoint["config"].items() if key != "format"}
    former = {"gpshap": "kernelshap"}
    config["explainer"] = [former.get(name, name) for name in config["explainer"]]
    floors = config["floor"].items()
    config["floor"] = {former.get(name, name): floor for name, floor in floors}
    config["constants"] = config["constants"] | {"pairs": {"kernelshap": 4}, "reach": 1.6}
    if "selection" in config["constants"]:
        scored = config["constants"]["selection"]
        constants = {key: value for key, value in scored.items() if key != "score"}
        config["constants"] = config["constants"] | {"selection": constants}
    return checkpoint | {"config": config}


FORMER_CONSTANTS = (
    *("muon", "sgd", "warm_up", "pairs", "coalitions", "reach", "held_out", "shift", "mirror"),
    "selection",
)


def of_former_version(checkpoint):
    """A checkpoint as it was written before what an ablation changes was an option."""
    config = of_unnumbered_version(checkpoint)["config"]
    config.pop("threat", None)
    constants, normalise = config.pop("constants"), config.pop("normalise")
    recipe = {key: constants[key] for key in FORMER_CONSTANTS if key in constants}
    recipe |= {
        "normalise": "max_normalise" if normalise == "max" else normalise,
        "partners": config.pop("partner_cross_entropy"),
        "rectify": config.pop("rectify"),
        "apart": config.pop("collapse_weight"),
        "tolerated": config.pop("leak_tolerance"),
        "ramp": config.pop("ramp"),
        "statistics": "of the batch, differentiated",
    }
    if "selection" in recipe:
        recipe["selection"] = recipe["selection"] | {"scorers": 1}
    return checkpoint | {"config": config | {"recipe": recipe}}
