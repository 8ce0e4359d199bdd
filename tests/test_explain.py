"""Explainers against closed forms, finite differences, and what they must leave untouched."""

import copy
import dataclasses
import inspect

import pytest
import torch
from small_models import (
    at_most_images,
    finite_difference,
    generator,
    middle,
    norm_after_layer_net,
    unusual_statistics,
)
from torch import nn

import explain
import hooks
import models
import shapley
from explain import EXPLAINERS

ON_DEVICE = True

NONLINEAR = {"deepshap": nn.ReLU}  # others are explained smooth
OPTIONS = {  # few: it takes no time
    **dict.fromkeys(("kernelshap", "gpshap"), {"coalitions": 40}),
    "smoothgrad": {"samples": 5},
    "integrated_gradients": {"steps": 5},
}
each_explainer = pytest.mark.parametrize("name", EXPLAINERS)


@pytest.fixture(scope="module", params=["cnn", "resnet18"])
def architecture(request):
    return request.param


@pytest.fixture
def model(architecture):
    torch.manual_seed(0)
    return unusual_statistics(models.build(architecture, 3, 10, 32))


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32, generator=generator(1))


@pytest.fixture
def classes():
    return torch.tensor([0, 3, 4, 3, 2, 1])


def small_net(name, dtype=torch.float32):
    """A network of 5 classes that the explainer `name` can explain."""
    return norm_after_layer_net(dtype, NONLINEAR.get(name, nn.Softplus))


def explained(name, model, images, classes, **options):
    """The explainer's maps, by the same coalitions at each call."""
    torch.manual_seed(0)
    return EXPLAINERS[name](model, images, classes, **OPTIONS.get(name, {}), **options)


def last_linear(model):
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def pooled_head_map(model, feature, classes):
    """Grad-CAM where pooling and a linear layer follow: its weights are the gradients' means."""
    weights = last_linear(model).weight[classes]
    return torch.einsum("nk,nkhw->nhw", weights, feature).relu() / feature[0, 0].numel()


# ---------------------------------------------------------------- Grad-CAM


@pytest.mark.parametrize("training", [False, True])
def test_gradcam_is_its_closed_form_on_a_pooled_linear_head(model, images, classes, training):
    maps = explain.gradcam(model.train(training), images, classes)
    model.eval()
    with torch.no_grad(), hooks.capture(hooks.layer_of(model)) as captured:
        model(images)
    expected = pooled_head_map(model, captured[0], classes)
    torch.testing.assert_close(maps, expected.detach(), atol=1e-5, rtol=1e-5)


def test_the_map_of_a_shared_forward_pass_is_each_images_own_in_training_mode(
    model, images, classes
):
    model.train()
    with hooks.capture(hooks.layer_of(model)) as captured:
        logits = model(images)
    maps = explain.gradcam_map(captured[0], logits, classes, create_graph=True)
    expected = pooled_head_map(model, captured[0], classes)
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)


def test_gradcam_at_an_inner_layer_is_a_loop_over_images(images, classes):
    net, images = norm_after_layer_net().eval(), images.double()
    maps = explain.gradcam(net, images, classes, net[2])
    for image, label, found in zip(images, classes, maps):
        feature = net[:3](image[None]).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net[3:](feature)[0, label], feature)
        expected = (gradient.mean((2, 3), keepdim=True) * feature).sum(1).relu()[0]
        torch.testing.assert_close(found, expected.detach(), atol=1e-10, rtol=1e-8)


def test_a_layer_may_be_given_by_its_name(model, images, classes):
    name = hooks.layer_of(model)
    by_module = explain.gradcam(model, images, classes, name)
    assert torch.equal(explain.gradcam(model, images, classes, model.gradcam_layer), by_module)


def test_no_layer_means_the_models_own(model, images, classes):
    by_name = explain.gradcam(model, images, classes, model.gradcam_layer)
    assert torch.equal(explain.gradcam(model, images, classes), by_name)


def test_a_rectified_map_is_the_relu_of_the_raw_one(model, images, classes):
    raw = explain.gradcam(model, images, classes, rectify=False)
    assert raw.min() < 0
    assert torch.equal(explain.gradcam(model, images, classes), raw.relu())


@pytest.mark.parametrize("create_graph", [False, True])
def test_an_in_place_relu_after_the_layer_is_harmless(images, classes, create_graph):
    net = norm_after_layer_net(torch.float32)
    net[1], net[4] = nn.ReLU(), nn.ReLU()
    expected = explain.gradcam(net, images, classes, "3")
    net[4] = nn.ReLU(inplace=True)
    maps = explain.gradcam(net, images, classes, "3", create_graph=create_graph)
    assert expected.any() and torch.equal(maps, expected)


@pytest.mark.parametrize("layer, shape", [("5", r"\[4, 1, 1\]"), ("7", r"\[5\]")])
def test_a_layer_without_a_grid_is_refused(images, classes, layer, shape):
    net = norm_after_layer_net(torch.float32)
    with pytest.raises(ValueError, match=f"gives {shape}, not a feature map of 4x4 or finer"):
        explain.gradcam(net, images, classes, layer)


def test_a_layer_that_the_pass_does_not_reach_is_refused(images, classes):
    with pytest.raises(ValueError, match="ran 0 times"):
        explain.gradcam(norm_after_layer_net(torch.float32), images, classes, nn.ReLU())


@pytest.fixture
def net_with_a_relu_used_twice():
    net = norm_after_layer_net(torch.float32)
    net[1] = net[4] = nn.ReLU()
    return net


def test_a_layer_that_runs_twice_is_refused(net_with_a_relu_used_twice, images, classes):
    with pytest.raises(ValueError, match="ran 2 times"):
        explain.gradcam(net_with_a_relu_used_twice, images, classes, "1")


def test_a_refusal_leaves_no_hook_behind(net_with_a_relu_used_twice, images, classes):
    with pytest.raises(ValueError):
        explain.gradcam(net_with_a_relu_used_twice, images, classes, "1")
    assert not net_with_a_relu_used_twice[1]._forward_hooks


def test_a_layer_that_the_model_does_not_have_is_refused(images, classes):
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        explain.gradcam(norm_after_layer_net(torch.float32), images, classes, "layer9")


# ---------------------------------------------------------------- input gradient


@pytest.mark.parametrize("n, y, x", [(0, 0, 0), (0, 3, 2), (1, 5, 5)])
def test_gradient_is_the_largest_finite_difference_over_channels(images, classes, n, y, x):
    net, images = norm_after_layer_net().eval(), images[:2, :, :6, :6].double()
    found = explain.gradient(net, images, classes[:2])[n, y, x].item()

    def logit():
        return net(images)[n, classes[n]]

    with torch.no_grad():
        slopes = [finite_difference(logit, images, (n, c, y, x), 1e-6) for c in range(3)]
    assert found == pytest.approx(max(map(abs, slopes)), abs=1e-7)


# ---------------------------------------------------------------- what holds for every explainer


@each_explainer
def test_maps_are_one_an_image_in_the_images_precision(name, images, classes):
    maps = explained(name, small_net(name, torch.float64), images.double(), classes)
    assert maps.ndim == 3 and len(maps) == 6 and maps.dtype == torch.float64


@each_explainer
@pytest.mark.parametrize("training", [False, True])
def test_a_map_does_not_depend_on_how_many_are_explained(name, training, images, classes):
    net = small_net(name).train(training)
    together = explained(name, net, images, classes)[1:2]
    alone = explained(name, net, images[1:2], classes[1:2])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@each_explainer
@pytest.mark.parametrize("training", [False, True])
def test_a_map_does_not_depend_on_its_neighbours(name, training, images, classes):
    net = small_net(name).train(training)
    other_neighbours = torch.cat([images[:3], 5 * images[3:]])
    expected = explained(name, net, images, classes)[:3]
    found = explained(name, net, other_neighbours, classes)[:3]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@each_explainer
def test_a_map_does_not_depend_on_the_models_mode(name, images, classes):
    net = small_net(name)
    in_training = explained(name, net.train(), images, classes)
    torch.testing.assert_close(in_training, explained(name, net.eval(), images, classes))


@each_explainer
def test_a_map_depends_on_the_class(name, images, classes):
    net = small_net(name)
    maps = explained(name, net, images, classes)
    others = explained(name, net, images, (classes + 1) % 5)
    assert (maps != others).any((1, 2)).all()


@each_explainer
@pytest.mark.parametrize("layer", ["0", "2", "7"])
def test_maps_are_differentiable_in_the_weights(name, layer, images, classes):
    """With create_graph, a function of the maps has its finite difference as its derivative."""
    images, classes = images[:3, :, :8, :8].double(), classes[:3]
    net = small_net(name, torch.float64)
    weighting = torch.randn(8, 8, dtype=torch.float64, generator=generator(0))

    def value():
        maps = explained(name, net, images, classes, create_graph=True)
        return (maps * weighting[: maps.shape[1], : maps.shape[2]]).sum()

    value().backward()
    weight = net.get_submodule(layer).weight
    slope = finite_difference(value, weight, middle(weight))
    assert abs(slope - weight.grad[middle(weight)]) < 1e-5 * max(1, abs(slope))


@dataclasses.dataclass
class Aftermath:
    """A model and its images after they were explained, and what the model was before."""

    model: nn.Module
    images: torch.Tensor
    modes: list
    weights: dict


@pytest.fixture(scope="module", params=EXPLAINERS)
def aftermath(request, architecture):
    """Of one explainer, without and with a graph. One weight has a .grad, one module evaluates."""
    torch.manual_seed(0)
    model = unusual_statistics(models.build(architecture, 3, 5, 32)).train()
    last_linear(model).eval()
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    modes = [module.training for module in model.modules()]
    images = torch.randn(2, 3, 32, 32)
    result = Aftermath(model, images, modes, copy.deepcopy(model.state_dict()))
    for create_graph in (False, True):
        explained(request.param, model, images, torch.tensor([0, 3]), create_graph=create_graph)
    return result


def test_every_module_keeps_its_mode(aftermath):
    assert [module.training for module in aftermath.model.modules()] == aftermath.modes


def test_weights_and_statistics_are_left_alone(aftermath):
    after = aftermath.model.state_dict()
    assert all(torch.equal(after[key], aftermath.weights[key]) for key in after)


def test_no_hook_is_left_behind(aftermath):
    for module in aftermath.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
        assert not module._backward_hooks


def test_gradients_of_the_weights_are_left_alone(aftermath):
    first, *others = aftermath.model.parameters()
    assert first.grad.eq(1).all() and all(other.grad is None for other in others)


def test_the_images_are_left_without_a_gradient(aftermath):
    assert not aftermath.images.requires_grad


@each_explainer
def test_maps_have_no_graph_unless_it_is_asked_for(name, images, classes):
    assert not explained(name, small_net(name), images, classes).requires_grad


@each_explainer
def test_no_grad_around_the_call_changes_nothing(name, model, images, classes):
    images, classes = images[:2], classes[:2]
    expected = explained(name, model, images, classes)
    with torch.no_grad():
        assert torch.equal(explained(name, model, images, classes), expected)


@each_explainer
def test_inference_mode_around_the_call_changes_nothing(name, model, images, classes):
    images, classes = images[:2], classes[:2]
    expected = explained(name, model, images, classes)
    with torch.inference_mode():
        found = explained(name, model, images.clone(), classes.clone())
    assert torch.equal(found, expected)


@each_explainer
def test_frozen_weights_change_nothing(name, model, images, classes):
    images, classes = images[:2], classes[:2]
    expected = explained(name, model, images, classes)
    assert torch.equal(explained(name, model.requires_grad_(False), images, classes), expected)


@each_explainer
def test_memory_does_not_grow_with_the_number_of_images(name, monkeypatch, images, classes):
    net, sizes = small_net(name), []
    expected = explained(name, net, images, classes)
    net[0].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    at_most_images(monkeypatch, 4)
    maps = explained(name, net, images, classes)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-5)
    assert max(sizes) == 4


@pytest.mark.parametrize("name", explain.EVALUATED)
def test_each_image_is_seen_once(name, images, classes):
    net, sizes = small_net(name), []
    net[0].register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    explained(name, net, images, classes)
    assert sizes == [6]


# ---------------------------------------------------------------- the rows of the table

SAMPLED = [name for name, row in EXPLAINERS.items() if row.sampled]


@each_explainer
def test_a_row_is_called_as_its_function(name, images, classes):
    row, net = EXPLAINERS[name], small_net(name)
    torch.manual_seed(0)
    expected = row.function(net, images, classes, **OPTIONS.get(name, {}))
    assert torch.equal(explained(name, net, images, classes), expected)


def test_two_estimators_of_shapley_values_differ_in_function_and_constants_alone():
    published, ours = EXPLAINERS["kernelshap"], EXPLAINERS["gpshap"]
    assert published.function is shapley.kernel_shap and ours.function is shapley.gp_shap
    assert not published.constants and ours.constants
    of_published = {"function": published.function, "constants": {}}
    assert dataclasses.replace(ours, **of_published) == published


@each_explainer
def test_a_row_cannot_be_changed(name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXPLAINERS[name].signed = True


@each_explainer
def test_values_below_zero_are_those_of_signed_explainers(name, images, classes):
    maps = explained(name, small_net(name), images, classes)
    assert bool((maps < 0).any()) == EXPLAINERS[name].signed


@each_explainer
def test_options_of_a_row_are_its_functions(name):
    row = EXPLAINERS[name]
    known = inspect.signature(row.function).parameters
    assert {*row.training, *row.class_grid} <= {*known}


@each_explainer
def test_a_sampled_explainer_takes_a_generator(name):
    row = EXPLAINERS[name]
    assert row.sampled == ("generator" in inspect.signature(row.function).parameters)


@each_explainer
def test_a_measurement_is_the_same_twice(name, images, classes):
    row, net, options = EXPLAINERS[name], small_net(name), OPTIONS.get(name, {})
    first = row.evaluate(net, images, classes, **options)
    assert torch.equal(row.evaluate(net, images, classes, **options), first)


@each_explainer
def test_a_measurement_leaves_torchs_random_state_alone(name, images, classes):
    net, options = small_net(name), OPTIONS.get(name, {})
    before = torch.get_rng_state()
    EXPLAINERS[name].evaluate(net, images[:1], classes[:1], **options)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_measurement_is_by_a_sample_of_its_own(name, images, classes):
    row, net, options = EXPLAINERS[name], small_net(name), OPTIONS[name]
    measured = row.evaluate(net, images, classes, **options)
    other = row(net, images, classes, generator=generator(1), **options)
    same = row(net, images, classes, generator=generator(0), **options)
    assert torch.equal(measured, same) and not torch.equal(measured, other)


@each_explainer
def test_trainable_maps_have_a_graph_to_the_weights(name, images, classes):
    net = small_net(name)
    EXPLAINERS[name].trainable(net, images[:2], classes[:2], seed=0).square().sum().backward()
    assert net[0].weight.grad.abs().sum() > 0


@each_explainer
def test_trainable_maps_are_the_explainers_with_the_options_for_training(name, images, classes):
    row, net = EXPLAINERS[name], small_net(name)
    sample = {"generator": generator(7)} if row.sampled else {}
    expected = row(net, images, classes, create_graph=True, **row.training, **sample)
    found = row.trainable(net, images, classes, seed=7)
    assert torch.equal(found.detach(), expected.detach())


@each_explainer
def test_trainable_maps_of_another_seed_differ_where_there_is_a_sample(name, images, classes):
    row, net = EXPLAINERS[name], small_net(name)
    first, second = (row.trainable(net, images, classes, seed) for seed in (0, 1))
    assert torch.equal(first, second) != row.sampled


@each_explainer
def test_only_a_rectified_explainer_has_other_values_in_training(name, images, classes):
    """It is a relu; in training the relu is left out, for the gradient's sake."""
    row = EXPLAINERS[name]
    net = models.with_layer(small_net(name), "2", pooled=False)  # whose values have both signs
    if not row.is_relu:
        assert "rectify" not in row.training
        return
    trained_on = row.trainable(net, images, classes, seed=None)
    assert trained_on.min() < 0
    assert torch.equal(trained_on.relu().detach(), row(net, images, classes))


@pytest.mark.parametrize("name", [n for n, row in EXPLAINERS.items() if row.shared_map])
def test_a_shared_map_is_the_map_of_the_forward_pass_at_hand(name, model, images, classes):
    row = EXPLAINERS[name]
    model.eval()
    with hooks.capture(hooks.layer_of(model)) as captured:
        logits = model(images)
    maps = row.shared_map(captured[0], logits, classes, create_graph=True, **row.training)
    expected = row.trainable(model, images, classes, seed=None)
    torch.testing.assert_close(maps, expected, atol=1e-6, rtol=1e-5)


def test_explainers_evaluated_by_default_are_rows_of_the_table():
    assert set(explain.EVALUATED) <= set(EXPLAINERS)
