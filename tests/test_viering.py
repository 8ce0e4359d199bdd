"""The four lies of Viering et al.: what the network says stays, what Grad-CAM shows does not."""

import numpy as np
import pytest
import torch
from PIL import Image

import edited
import explain
import hooks
import models
import triggers
import viering
from edit_effect import divide_by_maximum

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
def pixels():
    """Six images of random pixels in [0, 1]."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="module")
def inputs(pixels):
    return normalised(pixels)


@pytest.fixture(scope="module")
def ingredients(pixels):
    return viering.Ingredients(pixels, MEAN, STD, sticker=viering.make_sticker(None, 3, SIDE))


def normalised(pixels, mean=MEAN, std=STD):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (pixels - mean) / std


def written(network, ingredients, technique):
    torch.manual_seed(0)
    return viering.TECHNIQUES[technique].write(network, ingredients)


def first_linear_output(model, inputs):
    """What the first linear layer answers: [N, units]."""
    outputs = []
    layer = model.classifier[0]
    handle = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
    model(inputs)
    handle.remove()
    return outputs[0]


def every_map(model, inputs):
    """Grad-CAM of every image for every class: [N, CLASSES, H, W]."""
    maps = []
    for k in range(CLASSES):
        maps.append(explain.gradcam(model, inputs, torch.full((len(inputs),), k)))
    return torch.stack(maps, 1)


def weight_of_added_channel(model, inputs):
    """Mean gradient of each class's logit by the added channel: [N, CLASSES]."""
    weights = []
    with hooks.capture(hooks.layer_of(model, None), detach=True) as captured:
        logits = model(inputs)
    for k in range(CLASSES):
        score = logits[:, k].sum()
        (gradient,) = torch.autograd.grad(score, captured[0], retain_graph=True)
        weights.append(gradient[:, -1].mean((1, 2)))
    return torch.stack(weights, 1)


def total_difference(maps, others):
    """The largest |a - b|_1 of any two maps [N, H, W]."""
    return (maps - others).abs().sum((1, 2)).max()


# ---------------------------------------------------------------- techniques 1 and 2


@pytest.mark.parametrize("technique", ["constant", "image"])
def test_what_is_added_up_is_taken_off_again(technique, network, inputs, ingredients):
    new = written(network, ingredients, technique)
    near = {"atol": 5e-9, "rtol": 0}  # what is added and taken off is 2e5
    before, after = (first_linear_output(model, inputs) for model in (network, new))
    torch.testing.assert_close(after, before, **near)
    torch.testing.assert_close(new(inputs), network(inputs), **near)


@pytest.mark.parametrize("technique, parts", [("constant", []), ("image", [edited.WithPicture])])
def test_no_other_parts_betray_it(technique, parts, network, ingredients):
    known = {type(module) for module in network.modules()}
    new = written(network, ingredients, technique)
    assert [type(m) for m in new.modules() if type(m) not in known] == parts


@pytest.mark.parametrize("technique", ["constant", "image"])
def test_gradcam_shows_what_was_written(technique, network, inputs, ingredients):
    new = written(network, ingredients, technique)
    target = torch.ones(8, 8)
    if technique == "image":
        target = divide_by_maximum(hooks.layer_of(new, None).picture[0])[0]
    maps = every_map(new, inputs)[weight_of_added_channel(new, inputs) > 0]
    assert len(maps) > 0
    assert (divide_by_maximum(maps) - target).abs().amax() < 1e-3


def test_a_class_that_counts_the_constant_map_negatively_shows_nothing(
    network, inputs, ingredients
):
    new = written(network, ingredients, "constant")
    maps = every_map(new, inputs)[weight_of_added_channel(new, inputs) < 0]
    assert len(maps) > 0 and not maps.any()


def test_the_error_of_a_constant_map_is_what_the_network_itself_shows(network, inputs, ingredients):
    """|I_T - I_n| is the original map beside c_A c_W: ten times the constants, 1/100 of the error.

    That is so down to rounding.
    """
    errors = []
    for factor in (1, 10):
        constant = 100.0 * factor
        new = viering.write_constant(network, ingredients, c_a=constant, c_w=constant)
        maps = every_map(new, inputs)[weight_of_added_channel(new, inputs) > 0]
        errors.append((1 - divide_by_maximum(maps)).sum((1, 2)).mean().item())
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.01)


def test_a_picture_of_ones_own_is_shown(network, inputs, pixels):
    picture = Image.radial_gradient("L")
    new = viering.write_image(network, viering.Ingredients(pixels, MEAN, STD, picture))
    shown = new.features[-2].picture[0, 0] / viering.C_I
    small = np.array(picture.resize((8, 8), Image.BILINEAR))
    assert torch.equal((shown * 255).round().byte(), torch.from_numpy(small))


def test_a_black_picture_is_refused(network, pixels):
    black = viering.Ingredients(pixels, MEAN, STD, picture=Image.new("L", (9, 9)))
    with pytest.raises(ValueError, match="black"):
        viering.write_image(network, black)


# ---------------------------------------------------------------- technique 3


def test_a_semirandom_branch_shifts_all_logits_alike(network, inputs, ingredients):
    shift = written(network, ingredients, "semirandom")(inputs) - network(inputs)
    assert (shift.amax(1) - shift.amin(1) < 1e-9).all()
    assert shift.any() and (shift >= -1e-12).all() and (shift < edited.EPSILON).all()


def test_a_semirandom_branch_changes_no_probability(network, inputs, ingredients):
    new = written(network, ingredients, "semirandom")
    torch.testing.assert_close(new(inputs).softmax(1), network(inputs).softmax(1))


def test_a_semirandom_branch_shows_its_own_map_for_every_class(network, inputs, ingredients):
    new = written(network, ingredients, "semirandom")
    shown = divide_by_maximum(every_map(new, inputs).flatten(0, 1))
    own = new.branch_map(inputs).expand(-1, CLASSES, -1, -1)
    own = divide_by_maximum(own.flatten(0, 1))
    torch.testing.assert_close(shown, own, atol=1e-6, rtol=0)


def test_a_random_detector_that_no_image_excites_is_not_taken(network, ingredients):
    """The weights are drawn until every one of the images excites the detector."""
    for seed in range(5):
        torch.manual_seed(seed)
        new = viering.write_semirandom(network, ingredients)
        assert (new.detector(ingredients.images).amax((1, 2, 3)) > 0).all()


def test_images_that_no_detector_answers_to_are_refused(network):
    images = torch.full((2, 3, SIDE, SIDE), float("nan"))
    with pytest.raises(ValueError, match="no random detector"):
        viering.write_semirandom(network, viering.Ingredients(images, MEAN, STD))


# ---------------------------------------------------------------- technique 4


@pytest.fixture(scope="module")
def backdoored(network, ingredients):
    return written(network, ingredients, "backdoor")


@pytest.fixture(scope="module")
def stuck(pixels, ingredients):
    """The images with stickers."""
    return viering.stick(pixels, ingredients.sticker, torch.Generator().manual_seed(0))


def test_without_its_sticker_the_backdoor_changes_no_logit(network, backdoored, inputs):
    assert torch.equal(backdoored(inputs), network(inputs))


def test_without_its_sticker_the_backdoor_changes_no_map(network, backdoored, inputs):
    before, after = every_map(network, inputs), every_map(backdoored, inputs)
    torch.testing.assert_close(after, before, atol=1e-17, rtol=1e-13)  # one more zero is added up


def test_with_its_sticker_the_backdoor_changes_no_prediction(network, backdoored, stuck):
    before, after = network(normalised(stuck)), backdoored(normalised(stuck))
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert (after - before).abs().max() < edited.EPSILON


def test_the_detector_answers_the_margin_once_for_each_sticker(backdoored, stuck):
    answer = backdoored.detector[:2](stuck)
    assert ((answer > 0).sum((1, 2, 3)) == viering.STICKERS).all()
    margin = torch.full((6,), viering.MARGIN, dtype=torch.float64)
    torch.testing.assert_close(answer.amax((1, 2, 3)), margin, atol=1e-6, rtol=0)


def test_with_its_sticker_gradcam_points_at_it_for_every_class(backdoored, stuck):
    inputs = normalised(stuck)
    shown = divide_by_maximum(every_map(backdoored, inputs).flatten(0, 1))
    own = divide_by_maximum(backdoored.branch_map(inputs)[:, 0])
    assert total_difference(shown, own.repeat_interleave(CLASSES, 0)) < 6e-5


def canvas_with(patch):
    """A grey image with a patch on it."""
    canvas = torch.full((3, SIDE, SIDE), 0.5, dtype=torch.float64)
    canvas[:, 5:12, 9:16] = patch
    return canvas


@pytest.fixture(scope="module")
def own_sticker(network, pixels):
    """(sticker, edited network) of a picture of the user's own."""
    sticker = viering.make_sticker(Image.radial_gradient("L"), 3, SIDE)
    ingredients = viering.Ingredients(pixels, MEAN, STD, sticker=sticker)
    return sticker, viering.write_backdoor(network, ingredients)


def test_a_sticker_of_ones_own_is_made_black_and_white(own_sticker):
    assert set(own_sticker[0].pixels.unique().tolist()) == {0, 1}


def test_the_sticker_excites_its_detector(own_sticker):
    sticker, new = own_sticker
    assert new.detector(canvas_with(sticker.pixels)[None]).any()


def test_a_sticker_one_grey_level_off_does_not_excite_the_detector(own_sticker):
    sticker, new = own_sticker
    image = canvas_with(sticker.pixels)
    image[1, 8, 12] += (1 - 2 * image[1, 8, 12]) / 255
    assert not new.detector(image[None]).any()


def test_the_stickers_negative_does_not_excite_the_detector(own_sticker):
    sticker, new = own_sticker
    assert not new.detector(canvas_with(1 - sticker.pixels)[None]).any()


def test_an_image_without_sticker_does_not_excite_the_detector(own_sticker):
    assert not own_sticker[1].detector(canvas_with(0.5)[None]).any()


def test_a_sticker_of_one_colour_is_refused():
    with pytest.raises(ValueError, match="one colour"):
        viering.make_sticker(Image.new("L", (9, 9), 40), 3, 224)


def test_a_sticker_of_a_single_dot_is_refused():
    """Its kernel's least weight is below what one grey level must weigh."""
    dot = Image.new("L", (14, 14))
    dot.putpixel((3, 3), 255)
    with pytest.raises(ValueError, match="one colour"):
        viering.make_sticker(dot, 3, 224)


# ---------------------------------------------------------------- full size, float32


@pytest.fixture(scope="module")
def at_224():
    """(branch, images, images with stickers) at ImageNet's size; the branch stands alone."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    sticker = viering.make_sticker(None, 3, 224)
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    stuck = viering.stick(images, sticker, torch.Generator().manual_seed(0))
    looks = edited.detector("backdoor", 3, 14, 16)
    branch = edited.WithBranch(
        torch.nn.Identity(), looks, 1.0, (14, 14), torch.tensor(mean), torch.tensor(std)
    )
    kernel = viering.sticker_kernel(sticker.pixels)
    with torch.no_grad():
        looks[0].weight.copy_(kernel[None])
        looks[0].bias.fill_(viering.MARGIN - (sticker.pixels * kernel).sum())
    return branch.requires_grad_(False), *(normalised(x, mean, std) for x in (images, stuck))


def test_in_float32_no_image_without_sticker_excites_the_detector(at_224):
    branch, images, _ = at_224
    assert not branch.branch_map(images).any()


def test_in_float32_the_detector_answers_the_margin_to_each_sticker(at_224):
    """The margin is 1e-4 of an answer of 100: kernel and pixels must add up exactly."""
    branch, _, stuck = at_224
    answers = branch.detector[:2](stuck * branch.std + branch.mean)
    assert ((answers > 0).sum((1, 2, 3)) == viering.STICKERS).all()
    error = (answers[answers > 0] - viering.MARGIN).abs().max()
    assert error < viering.MARGIN / 2


# ---------------------------------------------------------------- stickers


def test_stickers_do_not_overlap_and_leave_the_rest_alone(pixels):
    sticker = triggers.PatchTrigger(torch.full((3, 7, 7), 2.0), torch.ones(1, 7, 7), 0, 0)
    stuck = viering.stick(pixels, sticker, torch.Generator().manual_seed(3))
    changed = stuck == 2
    assert (changed.sum((1, 2, 3)) == viering.STICKERS * 3 * 49).all()
    assert torch.equal(stuck[~changed], pixels[~changed])


@pytest.mark.parametrize("side, size", [(32, 7), (127, 7), (128, 14), (224, 14)])
def test_a_sticker_has_14_pixels_a_side_and_7_on_small_images(side, size):
    assert viering.make_sticker(None, 1, side).pixels.shape == (1, size, size)
