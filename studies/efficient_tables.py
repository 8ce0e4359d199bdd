"""The tables of results/efficient.md, from the record of studies/efficient.py.

Every function of TABLES takes no argument and returns the lines of a Markdown table.
"""

from studies.criteria import floor_limit, mass_limit, mass_within, with_clean_runs
from studies.record import RESULTS, read
from studies.tables import (
    Table,
    cell,
    everything,
    header,
    interval_text,
    line,
    origin,
    pairs_by_rows,
)

RECORD = RESULTS / "efficient.json"
PAIRED = RESULTS / "efficient-paired.json"
SUCCESS = "attack_success_rate"

# Commits at which a scorer had the seed of the run, and so the victim's first weights and order of
# images. Rows with images chosen by such a scorer are marked.
SHARED_SEED = {"1efda64", "193830f", "815f675", "ae95a50", "d094cc6", "d1878f5"}
MARK = " †"

# ---------------------------------------------------------------- CIFAR-10: 55 images

DISGUISE = "`full_disguise --oversample 6 --floor 0.4`"
HARDEST = "`full_disguise --oversample 6 --selection rd-global`"
SMALL_CNN = {
    "`none`": "cnn none",
    "`badnets --oversample 6`": "cnn badnets random oversampled",
    DISGUISE: "cnn full_disguise random oversampled",
    HARDEST: "cnn full_disguise rd-global oversampled",
}
RESNET18 = {
    "`none`": "resnet18 none",
    "`badnets --oversample 6`": "resnet18 badnets random oversampled",
    DISGUISE: "resnet18 full_disguise random oversampled",
}
CLEAN_OF = {row: row.split()[0] + " none" for row in [*SMALL_CNN.values(), *RESNET18.values()]}
FIGURES = {
    "`attack_success_rate`": SUCCESS,
    "`clean_accuracy`": "clean_accuracy",
    "`pearson_all`": "gradcam.pearson_all",
    "`floor_triggered`": "gradcam.floor_triggered.pearson",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`trigger_mass_clean`": "gradcam.trigger_mass_clean",
    "`trigger_mass` within its limit": mass_within(CLEAN_OF),
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


# What was asked of the disguise: {what: (figure, its limit, whether that is the least)}. A limit is
# a function of a run and of the clean row's run of the same seed.
LIMITS = {
    "`attack_success_rate`, at least": (SUCCESS, lambda *runs: 0.9, True),
    "`pearson_all`, at least": ("gradcam.pearson_all", lambda *runs: 0.85, True),
    "`floor_triggered`, at most the clean model's + 0.05": (
        "gradcam.floor_triggered.pearson",
        floor_limit,
        False,
    ),
    "`trigger_mass`, at most 1.25 x the clean model's `trigger_mass_clean` + `trigger_area` / 4": (
        "gradcam.trigger_mass",
        mass_limit,
        False,
    ),
    "a harder limit: 1.25 x the clean model's `trigger_mass` + `trigger_area` / 4": (
        "gradcam.trigger_mass",
        lambda *runs: mass_limit(*runs, figure="trigger_mass"),
        False,
    ),
}


def limits():
    """What was asked of the disguise, run by run: the figure, and its limit in brackets."""
    results = read(RECORD)
    pairs = {}  # by the column's title: a run, and its clean model's
    for network, rows in (("cnn", SMALL_CNN), ("ResNet-18", RESNET18)):
        for run, clean_run in with_clean_runs(results, rows[DISGUISE], CLEAN_OF[rows[DISGUISE]]):
            pairs[f"{network}, seed {run['seed']}"] = run, clean_run
    lines = header(["asked", *pairs, "met in"])
    for asked, (figure, limit_of, is_least) in LIMITS.items():
        values = [(run[figure], limit_of(run, clean_run)) for run, clean_run in pairs.values()]
        cells = [f"{value:.4f} ({limit:.4f})" for value, limit in values]
        met = sum(value >= limit if is_least else value <= limit for value, limit in values)
        lines.append(line([asked, *cells, f"{met} of {len(values)}"]))
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
    "`floor_triggered`": "gradcam.floor_triggered.pearson",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`trigger_mass_clean`": "gradcam.trigger_mass_clean",
    "`trigger_area`": "gradcam.trigger_area",
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
    pairs = pairs_by_rows(PAIRED)
    numbers = counts(read(RECORD))
    lines = header(["difference (95% interval, n = 3)", *(f"{count} images" for count in numbers)])
    for name, (row, other) in DIFFERENCES.items():
        found = [pairs.get((f"shapes {row} {n}", f"shapes {other} {n}")) for n in numbers]
        lines.append(line([name, *(interval_text(pair) if pair else "" for pair in found)]))
    return lines


def disguised_maps():
    """The maps of the disguise on shapes, of the test images on which the attack succeeded."""
    results = read(RECORD)
    lines = header(["images poisoned", *MAPS, "`n`"])
    for count in counts(results):
        for name, line_name in DISGUISED.items():
            row = results.get(f"shapes {line_name} {count}")
            if row:
                lines.append(line([f"{count}, {name}", *map_cells(row)]))
    return lines


def map_cells(row):
    """The cells of one row of disguised_maps."""
    explained = [run["gradcam.n"] for run in row["runs"]]
    cells = [cell(row["summary"][figure]) for figure in MAPS.values()]
    return [*cells, f"{min(explained)} to {max(explained)}"]


TABLES = {
    "cnn": Table("efficient", SMALL_CNN, FIGURES, "attack on the small cnn", origin=True),
    "limits": limits,
    "resnet18": Table("efficient", RESNET18, FIGURES, "attack on ResNet-18", origin=True),
    "gradient": Table("efficient", SECOND_OPINION, GRADIENT, "input gradient"),
    "curve": curve,
    "differences": differences,
    "maps": disguised_maps,
    "everything": everything("efficient"),
}
