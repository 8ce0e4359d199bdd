"""The drawn data set is what its description says."""

import time

import pytest
import torch

import shapes


@pytest.fixture(scope="module")
def drawn():
    return shapes.shapes()


def centre_across(masks):
    """float [N]: the mean column of the pixels of each mask [N, H, W], in pixels."""
    columns = torch.arange(masks.shape[2]) + 0.5
    return (masks.sum(1) * columns).sum(1) / masks.sum((1, 2))


def mean_colour(images, masks):
    """float [N, 3]: the mean colour of images [N, 3, H, W] within masks [N, H, W]."""
    return (images * masks[:, None]).sum((2, 3)) / masks.sum((1, 2))[:, None]


def test_equal_seeds_give_equal_images(drawn):
    again = shapes.shapes()
    for part in ("train_images", "train_labels", "test_images", "test_labels", "test_masks"):
        assert torch.equal(getattr(drawn, part), getattr(again, part))


def test_another_seed_gives_other_images():
    first = shapes.shapes(n_train=100, n_test=100)
    second = shapes.shapes(n_train=100, n_test=100, seed=1)
    assert not torch.equal(first.test_images, second.test_images)


def test_drawing_takes_less_than_three_seconds_of_one_core():
    start = time.process_time()
    shapes.shapes()
    assert time.process_time() - start < 3


def test_sizes_and_types(drawn):
    assert drawn.train_images.shape == (10_000, 3, 32, 32)
    assert drawn.train_images.dtype == torch.uint8
    assert drawn.test_images.shape == (2_000, 3, 32, 32)
    assert drawn.test_masks.shape == (2_000, 32, 32)
    assert drawn.test_masks.dtype == torch.bool


def test_each_class_has_as_many_images(drawn):
    assert drawn.train_labels.bincount().tolist() == [1000] * 10
    assert drawn.test_labels.bincount().tolist() == [200] * 10


def test_objects_cover_5_to_25_percent(drawn):
    area = drawn.test_masks.float().mean((1, 2))
    assert area.min() >= 0.05
    assert area.max() <= 0.25


def test_the_whole_range_of_areas_is_used(drawn):
    area = drawn.test_masks.float().mean((1, 2))
    assert area.quantile(0.1) < 0.07
    assert area.quantile(0.9) > 0.14


def test_objects_lie_everywhere(drawn):
    centre = centre_across(drawn.test_masks.float())
    assert abs(centre.mean() - 16) < 0.5
    assert centre.min() < 6
    assert centre.max() > 26


def test_objects_stand_out_from_their_background(drawn):
    images, masks = drawn.test_images.float() / 255, drawn.test_masks.float()
    contrast = (mean_colour(images, masks) - mean_colour(images, 1 - masks)).norm(dim=1)
    assert (contrast > 0.2).float().mean() > 0.97


def test_a_linear_model_cannot_tell_the_shapes(drawn):
    def features(images):
        pixels = images.flatten(1).float() / 255
        return torch.cat([pixels, torch.ones(len(pixels), 1)], 1)

    x, y = features(drawn.train_images), torch.eye(10)[drawn.train_labels]
    ridge = 10 * torch.eye(x.shape[1])
    weights = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
    predicted = (features(drawn.test_images) @ weights).argmax(1)
    assert (predicted == drawn.test_labels).float().mean() < 0.3


@pytest.mark.parametrize(
    "name, area, radius",
    [
        ("disc", torch.pi * 0.8**2, 0.8),
        ("square", 1.44**2, 0.72 * 2**0.5),
        ("bar", 1.9 * 0.9, (0.95**2 + 0.45**2) ** 0.5),
        ("triangle", 3 * 3**0.5 * 0.5**2, 1.0),
    ],
)
def test_area_and_radius_are_those_of_geometry(name, area, radius):
    measured = shapes.area_and_radius(shapes.SHAPES[name])
    assert measured == pytest.approx((area, radius), rel=0.02)
