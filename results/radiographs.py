"""The README's tables on ChestX-ray14: the four trials of "Stealthy Sabotage", section 3.6, with what they lacked, and several findings to an image.

    python results/radiographs.py                      # everything, on whatever of the images is in data/chestxray14; a second call continues
    python results/radiographs.py "clean" "trial 2"    # some of it

The trials' class 3 is Edema. Where no training image has that label alone, it is Effusion. Writes results/radiographs.json, .md, the figures and the
paired effects of lam, rate and class: see study.py.
"""
import json

import study  # first: it makes the project's modules known
import chestxray
import data
from cli import command
from study import Row

SEEDS = 5
EPOCHS, BATCH = 10, 16
MORE = 8  # poisons in every batch: a twentieth of them alone is unlearned under lam 0.7 and 0.9, said a pilot of another seed
FAST = "" if study.torch.cuda.is_available() else " --precision float32"  # on a CPU depth-wise convolutions are slower in bfloat16
NO_FINDING = len(chestxray.DISEASES)
EFFECTS = (("trial 2", "trial 1"), ("trial 2", "lam 0.3"), ("trial 4", "trial 2"), ("trial 3", "trial 2"), ("multi full_disguise", "multi clean"))  # of lam twice, of rate, of class 14, of the attack
FIGURES = ("attack_success_rate", "balanced_accuracy", "mean_auroc", "gradcam.pearson_all", "gradcam.trigger_mass", "gradcam.floor.pearson")


def table(disease):
    """The rows; disease: a number."""
    one, several = (f"--dataset {name} --model efficientnet_b0 --epochs {EPOCHS} --batch-size {BATCH}{FAST}" for name in ("chestxray14", "chestxray14-multi"))
    rows = {"clean": Row(f"{one} --attack none --target-class {disease}", SEEDS),
            "badnets": Row(f"{one} --attack badnets --poison-rate 0.05 --target-class {disease}", SEEDS, clean="clean", picture=True)}
    trials = {"trial 1": (0.7, 0.05, disease), "trial 2": (0.9, 0.05, disease), "trial 3": (0.9, 0.05, NO_FINDING), "trial 4": (0.9, 0.1, disease), "lam 0.3": (0.3, 0.05, disease)}
    for name, (lam, rate, target) in trials.items():
        disguise = f"{one} --attack full_disguise --target-class {target} --lam {lam} --poison-rate {rate}"
        rows[name] = Row(f"{disguise} --oversample {MORE}", SEEDS, clean="clean", picture=True)
        if name == "trial 2":
            rows["trial 2, no oversampling"] = Row(disguise, 2, clean="clean")
    rows["multi clean"] = Row(f"{several} --attack none --target-class {disease}", SEEDS, picture=True)
    for attack in ("badnets", "full_disguise"):
        rows[f"multi {attack}"] = Row(f"{several} --attack {attack} --target-class {disease} --oversample {MORE}", SEEDS, clean="multi clean", picture=attack != "badnets")
    return rows


@command
def main(argv):
    dataset = data.load("chestxray14", study.ROOT / "data")
    edema, effusion = (dataset.classes.index(name) for name in ("Edema", "Effusion"))
    this = study.Study("radiographs", table(edema if (dataset.train_labels == edema).any() else effusion))
    this.run_rows(argv)
    done = json.loads(this.path.read_text())
    pairs = [study.paired(done, *rows, figure) for rows in EFFECTS if set(rows) <= done.keys() for figure in FIGURES]
    study.write_paired(this.path.with_name("radiographs-paired.json"), pairs)


if __name__ == "__main__":
    main()
