"""Pictures: a colour map, maps laid over images, and pages of them with titles and captions.

    figure.sheet("Title", ["image", "Grad-CAM"], rows, "Footer.").save("figure.png")

Draws what it is given. It measures nothing, and knows nothing of models.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fonts import drawable, fitting, font, lines_of

INK = (34, 34, 40)
GREY = (120, 120, 128)
RED = (196, 30, 58)
PALE = (230, 230, 234)
LINES = [
    (30, 90, 200),
    (214, 40, 57),
    (20, 130, 90),
    (120, 90, 160),
    (232, 140, 20),
    (70, 70, 76),
]
POSITIVE = np.array([0.86, 0.12, 0.20])  # red and blue, about equally dark
NEGATIVE = np.array([0.10, 0.34, 0.84])

# All sizes are in pixels.
PANEL = 150  # least width of a panel
SMALL = 64  # the same in a class_grid
GAP = 12  # round the page, and between columns
TITLE = 22  # height of a line of the title
HEADER = 46  # height of the headers of columns
CAPTION = 22  # height of the caption below a panel
LEAST_PAGE = 520  # width, so that the colour scale fits
BLOCK_GAP = 30  # between blocks of columns
BLOCK_HEADER = 62  # height of a block's name and of two lines about it
SECTION = 44  # height of a section's name and of the headers of columns
CURVES = 694  # width of a page of curves


# ---------------------------------------------------------------- colours


def lightness_of(colours):
    """CIE 1976 L* [N], 0 to 100, of sRGB colours [N, 3] in [0, 1]."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def colour_map():
    """256 sRGB colours, float32 [256, 3] in [0, 1], from dark violet to pale yellow.

    Their lightness rises evenly: equal steps of a map look equal, in grey print too.
    """
    anchors = [
        [8, 6, 28],
        [74, 20, 110],
        [158, 38, 108],
        [222, 74, 70],
        [250, 150, 44],
        [252, 246, 176],
    ]
    anchors = np.array(anchors) / 255
    positions = np.linspace(0, 1, len(anchors))
    t = np.linspace(0, 1, 2001)
    path = np.stack([np.interp(t, positions, anchors[:, c]) for c in range(3)], 1)
    lightness = lightness_of(path)
    even = np.interp(np.linspace(lightness[0], lightness[-1], 256), lightness, t)
    return np.stack([np.interp(even, t, path[:, c]) for c in range(3)], 1).astype(np.float32)


COLOURS = colour_map()


def scale_bar():
    """The colour map as a PIL image, 256 x 12."""
    return Image.fromarray((COLOURS[None].repeat(12, 0) * 255).astype(np.uint8))


def signed_bar():
    """The colours of signed maps, from -1 to 1, as a PIL image, 256 x 12."""
    ramp = np.linspace(-1, 1, 256)[None, :, None].repeat(12, 0)
    strength = np.abs(ramp)
    bar = (1 - strength) * 0.85 + strength * np.where(ramp > 0, POSITIVE, NEGATIVE)
    return Image.fromarray((bar * 255).astype(np.uint8))


# ---------------------------------------------------------------- one panel


def panel(image, map_=None, box=None, signed=False, largest=None, width=PANEL):
    """A PIL image of `image`, float [C, H, W] in [0, 1], enlarged to `width` or more.

    map_: [H', W'], laid over the image, which then is grey. It is divided by `largest` (None: its
    own maximum); values below 0 get the darkest colour. A signed map is divided by its largest
    magnitude: red is above 0, blue below. box: (top, left, bottom, right), framed.
    """
    scale = max(1, -(-width // image.shape[-1]))
    rgb = np.broadcast_to(np.asarray(image).transpose(1, 2, 0), (*image.shape[1:], 3))
    pixels = np.kron(rgb, np.ones((scale, scale, 1)))
    if map_ is not None:
        pixels = lay_over(pixels, np.asarray(map_, np.float32), signed, largest)
    picture = Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
    if box is not None:
        frame(picture, [edge * scale for edge in box])
    return picture


def lay_over(pixels, map_, signed, largest):
    """Pixels [H, W, 3] in grey beneath a map's colours.

    The map is enlarged bilinearly; a signed one keeps its cells.
    """
    if largest is None:
        largest = np.abs(map_).max()
    map_ = np.clip(map_ / max(largest, 1e-20), -1 if signed else 0, 1)
    method = Image.NEAREST if signed else Image.BILINEAR
    map_ = np.asarray(Image.fromarray(map_).resize(pixels.shape[1::-1], method))
    grey = (pixels @ [0.299, 0.587, 0.114])[:, :, None]
    if not signed:
        return 0.35 * grey + 0.65 * COLOURS[(map_ * 255 + 0.5).astype(int)]
    map_ = map_[:, :, None]
    strength = np.abs(map_)
    colour = np.where(map_ > 0, POSITIVE, NEGATIVE)
    return (1 - strength) * (0.7 + 0.3 * grey) + strength * colour


def frame(picture, box):
    """Draw a white and a dark frame round the box, outside it, so that no pixel of it is hidden."""
    top, left, bottom, right = box
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=INK)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=(255, 255, 255))


# ---------------------------------------------------------------- texts


def write(draw, at, text, colour, size, anchor="la"):
    """Draws a text, of one line or several, in a font that has its letters."""
    text = drawable(text)
    align = {"m": "center", "r": "right"}.get(anchor[0], "left")
    draw.text(at, text, colour, font(size, text), anchor=anchor, align=align, spacing=6)


# ---------------------------------------------------------------- pages


@dataclass
class Page:
    """A white page as a PIL image, its title and footer, and what draws on it.

    top, bottom: where its content begins and ends.
    """

    image: Image.Image
    draw: ImageDraw.ImageDraw
    top: int
    bottom: int


def new_page(title, width, height, footer="", scale=0):
    """A Page `width` pixels wide, with room for `height` between title and footer.

    scale: height of the place for a scale, between content and footer.
    """
    title = lines_of(drawable(title), 16, width - 2 * GAP)
    footer = lines_of(drawable(footer), 13, width - 2 * GAP) if footer else []
    top = 2 * GAP + TITLE * len(title)
    bottom = top + height
    image = Image.new("RGB", (width, bottom + scale + 6 + 18 * len(footer)), "white")
    draw = ImageDraw.Draw(image)
    for k, line in enumerate(title):
        write(draw, (GAP, GAP + TITLE * k), line, INK, 16)
    for k, line in enumerate(footer):
        write(draw, (GAP, bottom + scale + 18 * k), line, GREY, 13)
    return Page(image, draw, top, bottom)


def sheet(title, headers, rows, footer, signed=False, scale=True):
    """Rows of panels as one PIL image.

    headers: a line or two for each column. rows: lists of (panel, caption, warn); a caption is red
    where `warn` is true. scale and signed: whether to draw the scale of unsigned, of signed maps.
    """
    width, height = rows[0][0][0].size
    lefts = [GAP + x * (width + GAP) for x in range(len(headers))]
    line = height + CAPTION + GAP // 2
    page_width = max(lefts[-1] + width + GAP, LEAST_PAGE)
    page = new_page(title, page_width, HEADER + line * len(rows) + 8, footer, 20)
    shown = fitting(headers, 14, width + GAP // 2)
    for left, header in zip(lefts, headers):
        write(page.draw, (left + width / 2, page.top + HEADER - 6), shown[header], INK, 14, "md")
    draw_rows(page, lefts, page.top + HEADER, line, rows)
    if scale:
        draw_scale(page)
    if signed:
        draw_signed_scale(page)
    return page.image


def block_sheet(title, blocks, sections, footer, signed=False):
    """Blocks of columns of panels, and sections of rows, as one PIL image.

    blocks: (name, lines about it, headers of its columns); sections: (name, a line for each block,
    rows as for sheet, the columns of all blocks one after another).
    """
    width, height = sections[0][2][0][0][0].size
    lefts, spans, left = [], [], GAP  # of columns; of blocks, from and to
    for _, _, headers in blocks:
        lefts += [left + k * (width + GAP) for k in range(len(headers))]
        spans.append((left, lefts[-1] + width))
        left = lefts[-1] + width + BLOCK_GAP
    line = height + CAPTION
    page_width = max(spans[-1][1] + GAP, 900 if signed else LEAST_PAGE)
    content = BLOCK_HEADER + sum(SECTION + line * len(rows) + GAP for _, _, rows in sections)
    page = new_page(title, page_width, content, footer, 22)
    top = page.top + BLOCK_HEADER
    for span, (name, about, _) in zip(spans, blocks):
        draw_note(page, span, top - BLOCK_HEADER, name, INK, 15)
        draw_note(page, span, top - 41, about, GREY)
        page.draw.line((span[0], top - 4, span[1], top - 4), INK)
    headers = [header for _, _, part in blocks for header in part]
    shown = fitting(headers, 12, width + GAP // 2)
    for name, notes, rows in sections:
        for span, note in zip(spans, [name, *notes[1:]]):
            draw_note(page, span, top + 4, note, INK, 15 if note is name else 13)
        for x, header in zip(lefts, headers):
            below = (x + width / 2, top + SECTION - 2)
            write(page.draw, below, shown[header], GREY, 12, "md")
        draw_rows(page, lefts, top + SECTION, line, rows)
        top += SECTION + line * len(rows) + GAP
    draw_scale(page)
    if signed:
        draw_signed_scale(page)
    return page.image


def draw_note(page, span, top, text, colour, size=13):
    """Lines above a block of columns, cut to its `span`, from and to."""
    first, last = span
    write(page.draw, (first, top), fitting([text], size, last - first)[text], colour, size)


def draw_rows(page, lefts, top, line, rows):
    """Rows of panels with their captions, one at each of the columns `lefts`, every `line`."""
    width = rows[0][0][0].width
    shown = fitting({caption for row in rows for _, caption, _ in row}, 13, width + GAP // 2)
    for row in rows:
        for x, (picture, caption, warn) in zip(lefts, row):
            page.image.paste(picture, (x, top))
            below = (x + width / 2, top + picture.height + 3)
            write(page.draw, below, shown[caption], RED if warn else INK, 13, "ma")
        top += line


def draw_scale(page):
    """The colour map, from 0 to a map's maximum, at the left of the page, below its content."""
    bar = scale_bar()
    page.image.paste(bar, (GAP + 20, page.bottom))
    write(page.draw, (GAP, page.bottom - 2), "0", GREY, 13)
    write(page.draw, (GAP + 26 + bar.width, page.bottom - 2), "each map's own maximum", GREY, 13)


def draw_signed_scale(page):
    """The colours of signed maps, right of draw_scale's."""
    bar = signed_bar()
    page.image.paste(bar, (GAP + 520, page.bottom))
    write(page.draw, (GAP + 512, page.bottom - 2), "against", GREY, 13, "ra")
    write(page.draw, (GAP + 526 + bar.width, page.bottom - 2), "for the class", GREY, 13)


def class_grid(title, classes, rows, footer):
    """Signed maps as one PIL image: an image a row, a class a column, one colour scale a row.

    rows: lists of (image float [C, H, W] in [0, 1], caption, warn, box or None, maps [K, H', W']);
    K is the number of classes.
    """
    width = panel(rows[0][0], width=SMALL).width
    left, step = 112, width + 4
    page_width = max(left + step * (len(classes) + 1) + GAP, LEAST_PAGE)
    page = new_page(title, page_width, 24 + step * len(rows) + 6, footer, 20)
    top = page.top + 24
    shown = fitting(classes, 12, width)
    for x, name in enumerate(classes):
        write(page.draw, (left + (x + 1.5) * step - 2, top - 4), shown[name], INK, 12, "md")
    shown = fitting({caption for _, caption, *_ in rows}, 12, left - 16)
    for y, (image, caption, warn, box, maps) in enumerate(rows):
        upper = top + y * step
        at = (left - 8, upper + width / 2)
        write(page.draw, at, shown[caption], RED if warn else INK, 12, "rm")
        page.image.paste(panel(image, box=box, width=SMALL), (left, upper))
        largest = float(np.abs(np.asarray(maps)).max())
        for x, map_ in enumerate(maps, 1):
            small = panel(image, map_, signed=True, largest=largest, width=SMALL)
            page.image.paste(small, (left + x * step, upper))
    page.image.paste(signed_bar(), (left, page.bottom))
    write(page.draw, (left - 8, page.bottom - 2), "against the class", GREY, 12, "ra")
    write(page.draw, (left + 264, page.bottom - 2), "for it; one scale a row", GREY, 12)
    return page.image


def side_by_side(pages):
    """Several PIL images as one, left to right."""
    width = sum(page.width for page in pages)
    together = Image.new("RGB", (width, max(page.height for page in pages)), "white")
    left = 0
    for page in pages:
        together.paste(page, (left, 0))
        left += page.width
    return together


# ---------------------------------------------------------------- curves


@dataclass
class Axes:
    """Where a point lies on a page of curves: x from `first` to `last`, y from 0 to `highest`."""

    top: int
    first: float
    last: float
    highest: float
    logarithmic: bool
    left: int = 54
    width: int = 620
    height: int = 320

    def place(self, x, y):
        """(column, row) of a point, in pixels."""
        scale = np.log if self.logarithmic else float
        span = (scale(self.last) - scale(self.first)) or 1
        column = self.left + self.width * (scale(x) - scale(self.first)) / span
        return column, self.top + self.height * (1 - y / self.highest)


def curves(title, xlabel, series, mark=None, logarithmic=False):
    """Lines as one PIL image.

    series: {label: [(x, y)]}, y from 0 to 1, or to the largest. mark: an x with an upright line.
    logarithmic: whether the x axis is; every x is above 0 then.
    """
    xs = sorted({x for points in series.values() for x, _ in points})
    first = xs[0] if logarithmic else min(0, xs[0])
    highest = max(1.0, *(y for points in series.values() for _, y in points))
    page = new_page(title, CURVES, Axes.height + 50 + 20 * len(series))
    draw, axes = page.draw, Axes(page.top + 6, first, xs[-1], highest, logarithmic)
    draw_axes(draw, axes, xlabel, xs if logarithmic else ticks(first, xs))
    if mark is not None:
        draw.line((*axes.place(mark, 0), *axes.place(mark, highest)), GREY)
    shown = fitting(series, 13, CURVES - axes.left - 34 - GAP)
    for k, (label, points) in enumerate(series.items()):
        colour = LINES[k % len(LINES)]
        draw_line(draw, axes, points, colour)
        legend = axes.top + axes.height + 50 + 20 * k
        draw.line((axes.left, legend + 8, axes.left + 26, legend + 8), colour, 3)
        write(draw, (axes.left + 34, legend), shown[label], INK, 13)
    return page.image


def ticks(first, xs):
    """From `first` to the last of xs, sorted, up to nine round values; whole ones of whole xs."""
    span = (xs[-1] - first) or 1
    power = 10 ** math.floor(math.log10(span / 8))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= span / 8)
    if all(float(x).is_integer() for x in xs):
        step = max(1, round(step))
    return [step * k for k in range(math.ceil(first / step), math.floor(xs[-1] / step + 1e-9) + 1)]


def draw_axes(draw, axes, xlabel, xticks):
    """Level lines with their values, the x axis's values and its label."""
    right = axes.left + axes.width
    bottom = axes.top + axes.height
    for tick in np.linspace(0, axes.highest, 6):
        y = axes.place(axes.first, tick)[1]
        draw.line((axes.left, y, right, y), PALE)
        write(draw, (axes.left - 8, y), f"{tick:.2g}", GREY, 12, "rm")
    for tick in xticks:
        label = f"{tick:,.0f}" if float(tick).is_integer() else f"{tick:.3g}"
        write(draw, (axes.place(tick, 0)[0], bottom + 6), label, GREY, 12, "ma")
    middle = axes.left + axes.width / 2
    write(draw, (middle, bottom + 24), xlabel, GREY, 13, "ma")


def draw_line(draw, axes, points, colour):
    """One line with a dot at each of its points; what is below 0 is drawn at 0."""
    places = [axes.place(x, max(y, 0)) for x, y in points]
    draw.line(places, colour, 2)
    for x, y in places:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
