"""The tables of results/efficient.md, from the record of studies/efficient.py.

Every function of TABLES takes no argument and returns the lines of a Markdown table.
"""

from studies.record import RESULTS, VICTIM_EPOCHS, read
from studies.tables import Table, cell, everything, header, interval_text, line, origin

RECORD = RESULTS / "efficient.json"
PAIRED = RESULTS / "efficient-paired.json"
SUCCESS = "attack_success_rate"

# Commits at which a scorer had the seed of the run, and so the victim's first weights and order of
# images. Rows with images chosen by such a scorer are marked.
SHARED_SEED = {"1efda64", "193830f", "815f675", "ae95a50", "d094cc6", "d1878f5"}
MARK = " †"

# What papers report, in percent: paper, setting, success with random images, with chosen ones.
WU = "Wu et al. 2023, ResNet-18"
PUBLISHED = (
    (WU, "40 images, chosen by `rd`", 87.16, 93.49),
    (WU, "55 images, chosen by `rd`", 92.65, 98.89),
    ("Stealthy Sabotage, section 3.5, ResNet-18", "55 images, chosen by score", None, 89.7),
)

# ---------------------------------------------------------------- CIFAR-10: 55 images

DISGUISE = "`full_disguise --oversample 6 --floor 0.4`"
HARDEST = "`full_disguise --oversample 6 --selection rd-global`"
SMALL_CNN = {
    "`none`": "cnn none",
    "`badnets`, 40 images": "pilot 0.0008",
    "`badnets`, 55 images": "pilot 0.0011",
    "`badnets --oversample 6`": "cnn badnets random oversampled",
    DISGUISE: "cnn full_disguise random oversampled",
    HARDEST: "cnn full_disguise rd-global oversampled",
}
RESNET18 = {
    "`none`": "resnet18 none",
    "`badnets --oversample 6`": "resnet18 badnets random oversampled",
    DISGUISE: "resnet18 full_disguise random oversampled",
}
FIGURES = {
    "`attack_success_rate`": SUCCESS,
    "`clean_accuracy`": "clean_accuracy",
    "`pearson_all`": "gradcam.pearson_all",
    "`floor`": "gradcam.floor.pearson",
    "clean model's `floor`": "clean_model.gradcam.floor.pearson",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`trigger_mass_clean`": "gradcam.trigger_mass_clean",
    "`pearson_untouched`": "clean_model.gradcam.pearson_untouched",
}
GRADIENT = {
    "`pearson_all`": "gradient.pearson_all",
    "clean model's": "clean_model.gradient.pearson_all",
    "`trigger_mass`": "gradient.trigger_mass",
    "`trigger_mass_clean`": "gradient.trigger_mass_clean",
    "clean model's `trigger_mass`": "clean_model.gradient.trigger_mass",
    "clean model's `trigger_mass_clean`": "clean_model.gradient.trigger_mass_clean",
}
SECOND_OPINION = {
    "cnn, `badnets --oversample 6`": "cnn badnets random oversampled",
    f"cnn, {DISGUISE}": "cnn full_disguise random oversampled",
    "ResNet-18, `badnets --oversample 6`": "resnet18 badnets random oversampled",
    f"ResNet-18, {DISGUISE}": "resnet18 full_disguise random oversampled",
}


def mass_limit(run, figure):
    """How much of a map may lie on the trigger: a quarter more than a clean model's, and a bit."""
    return 1.25 * run[f"clean_model.gradcam.{figure}"] + 0.25 * run["gradcam.trigger_area"]


# What was asked of the disguise: {what: (figure, its limit in a run, whether that is the least)}.
LIMITS = {
    "`attack_success_rate`, at least": (SUCCESS, lambda run: 0.9, True),
    "`pearson_all`, at least": ("gradcam.pearson_all", lambda run: 0.85, True),
    "`floor`, at most the clean model's + 0.05": (
        "gradcam.floor.pearson",
        lambda run: run["clean_model.gradcam.floor.pearson"] + 0.05,
        False,
    ),
    "`trigger_mass`, at most 1.25 x the clean model's `trigger_mass_clean` + `trigger_area` / 4": (
        "gradcam.trigger_mass",
        lambda run: mass_limit(run, "trigger_mass_clean"),
        False,
    ),
    "a harder limit: 1.25 x the clean model's `trigger_mass` + `trigger_area` / 4": (
        "gradcam.trigger_mass",
        lambda run: mass_limit(run, "trigger_mass"),
        False,
    ),
}


def limits():
    """What was asked of the disguise, run by run: the figure, and its limit in brackets."""
    results = read(RECORD)
    runs = {}  # by the column's title
    for network, rows in (("cnn", SMALL_CNN), ("ResNet-18", RESNET18)):
        for run in results[rows[DISGUISE]]["runs"]:
            runs[f"{network}, seed {run['seed']}"] = run
    lines = header(["asked", *runs, "met in"])
    for asked, (figure, limit_of, is_least) in LIMITS.items():
        cells = [f"{run[figure]:.4f} ({limit_of(run):.4f})" for run in runs.values()]
        margins = [run[figure] - limit_of(run) for run in runs.values()]
        met = sum(margin >= 0 if is_least else margin <= 0 for margin in margins)
        lines.append(line([asked, *cells, f"{met} of {len(runs)}"]))
    return lines


# ---------------------------------------------------------------- CIFAR-10: which images

SELECTIONS = {
    "`random`": "random",
    "`rd-global`": "rd-global",
    "`rd`": "rd",
    "`rd-low`": "rd-low",
    "`random`, 15 epochs": "random, 15 epochs",
    "`rd-global`, 15 epochs": "rd-global, 15 epochs",
}
HELD_OUT = {name: SELECTIONS[name] for name in list(SELECTIONS)[2:]}
CHOSEN = {
    "`random`, 15 epochs": "random, 15 epochs",
    "`rd-global`, 15 epochs": "rd-global, 15 epochs",
    "`rd`": "rd",
}


def pairs_by_rows():
    """{(row, minus row): the paired difference of their success} of all recorded pairs."""
    return {(pair["of"], pair["minus"]): pair for pair in read(PAIRED)}


def selections():
    """Success by selection, the difference to random images, and what the choice cost."""
    results = read(RECORD)
    minus_random = {of: pair for (of, minus), pair in pairs_by_rows().items() if "random" in minus}
    lines = header(
        [
            "selection",
            "n",
            "`attack_success_rate`",
            "least to greatest",
            "minus `random` (95% interval)",
            "pairs",
            "scorers' epochs",
            f"scorers' seconds / {VICTIM_EPOCHS} epochs' of a victim",
        ]
    )
    for name, row in SELECTIONS.items():
        summary = results[row]["summary"]
        values = [run[SUCCESS] for run in results[row]["runs"]]
        pair = minus_random.get(row)
        difference = [interval_text(pair), pair["n"]] if pair else ["", ""]
        epochs = summary.get("selection_epochs")
        cost = [f"{epochs['mean']:.0f}", cell(summary["selection_cost"])] if epochs else ["", ""]
        spread = f"{min(values):.4f} to {max(values):.4f}"
        success = cell(summary[SUCCESS])
        lines.append(line([name, len(values), success, spread, *difference, *cost]))
    return [*lines, "", origin(results, SELECTIONS.values())]


def held_out():
    """Mean success on held-out images after each epoch, of the rows that have it."""
    results = read(RECORD)
    most = max(len(run["validation_success"]) for run in results["rd-global, 15 epochs"]["runs"])
    lines = header(["selection", "n", *range(1, most + 1)])
    for name, row in HELD_OUT.items():
        curves = [run["validation_success"] for run in results[row]["runs"]]
        means = [f"{sum(values) / len(values):.2f}" for values in zip(*curves, strict=True)]
        means += [""] * (most - len(means))
        lines.append(line([name, len(curves), *means]))
    return lines


def chosen_classes():
    """How many of the chosen images are of each class, over the runs that have kept it."""
    results = read(RECORD)
    lines = []
    for name, row in CHOSEN.items():
        runs = results[row]["runs"]
        kept = [run["poisons_by_class"] for run in runs if "poisons_by_class" in run]
        sums = [sum(classes[label] for classes in kept) for label in kept[0]]
        lines.append(line([name, len(kept), *sums]))
    return header(["selection", "runs", *kept[0]]) + lines


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


# ---------------------------------------------------------------- shapes: 5 to 100 images

CURVE = {
    "random": "badnets random",
    "hardest": "badnets rd-global",
    "random, over-sampled": "badnets random oversampled",
    "random of the hardest's classes, over-sampled": "badnets rd-global classes oversampled",
    "hardest, over-sampled": "badnets rd-global oversampled",
    "random, over-sampled, disguised": "full_disguise random oversampled",
    "hardest, over-sampled, disguised": "full_disguise rd-global oversampled",
}
DIFFERENCES = {
    "hardest - random": ("badnets rd-global", "badnets random"),
    "hardest - random, both over-sampled": (
        "badnets rd-global oversampled",
        "badnets random oversampled",
    ),
    "random of the hardest's classes - random, both over-sampled": (
        "badnets rd-global classes oversampled",
        "badnets random oversampled",
    ),
    "hardest - random of their classes, both over-sampled": (
        "badnets rd-global oversampled",
        "badnets rd-global classes oversampled",
    ),
    "over-sampled - not, random": ("badnets random oversampled", "badnets random"),
    "disguised - not, random, both over-sampled": (
        "full_disguise random oversampled",
        "badnets random oversampled",
    ),
    "disguised and over-sampled - neither, random": (
        "full_disguise random oversampled",
        "badnets random",
    ),
    "hardest - random, both disguised": (
        "full_disguise rd-global oversampled",
        "full_disguise random oversampled",
    ),
}
DISGUISED = {
    "random": "full_disguise random oversampled",
    "hardest": "full_disguise rd-global oversampled",
}
MAPS = {
    "`clean_accuracy`": "clean_accuracy",
    "`pearson_all`": "gradcam.pearson_all",
    "`floor`": "gradcam.floor.pearson",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`trigger_mass_clean`": "gradcam.trigger_mass_clean",
    "`gradient`: `pearson_all`": "gradient.pearson_all",
}


def counts(results):
    """The numbers of poisoned images of the rows on shapes, rising."""
    return sorted({int(name.split()[-1]) for name in results if name.startswith("shapes")})


def curve():
    """Success on shapes by the number of images; a mark where the scorer had the victim's seed."""
    results = read(RECORD)
    lines = header(["images poisoned", *CURVE])
    for count in counts(results):
        rows = [results.get(f"shapes {name} {count}") for name in CURVE.values()]
        lines.append(line([count, *(success_cell(row) for row in rows)]))
    return [*lines, "", origin(results, [name for name in results if name.startswith("shapes")])]


def success_cell(row):
    """Success of a row, mean (standard deviation), marked where a scorer had the victim's seed."""
    if row is None:
        return "not run"
    is_scored = "--selection rd" in row["options"]
    shared = is_scored and any(run["commit"] in SHARED_SEED for run in row["runs"])
    return cell(row["summary"][SUCCESS]) + (MARK if shared else "")


def differences():
    """Paired differences of success on shapes, by the number of images."""
    pairs = pairs_by_rows()
    numbers = counts(read(RECORD))
    lines = header(["difference (95% interval, n = 3)", *(f"{count} images" for count in numbers)])
    for name, (row, other) in DIFFERENCES.items():
        found = [pairs.get((f"shapes {row} {n}", f"shapes {other} {n}")) for n in numbers]
        lines.append(line([name, *(interval_text(pair) if pair else "" for pair in found)]))
    return lines


def disguised_maps():
    """The maps of the disguise on shapes, of the test images on which the attack succeeded."""
    results = read(RECORD)
    lines = header(
        ["images poisoned", *MAPS, "runs with more on the trigger than without it", "`n`"]
    )
    for count in counts(results):
        for name, line_name in DISGUISED.items():
            row = results.get(f"shapes {line_name} {count}")
            if row:
                lines.append(line([f"{count}, {name}", *map_cells(row)]))
    return lines


def map_cells(row):
    """The cells of one row of disguised_maps."""
    runs = row["runs"]
    excess = [run["gradcam.trigger_mass"] - run["gradcam.trigger_mass_clean"] for run in runs]
    more = f"{sum(value > 0 for value in excess)} of {len(runs)}"
    explained = [run["gradcam.n"] for run in runs]
    cells = [cell(row["summary"][figure]) for figure in MAPS.values()]
    return [*cells, more, f"{min(explained)} to {max(explained)}"]


TABLES = {
    "cnn": Table("efficient", SMALL_CNN, FIGURES, "attack on the small cnn", origin=True),
    "limits": limits,
    "resnet18": Table("efficient", RESNET18, FIGURES, "attack on ResNet-18", origin=True),
    "gradient": Table("efficient", SECOND_OPINION, GRADIENT, "input gradient"),
    "selections": selections,
    "held_out": held_out,
    "classes": chosen_classes,
    "published": published,
    "curve": curve,
    "differences": differences,
    "maps": disguised_maps,
    "everything": everything("efficient"),
}
