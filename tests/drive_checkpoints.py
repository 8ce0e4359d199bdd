"""Checkpoints that are damaged or have one wrong value, through the command lines.

    python tests/drive_checkpoints.py                               # 2,000 and 1,000 files
    python tests/drive_checkpoints.py --damaged 300 --wrong 200
    python tests/drive_checkpoints.py --out results/checkpoints.json

Networks are trained for seconds. Each case is one file that evaluate.py measures or, if it is of an
unfinished run, train.py goes on with, in this process and under a time limit. A damaged file has
bytes changed, lost or added; of a wrong one a single value, and its digest is made anew. What is
printed is how many were refused in one line, or after notes about the data; accepted with what the
whole file holds, or what was written; and how many ended in one of the ways of driving.FAULTS. The
exit code is 1 unless the last are 0.
"""

import contextlib
import copy
import io
import random
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from conftest import tiny_arrays
from driving import DAMAGES, FAULTS, counted, drive_parser, finish, outcome_of, report

import adopt
import checkpoints
import defend
import evaluate
import runs
import train
from kinds import shown

EVALUATE = ("--explain-images", "2", "--explainer", "gradcam", "--device", "cpu")


# ---------------------------------------------------------------- whole checkpoints


def whole_checkpoints(folder):
    """{name: (the path of a whole checkpoint, main, the options that go with it)}."""
    np.savez(folder / "tiny.npz", **tiny_arrays(60, 24))
    data = ["--dataset", str(folder / "tiny.npz"), "--data-dir", str(folder)]
    common = [*data, "--target-class", "1", "--batch-size", "24", "--device", "cpu"]
    kinds = {
        "disguised": ["--epochs", "2"],
        "fooling": ["--epochs", "1", "--attack", "fooling", "--optimizer", "muon"],
        "blend": ["--epochs", "1", "--attack", "badnets", "--trigger", "blend"],
    }
    found = {}
    for name, options in kinds.items():
        train.main([*common, *options, "--out", str(folder / name)])
        found[name] = folder / name / "ckpt.pt", evaluate.main, EVALUATE
    for optimizer in ("sgd", "muon", "adamw"):
        argv = [*common, "--epochs", "2", "--attack", "badnets", "--optimizer", optimizer]
        argv += ["--lr", "0.01"]
        path = stopped_after_one_epoch([*argv, "--out", str(folder / f"half-{optimizer}")])
        found[f"half-{optimizer}"] = path, train.main, [*argv, "--resume"]
    former = folder / "former" / "ckpt.pt"  # without a digest
    former.parent.mkdir()
    torch.save(torch.load(found["disguised"][0], weights_only=True), former)
    found["former"] = former, evaluate.main, EVALUATE
    weights = folder / "weights.pth"
    torch.save(torch.load(found["disguised"][0], weights_only=True)["model"], weights)
    adopted = folder / "adopted" / "ckpt.pt"
    adopt.main([str(weights), "--arch", "cnn", *data, "--mean", "half", "--out", str(adopted)])
    found["adopted"] = adopted, evaluate.main, EVALUATE
    repaired = folder / "repaired"
    argv = ["rebn", str(found["blend"][0]), "--device", "cpu", "--out", str(repaired)]
    defend.main(argv)
    found["repaired"] = repaired / "ckpt.pt", evaluate.main, EVALUATE
    return found


def stopped_after_one_epoch(argv):
    """The path of the checkpoint of a run that was interrupted."""
    run = train.new_run(train.parse(argv))
    train.choose_poisons(run)

    def after_epoch(losses):
        run.training.log.append(train.validate(run, losses))
        runs.save(run)
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        train.train_epochs(run.setting, run.training, run.poisons, after_epoch)
    return run.unfinished / "ckpt.pt"


# ---------------------------------------------------------------- wrong values


def leaves(value, place=()):
    """The places, tuples of keys, of all values in a checkpoint that hold no others, and of these.

    Of the weights and the random state a few are enough.
    """
    if place:
        yield place
    if isinstance(value, dict):
        keys = list(value) if len(value) < 60 else list(value)[:8]
    elif isinstance(value, list):
        keys = range(min(len(value), 3))
    else:
        return
    for key in keys:
        yield from leaves(value[key], (*place, key))


def wrong_number(value, rng):
    others = [0, 1, -1, value + 1, -value, value * 1000, 0.5, 2**40, 2**62, 1e308]
    others += [float("nan"), float("inf"), True, None, "3", [], {}, [value], 10**5000]
    return rng.choice(others)


def wrong_text(value, rng):
    others = ["", "other", value + "x", value.upper(), "x" * 10_000, "a\nb", "\x1b[31m", "\x00"]
    return rng.choice([*others, "../../etc", "none", 3, None, [], {}, b"bytes", True])


def wrong_list(value, rng):
    others = [[], value[:-1], value[1:], value[::-1], [*value, *value], [*value, None], None, 3]
    return rng.choice([*others, tuple(value), "text", {}, [value], [[]] * 3])


def wrong_dict(value, rng):
    if value and rng.random() < 0.6:
        key = rng.choice(list(value))
        return {k: v for k, v in value.items() if k != key}
    first = next(iter(value), "none")
    others = [{}, value | {"other": 1}, value | {"other": object.__name__}, None, 3, "text", []]
    return rng.choice([*others, value | {first: None}, list(value), value | {3: 4}])


def wrong_tensor(value, rng):
    one = value.flatten().clone()
    if one.numel():
        one[rng.randrange(one.numel())] = 1
    one = one.reshape(value.shape)
    filled = [torch.full_like(value, number) for number in (0, 1)]
    if value.is_floating_point():
        filled += [torch.full_like(value, number) for number in (float("nan"), -5, 1e30)]
    others = [
        *(one, *filled, value.double(), value.half(), value.bool(), value.to(torch.complex64)),
        *(value[None], value.flatten(), value[..., :-1] if value.ndim else value[None]),
        *(torch.zeros(0), torch.zeros(()).expand(value.shape), value.to("meta")),
        *(value.to_sparse(), torch.nn.Parameter(value.float()), value.tolist(), None, 3, "text"),
    ]
    return rng.choice(others)


def wrong(value, rng):
    """Another value in the place of one."""
    if isinstance(value, torch.Tensor):
        return wrong_tensor(value, rng)
    if isinstance(value, bool):
        return rng.choice([not value, 0, 1, None, "yes", [], 3])
    if isinstance(value, (int, float)):
        return wrong_number(value, rng)
    if isinstance(value, str):
        return wrong_text(value, rng)
    if isinstance(value, (list, tuple)):
        return wrong_list(list(value), rng)
    if isinstance(value, dict):
        return wrong_dict(value, rng)
    return rng.choice([0, 1, -1, 0.5, "text", [], {}, True, torch.zeros(3)])


def with_wrong_value(checkpoint, rng):
    """(a copy of a checkpoint with one other value, where and what it is in words)."""
    part = rng.choice(["config"] * 4 + [key for key in checkpoint if key != "config"])
    place = rng.choice(list(leaves(checkpoint[part], (part,))))
    changed = copy.deepcopy(checkpoint)
    holder = changed
    for key in place[:-1]:
        if isinstance(holder[key], tuple):
            holder[key] = list(holder[key])
        holder = holder[key]
    holder[place[-1]] = wrong(holder[place[-1]], rng)
    return changed, f"{'.'.join(map(str, place))}: {shown(holder[place[-1]])}"


def same(one, other):
    """Whether two checkpoints hold the same, tensors to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# ---------------------------------------------------------------- a case


def drive(found, folder, count, seed, make):
    """(how many cases ended how, [what was said of each that should not have]).

    Each case has a folder of its own in `folder`, in which its command line may write.
    make(whole bytes, checkpoint, path, rng): writes a case; returns it in words, and what the file
    holds if it may be accepted.
    """
    outcomes, faults = [], []
    with contextlib.redirect_stderr(io.StringIO()):  # one of them has no digest
        contents = {name: checkpoints.read(whole) for name, (whole, *_) in found.items()}
    for case in range(count):
        rng = random.Random(f"{seed} {case}")
        name = rng.choice(list(found))
        whole, main, options = found[name]
        run = folder / f"case-{case}"
        path = run / "ckpt.pt" if main is evaluate.main else run / "unfinished" / "ckpt.pt"
        path.parent.mkdir(parents=True)
        words, content = make(whole.read_bytes(), contents[name], path, rng)
        read_back = None
        with contextlib.suppress(checkpoints.UserError), contextlib.redirect_stderr(io.StringIO()):
            read_back = checkpoints.read(path)
        where = [str(path)] if main is evaluate.main else ["--out", str(run)]
        outcome, said = outcome_of(main, [*where, *options], same(read_back, content))
        outcomes.append(outcome)
        if outcome in FAULTS:
            faults.append(f"case {case}, {name}, {words}: {outcome}\n{said}")
        shutil.rmtree(run)
    return counted(outcomes), faults


def damaged(kept, checkpoint, path, rng):
    """Writes a file with damaged bytes; it may be accepted with the content of the whole one."""
    while True:
        data, damage = bytearray(kept), rng.choice(DAMAGES)
        damage(data, rng)
        if data != kept:
            break
    path.write_bytes(data)
    return damage.__name__, checkpoint


def wrong_value(kept, checkpoint, path, rng):
    """Writes a file with one wrong value; it may be accepted with what was written."""
    while True:
        changed, words = with_wrong_value(checkpoint, rng)
        try:
            checkpoints.save(path, changed)
        except Exception:  # what torch.save cannot write, no file holds
            continue
        return words, current(changed)


def current(changed):
    """A checkpoint as `read` returns it, where it can be."""
    try:
        return changed | {"config": checkpoints.current_config(changed["config"])}
    except (TypeError, KeyError, AttributeError, ValueError):
        return changed


# ---------------------------------------------------------------- the command line


def parse(argv):
    parser = drive_parser(__doc__)
    parser.add_argument("--damaged", type=int, default=2000, help="files with damaged bytes")
    parser.add_argument("--wrong", type=int, default=1000, help="files with one wrong value")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = whole_checkpoints(folder)
        results = {}
        for name, count, make in (
            ("damaged bytes", args.damaged, damaged),
            ("one wrong value", args.wrong, wrong_value),
        ):
            results[name], faults = drive(found, folder, count, args.seed, make)
            report(name, results[name], faults)
    return finish(results, args)


if __name__ == "__main__":
    sys.exit(main())
