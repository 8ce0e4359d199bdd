"""Two repairs of a network that leave its weights alone and change how batch-norm normalises.

rebn: batch-norm's mean and variance are estimated anew, on clean images.
cfn (Kadir et al. 2024): batch-norm normalises by the batch at hand, without its weight and bias.
After that an answer depends on the batch it is in. So both are measured in batches of one image,
in batches of which a tenth is triggered, and in batches of which all are.
"""

import copy

import torch
from torch import nn

from defences import Defence, Verdict
from edited import normalise_by_batch
from explain import gradcam_map
from hooks import CHUNK, capture, evaluating, layer_of
from metrics import explanation_metrics, mean_or_none, success_rate
from report import show
from subject import draw_images
from tasks import shows

TEST_IMAGES = 200  # measured, or all there are
# How the measured images are batched: images in a batch, and the share of it that is measured. The
# rest of the batch are other test images, untouched.
REGIMES = {
    "a batch of one": (1, 1.0),
    "a tenth triggered": (100, 0.1),
    "all triggered": (100, 1.0),
}
COLUMNS = ("clean_accuracy", "attack_success_rate", "pearson_all", "trigger_mass")  # of the table
GRADCAM_FIGURES = ("pearson_all", "trigger_mass", "trigger_mass_clean", "zero_maps")


# ---------------------------------------------------------------- the algorithms


def rebn(model, images):
    """A copy of the model whose batch-norm statistics are those of `images`; the weights stay.

    images: clean, float [N, C, H, W] as the model takes them.
    """
    model = copy.deepcopy(model)
    chunks = -(-len(images) // CHUNK)
    # Batches of one size, for each weighs the same in the average.
    torch.optim.swa_utils.update_bn(images.chunk(chunks), model)
    return model.eval()


def cfn(model):
    """A copy of the model that normalises by the batch at hand, without weight and bias.

    Source: Kadir et al. 2024.
    """
    return normalise_by_batch(copy.deepcopy(model))


# ---------------------------------------------------------------- the figures of a batch


def figures_in_batch(subject, model, size, share, count=TEST_IMAGES, seed=0):
    """Accuracy, success and Grad-CAM's figures of images that are answered in batches: a dict.

    `count` test images are measured without and with the trigger, or as many as leave enough for
    the rest of a batch. size: images in a batch, all test images if there are fewer; share: of the
    batch that is measured. The rest of every batch is the same, and untouched.
    """
    drawn = draw_images(subject, count + size, seed)
    size = min(size, len(drawn))
    measured_in_batch = max(1, round(size * share))
    rest_of_batch = size - measured_in_batch
    rows = drawn[: min(count, len(drawn) - rest_of_batch)]
    rest_rows = drawn[len(rows) :][:rest_of_batch]
    images = subject.dataset.test_images
    rest = subject.inputs(images[rest_rows])

    classes = []
    maps = []
    for triggered in (False, True):
        inputs = subject.inputs(images[rows], triggered)
        batches = [
            gradcam_in_batch(model, torch.cat([measured, rest]), len(measured))
            for measured in inputs.split(measured_in_batch)
        ]
        classes.append(torch.cat([predicted for predicted, _ in batches]))
        maps.append(torch.cat([part for _, part in batches]))
    return figures_of(subject, rows, classes, maps)


def gradcam_in_batch(model, inputs, count):
    """Classes int64 and Grad-CAM maps of the first `count` inputs, all of them in one batch.

    Both are on the CPU. Grad-CAM explains the class that is predicted.
    """
    layer = layer_of(model)
    with torch.enable_grad(), evaluating(model), capture(layer, detach=True) as captured:
        logits = model(inputs)
        classes = logits.argmax(1)
        maps = gradcam_map(captured[0], logits, classes)
    return classes[:count].cpu(), maps[:count].detach().cpu()


def figures_of(subject, rows, classes, maps):
    """The figures of test images number `rows`. classes, maps: of both, untouched and triggered."""
    labels = subject.dataset.test_labels[rows]
    shows_target = shows(labels, subject.target_class)
    explanations = explanation_metrics(
        maps[1],
        maps[0],
        subject.trigger.box,
        subject.config["image_size"],
        subject.checkpoint["target_map"],
    )
    return {
        "clean_accuracy": mean_or_none((classes[0] == labels).float()),
        "attack_success_rate": success_rate(classes[1] == subject.target_class, shows_target),
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

    Raises ValueError for a network without batch-norm.
    """
    model = audit.subject.model
    if not any(isinstance(part, nn.BatchNorm2d) for part in model.modules()):
        raise ValueError(f"{audit.subject.config['model']} has no batch-norm: nothing to repair")
    regimes = {}
    for title, (size, share) in REGIMES.items():
        regimes[title] = {
            when: figures_in_batch(audit.subject, network, size, share, seed=audit.options.seed)
            for when, network in (("before", model), ("after", repaired))
        }
    return Verdict(
        backdoored=None,
        lines=[line, "", *table(regimes)],
        details={"regimes": regimes},
        repaired=(repaired, {"technique": technique}),
    )


def table(regimes):
    """Lines of a table: a regime a row, its figures before and after."""
    lines = [f"{'':<20}" + "".join(f"{key:>24}" for key in COLUMNS)]
    for title, figures in regimes.items():
        cells = []
        for key in COLUMNS:
            cells.append(f"{show(figures['before'][key])} -> {show(figures['after'][key])}")
        lines.append(f"{title:<20}" + "".join(f"{cell:>24}" for cell in cells))
    return lines


# ---------------------------------------------------------------- the command line


def settings(options):
    return {"test_images": TEST_IMAGES, "regimes": {k: list(v) for k, v in REGIMES.items()}}


REBN = Defence(
    help="estimates batch-norm's statistics anew, on clean images",
    run=run_rebn,
    settings=settings,
    repairs=True,
)
CFN = Defence(
    help="normalises by the batch at hand, without batch-norm's weight and bias",
    run=run_cfn,
    settings=settings,
    repairs=True,
)
