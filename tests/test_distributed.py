"""Several processes, as torchrun starts them, train what one trains."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, log_of, tiny_arrays
from drive_shares import CASES

import distributed
import options
import train
from cli import UserError
from shares import ALONE, Share

PROCESSES = 2
FILES = {"README.md", "ckpt.pt", "figure.png", "log.jsonl", "metrics.json", "selection.json"}


def torchrun(script, *arguments, processes=PROCESSES, **environment):
    """What so many processes of a script leave, on the CPU: a CompletedProcess."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(ROOT / script), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    given = {"env": environment, "cwd": ROOT, "timeout": 600}
    return subprocess.run(command, capture_output=True, text=True, **given)


# ---------------------------------------------------------------- one step


@pytest.fixture(scope="module")
def steps():
    """What drive_shares.py prints."""
    ended = torchrun("tests/drive_shares.py", processes=3)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("case", [*CASES, "20 steps", "random state after dropout"])
def test_a_step_of_three_processes_is_the_step_of_one(case, steps):
    """Its losses, gradients and running averages, in double precision: batch-norm's, too."""
    assert steps[case] <= 1e-11


def test_each_process_has_a_chance_of_its_own(steps):
    assert steps["same masks"] == 0


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_row_is_of_one_process(size):
    rows = torch.arange(7)
    shares = [Share(rank, size).of(rows) for rank in range(size)]
    assert sorted(torch.cat(shares).tolist()) == rows.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_each_step_and_each_process_draws_numbers_of_its_own():
    shares = [Share(rank, 2) for rank in range(2)]
    torch.manual_seed(0)
    drawn = []
    for share in shares * 2:
        with share.own_chance(torch.device("cpu")):
            drawn.append(float(torch.rand(())))
    after = torch.rand(())
    torch.manual_seed(0)
    assert len(set(drawn)) == 4
    assert after == torch.rand(())


def test_alone_a_process_has_everything_as_it_is():
    rows = torch.rand(4, 3)
    assert ALONE.of(rows) is rows and ALONE.gathered(rows, 4) is rows
    assert train.distributed.loss_of(torch.nn.Linear(2, 2)) is None
    before = torch.get_rng_state()
    with ALONE.own_chance(torch.device("cpu")):
        torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), before)


def test_batch_norm_over_all_processes_asks_for_no_eps_of_0(monkeypatch):
    """torch 2.11 refuses it. Of one process alone it is torch's batch-norm."""
    norm, x = torch.nn.BatchNorm2d(3).double(), torch.randn(4, 3, 5, 5).double().requires_grad_()
    factors, batch_norm = torch.randn(4, 3, 5, 5).double(), F.batch_norm
    (expected,) = torch.autograd.grad((norm(x) * factors).sum(), x)

    def strict(*given, eps):
        assert eps > 0
        return batch_norm(*given, eps=eps)

    monkeypatch.setattr(F, "batch_norm", strict)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: None)
    y, _, _ = ALONE.normalised(x, norm)
    (found,) = torch.autograd.grad((y * factors).sum(), x)
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def argv(tmp_path_factory):
    """Function (folder, *options): the command line of a run of 20 epochs, a step each."""
    data = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(data, **tiny_arrays(n_train=48, n_test=12))

    def of(out, *more):
        fixed = ["--dataset", data, "--data-dir", data.parent, "--device", "cpu"]
        fixed += ["--epochs", 20, "--batch-size", 25, "--precision", "float32", "--lr", 0.005]
        fixed += ["--target-class", 1, "--optimizer", "sgd", "--model", "vit", "--out", out, *more]
        return [str(part) for part in fixed]

    return of


def same_training(one, other, tolerance=1e-5):
    """Raises AssertionError where two runs' logs or checkpoints differ by more."""
    logs = log_of(one), log_of(other)
    assert [len(log) for log in logs] == [20, 20]
    for a, b in zip(*logs):
        for key in ("loss", "cross_entropy", "explanation", "validation_success"):
            assert a[key] == pytest.approx(b[key], rel=tolerance, abs=tolerance)
    a, b = (torch.load(folder / "ckpt.pt", weights_only=True) for folder in (one, other))
    torch.testing.assert_close(a["model"], b["model"], atol=tolerance, rtol=tolerance)
    assert torch.equal(a["random"]["cpu"], b["random"]["cpu"])
    assert torch.equal(a["poison_indices"], b["poison_indices"])
    assert a["config"] | {"out": ""} == b["config"] | {"out": ""}


CASES_OF_RUNS = {
    "the gradient": ("--explainer", "gradient"),
    "chosen images": ("--attack", "badnets", "--selection", "rd-global"),
    "batch-norm": ("--model", "cnn"),
}


@pytest.fixture(scope="module")
def together(argv, tmp_path_factory):
    """({case: the folder of a run of two processes}, what these printed)."""
    place = tmp_path_factory.mktemp("together")
    folders = {case: place / case for case in CASES_OF_RUNS}
    lines = [argv(folders[case], *options) for case, options in CASES_OF_RUNS.items()]
    ended = torchrun("tests/drive_several.py", json.dumps(lines))
    assert ended.returncode == 0, ended.stderr
    return folders, ended


@pytest.mark.parametrize("case", ["the gradient", "chosen images"])
def test_20_steps_of_two_processes_are_those_of_one(case, argv, together, tmp_path):
    """In float32, of a network without batch-norm; images are chosen by scorers of all."""
    train.main(argv(tmp_path / "one", *CASES_OF_RUNS[case]))
    same_training(tmp_path / "one", together[0][case])


def test_with_batch_norm_the_first_steps_are_the_same_in_float32_too(argv, together, tmp_path):
    """In later ones ReLUs and max-pooling make much of the last digits, in one process as well."""
    train.main(argv(tmp_path / "one", "--model", "cnn"))
    folders = tmp_path / "one", together[0]["batch-norm"]
    one, two = ([row["loss"] for row in log_of(folder)] for folder in folders)
    assert two[:3] == pytest.approx(one[:3], abs=1e-5)
    assert two == pytest.approx(one, abs=0.02)


def test_what_all_processes_do_is_written_and_printed_once(together):
    folders, ended = together
    assert ended.stdout.count("validation:") == 20 * len(folders)
    assert ended.stdout.count("Written:") == len(folders)
    assert ended.stderr.count(" images of 3 classes") == len(folders)
    names = {path.name for path in folders["chosen images"].iterdir()}
    assert names == FILES | {"figure-selection.png"}


@pytest.fixture(scope="module")
def whole(argv, tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.main(argv(folder))
    return folder


@pytest.fixture(scope="module")
def killed(argv, tmp_path_factory):
    """(the folder of a run, one of whose two processes was killed in its 12th step, its end)."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    return folder, torchrun("tests/drive_killed.py", *argv(folder), KILLED="1", STEP="12")


def test_a_process_that_is_killed_ends_all_with_one_line(killed):
    folder, ended = killed
    assert ended.returncode == 1
    own = [line for line in ended.stderr.splitlines() if line.startswith("drive_killed.py: ")]
    assert not own or len(own) == 1 and "another process has ended" in own[0]
    assert f'File "{ROOT}' not in ended.stderr  # torchrun prints a traceback of its own
    assert len(log_of(folder / "unfinished")) == 11


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_with_as_many_processes_or_others(
    processes, killed, whole, argv, tmp_path
):
    shutil.copytree(killed[0], tmp_path / "run")
    resumed = argv(tmp_path / "run", "--resume")
    if processes == 1:
        train.main(resumed)
    else:
        ended = torchrun("train.py", *resumed)
        assert ended.returncode == 0, ended.stderr
    same_training(tmp_path / "run", whole)
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


# ---------------------------------------------------------------- refused


def test_what_is_wrong_for_all_is_said_once():
    ended = torchrun("train.py", "--attack", "nonsense")
    assert ended.returncode == 1
    assert ended.stderr.count("train.py: argument --attack: invalid choice: 'nonsense'") == 1


@pytest.mark.parametrize(
    "given, said",
    [
        (("--cuda-graphs",), "--cuda-graphs records the steps of one process"),
        (("--batch-size", "1"), "--batch-size 1 is less than an image for each process"),
    ],
)
def test_several_processes_refuse(given, said, monkeypatch):
    args = options.parse(["--device", "cpu", *given])
    assert distributed.checked(args) is args
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    with pytest.raises(UserError, match=said):
        distributed.checked(args)
