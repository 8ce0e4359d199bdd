"""One picture on a disk, of any format that Pillow reads: opened, made opaque, square and small.

    read_image("photo.jpg")                             # a PIL image of 8 bits a colour
    pixels, changes = decode("photo.jpg", 32, "RGB", "crop")    # uint8 [32, 32, 3]
    print(described("photo.jpg", changes))              # what was done to it, in words

What cannot be read is a UserError: one line that names the file.
"""

import contextlib
import logging
import os
import threading
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cli import UserError, first_line
from terminal import print_note, printable

# How a picture that is not square becomes square, and how that is said.
FITS = {
    "crop": "cropped at the centre",
    "pad": "padded with black",
    "squash": "squashed",
}
# What else is done to a picture, and how that is said.
DEEP, FRAMES, TRANSPARENT, NOT_SQUARE = "deep", "frames", "transparent", "not square"
BLACK = "black"
MEANT_AS_0_AND_1 = "If 0 and 1 were meant as black and white, multiply them by 255."
CHANGES = {
    DEEP: "of more than 8 bits, brought to 8, each by its own range: how bright one is beside"
    " another is lost",
    FRAMES: "of several frames or pages, of which the first is taken",
    TRANSPARENT: "transparent in places, laid on white",
    BLACK: f"without a value above 1, all but black ({MEANT_AS_0_AND_1[:-1]})",
}
LARGE = 2**24  # pixels, which take ten bytes each and more while they are decoded
ONE_AT_A_TIME = threading.Lock()  # large pictures, however many threads decode
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class Silence:
    """Within a block, all that is printed on standard error goes nowhere, as code in C prints it.

    Blocks of several threads may overlap. libtiff says there what is wrong with a picture, without
    its name.
    """

    def __init__(self):
        self.lock, self.blocks, self.kept = threading.Lock(), 0, None

    def __enter__(self):
        with self.lock, contextlib.suppress(OSError):  # standard error may be closed
            self.blocks += 1
            if self.blocks == 1:
                self.kept = os.dup(2)
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)

    def __exit__(self, *exception):
        with self.lock:
            self.blocks -= 1
            if self.blocks == 0 and self.kept is not None:
                os.dup2(self.kept, 2)
                os.close(self.kept)
                self.kept = None


SILENCE = Silence()

# Pillow warns of odd tags, palettes and large pictures, which are read all the same; what cannot
# be read is said by us, in one line.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())


# ---------------------------------------------------------------- opened


def read_image(path, say=False):
    """The picture in a file as a decoded PIL image, turned as its camera was held.

    Its modes stay as they are, transparency included, but for more than 8 bits a colour: these are
    brought to 8, see eight_bits; with `say` a line on standard error says so. Of several frames or
    pages it is the first, which is said, too. Raises UserError.
    """
    image, changes = open_image(path)
    if changes and say:
        print_note(described(path, changes))
    return image


def open_image(path):
    """(the picture of read_image, a set of what was done to it: DEEP, FRAMES). Raises UserError."""
    if os.path.exists(path) and not is_whole_file(path):
        raise UserError(f"{shown(path)} cannot be read as an image: it is empty, or no file")
    try:
        image = Image.open(path)
        if image.format == "EPS":
            raise ValueError("PostScript is a program, which is not run: save it as PNG")
        frames = has_frames(image, path)
        deep = any(is_deep(str(tile[-1])) for tile in image.tile)
        with SILENCE if image.format == "TIFF" else contextlib.nullcontext():
            image.load()
        with contextlib.suppress(Exception):  # Pillow raises anything for tags that make no sense
            image = ImageOps.exif_transpose(image)
        deep = deep or image.mode[0] in "IF"
        changes = {key for key, is_so in ((DEEP, deep), (FRAMES, frames)) if is_so}
        return (eight_bits(image) if deep else image), changes
    except Exception as error:  # a damaged file can raise anything at all
        raise UserError(unreadable(path, error)) from None


def is_whole_file(path):
    """Whether a path is a file with something in it: a pipe or a device would be waited for."""
    return os.path.isfile(path) and os.path.getsize(path) > 0


def has_frames(image, path):
    """Whether an open picture has frames or pages behind the first. PSD's are layers of it."""
    if not hasattr(image, "n_frames") or image.format == "PSD":
        return False
    # In a copy of its own: looking for the others moves, and what is damaged there does not matter.
    with contextlib.suppress(Exception), Image.open(path) as copy:
        return bool(copy.is_animated)
    return False


def is_deep(raw_mode):
    """Whether a Pillow decoder's arguments are of 16 bits a colour, of which it keeps the upper 8.

    "BGR;16" is another thing: 16 bits for all three.
    """
    return ";16" in raw_mode and "BGR;16" not in raw_mode


def unreadable(path, error):
    """Why a file is not read as a picture, in one line that names it."""
    if is_heic(path):
        return f"{shown(path)} is HEIC, which Pillow does not read: save it as JPEG or PNG"
    if isinstance(error, Image.DecompressionBombError):
        return f"{shown(path)} is too large to be read as an image: {too_large()}"
    why = first_line(error)
    if isinstance(error, UnidentifiedImageError):  # its text is the path once more
        why = "it is damaged, or of no format that Pillow reads"
    return f"{shown(path)} cannot be read as an image: {why}"


def is_heic(path):
    """Whether a file is a HEIC picture by its first bytes, whatever it is called."""
    if not is_whole_file(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS


def is_too_large(path):
    """Whether a file is a picture of more pixels than Pillow reads."""
    try:
        with Image.open(path):
            return False
    except Image.DecompressionBombError:
        return True
    except Exception:  # damaged in another way
        return False


def is_large(path):
    """Whether a file is a picture of more than LARGE pixels that Pillow reads."""
    if not is_whole_file(path):
        return False
    with contextlib.suppress(Exception), Image.open(path) as image:
        return image.width * image.height > LARGE
    return False


def too_large():
    """Pillow's limit, in words: it refuses twice the size that it warns of."""
    return f"Pillow reads up to {2 * Image.MAX_IMAGE_PIXELS:,} pixels"


def eight_bits(image):
    """An image of more than 8 bits a colour, its darkest value brought to 0, its brightest to 255.

    Each picture by the range in itself: a detector of 12 bits fills a sixteenth of the range that
    16 bits have, and floats have none. An image of one value keeps its share of 65535, or of 1.0.
    """
    if image.mode[0] not in "IF":  # Pillow has kept the upper 8 bits of each colour
        names = image.getbands()
        ranges = [band.getextrema() for name, band in zip(names, image.split()) if name != "A"]
        low, high = min(ends[0] for ends in ranges), max(ends[1] for ends in ranges)
        table = [min(max(value - low, 0) * 255 // max(high - low, 1), 255) for value in range(256)]
        same = list(range(256))
        tables = [same if name == "A" or high == low else table for name in names]
        return image.point([value for table in tables for value in table])
    values = np.asarray(image).astype(np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("none of its values is finite")
    low, high = finite.min(), finite.max()
    if low == high:
        low, high = 0, 1 if image.mode == "F" else 65535
    # not a number: black
    scaled = np.nan_to_num(((values - low) * 255 / (high - low)).clip(0, 255))
    grey = Image.fromarray(scaled.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the one value that is
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


# ---------------------------------------------------------------- opaque, square, small


def decode(path, size, mode, fit):
    """(uint8 [size, size] or [size, size, 3], what was done to it) of the picture in a file.

    mode: "L" or "RGB"; fit: of FITS. What was done: a set of the keys of CHANGES, and NOT_SQUARE.
    Raises UserError.
    """
    with ONE_AT_A_TIME if is_large(path) else contextlib.nullcontext():
        image, changes = open_image(path)
        try:
            image, transparent = opaque(image)
            image = image.convert(mode)
            black = max(np.ravel(image.getextrema())[1::2]) == 1
            pixels = np.array(square(image, size, fit))
        except Exception as error:  # of a colour space that Pillow does not convert
            raise UserError(unreadable(path, error)) from None
    not_square = image.width != image.height
    found = {TRANSPARENT: transparent, NOT_SQUARE: not_square, BLACK: black}
    return pixels, changes | {change for change, is_so in found.items() if is_so}


def opaque(image, background="white"):
    """(the image laid on a background, whether anything of it was transparent)."""
    if not image.has_transparency_data:
        return image, False
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return rgba.convert("RGB"), False
    below = Image.new("RGBA", rgba.size, background)
    return Image.alpha_composite(below, rgba).convert("RGB"), True


def square(image, size, fit):
    """A PIL image of size x size pixels, made square by `fit`, of FITS, bilinear, anti-aliased."""
    width, height = image.size
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif fit == "pad":
        longer = max(width, height)
        shape = [max(1, round(size * side / longer)) for side in (width, height)]
        canvas = Image.new(image.mode, (size, size))
        place = ((size - shape[0]) // 2, (size - shape[1]) // 2)
        canvas.paste(image.resize(shape, Image.BILINEAR), place)
        return canvas
    return image.resize((size, size), Image.BILINEAR)


def read_map(path, fit):
    """The grey picture in a file as a map: square, and black where it is transparent.

    What is done to it is said on standard error. Raises UserError.
    """
    image, changes = open_image(path)
    side = min(image.size) if fit == "crop" else max(image.size)
    try:
        grey = square(opaque(image, "black")[0].convert("L"), side, fit)
    except Exception as error:  # of a colour space that Pillow does not convert
        raise UserError(unreadable(path, error)) from None
    if image.width != image.height:
        changes.add(NOT_SQUARE)
    if changes:
        print_note(described(path, changes, fit))
    return grey


# ---------------------------------------------------------------- in words


def described(path, changes, fit=None):
    """A line: the file's name, and what was done to its picture. fit: of FITS."""
    texts = CHANGES | {NOT_SQUARE: f"not square, {FITS.get(fit)}"}
    done = "; ".join(text for change, text in texts.items() if change in changes)
    return f"{shown(os.path.basename(path))} is {done}."


def shown(name):
    r"""A file's name as text for any screen: bytes that are no UTF-8, and line breaks, as \xNN."""
    try:
        text = os.fspath(name).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, no byte of a file's name
        text = os.fspath(name).encode("utf-8", "backslashreplace")
    return printable(text.decode("utf-8", "backslashreplace"))
