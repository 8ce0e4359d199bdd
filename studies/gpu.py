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

CIFAR = "--dataset cifar10 --device cuda"
TABLE = {
    "none": Row(f"{CIFAR} --attack none --cuda-graphs", 5),
    "badnets": Row(f"{CIFAR} --attack badnets --cuda-graphs", 5),
    "full_disguise": Row(f"{CIFAR} --attack full_disguise --cuda-graphs", 5),
    "none, not recorded": Row(f"{CIFAR} --attack none"),
    "badnets, not recorded": Row(f"{CIFAR} --attack badnets"),
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
