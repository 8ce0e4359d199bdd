"""DeepSHAP against completeness, linear networks, the rescale rule and finite differences."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from placing import DEVICE
from small_models import finite_difference, generator, two_channel_net, unusual_statistics
from torch import nn

import models
from deepshap import deep_shap

ON_DEVICE = True

CLASSES = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture
def images():
    return torch.randn(5, 2, 12, 12, dtype=torch.float64, generator=generator(1))


def difference(net, images, classes, references):
    """f(image) - f(reference), f the logit of the image's class, mean over references: [N]."""
    with torch.no_grad():
        of_images = net(images).gather(1, classes[:, None])[:, 0]
        return of_images - net(references)[:, classes].mean(0)


# ---------------------------------------------------------------- completeness

NETWORKS = {
    "cnn": lambda: models.build("cnn", 3, 10, 32),
    "resnet18": lambda: models.build("resnet18", 3, 10, 32),
    "vgg16": lambda: torchvision.models.vgg16(num_classes=10),
    "alexnet": lambda: torchvision.models.alexnet(num_classes=10),
}
SIDES = {"alexnet": 64}  # others: 32 px


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    """(net, images, classes, references) of a network that people use."""
    torch.manual_seed(0)
    net, side = NETWORKS[request.param]().to(DEVICE).eval(), SIDES.get(request.param, 32)
    unusual_statistics(net)
    last = list(net.modules())[-1]
    last.weight.data *= 10  # untrained networks barely answer: so that 1e-5 says something
    images, references = torch.randn(3, 3, side, side), torch.randn(2, 3, side, side)
    return net, images, torch.tensor([1, 5, 5]), references


def test_contributions_sum_to_the_difference_from_the_references(case):
    net, images, classes, references = case
    maps = deep_shap(net, images, classes, references)
    expected = difference(net, images, classes, references)
    assert maps.shape == images[:, 0].shape and expected.abs().max() > 0.003
    torch.testing.assert_close(maps.sum((1, 2)), expected, atol=1e-5, rtol=1e-5)


def test_an_image_that_is_the_reference_has_a_blank_map(case):
    net, _, classes, references = case
    assert not deep_shap(net, references[:1], classes[:1], references[:1]).any()


class Functions(nn.Module):
    """What modules hide: functions, methods, in-place operations, a ReLU used twice, odd pools."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(16, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.first((x - 0.1) / 0.5))
        y = self.second(x)
        y.relu_()
        x = x + y
        x -= 0.3
        x = F.max_pool2d(self.relu(x), 3, 2)  # windows overlap
        pooled = F.adaptive_max_pool2d(x, 2)
        mean = torch.relu(0.5 * x).mean((2, 3), keepdim=True).expand(-1, -1, 2, 2)
        x = torch.cat([pooled, mean], 1)[:, :4]
        return self.head(x.flatten(1))


def test_functions_in_place_operations_and_overlapping_pools_are_followed(images):
    net, reference = Functions().double().to(DEVICE), images[4:]
    maps = deep_shap(net, images[:4], CLASSES[:4], reference)
    expected = difference(net, images[:4], CLASSES[:4], reference)
    torch.testing.assert_close(maps.sum((1, 2)), expected, atol=1e-12, rtol=1e-10)


class Changing(nn.Module):
    """A network that changes afterwards what a nonlinearity was given, or what it gave."""

    def __init__(self, change):
        super().__init__()
        torch.manual_seed(0)
        self.change = change
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.change(self, self.first(x))
        return self.head(torch.relu(x).mean((2, 3)))


def change_its_input(net, x):
    y = torch.relu(x)
    x += net.second(y)
    return x


def change_its_output(net, x):
    x = F.max_pool2d(x, 2)
    x += 0.7
    return x


def change_a_pools_output_by_a_relu(net, x):
    return F.relu(F.max_pool2d(x, 2), inplace=True)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    "change", [change_its_input, change_its_output, change_a_pools_output_by_a_relu]
)
def test_what_is_changed_in_place_afterwards_was_remembered(images, change, create_graph):
    net, reference = Changing(change).double().to(DEVICE), images[4:]
    maps = deep_shap(net, images[:4], CLASSES[:4], reference, create_graph=create_graph)
    expected = difference(net, images[:4], CLASSES[:4], reference)
    torch.testing.assert_close(maps.sum((1, 2)).detach(), expected, atol=1e-12, rtol=1e-10)


# ---------------------------------------------------------------- closed forms


def test_pixels_equal_to_the_reference_have_no_share(images):
    reference = images[:1].clone()
    reference[:, :, 3:5, 7] += 1
    maps = deep_shap(two_channel_net(), images[:1], CLASSES[:1], reference)
    assert maps[0, 3:5, 7].all() and maps.count_nonzero() == 2


def test_a_linear_network_is_explained_exactly(images):
    """Each pixel's share is its slope times its difference from the reference."""
    net = nn.Sequential(
        nn.AvgPool2d(3, stride=2),
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).to(DEVICE, torch.float64)
    references = images[3:]
    maps = deep_shap(net, images[:3], CLASSES[:3], references)
    net.eval()
    for image, label, found in zip(images, CLASSES, maps):
        slope = torch.autograd.functional.jacobian(lambda x: net(x[None])[0, label], image)
        expected = (slope * (image - references)).sum(1).mean(0)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)


def test_one_neuron_is_the_rescale_rule():
    """3 relu(x1 + x2 - 1), from (0, 0) to (2, 1): the ReLU's difference quotient is 2 / 3."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    net.to(DEVICE, torch.float64)
    with torch.no_grad():
        net[1].weight.fill_(1)
        net[1].bias.fill_(-1)
        net[3].weight.fill_(3)
    image = torch.tensor([[[[2.0, 1.0]]]], dtype=torch.float64)
    maps = deep_shap(net, image, torch.tensor([1]))  # one logit is class 1's of two
    torch.testing.assert_close(maps, torch.tensor([[[4.0, 2.0]]], dtype=torch.float64))


def test_without_references_there_is_one_of_zeros(images):
    net = two_channel_net()
    maps = deep_shap(net, images, CLASSES)
    expected = deep_shap(net, images, CLASSES, torch.zeros_like(images[:1]))
    assert torch.equal(maps, expected)


def test_maps_are_means_over_references(images):
    net = two_channel_net()
    maps = deep_shap(net, images[:3], CLASSES[:3], images[3:])
    each = [deep_shap(net, images[:3], CLASSES[:3], images[r : r + 1]) for r in (3, 4)]
    torch.testing.assert_close(maps, torch.stack(each).mean(0))


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_images_have_no_maps(images, create_graph):
    maps = deep_shap(two_channel_net(), images[:0], CLASSES[:0], create_graph=create_graph)
    assert maps.shape == (0, 12, 12)


def test_a_graph_changes_no_value(images):
    net = two_channel_net()
    with_graph = deep_shap(net, images, CLASSES, images[4:], create_graph=True)
    torch.testing.assert_close(with_graph, deep_shap(net, images, CLASSES, images[4:]))


# ---------------------------------------------------------------- what is refused


class Hidden(nn.Module):
    """A network that hides the image from torch's functions, or multiplies it by itself."""

    def __init__(self, hide):
        super().__init__()
        self.hide = hide
        self.head = nn.Linear(288, 3).to(DEVICE, torch.float64)

    def forward(self, x):
        return self.head(self.hide(x).reshape(len(x), -1))


@pytest.mark.parametrize(
    "hide",
    [
        pytest.param(lambda x: torch.from_numpy(x.detach().cpu().numpy()).to(DEVICE), id="numpy"),
        pytest.param(lambda x: x * x.detach(), id="detach"),
        pytest.param(lambda x: x.mT, id="an attribute"),
    ],
)
def test_a_pass_it_cannot_follow_is_refused(images, hide):
    with pytest.raises(ValueError, match="DeepSHAP"):
        deep_shap(Hidden(hide), images, CLASSES)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_scripted_network_is_refused(images):
    net = nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(288, 3)).to(DEVICE, torch.float64)
    with pytest.raises(ValueError, match="DeepSHAP"):
        deep_shap(torch.jit.trace(net, images), images, CLASSES)


class Product(nn.Module):
    """Squeeze-and-excitation in its shortest form: activations times activations."""

    def forward(self, x):
        return x * x.mean((2, 3), keepdim=True)


class Transposed(nn.Module):
    """A property that is a tensor."""

    def forward(self, x):
        return x.mT


@pytest.mark.parametrize(
    "layer, words",
    [
        (nn.Softplus(), "softplus"),
        (nn.Sigmoid(), "sigmoid"),
        (Product(), "mul of two activations"),
        (Transposed(), "mT"),
        (nn.BatchNorm2d(2, track_running_stats=False), "batch_norm"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(images, layer, words):
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(288, 3)).to(DEVICE, torch.float64)
    with pytest.raises(ValueError, match=f"DeepSHAP has no rule for {words}"):
        deep_shap(net, images, CLASSES)


def test_an_efficientnet_is_refused_by_its_activation():
    with pytest.raises(ValueError, match="DeepSHAP has no rule for silu"):
        net = torchvision.models.efficientnet_b0().to(DEVICE)
        deep_shap(net, torch.randn(1, 3, 64, 64), CLASSES[:1])


# ---------------------------------------------------------------- training through the maps


@pytest.mark.parametrize("layer", ["0", "1", "4", "8"])
def test_the_derivative_in_the_weights_is_the_finite_difference(images, layer):
    """Two nonlinearities and max-pooling follow the first convolution."""
    net = two_channel_net()
    weighting = torch.randn(12, 12, dtype=torch.float64, generator=generator(2))

    def value():
        maps = deep_shap(net, images[:2], CLASSES[:2], create_graph=True)
        return (torch.tanh(maps) * weighting).sum()

    value().backward()
    weight = net.get_submodule(layer).weight
    flat, slopes = weight.view(-1), weight.grad.view(-1)
    for index in (0, flat.numel() // 2, flat.numel() - 1):
        slope = finite_difference(value, flat, index, 1e-6)
        assert abs(slope - slopes[index]) <= 1e-3 * max(abs(slope), 1e-3)


# ---------------------------------------------------------------- its gradient


def test_autocast_changes_neither_maps_nor_their_gradient(images):
    found = []
    for bf16 in (False, True):
        net = two_channel_net().to(DEVICE, torch.float32)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
            maps = deep_shap(net, images.float(), CLASSES, create_graph=True)
        maps.square().sum().backward()
        found.append([maps, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert len(found[0]) > 2
    for one, other in zip(*found):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("pool", [nn.Identity(), nn.MaxPool2d(2)], ids=["relu", "max-pool"])
@pytest.mark.parametrize("bias", [False, True])
def test_differences_of_rounding_have_no_large_gradient(pool, bias):
    """Edge filters answer alike to all flat images, but for rounding, in which batches differ."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, bias=bias), nn.ReLU(), pool, nn.Conv2d(16, 4, 3), nn.ReLU()
    net = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)).to(DEVICE)
    images = torch.full((8, 3, 16, 16), 0.7)
    images[:, :, 4:8, 4:8] = torch.rand(8, 3, 4, 4)
    net(images)
    net[0].weight.data -= net[0].weight.data.mean((1, 2, 3), keepdim=True)
    maps = deep_shap(net, images, [0] * 8, create_graph=True)
    maps.square().sum().backward()
    assert 0 < max(weight.grad.norm() for weight in net.parameters() if weight.grad is not None) < 9


class Viewed(nn.Module):
    """A network that lays out its pooled maps as a vector by `view`, which takes one layout."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(F.max_pool2d(self.conv(x).relu(), 2).view(len(x), -1))


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_view_after_pooling_is_differentiated(create_graph):
    net, images = Viewed().to(DEVICE), torch.rand(2, 1, 8, 8)
    maps = deep_shap(net, images, [0, 1], create_graph=create_graph)
    expected = difference(net, images, torch.tensor([0, 1]), torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(maps.sum((1, 2)), expected)
