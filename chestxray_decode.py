"""Decoding the NIH's radiographs: 112,120 pictures of 1024 px, in little memory, interruptible.

    with one_process(folder):
        arrays = decode(listing, 128, Path("data/chestxray14_128"))
        keep_npz(Path("data/chestxray14_128.npz"), arrays)
        remove_partial_files(Path("data/chestxray14_128"))

The pixels go to STEM.part as they are decoded, and how far that is to STEM.part.json. A call that
was interrupted is continued by the next one.
"""

import contextlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from cli import UserError, replace_file
from imagefiles import read_image
from terminal import print_note, print_progress

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

BLOCK = 512  # pictures decoded between two notes of how far it is
SECONDS_BETWEEN_LINES = 10  # of progress, where standard error is no terminal


def decode(listing, size, stem):
    """The arrays of an .npz, all pictures of a chestxray.Listing among them, grey, size x size.

    A damaged picture is left out, and named on standard error. Memory does not grow with the
    number of pictures: the arrays of images lie in STEM.part until remove_partial_files is called.
    Raises UserError where every picture of a part is damaged.
    """
    pixel_file, note_file = partial_files(stem)
    paths = [path for part in listing.files.values() for path in part]
    done, damaged = progress_of(pixel_file, note_file, listing.fingerprint, size)
    with ThreadPoolExecutor(os.cpu_count()) as pool, open_pixels(pixel_file, done) as file:
        file.truncate((done - len(damaged)) * size * size)
        file.seek(0, os.SEEK_END)
        done_before, start, last_printed = done, time.perf_counter(), 0.0
        while done < len(paths):
            block = paths[done : done + BLOCK]
            for path, pixels in zip(block, pool.map(lambda path: decode_grey(path, size), block)):
                if pixels is None:
                    damaged.append(path.name)
                else:
                    file.write(pixels)
            file.flush()
            done += len(block)
            note_progress(note_file, listing.fingerprint, done, damaged)
            rate = (done - done_before) / (time.perf_counter() - start)
            last_printed = print_status(done, len(paths), rate, last_printed)
    if damaged:
        names = ", ".join(damaged)
        print_note(f"{len(damaged)} damaged pictures are left out: {names}")
    return decoded_arrays(listing, damaged, pixel_file, size)


def decode_grey(path, size):
    """The pixels of one picture, size * size bytes, whatever its size and mode; None if damaged.

    One that is not square is squashed: published figures are of radiographs brought to size so, and
    the NIH's are square.
    """
    try:
        image = read_image(path)
    except UserError:
        return None
    return image.convert("L").resize((size, size), Image.BILINEAR).tobytes()


def decoded_arrays(listing, damaged, pixel_file, size):
    """What is decoded, as {key: array}. Raises UserError where every picture of a part is damaged.

    Of each part the images, uint8 [N, size, size], mapped from the file; labels, uint8 [N, 14];
    patients, int64 [N]. Besides these the listing's fingerprint, and its number of pictures.
    """
    arrays = {"fingerprint": listing.fingerprint, "listed": listing.count}
    damaged = set(damaged)
    first = 0  # image of the part, counted from the file's beginning
    for part, paths in listing.files.items():
        names = [path.name for path in paths if path.name not in damaged]
        if not names:
            raise UserError(f"every picture of the {part} part is damaged")
        shape = (len(names), size, size)
        patients = [listing.patients[name] for name in names]
        arrays[f"{part}_images"] = np.memmap(pixel_file, np.uint8, "r", first * size * size, shape)
        arrays[f"{part}_labels"] = np.stack([listing.labels[name] for name in names])
        arrays[f"{part}_patients"] = np.array(patients, np.int64)
        first += len(names)
    return arrays


# ---------------------------------------------------------------- interrupted and continued


def partial_files(stem):
    """The two files of a decoding under way: the pixels, and the notes of how far it is."""
    return stem.with_name(f"{stem.name}.part"), stem.with_name(f"{stem.name}.part.json")


def remove_partial_files(stem):
    """Deletes the files of a decoding that is complete and kept elsewhere."""
    for path in partial_files(stem):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_pixels(pixel_file, done):
    """The file of pixels, open for writing: as it is if some pictures are done, else emptied.

    Raises UserError where it cannot be written.
    """
    try:
        with open(pixel_file, "r+b" if done else "wb") as file:
            yield file
    except BrokenPipeError:  # nobody reads how far it is
        raise
    except OSError as error:
        raise UserError(f"cannot write {pixel_file}: {error.strerror}") from None


def note_progress(note_file, fingerprint, done, damaged):
    """Writes down which pictures are decoded, so that the next call can continue."""
    note = json.dumps({"fingerprint": fingerprint, "done": done, "damaged": damaged})
    replace_file(note_file, lambda path: path.write_text(note))


def progress_of(pixel_file, note_file, fingerprint, size):
    """How many pictures an earlier call has decoded, and the names of the damaged among them.

    (0, []) where there was no earlier call, or it was of other pictures.
    """
    try:
        note = json.loads(note_file.read_text())
        done, damaged = note["done"], note["damaged"]
        written = (done - len(damaged)) * size * size
        if note["fingerprint"] == fingerprint and pixel_file.stat().st_size >= written:
            return done, damaged
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note, or half of one: start again
    return 0, []


@contextlib.contextmanager
def one_process(folder):
    """Within the block no other process decodes the folder's pictures: it waits for its turn.

    On Windows nothing is locked, and the user must not start two at once.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def print_status(done, total, rate, last_printed):
    """Prints how far the decoding is, on standard error; returns when a line was printed last.

    rate: pictures a second; last_printed: seconds of time.perf_counter(). On a terminal the line
    is rewritten in place; elsewhere there is one every SECONDS_BETWEEN_LINES, and one at the end.
    """
    now = time.perf_counter()
    is_last = done == total
    is_due = now - last_printed > SECONDS_BETWEEN_LINES
    if not (is_last or is_due or sys.stderr.isatty()):
        return last_printed
    minutes = (total - done) / rate / 60
    line = f"decoding: {done:,} of {total:,}, {rate:,.0f} a second, {minutes:.0f} min left; "
    print_progress(line + "may be interrupted", is_last, sys.stderr)
    return now
