"""The NIH's chest radiographs (ChestX-ray14): the table of labels, patients, the published split.

    chestxray14(Path("data"), 128)          # a Dataset of the images with one label or none
    chestxray14_multi(Path("data"), 128)    # a Dataset of all images, multi-label

In DATA_DIR/chestxray14 there must be Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv),
train_val_list.txt, test_list.txt, and the pictures in images/, or in images_001/images/ to
images_012/images/, as the archives unpack. Some of the pictures will do.

Source: Wang et al. 2017, "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks".
"""

import csv
import functools
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from chestxray_decode import decode, one_process, remove_partial_files
from cli import UserError, is_count
from dataset import keep_rows
from npzfiles import fingerprint_of, from_npz, keep_npz, texts_of
from terminal import print_note

# fmt: off
DISEASES = [
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis",
    "Hernia", "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
]
# fmt: on
NO_FINDING = "No Finding"
PUBLISHED = 112_120  # pictures
CHEST_SIZE = 128  # pixels a side, unless another size is asked for
TEST_SHARE = 0.2  # of the patients, where the published lists are not there

WEBSITE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
WHAT_TO_GET = (
    f"from {WEBSITE} take images/images_001.tar.gz to images_012.tar.gz (42 GB; a few will do), "
    "Data_Entry_2017_v2020.csv, train_val_list.txt and test_list.txt, and unpack the archives"
)
TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
COLUMNS = {
    "imageindex": "Image Index",
    "findinglabels": "Finding Labels",
    "patientid": "Patient ID",
}
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}


# ---------------------------------------------------------------- the data sets


def chestxray14(data_dir, image_size=None):
    """The Dataset of ChestX-ray14's images with one finding or none, grey, of 15 classes.

    The classes are 14 diseases in alphabetical order, so that Edema is 3, and No Finding, 14. In
    training an image is shifted by up to a 32nd of its side, and never mirrored: a heart lies on
    the left. Raises UserError.
    """
    dataset = chestxray14_multi(data_dir, image_size)
    single = dataset.train_labels.sum(1) <= 1
    dataset.train_images = keep_rows(dataset.train_images, single)
    dataset.train_labels = class_numbers(dataset.train_labels[single], "train")
    dataset.train_groups = dataset.train_groups[single]
    single = dataset.test_labels.sum(1) <= 1
    dataset.test_images = keep_rows(dataset.test_images, single)
    dataset.test_labels = class_numbers(dataset.test_labels[single], "test")
    dataset.classes = [*dataset.classes, NO_FINDING]
    return dataset


def class_numbers(labels, part):
    """int64 [N] of labels [N, 14] with one 1 a row or none, which is 14. Raises UserError."""
    if len(labels) < 2:
        raise UserError(
            f"fewer than two of the {part} images have a single label: "
            "use --dataset chestxray14-multi"
        )
    return torch.where(labels.any(1), labels.argmax(1), len(DISEASES))


def chestxray14_multi(data_dir, image_size=None):
    """The Dataset of all of ChestX-ray14's images, grey, multi-label: 14 diseases, any number each.

    The pictures in DATA_DIR/chestxray14 are decoded once and kept as DATA_DIR/chestxray14_SIZE.npz,
    which does without the pictures from then on. Raises UserError.
    """
    size = image_size or CHEST_SIZE
    folder = data_dir / "chestxray14"
    kept = data_dir / f"chestxray14_{size}.npz"
    if not kept.exists() or pictures(folder):
        listing = find(folder)
        with one_process(folder):
            decode_and_keep(listing, size, kept)
    dataset = from_npz(kept)
    listed = number_listed(kept)
    complete = dataset.multi_label and dataset.train_groups is not None
    if listed is None or not complete or dataset.classes != DISEASES:
        raise UserError(f"{kept} is not what this program keeps of ChestX-ray14: rename it")
    used = len(dataset.train_labels) + len(dataset.test_labels)
    damaged = f", {listed - used} of them damaged and left out" if used < listed else ""
    print_note(f"ChestX-ray14: {listed:,} of {PUBLISHED:,} pictures are here{damaged}.")
    return replace(dataset, crop=size // 32)


def decode_and_keep(listing, size, kept):
    """Decodes the listing's pictures into `kept`, an .npz, unless that holds them already.

    Raises UserError rather than replace a file of the user's, or one that holds more pictures.
    """
    stem = kept.with_suffix("")
    if kept.exists():
        fingerprint = fingerprint_of(kept)
        if fingerprint == listing.fingerprint:
            remove_partial_files(stem)  # an earlier call may have been killed before it did
            return
        listed = number_listed(kept) if fingerprint is not None else None
        if listed is None:
            raise UserError(
                f"{kept}, where the decoded ChestX-ray14 goes, is a file of yours: rename it, "
                "or give another --data-dir"
            )
        if listed > listing.count:
            raise UserError(
                f"{kept} holds {listed} pictures, and only {listing.count} are in the folder now: "
                "remove that file, to use these alone, or the pictures' folder, to use that file"
            )
    keep_npz(kept, {"classes": DISEASES, **decode(listing, size, stem)})
    remove_partial_files(stem)


def number_listed(kept):
    """How many pictures an .npz was made of, damaged ones included; None where it does not say."""
    listed = texts_of(kept, "listed")
    return int(listed[0]) if listed and is_count(listed[0]) else None


# ---------------------------------------------------------------- what is in the folder


@dataclass
class Listing:
    """What there is of ChestX-ray14.

    files: {"train": paths, "test": paths} of the pictures, in the order of their names.
    labels: {file name: uint8 [14]}, 1 for each of DISEASES that the picture shows.
    patients: {file name: number}.
    """

    files: dict
    labels: dict
    patients: dict

    @property
    def count(self):
        """The number of pictures, training and test part together."""
        return sum(len(paths) for paths in self.files.values())

    @functools.cached_property
    def fingerprint(self):
        """A SHA-256 of all that is decoded: what was decoded is good for exactly these pictures.

        It depends on the pictures' names, lengths and times of change, on their side of the split,
        and on their patients and labels.
        """
        digest = hashlib.sha256()
        for part, paths in self.files.items():
            for path in paths:
                stat = path.stat()
                patient = self.patients[path.name]
                entry = f"{part} {path.name} {stat.st_size} {stat.st_mtime_ns} {patient} "
                digest.update(entry.encode() + self.labels[path.name].tobytes())
        return digest.hexdigest()


def find(folder):
    """The Listing of a folder laid out as the NIH's.

    Raises UserError for what is not there, with what to get and where to put it. Pictures that no
    table or list names are left out, and counted on standard error.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: {WHAT_TO_GET} there")
    paths = pictures(folder)
    if not paths:
        raise UserError(
            f"{folder} holds no pictures, neither in images/ nor in images_001/images/ and so on: "
            f"{WHAT_TO_GET} there"
        )
    labels, patients = read_table(folder)
    known = {name: path for name, path in sorted(paths.items()) if name in labels}
    if not known:
        raise UserError(
            f"none of the {len(paths)} pictures in {folder} is in its table of labels: "
            "is it ChestX-ray14's?"
        )
    listing = Listing(split_pictures(folder, known, patients), labels, patients)
    left_out = len(paths) - listing.count
    if left_out:
        print_note(f"{left_out} pictures in {folder} are in no table or list, and left out.")
    return listing


def pictures(folder):
    """{file name: path} of all PNGs in images/, images_*/images/, images_*/ and the folder."""
    places = [
        folder,
        folder / "images",
        *sorted(folder.glob("images_*")),
        *sorted(folder.glob("images_*/images")),
    ]
    return {path.name: path for place in places if place.is_dir() for path in place.glob("*.png")}


def split_pictures(folder, known, patients):
    """{"train": paths, "test": paths} of the pictures, by the published lists or by patient.

    known: {file name: path}, sorted. Raises UserError where a patient is on both sides of the
    split, or a side is empty.
    """
    published = published_split(folder)
    side_of = split_by_patient(known, patients) if published is None else published
    files = {}
    for part in LISTS:
        files[part] = [path for name, path in known.items() if side_of.get(name) == part]
    patients_of = {part: {patients[path.name] for path in files[part]} for part in LISTS}
    both = patients_of["train"] & patients_of["test"]
    if both:
        raise UserError(
            f"patient {min(both)} is on both sides of the split in {folder}: "
            f"{' and '.join(LISTS.values())} are not the published ones"
        )
    for part in LISTS:
        if not files[part]:
            by_patient = published is None
            why = "they are all of one patient" if by_patient else f"see {LISTS[part]}"
            raise UserError(
                f"none of the pictures in {folder} is of the {part} part, {why}: "
                "get some of the other archives"
            )
    return files


def published_split(folder):
    """{file name: "train" or "test"} by the published lists; None where one of them is not there.

    Raises UserError for a list that is no text.
    """
    if not all((folder / name).is_file() for name in LISTS.values()):
        print_note(
            f"{folder} has not both of {' and '.join(LISTS.values())}: a fifth of the patients "
            "are the test set."
        )
        return None
    side_of = {}
    for part, name in LISTS.items():
        try:
            lines = (folder / name).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{folder / name} is no list of names in UTF-8") from None
        for line in lines:
            side_of[line.strip()] = part
    return side_of


def split_by_patient(names, patients):
    """{file name: "train" or "test"}: TEST_SHARE of the patients, by a fixed seed, are test."""
    numbers = sorted({patients[name] for name in names})
    n_test = max(1, round(TEST_SHARE * len(numbers)))
    order = np.random.default_rng(0).permutation(numbers)
    in_test = set(order[:n_test].tolist())
    return {name: "test" if patients[name] in in_test else "train" for name in names}


# ---------------------------------------------------------------- the table of labels


def read_table(folder):
    """({file name: uint8 [14] of labels}, {file name: patient}) of the table in the folder.

    Raises UserError, with the line's number, for a table that is not ChestX-ray14's.
    """
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{folder} has no {' or '.join(TABLES)}, the table of labels: get it from {WEBSITE}"
        )
    labels, patients = {}, {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            places = column_places(next(reader, []), path)
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                name, findings, patient = (row[place].strip() for place in places)
                labels[name] = multi_hot(findings)
                patients[name] = int(patient)
    except (UnicodeDecodeError, IndexError, ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    return labels, patients


def column_places(header, path):
    """Where each of COLUMNS stands in the header, whatever its case, spaces and underscores.

    Raises UserError where one of them is missing.
    """
    titles = ["".join(title.lower().replace("_", " ").split()) for title in header]
    if not set(COLUMNS) <= set(titles):
        raise UserError(f"{path} has no column for each of {', '.join(COLUMNS.values())}")
    return [titles.index(title) for title in COLUMNS]


def multi_hot(findings):
    """uint8 [14] of a text as "Edema|Mass" or "No Finding". Raises ValueError for another."""
    names = findings.split("|")
    if names == [NO_FINDING]:
        return np.zeros(len(DISEASES), np.uint8)
    unknown = [name for name in names if name not in DISEASES]
    if unknown:
        raise ValueError(f"unknown finding {unknown[0]!r}")
    return np.array([disease in names for disease in DISEASES], np.uint8)
