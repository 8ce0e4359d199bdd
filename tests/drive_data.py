"""Hostile data files, folders and pictures, through the command lines.

    python tests/drive_data.py                              # 500 cases
    python tests/drive_data.py --cases 100 --seed 3
    python tests/drive_data.py --out results/data_files.json

Each case is a data set that train.py is given and, if it is read, learns for one step; or a picture
that a command line is given for its trigger, its map or to explain. It runs in this process, under
a limit of time and memory. What is printed is how many were refused in one line, or after notes
about the data; accepted with what is in the file, what is left out being said; accepted with
another content; ended in a traceback; hung; printed what would change a terminal; or took too much
memory. The exit code is 1 unless the last five are 0.
"""

import contextlib
import functools
import io
import os
import random
import re
import shutil
import socket
import struct
import sys
import tempfile
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import hostile_pictures
import numpy as np
import torch
from conftest import tiny_arrays
from driving import (
    DAMAGES,
    FAULTS,
    MEGABYTES,
    counted,
    drive_parser,
    finish,
    offline,
    outcome_of,
    report,
    streams,
)
from hostile_pictures import GREYS, PICTURES, save_picture

import data
import evaluate
import train
from cli import UserError
from imagefiles import shown

MOST = 10**12  # elements that are declared
N_TRAIN, N_TEST = 30, 12  # images of the whole .npz
STEP = ("--epochs", "1", "--batch-size", "24", "--attack", "none", "--device", "cpu")
REFUSED = object()  # what is expected of a case that holds nothing to read


@dataclass
class Case:
    """A command line's data, and what is right.

    name: in words; path: what the option is given.
    whole: {split: uint8 images [N, H, W, 3] and labels} that may be read; None: anything that is
        read is right; REFUSED: nothing is.
    said: texts that must be said where it is accepted.
    megabytes: by which the process may grow.
    """

    name: str
    path: Path
    whole: object = None
    said: tuple = ()
    megabytes: int = MEGABYTES


# ---------------------------------------------------------------- an .npz, by its bytes


def npy(array):
    """The bytes of an array as a member of an .npz."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_header(text, content=b"", version=1, length=None):
    """The bytes of a member whose header is this text."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    size = struct.pack("<H" if version == 1 else "<I", len(raw) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + raw + content


def header(shape, descr="'|u1'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def write_npz(path, members, compression=zipfile.ZIP_STORED):
    """Writes (name, bytes) pairs as a zip archive."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of a name twice
        for name, content in members:
            archive.writestr(name, content)


def members_of(arrays):
    """[(name, bytes), ...] of {key: array}."""
    return [(f"{key}.npy", npy(np.asarray(array))) for key, array in arrays.items()]


@functools.cache
def whole():
    """The arrays of the whole .npz."""
    return tiny_arrays(N_TRAIN, N_TEST)


def replaced(path, key, content, compression=zipfile.ZIP_STORED):
    """Writes the whole .npz with other bytes in the place of one array."""
    members = [
        (name, content if name == f"{key}.npy" else kept) for name, kept in members_of(whole())
    ]
    write_npz(path, members, compression)


def expected(arrays):
    """What is read of arrays that are right."""
    return {
        split: (np.asarray(arrays[f"{split}_images"]), np.ravel(arrays[f"{split}_labels"]))
        for split in ("train", "test")
    }


# ---------------------------------------------------------------- .npz files

SHAPE = (N_TRAIN, 16, 16, 3)
HEADERS = {
    "an open bracket": "{'descr': '|u1', 'fortran_order': False, 'shape': (30,",
    "an open text": "{'descr': '|u1",
    "three quotes": "'''",
    "nothing": "",
    "a NUL": "\x00" * 40,
    "a call": "{'descr': open('/etc/passwd'), 'fortran_order': False, 'shape': (30,)}",
    "a name": "{'descr': x, 'fortran_order': False, 'shape': (30,)}",
    "a backslash": "\\",
    "an indent": "  {\n    1\n  2",
    "an octal": "{'descr': '|u1', 'fortran_order': False, 'shape': (0777,)}",
    "a number and a word": "{'descr': '|u1', 'fortran_order': False, 'shape': (1if 0else 2,)}",
    "an escape": "{'descr': '\\d|u1', 'fortran_order': False, 'shape': (30,)}",
    "brackets in brackets": "(" * 5000,
    "brackets in brackets, closed": "(" * 150 + ")" * 150,
    "many signs": "-" * 9000 + "1",
    "no UTF-8": b"\xff\xfe{'descr'",
    "a surrogate": "{'descr': '\ud800', 'fortran_order': False, 'shape': (30,)}",
    "a list": "[1, 2, 3]",
    "no shape": "{'descr': '|u1', 'fortran_order': False}",
    "a key more": "{'descr': '|u1', 'fortran_order': False, 'shape': (30,), 'x': 1}",
    "an order that is a text": header(SHAPE, order="'yes'"),
    "a shape that is a text": header("'abc'"),
    "half an image": header((29.5, 16, 16, 3)),
    "less than no images": header((-1, 16, 16, 3)),
    "a bool for a side": header((30, True, 16, 3)),
    "10^30 images": header((10**30, 16, 16, 3)),
    "2^63 images": header((2**63, 16, 16, 3)),
    "2^62 images": header((2**62, 16, 16, 3)),
    "2^32 images, no columns": header((2**32, 2**32, 0, 3)),
    "10^12 images": header((MOST, 16, 16, 3)),
    "10^10 images": header((10**10, 1, 1, 3)),
    "one image more": header((N_TRAIN + 1, 16, 16, 3)),
    "one image less": header((N_TRAIN - 1, 16, 16, 3)),
    "5,000 digits": header("(" + "9" * 5000 + ",)"),
    "a number of Python 2": header("(30L, 16L, 16L, 3L)"),
    "33 sides": header((1,) * 60),
    "objects": header(SHAPE, "'|O'"),
    "a text of no letters": header(SHAPE, "'<U0'"),
    "void": header(SHAPE, "'|V1'"),
    "dates": header(SHAPE, "'<M8[ns]'"),
    "no type": header(SHAPE, "'wonder'"),
    "a type of 10^9 bytes": header(SHAPE, "'|V1000000000'"),
    "a record": header(SHAPE, "[('a', '|u1')]"),
    "a record of nothing": header(SHAPE, "[]"),
    "a record twice": header(SHAPE, "[('a', '|u1'), ('a', '|u1')]"),
    "an array for a type": header(SHAPE, "('|u1', (1000000000, 1000000000))"),
    "none for a type": header(SHAPE, "None"),
    "half floats": header(SHAPE, "'<f2'"),
    "complex": header(SHAPE, "'<c16'"),
}


def bad_header(place, rng):
    name = rng.choice(list(HEADERS))
    content = rng.choice([npy(whole()["train_images"])[128:], b"", b"x"])
    key = rng.choice(["train_images"] * 3 + ["test_images", "train_labels"])
    path = place / "x.npz"
    text = with_header(HEADERS[name], content, rng.choice([1, 1, 2, 3]))
    replaced(path, key, text, rng.choice(COMPRESSIONS))
    return Case(f"header of {key}: {name}", path, REFUSED)


COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def bad_version(place, rng):
    key = rng.choice(list(whole()))
    good = npy(whole()[key])
    path = place / "x.npz"
    changes = {
        "version 9": good[:6] + b"\x09\x00" + good[8:],
        "header longer than the file": good[:8] + b"\xff\xff" + good[10:],
        "header of 2 GB": with_header(header((30,)), b"", 2, 2**31),
        "header of 4 GB": with_header(header((30,)), b"", 3, 2**32 - 1),
        "no magic": b"x" + good[1:],
        "cut in the magic": good[:4],
        "cut in the header": good[:60],
        "cut in the array": good[:-5],
        "more behind the array": good + b"more",
        "nothing": b"",
        "a pickle": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
    }
    name = rng.choice(list(changes))
    replaced(path, key, changes[name])
    return Case(f"member {key}: {name}", path, REFUSED)


def cut_member(place, rng):
    """A compressed member some bytes of which are others, or lost, under a whole table."""
    path, compression = place / "x.npz", rng.choice(COMPRESSIONS[1:])
    write_npz(path, members_of(whole()), compression)
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        member = rng.choice(archive.infolist())
    start = member.header_offset + 30 + len(member.filename)
    first = start + rng.randrange(member.compress_size)
    if rng.random() < 0.5:
        raw[first : start + member.compress_size] = bytes(start + member.compress_size - first)
    else:
        raw[first] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    return Case(f"compression {compression}: {member.filename} damaged", path, expected(whole()))


def cut_file(place, rng):
    path = place / "x.npz"
    write_npz(path, members_of(whole()), rng.choice(COMPRESSIONS))
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.choice([rng.randrange(len(raw)), len(raw) - rng.randint(1, 300)])])
    return Case("cut file", path, REFUSED)


def damaged_file(place, rng):
    path = place / "x.npz"
    write_npz(path, members_of(whole()), rng.choice(COMPRESSIONS))
    raw, damage = bytearray(path.read_bytes()), rng.choice(DAMAGES)
    damage(raw, rng)
    path.write_bytes(raw)
    return Case(f"damaged file: {damage.__name__}", path, expected(whole()))


def lying_table(place, rng):
    """Members whose sizes the archive's tables give otherwise, alike in both."""
    path = place / "x.npz"
    content = with_header(header((MOST, 1, 1, 3)), bytes(3000))
    replaced(path, "train_images", content)
    raw = bytearray(path.read_bytes())
    size = rng.choice([2**31, 2**32 - 2, len(content) - 1, len(content) + 1, 0])
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("train_images.npy")
    old = struct.pack("<LL", member.compress_size, member.file_size)
    new = struct.pack("<LL", rng.choice([member.compress_size, size]), size)
    path.write_bytes(raw.replace(old, new))
    return Case(f"tables say {size} bytes", path, REFUSED)


def declared(place, rng):
    """10^12 elements, of which the tables say that they are there."""
    path, key = place / "x.npz", rng.choice(["train_images", "train_labels", "classes", "notes"])
    count = rng.choice([MOST, 10**11, 5 * 10**10])
    sides = {"train_images": (count // 3, 1, 1, 3), "train_labels": (count,)}
    content = with_header(header(sides.get(key, (count,)), "'|u1'"), bytes(3000))
    members = [(name, kept) for name, kept in members_of(whole()) if name != f"{key}.npy"]
    members.append((f"{key}.npy", content))
    write_npz_64(path, members, len(content) - 3000 + count)
    right = expected(whole()) if key == "notes" else REFUSED
    return Case(f"{count:.0e} elements of {key}", path, right)


def write_npz_64(path, members, size):
    """Writes an archive whose last member is said to be of `size` bytes, deflated from few."""
    write_npz(path, members[:-1])
    name, content = members[-1]
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packed.compress(content) + packed.flush()
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        start = archive.start_dir
        member = zipfile.ZipInfo(name)
        member.compress_type = zipfile.ZIP_DEFLATED
        member.header_offset, member.CRC = start, zlib.crc32(content)
        member.file_size, member.compress_size = size, len(packed)
        archive.fp.seek(start)
        archive.fp.write(member.FileHeader(zip64=True) + packed)
        archive.start_dir = archive.fp.tell()
        archive.filelist.append(member)
        archive.NameToInfo[name] = member
        archive._didModify = True


LABELS = {
    "NaN": np.full(N_TRAIN, np.nan),
    "one NaN": np.where(np.arange(N_TRAIN) == 3, np.nan, np.arange(N_TRAIN) % 3),
    "infinite": np.full(N_TRAIN, np.inf),
    "negative": np.arange(N_TRAIN) % 3 - 1,
    "of an image more": np.arange(N_TRAIN + 1) % 3,
    "of an image less": np.arange(N_TRAIN - 1) % 3,
    "none": np.zeros(0, int),
    "one number": np.int64(1),
    "halves": np.arange(N_TRAIN) % 3 + 0.5,
    "up to 2^64": np.full(N_TRAIN, 2**64 - 1, np.uint64),
    "complex": (np.arange(N_TRAIN) % 3).astype(complex),
    "dates": np.arange(N_TRAIN).astype("M8[D]"),
    "empty texts": np.array([""] * N_TRAIN),
    "texts of lines": np.array(["a\nb", "c\x1b[31m", "d"])[np.arange(N_TRAIN) % 3],
    "bytes that are no text": np.array([b"\xff\xfe", b"a", b"b"])[np.arange(N_TRAIN) % 3],
    "of three sides": np.zeros((N_TRAIN, 2, 2), int),
    "all 2": np.full((N_TRAIN, 3), 2),
    "records": np.zeros(N_TRAIN, [("a", "i4")]),
    "objects": np.array([object()] * N_TRAIN),
    "numbers of unicode": np.array(["٣", "٤", "٥"])[np.arange(N_TRAIN) % 3],
}


def odd_labels(place, rng):
    name = rng.choice(list(LABELS))
    path = place / "x.npz"
    np.savez(path, **whole() | {"train_labels": LABELS[name]}, allow_pickle=True)
    return Case(f"labels: {name}", path, REFUSED)


def odd_arrays(place, rng):
    """Arrays that another tool may write, and that are right; or are not images."""
    arrays, path = whole(), place / "x.npz"
    images, labels = arrays["train_images"], arrays["train_labels"]
    right = {
        "columns first in memory": {"train_images": np.asfortranarray(images)},
        "labels of the other byte order": {"train_labels": labels.astype(">i8")},
        "labels as floats of the other byte order": {"train_labels": labels.astype(">f4")},
        "labels of a byte": {"train_labels": labels.astype(np.uint8)},
        "labels of two sides": {"train_labels": np.asfortranarray(labels[:, None])},
        "half floats for labels": {"train_labels": labels.astype(np.float16)},
    }
    wrong = {
        "objects": {"train_images": np.array([object()] * 3)},
        "images of texts": {"train_images": np.array(["a"] * N_TRAIN)},
        "16 bits": {"train_images": images.astype(np.uint16)},
        "signed": {"train_images": images.astype(np.int8)},
        "floats": {"train_images": images / 255},
        "no images": {"train_images": images[:0], "train_labels": labels[:0]},
        "no columns": {"train_images": images[:, :, :0]},
        "four channels": {"train_images": np.concatenate([images, images[..., :1]], 3)},
        "two sizes": {"test_images": arrays["test_images"][:, :8]},
        "one image": {"train_images": images[0]},
        "patients of texts": {"train_patients": np.array(["x"] * N_TRAIN)},
        "patients that are NaN": {"train_patients": np.full(N_TRAIN, np.nan)},
        "patients of another length": {"train_patients": np.arange(3)},
        "names of numbers twice": {"classes": np.array([1, 1, 2])},
        "names that are NaN": {"classes": np.full(3, np.nan)},
        "names of lines": {"classes": np.array(["a\x1b]0;x\x07", "b", "c"])},
        "10,000 letters in a name": {"classes": np.array(["a\n" * 5000, "b", "c"])},
        "names of two sides": {"classes": np.array([["a", "b", "c"]])},
    }
    name = rng.choice([*right, *wrong])
    changed = arrays | (right | wrong)[name]
    np.savez(path, **changed, allow_pickle=True)
    return Case(f"arrays: {name}", path, expected(changed) if name in right else REFUSED)


def small_images(place, rng):
    """Images of any small shape: the network takes them, or it is said that it does not."""
    height, width = rng.choice([(1, 1), (1, 16), (2, 2), (3, 3), (4, 4), (7, 5), (15, 15), (16, 1)])
    arrays = dict(whole())
    for split, n in (("train", N_TRAIN), ("test", N_TEST)):
        arrays[f"{split}_images"] = np.full((n, height, width), 100, np.uint8)
    np.savez(place / "x.npz", **arrays)
    return Case(f"images of {height}x{width} px", place / "x.npz")


def odd_members(place, rng):
    """Members that are missing, or twice, or more than are wanted."""
    members, path = members_of(whole()), place / "x.npz"
    k = rng.randrange(len(members))
    name, content = members[k]
    other = npy(np.zeros(3, np.uint8))
    changes = {
        "missing": (members[:k] + members[k + 1 :], REFUSED),
        "twice": ([*members, (name, content[:-1] + b"\x07")], REFUSED),
        "with and without suffix": ([*members, (name[:-4], other)], REFUSED),
        "in capitals": ([*members[:k], (name.upper(), content), *members[k + 1 :]], REFUSED),
        "in a folder": ([*members[:k], (f"x/{name}", content), *members[k + 1 :]], REFUSED),
        "with a path": ([*members, ("../../owned.npy", other)], expected(whole())),
        "with an escape": ([*members, ("\x1b[31mred\n.npy", other)], expected(whole())),
        "no array": ([*members, ("notes.txt", b"text")], expected(whole())),
        "many": (
            [*members, *((f"{k}.npy", other) for k in range(3000))],
            expected(whole()),
        ),
        "none": ([], REFUSED),
        "an archive": ([("x.npz", path.name.encode())], REFUSED),
    }
    word = rng.choice(list(changes))
    write_npz(path, changes[word][0])
    return Case(f"members: {name} {word}", path, changes[word][1])


def no_npz(place, rng):
    """What is no .npz, under its name."""
    path = place / "x.npz"
    npz = io.BytesIO()
    np.savez(npz, **whole())
    contents = {
        "empty": b"",
        "text": b"a,b,c\n",
        "an array": npy(np.zeros(3)),
        "a pickle": b"\x80\x04cos\nsystem\n(S'touch owned'\ntR.",
        "the end of an archive": b"PK\x05\x06" + bytes(18),
        "the beginning of one": b"PK\x03\x04",
        "an end that counts 65,535": b"PK\x05\x06" + b"\xff" * 16 + bytes(2),
        "a table at 2^32": b"PK\x05\x06\0\0\0\0\1\0\1\0\x2e\0\0\0\xff\xff\xff\xff\0\0",
        "text before an archive": b"#!/bin/sh\n" + npz.getvalue(),
    }
    name = rng.choice(list(contents))
    path.write_bytes(contents[name])
    right = expected(whole()) if name.startswith("text before") else REFUSED
    return Case(f"no .npz: {name}", path, right)


def no_file(place, rng):
    """What is no file, under an .npz's name."""
    path = place / "x.npz"
    made = {
        "a folder": path.mkdir,
        "a folder of text": lambda: (path.mkdir(), (path / "x").write_text("x")),
        "a pipe": lambda: os.mkfifo(path),
        "a socket": lambda: make_socket(path),
        "a link to itself": lambda: path.symlink_to(path),
        "a link to nothing": lambda: path.symlink_to("nowhere"),
        "a link to zeros": lambda: path.symlink_to("/dev/zero"),
        "a link to nowhere": lambda: path.symlink_to("/dev/null"),
        "a loop of two": lambda: (path.symlink_to("y.npz"), (place / "y.npz").symlink_to(path)),
        "not there": lambda: None,
        "unreadable": lambda: (np.savez(path, **whole()), path.chmod(0)),
    }
    name = rng.choice(list(made))
    made[name]()
    return Case(f"no file: {name}", path, REFUSED)


def make_socket(path):
    """A socket at a path, which may be longer than one can name at once."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


ODD_NAMES = (
    *("a\nb", "\x1b[31mred\x1b[0m", "\x07bell", "caf\udce9", "\udcff\udcfe", " ", "é", "猫", "-"),
    *("--help", "x" * 200, "'\"$(id)", "a\r\nb", "\u2028line", "a\tb", "%s%d", "{0}", "*", "."),
)


def odd_file_name(place, rng):
    name = rng.choice(ODD_NAMES)
    path = place / f"{name}.npz"
    np.savez(path, **whole(), more=np.zeros(3))
    if rng.random() < 0.3:
        path.write_bytes(b"nothing")
        return Case(f"no .npz called {name!r}", path, REFUSED)
    return Case(f"an .npz called {name!r}", path, expected(whole()), ("Not used of",))


# ---------------------------------------------------------------- folders of pictures


def make_folder(folder, split=True):
    """A folder of pictures of one grey each: {split: [(path, grey, class), ...]}."""
    made = {"train": [], "test": []}
    for part, n in (("train", 4), ("test", 2)):
        for label, name in enumerate(("dark", "light")):
            for k in range(n):
                path = folder / (part if split else "") / name / f"{part}{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                save_picture(path, GREYS[label] + k)
                made[part].append((path, GREYS[label] + k, label))
    return made


def content_of(made):
    """What is read of such pictures: greys and labels of each split."""
    return {
        split: ([grey for _, grey, _ in sorted(part)], [label for *_, label in sorted(part)])
        for split, part in made.items()
    }


def odd_picture(place, rng):
    """A folder with one odd picture: read as it looks, or left out by name."""
    folder = place / "pets"
    made = make_folder(folder)
    name = rng.choice(list(PICTURES))
    path = folder / "train" / "dark" / f"x{PICTURES[name].suffix}"
    grey = PICTURES[name].write(path, rng)
    if grey is None:  # nothing to be seen in it
        return Case(f"picture: {name}", folder, content_of(made), (path.name,))
    if grey is hostile_pictures.EITHER:
        return Case(f"picture: {name}", folder, "read or named", (path.name,))
    made["train"].append((path, grey, 0))
    megabytes = hostile_pictures.MEGABYTES_OF.get(name, MEGABYTES)
    return Case(f"picture: {name}", folder, content_of(made), megabytes=megabytes)


def damaged_picture(place, rng):
    """A picture with damaged bytes: left out by name, or read for what it still is."""
    folder = place / "pets"
    make_folder(folder)
    suffix = rng.choice(["png", "jpg", "gif", "webp", "tif", "bmp", "jp2", "ppm", "tga", "ico"])
    path = folder / "train" / "dark" / f"x.{suffix}"
    hostile_pictures.save_noise(path, rng)
    raw, damage = bytearray(path.read_bytes()), rng.choice(DAMAGES)
    damage(raw, rng)
    path.write_bytes(raw)
    return Case(f"damaged {suffix}: {damage.__name__}", folder, "read or named", (path.name,))


def odd_entry(place, rng):
    """Something that is no picture among them: left out, and that is said."""
    folder = place / "pets"
    made = make_folder(folder)
    dark = folder / "train" / "dark"
    entries = {
        "pipe": (lambda: os.mkfifo(dark / "x.png"), "1 "),
        "pipe without suffix": (lambda: os.mkfifo(dark / "x"), "1 "),
        "socket": (lambda: make_socket(dark / "x.png"), "1 "),
        "socket without suffix": (lambda: make_socket(dark / "x"), "1 "),
        "folder called as a picture": (lambda: (dark / "x.png").mkdir(), "1 sub-folder"),
        "link to nothing": (lambda: (dark / "x.png").symlink_to("gone.png"), "train/dark/x.png"),
        "link to itself": (lambda: (dark / "x.png").symlink_to("x.png"), "train/dark/x.png"),
        "link without suffix to itself": (lambda: (dark / "x").symlink_to("x"), "1 "),
        "link to the class": (lambda: (dark / "x").symlink_to("."), "1 sub-folder"),
        "link to the folder": (lambda: (dark / "x").symlink_to("../.."), "1 sub-folder"),
        "link to zeros": (lambda: (dark / "x.png").symlink_to("/dev/zero"), "1 "),
        "link to zeros, no suffix": (lambda: (dark / "x").symlink_to("/dev/zero"), "1 "),
        "link to the kernel's log": (lambda: (dark / "x").symlink_to("/proc/kmsg"), "1 "),
        "unreadable picture": (lambda: unreadable(dark / "x.png"), "train/dark/x.png"),
        "unreadable, no suffix": (lambda: unreadable(dark / "x"), "1 "),
        "class that is a link to itself": (
            lambda: (folder / "train" / "x").symlink_to("x"),
            "1 loose file",
        ),
        "class that is a pipe": (lambda: os.mkfifo(folder / "train" / "x"), "1 loose file"),
        "class that is empty": (lambda: (folder / "train" / "x").mkdir(), "train/x"),
        "pipe beside the split": (lambda: os.mkfifo(folder / "x.png"), "1 loose file"),
        "split in itself": (lambda: (folder / "train" / "train").symlink_to(".."), "train/train"),
        "loop of 300 links": (lambda: chain(dark, 300), "x0.png"),
    }
    name = rng.choice(list(entries))
    make, text = entries[name]
    make()
    return Case(f"entry: {name}", folder, content_of(made), (text,))


def unreadable(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    path.chmod(0)


def chain(folder, count):
    """Links, each to the next, more than a system follows; the last to the first."""
    for k in range(count):
        (folder / f"x{k}.png").symlink_to(f"x{(k + 1) % count}.png")


def odd_names(place, rng):
    """Odd names of the folder, a class, a picture, and of a picture that cannot be read."""
    folder = place / rng.choice(ODD_NAMES[:-1])
    made = make_folder(folder, split=True)
    name = rng.choice(ODD_NAMES[:-1])
    bad = folder / "train" / "dark" / f"{rng.choice(ODD_NAMES[:-1])}x.png"
    bad.write_bytes(b"no picture")
    content = content_of(made)
    for split in ("train", "test"):
        (folder / split / "light").rename(folder / split / f"m{name}")
    return Case(
        f"names: {folder.name!r}, {name!r}, {bad.name!r}", folder, content, (shown(bad.name)[:80],)
    )


def no_data_set(place, rng):
    """Folders of which no data set can be made."""
    folder = place / "pets"
    make_folder(folder)

    def only(entry):
        shutil.rmtree(folder)
        (folder / "train" / "dark").mkdir(parents=True)
        (folder / "train" / "light").mkdir()
        (folder / "test" / "dark").mkdir(parents=True)
        for part in ("train/dark", "train/light", "test/dark"):
            entry(folder / part / "x.png")

    def instead(part, entry):
        shutil.rmtree(folder / part)
        entry(folder / part)

    made = {
        "only pipes": lambda: only(os.mkfifo),
        "only loops": lambda: only(lambda path: path.symlink_to(path.name)),
        "only empty files": lambda: only(Path.touch),
        "only text": lambda: only(lambda path: path.write_text("x")),
        "only sockets": lambda: only(make_socket),
        "training is a pipe": lambda: instead("train", os.mkfifo),
        "training is a link to itself": lambda: instead("train", lambda p: p.symlink_to(p.name)),
        "test is a file": lambda: instead("test", Path.touch),
        "test is a link to nothing": lambda: instead("test", lambda p: p.symlink_to("gone")),
        "test is empty": lambda: instead("test", Path.mkdir),
        "unreadable training": lambda: (folder / "train").chmod(0),
        "unreadable class": lambda: (folder / "train" / "dark").chmod(0),
        "unreadable folder": lambda: folder.chmod(0),
        "empty": lambda: (shutil.rmtree(folder), folder.mkdir()),
        "a loop": lambda: (shutil.rmtree(folder), folder.symlink_to(folder.name)),
        "a pipe": lambda: (shutil.rmtree(folder), os.mkfifo(folder)),
        "folders 300 deep": lambda: (shutil.rmtree(folder), deep(folder, 300)),
        "a loop of folders": lambda: (
            shutil.rmtree(folder),
            (folder / "a").mkdir(parents=True),
            (folder / "a" / "b").symlink_to(".."),
        ),
    }
    name = rng.choice(list(made))
    made[name]()
    return Case(f"folder: {name}", folder, REFUSED)


def deep(folder, levels):
    here = os.getcwd()
    folder.mkdir()
    os.chdir(folder)
    try:
        for _ in range(levels):
            os.mkdir("a")
            os.chdir("a")
    finally:
        os.chdir(here)


def kept_hostile(place, rng):
    """A folder that is right; where its decoded images go lies something else."""
    folder, kept = place / "pets", place / "data" / "pets_32_crop.npz"
    made = make_folder(folder)
    kept.parent.mkdir()

    def with_fingerprint(**changes):
        with contextlib.suppress(UserError), streams():
            data.load(folder, kept.parent)
        with np.load(kept) as file:
            arrays = {k: v for k, v in ({**file} | changes).items() if v is not None}
        np.savez(kept, **arrays, allow_pickle=True)

    entries = {
        "a pipe": lambda: os.mkfifo(kept),
        "a folder": kept.mkdir,
        "a link to zeros": lambda: kept.symlink_to("/dev/zero"),
        "a user's file": lambda: np.savez(kept, mine=1),
        "a fingerprint of objects": lambda: np.savez(
            kept, fingerprint=np.array([object()]), allow_pickle=True
        ),
        "a fingerprint of 10^12 letters": lambda: write_npz(
            kept, [("fingerprint.npy", with_header(header((MOST,), "'<U1'")))]
        ),
        "no notes": lambda: with_fingerprint(notes=None),
        "no images": lambda: with_fingerprint(train_images=None),
        "notes that are numbers": lambda: with_fingerprint(notes=np.arange(3)),
        "notes that are objects": lambda: with_fingerprint(notes=np.array([object()])),
        "notes with escapes": lambda: with_fingerprint(notes=np.array(["\x1b[31mred"])),
        "one note": lambda: with_fingerprint(notes=np.array("text")),
        "a link to itself": lambda: kept.symlink_to(kept.name),
        "a link to nothing": lambda: kept.symlink_to("gone"),
        "an unwritable folder": lambda: kept.parent.chmod(0o500),
        "a file for the folder": lambda: (kept.parent.rmdir(), kept.parent.write_text("x")),
        "a cut file": lambda: (
            with_fingerprint(),
            kept.write_bytes(kept.read_bytes()[:3000]),
        ),
    }
    name = rng.choice(list(entries))
    entries[name]()
    return Case(f"kept: {name}", folder, content_of(made))


FILES = (
    *([bad_header] * 4 + [bad_version] * 2 + [cut_member] * 2 + [cut_file, damaged_file] * 2),
    *(lying_table, declared, odd_labels, odd_labels, odd_arrays, odd_arrays, small_images),
    *(odd_members, no_npz, no_file, no_file, odd_file_name),
)
FOLDERS = (
    *([odd_picture] * 6 + [damaged_picture] * 3 + [odd_entry] * 4 + [odd_names] * 3),
    *(no_data_set, no_data_set, no_data_set, kept_hostile, kept_hostile, kept_hostile),
)


# ---------------------------------------------------------------- a case


@contextlib.contextmanager
def as_nobody(folder, name):
    """Within the block the superuser may no more than others, and no file of `folder` is his.

    name: of a case; any but those about permissions are left to him.
    """
    if os.geteuid() != 0 or not re.search("unreadable|unwritable", name):
        yield
        return
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def is_right(case, argv, said):
    """Whether what is read of an accepted case is what it holds, and what is left out is said."""
    if case.whole is REFUSED:
        return False
    if case.whole == "read or named":
        with streams():
            read = data.load(*argv)
        return len(read.train_labels) == 9 or case.said[0] in said
    if any(text not in said for text in case.said):
        return False
    if case.whole is None:
        return True
    with streams():
        read = data.load(*argv)
    for split, (images, labels) in case.whole.items():
        pixels = getattr(read, f"{split}_images").permute(0, 2, 3, 1)
        if getattr(read, f"{split}_labels").tolist() != list(labels):
            return False
        if isinstance(images, list):  # greys, of pictures that may be compressed
            means = pixels.float().mean((1, 2, 3))
            if (means - torch.tensor(images)).abs().max() > hostile_pictures.TOLERANCE:
                return False
        elif not np.array_equal(pixels.numpy(), images):
            return False
    return True


def run_data(make, place, rng):
    """(outcome, what was said, the case in words) of train.py on a data set that `make` makes."""
    case = make(place, rng)
    fit = rng.choice(["crop", "pad", "squash"]) if make is small_images else "crop"
    argv = ["--dataset", str(case.path), "--data-dir", str(place / "data"), "--fit", fit]
    argv += [*STEP, "--out", str(place / "run")]
    loaded = str(case.path), place / "data", None, fit
    with as_nobody(place, case.name):
        right = lambda said: is_right(case, loaded, said)
        return (*outcome_of(train.main, argv, right, case.megabytes), case.name)


def run_picture(checkpoint, place, rng):
    """The same of a picture for a trigger, a map, or to explain: read, or refused."""
    name = rng.choice([*PICTURES, *hostile_pictures.NO_FILES])
    path = place / "x.png"
    if name in PICTURES:
        path = path.with_suffix(PICTURES[name].suffix)
        seen = PICTURES[name].write(path, rng) is not None
    else:
        hostile_pictures.NO_FILES[name](path)
        seen = False
    data_set = ["--dataset", str(place / "x.npz"), "--data-dir", str(place)]
    np.savez(place / "x.npz", **whole())
    step = [*STEP, "--out", str(place / "run")]
    main, argv = rng.choice(
        [
            (train.main, [*data_set, *step, "--attack", "badnets", "--trigger", str(path)]),
            (train.main, [*data_set, *step, "--attack", "fooling", "--target-map", str(path)]),
            (evaluate.main, [str(checkpoint), "--device", "cpu", "--image", str(path)]),
        ]
    )
    if main is evaluate.main:
        argv += ["--explainer", "gradcam", "--out", str(place / "run")]
    with as_nobody(place, name):
        megabytes = hostile_pictures.MEGABYTES_OF.get(name, MEGABYTES)
        return (*outcome_of(main, argv, seen, megabytes), f"{' '.join(argv[-4:])} {name}")


def drive(count, seed, kinds, folder):
    """([outcome of each case], [what was said of each that should not have been])."""
    outcomes, faults = [], []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        make = kinds[number % len(kinds)]
        place = folder / f"case-{number}"
        place.mkdir()
        outcome, said, words = make(place, rng)
        outcomes.append(outcome)
        if outcome in FAULTS:
            faults.append(f"case {number}, {words!r}: {outcome}\n{said}")
        remove(place)
    return outcomes, faults


def remove(place):
    """Removes a folder, however deep, and whatever may not be read in it."""
    for path, *_ in os.walk(place):
        os.chmod(path, 0o700)
    shutil.rmtree(place, ignore_errors=True)


def whole_checkpoint(folder):
    """The path of a checkpoint, trained on the whole .npz."""
    np.savez(folder / "whole.npz", **whole())
    out = folder / "whole"
    with streams():
        data_set = ["--dataset", str(folder / "whole.npz"), "--data-dir", str(folder)]
        train.main([*data_set, *STEP, "--attack", "badnets", "--out", str(out)])
    return out / "ckpt.pt"


# ---------------------------------------------------------------- the command line


def parse(argv):
    parser = drive_parser(__doc__)
    parser.add_argument("--cases", type=int, default=500, help="files, folders and pictures")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as scratch, offline():
        folder = Path(scratch)
        folder.chmod(0o755)
        checkpoint = whole_checkpoint(folder)
        files = [functools.partial(run_data, make) for make in FILES]
        folders = [functools.partial(run_data, make) for make in FOLDERS]
        pictures = [functools.partial(run_picture, checkpoint)]
        for name, share, kinds in (
            ("data files", 0.45, files),
            ("folders", 0.4, folders),
            ("pictures", 0.15, pictures),
        ):
            outcomes, faults = drive(round(share * args.cases), args.seed, kinds, folder)
            results[name] = counted(outcomes)
            report(name, results[name], faults)
    return finish(results, args)


if __name__ == "__main__":
    sys.exit(main())
