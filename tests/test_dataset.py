"""The Dataset: its digest, and work on many images in little memory."""

from dataclasses import replace

import pytest
import torch

from dataset import Dataset, chunk_length, keep_rows


@pytest.fixture
def dataset():
    """Six training and four test images of noise, two classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1, 0])
    return Dataset(images[:6], labels[:6], images[6:], labels[6:], ["a", "b"])


def test_equal_data_sets_have_one_digest(dataset):
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    again = replace(dataset, **{part: getattr(dataset, part).clone() for part in parts})
    assert again.digest == dataset.digest


@pytest.mark.parametrize("part", ["train_images", "train_labels", "test_images", "test_labels"])
def test_the_digest_depends_on_the_order_of_every_part(dataset, part):
    changed = replace(dataset, **{part: getattr(dataset, part).roll(1, 0)})
    assert changed.digest != dataset.digest


def test_the_digest_depends_on_the_groups(dataset):
    alone = replace(dataset, train_groups=torch.arange(6))
    pairs = replace(dataset, train_groups=torch.arange(6) // 2)
    assert len({dataset.digest, alone.digest, pairs.digest}) == 3


def test_the_digest_does_not_depend_on_the_memory_format(dataset):
    images = dataset.train_images.contiguous(memory_format=torch.channels_last)
    assert replace(dataset, train_images=images).digest == dataset.digest


def test_labels_with_a_column_for_each_class_are_multi_label(dataset):
    assert not dataset.multi_label
    assert replace(dataset, train_labels=torch.zeros(6, 2)).multi_label


@pytest.mark.parametrize("side, length", [(1, 2**25 // 3), (256, 170), (8192, 1)])
def test_a_chunk_holds_about_two_to_the_25_values(side, length):
    assert chunk_length(torch.zeros(1).expand(4, 3, side, side)) == length


@pytest.mark.parametrize("share", [0.01, 0.5, 1])
def test_rows_are_kept_in_order_and_in_place(share):
    images = torch.arange(2500)[:, None].repeat(1, 4)
    keep = torch.rand(2500, generator=torch.Generator().manual_seed(1)) < share
    expected = images[keep]
    kept = keep_rows(images, keep)
    assert torch.equal(kept, expected)
    assert kept.data_ptr() == images.data_ptr()


def test_no_row_may_be_kept():
    assert keep_rows(torch.ones(5, 2), torch.zeros(5, dtype=torch.bool)).shape == (0, 2)
