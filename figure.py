"""Pictures: a colour map, maps laid over images, and rows of panels with captions. Draws what it is given; measures nothing."""
import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, GREY, RED = (34, 34, 40), (120, 120, 128), (196, 30, 58)
PANEL, SMALL = 150, 64  # least width of a panel, pixels
GAP, CAPTION, HEADER = 12, 22, 46


def _colours():
    """256 RGB colours, dark violet to pale yellow, spaced so that CIE lightness rises evenly: equal steps look equal, in grey print too."""
    anchors = np.array([[8, 6, 28], [74, 20, 110], [158, 38, 108], [222, 74, 70], [250, 150, 44], [252, 246, 176]]) / 255
    t = np.linspace(0, 1, 2001)
    path = np.stack([np.interp(t, np.linspace(0, 1, len(anchors)), anchors[:, c]) for c in range(3)], 1)
    linear = np.where(path <= 0.04045, path / 12.92, ((path + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)  # CIE 1976 L*
    even = np.interp(np.linspace(lightness[0], lightness[-1], 256), lightness, t)
    return np.stack([np.interp(even, t, path[:, c]) for c in range(3)], 1).astype(np.float32)


COLOURS = _colours()


POSITIVE, NEGATIVE = np.array([[[0.86, 0.12, 0.20]], [[0.10, 0.34, 0.84]]])  # red and blue, about equally dark


def _font(size):
    return ImageFont.load_default(size)


def panel(image, map_=None, box=None, signed=False, largest=None, width=PANEL):
    """One PIL image: `image` float [C, H, W] in [0, 1] enlarged to `width` or more; with `map_` [H', W'] in grey beneath the map's colours.

    The map is divided by `largest` (None: its own maximum), below 0 is the darkest colour, and enlarged bilinearly; a signed one is divided
    by its largest magnitude, red above and blue below 0, its cells as they are. box: (top, left, bottom, right), framed.
    """
    side = image.shape[-1]
    scale = max(1, -(-width // side))
    rgb = np.broadcast_to(np.asarray(image).transpose(1, 2, 0), (*image.shape[1:], 3))
    picture = np.kron(rgb, np.ones((scale, scale, 1)))
    if map_ is not None:
        map_ = np.asarray(map_, np.float32)
        map_ = np.clip(map_ / max(np.abs(map_).max() if largest is None else largest, 1e-20), -1 if signed else 0, 1)
        large = np.asarray(Image.fromarray(map_).resize(picture.shape[1::-1], Image.NEAREST if signed else Image.BILINEAR))[:, :, None]
        grey = (picture @ [0.299, 0.587, 0.114])[:, :, None]
        if signed:
            picture = (1 - np.abs(large)) * (0.7 + 0.3 * grey) + np.abs(large) * np.where(large > 0, POSITIVE, NEGATIVE)
        else:
            picture = 0.35 * grey + 0.65 * COLOURS[(large[:, :, 0] * 255 + 0.5).astype(int)]
    picture = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    if box is not None:
        top, left, bottom, right = (v * scale for v in box)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline=INK)
        draw.rectangle((left - 1, top - 1, right, bottom), outline=(255, 255, 255))
    return picture


def sheet(title, headers, rows, footer, signed=False, scale=True):
    """Rows of panels as one PIL image. headers: a line or two for each column; rows: lists of (panel, caption, warn); signed: some are; scale: of colours."""
    width, height = rows[0][0][0].size
    step_x, step_y = width + GAP, height + CAPTION + GAP // 2
    footer = footer.splitlines()
    top = 2 * GAP + 22 * (title.count("\n") + 1) + HEADER
    size = (max(GAP + step_x * len(headers), 520), top + step_y * len(rows) + 34 + 18 * len(footer))
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, INK, _font(16), spacing=6)
    for x, header in enumerate(headers):
        draw.text((GAP + x * step_x + width / 2, top - 6), header, INK, _font(14), anchor="md", align="center")
    for y, row in enumerate(rows):
        for x, (picture, caption, warn) in enumerate(row):
            corner = GAP + x * step_x, top + y * step_y
            page.paste(picture, corner)
            draw.text((corner[0] + width / 2, corner[1] + height + 3), caption, RED if warn else INK, _font(13), anchor="ma")
    bottom = top + step_y * len(rows) + 8
    bar = Image.fromarray((COLOURS[None].repeat(12, 0) * 255).astype(np.uint8))
    if scale:
        page.paste(bar, (GAP + 20, bottom))
        draw.text((GAP, bottom - 2), "0", GREY, _font(13))
        draw.text((GAP + 26 + bar.width, bottom - 2), "each map's own maximum", GREY, _font(13))
    if signed:
        page.paste(signed_bar(), (GAP + 520, bottom))
        draw.text((GAP + 512, bottom - 2), "against", GREY, _font(13), anchor="ra")
        draw.text((GAP + 526 + bar.width, bottom - 2), "for the class", GREY, _font(13))
    for line, text in enumerate(footer):
        draw.text((GAP, bottom + 20 + 18 * line), text, GREY, _font(13))
    return page


def signed_bar():
    ramp = np.linspace(-1, 1, 256)[None, :, None].repeat(12, 0)
    bar = (1 - np.abs(ramp)) * 0.85 + np.abs(ramp) * np.where(ramp > 0, POSITIVE, NEGATIVE)
    return Image.fromarray((bar * 255).astype(np.uint8))


def class_grid(title, classes, rows, footer):
    """Signed maps of one image a row and one class a column as one PIL image, each row on one colour scale.

    rows: lists of (image float [C, H, W] in [0, 1], caption, warn, box or None, maps [K, H', W']), K the number of classes.
    """
    width, left = panel(rows[0][0], width=SMALL).width, 112
    step, top = width + 4, 2 * GAP + 22 * (title.count("\n") + 1) + 24
    size = max(left + step * (len(classes) + 1) + GAP, 520), top + (width + 4) * len(rows) + 40 + 18 * len(footer.splitlines())
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, INK, _font(16), spacing=6)
    for x, name in enumerate(classes):
        draw.text((left + (x + 1.5) * step - 2, top - 4), name[: width // 6], INK, _font(12), anchor="md")
    for y, (image, caption, warn, box, maps) in enumerate(rows):
        corner, largest = top + y * step, float(np.abs(np.asarray(maps)).max())
        draw.text((left - 8, corner + width / 2), caption, RED if warn else INK, _font(12), anchor="rm", align="right")
        page.paste(panel(image, box=box, width=SMALL), (left, corner))
        for x, map_ in enumerate(maps):
            page.paste(panel(image, map_, None, True, largest, SMALL), (left + (x + 1) * step, corner))
    bottom = top + step * len(rows) + 6
    page.paste(signed_bar(), (left, bottom))
    draw.text((left - 8, bottom - 2), "against the class", GREY, _font(12), anchor="ra")
    draw.text((left + 264, bottom - 2), "for it; one scale a row", GREY, _font(12))
    draw.text((GAP, bottom + 20), footer, GREY, _font(12))
    return page


LINES = [(30, 90, 200), (214, 40, 57), (20, 130, 90), (120, 90, 160), (232, 140, 20), (70, 70, 76)]


def curves(title, xlabel, series, mark=None, logarithmic=False):
    """Lines as one PIL image. series: {label: [(x, y)]}, y from 0 to 1 (or the largest); mark: an x with an upright line; logarithmic: in x, which is above 0."""
    width, height, left, top = 620, 320, 54, 52
    page = Image.new("RGB", (left + width + 20, top + height + 50 + 20 * len(series)), "white")
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, INK, _font(16))
    xs = sorted({x for points in series.values() for x, _ in points})
    ends = (xs[0], xs[-1]) if logarithmic else (min(0, xs[0]), xs[-1])
    scale = np.log if logarithmic else float
    span = (scale(ends[1]) - scale(ends[0])) or 1
    highest = max(1.0, *(y for points in series.values() for _, y in points))

    def place(x, y):
        return left + width * (scale(x) - scale(ends[0])) / span, top + height * (1 - y / highest)

    for tick in np.linspace(0, highest, 6):
        y = place(ends[0], tick)[1]
        draw.line((left, y, left + width, y), (230, 230, 234))
        draw.text((left - 8, y), f"{tick:.2g}", GREY, _font(12), anchor="rm")
    for tick in xs if logarithmic else np.linspace(*ends, 6):
        draw.text((place(tick, 0)[0], top + height + 6), f"{tick:.3g}", GREY, _font(12), anchor="ma")
    draw.text((left + width / 2, top + height + 24), xlabel, GREY, _font(13), anchor="ma")
    if mark is not None:
        draw.line((*place(mark, 0), *place(mark, highest)), GREY)
    for k, (label, points) in enumerate(series.items()):
        places = [place(x, max(y, 0)) for x, y in points]
        draw.line(places, LINES[k % len(LINES)], 2)
        for x, y in places:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), LINES[k % len(LINES)])
        y = top + height + 50 + 20 * k
        draw.line((left, y + 8, left + 26, y + 8), LINES[k % len(LINES)], 3)
        draw.text((left + 34, y), label, INK, _font(13))
    return page


def beside(pages):
    """Pages of one PIL image, left to right."""
    page = Image.new("RGB", (sum(p.width for p in pages), max(p.height for p in pages)), "white")
    for k, part in enumerate(pages):
        page.paste(part, (sum(p.width for p in pages[:k]), 0))
    return page
