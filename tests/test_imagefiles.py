"""One picture on a disk: what is read is what was written, and a mistake is one line."""

import contextlib
import os
import random

import numpy as np
import pytest
from driving import limited
from hostile_pictures import PICTURES, TOLERANCE
from PIL import EpsImagePlugin, Image

import imagefiles
from cli import UserError


def test_16_bit_grey_is_scaled_not_cut_off(tmp_path):
    Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)).save(tmp_path / "x.png")
    image = imagefiles.read_image(tmp_path / "x.png").convert("RGB")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 127, 255]


@pytest.fixture
def ramp():
    """A picture of 6x4 pixels, all of different greys."""
    return Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)


@pytest.fixture
def exif():
    """Tags that say: to be turned by 90 degrees."""
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


def test_a_picture_is_turned_as_its_camera_was_held(tmp_path, ramp, exif):
    ramp.save(tmp_path / "a.png", exif=exif)
    turned = np.asarray(imagefiles.read_image(tmp_path / "a.png"))
    assert np.array_equal(turned, np.rot90(np.asarray(ramp), -1))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the tags
def test_damaged_tags_do_not_keep_a_picture_from_being_read(tmp_path, ramp, exif):
    exif[0x011A] = 1.5
    whole = exif.tobytes()
    damaged = [whole[:n] + b"\x0d" + whole[n + 1 :] for n in range(len(whole))]
    for tags in [b"nonsense", *damaged]:
        ramp.save(tmp_path / "b.png", exif=tags)
        pixels = np.asarray(imagefiles.read_image(tmp_path / "b.png"))
        assert np.array_equal(np.sort(pixels, None), np.sort(np.asarray(ramp), None))


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n then nothing"])
def test_a_file_that_is_no_picture_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UserError, match="x.png cannot be read as an image") as error:
        imagefiles.read_image(tmp_path / "x.png")
    assert "\n" not in str(error.value)


def test_a_picture_that_is_cut_short_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="cannot be read as an image"):
        imagefiles.read_image(path)


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_frames_behind_the_first_are_said(tmp_path, capsys, suffix, count):
    first, *others = [Image.new("RGB", (8, 8), (80 * k, 0, 0)) for k in range(1, count + 1)]
    path = tmp_path / f"x.{suffix}"
    first.save(path, save_all=True, append_images=others)
    image = imagefiles.read_image(path, say=True).convert("RGB")
    assert abs(image.getpixel((3, 3))[0] - 80) < 8
    said = capsys.readouterr().err
    assert said == ("" if count == 1 else f"x.{suffix} is {imagefiles.CHANGES['frames']}.\n")
    changes = imagefiles.decode(path, 8, "RGB", "crop")[1]
    assert changes == (set() if count == 1 else {imagefiles.FRAMES})


def test_a_picture_whose_second_page_is_damaged_is_read(tmp_path):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    whole = (tmp_path / "x.gif").read_bytes()
    (tmp_path / "x.gif").write_bytes(whole[:-12])
    assert imagefiles.read_image(tmp_path / "x.gif").convert("RGB").getpixel((0, 0))[0] > 200


@pytest.mark.parametrize("side, refused", [(14, False), (15, True)])
def test_a_picture_above_pillows_limit_is_too_large(tmp_path, monkeypatch, side, refused):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (side, side)).save(tmp_path / "big.png")
    assert imagefiles.is_too_large(tmp_path / "big.png") is refused
    if refused:
        with pytest.raises(UserError, match="big.png is too large .* up to 200 pixels"):
            imagefiles.read_image(tmp_path / "big.png")


@pytest.mark.parametrize("value, black", [(0, False), (1, True), (2, False)])
def test_a_picture_of_0_and_1_looks_black(tmp_path, value, black):
    Image.fromarray(np.eye(8, dtype=np.uint8) * value).save(tmp_path / "x.png")
    for mode in ("L", "RGB"):
        changes = imagefiles.decode(tmp_path / "x.png", 4, mode, "crop")[1]
        assert changes == ({imagefiles.BLACK} if black else set())


# ---------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.touch()]
)
def test_what_is_empty_or_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "x.png")
    with limited(5), pytest.raises(UserError, match="x.png cannot be read .*empty, or no file"):
        imagefiles.decode(tmp_path / "x.png", 16, "RGB", "crop")


@pytest.mark.parametrize("name", ["x.eps", "x.png"])
def test_postscript_is_not_run(tmp_path, monkeypatch, name):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)  # to call it is an error
    PICTURES["PostScript"].write(tmp_path / name, None)
    with pytest.raises(UserError, match="a program, which is not run"):
        imagefiles.read_image(tmp_path / name)


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    entered = []
    once = contextlib.contextmanager(lambda: (yield entered.append(1)))
    monkeypatch.setattr(imagefiles, "LARGE", 100)
    for side in (10, 11):
        Image.new("L", (side, side)).save(tmp_path / "x.png")
        monkeypatch.setattr(imagefiles, "ONE_AT_A_TIME", once())
        imagefiles.decode(tmp_path / "x.png", 16, "RGB", "crop")
    assert entered == [1]


@pytest.mark.parametrize(
    "name", ["TIFF of odd packing", "TIFF, JPEG inside", "cut tif", "TIFF of 65,535 samples"]
)
def test_code_in_c_prints_nothing(tmp_path, capfd, name):
    PICTURES[name].write(tmp_path / "x.tif", random.Random(0))
    with pytest.raises(UserError):
        imagefiles.read_image(tmp_path / "x.tif")
    os.write(2, b"after")  # standard error is there again
    assert capfd.readouterr().err == "after"


RIGHT = [
    *("LAB", "CMYK, JPEG", "CMYK, TIFF", "one bit", "palette, half transparent", "animated WebP"),
    *("16 bits", "16 bits a colour", "32 bits", "floats with NaN", "infinite floats", "1x5000 px"),
    *("TIFF, its directory in a loop", "JPEG with tags in a loop", "JPEG with tags of 4 GB"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_an_odd_picture_is_read_as_it_looks(tmp_path, name):
    path = tmp_path / f"x{PICTURES[name].suffix}"
    grey = PICTURES[name].write(path, random.Random(0))
    pixels, _ = imagefiles.decode(path, 16, "RGB", "crop")
    assert abs(pixels.mean() - grey) < TOLERANCE
