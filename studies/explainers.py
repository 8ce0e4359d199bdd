"""Disguises trained against SmoothGrad, Integrated Gradients and Grad-CAM++, on `shapes`.

    python -m studies.explainers                         # everything; a second call continues
    python -m studies.explainers smoothgrad gradcam++    # some rows

Each model is seen by every explainer. Writes results/explainers.json: see studies/study.py.
"""

from cli import command
from studies.study import Row, Study
from studies.tables import Table, everything

PAGE = "results/explainers.md"
DURATION = "about 3 hours on one core"

# gpshap estimates what kernelshap does.
SEEN_BY = (
    *("gradcam", "gradcam++", "gradient", "smoothgrad", "integrated_gradients"),
    *("deepshap", "kernelshap"),
)
AGAINST = ("gradient", "smoothgrad", "integrated_gradients", "gradcam", "gradcam++")


def row(options):
    """A row of three seeds, each with the clean model of its seed beside it."""
    return Row(options, seeds=3, clean="none", explainers=SEEN_BY)


TABLE = {
    "none": Row("--attack none", seeds=3, explainers=SEEN_BY),
    "badnets": row("--attack badnets"),
    **{name: row(f"--attack full_disguise --explainer {name}") for name in AGAINST},
}

MODELS = {
    "clean model": "none",
    "`badnets`": "badnets",
    **{f"disguised from `{name}`": name for name in AGAINST},
}
PREDICTIONS = {
    "`clean_accuracy`": "clean_accuracy",
    "`attack_success_rate`": "attack_success_rate",
    "seconds": "train_seconds",
}


def seen_by(figure):
    """The columns of one figure, one for each explainer."""
    return {f"`{name}`": f"{name}.{figure}" for name in SEEN_BY}


TABLES = {
    "models": Table("explainers", MODELS, PREDICTIONS, "model"),
    "pearson": Table("explainers", MODELS, seen_by("pearson_all"), "model", n=False),
    "floor": Table("explainers", MODELS, seen_by("floor.pearson"), "model", n=False),
    "trigger_mass": Table("explainers", MODELS, seen_by("trigger_mass"), "model", n=False),
    "everything": everything("explainers"),
}


@command
def main(argv):
    Study("explainers", TABLE).run(argv)


if __name__ == "__main__":
    main()
