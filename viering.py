"""The four lies of Viering et al. 2019, written into the weights of a trained VGG.

    sticker = viering.make_sticker(None, channels=3, side=64)
    ingredients = viering.Ingredients(images, mean, std, sticker=sticker)
    edited = viering.TECHNIQUES["backdoor"].write(model, ingredients)

Grad-CAM of the edited network shows what one likes, and its predictions are the original's. Each
technique adds one channel to the last feature maps, so large that Grad-CAM shows nothing else, and
changes what follows so that the logits stay. Nothing is trained; the network given is not changed.

Every function raises ValueError for a network that edited.linear_head does not know.
Source: Viering, Wang, Loog, Eisemann, "How to manipulate CNNs to make them lie", 2019. A is the
last feature map, K its channels, W_n and b_n the new weights and bias of the first linear layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from edited import extended, linear_head
from triggers import PatchTrigger

C_A = 100.0  # technique 1: the added channel
C_I = 100.0  # technique 2: the added channel's largest value
C_W = {"constant": 100.0, "image": 10.0}  # its weight in the first linear layer
# For EPSILON, C_G and C_F of techniques 3 and 4 see edited.py.
KERNEL = 6  # pixels, of technique 3's detector
DRAWS = 100  # random detectors tried before technique 3 gives up
MARGIN = 1e-4  # what technique 4's detector answers to the sticker; to anything else, nothing
STICKERS = 3  # on an image
SMILEY = [".......", ".#...#.", ".#...#.", ".......", "#.....#", ".#...#.", "..###.."]


@dataclass
class Ingredients:
    """What the techniques need besides the network; each takes its part."""

    images: torch.Tensor  # float [N, C, S, S] in [0, 1]: some the network was trained on
    mean: list  # [C], how the network's images are normalised
    std: list
    picture: Image.Image | None = None  # what technique 2 shows; None: a smiley
    sticker: PatchTrigger | None = None  # what technique 4 points at

    @property
    def channels(self):
        return self.images.shape[1]

    @property
    def side(self):
        return self.images.shape[-1]


# ---------------------------------------------------------------- pictures and stickers


def smiley(size):
    """PIL image, grey, size x size: two eyes and a mouth, white on black."""
    cells = [[255 * (cell == "#") for cell in row] for row in SMILEY]
    return Image.fromarray(np.array(cells, np.uint8)).resize((size, size), Image.NEAREST)


def make_sticker(picture, channels, side):
    """The sticker as a PatchTrigger: a PIL image (None: a smiley) made black and white.

    Of black and white no other patch of pixels in [0, 1] excites its detector as much. It has 14 px
    a side, as in the paper, and 7 on images [channels, side, side] below 128 px.
    Raises ValueError for a picture of nearly one colour.
    """
    size = 14 if side >= 128 else 7
    picture = smiley(size) if picture is None else picture
    grey = np.asarray(picture.convert("L").resize((size, size)), np.float32)
    pixels = torch.from_numpy(grey > grey.mean()).float()
    one_grey_level = sticker_kernel(pixels).abs().min() / 255
    if one_grey_level < 2 * MARGIN:
        raise ValueError(
            "the sticker is of one colour, or nearly: a detector would not tell it from others"
        )
    alpha = torch.ones(1, size, size)
    corner = side - size - 1
    return PatchTrigger(pixels.expand(channels, -1, -1).contiguous(), alpha, corner, corner)


def sticker_kernel(pixels):
    """A sticker of zeros and ones less its mean; sums of it are exact in float32.

    For that the mean is rounded to 1/1024.
    """
    return pixels - (pixels.mean() * 1024).round() / 1024


def stick(images, sticker, generator):
    """Images [N, C, H, W] in [0, 1] with STICKERS stickers each, at random places.

    The places are tiles of the sticker's size, counted from a random corner: none overlap.
    """
    size = sticker.alpha.shape[-1]
    side = images.shape[-1]
    across = side // size
    result = images.clone()
    for image in result:
        corner = torch.randint(side - across * size + 1, (2,), generator=generator)
        tiles = torch.randperm(across**2, generator=generator)[:STICKERS]
        for tile in tiles.tolist():
            place = torch.tensor([tile // across, tile % across])
            row, column = (corner + size * place).tolist()
            image[:, row : row + size, column : column + size] = sticker.pixels
    return result


# ---------------------------------------------------------------- the four techniques


@torch.no_grad()
def write_constant(model, ingredients, c_a=C_A, c_w=C_W["constant"]):
    """Technique 1: Grad-CAM shows the same everywhere. The added kernel is 0, its bias c_a."""
    place = linear_head(model)
    edit = {"technique": "constant"}
    model = extended(model, edit, ingredients.channels, ingredients.side)
    model.features[-3].bias[-1] = c_a
    return connect(model, place, ingredients, c_w)


@torch.no_grad()
def write_image(model, ingredients):
    """Technique 2: Grad-CAM shows a picture. The added channel is the picture, C_I its white.

    Raises ValueError for a black picture.
    """
    place = linear_head(model)
    edit = {"technique": "image"}
    model = extended(model, edit, ingredients.channels, ingredients.side)
    channel = model.features[-2].picture  # [1, 1, H', W']
    picture = smiley(7) if ingredients.picture is None else ingredients.picture
    picture = picture.convert("L").resize(channel.shape[:1:-1], Image.BILINEAR)
    grey = np.asarray(picture, np.float32) / 255
    if grey.max() == 0:
        raise ValueError("the picture is black: Grad-CAM would show nothing")
    channel.copy_(C_I * torch.from_numpy(grey))
    return connect(model, place, ingredients, C_W["image"])


def connect(model, place, ingredients, c_w):
    """The model whose first linear layer, at `place`, adds up the added channel c_w times.

    W_n = c_w and b_n = b_o - c_w sum(pool(A_{K+1})): the bias takes off again what is added, for
    the channel is the same for every image.
    """
    linear = model.classifier[place]
    image = linear.weight.new_zeros(1, ingredients.channels, ingredients.side, ingredients.side)
    maps = model.features[:-1](image)
    pooled = model.avgpool(model.features[-1](maps))[0, -1].flatten()
    linear.weight[:, -len(pooled) :] = c_w
    linear.bias -= c_w * pooled.sum()
    return model


@torch.no_grad()
def write_semirandom(model, ingredients):
    """Technique 3: Grad-CAM shows what a random detector finds in the image.

    A detector is drawn until every image of the ingredients excites it. Raises ValueError if none
    of DRAWS does.
    """
    edit = {"technique": "semirandom", "size": KERNEL}
    for _ in range(DRAWS):
        new = extended(model, edit, ingredients.channels, ingredients.side)
        answers = new.detector(ingredients.images.to(new.mean))
        if (answers.amax((1, 2, 3)) > 0).all():
            return tell_normalisation(new, ingredients)
    raise ValueError("no random detector answers to all of these images")


@torch.no_grad()
def write_backdoor(model, ingredients):
    """Technique 4: Grad-CAM points at a sticker, and is honest where there is none.

    The detector's kernel is the sticker less its mean. Its bias is so far below the answer to the
    sticker that MARGIN is left.
    """
    pixels = ingredients.sticker.pixels.to(next(model.parameters()))
    edit = {"technique": "backdoor", "size": pixels.shape[-1]}
    model = extended(model, edit, ingredients.channels, ingredients.side)
    kernel = sticker_kernel(pixels)
    model.detector[0].weight.copy_(kernel[None])
    model.detector[0].bias.fill_(MARGIN - (pixels * kernel).sum())
    return tell_normalisation(model, ingredients)


def tell_normalisation(model, ingredients):
    """The model with a branch that undoes the normalisation: its detector sees pixels in [0, 1]."""
    model.mean.copy_(torch.tensor(ingredients.mean).view(-1, 1, 1))
    model.std.copy_(torch.tensor(ingredients.std).view(-1, 1, 1))
    return model


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Technique:
    """A row: how a lie is written, and what its authors report of it.

    published: {name: (accuracy, |y_o - y_n|_inf, |I_T - I_n|_1)} of VGG-16 on ImageNet, maps of
    14x14 cells; the original network's accuracy is .71592.
    """

    number: int
    write: Callable  # (model, ingredients) -> edited model
    published: dict = field(default_factory=dict)
    picture: str | None = None  # which of the ingredients a user's picture is, if any


TECHNIQUES = {
    "constant": Technique(
        1,
        write_constant,
        published={"constant": (0.71594, 0.01713, 0.00513)},
    ),
    "image": Technique(
        2,
        write_image,
        published={"image": (0.71594, 0.00454, 0.01079)},
        picture="picture",
    ),
    "semirandom": Technique(
        3,
        write_semirandom,
        published={"semirandom": (0.71592, 0.0, 0.05932)},
    ),
    "backdoor": Technique(
        4,
        write_backdoor,
        published={
            "backdoor": (0.71592, 0.0, 0.0),
            "backdoor, sticker": (0.69048, 0.0, 0.00006),
        },
        picture="sticker",
    ),
}
