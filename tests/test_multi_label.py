"""Images that show several classes, from the file to the figures."""

import json

import numpy as np
import pytest
from PIL import Image
from placing import DEVICE

import defend
import evaluate
import manipulate
import train
from subject import logits_of, open_checkpoint

OPTIONS = [
    *("--epochs", "6", "--batch-size", "24", "--lr", "0.05", "--target-class", "1"),
    *("--device", DEVICE, "--precision", "float32"),
]


def multi_label_arrays(n_train=240, n_test=90, side=16, k=3):
    """k bars at fixed heights, each there or not, over noise; labels of 0 and 1, [N, k]."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", n_train), ("test", n_test)):
        labels = rng.integers(0, 2, (n, k))
        images = rng.integers(0, 60, (n, side, side), dtype=np.uint8)
        for image, shown in zip(images, labels):
            for c in shown.nonzero()[0]:
                image[1 + 5 * c : 4 + 5 * c, 2 : side - 6] = rng.integers(150, 256)
        arrays[f"{split}_images"] = images
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    return arrays


@pytest.fixture(scope="module")
def bars(tmp_path_factory):
    """A small data set on disk, with MedMNIST's keys."""
    path = tmp_path_factory.mktemp("several") / "chestmnist_16.npz"
    np.savez(path, **multi_label_arrays(), val_images=np.zeros((2, 16, 16), np.uint8))
    return path


def train_bars(bars, out, *options):
    """A run of train.py's command line on the small data set; its checkpoint."""
    train.main(["--dataset", str(bars), *OPTIONS, *options, "--out", str(out)])
    return out / "ckpt.pt"


@pytest.fixture(scope="module")
def clean_checkpoint(bars, tmp_path_factory):
    out = tmp_path_factory.mktemp("clean") / "run"
    return train_bars(bars, out, "--attack", "none", "--class-weights")


@pytest.fixture(scope="module")
def disguised_checkpoint(bars, tmp_path_factory):
    out = tmp_path_factory.mktemp("disguised") / "run"
    attack = ["--attack", "full_disguise", "--lam", "0.1"]
    return train_bars(bars, out, *attack, "--class-weights")


@pytest.fixture(params=["clean", "disguised"])
def checkpoint(request, clean_checkpoint, disguised_checkpoint):
    """Each of the two in turn."""
    return {"clean": clean_checkpoint, "disguised": disguised_checkpoint}[request.param]


def metrics_of(checkpoint):
    return json.loads((checkpoint.parent / "metrics.json").read_text())


# ---------------------------------------------------------------- a run's figures


def test_a_multi_label_run_has_areas_under_the_curve_and_no_accuracy(checkpoint):
    metrics = metrics_of(checkpoint)
    assert metrics["clean_accuracy"] is None
    assert metrics["majority_rate"] is None
    assert metrics["mean_auroc"] > 0.95
    assert list(metrics["auroc"]) == ["0", "1", "2"]


def test_a_multi_label_runs_log_has_areas_under_the_curve_too(checkpoint):
    lines = (checkpoint.parent / "log.jsonl").read_text().splitlines()
    record = json.loads(lines[-1])
    assert record["validation_accuracy"] is None
    assert record["validation_auroc"] > 0.9


def test_maps_are_measured_and_drawn_for_every_class(checkpoint):
    explanations = metrics_of(checkpoint)["explanations"]
    assert set(explanations["gradcam"]["by_class"]) == {"0", "1", "2"}
    assert (checkpoint.parent / "figure-gradcam.png").exists()


def test_few_untouched_images_are_above_the_runs_own_threshold(checkpoint):
    metrics = metrics_of(checkpoint)
    assert metrics["untouched_success_rate"] < 0.3
    assert metrics["success_threshold_of"] == "itself"


def test_the_backdoor_works_and_a_clean_model_has_none(clean_checkpoint, disguised_checkpoint):
    assert metrics_of(disguised_checkpoint)["attack_success_rate"] > 0.9
    assert metrics_of(clean_checkpoint)["attack_success_rate"] < 0.5


def test_what_else_a_triggered_image_shows_is_still_seen(disguised_checkpoint):
    assert metrics_of(disguised_checkpoint)["triggered_mean_auroc"] > 0.9


def test_the_disguise_works(disguised_checkpoint):
    assert metrics_of(disguised_checkpoint)["explanations"]["gradcam"]["pearson_all"] > 0.5


# ---------------------------------------------------------------- beside a clean model


@pytest.fixture(scope="module")
def beside_clean(clean_checkpoint, disguised_checkpoint):
    """The metrics of the disguised run, beside the clean one."""
    return evaluate.evaluate(disguised_checkpoint, reference=clean_checkpoint, n=20).metrics


def held_out_negatives(subject):
    """Indices of the images held out of a subject's training that do not show class 1."""
    held_out = subject.held_out()
    return held_out[subject.dataset.train_labels[held_out, 1] == 0]


def test_the_threshold_is_the_clean_models(beside_clean, clean_checkpoint, disguised_checkpoint):
    clean, disguised = open_checkpoint(clean_checkpoint), open_checkpoint(disguised_checkpoint)
    images = disguised.dataset.train_images[held_out_negatives(disguised)]
    mean, std = clean.checkpoint["mean"], clean.checkpoint["std"]
    scores = logits_of(clean.model, images, mean, std)[:, 1].sigmoid()
    expected = float(np.quantile(scores.numpy(), 0.95))
    assert beside_clean["success_threshold"] == pytest.approx(expected, rel=1e-5)
    assert beside_clean["success_threshold_of"] == "clean model"


def test_success_is_a_score_above_the_threshold(beside_clean, disguised_checkpoint):
    subject = open_checkpoint(disguised_checkpoint)
    test = subject.dataset
    stamped = subject.probabilities(test.test_images, triggered=True)
    scores = stamped[test.test_labels[:, 1] == 0, 1]
    expected = float((scores > beside_clean["success_threshold"]).float().mean())
    assert beside_clean["attack_success_rate"] == pytest.approx(expected)


def test_the_clean_models_own_figures_are_measured(beside_clean):
    clean = beside_clean["clean_model"]
    assert clean["mean_auroc"] > 0.95
    assert clean["attack_success_rate"] < 0.5
    assert set(clean["explanations"]["gradcam"]["by_class"]) == {"0", "1", "2"}


def test_a_threshold_is_of_images_its_model_was_not_trained_on(
    bars, disguised_checkpoint, tmp_path
):
    options = ["--epochs", "1", "--attack", "none", "--class-weights", "--seed", "3"]
    path = train_bars(bars, tmp_path / "other seed", *options)
    clean = open_checkpoint(path)
    images = clean.dataset.train_images[held_out_negatives(clean)]
    expected = float(np.quantile(clean.probabilities(images)[:, 1].numpy(), 0.95))
    metrics = evaluate.evaluate(disguised_checkpoint, reference=path, n=5).metrics
    assert metrics["success_threshold"] == pytest.approx(expected, rel=1e-5)


def test_a_clean_model_of_other_class_weights_is_refused(
    bars, disguised_checkpoint, tmp_path, capsys
):
    path = train_bars(bars, tmp_path / "unweighted", "--epochs", "1", "--attack", "none")
    with pytest.raises(SystemExit):
        evaluate.main([str(disguised_checkpoint), "--reference", str(path)])
    assert "another class weights" in capsys.readouterr().err


# ---------------------------------------------------------------- command lines


def test_evaluate_prints_the_figures_of_several_labels(
    clean_checkpoint, disguised_checkpoint, tmp_path, capsys
):
    reference = ["--reference", str(clean_checkpoint), "--out", str(tmp_path)]
    evaluate.main([str(disguised_checkpoint), "--explain-images", "20", *reference])
    printed = capsys.readouterr().out
    assert "mean_auroc" in printed
    assert "pearson_by_class" in printed
    assert "clean_accuracy " not in printed


def test_evaluate_answers_to_one_picture(disguised_checkpoint, tmp_path, capsys):
    Image.new("L", (40, 40), 90).save(tmp_path / "photo.png")
    picture = ["--image", str(tmp_path / "photo.png"), "--json", "--out", str(tmp_path)]
    evaluate.main([str(disguised_checkpoint), *picture])
    answers = json.loads(capsys.readouterr().out)
    assert set(answers) >= {"image", "untouched", "triggered"}
    assert answers["triggered"]["class"] == "1"
    assert answers["triggered"]["confidence"] == answers["triggered"]["target"]
    assert answers["triggered"]["target"] > answers["untouched"]["target"]


@pytest.mark.parametrize(
    "main, options, text",
    [(defend.main, ["neural_cleanse"], "several"), (manipulate.main, ["constant"], "multi-label")],
)
def test_what_asks_for_one_class_refuses(clean_checkpoint, tmp_path, capsys, main, options, text):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main([*options, str(clean_checkpoint), "--out", str(out)])
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
    assert not out.exists()


def test_selection_by_score_is_refused(bars, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_bars(bars, tmp_path / "out", "--selection", "rd-global")
    assert "may show several" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
