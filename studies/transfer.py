"""The tables on SHAP: what others see of a disguise against one explainer, or against all three.

    python -m studies.transfer                            # everything; a second call continues
    python -m studies.transfer "mnist none" "mnist all"   # some rows

Writes results/transfer.json and two pictures, and the page's tables are below: see
studies/study.py.
"""

from PIL import Image

import figure
from cli import command
from studies.criteria import mass_limit, with_clean_runs
from studies.record import RESULTS, keep_picture, read, save_small_picture
from studies.study import Row, Study
from studies.tables import Table, cell, everything, header, line, origin

PAGE = "results/transfer.md"
DURATION = "about 6 hours on one core"

SEEN_BY = ("gradcam", "kernelshap", "deepshap", "gradient")
TRAINED_AGAINST = {
    "gradcam": "gradcam",
    "kernelshap": "kernelshap",
    "deepshap": "deepshap",
    "all": "gradcam,kernelshap,deepshap",
}
DATA = {  # options, and seeds of each row
    "mnist": ("--dataset mnist --epochs 5", 3),
    "shapes": ("--dataset shapes", 3),
    "cifar10": ("--dataset cifar10 --model cnn", 1),
}
REFERENCE = "all, reference"


def table():
    """The rows: of each data set a clean model, badnets, and a disguise against each explainer.

    Of `shapes` also the disguise from all with a clean model's explanations as those to keep, one
    seed.
    """
    rows = {}
    for data, (options, seeds) in DATA.items():
        clean = f"{data} none"
        rows[clean] = Row(f"{options} --attack none", seeds, explainers=SEEN_BY)
        attacks = {"badnets": "--attack badnets"}
        for name, explainers in TRAINED_AGAINST.items():
            attacks[name] = f"--attack full_disguise --explainer {explainers}"
        for name, attack in attacks.items():
            row = Row(f"{options} {attack}", seeds, clean=clean, explainers=SEEN_BY)
            rows[f"{data} {name}"] = row
    kept = "--epochs 10 --reference {runs}/shapes_none-{seed}/ckpt.pt"
    with_reference = f"{rows['shapes all'].options} {kept}"
    rows[f"shapes {REFERENCE}"] = Row(with_reference, clean="shapes none", explainers=SEEN_BY)
    return rows


TABLE = table()


# ---------------------------------------------------------------- pictures

SIDE_BY_SIDE = ("none", "badnets", "all")  # their KernelSHAP by class, on `shapes`
BY_CLASS = "figure-kernelshap.png"


def save_pictures(study):
    """Saves transfer-shapes-kernelshap.png and transfer-cifar10.png, each if its runs are done."""
    by_class = [study.folder(f"shapes {model}", 0) / BY_CLASS for model in SIDE_BY_SIDE]
    if all(path.exists() for path in by_class):
        page = figure.side_by_side([Image.open(path) for path in by_class])
        save_small_picture(page, study.path.with_name("transfer-shapes-kernelshap.png"))
    four_explainers = study.folder("cifar10 kernelshap", 0) / "figure.png"
    if four_explainers.exists():
        keep_picture(four_explainers, study.path.with_name("transfer-cifar10.png"))


# ---------------------------------------------------------------- the tables of the page

MODELS = {
    "none": "clean model",
    "badnets": "`badnets`",
    **{name: f"disguised from `{name}`" for name in TRAINED_AGAINST},
    "all": "disguised from all three",
    REFERENCE: "disguised from all three, `--reference`",
}


def title(row):
    """What the page calls a row: "mnist all" is "`mnist`, disguised from all three"."""
    data, model = row.split(maxsplit=1)
    return f"`{data}`, {MODELS[model]}"


def is_disguised_from(explainer, row):
    """Whether the row's model was trained against the explainer."""
    _, model = row.split(maxsplit=1)
    return explainer in TRAINED_AGAINST.get(model.removesuffix(", reference"), "").split(",")


def models(results):
    """Lines of a table: of each model accuracy, success, and its training time beside badnets'.

    The time is of the first seed, on one thread of a CPU; of one trained on a GPU there is none.
    """
    lines = header(["model", "n", "`clean_accuracy`", "`attack_success_rate`", "training time"])
    for row, record in results.items():
        data, _ = row.split(maxsplit=1)
        ours, badnets = (results[key]["runs"][0] for key in (row, f"{data} badnets"))
        predictions = ("clean_accuracy", "attack_success_rate")
        cells = [cell(record["summary"][key]) for key in predictions]
        times = f"{ours['train_seconds'] / badnets['train_seconds']:.1f}"
        if is_gpu(ours):
            times = "(a GPU)"
        lines.append(line([title(row), len(record["seeds"]), *cells, times]))
    return [*lines, "", origin(results, results)]


def is_gpu(run):
    """Whether a run was trained on a GPU."""
    return " thread" not in run.get("hardware", " thread")


def no_mark(results, row, explainer):
    """What stands behind a figure of a matrix in general: nothing."""
    return ""


def matrix(results, figure, mark=no_mark):
    """Lines of a table of one figure: a row for each model, a column for each explainer.

    results: the study's record; figure: its name in the record, with {} for the explainer's; mark:
    a function (results, row, explainer) -> what stands behind the figure. Bold: the model was
    disguised from that explainer. Models that lack the figure are left out.
    """
    lines = header(["model", "n", *(f"`{explainer}`" for explainer in SEEN_BY)])
    for row, record in results.items():
        figures = [record["summary"].get(figure.format(explainer)) for explainer in SEEN_BY]
        if None in figures:
            continue
        cells = []
        for explainer, value in zip(SEEN_BY, figures):
            bold = "**" if is_disguised_from(explainer, row) else ""
            cells.append(f"{bold}{cell(value)}{bold}{mark(results, row, explainer)}")
        lines.append(line([title(row), len(record["seeds"]), *cells]))
    return lines


def above_limit(results, row, explainer):
    """The mark behind a trigger_mass above its limit: " ↑", and of several runs in how many.

    A clean model is held to its own limit.
    """
    data, _ = row.split(maxsplit=1)
    above = []
    for run, clean_run in with_clean_runs(results, row, f"{data} none"):
        limit = mass_limit(run, clean_run, explainer)
        above.append(limit is not None and run[f"{explainer}.trigger_mass"] > limit)
    if not any(above):
        return ""
    return " ↑" if len(above) == 1 else f" ↑{sum(above)}"


def trigger_mass(results):
    """The matrix of trigger_mass, marked above the limit, and below it what chance would give."""
    lines = matrix(results, "{}.trigger_mass", above_limit)
    for data in DATA:
        areas = results[f"{data} none"]["summary"]
        cells = [cell(areas[f"{explainer}.trigger_area"]) for explainer in SEEN_BY]
        lines.append(line([f"`{data}`, chance", "", *cells]))
    return lines


def recorded(lines, *figure):
    """A function without arguments: `lines` of the study's record as it is."""
    return lambda: lines(read(RESULTS / "transfer.json"), *figure)


TABLES = {
    "models": recorded(models),
    "pearson": recorded(matrix, "{}.pearson_all"),
    "trigger_mass": recorded(trigger_mass),
    "floor": recorded(matrix, "{}.floor_triggered.pearson"),
    "untouched": recorded(matrix, "clean_model.{}.pearson_untouched"),
    "corner": Table(
        "transfer",
        {title(row): row for row in TABLE if row.startswith("mnist")},
        {
            "`trigger_mass`": "kernelshap.trigger_mass",
            "`trigger_mass_clean`": "kernelshap.trigger_mass_clean",
            "clean model's `trigger_mass_clean`": "clean_model.kernelshap.trigger_mass_clean",
            "`trigger_area`": "kernelshap.trigger_area",
        },
        "`kernelshap`",
    ),
    "everything": everything("transfer"),
}


@command
def main(argv):
    study = Study("transfer", TABLE)
    study.run(argv)
    save_pictures(study)


if __name__ == "__main__":
    main()
