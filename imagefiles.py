"""Data sets that lie on a disk as pictures or as arrays: image files, folders of them, .npz files.

    read_image("photo.jpg")                             # one PIL image
    from_npz(Path("my_images.npz"))                     # a Dataset, of arrays with MedMNIST's keys
    from_folder(Path("my_folder"), Path("data"), 32)    # a Dataset, decoded once and kept as .npz

What cannot be read, or is not what it should be, is a UserError: one line that names the file.
"""

import contextlib
import hashlib
import struct
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps

from cli import UserError, first_line, replace_file
from dataset import Dataset

SPLITS = ("train", "test")
SUFFIXES = {".png", ".jpg", ".jpeg"}
MAX_LABEL = 99_999  # a larger number is an identifier, not a class

# What numpy raises for a file that is no .npz, is cut short, or holds Python objects.
UNREADABLE_NPZ = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    AttributeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
# What Pillow raises for a file that is no picture, or is damaged.
UNREADABLE_IMAGE = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)


def read_image(path):
    """The picture in a file as a decoded PIL image, turned as its camera was held.

    16-bit grey is brought to 8 bits; other modes stay as they are. Raises UserError.
    """
    try:
        image = Image.open(path)
        image.load()
        with contextlib.suppress(Exception):  # Pillow raises anything for tags that make no sense
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            # Pillow's own conversion would cut off at 255.
            grey = np.asarray(image).clip(0, 65535) // 257
            image = Image.fromarray(grey.astype(np.uint8))
        return image
    except UNREADABLE_IMAGE as error:
        raise UserError(f"{path} cannot be read as an image: {first_line(error)}") from None


# ---------------------------------------------------------------- folders of pictures


def from_folder(folder, data_dir, size):
    """The Dataset of FOLDER/train/CLASS/*.png|jpg and FOLDER/test/CLASS/*, RGB, size x size pixels.

    It is decoded once and kept as DATA_DIR/FOLDER_SIZE.npz, which is made anew when the name, the
    length or the time of change of a file differs. Raises UserError.
    """
    files = list_pictures(folder)
    classes = class_folders(folder, files)
    fingerprint = fingerprint_of_files(files)
    kept = data_dir / f"{folder.resolve().name}_{size}.npz"
    known = fingerprint_of(kept)
    if kept.exists() and known is None:
        raise UserError(
            f"{kept}, where the decoded images of {folder} go, is a file of yours: rename it, "
            "or give another --data-dir"
        )
    if known != fingerprint:
        arrays = {"classes": classes, "fingerprint": fingerprint}
        for split, paths in files.items():
            labels = [classes.index(path.parent.name) for path in paths]
            arrays[f"{split}_images"] = np.stack([decode_rgb(path, size) for path in paths])
            arrays[f"{split}_labels"] = np.array(labels)
        keep_npz(kept, arrays)
    return from_npz(kept)


def list_pictures(folder):
    """{"train": paths, "test": paths} of the pictures in a folder, sorted. Raises UserError."""
    files = {}
    for split in SPLITS:
        paths = sorted((folder / split).glob("*/*"))
        files[split] = [path for path in paths if path.suffix.lower() in SUFFIXES]
    for split in SPLITS:
        if not files[split]:
            raise UserError(f"{folder} has no images in {split}/CLASS/*.png|jpg")
    return files


def class_folders(folder, files):
    """The sorted names of the folders in FOLDER/train. Raises UserError if test has others."""
    classes = sorted({path.parent.name for path in files["train"]})
    only_in_test = {path.parent.name for path in files["test"]} - set(classes)
    if only_in_test:
        names = ", ".join(sorted(only_in_test))
        raise UserError(f"{folder}/test has classes that train has not: {names}")
    return classes


def fingerprint_of_files(files):
    """A SHA-256 of the names, lengths and times of change of all files, {split: paths}."""
    stamps = []
    for paths in files.values():
        for path in paths:
            if path.exists():  # a link to nothing has no length; it fails when it is decoded
                stat = path.stat()
                stamps.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(stamps).encode()).hexdigest()


def decode_rgb(path, size):
    """The picture in a file as uint8 [size, size, 3]. Raises UserError."""
    image = read_image(path).convert("RGB")
    return np.asarray(image.resize((size, size), Image.BILINEAR))


# ---------------------------------------------------------------- .npz files


def keep_npz(path, arrays):
    """Writes {key: array} as an .npz, whole or not at all. Raises UserError."""

    def write(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:  # given a name, savez would add .npz to it
            np.savez(file, **arrays)

    replace_file(path, write)


def fingerprint_of(path):
    """The fingerprint of what was decoded into an .npz; None for a file that has none, or no file.

    A file without a fingerprint is the user's own, and never overwritten.
    """
    try:
        with np.load(path) as arrays:
            return str(arrays["fingerprint"])
    except (*UNREADABLE_NPZ, KeyError):
        return None


def from_npz(path):
    """The Dataset in one file with MedMNIST's keys. Raises UserError.

    train_images, test_images: uint8 [N, H, W] or [N, H, W, 3].
    train_labels, test_labels: integers [N] or [N, 1], or 0 and 1 [N, K] (multi-label).
    classes (optional): K names.
    train_patients, test_patients (optional): an integer for each image. No patient is both trained
        on and held out, nor both trained on and tested on.

    Nothing is augmented: only the owner of the images knows what leaves a label true.
    """
    if not path.exists():
        raise UserError(f"data set {path} does not exist")
    arrays = read_arrays(path)
    for split in SPLITS:
        # What was read is replaced at once: a large data set does not fit twice.
        arrays[f"{split}_images"] = as_images(arrays[f"{split}_images"], path)
        n = len(arrays[f"{split}_images"])
        arrays[f"{split}_labels"] = as_labels(arrays[f"{split}_labels"], n, path)
    check_images_and_labels(arrays, path)
    check_patients(arrays, path)
    groups = None
    if "train_patients" in arrays:
        groups = torch.from_numpy(arrays["train_patients"].astype(np.int64))
    return Dataset(
        arrays["train_images"],
        arrays["train_labels"],
        arrays["test_images"],
        arrays["test_labels"],
        classes=class_names(arrays, path),
        train_groups=groups,
    )


def read_arrays(path):
    """{key: array} of an .npz's keys that from_npz names; `classes` as a list of texts.

    Raises UserError for a file that cannot be read, and for a key that is missing.
    """
    needed = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    optional = [f"{split}_patients" for split in SPLITS]
    try:
        with np.load(path) as file:
            missing = [key for key in needed if key not in file.files]
            if missing:
                raise UserError(
                    f"{path} has no {', '.join(missing)}: it needs train_images, train_labels, "
                    "test_images, test_labels"
                )
            present = [key for key in needed + optional if key in file.files]
            arrays = {key: np.asarray(file[key]) for key in present}
            if "classes" in file.files:
                arrays["classes"] = [str(name) for name in file["classes"]]
            return arrays
    except UNREADABLE_NPZ as error:
        raise UserError(f"{path} cannot be read as .npz: {first_line(error)}") from None


def as_images(images, path):
    """uint8 [N, C, H, W] of an array [N, H, W] or [N, H, W, C], C is 1 or 3. Raises UserError."""
    grey = images.ndim == 3
    colour = images.ndim == 4 and images.shape[3] in (1, 3)
    if not (grey or colour) or images.dtype != np.uint8 or len(images) == 0:
        raise UserError(
            f"{path}: images must be uint8 [N, H, W] or [N, H, W, 3], "
            f"not {images.dtype} {list(images.shape)}"
        )
    images = torch.from_numpy(images)
    return images[:, None] if grey else images.permute(0, 3, 1, 2).contiguous()


def as_labels(labels, n, path):
    """int64 [n] of class numbers, [n] or [n, 1]; float32 [n, K] of 0 and 1. Raises UserError."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    kind = labels.dtype.kind
    if labels.ndim == 2 and len(labels) == n and labels.shape[1] > 1 and kind in "iufb":
        if np.isin(labels, (0, 1)).all():
            return torch.from_numpy(labels.astype(np.float32))
    is_column = labels.shape == (n,) and kind in "iu"
    if not is_column or labels.min() < 0 or labels.max() > MAX_LABEL:
        raise UserError(
            f"{path}: labels must be {n} class numbers from 0, [N] or [N, 1], or 0 and 1, [N, K], "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def check_images_and_labels(arrays, path):
    """Raises UserError for images and labels, each right by itself, that do not fit together."""
    train_labels = arrays["train_labels"]
    if train_labels.ndim == 2 and (train_labels.sum(1) == 1).all():
        # A few radiographs may happen to show one disease each, and are decoded here. In a file
        # of the user's own such labels are a mistake.
        if fingerprint_of(path) is None:
            raise UserError(
                f"{path}: each row of the labels has one 1: give class numbers, [N], where an "
                "image shows one class"
            )
    if len(arrays["train_images"]) < 2:
        raise UserError(f"{path}: one training image is not enough")
    for part in ("images", "labels"):
        if arrays[f"train_{part}"].shape[1:] != arrays[f"test_{part}"].shape[1:]:
            raise UserError(f"{path}: training and test {part} differ in shape")


def check_patients(arrays, path):
    """Raises UserError unless patients are whole numbers, one an image, and on one side each."""
    patients = {}
    for split in SPLITS:
        numbers = arrays.get(f"{split}_patients")
        if numbers is None:
            continue
        n = len(arrays[f"{split}_images"])
        if numbers.shape != (n,) or numbers.dtype.kind not in "iu":
            raise UserError(f"{path}: {split}_patients must be a whole number for each image")
        patients[split] = numbers
    if len(patients) == 2:
        both = np.intersect1d(patients["train"], patients["test"])
        if both.size:
            raise UserError(f"{path}: patient {both[0]} is on both sides, training and test")


def class_names(arrays, path):
    """The K names that an .npz gives its classes, or their numbers as text. Raises UserError."""
    train_labels, test_labels = arrays["train_labels"], arrays["test_labels"]
    multi_label = train_labels.ndim == 2
    if multi_label:
        k = train_labels.shape[1]
    else:
        k = int(max(train_labels.max(), test_labels.max())) + 1
    if "classes" not in arrays:
        return [str(label) for label in range(max(k, 2))]
    names = arrays["classes"]
    too_few = len(names) < k
    too_many = len(names) > k and multi_label  # else a class without images may have a name
    if too_few or too_many:
        raise UserError(f"{path}: its labels are of {k} classes, but {len(names)} are named")
    return names
