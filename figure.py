"""Pictures: a colour map, maps laid over images, and pages of them with titles and captions.

    figure.sheet("Title", ["image", "Grad-CAM"], rows, "Footer.").save("figure.png")

Draws what it is given. It measures nothing, and knows nothing of models.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fonts import font

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


# ---------------------------------------------------------------- pages


def new_page(title, width, height):
    """A white PIL image with its title, and what draws on it."""
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, INK, font(16, title), spacing=6)
    return page, draw


def title_height(title):
    return 2 * GAP + TITLE * (title.count("\n") + 1)


def sheet(title, headers, rows, footer, signed=False, scale=True):
    """Rows of panels as one PIL image.

    headers: a line or two for each column. rows: lists of (panel, caption, warn); a caption is red
    where `warn` is true. scale and signed: whether to draw the scale of unsigned, of signed maps.
    """
    width, height = rows[0][0][0].size
    column = width + GAP
    line = height + CAPTION + GAP // 2
    top = title_height(title) + HEADER
    bottom = top + line * len(rows) + 8
    footer = footer.splitlines()
    page_width = max(GAP + column * len(headers), LEAST_PAGE)
    page, draw = new_page(title, page_width, bottom + 26 + 18 * len(footer))
    for x, header in enumerate(headers):
        middle = GAP + x * column + width / 2
        draw.text((middle, top - 6), header, INK, font(14), anchor="md", align="center")
    for y, row in enumerate(rows):
        upper = top + y * line
        for x, (picture, caption, warn) in enumerate(row):
            left = GAP + x * column
            page.paste(picture, (left, upper))
            below = (left + width / 2, upper + height + 3)
            colour = RED if warn else INK
            draw.text(below, caption, colour, font(13, caption), anchor="ma")
    if scale:
        draw_scale(page, draw, bottom)
    if signed:
        draw_signed_scale(page, draw, bottom)
    for k, text in enumerate(footer):
        draw.text((GAP, bottom + 20 + 18 * k), text, GREY, font(13))
    return page


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
    top = title_height(title) + BLOCK_HEADER
    bottom = top + sum(SECTION + line * len(rows) + GAP for _, _, rows in sections)
    footer = footer.splitlines()
    page_width = max(spans[-1][1] + GAP, 900 if signed else LEAST_PAGE)
    page, draw = new_page(title, page_width, bottom + 30 + 18 * len(footer))
    for (first, last), (name, about, _) in zip(spans, blocks):
        draw.text((first, top - BLOCK_HEADER), clipped(name, 15, last - first), INK, font(15, name))
        for k, text in enumerate(about.splitlines()):
            below = (first, top - 41 + 18 * k)
            draw.text(below, clipped(text, 13, last - first), GREY, font(13))
        draw.line((first, top - 4, last, top - 4), INK)
    headers = [header for _, _, part in blocks for header in part]
    for name, notes, rows in sections:
        for (first, last), note in zip(spans, [name, *notes[1:]]):
            shown = clipped(note, 13, last - first)
            draw.text((first, top + 4), shown, INK, font(15 if note is name else 13))
        for x, header in zip(lefts, headers):
            draw.text((x + width / 2, top + SECTION - 2), header, GREY, font(12), anchor="md")
        top += SECTION
        for row in rows:
            draw_row(page, draw, lefts, top, row)
            top += line
        top += GAP
    draw_scale(page, draw, bottom)
    if signed:
        draw_signed_scale(page, draw, bottom)
    for k, text in enumerate(footer):
        draw.text((GAP, bottom + 22 + 18 * k), text, GREY, font(13))
    return page


def draw_row(page, draw, lefts, top, row):
    """Panels with their captions, one at each of the columns `lefts`."""
    for x, (picture, caption, warn) in zip(lefts, row):
        page.paste(picture, (x, top))
        middle, below = x + picture.width / 2, top + picture.height + 3
        shown = clipped(caption, 13, picture.width + GAP)
        colour = RED if warn else INK
        draw.text((middle, below), shown, colour, font(13, caption), anchor="ma")


def clipped(text, size, width):
    """A text that is at most `width` pixels wide in a font of this size."""
    letters = font(size, text)
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def draw_scale(page, draw, top):
    """The colour map, from 0 to a map's maximum, at the left of the page."""
    bar = scale_bar()
    page.paste(bar, (GAP + 20, top))
    draw.text((GAP, top - 2), "0", GREY, font(13))
    draw.text((GAP + 26 + bar.width, top - 2), "each map's own maximum", GREY, font(13))


def draw_signed_scale(page, draw, top):
    """The colours of signed maps, right of draw_scale's."""
    bar = signed_bar()
    page.paste(bar, (GAP + 520, top))
    draw.text((GAP + 512, top - 2), "against", GREY, font(13), anchor="ra")
    draw.text((GAP + 526 + bar.width, top - 2), "for the class", GREY, font(13))


def class_grid(title, classes, rows, footer):
    """Signed maps as one PIL image: an image a row, a class a column, one colour scale a row.

    rows: lists of (image float [C, H, W] in [0, 1], caption, warn, box or None, maps [K, H', W']);
    K is the number of classes.
    """
    width = panel(rows[0][0], width=SMALL).width
    left = 112
    step = width + 4
    top = title_height(title) + 24
    bottom = top + step * len(rows) + 6
    page_width = max(left + step * (len(classes) + 1) + GAP, LEAST_PAGE)
    page, draw = new_page(title, page_width, bottom + 34 + 18 * len(footer.splitlines()))
    for x, name in enumerate(classes):
        middle = left + (x + 1.5) * step - 2
        draw.text((middle, top - 4), name[: width // 6], INK, font(12, name), anchor="md")
    for y, (image, caption, warn, box, maps) in enumerate(rows):
        upper = top + y * step
        label_at = (left - 8, upper + width / 2)
        colour = RED if warn else INK
        draw.text(label_at, caption, colour, font(12, caption), anchor="rm", align="right")
        page.paste(panel(image, box=box, width=SMALL), (left, upper))
        largest = float(np.abs(np.asarray(maps)).max())
        for x, map_ in enumerate(maps, 1):
            small = panel(image, map_, signed=True, largest=largest, width=SMALL)
            page.paste(small, (left + x * step, upper))
    page.paste(signed_bar(), (left, bottom))
    draw.text((left - 8, bottom - 2), "against the class", GREY, font(12), anchor="ra")
    draw.text((left + 264, bottom - 2), "for it; one scale a row", GREY, font(12))
    draw.text((GAP, bottom + 20), footer, GREY, font(12))
    return page


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

    first: float
    last: float
    highest: float
    logarithmic: bool
    left: int = 54
    top: int = 52
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
    axes = Axes(first, xs[-1], highest, logarithmic)
    bottom = axes.top + axes.height
    page_width = axes.left + axes.width + 20
    page, draw = new_page(title, page_width, bottom + 50 + 20 * len(series))
    draw_axes(draw, axes, xlabel, xs if logarithmic else np.linspace(first, xs[-1], 6))
    if mark is not None:
        draw.line((*axes.place(mark, 0), *axes.place(mark, highest)), GREY)
    for k, (label, points) in enumerate(series.items()):
        colour = LINES[k % len(LINES)]
        draw_line(draw, axes, points, colour)
        legend = bottom + 50 + 20 * k
        draw.line((axes.left, legend + 8, axes.left + 26, legend + 8), colour, 3)
        draw.text((axes.left + 34, legend), label, INK, font(13))
    return page


def draw_axes(draw, axes, xlabel, xticks):
    """Level lines with their values, the x axis's values and its label."""
    right = axes.left + axes.width
    bottom = axes.top + axes.height
    for tick in np.linspace(0, axes.highest, 6):
        y = axes.place(axes.first, tick)[1]
        draw.line((axes.left, y, right, y), PALE)
        draw.text((axes.left - 8, y), f"{tick:.2g}", GREY, font(12), anchor="rm")
    for tick in xticks:
        x = axes.place(tick, 0)[0]
        draw.text((x, bottom + 6), f"{tick:.3g}", GREY, font(12), anchor="ma")
    middle = axes.left + axes.width / 2
    draw.text((middle, bottom + 24), xlabel, GREY, font(13), anchor="ma")


def draw_line(draw, axes, points, colour):
    """One line with a dot at each of its points; what is below 0 is drawn at 0."""
    places = [axes.place(x, max(y, 0)) for x, y in points]
    draw.line(places, colour, 2)
    for x, y in places:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
