"""What a measured checkpoint leaves: the table on the screen, metrics.json, and its pictures.

The definitions of all figures are here, one line each, as the table prints them.
"""

from dataclasses import dataclass
from pathlib import Path

from cli import UserError, replace_file, write_json
from explain import EXPLAINERS
from metrics import FLOORS

HEADER = {
    "attack": "",
    "threat": "training: the attacker trains; data: the attacker hands over images",
    "dataset": "",
    "model": "",
    "seed": "",
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
    "attack_success_rate": "triggered images predicted as the target class, true members left out",
    "untouched_success_rate": "the same without the trigger: what it is where the trigger is idle",
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
KEY_WIDTH = 31  # characters


@dataclass
class Result:
    """A checkpoint, measured.

    metrics: the JSON object; pictures: PIL images by name: "figure", and "figure-NAME".
    """

    metrics: dict
    pictures: dict


# ---------------------------------------------------------------- files


def write(result, folder, stem=None):
    """Writes metrics.json, figure.png and further pictures into `folder`, each whole or not at all.

    stem: of the files where one picture was explained: STEM-explained.json and .png.
    Raises UserError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    names = ("metrics.json", "figure.png")
    if stem is not None:
        names = (f"{stem}-explained.json", f"{stem}-explained.png")
    else:
        remove_pictures(folder)
    write_json(folder / names[0], result.metrics)
    for name, picture in result.pictures.items():
        save_picture(picture, folder / (names[1] if name == "figure" else f"{name}.png"))


def save_picture(picture, path):
    """Writes a PIL image as PNG, whole or not at all."""
    replace_file(path, lambda temporary: picture.save(temporary, format="PNG"))


def remove_pictures(folder):
    """Removes the pictures of an earlier measurement that a new one may not have."""
    for name in (*EXPLAINERS, "selection"):
        (folder / f"figure-{name}.png").unlink(missing_ok=True)


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


class Table:
    """Prints the figures of several checkpoints side by side, a line a figure."""

    def __init__(self, metrics):
        """metrics: {name of a checkpoint: its metrics}."""
        self.names = list(metrics)
        self.metrics = list(metrics.values())
        self.clean_models = [part["clean_model"] for part in self.metrics]
        self.width = max(10, *(len(part["attack"]) for part in self.metrics)) + 2

    def line(self, key, values, note=""):
        """Prints a figure's name, its value for each checkpoint, and what it is."""
        cells = "".join(f"{show(value):>{self.width}}" for value in values)
        print(f"{key:<{KEY_WIDTH}}{cells}  {note}")

    def print(self):
        """Prints all of it."""
        self.print_header()
        self.print_predictions("", self.metrics)
        self.print_predictions("reference.", self.clean_models)
        self.print_aurocs()
        parts = [part["explanations"] for part in self.metrics]
        for explainer in dict.fromkeys(name for part in parts for name in part):
            self.print_explainer(explainer)

    def print_header(self):
        """What the checkpoints are."""
        if len(self.names) > 1:
            for k, name in enumerate(self.names, 1):
                print(f"[{k}] {name}")
            self.line("", [f"[{k}]" for k in range(1, len(self.names) + 1)])
        for key, note in HEADER.items():
            values = [part.get(key) for part in self.metrics]
            if key == "dataset":
                values = [Path(value).stem[: self.width - 2] for value in values]
            # Rates may be small: three significant digits, not four after the point.
            values = [f"{value:.3g}" if isinstance(value, float) else value for value in values]
            self.line(key, values, note)

    def print_predictions(self, prefix, parts):
        """The figures that need no explainer; parts: of the checkpoints or of their references."""
        for key, definition in PREDICTION_FIGURES.items():
            values = [part.get(key) for part in parts]
            if any(value is not None for value in values):
                note = "the same of the clean reference model" if prefix else definition
                self.line(prefix + key, values, note)

    def print_aurocs(self):
        """The area under the ROC curve, class by class, where an image may show several."""
        parts = [part.get("auroc") or {} for part in self.metrics]
        for name in dict.fromkeys(name for part in parts for name in part):
            self.line(f"auroc.{name}", [part.get(name) for part in parts])

    def print_explainer(self, explainer):
        """The figures about one explainer's maps."""
        own = [part["explanations"].get(explainer, {}) for part in self.metrics]
        trained = [part.get("trained_against") for part in own]
        note = ""
        if all(trained):
            note = ": trained against"
        elif not any(trained):
            note = ": not trained against"
        print(f"\n{explainer}{note}")
        columns = []
        for part, clean_model in zip(own, self.clean_models):
            reference = flat(clean_model.get("explanations", {}).get(explainer, {}))
            prefixed = {f"reference.{key}": value for key, value in reference.items()}
            columns.append(flat(part) | prefixed)
        for key, definition in MAP_FIGURES.items():
            values = [column.get(key) for column in columns]
            if any(value is not None for value in values):
                self.line(key, values, definition)


def print_table(metrics):
    """Prints {name of a checkpoint: its metrics}, side by side, each with its definition."""
    Table(metrics).print()
