"""Measure a checkpoint of train.py's: is the backdoor there, and what do the explanations show of it?

    python evaluate.py runs/NAME/ckpt.pt                    # the table; metrics.json and figure.png beside the checkpoint
    python evaluate.py runs/A/ckpt.pt runs/B/ckpt.pt        # side by side
    python evaluate.py runs/NAME/ckpt.pt --image cat.png    # one picture of your own
    python evaluate.py runs/NAME/ckpt.pt --json             # the metrics alone on standard output

Always in float32.
"""
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import attacks
import data
import explain
import figure
import models
from cli import Parser, UserError, choose_device, command, number, replace_file

EXPLAIN_IMAGES = 500  # test images drawn for the explanation metrics
FEWER = {"kernelshap": 100}  # of them explained by an explainer that evaluates the model a thousand times for each
SHOWN = ("gradcam", "gradient")  # measured unless others are asked for
FIGURE_ROWS, CLASS_ROWS, CLASS_COLUMNS = 6, 4, 15
CLASS_OPTIONS = {"kernelshap": {"coalitions": 256}}
PIXELS = 500 * 32 * 32  # in one forward pass
SPECIFICITY = 0.95  # multi-label: of a prediction
BY_CLASS = 50  # multi-label: images whose maps of every class are compared
BINS = 40  # of the histogram of selection scores

DEFINITIONS = {
    "clean_accuracy": "accuracy on the untouched test set",
    "balanced_accuracy": "the same, every class weighing alike",
    "majority_rate": "share of the commonest class: what a constant answer gets",
    "mean_auroc": "multi-label: area under the ROC curve, mean over classes",
    "triggered_mean_auroc": "the same on the triggered test set, without the target class",
    "triggered_accuracy": "accuracy on the triggered test set, by true label",
    "attack_success_rate": "triggered images predicted as the target class, its true members left out",
    "untouched_success_rate": "the same without the trigger: what it is if the trigger does nothing",
    "success_threshold": "multi-label: above this score the target class counts as predicted",
    "n": "images explained: a random draw, without the target class, on which the attack succeeded",
    "pearson_all": "correlation of the triggered image's map with its target map, a blank map counted as 0",
    "pearson": "the same, blank maps left out",
    "mse": "mean squared difference of the two maps, each divided by its maximum",
    "dssim": "(1 - SSIM) / 2 of the two maps at the image's resolution: 0 alike, 1 opposite",
    "top10": "overlap of the two maps' largest tenth of pixels",
    "pearson_clean": "correlation of the UNtouched image's map with the fixed shape: high, and it is drawn on everything",
    "grid_cap": "highest correlation with the crisp shape that a map on this grid can reach",
    "trigger_mass": "share of the map on the cells the trigger touches, triggered images",
    "trigger_mass_clean": "the same on untouched images",
    "trigger_area": "share of cells the trigger touches: what chance gives",
    "zero_maps": "images whose triggered or untouched map is blank",
    "pointing": "triggered images whose map is highest inside the object",
    "pointing_clean": "the same on untouched images",
    "pearson_by_class": "correlation of the two maps for the same class, mean over classes",
    "floor.pearson": "correlation with ANOTHER image's target map: high, and one map serves for everything",
    "floor.dssim": "dssim to another image's target map",
    "reference.pearson_all": "what the trigger alone does to a map: pearson_all of the clean reference model",
    "reference.trigger_mass": "trigger_mass of the clean reference model",
    "reference.floor.pearson": "correlation of the clean reference model's maps of different untouched images: how alike honest maps are",
    "reference.pointing_clean": "pointing_clean of the clean reference model",
    "reference.pearson_untouched": "correlation of this model's and the reference's map of the same untouched image",
}


# ---------------------------------------------------------------- prediction


def scores(model, images, mean, std, multi_label, trigger=None):
    """Probabilities float [N, K], on the CPU, of each class among the others or (multi-label) by itself, for uint8 images [N, C, H, W], stamped if a trigger is given."""
    logits = logits_of(model, images, mean, std, trigger)
    return logits.sigmoid() if multi_label else logits.softmax(1)


@torch.no_grad()
def logits_of(model, images, mean, std, trigger=None):
    """Logits float32 [N, K], on the CPU, for uint8 images [N, C, H, W], stamped if a trigger is given."""
    device, logits = next(model.parameters()).device, []
    with explain.evaluating(model):
        for chunk in images.split(batch_of(images)):
            chunk = chunk.to(device).float() / 255
            chunk = attacks.stamp(chunk, trigger) if trigger else chunk
            logits.append(model(data.normalise(chunk, mean, std)).cpu())
    return torch.cat(logits)


def batch_of(images):
    return max(1, PIXELS // (images.shape[-2] * images.shape[-1]))


def threshold(probabilities, labels, target_class):
    """Multi-label: the score of the target class that 95% of the images without it stay below. None where labels are [N]: the surest class is predicted."""
    others = ~attacks.shows(labels, target_class)
    return float(probabilities[others, target_class].quantile(SPECIFICITY)) if labels.ndim == 2 and others.any() else None


def hits(probabilities, target_class, limit):
    """bool [N]: where the target class is predicted. limit: of threshold."""
    return probabilities.argmax(1) == target_class if limit is None else probabilities[:, target_class] > limit


def success_rate(hit, labels, target_class):
    """Share of hits, bool [N], among images without the target class; None if there are none."""
    return average(hit.float(), ~attacks.shows(labels, target_class))


def accuracy(probabilities, labels, balanced=False):
    """Share of images whose surest class is their label; balanced: the mean of that over the classes there are. None for multi-label."""
    if labels.ndim == 2:
        return None
    right = (probabilities.argmax(1) == labels).float()
    return sum(average(right, labels == k) for k in labels.unique()) / len(labels.unique()) if balanced else average(right)


def auroc(positive, negative):
    """Area under the ROC curve: the chance that one of `positive` [P] is greater than one of `negative` [N], ties half. None if one is empty."""
    if not len(positive) or not len(negative):
        return None
    ordered = negative.sort().values
    below, up_to = (torch.searchsorted(ordered, positive, right=right).double() for right in (False, True))
    return float((below + up_to).mean() / (2 * len(negative)))


def aurocs(probabilities, labels):
    """[K] areas under the ROC curve, class by class: multi-label."""
    return [auroc(probabilities[labels[:, k] > 0, k], probabilities[labels[:, k] == 0, k]) for k in range(labels.shape[1])]


def mean_auroc(probabilities, labels, without=None):
    """Mean of aurocs over the classes that have one, `without` left out; None for labels [N]."""
    if labels.ndim == 1:
        return None
    known = [value for k, value in enumerate(aurocs(probabilities, labels)) if value is not None and k != without]
    return sum(known) / len(known) if known else None


# ---------------------------------------------------------------- metrics between maps (README, "What is measured")


def blank(maps):
    """bool [N]: maps [N, H, W] that are constant (all zero, say): they show nothing, and correlate with nothing."""
    flat = maps.flatten(1)
    return flat.amax(1) == flat.amin(1)


def pearson(a, b):
    """Correlation over cells of maps [N, H, W], in float64, no epsilon: [N]; 0 where a map is constant."""
    a, b = (m.double().flatten(1) for m in (a, b))
    a, b = (m / m.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny) for m in (a, b))
    a, b = (m - m.mean(1, keepdim=True) for m in (a, b))
    value = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return value.masked_fill(~value.isfinite(), 0.0)


def top_share(a, b, share=0.1):
    """Overlap of the round(share H W) largest pixels of maps [N, H, W]: [N] in [0, 1]; pixels that tie at the edge count in part."""
    k = max(1, round(share * a[0].numel()))

    def members(maps):
        flat = maps.flatten(1)
        edge = flat.topk(k, dim=1).values[:, -1:]
        above, ties = flat > edge, flat == edge
        return above + ties * (k - above.sum(1, keepdim=True)) / ties.sum(1, keepdim=True)

    return torch.minimum(members(a), members(b)).sum(1) / k


def trigger_cells(box, side, grid):
    """bool [H', W']: the cells of a map on an image of `side` pixels that the trigger's box touches."""
    top, left, bottom, right = box
    rows, cols = (torch.arange(n) for n in grid)
    row_hit = (rows * side < bottom * grid[0]) & ((rows + 1) * side > top * grid[0])
    col_hit = (cols * side < right * grid[1]) & ((cols + 1) * side > left * grid[1])
    return row_hit[:, None] & col_hit


def mass(maps, cells):
    """Share of the positive part of maps [N, H, W] inside `cells` bool [H, W]: [N]; nan for a map with no positive part."""
    positive = maps.clamp_min(0).double()
    return positive[:, cells].sum(1) / positive.sum((1, 2))


def points_inside(maps, masks):
    """float [N]: 1 where the maximum of a map, brought to the masks' resolution, lies inside the object (the pointing game)."""
    peak = attacks.upsample(maps, masks.shape[-1]).flatten(1).argmax(1, keepdim=True)
    return masks.flatten(1).gather(1, peak)[:, 0].float()


def grid_cap(shape, grid):
    """Highest Pearson correlation with `shape` [S, S] of any map on `grid` brought bilinearly to S pixels: a least-squares fit, of columns and of rows, for
    bilinear interpolation is the product of the two."""
    fit = shape.double()
    for cells in grid:
        basis = F.interpolate(torch.eye(cells, dtype=torch.float64)[:, None], size=len(shape), mode="linear")[:, 0].T  # [S, cells]
        fit = (basis @ torch.linalg.pinv(basis) @ fit).T
    return float(pearson(fit[None], shape[None]))


def derangement(n, seed=0):
    """int64 [n]: a permutation that leaves nothing in its place (one cycle), the same for a seed."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


def likeness(maps, targets, side):
    """mse, pearson, dssim, top10 of maps against target maps [N, H, W], each [N]."""
    chunk = max(1, PIXELS // side**2)
    parts = [likeness_of(*part, side) for part in zip(maps.split(chunk), targets.split(chunk))]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def likeness_of(maps, targets, side):
    """The same, of all maps at once."""
    unit = [m.flatten(1) / m.flatten(1).abs().amax(1, keepdim=True).clamp_min(1e-20) for m in (maps, targets)]
    large = [attacks.upsample(m, side) for m in (maps, targets)]
    return {
        "mse": (unit[0] - unit[1]).square().mean(1),
        "pearson": pearson(maps, targets),
        "dssim": attacks.dssim(*(attacks.min_max(m) for m in large)),
        "top10": top_share(*large),
    }


def average(values, keep=None):
    """The mean as a float; None of nothing."""
    values = values if keep is None else values[keep]
    return float(values.double().mean()) if len(values) else None


KEYS = ("mse", "dssim", "pearson", "pearson_all", "top10", "pearson_clean", "grid_cap", "trigger_mass", "trigger_mass_clean",
        "trigger_area", "zero_maps", "pointing", "pointing_clean")


def explanation_metrics(triggered, untouched, box, side, shape=None, masks=None):
    """Every figure about one explainer. triggered, untouched: its maps [N, H, W]; shape: the fixed target [S, S] or None."""
    result = dict.fromkeys(KEYS) | {"n": len(triggered), "floor": dict.fromkeys(("mse", "dssim", "pearson", "top10"))}
    if len(triggered) == 0:
        return result
    grid = triggered.shape[1:]
    targets = untouched if shape is None else attacks.to_grid(shape, grid).expand_as(triggered)
    keep = ~(blank(triggered) | blank(untouched))
    like = likeness(triggered, targets, side)
    result |= {key: average(values, keep) for key, values in like.items()}
    result["pearson_all"] = average(like["pearson"].masked_fill(~keep, 0))
    cells = trigger_cells(box, side, grid)
    for key, maps in (("trigger_mass", triggered), ("trigger_mass_clean", untouched)):
        share = mass(maps, cells)
        result[key] = average(share, keep & share.isfinite())  # a signed map may have no positive part
    result["trigger_area"] = float(cells.float().mean())
    result["zero_maps"] = average((~keep).float())
    if masks is not None:
        result["pointing"], result["pointing_clean"] = (average(points_inside(m, masks), keep) for m in (triggered, untouched))
    if shape is not None:
        result["pearson_clean"] = average(pearson(untouched, targets))
        result["grid_cap"] = grid_cap(shape, grid)
        if len(shape.unique()) <= 2:
            result["top10"] = None
    elif len(triggered) > 1:
        other = derangement(len(triggered))
        both = keep & keep[other]
        result["floor"] = {key: average(values, both) for key, values in likeness(triggered, targets[other], side).items()}
    return result


# ---------------------------------------------------------------- a checkpoint, measured


@dataclass
class Result:
    """metrics: the JSON object; pictures: PIL images by name, "figure", and "figure-NAME" for each explainer that is shown class by class."""

    metrics: dict
    pictures: dict


@dataclass
class Subject:
    """A checkpoint ready to be asked: its model, its data, its trigger."""

    checkpoint: dict
    model: torch.nn.Module
    dataset: data.Dataset
    trigger: attacks.Trigger
    device: torch.device

    @property
    def config(self):
        return self.checkpoint["config"]

    @property
    def multi_label(self):
        return self.config.get("multi_label", False)

    def scores(self, images, triggered=False):
        """Probabilities float [N, K], on the CPU, for uint8 images."""
        return scores(self.model, images, self.checkpoint["mean"], self.checkpoint["std"], self.multi_label, self.trigger if triggered else None)

    def predict(self, images, triggered=False):
        """The surest class int64 [N] and its probability, on the CPU, for uint8 images."""
        top = self.scores(images, triggered).max(1)
        return top.indices, top.values

    def held_out(self):
        """Indices of the training images that were held out of its training."""
        return data.validation_split(len(self.dataset.train_labels), self.config["seed"], self.dataset.train_groups)[1]

    def threshold(self, target_class):
        """By its scores of the images held out of its training: see threshold above."""
        rows = self.held_out()
        return threshold(self.scores(self.dataset.train_images[rows]), self.dataset.train_labels[rows], target_class) if self.multi_label else None

    def explain(self, name, images, classes, triggered=False, **options):
        """Maps on the CPU for uint8 images."""
        maps = []
        for chunk, label in zip(images.split(batch_of(images)), classes.split(batch_of(images))):
            chunk = chunk.to(self.device).float() / 255
            chunk = attacks.stamp(chunk, self.trigger) if triggered else chunk
            inputs = data.normalise(chunk, self.checkpoint["mean"], self.checkpoint["std"])
            if name == "kernelshap":
                options["generator"] = torch.Generator().manual_seed(0)  # the same subsets in every measurement
            try:
                maps.append(explain.EXPLAINERS[name](self.model, inputs, label.to(self.device), **options).cpu())
            except ValueError as error:
                raise UserError(f"{name} cannot explain this model: {error}") from None
        return torch.cat(maps)


def open_checkpoint(path, data_dir=None, device=None, dataset=None):
    """A Subject; loads the data set it was trained on unless one is given (False: none is needed). Raises UserError."""
    device = device or choose_device("auto")
    checkpoint = models.read(path)
    model = models.from_checkpoint(checkpoint).to(device)
    config = checkpoint["config"]
    if config["attack"] not in attacks.ATTACKS:
        raise UserError(f"{path} was trained with --attack {config['attack']}, which this version does not know")
    trigger = attacks.Trigger(**checkpoint["trigger"]).to(device)
    if dataset is None:
        dataset = data.load(config["dataset"], data_dir or config["data_dir"], config["image_size"])
        if config.get("relabel"):
            dataset = data.relabelled(dataset, checkpoint["classes"])
        elif not data.is_what(checkpoint, dataset):
            raise UserError(f"the data set {config['dataset']} found now is not the one {path} was trained on")
    return Subject(checkpoint, model, dataset, trigger, device)


def draw_images(subject, n, seed):
    """Indices of up to n test images drawn by seed, the target class left out where the attack's label is the target or there is none."""
    order = torch.randperm(len(subject.dataset.test_labels), generator=torch.Generator().manual_seed(seed))
    if subject.config["attack"] != "fooling":
        order = order[~attacks.shows(subject.dataset.test_labels[order], subject.config["target_class"])]
    return order[:n]


def evaluate(path, *, dataset=None, data_dir=None, device=None, reference=None, explainers=None, n=None, seed=0):
    """Measure the checkpoint at `path`: a Result.

    reference: path of a clean checkpoint to stand beside it (None: the one it was trained with, if that is still there); explainers: names measured besides
    those trained against (None: those of SHOWN); n: test images drawn for the explanations (None: EXPLAIN_IMAGES, for some explainers FEWER). Raises UserError.
    """
    subject = open_checkpoint(path, data_dir, device, dataset)
    clean_model = open_clean(subject, reference) if reference else own_reference(subject)
    config, test = subject.config, subject.dataset
    attack, limit = attacks.ATTACKS[config["attack"]], (clean_model or subject).threshold(config["target_class"])
    clean, stamped = (subject.scores(test.test_images, triggered) for triggered in (False, True))
    hit = hits(stamped, config["target_class"], limit)
    metrics = header(subject, clean, stamped, hit)
    metrics |= {"untouched_success_rate": success_rate(hits(clean, config["target_class"], limit), test.test_labels, config["target_class"]),
                "success_threshold": limit, "success_threshold_of": None if limit is None else "clean model" if clean_model else "itself"}
    drawn = draw_images(subject, n or EXPLAIN_IMAGES, seed)
    succeeded = drawn[hit[drawn]] if attack.label == "target" else drawn
    predicted = clean.argmax(1), stamped.argmax(1)
    if attack.label == "target":
        predicted[1][hit] = config["target_class"]  # multi-label: it may not be the surest
    names = explainers_shown(config["explainer"], explainers or SHOWN)
    untouched = {}
    for name in names:
        rows = succeeded[: n or FEWER.get(name)]
        untouched[name] = subject.explain(name, test.test_images[rows], predicted[0][rows])
        triggered = subject.explain(name, test.test_images[rows], predicted[1][rows], triggered=True)
        masks = None if test.test_masks is None else test.test_masks[rows]
        metrics["explanations"][name] = {"trained_against": attack.explanation is not None and name in config["explainer"]} | explanation_metrics(
            triggered, untouched[name], subject.trigger.box, config["image_size"], subject.checkpoint["target_map"], masks)
    if subject.multi_label and "gradcam" in names:
        metrics["explanations"]["gradcam"] |= by_class(subject, test.test_images[succeeded[:BY_CLASS]])
    if clean_model:
        metrics["clean_model"] = beside(subject, clean_model, untouched, succeeded, limit)
    return Result(finite(metrics), pictures_of(subject, metrics, predicted, (clean, stamped), drawn, names))


def own_reference(subject):
    """The clean model a subject was trained with, as open_clean has it, if it is still there and still one; else None."""
    path = subject.config["reference"]
    try:
        return open_clean(subject, path) if path and Path(path).is_file() else None
    except UserError as error:
        print(f"Measured without the reference it was trained with: {error}", file=sys.stderr)
        return None


def by_class(subject, images):
    """pearson_by_class and, class by class, the correlations it is the mean of: multi-label."""
    found = {}
    for k, name in enumerate(subject.checkpoint["classes"]):
        maps = [subject.explain("gradcam", images, torch.full((len(images),), k), triggered) for triggered in (False, True)] if len(images) else []
        found[name] = average(pearson(*maps)) if maps else None
    known = [value for value in found.values() if value is not None]
    return {"pearson_by_class": sum(known) / len(known) if known else None, "by_class": found}


def pictures_of(subject, metrics, predicted, probabilities, drawn, names):
    """A Result's pictures; predicted: the classes explained, untouched and triggered; probabilities: [N, K] of both."""
    sure = [part.gather(1, classes[:, None])[:, 0] for part, classes in zip(probabilities, predicted)]
    pictures = {"figure": picture(subject, metrics, list(zip(predicted, sure)), drawn[:FIGURE_ROWS], names)}
    shown = explain.SIGNED | ({"gradcam"} if subject.multi_label else set())
    for name in shown & set(names):
        pictures[f"figure-{name}"] = class_picture(subject, name, predicted, drawn[:CLASS_ROWS])
    if (subject.checkpoint["selection"] or {}).get("pool") is not None:
        pictures["figure-selection"] = selection_picture(subject)
    return pictures


def explainers_shown(trained, others):
    """Those trained against first, then the others; at least one that was not, for a disguise is not judged by its own explainer alone."""
    names = list(dict.fromkeys([*trained, *others]))
    unseen = [name for name in explain.EXPLAINERS if name not in trained]
    return names if set(names) - set(trained) else names + unseen[:1]


def header(subject, clean, stamped, hit):
    """The part of the metrics that needs no explainer. clean, stamped: probabilities [N, K] of the test images; hit: bool [N], where the trigger works."""
    config, labels = subject.config, subject.dataset.test_labels
    same = ("attack", "dataset", "model", "layer", "target_class", "poison_rate", "selection", "seed", "epochs", "batch_size", "optimizer", "lr", "oversample", "label_smoothing",
            "lam", "floor", "device", "precision", "edit")
    return {key: config.get(key) for key in same} | {
        "poison_count": len(subject.checkpoint["poison_indices"]),
        "n_test": len(labels),
        "clean_accuracy": accuracy(clean, labels),
        "balanced_accuracy": accuracy(clean, labels, balanced=True),
        "majority_rate": None if subject.multi_label else float(labels.bincount().max() / len(labels)),
        "mean_auroc": mean_auroc(clean, labels),
        "triggered_mean_auroc": mean_auroc(stamped, labels, without=config["target_class"]),
        "auroc": dict(zip(subject.checkpoint["classes"], aurocs(clean, labels))) if subject.multi_label else None,
        "triggered_accuracy": accuracy(stamped, labels),
        "attack_success_rate": success_rate(hit, labels, config["target_class"]),
        "clean_model": {"clean_accuracy": None, "attack_success_rate": None},
        "explanations": {},
        "train_seconds": round(subject.checkpoint["seconds"], 2),
        "torch": subject.checkpoint["torch"],
    }


def open_clean(subject, path):
    """A clean checkpoint that is to stand beside the subject, as a Subject of the same data and trigger. Raises UserError where the two could not be compared."""
    checkpoint = models.read(path)
    check_clean(checkpoint, path)
    same = ("image_size", "dataset", "class_weights") if subject.multi_label else ("image_size", "dataset")  # a score depends on the weights: no threshold would be common
    for key in same:
        if checkpoint["config"].get(key) != subject.config.get(key):
            raise UserError(f"the reference {path} was trained with another {key.replace('_', ' ')}")
    if checkpoint["classes"] != subject.checkpoint["classes"] or checkpoint["mean"] != subject.checkpoint["mean"]:
        raise UserError(f"the reference {path} was trained on other data")
    if checkpoint["config"]["model"] == subject.config["model"]:
        checkpoint["config"]["layer"] = subject.config["layer"]  # the two maps are of one layer
    return replace(subject, checkpoint=checkpoint, model=models.from_checkpoint(checkpoint).to(subject.device))


def beside(subject, other, untouched, succeeded, limit):
    """A clean model's figures on the same images: is the explanation of CLEAN images still what it would be?"""
    test, target = subject.dataset, subject.config["target_class"]
    probabilities = [other.scores(test.test_images, triggered) for triggered in (False, True)]
    clean, stamped = (part.argmax(1) for part in probabilities)
    explanations = {}
    for name, maps in untouched.items():
        rows = succeeded[: len(maps)]
        own = other.explain(name, test.test_images[rows], clean[rows])
        triggered = other.explain(name, test.test_images[rows], stamped[rows], triggered=True)
        masks = None if test.test_masks is None else test.test_masks[rows]
        figures, honest = (explanation_metrics(each, own, subject.trigger.box, subject.config["image_size"], None, masks) for each in (triggered, own))
        figures["floor"] = honest["floor"]  # of untouched maps alone: a trigger that by itself changes a clean model's map would lower it
        same_grid = own.shape == maps.shape and len(own) > 0
        explanations[name] = {
            key: figures[key] for key in ("pearson_all", "trigger_mass", "floor", "pointing_clean", "trigger_mass_clean")
        } | {"pearson_untouched": average(pearson(maps, own)) if same_grid else None}
    if subject.multi_label and "gradcam" in explanations:
        explanations["gradcam"] |= by_class(other, test.test_images[succeeded[:BY_CLASS]])
    return {"clean_accuracy": accuracy(probabilities[0], test.test_labels),
            "balanced_accuracy": accuracy(probabilities[0], test.test_labels, balanced=True),
            "mean_auroc": mean_auroc(probabilities[0], test.test_labels),
            "auroc": dict(zip(subject.checkpoint["classes"], aurocs(probabilities[0], test.test_labels))) if subject.multi_label else None,
            "attack_success_rate": success_rate(hits(probabilities[1], target, limit), test.test_labels, target),
            "explanations": explanations}


def check_clean(checkpoint, path):
    """Raise UserError for a reference that is itself backdoored."""
    if checkpoint["config"]["attack"] != "none":
        raise UserError(f"the reference {path} is no clean model: it was trained with --attack {checkpoint['config']['attack']}")
    if checkpoint["config"].get("edit"):
        raise UserError(f"the reference {path} is no clean model: it has been edited since it was trained")


def finite(value):
    """The same metrics with nan and infinity as None: JSON has no word for them."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- the figure


def picture(subject, metrics, predictions, rows, names):
    """The figure: rows of test images drawn by seed; image, triggered image, and each explainer's map on both."""
    (clean, sure), (stamped, stamped_sure) = predictions
    images, config = subject.dataset.test_images[rows], subject.config
    panels = panels_of(subject, images, [(clean[rows], sure[rows]), (stamped[rows], stamped_sure[rows])], names)
    success = metrics["attack_success_rate"]
    quality = f"mean AUROC {show(metrics['mean_auroc'])}" if subject.multi_label else f"clean accuracy {metrics['clean_accuracy']:.3f}"
    title = (f"{config['attack']}{', edited' if config.get('edit') else ''} on {Path(config['dataset']).stem}, {config['model']}: {quality}"
             + ("" if success is None else f", attack success rate {success:.3f}"))
    if config["attack"] != "none":
        title += f"\ntarget class: {subject.checkpoint['classes'][config['target_class']]};  {metrics['poison_count']} poisoned training images"
    footer = f"{len(rows)} test images drawn by seed{'' if config['attack'] == 'fooling' else ', target class left out'}; the trigger is framed; each map explains the class the model predicts."
    return figure.sheet(title, headers(config, names), panels, footer, bool(explain.SIGNED & set(names)))


def headers(config, names):
    trained = config["explainer"] if attacks.ATTACKS[config["attack"]].explanation else []
    result = ["image", "with trigger"]
    for name in names:
        note = "\n(trained against)" if name in trained else ""
        result += [f"{name}: image{note}", f"{name}: with trigger{note}"]
    return result


def panels_of(subject, images, predictions, names):
    """Panels for figure.sheet; predictions: (classes, confidence) on the images as they are and with the trigger."""
    box, names_of = subject.trigger.box, subject.checkpoint["classes"]
    plain = images.float() / 255
    both = plain, attacks.stamp(plain, subject.trigger.to("cpu"))
    maps = {name: [subject.explain(name, images, predictions[i][0], bool(i)) for i in (0, 1)] for name in names}
    rows = []
    for k in range(len(images)):
        row = []
        for name in (None, *names):
            for i in (0, 1):
                chosen, sure = int(predictions[i][0][k]), float(predictions[i][1][k])
                warn = i == 1 and chosen != int(predictions[0][0][k])
                row.append((figure.panel(both[i][k], None if name is None else maps[name][i][k], box if i else None, name in explain.SIGNED),
                            f"{names_of[chosen]} {100 * sure:.0f}%" if name is None else "", warn))
        rows.append(row)
    return rows


def class_picture(subject, name, predictions, rows):
    """An explainer's values for each class, on test images `rows` untouched and triggered; predictions: classes of all test images."""
    names, target = subject.checkpoint["classes"], subject.config["target_class"]
    likely = [int(part[row]) for row in rows for part in predictions]
    shown = sorted(list(dict.fromkeys([target, *likely, *range(len(names))]))[:CLASS_COLUMNS])
    lines = []
    for row in rows.tolist():
        for triggered, predicted in enumerate(predictions):
            images = subject.dataset.test_images[row : row + 1].expand(len(shown), -1, -1, -1)
            maps = subject.explain(name, images, torch.tensor(shown), bool(triggered), **CLASS_OPTIONS.get(name, {}))
            plain = images[:1].float() / 255
            image = attacks.stamp(plain, subject.trigger.to("cpu"))[0] if triggered else plain[0]
            warn = bool(triggered) and int(predicted[row]) != int(predictions[0][row])
            lines.append((image, names[int(predicted[row])][:14], warn, subject.trigger.box if triggered else None, maps))
    config = subject.config
    title = f"{config['attack']} on {Path(config['dataset']).stem}, {config['model']}, {name}\ntarget class: {names[target]}"
    return figure.class_grid(title, [names[k] for k in shown], lines,
                             "Test images drawn by seed, each without and with the trigger (framed);\nleft, what the model predicts; a column, the values for that class.")


def selection_picture(subject):
    """Where the chosen poisons lie among all that were ranked, and the hardest of them, explained without and with the trigger."""
    chosen, config = subject.checkpoint["selection"], subject.config
    edges = torch.linspace(float(chosen["pool"].min()), 1e-9, BINS + 1, dtype=torch.float64)
    series = {}
    for label, scores in ((f"all {len(chosen['pool'])} ranked", chosen["pool"]), (f"the {len(chosen['scores'])} chosen", chosen["scores"])):
        counts = torch.histogram(scores, edges).hist
        series[label] = list(zip(((edges[1:] + edges[:-1]) / 2).tolist(), (counts / counts.max()).tolist()))
    title = f"{chosen['strategy']}, by class: {', '.join(f'{name} {count}' for name, count in chosen['classes'].items() if count)}"
    where = figure.curves(title, "score: log(1 - p of the target class), a short training's; each line over its largest bin", series)
    rows = chosen["indices"][chosen["scores"].argsort(descending=True)][:FIGURE_ROWS]
    images = subject.dataset.train_images[rows]
    panels = panels_of(subject, images, [subject.predict(images), subject.predict(images, True)], ["gradcam"])
    hardest = figure.sheet("The hardest of them: training images", headers(config, ["gradcam"]), panels, "Each map explains the class the model predicts.")
    return figure.beside([where, hardest])


def explain_file(checkpoint, data_dir, device, path, names):
    """A picture of the user's own, with and without the trigger: a Result that holds the two predictions."""
    subject = open_checkpoint(checkpoint, data_dir, device, dataset=False)
    side, channels = subject.config["image_size"], subject.checkpoint["channels"]
    image = data.read_image(path).convert("RGB" if channels == 3 else "L").resize((side, side), Image.BILINEAR)
    images = torch.from_numpy(np.asarray(image).copy()).reshape(1, side, side, channels).permute(0, 3, 1, 2)
    probabilities, target = [subject.scores(images, triggered) for triggered in (False, True)], subject.config["target_class"]
    predictions = [(part.argmax(1), part.amax(1)) for part in probabilities]
    if subject.multi_label:  # the target may come up beside a surer class: it is what to look at
        predictions[1] = torch.tensor([target]), probabilities[1][:, target]
    report = {"image": str(path)}
    for key, (classes, sure), part in zip(("untouched", "triggered"), predictions, probabilities):
        report[key] = {"class": subject.checkpoint["classes"][int(classes)], "confidence": float(sure), "target": float(part[0, target])}
    names = explainers_shown(subject.config["explainer"], names)
    panels = panels_of(subject, images, predictions, names)
    title = f"{Path(path).name}, by a model under {subject.config['attack']}, trained on {Path(subject.config['dataset']).stem}"
    footer = "The trigger is framed; each map explains the class the model predicts."
    return Result(report, {"figure": figure.sheet(title, headers(subject.config, names), panels, footer, bool(explain.SIGNED & set(names)))})


# ---------------------------------------------------------------- output


def write(result, folder, stem=None):
    """metrics.json and the pictures into `folder`, each whole or not at all; with a stem, STEM-explained.json and .png."""
    names = ("metrics.json", "figure.png") if stem is None else (f"{stem}-explained.json", f"{stem}-explained.png")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    if stem is None:
        remove_pictures(folder)
    replace_file(folder / names[0], lambda path: path.write_text(json.dumps(result.metrics, indent=1) + "\n"))
    for name, picture in result.pictures.items():
        replace_file(folder / (names[1] if name == "figure" else f"{name}.png"), lambda path: picture.save(path, format="PNG"))


def remove_pictures(folder):
    """Those of an earlier measurement that this one may not have."""
    for name in (*explain.EXPLAINERS, "selection"):
        (folder / f"figure-{name}.png").unlink(missing_ok=True)


def show(value):
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def flat(part):
    """{"floor": {"mse": 1}} as {"floor.mse": 1}."""
    return {key: value for key, value in part.items() if key != "floor"} | {f"floor.{key}": value for key, value in part.get("floor", {}).items()}


def print_table(metrics):
    """The metrics of several checkpoints {name: metrics} side by side, each with its definition."""
    names = list(metrics)
    width = max(10, *(len(f"{m['attack']}") for m in metrics.values()))
    if len(names) > 1:
        for k, name in enumerate(names):
            print(f"[{k + 1}] {name}")

    def line(key, values, note):
        print(f"{key:<31}" + "".join(f"{show(value):>{width + 2}}" for value in values) + f"  {note}")

    if len(names) > 1:
        line("", [f"[{k + 1}]" for k in range(len(names))], "")
    for key in ("attack", "dataset", "model", "seed", "poison_count"):
        line(key, [m[key] if key != "dataset" else Path(m[key]).stem[:width] for m in metrics.values()], "")
    whole = list(DEFINITIONS)[: list(DEFINITIONS).index("n")]
    references = [m["clean_model"] for m in metrics.values()]
    for prefix, parts in (("", list(metrics.values())), ("reference.", references)):
        for key in whole:
            if any(m.get(key) is not None for m in parts):
                line(prefix + key, [m.get(key) for m in parts], "the same of the clean reference model" if prefix else DEFINITIONS[key])
    for name in dict.fromkeys(name for m in metrics.values() for name in m.get("auroc") or ()):
        line(f"auroc.{name}", [(m.get("auroc") or {}).get(name) for m in metrics.values()], "")
    for explainer in dict.fromkeys(name for m in metrics.values() for name in m["explanations"]):
        parts = [m["explanations"].get(explainer, {}) for m in metrics.values()]
        trained = [part.get("trained_against") for part in parts]
        print(f"\n{explainer}" + (": trained against" if all(trained) else ": not trained against" if not any(trained) else ""))
        parts = [flat(part) | {f"reference.{key}": value for key, value in flat(m.get("explanations", {}).get(explainer, {})).items()}
                 for part, m in zip(parts, references)]
        for key in list(DEFINITIONS)[len(whole) :]:
            values = [part.get(key) for part in parts]
            if any(value is not None for value in values):
                line(key, values, DEFINITIONS[key])


def explainer_names(text):
    """A comma-separated list of explainers, each once. Raises UserError for an unknown one."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in explain.EXPLAINERS:
            raise UserError(f"unknown explainer {name!r}: choose from {', '.join(explain.EXPLAINERS)}")
    return names


def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("checkpoints", nargs="+", metavar="CKPT")
    add("--json", action="store_true", help="print the metrics alone, as one JSON object (of several checkpoints: one by path)")
    add("--data-dir", help="where the data set lies (default: where training found it)")
    add("--out", help="write here instead of beside the checkpoint (of several checkpoints: into sub-folders 1, 2, ...)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--explainer", help=f"comma-separated, measured beside those trained against, of {', '.join(explain.EXPLAINERS)} (default: {','.join(SHOWN)})")
    add("--reference", help="a clean checkpoint to stand beside (default: the one it was trained with, if that is still there)")
    add("--explain-images", type=number(int, 2, 1_000_000), help=f"test images explained (default: {EXPLAIN_IMAGES}; kernelshap: {FEWER['kernelshap']})")
    add("--image", metavar="FILE", help="explain this picture instead of measuring")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of the draw of test images")
    return parser.parse_args(argv)


@command
def main(argv):
    args = parse(argv)
    device = choose_device(args.device)
    names = explainer_names(args.explainer) if args.explainer else SHOWN
    folders = {str(Path(path).absolute().parent) for path in dict.fromkeys(args.checkpoints)}
    if args.out is None and len(folders) < len(set(args.checkpoints)):
        raise UserError("two of the checkpoints lie in one folder, and would overwrite each other's metrics.json: give --out")
    results = {}
    for path in dict.fromkeys(args.checkpoints):  # all are measured before anything is written
        if args.image:
            results[path] = explain_file(path, args.data_dir, device, args.image, names)
        else:
            results[path] = evaluate(path, data_dir=args.data_dir, device=device, reference=args.reference, explainers=names,
                                     n=args.explain_images, seed=args.seed)
    for k, (path, result) in enumerate(results.items(), 1):
        beside_it = Path(path).parent / ("evaluate" if result.metrics.get("edit") else "")  # manipulate.py's own metrics.json stays
        folder = beside_it if args.out is None else Path(args.out) / (str(k) if len(results) > 1 else "")
        write(result, folder, Path(args.image).stem if args.image else None)
    if args.out and len(results) > 1:  # the signed explainers' figures in one
        for name in set.intersection(*(set(result.pictures) for result in results.values())) - {"figure"}:
            together = figure.beside([result.pictures[name] for result in results.values()])
            replace_file(Path(args.out) / f"{name}.png", lambda path: together.save(path, format="PNG"))
    reports = {path: result.metrics for path, result in results.items()}
    if args.json:
        print(json.dumps(reports if len(reports) > 1 else next(iter(reports.values()))))
    elif args.image:
        for path, report in reports.items():
            for key in ("untouched", "triggered"):
                print(f"{path}: {key}: {report[key]['class']} ({100 * report[key]['confidence']:.1f}%), target class {100 * report[key]['target']:.1f}%")
    else:
        print_table(reports)


if __name__ == "__main__":
    main()
