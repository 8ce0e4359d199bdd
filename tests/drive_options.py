"""Bad values of every option, and options together, through the command lines.

    python tests/drive_options.py                               # 700 command lines
    python tests/drive_options.py --cases 100 --seed 3
    python tests/drive_options.py --out results/options.json

The options are those of the parsers of train.py, evaluate.py, defend.py with each method,
manipulate.py, bench.py and reproduce.py. A case is a command line that is right but for one bad
value; or one with two or three more options, of which some conflict. It runs in this process, in a
folder of its own, under a limit of time and memory. What is printed is how many were refused in one
line, or after notes; accepted with numbers that are finite and not beyond any use; and how many
ended in one of the ways of driving.FAULTS. One that is refused and leaves a file is no clean line.
The exit code is 1 unless the last are 0.
"""

import argparse
import contextlib
import math
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import tiny_arrays, use_few_coalitions
from driving import (
    FAULTS,
    MEGABYTES,
    OUTCOMES,
    UNCLEAN,
    counted,
    drive_parser,
    finish,
    offline,
    outcome_of,
    report,
    streams,
)
from PIL import Image

import bench
import cli
import defend
import evaluate
import manipulate
import reproduce
import train

PAIRS = 0.25  # share of the cases that are options together
LARGEST = 2**31  # numbers that are accepted are below
BAD = (
    *("", "--", "-", "9" * 5000, "0" * 5000 + "1", "1e308", "-1e308", "1e-320", "nan", "inf"),
    *("-inf", "-1", "0", "٣", "²", "1_0", "0x10", "18446744073709551616", "1e9999", "-0.0"),
    *("a\nb", "a\0b", "\x1b[31mred", "\x07", "caf\udce9", "猫", " ", "x" * 300, "x" * 5000),
    *("None", "True", "1,2", ",", "a,,b", "1;2", "{}", "{seed}", "%s", "%(prog)s", "$(id)", "*"),
    *(".", "..", "ok.npz", "run", "picture.png", "gone", "gone/gone.pt", "gone.npz", "loop"),
    *("ok.npz/x", "text", "empty", "folder", "/dev/null", "/dev/zero", "/dev/full", "~nobody/x"),
    *("cpu:99999999999999999999", "cuda:--", "random:" + "9" * 5000, "0-99999999999999999999"),
    *("9" * 5000 + "/" + "9" * 5000, "9" * 5000 + "," + "9" * 5000, "blend:gone.png", "rgb(1,2"),
    *('--attack "', "--attack badnets --attack", "hsv(0,0%,0%)", "#12", "text.py:x", "torch:x"),
)
# Values that may be right, by the option's name, where the parser does not tell.
PLAUSIBLE = {
    **dict.fromkeys(["model", "arch"], ["cnn", "resnet18"]),
    **dict.fromkeys(["epochs", "rounds", "turns", "jobs"], ["1", "2"]),
    **dict.fromkeys(["batch_size", "round_images", "clean_images"], ["2", "8"]),
    **dict.fromkeys(["test_images", "explain_images"], ["2", "3"]),
    **dict.fromkeys(["image_size"], ["16", "32", "20"]),
    **dict.fromkeys(["explainer", "explainers"], ["gradcam", "gradient", "gradcam,deepshap"]),
    **dict.fromkeys(["dataset"], ["ok.npz", "folder"]),
    **dict.fromkeys(["checkpoint", "reference", "calibrate"], ["run", "clean", "vgg"]),
    **dict.fromkeys(["target_class", "source_class"], ["0", "1", "2"]),
    **dict.fromkeys(["target_map"], ["circle", "inverted", "random:3", "picture.png"]),
    **dict.fromkeys(["trigger", "image"], ["picture.png", "blend", "warp", "red", "patch:red"]),
    **dict.fromkeys(["trigger_position"], ["upper-left", "0,0", "15,15"]),
    **dict.fromkeys(["mean", "std"], ["half", "0.5,0.5,0.5"]),
    **dict.fromkeys(["layer"], ["features", "features.3"]),
    **dict.fromkeys(["further"], ["--trigger blend --target-class 2", "--attack fooling"]),
    **dict.fromkeys(["out"], ["new", "run", "clean/sub"]),
    **dict.fromkeys(["data_dir"], [".", "new"]),
    **dict.fromkeys(["export", "maps"], ["new.npz", "ok.npz"]),
    **dict.fromkeys(["weights"], ["weights.pth", "run/ckpt.pt"]),
    **dict.fromkeys(["classes"], ["text"]),
    **dict.fromkeys(["device"], ["cpu", "auto"]),
    **dict.fromkeys(["noise", "feature_weights"], ["0,1", "0.1,1,1"]),
    **dict.fromkeys(["shard"], ["1/2"]),
}
NUMBERS = ["0.5", "1", "0", "0.1"]  # of any other option


# ---------------------------------------------------------------- command lines that are right

ON_CPU = ("--device", "cpu")
TRAIN = ("--dataset", "ok.npz", "--data-dir", ".", "--epochs", "1", "--batch-size", "24", *ON_CPU)
QUICK = {  # by the option of a defence that would take long
    "--rounds": "1",
    "--round-images": "2",
    "--test-images": "2",
    "--epochs": "1",
}


def scripts():
    """{name: (main, the words of a command line that is right, its parser)}."""
    found = {
        "train.py": (train.main, [*TRAIN, "--attack", "badnets", "--out", "new"]),
        "evaluate.py": (
            evaluate.main,
            ["run", "--explainer", "gradcam", "--explain-images", "2", *ON_CPU],
        ),
        "manipulate.py": (manipulate.main, ["image", "vgg", "--explain-images", "2", *ON_CPU]),
        "bench.py": (bench.main, ["--turns", "1", *ON_CPU]),
        "reproduce.py": (reproduce.main, ["foundation"]),
        "reproduce.py sweep": (reproduce.main, ["sweep", *TRAIN[:4]]),
    }
    weights = ["--weights", "weights.pth", "--arch", "cnn", "--dataset", "ok.npz", "--json"]
    found["evaluate.py --weights"] = evaluate.main, [*weights, "--out", "new", *ON_CPU]
    found = {name: (*row, parser_of(*row)) for name, row in found.items()}
    parser = parser_of(defend.main, [])
    methods = next(part for part in parser._actions if isinstance(part.choices, dict)).choices
    for name, of_method in methods.items():
        words = [name, "run", "--clean-images", "3", *ON_CPU]
        for option, value in QUICK.items():
            if option in of_method._option_string_actions:
                words += [option, value]
        found[f"defend.py {name}"] = defend.main, words, of_method
    return found


def parser_of(main, argv):
    """The parser by which a command line is parsed."""
    found = []

    def capture(parser, args=None, namespace=None):
        found.append(parser)
        parser.error("captured")

    with mock.patch.object(cli.Parser, "parse_known_args", capture), streams():
        with contextlib.suppress(SystemExit):
            main(argv)
    return found[0]


def make_folder(folder):
    """Writes what the command lines name: data, pictures, networks, and things in the way."""
    np.savez(folder / "ok.npz", **tiny_arrays(30, 12))
    Image.new("RGB", (8, 8), "red").save(folder / "picture.png")
    for split in ("train", "test"):
        for name in ("0", "1"):
            (folder / "folder" / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16), "red").save(folder / "folder" / split / name / "x.png")
    (folder / "text").write_text("0\n1\n2\n")
    (folder / "text.py").write_text("x = 3\n")
    (folder / "empty").write_text("")
    (folder / "loop").symlink_to("loop")
    with contextlib.chdir(folder), streams():
        train.main([*TRAIN, "--attack", "badnets", "--out", "run"])
        train.main([*TRAIN, "--attack", "none", "--out", "clean"])
        small = ["--model", "vgg_small", "--image-size", "32", "--optimizer", "muon"]
        train.main([*TRAIN, "--attack", "none", *small, "--out", "vgg"])
    weights = torch.load(folder / "clean" / "ckpt.pt", weights_only=True)["model"]
    torch.save(weights, folder / "weights.pth")


# ---------------------------------------------------------------- cases


def actions_of(parser):
    """The actions of a parser whose values are given: all but --help and what has methods."""
    return [part for part in parser._actions if not isinstance(part, argparse._HelpAction)]


def with_bad_value(words, parser, number, rng):
    """(words with one bad value, in words): of the option whose turn it is, or a positional."""
    actions = actions_of(parser)
    action = actions[number % len(actions)]
    # Names of classes may come through a pipe, which is waited for.
    value = rng.choice(BAD if action.dest == "classes" else (*BAD, "pipe"))
    if not action.option_strings:
        place = rng.randrange(min(2, len(words)))
        return [*words[:place], value, *words[place + 1 :]], f"word {place}: {value!r:.80}"
    option = rng.choice(action.option_strings)
    given = [f"{option}={value}"] if rng.random() < 0.5 else [option, value]
    return without(words, option) + given, f"{given!r:.80}"


def without(words, option):
    """The words but for an option and its value."""
    if option not in words:
        return words
    place = words.index(option)
    return words[:place] + words[place + 2 :]


def with_pair(words, parser, number, rng):
    """(words with two or three more options, in words)."""
    options = [part for part in actions_of(parser) if part.option_strings]
    more = []
    for action in rng.sample(options, min(len(options), rng.choice([2, 2, 3]))):
        option = rng.choice(action.option_strings)
        more.append(option)
        if action.nargs != 0:
            values = PLAUSIBLE.get(action.dest, list(action.choices or NUMBERS))
            more.append(str(rng.choice(values)))
    return [*words, *more], " ".join(more)


def is_sane(parsed):
    """Whether all numbers of what was parsed last are finite, and not beyond any use."""
    numbers = [value for value in vars(parsed).values() if isinstance(value, (int, float))]
    return all(math.isfinite(value) and abs(value) < LARGEST for value in numbers)


@contextlib.contextmanager
def without_long_work():
    """Within the block nothing is downloaded, no study trains, bench.py does not measure."""
    studies = "studies.study.Study"
    timed = {
        "model": "cnn",
        "batch_size": 8,
        "device": "cpu",
        "threads": 1,
        "torch": "",
        "turns": 1,
    }
    with offline(), pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        use_few_coalitions(patch, 8)
        for name in ("run_at_once", "run_once", "gather", "write", "keep_pictures"):
            stack.enter_context(mock.patch(f"{studies}.{name}"))
        stack.enter_context(mock.patch("reproduce.fill_pages"))
        stack.enter_context(mock.patch("bench.bench", return_value=timed))
        yield


def files_of(folder):
    """{path: when it was written last} of all but decoded pictures, which are kept for later."""
    paths = [path for path in folder.rglob("*") if not path.match("folder_*_*.npz")]
    return {path: path.lstat().st_mtime_ns for path in paths if not path.is_dir()}


def run(script, words, folder):
    """(outcome, what was said) of a command line in a folder."""
    main, parsed, original = script[0], [], cli.Parser.parse_known_args

    def noting(parser, args=None, namespace=None):
        found = original(parser, args, namespace)
        parsed.append(found[0])
        return found

    before = files_of(folder)
    with contextlib.chdir(folder), mock.patch.object(cli.Parser, "parse_known_args", noting):
        right = lambda said: all(map(is_sane, parsed))
        outcome, said = outcome_of(main, words, right, 2 * MEGABYTES)
    new = sorted(path.name for path, when in files_of(folder).items() if before.get(path) != when)
    if outcome in OUTCOMES[:2] and new:
        return UNCLEAN, f"{said}\nleft: {new}"
    return outcome, said


def drive(count, seed, make, found, whole, scratch):
    """([outcome of each case], [what was said of each that should not have been])."""
    outcomes, faults = [], []
    for number in range(count):
        rng = random.Random(f"{seed} {make.__name__} {number}")
        name = list(found)[number % len(found)]
        script = found[name]
        words, what = make(list(script[1]), script[2], number // len(found), rng)
        folder = scratch / f"case-{number}"
        shutil.copytree(whole, folder, symlinks=True)
        os.mkfifo(folder / "pipe")
        outcome, said = run(script, words, folder)
        outcomes.append(outcome)
        if outcome in FAULTS:
            faults.append(f"case {number}, {name} {what}: {outcome}\n{said}")
        shutil.rmtree(folder)
    return outcomes, faults


# ---------------------------------------------------------------- the command line


def parse(argv):
    parser = drive_parser(__doc__)
    parser.add_argument("--cases", type=int, default=700, help="command lines")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as scratch, without_long_work():
        whole = Path(scratch) / "whole"
        whole.mkdir()
        make_folder(whole)
        found = scripts()
        pairs = round(PAIRS * args.cases)
        for name, count, make in (
            ("bad values", args.cases - pairs, with_bad_value),
            ("options together", pairs, with_pair),
        ):
            outcomes, faults = drive(count, args.seed, make, found, whole, Path(scratch))
            results[name] = counted(outcomes)
            report(name, results[name], faults)
    return finish(results, args)


if __name__ == "__main__":
    sys.exit(main())
