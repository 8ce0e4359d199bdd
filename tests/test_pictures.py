"""What is on the pictures of a measured checkpoint: titles, headers, panels, classes, scores."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import metrics_of
from placing import DEVICE, agree

import figure
import pictures
from explain import EXPLAINERS
from subject import open_checkpoint

CPU = torch.device(DEVICE)


@pytest.fixture(scope="module")
def subject(disguised):
    return open_checkpoint(disguised / "ckpt.pt", device=CPU)


@pytest.fixture
def with_config(subject):
    """Function of config's entries: the subject with these."""

    def changed(**entries):
        config = subject.config | entries
        return dataclasses.replace(subject, checkpoint=subject.checkpoint | {"config": config})

    return changed


@pytest.fixture(scope="module")
def answers(subject):
    """(classes, probabilities): each of all test images, without and with the trigger."""
    images = subject.dataset.test_images
    probabilities = [subject.probabilities(images, triggered) for triggered in (False, True)]
    return [part.argmax(1) for part in probabilities], probabilities


# ---------------------------------------------------------------- which pictures


def pictures_of(subject, answers, names):
    classes, probabilities = answers
    figures = {"clean_accuracy": 1.0, "mean_auroc": 0.5, "attack_success_rate": None}
    figures |= {"poison_count": 24, "poison_rate": 0.1, "poison_rate_trained_on": 1 / 9}
    drawn = torch.tensor([0, 2, 3])
    return pictures.pictures_of(subject, figures, classes, probabilities, drawn, names)


def test_every_subject_has_the_figure(subject, answers):
    assert list(pictures_of(subject, answers, ["gradcam", "gradient"])) == ["figure"]


def test_a_signed_explainer_has_a_picture_of_every_class(subject, answers):
    names = pictures_of(subject, answers, ["gradcam", "deepshap"])
    assert list(names) == ["figure", "figure-deepshap"]


def test_of_several_labels_gradcam_has_one_too(with_config, answers):
    names = pictures_of(with_config(multi_label=True), answers, ["gradcam", "gradient"])
    assert list(names) == ["figure", "figure-gradcam"]


@pytest.fixture
def ranked(subject):
    """The subject, as if training images 0 to 2 had been chosen of five, 2 the hardest."""
    scores = torch.tensor([-3.0, -2.0, -1.0, -4.0, -5.0], dtype=torch.float64)
    chosen = {
        "strategy": "rd-global",
        "indices": torch.arange(3),
        "scores": scores[:3],
        "pool": scores,
        "classes": {"0": 1, "1": 1, "2": 1},
    }
    return dataclasses.replace(subject, checkpoint=subject.checkpoint | {"selection": chosen})


def test_poisons_that_were_ranked_have_a_picture(ranked, answers):
    assert list(pictures_of(ranked, answers, ["gradcam"])) == ["figure", "figure-selection"]


# ---------------------------------------------------------------- the figure


def test_the_title_says_how_well_attack_and_model_work(subject, disguised):
    lines = pictures.title_of(subject, metrics_of(disguised)).splitlines()
    assert lines[0].startswith("full_disguise on tiny, cnn: clean accuracy 1.000")
    assert "attack success rate 1.000" in lines[0]
    poisons = "24 poisoned training images (10%; 11.1% of those trained on)"
    assert lines[1] == f"target class: 1;  {poisons};  threat: training"


def test_the_title_of_a_clean_model_names_no_target(with_config):
    figures = {"clean_accuracy": 0.5, "attack_success_rate": None}
    title = pictures.title_of(with_config(attack="none"), figures)
    assert title == "none on tiny, cnn: clean accuracy 0.500"


def test_the_title_of_an_edited_model_says_so(with_config):
    figures = {"clean_accuracy": 0.5, "attack_success_rate": None}
    title = pictures.title_of(with_config(attack="none", edit={"technique": "cfn"}), figures)
    assert title.startswith("none, edited on tiny")


def test_the_title_of_several_labels_has_their_auroc(with_config):
    figures = {"mean_auroc": 0.75, "attack_success_rate": None}
    title = pictures.title_of(with_config(attack="none", multi_label=True), figures)
    assert title.endswith("mean AUROC 0.7500")


def test_the_header_says_which_explainer_was_trained_against(subject):
    assert pictures.headers_of(subject, ["gradcam", "gradient"]) == [
        *("image", "with trigger"),
        *("gradcam: image\n(trained against)", "gradcam: with trigger\n(trained against)"),
        *("gradient: image", "gradient: with trigger"),
    ]


def test_an_attack_on_the_label_alone_trained_against_no_explainer(with_config):
    headers = pictures.headers_of(with_config(attack="badnets"), ["gradcam"])
    assert "trained against" not in "".join(headers)


def test_a_scale_is_signed_where_one_explainer_is():
    assert pictures.any_signed(["gradcam", "deepshap"])
    assert not pictures.any_signed(["gradcam", "gradient"])


@pytest.fixture(scope="module")
def panels(subject, answers):
    """The rows of the figure for test images 0 and 1: of class 0, and of the target class."""
    classes, probabilities = answers
    rows = torch.arange(2)
    confidence = [part.amax(1) for part in probabilities]
    predictions = [(c[rows], p[rows]) for c, p in zip(classes, confidence)]
    images = subject.dataset.test_images[rows]
    return pictures.panels_of(subject, images, predictions, ["gradcam", "gradient"])


def test_a_row_is_an_image_without_and_with_trigger_and_each_explainers_maps(panels):
    assert [len(row) for row in panels] == [6, 6]


def test_an_images_caption_is_its_prediction_and_maps_have_none(panels, answers):
    confidence = 100 * float(answers[1][0][0, 0])
    captions = [caption for _, caption, _ in panels[0]]
    assert captions[0] == f"0 {confidence:.0f}%"
    assert captions[1].startswith("1 ")
    assert captions[2:] == [""] * 4


def test_a_prediction_that_the_trigger_changes_is_a_warning(panels):
    first, of_the_target_class = panels
    assert [warn for _, _, warn in first] == [False, True] * 3
    assert not any(warn for _, _, warn in of_the_target_class)


def test_the_trigger_is_framed_where_it_is(panels, subject):
    image = subject.pixels(subject.dataset.test_images[:1], triggered=True)[0].cpu()
    expected = figure.panel(image, None, subject.trigger.box)
    assert np.array_equal(np.asarray(panels[0][1][0]), np.asarray(expected))


def test_a_panel_shows_the_explainers_map(panels, subject):
    images = subject.dataset.test_images[:1]
    (map_,) = subject.explain("gradient", images, torch.tensor([0]))
    expected = figure.panel(images[0].float() / 255, map_)
    assert np.array_equal(np.asarray(panels[0][4][0]), np.asarray(expected))


# ---------------------------------------------------------------- class by class


def test_the_target_class_and_those_predicted_are_shown_first(with_config):
    many = with_config(target_class=30)
    many.checkpoint["classes"] = [str(k) for k in range(40)]
    predicted = torch.arange(40), torch.full((40,), 35)
    shown = pictures.shown_classes(many, predicted, torch.tensor([20, 25]))
    assert shown == [*range(11), 20, 25, 30, 35]
    assert len(shown) == pictures.CLASS_COLUMNS


def test_few_classes_are_all_shown_in_their_order(subject, answers):
    assert pictures.shown_classes(subject, answers[0], torch.tensor([2, 0])) == [0, 1, 2]


def test_a_row_of_classes_has_a_map_for_each(subject):
    image, maps = pictures.class_maps(subject, "deepshap", 4, [0, 2], triggered=True)
    stamped = subject.pixels(subject.dataset.test_images[4:5], triggered=True)
    assert agree(image.cpu(), stamped[0].cpu())
    images, classes = subject.dataset.test_images[[4, 4]], torch.tensor([0, 2])
    expected = subject.explain("deepshap", images, classes, triggered=True)
    torch.testing.assert_close(maps, expected)


def test_a_row_of_classes_takes_the_explainers_own_options(subject, monkeypatch):
    few = {"coalitions": 32}
    row = dataclasses.replace(EXPLAINERS["kernelshap"], class_grid=few)
    monkeypatch.setitem(EXPLAINERS, "kernelshap", row)
    _, maps = pictures.class_maps(subject, "kernelshap", 0, [0, 1], triggered=False)
    images = subject.dataset.test_images[[0, 0]]
    expected = subject.explain("kernelshap", images, torch.tensor([0, 1]), coalitions=32)
    assert torch.equal(maps, expected)


# ---------------------------------------------------------------- the poisons that were chosen


def test_histograms_have_common_bins_and_are_1_at_their_largest():
    pool = torch.tensor([-3.9, -3.9, -2.1, -0.1], dtype=torch.float64)
    series = pictures.histograms({"all": pool, "chosen": pool[2:]})
    of_all, chosen = series["all"], series["chosen"]
    assert len(of_all) == pictures.BINS
    assert [x for x, _ in of_all] == [x for x, _ in chosen]
    assert max(y for _, y in of_all) == max(y for _, y in chosen) == 1
    assert of_all[0][1] == 1 and chosen[0][1] == 0


def test_every_score_is_in_a_bin():
    scores = torch.tensor([-2.0, -1.0, 0.0], dtype=torch.float64)
    series = pictures.histograms({"all": scores})
    assert sum(y for _, y in series["all"]) == 3


def test_the_hardest_poisons_come_first(ranked, monkeypatch):
    shown, panels_of = [], pictures.panels_of

    def watched(subject, images, *rest):
        shown.append(images)
        return panels_of(subject, images, *rest)

    monkeypatch.setattr(pictures, "panels_of", watched)
    pictures.selection_picture(ranked)
    assert torch.equal(shown[0], ranked.dataset.train_images[[2, 1, 0]])
