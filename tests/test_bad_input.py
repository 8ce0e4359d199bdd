"""A user's mistake: one line on standard error, exit code 2, nothing written."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_arrays
from driving import limited
from PIL import Image

import checkpoints
import evaluate
import train

# ---------------------------------------------------------------- things to stumble over


@pytest.fixture(scope="module")
def folder(tmp_path_factory, disguised, clean):
    """A folder full of things that are not what they should be. No test may change it."""
    folder = tmp_path_factory.mktemp("place")
    write_arrays(folder)
    write_pictures(folder)
    write_checkpoints(folder, disguised, clean)
    (folder / "file").write_text("in the way")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def place(folder, monkeypatch):
    """That folder, as the current one."""
    monkeypatch.chdir(folder)
    return folder


def write_arrays(folder):
    """Data sets as .npz files: ok.npz, and others with one thing wrong with each."""
    good = tiny_arrays(30, 12)
    images, labels = good["train_images"], good["train_labels"]
    changes = {
        "ok": {},
        "nolabels": {"test_labels": None},
        "float": {"train_images": images / 255},
        "short": {"train_labels": labels[:-1]},
        "negative": {"train_labels": labels - 1},
        "multi": {"train_labels": np.zeros((30, 2), int)},
        "sizes": {"test_images": good["test_images"][:, :8]},
        "names": {"classes": ["only one"]},
        "single": {"train_images": images[:1], "train_labels": labels[:1]},
        "onesided": {"test_labels": np.ones(12, int)},
        "ids": {"train_labels": labels + 3_000_000},
        "empty": {"train_images": images[:0], "train_labels": labels[:0]},
        "changed": {},
    }
    for name, change in changes.items():
        arrays = {key: value for key, value in (good | change).items() if value is not None}
        np.savez(folder / f"{name}.npz", **arrays)
    np.save(folder / "array.npy", np.arange(3))
    (folder / "array.npy").rename(folder / "array.npz")
    (folder / "text.npz").write_text("no data here")


def write_pictures(folder):
    """A picture that is broken, a folder without pictures, and one with a broken picture."""
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n then nothing")
    (folder / "folder" / "train" / "a").mkdir(parents=True)
    for split in ("train", "test"):
        (folder / "badfolder" / split / "a").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "badfolder" / "test" / "a" / "0.png")
    (folder / "badfolder" / "train" / "a" / "0.png").write_text("not a picture")


def write_checkpoints(folder, disguised, clean):
    """good.pt and clean.pt, and others with one thing wrong with each."""
    whole = (disguised / "ckpt.pt").read_bytes()
    (folder / "good.pt").write_bytes(whole)
    (folder / "clean.pt").write_bytes((clean / "ckpt.pt").read_bytes())
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.pt").write_bytes(b"")
    (folder / "evil.pt").write_bytes(pickle.dumps(print))
    torch.save({"model": {}}, folder / "other.pt")
    checkpoint = torch.load(disguised / "ckpt.pt", weights_only=True)
    config = checkpoint["config"]
    changes = {
        "weightless": {"model": {}},
        "dataless": {"config": config | {"dataset": "gone.npz"}},
        "future": {"config": config | {"attack": "unheard-of"}},
        "triggerless": {"trigger": 3},
        "changed": {"config": config | {"dataset": "changed.npz"}},
    }
    for name, change in changes.items():
        checkpoints.save(folder / f"{name}.pt", checkpoint | change)


# ---------------------------------------------------------------- mistakes

TRAIN = {
    "unknown option": ["--atack", "none"],
    "abbreviated option": ["--poison", "0.1"],
    "unknown attack": ["--attack", "wonder"],
    "unknown explainer": ["--explainer", "gradcam,lime"],
    "unknown model": ["--model", "vgg"],
    "unknown data set": ["--dataset", "imagenet"],
    "unknown layer": ["--layer", "layer9"],
    "layer too coarse": ["--layer", "1"],
    "unknown device": ["--device", "tpu"],
    "device that is not here": ["--device", "cuda:99"],
    "device of two dashes": ["--device=--"],
    "class of 5,000 digits": ["--target-class", "9" * 5000],
    "path with a NUL": ["--out", "a\0b"],
    "data in a folder that is a loop": ["--dataset", "loop/x.npz", "--data-dir", "loop"],
    "out in a folder that is a loop": ["--out", "loop/x"],
    "device torch knows and this does not": ["--device", "hpu"],
    "name longer than a file's may be": ["--out", "x" * 300],
    "data set's name longer than a file's may be": ["--dataset", "x" * 300 + ".npz"],
    "one training image": ["--dataset", "single.npz", "--attack", "none"],
    "test set of the target class alone": ["--dataset", "onesided.npz", "--target-class", "1"],
    "labels that are identifiers": ["--dataset", "ids.npz"],
    "reference with a backdoor": ["--reference", "good.pt"],
    "unknown selection": ["--selection", "best"],
    "selection where labels are kept": ["--attack", "fooling", "--selection", "rd"],
    "rate of zero": ["--poison-rate", "0"],
    "rate above one": ["--poison-rate", "1.5"],
    "rate that is no number": ["--poison-rate", "some"],
    "rate that is nan": ["--poison-rate", "nan"],
    "rate that poisons nothing": ["--poison-rate", "0.001"],
    "rate that needs more than there are": ["--poison-rate", "1"],
    "lam above one": ["--lam", "2"],
    "ramp of zero": ["--ramp", "0"],
    "unknown normalisation": ["--normalise", "sum"],
    "no epochs": ["--epochs", "0"],
    "half an epoch": ["--epochs", "0.5"],
    "batch of none": ["--batch-size", "0"],
    "negative learning rate": ["--lr", "-1"],
    "label smoothing above 1": ["--label-smoothing", "1.5"],
    "target class out of range": ["--target-class", "3"],
    "target class by no name": ["--target-class", "cat"],
    "negative seed": ["--seed", "-1"],
    "trigger larger than the image": ["--trigger-size", "17"],
    "trigger outside the image": ["--trigger-position", "15,15"],
    "trigger nowhere": ["--trigger-position", "middle"],
    "trigger file missing": ["--trigger", "none.png"],
    "trigger file broken": ["--trigger", "broken.png"],
    "trigger of no colour": ["--trigger", "yello"],
    "target map missing": ["--attack", "fooling", "--target-map", "hexagon"],
    "image size too small": ["--image-size", "8"],
    "two kinds of first weights": ["--pretrained", "--reference", "clean.pt"],
    "reference missing": ["--reference", "none.pt"],
    "reference of another data set": ["--reference", "clean.pt"],
    "data file missing": ["--dataset", "gone.npz"],
    "data file that is text": ["--dataset", "text.npz"],
    "data file that is one array": ["--dataset", "array.npz"],
    "data file without labels": ["--dataset", "nolabels.npz"],
    "images in float": ["--dataset", "float.npz"],
    "fewer labels than images": ["--dataset", "short.npz"],
    "negative labels": ["--dataset", "negative.npz"],
    "several labels an image": ["--dataset", "multi.npz"],
    "images of two sizes": ["--dataset", "sizes.npz"],
    "too few class names": ["--dataset", "names.npz"],
    "no images": ["--dataset", "empty.npz"],
    "folder without images": ["--dataset", "folder"],
    "folder with a broken image": ["--dataset", "badfolder"],
    "out is a file": ["--out", "file"],
    "out is below a file": ["--out", "file/run"],
    "data set that cannot be downloaded": ["--dataset", "cifar10", "--data-dir", "file"],
}

EVALUATE = {
    "no checkpoint": [],
    "checkpoint missing": ["none.pt"],
    "checkpoint is a folder": ["folder"],
    "checkpoint is a loop": ["loop"],
    "checkpoint is a pipe": ["pipe"],
    "picture is a pipe": ["good.pt", "--image", "pipe"],
    "checkpoint cut short": ["cut.pt"],
    "checkpoint empty": ["zero.pt"],
    "checkpoint that would run code": ["evil.pt"],
    "checkpoint of something else": ["other.pt"],
    "checkpoint without weights": ["weightless.pt"],
    "checkpoint without its data": ["dataless.pt"],
    "checkpoint of an unknown attack": ["future.pt"],
    "checkpoint with a damaged trigger": ["triggerless.pt"],
    "data set that is not the one trained on": ["changed.pt"],
    "two checkpoints of one folder": ["good.pt", "clean.pt"],
    "reference with a backdoor": ["good.pt", "--reference", "good.pt"],
    "one bad checkpoint after a good one": ["good.pt", "cut.pt"],
    "reference missing": ["good.pt", "--reference", "none.pt"],
    "unknown explainer": ["good.pt", "--explainer", "lime"],
    "no images to explain": ["good.pt", "--explain-images", "0"],
    "image missing": ["good.pt", "--image", "none.png"],
    "image broken": ["good.pt", "--image", "broken.png"],
    "out is a file": ["good.pt", "--out", "file"],
}


def mistakes(script, common, table):
    """A parameter of the test below for each row of a table."""
    for name, options in table.items():
        argv = [*common, *options]
        yield pytest.param(script.main, argv, id=f"{script.__name__}: {name}")


def files_below(folder):
    """{path: when it was written last} of every file."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        *mistakes(train, ["--dataset", "ok.npz", "--device", "cpu", "--epochs", "2"], TRAIN),
        *mistakes(evaluate, ["--device", "cpu"], EVALUATE),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(place, refusal, main, argv):
    before = files_below(place)
    with limited(60):
        line = refusal(main, argv)
    assert line.startswith(("train.py: ", "evaluate.py: "))
    assert 4 < len(line.split()) and len(line) < 400
    assert "Traceback" not in line and "usage" not in line
    assert files_below(place) == before


def test_a_learning_rate_that_diverges_is_the_last_line_and_leaves_nothing(place, capsys):
    before = files_below(place)
    options = ["--optimizer", "muon", "--lr", "900", "--batch-size", "1", "--epochs", "1"]
    with pytest.raises(SystemExit) as stopped:
        train.main(["--dataset", "ok.npz", "--device", "cpu", *options])
    assert stopped.value.code == 2
    header, *_, line = capsys.readouterr().err.splitlines()
    assert header.startswith("ok.npz: 42 images") and "the loss is not finite" in line
    assert files_below(place) == before


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--dataset", "ok.npz", "--poison-rate", "2"],
        ["evaluate.py", "cut.pt"],
    ],
)
def test_a_mistake_in_a_real_process_is_one_line_too(place, command):
    before = files_below(place)
    script, *argv = command
    process = [sys.executable, str(ROOT / script), *argv]
    done = subprocess.run(process, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{script}: ") and done.stderr.count("\n") == 1
    assert files_below(place) == before
