"""Which pictures a measured checkpoint gets, and what is on them; figure.py draws.

figure            test images without and with the trigger, and each explainer's map of both
figure-EXPLAINER  a signed explainer's values for every class
figure-selection  the images that were chosen for poisoning, among all that were ranked
"""

from pathlib import Path

import torch

import figure
import fonts
from explain import EVALUATED, EXPLAINERS
from npzfiles import listed
from report import show
from selection import STRATEGIES
from subject import draw_images

ROWS = 6  # test images of the figure
CLASS_ROWS, CLASS_COLUMNS = 4, 15  # test images and classes of a class-by-class figure
BINS = 40  # of the histogram of selection scores
EXPLAINED = "each map explains the class the model predicts."


def pictures_of(subject, metrics, classes, probabilities, drawn, names):
    """{name: PIL image} of a measured subject.

    classes, probabilities: of all test images, untouched and triggered: two int64 [N] that are
    explained, two float [N, K]; drawn: indices of test images to show; names: of explainers.
    """
    confidence = [p.gather(1, c[:, None])[:, 0] for p, c in zip(probabilities, classes)]
    rows = drawn[:ROWS]
    pictures = {"figure": test_image_picture(subject, metrics, classes, confidence, rows, names)}
    for name in names:
        explainer = EXPLAINERS[name]
        if explainer.signed or (subject.multi_label and explainer.by_class):
            picture = class_picture(subject, name, classes, drawn[:CLASS_ROWS])
            pictures[f"figure-{name}"] = picture
    if (subject.checkpoint["selection"] or {}).get("pool") is not None:
        pictures["figure-selection"] = selection_picture(subject)
    return pictures


# ---------------------------------------------------------------- test images and their maps


def test_image_picture(subject, metrics, classes, confidence, rows, names):
    """The figure: a row a test image; image, triggered image, and each explainer's map of both."""
    predictions = [(c[rows], p[rows]) for c, p in zip(classes, confidence)]
    panels = panels_of(subject, subject.dataset.test_images[rows], predictions, names)
    left_out = "" if subject.attack.keeps_label else ", target class left out"
    footer = (
        f"{len(rows)} test images drawn by seed{left_out}; {about_trigger(subject)}; {EXPLAINED}"
    )
    footer += legend(subject)
    headers = headers_of(subject, names)
    return figure.sheet(title_of(subject, metrics), headers, panels, footer, any_signed(names))


def title_of(subject, metrics):
    """Two lines: attack, data, model and how well they work; target class and poisons."""
    config = subject.config
    edited = ", edited" if config.get("edit") else ""
    if subject.multi_label:
        quality = f"mean AUROC {show(metrics['mean_auroc'])}"
    else:
        accuracy = "-" if config.get("unlabelled") else f"{metrics['clean_accuracy']:.3f}"
        quality = f"clean accuracy {accuracy}"
    title = f"{config['attack']}{edited} on {Path(config['dataset']).stem}, {config['model']}"
    title += f": {quality}"
    success = metrics["attack_success_rate"]
    if success is not None:
        title += f", attack success rate {success:.3f}"
    if subject.attack.poisons and not config.get("adopted"):
        target = target_name(subject)
        title += f"\ntarget class: {target};  {metrics['poison_count']} poisoned training images"
        shares = [100 * metrics[key] for key in ("poison_rate", "poison_rate_trained_on")]
        title += f" ({shares[0]:.3g}%; {shares[1]:.3g}% of those trained on)"
        title += f";  threat: {config['threat']}"
    return title


def trigger_picture(results, names, seed):
    """The figure of several triggers: rows of test images for each, and the map it should show.

    results: {name of a trigger: its Result}; names: of explainers; seed: of the draw.
    """
    subjects = {name: result.subject for name, result in results.items()}
    whole = [one for one in subjects.values() if one.trigger.box is None]
    panels = []
    for name, one in subjects.items():
        rows, answers = draw_images(one, max(1, ROWS // len(results)), seed), results[name].answers
        seen = [(c[rows], p[rows]) for c, p in zip(answers.classes, answers.probabilities)]
        predictions = [(c, p.gather(1, c[:, None])[:, 0]) for c, p in seen]
        images, shape = one.dataset.test_images[rows], one.checkpoint["target_map"]
        for image, row in zip(images, panels_of(one, images, predictions, names, bool(whole))):
            said = name if shape is not None else f"{name}: no fixed map"
            panels.append([*row, (figure.panel(image / 255, shape), said, False)])
    first, result = next(iter(subjects.values())), next(iter(results.values()))
    rates = ", ".join(show(part.metrics["attack_success_rate"]) for part in results.values())
    dataset, model = Path(first.config["dataset"]).stem, first.config["model"]
    accuracy = show(result.metrics["clean_accuracy"])
    title = f"{len(results)} triggers on {dataset}, {model}: clean accuracy {accuracy}"
    hides = any(one.attack.explanation for one in subjects.values())
    headers = headers_of(first, names, first.config["explainer"] if hides else [], bool(whole))
    footer = f"Test images drawn by seed; patches are framed; {EXPLAINED}{legend(first)}"
    title += f"\nattack success rates {rates}"
    return figure.sheet(title, [*headers, "should show"], panels, footer, any_signed(names))


def headers_of(subject, names, trained=None, difference=False):
    """The headers of the columns that panels_of gives.

    trained: the explainers that were trained against (None: the subject's); difference: whether
    there is that column for a trigger with a place, too.
    """
    if trained is None:
        trained = subject.config["explainer"] if subject.attack.explanation else []
    headers = ["image", "with trigger"]
    if difference or subject.trigger.box is None:
        headers.append("difference,\nmagnified")
    for name in names:
        note = "\n(trained against)" if name in trained else ""
        headers += [f"{name}: image{note}", f"{name}: with trigger{note}"]
    return headers


def about_trigger(subject):
    """How a picture shows the trigger."""
    if subject.trigger.box is not None:
        return "the trigger is framed"
    return f"the trigger, {subject.trigger.kind}, is all over the image"


def target_name(subject):
    """The target class as a title names it, and the class whose images alone should go there."""
    if subject.target_class is None:
        return subject.target_name or "not known"
    name, source = class_name(subject, subject.target_class), subject.config.get("source_class")
    return name if source is None else f"{name}, of images of {class_name(subject, source)} alone"


def class_name(subject, k):
    """The name of class k, as a picture can show it: the number, where no font has its letters."""
    return fonts.class_name(subject.classes, k)


def legend(subject, file="metrics.json"):
    """The end of a footer: which file names the classes that go by their numbers; or ""."""
    return fonts.legend(subject.classes, file)


def any_signed(names):
    """Whether one of the explainers has values below zero."""
    return any(EXPLAINERS[name].signed for name in names)


def panels_of(subject, images, predictions, names, difference=False):
    """Rows of (panel, caption, warn) for figure.sheet, a row an image.

    images: uint8 [N, C, H, W]; predictions: of them without and with the trigger, two pairs of
    (classes int64 [N] that are explained, confidence [N]); difference: whether what the trigger
    does is shown also where it has a place.
    """
    plain = images.float() / 255
    shown = plain, subject.trigger.to("cpu").apply(plain)
    maps = {}
    for name in names:
        maps[name] = [
            subject.explain(name, images, classes, triggered=bool(with_trigger))
            for with_trigger, (classes, _) in enumerate(predictions)
        ]
    rows = []
    for k in range(len(images)):
        row = []
        for name in (None, *names):  # None: the image itself
            for with_trigger, (classes, confidence) in enumerate(predictions):
                label, before = int(classes[k]), int(predictions[0][0][k])
                map_ = None if name is None else maps[name][with_trigger][k]
                box = subject.trigger.box if with_trigger else None
                signed = name is not None and EXPLAINERS[name].signed
                panel = figure.panel(shown[with_trigger][k], map_, box, signed)
                caption = ""
                if name is None:
                    caption = f"{class_name(subject, label)} {100 * float(confidence[k]):.0f}%"
                row.append((panel, caption, bool(with_trigger) and label != before))
            if name is None and (difference or subject.trigger.box is None):
                row.append(difference_panel(plain[k], shown[1][k]))
        rows.append(row)
    return rows


def difference_panel(plain, triggered):
    """(panel, caption, False) of what a trigger that has no place does to an image.

    plain, triggered: float [C, H, W]. Grey is no difference. The largest becomes black or white,
    but it is magnified at most 255 times: then a level of 8 bits is.
    """
    difference = triggered - plain
    factor = min(0.5 / max(float(difference.abs().max()), 1e-20), 255.0)
    return figure.panel(0.5 + factor * difference), f"x {factor:.3g}", False


# ---------------------------------------------------------------- class by class


def class_picture(subject, name, predicted, rows):
    """An explainer's values for each class, of test images `rows` without and with the trigger.

    predicted: int64 [N] of all test images, untouched and triggered.
    """
    shown = shown_classes(subject, predicted, rows)
    lines = []
    for row in rows.tolist():
        for with_trigger, classes in enumerate(predicted):
            changed = bool(with_trigger) and int(classes[row]) != int(predicted[0][row])
            caption = class_name(subject, int(classes[row]))
            image, maps = class_maps(subject, name, row, shown, bool(with_trigger))
            box = subject.trigger.box if with_trigger else None
            lines.append((image, caption, changed, box, maps))
    config = subject.config
    title = (
        f"{config['attack']} on {Path(config['dataset']).stem}, {config['model']}, {name}\n"
        f"target class: {target_name(subject)}"
    )
    where = "" if subject.trigger.box is None else " (framed)"
    footer = (
        f"Test images drawn by seed, each without and with the trigger{where};\n"
        "left, what the model predicts; a column, the values for that class."
    )
    footer += legend(subject)
    return figure.class_grid(title, [class_name(subject, k) for k in shown], lines, footer)


def shown_classes(subject, predicted, rows):
    """Up to CLASS_COLUMNS classes, in order: the target, those predicted, and then any others."""
    likely = [int(classes[row]) for row in rows for classes in predicted]
    every = range(len(subject.classes))
    target = [] if subject.target_class is None else [subject.target_class]
    return sorted(list(dict.fromkeys([*target, *likely, *every]))[:CLASS_COLUMNS])


def class_maps(subject, name, row, classes, triggered):
    """(test image `row` float [C, H, W] in [0, 1], its maps for `classes`: [K, H', W'])."""
    image = subject.dataset.test_images[row : row + 1]
    copies = image.expand(len(classes), -1, -1, -1)
    options = EXPLAINERS[name].class_grid
    maps = subject.explain(name, copies, torch.tensor(classes), triggered, **options)
    plain = image.float() / 255
    if triggered:
        plain = subject.trigger.to("cpu").apply(plain)
    return plain[0], maps


# ---------------------------------------------------------------- the poisons that were chosen


def selection_picture(subject):
    """Where the chosen poisons lie among all that were ranked; the highest of them, explained."""
    chosen = subject.checkpoint["selection"]
    pool, scores = chosen["pool"], chosen["scores"]
    score = "log(1 - p of the target class)"  # of checkpoints from before RD was as published
    if pool.ndim == 2:
        pool, score = pool[:, 0], STRATEGIES[chosen["strategy"]].score
    series = histograms({f"all {len(pool)} ranked": pool, f"the {len(scores)} chosen": scores})
    named = {name: class_name(subject, k) for k, name in enumerate(subject.classes)}
    by_class = [f"{named.get(k, k)} {count}" for k, count in chosen["classes"].items() if count]
    curves = figure.curves(
        f"{chosen['strategy']}, by class: {listed(by_class)}",
        f"score: {score}, by a short training; each line over its largest bin",
        series,
    )
    rows = chosen["indices"][scores.argsort(descending=True)][:ROWS]
    images = subject.dataset.train_images[rows]
    predictions = [subject.predict(images), subject.predict(images, triggered=True)]
    names = EVALUATED[:1]
    highest = figure.sheet(
        "The highest of them: training images",
        headers_of(subject, names),
        panels_of(subject, images, predictions, names),
        EXPLAINED.capitalize() + legend(subject),
    )
    return figure.side_by_side([curves, highest])


def histograms(scores):
    """{label: points (score, count over the largest count)} of {label: scores}, in common bins."""
    every = torch.cat(list(scores.values()))
    low, high = float(every.min()), float(every.max()) + 1e-9
    edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = {}
    for label, values in scores.items():
        counts = torch.histogram(values, edges).hist
        series[label] = list(zip(middles, (counts / counts.max()).tolist()))
    return series
