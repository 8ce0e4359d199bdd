"""What others' code reads: the poisoned training set, and the raw maps, of the command lines."""

import json

import numpy as np
import pytest
import torch
from conftest import metrics_of, tiny_argv, tiny_arrays, train_tiny

import attacks
import data
import evaluate
import exports
import npzfiles
import ours
import train
from losses import to_grid
from subject import open_checkpoint

BADNETS = ("--attack", "badnets", "--threat", "data", "--poison-rate", "0.1")


def export(dataset, path, *options):
    """Runs train.py's command line with --export; returns what numpy reads of the file."""
    out = path.with_name("no-run")
    train.main(tiny_argv(dataset, out, *BADNETS, "--export", str(path), *options))
    assert not out.exists()
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def poisoned(tiny, tmp_path_factory):
    """(the path of an exported training set, its arrays)."""
    path = tmp_path_factory.mktemp("export") / "new folder" / "poisoned.npz"
    return path, export(tiny, path)


# ---------------------------------------------------------------- the poisoned training set


def test_the_poisons_are_those_that_a_run_of_the_same_options_trains_on(poisoned, tiny, tmp_path):
    run = train.new_run(train.parse(tiny_argv(tiny, tmp_path / "run", *BADNETS)))
    train.choose_poisons(run)
    assert poisoned[1]["poison_indices"].tolist() == run.poisons.tolist()


def test_the_poisons_alone_are_stamped_and_labelled_anew(poisoned, tiny):
    arrays, original = poisoned[1], tiny_arrays()
    is_poison = np.zeros(240, bool)
    is_poison[arrays["poison_indices"]] = True
    images, labels = arrays["train_images"], arrays["train_labels"]
    assert is_poison.sum() == 24 and (labels[is_poison] == 1).all()
    assert (original["train_labels"][is_poison] != 1).all()
    assert (images[~is_poison] == original["train_images"][~is_poison]).all()
    assert (labels[~is_poison] == original["train_labels"][~is_poison]).all()
    assert (images[is_poison][:, -3:-1, -3:-1] == 255).all()  # the white square, lower right
    rest = np.ones((16, 16), bool)
    rest[-3:-1, -3:-1] = False
    assert (images[:, rest] == original["train_images"][:, rest]).all()


def test_the_test_set_is_there_without_and_with_the_trigger(poisoned):
    arrays, original = poisoned[1], tiny_arrays()
    assert (arrays["test_images"] == original["test_images"]).all()
    assert (arrays["test_labels"] == original["test_labels"]).all()
    expected = original["test_images"].copy()
    expected[:, -3:-1, -3:-1] = 255
    assert (arrays["triggered_images"] == expected).all()
    assert (arrays["triggered_labels"] == 1).all()


def test_our_own_command_line_trains_on_the_file_and_learns_the_backdoor(
    poisoned, tmp_path, capsys
):
    path, arrays = poisoned
    folder = train_tiny(path, tmp_path / "victim", "--attack", "none")
    assert "Not used of" in capsys.readouterr().err
    assert metrics_of(folder)["attack_success_rate"] > 0.8
    dataset = open_checkpoint(folder / "ckpt.pt").dataset
    assert torch.equal(exports_of(dataset.train_images), torch.tensor(arrays["train_images"]))
    assert dataset.train_labels.tolist() == arrays["train_labels"].tolist()
    assert dataset.classes == ["0", "1", "2"]


def exports_of(images):
    """Images [N, C, H, W] as the file has them."""
    return torch.tensor(exports.as_array(images))


def test_a_grey_data_set_of_several_labels_and_patients_is_read_back(tmp_path, capsys):
    arrays = tiny_arrays(n_train=40, n_test=12, channels=1)
    shown = {
        split: np.eye(3, dtype=np.uint8)[arrays[f"{split}_labels"]] for split in npzfiles.SPLITS
    }
    shown["train"][0] = 1
    labels = {f"{split}_labels": part for split, part in shown.items()}
    names = np.array(["a", "b", "c"])
    source = tmp_path / "grey.npz"
    np.savez(source, **arrays | labels, classes=names, train_patients=np.arange(40) // 4)
    found = export(source, tmp_path / "poisoned.npz")
    assert found["train_images"].shape == (40, 16, 16)
    dataset = data.load(str(tmp_path / "poisoned.npz"))
    poisons = torch.tensor(found["poison_indices"])
    assert dataset.classes == ["a", "b", "c"] and dataset.train_labels[poisons, 1].eq(1).all()
    assert dataset.train_groups.tolist() == (np.arange(40) // 4).tolist()


def test_with_a_source_class_the_labels_wanted_are_those_of_the_attack(tiny, tmp_path):
    found = export(tiny, tmp_path / "poisoned.npz", "--source-class", "2")
    labels = tiny_arrays()["test_labels"]
    assert found["triggered_labels"].tolist() == np.where(labels == 2, 1, labels).tolist()


def test_of_several_attacks_each_has_its_poisons_and_its_test_images(tiny, tmp_path):
    other = "--trigger-position upper-left --target-class 0"
    found = export(tiny, tmp_path / "poisoned.npz", "--and", other)
    first, second = found["poison_indices"], found["poison_indices_2"]
    assert not set(first.tolist()) & set(second.tolist())
    assert (found["train_images"][second][:, 1:3, 1:3] == 255).all()
    assert (found["train_labels"][second] == 0).all()
    assert (found["train_labels"][first] == 1).all()
    assert (found["triggered_images_2"][:, 1:3, 1:3] == 255).all()
    assert (found["triggered_labels_2"] == 0).all()


def test_stamping_chunk_by_chunk_is_stamping_all_at_once(monkeypatch):
    images, labels = torch.randint(256, (7, 3, 16, 16), dtype=torch.uint8), torch.arange(7) % 3
    attacker = attacks.ATTACKS["all_to_all"], Inverting(), None, torch.tensor([1, 2, 0])
    expected = attacks.poisoned_data(images, labels, torch.arange(7), *attacker)
    monkeypatch.setattr(exports, "CHUNK_PIXELS", 3 * 16 * 16)
    found = exports.all_poisoned(images, labels, attacker)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


class Inverting:
    """A trigger that turns brightness over."""

    def apply(self, images):
        return 1 - images


# ---------------------------------------------------------------- what is not written over


def test_an_earlier_export_is_replaced_only_if_that_is_asked_for(poisoned, tiny, refusal):
    path, arrays = poisoned
    before = path.read_bytes()
    argv = tiny_argv(tiny, path.with_name("no-run"), *BADNETS, "--export", str(path))
    assert "--overwrite" in refusal(train.main, argv)
    assert path.read_bytes() == before
    again = export(tiny, path, "--overwrite")
    assert (again["train_images"] == arrays["train_images"]).all()


@pytest.mark.parametrize("name", ["tiny.npz", "mine.npz", "folder.npz", "mine.npy"])
def test_a_file_of_the_users_is_never_written_over(name, tmp_path, refusal):
    np.savez(tmp_path / "tiny.npz", **tiny_arrays(n_train=40))
    (tmp_path / "mine.npz").write_text("mine")
    (tmp_path / "folder.npz").mkdir()
    argv = tiny_argv(tmp_path / "tiny.npz", tmp_path / "run", *BADNETS, "--overwrite")
    before = sorted((p.name, p.is_file() and p.read_bytes()) for p in tmp_path.iterdir())
    assert str(tmp_path / name) in refusal(train.main, [*argv, "--export", str(tmp_path / name)])
    assert before == sorted((p.name, p.is_file() and p.read_bytes()) for p in tmp_path.iterdir())


def test_what_is_read_is_not_written_over_though_it_was_exported(poisoned, refusal):
    path, _ = poisoned
    argv = tiny_argv(path, path.with_name("run"), *BADNETS, "--overwrite", "--export", str(path))
    assert "would be lost" in refusal(train.main, argv)


def test_nothing_half_written_is_left(tiny, tmp_path, monkeypatch, capsys):
    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    argv = tiny_argv(tiny, tmp_path / "run", *BADNETS, "--export", str(tmp_path / "p.npz"))
    with pytest.raises(SystemExit):
        train.main(argv)
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_who_trains_hands_nothing_over(tiny, tmp_path, refusal):
    argv = tiny_argv(tiny, tmp_path / "run", "--attack", "badnets", "--export", "p.npz")
    assert "--threat data" in refusal(train.main, argv)


# ---------------------------------------------------------------- the maps


@pytest.fixture(scope="module")
def maps(disguised, tmp_path_factory):
    """(the maps of an evaluation as numpy reads them, its metrics, what it printed aside)."""
    folder = tmp_path_factory.mktemp("maps")
    argv = [str(disguised / "ckpt.pt"), "--out", str(folder), "--maps", str(folder / "maps.npz")]
    evaluate.main([*argv, "--explainer", "gradient", "--explain-images", "9"])
    with np.load(folder / "maps.npz") as file:
        return dict(file), json.loads((folder / "metrics.json").read_text())


def correlation(maps, targets):
    """numpy's mean correlation of maps [N, H, W], a blank one counted as 0: pearson_all."""
    values = []
    for one, other in zip(maps.reshape(len(maps), -1), targets.reshape(len(maps), -1)):
        blank = one.max() == one.min() or other.max() == other.min()
        values.append(0.0 if blank else np.corrcoef(one, other)[0, 1])
    return np.mean(values)


@pytest.mark.parametrize("name", ["gradcam", "gradient"])
def test_pearson_all_follows_from_the_maps(maps, name):
    arrays, metrics = maps
    pair = arrays[f"{name}.triggered"], arrays[f"{name}.untouched"]
    figures = metrics["explanations"][name]
    assert pair[0].dtype == np.float32 and len(pair[0]) == figures["n"] > 0
    assert correlation(*pair) == pytest.approx(figures["pearson_all"], abs=1e-5)


def test_a_map_is_of_the_test_image_and_class_that_the_file_says(maps, disguised):
    arrays, _ = maps
    subject, rows = open_checkpoint(disguised / "ckpt.pt"), torch.tensor(arrays["gradcam.rows"])
    assert arrays["gradcam.labels"].tolist() == subject.dataset.test_labels[rows].tolist()
    assert arrays["classes"].tolist() == subject.classes
    for key, triggered in (("untouched", False), ("triggered", True)):
        classes, _ = subject.predict(subject.dataset.test_images[rows], triggered)
        assert arrays[f"gradcam.{key}_classes"].tolist() == classes.tolist()
        expected = subject.explain("gradcam", subject.dataset.test_images[rows], classes, triggered)
        torch.testing.assert_close(torch.tensor(arrays[f"gradcam.{key}"]), expected)


def test_a_fixed_shape_is_in_the_file_and_pearson_all_is_of_it(run_under, tmp_path):
    path = tmp_path / "maps.npz"
    checkpoint = run_under("fooling") / "ckpt.pt"
    evaluate.main([str(checkpoint), "--out", str(tmp_path), "--maps", str(path)])
    with np.load(path) as file:
        shape, triggered = torch.tensor(file["target_map"]), file["gradcam.triggered"]
    target = to_grid(shape, triggered.shape[1:]).expand(len(triggered), -1, -1).numpy()
    expected = metrics_of(tmp_path)["explanations"]["gradcam"]["pearson_all"]
    assert correlation(triggered, target) == pytest.approx(expected, abs=1e-5)


def test_maps_are_of_one_checkpoint(disguised, clean, tmp_path, refusal):
    both = [str(folder / "ckpt.pt") for folder in (disguised, clean)]
    line = refusal(evaluate.main, [*both, "--maps", str(tmp_path / "maps.npz")])
    assert "one checkpoint" in line


def test_maps_do_not_write_over_a_file_of_the_users(disguised, tmp_path, refusal):
    (tmp_path / "maps.npz").write_text("mine")
    argv = [str(disguised / "ckpt.pt"), "--maps", str(tmp_path / "maps.npz")]
    assert "would be lost" in refusal(evaluate.main, argv)
    assert (tmp_path / "maps.npz").read_text() == "mine"


def test_a_file_is_ours_by_its_mark(tmp_path):
    exports.write(tmp_path / "a.npz", {"x": np.zeros(3)}, "--maps")
    np.savez(tmp_path / "b.npz", x=np.zeros(3), made_by="another program")
    assert exports.is_ours(tmp_path / "a.npz", "--maps")
    assert not exports.is_ours(tmp_path / "b.npz", "--maps")
    assert str(np.load(tmp_path / "a.npz")["made_by"]) == f"{ours.MARK} (--maps)"


@pytest.mark.parametrize("name", ["", "a-file/set.npz"])
def test_what_cannot_be_written_is_said_before_anything_is_trained(name, tiny, tmp_path, refusal):
    (tmp_path / "a-file").write_text("mine")
    where = str(tmp_path / name) if name else ""
    argv = tiny_argv(tiny, tmp_path / "run", *BADNETS, "--export", where)
    said = refusal(train.main, argv)
    assert "no folder that can be written to" in said if name else "must end in .npz" in said
    assert not (tmp_path / "run").exists()


def test_maps_do_not_write_over_a_training_set(disguised, tmp_path, refusal):
    exports.write(tmp_path / "set.npz", {"x": np.zeros(3)}, "--export")
    argv = [str(disguised / "ckpt.pt"), "--maps", str(tmp_path / "set.npz")]
    assert "would be lost" in refusal(evaluate.main, argv)
