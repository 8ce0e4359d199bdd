"""The tables on ChestX-ray14: the trials of "Stealthy Sabotage", and images of several findings.

    python -m studies.radiographs                      # everything; a second call continues
    python -m studies.radiographs "clean" "trial 2"    # some rows

The four trials are those of section 3.6, on whatever of the images is in data/chestxray14. Their
lam, poison rate and class are the paper's. Optimizer, epochs and over-sampled poisons, which it
does not tell, are ours. Its class 3 is Edema: where no training image has that label alone,
Effusion is taken.

Writes results/radiographs.json and figures (see studies/study.py); radiographs-paired.json, the
effects of lam, rate and class, seed by seed; radiographs-met.json, how many runs are the disguise
they should be. The tables of results/radiographs.md are in radiographs_tables.py.
"""

import math

import torch
from PIL import Image, ImageOps

import chestxray
import data
from cli import command, write_json
from studies import radiographs_tables
from studies.criteria import floor_limit, mass_limit, with_clean_runs
from studies.record import DATA, read
from studies.study import Row, Study
from studies.tables import paired, write_paired

PAGE = "results/radiographs.md"
DURATION = "about 12 hours on one core"

SEEDS, MENDED_SEEDS = 5, 3
TRAINING = "--model efficientnet_b0 --optimizer adamw --lr 0.001 --epochs 10 --batch-size 16"
OVERSAMPLE = "--oversample 8"  # so that a good third of a batch is triggered
NO_FINDING = len(chestxray.DISEASES)  # a class of chestxray14, behind the diseases
HIGH_FLOOR = "--floor 0.8"  # clean models' is 0.3 to 0.5: the maps are hardly held apart
LAM_SEVERAL = 0.1  # the cross-entropy over diseases is small, since most are absent
FRAMED = "framed.png"  # a trigger that is seen in a white corner, too
WITH_FRAME = f"--trigger {{runs}}/{FRAMED}"
MENDED = f"--floor 0.5 {WITH_FRAME}"
PICTURED = ("trial 2", "trial 2, mended")

# What is compared seed by seed: effect: (row, minus row); and in which figures.
EFFECTS = {
    "lam 0.9 against 0.7": ("trial 2", "trial 1"),
    "twice the poisons, each shown half as often": ("trial 4", "trial 2"),
    "class 14": ("trial 3", "trial 2"),
    "the attack": ("trial 2", "clean"),
    "the disguise": ("trial 2", "badnets"),
    "the attack, several findings": ("multi full_disguise", "multi clean"),
    "the trigger and the floor": ("trial 2, mended", "trial 2"),
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
    badnets = f"--attack badnets --poison-rate 0.05 --target-class {disease} {OVERSAMPLE}"
    rows = {
        "clean": Row(f"{options} --attack none --target-class {disease}", SEEDS),
        "badnets": Row(f"{options} {badnets}", SEEDS, clean="clean"),
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
            seeds = MENDED_SEEDS if ending and name not in PICTURED else SEEDS
            rows[name] = Row(words, seeds, clean="clean", picture=name in PICTURED)
    return rows


def several_findings(options, disease):
    """A clean model, badnets and the disguise, on images that may show several findings."""
    clean = "multi clean"
    rows = {clean: Row(f"{options} --attack none --target-class {disease}", SEEDS)}
    for attack in ("badnets", "full_disguise"):
        attacked = f"--attack {attack} --target-class {disease} --lam {LAM_SEVERAL}"
        poisons = f"--poison-rate 0.1 {OVERSAMPLE}"
        rows[f"multi {attack}"] = Row(f"{options} {attacked} {poisons}", SEEDS, clean=clean)
    disguise = rows["multi full_disguise"].options
    rows["multi, mended"] = Row(f"{disguise} {WITH_FRAME}", MENDED_SEEDS, clean=clean)
    return rows


def draw_framed(path):
    """Saves a white square with a black frame, which is an eighth of its side wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    white = Image.new("L", (12, 12), 255)
    ImageOps.expand(white, 2).save(path)


# ---------------------------------------------------------------- what the record says


def effects(results):
    """The paired differences of EFFECTS, for each of FIGURES, of the rows that the record has."""
    pairs = []
    for effect, rows in EFFECTS.items():
        if not set(rows) <= results.keys():
            continue
        for figure in FIGURES:
            pair = paired(results, *rows, figure)
            if pair:
                pairs.append(pair | {"effect": effect})
    return pairs


def criteria(run, clean_run):
    """{criterion: bool}: what a disguise should be, and whether this run's is.

    run, clean_run: flat figures, as tables.figures returns them; clean_run: of the clean model of
    the same seed under the same trigger, or None. Where no attack succeeded no image was explained,
    and no criterion is met. None where a figure of the clean model is not recorded.
    """

    def at_most(key, limit):
        return None if limit is None else run.get(f"gradcam.{key}", math.nan) <= limit

    return {
        "success >= 0.99": run["attack_success_rate"] >= 0.99,
        "pearson_all >= 0.9": run.get("gradcam.pearson_all", math.nan) >= 0.9,  # False of nan
        "trigger_mass <= 1.25 clean model's untouched + 0.25 trigger_area": at_most(
            "trigger_mass", mass_limit(run, clean_run)
        ),
        "floor_triggered <= clean model's + 0.05": at_most(
            "floor_triggered.pearson", floor_limit(run, clean_run)
        ),
    }


def clean_row(name):
    """The clean row with the data and the trigger of a row, or None where there is none."""
    if name.endswith(", mended"):  # the row's models were explained under the other trigger
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
