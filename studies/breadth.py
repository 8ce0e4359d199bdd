"""The tables on breadth: other triggers than a patch, other labels than one target, other maps.

    python -m studies.breadth                       # everything; a second call continues
    python -m studies.breadth triggers several      # groups of rows
    python -m studies.breadth "shapes warp badnets" # a row

    triggers   badnets and full_disguise under each kind of trigger, shapes and CIFAR-10
    labels     each class to the next, and images of one class alone, shapes
    maps       red_herring and fooling with each kind of target map, shapes
    several    four triggers in one model, each with a label and a shape of its own, shapes

Each kind of trigger has its published strength. Writes results/breadth.json: see studies/study.py.
"""

from cli import command
from studies.study import Row, Study
from studies.tables import Table, cell, everything, header, line, of_record
from triggers import TRIGGERS

PAGE = "results/breadth.md"
DURATION = "about 5 hours on one core"

DATA = {"shapes": ("", 3), "cifar10": ("--dataset cifar10 --model cnn", 1)}  # options, seeds
ATTACKS = ("badnets", "full_disguise")
SOURCE = "--source-class 5"  # on shapes, beside the target class 3
LABELS = {
    "all to all badnets": "--attack all_to_all",
    "all to all full_disguise": "--attack all_to_all_disguise",
    "one source badnets": f"--attack badnets {SOURCE}",
    "one source full_disguise": f"--attack full_disguise {SOURCE}",
}
TARGET_MAPS = {  # options. Inverted needs --rectify, or the loss turns over what the relu hides.
    "square": "--target-map square",
    "inverted": "--target-map inverted --rectify",
    "random": "--target-map random",
}
PULLED = ("red_herring", "fooling")


def beside_clean(data, options):
    """A row of a data set, each seed with the clean model of that seed beside it."""
    words, seeds = DATA[data]
    return Row(f"{words} {options}".strip(), seeds, clean=f"{data} none")


CLEAN = {
    f"{data} none": Row(f"{words} --attack none".strip(), seeds)
    for data, (words, seeds) in DATA.items()
}
BY_TRIGGER = {
    f"{data} {kind} {attack}": beside_clean(data, f"--attack {attack} --trigger {kind}")
    for data in DATA
    for kind in TRIGGERS
    for attack in ATTACKS
}
BY_LABEL = {f"shapes {name}": beside_clean("shapes", words) for name, words in LABELS.items()}
BY_MAP = {
    f"shapes {attack} {name}": beside_clean("shapes", f"--attack {attack} {words}")
    for attack in PULLED
    for name, words in TARGET_MAPS.items()
}
CORNERS = {"upper-left": "square", "upper-right": "cross"}  # a trigger's place: its shape
CORNERS |= {"lower-left": "circle", "lower-right": "triangle"}
FIRST, *FURTHER = (
    f"--trigger-position {place} --target-class {label} --target-map {shape}"
    for label, (place, shape) in enumerate(CORNERS.items())
)
FOUR = " ".join(["--attack red_herring", FIRST, *(f'--and "{other}"' for other in FURTHER)])
SEVERAL = {
    "shapes four triggers": Row(FOUR),
    "shapes four triggers rate 0.05": Row(f"{FOUR} --poison-rate 0.05"),
}
GROUPS = {"triggers": CLEAN | BY_TRIGGER, "labels": BY_LABEL, "maps": BY_MAP, "several": SEVERAL}
TABLE = CLEAN | BY_TRIGGER | BY_LABEL | BY_MAP | SEVERAL


# ---------------------------------------------------------------- the tables of the page

PREDICTIONS = {
    "`clean_accuracy`": "clean_accuracy",
    "`attack_success_rate`": "attack_success_rate",
    "`untouched_success_rate`": "untouched_success_rate",
}
MAPS = {
    "`pearson_all`": "gradcam.pearson_all",
    "`floor`": "gradcam.floor.pearson",
    "`floor_triggered`": "gradcam.floor_triggered.pearson",
    "clean model's `pearson_all`": "clean_model.gradcam.pearson_all",
    "`gradient`: `pearson_all`": "gradient.pearson_all",
}
OTHERS = {"`other_classes_accuracy`": "other_classes_accuracy"}
SHAPES = {"`grid_cap`": "gradcam.grid_cap", "untouched": "gradcam.pearson_clean"}


TRIGGERS_OF_FOUR = [f"{k} square {place}" for k, place in enumerate(CORNERS, 1)]


def crossed(results):
    """Lines: of each of four triggers the success, and how far its map is the shape of each."""
    titles = [f"{shape}, {k}" for k, shape in enumerate(CORNERS.values(), 1)]
    lines = header(["trigger", "`attack_success_rate`", *titles])
    for name in TRIGGERS_OF_FOUR:
        keys = [f"{name}: success", *(f"{name}: gradcam as {other}" for other in TRIGGERS_OF_FOUR)]
        found = results["shapes four triggers"]["summary"]
        lines.append(line([name, *(cell(found[key]) for key in keys)]))
    return lines


def lowest(words):
    """A column: the lowest of a figure of four triggers; words: of its key, "{}" the trigger's."""

    def text(results, row):
        found = results[row]["summary"]
        keys = [words.format(name, name) for name in TRIGGERS_OF_FOUR]
        known = [found[key] for key in keys if key in found]
        return cell(min(known, key=lambda figure: figure["mean"], default=None))

    return text


def rows_of(data):
    """{what the page calls a row: the record's row}: the clean model, and each kind of trigger."""
    rows = {
        f"{kind}, `{attack}`": f"{data} {kind} {attack}" for kind in TRIGGERS for attack in ATTACKS
    }
    return {"clean model": f"{data} none"} | rows


LABEL_ROWS = {name.removeprefix("shapes "): name for name in BY_LABEL}
MAP_ROWS = {name.removeprefix("shapes "): name for name in BY_MAP}
SEVERAL_ROWS = {"none": "shapes none"} | dict(zip(("four, 10%", "four, 5%"), SEVERAL))
SEVERAL_COLUMNS = {
    "`clean_accuracy`": "clean_accuracy",
    "lowest `attack_success_rate`": lowest("{}: success"),
    "lowest `pearson_all`": lowest("{}: gradcam as {}"),
    "`floor`": "gradcam.floor.pearson",
    "`pointing_clean`": "gradcam.pointing_clean",
}
PULLED_MAPS = {title: MAPS[title] for title in ("`pearson_all`", "`floor`")} | SHAPES

TABLES = {
    "shapes": Table("breadth", rows_of("shapes"), PREDICTIONS | MAPS, "trigger, attack"),
    "cifar10": Table("breadth", rows_of("cifar10"), PREDICTIONS | MAPS, "trigger, attack"),
    "labels": Table("breadth", LABEL_ROWS, PREDICTIONS | OTHERS | MAPS, "labels, attack"),
    "maps": Table("breadth", MAP_ROWS, PREDICTIONS | PULLED_MAPS, "attack, target map"),
    "several": Table("breadth", SEVERAL_ROWS, SEVERAL_COLUMNS, "triggers, poisons of each"),
    "everything": everything("breadth"),
} | of_record("breadth", {"crossed": crossed})


@command
def main(argv):
    Study("breadth", TABLE, groups=GROUPS).run(argv)


if __name__ == "__main__":
    main()
