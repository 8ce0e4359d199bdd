"""The default data set: ten shapes, drawn by the code in two seconds, with the truth about each.

    dataset = shapes()    # 10,000 training images and 2,000 test images, RGB, 32x32 pixels

Each image shows one object over a texture, among small distractors. The pixels of each test
image's object are kept as a mask, so that an explanation can be compared with the truth.

A shape is a signed distance function: the distance of a point from the outline, negative inside.
It fits about the unit disc; x points right and y points down.
"""

import numpy as np
import torch

from dataset import Dataset

SIZE = 32  # pixels a side
# Least and largest area of an object, as a part of the image; counted in whole pixels it is within
# 5 and 25%. The density falls as 1 / area^2, as in natural scenes.
AREA = (0.055, 0.24)
CONTRAST = 0.45  # least Euclidean distance of the object's colour from the background's, RGB [0, 1]
COLOURS_TRIED = 16  # random colours from which the first with that contrast is taken
DISTRACTORS = 4  # small discs and strokes in every image
GRATINGS = 3  # waves of the background
MAX_TURN = 0.5  # radians an object is turned by, at most
GRAIN = 0.03  # standard deviation of the noise on the pixels, in [0, 1]


# ---------------------------------------------------------------- signed distances


def box(x, y, half_width, half_height):
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def half_planes(x, y, n, distance):
    """Signed distances [n, ...] to n lines at one distance from the origin, evenly turned."""
    angles = np.pi / 2 + 2 * np.pi * np.arange(n) / n
    return np.stack([-np.cos(a) * x - np.sin(a) * y - distance for a in angles])


def cross(x, y):
    lying = box(x, y, 0.95, 0.33)
    standing = box(x, y, 0.33, 0.95)
    return np.minimum(lying, standing)


def star(x, y):
    distances = np.sort(half_planes(x, y, 5, 0.35), 0)
    return distances[-2]  # negative inside at least four of the five half-planes


def dome(x, y):
    disc = np.hypot(x, y - 0.4) - 0.95
    return np.maximum(disc, y - 0.4)


def heart(x, y):
    tip = (np.abs(x) + np.abs(y + 0.1) - 0.9) / np.sqrt(2)
    lobes = np.hypot(np.abs(x) - 0.45, y + 0.55) - 0.636
    return np.minimum(tip, lobes)


def arrow(x, y):
    shaft = np.maximum(box(x, y - 0.4, 0.36, 0.5), -y)
    head = np.maximum(0.76 * np.abs(x) - 0.65 * (y + 0.95), y - 0.05)
    return np.minimum(shaft, head)


def ell(x, y):
    standing = box(x + 0.34, y, 0.36, 0.75)
    foot = box(x, y - 0.39, 0.7, 0.36)
    return np.minimum(standing, foot)


SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) - 0.8,
    "bar": lambda x, y: box(x, y, 0.95, 0.45),
    "square": lambda x, y: box(x, y, 0.72, 0.72),
    "triangle": lambda x, y: half_planes(x, y, 3, 0.5).max(0),
    "cross": cross,
    "star": star,
    "dome": dome,
    "heart": heart,
    "arrow": arrow,
    "ell": ell,
}


def area_and_radius(shape):
    """Area and bounding radius of a shape at scale 1, measured on a fine raster."""
    grid = np.linspace(-1.25, 1.25, 501, dtype=np.float32)
    x, y = np.meshgrid(grid, grid)
    inside = shape(x, y) < 0
    area = inside.sum() * (grid[1] - grid[0]) ** 2
    return area, np.hypot(x, y)[inside].max()


# ---------------------------------------------------------------- painting


def pixel_grid():
    """Rows and columns of all pixels, from 0: two float32 arrays [SIZE, SIZE]."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    return y, x


def uniform_columns(rng, low, high, n):
    """n numbers for each pair of bounds, float32: one array [n, 1, 1] a pair.

    low, high: lists of equal length.
    """
    numbers = rng.uniform(low, high, (n, len(low)))
    return numbers.astype(np.float32).T[:, :, None, None]


def background(rng, n):
    """Gratings of random direction, period and colour over a random colour.

    Returns the images, float32 [n, 3, SIZE, SIZE], and their base colours, float32 [n, 3].
    """
    y, x = pixel_grid()
    base = rng.uniform(0.15, 0.85, (n, 3)).astype(np.float32)
    images = np.broadcast_to(base[:, :, None, None], (n, 3, SIZE, SIZE)).copy()
    for _ in range(GRATINGS):
        angle, period, phase = uniform_columns(rng, [0, 3, 0], [np.pi, 20, 2 * np.pi], n)
        along = np.cos(angle) * x + np.sin(angle) * y
        wave = np.sin(along * (2 * np.pi / period) + phase)  # [n, SIZE, SIZE]
        colour = rng.uniform(-0.12, 0.12, (n, 3)).astype(np.float32)
        images += colour[:, :, None, None] * wave[:, None]
    return images, base


def paint(images, distance, colours):
    """Lays a colour on each image, in place, where the signed distance is negative.

    images: [n, 3, SIZE, SIZE]; distance: in pixels, [n, SIZE, SIZE]; colours: [n, 3]. The edge is
    anti-aliased over one pixel.
    """
    cover = np.clip(0.5 - distance, 0, 1)[:, None]
    images += cover * (colours[:, :, None, None] - images)


def add_distractors(rng, images):
    """Paints small discs and strokes of random colour and place on images [n, 3, SIZE, SIZE]."""
    n = len(images)
    y, x = pixel_grid()
    low = [0, 0, 0, -6, 0.8]
    high = [SIZE, SIZE, np.pi, 6, 1.6]
    for _ in range(DISTRACTORS):
        cx, cy, angle, length, radius = uniform_columns(rng, low, high, n)
        along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        along = np.clip(along, 0, np.maximum(length, 0))  # a negative length is a disc
        to_stroke = np.hypot(x - cx - along * np.cos(angle), y - cy - along * np.sin(angle))
        paint(images, to_stroke - radius, rng.random((n, 3), np.float32))


def place(rng, shape, n):
    """Signed distance in pixels, [n, SIZE, SIZE], of a shape of random size, centre and turn.

    The centre is uniform over the places where the whole object fits.
    """
    unit_area, unit_radius = area_and_radius(shape)
    area = 1 / rng.uniform(1 / AREA[1], 1 / AREA[0], n)
    scale = SIZE * np.sqrt(area / unit_area)  # pixels
    margin = np.minimum(unit_radius * scale, SIZE / 2)
    cx, cy = margin + rng.random((2, n)) * (SIZE - 2 * margin)
    turn = rng.uniform(-MAX_TURN, MAX_TURN, n)
    turn, scale, cx, cy = (v.astype(np.float32)[:, None, None] for v in (turn, scale, cx, cy))

    y, x = pixel_grid()
    x = (x + 0.5 - cx) / scale
    y = (y + 0.5 - cy) / scale
    turned_x = np.cos(turn) * x + np.sin(turn) * y
    turned_y = np.cos(turn) * y - np.sin(turn) * x
    return shape(turned_x, turned_y) * scale


def contrasting_colours(rng, base):
    """A random colour for each background colour of `base` [n, 3] that stands out from it."""
    n = len(base)
    colours = rng.random((n, COLOURS_TRIED, 3), np.float32)
    contrast = np.linalg.norm(colours - base[:, None], axis=2)
    first = (contrast > CONTRAST).argmax(1)
    return colours[np.arange(n), first]


def draw(rng, shape, n):
    """n images of one shape, uint8 [n, 3, SIZE, SIZE], and its pixels, bool [n, SIZE, SIZE]."""
    distance = place(rng, shape, n)
    images, base = background(rng, n)
    add_distractors(rng, images)
    paint(images, distance, contrasting_colours(rng, base))
    images += GRAIN * rng.standard_normal((n, 1, SIZE, SIZE), np.float32)
    return (np.clip(images, 0, 1) * 255 + 0.5).astype(np.uint8), distance < 0


# ---------------------------------------------------------------- the data set


def draw_split(rng, n):
    """n images in random order, equally many of each shape: images, masks and labels as tensors."""
    per_shape = n // len(SHAPES)
    drawn = [draw(rng, shape, per_shape) for shape in SHAPES.values()]
    images = np.concatenate([images for images, _ in drawn])
    masks = np.concatenate([masks for _, masks in drawn])
    labels = np.repeat(np.arange(len(SHAPES)), per_shape)
    order = rng.permutation(len(labels))
    return [torch.from_numpy(part[order]) for part in (images, masks, labels)]


def shapes(data_dir=None, image_size=None, n_train=10_000, n_test=2_000, seed=0):
    """The Dataset of ten shapes at 32x32 pixels; the same for the same numbers and seed.

    An object covers 5 to 25% of its image, lies anywhere it fits, and has any colour that stands
    out. data_dir and image_size are what every data set's function is given; they change nothing
    here: data.load brings the images to another size.
    """
    rng = np.random.default_rng(seed)
    train_images, _, train_labels = draw_split(rng, n_train)
    test_images, test_masks, test_labels = draw_split(rng, n_test)
    return Dataset(
        train_images,
        train_labels,
        test_images,
        test_labels,
        classes=list(SHAPES),
        crop=2,
        flip=True,
        test_masks=test_masks,
    )
