"""Networks by name: their shapes, and the layer Grad-CAM looks at."""

import copy
import inspect

import pytest
import torch
from placing import DEVICE
from torch import nn

import explain
import hooks
import models

ON_DEVICE = True

SIZES = {"vgg16": 64, "alexnet": 96, "efficientnet_b0": 128}  # others: 32 px


def small(name):
    return models.build(name, 3, 5, SIZES.get(name, 32)).to(DEVICE)


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
        ("mobilenet_v3_small", 32, 4),
        ("mobilenet_v3_small", 64, 8),
        ("mobilenet_v3_small", 128, 4),
        ("vit", 28, 7),
        ("vit", 32, 8),
        ("vit", 224, 14),
    ],
)
def test_the_grid_of_the_gradcam_layer(name, size, grid):
    model = models.build(name, 1, 5, size).to(DEVICE).eval()
    with torch.no_grad(), hooks.capture(hooks.layer_of(model)) as captured:
        model(torch.zeros(2, 1, size, size))
    assert captured[0].shape[2:] == (grid, grid)


def test_the_gradcam_layer_is_the_name_of_a_module(built):
    assert isinstance(built.gradcam_layer, str)
    assert built.gradcam_layer in dict(built.named_modules())


def test_the_pooled_layer_is_the_gradcam_layer_or_none(built):
    assert built.pooled_layer in (built.gradcam_layer, None)


POOLED = {"cnn", "resnet18", "efficientnet_b0"}
NOT_POOLED = {"vgg16", "vgg_small", "alexnet_small", "alexnet", "mobilenet_v3_small", "vit"}
OURS = POOLED | NOT_POOLED  # not a fork's


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
    layer = hooks.layer_of(models.build("cnn", 3, 10, 32).to(DEVICE).eval())
    image = torch.rand(1, 3, 32, 32)
    other = image.clone()
    other[:, :, 28:, 28:] = 1
    with torch.no_grad():
        assert torch.equal(layer(image)[..., 0, 0], layer(other)[..., 0, 0])


WITHOUT_CHANCE = ["efficientnet_b0", "cnn", "resnet18", "vgg_small", "mobilenet_v3_small", "vit"]


@pytest.mark.parametrize("name", WITHOUT_CHANCE)
def test_chance_has_no_part_in_a_forward_pass_of_training(name):
    """A step compares an image with itself under the trigger: dropout would come between."""
    model = small(name).train()
    images = torch.randn(4, 3, SIZES.get(name, 32), SIZES.get(name, 32))
    with torch.no_grad():
        assert torch.equal(model(images), model(images))


# ---------------------------------------------------------------- the vision transformer


@pytest.fixture
def vit():
    """A transformer whose last layer is not zero, as torchvision makes it."""
    torch.manual_seed(0)
    model = models.build("vit", 3, 5, 32).eval().to(DEVICE)
    nn.init.normal_(model.heads.head.weight)
    return model


def test_a_cell_of_a_transformers_map_is_the_token_of_its_patch(vit):
    """Without blocks before, a change of one patch is seen in its cell alone."""
    vit.encoder.layers = vit.encoder.layers[-1:]
    images = torch.rand(1, 3, 32, 32)
    other = images.clone()
    other[:, :, 8:12, 20:24] += 1  # row 2, column 5 of patches of 4 px
    with torch.no_grad(), hooks.capture(hooks.layer_of(vit)) as features:
        vit(images), vit(other)
    changed = (features[0] != features[1]).any(1)[0]
    assert changed.nonzero().tolist() == [[2, 5]]


def test_a_transformers_answer_is_the_same_without_the_map(vit):
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = vit(images)
        vit.encoder.layers[-1].ln_1[1] = nn.Identity()
        assert torch.equal(vit(images), expected)


def test_a_transformers_gradcam_is_a_loop_over_images(vit):
    """alpha from the gradient by the tokens that enter the last block's attention."""
    images, classes = torch.rand(3, 3, 32, 32), torch.tensor([0, 3, 1])
    found = explain.gradcam(vit, images, classes, rectify=False)
    attention, tokens = vit.encoder.layers[-1].self_attention, []
    handle = attention.register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0]))
    for image, label, own in zip(images, classes, found):
        tokens.clear()
        score = vit(image[None])[0, label]
        # The class token is no cell.
        (slope,) = torch.autograd.grad(score, tokens[0])
        cam = (slope[0, 1:].mean(0) * tokens[0][0, 1:]).sum(1).view(8, 8)
        torch.testing.assert_close(own, cam.detach(), atol=1e-5, rtol=1e-4)
    handle.remove()


def test_a_transformer_refuses_a_size_that_is_no_whole_number_of_patches():
    with pytest.raises(ValueError, match="vit takes images of a multiple of 4 px, not 30"):
        models.build("vit", 3, 5, 30)


def test_images_of_another_size_than_the_transformers_are_refused(vit):
    """torchvision asserts; people read what the model does not take."""
    with pytest.raises(ValueError, match=r"the model does not take images \[1, 3, 28, 28\]"):
        explain.gradient(vit, torch.rand(1, 3, 28, 28), [0])


@pytest.mark.parametrize("name", ["vit", "mobilenet_v3_small"])
@pytest.mark.parametrize("explainer", explain.EXPLAINERS)
def test_a_transformer_and_a_mobilenet_are_explained_by_all_but_deepshap(name, explainer):
    row, model = explain.EXPLAINERS[explainer], small(name).to(DEVICE)
    few = {"coalitions": 32, "samples": 2, "steps": 2}
    known = inspect.signature(row.function).parameters
    options = {key: value for key, value in few.items() if key in known}
    image, label = torch.rand(1, 3, 32, 32), torch.tensor([2])
    if explainer == "deepshap":
        with pytest.raises(ValueError, match="DeepSHAP has no rule for (layer_norm|hardswish)"):
            row(model, image, label)
        return
    maps = row(model, image, label, create_graph=True, **options)
    assert maps.isfinite().all() and maps.requires_grad
