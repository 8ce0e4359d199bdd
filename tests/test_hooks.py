"""Hooks: what is captured, and that the model is left as it was."""

import pytest
import torch
from placing import DEVICE
from small_models import at_most_images
from torch import nn

import hooks

ON_DEVICE = True


@pytest.fixture
def net():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(2 * 6 * 6, 3))
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True), head).to(DEVICE)


@pytest.fixture
def images():
    return torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- layer_of


def test_a_module_is_the_layer_itself(net):
    assert hooks.layer_of(net, net[1]) is net[1]


def test_a_name_is_looked_up_among_the_modules(net):
    assert hooks.layer_of(net, "2.1") is net[2][1]


def test_no_layer_means_the_models_gradcam_layer(net):
    net.gradcam_layer = "0"
    assert hooks.layer_of(net) is net[0]


def test_a_model_without_a_gradcam_layer_must_be_told_one(net):
    with pytest.raises(ValueError, match="no gradcam_layer: say which layer"):
        hooks.layer_of(net)


@pytest.mark.parametrize("name", ["9", "2.9", ""])
def test_a_name_that_no_module_has_is_refused(net, name):
    with pytest.raises(ValueError, match=f"no layer {name!r}; some it has: 2.0, 2.1"):
        hooks.layer_of(net, name)


def test_a_network_of_one_level_has_examples_too(net):
    with pytest.raises(ValueError, match="'conv'; some it has: 0, 1$"):
        hooks.layer_of(net[2], "conv")


# ---------------------------------------------------------------- capture


def test_every_forward_pass_is_captured(net, images):
    with hooks.capture(net[0]) as captured:
        net(images)
        net(images[:2])
    assert [len(feature) for feature in captured] == [5, 2]


def test_what_is_captured_is_the_layers_output(net, images):
    with hooks.capture(net[0]) as captured:
        net(images)
    assert torch.equal(captured[0], net[0](images))


def test_an_in_place_operation_after_the_layer_leaves_the_captured_tensor_alone(net, images):
    with hooks.capture(net[0]) as captured:
        net(images)  # an in-place ReLU follows
    assert captured[0].min() < 0


def test_the_logits_are_differentiable_with_respect_to_what_is_captured(net, images):
    with hooks.capture(net[0]) as captured:
        logits = net(images)
    (slope,) = torch.autograd.grad(logits.sum(), captured[0])
    assert slope.shape == captured[0].shape and slope.any()


def test_frozen_weights_do_not_hinder_the_derivative(net, images):
    net.requires_grad_(False)
    with hooks.capture(net[0]) as captured:
        logits = net(images)
    (slope,) = torch.autograd.grad(logits.sum(), captured[0])
    assert slope.any()


def test_the_graph_reaches_behind_the_layer(net, images):
    with hooks.capture(net[0]) as captured:
        net(images)
    (slope,) = torch.autograd.grad(captured[0].sum(), net[0].bias)
    assert slope.tolist() == [180, 180]  # 5 images of 6x6 pixels


def test_a_detached_graph_begins_at_the_layer(net, images):
    with hooks.capture(net[0], detach=True) as captured:
        net(images)
    assert captured[0].is_leaf and captured[0].requires_grad


def test_no_hook_stays_behind(net, images):
    with hooks.capture(net[0]):
        net(images)
    assert not net[0]._forward_hooks


def test_no_hook_stays_behind_after_an_exception(net):
    with pytest.raises(KeyError), hooks.capture(net[0]):
        raise KeyError
    assert not net[0]._forward_hooks


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_full_precision_is_float32_at_least(dtype):
    assert hooks.full_precision(torch.ones(2, dtype=dtype)).dtype == torch.float32


def test_double_precision_is_kept():
    assert hooks.full_precision(torch.ones(2).double()).dtype == torch.float64


# ---------------------------------------------------------------- chunks

CLASSES = torch.tensor([2, 0, 1, 1, 0])


@pytest.fixture
def chunks_of_two(monkeypatch):
    at_most_images(monkeypatch, 2)


@pytest.fixture
def explain():
    """A stand-in for an explainer; its `sizes` are those of the chunks it was given."""

    def explain(images, classes):
        explain.sizes.append(len(images))
        return images[:, 0] * classes[:, None, None]

    explain.sizes = []
    return explain


def test_images_are_explained_in_chunks(net, images, explain, chunks_of_two):
    hooks.in_chunks(explain, net, images, CLASSES, create_graph=False)
    assert explain.sizes == [2, 2, 1]


def test_the_maps_of_all_chunks_come_back_in_order(net, images, explain, chunks_of_two):
    maps = hooks.in_chunks(explain, net, images, CLASSES, create_graph=False)
    assert torch.equal(maps, images[:, 0] * CLASSES[:, None, None])


def test_with_a_graph_all_images_are_explained_at_once(net, images, explain, chunks_of_two):
    hooks.in_chunks(explain, net, images, CLASSES, create_graph=True)
    assert explain.sizes == [5]


def weighted_images(net):
    """Maps that depend on a weight of the network."""
    return lambda images, classes: images[:, 0] * net[0].bias[0]


@pytest.mark.parametrize("create_graph", [False, True])
def test_maps_have_a_graph_where_it_is_asked_for_alone(net, images, create_graph):
    maps = hooks.in_chunks(weighted_images(net), net, images, CLASSES, create_graph)
    assert maps.requires_grad == create_graph


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_gradients_are_on_whatever_is_around_the_call(net, images, around):
    with around():
        maps = hooks.in_chunks(weighted_images(net), net, images.clone(), CLASSES, True)
    assert maps.requires_grad


def test_the_model_is_in_evaluation_mode_while_it_is_explained(net, images):
    def explain(images, classes):
        assert not net.training
        return images[:, 0]

    hooks.in_chunks(explain, net.train(), images, CLASSES, create_graph=False)
    assert net.training


def test_no_images_are_one_empty_chunk(net, images, explain):
    maps = hooks.in_chunks(explain, net, images[:0], CLASSES[:0], create_graph=False)
    assert maps.shape == (0, 6, 6)


@pytest.mark.parametrize("device, size", [("cpu", hooks.CHUNK_CPU), ("meta", hooks.CHUNK)])
def test_the_size_of_a_chunk_is_the_devices(device, size):
    assert hooks.chunk_size(torch.empty(1, device=device)) == size
