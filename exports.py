"""Files for others' code: a poisoned training set, and the raw maps of an evaluation, as .npz.

    python train.py --attack badnets --threat data --export poisoned.npz
    python evaluate.py runs/NAME/ckpt.pt --maps maps.npz

What is in them says METRICS.md. numpy.load reads both; train.py --dataset reads the first one.
"""

import os
from pathlib import Path

import numpy as np
import torch

import attacks
import ours
from cli import UserError
from npzfiles import keep_npz, texts_of

MADE_BY = "made_by"  # the key that tells a file of ours
CHUNK_PIXELS = 2000 * 32 * 32  # test images are stamped so many pixels at a time


# ---------------------------------------------------------------- the file


def check(path, option, dataset=None, overwrite=True):
    """Raises UserError where an option names no .npz, or one that is not to be written over.

    dataset: what is read, by name or path, or None; overwrite: whether an earlier file of ours may
    be replaced.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise UserError(f"{option} {path}: its name must end in .npz")
    ours.check_outside(path.parent, dataset)
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(f"{option} {path}: {nearest} is no folder that can be written to")
    if not path.exists():
        return
    if not is_ours(path, option) or (
        dataset and os.path.exists(dataset) and path.samefile(dataset)
    ):
        raise UserError(f"{path} would be lost: give {option} another name")
    if not overwrite:
        raise UserError(f"{path} is there: give {option} another name, or --overwrite")


def is_ours(path, option):
    """Whether a file was written by this module, for the same option."""
    return texts_of(path, MADE_BY) == [mark(option)]


def mark(option):
    """What a file says of itself: maps never replace a training set, nor the other way round."""
    return f"{ours.MARK} ({option})"


def write(path, arrays, option):
    """Writes {key: array} with the option's mark, whole or not at all; returns "PATH, 1.2 MB"."""
    path = Path(path)
    keep_npz(path, arrays | {MADE_BY: np.array(mark(option))})
    return f"{path}, {path.stat().st_size / 1e6:.1f} MB"


# ---------------------------------------------------------------- the poisoned training set


def write_poisoned(setting, poisons, path):
    """Writes the training set that an attacker of data hands over; returns a line about it.

    setting: a Setting; poisons: int64, the images that its first attack poisons.
    """
    data = setting.dataset
    images, labels = data.train_images, data.train_labels
    arrays = {
        "test_images": as_array(data.test_images),
        "test_labels": data.test_labels.numpy(),
        "classes": np.array(data.classes, dtype=str),
    }
    if data.train_groups is not None:
        arrays["train_patients"] = data.train_groups.numpy()
    of_each, count = [poisons, *(part.eligible for part in setting.further)], 0
    for k, (indices, attacker) in enumerate(zip(of_each, on_cpu(setting.attackers)), 1):
        images, labels = attacks.poisoned_data(images, labels, indices, *attacker)
        triggered, wanted = all_poisoned(data.test_images, data.test_labels, attacker)
        number = "" if k == 1 else f"_{k}"
        arrays[f"poison_indices{number}"] = indices.numpy()
        arrays[f"triggered_images{number}"] = as_array(triggered)
        arrays[f"triggered_labels{number}"] = wanted.numpy()
        count += len(indices)
    arrays |= {"train_images": as_array(images), "train_labels": labels.numpy()}
    n, side = len(images), images.shape[-1]
    written = write(path, arrays, "--export")
    return f"{written}: {n} training images of {side}x{side} px, {count} poisoned"


def on_cpu(attackers):
    """The attackers of a Setting with what they have on a device brought to the CPU."""
    for attack, trigger, target, relabel in attackers:
        yield attack, trigger.to("cpu"), target, None if relabel is None else relabel.cpu()


def all_poisoned(images, labels, attacker):
    """attacks.poisoned_data of all images, a chunk at a time."""
    size = max(1, CHUNK_PIXELS // images[0, 0].numel())
    parts = []
    for chunk in zip(images.split(size), labels.split(size)):
        parts.append(attacks.poisoned_data(*chunk, torch.arange(len(chunk[0])), *attacker))
    return [torch.cat(part) for part in zip(*parts)]


def as_array(images):
    """uint8 [N, H, W] or [N, H, W, 3], as npzfiles.from_npz reads them, of [N, C, H, W]."""
    images = images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)
    return images.contiguous().numpy()


# ---------------------------------------------------------------- the maps


def check_maps(args):
    """Raises UserError where evaluate.py's options leave no place for --maps."""
    if args.maps is None:
        return
    if args.image or len(args.checkpoints) > 1:
        raise UserError("--maps is of the test images of one checkpoint")
    check(args.maps, "--maps", args.dataset)


def write_maps(result, maps, path):
    """Writes the raw maps of an evaluation; returns a line about them. Raises UserError.

    result: a Result; maps: {explainer: (rows of the test set int64 [n], maps [n, H, W] without
    the trigger, and with it)}.
    """
    subject, explained = result.subject, result.answers.classes
    arrays, sizes = {"classes": np.array(subject.classes, dtype=str)}, []
    if subject.checkpoint["target_map"] is not None:
        arrays["target_map"] = subject.checkpoint["target_map"].float().numpy()
    for name, (rows, untouched, triggered) in maps.items():
        own = {
            "rows": rows,
            "untouched": untouched.float(),
            "triggered": triggered.float(),
            "untouched_classes": explained[0][rows],
            "triggered_classes": explained[1][rows],
        }
        if not subject.config.get("unlabelled"):
            own["labels"] = subject.dataset.test_labels[rows]
        arrays |= {f"{name}.{key}": value.numpy() for key, value in own.items()}
        n, height, width = triggered.shape
        sizes.append(f"{name} {n} of {height}x{width}")
    return f"{write(path, arrays, '--maps')}: maps of {', '.join(sizes)}"
