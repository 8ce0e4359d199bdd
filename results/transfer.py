"""The README's tables on SHAP: what a disguise against one explainer looks like to the others, and one against all three.

    python results/transfer.py                            # everything
    python results/transfer.py "mnist none" "mnist all"   # some of it; a second call continues

Writes results/transfer.json, .md and the figures: see study.py.
"""
import sys

import study
from study import Row

SEEN_BY = ("gradcam", "kernelshap", "deepshap", "gradient")
ALL = "gradcam,kernelshap,deepshap"
DATA = {"mnist": "--dataset mnist --epochs 5", "shapes": "--dataset shapes", "cifar10": "--dataset cifar10 --model cnn"}

TABLE = {}
for data, options in DATA.items():
    clean = f"{data} none"
    TABLE[clean] = Row(f"{options} --attack none", explainers=SEEN_BY, picture=True)
    TABLE[f"{data} badnets"] = Row(f"{options} --attack badnets", clean=clean, explainers=SEEN_BY, picture=True)
    for explainer in ("gradcam", "kernelshap", "deepshap", ALL):
        name = "all" if explainer == ALL else explainer
        TABLE[f"{data} {name}"] = Row(f"{options} --attack full_disguise --explainer {explainer}", clean=clean, explainers=SEEN_BY, picture=name != "gradcam")

if __name__ == "__main__":
    study.Study("transfer", TABLE).run(sys.argv[1:])
