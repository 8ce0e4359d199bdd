"""KernelSHAP against exact Shapley values; DeepSHAP against completeness, linear networks and finite differences."""
import math

import pytest
import torch
import torchvision
from torch import nn

import explain
import models
import sampling


def small_net(dtype=torch.float64):
    """Convolutions, batch-norm, ReLU, pooling: 0.1 million operations, so that thousands of masked images cost nothing."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True),
                        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).to(dtype)
    net[1].running_mean.normal_(0, 0.3)
    net[1].running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def images():
    return torch.randn(5, 2, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


CLASSES = torch.tensor([0, 1, 2, 1, 0])


def shapley_by_enumeration(net, image, label, patches, baseline):
    """The definition: the weighted mean over all subsets of what a patch adds."""
    players = patches**2
    masks = (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1 == 1
    present = masks[:, explain.patch_of_pixel(patches, *image.shape[1:])][:, None]
    with torch.no_grad():
        value = torch.cat([net(torch.where(part, image, baseline))[:, label] for part in present.split(8192)])
    size, index, result = masks.sum(1), torch.arange(2**players), []
    share = torch.tensor([math.factorial(s) * math.factorial(players - s - 1) / math.factorial(players) for s in range(players)], dtype=value.dtype)
    for player in range(players):
        without = index[~masks[:, player]]
        result.append((share[size[without]] * (value[without + 2**player] - value[without])).sum())
    return torch.stack(result).view(patches, patches)


@pytest.mark.parametrize("patches", [1, 2, 3, 4])
def test_with_all_coalitions_the_values_are_exact(patches, images):
    net, baseline = small_net(), images[4] / 3
    values = explain.kernel_shap(net, images[:2], CLASSES[:2], patches, 2 ** patches**2, baseline)
    for n in (0, 1)[: 1 + (patches < 4)]:
        torch.testing.assert_close(values[n], shapley_by_enumeration(net, images[n], CLASSES[n], patches, baseline), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("coalitions", [33, 64, 200])
def test_the_values_sum_to_the_difference_from_the_baseline(coalitions, create_graph, images):
    net, background = small_net(torch.float32), torch.randn(7, 2, 12, 12)
    values = explain.kernel_shap(net, images.float(), CLASSES, 4, coalitions, background, create_graph=create_graph)
    difference = net(images.float()) - net(background.mean(0, keepdim=True))
    torch.testing.assert_close(values.sum((1, 2)), difference.gather(1, CLASSES[:, None])[:, 0], atol=1e-5, rtol=1e-5)


def test_errors_fall_with_the_number_of_coalitions_and_are_below_the_published_regressions(images):
    value = sampling.worth(small_net(), images, CLASSES, 9)
    found, theirs = (list(sampling.errors(value, method, (40, 100, 300)).values()) for method in (sampling.by_regression, sampling.by_least_squares))
    assert found[0] > 1.5 * found[1] > 2 * found[2] > 0
    assert all(ours < 0.9 * other for ours, other in zip(found, theirs)), (found, theirs)
    for method in (sampling.by_regression, sampling.by_least_squares):  # and with all coalitions both are exact
        coalitions, slope = method(9, 2**9, torch.Generator())
        for n in (0, 3):
            exact = shapley_by_enumeration(small_net(), images[n], CLASSES[n], 3, torch.zeros(()).double())
            torch.testing.assert_close(value[n, (coalitions * 2 ** torch.arange(9)).sum(1)] @ slope, exact.flatten(), atol=1e-10, rtol=1e-8)


def test_a_patch_equal_to_the_baseline_has_no_share_and_leaves_the_others_exact(images):
    images[:, :, :6] = 0.25  # half the patches of 4x4 are the baseline: 8 others, 254 coalitions
    images[1, :, 6:9] = 0.25
    values = explain.kernel_shap(small_net(), images[:2], CLASSES[:2], 4, 254, 0.25)
    assert not values[:, :2].any() and not values[1, 2].any() and values[:, 3].all()
    for n in (0,):
        torch.testing.assert_close(values[n], shapley_by_enumeration(small_net(), images[n], CLASSES[n], 4, 0.25), atol=1e-10, rtol=1e-8)
    same = explain.kernel_shap(small_net(), torch.full_like(images, 0.25), CLASSES, 4, 64, 0.25)
    assert same.shape == (5, 4, 4) and not same.any()


@pytest.mark.parametrize("players, count", [(4, 9), (7, 123), (9, 509), (16, 128), (16, 1024), (49, 512)])
def test_coalitions_and_their_complements_are_distinct_and_as_many_as_asked(players, count):
    half = explain.draw_coalitions(players, count, torch.Generator().manual_seed(0))
    rows = {tuple(row) for row in torch.cat([half, ~half]).tolist()}
    assert len(rows) == 2 * (count // 2) and all(0 < sum(row) < players for row in rows)
    assert sum(sum(row) == 1 for row in rows) == players


@pytest.mark.parametrize("players", range(1, 7))
def test_all_coalitions_are_there_where_as_many_are_asked(players):
    half = explain.draw_coalitions(players, 64)
    assert half.shape == (max(2 ** (players - 1) - 1, 0), players) and len(torch.cat([half, ~half]).unique(dim=0)) == 2 * len(half)


@pytest.mark.parametrize("players, count", [(5, 10), (9, 40), (16, 64), (49, 512), (196, 1024)])
def test_additive_games_are_exact_from_any_coalitions_and_every_games_values_sum_to_its_worth(players, count):
    coalitions = explain.draw_coalitions(players, count, torch.Generator().manual_seed(0))
    known, slope = torch.cat([torch.ones(1, players).bool(), coalitions]), explain.shapley_map(coalitions)
    worth = torch.randn(players, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((2.0 * known.double() - 1).T @ slope, torch.eye(players, dtype=torch.float64), atol=1e-7, rtol=0)
    torch.testing.assert_close(((2.0 * known.double() - 1) @ worth) @ slope, worth, atol=1e-7, rtol=0)
    torch.testing.assert_close(slope.sum(1), torch.eye(len(known), dtype=torch.float64)[0], atol=1e-7, rtol=0)


@pytest.mark.parametrize("players, count", [(5, 16), (6, 30), (8, 60)])
def test_what_is_estimated_are_the_shapley_values_of_the_expected_game(players, count):
    """The expectation written down for all coalitions (simple kriging with a wide prior of the additive part), then the definition."""
    rho, wide = explain.REACH / players, 1e6
    coalitions, slope = sampling.by_regression(players, count, torch.Generator().manual_seed(0))
    every, size = sampling.everything(players)

    def covariance(a, b):
        differ = (a[:, None] != b).sum(2)
        return ((1 - rho) / (1 + rho)) ** differ + wide * (1 + (2.0 * a.double() - 1) @ (2.0 * b.double() - 1).T)

    value = torch.randn(len(coalitions), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = covariance(every, coalitions) @ torch.linalg.solve(covariance(coalitions, coalitions), value)
    wanted = []
    for player in range(players):
        without = (~every[:, player]).nonzero()[:, 0]
        share = torch.tensor([1 / (players * math.comb(players - 1, s)) for s in range(players)], dtype=torch.float64)[size[without]]
        wanted.append((share * (expected[without + 2**player] - expected[without])).sum())
    torch.testing.assert_close(value @ slope, torch.stack(wanted), atol=1e-5, rtol=1e-5)


def test_no_images_have_no_values(images):
    for create_graph in (False, True):
        assert explain.kernel_shap(small_net(), images[:0], CLASSES[:0], create_graph=create_graph).shape == (0, 4, 4)
        assert explain.deep_shap(small_net(), images[:0], CLASSES[:0], create_graph=create_graph).shape == (0, 12, 12)


def test_values_do_not_depend_on_the_other_images_patches(images, monkeypatch):
    """Each number of active patches has its own subsets, drawn from one seed a call."""
    monkeypatch.setattr(explain, "CHUNK_CPU", 2)
    images[3, :, :3] = 0

    def values(part):
        return explain.kernel_shap(small_net(), part, CLASSES[: len(part)], 4, 64, generator=torch.Generator().manual_seed(3))

    torch.testing.assert_close(values(images)[:3], values(images[:3]))
    torch.testing.assert_close(values(torch.cat([images[:2], torch.zeros_like(images[:1])]))[:2], values(images[:2]))


def test_too_few_coalitions_and_too_many_patches_are_refused(images):
    with pytest.raises(ValueError, match="32 or more"):
        explain.kernel_shap(small_net(), images, CLASSES, 4, 31)
    with pytest.raises(ValueError, match="12x12 px"):
        explain.kernel_shap(small_net(), images, CLASSES, 13)
    assert explain.kernel_shap(small_net(), images, CLASSES, 2, 14).shape == (5, 2, 2)


def test_memory_of_kernel_shap_does_not_grow_with_the_images(images, monkeypatch):
    monkeypatch.setattr(explain, "CHUNK_CPU", 16)
    net, sizes = small_net(), []
    handle = net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    explain.kernel_shap(net, images.repeat(8, 1, 1, 1), CLASSES.repeat(8), 2, 14)
    handle.remove()
    assert max(sizes) == 16 and sum(sizes) == 40 * 16


# ---------------------------------------------------------------- DeepSHAP

NETWORKS = {
    "cnn": lambda: models.build("cnn", 3, 10, 32),
    "resnet18": lambda: models.build("resnet18", 3, 10, 32),
    "vgg16": lambda: torchvision.models.vgg16(num_classes=10),
    "alexnet": lambda: torchvision.models.alexnet(num_classes=10),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_contributions_sum_to_the_difference_from_the_references(name):
    torch.manual_seed(0)
    net, side = NETWORKS[name]().eval(), 64 if name == "alexnet" else 32
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    list(net.modules())[-1].weight.data *= 10  # untrained networks barely answer: so that 1e-5 says something
    images, references, classes = torch.randn(3, 3, side, side), torch.randn(2, 3, side, side), torch.tensor([1, 5, 5])
    maps = explain.deep_shap(net, images, classes, references)
    with torch.no_grad():
        difference = net(images).gather(1, classes[:, None])[:, 0] - net(references)[:, classes].mean(0)
    assert maps.shape == (3, side, side) and difference.abs().max() > 0.003
    torch.testing.assert_close(maps.sum((1, 2)), difference, atol=1e-5, rtol=1e-5)
    assert not explain.deep_shap(net, references[:1], classes[:1], references[:1]).any()


def test_pixels_equal_to_the_reference_have_no_share(images):
    reference = images[:1].clone()
    reference[:, :, 3:5, 7] += 1
    maps = explain.deep_shap(small_net(), images[:1], CLASSES[:1], reference)
    assert maps[0, 3:5, 7].all() and maps.count_nonzero() == 2


def test_a_linear_network_is_explained_exactly(images):
    net = nn.Sequential(nn.AvgPool2d(3, stride=2), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(36, 3)).double()
    references = images[3:]
    maps = explain.deep_shap(net, images[:3], CLASSES[:3], references)
    net.eval()
    for n in range(3):
        slope = torch.autograd.functional.jacobian(lambda x: net(x[None])[0, CLASSES[n]], images[n])
        torch.testing.assert_close(maps[n], (slope * (images[n] - references)).sum(1).mean(0), atol=1e-12, rtol=1e-10)


class Functions(nn.Module):
    """What modules hide: functions, methods, in-place operations, a ReLU used twice, overlapping pools."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(16, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.first((x - 0.1) / 0.5))
        y = self.second(x)
        y.relu_()
        x = x + y
        x -= 0.3
        x = nn.functional.max_pool2d(self.relu(x), 3, 2)
        x = torch.cat([nn.functional.adaptive_max_pool2d(x, 2), torch.relu(0.5 * x).mean((2, 3), keepdim=True).expand(-1, -1, 2, 2)], 1)[:, :4]
        return self.head(x.flatten(1))


def test_functions_in_place_operations_and_overlapping_pools(images):
    net = Functions().double()
    reference = images[4:]
    maps = explain.deep_shap(net, images[:4], CLASSES[:4], reference)
    difference = (net(images[:4]) - net(reference)).gather(1, CLASSES[:4, None])[:, 0]
    torch.testing.assert_close(maps.sum((1, 2)), difference.detach(), atol=1e-12, rtol=1e-10)


class Changing(nn.Module):
    """What a nonlinearity was given, or gave, is changed afterwards."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.first, self.second, self.head = kind, nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        if self.kind == "its input":
            y = torch.relu(x)
            x += self.second(y)
        elif self.kind == "its output":
            x = nn.functional.max_pool2d(x, 2)
            x += 0.7
        else:
            x = nn.functional.relu(nn.functional.max_pool2d(x, 2), inplace=True)
        return self.head(torch.relu(x).mean((2, 3)))


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("kind", ["its input", "its output", "a pool's by a ReLU"])
def test_what_is_changed_in_place_afterwards_was_remembered(kind, create_graph, images):
    net = Changing(kind).double()
    maps = explain.deep_shap(net, images[:4], CLASSES[:4], images[4:], create_graph=create_graph)
    difference = (net(images[:4]) - net(images[4:])).gather(1, CLASSES[:4, None])[:, 0]
    torch.testing.assert_close(maps.sum((1, 2)).detach(), difference.detach(), atol=1e-12, rtol=1e-10)


def test_a_pass_it_cannot_follow_is_refused(images):
    class Hidden(nn.Module):
        def __init__(self, how):
            super().__init__()
            self.how, self.head = how, nn.Linear(288, 3).double()

        def forward(self, x):
            y = {"numpy": lambda: torch.from_numpy(x.detach().numpy()), "detach": lambda: x * x.detach(), "mT": lambda: x.mT}[self.how]()
            return self.head(y.reshape(len(x), -1))

    for how in ("numpy", "detach", "mT"):
        with pytest.raises(ValueError, match="DeepSHAP"):
            explain.deep_shap(Hidden(how), images, CLASSES)
    scripted = torch.jit.trace(nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(288, 3)).double(), images)
    with pytest.raises(ValueError, match="DeepSHAP"):
        explain.deep_shap(scripted, images, CLASSES)


def test_one_neuron_is_the_rescale_rule():
    """relu(x1 + x2 - 1) from (0, 0) to (2, 1): the difference quotient 2/3 for each."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        net[1].weight[:], net[1].bias[:], net[3].weight[:] = 1, -1, 3
    maps = explain.deep_shap(net, torch.tensor([[[[2.0, 1.0]]]], dtype=torch.float64), torch.tensor([0]))
    torch.testing.assert_close(maps, torch.tensor([[[4.0, 2.0]]], dtype=torch.float64))


@pytest.mark.parametrize("layer", ["softplus", "sigmoid", "product", "batch_norm", "efficientnet"])
def test_what_has_no_rule_is_refused_by_name(layer, images):
    class Product(nn.Module):
        def forward(self, x):
            return x * x.mean((2, 3), keepdim=True)

    odd = {"softplus": nn.Softplus(), "sigmoid": nn.Sigmoid(), "product": Product(), "batch_norm": nn.BatchNorm2d(2, track_running_stats=False)}
    net = torchvision.models.efficientnet_b0() if layer == "efficientnet" else nn.Sequential(odd[layer], nn.Flatten(), nn.Linear(288, 3)).double()
    word = {"product": "mul of two", "efficientnet": "silu"}.get(layer, layer)
    with pytest.raises(ValueError, match=f"DeepSHAP has no rule for {word}"):
        explain.deep_shap(net, torch.randn(1, 3, 64, 64) if layer == "efficientnet" else images, CLASSES[:1] if layer == "efficientnet" else CLASSES)


@pytest.mark.parametrize("name", ["kernelshap", "deepshap"])
def test_training_through_the_values_has_the_right_gradient(name, images):
    """At a convolution with two nonlinearities and a max-pool after it, against finite differences."""
    net, images = small_net(), images[:2]
    weighting = torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value():
        options = {"coalitions": 40, "generator": torch.Generator().manual_seed(0)} if name == "kernelshap" else {}
        maps = explain.EXPLAINERS[name](net, images, CLASSES[:2], create_graph=True, **options)
        return (torch.tanh(maps) * weighting[: maps.shape[1], : maps.shape[2]]).sum()

    net.zero_grad()
    value().backward()
    step = 1e-6
    for weight in (net[0].weight, net[1].weight, net[4].weight, net[8].weight):
        for index in (0, weight.numel() // 2, weight.numel() - 1):
            flat = weight.data.view(-1)
            flat[index] += step
            up = value().item()
            flat[index] -= 2 * step
            slope = (up - value().item()) / (2 * step)
            flat[index] += step
            assert abs(slope - weight.grad.view(-1)[index]) <= 1e-3 * max(abs(slope), 1e-3)


def test_linear_outputs_make_training_through_kernel_shap_first_order(images, monkeypatch):
    """No gradient is taken inside: the graph is the model's own."""
    monkeypatch.setattr(torch.autograd, "grad", None)
    assert explain.kernel_shap(small_net(), images, CLASSES, 2, create_graph=True).requires_grad
