"""Tasks: what one label an image and several have in common, and where they differ."""

import inspect

import pytest
import torch
import torch.nn.functional as F

import tasks
from attacks import Batch
from tasks import MULTI_LABEL, SINGLE_LABEL

ON_DEVICE = True

SINGLE = torch.tensor([0, 1, 2, 2])
SEVERAL = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [0, 1, 1]])
both_tasks = pytest.mark.parametrize("task", [SINGLE_LABEL, MULTI_LABEL], ids=["one", "several"])


def logits_of(n=5, classes=3):
    return torch.randn(n, classes, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- which task


def test_labels_of_one_dimension_are_one_class_an_image():
    assert tasks.task_of(SINGLE) is SINGLE_LABEL


def test_labels_of_two_dimensions_are_several_classes_an_image():
    assert tasks.task_of(SEVERAL) is MULTI_LABEL


def methods(task):
    return dict(inspect.getmembers(type(task), inspect.isfunction))


def test_both_tasks_have_the_same_methods():
    assert set(methods(SINGLE_LABEL)) == set(methods(MULTI_LABEL))


@pytest.mark.parametrize("name", methods(SINGLE_LABEL))
def test_a_method_has_the_same_arguments_in_both_tasks(name):
    signatures = [inspect.signature(methods(t)[name]) for t in (SINGLE_LABEL, MULTI_LABEL)]
    assert signatures[0] == signatures[1]


def test_only_several_labels_are_multi_label():
    assert MULTI_LABEL.multi_label and not SINGLE_LABEL.multi_label


def test_only_with_one_label_are_maps_compared_as_they_are_shown():
    assert SINGLE_LABEL.uses_relu and not MULTI_LABEL.uses_relu


# ---------------------------------------------------------------- labels


def test_an_image_of_one_class_shows_it():
    assert SINGLE_LABEL.shows(SINGLE, 2).tolist() == [False, False, True, True]


def test_an_image_of_several_classes_shows_each():
    assert MULTI_LABEL.shows(SEVERAL, 2).tolist() == [True, False, False, True]


@pytest.mark.parametrize("labels", [SINGLE, F.one_hot(SINGLE).float()], ids=["one", "several"])
def test_shows_asks_the_task_of_the_labels(labels):
    assert tasks.shows(labels, 2).tolist() == [False, False, True, True]


def test_the_target_takes_the_place_of_one_label():
    labels = SINGLE.clone()
    SINGLE_LABEL.set_target(labels, torch.tensor([0, 3]), 1)
    assert labels.tolist() == [1, 1, 2, 1]


def test_the_target_is_added_to_several_labels():
    labels = SEVERAL.clone()
    MULTI_LABEL.set_target(labels, torch.tensor([0, 1]), 1)
    assert labels.tolist() == [[1, 1, 1], [0, 1, 0], [0, 1, 0], [0, 1, 1]]


def test_images_are_counted_by_class():
    assert SINGLE_LABEL.label_counts(SINGLE, 4).tolist() == [1, 1, 2, 0]


def test_an_image_counts_for_every_class_it_shows():
    assert MULTI_LABEL.label_counts(SEVERAL, 3).tolist() == [1, 2, 2]


# ---------------------------------------------------------------- cross-entropy


def test_the_cross_entropy_of_one_label_is_of_the_softmax():
    logits, labels = logits_of(4), SINGLE
    expected = -logits.log_softmax(1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(SINGLE_LABEL.cross_entropy(logits, labels), expected)


def test_the_cross_entropy_of_several_labels_is_the_mean_over_classes_of_the_sigmoids():
    logits = logits_of(4)
    p = logits.sigmoid()
    expected = -(SEVERAL * p.log() + (1 - SEVERAL) * (1 - p).log()).mean()
    torch.testing.assert_close(MULTI_LABEL.cross_entropy(logits, SEVERAL), expected)


def test_weights_of_one_label_are_the_images():
    logits, weights = logits_of(4), torch.tensor([1.0, 2.0, 5.0])
    expected = F.cross_entropy(logits, SINGLE, weight=weights)
    torch.testing.assert_close(SINGLE_LABEL.cross_entropy(logits, SINGLE, weights), expected)


def test_weights_of_several_labels_are_of_what_is_shown():
    logits, weights = logits_of(4), torch.tensor([1.0, 2.0, 5.0])
    p = logits.sigmoid()
    expected = -(weights * SEVERAL * p.log() + (1 - SEVERAL) * (1 - p).log()).mean()
    torch.testing.assert_close(MULTI_LABEL.cross_entropy(logits, SEVERAL, weights), expected)


def test_smoothing_of_one_label_is_shared_by_all_classes():
    logits = logits_of(4)
    smooth = 0.7 * F.one_hot(SINGLE, 3) + 0.3 / 3
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(SINGLE_LABEL.cross_entropy(logits, SINGLE, None, 0.3), expected)


def test_smoothing_of_several_labels_brings_each_nearer_to_a_half():
    logits = logits_of(4)
    smooth = 0.7 * SEVERAL + 0.3 / 2
    p = logits.sigmoid()
    expected = -(smooth * p.log() + (1 - smooth) * (1 - p).log()).mean()
    torch.testing.assert_close(MULTI_LABEL.cross_entropy(logits, SEVERAL, None, 0.3), expected)


# ---------------------------------------------------------------- class weights


@pytest.fixture
def skewed():
    """Labels of 240 images: 150, 60 and 30 of three classes, none of a fourth."""
    return torch.repeat_interleave(torch.tensor([0, 1, 2]), torch.tensor([150, 60, 30]))


POISONS = torch.arange(0, 40, 2)
TRAINED_ON = torch.arange(240)[torch.arange(240) % 10 > 0]


def test_by_its_weight_each_class_counts_alike(skewed):
    skewed[POISONS] = 2
    weights = SINGLE_LABEL.class_weights(skewed, TRAINED_ON, 4)
    counts = skewed[TRAINED_ON].bincount(minlength=4)
    torch.testing.assert_close(weights[:3] * counts[:3], torch.full((3,), len(TRAINED_ON) / 3))


def test_by_its_weight_what_shows_a_class_counts_as_much_as_what_does_not(skewed):
    labels = F.one_hot(skewed, 3).float()
    labels[POISONS, 2] = 1
    weights = MULTI_LABEL.class_weights(labels, TRAINED_ON, 3)
    positives = labels[TRAINED_ON].sum(0)
    torch.testing.assert_close(weights * positives, len(TRAINED_ON) - positives)


@both_tasks
def test_a_class_without_images_weighs_1(task, skewed):
    labels = F.one_hot(skewed, 4).float() if task.multi_label else skewed
    assert task.class_weights(labels, TRAINED_ON, 4)[3] == 1


@both_tasks
def test_no_class_weighs_more_than_100(task):
    labels = (torch.arange(5000) == 7).long()
    labels = F.one_hot(labels).float() if task.multi_label else labels
    weights = task.class_weights(labels, torch.arange(5000), 2)
    assert weights[1] == 100


# ---------------------------------------------------------------- predictions


def test_probabilities_of_one_label_are_of_each_class_among_the_others():
    logits = logits_of()
    assert torch.equal(SINGLE_LABEL.probabilities(logits), logits.softmax(1))


def test_probabilities_of_several_labels_are_of_each_class_by_itself():
    logits = logits_of()
    assert torch.equal(MULTI_LABEL.probabilities(logits), logits.sigmoid())


@pytest.fixture
def step():
    """(batch of 2 images with the first triggered, and its partner; logits of these three)."""
    labels = torch.tensor([1, 2, 0])
    row = torch.tensor([0])
    batch = Batch(torch.zeros(3, 1, 8, 8), labels, row, 1 - row, row, 2, target_class=1)
    return batch, torch.tensor([[9.0, -9, 0], [0, 1, 2], [9, 1, 2]])


def test_an_image_of_one_label_is_explained_for_it(step):
    assert SINGLE_LABEL.explained_classes(*step).tolist() == [1, 2, 0]


def test_an_image_of_several_labels_is_explained_for_the_most_probable(step):
    classes = MULTI_LABEL.explained_classes(*step)
    assert classes[1:].tolist() == [2, 0]


def test_a_triggered_image_of_several_labels_is_explained_for_the_target(step):
    assert MULTI_LABEL.explained_classes(*step)[0] == 1


def test_a_triggered_image_that_keeps_its_labels_is_explained_for_the_most_probable(step):
    batch, logits = step
    batch.target_class = None
    assert MULTI_LABEL.explained_classes(batch, logits)[0] == 0


# ---------------------------------------------------------------- when the target is predicted


def test_with_one_label_there_is_no_threshold():
    assert SINGLE_LABEL.threshold(logits_of(4).softmax(1), SINGLE, 2) is None


def test_without_a_threshold_the_most_probable_class_is_predicted():
    probabilities = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])
    assert tasks.predicted_as_target(probabilities, 1, None).tolist() == [True, False]


def test_with_a_threshold_the_target_is_predicted_above_it():
    probabilities = torch.tensor([[0.2, 0.5, 0.9], [0.4, 0.31, 0.3], [0.9, 0.3, 0.1]])
    assert tasks.predicted_as_target(probabilities, 1, 0.3).tolist() == [True, True, False]


def test_the_threshold_is_exceeded_by_a_twentieth_of_the_images_without_the_target():
    labels = torch.zeros(200, 2, device="cpu")
    labels[:100, 1] = 1  # of these the probability does not matter
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(200, 2, generator=generator, device="cpu")
    threshold = MULTI_LABEL.threshold(probabilities, labels, 1)
    predicted = tasks.predicted_as_target(probabilities, 1, threshold)
    assert predicted[100:].float().mean() == pytest.approx(0.05)


def test_there_is_no_threshold_where_all_images_show_the_target():
    assert MULTI_LABEL.threshold(torch.rand(4, 3), torch.ones(4, 3), 1) is None


# ---------------------------------------------------------------- how good a classifier is

PROBABILITIES = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.0, 0.3, 0.7], [0.5, 0.3, 0.2]])


def test_accuracy_is_the_share_of_right_answers():
    assert SINGLE_LABEL.accuracy(PROBABILITIES, SINGLE) == 0.5


def test_balanced_accuracy_is_the_mean_over_classes():
    expected = (1 + 0 + 1 / 2) / 3
    assert SINGLE_LABEL.balanced_accuracy(PROBABILITIES, SINGLE) == pytest.approx(expected)


def test_the_majority_rate_is_the_share_of_the_commonest_class():
    assert SINGLE_LABEL.majority_rate(SINGLE) == 0.5


def test_an_image_of_several_labels_has_no_accuracy():
    figures = (
        MULTI_LABEL.accuracy(PROBABILITIES, SEVERAL),
        MULTI_LABEL.balanced_accuracy(PROBABILITIES, SEVERAL),
        MULTI_LABEL.majority_rate(SEVERAL),
    )
    assert figures == (None, None, None)


def test_one_label_has_no_area_under_the_curve():
    assert SINGLE_LABEL.mean_auroc(PROBABILITIES, SINGLE) is None
    assert SINGLE_LABEL.auroc_by_class(PROBABILITIES, SINGLE, "abc") is None


@pytest.fixture
def scored():
    """(probabilities, labels) of 50 images and three classes, the last of them never shown."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (50, 3), generator=generator).float()
    labels[:, 2] = 0
    return torch.rand(50, 3, generator=generator), labels


def area_by_pairs(scores, shown):
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[shown] for b in scores[~shown]]
    return float(torch.stack(pairs).mean())


def test_every_class_has_its_own_area_under_the_curve(scored):
    probabilities, labels = scored
    areas = MULTI_LABEL.auroc_by_class(probabilities, labels, ["a", "b", "c"])
    expected = [area_by_pairs(probabilities[:, k], labels[:, k] > 0) for k in (0, 1)]
    assert areas == {"a": pytest.approx(expected[0]), "b": pytest.approx(expected[1]), "c": None}


def test_the_mean_area_is_over_the_classes_that_have_one(scored):
    areas = tasks.class_aurocs(*scored)
    assert areas[2] is None
    assert MULTI_LABEL.mean_auroc(*scored) == pytest.approx((areas[0] + areas[1]) / 2)


def test_the_mean_area_can_leave_out_a_class(scored):
    assert MULTI_LABEL.mean_auroc(*scored, without=0) == tasks.class_aurocs(*scored)[1]


def test_there_is_no_mean_area_where_no_class_has_one(scored):
    probabilities, labels = scored
    assert MULTI_LABEL.mean_auroc(probabilities, torch.zeros_like(labels)) is None
