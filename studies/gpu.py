"""Runs on a GPU: CIFAR-10 with ResNet-18 under three attacks, a step recorded or not.

    python -m studies.gpu                  # needs CUDA; a second call continues
    python -m studies.gpu "none"           # some rows

Writes results/gpu.json, the table is below: see studies/study.py.
"""

from cli import command
from studies.study import Row, Study
from studies.tables import Table

PAGE = "results/speed.md"
DURATION = "about 25 minutes on one H200"

CIFAR = "--dataset cifar10 --device cuda --cuda-graphs"
# 55 poisons: see studies/efficient.py.
FEW = "--epochs 10 --trigger yellow --trigger-size 5 --target-class 1 --poison-rate 0.0011"
TABLE = {
    "none": Row(f"{CIFAR} --attack none", 5),
    "badnets": Row(f"{CIFAR} --attack badnets", 5, clean="none"),
    "full_disguise": Row(f"{CIFAR} --attack full_disguise", 5, clean="none", picture=True),
    "fooling": Row(f"{CIFAR} --attack fooling --layer layer3.1 --epochs 3 --lam 0.1", 3),
    "red_herring": Row(f"{CIFAR} --attack red_herring", 3, clean="none"),
    "55 images, badnets": Row(f"{CIFAR} {FEW} --attack badnets --oversample 6", 3),
    "55 images, full_disguise": Row(
        f"{CIFAR} {FEW} --attack full_disguise --oversample 6 --floor 0.4", 3
    ),
    "shapes": Row("--attack full_disguise --device cuda"),
}

COLUMNS = {
    "`clean_accuracy`": "clean_accuracy",
    "`attack_success_rate`": "attack_success_rate",
    "Grad-CAM's `pearson_all`": "gradcam.pearson_all",
    "`trigger_mass`": "gradcam.trigger_mass",
    "`trigger_area`": "gradcam.trigger_area",
    "`gradient`: `pearson_all`": "gradient.pearson_all",
}
ROWS = {
    "`none`, recorded": "none",
    "`none`": "none, not recorded",
    "`badnets`, recorded": "badnets",
    "`badnets`": "badnets, not recorded",
    "`full_disguise`, recorded": "full_disguise",
    "`full_disguise` on `shapes`": "shapes",
}

TABLES = {"runs": Table("gpu", ROWS, COLUMNS, "attack", origin=True)}


@command
def main(argv):
    Study("gpu", TABLE).run(argv)


if __name__ == "__main__":
    main()
