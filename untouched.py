"""What is measured of a network whose trigger nobody knows: untouched images alone.

The keys are those of evaluate.py's metrics; what needs a trigger is null. How alike the maps of
different images are, and how far explainers agree, can be measured without.
"""

import itertools

import torch

import figure
import metrics
import pictures
from answers import Answers, prediction_metrics
from explain import EXPLAINERS
from report import Result, show

NEEDS_TRIGGER = (
    *("triggered_accuracy", "triggered_mean_auroc", "attack_success_rate"),
    *("untouched_success_rate", "poison_count", "poison_rate", "poison_rate_trained_on"),
    "other_classes_accuracy",
)


def measure_untouched(subject, names, n, seed, say):
    """The Result of a Subject without a trigger; names: of explainers; n: test images to explain.

    seed: of their draw; say(what): is told what is being measured.
    """
    say("predictions")
    images = subject.dataset.test_images
    probabilities = subject.probabilities(images)
    classes = probabilities.argmax(1)
    nowhere = torch.zeros(len(images), dtype=torch.bool)
    answers = Answers(probabilities, probabilities, nowhere, nowhere, (classes, classes))
    result = prediction_metrics(subject, answers, None, None) | dict.fromkeys(NEEDS_TRIGGER)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]
    maps = {}
    for k, name in enumerate(names, 1):
        say(f"{name}, explainer {k} of {len(names)}")
        rows = order[: EXPLAINERS[name].test_images]
        maps[name] = subject.explain(name, images[rows], classes[rows])
        result["explanations"][name] = untouched_figures(subject, maps[name], rows)
    result["agreement"] = agreements(maps)
    page = picture_of(subject, result, order[: pictures.ROWS], classes, probabilities, maps)
    return Result(metrics.finite(result), {"figure": page}, subject, answers)


def untouched_figures(subject, maps, rows):
    """The figures about one explainer's maps of untouched test images `rows`."""
    side, masks = subject.config["image_size"], subject.masks(rows)
    keep = ~metrics.is_constant(maps)
    figures = dict.fromkeys(metrics.FIGURES) | {"trained_against": False, "n": len(maps)}
    figures |= {key: dict.fromkeys(metrics.FLOOR_KEYS) for key in metrics.FLOORS}
    figures["zero_maps"] = metrics.mean_or_none((~keep).float())
    if len(maps):
        figures["floor"] = metrics.floor_figures(maps, maps, keep, side)
    if masks is not None:
        figures["pointing_clean"] = metrics.mean_or_none(metrics.points_inside(maps, masks), keep)
    return figures


def agreements(maps):
    """{"gradcam, gradient": mean correlation of their maps}, of each pair of explainers."""
    result = {}
    for one, other in itertools.combinations(maps, 2):
        n = min(len(maps[one]), len(maps[other]))
        values = metrics.agreement(maps[one][:n], maps[other][:n])
        result[f"{one}, {other}"] = metrics.mean_or_none(values)
    return result


def picture_of(subject, result, rows, classes, probabilities, maps):
    """The figure: a row a test image; the image with the prediction, and each explainer's map.

    maps: {explainer: maps, those of test images `rows` first}.
    """
    images = subject.dataset.test_images[rows]
    lines = []
    for k, row in enumerate(rows.tolist()):
        label = int(classes[row])
        called = pictures.class_name(subject, label)
        caption = f"{called} {100 * float(probabilities[row, label]):.0f}%"
        plain = images[k].float() / 255
        panels = [(figure.panel(plain), caption, False)]
        for name, own in maps.items():
            signed = EXPLAINERS[name].signed
            panels.append((figure.panel(plain, own[k], signed=signed), "", False))
        lines.append(panels)
    accuracy = "-" if subject.config.get("unlabelled") else show(result["clean_accuracy"])
    title = f"{subject.config['model']}: accuracy {accuracy}\nno trigger is known"
    footer = f"{len(rows)} test images drawn by seed; {pictures.EXPLAINED}"
    footer += pictures.legend(subject)
    return figure.sheet(title, ["image", *maps], lines, footer, pictures.any_signed(maps))
