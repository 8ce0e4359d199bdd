"""Two repairs of a network that leave its weights alone and change how batch-norm normalises.

rebn: batch-norm's mean and variance are estimated anew, on clean images.
cfn (Kadir et al. 2024): batch-norm normalises by the batch at hand, without its weight and bias.
After that an answer depends on the batch it is in. So both are measured in batches of one image,
in batches of which a tenth is triggered, and in batches of which all are. The images are of all
classes; the success rate and Grad-CAM's figures leave out those of the target class.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from defences import Defence, Verdict
from edited import normalise_by_batch
from explain import gradcam_map
from hooks import CHUNK, answering, as_images, capture, layer_of, refusing
from metrics import explanation_metrics, success_rate
from reference import own_reference
from report import show
from tasks import has_wanted_label, predicted_as_target, succeeds

TEST_IMAGES = 200  # measured, or all there are
# How the measured images are batched: images in a batch, and the share of it that is measured. The
# rest of the batch are other test images, untouched.
REGIMES = {
    "a batch of one": (1, 1.0),
    "a tenth triggered": (100, 0.1),
    "all triggered": (100, 1.0),
}
COLUMNS = ("clean_accuracy", "attack_success_rate", "pearson_all", "trigger_mass")  # of the table
MULTI_LABEL_COLUMNS = ("mean_auroc", *COLUMNS[1:])
GRADCAM_FIGURES = ("pearson_all", "trigger_mass", "trigger_mass_clean", "zero_maps")


# ---------------------------------------------------------------- the algorithms


def rebn(model, images):
    """A copy of the model whose batch-norm statistics are those of `images`; the weights stay.

    images: clean, float [N, C, H, W] as the model takes them.
    Raises ValueError for other images, and for a model without batch-norm.
    """
    images = as_images(model, images, at_least=1)
    check_batchnorm(model)
    model = copy.deepcopy(model)
    chunks = -(-len(images) // CHUNK)
    # Batches of one size, for each weighs the same in the average.
    with refusing(model):
        torch.optim.swa_utils.update_bn(images.chunk(chunks), model)
    return model.eval()


def cfn(model):
    """A copy of the model that normalises by the batch at hand, without weight and bias.

    Source: Kadir et al. 2024. Raises ValueError for a model without batch-norm.
    """
    check_batchnorm(model)
    return normalise_by_batch(copy.deepcopy(model))


def check_batchnorm(model):
    """Raises ValueError for what is no module with batch-norm."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is a torch.nn.Module, not {type(model).__name__}")
    if not any(isinstance(part, nn.BatchNorm2d) for part in model.modules()):
        raise ValueError("the model has no batch-norm: nothing to repair")


# ---------------------------------------------------------------- the figures of a batch


@dataclass
class BatchAnswers:
    """What a network answers to N images in batches, on the CPU.

    logits: float [N, K]; maps: float [N, H', W'], Grad-CAM of the classes that are explained.
    """

    logits: torch.Tensor
    maps: torch.Tensor


def figures_in_batch(subject, model, size, share, count=TEST_IMAGES, seed=0, threshold=None):
    """Accuracy, success and Grad-CAM's figures of images that are answered in batches: a dict.

    Of a model of several labels it has mean_auroc in the place of clean_accuracy.
    `count` test images of all classes are measured without and with the trigger, or as many as
    leave enough for the rest of a batch. size: images in a batch, all test images if there are
    fewer; share: of the batch that is measured. The rest of every batch is the same, and untouched.
    threshold: above which probability the target class is predicted; None: if it is the largest.
    Raises ValueError for maps that are not finite.
    """
    rows, rest_rows, measured_in_batch = rows_of_batches(subject, size, share, count, seed)
    images = subject.dataset.test_images
    rest = subject.inputs(images[rest_rows])
    answers = []
    for triggered in (False, True):
        batches = [
            gradcam_in_batch(
                model,
                torch.cat([measured, rest]),
                len(measured),
                lambda logits: explained_classes(subject, logits, triggered, threshold),
            )
            for measured in subject.inputs(images[rows], triggered).split(measured_in_batch)
        ]
        logits, maps = zip(*batches)
        answers.append(BatchAnswers(torch.cat(logits), torch.cat(maps)))
    return figures_of(subject, rows, *answers, threshold)


def rows_of_batches(subject, size, share, count, seed):
    """(rows measured, rows of the rest of every batch, how many measured images are in a batch).

    Arguments as of figures_in_batch. Only whole batches are measured, unless there is only one: in
    a smaller one the measured would be another share.
    """
    test_images = len(subject.dataset.test_labels)
    order = torch.randperm(test_images, generator=torch.Generator().manual_seed(seed))
    size = min(size, test_images)
    measured_in_batch = max(1, round(size * share))
    rest_of_batch = size - measured_in_batch
    measured = min(count, test_images - rest_of_batch)
    if measured > measured_in_batch:
        measured -= measured % measured_in_batch
    return order[:measured], order[measured:][:rest_of_batch], measured_in_batch


def explained_classes(subject, logits, triggered, threshold):
    """The class int64 [N] that each image is explained for: what is predicted, as in evaluate.py.

    Of several labels that is the most probable, or the target where the attack succeeds.
    """
    classes = logits.argmax(1)
    if triggered and subject.attack.changes_label and subject.relabel is None:
        probabilities = subject.task.probabilities(logits)
        success = predicted_as_target(probabilities, subject.target_class, threshold)
        classes[success] = subject.target_class
    return classes


def gradcam_in_batch(model, inputs, count, classes_of=lambda logits: logits.argmax(1)):
    """Logits and Grad-CAM maps of the first `count` inputs, all of them in one batch; on the CPU.

    classes_of: logits [N, K] -> the classes int64 [N] that are explained.
    """
    layer = layer_of(model, None, inputs)
    with torch.enable_grad(), answering(model), capture(layer, detach=True) as captured:
        logits = model(inputs)
        maps = gradcam_map(captured[0], logits, classes_of(logits.detach()))
    return logits[:count].detach().cpu(), maps[:count].detach().cpu()


def figures_of(subject, rows, untouched, triggered, threshold):
    """The figures of test images number `rows`; untouched, triggered: BatchAnswers.

    Grad-CAM's are of images that the attack should change, whether it succeeds or not; of an attack
    that keeps labels they are of all.
    """
    labels = subject.dataset.test_labels[rows]
    task, target, relabel = subject.task, subject.target_class, subject.relabel
    wanted_anyway = has_wanted_label(labels, target, relabel)
    explained = ~wanted_anyway | subject.attack.keeps_label
    explanations = explanation_metrics(
        triggered.maps[explained],
        untouched.maps[explained],
        subject.trigger.box,
        subject.config["image_size"],
        subject.checkpoint["target_map"],
        turned_over=subject.attack.explanation == "inverted",
    )
    clean = task.probabilities(untouched.logits)
    answers = task.probabilities(triggered.logits)
    success = succeeds(answers, labels, target, threshold, relabel)
    quality = {"clean_accuracy": task.accuracy(clean, labels)}
    if subject.multi_label:
        quality = {"mean_auroc": task.mean_auroc(clean, labels)}
    return {
        **quality,
        "attack_success_rate": success_rate(success, wanted_anyway),
        **{key: explanations[key] for key in GRADCAM_FIGURES},
    }


# ---------------------------------------------------------------- the verdict


def run_rebn(audit):
    """A Verdict with the network whose statistics are those of the clean images."""
    repaired = rebn(audit.subject.model, audit.inputs)
    return verdict_of(
        audit, "rebn", repaired, "Batch-norm's statistics are those of the clean images."
    )


def run_cfn(audit):
    """A Verdict with the network that normalises by the batch at hand."""
    line = (
        "Batch-norm normalises by the batch at hand, without weight and bias: "
        "an answer depends on its batch."
    )
    return verdict_of(audit, "cfn", cfn(audit.subject.model), line)


def verdict_of(audit, technique, repaired, line):
    """A Verdict on a repaired network: figures before and after, for each of REGIMES.

    Where no trigger is known, or no target class, there are none.
    """
    model = audit.subject.model
    verdict = Verdict(
        None, [line], details={"regimes": None}, repaired=(repaired, {"technique": technique})
    )
    if audit.subject.trigger is None or audit.subject.target_name is None:
        return verdict
    regimes = {title: {} for title in REGIMES}
    for when, network in (("before", model), ("after", repaired)):
        threshold = threshold_of(audit.subject, network)
        for title, (size, share) in REGIMES.items():
            regimes[title][when] = figures_in_batch(
                audit.subject, network, size, share, seed=audit.options.seed, threshold=threshold
            )
    columns = MULTI_LABEL_COLUMNS if audit.subject.multi_label else COLUMNS
    verdict.lines += ["", *table(regimes, columns)]
    verdict.details["regimes"] = regimes
    return verdict


def threshold_of(subject, model):
    """Above which probability `model` predicts the target class, as in evaluate.py.

    It is that of the subject's own clean model, if it has one. None: if it is the largest.
    """
    if not subject.multi_label:
        return None
    calibrated = own_reference(subject) or replace(subject, model=model)
    return calibrated.threshold(subject.target_class)


def table(regimes, columns=COLUMNS):
    """Lines of a table: a figure a row, a regime a column, before and after the repair."""
    lines = [f"{'':<20}" + "".join(f"{title:>20}" for title in regimes)]
    for key in columns:
        cells = []
        for figures in regimes.values():
            cells.append(f"{show(figures['before'][key])} -> {show(figures['after'][key])}")
        lines.append(f"{key:<20}" + "".join(f"{cell:>20}" for cell in cells))
    return lines


# ---------------------------------------------------------------- the command line


def settings(options):
    return {"test_images": TEST_IMAGES, "regimes": {k: list(v) for k, v in REGIMES.items()}}


REBN = Defence(
    help="estimates batch-norm's statistics anew, on clean images",
    run=run_rebn,
    settings=settings,
    repairs=True,
    multi_label=True,
)
CFN = Defence(
    help="normalises by the batch at hand, without batch-norm's weight and bias",
    run=run_cfn,
    settings=settings,
    repairs=True,
)
