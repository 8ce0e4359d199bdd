"""Data sets that are folders of pictures, one a class: listed, decoded, kept as .npz.

    from_folder(Path("my_folder"), Path("data"), 32, "crop")    # a Dataset

    my_folder/train/CLASS/*, my_folder/test/CLASS/*     # val/ serves where there is no test/
    my_folder/CLASS/*                                   # a fifth of each class is the test set

What is left out, and what is done to the pictures, is said on standard error, at every load. What
cannot be used at all is a UserError.
"""

import contextlib
import hashlib
import os
import time
import unicodedata
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cli import UserError
from foldernotes import HEIC, counted, done, drawn_note, unread_notes
from imagefiles import decode, is_whole_file, shown
from npzfiles import fingerprint_of, from_npz, keep_npz, listed, texts_of
from terminal import print_note

TRAIN = ("train", "training")  # what the folder of a split may be called, in any case
TEST = ("test", "testing")
VALIDATION = ("val", "valid", "validation")
TEST_SHARE = 0.2  # of each class, where the folder has no split
RULES = b"3"  # changes where pictures are read otherwise: what was decoded before is made anew
BLOCK = 256  # pictures decoded between two looks at the clock
SECONDS_BETWEEN_LINES = 10  # of progress


def from_folder(folder, data_dir, size, fit):
    """The Dataset of a folder's pictures, RGB, size x size pixels, made square by `fit`.

    They are decoded once and kept as DATA_DIR/FOLDER_SIZE_FIT.npz, which is made anew when the
    name, length or time of change of a file differs. A damaged picture is left out. Raises
    UserError.
    """
    listing = list_folder(folder)
    fingerprint = fingerprint_of_files(listing, fit)
    # FOLDER_SIZE.npz, of older versions, is left alone: checkpoints of theirs may still need it.
    kept = data_dir / f"{folder.resolve().name}_{size}_{fit}.npz"
    known = fingerprint_of(kept)
    if kept.exists() and known is None:
        raise UserError(
            f"{kept}, where the decoded images of {folder} go, is a file of yours: rename it, "
            "or give another --data-dir"
        )
    if known != fingerprint:
        arrays = decode_all(listing, size, fit)
        keep_npz(kept, {"fingerprint": fingerprint, **arrays})
    dataset = from_npz(kept)
    for note in [*listing.notes, *texts_of(kept, "notes")]:
        print_note(note)
    return dataset


# ---------------------------------------------------------------- what is in the folder


@dataclass
class Listing:
    """What there is in a folder.

    folder: the Path. files: {"train": [(Path, class), ...], "test": ...}, sorted.
    notes: lines about what is left out, and how the split was made.
    drawn: whether it was by a seed.
    """

    folder: Path
    files: dict
    notes: list = field(default_factory=list)
    drawn: bool = False

    def name_of(self, path):
        """A file's path below the folder, as text for any screen, with slashes."""
        return shown(path.relative_to(self.folder).as_posix())


def list_folder(folder):
    """The Listing of a folder. Raises UserError where it holds no training or test pictures."""
    splits, notes = find_splits(folder)
    listing = Listing(folder, {}, notes)
    left_out = defaultdict(Counter)
    if not splits:
        pictures = pictures_by_class(folder, ".", left_out, notes)
        if not pictures:
            raise UserError(
                f"{folder} has no images in train/CLASS/ and test/CLASS/, nor in CLASS/"
                + hint(folder)
            )
        listing.files, listing.drawn = split_by_seed(pictures), True
    for path in visible(folder) if splits else ():
        is_split = path in splits.values() or path.name.lower() in VALIDATION
        if not (is_split and path.is_dir()):
            left_out["."]["other folder" if path.is_dir() else "loose file"] += 1
    for split, place in splits.items():
        listing.files[split] = pictures_by_class(place, place.name, left_out, notes)
        if not listing.files[split]:
            where = f"{place.name}/CLASS/{hint(place, nested=False)}"
            raise UserError(f"{folder} has no images in {where}")
    listing.files["test"] = called_as(listing.files["train"], listing.files["test"])
    check_classes(
        folder, {split: [name for _, name in part] for split, part in listing.files.items()}
    )
    if left_out:
        notes.append(f"Left out of {shown(folder)}: {counted(left_out)}.")
    return listing


def find_splits(folder):
    """({"train": Path, "test": Path}, notes) of a folder; {} where it has none of the two.

    Raises UserError where it has one of them, and validation images do not serve.
    """
    named = {path.name.lower(): path for path in visible(folder) if path.is_dir()}
    train, test, validation = (
        next((named[name] for name in names if name in named), None)
        for names in (TRAIN, TEST, VALIDATION)
    )
    if train is None and test is None and validation is None:
        return {}, []
    if train is None:
        there = (test or validation).name
        raise UserError(f"{folder} has {there}/ and no train/: the training images belong there")
    notes = []
    if test is None and validation is None:
        raise UserError(
            f"{folder} has no images in test/CLASS/ (nor val/CLASS/): put some there, or give "
            f"--dataset {train}, of which a fifth will be the test set"
        )
    if test is None:
        notes.append(f"{shown(folder)} has no test/: {validation.name}/ is the test set.")
    elif validation is not None:
        unused = f"{validation.name}/ of {shown(folder)} is not used"
        notes.append(f"{unused}: images held out are drawn from {train.name}/.")
    return {"train": train, "test": test or validation}, notes


def split_by_seed(pictures):
    """{"train": pictures, "test": pictures}, TEST_SHARE of each class, by a fixed seed, to test.

    pictures: [(path, class), ...], sorted. A class of one picture is trained on alone.
    """
    generator = np.random.default_rng(0)
    files = {"train": [], "test": []}
    for name in dict.fromkeys(name for _, name in pictures):
        own = [picture for picture in pictures if picture[1] == name]
        n_test = max(1, round(TEST_SHARE * len(own))) if len(own) > 1 else 0
        in_test = set(generator.permutation(len(own))[:n_test].tolist())
        for k, picture in enumerate(own):
            files["test" if k in in_test else "train"].append(picture)
    return files


def visible(folder):
    """The sorted paths in a folder, but for hidden ones: .name, ._name, and a Mac's __MACOSX."""
    paths = sorted(folder.iterdir())
    return [path for path in paths if not path.name.startswith((".", "__MACOSX"))]


def flat_pictures(folder):
    """The sorted pictures that lie loose in a folder without folders in it; [] of any other."""
    paths = visible(folder)
    if any(path.is_dir() for path in paths):
        return []
    return [path for path in paths if is_candidate(path, Counter())]


def pictures_by_class(place, called, left_out, notes):
    """[(path, class), ...], sorted, of the pictures in a folder's CLASS folders.

    called: what the folder is called in `left_out`, {place: Counter of reasons}, which is filled.
    A class without pictures is said in `notes`.
    """
    pictures, empty = [], []
    for path in visible(place):
        if not path.is_dir():
            left_out[called]["loose file"] += 1
            continue
        own = f"{called}/{path.name}" if called != "." else path.name
        found = [file for file in visible(path) if is_candidate(file, left_out[own])]
        pictures += [(file, shown(path.name)) for file in found]
        if not found:
            empty.append(own)
        if not left_out[own]:
            del left_out[own]
    if empty:
        notes.append(f"No pictures in {listed(empty)}: left out.")
    return pictures


def is_candidate(path, reasons):
    """Whether a file may be a picture, by its suffix; if not, why is counted in `reasons`.

    HEIC is a candidate, so that it is named with the pictures that cannot be read.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        reasons["sub-folder"] += 1
    elif path.exists() and not path.is_file():  # it would be waited for
        reasons["special file"] += 1
    elif suffix in picture_suffixes() or suffix in HEIC or (not suffix and has_picture(path)):
        return True
    else:
        reasons[f"{shown(suffix)} file" if suffix else "file without suffix"] += 1
    return False


def picture_suffixes():
    """The suffixes, in lower case, of all formats that Pillow reads."""
    suffixes = Image.registered_extensions()
    return {suffix for suffix, name in suffixes.items() if name in Image.OPEN}


def has_picture(path):
    """Whether a file begins as a picture does."""
    if not is_whole_file(path):
        return False
    with contextlib.suppress(Exception), Image.open(path):
        return True
    return False


def called_as(train, test):
    """The test pictures, their classes called as the training pictures' are.

    A name may be written in two ways, with composed letters or accents of their own.
    """
    known = {unicodedata.normalize("NFC", name): name for _, name in train}
    return [(path, known.get(unicodedata.normalize("NFC", name), name)) for path, name in test]


def hint(folder, nested=True):
    """Where the pictures may be instead, for the end of a refusal; nested: or a folder deeper."""
    for path in visible(folder):
        if nested and path.is_dir() and any(inner.is_dir() for inner in visible(path)):
            return f": is it {path}?"
    if any(is_candidate(path, Counter()) for path in visible(folder)):
        return ": put the pictures of each class into a folder called as the class"
    return ""


def fingerprint_of_files(listing, fit):
    """A SHA-256 of the names, lengths and times of change of all files, and of how they are read.

    It depends on the class and the side of the split, too.
    """
    digest = hashlib.sha256(
        b"\n".join([RULES, fit.encode(), os.fsencode(listing.folder.resolve())])
    )
    for split, pictures in listing.files.items():
        for path, name in pictures:
            entry = f"\n{split} {name!r} ".encode("utf-8", "backslashreplace") + os.fsencode(path)
            if path.exists():  # a link to nothing has no length; it fails when it is decoded
                stat = path.stat()
                entry += f" {stat.st_size} {stat.st_mtime_ns}".encode()
            digest.update(entry)
    return digest.hexdigest()


# ---------------------------------------------------------------- decoded


def decode_all(listing, size, fit):
    """The arrays of an .npz of a Listing: images, labels, classes, notes. Raises UserError.

    notes: lines about what could not be read, and what was done to pictures.
    """
    images, names, unreadable, changes = defaultdict(list), defaultdict(list), [], Counter()
    for split, path, name, result in decoded(listing, size, fit):
        if result is None:
            unreadable.append(path)
            continue
        images[split].append(result[0])
        names[split].append(name)
        changes.update(result[1])
    why = unread_notes(unreadable, listing)
    for split in ("train", "test"):
        if not images[split]:
            raise UserError(f"{listing.folder} has no image to {split} with: {' '.join(why)}")
    check_classes(listing.folder, names)
    classes = sorted(set(names["train"]))
    notes = [*drawn_note(listing, images), *why, *done(changes, fit)]
    arrays = {"classes": np.array(classes), "notes": np.array(notes, str)}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = np.stack(images.pop(split))
        arrays[f"{split}_labels"] = np.array([classes.index(name) for name in names[split]])
    return arrays


def decoded(listing, size, fit):
    """Yields (split, path, class, what `decode` returns, or None if unreadable) of all pictures.

    Where it takes long, a line on standard error says how far it is.
    """

    def attempt(picture):
        try:
            return decode(picture[1], size, "RGB", fit)
        except UserError:
            return None

    pictures = [(split, *picture) for split, part in listing.files.items() for picture in part]
    last_line = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(pictures), BLOCK):
            block = pictures[start : start + BLOCK]
            for picture, result in zip(block, pool.map(attempt, block)):
                yield *picture, result
            if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                print_note(f"decoding: {start + len(block):,} of {len(pictures):,}")
                last_line = time.monotonic()


def check_classes(folder, names):
    """Raises UserError for fewer than two classes, and for one that only test pictures show.

    names: {"train": the class of each picture, "test": ...}.
    """
    only_in_test = set(names["test"]) - set(names["train"])
    if only_in_test:
        found = listed(sorted(only_in_test))
        raise UserError(f"{folder}: test/ has classes that train/ has not: {found}")
    if len(set(names["train"])) < 2:
        only = f"only one class has pictures, {names['train'][0]}"
        needed = "a classifier needs two, each in a folder of its own"
        raise UserError(f"{folder}: {only}: {needed}{deeper(folder)}")


def deeper(folder):
    """Which folder deeper in this one has folders of pictures, for the end of a refusal; or ""."""
    for place, deeper_ones, _ in os.walk(folder):
        deeper_ones.sort()  # and so the next ones
        place = Path(place)
        folders = [path for path in visible(place) if path.is_dir()]
        inner = [
            path.name
            for path in folders
            if any(is_candidate(file, Counter()) for file in visible(path))
        ]
        if place != folder and len(inner) > 1:
            found = f"{shown(place)} has sub-folders with pictures, {listed(inner)}"
            return f"; {found}: are these the classes?"
    return ""
