"""The tables on few poisons by an attacker who trains: 5 to 100 images, over-sampled, in disguise.

    python -m studies.efficient                        # everything; a second call continues
    python -m studies.efficient few resnet18 curve     # groups of rows

    few        55 images, alone, over-sampled, and with the disguise
    resnet18   the same with ResNet-18
    curve      5 to 100 images of `shapes`
    classes    random images of the classes that the hardest ones are of

What an attacker can do who only hands over data is in studies/threats.py. The trigger is a yellow
square of 5x5 pixels, lower right; the target class is 1. Writes results/efficient.json and figures
(see studies/study.py);
efficient-paired.json, differences seed by seed; efficient-curve.png, success by number of images.
The tables of results/efficient.md are in efficient_tables.py.
"""

import figure
from cli import command
from studies import efficient_tables
from studies.record import read, save_small_picture
from studies.study import Row, Study
from studies.tables import paired, write_paired

PAGE = "results/efficient.md"
DURATION = "about 14 hours on one core"

TRIGGER = "--trigger yellow --trigger-size 5 --target-class 1"
CNN = "--dataset cifar10 --model cnn"
RESNET18 = "--dataset cifar10 --model resnet18"
OVERSAMPLE = "--oversample 6"

# ---------------------------------------------------------------- CIFAR-10: 55 images

FEW = 0.0011  # 55 images, as many as in "Stealthy Sabotage"
# Of the small cnn, seed 100, on images held out: untouched maps of different images correlate at
# 0.37 with this floor, a clean cnn's at 0.45.
HONEST_FLOOR = "--floor 0.4"


def few(name, options, seeds):
    """Rows with 55 images.

    seeds: of each but the row whose images a scorer chooses, which has one.
    """
    clean = f"{name} none"
    disguise = f"--attack full_disguise {OVERSAMPLE}"
    hardest = f"--attack full_disguise --selection rd-global {OVERSAMPLE}"
    attacks = {  # options, seeds, picture
        "badnets random": ("--attack badnets", seeds, False),
        "badnets random oversampled": (f"--attack badnets {OVERSAMPLE}", seeds, False),
        "full_disguise random oversampled": (f"{disguise} {HONEST_FLOOR}", seeds, True),
        "full_disguise rd-global oversampled": (hardest, 1, True),
    }
    rows = {clean: Row(f"{options} --attack none", seeds)}
    for row, (attack, count, picture) in attacks.items():
        poisoned = f"{options} --poison-rate {FEW} {attack}"
        rows[f"{name} {row}"] = Row(poisoned, count, clean=clean, picture=picture)
    return rows


# ---------------------------------------------------------------- shapes: 5 to 100 images

SHAPES = f"--dataset shapes {TRIGGER}"
TRAINING_IMAGES = 10_000
COUNTS = (5, 10, 20, 50, 100)  # images poisoned
LINES = {  # of the curve
    "badnets random": "--attack badnets --selection random",
    "badnets rd-global": "--attack badnets --selection rd-global",
    "badnets random oversampled": f"--attack badnets --selection random {OVERSAMPLE}",
    "badnets rd-global oversampled": f"--attack badnets --selection rd-global {OVERSAMPLE}",
    "full_disguise random oversampled": f"--attack full_disguise --selection random {OVERSAMPLE}",
    "full_disguise rd-global oversampled": (
        f"--attack full_disguise --selection rd-global {OVERSAMPLE}"
    ),
}
# What the choice of rd-global owes to the classes alone, where it is far ahead of random images.
CLASSES = "badnets rd-global classes oversampled"
CLASSES_OPTIONS = f"--attack badnets --selection rd-classes {OVERSAMPLE}"


def on_shapes(options, count):
    """A row with `count` poisoned images of shapes."""
    return Row(f"{SHAPES} {options} --poison-rate {count / TRAINING_IMAGES}", 3)


def curve():
    """The rows of the curve: {"shapes badnets random 5": Row, ...}."""
    rows = {}
    for name, options in LINES.items():
        for count in COUNTS:
            rows[f"shapes {name} {count}"] = on_shapes(options, count)
    return rows


def classes():
    """The rows with random images of the classes of the hardest."""
    return {f"shapes {CLASSES} {count}": on_shapes(CLASSES_OPTIONS, count) for count in (5, 10)}


GROUPS = {
    "few": few("cnn", f"{CNN} --epochs 5 {TRIGGER}", 3),
    "resnet18": few("resnet18", f"{RESNET18} --epochs 10 {TRIGGER}", 1),
    "curve": curve(),
    "classes": classes(),
}
TABLE = {}
for _rows in GROUPS.values():
    TABLE |= _rows

# ---------------------------------------------------------------- what the record says

# Pairs of lines that are compared seed by seed: the first minus the second.
PAIRS_BY_COUNT = [
    ("badnets rd-global", "badnets random"),
    ("badnets rd-global oversampled", "badnets random oversampled"),
    ("badnets random oversampled", "badnets random"),
    ("full_disguise random oversampled", "badnets random oversampled"),
    ("full_disguise random oversampled", "badnets random"),
    ("full_disguise rd-global oversampled", "full_disguise random oversampled"),
    ("badnets rd-global oversampled", CLASSES),
    (CLASSES, "badnets random oversampled"),
]


def differences(results):
    """The paired differences of all pairs of rows that the record has."""
    pairs = []
    for count in COUNTS:
        pairs += [(f"shapes {a} {count}", f"shapes {b} {count}") for a, b in PAIRS_BY_COUNT]
    return [paired(results, a, b) for a, b in pairs if {a, b} <= results.keys()]


def success_by_count(results):
    """{line: [(images, mean success), ...]} of the rows of the curve that the record has."""
    lines = {}
    for name in LINES:
        for count in COUNTS:
            row = results.get(f"shapes {name} {count}")
            if row:
                mean = row["summary"]["attack_success_rate"]["mean"]
                lines.setdefault(name, []).append((count, mean))
    return lines


def write_comparisons(path):
    """Writes the paired differences and the curve beside the study's record, which is `path`."""
    results = read(path)
    write_paired(path.with_name("efficient-paired.json"), differences(results))
    lines = success_by_count(results)
    if lines:
        page = figure.curves(
            "shapes: triggered images taken for the target class, mean of three runs",
            "images poisoned, of 10,000",
            lines,
            logarithmic=True,
        )
        save_small_picture(page, path.with_name("efficient-curve.png"))


TABLES = efficient_tables.TABLES


@command
def main(argv):
    study = Study("efficient", TABLE, groups=GROUPS)
    try:
        study.run(argv)
    except KeyboardInterrupt:  # what is done is compared, too
        write_comparisons(study.path)
        raise
    write_comparisons(study.path)


if __name__ == "__main__":
    main()
