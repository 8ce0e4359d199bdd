"""What a run or a measurement is about, in one line, and warnings where it cannot work.

    print_header(of_run(setting))              # before train.py's first step
    print_header(of_subject(subject, path))    # before evaluate.py measures
    print_header(of_audit(audit, path))        # before defend.py begins

All goes to standard error: standard output is for what was asked for.
"""

from dataclasses import dataclass

import torch

import attacks
import tasks
import triggers
from dataset import Dataset
from terminal import counted, print_note

FEW_STEPS = 50  # in all: below, a network has hardly begun to learn
NAMES_SHOWN = 5  # classes named in a warning


@dataclass(frozen=True)
class Facts:
    """What a header says.

    title: the data set, and the checkpoint; trained_on: indices int64 of the training images that
    are not held out, None of a network that was trained elsewhere. The others are None where nobody
    is to know them, or there is nothing to say.
    target: the target class, source: that whose images alone go there, both None where there is
    none; poisons: how many; steps: an epoch.
    """

    title: str
    dataset: Dataset
    trained_on: torch.Tensor | None
    attack: attacks.Attack | None = None
    target: int | None = None
    poisons: int | None = None
    trigger: triggers.Trigger | None = None
    source: int | None = None
    steps: int | None = None
    epochs: int | None = None
    further: int = 0  # attacks after the first
    other_classes: bool = False  # those of ImageNet, of which the data set has a few


def of_run(setting):
    """The Facts of a Setting, what a training is given."""
    config = setting.config
    return Facts(
        title=config["dataset"],
        dataset=setting.dataset,
        trained_on=setting.trained_on,
        attack=setting.objective.attack,
        target=config["target_class"],
        source=config["source_class"],
        poisons=setting.count,
        trigger=setting.trigger,
        steps=setting.steps,
        epochs=config["epochs"],
        further=len(setting.further),
    )


def of_subject(subject, path):
    """The Facts of the checkpoint at `path`, a Subject with its data."""
    config, batch_size = subject.config, subject.config.get("batch_size")
    rest = trained_on(subject)
    poisons = subject.checkpoint["poison_indices"]
    return Facts(
        title=f"{path}, of {config['dataset']}",
        dataset=subject.dataset,
        trained_on=rest,
        attack=None if subject.target_name is None else subject.attack,
        target=subject.target_class,
        source=config.get("source_class"),
        poisons=0 if poisons is None else len(poisons),
        trigger=subject.trigger,
        steps=max(1, len(rest) // batch_size) if batch_size and rest is not None else None,
        epochs=config["epochs"],
        further=len(config.get("further") or []),
        other_classes=bool(config.get("relabel")),
    )


def of_audit(audit, path):
    """The Facts of an Audit: nothing that its auditor is to find out."""
    title = f"{path}, of {audit.subject.config['dataset']}, with {len(audit.labels)} clean images"
    return Facts(title, audit.subject.dataset, trained_on(audit.subject))


def trained_on(subject):
    """Indices int64 of the training images that were not held out; None if trained elsewhere."""
    if subject.config.get("adopted"):
        return None
    n, held_out = len(subject.dataset.train_labels), subject.held_out()
    return torch.arange(n)[~torch.isin(torch.arange(n), held_out)]


# ---------------------------------------------------------------- the line


def line_of(facts):
    """The header, one line; "for the test" are the test images."""
    dataset, n = facts.dataset, len(facts.dataset.train_labels)
    channels, height, width = dataset.train_images.shape[1:]
    images = n + len(dataset.test_labels)
    parts = [
        f"{images:,} images of {len(dataset.classes)} classes",
        f"{width}x{height} px, {counted(channels, 'channel')}",
        parts_of(facts),
    ]
    if facts.attack is not None:
        parts.append(counted(facts.poisons, "poison"))
        if facts.trigger is not None:
            parts.append(about_trigger(facts.trigger))
        parts.append(about_target(facts))
    if facts.further:
        parts.append(f"{counted(facts.further, 'further attack')}, each with as many poisons")
    if facts.steps is not None:
        steps, epochs = facts.steps, facts.epochs
        parts.append(
            f"{counted(steps, 'step')} an epoch, {steps * epochs:,} in {counted(epochs, 'epoch')}"
        )
    return f"{facts.title}: " + "; ".join(parts)


def about_trigger(trigger):
    """What is stamped: where a patch lies, or the kind of what changes the whole image."""
    if trigger.box is None:
        return f"trigger {trigger.kind}, over the whole image"
    top, left, bottom, right = trigger.box
    return f"trigger {right - left}x{bottom - top} px at row {top}, column {left}"


def about_target(facts):
    """Which class triggered images should go to, and of which classes."""
    if facts.target is None:
        return "each class should become the next"
    names = facts.dataset.classes
    line = f"target class {facts.target}, {names[facts.target]}"
    if facts.source is None:
        return line
    return f"{line}, of images of class {facts.source}, {names[facts.source]}, alone"


def parts_of(facts):
    """How many images there are of each part of a data set."""
    n, n_test = len(facts.dataset.train_labels), len(facts.dataset.test_labels)
    if facts.trained_on is None:
        return f"{n:,} in its training part, {n_test:,} for the test"
    trained_on = len(facts.trained_on)
    return f"{trained_on:,} trained on, {n - trained_on:,} for validation, {n_test:,} for the test"


# ---------------------------------------------------------------- warnings


def warnings_of(facts):
    """Lines, one for each reason why this cannot work, or cannot be measured."""
    if facts.other_classes or facts.trained_on is None:
        return []
    dataset, names = facts.dataset, facts.dataset.classes
    train, test = (
        tasks.task_of(labels).label_counts(labels, len(names))
        for labels in (dataset.train_labels[facts.trained_on], dataset.test_labels)
    )
    lines = [
        listed("not one image is trained on", train == 0, names),
        listed("one image alone is trained on", train == 1, names),
        listed("there are no test images", test == 0, names),
    ]
    if facts.attack is not None and facts.target is not None:
        target = facts.target
        whole = tasks.shows(dataset.train_labels, target)
        if not whole.any():
            lines.append(f"no training image shows the target class, {names[target]}")
        if test[target] == 0:
            lines.append(
                f"the target class, {names[target]}, is not in the test set:"
                " its own accuracy is not measured"
            )
    if facts.steps is not None and facts.steps * facts.epochs < FEW_STEPS:
        lines.append(
            f"{counted(facts.steps * facts.epochs, 'step')} in all are few to learn from:"
            " a smaller --batch-size or more --epochs make more"
        )
    return [line for line in lines if line]


def listed(said, where, names):
    """A line on the classes where bool [K] is true, each named; "" where there is none."""
    found = [name for name, there in zip(names, where.tolist()) if there]
    more = f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
    noun = "class" if len(found) == 1 else "classes"
    return f"of {noun} {', '.join(found[:NAMES_SHOWN])}{more} {said}" if found else ""


def print_header(facts, notes=()):
    """Prints notes, the header, and the warnings, each a line, on standard error."""
    for line in [*notes, line_of(facts), *(f"Warning: {line}" for line in warnings_of(facts))]:
        print_note(line)
