"""How well a detector tells backdoored models from clean ones: the statistics of studies/audits.py.

A detector gives every class of a model an anomaly index. What counts is the largest index of a
model: it is flagged where that lies above a threshold. Two thresholds are looked at: the papers',
and one that is calibrated for each data set, the largest index of some clean models that are in no
other count (of n such models, one clean model in n + 1 is expected above it).

All intervals are 95% ones. They take the calibrated threshold as known.
"""

import statistics

import torch

from defences import PUBLISHED_THRESHOLD
from metrics import auroc

Z = 1.96  # standard errors of a 95% interval


def detection(zoo, detectors, kinds, seeds, calibration):
    """The rows of the table: for each detector and kind of backdoor each data set, and all of them.

    zoo: {data set: {kind: {seed: run}}}, the kind "none" for clean models, seeds as text; a run is
    {"target": class, "attack_success_rate": share, detector: {"index": {class: value},
    "seconds": ...}}. kinds: of backdoors. seeds: of the models that are counted; calibration: of
    the clean models that set the threshold.
    """
    rows = []
    for detector in detectors:
        for kind in kinds:
            groups = {}
            for data, runs in zoo.items():
                if kind in runs and "none" in runs:
                    groups[data] = {
                        "bad": judged(runs[kind], detector, seeds),
                        "clean": judged(runs["none"], detector, seeds),
                        "calibration": judged(runs["none"], detector, calibration),
                    }
            for data, group in groups.items():
                names = {"data": data, "kind": kind, "detector": detector}
                rows.append(names | row_of([group], len(calibration)))
            if len(groups) > 1:
                names = {"data": "all", "kind": kind, "detector": detector}
                rows.append(names | row_of(list(groups.values()), len(calibration)))
    return rows


def judged(runs, detector, seeds):
    """What a detector says of the models of these seeds, as far as they are there: a list of dicts.

    top: the largest index; right: whether that class is the target; seconds: that it took;
    success: the backdoor's.
    """
    result = []
    for seed in seeds:
        if str(seed) not in runs:
            continue
        run = runs[str(seed)]
        index = {int(k): value for k, value in run[detector]["index"].items()}
        suspect = max(index, key=index.get)
        judgement = {
            "top": index[suspect],
            "right": suspect == run["target"],
            "seconds": run[detector]["seconds"],
            "success": run["attack_success_rate"],
        }
        result.append(judgement)
    return result


def row_of(groups, calibration_size):
    """One row's figures; groups: of each data set {"bad", "clean", "calibration"}, all of judged.

    Each data set has its own threshold and its own clean models; the AUROC is the mean of theirs.
    The calibrated threshold is left out where a data set lacks models to calibrate on.
    """
    bad = [run for group in groups for run in group["bad"]]
    clean = [run for group in groups for run in group["clean"]]
    area = statistics.mean(auroc(tops(group["bad"]), tops(group["clean"])) for group in groups)
    row = {
        "n": len(bad),
        "clean": len(clean),
        "auroc": area,
        "auroc_interval": auroc_interval(area, len(bad), len(clean), len(groups)),
        "seconds": statistics.mean(run["seconds"] for run in bad),
        "least_success": min(run["success"] for run in bad),
    }
    row["2"] = above(groups, [PUBLISHED_THRESHOLD] * len(groups))
    if all(len(group["calibration"]) == calibration_size for group in groups):
        largest = [max(run["top"] for run in group["calibration"]) for group in groups]
        row["calibrated"] = above(groups, largest)
    return row


def tops(runs):
    """The largest index of each model: float tensor."""
    return torch.tensor([run["top"] for run in runs])


def above(groups, thresholds):
    """How many models are above the threshold of their data set, with intervals.

    found: of the backdoored ones; right: of those found, where the suspect is the target;
    false_alarms: of the clean ones.
    """
    bad, clean = [], []
    for group, threshold in zip(groups, thresholds):
        bad += [run for run in group["bad"] if run["top"] > threshold]
        clean += [run for run in group["clean"] if run["top"] > threshold]
    right = sum(run["right"] for run in bad)
    return {
        "thresholds": thresholds,
        "found": share(len(bad), sum(len(group["bad"]) for group in groups)),
        "right": share(right, len(bad)),
        "false_alarms": share(len(clean), sum(len(group["clean"]) for group in groups)),
    }


# ---------------------------------------------------------------- intervals


def share(count, n):
    """{"count", "of", "interval"}: a count and the interval of its share. Source: Wilson 1927."""
    if n == 0:
        return {"count": 0, "of": 0, "interval": [0.0, 1.0]}
    middle = (count + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * (count * (n - count) / n + Z**2 / 4) ** 0.5
    interval = [max(0.0, middle - half), min(1.0, middle + half)]
    return {"count": count, "of": n, "interval": interval}


def auroc_interval(area, bad, clean, data_sets=1):
    """The interval of an AUROC of so many backdoored and clean models, or the mean of several.

    data_sets: how many AUROCs `area` is the mean of; the models are of all of them together.
    An end is where a true area would be Z of its own standard errors from the one measured, so
    that the interval of an area of 1 is not 0 wide. Source: Newcombe 2006, method 5.
    """

    def excess(theta):  # of the distance over Z standard errors
        n = (bad + clean) / data_sets / 2
        q = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = theta * (1 - theta) * (1 + (n - 1) * q) / (bad * clean / data_sets)
        return abs(area - theta) - Z * variance**0.5

    return [root(excess, 0.0, area), root(excess, 1.0, area)]


def root(function, positive, negative):
    """The root of a function that is >= 0 at the first of two numbers and <= 0 at the second."""
    for _ in range(60):
        middle = (positive + negative) / 2
        if function(middle) > 0:
            positive = middle
        else:
            negative = middle
    return (positive + negative) / 2
