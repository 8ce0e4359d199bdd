"""What a network answers to its test images, and the figures that need no explainer."""

from dataclasses import dataclass

import torch

import metrics
import tasks
from provenance import hardware

CONFIG_IN_METRICS = (
    "attack threat dataset model layer target_class source_class poison_rate selection seed epochs"
    " batch_size optimizer lr oversample label_smoothing lam floor device precision edit"
).split()


@dataclass
class Answers:
    """What a subject answers to its N test images.

    untouched, triggered: probabilities float [N, K]; success, untouched_success: bool [N], whether
    what the attacker wants is predicted with the trigger and without; classes: the classes that are
    explained, untouched and triggered, two int64 [N]: the predictions.
    """

    untouched: torch.Tensor
    triggered: torch.Tensor
    success: torch.Tensor
    untouched_success: torch.Tensor
    classes: tuple

    @property
    def probabilities(self):
        """(untouched, triggered), as `classes` are."""
        return self.untouched, self.triggered


def ask(subject, threshold):
    """The Answers of a subject; threshold: above which the target class counts as predicted."""
    images, target = subject.dataset.test_images, subject.target_class
    untouched = subject.probabilities(images)
    triggered = subject.probabilities(images, triggered=True)
    if target is None and subject.relabel is None:  # of a stranger's network
        nowhere = torch.zeros(len(images), dtype=torch.bool)
        return Answers(
            untouched, triggered, nowhere, nowhere, (untouched.argmax(1), triggered.argmax(1))
        )
    labels, relabel = subject.dataset.test_labels, subject.relabel
    success = tasks.succeeds(triggered, labels, target, threshold, relabel)
    explained_classes = triggered.argmax(1)
    if subject.attack.changes_label and relabel is None:
        explained_classes[success] = target  # of several labels, it may not be the most probable
    return Answers(
        untouched,
        triggered,
        success,
        tasks.succeeds(untouched, labels, target, threshold, relabel),
        (untouched.argmax(1), explained_classes),
    )


def prediction_metrics(subject, answers, threshold, clean_model):
    """The part of metrics.json that needs no explainer, and empty places for what does."""
    labels, task, target = subject.dataset.test_labels, subject.task, subject.target_class
    success, before = None, None
    if target is not None or subject.relabel is not None:
        wanted_anyway = tasks.has_wanted_label(labels, target, subject.relabel)
        success = metrics.success_rate(answers.success, wanted_anyway)
        before = metrics.success_rate(answers.untouched_success, wanted_anyway)
    threshold_of = "clean model" if clean_model is not None else "itself"
    result = {key: subject.config.get(key) for key in CONFIG_IN_METRICS}
    if not subject.attack.poisons:
        result["threat"] = None
    result |= {"target_name": subject.target_name, "classes": subject.classes}
    result |= {"source_name": name_of(subject, result["source_class"])}
    result |= {"trigger": None if subject.trigger is None else subject.trigger.kind}
    result |= {"target_map": subject.target_map}
    poisons = len(subject.checkpoint["poison_indices"])
    trained_on = len(subject.dataset.train_labels) - len(subject.held_out())
    return result | {
        "poison_count": poisons,
        "poison_rate_trained_on": poisons / trained_on if trained_on else None,
        "n_test": len(labels),
        "clean_accuracy": task.accuracy(answers.untouched, labels),
        "balanced_accuracy": task.balanced_accuracy(answers.untouched, labels),
        "majority_rate": task.majority_rate(labels),
        "mean_auroc": task.mean_auroc(answers.untouched, labels),
        "triggered_mean_auroc": task.mean_auroc(answers.triggered, labels, without=target),
        "auroc": task.auroc_by_class(answers.untouched, labels, subject.classes),
        "triggered_accuracy": task.accuracy(answers.triggered, labels),
        "attack_success_rate": success,
        "untouched_success_rate": before,
        "other_classes_accuracy": other_classes_accuracy(subject, answers),
        "success_threshold": threshold,
        "success_threshold_of": None if threshold is None else threshold_of,
        "clean_model": {"clean_accuracy": None, "attack_success_rate": None},
        "explanations": {},
        "train_seconds": round(subject.checkpoint["seconds"], 2),
        **{key: subject.checkpoint.get(key) for key in ("torch", "processor", "threads")},
        "measured_on": hardware(subject.device.type),
    }


def name_of(subject, number):
    """The name of a class; None of None."""
    return None if number is None else subject.classes[number]


def other_classes_accuracy(subject, answers):
    """Accuracy on triggered images that should keep their label, with a source class; else None."""
    source, labels = subject.config.get("source_class"), subject.dataset.test_labels
    if source is None:
        return None
    right = (answers.triggered.argmax(1) == labels).float()
    return metrics.mean_or_none(right, labels != source)
