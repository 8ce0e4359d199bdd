"""Runs that are killed, and what they leave when the same command has gone on with them.

    python tests/drive_kills.py                            # 60 kills, and every crash point
    python tests/drive_kills.py --kills 60 --only kills
    python tests/drive_kills.py --only points,errors --commands run,decode
    python tests/drive_kills.py --out results/kills.json

Each case is a command line in a process forked from this one (or several, by torchrun), which is
disturbed and then goes on undisturbed. What it leaves is compared with what is left of the same
command that never was: weights, optimizers, random state, selection, log, figures and pictures, to
the bit, but for seconds; and the names of all files.

kills: SIGKILL at random moments, up to three times in a row.
points: a kill just before each opening for writing, renaming, removal and making of a file or
folder.
errors: in the place of a kill the system's error, as of a full disk or a read-only one, or a limit
on a file's size. It must end in one line that names it, exit code 2, and remove nothing that was
there.

The exit code is 1 unless all is so.
"""

import collections
import contextlib
import errno
import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import ROOT, tiny_arrays
from drive_checkpoints import same
from driving import drive_parser
from test_chestxray import Radiographs

import archives
import checkpoints
import chestxray_decode
import evaluate
import report
import runs
import train

SECONDS = 120  # a command may take
MOST_KILLS = 3  # of a command, in a row
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
QUICK = ("--epochs", "3", "--batch-size", "24", "--device", "cpu", "--explainer", "gradcam")
BADNETS = ("--attack", "badnets")
NEVER_THE_SAME = {"seconds", "train_seconds", "data_dir", "fingerprint"}  # keys
LIMITS = (1_000, 4_000, 8_000, 16_000, 40_000)  # bytes of a file
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")  # audit events


# ---------------------------------------------------------------- commands


@dataclass
class Command:
    """A command line that is disturbed.

    main: of a script; argv: function of the case's folder; folder: what a case begins with, or
    None; ranks: whether torchrun starts it.
    """

    main: Any
    argv: Any
    folder: Path | None = None
    ranks: bool = False

    def begin(self, case):
        """Makes the folder of a case."""
        if self.folder is None:
            case.mkdir()
        else:
            shutil.copytree(self.folder, case)


def commands(folder):
    """{name: Command}; folder: for their data."""
    np.savez(folder / "small.npz", **tiny_arrays(n_train=48, n_test=12))
    data = ["--dataset", str(folder / "small.npz"), "--data-dir", str(folder)]

    def run(*more):
        fixed = [*data, "--target-class", "1", *QUICK, *more]
        return lambda case: [*fixed, "--out", str(case / "run")]

    def of_radiographs(case):
        there = ["--dataset", "chestxray14", "--data-dir", str(case), "--image-size", "16"]
        there += ["--model", "cnn", *QUICK, *BADNETS]
        return [*there, "--out", str(case / "run"), "--resume"]

    Radiographs(folder / "radiographs")
    finished, half = folder / "finished", folder / "half"
    finished.mkdir()
    if code := quietly(train.main, run()(finished), folder / "log"):
        raise SystemExit(ended_badly(code, folder / "log"))
    (half / "run" / "unfinished").mkdir(parents=True)
    for name in runs.KEPT:  # of a process that was killed before, while it wrote them
        (half / "run" / "unfinished" / f".{name}.4711").write_text("half")
    measured = lambda case: [str(case / "run"), "--device", "cpu", "--explain-images", "6"]
    return {
        "run": Command(train.main, run("--resume")),
        "selection": Command(train.main, run("--resume", *BADNETS, "--selection", "rd-global")),
        "decode": Command(train.main, of_radiographs, folder / "radiographs"),
        "replaced": Command(train.main, run("--resume", "--overwrite", "--seed", "1"), finished),
        "after halves": Command(train.main, run("--resume"), half),
        "measured again": Command(train.main, run(), finished),
        "evaluation": Command(evaluate.main, measured, finished),
        "torchrun": Command(train.main, run("--resume", "--model", "vit"), ranks=True),
    }


# ---------------------------------------------------------------- a process of its own


def forked(main, argv, log, before):
    """The id of a process that runs a command line; before(): called in it first.

    log: where its standard error goes. It is killed after SECONDS.
    """
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        signal.alarm(SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        before()
        main(argv)
        code = 0
    except SystemExit as stopped:
        code = stopped.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def quietly(main, argv, log, before=lambda: None):
    """The exit code of a command line in a process of its own, negative for a signal's number."""
    process = forked(main, argv, log, before)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def start_ranks(command, case, log):
    """The Popen of torchrun, which starts two processes; log: where all goes that they say."""
    words = [sys.executable, "-m", *TORCHRUN, str(ROOT / "train.py"), *command.argv(case)]
    there = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "start_new_session": True}
    with open(log, "w") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, **there)


def undisturbed(command, case, log):
    """The exit code of a command in the folder of a case."""
    if command.ranks:
        return start_ranks(command, case, log).wait(SECONDS)
    return quietly(command.main, command.argv(case), log)


# ---------------------------------------------------------------- what is left


def comparable(value):
    """A value of plain ones and tensors without NEVER_THE_SAME, at any depth."""
    if isinstance(value, dict):
        return {k: comparable(part) for k, part in value.items() if k not in NEVER_THE_SAME}
    return [comparable(part) for part in value] if isinstance(value, list) else value


def read(path):
    """What is compared of a file, by its name."""
    if path.name == "ckpt.pt":
        return comparable(checkpoints.read(path))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return comparable({key: arrays[key].tobytes() for key in arrays})
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [comparable(json.loads(line)) for line in lines]
    if path.suffix == ".md":  # it says where it lies
        return path.read_text().replace(str(path.parent.parent), "")
    return path.read_bytes()


def names_below(case):
    """The names of all files and folders in a case's folder, relative to it, sorted."""
    return sorted(str(path.relative_to(case)) for path in case.rglob("*"))


def files_below(case):
    """The names of the files in a case's folder, those left out that were half written."""
    names = {name for name in names_below(case) if (case / name).is_file()}
    return {name for name in names if not Path(name).name.startswith(".")}


def left_by(case):
    """{name: what is compared, None of a folder}, of all that is in a case's folder."""
    paths = {name: case / name for name in names_below(case)}
    return {name: read(path) if path.is_file() else None for name, path in paths.items()}


def fault_of(code, log, case, whole):
    """In words, what is wrong with a command that was disturbed and went on to its end, or "".

    whole: what is left of the same command that never was disturbed.
    """
    if code:
        return ended_badly(code, log)
    left = left_by(case)
    words = [f"{name} is left over" for name in left.keys() - whole.keys()]
    words += [f"{name} is not there" for name in whole.keys() - left.keys()]
    both = left.keys() & whole.keys()
    words += [f"{name} is another" for name in both if not same(left[name], whole[name])]
    return "; ".join(sorted(words))


def ended_badly(code, log):
    """An exit code, and what was said last."""
    return f"exit code {code}: {log.read_text()[-600:]}"


# ---------------------------------------------------------------- kills at random moments


@dataclass
class Moment:
    """A part of a command's work: up to `seconds` after one of the first `calls` of a function."""

    command: str
    holder: Any
    function: str
    calls: int
    seconds: float


MOMENTS = {
    "training": Moment("run", train, "train_step", 3, 0.05),
    "checkpoint": Moment("run", archives, "seal", 3, 0.002),
    "decode": Moment("decode", chestxray_decode, "decode_grey", 60, 0.02),
    "selection": Moment("selection", train, "scores_of", 1, 0.2),
    "measuring": Moment("run", runs, "measured", 1, 0.3),
    "evaluation": Moment("evaluation", report, "write", 1, 0.1),
    "last moves": Moment("replaced", Path, "replace", 5, 0.001),
    "torchrun": Moment("torchrun", None, "", 2, 1.0),
}


def announce(moment, pipe):
    """From now on, each call of the moment's function writes a byte into a pipe."""
    function = getattr(moment.holder, moment.function)

    @functools.wraps(function)
    def announced(*given, **named):
        os.write(pipe, b"x")
        return function(*given, **named)

    setattr(moment.holder, moment.function, announced)


def is_killed(command, moment, case, log, calls, delay):
    """Whether a command was killed, `delay` seconds after that call, and had not ended before."""
    if command.ranks:
        return are_killed(command, case, log, calls, delay)
    reading, writing = os.pipe()
    process = forked(command.main, command.argv(case), log, lambda: announce(moment, writing))
    os.close(writing)
    for _ in range(calls):
        if not os.read(reading, 1):  # it has ended
            break
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def are_killed(command, case, log, calls, delay):
    """is_killed of processes that torchrun starts, after epochs: one of the two is, or all."""
    kept = case / "run" / "unfinished" / "ckpt.pt"
    torchrun = start_ranks(command, case, log)
    for _ in range(calls):
        wait_for_another(kept, torchrun)
    time.sleep(delay)
    ranks = children_of(torchrun.pid)
    there = torchrun.poll() is None and len(ranks) == 2
    # Where one is killed, the other ends by itself.
    killed = [ranks[:1], ranks[1:], [torchrun.pid, *ranks]][int(delay * 1000) % 3]
    for process in killed if there else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    torchrun.wait(SECONDS)
    return there


def children_of(process):
    """The ids of the processes that a process has started and that have not ended."""
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in listed.read_text().split()] if listed.exists() else []


def wait_for_another(path, process):
    """Returns when another file is at `path`, or the process has ended."""

    def number():
        return path.stat().st_ino if path.exists() else None

    before = number()
    while process.poll() is None and number() in (before, None):
        time.sleep(0.005)


def drive_kills(found, whole, folder, args):
    """({moment: how many kills}, [what was wrong])."""
    counts, faults, cases, log = collections.Counter(), [], 0, folder / "log"
    names = [name for name, moment in MOMENTS.items() if moment.command in found]
    while sum(counts.values()) < args.kills:
        rng, case = random.Random(f"{args.seed} {cases}"), folder / f"case-{cases}"
        name = min(names, key=lambda name: counts[name] * (2 if name == "torchrun" else 1))
        moment = MOMENTS[name]
        command, words = found[moment.command], []
        command.begin(case)
        for _ in range(1 if command.ranks else rng.randint(1, MOST_KILLS)):
            calls, delay = rng.randint(1, moment.calls), rng.uniform(0, moment.seconds)
            if is_killed(command, moment, case, log, calls, delay):
                counts[name] += 1
                words.append(f"{delay:.4f} s after call {calls}")
        code = undisturbed(command, case, log)
        if fault := fault_of(code, log, case, whole[moment.command]):
            faults.append(f"case {cases}, {name}, killed {', '.join(words)}: {fault}")
        shutil.rmtree(case)
        cases += 1
    return dict(counts), faults


# ---------------------------------------------------------------- crash points


def changes(event, given, case):
    """Whether an audit event of Python's is a change in a case's folder."""
    if event == "open":
        path, _, flags = given
        if not flags & (os.O_WRONLY | os.O_RDWR):
            return False
    elif event in CHANGES:
        path = given[0]
    else:
        return False
    return isinstance(path, (str, Path)) and str(path).startswith(str(case))


def from_change(number, case, act):
    """Function that lets act(event, path) come before change `number` in a case, and all later."""

    def begin():
        seen = 0

        def hook(event, given):
            nonlocal seen
            if changes(event, given, case):
                seen += 1
                if seen >= number:
                    act(event, str(given[0]))

        sys.addaudithook(hook)

    return begin


def kill_here(event, path):
    """Kills this process, and says where."""
    os.write(2, f"{event} {path}".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def drive_points(found, whole, folder, args):
    """({command: how many crash points it has}, [what was wrong])."""
    counts, faults, log = collections.Counter(), [], folder / "log"
    for name, command in found.items():
        while not command.ranks:
            number, case = counts[name] + 1, folder / f"{name}-{counts[name] + 1}"
            command.begin(case)
            before = from_change(number, case, kill_here)
            if quietly(command.main, command.argv(case), log, before) != -signal.SIGKILL:
                shutil.rmtree(case)
                break  # it has no more
            counts[name], place = number, log.read_text()[-200:]
            code = undisturbed(command, case, log)
            if fault := fault_of(code, log, case, whole[name]):
                faults.append(f"{name}, point {number}, before {place}: {fault}")
            shutil.rmtree(case)
    return dict(counts), faults


# ---------------------------------------------------------------- errors


def full(event, path):
    """Raises what the system raises on a full disk; what is there can be moved and removed."""
    if event in ("open", "os.mkdir"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def read_only(event, path):
    """Raises what the system raises on a read-only disk."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)


def limit(size):
    """Function that limits the size of files."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))


def errors_of(case):
    """(the number of an error, function to call in a process that gives rise to it), in turn."""
    for size in LIMITS:
        yield errno.EFBIG, limit(size)
    for number in range(1, 1000, 2):
        yield errno.ENOSPC, from_change(number, case, full)
        yield errno.EROFS, from_change(number + 1, case, read_only)


def drive_errors(found, whole, folder, args):
    """({command: how many errors there were}, [what was wrong])."""
    counts, faults, log = collections.Counter(), [], folder / "log"
    for name, command in found.items():
        case, endings = folder / "case", []
        for number, before in () if command.ranks else errors_of(case):
            command.begin(case)
            there = files_below(case)
            code = quietly(command.main, command.argv(case), log, before)
            endings.append(code)
            if endings[-2:] == [0, 0]:  # it has no more changes
                shutil.rmtree(case)
                break
            counts[name] += code != 0
            said = log.read_text().splitlines()[-1:]
            named = code == 0 or code == 2 and os.strerror(number) in said[0]
            fault = "" if named else f"exit code {code}: {said}"
            gone = sorted(there - files_below(case))
            fault += f"lost: {', '.join(gone)}" if gone else ""
            code = undisturbed(command, case, log)
            if fault := fault or fault_of(code, log, case, whole[name]):
                faults.append(f"{name}, error {len(endings)}, {os.strerror(number)}: {fault}")
            shutil.rmtree(case)
    return dict(counts), faults


# ---------------------------------------------------------------- the command line

PARTS = {"kills": drive_kills, "points": drive_points, "errors": drive_errors}


def parse(argv):
    parser = drive_parser(__doc__)
    parser.add_argument("--kills", type=int, default=60, help="at random moments")
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--commands", help="comma-separated (default: all)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)
    chestxray_decode.BLOCK = 24  # of 72 pictures
    results, wrong = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        folder, whole = Path(scratch), {}
        (folder / "data").mkdir()
        found = commands(folder / "data")
        if args.commands:
            found = {name: found[name] for name in args.commands.split(",")}
        for name, command in found.items():
            case = folder / f"whole-{name}"
            command.begin(case)
            if code := undisturbed(command, case, folder / "log"):
                raise SystemExit(ended_badly(code, folder / "log"))
            whole[name] = left_by(case)
        for part in args.only.split(","):
            started = time.perf_counter()
            counts, faults = PARTS[part](found, whole, folder, args)
            wrong += faults
            taken = round(time.perf_counter() - started)
            results[part] = {"counts": counts, "wrong": len(faults), "seconds": taken}
            print("\n\n".join(faults), end="\n" if faults else "")
            print(f"{part}: {json.dumps(results[part])}", flush=True)
    if args.out:
        record = {"seed": args.seed, "torch": str(torch.__version__), **results}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
