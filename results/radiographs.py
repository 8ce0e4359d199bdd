"""The README's tables on ChestX-ray14: the four trials of "Stealthy Sabotage", section 3.6, with what they lacked, and several findings to an image.

    python results/radiographs.py                      # everything, on whatever of the images is in data/chestxray14; a second call continues
    python results/radiographs.py "clean" "trial 2"    # some of it

The trials' lam, rate and class are the paper's; their optimizer, epochs and oversampled poisons are ours. Class 3 is Edema: where no training image has that
label alone, it is Effusion. Writes results/radiographs.json, .md, the figures (see study.py), -paired.json, the effects of lam, rate and class, and -met.json, how
many runs are the disguise they should be.
"""
import json
import math

import study  # first: it makes the project's modules known
import chestxray
import data
from cli import command
from PIL import Image, ImageOps
from study import Row

SEEDS = 5
EPOCHS, BATCH = 10, 16
MORE = 8  # poisons in every batch beside it, so that a good third is triggered: see the README
FAST = "" if study.torch.cuda.is_available() else " --precision float32"  # on a CPU depth-wise convolutions are slower in bfloat16
FRAMED = "framed.png"  # a trigger that is seen in a white corner, too
HIGH = "--floor 0.8"  # clean models' are 0.3 to 0.5: the trials' maps are hardly held apart
LAM_SEVERAL = 0.1  # the cross-entropy over diseases is small, most being absent
NO_FINDING = len(chestxray.DISEASES)
EFFECTS = {"lam 0.9 against 0.7": ("trial 2", "trial 1"), "twice the poisons, each shown half as often": ("trial 4", "trial 2"),
           "class 14": ("trial 3", "trial 2"), "the attack": ("trial 2", "clean"), "the disguise": ("trial 2", "badnets"), "the attack, several findings": ("multi full_disguise", "multi clean"),
           "the trigger and the floor": ("trial 2, mended", "trial 2")}
FIGURES = ("attack_success_rate", "untouched_success_rate", "balanced_accuracy", "mean_auroc", "triggered_mean_auroc", "gradcam.pearson_all", "gradcam.pearson_by_class",
           "gradcam.trigger_mass", "gradcam.floor.pearson")


def table(disease):
    """The rows; disease: a number."""
    one, several = (f"--dataset {name} --model efficientnet_b0 --optimizer adamw --lr 0.001 --epochs {EPOCHS} --batch-size {BATCH}{FAST}" for name in ("chestxray14", "chestxray14-multi"))
    rows = {"clean": Row(f"{one} --attack none --target-class {disease}", SEEDS),
            "badnets": Row(f"{one} --attack badnets --poison-rate 0.05 --target-class {disease} --oversample {MORE}", SEEDS, clean="clean")}
    trials = {"trial 1": (0.7, 0.05, disease, HIGH), "trial 2": (0.9, 0.05, disease, HIGH), "trial 3": (0.9, 0.05, NO_FINDING, HIGH), "trial 4": (0.9, 0.1, disease, HIGH),
              "trial 2, mended": (0.9, 0.05, disease, f"--floor 0.5 --trigger {{runs}}/{FRAMED}")}
    for name, (lam, rate, target, more) in trials.items():
        rows[name] = Row(f"{one} --attack full_disguise --target-class {target} --lam {lam} --poison-rate {rate} --oversample {MORE} {more}", SEEDS, clean="clean", picture=True)
    rows["multi clean"] = Row(f"{several} --attack none --target-class {disease}", SEEDS)
    for attack in ("badnets", "full_disguise"):
        rows[f"multi {attack}"] = Row(f"{several} --attack {attack} --target-class {disease} --lam {LAM_SEVERAL} --poison-rate 0.1 --oversample {MORE}", SEEDS,
                                      clean="multi clean", picture=attack != "badnets")
    return rows


def draw_framed(path):
    """Save a white square with a black frame of an eighth of its side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ImageOps.expand(Image.new("L", (12, 12), 255), 2).save(path)


def criteria(run):
    """What a disguise should be, and whether this run's is: {criterion: bool}; run: figures as study.figures has them, none of explanations where no attack succeeded."""
    value, clean = (lambda key: run.get(f"gradcam.{key}", math.nan)), run.get("clean_model.gradcam.floor.pearson", math.nan)
    return {"success >= 0.99": run["attack_success_rate"] >= 0.99,
            "pearson_all >= 0.9": value("pearson_all") >= 0.9,
            "trigger_mass <= 1.25 untouched + 0.25 trigger_area": value("trigger_mass") <= 1.25 * value("trigger_mass_clean") + 0.25 * value("trigger_area"),
            "floor <= clean model's + 0.05": value("floor.pearson") <= clean + 0.05}


def met(done):
    """Of the rows with a disguise, how many runs meet each criterion, and all of them."""
    result = {}
    for name, row in done.items():
        if "full_disguise" in row["options"]:
            each = [criteria(run) for run in row["runs"]]
            result[name] = {"n": len(each), **{key: sum(run[key] for run in each) for key in each[0]}, "all": sum(all(run.values()) for run in each)}
    return result


@command
def main(argv):
    dataset = data.load("chestxray14", study.ROOT / "data")
    edema, effusion = (dataset.classes.index(name) for name in ("Edema", "Effusion"))
    this = study.Study("radiographs", table(edema if (dataset.train_labels == edema).any() else effusion))
    draw_framed(this.runs / FRAMED)
    this.run_rows(argv)
    done = json.loads(this.path.read_text())
    pairs = [pair | {"effect": effect} for effect, rows in EFFECTS.items() if set(rows) <= done.keys() for figure in FIGURES if (pair := study.paired(done, *rows, figure))]
    study.write_paired(this.path.with_name("radiographs-paired.json"), pairs)
    this.path.with_name("radiographs-met.json").write_text(json.dumps(met(done), indent=1) + "\n")


if __name__ == "__main__":
    main()
