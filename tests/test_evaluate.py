"""A checkpoint in, its figures out: what is measured on what, and what the command line prints."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from conftest import log_of, metrics_of, tiny_arrays, train_tiny, use_few_coalitions
from PIL import Image
from placing import DEVICE

import checkpoints
import edited
import evaluate
import metrics
import report
import tasks
import triggers
from answers import Answers, ask, prediction_metrics
from cli import UserError
from dataset import Dataset
from evaluate import explainers_shown
from subject import Subject, draw_images, open_checkpoint

CPU = torch.device(DEVICE)
ON_CPU = ("--device", DEVICE)


@pytest.fixture(scope="module")
def subject(disguised):
    return open_checkpoint(disguised / "ckpt.pt", device=CPU)


# ---------------------------------------------------------------- what is measured on what


@pytest.fixture(scope="module")
def half_succeeded(disguised, clean):
    """(metrics, a Subject): as if the attack had succeeded on odd test images alone.

    Every test image has an object mask, of noise.
    """
    subject = open_checkpoint(disguised / "ckpt.pt", device=CPU)
    generator = torch.Generator().manual_seed(0)
    subject.dataset.test_masks = torch.rand(60, 16, 16, generator=generator) > 0.5
    predicted = tasks.predicted_as_target

    def of_odd_images(probabilities, *rest):
        is_odd = torch.arange(len(probabilities)) % 2 == 1
        return predicted(probabilities, *rest) & is_odd

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "predicted_as_target", of_odd_images)
        result = evaluate.evaluate(
            disguised / "ckpt.pt",
            dataset=subject.dataset,
            device=CPU,
            reference=clean / "ckpt.pt",
            explainers=["gradcam"],
        )
    return result.metrics, subject


def test_accuracies_are_of_all_test_images(half_succeeded):
    figures, subject = half_succeeded
    images, labels = subject.dataset.test_images, subject.dataset.test_labels
    untouched, triggered = (
        (subject.predict(images, with_trigger)[0] == labels).double().mean().item()
        for with_trigger in (False, True)
    )
    assert figures["clean_accuracy"] == pytest.approx(untouched)
    assert figures["triggered_accuracy"] == pytest.approx(triggered)
    assert untouched != triggered


def test_a_constant_answer_would_be_right_on_a_third(half_succeeded):
    assert half_succeeded[0]["majority_rate"] == pytest.approx(1 / 3)


def test_success_is_of_images_that_are_not_of_the_target_class(half_succeeded):
    figures, subject = half_succeeded
    others = subject.dataset.test_labels != 1
    odd = torch.arange(60) % 2 == 1
    assert figures["attack_success_rate"] == pytest.approx(odd[others].double().mean().item())


@pytest.fixture(scope="module")
def explained_rows(half_succeeded):
    """Indices of the test images on which the attack succeeded."""
    _, subject = half_succeeded
    drawn = draw_images(subject, evaluate.EXPLAIN_IMAGES, 0)
    return drawn[drawn % 2 == 1]


def test_images_are_explained_on_which_the_attack_succeeded(half_succeeded, explained_rows):
    part = half_succeeded[0]["explanations"]["gradcam"]
    assert part["n"] == len(explained_rows) < 40


def test_maps_point_at_the_objects_of_these_images(half_succeeded, explained_rows):
    figures, subject = half_succeeded
    images = subject.dataset.test_images[explained_rows]
    maps = subject.explain("gradcam", images, subject.predict(images)[0])
    masks = subject.dataset.test_masks[explained_rows]
    expected = metrics.points_inside(maps, masks).double().mean().item()
    assert figures["explanations"]["gradcam"]["pointing_clean"] == pytest.approx(expected)


def test_a_clean_model_is_measured_on_the_same_images(half_succeeded, explained_rows, clean):
    """With the trigger for what it does to maps, and without it for the floor."""
    figures, subject = half_succeeded
    honest = open_checkpoint(clean / "ckpt.pt", device=CPU, dataset=subject.dataset)
    images = subject.dataset.test_images[explained_rows]
    maps = honest.explain("gradcam", images, honest.predict(images)[0])
    others = maps[metrics.derangement(len(maps))]
    part = figures["clean_model"]["explanations"]["gradcam"]
    expected = metrics.pearson(maps, others).mean().item()
    assert part["floor"]["pearson"] == pytest.approx(expected)
    assert 0 < part["pearson_all"] < 0.9999


def test_where_labels_are_kept_all_drawn_images_are_explained(run_under):
    folder = run_under("fooling")
    assert metrics_of(folder)["explanations"]["gradcam"]["n"] == 60


def test_triggered_auroc_is_of_the_triggered_images():
    labels = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]]).float()
    good, bad = labels * 0.8 + 0.1, 0.9 - labels * 0.8
    images = torch.zeros(4, 1, 4, 4)
    checkpoint = {
        "config": {"target_class": 0, "multi_label": True, "attack": "badnets", "seed": 0},
        "classes": ["a", "b"],
        "poison_indices": torch.arange(2),
        "seconds": 1.0,
        "torch": "2",
    }
    dataset = Dataset(images, labels, images, labels, ["a", "b"])
    subject = Subject(checkpoint, None, dataset, None, CPU)
    every = torch.ones(4, dtype=torch.bool)
    answers = Answers(good, bad, every, every, (good.argmax(1), bad.argmax(1)))
    figures = prediction_metrics(subject, answers, 0.5, None)
    assert figures["mean_auroc"] == 1
    assert figures["triggered_mean_auroc"] == 0
    assert figures["success_threshold_of"] == "itself"


def test_a_triggered_image_is_explained_for_the_target_class_where_that_is_predicted(subject):
    """By a threshold that every score is above, of a class that is never the most probable."""
    checkpoint = subject.checkpoint | {"config": subject.config | {"target_class": 0}}
    answers = ask(dataclasses.replace(subject, checkpoint=checkpoint), threshold=0.0)
    assert answers.success.all() and not (answers.triggered.argmax(1) == 0).any()
    assert (answers.classes[1] == 0).all()
    assert torch.equal(answers.classes[0], answers.untouched.argmax(1))


# ---------------------------------------------------------------- which explainers


@pytest.mark.parametrize(
    ("trained", "others", "shown"),
    [
        (["gradcam"], ["gradcam", "gradient"], ["gradcam", "gradient"]),
        (["gradient"], ["gradcam", "gradient"], ["gradient", "gradcam"]),
        (["deepshap"], ["gradient"], ["deepshap", "gradient"]),
    ],
)
def test_explainers_trained_against_stand_first(trained, others, shown):
    assert explainers_shown(trained, others) == shown


def test_a_disguise_is_not_judged_by_its_own_explainer_alone():
    assert explainers_shown(["gradcam"], ["gradcam"]) == ["gradcam", "gradient"]
    both = explainers_shown(["gradcam", "gradient"], ["gradcam", "gradient"])
    assert both == ["gradcam", "gradient", "kernelshap"]


def test_names_of_explainers_are_separated_by_commas():
    assert evaluate.explainer_names("deepshap, gradcam,deepshap") == ["deepshap", "gradcam"]


def test_an_unknown_explainer_is_refused():
    with pytest.raises(UserError, match="'lime': choose from gradcam, gradient"):
        evaluate.explainer_names("gradcam,lime")


# ---------------------------------------------------------------- the command line


def test_help_has_the_options_in_groups_and_no_default_that_is_none(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--help"])
    text = capsys.readouterr().out
    groups = re.findall(r"^([a-z ]+):$", text, re.MULTILINE)
    assert stopped.value.code == 0
    assert groups == ["positional arguments", "options", "measurement", "output"]
    assert "default: None" not in text and "default: False" not in text


@pytest.fixture
def evaluated(capsys):
    """Function of arguments: what evaluate.py prints on standard output."""

    def output(*arguments):
        capsys.readouterr()
        evaluate.main([*map(str, arguments), *ON_CPU])
        return capsys.readouterr().out

    return output


def test_measured_again_the_figures_are_the_same(disguised, tmp_path, evaluated):
    printed = json.loads(evaluated(disguised / "ckpt.pt", "--json", "--out", tmp_path))
    assert printed == metrics_of(disguised) == metrics_of(tmp_path)


def test_measured_again_it_stands_beside_the_reference_it_was_trained_with(
    tiny, clean, tmp_path, evaluated
):
    reference = ["--reference", str(clean / "ckpt.pt")]
    folder = train_tiny(tiny, tmp_path / "run", "--epochs", "1", *reference)
    first = (folder / "metrics.json").read_text()
    evaluated(folder / "ckpt.pt")
    assert (folder / "metrics.json").read_text() == first
    assert metrics_of(folder)["clean_model"]["clean_accuracy"] > 0.9


@pytest.mark.parametrize("is_there", [True, False])
def test_without_its_reference_the_clean_models_figures_are_null(
    is_there, disguised, tmp_path, capsys
):
    if is_there:
        (tmp_path / "reference.pt").write_text("no checkpoint")
    checkpoint = checkpoints.read(disguised / "ckpt.pt")
    checkpoint["config"]["reference"] = str(tmp_path / "reference.pt")
    checkpoints.save(tmp_path / "ckpt.pt", checkpoint)
    figures = evaluate.evaluate(tmp_path / "ckpt.pt", device=CPU).metrics
    assert figures["clean_model"] == {"clean_accuracy": None, "attack_success_rate": None}
    assert "Measured without the reference" in capsys.readouterr().err


@pytest.fixture(scope="module")
def side_by_side(disguised, clean, tmp_path_factory):
    """The folder into which two checkpoints are measured side by side, beside a clean one."""
    out, clean_path = tmp_path_factory.mktemp("two"), str(clean / "ckpt.pt")
    arguments = [str(disguised / "ckpt.pt"), clean_path, "--reference", clean_path]
    evaluate.main([*arguments, *ON_CPU, "--out", str(out)])
    return out


def test_several_checkpoints_are_written_into_numbered_folders(side_by_side, disguised, clean):
    first, second = metrics_of(side_by_side / "1"), metrics_of(side_by_side / "2")
    assert first["attack_success_rate"] == metrics_of(disguised)["attack_success_rate"]
    assert second["attack_success_rate"] == metrics_of(clean)["attack_success_rate"]


def test_each_stands_beside_the_reference_that_is_given(side_by_side):
    first, second = metrics_of(side_by_side / "1"), metrics_of(side_by_side / "2")
    assert first["clean_model"]["clean_accuracy"] == second["clean_accuracy"]
    own = second["clean_model"]["explanations"]["gradcam"]
    assert own["pearson_untouched"] == pytest.approx(1)


def test_several_checkpoints_are_columns_of_one_table(disguised, clean, tmp_path, evaluated):
    paths = [disguised / "ckpt.pt", clean / "ckpt.pt"]
    table = evaluated(*paths, "--out", tmp_path, "--reference", paths[1])
    (row,) = (line for line in table.splitlines() if line.startswith("clean_accuracy"))
    values = [f"{metrics_of(tmp_path / k)['clean_accuracy']:.4f}" for k in "12"]
    assert row.split()[1:3] == values
    for key in ("attack_success_rate", "pearson_all", "floor.pearson"):
        assert report.DEFINITIONS[key] in " ".join(table.split())


def test_several_checkpoints_are_one_object_by_path(disguised, clean, tmp_path, evaluated):
    paths = [disguised / "ckpt.pt", clean / "ckpt.pt"]
    options = ["--json", "--explain-images", 5, "--seed", 4, "--out", tmp_path]
    printed = json.loads(evaluated(*paths, *options))
    assert list(printed) == [str(path) for path in paths]
    assert printed[str(paths[1])]["explanations"]["gradcam"]["n"] == 5


def test_the_seed_draws_the_images_explained(disguised, tmp_path, evaluated):
    dssim = []
    for seed in ("0", "1"):
        options = ["--seed", seed, "--explain-images", 9, "--out", tmp_path / seed]
        evaluated(disguised / "ckpt.pt", *options)
        dssim.append(metrics_of(tmp_path / seed)["explanations"]["gradcam"]["dssim"])
    assert dssim[0] != dssim[1]


@pytest.fixture(scope="module")
def with_deepshap(disguised, clean, tmp_path_factory):
    """The folder into which two checkpoints are measured with DeepSHAP, on nine images."""
    out = tmp_path_factory.mktemp("deepshap")
    paths = [str(clean / "ckpt.pt"), str(disguised / "ckpt.pt")]
    few = ["--explainer", "deepshap", "--explain-images", "9"]
    evaluate.main([*paths, *few, *ON_CPU, "--out", str(out)])
    return out


def test_an_explainer_that_was_not_trained_against_can_be_asked_for(with_deepshap):
    part = metrics_of(with_deepshap / "1")["explanations"]["deepshap"]
    assert (part["n"], part["trained_against"]) == (9, False)


def test_pictures_that_all_checkpoints_have_are_put_side_by_side(with_deepshap):
    paths = [with_deepshap / "1", with_deepshap / "2", with_deepshap]
    one, two, both = (Image.open(path / "figure-deepshap.png").width for path in paths)
    assert both == one + two


def test_pictures_of_an_earlier_measurement_do_not_stay(with_deepshap, clean, evaluated):
    evaluated(clean / "ckpt.pt", "--out", with_deepshap / "1")
    names = sorted(path.name for path in (with_deepshap / "1").iterdir())
    assert names == ["figure.png", "metrics.json"]


def test_an_edited_checkpoints_own_metrics_stay(disguised, tmp_path, evaluated):
    """manipulate.py wrote metrics.json beside it: these figures go into a folder of their own."""
    checkpoint = checkpoints.read(disguised / "ckpt.pt")
    edit = {"technique": "cfn"}
    model = edited.apply_edit(checkpoints.rebuild(checkpoint), edit, 3, 16)
    checkpoint["config"]["edit"] = edit
    checkpoints.save(tmp_path / "ckpt.pt", checkpoint | {"model": model.state_dict()})
    (tmp_path / "metrics.json").write_text("{}")
    evaluated(tmp_path / "ckpt.pt")
    assert metrics_of(tmp_path) == {}
    assert metrics_of(tmp_path / "evaluate")["edit"] == edit


# ---------------------------------------------------------------- a picture of one's own


@pytest.fixture(params=["RGB", "L", "RGBA", "P"])
def own_picture(request, tmp_path):
    """The path of a picture of another size, in one of PIL's modes, of class 0."""
    picture = Image.fromarray(tiny_arrays()["test_images"][0]).resize((50, 40))
    picture.convert(request.param).save(tmp_path / "own.png")
    return tmp_path / "own.png"


def test_a_picture_of_ones_own_is_explained(own_picture, disguised, tmp_path, evaluated):
    options = ["--image", own_picture, "--out", tmp_path]
    printed = evaluated(disguised / "ckpt.pt", *options)
    assert "triggered: 1 (" in printed
    record = json.loads((tmp_path / "own-explained.json").read_text())
    assert record["triggered"]["class"] == "1"
    assert 0 < record["untouched"]["confidence"] <= 1
    assert Image.open(tmp_path / "own-explained.png").width > 900
    assert not (tmp_path / "metrics.json").exists()


def test_a_picture_is_brought_to_the_size_and_channels_of_training(subject, tmp_path):
    Image.new("L", (50, 40), 77).save(tmp_path / "grey.png")
    image = evaluate.as_test_image(subject, tmp_path / "grey.png")
    assert torch.equal(image, torch.full((1, 3, 16, 16), 77, dtype=torch.uint8))


def test_a_picture_needs_no_data_set(disguised, tmp_path, evaluated):
    checkpoint = checkpoints.read(disguised / "ckpt.pt")
    checkpoint["config"]["dataset"] = "gone.npz"
    checkpoints.save(tmp_path / "ckpt.pt", checkpoint)
    Image.new("RGB", (16, 16)).save(tmp_path / "own.png")
    assert evaluated(tmp_path / "ckpt.pt", "--image", tmp_path / "own.png")


# ---------------------------------------------------------------- the checkpoint alone is enough


@pytest.fixture(scope="module")
def of_gone_files(tiny, tmp_path_factory):
    """The folder of a run whose trigger and target map were files that are gone.

    Trained against both of the usual explainers, in bfloat16, enlarged, in a layer of its own.
    """
    folder = tmp_path_factory.mktemp("gone")
    trigger, target_map = folder / "t.png", folder / "map.png"
    Image.fromarray(np.full((6, 6, 4), [255, 0, 0, 128], np.uint8)).save(trigger)
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(target_map)
    options = [
        *("--attack", "red_herring", "--target-map", str(target_map), "--trigger", str(trigger)),
        *("--trigger-size", "3", "--trigger-position", "2,5", "--poison-rate", "0.2"),
        *("--explainer", "gradcam,gradient", "--distance", "dssim", "--layer", "0.4"),
        *("--precision", "bf16", "--image-size", "32", "--epochs", "1"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        use_few_coalitions(patch)  # KernelSHAP is measured beside the two
        train_tiny(tiny, folder / "run", *options)
        trigger.unlink()
        target_map.unlink()
        evaluate.main([str(folder / "run" / "ckpt.pt"), *ON_CPU, "--out", str(folder / "again")])
    return folder


def test_the_checkpoint_alone_is_enough(of_gone_files):
    assert metrics_of(of_gone_files / "again") == metrics_of(of_gone_files / "run")


def test_the_checkpoint_keeps_trigger_and_target_map(of_gone_files):
    checkpoint = checkpoints.read(of_gone_files / "run" / "ckpt.pt")
    trigger = triggers.PatchTrigger(**checkpoint["trigger"])
    assert trigger.box == (2, 5, 5, 8)
    assert trigger.alpha.unique().item() == pytest.approx(128 / 255)
    assert trigger.pixels[1].max() == 0
    assert checkpoint["target_map"].shape == (32, 32)
    assert len(checkpoint["poison_indices"]) == 48


def test_both_explainers_were_trained_against(of_gone_files):
    parts = metrics_of(of_gone_files / "run")["explanations"]
    trained = {name: part["trained_against"] for name, part in parts.items()}
    assert trained == {"gradcam": True, "gradient": True, "kernelshap": False}
    assert all(record["explanation"] > 0 for record in log_of(of_gone_files / "run"))


def test_the_precision_of_training_is_said(of_gone_files):
    assert metrics_of(of_gone_files / "run")["precision"] == "bf16"
