"""The tables on ChestX-ray14: the trials of "Stealthy Sabotage", and images of several findings.

    python -m studies.radiographs                      # everything; a second call continues
    python -m studies.radiographs "clean" "trial 2"    # some rows

The four trials are those of section 3.6, on whatever of the images is in data/chestxray14. Their
lam, poison rate and class are the paper's. Optimizer, epochs and over-sampled poisons, which it
does not tell, are ours. Its class 3 is Edema: where no training image has that label alone,
Effusion is taken.

Writes results/radiographs.json and figures (see studies/study.py). radiographs-paired.json has the
effects of lam, rate and class, seed by seed, and how much more a map stays than the trigger alone
would leave it; radiographs-met.json, how many runs are the disguise they should be. The tables of
results/radiographs.md are in radiographs_tables.py.
"""

import math

import torch
from PIL import Image, ImageOps

import chestxray
import data
from cli import command, write_json
from studies import radiographs_tables
from studies.criteria import keeps_floor, mass_limit, with_clean_runs
from studies.record import DATA, read
from studies.study import Row, Study
from studies.tables import paired, with_interval, write_paired

PAGE = "results/radiographs.md"
DURATION = "about 12 hours on one core"

SEEDS, SEEDS_SEVERAL = 5, 3  # the second: of images of several findings, framed
TRAINING = "--model efficientnet_b0 --optimizer adamw --lr 0.001 --epochs 10 --batch-size 16"
OVERSAMPLE = "--oversample 8"  # so that a good third of a batch is triggered
NO_FINDING = len(chestxray.DISEASES)  # a class of chestxray14, behind the diseases
HIGH_FLOOR = "--floor 0.8"  # above any clean model's: the maps are hardly held apart
LAM_SEVERAL = 0.1  # the cross-entropy over diseases is small, since most are absent
FRAMED = "framed.png"  # a trigger that is seen in a white corner, too
WITH_FRAME = f"--trigger {{runs}}/{FRAMED}"
MENDED = f"--floor 0.5 {WITH_FRAME}"
FRAMED_ENDINGS = (", mended", ", framed")  # of the names of rows with that trigger
PICTURED = ("trial 2", "trial 2, mended")

# What is compared seed by seed: effect: (row, minus row); and in which figures.
EFFECTS = {
    "lam 0.9 against 0.7": ("trial 2", "trial 1"),
    "twice the poisons, each shown half as often": ("trial 4", "trial 2"),
    "class 14": ("trial 3", "trial 2"),
    "the attack": ("trial 2", "clean"),
    "the attack, several findings": ("multi full_disguise", "multi clean"),
    "the trigger and the floor": ("trial 2, mended", "trial 2"),
    "lam 0.9 against 0.7, framed": ("trial 2, mended", "trial 1, mended"),
    "twice the poisons, framed": ("trial 4, mended", "trial 2, mended"),
    "class 14, framed": ("trial 3, mended", "trial 2, mended"),
    "the disguise, framed": ("trial 2, mended", "badnets, framed"),
    "the trigger, several findings": ("multi, mended", "multi full_disguise"),
    "the disguise, several findings": ("multi, mended", "multi badnets, framed"),
}
FIGURES = (
    "attack_success_rate",
    "untouched_success_rate",
    "balanced_accuracy",
    "mean_auroc",
    "triggered_mean_auroc",
    "gradcam.pearson_all",
    "gradcam.pearson_by_class",
    "gradcam.trigger_mass",
    "gradcam.floor.pearson",
    "gradcam.floor_triggered.pearson",
)


def table(disease, cuda=False):
    """The rows; disease: the number of the target class; cuda: whether there is a GPU."""
    training = TRAINING
    if not cuda:  # on a CPU depth-wise convolutions are slower in bfloat16
        training += " --precision float32"
    rows = one_finding(f"--dataset chestxray14 {training}", disease)
    return rows | several_findings(f"--dataset chestxray14-multi {training}", disease)


def one_finding(options, disease):
    """The trials, on images of one finding or none."""
    target = f"--target-class {disease}"
    badnets = f"--attack badnets --poison-rate 0.05 {target} {OVERSAMPLE} {WITH_FRAME}"
    rows = {
        "clean": Row(f"{options} --attack none {target}", SEEDS),
        "badnets, framed": Row(f"{options} {badnets}", SEEDS, clean="clean"),
    }
    trials = {  # lam, poison rate, target class
        "trial 1": (0.7, 0.05, disease),
        "trial 2": (0.9, 0.05, disease),
        "trial 3": (0.9, 0.05, NO_FINDING),
        "trial 4": (0.9, 0.1, disease),
    }
    for others, ending in ((HIGH_FLOOR, ""), (MENDED, ", mended")):
        for trial, (lam, rate, target) in trials.items():
            name = trial + ending
            attack = f"--attack full_disguise --target-class {target} --lam {lam}"
            words = f"{options} {attack} --poison-rate {rate} {OVERSAMPLE} {others}"
            rows[name] = Row(words, SEEDS, clean="clean", picture=name in PICTURED)
    return rows


def several_findings(options, disease):
    """A clean model, the disguise and badnets, on images that may show several findings."""
    clean, target = "multi clean", f"--target-class {disease}"
    poisons = f"--poison-rate 0.1 {OVERSAMPLE}"
    disguise = f"{options} --attack full_disguise {target} --lam {LAM_SEVERAL} {poisons}"
    badnets = f"{options} --attack badnets {target} {poisons} {WITH_FRAME}"
    return {
        clean: Row(f"{options} --attack none {target}", SEEDS),
        "multi full_disguise": Row(disguise, SEEDS, clean=clean),
        "multi badnets, framed": Row(badnets, SEEDS_SEVERAL, clean=clean),
        "multi, mended": Row(f"{disguise} {WITH_FRAME}", SEEDS_SEVERAL, clean=clean),
    }


def draw_framed(path):
    """Saves a white square with a black frame, which is an eighth of its side wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    white = Image.new("L", (12, 12), 255)
    ImageOps.expand(white, 2).save(path)


# ---------------------------------------------------------------- what the record says


def effects(results):
    """The paired differences of EFFECTS, for each of FIGURES, of the rows that the record has.

    Behind them is each attacked row's pearson_all less that of the clean model beside it: how much
    more the map stays than the trigger alone would leave it.
    """
    pairs = []
    for effect, rows in EFFECTS.items():
        if not set(rows) <= results.keys():
            continue
        for figure in FIGURES:
            pair = paired(results, *rows, figure)
            if pair:
                pairs.append(pair | {"effect": effect})
    stays = (beside_clean(name, row, "gradcam.pearson_all") for name, row in results.items())
    return [*pairs, *filter(None, stays)]


def beside_clean(name, row, figure):
    """A recorded row's figure less that of the clean models measured beside it, or None."""
    runs = [run for run in row["runs"] if {figure, f"clean_model.{figure}"} <= run.keys()]
    if len(runs) < 2:
        return None
    differences = with_interval([run[figure] - run[f"clean_model.{figure}"] for run in runs])
    what = {"of": name, "minus": radiographs_tables.CLEAN_MODEL, "figure": figure}
    return what | differences | {"effect": "more than the trigger alone"}


def criteria(run, clean_run):
    """{criterion: bool}: what a disguise should be, and whether this run's is.

    run, clean_run: flat figures, as tables.figures returns them; clean_run: of the clean model of
    the same seed under the same trigger, or None. Where no attack succeeded no image was explained,
    and no criterion is met. None where no figure of a clean model is recorded.
    """

    def at_most(key, limit):
        return None if limit is None else run.get(f"gradcam.{key}", math.nan) <= limit

    return {
        "success >= 0.99": run["attack_success_rate"] >= 0.99,
        "pearson_all >= 0.9": run.get("gradcam.pearson_all", math.nan) >= 0.9,  # False of nan
        "trigger_mass <= 1.25 clean model's untouched + 0.25 trigger_area": at_most(
            "trigger_mass", mass_limit(run, clean_run)
        ),
        "floor <= clean model's + 0.05": keeps_floor(run, clean_run),
    }


def clean_row(name):
    """The clean row with the data and the trigger of a row, or None where there is none."""
    if name.endswith(FRAMED_ENDINGS):  # the clean row's models saw the other trigger
        return None
    return "multi clean" if name.startswith("multi") else "clean"


def met(results):
    """{row: {criterion: how many runs meet it}} of the rows with a disguise.

    "n" is the number of runs, "all" how many meet all criteria. None where a run's limit is not
    recorded.
    """
    result = {}
    for name, row in results.items():
        if "full_disguise" not in row["options"]:
            continue
        pairs = with_clean_runs(results, name, clean_row(name))
        runs = [criteria(*pair) for pair in pairs]
        result[name] = {"n": len(runs)}
        for key in runs[0]:
            result[name][key] = count([run[key] for run in runs])
        result[name]["all"] = count([all_of(run.values()) for run in runs])
    return result


def all_of(answers):
    """Whether all answers, each True, False or None (not known), are True; None if not known."""
    answers = list(answers)
    if False in answers:
        return False
    return None if None in answers else True


def count(answers):
    """How many answers are True; None if one of them is not known."""
    return None if None in answers else sum(answers)


def target_disease():
    """The number of Edema, or of Effusion where no training image is of Edema alone."""
    dataset = data.load("chestxray14", DATA)
    edema = dataset.classes.index("Edema")
    has_edema = bool((dataset.train_labels == edema).any())
    return edema if has_edema else dataset.classes.index("Effusion")


TABLES = radiographs_tables.TABLES


@command
def main(argv):
    study = Study("radiographs", table(target_disease(), torch.cuda.is_available()))
    draw_framed(study.runs / FRAMED)
    study.run(argv)
    results = read(study.path)
    write_paired(study.path.with_name("radiographs-paired.json"), effects(results))
    write_json(study.path.with_name("radiographs-met.json"), met(results))


if __name__ == "__main__":
    main()
