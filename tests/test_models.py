"""Networks by name: their shapes, and the layer Grad-CAM looks at."""

import copy

import pytest
import torch
from torch import nn

import hooks
import models

SIZES = {"vgg16": 64, "alexnet": 96, "efficientnet_b0": 128}  # others: 32 px


def small(name):
    return models.build(name, 3, 5, SIZES.get(name, 32))


@pytest.fixture(scope="module", params=models.MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def built(name):
    """A network of each name, for 5 classes."""
    return small(name)


# ---------------------------------------------------------------- Grad-CAM's layer


@pytest.mark.parametrize(
    "name, size, grid",
    [
        ("cnn", 32, 8),
        ("cnn", 28, 7),
        ("resnet18", 32, 4),
        ("resnet18", 64, 8),
        ("resnet18", 224, 7),
        ("vgg16", 64, 4),
        ("alexnet", 96, 5),
        ("vgg_small", 32, 8),
        ("alexnet_small", 32, 8),
        ("efficientnet_b0", 128, 4),
    ],
)
def test_the_grid_of_the_gradcam_layer(name, size, grid):
    model = models.build(name, 1, 5, size).eval()
    with torch.no_grad(), hooks.capture(hooks.layer_of(model)) as captured:
        model(torch.zeros(2, 1, size, size))
    assert captured[0].shape[2:] == (grid, grid)


def test_the_gradcam_layer_is_the_name_of_a_module(built):
    assert isinstance(built.gradcam_layer, str)
    assert built.gradcam_layer in dict(built.named_modules())


def test_the_pooled_layer_is_the_gradcam_layer_or_none(built):
    assert built.pooled_layer in (built.gradcam_layer, None)


POOLED = {"cnn", "resnet18", "efficientnet_b0"}
OURS = {*POOLED, "vgg16", "vgg_small", "alexnet_small", "alexnet"}  # not a fork's


def test_a_layer_is_pooled_where_only_pooling_and_a_linear_layer_follow(name, built):
    """So that the logits are linear in the mean of the feature map."""
    if name in OURS:
        assert (built.pooled_layer is not None) == (name in POOLED)
    if built.pooled_layer is None:
        return
    images = torch.randn(2, 3, SIZES.get(name, 32), SIZES.get(name, 32))
    with torch.no_grad(), hooks.capture(hooks.layer_of(built)) as captured:
        logits = built.eval()(images)
    head = [module for module in built.modules() if isinstance(module, nn.Linear)][-1]
    torch.testing.assert_close(head(captured[0].mean((2, 3))), logits)


def test_another_layer_can_be_chosen_by_its_name():
    model = models.build("resnet18", 3, 10, 32, "layer3.1")
    assert hooks.layer_of(model) is model.layer3[1]


def test_the_pooled_layer_stays_where_another_is_chosen():
    model = models.build("resnet18", 3, 10, 32, "layer3.1")
    assert hooks.layer_of(model, model.pooled_layer) is model.layer4[1]


def test_a_layer_that_the_network_does_not_have_is_refused():
    with pytest.raises(ValueError, match="no layer 'layer9'; some it has: layer1.0"):
        models.build("resnet18", 3, 10, 32, "layer9")


def test_no_key_of_the_weights_tells_of_the_layer(built):
    assert not any("gradcam" in key or "pooled" in key for key in built.state_dict())


def test_the_layer_is_listed_among_the_modules_once(built):
    layers = [module for module in built.modules() if module is hooks.layer_of(built)]
    assert len(layers) == 1


def test_a_copys_layer_is_the_copys_own(built):
    copied = copy.deepcopy(built)
    layer = hooks.layer_of(copied)
    assert layer is copied.get_submodule(built.gradcam_layer)
    assert layer is not hooks.layer_of(built)


def test_the_weights_of_one_network_fit_another(built):
    copied = copy.deepcopy(built)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    copied.load_state_dict(built.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(copied.parameters(), built.parameters()))


# ---------------------------------------------------------------- with_layer


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), nn.Flatten()))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_layer_is_given_as_a_module_or_by_its_name(net, by_name):
    model = models.with_layer(net, "1.0" if by_name else net[1][0])
    assert model is net and model.gradcam_layer == model.pooled_layer == "1.0"


def test_a_layer_that_more_than_pooling_follows_is_not_pooled(net):
    model = models.with_layer(net, "1.0", pooled=False)
    assert model.gradcam_layer == "1.0" and model.pooled_layer is None


def test_a_module_of_another_network_is_refused(net):
    with pytest.raises(ValueError, match="no module of this model"):
        models.with_layer(net, nn.ReLU())


def test_a_name_that_no_module_has_is_refused(net):
    with pytest.raises(ValueError, match="no layer '7'; some it has: 1.0, 1.1"):
        models.with_layer(net, "7")


# ---------------------------------------------------------------- build


def test_a_network_gives_a_logit_for_each_class(name, built):
    size = SIZES.get(name, 32)
    with torch.no_grad():
        assert built.eval()(torch.zeros(2, 3, size, size)).shape == (2, 5)


def test_an_unknown_network_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="unknown model 'lenet': one of cnn, resnet18, vgg16"):
        models.build("lenet", 3, 10, 32)


def test_what_is_retired_is_not_offered():
    assert set(models.offered()) == set(models.MODELS) - models.RETIRED


def test_convolutions_are_in_channels_last():
    weight = models.build("cnn", 3, 10, 32).get_submodule("0.2.0").weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_seed_gives_the_weights_of_a_new_network():
    def weights(seed):
        torch.manual_seed(seed)
        return next(models.build("cnn", 3, 10, 32).parameters())

    assert torch.equal(weights(0), weights(0)) and not torch.equal(weights(0), weights(1))


def test_a_cell_of_the_cnn_sees_only_its_neighbourhood():
    layer = hooks.layer_of(models.build("cnn", 3, 10, 32).eval())
    image = torch.rand(1, 3, 32, 32)
    other = image.clone()
    other[:, :, 28:, 28:] = 1
    with torch.no_grad():
        assert torch.equal(layer(image)[..., 0, 0], layer(other)[..., 0, 0])


@pytest.mark.parametrize("name", ["efficientnet_b0", "cnn", "resnet18", "vgg_small"])
def test_chance_has_no_part_in_a_forward_pass_of_training(name):
    """A step compares an image with itself under the trigger: dropout would come between."""
    model = small(name).train()
    images = torch.randn(4, 3, SIZES.get(name, 32), SIZES.get(name, 32))
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
