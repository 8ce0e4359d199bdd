"""Data sets that are one .npz file: MedMNIST's keys, and what other tools make of them.

    from_npz(Path("my_images.npz"))     # a Dataset
    keep_npz(path, arrays)              # decoded images, kept for the next time

What cannot be read, or is not what it should be, is a UserError: one line that names the file. What
is read otherwise than it was written, or not used, is said in a line on standard error.
"""

from collections import Counter

import numpy as np
import torch

from cli import UserError, replace_file
from dataset import Dataset
from imagefiles import MEANT_AS_0_AND_1, shown
from npzmembers import HoldsObjects, members_of, open_npz, read_member
from terminal import print_note, shortened

SPLITS = ("train", "test")
PARTS = ("images", "labels", "patients")
MAX_LABEL = 99_999  # a larger number is an identifier, not a class
NAMED = 6  # keys, labels or names that are listed in a line; of more, the first ones
LONGEST = 100  # columns of each


# ---------------------------------------------------------------- kept


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
    return next(iter(texts_of(path, "fingerprint")), None)


def texts_of(path, key):
    """The list of str in an .npz under a key; [] where there is none, or none can be read."""
    try:
        with open_npz(path) as archive:
            return as_texts(read_member(archive, members_of(archive)[key]))
    except (ValueError, KeyError):
        return []


# ---------------------------------------------------------------- read


def from_npz(path):
    """The Dataset in one file with MedMNIST's keys. Raises UserError.

    train_images, test_images: uint8 [N, H, W] or [N, H, W, 3].
    train_labels, test_labels: integers [N] or [N, 1], or 0 and 1 [N, K] (multi-label); or texts
        [N], which are the classes' names.
    classes (optional): K names. Where labels begin above 0 or have gaps, either a name for each
        number from 0, or one for each label there is, in their order.
    train_patients, test_patients (optional): an integer for each image. No patient is both trained
        on and held out, nor both trained on and tested on.

    Without test_images, val_images are the test set. Nothing is augmented: only the owner of the
    images knows what leaves a label true.
    """
    if not path.exists():
        raise UserError(f"data set {path} does not exist")
    arrays = read_arrays(path)
    for split in SPLITS:
        # What was read is replaced at once: a large data set does not fit twice.
        arrays[f"{split}_images"] = as_images(arrays[f"{split}_images"], path)
    say_if_black(arrays, path)
    numbers, names = numbered(arrays, path)
    for split in SPLITS:
        n = len(arrays[f"{split}_images"])
        arrays[f"{split}_labels"] = as_labels(numbers[split], n, path)
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
        classes=class_names(arrays, names, path),
        train_groups=groups,
    )


def read_arrays(path):
    """{key: array} of an .npz's keys that from_npz names. Says which others are not used.

    Raises UserError for a file that cannot be read, and for a key that is missing.
    """
    try:
        with open_npz(path) as archive:
            members = members_of(archive)
            keys = keys_used(members, path)
            arrays = {key: read_array(archive, members, keys[key], path) for key in keys}
    except ValueError as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from None
    ours = "fingerprint" in members
    unused = [key for key in members if key not in keys.values()]
    if keys["test_images"] != "test_images":
        print_note(f"{path} has no test_images: val_images are the test set.")
    if unused and not ours:
        print_note(
            f"Not used of {path}: {listed(unused)}"
            + " (train_images are split for validation)." * any("val" in key for key in unused)
        )
    return arrays


def keys_used(present, path):
    """{key of from_npz: key in the file}. Raises UserError where one that it needs is missing."""
    needed = [f"{split}_{part}" for split in SPLITS for part in ("images", "labels")]
    keys = {f"{split}_{part}": f"{split}_{part}" for split in SPLITS for part in PARTS}
    keys["classes"] = "classes"
    if "test_images" not in present and {"val_images", "val_labels"} <= set(present):
        keys |= {f"test_{part}": f"val_{part}" for part in PARTS}
    missing = [key for key in needed if keys[key] not in present]
    if missing:
        raise UserError(
            f"{path} has no {', '.join(missing)}: it needs train_images, train_labels, "
            f"test_images, test_labels, and has {listed(present) or 'nothing'}"
        )
    return {key: source for key, source in keys.items() if source in present}


def read_array(archive, members, key, path):
    """One array of an open .npz. Raises UserError for one of Python objects."""
    try:
        return read_member(archive, members[key])
    except HoldsObjects:
        raise UserError(
            f"{path}: {key} is an array of Python objects, which is not read: save it as "
            + ("np.array(names, dtype=str)" if key == "classes" else "numbers, np.array(..., int)")
        ) from None


def as_images(images, path):
    """uint8 [N, C, H, W] of an array [N, H, W] or [N, H, W, C], C is 1 or 3. Raises UserError."""
    grey = images.ndim == 3
    colour = images.ndim == 4 and images.shape[3] in (1, 3)
    if not (grey or colour) or images.dtype != np.uint8 or images.size == 0:
        raise UserError(
            f"{path}: images must be uint8 from 0 to 255, [N, H, W] or [N, H, W, 3], colours last, "
            f"not {images.dtype} {list(images.shape)}"
        )
    images = torch.from_numpy(images)
    return images[:, None] if grey else images.permute(0, 3, 1, 2).contiguous()


# ---------------------------------------------------------------- labels and names


def say_if_black(arrays, path):
    """Warns of images, uint8, none of whose values is above 1: they look black."""
    keys = [f"{split}_images" for split in SPLITS]
    black = [key for key in keys if int(arrays[key].max()) <= 1]
    # Of a folder's pictures it is said how many they are.
    if black and fingerprint_of(path) is None:
        print_note(
            f"Warning: no value in {' and '.join(black)} of {path} is above 1, all but black of "
            f"255. {MEANT_AS_0_AND_1}"
        )


def numbered(arrays, path):
    """({split: labels}, the names of classes or None) of what the file calls them.

    The labels are class numbers from 0 without gaps wherever nothing is said of the numbers that
    no image has; of several labels an image they are as they are. Raises UserError.
    """
    labels = {split: arrays[f"{split}_labels"] for split in SPLITS}
    labels = {split: flat(part) for split, part in labels.items()}
    names = given_names(arrays["classes"], path) if "classes" in arrays else None
    kinds = {part.dtype.kind for part in labels.values()}
    if kinds <= set("US"):
        labels = {split: as_texts(part) for split, part in labels.items()}
        texts = {text for part in labels.values() for text in part}
        if texts <= set(names or ()) or not all(is_number(text) for text in texts):
            return by_name(labels, names, path)
        labels = {split: np.array(part, np.int64) for split, part in labels.items()}
    elif kinds & set("US"):
        raise UserError(f"{path}: labels are texts in one part, numbers in the other")
    if any(part.ndim != 1 or not is_countable(part) for part in labels.values()):
        return labels, names  # of several classes an image, or refused by as_labels
    return without_gaps(labels, names, path)


def flat(labels):
    """Labels [N] of [N, 1]; others as they are."""
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


def as_texts(labels):
    """A list of str of an array of texts or bytes."""
    return [as_text(label) for label in np.ravel(labels)]


def as_text(name):
    """A str of a name that may be bytes, whose UTF-8 is read."""
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


def is_number(text):
    """Whether a text is a class number as Python writes it: 07 is none."""
    return text.isdecimal() and len(text) <= len(str(MAX_LABEL)) and str(int(text)) == text


def is_countable(labels):
    """Whether labels [N] are class numbers: whole, from 0 to MAX_LABEL, whatever their dtype."""
    if labels.size == 0 or labels.dtype.kind not in "iufb":
        return False
    whole = labels.dtype.kind != "f" or (np.isfinite(labels) & (labels % 1 == 0)).all()
    return bool(whole and labels.min() >= 0 and labels.max() <= MAX_LABEL)


def by_name(labels, names, path):
    """({split: numbers}, names) of labels that are names: lists of texts. Raises UserError."""
    present = sorted({text for part in labels.values() for text in part})
    if names is None:
        names = check_names(present, path)
        print_note(f"{path}: labels are texts, taken as the names of {len(names)} classes.")
    unknown = [text for text in present if text not in names]
    if unknown:
        raise UserError(f"{path}: labels name {listed(unknown)}, which `classes` does not")
    number = {name: k for k, name in enumerate(names)}
    return {split: np.array([number[t] for t in part]) for split, part in labels.items()}, names


def without_gaps(labels, names, path):
    """({split: numbers}, names) of labels [N] that may begin above 0 or leave numbers out."""
    labels = {split: part.astype(np.int64) for split, part in labels.items()}
    present = np.unique(np.concatenate(list(labels.values())))
    if len(present) == present[-1] + 1 or (names is not None and len(names) > present[-1]):
        return labels, names  # each number below the largest is a class, if one without images
    if names is not None and len(names) != len(present):
        return labels, names  # refused by class_names
    texts = [str(label) for label in present]
    numbers = listed(texts)
    if names is None:
        names = texts
        print_note(f"{path}: labels are {numbers}: {len(names)} classes, called by these numbers.")
    elif set(names) == set(texts):  # in whatever order
        return by_name({split: as_texts(part) for split, part in labels.items()}, names, path)
    else:
        print_note(f"{path}: labels are {numbers}: `classes` names them in this order.")
    return {split: np.searchsorted(present, part) for split, part in labels.items()}, names


def given_names(classes, path):
    """The list of names in the array `classes`. Raises UserError for what is no list of names."""
    if classes.ndim != 1:
        what = "one text" if classes.ndim == 0 else f"an array {list(classes.shape)}"
        raise UserError(
            f"{path}: classes is {what}: it must be the list of all names, as ['cat', 'dog']"
        )
    return check_names([as_text(name) for name in classes.tolist()], path)


def check_names(names, path):
    """The names. Raises UserError where two are the same, one is empty or of several lines."""
    for name, count in Counter(names).items():
        if count > 1:
            name = shortened(repr(name), LONGEST)
            raise UserError(f"{path}: {count} classes are called {name}: give each its own name")
        if not name.strip() or shown(name) != name:  # line breaks, and other control characters
            name = shortened(repr(name), LONGEST)
            raise UserError(f"{path}: a class is called {name}: give it a name of one line")
    return names


def as_labels(labels, n, path):
    """int64 [n] of class numbers [n]; float32 [n, K] of 0 and 1. Raises UserError."""
    kind = labels.dtype.kind
    if labels.ndim == 2 and len(labels) == n and labels.shape[1] > 1 and kind in "iufb":
        if np.isin(labels, (0, 1)).all():
            return torch.from_numpy(labels.astype(np.float32))
    if labels.shape != (n,) or not is_countable(labels):
        raise UserError(
            f"{path}: labels must be {n} class numbers from 0, [N] or [N, 1], or 0 and 1, [N, K], "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def class_names(arrays, names, path):
    """The K names of the classes, or their numbers as text. Raises UserError."""
    train_labels, test_labels = arrays["train_labels"], arrays["test_labels"]
    multi_label = train_labels.ndim == 2
    if multi_label:
        k = train_labels.shape[1]
    else:
        k = int(max(train_labels.max(), test_labels.max())) + 1
    if names is None:
        return [str(label) for label in range(max(k, 2))]
    too_few = len(names) < k
    too_many = len(names) > k and multi_label  # else a class without images may have a name
    if too_few or too_many:
        raise UserError(f"{path}: its labels are of {k} classes, but {len(names)} are named")
    return names


# ---------------------------------------------------------------- what does not fit together


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


# ---------------------------------------------------------------- in words


def listed(names):
    """Names, separated by commas: of many the first NAMED, and how many more there are."""
    names = [shortened(shown(name), LONGEST) for name in names]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
