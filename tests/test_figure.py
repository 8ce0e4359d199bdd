"""Pictures: colours that do not mislead, and everything where it should be."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import figure


def test_colour_map_rises_evenly_in_lightness():
    colours = figure.COLOURS
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness)
    assert (steps > 0).all() and steps.max() < 1.2 * steps.min()


# ---------------------------------------------------------------- panels


def test_panel_frames_the_trigger_and_hides_no_pixel_of_it():
    image = torch.full((3, 32, 32), 0.5)
    image[:, 27:31, 27:31] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    picture = np.asarray(figure.panel(image, box=(27, 27, 31, 31)))
    scale = picture.shape[0] // 32
    first, last = 27 * scale, 31 * scale
    assert (picture[first:last, first:last] == [0, 0, 255]).all()
    assert (picture[first - 1, first:last] == 255).all()


def test_panel_without_a_map_is_the_image_enlarged():
    image = torch.rand(3, 8, 8)
    picture = np.asarray(figure.panel(image, width=16))
    exact = (image.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    assert (picture == exact.repeat(2, 0).repeat(2, 1)).all()


def test_panel_of_a_blank_map_shows_the_darkest_colour():
    black = torch.zeros(1, 8, 8)
    picture = np.asarray(figure.panel(black, torch.zeros(4, 4)))
    assert (picture == (0.65 * figure.COLOURS[0] * 255 + 0.5).astype(np.uint8)).all()


def test_panel_shows_a_map_below_zero_like_zero():
    image = torch.rand(3, 8, 8)
    map_ = torch.tensor([[-1.0, 1.0], [0.0, 2.0]])
    shown = figure.panel(image, map_, largest=2)
    assert shown.tobytes() == figure.panel(image, map_.clamp_min(0), largest=2).tobytes()


def test_signed_map_is_red_above_and_blue_below_zero():
    map_ = torch.tensor([[1.0, -1.0]])
    picture = np.asarray(figure.panel(torch.rand(3, 8, 8), map_, signed=True))
    half = picture.shape[1] // 2
    assert (picture[:, :half] == (figure.POSITIVE * 255 + 0.5).astype(np.uint8)).all()
    assert (picture[:, half:] == (figure.NEGATIVE * 255 + 0.5).astype(np.uint8)).all()


def test_maps_of_one_scale_are_divided_by_the_same_value():
    image = torch.rand(3, 8, 8)
    map_ = torch.rand(4, 4)
    alone = figure.panel(image, map_ / 2)
    assert alone.tobytes() == figure.panel(image, map_).tobytes()
    assert alone.tobytes() != figure.panel(image, map_ / 2, largest=float(map_.max())).tobytes()


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("columns", [1, 6])
def test_sheet_holds_every_panel(columns):
    colours = [(10 * x + 5, 100, 200) for x in range(columns)]
    row = [(Image.new("RGB", (150, 150), colour), "caption", False) for colour in colours]
    page = figure.sheet("Title\nof two lines", ["header"] * columns, [row, row], "Footer.")
    count = {colour: n for n, colour in page.getcolors(1 << 20)}
    assert [count[colour] for colour in colours] == [2 * 150 * 150] * columns


def test_caption_is_red_where_it_warns():
    def page(warn):
        return figure.sheet("", ["image"], [[(Image.new("RGB", (150, 150)), "cat", warn)]], "")

    assert figure.RED in {colour for _, colour in page(True).getcolors(1 << 16)}
    assert figure.RED not in {colour for _, colour in page(False).getcolors(1 << 16)}


def test_class_grid_puts_a_row_on_one_scale():
    maps = torch.tensor([1.0, 0.5]).view(2, 1, 1).expand(2, 4, 4)
    rows = [(torch.zeros(3, 16, 16), "cat", False, None, maps)]
    page = figure.class_grid("", ["cat", "dog"], rows, "")
    strong = tuple(int(value) for value in (figure.POSITIVE * 255 + 0.5))
    pixels = dict((colour, n) for n, colour in page.getcolors(1 << 20))
    assert pixels[strong] == 64 * 64  # the cat's panel alone


def test_side_by_side_is_as_wide_as_all_pages_and_as_high_as_the_highest():
    pages = [Image.new("RGB", (30, 20), "red"), Image.new("RGB", (10, 50), "blue")]
    together = figure.side_by_side(pages)
    assert together.size == (40, 50)
    assert together.crop((0, 0, 30, 20)).tobytes() == pages[0].tobytes()
    assert together.crop((30, 0, 40, 50)).tobytes() == pages[1].tobytes()


# ---------------------------------------------------------------- curves


def test_ends_of_a_logarithmic_axis_are_the_least_and_the_largest_x():
    series = {
        "a": [(5, 0.25), (20, 0.5)],
        "b": [(100, 1.0)],
        "c": [(20, 0.5)],
    }
    page = figure.curves("Title", "images", series, logarithmic=True)
    middle = 54 + round(620 * math.log(20 / 5) / math.log(100 / 5))
    assert page.getpixel((54, 292)) == figure.LINES[0]
    assert page.getpixel((674, 52)) == figure.LINES[1]
    assert page.getpixel((middle, 212)) == figure.LINES[2]  # drawn over the first


def test_linear_axis_begins_at_zero():
    page = figure.curves("Title", "pruned", {"a": [(10, 0.5), (20, 1.0)]})
    assert page.getpixel((54 + 310, 52 + 160)) == figure.LINES[0]
    assert page.getpixel((674, 52)) == figure.LINES[0]


def test_every_line_has_a_colour_of_its_own():
    series = {str(k): [(0, k / 6), (1, k / 6)] for k in range(6)}
    colours = {colour for _, colour in figure.curves("Title", "x", series).getcolors(1 << 20)}
    assert len(set(figure.LINES)) == 6 and set(figure.LINES) <= colours


def test_an_upright_line_marks_the_value_that_was_chosen():
    series = {"a": [(0, 0.0), (4, 0.0)]}
    marked = figure.curves("Title", "x", series, mark=2)
    assert marked.getpixel((54 + 310, 100)) == figure.GREY
    assert figure.curves("Title", "x", series).getpixel((54 + 310, 100)) != figure.GREY


@pytest.mark.parametrize(
    ("first", "last"), [(0, 128), (0, 5), (0, 1), (0, 2048), (0, 64), (3, 100), (0, 7)]
)
def test_counts_are_whole_numbers_on_their_axis(first, last):
    found = figure.ticks(first, [first, last])
    assert 2 <= len(found) <= 9 and first <= found[0] and found[-1] <= last
    assert all(isinstance(tick, int) for tick in found)


@pytest.mark.parametrize(("first", "last"), [(-3.7, 0.0), (0, 0.25), (0.0, 99.5)])
def test_other_axes_have_round_values(first, last):
    found = figure.ticks(first, [first, last])
    assert 4 <= len(found) <= 9 and all(
        float(f"{tick:.3g}") == pytest.approx(tick) for tick in found
    )
