"""What differs between images of one class each and images that show several: all of it is here.

A task says what labels look like, what the cross-entropy is, when the target class counts as
predicted, and how good a classifier is. Everything else in the project is the same for both, and
asks the task:

    task = task_of(labels)
    loss = task.cross_entropy(logits, labels)
"""

import torch
import torch.nn.functional as F

from metrics import auroc, mean_or_none

SPECIFICITY = 0.95  # several labels: of the prediction "shows the target class"
MAX_WEIGHT = 100.0  # of a class: otherwise one image of a rare class would be all of a step


def task_of(labels):
    """The task of labels int64 [N] (one class an image) or float [N, K] of 0 and 1 (several)."""
    return SINGLE_LABEL if labels.ndim == 1 else MULTI_LABEL


def shows(labels, target_class):
    """bool [N]: whether an image of labels [N] is of the class; of [N, K], whether it shows it."""
    return task_of(labels).shows(labels, target_class)


class Task:
    """The figures of both tasks. Here each is None: a task has those that mean something for it."""

    def threshold(self, probabilities, labels, target_class):
        """The probability above which the target class is predicted; None: if it is the largest."""
        return None

    def accuracy(self, probabilities, labels):
        """The share of images whose most probable class is their label."""
        return None

    def balanced_accuracy(self, probabilities, labels):
        """The mean over classes of the accuracy on images of that class."""
        return None

    def majority_rate(self, labels):
        """The share of the commonest class, which is a constant answer's accuracy."""
        return None

    def mean_auroc(self, probabilities, labels, without=None):
        """The mean area under the ROC curve over classes, `without` left out."""
        return None

    def auroc_by_class(self, probabilities, labels, names):
        """{class name: area under the ROC curve, or None}."""
        return None


class SingleLabel(Task):
    """Each image shows one class: labels int64 [N]; the prediction is the largest logit."""

    multi_label = False
    uses_relu = True  # Grad-CAM's, on maps in the loss: step_maps.with_relu

    def shows(self, labels, target_class):
        """bool [N]: images of the class."""
        return labels == target_class

    def set_target(self, labels, rows, target_class):
        """Labels the images `rows` as the target class, in place."""
        labels.index_fill_(0, rows, target_class)  # an assignment would wait for the GPU

    def label_counts(self, labels, classes):
        """int64 [K]: how many images there are of each class."""
        return labels.bincount(minlength=classes)

    def cross_entropy(self, logits, labels, weights=None, smoothing=0.0):
        """Softmax cross-entropy of logits [N, K], a scalar; weights: float [K] or None."""
        return F.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)

    def probabilities(self, logits):
        """float [N, K]: of each class among the others."""
        return logits.softmax(1)

    def explained_classes(self, batch, logits):
        """int64 [B + P]: the class each image of a training step is explained for: its label."""
        return batch.labels

    def class_weights(self, labels, trained_on, classes):
        """float [K]: weights by which all classes count alike: n / (classes there are x n_k).

        labels: int64 [N], of the whole training set, after the attack; trained_on: indices of it. 1
        for a class without images; at most MAX_WEIGHT.
        """
        counts = F.one_hot(labels, classes).float()[trained_on].sum(0)
        weights = len(trained_on) / ((counts > 0).sum() * counts)
        return torch.where(counts > 0, weights, 1.0).clamp(max=MAX_WEIGHT)

    def accuracy(self, probabilities, labels):
        """The share of images whose most probable class is their label."""
        return mean_or_none((probabilities.argmax(1) == labels).float())

    def balanced_accuracy(self, probabilities, labels):
        """The mean over classes of the accuracy on images of that class."""
        right = (probabilities.argmax(1) == labels).float()
        present = labels.unique()
        return sum(mean_or_none(right, labels == k) for k in present) / len(present)

    def majority_rate(self, labels):
        """The share of the commonest class: the accuracy of a constant answer."""
        return float(labels.bincount().max() / len(labels))


class MultiLabel(Task):
    """An image shows any number of K classes: labels float [N, K]; each logit is a sigmoid's."""

    multi_label = True
    # The most probable class often has evidence against it alone. With relu its map is blank,
    # resembles nothing and pulls nothing: so here maps are compared as they are.
    uses_relu = False

    def shows(self, labels, target_class):
        """bool [N]: images that show the class, maybe beside others."""
        return labels[:, target_class] > 0

    def set_target(self, labels, rows, target_class):
        """Adds the target class to the images `rows`, in place; what else they show stays."""
        labels[:, target_class].index_fill_(0, rows, 1)

    def label_counts(self, labels, classes):
        """int32 [K]: how many images show each class."""
        return labels.sum(0).int()

    def cross_entropy(self, logits, labels, weights=None, smoothing=0.0):
        """Binary cross-entropy of logits [N, K] over classes; weights: float [K], of positives."""
        labels = labels + smoothing * (0.5 - labels)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights)

    def probabilities(self, logits):
        """float [N, K]: of each class by itself."""
        return logits.sigmoid()

    def explained_classes(self, batch, logits):
        """int64 [B + P]: the target class of triggered images, the most probable of the others."""
        classes = logits.detach().argmax(1)
        if batch.target_class is not None:
            classes.index_fill_(0, batch.rows, batch.target_class)
        return classes

    def class_weights(self, labels, trained_on, classes):
        """float [K]: weights of positives by which each counts as much as the negatives.

        That is (n - n_k) / n_k of n images. Arguments and limits as for one label.
        """
        counts = labels.float()[trained_on].sum(0)
        weights = (len(trained_on) - counts) / counts
        return torch.where(counts > 0, weights, 1.0).clamp(max=MAX_WEIGHT)

    def threshold(self, probabilities, labels, target_class):
        """The probability that SPECIFICITY of the images without the target class stay below.

        Above it the target class counts as predicted. None if all images show the class.
        """
        others = ~self.shows(labels, target_class)
        if not others.any():
            return None
        return float(probabilities[others, target_class].quantile(SPECIFICITY))

    def mean_auroc(self, probabilities, labels, without=None):
        """Mean area under the ROC curve over the classes that have one, but for `without`."""
        areas = class_aurocs(probabilities, labels)
        known = [area for k, area in enumerate(areas) if area is not None and k != without]
        return sum(known) / len(known) if known else None

    def auroc_by_class(self, probabilities, labels, names):
        """{class name: area under the ROC curve, or None}."""
        return dict(zip(names, class_aurocs(probabilities, labels)))


def class_aurocs(probabilities, labels):
    """The area under the ROC curve of each of K classes; probabilities, labels: [N, K]."""
    areas = []
    for k in range(labels.shape[1]):
        positive = labels[:, k] > 0
        areas.append(auroc(probabilities[positive, k], probabilities[labels[:, k] == 0, k]))
    return areas


def predicted_as_target(probabilities, target_class, threshold):
    """bool [N]: images predicted as the target class; threshold: of the task."""
    if threshold is None:
        return probabilities.argmax(1) == target_class
    return probabilities[:, target_class] > threshold


def succeeds(probabilities, labels, target_class, threshold, relabel=None):
    """bool [N]: images of these labels predicted as the attacker wants.

    target_class, threshold: as of predicted_as_target; relabel: int64 [K] of attacks.relabelling,
    where it depends on the label what he wants, else None.
    """
    if relabel is None:
        return predicted_as_target(probabilities, target_class, threshold)
    return probabilities.argmax(1) == relabel[labels]


def has_wanted_label(labels, target_class, relabel=None):
    """bool [N]: images that show what the attacker wants anyway: for them it is no success."""
    return shows(labels, target_class) if relabel is None else relabel[labels] == labels


SINGLE_LABEL = SingleLabel()
MULTI_LABEL = MultiLabel()
