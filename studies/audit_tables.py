"""The Markdown tables of results/audits.md, from the record of studies/audits.py."""

from defences.batchnorm import COLUMNS as BATCHNORM_COLUMNS
from defences.batchnorm import REGIMES
from studies.tables import header, line, mean_sd, summary


def markdown(record):
    """All tables whose section the record has."""
    tables = []
    for section, (titles, rows) in TABLES.items():
        if section in record:
            lines = header(titles) + [line(cells) for cells in rows(record[section])]
            tables.append("\n".join(lines) + "\n")
    return "\n".join(tables)


# Each function yields the cells of a table's lines from its section of the record.


def detection_rows(rows):
    for row in rows:
        low, high = row["auroc_interval"]
        yield [
            row["data"],
            row["kind"],
            row["detector"],
            f"{row['auroc']:.2f} ({low:.2f} to {high:.2f})",
            *counts(row["2"]),
            limits(row.get("calibrated")),
            *counts(row.get("calibrated")),
            f"{row['seconds']:.0f}",
            f"{row['least_success']:.3f}",
        ]


def counts(part):
    """Three cells: what is above a threshold, found, rightly found, and falsely alarmed."""
    if part is None:
        return ["-"] * 3
    return [counted(part[key]) for key in ("found", "right", "false_alarms")]


def counted(share):
    """ "4 of 5 (0.38 to 0.96)"."""
    text = f"{share['count']} of {share['of']}"
    if share["of"]:
        low, high = share["interval"]
        text += f" ({low:.2f} to {high:.2f})"
    return text


def limits(calibrated):
    if calibrated is None:
        return "-"
    return ", ".join(f"{limit:.1f}" for limit in calibrated["thresholds"])


def cleanse_rows(searches):
    for title, row in searches.items():
        if not isinstance(row, dict):
            continue  # about the model, not a search
        yield [
            title,
            f"{row['seconds']:.0f}",
            f"{row['norm']:.1f}",
            f"{row['median']:.1f}",
            f"{row['index']:.2f}",
            f"{row['linear_index']:.2f}",
            ", ".join(map(str, row["flagged"])),
        ]


def prune_rows(part):
    keys = ("clean_accuracy", "test_accuracy", "true_success", "recovered_success")
    for title, row in part["rows"].items():
        unpruned, chosen = row["curve"][0], row["chosen"]
        cells = [f"{unpruned[key]:.3f} -> {chosen[key]:.3f}" for key in keys]
        yield [title, chosen["pruned"], *cells]


def batchnorm_rows(part):
    for kind, methods in part.items():
        for method, runs in methods.items():
            for regime in REGIMES:
                found = [run["regimes"][regime] for run in runs.values()]
                cells = []
                for key in BATCHNORM_COLUMNS:
                    before = over_seeds([run["before"][key] for run in found])
                    after = over_seeds([run["after"][key] for run in found])
                    cells.append(f"{before} -> {after}")
                yield [kind, method, regime, len(found), *cells]


def disagree_rows(part):
    for kind, pairs in part.items():
        for pair, runs in pairs.items():
            cells = [over_seeds([run["auroc"] for run in runs.values()])]
            for key in ("pearson_all", "trigger_mass", "trigger_mass_clean"):
                cells.append(over_seeds([run["gradcam"][key] for run in runs.values()]))
            yield [kind, pair, len(runs), *cells]


def over_seeds(values):
    """Mean (standard deviation) of the values that are not None."""
    runs = [{"figure": value} for value in values if value is not None]
    return mean_sd(summary(runs)["figure"] if runs else None)


# By section: titles, and the function that yields the cells.
TABLES = {
    "detection": (
        [
            "data",
            "backdoor",
            "detector",
            "AUROC",
            "found above 2",
            "of these the right class",
            "false alarms",
            "calibrated limit",
            "found above it",
            "right class",
            "false alarms",
            "seconds",
            "least success",
        ],
        detection_rows,
    ),
    "cleanse": (
        [
            "search",
            "seconds",
            "L1 of the target's mask",
            "median",
            "index",
            "published index",
            "flagged",
        ],
        cleanse_rows,
    ),
    "prune": (
        [
            "by",
            "channels pruned",
            "accuracy, held-out",
            "accuracy, test",
            "success of the trigger",
            "of the recovered patch",
        ],
        prune_rows,
    ),
    "batchnorm": (
        [
            "model",
            "repair",
            "batch",
            "n",
            "accuracy",
            "success",
            "pearson_all",
            "trigger_mass",
        ],
        batchnorm_rows,
    ),
    "disagree": (
        [
            "model",
            "explainers",
            "n",
            "AUROC",
            "Grad-CAM's pearson_all",
            "trigger_mass",
            "untouched",
        ],
        disagree_rows,
    ),
}
