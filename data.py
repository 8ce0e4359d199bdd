"""Data sets by name, as uint8 tensors in memory; splits and augmentation.

    load("shapes")                     # drawn by shapes.py in two seconds, with object masks
    load("cifar10", data_dir="data")   # downloaded and decoded; kept as data/cifar10.npz
    load("my_images.npz")              # MedMNIST's keys, train_images, train_labels and so on
    load("my_folder")                  # my_folder/train/CLASS/*, my_folder/test/CLASS/*
    load("chestxray14", "data", 128)   # the NIH's radiographs in data/chestxray14

To add a data set, write a function (data_dir, image_size) -> Dataset and name it in DATASETS. A
function that has the images at another size than image_size returns them as they are: `load`
resizes them.
"""

import contextlib
import functools
import io
import types
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as vision

from chestxray import chestxray14, chestxray14_multi
from cli import UserError, first_line
from dataset import chunk_length, send
from imagefiles import FITS
from imagefolders import from_folder
from npzfiles import from_npz, keep_npz
from shapes import shapes
from terminal import print_note

MAX_VALIDATION = 2000  # images held out of training: a tenth of the training set, at most this many
FOLDER_SIZE = 32  # pixels a side of a folder's images, unless another size is asked for


# ---------------------------------------------------------------- published data sets

# fmt: off
CIFAR10 = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
]
GTSRB = [
    "speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70",
    "speed limit 80", "end of speed limit 80", "speed limit 100", "speed limit 120", "no passing",
    "no passing for lorries", "right of way at the crossing", "priority road", "yield", "stop",
    "no vehicles", "no lorries", "no entry", "danger", "bend to the left", "bend to the right",
    "double bend", "uneven road", "slippery road", "road narrows", "road works", "traffic signals",
    "pedestrians", "children", "bicycles", "ice or snow", "wild animals", "end of all limits",
    "turn right", "turn left", "straight on", "straight on or right", "straight on or left",
    "keep right", "keep left", "roundabout", "end of no passing",
    "end of no passing for lorries",
]
# fmt: on
GTSRB_SIZE = 32  # pixels a side, unless another size is asked for


def mnist(data_dir, image_size=None):
    """MNIST, grey, 28x28; not augmented."""
    return published(data_dir, "mnist", torchvision.datasets.MNIST)


def cifar10(data_dir, image_size=None):
    """CIFAR-10, RGB, 32x32; in training shifted by up to 2 pixels and mirrored."""
    dataset = published(data_dir, "cifar10", torchvision.datasets.CIFAR10)
    return replace(dataset, crop=2, flip=True, classes=CIFAR10)


def gtsrb(data_dir, image_size=None):
    """GTSRB, 43 traffic signs, RGB; in training shifted by up to 2 pixels.

    The published images, of 15 to 250 pixels a side, lie in DATA_DIR/gtsrb or are downloaded. Each
    is brought from there to `image_size` (None: 32) pixels square; they are kept as
    DATA_DIR/gtsrb_SIZE.npz (32 pixels: gtsrb.npz). Where there is only gtsrb.npz, its images are
    returned, for `load` to resize, and a line on standard error says so.
    """
    size = image_size or GTSRB_SIZE
    small = data_dir / "gtsrb.npz"
    wanted = small if size == GTSRB_SIZE else data_dir / f"gtsrb_{size}.npz"
    originals = data_dir / "gtsrb"
    if not wanted.exists() and not originals.exists() and small.exists():
        print_note(
            f"GTSRB's own images are not in {originals}: "
            f"those of gtsrb.npz, of {GTSRB_SIZE} px, are resized."
        )
        wanted = small
    dataset = published(data_dir, wanted.stem, functools.partial(gtsrb_split, size=size))
    return replace(dataset, crop=2, classes=GTSRB)


def gtsrb_split(root, train, download, size):
    """One split of GTSRB in the form that `published` takes, each image size x size pixels.

    Signs that are not square are squashed, as in published figures, whatever --fit says of others.
    """
    signs = torchvision.datasets.GTSRB(root, "train" if train else "test", download=download)
    images, labels = [], []
    for image, label in signs:
        resized = image.convert("RGB").resize((size, size), Image.BILINEAR)
        images.append(np.asarray(resized))
        labels.append(label)
    return types.SimpleNamespace(data=np.stack(images), targets=labels, classes=GTSRB)


def published(data_dir, name, source):
    """The Dataset in DATA_DIR/NAME.npz; made by torchvision where that is not there.

    source: a class or function (root, train, download) -> an object with data [N, H, W] or
    [N, H, W, 3], targets and classes, as torchvision's data sets are; it downloads and verifies.
    Raises UserError where that fails.
    """
    kept = data_dir / f"{name}.npz"
    if not kept.exists():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints its progress
                train = source(data_dir, train=True, download=True)
                test = source(data_dir, train=False, download=True)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            # No network, or a file that fails its checksum or is cut short.
            remove_empty_folders(data_dir)
            raise UserError(
                f"{name} is not in {data_dir} and could not be downloaded and read "
                f"({first_line(error)}): put {name}.npz there"
            ) from None
        arrays = {
            "train_images": np.asarray(train.data),
            "train_labels": np.asarray(train.targets, np.int64),
            "test_images": np.asarray(test.data),
            "test_labels": np.asarray(test.targets, np.int64),
            "classes": train.classes,
        }
        keep_npz(kept, arrays)
    return from_npz(kept)


def remove_empty_folders(data_dir):
    """Removes the folders that torchvision makes before it downloads, if nothing is in them."""
    for folder in ("MNIST/raw", "MNIST", "gtsrb", "."):
        with contextlib.suppress(OSError):
            (data_dir / folder).rmdir()


# ---------------------------------------------------------------- a data set by name

DATASETS = {
    "shapes": shapes,
    "mnist": mnist,
    "cifar10": cifar10,
    "gtsrb": gtsrb,
    "chestxray14": chestxray14,
    "chestxray14-multi": chestxray14_multi,
}


def load(name, data_dir="data", image_size=None, fit="crop"):
    """The Dataset called `name`, with images of image_size x image_size pixels.

    name: one of DATASETS, an .npz file (where it is not found, DATA_DIR/NAME), or a folder.
    image_size: None for the size that the images have (a folder's: 32).
    fit: how images that are not square become square, of imagefiles.FITS.
    Raises UserError, in one line, for what is not there or cannot be read. What is left out or done
    to images is said on standard error.
    """
    data_dir = Path(data_dir)
    if name in DATASETS:
        dataset = DATASETS[name](data_dir, image_size)
    elif Path(name).is_dir():
        dataset = from_folder(Path(name), data_dir, image_size or FOLDER_SIZE, fit)
    elif str(name).lower().endswith(".npz"):
        path = Path(name)
        dataset = from_npz(path if path.exists() else data_dir / name)
    else:
        raise UserError(
            f"unknown data set {str(name)!r}: one of {', '.join(DATASETS)}, a FILE.npz, "
            "or a FOLDER with train/ and test/"
        )
    height, width = dataset.train_images.shape[-2:]
    if height != width:
        fits = ", ".join(FITS)
        print_note(f"Images of {height}x{width} px are {FITS[fit]} (--fit {fits}).")
    return resize(dataset, image_size, fit)


def resize(dataset, size, fit="crop"):
    """The same Dataset object, its images brought to [C, size, size] by anti-aliased bilinear.

    size: None for the side they have when they are made square by `fit`: the shorter, if cropped,
    else the longer. Masks are resized by nearest pixel.
    """
    height, width = dataset.train_images.shape[-2:]
    size = size or (min(height, width) if fit == "crop" else max(height, width))
    if (height, width) == (size, size):
        return dataset
    dataset.train_images = resize_images(dataset.train_images, size, fit)
    dataset.test_images = resize_images(dataset.test_images, size, fit)
    if dataset.test_masks is not None:
        masks = squared(dataset.test_masks[:, None].float(), fit)
        masks = vision.resize(masks, [size, size], vision.InterpolationMode.NEAREST)
        dataset.test_masks = masks[:, 0] > 0.5
    return dataset


def resize_images(images, size, fit="crop"):
    """uint8 [N, C, size, size] of uint8 images [N, C, H, W], a chunk at a time."""
    chunks = (squared(chunk, fit) for chunk in images.split(chunk_length(images)))
    return torch.cat([vision.resize(chunk, [size, size], antialias=True) for chunk in chunks])


def squared(images, fit):
    """Images [N, C, S, S] of [N, C, H, W]: the middle, or in the middle of black. fit: of FITS.

    To be squashed they are left as they are: resizing does that.
    """
    height, width = images.shape[-2:]
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return images[:, :, top : top + side, left : left + side]
    if fit == "pad":
        down, across = max(width - height, 0), max(height - width, 0)
        sides = [across // 2, across - across // 2, down // 2, down - down // 2]
        return torch.nn.functional.pad(images, sides)
    return images


def composed(name):
    """A class's name with its accents in the letters, Unicode's normal form C.

    File systems differ in this, and one sees no difference.
    """
    return unicodedata.normalize("NFC", name)


def relabelled(dataset, classes):
    """The Dataset in RGB, its labels counted in `classes`, a network's list of names.

    Names are compared as `composed` has them. Raises UserError for a class of the data set that is
    not among them.
    """
    alike = [composed(name) for name in classes]
    unknown = [name for name in dataset.classes if composed(name) not in alike]
    if unknown:
        raise UserError(
            f"the network was not trained on this data set, and knows no class {unknown[0]!r}: "
            "give images in folders called as its classes are"
        )
    number = torch.tensor([alike.index(composed(name)) for name in dataset.classes])
    return replace(
        dataset,
        train_images=dataset.train_images.expand(-1, 3, -1, -1),
        test_images=dataset.test_images.expand(-1, 3, -1, -1),
        train_labels=number[dataset.train_labels],
        test_labels=number[dataset.test_labels],
        classes=classes,
    )


def renumbered(dataset, classes):
    """The Dataset, its labels counted in `classes`, where all its own classes are among them.

    So it is as it was for a version of the code that left room for numbers which no label has.
    Another is returned as it is.
    """
    if dataset.classes == classes or dataset.multi_label or not set(dataset.classes) < set(classes):
        return dataset
    number = torch.tensor([classes.index(name) for name in dataset.classes])
    return replace(
        dataset,
        train_labels=number[dataset.train_labels],
        test_labels=number[dataset.test_labels],
        classes=classes,
    )


# ---------------------------------------------------------------- statistics


def mean_std(images):
    """Mean and standard deviation of each channel, exact: two lists of C floats.

    images: uint8 [N, C, H, W], taken to be in [0, 1]. A channel of one colour has the standard
    deviation 1.0, so that one can divide by it.
    """
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, np.int64)
        for chunk in images.split(chunk_length(images)):  # bincount needs 8 bytes a pixel
            counts += np.bincount(chunk[:, channel].numpy().ravel(), minlength=256)
        share = counts / counts.sum()
        channel_mean = share @ values
        variance = share @ (values - channel_mean) ** 2
        mean.append(float(channel_mean))
        std.append(float(np.sqrt(variance)) or 1.0)
    return mean, std


def normalise(images, mean, std):
    """(images - mean) / std of each channel, in channels_last memory format.

    images: float [N, C, H, W] in [0, 1]; mean, std: lists of C floats.
    """
    mean, std = (send(torch.tensor(part), images.device)[:, None, None] for part in (mean, std))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def is_same_data(checkpoint, dataset):
    """Whether a checkpoint was trained on this Dataset.

    An old checkpoint has no digest. Then mean and standard deviation are compared, and its test
    images may have been others.
    """
    names = checkpoint["classes"], dataset.classes
    if len({tuple(composed(name) for name in part) for part in names}) > 1:
        return False
    if "data" in checkpoint:
        return checkpoint["data"] == dataset.digest
    return (checkpoint["mean"], checkpoint["std"]) == mean_std(dataset.train_images)


# ---------------------------------------------------------------- splits and augmentation


def validation_split(n, seed, groups=None):
    """Indices of the images trained on and of those held out: two int64 tensors, sorted.

    Together they are 0 to n - 1, without overlap, and the same for the same seed. A tenth of the
    images is held out, at most MAX_VALIDATION. groups: int64 [n], or None; no group is divided.
    Raises UserError where every group is larger than that tenth.
    """
    generator = torch.Generator().manual_seed(seed)
    n_held_out = min(max(n // 10, 1), MAX_VALIDATION)
    if groups is None:
        order = torch.randperm(n, generator=generator)
        return order[n_held_out:].sort().values, order[:n_held_out].sort().values
    is_held_out = hold_out_groups(groups, n_held_out, generator)
    if not is_held_out.any():
        raise UserError(
            f"every patient has more than a tenth of the {n} training images: "
            "there are too few patients to hold some out"
        )
    return (~is_held_out).nonzero()[:, 0], is_held_out.nonzero()[:, 0]


def hold_out_groups(groups, n_images, generator):
    """bool [n], true for the images of whole groups, together at most n_images.

    The groups are tried in random order; one that is too large for the rest is passed over.
    """
    _, group_of, sizes = groups.unique(return_inverse=True, return_counts=True)
    held_out = []
    room = n_images
    for group in torch.randperm(len(sizes), generator=generator).tolist():
        size = int(sizes[group])
        if size <= room:
            held_out.append(group)
            room -= size
    return torch.isin(group_of, torch.tensor(held_out))


def augment(images, crop, flip):
    """Images shifted by up to `crop` pixels each and, if `flip`, mirrored half of the time.

    images: any dtype, [N, C, H, W]; the same shape and dtype come back. The random numbers come
    from torch's CPU generator on every device, so that a seed gives the same images everywhere.
    """
    if crop:
        images = shift(images, crop)
    if flip:
        mirrored = send(torch.rand(len(images)) < 0.5, images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


def shift(images, most):
    """Images [N, C, H, W] shifted by -most to `most` pixels; the border is filled by reflection."""
    n, _, height, width = images.shape
    device = images.device
    dy, dx = send(torch.randint(0, 2 * most + 1, (2, n, 1)), device)
    padded = torch.nn.functional.pad(images.float(), [most] * 4, mode="reflect")
    rows = dy + torch.arange(height, device=device)  # [N, H]
    columns = dx + torch.arange(width, device=device)  # [N, W]
    sample = torch.arange(n, device=device)[:, None, None]
    channels_last = padded.permute(0, 2, 3, 1)
    windows = channels_last[sample, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
    return windows.permute(0, 3, 1, 2).to(images.dtype)
