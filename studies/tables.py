"""From a run's metrics to a row of a table: flat figures, mean and standard deviation, Markdown.

Functions of plain dicts. Paired differences of two rows are here, too, and Table: one of a page.
"""

import statistics
from dataclasses import dataclass

from cli import write_json
from report import flat
from studies.record import RESULTS, read

# Figures that every run has, and figures that some have.
ALWAYS = (
    "clean_accuracy",
    "triggered_accuracy",
    "attack_success_rate",
    "train_seconds",
    "precision",
)
SOMETIMES = (
    "balanced_accuracy",
    "majority_rate",
    "mean_auroc",
    "triggered_mean_auroc",
    "untouched_success_rate",
    "other_classes_accuracy",
    "success_threshold",
)

NO_FIGURES = ("trained_against", "crossed")  # of an explainer's

# Columns of a study's table, by figure; a column that no row has is left out.
COLUMNS = {
    "clean_accuracy": "clean accuracy",
    "balanced_accuracy": "balanced accuracy",
    "majority_rate": "majority rate",
    "mean_auroc": "mean AUROC",
    "triggered_mean_auroc": "with trigger",
    "triggered_accuracy": "accuracy with trigger",
    "attack_success_rate": "attack success",
    "untouched_success_rate": "without trigger",
    "other_classes_accuracy": "other classes' accuracy with trigger",
    "gradcam.pearson_all": "pearson_all",
    "gradcam.dssim": "dssim",
    "gradcam.floor.pearson": "floor",
    "clean_model.gradcam.floor.pearson": "clean model's floor",
    "gradcam.floor_triggered.pearson": "floor_triggered",
    "clean_model.gradcam.floor_triggered.pearson": "clean model's floor_triggered",
    "gradcam.pearson_by_class": "by class",
    "gradcam.trigger_mass": "trigger_mass",
    "gradcam.trigger_mass_clean": "untouched",
    "clean_model.gradcam.trigger_mass_clean": "clean model's untouched",
    "gradcam.trigger_area": "trigger_area",
    "gradcam.pointing": "pointing",
    "gradcam.pointing_clean": "untouched",
    "gradcam.pearson_clean": "shape on untouched",
    "gradient.pearson_all": "gradient's pearson_all",
    "clean_model.gradient.pearson_all": "clean model's",
    "kernelshap.pearson_all": "kernelshap: pearson_all",
    "kernelshap.floor.pearson": "kernelshap: floor",
    "kernelshap.floor_triggered.pearson": "kernelshap: floor_triggered",
    "kernelshap.trigger_mass": "kernelshap: trigger_mass",
    "deepshap.pearson_all": "deepshap: pearson_all",
    "deepshap.floor.pearson": "deepshap: floor",
    "deepshap.floor_triggered.pearson": "deepshap: floor_triggered",
    "deepshap.trigger_mass": "deepshap: trigger_mass",
    "selection_epochs": "selection: epochs",
    "selection_cost": "its seconds / 30 epochs'",
    "train_seconds": "seconds",
    "images_per_second": "images/s",
}

# Student's t at 97.5%, by number of pairs: the degrees of freedom are one fewer.
T975 = {
    2: 12.706,
    3: 4.303,
    4: 3.182,
    5: 2.776,
    6: 2.571,
    7: 2.447,
    8: 2.365,
    9: 2.306,
    10: 2.262,
    11: 2.228,
    12: 2.201,
    13: 2.179,
    14: 2.160,
    15: 2.145,
    16: 2.131,
    17: 2.120,
    18: 2.110,
    19: 2.101,
    20: 2.093,
}


def figures(metrics):
    """The figures of one run, flat: {"gradcam.floor.pearson": 0.3, ...}.

    metrics: what metrics.json holds; its figures that are null are left out.
    """
    result = {key: metrics[key] for key in ALWAYS}
    result |= {key: metrics.get(key) for key in SOMETIMES}
    aurocs = metrics.get("auroc") or {}
    result |= {f"auroc.{name}": value for name, value in aurocs.items()}
    for name, part in metrics["explanations"].items():
        explained = {key: value for key, value in flat(part).items() if key not in NO_FIGURES}
        result |= {f"{name}.{key}": value for key, value in explained.items()}
    for name, part in metrics.get("triggers", {}).items():
        result[f"{name}: success"] = part["attack_success_rate"]
        for explainer, explained in part["explanations"].items():
            for other, value in explained["crossed"].items():
                result[f"{name}: {explainer} as {other}"] = value
    clean_model = metrics["clean_model"]
    single = {key: value for key, value in clean_model.items() if not isinstance(value, dict)}
    result |= {f"clean_model.{key}": value for key, value in single.items()}
    for name, part in clean_model.get("explanations", {}).items():
        result |= {f"clean_model.{name}.{key}": value for key, value in flat(part).items()}
    return {key: value for key, value in result.items() if value is not None}


def summary(runs):
    """{figure: {"mean", "sd"}} over runs, of every number that all runs have.

    The standard deviation is None of a single run.
    """
    result = {}
    for key, first in runs[0].items():
        is_number = isinstance(first, (int, float)) and key != "seed"
        if not is_number or not all(key in run for run in runs):
            continue
        result[key] = mean_and_sd([run[key] for run in runs])
    return result


def mean_and_sd(values):
    """{"mean", "sd"} of numbers; the standard deviation is None of a single one."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "sd": sd}


# ---------------------------------------------------------------- two rows, seed by seed


def paired(results, name, other, figure="attack_success_rate"):
    """One row's figure minus another's, over the seeds that both have: mean, sd and 95% interval.

    results: a study's record. None where fewer than two seeds are common.
    """
    minuend = by_seed(results[name], figure)
    subtrahend = by_seed(results[other], figure)
    common = minuend.keys() & subtrahend.keys()
    differences = [minuend[seed] - subtrahend[seed] for seed in common]
    if len(differences) < 2:
        return None
    return {"of": name, "minus": other, "figure": figure, **with_interval(differences)}


def with_interval(differences):
    """{"n", "mean", "sd", "interval"} of two differences or more: the interval of 95%.

    Of more than T975 has it is a little wider than that.
    """
    n, found = len(differences), mean_and_sd(differences)
    half = T975[min(n, max(T975))] * found["sd"] / n**0.5
    return {"n": n, **found, "interval": [found["mean"] - half, found["mean"] + half]}


def by_seed(row, figure):
    """{seed: figure} of the runs of a recorded row that have this figure."""
    runs = [run for run in row["runs"] if run.get(figure) is not None]
    return {run["seed"]: run[figure] for run in runs}


def write_paired(path, pairs):
    """Prints what `paired` returned, a list, and writes it to `path`; each None is left out."""
    pairs = [pair for pair in pairs if pair]
    write_json(path, pairs)
    for pair in pairs:
        what = f"{pair['of']} - {pair['minus']}, {pair['figure']}"
        print(f"{what}: {interval_text(pair)}, n = {pair['n']}")


def pairs_by_rows(path):
    """{(row, minus row): their paired difference} of all that write_paired wrote to `path`."""
    return {(pair["of"], pair["minus"]): pair for pair in read(path)}


def interval_text(pair):
    """ "+0.081 (+0.041 to +0.121)": mean and 95% interval of what `paired` returned."""
    low, high = pair["interval"]
    return f"{pair['mean']:+.3f} ({low:+.3f} to {high:+.3f})"


# ---------------------------------------------------------------- Markdown


def everything(record):
    """A function that returns the lines of a table of every row and figure of a study's record.

    Columns that no row has are left out.
    """

    def lines():
        return markdown(read(RESULTS / f"{record}.json"))

    return lines


def of_record(record, functions):
    """TABLES of a study: {name: a function of its record that returns lines} without the argument.

    record: the study's name.
    """

    def without_argument(function):
        return lambda: function(read(RESULTS / f"{record}.json"))

    return {name: without_argument(function) for name, function in functions.items()}


def markdown(results):
    """Lines of a Markdown table of a study's record: mean (standard deviation) of every figure.

    Of a single run there is no standard deviation. Columns that no row has are left out.
    """
    summaries = [row["summary"] for row in results.values()]
    present = [key for key in COLUMNS if any(key in part for part in summaries)]
    lines = header(["run", "n", *(COLUMNS[key] for key in present)])
    for name, row in results.items():
        cells = [cell(row["summary"].get(key), missing="-") for key in present]
        lines.append(line([name, len(row["seeds"]), *cells]))
    return lines


def header(titles):
    """The first two lines of a Markdown table."""
    return [line(titles), "| --- " * len(titles) + "|"]


def line(cells):
    """One line of a Markdown table; an empty cell is a single space."""
    padded = [f" {cell} " if cell != "" else " " for cell in cells]
    return "|" + "|".join(padded) + "|"


def origin(results, rows):
    """A line of Markdown: what the runs of these rows of a record were trained on, at what commits.

    A run that does not say is left out.
    """
    commits = {}  # by hardware
    for row in rows:
        for run in results[row]["runs"]:
            if "commit" in run:
                commits.setdefault(machine(run["hardware"]), set()).add(run["commit"])
    parts = [f"{name}, {of_commits(names)}" for name, names in sorted(commits.items())]
    return f"*Trained on: {'; '.join(parts)}.*"


def of_commits(names):
    """ "commit a" or "commits a, b" of a set of names."""
    return f"commit{'s' if len(names) > 1 else ''} {', '.join(sorted(names))}"


def note(about, hardware=(), commits=()):
    """A line of Markdown below a table: about what it is, on what it was measured, at what commits.

    hardware, commits: names, each of them once.
    """
    names = {machine(name) for name in hardware}
    parts = [about, *sorted(names)]
    if commits:
        parts.append(of_commits(set(commits)))
    return f"*{'; '.join(parts)}.*"


@dataclass(frozen=True)
class Table:
    """A table of a page: some rows and some figures of a study's record.

    record: the study's name; rows: {what the page calls it: the record's row}; columns: {title:
    figure}, the titles in Markdown, a figure's name or a function (record, row) -> text; title: of
    the first column; n: whether a column says how many runs a row has; digits: after the point;
    origin: whether a line below says what the runs were trained on. A call returns the table's
    lines.
    """

    record: str
    rows: dict
    columns: dict
    title: str = "run"
    n: bool = True
    digits: int = 3
    origin: bool = False

    def __call__(self):
        """The lines of the table; a row that the record does not have is said to be not run."""
        results = read(RESULTS / f"{self.record}.json")
        titles = [self.title, *(["n"] if self.n else []), *self.columns]
        lines = header(titles)
        for name, key in self.rows.items():
            row = results.get(key, {"summary": {}, "seeds": []})
            cells = [self.cell_of(results, key, figure) for figure in self.columns.values()]
            count = [len(row["seeds"])] if self.n else []
            lines.append(line([name if key in results else f"{name} (not run)", *count, *cells]))
        if self.origin:
            lines += ["", origin(results, [key for key in self.rows.values() if key in results])]
        return lines

    def cell_of(self, results, row, figure):
        """One cell; empty of a row that the record does not have."""
        if row not in results:
            return ""
        if callable(figure):
            return figure(results, row)
        return cell(results[row]["summary"].get(figure), self.digits)


def cell(value, digits=3, missing=""):
    """ "0.983 (0.002)" of {"mean", "sd"}; whole numbers above 10; `missing` of None."""
    if value is None:
        return missing
    digits = 0 if value["mean"] > 10 else digits
    text = f"{value['mean']:.{digits}f}"
    return text if value["sd"] is None else f"{text} ({value['sd']:.{digits}f})"


def made_table(record, table):
    """A function that returns the lines of a table of how a study's rows were made.

    For each row its command, seeds, commits and hardware: what would stand in the way in sentences.
    table: the study's rows today; the command of another one no longer gives it.
    """

    def lines():
        result = header(["run", "command", "seeds", "commits", "hardware"])
        for name, row in read(RESULTS / f"{record}.json").items():
            runs = row["runs"]
            seeds = ", ".join(str(seed) for seed in row["seeds"])
            commits = ", ".join(unique(run.get("commit", "not kept") for run in runs))
            machines = unique(machine(run.get("hardware", "not kept")) for run in runs)
            command = f"`{row['command']}`" if name in table else "an earlier version's"
            result.append(line([name, command, seeds, commits, ", ".join(machines)]))
        return result

    return lines


def machine(name):
    """The hardware of a record, in English: records say "1 threads"."""
    return name.replace(", 1 threads", ", 1 thread")


def unique(values):
    """The values, each once, in order."""
    return list(dict.fromkeys(values))
