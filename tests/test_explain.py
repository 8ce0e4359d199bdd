"""Explainers against closed forms, finite differences, and what they must leave untouched."""
import copy

import pytest
import torch
from torch import nn

import explain
import models


@pytest.fixture(autouse=True)
def few_coalitions(monkeypatch):
    monkeypatch.setattr(explain, "COALITIONS", 32)
    monkeypatch.setattr(explain, "TRAINING_COALITIONS", 32)


@pytest.fixture(params=["cnn", "resnet18"])
def model(request):
    torch.manual_seed(0)
    net = models.build(request.param, 3, 10, 32)
    for module in net.modules():  # running statistics unlike any batch's
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return net


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 32, 32, generator=generator), torch.tensor([0, 3, 9, 3, 5, 1])


def tiny_net(dtype=torch.float64, name=None):
    """Smooth, for the explainers that can have it so; batch-norm after the layer explained, so that samples could mix."""
    torch.manual_seed(0)
    nonlinear = nn.ReLU if name == "deepshap" else nn.Softplus
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nonlinear(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nonlinear(),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).to(dtype)
    return models.with_layer(net, net[1])


def explained(name, model, images, classes, **options):
    """The explainer's maps, with the same coalitions at each call."""
    torch.manual_seed(0)
    return explain.EXPLAINERS[name](model, images, classes, **options)


@pytest.mark.parametrize("training", [False, True])
def test_gradcam_is_its_closed_form_on_a_pooled_linear_head(model, inputs, training):
    images, classes = inputs
    model.train(training)
    maps = explain.gradcam(model, images, classes)
    model.eval()
    seen = {}
    handle = model.gradcam_layer.register_forward_hook(lambda module, args, output: seen.update(a=output))
    model(images)
    handle.remove()
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    expected = torch.einsum("nk,nkhw->nhw", head.weight[classes], seen["a"]).relu() / seen["a"][0, 0].numel()
    assert maps.shape[1:] == ((8, 8) if len(list(model.modules())) < 60 else (4, 4))
    torch.testing.assert_close(maps, expected.detach(), atol=1e-5, rtol=1e-5)


def test_shared_forward_gives_the_same_map_in_train_mode(model, inputs):
    """Inside the training step the map is each sample's own derivative, whatever batch it is in."""
    images, classes = inputs
    model.train()
    with explain.capture(model.gradcam_layer) as captured:
        logits = model(images)
    maps = explain.gradcam_map(captured[0], logits, classes, create_graph=True)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    expected = torch.einsum("nk,nkhw->nhw", head.weight[classes], captured[0]).relu() / maps[0].numel()
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", explain.EXPLAINERS)
@pytest.mark.parametrize("training", [False, True])
def test_a_map_does_not_depend_on_its_neighbours(name, training, inputs):
    images, classes = inputs[0], inputs[1] % 5
    net = tiny_net(torch.float32, name).train(training)
    together = explained(name, net, images, classes)
    torch.testing.assert_close(together[1:2], explained(name, net, images[1:2], classes[1:2]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[:3], explained(name, net, torch.cat([images[:3], 5 * images[3:]]), classes)[:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together, explained(name, net.eval(), images, classes))


def test_gradcam_at_an_inner_layer_is_a_loop_over_samples(inputs):
    images, classes = inputs[0].double(), inputs[1] % 5
    net = tiny_net().eval()
    maps = explain.gradcam(net, images, classes, net[2])
    for i in range(len(images)):
        feature = net[:3](images[i : i + 1]).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(net[3:](feature)[0, classes[i]], feature)
        expected = (gradient.mean((2, 3), keepdim=True) * feature).sum(1).relu()[0]
        torch.testing.assert_close(maps[i], expected.detach(), atol=1e-10, rtol=1e-8)


def test_gradient_is_the_finite_difference_of_the_logit(inputs):
    images, classes = inputs[0][:2, :, :6, :6].double(), inputs[1][:2]
    net, step = tiny_net().eval(), 1e-6
    maps = explain.gradient(net, images, classes)
    assert maps.shape == (2, 6, 6)
    for n, y, x in ((0, 0, 0), (0, 3, 2), (1, 5, 5)):
        slopes = []
        for channel in range(3):
            up, down = images[n : n + 1].clone(), images[n : n + 1].clone()
            up[0, channel, y, x] += step
            down[0, channel, y, x] -= step
            slopes.append((net(up) - net(down))[0, classes[n]].item() / (2 * step))
        assert abs(maps[n, y, x].item() - max(map(abs, slopes))) < 1e-7


@pytest.mark.parametrize("name", explain.EXPLAINERS)
def test_maps_are_differentiable_in_the_weights(name, inputs):
    """create_graph: the parameter gradient of a function of the maps equals its finite difference."""
    images, classes = inputs[0][:3, :, :8, :8].double(), inputs[1][:3] % 5
    net = tiny_net(name=name)
    weighting = torch.randn(8, 8, dtype=torch.float64)

    def value():
        maps = explained(name, net, images, classes, create_graph=True)
        return (maps * weighting[: maps.shape[1], : maps.shape[2]]).sum()

    value().backward()
    for parameter in (net[0].weight, net[2].weight, net[7].weight):
        index, step = tuple(s // 2 for s in parameter.shape), 1e-5
        flat = parameter.data
        flat[index] += step
        up = value().item()
        flat[index] -= 2 * step
        slope = (up - value().item()) / (2 * step)
        flat[index] += step
        assert abs(slope - parameter.grad[index]) < 1e-5 * max(1, abs(slope))


@pytest.mark.parametrize("name", explain.EXPLAINERS)
def test_the_model_is_left_as_it_was(name, model, inputs):
    images, classes = inputs
    model.train()
    list(model.modules())[-1].eval()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    explained(name, model, images, classes)
    explained(name, model, images, classes, create_graph=True)
    assert [m.training for m in model.modules()] == before[1]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before[0].values()))
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    grads = [p.grad for p in model.parameters()]
    assert torch.equal(grads[0], torch.ones_like(grads[0])) and all(g is None for g in grads[1:])
    assert not images.requires_grad


@pytest.mark.parametrize("name", explain.EXPLAINERS)
def test_no_grad_inference_mode_and_frozen_weights_change_nothing(name, model, inputs):
    images, classes = inputs
    expected = explained(name, model, images, classes)
    assert not expected.requires_grad
    with torch.no_grad():
        assert torch.equal(explained(name, model, images, classes), expected)
    model.requires_grad_(False)
    assert torch.equal(explained(name, model, images, classes), expected)
    with torch.inference_mode():
        assert torch.equal(explained(name, model, images.clone(), classes.clone()), expected)


@pytest.mark.parametrize("name", explain.EXPLAINERS)
def test_many_images_are_explained_in_chunks(name, monkeypatch, inputs):
    images, classes = inputs[0], inputs[1] % 5
    net, sizes = tiny_net(torch.float32, name), []
    expected = explained(name, net, images, classes)
    net[0].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    monkeypatch.setattr(explain, "CHUNK", 4)
    monkeypatch.setattr(explain, "CHUNK_CPU", 4)
    torch.testing.assert_close(explained(name, net, images, classes), expected, atol=1e-6, rtol=1e-5)
    assert max(sizes) == 4 and (name in explain.SIGNED or sizes == [4, 2])


def test_an_in_place_relu_after_the_layer_is_harmless(inputs):
    images, classes = inputs[0], inputs[1] % 5
    net = tiny_net(torch.float32)
    net[1], net[4] = nn.ReLU(), nn.ReLU()
    expected = explain.gradcam(net, images, classes, net[3])
    net[4] = nn.ReLU(inplace=True)
    assert expected.any() and torch.equal(explain.gradcam(net, images, classes, net[3]), expected)
    assert torch.equal(explain.gradcam(net, images, classes, net[3], create_graph=True), expected)


def test_layers_that_cannot_be_explained_are_refused(inputs):
    images, classes = inputs[0], inputs[1] % 5
    net = tiny_net(torch.float32)
    with pytest.raises(ValueError, match="4x4"):
        explain.gradcam(net, images, classes, net[5])  # pooled: 1x1
    with pytest.raises(ValueError, match="4x4"):
        explain.gradcam(net, images, classes, net[7])  # logits
    with pytest.raises(ValueError, match="0 times"):
        explain.gradcam(net, images, classes, nn.ReLU())
    reused = nn.ReLU()
    net[1] = net[4] = reused
    with pytest.raises(ValueError, match="2 times"):
        explain.gradcam(net, images, classes, reused)
    assert not reused._forward_hooks


def test_rectified_and_raw_maps_agree_where_positive(model, inputs):
    raw, maps = explain.gradcam(model, *inputs, rectify=False), explain.gradcam(model, *inputs)
    assert raw.min() < 0 and torch.equal(raw.relu(), maps)
