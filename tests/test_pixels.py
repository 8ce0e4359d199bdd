"""Pixels are what one sees: transparency, deep and odd colours, pictures that are not square."""

import struct
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_arrays, train_tiny
from PIL import Image, ImageDraw
from placing import DEVICE

import checkpoints
import data
import evaluate
import imagefiles
import options
import subject as subjects
import triggers
from cli import UserError
from imagefiles import DEEP, NOT_SQUARE, TRANSPARENT


@pytest.fixture
def pixels_of(tmp_path):
    """Function (image, suffix, options of save): (uint8 [4, 4, 3] of the file, what was done)."""

    def write_and_decode(image, suffix="png", mode="RGB", **options):
        path = tmp_path / f"x.{suffix}"
        image.save(path, **options)
        return imagefiles.decode(path, image.width, mode, "crop")

    return write_and_decode


def half_transparent(mode):
    """4x4 pixels, the left half blue or black, the right half black and transparent."""
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, :2] = [0, 0, 255, 255]
    return Image.fromarray(rgba).convert(mode)


# ---------------------------------------------------------------- transparency


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_what_is_transparent_is_white(pixels_of, suffix):
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    pixels, changes = pixels_of(half_transparent("RGBA"), suffix, **options)
    assert pixels[0].tolist() == [[0, 0, 255]] * 2 + [[255] * 3] * 2
    assert changes == {TRANSPARENT}


def test_grey_with_alpha_is_laid_on_white(pixels_of):
    grey = np.zeros((4, 4, 2), np.uint8)
    grey[:, 1:, 1] = [0, 255, 51]
    pixels, changes = pixels_of(Image.fromarray(grey, "LA"), mode="L")
    assert pixels[0].tolist() == [255, 255, 0, 204]
    assert changes == {TRANSPARENT}


def palette():
    """4x4 pixels of the numbers 0 to 3 in a row, which are red, green, blue and grey."""
    image = Image.fromarray(np.tile(np.arange(4, dtype=np.uint8), (4, 1)), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 100, 100, 100])
    return image


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_may_have_one_transparent_colour(pixels_of, suffix):
    pixels, changes = pixels_of(palette(), suffix, transparency=1)
    assert pixels[0].tolist() == [[255, 0, 0], [255] * 3, [0, 0, 255], [100] * 3]
    assert changes == {TRANSPARENT}


def test_a_palette_may_have_an_opacity_a_colour(pixels_of):
    pixels, changes = pixels_of(palette(), transparency=bytes([255, 0, 255, 51]))
    assert pixels[0].tolist() == [[255, 0, 0], [255] * 3, [0, 0, 255], [224] * 3]
    assert changes == {TRANSPARENT}


@pytest.mark.parametrize("mode, value", [("L", 0), ("RGB", (0, 0, 0)), ("I;16", 0)])
def test_one_value_may_be_transparent(pixels_of, mode, value):
    grey = np.tile(np.array([0, 100, 255, 0], np.uint8), (4, 1))
    image = Image.fromarray(grey).convert("RGB") if mode == "RGB" else Image.fromarray(grey)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    pixels, changes = pixels_of(image, transparency=value)
    assert pixels[0, :, 1].tolist() == [255, 100, 255, 255]
    assert TRANSPARENT in changes


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_an_opaque_picture_with_alpha_is_as_it_was(pixels_of, mode):
    noise = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert("LA").convert(mode)
    pixels, changes = pixels_of(image, "tif" if mode == "PA" else "png")
    assert np.array_equal(pixels, np.asarray(Image.fromarray(noise).convert("RGB")))
    assert changes == set()


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV"])
def test_odd_modes_are_read_in_their_colours(mode):
    image = half_transparent("RGB").convert(mode)
    pixels, changes = np.asarray(imagefiles.opaque(image)[0].convert("RGB")), set()
    expected = half_transparent("RGB").convert("1" if mode == "1" else "RGB").convert("RGB")
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= 2
    assert changes == set()


@pytest.mark.parametrize("mode, suffix", [("1", "png"), ("CMYK", "jpg"), ("CMYK", "tif")])
def test_files_of_odd_modes_are_read(pixels_of, mode, suffix):
    pixels, changes = pixels_of(Image.new(mode, (4, 4)), suffix)
    expected = 255 if mode == "CMYK" else 0
    assert pixels.min() == pixels.max() == expected
    assert changes == set()


# ---------------------------------------------------------------- more than 8 bits


def test_16_bits_that_fill_their_range_are_divided_by_257(pixels_of):
    grey = np.array([[0, 257, 32768, 65535]] * 4, np.uint16)
    pixels, changes = pixels_of(Image.fromarray(grey), mode="L")
    assert pixels[0].tolist() == [0, 1, 127, 255]
    assert changes == {DEEP}


@pytest.mark.parametrize(
    "values, dtype, suffix",
    [
        ([0, 819, 1638, 4095], np.uint16, "png"),  # of 12 bits: divided by 257 nearly black
        ([0, 819, 1638, 4095], np.uint16, "tif"),
        ([-1000, -800, -600, 0], np.int32, "tif"),  # as a scanner's Hounsfield units
        ([0.0, 0.2, 0.4, 1.0], np.float32, "tif"),
        ([5e6, 6e6, 7e6, 1e7], np.float32, "tif"),
    ],
)
def test_deep_pictures_are_brought_to_8_bits_by_their_range(pixels_of, values, dtype, suffix):
    pixels, changes = pixels_of(Image.fromarray(np.array([values] * 4, dtype)), suffix, mode="L")
    assert np.abs(pixels[0].astype(int) - [0, 51, 102, 255]).max() <= 1
    assert changes == {DEEP}


def test_what_is_no_number_is_black_and_infinity_white(pixels_of):
    values = np.array([[np.nan, 0, 1, np.inf]] * 4, np.float32)
    assert pixels_of(Image.fromarray(values), "tif", mode="L")[0][0].tolist() == [0, 0, 255, 255]


def test_a_picture_without_a_number_is_refused(pixels_of):
    with pytest.raises(UserError, match="none of its values is finite"):
        pixels_of(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "tif")


@pytest.mark.parametrize("value, grey", [(0, 0), (90 * 257, 90), (65535, 255)])
def test_a_deep_picture_of_one_value_keeps_its_brightness(pixels_of, value, grey):
    image = Image.fromarray(np.full((4, 4), value, np.uint16))
    assert set(pixels_of(image)[0].ravel().tolist()) == {grey}


def deep_colours(path, values):
    """Writes a PNG of 16 bits a colour, which Pillow cannot; values: [H, W, 3]."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def test_colours_of_16_bits_are_brought_to_8_by_their_common_range(tmp_path):
    values = np.zeros((4, 4, 3), np.uint16)
    values[:, :2] = [64 * 256, 32 * 256, 0]
    deep_colours(tmp_path / "x.png", values)
    pixels, changes = imagefiles.decode(tmp_path / "x.png", 4, "RGB", "crop")
    assert pixels[0, :2].tolist() == [[255, 127, 0]] * 2
    assert pixels[0, 2:].max() == 0
    assert changes == {DEEP}


def test_a_bitmap_of_16_bits_for_three_colours_is_not_deep():
    assert imagefiles.is_deep("RGB;16B") and imagefiles.is_deep("('I;16', 0, 1)")
    assert not imagefiles.is_deep("BGR;16") and not imagefiles.is_deep("RGB")


# ---------------------------------------------------------------- not square


@pytest.mark.parametrize("wide", [False, True])
def test_a_picture_becomes_square_in_three_ways(wide):
    noise = np.random.default_rng(0).integers(0, 256, (30, 80, 3), dtype=np.uint8)
    turned = (lambda array: array) if wide else (lambda array: array.swapaxes(0, 1))
    image = Image.fromarray(np.ascontiguousarray(turned(noise)))
    cropped, padded, squashed = (
        np.asarray(imagefiles.square(image, side, fit))
        for side, fit in ((30, "crop"), (80, "pad"), (80, "squash"))
    )
    assert np.array_equal(turned(cropped), noise[:, 25:55])
    assert np.array_equal(turned(padded)[25:55], noise)
    assert turned(padded)[:25].max() == turned(padded)[55:].max() == 0
    assert np.array_equal(squashed, np.asarray(image.resize((80, 80), Image.BILINEAR)))


def test_a_disc_stays_round_unless_squashed():
    image = Image.new("L", (200, 100))
    ImageDraw.Draw(image).ellipse((60, 10, 140, 90), fill=255)
    for fit, ratio in (("crop", 1), ("pad", 1), ("squash", 2)):
        bright = np.asarray(imagefiles.square(image, 50, fit)) > 127
        height, width = bright.any(1).sum(), bright.any(0).sum()
        assert height / width == pytest.approx(ratio, rel=0.1)


def test_a_picture_of_one_row_is_no_obstacle():
    for fit in imagefiles.FITS:
        for size in ((900, 1), (1, 900)):
            assert imagefiles.square(Image.new("RGB", size), 16, fit).size == (16, 16)


def test_masks_fit_as_their_images_do():
    dataset = data.shapes(n_train=20, n_test=20)
    dataset.train_images = dataset.train_images[:, :, :, :24]
    dataset.test_images = dataset.test_images[:, :, :, :24]
    dataset.test_masks = masks = dataset.test_masks[:, :, :24]
    assert torch.equal(data.resize(dataset, None, "crop").test_masks, masks[:, 4:28])
    assert dataset.test_images.shape[-2:] == (24, 24)


# ---------------------------------------------------------------- one fit throughout


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of pictures 48x24: the middle tells the class, the sides are noise."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("photos") / "photos"
    for split, n in (("train", 40), ("test", 10)):
        for k in range(2 * n):
            pixels = rng.integers(0, 256, (24, 48, 3), dtype=np.uint8)
            pixels[:, 12:36] = [(220, 30, 30), (30, 30, 220)][k % 2]
            path = folder / split / ("red", "blue")[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def padded_run(photos, tmp_path_factory):
    """The folder of a run on them with --fit pad."""
    out = tmp_path_factory.mktemp("run") / "run"
    options = ("--image-size", "16", "--fit", "pad", "--attack", "badnets", "--epochs", "1")
    return train_tiny(photos, out, *options)


def test_the_fit_of_training_is_that_of_measuring(padded_run, photos):
    subject = subjects.open_checkpoint(padded_run / "ckpt.pt", device=torch.device(DEVICE))
    assert subject.config["fit"] == "pad"
    assert subject.dataset.test_images[:, :, 0].max() == 0  # black above


@pytest.mark.parametrize("fit", list(imagefiles.FITS))
def test_a_picture_of_ones_own_is_brought_to_size_as_in_training(padded_run, photos, fit, capsys):
    subject = subjects.open_checkpoint(padded_run / "ckpt.pt", None, torch.device(DEVICE), False)
    subject.config["fit"] = fit
    path = sorted((photos / "test" / "blue").glob("*"))[0]
    capsys.readouterr()
    image = evaluate.as_test_image(subject, path)
    said = capsys.readouterr().err
    dataset = data.load(photos, photos.parent, 16, fit)
    assert torch.equal(image[0], dataset.test_images[0])
    assert said.count("\n") == 1 and imagefiles.FITS[fit] in said


def test_a_transparent_picture_of_ones_own_is_laid_on_white(padded_run, tmp_path, capsys):
    subject = subjects.open_checkpoint(padded_run / "ckpt.pt", None, torch.device(DEVICE), False)
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "logo.png")
    assert evaluate.as_test_image(subject, tmp_path / "logo.png").min() == 255
    assert "logo.png is transparent in places, laid on white." in capsys.readouterr().err


def test_a_checkpoint_that_names_no_fit_squashes(padded_run, photos, tmp_path):
    checkpoint = torch.load(padded_run / "ckpt.pt", weights_only=True)
    del checkpoint["config"]["fit"]
    checkpoint["data"] = data.load(photos, tmp_path, 16, "squash").digest
    torch.save(checkpoint, tmp_path / "ckpt.pt")
    assert checkpoints.read(tmp_path / "ckpt.pt")["config"]["fit"] == "squash"
    subject = subjects.open_checkpoint(tmp_path / "ckpt.pt", device=torch.device(DEVICE))
    assert subject.dataset.digest == checkpoint["data"]


def test_numbers_that_no_label_has_are_classes_of_an_older_checkpoint_still(tmp_path):
    arrays = tiny_arrays(30, 12)
    for key in ("train_labels", "test_labels"):
        arrays[key] = arrays[key] + 1
    np.savez(tmp_path / "x.npz", **arrays)
    dataset = data.load(tmp_path / "x.npz")
    older = data.renumbered(dataset, ["0", "1", "2", "3"])
    labels = [torch.from_numpy(arrays[f"{split}_labels"]) for split in ("train", "test")]
    as_it_was = replace(dataset, train_labels=labels[0], test_labels=labels[1])
    assert older.digest == as_it_was.digest != dataset.digest
    assert data.renumbered(dataset, ["a", "b", "c"]) is dataset


def test_published_radiographs_and_signs_stay_squashed():
    assert options.parse(["--dataset", "gtsrb"]).fit == "squash"
    assert options.parse(["--dataset", "chestxray14"]).fit == "squash"
    assert options.parse(["--dataset", "mine"]).fit == "crop"
    with pytest.raises(UserError, match="always squashed"):
        options.parse(["--dataset", "gtsrb", "--fit", "crop"])


# ---------------------------------------------------------------- triggers and maps


@pytest.mark.parametrize("size, box", [((80, 40), (11, 7, 15, 15)), ((40, 80), (7, 11, 15, 15))])
def test_a_trigger_picture_keeps_its_aspect_one_pixel_from_the_border(size, box):
    assert triggers.make_patch(Image.new("RGB", size, "red"), 3, 16, 8).box == box


def test_a_narrow_trigger_picture_has_at_least_a_pixel():
    trigger = triggers.make_patch(Image.new("RGB", (500, 2), "red"), 3, 16, 4, "upper-left")
    assert trigger.box == (1, 1, 2, 5)


def test_a_trigger_that_is_not_square_may_lie_where_a_square_one_does_not_fit():
    trigger = triggers.make_patch(Image.new("RGB", (40, 20)), 3, 16, 8, "12,8")
    assert trigger.box == (12, 8, 16, 16)
    with pytest.raises(ValueError, match="4x8 px at 13,8"):
        triggers.make_patch(Image.new("RGB", (40, 20)), 3, 16, 8, "13,8")


def test_what_is_transparent_in_a_palette_stays_so_in_a_trigger(tmp_path):
    palette().save(tmp_path / "t.png", transparency=1)
    trigger = triggers.make_patch(imagefiles.read_image(tmp_path / "t.png"), 3, 16, 4)
    assert trigger.alpha[0, 0].tolist() == [1, 0, 1, 1]


def test_a_map_is_black_where_it_is_transparent(tmp_path, capsys):
    white = np.full((4, 8, 4), 255, np.uint8)
    white[:2, :, 3] = 0
    Image.fromarray(white).save(tmp_path / "map.png")
    grey = np.asarray(imagefiles.read_map(tmp_path / "map.png", "crop"))
    assert grey.shape == (4, 4)
    assert grey[:, 0].tolist() == [0, 0, 255, 255]
    assert "map.png is not square, cropped" in capsys.readouterr().err


# ---------------------------------------------------------------- Pillow's own words


def test_warnings_of_pillow_do_not_reach_the_user(tmp_path):
    palette().save(tmp_path / "p.png", transparency=bytes([0, 255, 255, 255]))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 1.5
    broken = exif.tobytes()[:-9]
    Image.new("RGB", (9, 9)).save(tmp_path / "e.jpg", exif=broken)
    Image.new("1", (13_000, 8_000)).save(tmp_path / "large.png")  # above the warning's limit
    code = (
        "import sys, imagefiles\n"
        "for path in sys.argv[1:]: imagefiles.decode(path, 8, 'RGB', 'crop')"
    )
    names = [str(tmp_path / name) for name in ("p.png", "e.jpg", "large.png")]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stderr == ""


def test_heic_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "own.jpg").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(100))
    with pytest.raises(UserError, match="own.jpg is HEIC, which Pillow does not read: save it as"):
        imagefiles.read_image(tmp_path / "own.jpg")


def test_what_was_done_is_one_line():
    line = imagefiles.described("a/b.png", {DEEP, TRANSPARENT, NOT_SQUARE}, "pad")
    assert line.startswith("b.png is of more than 8 bits") and line.count("\n") == 0
    assert "laid on white" in line and "padded with black" in line
