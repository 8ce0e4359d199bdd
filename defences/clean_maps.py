"""What explanations show on clean images alone: what an auditor sees who knows of no trigger.

Two parts of `defend.py audit`. maps: where the maps of every class point, and how alike they are
from image to image; a class that one mark in one place stands for may have maps that lie there on
every image. disagreement: how far two explainers agree. Neither says whether there is a backdoor:
they say where to look, and how much the explanations are worth.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import figure
from defences import Defence, Verdict, name_cell, predict
from defences.disagreement import USUAL, disagreement, picture_of
from explain import EVALUATED, EXPLAINERS
from fonts import class_name, legend
from hooks import as_images
from metrics import centred, check_finite_maps, is_constant, mean_or_none

IMAGES = 40  # clean images whose map of every class is drawn ...
LEAST_IMAGES = 4  # ... but fewer of many classes, ...
MAPS = 4000  # ... so that there are at most so many maps of an explainer
WINDOW = 4  # a place is a window of a quarter of the image's height and width: 1/16 of its area
CHANCE = 1 / WINDOW**2  # share of an even map that lies in one
CLASSES_PICTURED = 8


# ---------------------------------------------------------------- the algorithm


@dataclass
class Places:
    """Where an explainer's maps lie, K classes.

    mean: [K, H', W'], of maps whose sum is 1. share: float64 [K], the largest share of the mean map
    within one window; row, column: float64 [K], the window's centre, 0 to 1 from the upper left.
    alike: float64 [K], the mean correlation of maps of different images, nan of fewer than two.
    """

    mean: torch.Tensor
    share: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    alike: torch.Tensor


def alikeness(maps):
    """The mean correlation over all pairs of maps [N, H, W]; nan of fewer than two.

    Constant maps are left out.
    """
    flat = centred(maps[~is_constant(maps)])
    n = len(flat)
    if n < 2:
        return float("nan")
    unit = flat / flat.norm(dim=1, keepdim=True)
    # Of unit vectors u_i, |sum u_i|^2 = n + the sum of the correlations of all ordered pairs.
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def densest_window(map_):
    """(share of a map [H, W] of sum 1, row, column) of the window that holds most of it."""
    height, width = map_.shape
    size = max(1, height // WINDOW), max(1, width // WINDOW)
    sums = F.avg_pool2d(map_[None, None], size, stride=1)[0, 0] * size[0] * size[1]
    top, left = divmod(int(sums.argmax()), sums.shape[1])
    return float(sums.amax()), (top + size[0] / 2) / height, (left + size[1] / 2) / width


def places(maps):
    """The Places of maps [K, N, H', W'] of K classes on the same images."""
    maps = maps.clamp_min(0).double()
    total = maps.sum((2, 3), keepdim=True)
    mean = (maps / total.clamp_min(torch.finfo(torch.float64).tiny)).mean(1)
    windows = torch.tensor([densest_window(map_) for map_ in mean], dtype=torch.float64)
    alike = torch.tensor([alikeness(of_class) for of_class in maps], dtype=torch.float64)
    return Places(mean, *windows.T, alike)


def where(row, column):
    """A place in words, "lower right" say; row, column: 0 to 1 from the upper left."""
    words = [
        ("upper", "", "lower")[min(int(3 * row), 2)],
        ("left", "", "right")[min(int(3 * column), 2)],
    ]
    return " ".join(word for word in words if word) or "middle"


def maps_of_classes(model, images, explainer, count, say):
    """Maps of every one of `count` classes, [K, N, H', W'] on the CPU, of images [N, C, H, W]."""
    maps = []
    for k in range(count):
        say(f"{explainer}, class {k + 1} of {count}")
        classes = torch.full((len(images),), k, device=images.device)
        found = EXPLAINERS[explainer].evaluate(model, images, classes)
        check_finite_maps(found)
        maps.append(found.cpu())
    return torch.stack(maps)


# ---------------------------------------------------------------- maps


def run_maps(audit):
    """A Verdict without an answer: where the maps of every class lie on clean images.

    An explainer that cannot explain this network is named with its reason.
    Raises ValueError where none can.
    """
    model, classes = audit.subject.model, audit.subject.classes
    count = max(LEAST_IMAGES, min(IMAGES, MAPS // len(classes)))
    images = as_images(model, audit.inputs[:count], at_least=2)
    predicted = predict(model, audit.inputs)
    found, floors, refused = {}, {}, {}
    for name in EVALUATED:
        try:
            found[name] = places(maps_of_classes(model, images, name, len(classes), audit.say))
            floors[name] = alikeness(EXPLAINERS[name].evaluate(model, audit.inputs, predicted))
        except ValueError as error:
            refused[name] = str(error)
    if not found:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    details = {"images": len(images), "floor": floors, "refused": refused}
    details["places"] = {name: records(part) for name, part in found.items()}
    return Verdict(
        backdoored=None,
        lines=lines_of_maps(found, floors, refused, classes, len(images)),
        details=details,
        picture=picture_of_places(audit, found),
    )


def records(found):
    """{class: {"share", "where", "alike"}} of Places; the classes are numbers."""
    return {
        k: {
            "share": float(found.share[k]),
            "where": where(float(found.row[k]), float(found.column[k])),
            "alike": float(found.alike[k]),
        }
        for k in range(len(found.share))
    }


def lines_of_maps(found, floors, refused, classes, count):
    """Lines: of each explainer the classes whose maps are most alike."""
    lines = [
        f"Maps of every class on the same {count} clean images. alike: mean correlation of the"
        f" maps of different images; share: of the map that lies in 1/{WINDOW**2} of the image."
    ]
    for name, part in found.items():
        lines.append(f"{name}: maps of the class predicted are alike by {floors[name]:.2f}")
        lines.append(f"{'class':<32}{'alike':>8}{'share':>8}  where")
        for k in most_alike(part):
            place = where(float(part.row[k]), float(part.column[k]))
            figures = f"{float(part.alike[k]):>8.2f}{float(part.share[k]):>8.2f}"
            lines.append(f"{k:>3} {name_cell(classes[k])}{figures}  {place}")
    lines += [f"{name} cannot explain this network: {reason}" for name, reason in refused.items()]
    return lines


def most_alike(found):
    """Numbers of the CLASSES_PICTURED classes whose maps are most alike."""
    alike = found.alike.nan_to_num(-1)
    return alike.argsort(descending=True)[:CLASSES_PICTURED].tolist()


def picture_of_places(audit, found):
    """The mean map of the classes whose maps are most alike, a row an explainer."""
    classes, mean_image = audit.subject.classes, audit.pixels.mean(0).cpu()
    rows = []
    for name, part in found.items():
        row = [(figure.panel(mean_image), name, False)]
        for k in most_alike(part):
            caption = f"{class_name(classes, k)}: {float(part.alike[k]):.2f}"
            row.append((figure.panel(mean_image, part.mean[k]), caption, False))
        rows.append(row)
    headers = ["mean image", *[""] * (len(rows[0]) - 1)]
    footer = "The number says how alike the maps of different images are; the most alike first."
    footer += legend(classes, "verdict.json")
    return figure.sheet("Mean map of each class on clean images", headers, rows, footer)


# ---------------------------------------------------------------- disagreement


def run_disagreement(audit):
    """A Verdict without an answer: how far two explainers differ on clean images."""
    values = disagreement(audit.subject.model, audit.inputs, EVALUATED)
    median, limit = float(values.median()), float(values.quantile(USUAL))
    pair = " and ".join(EVALUATED)
    return Verdict(
        backdoored=None,
        lines=[
            f"1 - correlation of {pair}, on {len(values)} clean images: "
            f"median {median:.3f}; one in twenty is above {limit:.3f}"
        ],
        details={
            "explainers": list(EVALUATED),
            "median": median,
            "limit": limit,
            "mean": mean_or_none(values),
        },
        picture=picture_of(EVALUATED, {"clean images": values}),
    )


def settings_of_maps(options):
    return {"map_images": IMAGES, "window": WINDOW}


def settings_of_disagreement(options):
    return {"usual": USUAL}


MAPS_OF_CLASSES = Defence(
    help="where the maps of every class point on clean images",
    run=run_maps,
    settings=settings_of_maps,
    multi_label=True,
)
CLEAN_DISAGREEMENT = Defence(
    help="how far two explainers differ on clean images",
    run=run_disagreement,
    settings=settings_of_disagreement,
    multi_label=True,
)
