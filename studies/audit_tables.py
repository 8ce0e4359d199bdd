"""The tables of results/audits.md, from the record of studies/audits.py.

Every function of TABLES takes the record, a dict, and returns the lines of a Markdown table.
"""

from defences import PUBLISHED_THRESHOLD
from defences.batchnorm import COLUMNS as BATCHNORM_COLUMNS
from defences.batchnorm import REGIMES
from studies.detection import judged, row_of, tops
from studies.tables import cell, header, line, note, summary
from studies.zoo import CALIBRATION, SEEDS

# What the page calls what the record has.
DETECTORS = {
    "neuroninspect": "NeuronInspect",
    "neuroninspect, no noise": "NeuronInspect, `--noise 0`",
    "neural_cleanse": "Neural Cleanse",
    "neural_cleanse, published index": "Neural Cleanse, published index",
}
DATA = {"shapes": "shapes", "mnist": "MNIST", "gtsrb": "GTSRB", "all": "all three"}
KINDS = {
    "none": "clean",
    "badnets": "`badnets`",
    "red_herring": "`red_herring`",
    "disguise, gradcam": "disguise under Grad-CAM",
    "disguise, deepshap": "disguise under DeepSHAP",
    "disguise, gradient": "disguise under the gradient",
    "disguise, gradcam and gradient": "disguise under Grad-CAM and the gradient",
}
DISGUISES = ("badnets", "disguise, gradcam", "disguise, deepshap", "disguise, gradient")
RANKED = ("neuroninspect", "neural_cleanse")
PAIRS = {
    "gradcam,gradient": "Grad-CAM and gradient",
    "gradcam,deepshap": "Grad-CAM and DeepSHAP",
    "gradient,deepshap": "gradient and DeepSHAP",
}
PRUNED_BY = {
    "linf, recovered": "l-infinity, the recovered patch",
    "l2, recovered": "l2, the recovered patch",
    "l1, recovered": "l1, the recovered patch",
    "linf, true": "l-infinity, the true trigger",
    "l2, true": "l2, the true trigger",
    "l1, true": "l1, the true trigger",
    "random 0": "at random, first draw",
    "random 1": "second draw",
    "random 2": "third draw",
}
SEARCHES = {
    "at once": "all classes at once",
    "one after another": "one after another",
    "at once, from random masks": "at once, from random masks",
}
PUBLISHED = {
    # Wang et al. 2019, of their GTSRB model: search, L1 of the target's mask, next, median, the
    # published index, ours, classes above 2 by ours, seconds.
    "cleanse": ["published (Wang et al. 2019)", "16.1", "", "64.5", "3.65", "4.0", "", ""],
    # Cheng et al. 2020, GTSRB: channels chosen by, pruned, accuracy, success.
    "prune": [
        "published (Cheng et al. 2020), l-infinity",
        "",
        "",
        '"minor" loss',
        "0.816 -> 0.484",
    ],
}


# ---------------------------------------------------------------- the zoo


def badnets(record):
    """Every detector on the badnets models of each data set."""
    wanted = [(data, "badnets") for data in DATA]
    lines = detection_lines(record, wanted, "data", lambda row: DATA[row["data"]])
    return [*lines, "", zoo_note(record)]


def disguise(record):
    """Every detector on the models of shapes: badnets, and three disguises."""
    wanted = [("shapes", kind) for kind in DISGUISES]
    lines = detection_lines(record, wanted, "backdoor", lambda row: KINDS[row["kind"]])
    return [*lines, "", zoo_note(record)]


def detection_lines(record, wanted, title, name):
    """Lines of the rows of the pairs (data set, kind) wanted; name: of a row, its first cell."""
    rows = {(row["data"], row["kind"], row["detector"]): row for row in record["detection"]}
    above = f"above {PUBLISHED_THRESHOLD:g}"
    titles = [title, "detector", "AUROC of the largest index"]
    titles += [f"{above}: the target", "another class", "clean models"]
    titles += ["above the calibrated limit: the target", "another class", "clean models"]
    lines = header(titles)
    for data, kind in wanted:
        for detector, shown in DETECTORS.items():
            row = rows[data, kind, detector]
            low, high = row["auroc_interval"]
            area = f"{row['auroc']:.2f} ({low:.2f} to {high:.2f})"
            cells = [name(row), shown, area, *short_counts(row["2"])]
            lines.append(line([*cells, *short_counts(row["calibrated"])]))
    return lines


def short_counts(part):
    """Three cells: models above a limit by their target, by another class, and clean ones."""
    found, right, false_alarms = part["found"], part["right"], part["false_alarms"]
    return [
        f"{right['count']} of {found['of']}",
        found["count"] - right["count"],
        f"{false_alarms['count']} of {false_alarms['of']}",
    ]


def zoo_note(record):
    """On what and by which code the zoo was audited."""
    runs = [
        run for kinds in record["zoo"].values() for part in kinds.values() for run in part.values()
    ]
    commits = {run[detector]["commit"] for run in runs for detector in DETECTORS}
    return note(
        f"n = {len(SEEDS)} models a kind and data set", {run["hardware"] for run in runs}, commits
    )


def calibration(record):
    """The limits, what they find, the same with the two fives of clean models exchanged."""
    titles = ["detector", "limits of shapes, MNIST, GTSRB", "targets found", "false alarms"]
    titles += ["limits, fives exchanged", "targets found", "false alarms"]
    titles += ["AUROC with all ten clean models: shapes, MNIST, GTSRB, mean"]
    lines = header(titles)
    for detector, shown in DETECTORS.items():
        cells = [shown]
        for clean, held in ((SEEDS, CALIBRATION), (CALIBRATION, SEEDS)):
            row = badnets_row(record["zoo"], detector, clean, held)["calibrated"]
            cells.append(limits(row))
            right, _, false_alarms = short_counts(row)
            cells += [right, false_alarms]
        everyone = (*SEEDS, *CALIBRATION)
        parts = [{data: kinds} for data, kinds in record["zoo"].items()]
        areas = [badnets_row(zoo, detector, everyone)["auroc"] for zoo in [*parts, record["zoo"]]]
        cells.append(", ".join(f"{area:.2f}" for area in areas))
        lines.append(line(cells))
    return lines


def badnets_row(zoo, detector, clean, calibration=()):
    """detection.row_of all data sets of a zoo; the seeds of clean models, and of the limits'."""
    groups = []
    for kinds in zoo.values():
        group = {
            "bad": judged(kinds["badnets"], detector, SEEDS),
            "clean": judged(kinds["none"], detector, clean),
            "calibration": judged(kinds["none"], detector, calibration),
        }
        groups.append(group)
    return row_of(groups, len(calibration) or -1)


def largest(record):
    """The largest index of every clean and every badnets model."""
    lines = header(["data", "models", *(DETECTORS[name] for name in RANKED)])
    for data, kinds in record["zoo"].items():
        for kind in ("none", "badnets"):
            runs = kinds[kind]
            cells = []
            for detector in RANKED:
                indexes = tops(judged(runs, detector, (*SEEDS, *CALIBRATION)))
                cells.append(", ".join(f"{value:.1f}" for value in indexes.sort().values.tolist()))
            lines.append(line([DATA[data], f"{KINDS[kind]} ({len(runs)})", *cells]))
    return lines


def ranks(record):
    """Where each detector ranks the target of the models of shapes, and the target's index."""
    titles = ["backdoor"]
    for detector in RANKED:
        titles += [f"{DETECTORS[detector]}: rank of the target", "its index"]
    lines = header(titles)
    for kind in DISGUISES:
        cells = [KINDS[kind]]
        for detector in RANKED:
            found = [
                rank_of_target(run, detector) for run in record["zoo"]["shapes"][kind].values()
            ]
            cells.append(", ".join(str(rank) for rank, _ in found))
            cells.append(", ".join(f"{index:.1f}" for _, index in found))
        lines.append(line(cells))
    return lines


def rank_of_target(run, detector):
    """(rank of the target class by a detector's index, 1 the first; its index)."""
    index = {int(k): value for k, value in run[detector]["index"].items()}
    order = sorted(index, key=index.get, reverse=True)
    return order.index(run["target"]) + 1, index[run["target"]]


# ---------------------------------------------------------------- cleanse, prune


def cleanse(record):
    """Neural Cleanse beside the published figures of its authors' model."""
    part = record["cleanse"]
    titles = ["search", "L1 of the target's mask", "the next smallest", "median"]
    lines = header([*titles, "published index", "index", "index above 2", "seconds"])
    lines.append(line(PUBLISHED["cleanse"]))
    for key, shown in SEARCHES.items():
        row = part[key]
        next_smallest = sorted(row["norms"])[1]
        cells = [f"{row[name]:.2f}" for name in ("published_index", "index")]
        flagged = ", ".join(map(str, row["flagged"]))
        sizes = [f"{value:.1f}" for value in (row["norm"], next_smallest, row["median"])]
        lines.append(line([shown, *sizes, *cells, flagged, f"{row['seconds']:.0f}"]))
    quality = (
        f"clean accuracy {part['clean_accuracy']:.3f}, success {part['attack_success_rate']:.3f}, "
        f"rounds of {part['round_images']} images, {part['precision']}"
    )
    return [*lines, "", note(f"n = 1, {quality}", {part["hardware"]}, {part["commit"]})]


def prune(record):
    """The operating point of every pruning curve, and success where the first of them has its."""
    part = record["prune"]
    count = part["rows"]["linf, recovered"]["chosen"]["pruned"]
    titles = ["channels chosen by", "pruned", "accuracy, held-out", "accuracy, test"]
    titles += ["success of the trigger", "of the recovered patch", f"success at {count} pruned"]
    lines = header(titles)
    lines.append(line([*PUBLISHED["prune"], "", ""]))
    for key, shown in PRUNED_BY.items():
        row = part["rows"][key]
        (at_count,) = [point for point in row["curve"] if point["pruned"] == count]
        cells = [shown, row["chosen"]["pruned"], *before_and_after(row)]
        lines.append(line([*cells, f"{at_count['true_success']:.3f}"]))
    channels = part["rows"]["linf, recovered"]["curve"][-1]["pruned"]
    about = (
        f"n = 1, {channels} channels, {part['clean_images']} held-out images, success on "
        f"{part['triggered_images']} test images; the patch is that of class {part['suspect']}"
    )
    return [*lines, "", note(about, {part["hardware"]}, {part["commit"]})]


def before_and_after(row):
    """Four cells: accuracy and success of a pruning curve, unpruned and at its operating point."""
    keys = ("clean_accuracy", "test_accuracy", "true_success", "recovered_success")
    unpruned, chosen = row["curve"][0], row["chosen"]
    return [f"{unpruned[key]:.3f} -> {chosen[key]:.3f}" for key in keys]


# ---------------------------------------------------------------- batchnorm, disagree


def batchnorm(record):
    """Both repairs of batch-norm. After rebn an answer does not depend on its batch: one line."""
    lines = header(["model", "repair", *(f"`{key}`" for key in BATCHNORM_COLUMNS)])
    any_regime = list(REGIMES)[-1]
    for kind, methods in record["batchnorm"].items():
        rows = [("none", "rebn", any_regime, "before"), ("`rebn`", "rebn", any_regime, "after")]
        rows += [(f"`cfn`, {regime}", "cfn", regime, "after") for regime in REGIMES]
        for k, (shown, method, regime, when) in enumerate(rows):
            found = [run["regimes"][regime][when] for run in methods[method].values()]
            cells = [over_seeds([part[key] for part in found]) for key in BATCHNORM_COLUMNS]
            lines.append(line([KINDS[kind] if k == 0 else "", shown, *cells]))
    runs = [run for part in record["batchnorm"].values() for run in part["cfn"].values()]
    return [*lines, "", note("n = 3, seeds 1 to 3", set(), {run["commit"] for run in runs})]


def disagree(record):
    """How well two explainers' disagreement tells triggered images, seed by seed."""
    lines = header(
        [
            "model",
            *PAIRS.values(),
            "Grad-CAM: `pearson_all`",
            "`trigger_mass`",
            "`trigger_mass_clean`",
        ]
    )
    for kind, shown in KINDS.items():
        if kind not in record["disagree"]:
            continue
        pairs = record["disagree"][kind]
        cells = [each([run["auroc"] for run in pairs[pair].values()]) for pair in PAIRS]
        runs = list(pairs["gradcam,gradient"].values())
        for key in ("pearson_all", "trigger_mass", "trigger_mass_clean"):
            cells.append(each([run["gradcam"][key] for run in runs]))
        lines.append(line([shown, *cells]))
    commits = {
        run["commit"]
        for pairs in record["disagree"].values()
        for runs in pairs.values()
        for run in runs.values()
    }
    return [*lines, "", note("seeds 1 to 3 in this order", set(), commits)]


def each(values):
    """ "0.56, 0.57" of several numbers."""
    return ", ".join(f"{value:.2f}" for value in values)


def over_seeds(values):
    """Mean (standard deviation) of the values that are not None."""
    runs = [{"figure": value} for value in values if value is not None]
    return cell(summary(runs)["figure"], 2) if runs else "-"


# ---------------------------------------------------------------- all figures


def everything(record):
    """Every detector on every kind of model, with the 95% interval of every share."""
    titles = ["data", "backdoor", "detector", "AUROC", "found above 2"]
    titles += ["of these the right class", "false alarms", "calibrated limit", "found above it"]
    lines = header([*titles, "right class", "false alarms", "seconds", "least success"])
    for row in record["detection"]:
        low, high = row["auroc_interval"]
        cells = [row["data"], row["kind"], row["detector"]]
        cells.append(f"{row['auroc']:.2f} ({low:.2f} to {high:.2f})")
        cells += [*counts(row["2"]), limits(row.get("calibrated"))]
        cells += counts(row.get("calibrated"))
        lines.append(line([*cells, f"{row['seconds']:.0f}", f"{row['least_success']:.3f}"]))
    return lines


def counts(part):
    """Three cells: what is above a threshold, found, rightly found, and falsely alarmed."""
    if part is None:
        return ["-"] * 3
    return [count_text(part[key]) for key in ("found", "right", "false_alarms")]


def count_text(share):
    """ "4 of 5 (0.38 to 0.96)"."""
    text = f"{share['count']} of {share['of']}"
    if share["of"]:
        low, high = share["interval"]
        text += f" ({low:.2f} to {high:.2f})"
    return text


def limits(calibrated):
    """The calibrated threshold of each data set."""
    if calibrated is None:
        return "-"
    return ", ".join(f"{limit:.2f}" for limit in calibrated["thresholds"])


TABLES = {
    "badnets": badnets,
    "disguise": disguise,
    "calibration": calibration,
    "largest": largest,
    "ranks": ranks,
    "cleanse": cleanse,
    "prune": prune,
    "batchnorm": batchnorm,
    "disagree": disagree,
    "everything": everything,
}
