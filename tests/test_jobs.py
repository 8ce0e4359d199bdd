"""studies/jobs.py: runs of a study shared out over processes, by the real command line."""

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import folders
from studies import jobs

SCRIPT = """
import sys
from pathlib import Path
from cli import command
from studies.study import Row, Study

options = sys.argv.pop(1)
TABLE = {{
    "kept": Row(options + " --attack fooling --reference {{runs}}/none-{{seed}}/ckpt.pt", 2),
    "a, b": Row(options + " --attack badnets", 2, clean="none", picture=True),
    "none": Row(options + " --attack none", 2),{more}
}}

@command
def main(argv):
    Study("small", TABLE, Path.cwd()).run(argv)

if __name__ == "__main__":
    main()
"""
BROKEN = """
    "broken": Row(options + " --attack none --target-class nobody"),
    "after it": Row(options + " --attack badnets", clean="broken"),"""
TIMES = re.compile("seconds|images_per_second")


class Script:
    """The script of a study of tiny runs, in a folder of its own."""

    def __init__(self, folder, tiny, more="", epochs=1):
        (folder / "results").mkdir(parents=True)
        (folder / "small.py").write_text(SCRIPT.format(more=more))
        options = f"--dataset {tiny} --model cnn --epochs {epochs} --batch-size 24 --target-class 1"
        self.folder, self.command = folder, ["small.py", f"{options} --device cpu"]
        self.environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(self, *argv):
        """A process that runs it."""
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        where = dict(cwd=self.folder, env=os.environ | self.environment, start_new_session=True)
        return subprocess.Popen([sys.executable, *self.command, *argv], **where, **pipes)

    def run_here(self, *argv):
        """Runs it in this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", list(self.command))
            for name, text in self.environment.items():
                patch.setenv(name, text)
            runpy.run_path("small.py")["main"](argv)


def ended(process, code=0):
    """What a process printed, on standard output and on standard error, once it has ended."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == code, out + error
    return out, error


def without_times(value):
    """A record without what differs from one call to the next."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not TIMES.search(k)}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def results_in(folder):
    """results/small.json of the study in a folder, without times."""
    return without_times(json.loads((folder / "results" / "small.json").read_text()))


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """The folder of the study, run in one process; `none` first, which "kept" takes."""
    folder = tmp_path_factory.mktemp("plain") / "root"
    Script(folder, tiny).run_here("none", "a, b", "kept")
    return folder


@pytest.fixture(scope="module")
def at_once(tiny, tmp_path_factory):
    """The folder of the study, run in two processes; what it printed."""
    folder = tmp_path_factory.mktemp("once") / "root"
    out, _ = ended(Script(folder, tiny).start("--jobs", "2"))
    return folder, out


def test_two_processes_record_what_one_does(plain, at_once):
    assert results_in(at_once[0]) == results_in(plain)
    assert list(results_in(at_once[0])) == ["kept", "a, b", "none"]
    assert (at_once[0] / "results" / "small-a_b.png").exists()


def test_each_run_is_begun_and_finished_in_a_line_and_clean_models_come_first(at_once):
    lines = at_once[1].splitlines()
    runs = [f"{row}, seed {seed}" for row in ("kept", "a, b", "none") for seed in (0, 1)]
    assert sorted(line for line in lines if "begun" in line) == sorted(f"begun: {r}" for r in runs)
    assert sum(line.startswith("finished: ") for line in lines) == len(runs) == len(lines) / 2
    for seed in (0, 1):
        [finished] = [
            i for i, x in enumerate(lines) if x.startswith(f"finished: none, seed {seed}")
        ]
        for row in ("kept", "a, b"):
            assert finished < lines.index(f"begun: {row}, seed {seed}")


def test_what_a_run_prints_is_in_its_folder_and_no_claim_is_left(at_once):
    for folder in (at_once[0] / "runs" / "small").iterdir():
        assert "epoch 1/1" in (folder / "output.log").read_text()
        assert not (folder / "claim").exists()
    assert not list(at_once[0].rglob("lock"))


def test_shares_are_gathered_without_their_checkpoints(plain, tiny, tmp_path, capsys):
    """Each share on its own machine: the second trains clean models that the first has, too."""
    gathered = Script(tmp_path / "all", tiny)
    for share in ("1/2", "2/2"):
        folder = tmp_path / share[0]
        out, _ = ended(Script(folder, tiny).start("--shard", share))
        assert "--gather" in out
        assert not (folder / "results" / "small.json").exists()
        shutil.copytree(
            folder / "runs",
            tmp_path / "all" / "runs",
            ignore=shutil.ignore_patterns("ckpt.pt", "*.png"),
            dirs_exist_ok=True,
        )
        gathered.run_here("--gather")
        assert ("Not finished, by seed: " in capsys.readouterr().out) == (share == "1/2")
    assert not list((tmp_path / "all" / "runs").rglob("ckpt.pt"))
    assert results_in(tmp_path / "all") == results_in(plain)


def test_what_is_missing_is_said_and_a_row_without_runs_stays(at_once, tiny, tmp_path, capsys):
    script = Script(tmp_path / "root", tiny)
    target = tmp_path / "root" / "runs" / "small"
    for name in ("a_b-1", "none-0", "none-1"):
        shutil.copytree(at_once[0] / "runs" / "small" / name, target / name)
    (target / "none-0" / "study.json").write_text('{"images_per_second": 1}')  # of another run
    old = {"kept": {"seeds": [7]}}
    (tmp_path / "root" / "results" / "small.json").write_text(json.dumps(old))
    script.run_here("--gather")
    said = capsys.readouterr().out
    assert said == "Not finished, by seed: kept: 0, 1; a, b: 0; none: 0\n"
    record = results_in(tmp_path / "root")
    assert record["kept"] == old["kept"]
    assert record["a, b"]["seeds"] == record["none"]["seeds"] == [1]


def test_nothing_to_gather_is_refused(tiny, tmp_path, refusal):
    script = Script(tmp_path / "root", tiny)
    error = refusal(lambda argv: script.run_here(*argv), ["--gather"])
    assert error.startswith("small.py: nothing to gather")


def test_a_run_that_fails_does_not_stop_the_others(tiny, tmp_path):
    script = Script(tmp_path / "root", tiny, BROKEN)
    out, error = ended(script.start("broken", "after it", "none", "--jobs", "2"), 2)
    assert error.count("\n") == 1
    assert error.startswith("small.py: 2 of 4 runs failed, see output.log in their folders: ")
    assert "broken, seed 0 (" in error and "after it, seed 0 (it needs broken, seed 0)" in error
    assert "Not finished, by seed: broken: 0; after it: 0" in out
    assert list(results_in(tmp_path / "root")) == ["none"]
    assert "nobody" in (tmp_path / "root/runs/small/broken-0/output.log").read_text()


def test_a_run_at_which_another_process_is_is_left_to_it(tiny, tmp_path, capsys):
    script = Script(tmp_path / "root", tiny)
    with folders.locked(tmp_path / "root" / "runs" / "small" / "none-0" / "claim"):
        script.run_here("none", "--jobs", "1")
    assert "left to another process: none, seed 0" in capsys.readouterr().out
    assert results_in(tmp_path / "root")["none"]["seeds"] == [1]


def children_of(pid):
    """The ids of the processes that a process has started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]


@pytest.mark.skipif(not os.path.exists("/proc"), reason="asks /proc for processes")
def test_ctrl_c_ends_all_processes_in_one_line(tiny, tmp_path):
    process = Script(tmp_path / "root", tiny, epochs=300).start("none", "--jobs", "2")
    assert process.stdout.readline().startswith("begun")
    children = children_of(process.pid)
    assert children
    os.killpg(process.pid, signal.SIGINT)
    _, error = ended(process, 130)
    assert error == "interrupted: the same command goes on with what is not finished\n"
    deadline = time.monotonic() + 20  # multiprocessing's own helper ends by itself
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_process_that_is_started_gets_no_ctrl_c():
    with jobs.interrupts_held_back():
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.3)"])
    process.send_signal(signal.SIGINT)
    assert process.wait() == 0


def test_ctrl_c_while_a_process_is_started_is_not_lost():
    with pytest.raises(KeyboardInterrupt):
        with jobs.interrupts_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # another thread may take it
            held_back = True
    assert held_back


# ---------------------------------------------------------------- by themselves


class Killed:
    """A study whose first run ends its process, as a system that lacks memory does."""

    def __init__(self, folder):
        self.path = folder

    def folder(self, name, seed):
        return self.path / f"{name}-{seed}"

    def run_once(self, name, seed):
        if name == "greedy":
            os.kill(os.getpid(), signal.SIGKILL)
        threads, variable = torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
        (self.folder(name, seed) / "threads").write_text(f"{threads} {variable}")


def test_a_process_that_is_killed_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    before = dict(os.environ)
    queue = jobs.Queue({("greedy", 0): [], ("modest", 0): [], ("modest", 1): []})
    ended_runs = []
    jobs.run_all(Killed(tmp_path), queue, 2, ended_runs.append)
    assert queue.failed == {("greedy", 0): "its process ended with exit code -9"}
    assert queue.done == {("modest", 0), ("modest", 1)}
    assert len(ended_runs) == 3
    assert (tmp_path / "modest-1" / "threads").read_text() == "2 2"
    assert dict(os.environ) == before


def test_a_clean_model_at_which_another_process_is_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
    monkeypatch.setattr(jobs, "PATIENCE", 0.2)
    clean, attacked, other = ("clean", 0), ("attacked", 0), ("other", 0)
    queue = jobs.Queue({clean: [], attacked: [clean], other: []})
    with contextlib.ExitStack() as elsewhere:
        elsewhere.enter_context(folders.locked(tmp_path / "clean-0" / "claim"))

        def after_run(run):
            if run == other:  # meanwhile the clean model was asked for, and is still taken
                assert not queue.done & {clean, attacked}
                elsewhere.close()

        jobs.run_all(Killed(tmp_path), queue, 1, after_run)
    assert queue.done == {clean, attacked, other} and not queue.left
    printed = capsys.readouterr().out
    assert printed.count("waited for: clean, seed 0, at which another process is\n") == 1
    assert printed.index("finished: clean") < printed.index("begun: attacked")


@pytest.mark.parametrize("visible, third", [(None, "2"), ("4,5", "4")])
def test_processes_are_spread_over_the_gpus(visible, third, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if visible else 4)
    assert jobs.environment(2, 1)["CUDA_VISIBLE_DEVICES"] == third


def test_one_gpu_is_everybodys(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert jobs.environment(3, 2) == {"OMP_NUM_THREADS": "2"}
