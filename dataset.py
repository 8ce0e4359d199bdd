"""A data set, whole, in memory: what every loader returns and every script works on."""

import functools
import hashlib
from dataclasses import dataclass

import torch

CHUNK_VALUES = 2**25  # pixel values worked on at a time, so that memory does not grow with N
ROWS_MOVED = 1000  # images moved at a time by keep_rows


@dataclass
class Dataset:
    """Training and test images with their labels.

    train_images, test_images: uint8 [N, C, H, W], C is 1 or 3.
    train_labels, test_labels: int64 [N]. Where an image may show any number of the K classes
        (multi-label), float32 [N, K] of 0 and 1.
    classes: K names.
    crop, flip: augmentation that leaves every label true: the largest shift in pixels, and whether
        an image may be mirrored left to right.
    test_masks: bool [N, H, W], the pixels of the object; None where nobody drew them.
    train_groups: int64 [N], for example the patient of each training image. A group is never
        divided: it is trained on or held out. None: every image is a group of its own.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: list
    crop: int = 0
    flip: bool = False
    test_masks: torch.Tensor | None = None
    train_groups: torch.Tensor | None = None

    @property
    def multi_label(self):
        """Whether an image may show several classes, or none."""
        return self.train_labels.ndim == 2

    @functools.cached_property
    def digest(self):
        """32 hexadecimal digits that no other data set has.

        They depend on all images, labels and groups and on their order. A checkpoint keeps them, so
        that it is never measured on other images than its own.
        """
        parts = [
            self.train_images,
            self.train_labels,
            self.test_images,
            self.test_labels,
            self.train_groups,
        ]
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            if part is None:
                continue
            for chunk in part.split(1000):
                digest.update(chunk.contiguous().numpy())
        return digest.hexdigest()


def send(tensor, device):
    """The tensor on the device; the CPU does not wait until a GPU has received it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("what a CUDA graph replays cannot read from the CPU")
        tensor = tensor.pin_memory()  # a copy from other memory is waited for
    return tensor.to(device, non_blocking=True)


def chunk_length(images):
    """How many images of [N, C, H, W] hold about CHUNK_VALUES values; at least 1."""
    values_per_image = max(1, images[0].numel())
    return max(1, CHUNK_VALUES // values_per_image)


def keep_rows(images, keep):
    """The rows of images [N, ...] where `keep`, bool [N], is true, within the same memory.

    The rows are moved to the front of `images`, which must not be used afterwards: a copy of a
    large data set would need its memory twice.
    """
    rows = keep.nonzero()[:, 0]
    for start in range(0, len(rows), ROWS_MOVED):
        chunk = rows[start : start + ROWS_MOVED]
        # A row moves to the left or stays, so that no row is overwritten before it is read.
        images[start : start + len(chunk)] = images[chunk]
    return images[: len(rows)]
