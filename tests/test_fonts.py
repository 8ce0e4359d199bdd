"""Texts in pictures: what is too wide is cut, what differs looks different, and boxes are none."""

import itertools

import pytest
import torch
from PIL import Image, ImageDraw

import figure
import fonts

LONG = [
    "n02099601 golden retriever (Canis familiaris)",
    "n02123045 tabby cat, the striped kind",
    "n02123045 tiger cat, the striped kind",
    "x" * 180,
    "x" * 90 + "y" + "x" * 89,
    "é" * 60,
    "猫" * 60,
]


@pytest.fixture(autouse=True)
def without_fonts(monkeypatch):
    """A machine that has no font but Pillow's own; what was found on this one is forgotten."""

    def forget():
        for function in (fonts.drawable, fonts.say_that_a_font_is_missing):
            function.cache_clear()

    forget()
    monkeypatch.setattr(fonts, "FONTS", ())
    yield
    forget()


@pytest.fixture
def drawn(monkeypatch):
    """The texts that are drawn from now on: [(its box in pixels, text), ...]."""
    result, original = [], ImageDraw.ImageDraw.text

    def text(self, at, text, colour, letters, **options):
        result.append((self.textbbox(at, text, letters, **options), text))
        original(self, at, text, colour, letters, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return result


# ---------------------------------------------------------------- pages


def sheet(names):
    row = [(Image.new("RGB", (150, 150)), f"{name} 98%", False) for name in names]
    headers = [f"{name}\nindex 3.1" for name in names]
    return figure.sheet(f"target class: {names[0]}", headers, [row], f"a, {names[-1]}", True)


def class_grid(names):
    maps = torch.ones(len(names), 4, 4)
    rows = [(torch.zeros(3, 16, 16), name, False, None, maps) for name in names]
    return figure.class_grid("Title", names, rows, "Footer\nof two lines")


def block_sheet(names):
    row = [(Image.new("RGB", (96, 96)), f"{name} 98%", False) for name in names]
    blocks = [(name, name, [name]) for name in names]
    sections = [(names[0], names, [row])]
    return figure.block_sheet("Title", blocks, sections, "Footer", True)


def curves(names):
    return figure.curves(names[0], "x", {name: [(0, 0), (1, 1)] for name in names})


@pytest.mark.parametrize("page", [sheet, class_grid, block_sheet, curves])
@pytest.mark.parametrize("first", range(len(LONG)))
def test_long_names_lie_within_the_page_and_not_over_each_other(page, first, drawn):
    image = page(LONG[first:] + LONG[:first])
    boxes = [box for box, text in drawn if text]
    for left, top, right, bottom in boxes:
        assert left >= 0 and top >= 0 and right <= image.width and bottom <= image.height
    for (one, a), (other, b) in itertools.combinations(drawn, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart or not a or not b, (a, b)


@pytest.mark.parametrize("page", [sheet, class_grid, block_sheet])
def test_every_caption_has_its_end(page, drawn):
    page(LONG)
    assert any("…" in text for _, text in drawn)
    if page is not class_grid:
        assert sum(text.endswith("98%") for _, text in drawn) == len(LONG)


# ---------------------------------------------------------------- cut, and told apart


@pytest.mark.parametrize("width", [60, 100, 150])
def test_names_that_differ_look_different(width):
    names = LONG[:5] + [f"{'a' * 50}{k}{'b' * 50}" for k in range(9)]
    names += [f"{'c' * k}" for k in range(100, 104)]
    shown = fonts.told_apart(names, 12, width)
    assert len(set(shown.values())) == len(names)
    assert max(fonts.font(12).getlength(text) for text in shown.values()) <= width


def test_a_name_that_fits_stays_and_another_is_cut_in_its_middle():
    assert fonts.clipped("tabby cat", 13, 150) == "tabby cat"
    short = fonts.clipped("n02123045 tabby cat", 13, 100)
    assert short.startswith("n021") and short.endswith("cat") and short.count("…") == 1


@pytest.mark.parametrize("width", [90, 200])
def test_titles_are_broken_between_words(width):
    text = "attack on data: accuracy 1.000,\nsuccess 0.5"
    lines = fonts.lines_of(text, 16, width)
    assert "".join(" ".join(lines).split()) == "".join(text.split())
    assert all(fonts.font(16).getlength(line) <= width for line in lines if " " in line)


# ---------------------------------------------------------------- letters without a font


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("on 猫の写真, cnn", f"on {fonts.NO_FONT}, cnn"),
        ("жук 3.png", f"{fonts.NO_FONT} 3.png"),
        ("café", "cafe"),
        ("plain", "plain"),
    ],
)
def test_no_text_is_drawn_as_boxes(text, shown, drawn):
    figure.sheet(text, [text], [[(Image.new("RGB", (150, 150)), text, False)]], text)
    figure.curves(text, text, {text: [(0, 0), (1, 1)]})
    assert [found for _, found in drawn].count(shown) == 7
    assert all(fonts.has_letters(fonts.font(13), found) for _, found in drawn)


def test_classes_without_a_font_are_numbers_with_a_legend():
    classes = ["cat", "犬", "café", *["猫" + str(k) for k in range(9)]]
    assert [fonts.class_name(classes, k) for k in range(4)] == ["cat", "class 1", "cafe", "class 3"]
    line = fonts.legend(classes, "metrics.json")
    named = ", ".join(f"class {k}" for k in (1, 3, 4, 5, 6, 7))
    assert line == f'\n{named} and 4 more: see "classes" in metrics.json'
    assert fonts.legend(["cat", "café"], "metrics.json") == ""


def test_that_a_font_is_missing_is_said_once_and_what_to_do(capsys):
    for text in ("犬", "猫", "жук"):
        fonts.drawable(text)
        fonts.class_name([text], 0)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Noto Sans CJK" in said
    fonts.drawable("café")
    assert capsys.readouterr().err == ""
