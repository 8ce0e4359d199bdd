"""The tables of results/lies.md, from the record of studies/lies.py.

Every function of TABLES takes the record, a dict, and returns the lines of a Markdown table.
"""

import viering
from studies.tables import header, line, note

TRAINED = {"vgg_small, shapes": "shapes", "vgg_small, CIFAR-10": "CIFAR-10"}  # what the page says
RANDOM = "VGG-16 of random weights, CIFAR-10 at 224 px"
PRECISIONS = ("float32", "float64")
IMAGES = {"edited": "clean", "sticker": "stickers"}  # key of the figures: what the tables say
# Viering et al. 2019, VGG-16 on ImageNet: the original network's accuracy. What the edited one did
# is in viering.TECHNIQUES.
PUBLISHED_BEFORE = {"edited": 0.71592, "sticker": 0.69048}
SHIFT = "\\|y_o - y_n\\|_inf"
DISTANCE = "\\|I_T - I_n\\|_1"


# ---------------------------------------------------------------- the page's tables


def networks(record):
    """What each technique did to the two trained networks, beside what is published."""
    titles = ["technique", "network", "accuracy before", "after", "answers changed", "float64"]
    lines = header([*titles, SHIFT, "float64", DISTANCE, "float64", "blank maps"])
    rows = [(technique, "edited") for technique in viering.TECHNIQUES] + [("backdoor", "sticker")]
    for technique, images in rows:
        shown = f"`{technique}`, {IMAGES[images]}" if technique == "backdoor" else f"`{technique}`"
        for name, network in TRAINED.items():
            figures = record["networks"][name][technique]
            lines.append(line([shown, network, *cells_of(figures, images)]))
        lines.append(line([shown, "published", *published_cells(technique, images)]))
    parts = [record["networks"][name] for name in TRAINED]
    return [*lines, "", note_of(parts)]


def cells_of(figures, images):
    """Nine cells of one technique in one network; images: a key of IMAGES."""
    single, double = (figures[precision][images] for precision in PRECISIONS)
    before = single.get("original_accuracy", figures["float32"]["original"]["accuracy"])
    cells = [f"{before:.3f}", f"{single['accuracy']:.3f}"]
    cells += [single["changed_predictions"], double["changed_predictions"]]
    for key in ("score_shift", "map_distance"):
        cells += [f"{single[key]:.2g}", f"{double[key]:.2g}"]
    return [*cells, f"{single['blank_maps']:.1%}"]


def published_cells(technique, images):
    """Nine cells of what the authors report."""
    name = "backdoor, sticker" if images == "sticker" else technique
    accuracy, shift, distance = viering.TECHNIQUES[technique].published[name]
    before = PUBLISHED_BEFORE[images]
    return [f"{before:.5f}", f"{accuracy:.5f}", "", "", f"{shift:g}", "", f"{distance:g}", "", ""]


def constants(record):
    """Technique 1 with larger constants, in float64."""
    titles = ["constants, times the published"]
    for name in record["constants"]:
        titles += [f"{TRAINED[name]}: {DISTANCE}", "blank maps", "hidden units' error"]
    lines = header(titles)
    factors = next(iter(record["constants"].values()))
    for factor in factors:
        cells = [factor]
        for part in record["constants"].values():
            figures = part[factor]
            cells += [f"{figures['map_distance']:.1g}", f"{figures['blank_maps']:.0%}"]
            cells.append(f"{figures['pre_activations']:.1g}")
        lines.append(line(cells))
    return lines


def random_weights(record):
    """VGG-16 at its real size, random weights: what rounding does to its answers."""
    part = record["networks"][RANDOM]
    titles = ["technique", "answers changed, float32", "with stickers", "float64"]
    titles += ["hidden units' error, float64", "logits' shift, largest minus smallest, float64"]
    lines = header(titles)
    for technique in viering.TECHNIQUES:
        single, double = (part[technique][precision] for precision in PRECISIONS)
        cells = [f"`{technique}`"]
        cells += [single[images]["changed_predictions"] for images in IMAGES]
        cells.append(double["edited"]["changed_predictions"])
        moved = double.get("pre_activations")
        cells += ["" if moved is None else f"{moved:.1g}", f"{double['shift_spread']:.1g}"]
        lines.append(line(cells))
    return [*lines, "", note_of([part])]


def note_of(networks):
    """How many images, on what and by which code these networks of the record were measured."""
    figures = networks[0]["constant"]["float32"]
    about = f"{figures['n_test']:,} test images, {figures['n_explained']} of them explained; seed 0"
    return note(
        about,
        [network["hardware"] for network in networks],
        [network["commit"] for network in networks],
    )


# ---------------------------------------------------------------- all figures

COLUMNS = {
    "original_accuracy": "accuracy before",
    "accuracy": "after",
    "changed_predictions": "answers changed",
    "score_shift": SHIFT,
    "map_distance": DISTANCE,
    "blank_maps": "blank maps",
    "fired": "fired",
}


def everything(record):
    """Every network, technique and precision, without and with stickers."""
    titles = ["network", "technique", "images", "n", "precision", *COLUMNS.values()]
    lines = header([*titles, "hidden units' error"])
    for name, techniques in record["networks"].items():
        for technique in viering.TECHNIQUES:
            for precision, figures in techniques[technique].items():
                for key, images in IMAGES.items():
                    about = [name, technique, images, figures["n_test"], precision]
                    lines.append(line(about + cells(figures, key)))
    return lines


def cells(figures, images):
    """The figures of a line; images: a key of IMAGES."""
    part = {"original_accuracy": figures["original"]["accuracy"]} | figures[images]
    result = [number_cell(part[key]) for key in COLUMNS]
    pre_activations = figures.get("pre_activations")
    result.append("-" if pre_activations is None else f"{pre_activations:.1e}")
    return result


def number_cell(value):
    """A number in four digits, small ones with an exponent; "-" of None."""
    if value is None:
        return "-"
    small = isinstance(value, float) and 0 < value < 1e-3
    return f"{value:.2e}" if small else f"{value:.4g}"


TABLES = {
    "networks": networks,
    "constants": constants,
    "random": random_weights,
    "everything": everything,
}
