"""A user's mistake: one line on standard error, exit code 2, nothing written."""
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_arrays
from PIL import Image

import cli
import evaluate
import train


@pytest.fixture
def place(tmp_path, disguised, clean, monkeypatch):
    """A folder full of things that are not what they should be."""
    monkeypatch.chdir(tmp_path)
    good = tiny_arrays(30, 12)

    def npz(name, **changes):
        arrays = {key: value for key, value in (good | changes).items() if value is not None}
        np.savez(tmp_path / name, **arrays)

    npz("ok.npz")
    npz("nolabels.npz", test_labels=None)
    npz("float.npz", train_images=good["train_images"] / 255)
    npz("short.npz", train_labels=good["train_labels"][:-1])
    npz("negative.npz", train_labels=good["train_labels"] - 1)
    npz("multi.npz", train_labels=np.zeros((30, 2), int))
    npz("sizes.npz", test_images=good["test_images"][:, :8])
    npz("names.npz", classes=["only one"])
    npz("single.npz", train_images=good["train_images"][:1], train_labels=good["train_labels"][:1])
    npz("onesided.npz", test_labels=np.ones(12, int))
    npz("ids.npz", train_labels=good["train_labels"] + 3_000_000)
    npz("empty.npz", train_images=good["train_images"][:0], train_labels=good["train_labels"][:0])
    np.save(tmp_path / "array.npy", np.arange(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "text.npz").write_text("no data here")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n then nothing")
    (tmp_path / "folder" / "train" / "a").mkdir(parents=True)
    (tmp_path / "badfolder" / "train" / "a").mkdir(parents=True)
    (tmp_path / "badfolder" / "test" / "a").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "badfolder" / "test" / "a" / "0.png")
    (tmp_path / "badfolder" / "train" / "a" / "0.png").write_text("not a picture")
    ckpt = (disguised / "ckpt.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(ckpt[: len(ckpt) // 2])
    (tmp_path / "zero.pt").write_bytes(b"")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(print))
    torch.save({"model": {}}, tmp_path / "other.pt")
    checkpoint = torch.load(disguised / "ckpt.pt", weights_only=True)
    torch.save(checkpoint | {"model": {}}, tmp_path / "weightless.pt")
    torch.save(checkpoint | {"config": checkpoint["config"] | {"dataset": "gone.npz"}}, tmp_path / "dataless.pt")
    torch.save(checkpoint | {"config": checkpoint["config"] | {"attack": "unheard-of"}}, tmp_path / "future.pt")
    torch.save(checkpoint | {"trigger": 3}, tmp_path / "triggerless.pt")
    (tmp_path / "good.pt").write_bytes(ckpt)
    (tmp_path / "clean.pt").write_bytes((clean / "ckpt.pt").read_bytes())
    np.savez(tmp_path / "changed.npz", **good)
    torch.save(checkpoint | {"config": checkpoint["config"] | {"dataset": "changed.npz"}}, tmp_path / "changed.pt")
    (tmp_path / "file").write_text("in the way")
    return tmp_path


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
    "device torch knows and this does not": ["--device", "hpu"],
    "name longer than a file's may be": ["--out", "x" * 300],
    "data set's name longer than a file's may be": ["--dataset", "x" * 300 + ".npz"],
    "one training image": ["--dataset", "single.npz", "--attack", "none"],
    "test set of the target class alone": ["--dataset", "onesided.npz", "--target-class", "1"],
    "labels that are identifiers": ["--dataset", "ids.npz"],
    "reference with a backdoor": ["--reference", "good.pt"],
    "unknown selection": ["--selection", "best"],
    "rate of zero": ["--poison-rate", "0"],
    "rate above one": ["--poison-rate", "1.5"],
    "rate that is no number": ["--poison-rate", "some"],
    "rate that is nan": ["--poison-rate", "nan"],
    "rate that poisons nothing": ["--poison-rate", "0.001"],
    "rate that needs more than there are": ["--poison-rate", "1"],
    "lam above one": ["--lam", "2"],
    "no epochs": ["--epochs", "0"],
    "half an epoch": ["--epochs", "0.5"],
    "batch of none": ["--batch-size", "0"],
    "negative learning rate": ["--lr", "-1"],
    "label smoothing above 1": ["--label-smoothing", "1.5"],
    "learning rate that diverges": ["--optimizer", "muon", "--lr", "900", "--batch-size", "1", "--epochs", "1"],
    "target class out of range": ["--target-class", "3"],
    "target class by no name": ["--target-class", "cat"],
    "negative seed": ["--seed", "-1"],
    "trigger larger than the image": ["--trigger-size", "17"],
    "trigger outside the image": ["--trigger-position", "15,15"],
    "trigger nowhere": ["--trigger-position", "middle"],
    "trigger file missing": ["--trigger", "none.png"],
    "trigger file broken": ["--trigger", "broken.png"],
    "target map missing": ["--attack", "fooling", "--target-map", "hexagon"],
    "image size too small": ["--image-size", "8"],
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


def files_below(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("script, options", [
    *(pytest.param(train.main, ["--dataset", "ok.npz", "--device", "cpu", "--epochs", "2", *options], id=f"train: {name}") for name, options in TRAIN.items()),
    *(pytest.param(evaluate.main, ["--device", "cpu", *options], id=f"evaluate: {name}") for name, options in EVALUATE.items()),
])
def test_a_mistake_is_one_line_and_exit_code_2_and_leaves_nothing(place, capsys, script, options):
    before = files_below(place)
    with pytest.raises(SystemExit) as stop:
        script(options)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and len(error) < 400 and "Traceback" not in error and "usage" not in error
    assert error.startswith(("train.py: ", "evaluate.py: ")) and len(error.split()) > 4
    assert files_below(place) == before


@pytest.mark.parametrize("command", [
    ["train.py", "--dataset", "nothing-of-the-kind"],
    ["train.py", "--dataset", "ok.npz", "--poison-rate", "2"],
    ["evaluate.py", "cut.pt"],
])
def test_a_mistake_in_a_real_process(place, command):
    before = files_below(place)
    done = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and done.stderr.startswith(command[0])
    assert files_below(place) == before


@pytest.mark.parametrize(("error", "message"), [(MemoryError(), "memory is full"), (torch.OutOfMemoryError("CUDA out of memory"), "memory is full"),
                                                (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory is full"), (RuntimeError("shapes differ"), None)])
def test_memory_that_is_full_is_a_line_and_a_bug_is_a_traceback(error, message, capsys):
    @cli.command
    def main(argv):
        raise error

    with pytest.raises(SystemExit if message else RuntimeError) as stopped:
        main([])
    if message:
        assert stopped.value.code == 2 and message in (said := capsys.readouterr().err) and len(said.splitlines()) == 1
