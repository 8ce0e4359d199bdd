"""The tables of the record of studies/threats.py, for results/efficient.md.

Every function of TABLES takes no argument and returns the lines of a Markdown table.
"""

from studies.record import RESULTS, VICTIM_EPOCHS, read
from studies.tables import (
    cell,
    everything,
    header,
    interval_text,
    line,
    note,
    origin,
    pairs_by_rows,
)

RECORD = RESULTS / "threats.json"
PAIRED = RESULTS / "threats-paired.json"
OVERLAP = RESULTS / "threats-overlap.json"
SUCCESS = "attack_success_rate"

# What papers report, in percent: paper, setting, success with random images, with chosen ones.
WU = "Wu et al. 2023, ResNet-18"
PUBLISHED = (
    (WU, "40 images, chosen by `rd`", 87.16, 93.49),
    (WU, "55 images, chosen by `rd`", 92.65, 98.89),
    ("Stealthy Sabotage, section 3.5, ResNet-18", "55 images, chosen by score", None, 89.7),
)


def difference(pairs, of, minus):
    """The paired difference of two rows as text; empty where it is not recorded."""
    pair = pairs.get((of, minus))
    return interval_text(pair) if pair else ""


def poisons_of(row):
    """How many images a run of a recorded row poisons."""
    return sum(row["runs"][0]["poisons_by_class"].values())


# ---------------------------------------------------------------- CIFAR-10: which images

SELECTIONS = ("random", "rd-global", "rd", "rd-low")


def selections():
    """Success by selection, the difference to random images, and what the choice cost."""
    results, pairs = read(RECORD), pairs_by_rows(PAIRED)
    lines = header(
        [
            "selection",
            "n",
            "`attack_success_rate`",
            "by seed",
            "minus `random` (95% interval)",
            "`clean_accuracy`",
            "scorers' epochs",
            f"scorers' seconds / {VICTIM_EPOCHS} epochs' of a victim",
        ]
    )
    rows = [name for name in SELECTIONS if name in results]
    for name in rows:
        summary = results[name]["summary"]
        values = ", ".join(f"{run[SUCCESS]:.3f}" for run in results[name]["runs"])
        epochs = summary.get("selection_epochs")
        cost = [f"{epochs['mean']:.0f}", cell(summary["selection_cost"])] if epochs else ["", ""]
        cells = [len(results[name]["runs"]), cell(summary[SUCCESS]), values]
        accuracy = cell(summary["clean_accuracy"])
        minus_random = difference(pairs, name, "random")
        lines.append(line([f"`{name}`", *cells, minus_random, accuracy, *cost]))
    return [*lines, "", origin(results, rows)]


def pilot():
    """Success of random images at the rates of the pilot."""
    results = read(RECORD)
    rows = [name for name in results if name.startswith("pilot")]
    lines = header(["rate", "images", "seeds", "`attack_success_rate`"])
    for name in rows:
        row = results[name]
        seeds = ", ".join(str(seed) for seed in row["seeds"])
        success = cell(row["summary"][SUCCESS])
        lines.append(line([name.split()[1], poisons_of(row), seeds, success]))
    return [*lines, "", origin(results, rows)]


def held_out():
    """Mean success on held-out images after each epoch."""
    results = read(RECORD)
    rows = [name for name in SELECTIONS if name in results]
    epochs = max(len(results[name]["runs"][0]["validation_success"]) for name in rows)
    lines = header(["selection", "n", *range(1, epochs + 1)])
    for name in rows:
        curves = [run["validation_success"] for run in results[name]["runs"]]
        means = [f"{sum(values) / len(values):.2f}" for values in zip(*curves, strict=True)]
        lines.append(line([f"`{name}`", len(curves), *means]))
    return lines


def chosen_classes():
    """How many of the chosen images are of each class, over all runs of a selection."""
    results = read(RECORD)
    lines = []
    for name in [name for name in SELECTIONS if name in results]:
        counts = [run["poisons_by_class"] for run in results[name]["runs"]]
        sums = [sum(classes[label] for classes in counts) for label in counts[0]]
        lines.append(line([f"`{name}`", len(counts), *sums]))
    return header(["selection", "runs", *counts[0]]) + lines


def published():
    """What papers report, and the same without true members of the target class."""

    def without_members(percent):  # a tenth of the images is right before any attack
        return (percent / 100 - 0.1) / 0.9

    lines = header(["paper", "setting", "random", "chosen"])
    for paper, setting, *shares in PUBLISHED:
        cells = ["" if share is None else f"{share / 100:.3f}" for share in shares]
        if paper == WU:
            cells = [f"{share / 100:.3f}; {without_members(share):.3f}" for share in shares]
        lines.append(line([paper, setting, *cells]))
    return lines


def overlap():
    """How many of the hardest images RD and log(1 - p) choose alike, run by run."""
    record = read(OVERLAP)
    of = f"of {record['images']}"
    lines = header(["scorer's seed", f"the hardest, {of}", f"the hardest with the cap, {of}"])
    for run in record["runs"]:
        lines.append(line([run["seed"], run["hardest"], run["capped"]]))
    return [*lines, "", note("CIFAR-10, one scorer a run", [record["hardware"]])]


# ---------------------------------------------------------------- shapes: both threats

COUNTS = (20, 100)
THREATS = {
    "data": "`data`",
    "training, over-sampled": "`training --oversample 6`",
}


def threats():
    """Success on shapes under both threats, by the number of random images."""
    results, pairs = read(RECORD), pairs_by_rows(PAIRED)
    lines = header(["images poisoned", "n", "`data`", "`training`", "difference (95% interval)"])
    rows = []
    for count in COUNTS:
        names = [f"shapes {threat}, {count}" for threat in ("data", "training")]
        if not set(names) <= results.keys():
            continue
        rows += names
        cells = [cell(results[name]["summary"][SUCCESS]) for name in names]
        gain = difference(pairs, names[1], names[0])
        lines.append(line([count, len(results[names[0]]["runs"]), *cells, gain]))
    return [*lines, "", origin(results, rows)]


def hardest():
    """Success with five images of shapes, by who chooses them and under which threat."""
    results, pairs = read(RECORD), pairs_by_rows(PAIRED)
    choices = {
        "random": "random",
        "rd-classes": "random of the hardest's classes",
        "rd-global": "hardest",
    }
    titles = ["threat", "n", *choices.values()]
    titles += ["hardest - random", "hardest - random of their classes"]
    lines, rows = header(titles), []
    for threat, title in THREATS.items():
        names = {choice: f"shapes {threat}, 5 {choice}" for choice in choices}
        if not set(names.values()) <= results.keys():
            continue
        rows += names.values()
        cells = [cell(results[name]["summary"][SUCCESS]) for name in names.values()]
        gains = [
            difference(pairs, names["rd-global"], names[other])
            for other in ("random", "rd-classes")
        ]
        runs = len(results[names["random"]]["runs"])
        lines.append(line([title, runs, *cells, *gains]))
    return [*lines, "", origin(results, rows)]


TABLES = {
    "selections": selections,
    "pilot": pilot,
    "held_out": held_out,
    "classes": chosen_classes,
    "published": published,
    "overlap": overlap,
    "threats": threats,
    "hardest": hardest,
    "everything": everything("threats"),
}
