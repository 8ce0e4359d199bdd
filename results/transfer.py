"""The README's tables on SHAP: what a disguise against one explainer looks like to the others, and one against all three.

    python results/transfer.py                            # everything
    python results/transfer.py "mnist none" "mnist all"   # some of it; a second call continues

Writes results/transfer.json and .md (see study.py), results/transfer-matrix.md, what each explainer sees of each disguise, and results/transfer-DATA-EXPLAINER.png,
SHAP values by class of three models side by side: clean, badnets, disguised from all.
"""
import json
import sys

import study
from PIL import Image
from study import Row

SEEN_BY = ("gradcam", "kernelshap", "deepshap", "gradient")
ALL = "gradcam,kernelshap,deepshap"
DATA = {"mnist": "--dataset mnist --epochs 5", "shapes": "--dataset shapes", "cifar10": "--dataset cifar10 --model cnn"}

TABLE = {}
for data, options in DATA.items():
    clean = f"{data} none"
    TABLE[clean] = Row(f"{options} --attack none", explainers=SEEN_BY)
    TABLE[f"{data} badnets"] = Row(f"{options} --attack badnets", clean=clean, explainers=SEEN_BY)
    for explainer in ("gradcam", "kernelshap", "deepshap", ALL):
        name = "all" if explainer == ALL else explainer
        TABLE[f"{data} {name}"] = Row(f"{options} --attack full_disguise --explainer {explainer}", clean=clean, explainers=SEEN_BY)


def matrix(results):
    """Markdown: a row for what was trained against, a column for what it is seen by: pearson_all, trigger_mass, floor; the means over seeds."""
    lines = ["| | clean_accuracy | attack_success_rate | " + " | ".join(f"`{name}`" for name in SEEN_BY) + " |", "| --- " * (3 + len(SEEN_BY)) + "|"]
    for row, part in results.items():
        mean = {key: cell["mean"] for key, cell in part["summary"].items()}
        seen = [", ".join(f"{mean[f'{name}.{key}']:.3f}" for key in ("pearson_all", "trigger_mass", "floor.pearson")) for name in SEEN_BY]
        lines.append(f"| {row} | {mean['clean_accuracy']:.3f} | {mean['attack_success_rate']:.3f} | " + " | ".join(seen) + " |")
    return "\n".join(lines) + "\n"


def side_by_side(this):
    """The figures of the rows that are done."""
    for data in DATA:
        for name in ("kernelshap", "deepshap"):
            paths = [this.folder(f"{data} {row}", 0) / f"figure-{name}.png" for row in ("none", "badnets", "all")]
            if all(path.exists() for path in paths):
                page = study.evaluate.figure.beside([Image.open(path) for path in paths])
                page.save(this.path.with_name(f"transfer-{data}-{name}.png"), optimize=True)


if __name__ == "__main__":
    this = study.Study("transfer", TABLE)
    this.run(sys.argv[1:])
    this.path.with_name("transfer-matrix.md").write_text(matrix(json.loads(this.path.read_text())))
    side_by_side(this)
