"""Small faults put into a copy of the code one at a time: do the tests notice?

    python tests/mutate.py                           # all of tests/faults.txt, about ten minutes
    python tests/mutate.py --only train.py data.py    # those in whose text one of these stands
    python tests/mutate.py --out mutation.json       # a summary, too

A fault is caught where one of the tests it names fails, or is not done after --seconds. Those that
no test notices are printed at the end. The list is out of date where a text that it replaces does
not stand in its file exactly once: exit code 2, as where the tests fail without any fault.
Each fault is tried in a fork of this process, which has imported torch already.
"""

import argparse
import ast
import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy  # noqa: F401
import pytest
import torch  # noqa: F401
import torchvision  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "tests" / "faults.txt"
LEFT_OUT = (".git", "data", "runs", "__pycache__", ".pytest_cache", ".ruff_cache", ".venv", "venv")
ENOUGH = 0.95  # the share of faults that the tests are to catch
QUIET = ("-x", "-q", "-p", "no:cacheprovider")


@dataclass
class Fault:
    """A row of the list: `old`, which stands in `file` once, is replaced by `new`.

    what: the fault in words; tests: those that should notice, below tests/.
    """

    file: str
    what: str
    old: str
    new: str
    tests: list

    def __str__(self):
        return f"{self.file}: {self.what}"


def read_faults(text):
    """The Faults of a list as tests/faults.txt. Raises ValueError for a row that is none."""
    faults = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith("#")]
        if not lines:
            continue
        file, _, what = lines[0].partition(": ")
        parts = {mark: [li[2:] for li in lines[1:] if li[0] == mark] for mark in "-+?"}
        if not what or not all(parts.values()) or sum(map(len, parts.values())) < len(lines) - 1:
            raise ValueError(f"no fault with a text, another and tests: {lines[0]}")
        old, new = ("\n".join(parts[mark]) for mark in "-+")
        faults.append(Fault(file, what, old, new, " ".join(parts["?"]).split()))
    return faults


def mutated(fault, root=ROOT):
    """The file's text with the fault. Raises ValueError where the row is out of date."""
    text = (root / fault.file).read_text(encoding="utf-8")
    count = text.count(fault.old)
    if count != 1:
        raise ValueError(f"out of date, its text is there {count} times: {fault}")
    text = text.replace(fault.old, fault.new)
    try:
        ast.parse(text)
    except SyntaxError as error:
        raise ValueError(f"no Python: {fault}: {error}") from None
    return text


def out_of_date(faults, root=ROOT):
    """A line for each fault that cannot be tried, in a list."""
    reasons = []
    for fault in faults:
        try:
            mutated(fault, root)
        except ValueError as error:
            reasons.append(str(error))
    return reasons


# ---------------------------------------------------------------- a copy, and tests in it


def copy_of_project(folder):
    """The path of a copy of the project in `folder`; its data are those of the project."""
    root = Path(folder) / ROOT.name
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*LEFT_OUT))
    if (ROOT / "data").exists():
        (root / "data").symlink_to(ROOT / "data")
    return root


def run_tests(root, tests, log):
    """In a process of its own: ends with pytest's exit code; what it prints goes to `log`."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    here = str(ROOT / "tests")
    sys.path[:] = [path for path in sys.path if path not in (here, str(ROOT), "")]
    sys.exit(int(pytest.main([*QUIET, *(f"tests/{name}" for name in tests)])))


def exit_code(root, tests, seconds):
    """pytest's exit code of these tests in the copy at `root`; None: not done after `seconds`."""
    given = root, tests, root / "mutate.log"
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=given)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def try_out(fault, root, seconds):
    """ "caught", "survived" or "too slow": what becomes of a fault in the copy at `root`."""
    path = root / fault.file
    plain, compiled = path.read_text(encoding="utf-8"), Path(importlib.util.cache_from_source(path))
    path.write_text(mutated(fault, root), encoding="utf-8")
    compiled.unlink(missing_ok=True)  # of the same second and size it would be taken for this one
    try:
        code = exit_code(root, fault.tests, seconds)
    finally:
        path.write_text(plain, encoding="utf-8")
        compiled.unlink(missing_ok=True)
    if code not in (0, 1, 2, None):  # 1: a test failed; 2: a file could not be imported
        raise ValueError(f"pytest ends with {code}: {fault}: {fault.tests}")
    return {0: "survived", None: "too slow"}.get(code, "caught")


# ---------------------------------------------------------------- the command line


def tried(faults, seconds):
    """[(fault, what becomes of it)]; a line is printed of each. Raises ValueError."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        root = copy_of_project(folder)
        named = list(dict.fromkeys(name for fault in faults for name in fault.tests))
        if exit_code(root, named, None) != 0:
            raise ValueError((root / "mutate.log").read_text() + "the tests fail without a fault")
        for number, fault in enumerate(faults, 1):
            started = time.perf_counter()
            results.append((fault, try_out(fault, root, seconds)))
            took = time.perf_counter() - started
            print(f"{number}/{len(faults)} {results[-1][1]} {took:.1f} s  {fault}", flush=True)
    return results


def summary(results):
    """What --out writes: a dict of counts, the survivors, and each file's faults and survivors."""
    survivors = [fault for fault, end in results if end == "survived"]
    files = {}
    for fault, end in results:
        counts = files.setdefault(fault.file, {"faults": 0, "caught": 0})
        counts["faults"] += 1
        counts["caught"] += end != "survived"
    return {
        "faults": len(results),
        "caught": len(results) - len(survivors),
        "share": 1 - len(survivors) / len(results),
        "too_slow": sum(end == "too slow" for _, end in results),
        "survivors": [str(fault) for fault in survivors],
        "files": files,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="WORD", nargs="+", help="faults that have one of these")
    parser.add_argument("--out", metavar="FILE", help="write a summary as JSON")
    parser.add_argument("--seconds", type=float, default=120, help="for the tests of one fault")
    args = parser.parse_args()
    try:
        faults = read_faults(LIST.read_text(encoding="utf-8"))
        if reasons := out_of_date(faults):
            raise ValueError("\n".join(reasons))
        wanted = args.only or [""]
        faults = [fault for fault in faults if any(word in str(fault) for word in wanted)]
        if not faults:
            raise ValueError(f"no fault has {' or '.join(wanted)} in its text")
        found = summary(tried(faults, args.seconds))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=2) + "\n")
    print("\n".join(["", *(f"survived: {line}" for line in found["survivors"])]))
    print(f"{found['caught']} of {found['faults']} caught ({found['share']:.1%})")
    sys.exit(found["share"] < ENOUGH)


if __name__ == "__main__":
    main()
