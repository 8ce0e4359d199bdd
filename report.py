"""What a measured checkpoint leaves: the table on the screen, metrics.json, and its pictures.

The definitions of all figures are here. The table fits the width of the terminal.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli import UserError, write_json
from explain import EXPLAINERS
from findings import of_run
from metrics import FLOORS
from ours import is_our_record, is_ours, save_picture
from terminal import columns_of, ljust, printable, rjust, shortened, width, wrapped

HEADER = {
    "attack": "",
    "threat": "training: the attacker trains; data: the attacker hands over images",
    "dataset": "",
    "model": "",
    "seed": "",
    "trigger": "what triggered images have: patch, or a kind that changes the whole image",
    "target": "the class that triggered images should go to",
    "source": "where images of one class alone should go there: that class",
    "poison_count": "",
    "poison_rate": "poisons over all training images",
    "poison_rate_trained_on": "poisons over the images trained on: some are held out",
}
PREDICTION_FIGURES = {
    "clean_accuracy": "accuracy on the untouched test set",
    "balanced_accuracy": "the same, every class weighing alike",
    "majority_rate": "share of the commonest class: what a constant answer gets",
    "mean_auroc": "multi-label: area under the ROC curve, mean over classes",
    "triggered_mean_auroc": "the same on the triggered test set, without the target class",
    "triggered_accuracy": "accuracy on the triggered test set, by true label",
    "attack_success_rate": "triggered images predicted as the target class, true members left out;"
    " with a source class, of its images alone; all to all, as the class after their own",
    "untouched_success_rate": "the same without the trigger: what it is where the trigger is idle",
    "other_classes_accuracy": "with a source class: accuracy on triggered images of other classes",
    "success_threshold": "multi-label: above this score the target class counts as predicted",
}
MAP_FIGURES = {
    "n": "images explained: a random draw; where labels change, those that became the target class",
    "pearson_all": "correlation of the triggered image's map with its target map; blank maps: 0",
    "pearson_all_independent": "the same, the two maps estimated from samples of their own",
    "pearson": "pearson_all, blank maps left out",
    "mse": "mean squared difference of the two maps, each divided by its largest magnitude",
    "dssim": "(1 - SSIM) / 2 of the two maps at the image's resolution: 0 alike, 1 opposite",
    "top10": "overlap of the two maps' largest tenth of pixels",
    "pearson_clean": "correlation of the UNtouched image's map with the fixed shape: high, and it"
    " is drawn on everything",
    "grid_cap": "highest correlation with the crisp shape that a map on this grid can reach",
    "trigger_mass": "share of the map on the cells the trigger touches, triggered images",
    "trigger_mass_clean": "the same on untouched images",
    "trigger_area": "share of cells the trigger touches: what chance gives",
    "zero_maps": "images whose triggered map is blank, or the untouched one it is compared with",
    "pointing": "triggered images whose map is highest inside the object",
    "pointing_clean": "the same on untouched images",
    "pearson_by_class": "correlation of the two maps for the same class, mean over classes",
    "floor.pearson": "correlation of maps of DIFFERENT untouched images: high, and one map serves"
    " for everything",
    "floor.dssim": "dssim of the same",
    "floor_triggered.pearson": "correlation of a triggered image's map with ANOTHER image's"
    " untouched map",
    "reference.pearson_all": "what the trigger alone does to a map: pearson_all of the clean model",
    "reference.trigger_mass": "trigger_mass of the clean reference model",
    "reference.floor.pearson": "floor.pearson of the clean model: how alike honest maps are",
    "reference.floor_triggered.pearson": "floor_triggered.pearson of the clean model",
    "reference.pointing_clean": "pointing_clean of the clean reference model",
    "reference.pearson_untouched": "correlation of this model's and the reference's map of the"
    " same untouched image",
}
DEFINITIONS = PREDICTION_FIGURES | MAP_FIGURES
SAME_OF_CLEAN = "the same of the clean reference model"
GAP = 2  # columns between two of the table
LEAST_CELL, LARGEST_CELL = 8, 16  # characters of a value; a longer one ends in an ellipsis
LEAST_NOTE = 28  # characters: where fewer are left beside the values, definitions are left out
INDENT = " " * 4  # of a definition below its figure
EXPLAIN_TABLE = "What each figure means: evaluate.py --explain-table, or METRICS.md."


@dataclass
class Result:
    """A checkpoint, measured.

    metrics: the JSON object; pictures: PIL images by name: "figure", and "figure-NAME"; subject,
    answers: the Subject and the Answers they are of, for a comparison, or None.
    """

    metrics: dict
    pictures: dict
    subject: Any = None
    answers: Any = None


# ---------------------------------------------------------------- files

# Written by some measurements, and removed by those that have none.
FURTHER_PICTURES = [f"figure-{name}.png" for name in (*EXPLAINERS, "selection")]


def names_of(stem=None):
    """Names of the files that `write` may write or remove; stem: as of write."""
    if stem is not None:
        return [f"{stem}-explained.json", f"{stem}-explained.png"]
    return ["metrics.json", "figure.png", *FURTHER_PICTURES]


def write(result, folder, stem=None):
    """Writes metrics.json, figure.png and further pictures into `folder`, each whole or not at all.

    stem: of the files where one picture was explained: STEM-explained.json and .png. Returns the
    files' names. Raises UserError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    names = names_of(stem)
    write_json(folder / names[0], result.metrics)
    written = [names[0]]
    for name, picture in result.pictures.items():
        written.append(names[1] if name == "figure" else f"{name}.png")
        save_picture(picture, folder / written[-1])
    if stem is None:  # at last: the disk may be full
        remove_pictures(folder, written)
    return written


def remove_pictures(folder, kept=()):
    """Removes the pictures of an earlier measurement that a new one has not; kept: names."""
    for name in {*FURTHER_PICTURES} - {*kept}:
        if is_ours(folder / name):
            (folder / name).unlink()


def stem_for(folder, image):
    """What the files about a picture at `image` are called: its name without the suffix.

    Where files of that name are about another picture, it is the whole name, or that with a number.
    """
    image = Path(image)
    numbered = (f"{image.name}-{k}" for k in itertools.count(2))
    for stem in itertools.chain([image.stem, image.name], numbered):
        path = folder / f"{stem}-explained.json"
        if not is_our_record(path) or is_about(path, image):
            return stem


def is_about(path, image):
    """Whether a record of ours is about the picture at `image`."""
    told = json.loads(path.read_text(encoding="utf-8")).get("image", "")
    return Path(told).resolve() == image.resolve()


# ---------------------------------------------------------------- the table


def show(value):
    """A figure as text: four decimals, and "-" for None."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def flat(figures):
    """{"floor": {"mse": 1}} as {"floor.mse": 1}; the other figures as they are."""
    result = {key: value for key, value in figures.items() if key not in FLOORS}
    for floor in FLOORS:
        for key, value in figures.get(floor, {}).items():
            result[f"{floor}.{key}"] = value
    return result


@dataclass
class Line:
    """A line of the table: a figure, its value for each checkpoint as text, and what it is.

    Without values it is the title of what follows.
    """

    key: str
    values: list
    note: str = ""


class Table:
    """Prints the figures of several checkpoints side by side, a line a figure.

    Where not all checkpoints fit beside each other, there are several such tables.
    """

    def __init__(self, metrics, explain=False):
        """metrics: {name of a checkpoint: its metrics}; explain: definitions, at any width."""
        self.names, self.metrics = list(metrics), list(metrics.values())
        self.clean_models = [part["clean_model"] for part in self.metrics]
        self.explain = explain
        self.lines = [*self.header(), *self.predictions("", self.metrics)]
        self.lines += [*self.predictions("reference.", self.clean_models), *self.aurocs()]
        parts = [part["explanations"] for part in self.metrics]
        for explainer in dict.fromkeys(name for part in parts for name in part):
            self.lines += self.explainer(explainer)
        rows = [line for line in self.lines if line.values]
        self.key_width = max(columns_of(line.key) for line in rows)
        longest = max(columns_of(value) for line in rows for value in line.values)
        self.cell_width = min(max(longest, LEAST_CELL), LARGEST_CELL)

    # ------------------------------------------------------------ what is in it

    def header(self):
        """Lines: what the checkpoints are."""
        for key, note in HEADER.items():
            values = [part.get(key) for part in self.metrics]
            if key in ("target", "source"):
                values = [
                    part.get(f"{key}_name", part.get(f"{key}_class")) for part in self.metrics
                ]
            if key == "dataset":
                values = [printable(Path(value).stem) for value in values]
            # Rates may be small: three significant digits, not four after the point.
            values = [f"{value:.3g}" if isinstance(value, float) else value for value in values]
            yield Line(key, [show(value) for value in values], note)

    def figures(self, definitions, columns, prefix=""):
        """Lines: the figures that one of the columns, dicts, has."""
        for key, definition in definitions.items():
            values = [column.get(key) for column in columns]
            if any(value is not None for value in values):
                note = SAME_OF_CLEAN if prefix else definition
                yield Line(prefix + key, [show(value) for value in values], note)

    def predictions(self, prefix, parts):
        """Lines: what needs no explainer; parts: of the checkpoints or of their references."""
        return self.figures(PREDICTION_FIGURES, parts, prefix)

    def aurocs(self):
        """Lines: the area under the ROC curve, class by class, where an image may show several."""
        parts = [part.get("auroc") or {} for part in self.metrics]
        for name in dict.fromkeys(name for part in parts for name in part):
            yield Line(f"auroc.{name}", [show(part.get(name)) for part in parts])

    def explainer(self, explainer):
        """Lines: the figures about one explainer's maps."""
        own = [part["explanations"].get(explainer, {}) for part in self.metrics]
        trained = [part.get("trained_against") for part in own]
        note = ""
        if all(trained):
            note = ": trained against"
        elif not any(trained):
            note = ": not trained against"
        columns = []
        for part, clean_model in zip(own, self.clean_models):
            reference = flat(clean_model.get("explanations", {}).get(explainer, {}))
            prefixed = {f"reference.{key}": value for key, value in reference.items()}
            columns.append(flat(part) | prefixed)
        return [Line(explainer + note, []), *self.figures(MAP_FIGURES, columns)]

    # ------------------------------------------------------------ how it is printed

    def print(self):
        """Prints all of it, and what was found, in words."""
        several, count = len(self.names) > 1, len(self.names)
        for k, name in enumerate(self.names if several else [], 1):
            print(f"[{k}] {name}")
        at_once = max(1, (width() - self.key_width) // (GAP + self.cell_width))
        for first in range(0, count, at_once):
            shown = range(first, min(first + at_once, count))
            if several:
                print()
                self.print_line(Line("", [f"[{k + 1}]" for k in range(count)]), shown)
            for line in self.lines:
                self.print_line(line, shown)
        if not self.explain and self.room(min(at_once, count)) < LEAST_NOTE:
            print("\n" + "\n".join(wrapped(EXPLAIN_TABLE, width())))
        self.print_findings()

    def room(self, count):
        """How many columns are left for a definition beside `count` values."""
        return width() - self.key_width - count * (GAP + self.cell_width) - GAP

    def print_line(self, line, shown):
        """Prints a line, the values number `shown` of it: its note beside them, or below."""
        if not line.values:
            print(f"\n{line.key}")
            return
        values = [line.values[k] for k in shown]
        if len(self.names) > 1:
            values = [shortened(value, self.cell_width) for value in values]
        text = ljust(line.key, self.key_width)
        text += "".join(" " * GAP + rjust(value, self.cell_width) for value in values)
        left = self.key_width + len(shown) * (GAP + self.cell_width) + GAP
        if self.room(len(shown)) < LEAST_NOTE:
            print(text)
            if self.explain and line.note:
                print("\n".join(wrapped(line.note, width(), INDENT, INDENT)))
        elif columns_of(text) > left - GAP:  # a long name takes the place of the note
            print(text)
            print("\n".join(wrapped(line.note, width(), " " * left, " " * left)).rstrip())
        else:
            print("\n".join(wrapped(line.note, width(), ljust(text, left), " " * left)))

    def print_findings(self):
        """Prints what was found at each checkpoint, in words."""
        print()
        for k, part in enumerate(self.metrics, 1):
            number = f"[{k}] " if len(self.names) > 1 else ""
            triggers = part.get("triggers") or {}
            if triggers:
                print("\n".join([*trigger_lines(triggers), ""]))
                number += f"Of the first of {len(triggers)} triggers: "
            print("\n".join(wrapped(number + " ".join(of_run(part)), width())))


def trigger_lines(triggers):
    """Lines on each of several triggers, and crossed: whose target map do its maps show?

    triggers: as metrics.json has them.
    """
    parts = list(triggers.values())
    explainer = next(iter(parts[0]["explanations"]))  # those trained against come first
    first = max(columns_of(name) for name in triggers)
    heads = ["success", *(f"map {k}" for k in range(1, len(parts) + 1))]
    said = f"{len(parts)} triggers; above, the first. Correlation of {explainer}'s map under each"
    lines = wrapped(f"{said} with the target map of each:", width())
    lines.append(" " * first + "".join(rjust(head, 9) for head in heads))
    for name, part in triggers.items():
        values = [part["attack_success_rate"], *part["explanations"][explainer]["crossed"].values()]
        lines.append(ljust(name, first) + "".join(rjust(show(value), 9) for value in values))
    return lines


def print_table(metrics, explain=False):
    """Prints {name of a checkpoint: its metrics}, side by side, and what was found.

    Each figure has its definition where there is room for it, or anywhere if explain is true.
    """
    Table(metrics, explain).print()
