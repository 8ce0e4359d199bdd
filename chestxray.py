"""The NIH's chest radiographs (ChestX-ray14) as arrays: labels, patients, the published split, and the pictures, decoded once.

    listing = find(Path("data/chestxray14"))             # what is there
    arrays = decode(listing, 128, Path("data/chestxray14_128"), read_image)  # as data.py's .npz wants them

In the folder: Data_Entry_2017.csv (or Data_Entry_2017_v2020.csv), train_val_list.txt, test_list.txt, and the pictures in images/, or in
images_001/images/ to images_012/images/, as the archives unpack. Some of the pictures will do.
"""
import contextlib
import csv
import functools
import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cli import UserError, print_progress, replace_file

DISEASES = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia", "Infiltration", "Mass", "Nodule",
            "Pleural_Thickening", "Pneumonia", "Pneumothorax"]
NO_FINDING = "No Finding"
PUBLISHED = 112_120  # pictures
SOURCE = ("from https://nihcc.app.box.com/v/ChestXray-NIHCC take images/images_001.tar.gz to images_012.tar.gz (42 GB; a few will do), "
          "Data_Entry_2017_v2020.csv, train_val_list.txt and test_list.txt, and unpack the archives")
TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
TEST_SHARE = 0.2  # of the patients, where the published lists are not there
BLOCK = 512  # pictures decoded between two notes of how far it is


@dataclass
class Listing:
    """files: {"train": paths, "test": paths}; labels: {file name: uint8 [14], 1 for each of DISEASES it shows}; patients: {file name: number}."""

    files: dict
    labels: dict
    patients: dict

    @functools.cached_property
    def fingerprint(self):
        """Of the pictures' names, lengths and times of change, their side of the split and their labels: what was decoded is good for these alone."""
        digest = hashlib.sha256()
        for part, paths in self.files.items():
            for path in paths:
                stat = path.stat()
                digest.update(f"{part} {path.name} {stat.st_size} {stat.st_mtime_ns} {self.patients[path.name]} ".encode() + self.labels[path.name].tobytes())
        return digest.hexdigest()


def find(folder):
    """The Listing of a folder laid out as the NIH's. Raises UserError, with what to get and where to put it, for what is not there."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not there: {SOURCE} there")
    paths = pictures(folder)
    if not paths:
        raise UserError(f"{folder} holds no pictures, neither in images/ nor in images_001/images/ and so on: {SOURCE} there")
    labels, patients = entries(folder)
    known = {name: path for name, path in sorted(paths.items()) if name in labels}
    if not known:
        raise UserError(f"none of the {len(paths)} pictures in {folder} is in its table of labels: is it ChestX-ray14's?")
    lists = published_split(folder)
    sides = split_by_patient(known, patients) if lists is None else lists
    files = {part: [path for name, path in known.items() if sides.get(name) == part] for part in LISTS}
    if both := {patients[path.name] for path in files["train"]} & {patients[path.name] for path in files["test"]}:
        raise UserError(f"patient {min(both)} is on both sides of the split in {folder}: {' and '.join(LISTS.values())} are not the published ones")
    for part, of in files.items():
        if not of:
            why = "they are all of one patient" if lists is None else f"see {LISTS[part]}"
            raise UserError(f"none of the pictures in {folder} is of the {part} part, {why}: get some of the other archives")
    if left_out := len(paths) - sum(map(len, files.values())):
        print(f"{left_out} pictures in {folder} are in no table or list, and left out.", file=sys.stderr)
    return Listing(files, labels, patients)


def pictures(folder):
    """{file name: path} of all PNGs in images/, images_*/images/, images_*/ and the folder itself."""
    places = [folder, folder / "images", *sorted(folder.glob("images_*")), *sorted(folder.glob("images_*/images"))]
    return {path.name: path for place in places if place.is_dir() for path in place.glob("*.png")}


def entries(folder):
    """Labels and patients of the table, as in Listing. Its columns are known by name, whatever the case and the spaces in them. Raises UserError."""
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no {' or '.join(TABLES)}, the table of labels: get it from https://nihcc.app.box.com/v/ChestXray-NIHCC")
    labels, patients = {}, {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = ["".join(title.lower().replace("_", " ").split()) for title in next(reader, [])]
            columns = {title: header.index(title) for title in ("imageindex", "findinglabels", "patientid") if title in header}
            if len(columns) < 3:
                raise UserError(f"{path} has no column for each of Image Index, Finding Labels, Patient ID")
            for row in reader:
                if any(cell.strip() for cell in row):
                    name, found, patient = (row[place].strip() for place in columns.values())
                    labels[name], patients[name] = multi_hot(found), int(patient)
    except (UnicodeDecodeError, IndexError, ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from None
    return labels, patients


def multi_hot(found):
    """"Edema|Mass" as uint8 [14]; "No Finding" as zeros. Raises ValueError for a finding that is not ChestX-ray14's."""
    names = found.split("|")
    if unknown := [name for name in names if name not in DISEASES and names != [NO_FINDING]]:
        raise ValueError(f"unknown finding {unknown[0]!r}")
    return np.array([name in names for name in DISEASES], np.uint8)


def published_split(folder):
    """{file name: "train" or "test"} by the published lists; None where one of them is not there. Raises UserError for a list that is no text."""
    if not all((folder / name).is_file() for name in LISTS.values()):
        print(f"{folder} has not both of {' and '.join(LISTS.values())}: a fifth of the patients are the test set.", file=sys.stderr)
        return None
    sides = {}
    for part, name in LISTS.items():
        try:
            lines = (folder / name).read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{folder / name} is no list of names in UTF-8") from None
        sides |= dict.fromkeys(map(str.strip, lines), part)
    return sides


def split_by_patient(names, patients):
    """The same, TEST_SHARE of the patients, drawn by a fixed seed, being the test set."""
    numbers = sorted({patients[name] for name in names})
    drawn = set(np.random.default_rng(0).permutation(numbers)[: max(1, round(TEST_SHARE * len(numbers)))].tolist())
    return {name: "test" if patients[name] in drawn else "train" for name in names}


# ---------------------------------------------------------------- decoding


def decode(listing, size, stem, read):
    """Every picture as uint8 [size, size], grey, with labels and patients: the arrays of an .npz. Memory does not grow with their number.

    read: a function from a path to a PIL image, which raises UserError for a damaged one; those are named and left out. Pixels go to STEM.part as they are
    decoded, and how far that is to STEM.part.json: an interrupted call is continued by the next. remove_parts deletes both when the .npz is written.
    """
    raw, notes = parts(stem)
    paths = [path for of in listing.files.values() for path in of]
    done, damaged = progress_of(raw, notes, listing.fingerprint, size)
    with ThreadPoolExecutor(os.cpu_count()) as pool, open(raw, "r+b" if done else "wb") as file:
        file.truncate((done - len(damaged)) * size * size)
        file.seek(0, os.SEEK_END)
        first, began, spoken = done, time.perf_counter(), 0.0
        while done < len(paths):
            block = paths[done : done + BLOCK]
            for path, pixels in zip(block, pool.map(lambda path: grey(path, size, read), block)):
                if pixels is None:
                    damaged.append(path.name)
                else:
                    file.write(pixels)
            file.flush()
            done += len(block)
            note = json.dumps({"fingerprint": listing.fingerprint, "done": done, "damaged": damaged})
            replace_file(notes, lambda path: path.write_text(note))
            spoken = say(done, len(paths), (done - first) / (time.perf_counter() - began), spoken)
    if damaged:
        print(f"{len(damaged)} damaged pictures are left out: {', '.join(damaged)}", file=sys.stderr)
    return arrays(listing, damaged, raw, size)


def parts(stem):
    """The two files of a decoding under way: pixels, notes."""
    return stem.with_name(f"{stem.name}.part"), stem.with_name(f"{stem.name}.part.json")


def remove_parts(stem):
    for path in parts(stem):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder):
    """Within the block no other process decodes the folder's pictures: it waits. (On Windows that is up to the user.)"""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def progress_of(raw, notes, fingerprint, size):
    """How many pictures an earlier call has seen, and the names of the damaged: (0, []) where there was none, or of other pictures."""
    try:
        then = json.loads(notes.read_text())
        whole = raw.stat().st_size >= (then["done"] - len(then["damaged"])) * size * size
        return (then["done"], then["damaged"]) if then["fingerprint"] == fingerprint and whole else (0, [])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, []


def grey(path, size, read):
    """The pixels of one picture, size * size bytes, whatever its size and mode; None for a damaged one."""
    try:
        return read(path).convert("L").resize((size, size), Image.BILINEAR).tobytes()
    except UserError:
        return None


def say(done, total, rate, spoken):
    """A progress line on standard error: rewritten in place on a terminal, elsewhere one now and then."""
    now, last = time.perf_counter(), done == total
    if not (last or sys.stderr.isatty() or now - spoken > 10):
        return spoken
    print_progress(f"decoding: {done:,} of {total:,}, {rate:,.0f} a second, {(total - done) / rate / 60:.0f} min left; may be interrupted", last, sys.stderr)
    return now


def arrays(listing, damaged, raw, size):
    """What is decoded, as an .npz wants it: images uint8 [N, size, size], memory-mapped, labels uint8 [N, 14], patients int64 [N]. Raises UserError."""
    result, begin = {"classes": DISEASES, "fingerprint": listing.fingerprint, "listed": sum(map(len, listing.files.values()))}, 0
    bad = set(damaged)
    for part, paths in listing.files.items():
        names = [path.name for path in paths if path.name not in bad]
        if not names:
            raise UserError(f"every picture of the {part} part is damaged")
        result[f"{part}_images"] = np.memmap(raw, np.uint8, "r", begin * size * size, (len(names), size, size))
        result[f"{part}_labels"] = np.stack([listing.labels[name] for name in names])
        result[f"{part}_patients"] = np.array([listing.patients[name] for name in names], np.int64)
        begin += len(names)
    return result
