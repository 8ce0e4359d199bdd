"""What is said of an edited network: maps that are wrong count as wrong, blank ones are counted."""

import pytest
import torch

import edit_effect
import models
import viering
from subject import Subject

SIDE = 32
CLASSES = 5
MEAN = [0.4, 0.5, 0.45]
STD = [0.2, 0.25, 0.22]


@pytest.fixture(scope="module")
def network():
    """A small VGG of random weights, float64."""
    torch.manual_seed(0)
    model = models.build("vgg_small", 3, CLASSES, SIDE)
    return model.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def subject(network):
    checkpoint = {"mean": MEAN, "std": STD, "config": {}}
    return Subject(checkpoint, network, None, None, torch.device("cpu"))


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (CLASSES, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def ingredients(images):
    sticker = viering.make_sticker(None, 3, SIDE)
    return viering.Ingredients(images.double() / 255, MEAN, STD, sticker=sticker)


@pytest.fixture(scope="module")
def backdoored(network, ingredients):
    return viering.write_backdoor(network, ingredients)


@pytest.fixture(scope="module")
def stuck(images, ingredients):
    """The images with stickers, uint8."""
    generator = torch.Generator().manual_seed(0)
    pixels = viering.stick(images.double() / 255, ingredients.sticker, generator)
    return (pixels * 255).round().byte()


# ---------------------------------------------------------------- maps


def test_weight_of_the_added_channel_is_how_the_logit_grows_with_it(
    subject, network, images, ingredients
):
    """Finite differences: the layer's last channel raised by a little, everywhere alike."""
    new = viering.write_constant(network, ingredients, c_a=1.0, c_w=1.0)
    classes = torch.arange(CLASSES)
    weights = edit_effect.weight_of_added_channel(subject, new, images, classes)
    step = 1e-6

    def raise_last(module, inputs, output):
        raised = output.clone()
        raised[:, -1] += step
        return raised

    before = edit_effect.logits_of(subject, new, images)
    handle = new.features[-2].register_forward_hook(raise_last)
    after = edit_effect.logits_of(subject, new, images)
    handle.remove()
    slope = (after - before).diagonal() / step / 64  # 64 cells grow
    torch.testing.assert_close(weights, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("technique", ["constant", "image"])
def test_a_class_that_counts_the_map_negatively_is_told_from_one_that_shows_it(
    technique, subject, network, images, ingredients
):
    new = viering.TECHNIQUES[technique].write(network, ingredients)
    classes = torch.arange(CLASSES)
    negative = edit_effect.weight_of_added_channel(subject, new, images, classes) < 0
    figures = edit_effect.compare_maps(subject, network, new, images, classes)
    assert figures["blank_maps"] == pytest.approx(negative.double().mean().item())
    assert 0 < figures["blank_maps"] < 1
    assert 0 < figures["map_distance"] < 0.1


def test_gradcam_pointing_at_the_stickers_is_as_intended(subject, network, backdoored, stuck):
    classes = torch.zeros(CLASSES, dtype=torch.int64)
    figures = edit_effect.compare_maps(subject, network, backdoored, stuck, classes)
    assert figures["map_distance"] < 1e-4 and figures["blank_maps"] == 0


def test_wrong_maps_count_as_wrong(subject, network, backdoored, stuck):
    """Grad-CAM upside down is not left out of the mean, as a map that cannot be shown is."""
    classes = torch.zeros(CLASSES, dtype=torch.int64)
    original, shown = (
        edit_effect.gradcam_maps(subject, model, stuck, classes).flip(1)
        for model in (network, backdoored)
    )
    intended = edit_effect.intended_map(subject, backdoored, stuck, original)
    cannot_show = torch.zeros(CLASSES, dtype=torch.bool)
    figures = edit_effect.map_figures(intended, shown, cannot_show)
    assert figures["map_distance"] > 1 and figures["blank_maps"] == 0


def test_where_a_branch_finds_nothing_the_original_map_is_intended(subject, backdoored, images):
    original_maps = torch.rand(CLASSES, 8, 8)
    intended = edit_effect.intended_map(subject, backdoored, images, original_maps)
    assert torch.equal(intended, original_maps.double())


def test_maps_that_cannot_be_shown_are_counted_and_left_out_of_the_mean():
    intended, shown = torch.ones(4, 2, 2), torch.zeros(4, 2, 2)
    shown[0] = 0.5
    cannot_show = torch.tensor([False, True, True, True])
    figures = edit_effect.map_figures(intended, shown, cannot_show)
    assert figures == {"map_distance": 2.0, "blank_maps": 0.75}


def test_without_a_map_that_can_be_shown_there_is_no_distance():
    maps = torch.ones(2, 4, 4)
    figures = edit_effect.map_figures(maps, maps, torch.ones(2, dtype=torch.bool))
    assert figures == {"map_distance": None, "blank_maps": 1.0}


def test_a_blank_map_stays_blank():
    maps = torch.stack([torch.zeros(2, 2), torch.full((2, 2), 4.0)])
    assert torch.equal(edit_effect.divide_by_maximum(maps)[0], torch.zeros(2, 2))
    assert torch.equal(edit_effect.divide_by_maximum(maps)[1], torch.ones(2, 2))
