"""Data sets as uint8 arrays in memory.

    load("shapes")                     # drawn here in two seconds, no network; with object masks
    load("cifar10", data_dir="data")   # torchvision downloads, checks and decodes; kept as data/cifar10.npz
    load("my_images.npz")              # MedMNIST's keys: train_images [N, H, W(, 3)], train_labels, test_images, test_labels
    load("my_folder")                  # my_folder/train/CLASS/*.png|jpg and my_folder/test/CLASS/*.png|jpg
    load("chestxray14", "data", 128)   # the NIH's radiographs in data/chestxray14 (chestxray.py says how), kept as data/chestxray14_128.npz

A new data set is one function that returns a `Dataset`, and a line in `DATASETS`.
"""
import contextlib
import functools
import hashlib
import io
import struct
import sys
import types
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as vision

import chestxray
from cli import UserError, replace_file

MAX_VALIDATION = 2000  # images held out of training: a tenth of the training set, at most this many
SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass
class Dataset:
    """One data set, whole, in memory.

    train_images, test_images: uint8 [N, C, H, W], C is 1 or 3
    train_labels, test_labels: int64 [N]; float32 [N, K] of 0 and 1 where an image may show any number of the K classes (multi-label)
    classes: K names
    crop, flip: augmentation that leaves every label true: largest shift in pixels, mirror left to right or not
    test_masks: bool [N, H, W], the pixels of the object (None where nobody drew them)
    train_groups: int64 [N], the patient of each training image, say: a group is trained on or held out, whole (None: every image by itself)
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: list
    crop: int = 0
    flip: bool = False
    test_masks: torch.Tensor | None = None
    train_groups: torch.Tensor | None = None

    @property
    def multi_label(self):
        return self.train_labels.ndim == 2

    @functools.cached_property
    def digest(self):
        """A short text that no other data set has: of all images, labels and groups, in their order."""
        found = hashlib.blake2b(digest_size=16)
        for part in (self.train_images, self.train_labels, self.test_images, self.test_labels, self.train_groups):
            for chunk in () if part is None else part.split(1000):
                found.update(chunk.contiguous().numpy())
        return found.hexdigest()


def load(name, data_dir="data", image_size=None):
    """The data set called `name` (see the module's docstring), each image `image_size` pixels square.

    image_size None keeps the size the images have (a folder's: 32). Raises UserError, in one line, for what is not there.
    """
    if name in DATASETS:
        dataset = DATASETS[name](Path(data_dir), image_size)
    elif str(name).endswith(".npz"):
        path = Path(name) if Path(name).exists() else Path(data_dir) / name
        dataset = from_npz(path)
    elif Path(name).is_dir():
        dataset = from_folder(Path(name), Path(data_dir), image_size or 32)
    else:
        raise UserError(f"unknown data set {str(name)!r}: one of {', '.join(DATASETS)}, a FILE.npz, or a FOLDER with train/ and test/")
    return resize(dataset, image_size)


def resize(dataset, size):
    """The data set with images of [C, size, size] pixels (anti-aliased bilinear); masks by nearest pixel."""
    height, width = dataset.train_images.shape[-2:]
    size = size or max(height, width)
    if (height, width) == (size, size):
        return dataset
    for part in ("train_images", "test_images"):
        images = getattr(dataset, part)
        chunks = images.split(some(images))
        setattr(dataset, part, torch.cat([vision.resize(chunk, [size, size], antialias=True) for chunk in chunks]))
    if dataset.test_masks is not None:
        masks = vision.resize(dataset.test_masks[:, None].float(), [size, size], vision.InterpolationMode.NEAREST)
        dataset.test_masks = masks[:, 0] > 0.5
    return dataset


def relabelled(dataset, classes):
    """The data set in RGB, its labels those of `classes`. Raises UserError for a class that is not among them."""
    if unknown := [name for name in dataset.classes if name not in classes]:
        raise UserError(f"the network was not trained on this data set, and knows no class {unknown[0]!r}: give images in folders called as its classes are")
    number = torch.tensor([classes.index(name) for name in dataset.classes])
    images = {part: getattr(dataset, part).expand(-1, 3, -1, -1) for part in ("train_images", "test_images")}
    return replace(dataset, **images, train_labels=number[dataset.train_labels], test_labels=number[dataset.test_labels], classes=classes)


def mean_std(images):
    """Per-channel mean and standard deviation, in [0, 1], of uint8 images [N, C, H, W]: two lists of C floats, exact."""
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = sum(np.bincount(chunk[:, channel].numpy().ravel(), minlength=256) for chunk in images.split(some(images)))  # it wants 8 bytes a pixel
        share = counts / counts.sum()
        mean.append(float(share @ values))
        std.append(float(np.sqrt(share @ (values - mean[-1]) ** 2)) or 1.0)  # 1.0: a channel of one colour
    return mean, std


def some(images):
    """How many images of [N, C, H, W] hold about 2^25 values."""
    return max(1, 2**25 // max(1, images[0].numel()))


def is_what(checkpoint, dataset):
    """Whether a checkpoint was trained on this data set; one of before it kept a digest may have had other test images."""
    if checkpoint["classes"] != dataset.classes:
        return False
    return checkpoint["data"] == dataset.digest if "data" in checkpoint else (checkpoint["mean"], checkpoint["std"]) == mean_std(dataset.train_images)


def normalise(images, mean, std):
    """(images - mean) / std by channel, channels_last; images float [N, C, H, W] in [0, 1], mean and std lists of C floats."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def validation_split(n, seed, groups=None):
    """Indices (trained on, held out), int64, disjoint, together 0..n-1; the same for a seed. groups: int64 [n], none of which is divided, or None. Raises UserError
    where no group is as small as a tenth."""
    generator = torch.Generator().manual_seed(seed)
    held_out = min(max(n // 10, 1), MAX_VALIDATION)
    if groups is None:
        order = torch.randperm(n, generator=generator)
        return order[held_out:].sort().values, order[:held_out].sort().values
    _, group, sizes = groups.unique(return_inverse=True, return_counts=True)
    drawn, left = [], held_out
    for number in torch.randperm(len(sizes), generator=generator).tolist():
        if sizes[number] <= left:
            drawn, left = [*drawn, number], left - int(sizes[number])
    if not drawn:
        raise UserError(f"every patient has more than a tenth of the {n} training images: there are too few patients to hold some out")
    held = torch.isin(group, torch.tensor(drawn))
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def augment(images, crop, flip):
    """Each image shifted by up to `crop` pixels (the border repeated by reflection) and, if `flip`, mirrored half of the time.

    images: any dtype [N, C, H, W]; the same shape comes back. Random numbers come from torch's CPU generator whatever the
    images' device, so that a seed gives the same augmentation everywhere.
    """
    n, _, height, width = images.shape
    if crop:
        dy, dx = torch.randint(0, 2 * crop + 1, (2, n, 1)).to(images.device)
        padded = torch.nn.functional.pad(images.float(), [crop] * 4, mode="reflect")
        rows = dy + torch.arange(height, device=images.device)  # [N, H]
        cols = dx + torch.arange(width, device=images.device)  # [N, W]
        sample = torch.arange(n, device=images.device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2).to(images.dtype)
    if flip:
        mirrored = (torch.rand(n) < 0.5).to(images.device)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    return images


# ---------------------------------------------------------------- shapes: drawn by the code, with the truth about each object

SIZE = 32  # pixels
AREA = (0.055, 0.24)  # of the image, in whole pixels within 5 and 25%; its density falls as 1 / area^2, as in natural scenes
CONTRAST = 0.45  # least Euclidean distance of the object's colour from the background's, in [0, 1] RGB
DISTRACTORS = 4  # small discs and strokes in every image


def _box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _half_planes(x, y, n, distance):
    """Signed distances to n lines around the origin: one [n, ...] array."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(n) / n
    return np.stack([-np.cos(a) * x - np.sin(a) * y - distance for a in angles])


def _heart(x, y):
    tip = (np.abs(x) + np.abs(y + 0.1) - 0.9) / np.sqrt(2)
    return np.minimum(tip, np.hypot(np.abs(x) - 0.45, y + 0.55) - 0.636)


# Signed distance to the outline, negative inside, within the unit disc (about); y points down.
SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) - 0.8,
    "bar": lambda x, y: _box(x, y, 0.95, 0.45),
    "square": lambda x, y: _box(x, y, 0.72, 0.72),
    "triangle": lambda x, y: _half_planes(x, y, 3, 0.5).max(0),
    "cross": lambda x, y: np.minimum(_box(x, y, 0.95, 0.33), _box(x, y, 0.33, 0.95)),
    "star": lambda x, y: np.sort(_half_planes(x, y, 5, 0.35), 0)[-2],  # inside at least four of five half-planes
    "dome": lambda x, y: np.maximum(np.hypot(x, y - 0.4) - 0.95, y - 0.4),
    "heart": _heart,
    "arrow": lambda x, y: np.minimum(np.maximum(_box(x, y - 0.4, 0.36, 0.5), -y), np.maximum(0.76 * np.abs(x) - 0.65 * (y + 0.95), y - 0.05)),
    "ell": lambda x, y: np.minimum(_box(x + 0.34, y, 0.36, 0.75), _box(x, y - 0.39, 0.7, 0.36)),
}


def _unit_area(shape):
    """Area and bounding radius of a shape at scale 1, from a fine raster."""
    grid = np.linspace(-1.25, 1.25, 501, dtype=np.float32)
    x, y = np.meshgrid(grid, grid)
    inside = shape(x, y) < 0
    return inside.sum() * (grid[1] - grid[0]) ** 2, np.hypot(x, y)[inside].max()


def _background(rng, n):
    """Three gratings of random direction, period and colour over a random colour: ([N, 3, H, W], its mean colour [N, 3])."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    base = rng.uniform(0.15, 0.85, (n, 3)).astype(np.float32)
    image = np.broadcast_to(base[:, :, None, None], (n, 3, SIZE, SIZE)).copy()
    for _ in range(3):
        angle, period, phase = rng.uniform([0, 3, 0], [np.pi, 20, 2 * np.pi], (n, 3)).astype(np.float32).T[:, :, None, None]
        wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period) + phase)  # [N, H, W]
        colour = rng.uniform(-0.12, 0.12, (n, 3)).astype(np.float32)
        image += colour[:, :, None, None] * wave[:, None]
    return image, base


def _paint(image, distance, colour):
    """Lay `colour` [N, 3] where the signed distance in pixels [N, H, W] is negative, anti-aliased over one pixel. In place."""
    cover = np.clip(0.5 - distance, 0, 1)[:, None]
    image += cover * (colour[:, :, None, None] - image)


def _distract(rng, image):
    """Small discs and strokes of random colour and place."""
    n = len(image)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    for _ in range(DISTRACTORS):
        cx, cy, angle, length, radius = rng.uniform([0, 0, 0, -6, 0.8], [SIZE, SIZE, np.pi, 6, 1.6], (n, 5)).astype(np.float32).T[:, :, None, None]
        along = np.clip((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle), 0, np.maximum(length, 0))
        _paint(image, np.hypot(x - cx - along * np.cos(angle), y - cy - along * np.sin(angle)) - radius, rng.random((n, 3), np.float32))


def draw(rng, shape, n):
    """n images of one shape: (uint8 [n, 3, 32, 32], masks bool [n, 32, 32])."""
    unit, reach = _unit_area(shape)
    area = 1 / rng.uniform(1 / AREA[1], 1 / AREA[0], n)
    scale = SIZE * np.sqrt(area / unit)  # pixels
    margin = np.minimum(reach * scale, SIZE / 2)
    cx, cy = margin + rng.random((2, n)) * (SIZE - 2 * margin)  # anywhere the whole object fits
    turn, scale, cx, cy = (v.astype(np.float32)[:, None, None] for v in (rng.uniform(-0.5, 0.5, n), scale, cx, cy))
    image, base = _background(rng, n)
    _distract(rng, image)
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5
    x, y = (x - cx) / scale, (y - cy) / scale
    distance = shape(np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x) * scale
    colours = rng.random((n, 16, 3), np.float32)  # the first of sixteen that stands out
    first = (np.linalg.norm(colours - base[:, None], axis=2) > CONTRAST).argmax(1)
    _paint(image, distance, colours[np.arange(n), first])
    image += 0.03 * rng.standard_normal((n, 1, SIZE, SIZE), np.float32)  # grain
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), distance < 0


def shapes(data_dir=None, image_size=None, n_train=10_000, n_test=2_000, seed=0):
    """Ten classes of shapes at 32x32 px over textures, among distractors; equal for equal seeds.

    Object area 5 to 25% of the image, centre uniform over the places where the object fits, turned by up to
    0.5 rad, any colour that stands out; each test image's object mask is kept, so an explainer can be held to the truth.
    """
    rng, parts = np.random.default_rng(seed), {}
    for split, n in (("train", n_train), ("test", n_test)):
        drawn = [draw(rng, shape, n // len(SHAPES)) for shape in SHAPES.values()]
        labels = np.repeat(np.arange(len(SHAPES)), n // len(SHAPES))
        order = rng.permutation(len(labels))
        parts[split] = [torch.from_numpy(np.concatenate(part)[order]) for part in (*zip(*drawn), [labels])]
    (images, _, labels), (test_images, masks, test_labels) = parts["train"], parts["test"]
    return Dataset(images, labels, test_images, test_labels, list(SHAPES), crop=2, flip=True, test_masks=masks)


# ---------------------------------------------------------------- data sets on disk


def mnist(data_dir, image_size=None):
    """MNIST, grey 28x28; mirrored or shifted digits are left out."""
    return _published(data_dir, "mnist", torchvision.datasets.MNIST)


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10(data_dir, image_size=None):
    """CIFAR-10, RGB 32x32, shifted by up to 2 pixels and mirrored in training."""
    return _published(data_dir, "cifar10", torchvision.datasets.CIFAR10, crop=2, flip=True, classes=CIFAR10)


GTSRB = ["speed limit 20", "speed limit 30", "speed limit 50", "speed limit 60", "speed limit 70", "speed limit 80", "end of speed limit 80",
         "speed limit 100", "speed limit 120", "no passing", "no passing for lorries", "right of way at the crossing", "priority road", "yield",
         "stop", "no vehicles", "no lorries", "no entry", "danger", "bend to the left", "bend to the right", "double bend", "uneven road",
         "slippery road", "road narrows", "road works", "traffic signals", "pedestrians", "children", "bicycles", "ice or snow", "wild animals",
         "end of all limits", "turn right", "turn left", "straight on", "straight on or right", "straight on or left", "keep right", "keep left",
         "roundabout", "end of no passing", "end of no passing for lorries"]


def gtsrb(data_dir, image_size=None):
    """GTSRB, 43 traffic signs, RGB, shifted by up to 2 pixels in training.

    The published images, of 15 to 250 px, lie in DATA_DIR/gtsrb or are downloaded; each is brought from there to `image_size` (None: 32) pixels square, and
    kept as DATA_DIR/gtsrb_SIZE.npz (32 px: gtsrb.npz). Where there is a gtsrb.npz and no DATA_DIR/gtsrb, it is the 32 px that are resized.
    """
    size = image_size or 32
    name = "gtsrb" if size == 32 else f"gtsrb_{size}"
    known = dict(crop=2, classes=GTSRB)
    if size != 32 and not (data_dir / f"{name}.npz").exists() and not (data_dir / "gtsrb").exists() and (data_dir / "gtsrb.npz").exists():
        print(f"GTSRB's own images are not in {data_dir / 'gtsrb'}: those of gtsrb.npz are enlarged from 32 px.", file=sys.stderr)
        name = "gtsrb"

    def source(root, train, download):
        signs = torchvision.datasets.GTSRB(root, "train" if train else "test", download=download)
        decoded = [(np.asarray(image.convert("RGB").resize((size, size), Image.BILINEAR)), label) for image, label in signs]
        return types.SimpleNamespace(data=np.stack([image for image, _ in decoded]), targets=[label for _, label in decoded], classes=GTSRB)

    return _published(data_dir, name, source, **known)


CHEST_SIZE = 128  # pixels a side, unless another is asked for


def chestxray14(data_dir, image_size=None):
    """ChestX-ray14's images of one finding or none, grey: 14 diseases in the alphabet's order, so that Edema is 3, and No Finding, 14.

    Shifted by up to a thirty-second of their side in training, never mirrored: a heart lies on the left.
    """
    dataset = chestxray14_multi(data_dir, image_size)
    for part in ("train", "test"):
        labels = getattr(dataset, f"{part}_labels")
        single = labels.sum(1) <= 1
        setattr(dataset, f"{part}_images", keep_rows(getattr(dataset, f"{part}_images"), single))
        label = torch.where(labels.any(1), labels.argmax(1), len(dataset.classes))
        setattr(dataset, f"{part}_labels", label[single])
        if part == "train":
            dataset.train_groups = dataset.train_groups[single]
        if single.sum() < 2:
            raise UserError(f"fewer than two of the {part} images have a single label: use --dataset chestxray14-multi")
    dataset.classes = [*dataset.classes, chestxray.NO_FINDING]
    return dataset


def chestxray14_multi(data_dir, image_size=None):
    """All of ChestX-ray14, grey, multi-label: 14 diseases in the alphabet's order, none or several to an image.

    Decoded from DATA_DIR/chestxray14 (see chestxray.py) and kept as DATA_DIR/chestxray14_SIZE.npz, which does without the pictures from then on.
    """
    size = image_size or CHEST_SIZE
    folder, stem = data_dir / "chestxray14", data_dir / f"chestxray14_{size}"
    path = stem.with_suffix(".npz")
    if not path.exists() or chestxray.pictures(folder):
        listing = chestxray.find(folder)
        with chestxray.alone(folder):
            _decode_chestxray(listing, size, stem, path)
    dataset = from_npz(path)
    with np.load(path) as arrays:
        listed = int(arrays["listed"]) if "listed" in arrays else None
    if listed is None or dataset.classes != chestxray.DISEASES or not dataset.multi_label or dataset.train_groups is None:
        raise UserError(f"{path} is not what this program keeps of ChestX-ray14: rename it")
    used = len(dataset.train_labels) + len(dataset.test_labels)
    damaged = f", {listed - used} of them damaged and left out" if used < listed else ""
    print(f"ChestX-ray14: {listed:,} of {chestxray.PUBLISHED:,} pictures are here{damaged}.", file=sys.stderr)
    return replace(dataset, crop=size // 32)


def _decode_chestxray(listing, size, stem, path):
    """The listing's pictures as `path`, unless that holds them already. Raises UserError rather than replace a user's file, or one of more pictures."""
    if path.exists():
        fingerprint = _fingerprint(path)
        if fingerprint == listing.fingerprint:
            return
        if fingerprint is None:
            raise UserError(f"{path}, where the decoded ChestX-ray14 goes, is a file of yours: rename it, or give another --data-dir")
        with np.load(path) as arrays:
            listed, now = int(arrays["listed"]), sum(map(len, listing.files.values()))
        if listed > now:
            raise UserError(f"{path} holds {listed} pictures, and only {now} are in the folder now: remove that file, to use these alone, or the pictures' folder, to use that file")
    _keep(path, chestxray.decode(listing, size, stem, read_image))
    chestxray.remove_parts(stem)


def keep_rows(images, keep):
    """The rows of images [N, ...] where `keep` bool [N] is true, moved together within the same memory: `images` is used up."""
    rows = keep.nonzero()[:, 0]
    for begin in range(0, len(rows), 1000):
        chunk = rows[begin : begin + 1000]
        images[begin : begin + len(chunk)] = images[chunk]  # no row moves to the right
    return images[: len(rows)]


def _published(data_dir, name, source, **known):
    """A data set that torchvision downloads and verifies, decoded once and kept as DATA_DIR/NAME.npz."""
    path = data_dir / f"{name}.npz"
    if not path.exists():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # what a script prints is its own
                splits = [source(data_dir, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError, ValueError, EOFError) as error:  # no network; a file that fails its checksum, or is cut short
            for folder in (data_dir / "MNIST" / "raw", data_dir / "MNIST", data_dir / "gtsrb", data_dir):  # made for nothing
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise UserError(f"{name} is not in {data_dir} and could not be downloaded and read ({_first_line(error)}): put {name}.npz there") from None
        arrays = {}
        for part, split in zip(("train", "test"), splits):
            arrays |= {f"{part}_images": np.asarray(split.data), f"{part}_labels": np.asarray(split.targets, np.int64)}
        _keep(path, arrays | {"classes": splits[0].classes})
    dataset = from_npz(path)
    return replace(dataset, **known)


def from_npz(path):
    """A data set in one file with MedMNIST's keys: images uint8 [N, H, W] or [N, H, W, 3], labels integer [N] or [N, 1], or 0 and 1 [N, K] (multi-label).

    Optional keys: `classes`, K names; `train_patients`, `test_patients`, a number for each image: no patient is both trained on and held out, or tested on.
    Nothing is augmented: only the owner of the images knows what leaves a label true.
    """
    if not path.exists():
        raise UserError(f"data set {path} does not exist")
    parts = {}
    try:
        with np.load(path) as arrays:
            keys = set(arrays.files)
            wanted = [f"{split}_{part}" for split in ("train", "test") for part in ("images", "labels")]
            if missing := [key for key in wanted if key not in keys]:
                raise UserError(f"{path} has no {', '.join(missing)}: it needs train_images, train_labels, test_images, test_labels")
            parts = {key: np.asarray(arrays[key]) for key in wanted}
            names = [str(name) for name in arrays["classes"]] if "classes" in keys else None
            patients = {split: np.asarray(arrays[f"{split}_patients"]) for split in ("train", "test") if f"{split}_patients" in keys}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as .npz: {_first_line(error)}") from None
    for split in ("train", "test"):
        parts[f"{split}_images"] = _images(parts[f"{split}_images"], path)
        parts[f"{split}_labels"] = _labels(parts[f"{split}_labels"], len(parts[f"{split}_images"]), path)
    if parts["train_labels"].ndim == 2 and (parts["train_labels"].sum(1) == 1).all() and "fingerprint" not in keys:
        raise UserError(f"{path}: each row of the labels has one 1: give class numbers, [N], where an image shows one class")
    if len(parts["train_images"]) < 2:
        raise UserError(f"{path}: one training image is not enough")
    for part in ("images", "labels"):
        if parts[f"train_{part}"].shape[1:] != parts[f"test_{part}"].shape[1:]:
            raise UserError(f"{path}: training and test {part} differ in shape")
    for split, numbers in patients.items():
        if numbers.shape != (len(parts[f"{split}_images"]),) or numbers.dtype.kind not in "iu":
            raise UserError(f"{path}: {split}_patients must be a whole number for each image")
    if len(patients) == 2 and (both := np.intersect1d(*patients.values())).size:
        raise UserError(f"{path}: patient {both[0]} is on both sides, training and test")
    train_labels, test_labels = parts["train_labels"], parts["test_labels"]
    k = train_labels.shape[1] if train_labels.ndim == 2 else int(max(train_labels.max(), test_labels.max())) + 1
    if names is not None and (len(names) < k or len(names) > k and train_labels.ndim == 2):
        raise UserError(f"{path}: its labels are of {k} classes, but {len(names)} are named")
    groups = torch.from_numpy(patients["train"].astype(np.int64)) if "train" in patients else None
    return Dataset(**parts, classes=names or [str(label) for label in range(max(k, 2))], train_groups=groups)


def _images(images, path):
    if images.dtype != np.uint8 or len(images) == 0 or not (images.ndim == 3 or images.ndim == 4 and images.shape[3] in (1, 3)):
        raise UserError(f"{path}: images must be uint8 [N, H, W] or [N, H, W, 3], not {images.dtype} {list(images.shape)}")
    images = torch.from_numpy(images)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _labels(labels, n, path):
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and len(labels) == n and labels.shape[1] > 1 and labels.dtype.kind in "iufb" and np.isin(labels, (0, 1)).all():
        return torch.from_numpy(labels.astype(np.float32))
    if labels.shape != (n,) or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 99_999:
        raise UserError(f"{path}: labels must be {n} class numbers from 0, [N] or [N, 1], or 0 and 1, [N, K], not {labels.dtype} {list(labels.shape)}")
    return torch.from_numpy(labels.astype(np.int64))


def from_folder(folder, data_dir, size):
    """FOLDER/train/CLASS/*.png|jpg and FOLDER/test/CLASS/*, each image [3, size, size]; decoded once into DATA_DIR/NAME_SIZE.npz.

    The kept file is made anew when a file's name, length or time of change differs.
    """
    if folder.resolve().name in ("gtsrb", "chestxray14"):
        raise UserError(f"{folder} is called as a data set whose decoded images are kept under the same name: rename it")
    listing = {split: sorted(p for p in (folder / split).glob("*/*") if p.suffix.lower() in SUFFIXES) for split in ("train", "test")}
    for split, files in listing.items():
        if not files:
            raise UserError(f"{folder} has no images in {split}/CLASS/*.png|jpg")
    classes = sorted({p.parent.name for p in listing["train"]})
    if strange := {p.parent.name for p in listing["test"]} - set(classes):
        raise UserError(f"{folder}/test has classes that train has not: {', '.join(sorted(strange))}")
    stamps = [f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for files in listing.values() for p in files if p.exists()]
    fingerprint = hashlib.sha256("\n".join(stamps).encode()).hexdigest()
    path = data_dir / f"{folder.resolve().name}_{size}.npz"
    if path.exists() and _fingerprint(path) is None:
        raise UserError(f"{path}, where the decoded images of {folder} go, is a file of yours: rename it, or give another --data-dir")
    if not path.exists() or _fingerprint(path) != fingerprint:
        arrays = {"classes": classes, "fingerprint": fingerprint}
        for split, files in listing.items():
            arrays[f"{split}_images"] = np.stack([_decode(p, size) for p in files])
            arrays[f"{split}_labels"] = np.array([classes.index(p.parent.name) for p in files])
        _keep(path, arrays)
    return from_npz(path)


def _fingerprint(path):
    """The fingerprint that from_folder left in an .npz, or None."""
    try:
        with np.load(path) as arrays:
            return str(arrays["fingerprint"])
    except (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return None


def _decode(path, size):
    return np.asarray(read_image(path).convert("RGB").resize((size, size), Image.BILINEAR))


def read_image(path):
    """A decoded PIL image, 16-bit grey brought to 8 bits; UserError where `path` is not one."""
    try:
        image = Image.open(path)
        image.load()
        with contextlib.suppress(Exception):  # whatever Pillow raises for tags that make no sense: as it lies
            image = ImageOps.exif_transpose(image)  # a telephone's picture may lie on its side
        if image.mode.startswith("I"):  # Pillow's own conversion cuts off at 255
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
        return image
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: {_first_line(error)}") from None


def _keep(path, arrays):
    """Write an .npz whole or not at all."""

    def write(partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:  # savez would add .npz to a name
            np.savez(file, **arrays)

    replace_file(path, write)


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


DATASETS = {"shapes": shapes, "mnist": mnist, "cifar10": cifar10, "gtsrb": gtsrb, "chestxray14": chestxray14, "chestxray14-multi": chestxray14_multi}
