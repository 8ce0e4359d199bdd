"""What a network answers to its test images, and the figures that need no explainer."""

from dataclasses import dataclass

import torch

import metrics
import tasks

CONFIG_IN_METRICS = (
    "attack threat dataset model layer target_class poison_rate selection seed epochs batch_size"
    " optimizer lr oversample label_smoothing lam floor device precision edit"
).split()


@dataclass
class Answers:
    """What a subject answers to its N test images.

    untouched, triggered: probabilities float [N, K]; success, untouched_success: bool [N], whether
    the target class is predicted with the trigger and without; classes: the classes that are
    explained, untouched and triggered, two int64 [N]: the predictions.
    """

    untouched: torch.Tensor
    triggered: torch.Tensor
    success: torch.Tensor
    untouched_success: torch.Tensor
    classes: tuple


def ask(subject, threshold):
    """The Answers of a subject; threshold: above which the target class counts as predicted."""
    images, target = subject.dataset.test_images, subject.target_class
    untouched = subject.probabilities(images)
    triggered = subject.probabilities(images, triggered=True)
    if target is None:  # of a stranger's network
        nowhere = torch.zeros(len(images), dtype=torch.bool)
        return Answers(
            untouched, triggered, nowhere, nowhere, (untouched.argmax(1), triggered.argmax(1))
        )
    success = tasks.predicted_as_target(triggered, target, threshold)
    explained_classes = triggered.argmax(1)
    if subject.attack.changes_label:
        explained_classes[success] = target  # of several labels, it may not be the most probable
    return Answers(
        untouched,
        triggered,
        success,
        tasks.predicted_as_target(untouched, target, threshold),
        (untouched.argmax(1), explained_classes),
    )


def prediction_metrics(subject, answers, threshold, clean_model):
    """The part of metrics.json that needs no explainer, and empty places for what does."""
    labels, task, target = subject.dataset.test_labels, subject.task, subject.target_class
    success, before, target_name = None, None, None
    if target is not None:
        shows_target, target_name = tasks.shows(labels, target), subject.classes[target]
        success = metrics.success_rate(answers.success, shows_target)
        before = metrics.success_rate(answers.untouched_success, shows_target)
    threshold_of = "clean model" if clean_model is not None else "itself"
    result = {key: subject.config.get(key) for key in CONFIG_IN_METRICS}
    if not subject.attack.poisons:
        result["threat"] = None
    result |= {"target_name": target_name, "classes": subject.classes}
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
        "success_threshold": threshold,
        "success_threshold_of": None if threshold is None else threshold_of,
        "clean_model": {"clean_accuracy": None, "attack_success_rate": None},
        "explanations": {},
        "train_seconds": round(subject.checkpoint["seconds"], 2),
        "torch": subject.checkpoint["torch"],
    }
