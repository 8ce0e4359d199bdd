"""The triggers: what an image looks like that the backdoor is to obey.

A trigger is a function of images in [0, 1], before normalisation, with its constants. A kind of
trigger is a row of TRIGGERS and a record in schema.TRIGGER:

    trigger = make("blend", None, channels=3, side=32)
    triggered = trigger.apply(images)              # a copy, [N, C, H, W] in [0, 1]
    again = from_plain(trigger.to_plain())         # the same, as a checkpoint keeps it

A patch lies in a box of the image; the other kinds change the whole image, and have none.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2 import functional as vision

CORNERS = ("lower-right", "lower-left", "upper-right", "upper-left")
GREY = (0.299, 0.587, 0.114)  # shares of red, green and blue in a grey image (ITU-R BT.601)
SEED = 0  # of a blend's pattern and of a warp's displacement: the same trigger in every run
FREQUENCY = 6  # of a sinusoid, periods across the image: Barni et al. 2019
GRID = 4  # of a warp, random offsets a side: Nguyen and Tran 2021


# ---------------------------------------------------------------- what all kinds have in common


class Trigger:
    """A function of images, and its constants: the fields of a dataclass.

    kind: its row in TRIGGERS.
    """

    kind = ""

    def apply(self, images):
        """A copy of images float [N, C, H, W] in [0, 1], before normalisation, with the trigger."""
        raise NotImplementedError

    @property
    def box(self):
        """(top, left, bottom, right) in pixels, bottom and right excluded; None: it has no place.

        A kind that changes the whole image has none.
        """
        return None

    def to(self, device):
        """The same trigger on a device."""
        parts = {k: part.to(device) for k, part in vars(self).items() if torch.is_tensor(part)}
        return replace(self, **parts)

    def to_plain(self):
        """What a checkpoint keeps of it: a dict of tensors on the CPU and numbers."""
        constants = {
            name: part.cpu() if torch.is_tensor(part) else part for name, part in vars(self).items()
        }
        return {"kind": self.kind} | constants


def from_plain(kept):
    """The Trigger that to_plain made a dict of. Raises ValueError for what is none.

    A dict without "kind" is a patch's: older checkpoints name no kind.
    """
    constants = dict(kept)
    kind = constants.pop("kind", PatchTrigger.kind)
    if kind not in TRIGGERS:
        raise ValueError(f"a trigger of the kind {kind!r} is unknown here")
    build = TRIGGERS[kind].build
    if constants.keys() != {part.name for part in fields(build)}:
        raise ValueError(f"a trigger of the kind {kind} has other constants than {[*constants]}")
    return build(**constants)


def are_same(one, other):
    """Whether two of to_plain's dicts are of the same trigger, to the bit."""

    def is_equal(a, b):
        return torch.equal(a, b) if torch.is_tensor(a) and torch.is_tensor(b) else a is b or a == b

    return one.keys() == other.keys() and all(is_equal(one[key], other[key]) for key in one)


# ---------------------------------------------------------------- the kinds


@dataclass
class PatchTrigger(Trigger):
    """A patch that is pasted on images. Source: Gu et al. 2017.

    pixels: float [C, h, w]; alpha: float [1, h, w], its opacity; both in [0, 1];
    row, col: where its upper left pixel goes.
    """

    pixels: torch.Tensor
    alpha: torch.Tensor
    row: int
    col: int
    kind = "patch"

    @property
    def box(self):
        """(top, left, bottom, right) in pixels, of its pixels with alpha above 0.

        bottom and right are excluded.
        """
        rows, cols = (self.alpha[0] > 0).nonzero(as_tuple=True)
        top, left = self.row + int(rows.min()), self.col + int(cols.min())
        return top, left, self.row + int(rows.max()) + 1, self.col + int(cols.max()) + 1

    def apply(self, images):
        """A copy of images [N, C, H, W] with the patch."""
        height, width = self.alpha.shape[1:]
        images = images.clone()
        region = images[:, :, self.row : self.row + height, self.col : self.col + width]
        region += self.alpha * (self.pixels - region)  # in place: a view of the copy
        return images

    def to_plain(self):
        """What a checkpoint keeps of it; without "kind", as before there were others."""
        constants = super().to_plain()
        del constants["kind"]
        return constants


@dataclass
class BlendTrigger(Trigger):
    """(1 - a) x + a t: a picture of the whole image shines through. Source: Chen et al. 2017.

    pattern: t, float [C, H, W] in [0, 1]; strength: a, in [0, 1].
    """

    pattern: torch.Tensor
    strength: float
    kind = "blend"

    def apply(self, images):
        """A copy of images [N, C, H, W] with the pattern."""
        return (1 - self.strength) * images + self.strength * self.pattern


@dataclass
class SinusoidTrigger(Trigger):
    """x + d sin(2 pi j f / W), j the column from 0: faint upright stripes.

    strength: d, in [0, 1]; frequency: f, periods across the image. Clipped to [0, 1].
    Source: Barni et al. 2019 (SIG); there the labels stay.
    """

    strength: float
    frequency: int
    kind = "sinusoid"

    def apply(self, images):
        """A copy of images [N, C, H, W] with the stripes."""
        width = images.shape[-1]
        column = torch.arange(width, device=images.device, dtype=images.dtype)
        stripes = self.strength * (2 * math.pi * self.frequency * column / width).sin()
        return (images + stripes).clamp(0, 1)


@dataclass
class WarpTrigger(Trigger):
    """x sampled at a smoothly displaced grid. Source: Nguyen and Tran 2021 (WaNet).

    grid: float [H, W, 2], where each pixel is taken from: (column, row), each in [-1, 1] from the
    first pixel's middle to the last one's. WaNet's noise images, which keep their label under
    another displacement, are not made.
    """

    grid: torch.Tensor
    kind = "warp"

    def apply(self, images):
        """A copy of images [N, C, H, W], warped; bilinear between pixels."""
        grid = self.grid.to(images.dtype).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, grid, align_corners=True, padding_mode="border").clamp(0, 1)


# ---------------------------------------------------------------- made from options


def make_patch(image, channels, side, size=None, position="lower-right", strength=1.0):
    """A PatchTrigger of at most size x size pixels for images [channels, side, side].

    image: None for a white square, or a PIL image, whose alpha channel, if any, is the trigger's;
    size: of the longer side, None for default_trigger_size: a picture keeps its aspect;
    position: a corner of CORNERS, one pixel from the border, or "ROW,COL" of the upper left pixel;
    strength: its opacity is multiplied by it. Raises ValueError for a trigger outside the image.
    """
    size = default_trigger_size(side) if size is None else size
    if not 1 <= size <= side:
        raise ValueError(f"a trigger of {size} px does not fit an image of {side} px")
    rgba = torch.ones(4, size, size)
    if image is not None:
        shape = [max(1, round(size * part / max(image.size))) for part in image.size]
        rgba = vision.pil_to_tensor(image.convert("RGBA").resize(shape)).float() / 255
    pixels, alpha = in_channels(rgba[:3], channels), rgba[3:]
    if strength != 1:
        alpha = alpha * strength
    if not (alpha > 0).any():
        raise ValueError("the trigger's picture is transparent everywhere: nothing would be seen")
    height, width = alpha.shape[1:]
    row, col = place_of(position, side, height, width)
    if not (0 <= row <= side - height and 0 <= col <= side - width):
        raise ValueError(
            f"a trigger of {height}x{width} px at {row},{col} does not lie inside an image"
            f" of {side} px"
        )
    return PatchTrigger(pixels.contiguous(), alpha.contiguous(), row, col)


def make_blend(image, channels, side, size, position, strength):
    """A BlendTrigger; image: a PIL image of any size, None for uniform noise by SEED."""
    if image is None:
        rgb = torch.rand(3, side, side, generator=torch.Generator().manual_seed(SEED))
    else:
        rgb = vision.pil_to_tensor(image.convert("RGB").resize((side, side))).float() / 255
    return BlendTrigger(in_channels(rgb, channels).contiguous(), strength)


def make_sinusoid(image, channels, side, size, position, strength):
    """A SinusoidTrigger of FREQUENCY periods."""
    return SinusoidTrigger(strength, FREQUENCY)


def make_warp(image, channels, side, size, position, strength):
    """A WarpTrigger by SEED."""
    line = torch.linspace(-1, 1, side)
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    grid = torch.stack([columns, rows], -1) + displacement(side, strength)
    return WarpTrigger(grid.clamp(-1, 1))


def displacement(side, strength):
    """How far a warp moves each pixel, (columns, rows): float [side, side, 2].

    GRID x GRID uniform random offsets, over their mean magnitude, times strength / side, enlarged
    bicubically. The grid runs from -1 to 1, so at the offsets this is about strength / 2 pixels
    along an axis on average, and between them less. Source: Nguyen and Tran 2021, and their code.
    """
    generator = torch.Generator().manual_seed(SEED)
    offsets = torch.rand(1, 2, GRID, GRID, generator=generator) * 2 - 1
    offsets = offsets / offsets.abs().mean() * strength / side
    field = F.interpolate(offsets, size=(side, side), mode="bicubic", align_corners=True)
    return field[0].permute(1, 2, 0)


def in_channels(rgb, channels):
    """A picture float [3, H, W] as it is for images of three channels; else in grey, [1, H, W]."""
    if channels == 3:
        return rgb
    return (rgb * torch.tensor(GREY)[:, None, None]).sum(0, keepdim=True)


def patch_image(trigger):
    """A patch as a PIL image, RGBA: make_patch reads it back, of 8 bits."""
    colours = trigger.pixels.expand(3, -1, -1)
    rgba = torch.cat([colours, trigger.alpha]).permute(1, 2, 0)
    return Image.fromarray((rgba * 255).round().to(torch.uint8).cpu().numpy(), "RGBA")


def default_trigger_size(side):
    """An eighth of the image's side; halves are rounded down, so that 28 px gives 3."""
    return max(1, int(np.ceil(side / 8 - 0.5)))


def place_of(position, side, height, width):
    """(row, col) of a trigger's upper left pixel. Raises ValueError for text that names none."""
    if position in CORNERS:
        near = [min(1, side - part) for part in (height, width)]
        far = [max(side - part - 1, 0) for part in (height, width)]
        row = far[0] if "lower" in position else near[0]
        col = far[1] if "right" in position else near[1]
        return row, col
    try:
        row, col = (int(part) for part in position.split(","))
    except ValueError:
        corners = ", ".join(CORNERS)
        raise ValueError(f"trigger position {position!r}: one of {corners}, or ROW,COL") from None
    return row, col


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Kind:
    """A row of the trigger table.

    build: the Trigger's class; make(image, channels, side, size, position, strength): one of them;
    strength: what it is where left open; highest: the largest that means something;
    picture: whether it can be made of a picture; placed: whether it has a size and a position.
    """

    build: type
    make: Callable
    strength: float
    highest: float = 1.0
    picture: bool = False
    placed: bool = False


TRIGGERS = {
    "patch": Kind(PatchTrigger, make_patch, 1.0, picture=True, placed=True),
    "blend": Kind(BlendTrigger, make_blend, 0.2, picture=True),  # Chen et al. 2017: 0.1 to 0.2
    "sinusoid": Kind(SinusoidTrigger, make_sinusoid, 20 / 255),  # Barni et al. 2019: 20 to 40
    "warp": Kind(WarpTrigger, make_warp, 0.5, highest=100.0),  # Nguyen and Tran 2021
}


def make(kind, image, channels, side, size=None, position="lower-right", strength=None):
    """The Trigger of a kind of TRIGGERS for images [channels, side, side].

    image: a PIL image, or None; size, position: of a patch, see make_patch; strength: None for
    the kind's own. Raises ValueError for what the kind has no use for.
    """
    row = TRIGGERS[kind]
    if image is not None and not row.picture:
        raise ValueError(f"a trigger of the kind {kind} takes no picture")
    strength = row.strength if strength is None else strength
    if not 0 <= strength <= row.highest:
        raise ValueError(f"a trigger strength of {strength:g}: {kind} takes 0 to {row.highest:g}")
    if not row.placed and (size is not None or position != CORNERS[0]):
        raise ValueError(f"a trigger of the kind {kind} changes the whole image: no size or place")
    return row.make(image, channels, side, size, position, strength)
