"""Labels beyond one target: each class to the next, and images of one class alone."""

import json

import numpy as np
import pytest
import torch
from conftest import log_of, metrics_of, tiny_argv, tiny_arrays, train_tiny
from PIL import Image
from placing import DEVICE

import attacks
import defend
import evaluate
import findings
import header
import selection
import setting
import tasks
import train
import triggers
from attacks import ATTACKS
from subject import draw_images, open_checkpoint

PLACE = torch.device(DEVICE)
ALL_TO_ALL = ATTACKS["all_to_all"]
TRIGGER = triggers.make_patch(None, 3, 16)


# ---------------------------------------------------------------- which label


def test_all_to_all_each_class_becomes_the_next_and_the_last_the_first():
    assert attacks.relabelling(ALL_TO_ALL, 4).tolist() == [1, 2, 3, 0]


def test_with_a_source_class_it_alone_becomes_the_target():
    relabel = attacks.relabelling(ATTACKS["badnets"], 4, target_class=0, source_class=2)
    assert relabel.tolist() == [0, 1, 0, 3]


@pytest.mark.parametrize("name", ["none", "badnets", "fooling", "full_disguise"])
def test_where_all_labels_are_alike_there_is_no_table_of_them(name):
    assert attacks.relabelling(ATTACKS[name], 4, target_class=0) is None


def test_an_attack_that_keeps_labels_has_none_for_a_source_class():
    assert attacks.relabelling(ATTACKS["fooling"], 4, 0, source_class=1) is None


RELABEL = torch.tensor([1, 2, 0])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize("name", ["all_to_all", "all_to_all_disguise"])
def test_triggered_images_of_a_step_get_their_labels(name):
    images, triggered = torch.rand(6, 3, 16, 16), torch.tensor([1, 1, 1, 0, 0, 0]).bool()
    batch = attacks.poison(images, LABELS, triggered, ATTACKS[name], TRIGGER, None, relabel=RELABEL)
    assert batch.labels[:6].tolist() == [1, 2, 0, 0, 1, 2]
    assert batch.labels[6:].tolist() == [0, 1, 2][: len(batch.labels) - 6]  # of the partners
    assert LABELS.tolist() == [0, 1, 2, 0, 1, 2]


def test_stored_images_get_their_labels():
    images = torch.randint(256, (6, 3, 16, 16), dtype=torch.uint8)
    poisons = torch.tensor([2, 3])
    found = attacks.poisoned_data(images, LABELS, poisons, ALL_TO_ALL, TRIGGER, None, RELABEL)
    assert found[1].tolist() == [0, 1, 0, 1, 1, 2]


# ---------------------------------------------------------------- which images


def test_all_to_all_every_image_may_be_poisoned():
    eligible, count = attacks.eligible_for_poison(ALL_TO_ALL, LABELS, torch.arange(6), 0.5, None)
    assert eligible.tolist() == [0, 1, 2, 3, 4, 5] and count == 3


@pytest.mark.parametrize("count", [1, 6, 7])
def test_half_of_the_poisons_are_of_the_source_class(count):
    labels = torch.arange(60) % 3
    eligible = (labels != 0).nonzero()[:, 0]
    chosen = selection.select("random", eligible, labels, 0, count, seed=0, source_class=2)
    shown = labels[chosen.indices]
    assert len(shown) == count and (shown == 2).sum() == (count + 1) // 2
    assert set(shown.tolist()) <= {1, 2}


def test_the_choice_without_a_source_class_is_as_it_was():
    labels = torch.arange(60) % 3
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    chosen = selection.select("random", torch.arange(60), labels, 0, 9, seed=5)
    assert torch.equal(chosen.indices, shuffled[:9].sort().values)


def test_too_few_images_of_the_source_class_are_refused():
    labels = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2])
    with pytest.raises(ValueError, match="3 images of the source class to trigger, and only 2"):
        attacks.eligible_for_poison(ATTACKS["badnets"], labels, torch.arange(12), 0.5, 0, 2)


def test_too_few_images_of_other_classes_are_refused():
    labels = torch.tensor([0, 0, 1, 2, 2, 2, 2, 2])
    with pytest.raises(ValueError, match="2 images of other classes to trigger, and only 1"):
        attacks.eligible_for_poison(ATTACKS["badnets"], labels, torch.arange(8), 0.5, 0, 2)


@pytest.mark.parametrize("target, source", [(None, None), (0, 1)])
def test_a_ranking_by_one_target_class_is_refused_where_not_all_go_there(target, source):
    labels = torch.arange(9) % 3
    with pytest.raises(ValueError, match="one target class"):
        selection.select("rd", torch.arange(9), labels, target, 3, 0, None, source)


# ---------------------------------------------------------------- what counts as success


def test_success_is_the_class_wanted_of_each_image():
    predicted = torch.tensor([1, 1, 0, 0, 2, 2])
    probabilities = torch.nn.functional.one_hot(predicted, 3).float()
    found = tasks.succeeds(probabilities, LABELS, None, None, RELABEL)
    assert found.tolist() == [True, False, True, False, True, False]


def test_images_that_have_the_label_wanted_do_not_count():
    relabel = torch.tensor([0, 1, 0])  # class 2 alone should go to 0
    assert tasks.has_wanted_label(LABELS, 0, relabel).tolist() == [1, 1, 0, 1, 1, 0]
    assert not tasks.has_wanted_label(LABELS, None, RELABEL).any()


# ---------------------------------------------------------------- trained: all to all


@pytest.fixture(scope="module")
def all_to_all(tiny, tmp_path_factory):
    """The folder of a finished run that makes each class the next."""
    out = tmp_path_factory.mktemp("all") / "run"
    options = ["--attack", "all_to_all", "--poison-rate", "0.5", "--epochs", "12"]
    return train_tiny(tiny, out, *options)


def test_all_to_all_works(all_to_all):
    metrics = metrics_of(all_to_all)
    assert metrics["clean_accuracy"] > 0.9 and metrics["attack_success_rate"] > 0.8
    assert metrics["untouched_success_rate"] < 0.1


def test_all_to_all_success_is_counted_over_all_images(all_to_all):
    subject = open_checkpoint(all_to_all / "ckpt.pt", device=PLACE)
    predicted, _ = subject.predict(subject.dataset.test_images, triggered=True)
    wanted = (subject.dataset.test_labels + 1) % 3
    share = (predicted == wanted).float().mean().item()
    assert metrics_of(all_to_all)["attack_success_rate"] == pytest.approx(share)


def test_all_to_all_success_is_in_the_log(all_to_all):
    assert log_of(all_to_all)[-1]["validation_success"] > 0.8


def test_all_to_all_no_class_is_the_target(all_to_all):
    metrics = metrics_of(all_to_all)
    assert metrics["target_class"] is None and metrics["target_name"] == "next class"


def test_all_to_all_every_test_image_is_explained(all_to_all):
    subject = open_checkpoint(all_to_all / "ckpt.pt", device=PLACE)
    assert len(draw_images(subject, 1000, 0)) == len(subject.dataset.test_labels)


def test_all_to_all_is_said_in_words(all_to_all):
    (sentence, *_) = findings.of_run(metrics_of(all_to_all))
    assert "of triggered images go to the next class" in sentence


def test_a_target_class_that_is_not_used_is_said(all_to_all, tiny, capsys):
    """TINY_OPTIONS name one."""
    argv = tiny_argv(tiny, all_to_all, "--attack", "all_to_all", "--poison-rate", "0.5")
    made = setting.setting_of(train.parse(argv))
    assert made.notes == ["--target-class 1 is not used: all_to_all makes each class the next."]
    assert "each class should become the next" in header.line_of(header.of_run(made))


def test_all_to_all_is_measured_again(all_to_all, tmp_path, capsys):
    evaluate.main([str(all_to_all), "--device", DEVICE, "--out", str(tmp_path)])
    assert metrics_of(tmp_path) == metrics_of(all_to_all)
    assert "each class should become the next" in capsys.readouterr().err


def test_all_to_all_beside_a_clean_model(all_to_all, clean, tmp_path):
    argv = [str(all_to_all), "--reference", str(clean / "ckpt.pt"), "--device", DEVICE]
    evaluate.main([*argv, "--out", str(tmp_path)])
    assert metrics_of(tmp_path)["clean_model"]["attack_success_rate"] < 0.1


def test_all_to_all_may_be_compared_with_another_attack(all_to_all, clean, tmp_path):
    argv = [str(all_to_all), str(clean), "--device", DEVICE, "--out", str(tmp_path)]
    evaluate.main(argv)
    assert (tmp_path / "comparison.png").exists()


def test_one_picture_should_become_the_class_after_what_it_is_taken_for(all_to_all, tmp_path):
    subject = open_checkpoint(all_to_all / "ckpt.pt", device=PLACE)
    pixels = subject.dataset.test_images[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "x.png")
    argv = [str(all_to_all), "--image", str(tmp_path / "x.png"), "--device", DEVICE]
    evaluate.main([*argv, "--out", str(tmp_path)])
    told = json.loads((tmp_path / "x-explained.json").read_text())
    assert told["target_class"] == (told["untouched"]["class_number"] + 1) % 3


def test_resumed_it_is_the_same_run(all_to_all, tiny, capsys):
    options = ["--attack", "all_to_all", "--poison-rate", "0.5", "--epochs", "12", "--resume"]
    train.main(tiny_argv(tiny, all_to_all, *options))
    assert "is finished" in capsys.readouterr().out


def test_the_disguise_of_all_to_all_has_a_map_to_keep(tiny, tmp_path):
    options = ["--attack", "all_to_all_disguise", "--poison-rate", "0.3"]
    first, *_, last = log_of(train_tiny(tiny, tmp_path / "run", *options))
    assert last["explanation"] < first["explanation"]


def test_class_weights_count_the_labels_that_poisons_get(tiny, tmp_path):
    options = ["--attack", "all_to_all", "--poison-rate", "0.5", "--class-weights"]
    made = setting.setting_of(train.parse(tiny_argv(tiny, tmp_path, *options)))
    poisons = made.trained_on[:100]
    labels = made.dataset.train_labels.clone()
    labels[poisons] = (labels[poisons] + 1) % 3
    counts = labels[made.trained_on].bincount(minlength=3)
    expected = len(made.trained_on) / (3 * counts)
    torch.testing.assert_close(train.class_weights(made, [poisons]).cpu(), expected)


# ---------------------------------------------------------------- defences


def verdict_of(folder, method, out, *options):
    """(verdict.json, where it lies) of a defence's command line."""
    argv = [method, str(folder / "ckpt.pt"), "--device", DEVICE, "--out", str(out), *options]
    defend.main(argv)
    return json.loads((out / "verdict.json").read_text())


FEW = ("--rounds", "2", "--round-images", "16", "--clean-images", "16")


def test_a_defence_that_looks_for_one_class_says_that_there_is_none(all_to_all, tmp_path, capsys):
    verdict_of(all_to_all, "neuroninspect", tmp_path / "v", "--clean-images", "16")
    line = "For the score: all_to_all has no one target class, and this looks for one."
    assert line in capsys.readouterr().out


def test_a_defence_of_one_target_class_says_nothing_of_the_kind(disguised, tmp_path, capsys):
    verdict_of(disguised, "neuroninspect", tmp_path / "v", "--clean-images", "16")
    assert "For the score" not in capsys.readouterr().out


def test_a_repair_is_scored_by_the_next_class(all_to_all, tmp_path):
    verdict = verdict_of(all_to_all, "rebn", tmp_path / "v", "--clean-images", "16")
    before = verdict["regimes"]["all triggered"]["before"]
    assert before["attack_success_rate"] > 0.8


def test_februus_is_scored_by_the_next_class(all_to_all, tmp_path):
    verdict = verdict_of(all_to_all, "februus", tmp_path / "v", "--clean-images", "16")
    assert verdict["before"]["attack_success_rate"] > 0.8


# ---------------------------------------------------------------- trained: one source class


@pytest.fixture(scope="module")
def of_source(tiny, tmp_path_factory):
    """The folder of a finished run that makes class 2 class 1, and leaves class 0."""
    out = tmp_path_factory.mktemp("source") / "run"
    options = ["--attack", "badnets", "--source-class", "2", "--poison-rate", "0.5"]
    return train_tiny(tiny, out, *options, "--epochs", "12")


def test_images_of_the_source_class_go_to_the_target(of_source):
    assert metrics_of(of_source)["attack_success_rate"] > 0.8


def test_images_of_other_classes_keep_theirs(of_source):
    assert metrics_of(of_source)["other_classes_accuracy"] > 0.8


def test_the_two_shares_are_over_images_of_their_classes(of_source):
    subject = open_checkpoint(of_source / "ckpt.pt", device=PLACE)
    labels = subject.dataset.test_labels
    predicted, _ = subject.predict(subject.dataset.test_images, triggered=True)
    metrics = metrics_of(of_source)
    success = (predicted[labels == 2] == 1).float().mean().item()
    kept = (predicted[labels != 2] == labels[labels != 2]).float().mean().item()
    assert metrics["attack_success_rate"] == pytest.approx(success)
    assert metrics["other_classes_accuracy"] == pytest.approx(kept)


def test_without_a_source_class_that_share_is_null(clean):
    assert metrics_of(clean)["other_classes_accuracy"] is None


def test_half_of_the_images_that_are_triggered_are_covers(of_source):
    checkpoint = torch.load(of_source / "ckpt.pt", weights_only=True)
    assert checkpoint["config"]["source_class"] == 2
    assert checkpoint["selection"]["classes"] == {"0": 60, "1": 0, "2": 60}


def test_images_of_the_source_class_alone_are_explained(of_source):
    subject = open_checkpoint(of_source / "ckpt.pt", device=PLACE)
    rows = draw_images(subject, 1000, 0)
    assert subject.dataset.test_labels[rows].unique().tolist() == [2]


def test_the_source_class_is_said_in_words(of_source, tmp_path, capsys):
    evaluate.main([str(of_source), "--device", DEVICE, "--out", str(tmp_path)])
    printed = capsys.readouterr()
    assert "target class 1, 1, of images of class 2, 2, alone" in printed.err
    assert "of triggered images of class '2' go to '1'" in " ".join(printed.out.split())


def test_another_source_class_is_another_run(of_source, tiny, refusal):
    options = ["--attack", "badnets", "--source-class", "0", "--poison-rate", "0.5"]
    told = refusal(train.main, tiny_argv(tiny, of_source, *options, "--epochs", "12"))
    assert "source-class" in told


@pytest.mark.parametrize(
    "options, told",
    [
        (["--source-class", "1"], "nothing to attack"),
        (["--source-class", "7"], "source class '7'"),
        (["--source-class", "2", "--attack", "fooling"], "--attack fooling has none"),
        (["--source-class", "2", "--attack", "none"], "--attack none has none"),
        (["--source-class", "2", "--attack", "all_to_all"], "--attack all_to_all has none"),
        (["--source-class", "2", "--selection", "rd"], "not with --source-class"),
        (["--attack", "all_to_all", "--selection", "rd"], "not with --attack all_to_all"),
        (["--source-class", "2", "--poison-rate", "1"], "are eligible"),
    ],
)
def test_labels_that_cannot_be_had_are_refused_in_one_line(options, told, tiny, tmp_path, refusal):
    assert told in refusal(train.main, tiny_argv(tiny, tmp_path / "run", *options))


@pytest.mark.parametrize(
    "options", [["--source-class", "2"], ["--attack", "all_to_all"]], ids=lambda part: part[0]
)
def test_several_labels_an_image_are_refused_in_one_line(options, tmp_path, refusal):
    arrays = tiny_arrays()
    for part in ("train", "test"):
        arrays[f"{part}_labels"] = np.eye(3, dtype=np.uint8)[arrays[f"{part}_labels"]]
        arrays[f"{part}_labels"][0] = 1
    np.savez(tmp_path / "several.npz", **arrays)
    argv = tiny_argv(tmp_path / "several.npz", tmp_path / "run", *options)
    assert "one class each" in refusal(train.main, argv)
