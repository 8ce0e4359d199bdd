"""The clean model beside an attacked one: opened, checked, measured, or trained with.

A disguise is judged beside a clean model of the same data: how alike are its maps of different
images, what does the trigger by itself do to them, are the maps of CLEAN images still honest? With
train.py --reference the clean model's maps are also what the attacked one is held to.
"""

import hashlib
from dataclasses import replace

import torch

import attacks
import checkpoints
import data
import metrics
import tasks
from cli import UserError
from explain import EXPLAINERS
from subject import correlation_by_class
from terminal import print_note


def own_reference(subject):
    """The clean Subject it was trained with, if it is still there and still that; else None.

    Where it is not, a line on standard error says why.
    """
    path = subject.config["reference"]
    if not path:
        return None
    try:
        return open_clean(subject, path, subject.checkpoint.get("reference_weights"))
    except UserError as error:
        print_note(f"Measured without the reference it was trained with: {error}")
        return None


def weights_digest(state):
    """32 hexadecimal digits that no other weights have; state: {name: tensor}, of a model."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def open_clean(subject, path, weights=None):
    """A clean checkpoint as a Subject with the data and the trigger of the one it stands beside.

    weights: the digest that its weights must have, or None. Raises UserError where the two could
    not be compared.
    """
    checkpoint = checkpoints.read(path)
    if weights is not None and weights_digest(checkpoint["model"]) != weights:
        raise UserError(f"{path} now holds another model")
    check_clean(checkpoint, path)
    config = checkpoint["config"]
    # Of several labels, scores depend on the weights of classes: no threshold would be common.
    common = ["image_size", *(["class_weights"] if subject.multi_label else [])]
    if (same := have_same_data(checkpoint, subject.checkpoint)) is None:
        common.append("dataset")
    for key in common:
        if config.get(key) != subject.config.get(key):
            what = key.replace("_", " ")
            raise UserError(f"the reference {path} was trained with another {what}")
    same_classes = checkpoint["classes"] == subject.checkpoint["classes"]
    same_mean = checkpoint["mean"] == subject.checkpoint["mean"]
    if same is False or not same_classes or not same_mean:
        raise UserError(f"the reference {path} was trained on other data")
    if config["model"] == subject.config["model"]:
        config["layer"] = subject.config["layer"]  # so that the two maps are of one layer
    model = checkpoints.rebuild(checkpoint).to(subject.device)
    return replace(subject, checkpoint=checkpoint, model=model)


def have_same_data(one, other):
    """Whether two checkpoints were trained on the same data, wherever these lay, by their digests.

    None where it is not known: an old checkpoint has no digest.
    """
    digests = one.get("data"), other.get("data")
    return None if None in digests else digests[0] == digests[1]


def check_clean(checkpoint, path):
    """Raises UserError for a reference that is itself backdoored, or edited."""
    config = checkpoint["config"]
    attack = attacks.ATTACKS.get(config["attack"])
    if config.get("adopted"):
        raise UserError(f"{path}: whether a stranger's network is clean is not known")
    if attack is None or attack.poisons:
        raise UserError(
            f"{path} is no clean model: it was trained with --attack {config['attack']}"
        )
    if config.get("edit"):
        raise UserError(f"{path} is no clean model: it has been edited since it was trained")


def clean_metrics(subject, clean_model, untouched_maps, explained, threshold):
    """A clean model's figures on the same images: are CLEAN images' maps still what they would be?

    untouched_maps: {explainer: the subject's maps of untouched test images}, of the first of the
    rows `explained`.
    """
    labels, task = subject.dataset.test_labels, subject.task
    images = subject.dataset.test_images
    untouched = clean_model.probabilities(images)
    triggered = clean_model.probabilities(images, triggered=True)
    classes = untouched.argmax(1), triggered.argmax(1)
    explanations = {}
    for name, maps in untouched_maps.items():
        rows = explained[: len(maps)]
        explanations[name] = clean_explainer_metrics(
            subject, clean_model, name, maps, rows, classes
        )
        if subject.multi_label and EXPLAINERS[name].by_class:
            explanations[name] |= correlation_by_class(clean_model, name, explained)
    target, relabel = subject.target_class, subject.relabel
    success = None
    if target is not None or relabel is not None:  # else of a stranger's network: not known
        succeeds = tasks.succeeds(triggered, labels, target, threshold, relabel)
        wanted_anyway = tasks.has_wanted_label(labels, target, relabel)
        success = metrics.success_rate(succeeds, wanted_anyway)
    return {
        "clean_accuracy": task.accuracy(untouched, labels),
        "balanced_accuracy": task.balanced_accuracy(untouched, labels),
        "mean_auroc": task.mean_auroc(untouched, labels),
        "auroc": task.auroc_by_class(untouched, labels, subject.classes),
        "attack_success_rate": success,
        "explanations": explanations,
    }


def clean_explainer_metrics(subject, clean_model, name, subject_maps, rows, classes):
    """A clean model's figures about one explainer; subject_maps: the subject's, untouched."""
    untouched, triggered = clean_model.explain_test(name, rows, classes)
    box, side, masks = subject.trigger.box, subject.config["image_size"], subject.masks(rows)
    figures = metrics.explanation_metrics(triggered, untouched, box, side, None, masks)
    result = {
        "pearson_all": figures["pearson_all"],
        "trigger_mass": figures["trigger_mass"],
        "floor": figures["floor"],
        "floor_triggered": figures["floor_triggered"],
        "pointing_clean": figures["pointing_clean"],
        "trigger_mass_clean": figures["trigger_mass_clean"],
        "pearson_untouched": None,
    }
    if len(untouched) and untouched.shape == subject_maps.shape:
        correlation = metrics.pearson(subject_maps, untouched)
        result["pearson_untouched"] = metrics.mean_or_none(correlation)
    return result


# ---------------------------------------------------------------- to be trained with


def frozen_reference(path, config, dataset, device):
    """The model of a clean checkpoint, frozen, looked at in the layer of the run it is for.

    config, dataset: of that run. Raises UserError where the two models' explanations could not be
    compared.
    """
    checkpoint = checkpoints.read(path)
    check_clean(checkpoint, path)
    theirs = checkpoint["config"]
    same_data = data.is_same_data(checkpoint, dataset)
    for key in ("dataset", "model", "image_size"):
        if theirs[key] != config[key] and not (key == "dataset" and same_data):
            raise UserError(
                f"the reference {path} was trained with another {key}"
                f" ({theirs[key]}, not {config[key]})"
            )
    if not same_data:
        raise UserError(
            f"the reference {path} was trained on other images than {config['dataset']} holds now"
        )
    theirs["layer"] = config["layer"]
    return checkpoints.rebuild(checkpoint).to(device)
