"""The header of a run and of a measurement, its warnings, and the names beside class numbers."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import metrics_of, tiny_argv, tiny_arrays, train_tiny
from PIL import Image
from placing import DEVICE

import defend
import evaluate
import header
import options
import train
from cli import UserError
from setting import chosen_target, setting_of
from subject import open_checkpoint

CPU = torch.device(DEVICE)
QUICK = ("--epochs", "1", "--attack", "badnets")


def npz(path, **changes):
    """The path of an .npz of the small data set, with some arrays changed."""
    np.savez(path, **tiny_arrays() | {"classes": np.array(["cat", "dog", "emu"])} | changes)
    return path


@pytest.fixture
def facts_of(tmp_path):
    """Function of arrays: the Facts of a run on the small data set, with these changed."""

    def facts(*more, **changes):
        argv = tiny_argv(npz(tmp_path / "set.npz", **changes), tmp_path / "run", *more)
        return header.of_run(setting_of(options.parse(argv)))

    return facts


def labels_without(k, n, instead=1):
    """Labels 0, 1, 2, 0, 1, 2, ..., [n], class k replaced by another."""
    labels = np.arange(n) % 3
    return np.where(labels == k, instead, labels)


# ---------------------------------------------------------------- the line


def test_the_header_of_a_run_counts_what_it_is_given(facts_of, tmp_path):
    line = header.line_of(facts_of("--poison-rate", "0.1"))
    assert line == (
        f"{tmp_path / 'set.npz'}: 300 images of 3 classes; 16x16 px, 3 channels;"
        " 216 trained on, 24 for validation, 60 for the test; 24 poisons;"
        " trigger 2x2 px at row 13, column 13; target class 1, dog;"
        " 9 steps an epoch, 27 in 3 epochs"
    )


def test_the_header_counts_one_of_a_thing_as_one(facts_of):
    line = header.line_of(facts_of("--batch-size", "500", "--epochs", "1"))
    assert line.endswith("1 step an epoch, 1 in 1 epoch")


def test_the_header_names_a_trigger_of_another_size_and_place(facts_of):
    line = header.line_of(facts_of("--trigger-size", "3", "--trigger-position", "2,5"))
    assert "trigger 3x3 px at row 2, column 5" in line


def test_a_run_prints_its_header_before_the_first_step(tiny, tmp_path, capsys):
    train_tiny(tiny, tmp_path / "run", *QUICK)
    printed = capsys.readouterr()
    assert printed.err.startswith(f"{tiny}: 300 images of 3 classes; ")
    assert "for validation" not in printed.out


def test_a_measurement_prints_its_header_and_json_stays_json(disguised, tmp_path, capsys):
    argv = [str(disguised / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path)]
    evaluate.main([*argv, "--json", "--explain-images", "6"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["seed"] == 0
    lines = printed.err.splitlines()
    assert lines[0].startswith(f"{disguised / 'ckpt.pt'}, of ")
    assert "target class 1, 1; 9 steps an epoch, 54 in 6 epochs" in lines[0]


def test_an_audit_prints_a_header_that_gives_nothing_away(disguised, tmp_path, capsys):
    argv = ["inspect", str(disguised / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path / "o")]
    defend.main([*argv, "--json"])
    printed = capsys.readouterr()
    assert "backdoored" in json.loads(printed.out)
    assert "with 24 clean images: 300 images of 3 classes" in printed.err
    assert not any(word in printed.err for word in ("poison", "trigger", "target"))


def test_a_class_name_with_a_line_break_does_not_break_the_header(facts_of, capsys):
    facts = facts_of()
    facts.dataset.classes[1] = "a\nb"
    header.print_header(facts)
    assert "target class 1, a b" in capsys.readouterr().err.splitlines()[0]


# ---------------------------------------------------------------- warnings


def test_a_run_that_can_work_has_no_warnings(facts_of):
    assert header.warnings_of(facts_of("--epochs", "6")) == []


def test_few_steps_in_all_are_warned_of(facts_of):
    (line,) = header.warnings_of(facts_of("--epochs", "5"))
    assert line.startswith("45 steps in all are few")


def test_one_step_is_warned_of(facts_of):
    (line,) = header.warnings_of(facts_of("--epochs", "1", "--batch-size", "9999"))
    assert line.startswith("1 step in all")


def test_a_class_without_training_images_is_warned_of(facts_of):
    facts = facts_of("--epochs", "9", train_labels=labels_without(2, 240))
    assert header.warnings_of(facts) == ["of class emu not one image is trained on"]


def test_a_class_without_test_images_is_warned_of(facts_of):
    facts = facts_of("--epochs", "9", test_labels=labels_without(0, 60))
    assert header.warnings_of(facts) == ["of class cat there are no test images"]


def test_a_class_of_one_image_is_warned_of(facts_of):
    labels = labels_without(2, 240)
    facts = facts_of("--epochs", "9", train_labels=labels)
    labels[facts.trained_on[0]] = 2
    facts = facts_of("--epochs", "9", train_labels=labels)
    assert header.warnings_of(facts) == ["of class emu one image alone is trained on"]


def test_a_class_whose_images_are_all_held_out_is_warned_of(facts_of):
    labels = labels_without(2, 240)
    held_out = set(range(240)) - set(facts_of().trained_on.tolist())
    labels[sorted(held_out)[:3]] = 2
    facts = facts_of("--epochs", "9", train_labels=labels)
    assert header.warnings_of(facts) == ["of class emu not one image is trained on"]


def test_many_empty_classes_are_counted(facts_of):
    names = np.array(["cat", "dog", "emu", *(f"unseen{k}" for k in range(9))])
    lines = header.warnings_of(facts_of("--epochs", "9", classes=names))
    shown = "unseen0, unseen1, unseen2, unseen3, unseen4 and 4 more"
    assert lines[0] == f"of classes {shown} not one image is trained on"


def test_a_target_that_nobody_shows_is_warned_of(facts_of):
    changes = {"train_labels": labels_without(1, 240, 0), "test_labels": labels_without(1, 60, 0)}
    lines = header.warnings_of(facts_of("--epochs", "9", **changes))
    assert "no training image shows the target class, dog" in lines
    assert any("the target class, dog, is not in the test set" in line for line in lines)


def test_a_target_that_is_not_in_the_test_set_is_warned_of_by_evaluate_too(tmp_path, capsys):
    path = npz(tmp_path / "set.npz", test_labels=labels_without(1, 60, 0))
    folder = train_tiny(path, tmp_path / "run", *QUICK)
    capsys.readouterr()
    evaluate.main([str(folder / "ckpt.pt"), "--device", DEVICE])
    assert "Warning: the target class, dog, is not in the test set" in capsys.readouterr().err


def test_several_labels_are_counted_by_what_images_show(facts_of):
    shown = np.eye(3, dtype=int)[np.arange(240) % 3]
    shown[::2, 0] = 1
    shown[:, 2] = 0
    tested = np.eye(3, dtype=int)[np.arange(60) % 3]
    facts = facts_of("--epochs", "9", train_labels=shown, test_labels=tested)
    assert header.warnings_of(facts) == ["of class emu not one image is trained on"]


# ---------------------------------------------------------------- the target class


def dataset_with(tmp_path, **changes):
    """The small data set, loaded, with some arrays changed."""
    argv = tiny_argv(npz(tmp_path / "set.npz", **changes), tmp_path / "run")
    return setting_of(options.parse(argv)).dataset


def test_left_open_the_target_is_the_first_class(tmp_path):
    assert chosen_target(None, dataset_with(tmp_path)) == (0, [])


def test_left_open_the_target_is_no_class_without_test_images(tmp_path):
    dataset = dataset_with(tmp_path, test_labels=labels_without(0, 60))
    target, (line,) = chosen_target(None, dataset)
    assert target == 1
    assert "class 0 (cat) has no test images: class 1 (dog) is taken" in line


def test_left_open_the_target_is_no_class_without_training_images(tmp_path):
    dataset = dataset_with(tmp_path, train_labels=labels_without(0, 240, 2))
    target, (line,) = chosen_target(None, dataset)
    assert target == 1 and "class 0 (cat) has no training images" in line


def test_left_open_where_no_class_is_in_both_the_target_has_training_images(tmp_path):
    dataset = dataset_with(tmp_path, train_labels=1 + np.arange(240) % 2)
    dataset.test_labels[:] = 0
    assert chosen_target(None, dataset)[0] == 1


def test_the_default_target_of_a_run_is_said(tmp_path, capsys):
    path = npz(tmp_path / "set.npz", test_labels=labels_without(0, 60))
    argv = ["--dataset", str(path), "--device", DEVICE, "--out", str(tmp_path / "run"), *QUICK]
    train.main(argv)
    assert "class 1 (dog) is taken" in capsys.readouterr().err


@pytest.fixture
def numbered(tmp_path):
    """Function of class names: the small data set with these."""
    return lambda *names: dataset_with(tmp_path, classes=np.array(names))


def test_a_number_that_is_the_name_of_another_class_is_that_class_and_said(numbered):
    target, (line,) = chosen_target("1", numbered("2", "0", "1"))
    assert target == 2
    assert "the class called 1 is taken, number 2, not number 1, called 0" in line


def test_a_number_that_is_a_name_beyond_the_last_number_is_said(numbered):
    target, (line,) = chosen_target("10", numbered("8", "9", "10"))
    assert target == 2 and "the class called 10 is taken, number 2." in line


def test_a_number_among_names_that_are_numbers_is_said(numbered):
    target, (line,) = chosen_target("0", numbered("1", "2", "3"))
    assert target == 0 and "no class is called 0: number 0 is taken, the class called 1" in line


def test_where_name_and_number_agree_nothing_is_said(numbered):
    assert chosen_target("2", numbered("0", "1", "2")) == (2, [])


def test_among_names_of_words_a_number_needs_no_note(numbered):
    assert chosen_target("2", numbered("cat", "dog", "emu")) == (2, [])


def test_a_number_that_is_no_class_is_still_refused(numbered):
    with pytest.raises(UserError, match="target class '7'"):
        chosen_target("7", numbered("1", "2", "3"))


# ---------------------------------------------------------------- names beside numbers


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """The folder of a short run on data whose classes have names."""
    folder = tmp_path_factory.mktemp("named")
    return train_tiny(npz(folder / "set.npz"), folder / "run", *QUICK)


def test_metrics_name_the_target_class_and_all_classes(named):
    metrics = metrics_of(named)
    assert (metrics["target_class"], metrics["target_name"]) == (1, "dog")
    assert metrics["classes"] == ["cat", "dog", "emu"]


def test_a_verdict_names_the_classes_it_flags(named, tmp_path, monkeypatch):
    verdict = defend.defences.Verdict(True, [], flagged=[2, 0], index={0: 3.0, 1: 0.0, 2: 4.0})
    row = defend.defences.Defence(help="a test's", run=lambda audit: verdict)
    monkeypatch.setitem(defend.METHODS, "made_up", row)
    defend.main(["made_up", str(named / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path)])
    record = json.loads((tmp_path / "verdict.json").read_text())
    assert (record["flagged"], record["flagged_names"]) == ([2, 0], ["emu", "cat"])
    assert record["classes"] == ["cat", "dog", "emu"]


def test_a_verdict_that_flags_nothing_names_nothing(named, tmp_path):
    defend.main(["inspect", str(named / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path)])
    assert json.loads((tmp_path / "verdict.json").read_text())["flagged_names"] == []


def test_the_answer_about_a_picture_has_numbers_and_names(named, tmp_path, capsys):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    argv = [str(named / "ckpt.pt"), "--image", str(tmp_path / "red.png"), "--device", DEVICE]
    capsys.readouterr()
    evaluate.main([*argv, "--json", "--out", str(tmp_path)])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["target_class"], answer["target_name"]) == (1, "dog")
    for part in (answer["untouched"], answer["triggered"]):
        assert answer["classes"][part["class_number"]] == part["class"]


def test_an_old_checkpoint_without_a_batch_size_has_a_header_without_steps(named, tmp_path):
    folder = shutil.copytree(named, tmp_path / "run")
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    del checkpoint["config"]["batch_size"]
    torch.save(checkpoint, folder / "ckpt.pt")
    facts = header.of_subject(open_checkpoint(folder / "ckpt.pt", device=CPU), "x")
    assert facts.steps is None and "an epoch" not in header.line_of(facts)
