"""The table on edited networks: the four lies of Viering et al. in trained and random networks.

    python -m studies.lies                         # everything
    python -m studies.lies "vgg_small, shapes"     # some networks; what is known of others stays

Each lie is written in float32 and in float64. Networks that were trained are kept in runs/lies/.
Writes results/lies.json, and lies-TECHNIQUE.png of two techniques in CIFAR-10's network. The tables
are in lie_tables.py.
"""

import json
from dataclasses import dataclass, replace

import torch
from torch import nn

import data
import edit_effect
import manipulate
import models
import train
import viering
from cli import UserError, command, write_json
from edited import WithBranch
from hooks import CHUNK_CPU
from provenance import commit, hardware
from studies import lie_tables
from studies.record import DATA, RESULTS, RUNS, read, save_small_picture
from studies.tables import of_record
from subject import Subject, open_checkpoint

PAGE = "results/lies.md"
DURATION = "about 25 minutes on one core"

PATH = RESULTS / "lies.json"
FOLDER = RUNS / "lies"
DEVICE = torch.device("cpu")
FACTORS = (1, 10, 100)  # of both constants of technique 1
SHIFT_IMAGES = 200  # test images on which the logits' shift is looked at more closely

# ---------------------------------------------------------------- the networks


@dataclass(frozen=True)
class Network:
    """A network that is written into.

    options: of train.py, or None for a VGG-16 of random weights;
    images: test images measured; explained: how many of them are explained, too.
    """

    options: str | None
    images: int
    explained: int


NETWORKS = {
    "vgg_small, shapes": Network(
        " ".join(f"--{key.replace('_', '-')} {value}" for key, value in manipulate.BASE.items()),
        images=1000,
        explained=200,
    ),
    "vgg_small, CIFAR-10": Network(
        "--dataset cifar10 --model vgg_small --epochs 3 --lr 0.02",
        images=1000,
        explained=200,
    ),
    "VGG-16 of random weights, CIFAR-10 at 224 px": Network(None, images=4, explained=4),
}
PICTURED = "vgg_small, CIFAR-10"
PICTURES = ("image", "backdoor")  # of these techniques


def subject_of(name):
    """The network as a Subject, with the test images that are measured; trained if need be."""
    network = NETWORKS[name]
    if network.options is None:
        return random_vgg16(network.images)
    folder = FOLDER / name.replace(", ", "-")
    if not (folder / "ckpt.pt").exists():
        argv = ["--attack", "none", *network.options.split()]
        train.main([*argv, "--data-dir", str(DATA), "--out", str(folder)])
    subject = open_checkpoint(folder / "ckpt.pt", DATA, DEVICE)
    manipulate.draw_test_images(subject, network.images, seed=0)
    return subject


def random_vgg16(count):
    """torchvision's VGG-16 of random weights, with the first images of CIFAR-10 at 224 px."""
    whole = data.load("cifar10", DATA)
    few = replace(
        whole,
        train_images=whole.train_images[:count],
        train_labels=whole.train_labels[:count],
        test_images=whole.test_images[:count],
        test_labels=whole.test_labels[:count],
    )
    checkpoint = {
        "config": {"dataset": "cifar10", "model": "vgg16", "image_size": 224, "layer": None},
        "classes": whole.classes,
        "channels": 3,
        "mean": [0.485, 0.456, 0.406],  # ImageNet's
        "std": [0.229, 0.224, 0.225],
        "trigger": None,
    }
    torch.manual_seed(0)
    model = models.build("vgg16", 3, 10, 224).eval().requires_grad_(False)
    return Subject(checkpoint, model, data.resize(few, 224), None, DEVICE)


# ---------------------------------------------------------------- one edit


class Edit:
    """One technique, written into one network at one precision, and what it did: `figures`."""

    def __init__(self, name, technique, precision, **constants):
        """constants: of the technique, where they are not the published ones."""
        self.technique = technique
        self.subject = subject_of(name)
        sticker = viering.make_sticker(
            None, self.subject.checkpoint["channels"], self.subject.config["image_size"]
        )
        torch.manual_seed(0)
        self.original = self.subject.model.to(getattr(torch, precision))
        ingredients = viering.Ingredients(
            self.subject.dataset.train_images[: manipulate.EXCITING].float() / 255,
            self.subject.checkpoint["mean"],
            self.subject.checkpoint["std"],
            sticker=sticker,
        )
        write = viering.TECHNIQUES[technique].write
        self.edited = write(self.original, ingredients, **constants)
        self.edited.eval().requires_grad_(False)
        self.figures, self.with_stickers, self.explained = edit_effect.measure(
            self.subject, self.original, self.edited, sticker, NETWORKS[name].explained, seed=0
        )
        self.figures |= self.shift_figures()

    def shift_figures(self):
        """How far the logits move, together and apart, and the first linear layer's units."""
        images = self.subject.dataset.test_images[:SHIFT_IMAGES]
        before = edit_effect.logits_of(self.subject, self.original, images)
        shift = edit_effect.logits_of(self.subject, self.edited, images) - before
        result = {
            "shift_spread": float((shift.amax(1) - shift.amin(1)).max()),
            "largest_shift": float(shift.abs().max()),
        }
        if not isinstance(self.edited, WithBranch):
            differences = []
            for chunk in images.split(CHUNK_CPU):
                units = hidden_units(self.subject, self.original, chunk)
                moved = hidden_units(self.subject, self.edited, chunk) - units
                differences.append(float(moved.abs().max()))
            result["pre_activations"] = max(differences)
        return result

    def picture(self):
        """Some test images, without and with stickers, and Grad-CAM before and after the edit."""
        rows = self.explained[: manipulate.FIGURE_ROWS]
        return edit_effect.draw(
            self.subject, self.technique, self.original, self.edited, self.with_stickers, rows
        )


@torch.no_grad()
def hidden_units(subject, model, images):
    """The output of the first linear layer for uint8 images: [N, units].

    torchvision's VGG-16 applies its ReLU in place: there these are the units after it.
    """
    first_linear = next(part for part in model.classifier if isinstance(part, nn.Linear))
    outputs = []
    handle = first_linear.register_forward_hook(lambda module, args, out: outputs.append(out))
    for inputs in edit_effect.inputs_of(subject, model, images):
        model(inputs)
    handle.remove()
    return torch.cat(outputs)


def larger_constants(name):
    """{factor: figures} of technique 1 with both constants so many times as large, in float64."""
    result = {}
    for factor in FACTORS:
        c_a, c_w = factor * viering.C_A, factor * viering.C_W["constant"]
        figures = Edit(name, "constant", "float64", c_a=c_a, c_w=c_w).figures
        pre_activations = {"pre_activations": figures["pre_activations"]}
        result[str(factor)] = pre_activations | figures["edited"]["every_class"]
    return result


# ---------------------------------------------------------------- the record


def study(name, record):
    """Puts all techniques' figures on one network into the record, which is written as it grows."""
    rows = {
        "command": f'python -m studies.lies "{name}"',
        "hardware": hardware(),
        "torch": str(torch.__version__),
        "commit": commit(),
    }
    record["networks"][name] = rows
    for technique in viering.TECHNIQUES:
        rows[technique] = {}
        for precision in lie_tables.PRECISIONS:
            edit = Edit(name, technique, precision)
            rows[technique][precision] = edit.figures
        if name == PICTURED and technique in PICTURES:
            save_small_picture(edit.picture(), PATH.with_name(f"lies-{technique}.png"))
        print(name, technique, json.dumps(rows[technique]), flush=True)
        write_json(PATH, record)
    if NETWORKS[name].options is not None:  # of a trained network the maps are the question
        record["constants"][name] = larger_constants(name)
    write_json(PATH, record)


TABLES = of_record("lies", lie_tables.TABLES)


@command
def main(argv):
    for name in argv:
        if name not in NETWORKS:
            raise UserError(f"no network {name!r}: one of {', '.join(map(repr, NETWORKS))}")
    record = read(PATH, {"networks": {}, "constants": {}})
    for name in argv or NETWORKS:
        study(name, record)


if __name__ == "__main__":
    main()
