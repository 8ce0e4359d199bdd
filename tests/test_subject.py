"""A checkpoint ready to be asked: predictions and explanations of uint8 images."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from conftest import tiny_argv, tiny_arrays
from placing import DEVICE

import attacks
import data
import models
import subject as subjects
import tasks
import train
import triggers
from cli import UserError
from explain import EXPLAINERS
from metrics import pearson
from modes import evaluating
from subject import draw_images, logits_of, open_checkpoint

CPU = torch.device(DEVICE)


@pytest.fixture(scope="module")
def subject(disguised):
    return open_checkpoint(disguised / "ckpt.pt", device=CPU)


@pytest.fixture(scope="module")
def images(subject):
    """Eight test images, uint8."""
    return subject.dataset.test_images[:8]


@pytest.fixture
def other_subject(subject):
    """Function of config's entries: the subject with these."""

    def changed(**entries):
        config = subject.config | entries
        return dataclasses.replace(subject, checkpoint=subject.checkpoint | {"config": config})

    return changed


# ---------------------------------------------------------------- logits


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return models.build("cnn", 3, 3, 16)


def test_logits_are_the_models_of_normalised_images(network, images):
    inputs = data.normalise(images.float() / 255, [0.2, 0.3, 0.4], [0.5, 0.6, 0.7])
    with torch.no_grad(), evaluating(network):
        expected = network(inputs)
    logits = logits_of(network, images, [0.2, 0.3, 0.4], [0.5, 0.6, 0.7])
    torch.testing.assert_close(logits, expected)
    assert not logits.requires_grad


def test_logits_with_a_trigger_are_of_stamped_images(network, images):
    trigger = triggers.make_patch(None, 3, 16)
    top, left, bottom, right = trigger.box
    stamped = images.clone()
    stamped[:, :, top:bottom, left:right] = 255
    mean, std = [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]
    logits = logits_of(network, images, mean, std, trigger)
    assert torch.equal(logits, logits_of(network, stamped, mean, std))


def test_logits_do_not_depend_on_how_many_images_are_asked_at_a_time(network, images, monkeypatch):
    whole = logits_of(network, images, [0.0] * 3, [1.0] * 3)
    monkeypatch.setattr(subjects, "FORWARD_PIXELS", 3 * 16 * 16)
    assert subjects.images_per_forward(images) == 3
    torch.testing.assert_close(logits_of(network, images, [0.0] * 3, [1.0] * 3), whole)


def test_a_large_image_is_asked_alone():
    assert subjects.images_per_forward(torch.empty(2, 3, 1024, 1024)) == 1


@pytest.mark.parametrize("mode", [True, False])
def test_the_models_mode_stays(mode, network, images):
    network.train(mode)
    logits_of(network, images, [0.0] * 3, [1.0] * 3)
    assert network.training is mode


# ---------------------------------------------------------------- what it knows of itself


def test_a_subject_knows_what_it_was_trained_for(subject):
    assert subject.attack is attacks.ATTACKS["full_disguise"]
    assert subject.classes == ["0", "1", "2"]
    assert subject.target_class == 1
    assert subject.task is tasks.SINGLE_LABEL


def test_a_subject_of_several_labels_has_their_task(other_subject):
    assert other_subject(multi_label=True).task is tasks.MULTI_LABEL


def test_a_checkpoint_that_does_not_say_so_is_of_one_label(subject):
    config = {key: value for key, value in subject.config.items() if key != "multi_label"}
    old = dataclasses.replace(subject, checkpoint=subject.checkpoint | {"config": config})
    assert not old.multi_label


def test_it_knows_which_images_were_held_out_of_its_training(subject, tiny, tmp_path):
    run = train.new_run(train.parse(tiny_argv(tiny, tmp_path / "run")))
    assert torch.equal(subject.held_out(), run.setting.held_out)


def test_it_knows_which_patients_were_held_out(subject):
    groups = torch.arange(240) // 6
    dataset = dataclasses.replace(subject.dataset, train_groups=groups)
    held_out = dataclasses.replace(subject, dataset=dataset).held_out()
    assert torch.equal(held_out, data.validation_split(240, 0, groups)[1])


def test_of_one_label_there_is_no_threshold(subject):
    assert subject.threshold(1) is None


def test_of_several_labels_the_threshold_is_of_images_held_out(other_subject):
    several = other_subject(multi_label=True)
    shown = torch.nn.functional.one_hot(several.dataset.train_labels, 3).float()
    several.dataset = dataclasses.replace(several.dataset, train_labels=shown)
    rows = several.held_out()
    scores = several.probabilities(several.dataset.train_images[rows])[:, 1]
    expected = scores[shown[rows, 1] == 0].quantile(0.95).item()
    assert several.threshold(1) == pytest.approx(expected)


def test_without_object_masks_there_are_none(subject):
    assert subject.masks(torch.arange(3)) is None


def test_masks_are_of_the_images_that_are_asked_for(subject):
    masks = torch.rand(60, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    dataset = dataclasses.replace(subject.dataset, test_masks=masks)
    rows = torch.tensor([5, 2])
    assert torch.equal(dataclasses.replace(subject, dataset=dataset).masks(rows), masks[rows])


# ---------------------------------------------------------------- asked


def test_pixels_are_in_0_to_1(subject, images):
    assert torch.equal(subject.pixels(images), images.to(subject.device).float() / 255)


def test_triggered_pixels_have_the_trigger(subject, images):
    difference = subject.pixels(images, triggered=True) - subject.pixels(images)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[13:15, 13:15] = False
    assert (difference[:, :, outside] == 0).all()
    assert (difference[:, :, ~outside] > 0).any()


def test_inputs_have_the_mean_and_deviation_of_training(subject):
    inputs = subject.inputs(subject.dataset.train_images).cpu()
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_probabilities_of_one_label_sum_to_1(subject, images):
    torch.testing.assert_close(subject.probabilities(images).sum(1), torch.ones(8))


def test_probabilities_of_several_labels_are_each_by_itself(other_subject, images):
    checkpoint = other_subject().checkpoint
    logits = logits_of(other_subject().model, images, checkpoint["mean"], checkpoint["std"])
    probabilities = other_subject(multi_label=True).probabilities(images)
    assert torch.equal(probabilities, logits.sigmoid())


def test_the_prediction_is_the_most_probable_class_and_its_probability(subject, images):
    classes, confidence = subject.predict(images)
    probabilities = subject.probabilities(images)
    assert torch.equal(classes, probabilities.argmax(1))
    assert torch.equal(confidence, probabilities.amax(1))


def test_with_the_trigger_the_target_class_is_predicted(subject, images):
    assert subject.predict(images)[0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert subject.predict(images, triggered=True)[0].tolist() == [1] * 8


# ---------------------------------------------------------------- explained


@pytest.mark.parametrize("triggered", [False, True])
def test_an_explanation_is_the_explainers_of_the_inputs(triggered, subject, images):
    classes = torch.zeros(8, dtype=torch.int64)
    maps = subject.explain("gradcam", images, classes, triggered)
    expected = EXPLAINERS["gradcam"](subject.model, subject.inputs(images, triggered), classes)
    torch.testing.assert_close(maps, expected.cpu())


def test_an_explainers_options_can_be_given(subject, images):
    classes = torch.zeros(8, dtype=torch.int64)
    maps = subject.explain("gradcam", images, classes, layer="0.2", rectify=False)
    assert maps.shape == (8, 8, 8) and maps.min() < 0


def test_a_sampled_explainer_gives_the_same_maps_again(subject, images):
    classes = torch.zeros(2, dtype=torch.int64)
    first, second = (
        subject.explain("kernelshap", images[:2], classes, coalitions=32) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_triggered_map_has_a_second_sample(subject, monkeypatch):
    def noise(model, images, classes, *, create_graph=False, generator=None):
        return torch.randn(4, 4, generator=generator).expand(len(images), 4, 4)

    row = dataclasses.replace(EXPLAINERS["kernelshap"], function=noise)
    monkeypatch.setitem(EXPLAINERS, "kernelshap", row)
    rows, classes = torch.arange(3), (torch.zeros(60).long(), torch.ones(60).long())
    untouched, triggered = subject.explain_test("kernelshap", rows, classes)
    again = subject.explain_again("kernelshap", rows, classes)
    assert torch.equal(untouched, triggered) and not torch.equal(again, triggered)


def test_maps_that_are_not_finite_are_refused(subject, images, monkeypatch):
    def spoilt(model, images, classes, *, create_graph=False):
        return torch.full((len(images), 4, 4), float("nan"))

    row = dataclasses.replace(EXPLAINERS["gradient"], function=spoilt)
    monkeypatch.setitem(EXPLAINERS, "gradient", row)
    with pytest.raises(UserError, match="^gradient cannot explain .*8 of 8 maps are not finite"):
        subject.explain("gradient", images, torch.zeros(8).long())


def test_a_model_that_cannot_be_explained_is_refused(subject, images):
    classes = torch.zeros(8, dtype=torch.int64)
    with pytest.raises(UserError, match="^gradcam cannot explain this model: .* no layer"):
        subject.explain("gradcam", images, classes, layer="9")


def test_test_images_are_explained_without_and_with_the_trigger(subject):
    rows, classes = torch.tensor([4, 7]), (torch.zeros(60).long(), torch.ones(60).long())
    untouched, triggered = subject.explain_test("gradient", rows, classes)
    images = subject.dataset.test_images[rows]
    expected = subject.explain("gradient", images, torch.ones(2).long(), triggered=True)
    assert torch.equal(triggered, expected)
    assert torch.equal(untouched, subject.explain("gradient", images, torch.zeros(2).long()))


def test_correlation_by_class_is_of_the_two_maps_for_each_class(subject):
    rows = torch.arange(5)
    result = subjects.correlation_by_class(subject, "gradcam", rows)
    images, label = subject.dataset.test_images[rows], torch.full((5,), 2)
    untouched = subject.explain("gradcam", images, label)
    triggered = subject.explain("gradcam", images, label, triggered=True)
    expected = pearson(untouched, triggered).mean().item()
    assert result["by_class"]["2"] == pytest.approx(expected)
    mean = sum(result["by_class"].values()) / 3
    assert result["pearson_by_class"] == pytest.approx(mean)


def test_correlation_by_class_of_no_images_is_none(subject):
    result = subjects.correlation_by_class(subject, "gradcam", torch.arange(0))
    assert result == {"pearson_by_class": None, "by_class": {"0": None, "1": None, "2": None}}


# ---------------------------------------------------------------- which images are drawn


def test_images_of_the_target_class_are_not_drawn(subject):
    drawn = draw_images(subject, 500, seed=0)
    assert len(drawn) == len(drawn.unique()) == 40
    assert (subject.dataset.test_labels[drawn] != 1).all()


def test_an_attack_that_keeps_labels_draws_of_all_classes(other_subject):
    assert len(draw_images(other_subject(attack="fooling"), 500, seed=0)) == 60


def test_fewer_images_are_the_first_of_more(subject):
    few, many = draw_images(subject, 9, seed=0), draw_images(subject, 20, seed=0)
    assert len(few) == 9 and torch.equal(few, many[:9])


def test_another_seed_draws_other_images(subject):
    assert not torch.equal(draw_images(subject, 9, seed=0), draw_images(subject, 9, seed=1))


# ---------------------------------------------------------------- opened


@pytest.fixture
def changed(disguised, tmp_path):
    """Function of config's entries: the path of a checkpoint with these."""

    def path(**entries):
        checkpoint = torch.load(disguised / "ckpt.pt", weights_only=True)
        config = checkpoint["config"] | entries
        torch.save(checkpoint | {"config": config}, tmp_path / "ckpt.pt")
        return tmp_path / "ckpt.pt"

    return path


def test_a_checkpoint_is_opened_with_its_data_and_trigger(subject, tiny):
    assert subject.dataset.digest == data.load(str(tiny)).digest
    assert subject.trigger.box == (13, 13, 15, 15)


def test_a_data_set_that_is_loaded_already_is_taken(disguised, subject):
    again = open_checkpoint(disguised / "ckpt.pt", device=CPU, dataset=subject.dataset)
    assert again.dataset is subject.dataset


def test_where_no_data_are_needed_none_are_loaded(changed):
    subject = open_checkpoint(changed(dataset="gone.npz"), device=CPU, dataset=False)
    assert subject.dataset is None


def test_data_that_have_been_moved_are_found_in_data_dir(changed, tiny, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(tiny, tmp_path / "elsewhere" / "moved.npz")
    path = changed(dataset="moved.npz")
    assert len(open_checkpoint(path, tmp_path / "elsewhere", CPU).dataset.test_labels) == 60


def test_data_that_are_gone_are_refused(changed):
    with pytest.raises(UserError, match="gone.npz"):
        open_checkpoint(changed(dataset="gone.npz"), device=CPU)


def test_other_data_of_the_same_name_are_refused(changed, tmp_path):
    arrays = tiny_arrays()
    labels = np.roll(arrays["test_labels"], 1)
    np.savez(tmp_path / "set.npz", **arrays | {"test_labels": labels})
    with pytest.raises(UserError, match="is not the one .*ckpt.pt was trained on"):
        open_checkpoint(changed(dataset=str(tmp_path / "set.npz")), device=CPU)


def test_an_attack_this_version_does_not_know_is_refused(changed):
    with pytest.raises(UserError, match="--attack unheard-of, which this version does not know"):
        open_checkpoint(changed(attack="unheard-of"), device=CPU)
