"""The tables on SHAP: what others see of a disguise against one explainer, or against all three.

    python -m studies.transfer                            # everything; a second call continues
    python -m studies.transfer "mnist none" "mnist all"   # some rows

Writes results/transfer.json and .md (see studies/__init__.py), and
transfer-matrix.md, what each explainer sees of each disguise;
transfer-DATA-EXPLAINER.png, SHAP values by class of three models side by side: clean, badnets, and
disguised from all.
"""

from PIL import Image

import figure
from cli import command
from explain import EXPLAINERS
from studies import Row, Study
from studies.record import read, write_text
from studies.tables import header, line

PAGE = "results/transfer.md"
DURATION = "about 6 hours on one core"

SEEN_BY = ("gradcam", "kernelshap", "deepshap", "gradient")
TRAINED_AGAINST = {
    "gradcam": "gradcam",
    "kernelshap": "kernelshap",
    "deepshap": "deepshap",
    "all": "gradcam,kernelshap,deepshap",
}
DATA = {
    "mnist": "--dataset mnist --epochs 5",
    "shapes": "--dataset shapes",
    "cifar10": "--dataset cifar10 --model cnn",
}
# Of the matrix: of each explainer.
FIGURES = ("pearson_all", "trigger_mass", "floor.pearson")
# Their values are shown class by class.
SIGNED = [name for name in SEEN_BY if EXPLAINERS[name].signed]


def table():
    """The rows: of each data set a clean model, badnets, and a disguise against each explainer."""
    rows = {}
    for data, options in DATA.items():
        clean = f"{data} none"
        rows[clean] = Row(f"{options} --attack none", explainers=SEEN_BY)
        attacks = {"badnets": "--attack badnets"}
        for name, explainers in TRAINED_AGAINST.items():
            attacks[name] = f"--attack full_disguise --explainer {explainers}"
        for name, attack in attacks.items():
            row = Row(f"{options} {attack}", clean=clean, explainers=SEEN_BY)
            rows[f"{data} {name}"] = row
    return rows


TABLE = table()


def matrix(results):
    """A Markdown table of means: a row for each model, a column for each explainer it is seen by.

    results: the study's record.
    """
    lines = header(["", "clean_accuracy", "attack_success_rate", *(f"`{e}`" for e in SEEN_BY)])
    for name, row in results.items():
        mean = {key: cell["mean"] for key, cell in row["summary"].items()}
        cells = [f"{mean[key]:.3f}" for key in ("clean_accuracy", "attack_success_rate")]
        for explainer in SEEN_BY:
            cells.append(", ".join(f"{mean[f'{explainer}.{key}']:.3f}" for key in FIGURES))
        lines.append(line([name, *cells]))
    return "\n".join(lines) + "\n"


def save_side_by_side(study):
    """Saves the pictures of SHAP values by class, of the data sets whose rows are done."""
    for data in DATA:
        for explainer in SIGNED:
            folders = [study.folder(f"{data} {name}", 0) for name in ("none", "badnets", "all")]
            paths = [folder / f"figure-{explainer}.png" for folder in folders]
            if all(path.exists() for path in paths):
                page = figure.side_by_side([Image.open(path) for path in paths])
                target = study.path.with_name(f"transfer-{data}-{explainer}.png")
                page.save(target, optimize=True)


TABLES = {}


@command
def main(argv):
    study = Study("transfer", TABLE)
    study.run(argv)
    write_text(study.path.with_name("transfer-matrix.md"), matrix(read(study.path)))
    save_side_by_side(study)


if __name__ == "__main__":
    main()
