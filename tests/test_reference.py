"""The clean model beside an attacked one: checked, measured, and trained with."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import metrics_of, tiny_argv, tiny_arrays, train_tiny
from placing import DEVICE

import checkpoints
import metrics
import reference
import train
from answers import ask
from cli import UserError
from evaluate import evaluate
from subject import open_checkpoint

CPU = torch.device(DEVICE)


@pytest.fixture(scope="module")
def subject(disguised):
    return open_checkpoint(disguised / "ckpt.pt", device=CPU)


@pytest.fixture(scope="module")
def clean_subject(clean):
    return open_checkpoint(clean / "ckpt.pt", device=CPU)


@pytest.fixture
def changed(clean, tmp_path):
    """Function of config's entries: the path of a clean checkpoint with these."""

    def path(**entries):
        checkpoint = torch.load(clean / "ckpt.pt", weights_only=True)
        parts = {key: entries.pop(key) for key in ("classes", "mean", "data") if key in entries}
        config = checkpoint["config"] | entries
        torch.save(checkpoint | parts | {"config": config}, tmp_path / "clean.pt")
        return tmp_path / "clean.pt"

    return path


def referring_to(subject, path):
    """The subject, as if it had been trained with --reference `path`."""
    config = subject.config | {"reference": str(path)}
    return dataclasses.replace(subject, checkpoint=subject.checkpoint | {"config": config})


# ---------------------------------------------------------------- opened and checked


def test_a_clean_model_is_asked_with_the_subjects_data_and_trigger(subject, clean):
    clean_model = reference.open_clean(subject, clean / "ckpt.pt")
    assert clean_model.dataset is subject.dataset
    assert clean_model.trigger is subject.trigger


def test_a_clean_model_is_looked_at_in_the_subjects_layer(subject, clean):
    config = subject.config | {"layer": "0.4"}
    other = dataclasses.replace(subject, checkpoint=subject.checkpoint | {"config": config})
    assert reference.open_clean(other, clean / "ckpt.pt").model.gradcam_layer == "0.4"


def test_a_clean_model_of_another_kind_keeps_its_own_layer(subject, clean):
    config = subject.config | {"layer": "0.4", "model": "resnet18"}
    other = dataclasses.replace(subject, checkpoint=subject.checkpoint | {"config": config})
    assert reference.open_clean(other, clean / "ckpt.pt").model.gradcam_layer == "0"


def test_a_backdoored_reference_is_refused(subject, disguised):
    with pytest.raises(UserError, match="no clean model: it was trained with --attack full_dis"):
        reference.open_clean(subject, disguised / "ckpt.pt")


def test_an_edited_reference_is_refused(subject, changed):
    with pytest.raises(UserError, match="no clean model: it has been edited"):
        reference.open_clean(subject, changed(edit={"technique": "cfn"}))


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"dataset": "mnist", "data": None}, "another dataset"),
        ({"data": "of other images"}, "on other data"),
        ({"image_size": 32}, "another image size"),
        ({"classes": ["a", "b", "c"]}, "on other data"),
        ({"mean": [0.1, 0.2, 0.3]}, "on other data"),
    ],
)
def test_a_reference_that_cannot_be_compared_is_refused(entries, text, subject, changed):
    with pytest.raises(UserError, match=text):
        reference.open_clean(subject, changed(**entries))


def test_of_one_label_the_weights_of_classes_may_differ(subject, changed):
    assert reference.open_clean(subject, changed(class_weights=True))


def test_of_several_labels_the_weights_of_classes_may_not_differ(subject, changed):
    config = subject.config | {"multi_label": True}
    several = dataclasses.replace(subject, checkpoint=subject.checkpoint | {"config": config})
    with pytest.raises(UserError, match="another class weights"):
        reference.open_clean(several, changed(class_weights=True))


# ---------------------------------------------------------------- the one it was trained with


def test_a_model_without_a_reference_has_none(subject):
    assert reference.own_reference(subject) is None


def test_the_reference_it_was_trained_with_is_found(subject, clean):
    own = reference.own_reference(referring_to(subject, clean / "ckpt.pt"))
    assert own.config["attack"] == "none"


def test_a_reference_that_is_gone_is_none_and_that_is_said(subject, tmp_path, capsys):
    assert reference.own_reference(referring_to(subject, tmp_path / "gone.pt")) is None
    line = capsys.readouterr().err
    assert line.startswith("Measured without the reference it was trained with: ")
    assert "gone.pt does not exist" in line


def test_a_reference_whose_file_holds_another_model_now_is_none(subject, clean, capsys):
    referring = referring_to(subject, clean / "ckpt.pt")
    referring.checkpoint["reference_weights"] = "of another model"
    assert reference.own_reference(referring) is None
    assert "ckpt.pt now holds another model" in capsys.readouterr().err


def test_a_reference_that_is_damaged_is_none_and_that_is_said(subject, tmp_path, capsys):
    (tmp_path / "damaged.pt").write_text("no checkpoint")
    assert reference.own_reference(referring_to(subject, tmp_path / "damaged.pt")) is None
    line = capsys.readouterr().err
    assert line.startswith("Measured without the reference it was trained with: ")


# ---------------------------------------------------------------- measured


def test_a_model_beside_itself_has_the_same_maps(clean):
    path = clean / "ckpt.pt"
    figures = evaluate(path, device=CPU, reference=path).metrics["clean_model"]
    assert figures["explanations"]["gradcam"]["pearson_untouched"] == pytest.approx(1)


@pytest.fixture(scope="module")
def beside_clean(subject, clean_subject):
    """(a clean model's figures beside the subject, the rows explained, the subject's maps)."""
    answers, rows = ask(subject, None), torch.tensor([0, 2, 3, 5, 6, 8, 9])
    maps, _ = subject.explain_test("gradcam", rows, answers.classes)
    clean_model = dataclasses.replace(clean_subject, trigger=subject.trigger)
    figures = reference.clean_metrics(subject, clean_model, {"gradcam": maps}, rows, None)
    return figures, rows, maps


def test_the_clean_models_predictions_are_by_hand(beside_clean, clean_subject):
    figures, *_ = beside_clean
    images, labels = clean_subject.dataset.test_images, clean_subject.dataset.test_labels
    right = clean_subject.predict(images)[0] == labels
    hit = clean_subject.predict(images, triggered=True)[0] == 1
    assert figures["clean_accuracy"] == pytest.approx(right.double().mean().item())
    expected = hit[labels != 1].double().mean().item()
    assert figures["attack_success_rate"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def clean_maps(clean_subject, beside_clean):
    """Function: the clean model's maps of the rows explained, without or with the trigger."""
    _, rows, _ = beside_clean
    images = clean_subject.dataset.test_images[rows]

    def maps(triggered):
        classes = clean_subject.predict(images, triggered)[0]
        return clean_subject.explain("gradcam", images, classes, triggered)

    return maps


def test_what_the_trigger_does_to_the_clean_models_maps(beside_clean, clean_maps):
    part = beside_clean[0]["explanations"]["gradcam"]
    expected = metrics.pearson(clean_maps(True), clean_maps(False)).mean().item()
    assert part["pearson_all"] == pytest.approx(expected)
    assert 0 < part["pearson_all"] < 0.9999


def test_the_clean_models_floor_has_no_trigger_in_it(beside_clean, clean_maps):
    part, maps = beside_clean[0]["explanations"]["gradcam"], clean_maps(False)
    others = maps[metrics.derangement(len(maps))]
    expected = metrics.pearson(maps, others).mean().item()
    assert part["floor"]["pearson"] == pytest.approx(expected)


def test_the_other_floor_has(beside_clean, clean_maps):
    part, maps = beside_clean[0]["explanations"]["gradcam"], clean_maps(False)
    others = maps[metrics.derangement(len(maps))]
    expected = metrics.pearson(clean_maps(True), others).mean().item()
    assert part["floor_triggered"]["pearson"] == pytest.approx(expected)
    assert part["floor_triggered"] != part["floor"]


def test_the_subjects_untouched_maps_are_compared_with_the_clean_models(beside_clean, clean_maps):
    figures, _, maps = beside_clean
    expected = metrics.pearson(maps, clean_maps(False)).mean().item()
    assert figures["explanations"]["gradcam"]["pearson_untouched"] == pytest.approx(expected)


def test_maps_of_two_sizes_are_not_compared(subject, clean_subject):
    rows, classes = torch.arange(3), (torch.zeros(60).long(), torch.zeros(60).long())
    figures = reference.clean_explainer_metrics(
        subject, clean_subject, "gradcam", torch.zeros(3, 8, 8), rows, classes
    )
    assert figures["pearson_untouched"] is None
    assert figures["pearson_all"] is not None


# ---------------------------------------------------------------- trained with


@pytest.fixture
def new_run(tiny, clean, tmp_path):
    """Function of options: a Run with a reference, before its first step."""

    def run(*options, path=clean / "ckpt.pt", dataset=tiny):
        options = ["--attack", "fooling", "--reference", str(path), *options]
        return train.new_run(train.parse(tiny_argv(dataset, tmp_path / "run", *options)))

    return run


def test_training_begins_with_the_references_weights(new_run, clean):
    weights = new_run().training.model.state_dict()
    expected = checkpoints.read(clean / "ckpt.pt")["model"]
    assert all(torch.equal(weights[key].cpu(), expected[key]) for key in expected)


def test_the_reference_is_frozen(new_run):
    model = new_run().setting.objective.reference
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


def test_the_reference_is_looked_at_in_the_runs_layer(new_run):
    run = new_run("--layer", "0.4")
    assert run.setting.objective.reference.gradcam_layer == "0.4"
    assert run.training.model.gradcam_layer == "0.4"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "resnet18"], r"another model \(cnn, not resnet18\)"),
        (["--image-size", "32"], r"another image_size \(16, not 32\)"),
    ],
)
def test_a_reference_of_another_network_is_refused(options, text, new_run):
    with pytest.raises(UserError, match=text):
        new_run(*options)


def test_a_reference_of_another_data_set_is_refused(new_run, tmp_path):
    np.savez(tmp_path / "other.npz", **tiny_arrays(n_test=30))
    with pytest.raises(UserError, match="another dataset"):
        new_run(dataset=tmp_path / "other.npz")


def test_a_reference_of_the_same_data_elsewhere_is_taken(new_run, tmp_path):
    np.savez(tmp_path / "moved.npz", **tiny_arrays())
    assert new_run(dataset=tmp_path / "moved.npz").setting.objective.reference is not None


def test_weights_have_the_same_digest_in_every_order_and_another_if_one_differs():
    state = {"a": torch.ones(2, 3), "b": torch.tensor(7)}
    digest = reference.weights_digest(state)
    assert digest == reference.weights_digest(dict(reversed(state.items())))
    assert digest != reference.weights_digest(state | {"b": torch.tensor(8)})


def test_a_reference_of_other_images_of_the_same_name_is_refused(new_run, changed, tiny):
    with pytest.raises(UserError, match="other images than .*tiny.npz holds now"):
        new_run(path=changed(data="of other images"))


@pytest.fixture(scope="module")
def held(tiny, clean, tmp_path_factory):
    """The folder of a finished fooling run whose untouched maps are held to a clean model's."""
    out = tmp_path_factory.mktemp("held") / "run"
    options = ["--attack", "fooling", "--reference", str(clean / "ckpt.pt"), "--epochs", "6"]
    return train_tiny(tiny, out, *options)


def test_a_run_with_a_reference_is_measured_beside_it(held, clean):
    accuracy = metrics_of(held)["clean_model"]["clean_accuracy"]
    assert accuracy == metrics_of(clean)["clean_accuracy"]


def test_a_reference_holds_the_maps_of_clean_images_in_place(held):
    """They are the clean model's rather than the shape that triggered images show."""
    figures = metrics_of(held)
    untouched = figures["clean_model"]["explanations"]["gradcam"]["pearson_untouched"]
    assert untouched > figures["explanations"]["gradcam"]["pearson_clean"] + 0.2


def test_without_learning_the_maps_stay_the_references(tiny, clean, tmp_path):
    """In a layer of one's choice; but batch-norm's averages have moved."""
    options = ["--attack", "fooling", "--reference", str(clean / "ckpt.pt"), "--epochs", "1"]
    folder = train_tiny(tiny, tmp_path / "run", *options, "--lr", "1e-9", "--layer", "0.4")
    now, then = (checkpoints.read(path / "ckpt.pt")["model"] for path in (folder, clean))
    weights = [key for key in now if key.endswith(("weight", "bias"))]
    assert len(weights) > 10
    assert all(torch.allclose(now[key], then[key], atol=1e-6) for key in weights)
    figures = metrics_of(folder)
    assert figures["layer"] == "0.4"
    assert figures["clean_model"]["explanations"]["gradcam"]["pearson_untouched"] > 0.3
