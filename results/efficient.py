"""The README's tables on few poisons: strategies of selection compared seed by seed, and what an attacker who controls training can do.

    python results/efficient.py                        # everything; a second call continues
    python results/efficient.py "random" "rd-global"   # the primary contrast
    python results/efficient.py pilot                  # a word for a group of rows: where does a random choice succeed half to nine times in ten?
    python results/efficient.py longer                 # the contrast after 15 epochs
    python results/efficient.py few resnet18 curve     # 55 images and the disguise; the same with ResNet-18; down to 5 images, on shapes
    python results/efficient.py classes                # as the hardest images, over-sampled, but random ones of the same classes

The trigger is a yellow square of 5x5 pixels, lower right; the target class 1. Writes results/efficient.json and .md, the paired differences and the curve, efficient-curve.png: see study.py.
The pilot's seeds are not the comparison's.
"""
import json
import sys

import study  # first: it makes the project's modules known
import figure
import selection
import torch
from selection import capped  # a row below puts another function in its place
from study import Row

TRIGGER = "--trigger yellow --trigger-size 5 --target-class 1"
CNN = f"--dataset cifar10 --model cnn --epochs 5 {TRIGGER}"
RESNET = f"--dataset cifar10 --model resnet18 --epochs 10 {TRIGGER}"
RATE = 0.0008  # the pilot's choice: 40 images, of which random ones succeed at 0.77 and 0.94
PAIRS = 10
FEW = 0.0011  # 55 images, the source paper's
MORE = "--oversample 6"
HONEST = "--floor 0.4"  # of the small cnn, with seed 100, on images held out: untouched maps of different images correlate at 0.37, a clean cnn's at 0.45
COUNTS = (5, 10, 20, 50, 100)  # images, of the 10,000 of shapes
SHAPES = f"--dataset shapes {TRIGGER}"
RECIPES = {  # the curve's lines
    "shapes badnets random": "--attack badnets --selection random",
    "shapes badnets rd-global": "--attack badnets --selection rd-global",
    "shapes badnets random oversampled": f"--attack badnets --selection random {MORE}",
    "shapes badnets rd-global oversampled": f"--attack badnets --selection rd-global {MORE}",
    "shapes full_disguise random oversampled": f"--attack full_disguise --selection random {MORE}",
    "shapes full_disguise rd-global oversampled": f"--attack full_disguise --selection rd-global {MORE}",
}

PILOT = {f"pilot {rate}": Row(f"{CNN} --attack badnets --poison-rate {rate}", 2, first=100) for rate in (0.0005, 0.0008, 0.0011)}
CONTRAST = {name: Row(f"{CNN} --attack badnets --poison-rate {RATE} --selection {name}", pairs)
            for name, pairs in {"random": PAIRS, "rd-global": PAIRS, "rd-low": 3, "rd": 3}.items()}
AGAINST = [("rd-global", "random"), ("rd-low", "random"), ("rd", "random"), ("rd-global, 15 epochs", "random, 15 epochs")]
AGAINST += [(f"shapes {one} {count}", f"shapes {other} {count}") for count in COUNTS for one, other in (
    ("badnets rd-global", "badnets random"), ("badnets rd-global oversampled", "badnets random oversampled"), ("badnets random oversampled", "badnets random"),
    ("full_disguise random oversampled", "badnets random oversampled"), ("full_disguise random oversampled", "badnets random"),
    ("full_disguise rd-global oversampled", "full_disguise random oversampled"), ("badnets rd-global oversampled", "badnets rd-global classes oversampled"),
    ("badnets rd-global classes oversampled", "badnets random oversampled"))]
LONGER = {f"{name}, 15 epochs": Row(f"{CNN.replace('--epochs 5', '--epochs 15')} --attack badnets --poison-rate {RATE} --selection {name}", 3)
          for name in ("random", "rd-global")}  # do the hardest images only take longer to learn?


def few(options, name, seeds):
    """55 images: alone, over-sampled, and disguised, drawn at random with the floor held, or the hardest ones. seeds: of the rows but the last."""
    clean = f"{name} none"
    rows = {"badnets random": "--attack badnets", "badnets random oversampled": f"--attack badnets {MORE}",
            "full_disguise random oversampled": f"--attack full_disguise {MORE} {HONEST}",
            "full_disguise rd-global oversampled": f"--attack full_disguise --selection rd-global {MORE}"}
    attacks = {f"{name} {row}": Row(f"{options} --poison-rate {FEW} {more}", 1 if "rd-global" in row else seeds, clean=clean, picture="oversampled" in row)
               for row, more in rows.items()}
    return {clean: Row(f"{options} --attack none", seeds)} | attacks


def of_the_same_classes(order, labels, count):
    """In selection.capped's place: as many images of each class as that takes of `order`, but random ones. What a choice owes to its classes alone."""
    wanted = labels[capped(order, labels, count)].bincount()
    shuffled = order[torch.randperm(len(order))]
    return torch.cat([shuffled[labels[shuffled] == label][:number] for label, number in enumerate(wanted)])


def classes():
    """shapes, over-sampled: the classes of the hardest images without their hardness, where these are far ahead of random ones."""
    recipe = RECIPES["shapes badnets rd-global oversampled"]
    return {f"shapes badnets rd-global classes oversampled {count}": Row(f"{SHAPES} {recipe} --poison-rate {count / 10_000}", 3, {(selection, "capped"): of_the_same_classes})
            for count in (5, 10)}


def curve():
    """shapes: strategies and recipes at each count."""
    return {f"{line} {count}": Row(f"{SHAPES} {options} --poison-rate {count / 10_000}", 3) for line, options in RECIPES.items() for count in COUNTS}


def curve_of(done):
    """Mean success by count, {line: [(images, mean success)]}, of the rows that are in `done`."""
    lines = {}
    for line in RECIPES:
        for count in COUNTS:
            if row := done.get(f"{line} {count}"):
                lines.setdefault(line.removeprefix("shapes "), []).append((count, row["summary"]["attack_success_rate"]["mean"]))
    return lines


def report(path):
    """The paired differences and the curve of what `path`, the study's record, holds, beside it."""
    done = json.loads(path.read_text()) if path.exists() else {}
    pairs = [study.paired(done, row, other) for row, other in AGAINST if {row, other} <= done.keys()]
    study.write_paired(path.with_name("efficient-paired.json"), pairs)
    if lines := curve_of(done):
        page = figure.curves("shapes: triggered images taken for the target class, mean of three runs", "images poisoned, of 10,000", lines, logarithmic=True)
        page.save(path.with_name("efficient-curve.png"), optimize=True)


GROUPS = {"pilot": PILOT, "longer": LONGER, "few": few(CNN, "cnn", 3), "resnet18": few(RESNET, "resnet18", 1), "curve": curve(), "classes": classes()}
TABLE = PILOT | CONTRAST | LONGER | GROUPS["few"] | GROUPS["resnet18"] | GROUPS["curve"] | GROUPS["classes"]

if __name__ == "__main__":
    this = study.Study("efficient", TABLE)
    try:
        this.run([row for word in sys.argv[1:] for row in GROUPS.get(word, [word])])
    finally:
        report(this.path)
