"""A file of the user's is neither overwritten nor deleted, and no result becomes data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_argv, tiny_arrays
from PIL import Image
from placing import DEVICE

import adopt
import checkpoints
import comparison
import defend
import evaluate
import manipulate
import options
import ours
import report
import train

CPU = ["--device", DEVICE]
FEW = [*CPU, "--explain-images", "4", "--explainer", "gradient"]
QUICK = ("--epochs", "1", "--attack", "badnets", "--precision", "float32")
MINE = b"mine"


def white(path, size=16):
    """A picture of the user's, made by another program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), "white").save(path)
    return path


@pytest.fixture
def run(run_under, tmp_path):
    """A folder with nothing but the checkpoint of a run."""
    (tmp_path / "run").mkdir()
    shutil.copy(run_under("badnets") / "ckpt.pt", tmp_path / "run")
    return tmp_path / "run"


def not_measured(*args, **options):
    raise AssertionError("it is measured before what is in the way is refused")


# ---------------------------------------------------------------- whose a file is


@pytest.mark.parametrize(
    ("name", "text", "mine"),
    [
        ("metrics.json", '{"attack": "badnets", "explanations": {}}', False),
        ("metrics.json", '{"accuracy": 0.9}', True),
        ("metrics.json", '{"attack": ', True),
        ("metrics.json", "[1, 2]", True),
        ("metrics.json", "", False),  # nothing is lost by it
        ("verdict.json", '{"method": "prune", "backdoored": null}', False),
        ("verdict.json", '{"guilty": true}', True),
        ("comparison.json", '{"a": {"attack": "none", "explanations": {}}}', False),
        ("comparison.json", '{"a": {"attack": "none", "explanations": {}}, "b": 1}', True),
        ("comparison.json", "{}", True),
        ("log.jsonl", '{"epoch": 1, "loss": 0.1}\n{"epoch": 2', False),
        ("log.jsonl", '{"time": 1}\n', True),
        ("figure.png", "no picture", True),
        ("ckpt.pt", "no checkpoint", True),
        ("report.html", "<html>", True),
    ],
)
def test_a_file_is_told_by_what_is_in_it(name, text, mine, tmp_path):
    (tmp_path / name).write_text(text)
    assert ours.is_ours(tmp_path / name) != mine


def test_a_folder_of_such_a_name_is_the_users(tmp_path):
    (tmp_path / "figure.png").mkdir()
    assert not ours.is_ours(tmp_path / "figure.png")


def test_a_picture_is_told_by_its_mark(tmp_path):
    own = white(tmp_path / "figure.png")
    assert not ours.is_ours(own)
    ours.save_picture(Image.open(own).copy(), tmp_path / "saved.png")
    assert ours.is_ours(tmp_path / "saved.png")


@pytest.mark.parametrize(
    ("name", "record", "told"),
    [
        ("figure.png", "metrics.json", True),
        ("figure-gradcam.png", "verdict.json", True),
        ("comparison.png", "comparison.json", True),
        ("comparison.png", "metrics.json", False),  # which is not written with it
        ("cat-explained.png", "metrics.json", False),
    ],
)
def test_a_picture_of_an_earlier_version_is_told_by_the_record_beside_it(
    name, record, told, tmp_path
):
    white(tmp_path / name)
    (tmp_path / record).write_text('{"attack": "none", "explanations": {}}')
    assert ours.is_ours(tmp_path / name) == told


def test_checkpoints_of_trainings_and_of_repairs_are_told_apart(run_under, run):
    ours.check_replaceable(run, ["ckpt.pt"])
    with pytest.raises(ours.UserError, match="is of a training"):
        ours.check_replaceable(run, ["ckpt.pt"], trained=False)
    checkpoint = checkpoints.read(run / "ckpt.pt")
    checkpoint["config"]["edit"] = {"technique": "prune", "channels": 3}
    checkpoints.save(run / "ckpt.pt", checkpoint)
    ours.check_replaceable(run, ["ckpt.pt"], trained=False)


# ---------------------------------------------------------------- refused, and not lost


@pytest.mark.parametrize("name", ["metrics.json", "figure.png", "figure-gradcam.png"])
@pytest.mark.parametrize("beside", [True, False])
def test_evaluate_keeps_a_file_of_the_users(name, beside, run, tmp_path, refusal, monkeypatch):
    monkeypatch.setattr(evaluate, "evaluate", not_measured)
    folder = run if beside else tmp_path / "mine"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(MINE)
    out = [] if beside else ["--out", str(folder)]
    line = refusal(evaluate.main, [str(run), *FEW, *out])
    assert str(folder / name) in line and "another --out" in line
    assert (folder / name).read_bytes() == MINE


@pytest.mark.parametrize("name", ["comparison.json", "comparison.png", "2/metrics.json"])
def test_a_comparison_keeps_a_file_of_the_users(
    name, run, run_under, tmp_path, refusal, monkeypatch
):
    monkeypatch.setattr(evaluate, "evaluate", not_measured)
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(MINE)
    other = str(run_under("none"))
    line = refusal(evaluate.main, [str(run), other, *FEW, "--out", str(tmp_path / "mine")])
    assert str(path) in line and path.read_bytes() == MINE


def test_measuring_again_replaces_what_was_measured(run):
    for _ in range(2):
        evaluate.main([str(run), *FEW])
    assert ours.is_ours(run / "figure.png")
    Image.open(run / "figure.png").copy().save(run / "figure.png")  # as it was before the mark
    evaluate.main([str(run), *FEW])
    assert ours.is_marked(run / "figure.png")


@pytest.mark.parametrize("name", ["verdict.json", "figure.png", "ckpt.pt", "repaired.pth"])
def test_a_defence_keeps_a_file_of_the_users(name, run, tmp_path, refusal):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(MINE)
    line = refusal(defend.main, ["prune", str(run), *CPU, "--out", str(tmp_path / "mine")])
    assert str(tmp_path / "mine" / name) in line and "another --out" in line
    assert (tmp_path / "mine" / name).read_bytes() == MINE


@pytest.mark.parametrize("name", ["report.html", "verdict.json"])
def test_an_audit_keeps_a_file_of_the_users(name, run, refusal):
    (run / "defend-audit").mkdir()
    (run / "defend-audit" / name).write_bytes(MINE)
    assert name in refusal(defend.main, ["audit", str(run), *CPU])
    assert (run / "defend-audit" / name).read_bytes() == MINE


def test_a_picture_whose_name_is_known_late_is_kept_too(tmp_path):
    white(tmp_path / "patch-cat.png")
    picture = Image.new("RGB", (4, 4))
    with pytest.raises(ours.UserError, match="patch-cat.png"):
        defend.write({"method": "x"}, picture, tmp_path, {"patch-cat.png": picture})
    assert [path.name for path in tmp_path.iterdir()] == ["patch-cat.png"]


def test_a_repair_does_not_replace_the_network_of_a_training(run, run_under, tmp_path, refusal):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(run_under("none") / "ckpt.pt", other)
    before = (other / "ckpt.pt").read_bytes()
    line = refusal(defend.main, ["prune", str(run), *CPU, "--out", str(other)])
    assert "is of a training, and would be lost" in line
    assert (other / "ckpt.pt").read_bytes() == before


@pytest.mark.parametrize("name", ["metrics.json", "figure.png", "ckpt.pt"])
def test_manipulate_keeps_a_file_of_the_users(name, tiny, tmp_path, refusal):
    vgg = ("--epochs", "1", "--attack", "none", "--model", "vgg_small")
    train.main(tiny_argv(tiny, tmp_path / "vgg", *vgg))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(MINE)
    argv = ["constant", str(tmp_path / "vgg"), *CPU, "--out", str(tmp_path / "mine")]
    assert str(tmp_path / "mine" / name) in refusal(manipulate.main, argv)
    assert (tmp_path / "mine" / name).read_bytes() == MINE


NAMES = ["metrics.json", "figure.png", "log.jsonl", "selection.json", "ckpt.pt"]


@pytest.mark.parametrize("name", [*NAMES, "unfinished/ckpt.pt", "unfinished/figure.png"])
@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_training_keeps_a_file_of_the_users(name, more, tiny, tmp_path, refusal):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(MINE)
    line = refusal(train.main, tiny_argv(tiny, tmp_path / "run", *QUICK, *more))
    assert str(path) in line and "another --out" in line
    assert path.read_bytes() == MINE


# ---------------------------------------------------------------- one picture of the user's


def test_pictures_that_differ_in_their_suffix_have_files_of_their_own(run, tmp_path):
    white(tmp_path / "dup.png")
    white(tmp_path / "dup.jpg")
    white(tmp_path / "other" / "dup.jpg")
    images = [tmp_path / "dup.png", tmp_path / "dup.jpg", tmp_path / "other" / "dup.jpg"]
    for image in [*images, *images]:  # the second time each replaces its own
        argv = [str(run), *FEW, "--image", str(image), "--out", str(tmp_path / "out")]
        evaluate.main(argv)
    told = {
        path.name: json.loads(path.read_text())["image"]
        for path in (tmp_path / "out").glob("*.json")
    }
    stems = ["dup", "dup.jpg", "dup.jpg-2"]
    assert told == {f"{stem}-explained.json": str(image) for stem, image in zip(stems, images)}
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_an_explained_picture_of_the_users_is_kept(run, tmp_path, refusal):
    white(tmp_path / "cat.png")
    mine = white(tmp_path / "out" / "cat-explained.png")
    before = mine.read_bytes()
    argv = [str(run), *FEW, "--image", str(tmp_path / "cat.png"), "--out", str(tmp_path / "out")]
    assert str(mine) in refusal(evaluate.main, argv)
    assert mine.read_bytes() == before
    assert report.stem_for(tmp_path / "out", tmp_path / "cat.png") == "cat"


# ---------------------------------------------------------------- no result becomes data


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 36 pictures, a folder a class."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    arrays = tiny_arrays(36, 6)
    for k, (image, label) in enumerate(zip(arrays["train_images"], arrays["train_labels"])):
        path = folder / f"class{label}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="module")
def of_photos(photos):
    """The folder of a run on `photos`, beside them."""
    out = photos.parent / "run"
    train.main(tiny_argv(photos, out, *QUICK, "--batch-size", "8"))
    return out


@pytest.mark.parametrize("below", [".", "class1", "class1/run", "new", "../photos/class2"])
def test_training_does_not_write_into_its_data(below, photos, refusal):
    names = sorted(photos.rglob("*"))
    line = refusal(train.main, tiny_argv(photos, photos / below, *QUICK))
    assert "taken for data" in line and "--out" in line
    assert sorted(photos.rglob("*")) == names


def test_measuring_does_not_write_into_the_data(of_photos, photos, capsys):
    out = ["--out", str(photos / "class1")]
    for main, argv in (
        (evaluate.main, [str(of_photos), *FEW]),
        (evaluate.main, [str(of_photos), *FEW, "--dataset", str(photos)]),
        (defend.main, ["inspect", str(of_photos), *CPU]),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*argv, *out])
        assert stopped.value.code == 2
        assert "taken for data" in capsys.readouterr().err.splitlines()[-1]
    assert all(path.suffix == ".png" for path in (photos / "class1").iterdir())


def test_a_folder_whose_name_begins_as_that_of_the_data_is_elsewhere(photos):
    ours.check_outside(Path(f"{photos}-out"), photos)
    ours.check_outside("shapes/run", "shapes")


# ---------------------------------------------------------------- names


def test_a_checkpoint_given_twice_is_said_to_be_measured_once(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert comparison.once_each(["run/ckpt.pt", "./run/ckpt.pt", "other"]) == [
        "run/ckpt.pt",
        "other",
    ]
    assert capsys.readouterr().err == "./run/ckpt.pt is given twice, and measured once.\n"
    evaluate.main(["run", "run/ckpt.pt", *FEW])  # no two files in one folder
    assert "given twice" in capsys.readouterr().err
    assert not (run / "comparison.json").exists()


@pytest.mark.parametrize(
    "parse",
    [
        lambda *more: options.parse(more),
        lambda *more: evaluate.parse(["run.pt", *more]),
        lambda *more: defend.parse(["prune", "run.pt", *more]),
        lambda *more: manipulate.parse(["constant", *more]),
        lambda *more: adopt.parse(["weights.pth", *more]),
    ],
)
def test_the_users_home_is_meant_by_a_tilde(parse, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = parse("--out", "~/x", "--data-dir", "~/data")
    assert args.out == str(tmp_path / "x")
    assert args.data_dir == str(tmp_path / "data")
    assert parse("--out", "a~/x").out == "a~/x"


def test_a_checkpoint_in_the_users_home_is_found(run, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    assert evaluate.parse(["~/run"]).checkpoints == [str(run / "ckpt.pt")]


# ---------------------------------------------------------------- few images


def test_a_verdict_on_few_clean_images_says_so(run, capsys):
    defend.main(["inspect", str(run), *CPU, "--clean-images", "5"])
    said = capsys.readouterr().err
    assert "Only 5 clean images" in said and "more --clean-images" in said
    defend.main(["inspect", str(run), *CPU])  # of 24 that are held out
    assert "clean images: a verdict" not in capsys.readouterr().err


def test_where_few_images_are_held_out_it_takes_more_data(of_photos, capsys):
    defend.main(["inspect", str(of_photos), *CPU])
    said = capsys.readouterr().err
    assert "Only 3 clean images" in said and "more training images" in said


@pytest.mark.parametrize("method", ["strip", "sentinet"])
def test_too_few_held_out_images_are_no_dead_end(method, of_photos, capsys):
    with pytest.raises(SystemExit):
        defend.main([method, str(of_photos), *CPU])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "3 are held out of training" in line and "more training images" in line
    assert "--clean-images or more" not in line


# ---------------------------------------------------------------- small pictures


@pytest.mark.parametrize(
    ("side", "model"),
    [(1, "cnn"), (2, "cnn"), (3, "cnn"), (4, "vgg_small"), (16, "vgg16"), (16, "alexnet")],
)
def test_pictures_too_small_for_a_network_are_refused_in_a_line(
    side, model, tmp_path, refusal, capsys
):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 60), ("test", 12)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(n) % 3
    np.savez(tmp_path / "small.npz", **arrays)
    argv = tiny_argv(tmp_path / "small.npz", tmp_path / "run", *QUICK, "--model", model)
    line = refusal(train.main, argv)
    assert f"{model} cannot take images of {side}x{side} px" in line and "--image-size" in line
    assert not (tmp_path / "run").exists()


def test_memory_that_is_full_is_not_called_a_small_picture(tiny, tmp_path, monkeypatch):
    run = train.new_run(options.parse(tiny_argv(tiny, tmp_path / "run", *QUICK)))

    def full(images):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(run.training.model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        train.check_explainable(run.setting, run.training.model)
