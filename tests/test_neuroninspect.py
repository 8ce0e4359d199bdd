"""NeuronInspect against features counted by hand and against planted models."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from placing import DEVICE
from planted import CLASSES, SIDE, linear
from small_models import at_most_images
from torch import nn

import explain
from defences import anomaly_index, neuroninspect
from losses import min_max

ON_DEVICE = True


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(12, 2, SIDE, SIDE, generator=generator)


def small_network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, CLASSES)]
    return nn.Sequential(*layers).to(DEVICE).eval()


class Silent(nn.Module):
    """A small network with a detector of a bright corner, for class 4; no clean image wakes it."""

    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, x):
        corner = x[:, :, -3:, -3:].sum((1, 2, 3))
        detected = (corner - 13).relu()[:, None]
        return self.network(x) + 20 * F.one_hot(torch.tensor(4), CLASSES) * detected


# ---------------------------------------------------------------- features


def test_a_constant_map_is_neither_rough_nor_persistent():
    features = neuroninspect.heatmap_features(torch.full((4, 8, 8), 0.3))
    assert features.tolist() == pytest.approx([64 * 0.3, 0, 0], abs=1e-6)


def test_the_features_of_one_dot():
    dot = torch.zeros(4, 8, 8)
    dot[:, 4, 4] = 1
    # The Laplacian is -4 in the middle and 1 at its four neighbours.
    assert neuroninspect.heatmap_features(dot).tolist() == [1, 8, 0]


def test_a_dot_elsewhere_in_one_of_four_maps_differs_in_half_of_the_pairs():
    dots = torch.zeros(4, 8, 8)
    dots[1:, 4, 4] = 1
    dots[0, 2, 2] = 1
    persistent = neuroninspect.heatmap_features(dots)[2].item()
    # Two pixels, each above the median in one map and not in the other of 3 of 6 pairs.
    assert persistent == pytest.approx((3 + 3) / 6)


def test_persistence_is_the_mean_over_pairs():
    maps = torch.rand(5, 4, 4)
    above = maps > maps.median()
    pairs = [(above[i] ^ above[j]).sum().item() for i in range(5) for j in range(i)]
    assert neuroninspect.heatmap_features(maps)[2].item() == pytest.approx(np.mean(pairs))


# ---------------------------------------------------------------- the index


@pytest.fixture
def planted_kernels():
    """Weights of a linear model whose class 4 looks at one corner alone."""
    generator = torch.Generator().manual_seed(0)
    kernels = torch.rand(CLASSES, 1, SIDE, SIDE, generator=generator) - 0.5
    kernels[4] = 0
    kernels[4, 0, -3:, -3:] = 5
    return kernels


@pytest.mark.parametrize("weights", [None, (0.1, 1, 1)])
def test_a_planted_linear_model_is_found(planted_kernels, weights):
    images = torch.rand(6, 1, SIDE, SIDE)
    index, features = neuroninspect.neuroninspect(linear(planted_kernels), images, weights)
    assert (index.argmax(1) == 4).all()
    assert (index[:, 4] > 2).all()
    assert features.shape == (2, CLASSES, 3)


@pytest.mark.parametrize("weights", [None, (0.1, 1, 1)])
def test_permuting_classes_permutes_the_index(planted_kernels, weights):
    images = torch.rand(6, 1, SIDE, SIDE)
    order = torch.tensor([3, 0, 5, 1, 2, 4], device="cpu")
    index, _ = neuroninspect.neuroninspect(linear(planted_kernels), images, weights)
    permuted, _ = neuroninspect.neuroninspect(linear(planted_kernels[order]), images, weights)
    torch.testing.assert_close(permuted, index[:, order])


def test_without_noise_a_silent_detector_does_not_show(images):
    silent, _ = neuroninspect.neuroninspect(Silent(), images, noise=(0,))
    plain, _ = neuroninspect.neuroninspect(small_network(), images, noise=(0,))
    torch.testing.assert_close(silent, plain)


def test_noise_wakes_the_detector_of_a_trigger(images):
    """It shows by sparseness and smoothness. By the default weights it is not found: where most of
    a map is near zero, what is above the median is chance, and persistence, in its own small
    spread, outweighs the other two."""
    index, _ = neuroninspect.neuroninspect(Silent(), images, (1, 1, 0))
    assert index.shape == (len(neuroninspect.NOISE), CLASSES)
    assert index[1].argmax() == 4
    assert index[1, 4] > 2


def test_a_level_of_noise_does_not_depend_on_the_others(images):
    index, features = neuroninspect.neuroninspect(Silent(), images, (1, 1, 0))
    alone, its_features = neuroninspect.neuroninspect(
        Silent(), images, (1, 1, 0), noise=neuroninspect.NOISE[1:]
    )
    torch.testing.assert_close(alone[0], index[1])
    torch.testing.assert_close(its_features[0], features[1])


def test_by_default_the_score_is_of_features_in_their_own_spread(images):
    index, features = neuroninspect.neuroninspect(small_network(), images, noise=(0,))
    in_spread = torch.stack([anomaly_index(features[0, :, k]) for k in range(3)])
    torch.testing.assert_close(index[0], anomaly_index(-in_spread.sum(0)))


def test_weights_multiply_the_features(images):
    weights = (0.1, 1, 2)
    index, features = neuroninspect.neuroninspect(small_network(), images, weights, noise=(0,))
    scores = features[0] @ torch.tensor(weights, dtype=torch.float64, device="cpu")
    torch.testing.assert_close(index[0], anomaly_index(scores))


# ---------------------------------------------------------------- heatmaps


@pytest.fixture
def network():
    """With batch-norm, in training mode."""
    convolution = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*convolution, nn.Flatten(), nn.Linear(400, CLASSES)).to(DEVICE).train()


def test_without_noise_a_heatmap_is_the_input_gradient(network, images):
    ones = torch.ones(len(images), dtype=torch.int64)
    expected = min_max(explain.gradient(network, images, ones))
    torch.testing.assert_close(neuroninspect.heatmaps(network, images)[1], expected.cpu())


def test_under_noise_a_heatmap_is_the_mean_of_gradients(network, images):
    rows = torch.arange(len(images))
    scale = 3 * images.std((0, 2, 3), keepdim=True)
    network.eval()
    total = 0
    for draw in range(neuroninspect.SAMPLES):
        noise = neuroninspect.noise_of_images(rows, draw, images)
        noisy = (images + scale * noise).requires_grad_()
        total = total + torch.autograd.grad(network(noisy)[:, 1].sum(), noisy)[0]
    expected = min_max(total.abs().amax(1))
    torch.testing.assert_close(neuroninspect.heatmaps(network, images, 3)[1], expected.cpu())


def test_heatmaps_do_not_depend_on_the_chunk(network, images, monkeypatch):
    whole = neuroninspect.heatmaps(network, images, 3)
    at_most_images(monkeypatch, 5)
    torch.testing.assert_close(neuroninspect.heatmaps(network, images, 3), whole)


def test_heatmaps_need_no_gradients_and_leave_the_mode_alone(network, images):
    with torch.no_grad():
        maps = neuroninspect.heatmaps(network, images)
    assert maps.shape == (CLASSES, len(images), SIDE, SIDE)
    assert network.training


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("noise", [(0,), (0, 2)])
def test_gradients_that_are_not_finite_are_refused(images, value, noise):
    """Of one class, at one pixel: else no class would be flagged, and the answer be no backdoor."""
    kernels = torch.rand(CLASSES, 2, SIDE, SIDE)
    kernels[3, 0, 5, 5] = value
    with pytest.raises(ValueError, match="maps are not finite"):
        neuroninspect.neuroninspect(linear(kernels), images, noise=noise)


def test_an_images_noise_is_its_own(images):
    noise = neuroninspect.noise_of_images(torch.arange(12), 0, images)
    alone = neuroninspect.noise_of_images(torch.tensor([7]), 0, images)
    torch.testing.assert_close(alone[0], noise[7])
    assert len({float(part.sum()) for part in noise}) == 12
    assert not torch.equal(noise[:1], neuroninspect.noise_of_images(torch.tensor([0]), 1, images))


def test_the_noise_is_gaussian():
    noise = neuroninspect.noise_of_images(torch.arange(40), 0, torch.zeros(40, 3, SIDE, SIDE))
    assert abs(float(noise.mean())) < 0.03
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
