"""A disguise from each explainer by gradients, and what every other one sees of it, on `shapes`.

    python -m studies.explainers                         # everything; a second call continues
    python -m studies.explainers smoothgrad gradcam++    # some rows

Each model is seen by every explainer. Writes results/explainers.json: see studies/study.py. The
disguises from KernelSHAP and DeepSHAP are in studies/transfer.py.
"""

from cli import command
from studies.study import Row, Study
from studies.tables import Table, everything

PAGE = "results/explainers.md"
DURATION = "about 75 minutes on one core"

SEEDS = 1
AGAINST = ("gradcam", "gradcam++", "gradient", "smoothgrad", "integrated_gradients")
SEEN_BY = (*AGAINST, "deepshap", "kernelshap")  # gpshap estimates what kernelshap does


def row(options):
    """A row whose models stand beside the clean ones of their seeds."""
    return Row(options, SEEDS, clean="none", explainers=SEEN_BY)


TABLE = {
    "none": Row("--attack none", SEEDS, explainers=SEEN_BY),
    "badnets": row("--attack badnets"),
    **{name: row(f"--attack full_disguise --explainer {name}") for name in AGAINST},
}


# ---------------------------------------------------------------- the tables of the page

MODELS = {
    "clean model": "none",
    "`badnets`": "badnets",
    **{f"disguised from `{name}`": name for name in AGAINST},
}
PREDICTIONS = {
    "`clean_accuracy`": "clean_accuracy",
    "`attack_success_rate`": "attack_success_rate",
    "`untouched_success_rate`": "untouched_success_rate",
    "seconds of training": "train_seconds",
}


def seen_by(figure):
    """The columns of one figure, one for each explainer."""
    return {f"`{name}`": f"{name}.{figure}" for name in SEEN_BY}


def by_explainer(figure):
    """The table of one figure: a row a model, a column an explainer."""
    return Table("explainers", MODELS, seen_by(figure), "model", n=False)


TABLES = {
    "models": Table("explainers", MODELS, PREDICTIONS, "model"),
    "pearson": by_explainer("pearson_all"),
    "floor": by_explainer("floor.pearson"),
    "trigger_mass": by_explainer("trigger_mass"),
    "untouched": by_explainer("trigger_mass_clean"),
    "everything": everything("explainers"),
}


@command
def main(argv):
    Study("explainers", TABLE).run(argv)


if __name__ == "__main__":
    main()
