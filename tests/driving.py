"""What the long drives share: a command line under a limit of time and memory, and how it ended."""

import argparse
import collections
import contextlib
import io
import json
import re
import signal
import traceback
import unicodedata
from pathlib import Path
from unittest import mock

import torch

SECONDS = 60  # a case may take
MEGABYTES = 200  # by which the process may grow, beside twice what a case vouches for
OUTCOMES = (
    *("refused in one line", "refused after notes", "accepted, as it should be"),
    *("accepted, another content", "traceback", "hang", "not a clean line", "too much memory"),
)
REFUSED, AFTER_NOTES, ACCEPTED, OTHER, TRACEBACK, HANG, UNCLEAN, MEMORY = OUTCOMES
FAULTS = OUTCOMES[3:]
LAST_LINE = re.compile(r"[a-z_]+\.py: \S.{8,}")
LONGEST_LINE = 2000  # characters of what is said last


class Hang(BaseException):
    """A case took longer than SECONDS."""


# ---------------------------------------------------------------- a case


@contextlib.contextmanager
def limited(seconds):
    """Within the block, Hang is raised after so many seconds."""

    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again: what is left may wait, too
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def streams():
    """Within the block, standard output and error are two texts in UTF-8, as of a console."""
    said, printed = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        yield said, printed


def text_of(stream):
    """What was written to one of `streams`."""
    stream.flush()
    return stream.buffer.getvalue().decode("utf-8")


def outcome_of(main, argv, as_written=True, megabytes=MEGABYTES):
    """(one of OUTCOMES, what was said) of a command line.

    as_written: whether it is right that it is accepted, or a function of what was said that tells.
    """
    before, most_before = resident()
    with streams() as (said, printed):
        try:
            with limited(SECONDS):
                main(argv)
            right = as_written(text_of(said)) if callable(as_written) else as_written
            outcome = ACCEPTED if right else OTHER
        except SystemExit as stopped:
            outcome = ending(stopped.code, text_of(said))
        except Hang:
            outcome = HANG
        except BaseException:
            return TRACEBACK, traceback.format_exc()[-1500:]
        if outcome in OUTCOMES[:3] and has_controls(text_of(said) + text_of(printed)):
            outcome = UNCLEAN
    most = resident()[1]
    grown = (most - before) / 2**20 if most > most_before else 0  # else as large before
    if outcome in OUTCOMES[:3] and grown > megabytes:
        outcome = MEMORY
    return outcome, f"{text_of(said)[-1500:]}({grown:.0f} MB)"


def ending(code, said):
    """The outcome of a command line that ended with an exit code."""
    lines = said.splitlines()
    if code != 2 or not lines or not LAST_LINE.fullmatch(lines[-1]):
        return TRACEBACK if code != 2 else UNCLEAN
    if len(lines[-1]) > LONGEST_LINE:
        return UNCLEAN
    return REFUSED if len(lines) == 1 else AFTER_NOTES


def has_controls(text):
    """Whether a text has characters that would change a terminal, beside line breaks."""
    return any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in set(text) - {"\n"})


def resident():
    """(bytes of this process in memory now, at most so far); (0, 0) where no system tells."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return [
            1024 * int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) for what in ("VmRSS", "VmHWM")
        ]
    return 0, 0


@contextlib.contextmanager
def offline():
    """Within the block no address is found: nothing is downloaded."""
    with mock.patch("socket.getaddrinfo", side_effect=OSError(-2, "Name or service not known")):
        yield


# ---------------------------------------------------------------- damage


def region(data, rng):
    """(first, last) of the bytes to damage: anywhere, the structure, or the tables at the end."""
    structure = data.find(b"data.pkl")
    places = [(0, len(data)), (0, len(data)), (structure, structure + 8000), (0, 200)]
    places += [(len(data) - 6000, len(data)), (len(data) - 300, len(data))]
    first, last = rng.choice(places)
    return max(0, first), min(last, len(data))


def flip_bit(data, rng):
    place = rng.randrange(*region(data, rng))
    data[place] ^= 1 << rng.randrange(8)


def change_bytes(data, rng):
    for _ in range(rng.randint(1, 16)):
        data[rng.randrange(*region(data, rng))] = rng.randrange(256)


def blank_block(data, rng):
    place, length = rng.randrange(*region(data, rng)), rng.choice([16, 64, 512, 4096])
    data[place : place + length] = bytes(len(data[place : place + length]))


def copy_block(data, rng):
    source, place = rng.randrange(len(data)), rng.randrange(*region(data, rng))
    block = data[source : source + rng.choice([16, 512, 4096])]
    data[place : place + len(block)] = block


def cut(data, rng):
    del data[rng.choice([rng.randrange(len(data)), len(data) - rng.randint(1, 300)]) :]


def lose_bytes(data, rng):
    place = rng.randrange(*region(data, rng))
    del data[place : place + rng.choice([1, 2, 64, 512])]


def add_bytes(data, rng):
    place = rng.choice([rng.randrange(*region(data, rng)), len(data)])
    data[place:place] = rng.randbytes(rng.choice([1, 2, 64, 512]))


DAMAGES = (flip_bit, change_bytes, blank_block, copy_block, cut, lose_bytes, add_bytes)


# ---------------------------------------------------------------- the summary


def counted(outcomes):
    """{each of OUTCOMES: how often it is among these}."""
    count = collections.Counter(outcomes)
    return {name: count[name] for name in OUTCOMES}


def drive_parser(about):
    """A parser of what every drive takes; about: the docstring of its file."""
    made = argparse.ArgumentParser(description=about.splitlines()[0])
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", help="write the counts here, as JSON")
    return made


def report(name, counts, faults):
    """Prints what should not have been, and a line: how many cases ended how."""
    print("\n\n".join(faults), end="\n" if faults else "")
    print(f"{name}: {json.dumps(counts)}", flush=True)


def finish(results, args):
    """The exit code, 1 where there are faults; with --out the counts are written.

    results: {name: {outcome: how many}}.
    """
    if args.out:
        record = {"seed": args.seed, "torch": str(torch.__version__), **results}
        Path(args.out).write_text(json.dumps(record, indent=1) + "\n")
    return int(any(counts[outcome] for counts in results.values() for outcome in FAULTS))
