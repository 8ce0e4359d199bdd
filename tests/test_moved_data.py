"""Data that have been moved since training: named, looked for, and told apart by their content."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_arrays, train_tiny
from PIL import Image
from placing import DEVICE

import checkpoints
import defend
import evaluate
import runs
import train
from subject import open_checkpoint

CPU = torch.device(DEVICE)
QUICK = ("--epochs", "1", "--attack", "badnets")
FEW = ("--device", DEVICE, "--json", "--explain-images", "6")


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A folder with home/set.npz and runs/one, a run on it."""
    root = tmp_path_factory.mktemp("root")
    (root / "home").mkdir()
    np.savez(root / "home" / "set.npz", **tiny_arrays())
    train_tiny(root / "home" / "set.npz", root / "runs" / "one", *QUICK)
    return root


@pytest.fixture
def root(trained_once, tmp_path, monkeypatch):
    """A copy of it that is the current folder; set.npz lies in new/, not where training found it.

    The checkpoint names home/set.npz, by the path it had.
    """
    root = shutil.copytree(trained_once, tmp_path / "root")
    config = {"dataset": "home/set.npz", "data_dir": "home"}
    change_config(root / "runs" / "one" / "ckpt.pt", **config)
    (root / "home").rename(root / "new")
    monkeypatch.chdir(root)
    return root


def change_config(path, **entries):
    """Changes the config of a checkpoint in its file."""
    checkpoint = torch.load(path, weights_only=True)
    checkpoints.save(path, checkpoint | {"config": checkpoint["config"] | entries})


def change_labels(source, path):
    """Writes an .npz with other test labels, the images the same."""
    arrays = dict(np.load(source))
    np.savez(path, **arrays | {"test_labels": np.roll(arrays["test_labels"], 1)})


def opened(*places):
    return open_checkpoint("runs/one/ckpt.pt", *places, device=CPU)


# ---------------------------------------------------------------- measured


def test_data_that_are_gone_are_refused_with_what_to_do(root, refusal):
    line = refusal(evaluate.main, ["runs/one/ckpt.pt", *FEW])
    assert "data set home/set.npz that runs/one/ckpt.pt was trained on is not there" in line
    assert "--dataset PATH says where it is now" in line


def test_evaluate_takes_the_data_set_that_is_named(root, capsys):
    evaluate.main(["runs/one/ckpt.pt", *FEW, "--dataset", "new/set.npz"])
    assert json.loads(capsys.readouterr().out)["n_test"] == 60


def test_defend_takes_the_data_set_that_is_named(root):
    argv = ["inspect", "runs/one/ckpt.pt", "--device", DEVICE, "--dataset", "new/set.npz"]
    defend.main([*argv, "--out", "verdict"])
    verdict = json.loads((root / "verdict" / "verdict.json").read_text())
    assert "dataset" not in verdict["settings"]


def test_a_data_set_that_is_named_and_is_not_there_is_refused(root, refusal):
    line = refusal(evaluate.main, ["runs/one/ckpt.pt", *FEW, "--dataset", "nowhere/set.npz"])
    assert "--dataset nowhere/set.npz: there is no such file" in line


@pytest.mark.parametrize("script", [evaluate, defend])
def test_a_data_set_that_is_named_and_is_another_is_refused(script, root, refusal):
    change_labels("new/set.npz", "new/other.npz")
    method = ["inspect"] if script is defend else []
    argv = [*method, "runs/one/ckpt.pt", "--device", DEVICE, "--dataset", "new/other.npz"]
    assert "new/other.npz found now is not the one" in refusal(script.main, argv)


def test_data_are_looked_for_by_name_in_data_dir_and_that_is_said(root, capsys):
    assert len(opened("new").dataset.test_labels) == 60
    line = capsys.readouterr().err
    assert line == "The data set is no longer home/set.npz: new/set.npz is taken.\n"


def test_data_are_looked_for_by_name_beside_the_checkpoint_and_that_is_said(root, capsys):
    shutil.copy("new/set.npz", "runs/one/set.npz")
    assert len(opened().dataset.test_labels) == 60
    assert "runs/one/set.npz is taken" in capsys.readouterr().err


def test_data_that_another_machine_named_by_a_path_of_windows_are_found(root):
    change_config("runs/one/ckpt.pt", dataset="C:\\Users\\me\\set.npz")
    assert len(opened("new").dataset.test_labels) == 60


def test_data_that_have_come_back_are_taken_without_a_word(root, capsys):
    (root / "new").rename(root / "home")
    opened()
    assert capsys.readouterr().err == ""


def test_other_data_of_that_name_are_passed_over(root, capsys):
    (root / "home").mkdir()
    change_labels("new/set.npz", "home/set.npz")
    opened("new")
    assert "new/set.npz is taken" in capsys.readouterr().err


def test_other_data_of_that_name_alone_are_refused(root, refusal):
    (root / "home").mkdir()
    change_labels("new/set.npz", "home/set.npz")
    line = refusal(evaluate.main, ["runs/one/ckpt.pt", *FEW])
    assert "home/set.npz found now is not the one" in line


def test_a_folder_with_a_star_in_its_name_is_looked_for_by_that_name(root, refusal):
    change_config("runs/one/ckpt.pt", dataset="ho[m]e*")
    line = refusal(evaluate.main, ["runs/one/ckpt.pt", *FEW, "--data-dir", "new"])
    assert "data set ho[m]e* that" in line


# ---------------------------------------------------------------- folders of pictures


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A run on a/photos, a folder of pictures, under the current folder; its checkpoint's path."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "a" / "photos" / split / name
            folder.mkdir(parents=True)
            for k in range(n):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{k}.png")
    argv = ["--dataset", "a/photos", "--device", DEVICE, *QUICK, "--out", "run"]
    train.main([*argv, "--image-size", "16"])
    return "run/ckpt.pt"


def test_a_folder_of_pictures_that_was_moved_is_found_in_data_dir(photos, tmp_path, capsys):
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(open_checkpoint(photos, "b", CPU).dataset.test_labels) == 8
    assert "b/photos is taken" in capsys.readouterr().err


def test_a_folder_of_pictures_that_is_gone_is_replaced_by_what_was_decoded(
    photos, tmp_path, capsys
):
    shutil.rmtree(tmp_path / "a")
    assert len(open_checkpoint(photos, device=CPU).dataset.test_labels) == 8
    assert "data/photos_16" in capsys.readouterr().err


def test_a_folder_of_pictures_that_lacks_one_now_is_another(photos, tmp_path, refusal):
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b" / "photos" / "test" / "cat" / "0.png").unlink()
    line = refusal(evaluate.main, [photos, *FEW, "--dataset", "b/photos"])
    assert "b/photos found now is not the one" in line


# ---------------------------------------------------------------- trained with a reference


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """Function of options: train.py's for a run that begins from clean/ckpt.pt, which is trained.

    All lies under the current folder.
    """
    monkeypatch.chdir(tmp_path)
    np.savez("set.npz", **tiny_arrays())
    common = ["--dataset", "set.npz", "--device", DEVICE, "--epochs", "1"]
    train.main([*common, "--attack", "none", "--out", "clean"])

    def argv(reference, *more):
        held = ["--attack", "full_disguise", "--reference", reference, "--out", "run"]
        return [*common, *held, *more]

    return argv


def kept(argv):
    """Saves a run before its first step, as if it had been stopped there."""
    run = train.new_run(train.parse(argv))
    train.choose_poisons(run)
    runs.save(run)
    return run.unfinished / "ckpt.pt"


def resumed(argv):
    return runs.resume(train.new_run(train.parse(argv)))


@pytest.mark.parametrize("spelling", ["./clean/ckpt.pt", "clean/../clean/ckpt.pt", "moved/c.pt"])
def test_a_run_goes_on_with_its_reference_however_that_is_spelled(spelling, beside, tmp_path):
    kept(beside("clean/ckpt.pt"))
    shutil.copytree(tmp_path / "clean", tmp_path / "moved")
    (tmp_path / "moved" / "ckpt.pt").rename(tmp_path / "moved" / "c.pt")
    assert resumed(beside(spelling))


def test_a_run_from_before_references_had_digests_goes_on_with_a_copy(beside, tmp_path):
    path = kept(beside("clean/ckpt.pt"))
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["reference_weights"]
    torch.save(checkpoint, path)
    shutil.copy("clean/ckpt.pt", "copy.pt")
    assert resumed(beside("copy.pt"))


def test_a_run_does_not_go_on_with_another_reference(beside, refusal):
    kept(beside("clean/ckpt.pt"))
    train.main([*beside("clean/ckpt.pt")[:4], "--attack", "none", "--epochs", "1", "--seed", "1"])
    (other,) = [str(path) for path in sorted(Path("runs").glob("none*/ckpt.pt"))]
    line = refusal(train.main, beside(other, "--resume"))
    assert "has --reference clean/ckpt.pt, not runs/none" in line


def test_a_run_does_not_go_on_when_its_references_file_holds_another(beside, refusal):
    kept(beside("clean/ckpt.pt"))
    data = beside("clean/ckpt.pt")[:4]
    clean = ["--attack", "none", "--epochs", "1", "--seed", "1", "--out", "clean"]
    train.main([*data, *clean, "--overwrite"])
    line = refusal(train.main, beside("clean/ckpt.pt", "--resume"))
    assert "the reference has changed since" in line


def test_a_run_goes_on_with_its_data_however_they_are_spelled(beside, tmp_path):
    argv = beside("clean/ckpt.pt")
    kept(argv)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy("set.npz", "elsewhere/again.npz")
    argv[argv.index("set.npz")] = "elsewhere/again.npz"
    assert resumed(argv)


def test_a_run_goes_on_with_its_trigger_however_that_is_spelled(beside, tmp_path):
    Image.new("RGB", (2, 2), "red").save("red.png")
    shutil.copy("red.png", "copied.png")
    kept(beside("clean/ckpt.pt", "--trigger", "red.png"))
    assert resumed(beside("clean/ckpt.pt", "--trigger", "copied.png"))
    assert resumed(beside("clean/ckpt.pt", "--trigger", "red"))
