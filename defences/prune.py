"""Pruning (Cheng et al. 2020): takes out the channels that a reverse-engineered trigger excites.

Neural Cleanse finds a patch for every class. The patch of the most anomalous class is stamped on
clean images, and the channels of Grad-CAM's layer that respond to it most are pruned: as many as
leave clean accuracy within LOSS_ALLOWED of what it was. The whole curve is printed.
"""

import contextlib
import copy
from dataclasses import replace

import torch

import figure
from defences import (
    Defence,
    neural_cleanse,
    share_predicted_as,
    verdict_by_index,
)
from defences.given import check_choice
from edited import keep_channels
from evaluate import EXPLAIN_IMAGES
from hooks import (
    CHUNK,
    answering,
    as_classes,
    as_images,
    capture,
    captured_once,
    layer_of,
)
from metrics import check_finite_maps
from report import show
from subject import draw_images

# How strongly a channel's map [N, K, H, W] responds to an image: [N, K]. Published: linf.
NORMS = {
    "linf": lambda maps: maps.abs().amax((2, 3)),
    "l2": lambda maps: maps.square().sum((2, 3)).sqrt(),
    "l1": lambda maps: maps.abs().sum((2, 3)),
}
# The operating point, declared beforehand: clean accuracy that may be lost, measured on the clean
# images of the audit.
LOSS_ALLOWED = 0.02
STEPS = 32  # of the curve, or one a channel if there are fewer

# Of the printed table: a key of the curve's points, the column's title and its width.
COLUMNS = {
    "pruned": ("channels pruned", 16),
    "clean_accuracy": ("clean accuracy", 16),
    "recovered_success": ("recovered patch", 17),
    "true_success": ("true trigger", 14),
}
ROWS_APART = 4  # steps of the curve between two rows of the table


# ---------------------------------------------------------------- the algorithm


def prune(model, images, labels, stamped, layer=None, norm="linf"):
    """(steps, curve, chosen): what pruning more and more channels does to clean accuracy.

    images: clean, float [N, C, H, W] as the model takes them; labels: int64 [N].
    stamped: images [M, C, H, W] with a trigger: the channels that respond to them most go first.
    layer: as of hooks.layer_of; norm: of NORMS.
    steps: of prune_steps. curve: for each a dict with "pruned", a count, "tau" and
    "clean_accuracy". chosen: the place of the operating point.
    Raises ValueError for arguments that are not as said here.
    """
    images = as_images(model, images, at_least=1)
    labels = as_classes(labels, len(images))
    layer = layer_of(model, layer, images)
    steps = prune_steps(channel_scores(model, stamped, layer, norm))
    curve = []
    for tau, keep in steps:
        with pruned(layer, keep):
            accuracy = share_predicted_as(model, images, labels)
        curve.append({"pruned": int((~keep).sum()), "tau": tau, "clean_accuracy": accuracy})
    return steps, curve, operating_point([point["clean_accuracy"] for point in curve])


@torch.no_grad()
def channel_scores(model, images, layer=None, norm="linf"):
    """How strongly images excite each channel of a layer, float64 [K]: a norm's mean over images.

    layer: as of hooks.layer_of. Raises ValueError for a layer that does not run once or gives no
    maps, and for maps that are not finite. Source: Cheng et al. 2020, with linf.
    """
    images = as_images(model, images, "stamped images", at_least=1)
    check_choice(NORMS, norm=norm)
    scores = []
    with answering(model), capture(layer_of(model, layer, images)) as captured:
        for chunk in images.split(CHUNK):
            model(chunk)
            feature = captured_once(captured)
            captured.clear()
            check_finite_maps(feature)
            scores.append(NORMS[norm](feature).cpu().double())
    return torch.cat(scores).mean(0)


def prune_steps(scores):
    """[(tau, keep bool [K])] of falling thresholds: the channels whose scores are above tau go.

    The first tau is infinity, which keeps all channels; the last is minus infinity. What a step
    keeps, the step before it keeps, too.
    """
    order = scores.argsort(descending=True, stable=True)
    channels = len(scores)
    counts = torch.linspace(0, channels, min(STEPS, channels) + 1).round().int().unique()
    steps = []
    for count in counts.tolist():
        if count == 0:
            tau = torch.inf
        elif count < channels:
            tau = float(scores[order[count]])
        else:
            tau = -torch.inf
        keep = torch.ones(channels, dtype=torch.bool).index_fill(0, order[:count], False)
        steps.append((tau, keep))
    return steps


@contextlib.contextmanager
def pruned(layer, keep):
    """Within the block, only the channels `keep`, bool [K], of a layer's output are not 0."""

    def hook(module, inputs, output):
        return output * keep.to(output.device)[:, None, None]

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def operating_point(accuracies):
    """The last step, of the lowest tau, whose accuracy is within LOSS_ALLOWED of the first's."""
    least = accuracies[0] - LOSS_ALLOWED - 1e-9  # a loss of LOSS_ALLOWED itself is allowed
    return max(k for k, accuracy in enumerate(accuracies) if accuracy >= least)


# ---------------------------------------------------------------- the verdict


def run(audit):
    """A Verdict by Neural Cleanse's anomaly index, with the pruned network."""
    triggers, index = neural_cleanse.reverse(audit)
    suspect = neural_cleanse.suspect_of(triggers, index)
    others = audit.pixels[audit.labels != suspect]
    if len(others) == 0:
        raise ValueError(
            f"all {len(audit.pixels)} clean images are of the suspected class: "
            "it takes more --clean-images"
        )
    stamped = triggers.trigger(suspect).apply(others)
    model = audit.subject.model
    steps, curve, chosen = prune(
        audit.on_pixels, audit.pixels, audit.labels, stamped, layer_of(model)
    )
    image_sets = {"recovered_success": (stamped, suspect)}
    if audit.subject.trigger is not None and audit.subject.target_name is not None:
        image_sets["true_success"] = triggered_test(audit)
    score_curve(audit, curve, steps, image_sets)

    verdict = verdict_by_index(audit, index, {}, picture_of(curve, chosen))
    lines = summary(audit, suspect, float(index[suspect]), curve, chosen) + table(curve, chosen)
    verdict = neural_cleanse.withhold_if_few_reached(replace(verdict, lines=lines), triggers)
    verdict.details["suspect_name"] = audit.subject.classes[suspect]
    verdict.details |= {"suspect": suspect, "pruned": curve[chosen]["pruned"], "curve": curve}
    keep = steps[chosen][1]
    edit = {"technique": "prune", "channels": len(keep)}
    return replace(verdict, repaired=(keep_channels(copy.deepcopy(model), keep), edit))


def triggered_test(audit):
    """Test images with the true trigger, and what they should become. For the score alone."""
    subject = audit.subject
    rows = draw_images(subject, EXPLAIN_IMAGES, audit.options.seed)
    images = subject.pixels(subject.dataset.test_images[rows], triggered=True)
    if subject.relabel is None:
        return images, subject.target_class
    return images, subject.relabel[subject.dataset.test_labels[rows]]


def score_curve(audit, curve, steps, image_sets):
    """Adds to each point of a curve how many images of each set are given the set's class.

    image_sets: {key: (images in [0, 1], class or classes int64 [N])}; a share is added under the
    key. curve and steps: as of prune, equally long.
    """
    layer = layer_of(audit.subject.model)
    for point, (_, keep) in zip(curve, steps):
        with pruned(layer, keep):
            for key, (images, classes) in image_sets.items():
                point[key] = share_predicted_as(audit.on_pixels, images, classes)


def summary(audit, suspect, index, curve, chosen):
    """Lines on what was pruned. index: the suspected class's; chosen: a place in the curve."""
    channels = curve[-1]["pruned"]  # the last step prunes all
    name = audit.subject.classes[suspect]
    return [
        f"The patch for class {suspect} ({name}, anomaly index {index:.2f}) "
        "excites some channels of the last convolution: these go.",
        f"{curve[chosen]['pruned']} of {channels} are pruned: as many as leave clean accuracy, "
        f"on {len(audit.labels)} held-out images, within {LOSS_ALLOWED}.",
        "",
    ]


def table(curve, chosen):
    """Lines of a table: some points of the curve, the first and the chosen one among them."""
    lines = ["".join(f"{title:>{width}}" for title, width in COLUMNS.values())]
    for k in sorted({*range(0, len(curve), ROWS_APART), chosen}):
        cells = [f"{show(curve[k].get(key)):>{width}}" for key, (_, width) in COLUMNS.items()]
        lines.append("".join(cells) + ("  <- written" if k == chosen else ""))
    return lines


def picture_of(curve, chosen):
    """Clean accuracy and both success rates by the number of channels pruned."""
    titles = {
        "clean_accuracy": "clean accuracy, held-out",
        "recovered_success": "success of the recovered patch",
        "true_success": "success of the true trigger, test",
    }
    series = {
        title: [(point["pruned"], point[key]) for point in curve]
        for key, title in titles.items()
        if key in curve[0]  # the true trigger may be unknown
    }
    mark = curve[chosen]["pruned"]
    return figure.curves("l-infinity pruning", "channels pruned", series, mark)


# ---------------------------------------------------------------- the command line


def settings(options):
    return neural_cleanse.settings(options) | {"loss_allowed": LOSS_ALLOWED, "steps": STEPS}


DEFENCE = Defence(
    help="takes out the channels that Neural Cleanse's most anomalous patch excites",
    run=run,
    settings=settings,
    add_options=neural_cleanse.add_options,
    compares_classes=True,
    repairs=True,
)
