"""Pictures as no camera writes them, for drive_data.py: read as they look, or left out by name."""

import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

GREYS = (40, 200)  # of the two classes' pictures
TOLERANCE = 8  # of a mean grey: what JPEG and a resize may change
SIDE = 24  # pixels
EITHER = object()  # it may be read or left out: what it shows is not known


@dataclass(frozen=True)
class Picture:
    """A kind of picture: its suffix, and write(path, rng).

    write returns the mean grey that is to be seen; None: there is nothing to be read; or EITHER.
    """

    suffix: str
    write: Callable


def save_picture(path, grey, size=(SIDE, SIDE)):
    """A picture of one grey."""
    Image.new("RGB", size, (grey,) * 3).save(path)


def save_noise(path, rng):
    """A picture of noise, of the format that the suffix says."""
    pixels = np.frombuffer(rng.randbytes(SIDE * SIDE * 3), np.uint8)
    Image.fromarray(pixels.reshape(SIDE, SIDE, 3)).save(path)


# ---------------------------------------------------------------- right, if odd


def one_colour(mode, colour, grey, **options):
    """Writes a picture of one colour of any mode; it looks `grey`."""

    def write(path, rng):
        Image.new(mode, (SIDE, SIDE), colour).save(path, **options)
        return grey

    return write


def of_size(width, height):
    def write(path, rng):
        save_picture(path, 90, (width, height))
        return 90

    return write


def palette(transparency, grey):
    """Writes a picture with a palette, of which index 1, grey 80, is everywhere."""

    def write(path, rng):
        image = Image.new("P", (SIDE, SIDE), 1)
        image.putpalette([0, 0, 0, 80, 80, 80, 255, 255, 255])
        image.save(path, transparency=transparency)
        return grey

    return write


def animated(path, rng):
    frames = [Image.new("RGB", (SIDE, SIDE), (value,) * 3) for value in (60, 250, 250)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return 60


def deep(values, grey):
    """Writes 16 bits a pixel or floats: the values, repeated in rows; it looks `grey`."""

    def write(path, rng):
        rows = np.repeat(np.resize(np.asarray(values), SIDE)[:, None], SIDE, 1)
        Image.fromarray(rows).save(path)
        return grey

    return write


def chunk(kind, content):
    """A chunk of a PNG."""
    length, check = struct.pack(">I", len(content)), zlib.crc32(kind + content)
    return length + kind + content + struct.pack(">I", check)


def png(width, height, rows, depth=8, colour=2, more=b""):
    """The bytes of a PNG of any header; rows: its bytes, a filter's before each."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_of_16_bits(path, rng):
    path.write_bytes(png(SIDE, SIDE, (b"\0" + b"\x50\0" * 3 * SIDE) * SIDE, depth=16))
    return 80


# ---------------------------------------------------------------- hostile


def contents(raw, seen=None):
    """Writes these bytes."""

    def write(path, rng):
        path.write_bytes(raw() if callable(raw) else raw)
        return seen

    return write


def cut(path, rng):
    save_noise(path, rng)
    raw = path.read_bytes()
    path.write_bytes(raw[: rng.randrange(len(raw) // 8, len(raw) // 2)])
    return EITHER if path.suffix in (".jp2", ".ico") else None


def without_suffix(path, rng):
    save_picture(path.with_suffix(".png"), 70)
    path.with_suffix(".png").rename(path)
    return 70


def declared(width, height):
    """Writes a small PNG that says it is of so many pixels."""
    return contents(lambda: png(width, height, b"\0" * 1000))


def large_png(path, rng):
    """As many pixels as Pillow reads, in 90 kB."""
    path.write_bytes(png(9000, 9000, (b"\0" + b"\x50" * 9000) * 9000, colour=0))
    return 80


def text_bomb(path, rng):
    packed = zlib.compress(bytes(2 * 10**7))
    more = b"".join(chunk(b"zTXt", b"a%d\0\0" % k + packed) for k in range(5))
    more += chunk(b"iCCP", b"a\0\0" + packed)
    path.write_bytes(png(SIDE, SIDE, (b"\0" + b"\x50" * 3 * SIDE) * SIDE, more=more))
    return EITHER


def tiff(entries, data=b"", following=0):
    """The bytes of a TIFF: entries (tag, type, count, value); following: where the next IFD is."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(entries))
        + rows
        + struct.pack("<I", following)
        + data
    )


def grey_tiff(following=0, **changes):
    """A TIFF of 8 x 8 pixels of grey 80; changes: of its tags' values, by name."""
    tags = {"width": 256, "height": 257, "bits": 258, "packing": 259, "kind": 262, "strip": 273}
    tags |= {"samples": 277, "rows": 278, "bytes": 279}
    values = dict(width=8, height=8, bits=8, packing=1, kind=1, strip=122, samples=1, rows=8)
    values |= {"bytes": 64} | changes
    entries = [(tags[name], 4, 1, value) for name, value in values.items()]
    return tiff(entries, b"\x50" * 64, following)


def tagged_jpeg(tags):
    """A JPEG with these bytes for its EXIF."""

    def write(path, rng):
        Image.new("RGB", (SIDE, SIDE), (90,) * 3).save(path, exif=b"Exif\0\0" + tags)
        return 90

    return write


def bomb_icon(path, rng):
    inner = png(30000, 30000, b"\0" * 1000)
    head = struct.pack("<HHH", 0, 1, 1) + struct.pack(
        "<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22
    )
    path.write_bytes(head + inner)


def lab(path, rng):
    Image.new("LAB", (SIDE, SIDE), (128, 128, 128)).save(path)
    return 119  # of the lightness 50


HUGE = struct.pack("<II", 2**31 - 1, 2**31 - 1)
EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 24 24
%%EndComments
(touch /tmp/owned) pop 0 0 24 24 rectfill
%%EOF
"""
PICTURES = {
    "LAB": Picture(".tif", lab),
    "CMYK, JPEG": Picture(".jpg", one_colour("CMYK", (0, 0, 0, 175), 80)),
    "CMYK, TIFF": Picture(".tif", one_colour("CMYK", (0, 0, 0, 175), 80)),
    "YCbCr, TIFF": Picture(".tif", one_colour("YCbCr", (80, 128, 128), 80)),
    "one bit": Picture(".png", one_colour("1", 1, 255)),
    "one bit, TIFF": Picture(".tif", one_colour("1", 1, 255)),
    "grey and opacity": Picture(".png", one_colour("LA", (80, 0), 255)),
    "half transparent": Picture(".png", one_colour("RGBA", (80, 80, 80, 128), 167)),
    "half transparent, WebP": Picture(".webp", one_colour("RGBA", (80, 80, 80, 128), 167)),
    "palette": Picture(".png", palette(None, 80)),
    "palette, transparent": Picture(".png", palette(b"\xff\x00\xff", 255)),
    "palette, half transparent": Picture(".png", palette(b"\xff\x80\xff", 167)),
    "palette, GIF": Picture(".gif", palette(1, 255)),
    "animated GIF": Picture(".gif", animated),
    "animated PNG": Picture(".png", animated),
    "animated WebP": Picture(".webp", animated),
    "several pages": Picture(".tif", animated),
    "16 bits of one value": Picture(".png", deep(np.full(2, 0x5000, np.uint16), 80)),
    "16 bits": Picture(".png", deep(np.array([1000, 3000], np.uint16), 127)),
    "16 bits, TIFF": Picture(".tif", deep(np.array([1000, 3000], np.uint16), 127)),
    "16 bits a colour": Picture(".png", png_of_16_bits),
    "32 bits": Picture(".tif", deep(np.array([-(2**31), 2**31 - 1], np.int32), 127)),
    "floats": Picture(".tif", deep(np.array([-1e30, 1e30], np.float32), 127)),
    "floats with NaN": Picture(".tif", deep(np.array([np.nan, 0, 1], np.float32), 85)),
    "infinite floats": Picture(".tif", deep(np.array([np.inf, 0.25], np.float32), 159)),
    "floats, all NaN": Picture(".tif", deep(np.array([np.nan], np.float32), None)),
    "1x1 px": Picture(".png", of_size(1, 1)),
    "1x5000 px": Picture(".png", of_size(1, 5000)),
    "5000x1 px": Picture(".png", of_size(5000, 1)),
    "without suffix": Picture("", without_suffix),
    "wrong suffix": Picture(".bmp", without_suffix),
    **{f"cut {name}": Picture(f".{name}", cut) for name in ("png", "jpg", "gif", "webp", "tif")},
    **{f"cut {name}": Picture(f".{name}", cut) for name in ("bmp", "ppm", "jp2", "ico", "tga")},
    "empty": Picture(".png", contents(b"")),
    "text": Picture(".jpg", contents(b"no picture")),
    "HTML": Picture(".jpg", contents(b"<!DOCTYPE html><script>alert(1)</script>")),
    "SVG": Picture(".png", contents(b'<svg xmlns="http://www.w3.org/2000/svg"/>')),
    "HEIC": Picture(".heic", contents(b"\0\0\0\x18ftypheic" + bytes(100))),
    "PostScript": Picture(".eps", contents(EPS)),
    "PostScript called PNG": Picture(".png", contents(EPS)),
    "PNG of 2^31 px a side": Picture(".png", declared(2**31 - 1, 2**31 - 1)),
    "PNG of no pixels": Picture(".png", declared(0, 0)),
    "PNG of 20,000 px a side": Picture(".png", declared(20_000, 20_000)),
    "PNG of 13,000 px a side, cut": Picture(".png", declared(13_000, 13_000)),
    "PNG of 9,000 px a side": Picture(".png", large_png),
    "PNG with long texts": Picture(".png", text_bomb),
    "GIF of 65,535 px a side": Picture(".gif", contents(b"GIF89a" + b"\xff" * 4 + bytes(3) + b";")),
    "BMP of 2^31 px a side": Picture(
        ".bmp",
        contents(b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0" + HUGE + b"\1\0\x18\0" + bytes(24)),
    ),
    "PPM of 10^11 px a side": Picture(".ppm", contents(b"P6 99999999999 99999999999 255\n\0\0\0")),
    "PPM of 5,000 digits": Picture(".ppm", contents(b"P6 " + b"9" * 5000 + b" 1 255\n\0\0\0")),
    "PPM of words": Picture(".ppm", contents(b"P3 2 2 255 a b c d")),
    "XBM of 10^20 px": Picture(
        ".xbm",
        contents(b"#define a_width 99999999999999999999\n#define a_height 9\nstatic char a[]={0};"),
    ),
    "TGA of 65,535 px a side": Picture(
        ".tga", contents(bytes(2) + b"\2" + bytes(9) + b"\xff\xff\xff\xff\x18\0" + bytes(30))
    ),
    "QOI of 2^32 px a side": Picture(".qoi", contents(b"qoif" + b"\xff" * 8 + b"\3\0" + bytes(8))),
    "icon with a large PNG": Picture(".ico", bomb_icon),
    "TIFF": Picture(".tif", contents(grey_tiff, 80)),
    "TIFF, its directory in a loop": Picture(".tif", contents(lambda: grey_tiff(8), 80)),
    "TIFF of 2^31 px": Picture(".tif", contents(lambda: grey_tiff(width=2**31, height=2**31))),
    "TIFF of 65,535 samples": Picture(".tif", contents(lambda: grey_tiff(samples=65_535))),
    "TIFF, its pixels beyond its end": Picture(
        ".tif", contents(lambda: grey_tiff(strip=2**31 - 9), EITHER)
    ),
    "TIFF of odd packing": Picture(".tif", contents(lambda: grey_tiff(packing=50_000))),
    "TIFF, JPEG inside": Picture(".tif", contents(lambda: grey_tiff(packing=7))),
    "JPEG with tags in a loop": Picture(
        ".jpg", tagged_jpeg(tiff([(0x8769, 4, 1, 8), (0x0112, 3, 1, 1)], following=8))
    ),
    "JPEG with tags of 4 GB": Picture(
        ".jpg", tagged_jpeg(tiff([(0x0112, 3, 2**32 - 1, 8), (0x010E, 2, 2**31, 8)]))
    ),
    "JPEG with tags of noise": Picture(".jpg", tagged_jpeg(b"II*\0" + bytes(range(100)))),
}

MEGABYTES_OF = {"PNG of 9,000 px a side": 1000}  # of memory: more pixels than others, truly


# ---------------------------------------------------------------- no files

NO_FILES = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to nothing": lambda path: path.symlink_to("gone.png"),
    "link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "link to the kernel's log": lambda path: path.symlink_to("/proc/kmsg"),
    "not there": lambda path: None,
    "unreadable": lambda path: (save_picture(path, 90), path.chmod(0)),
}
