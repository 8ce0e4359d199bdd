"""SmoothGrad, Integrated Gradients and Grad-CAM++ against closed forms, and against captum's."""

import pytest
import torch
from conftest import log_of, metrics_of, train_tiny
from placing import DEVICE
from small_models import generator, norm_after_layer_net, unusual_statistics
from torch import nn

import explain
import hooks
import mean_gradients
import models
from mean_gradients import NOISE, integrated_gradients, smoothgrad

ON_DEVICE = True

CLASSES = torch.tensor([0, 2, 1, 3])


@pytest.fixture
def images():
    return torch.randn(4, 3, 8, 8, generator=generator(1), dtype=torch.float64)


@pytest.fixture
def linear():
    """A linear network of 5 classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).to(DEVICE, torch.float64)


def weights_of(linear):
    """The linear network's weights of each image's class, as images: [N, 3, 8, 8]."""
    return linear[1].weight[CLASSES].view(-1, 3, 8, 8).detach()


class Quadratic(nn.Module):
    """Logit k is the sum of (k + 1) x^2 over the image: its gradient is 2 (k + 1) x."""

    def forward(self, images):
        return images.square().sum((1, 2, 3))[:, None] * torch.arange(1, 6)


@pytest.fixture
def cnn():
    """The small network as it is built, in double precision."""
    torch.manual_seed(0)
    return unusual_statistics(models.build("cnn", 3, 5, 16)).double().eval()


@pytest.fixture
def larger():
    """Images for the small network."""
    return torch.randn(4, 3, 16, 16, generator=generator(2), dtype=torch.float64)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# ---------------------------------------------------------------- SmoothGrad


def test_smoothgrad_of_a_linear_network_is_its_gradient(linear, images):
    maps = smoothgrad(linear, images, CLASSES)
    close(maps, explain.gradient(linear, images, CLASSES))
    close(maps, weights_of(linear).abs().amax(1))


def test_smoothgrad_is_the_gradients_mean_before_it_is_its_size(images):
    """The noise is that of the generator, as wide as a share of each image's own range."""
    maps = smoothgrad(Quadratic(), images, CLASSES, samples=6, generator=generator(3))
    noise = torch.randn(6, 3, 8, 8, generator=generator(3), dtype=torch.float64).mean(0)
    expected = []
    for image, label in zip(images, CLASSES):
        width = NOISE * (image.max() - image.min())
        expected.append((2 * (label + 1) * (image + width * noise)).abs().amax(0))
    close(maps, torch.stack(expected))


def test_an_image_of_one_colour_gets_no_noise(images):
    flat = torch.full_like(images, 0.5)
    expected = explain.gradient(Quadratic(), flat, CLASSES)
    close(smoothgrad(Quadratic(), flat, CLASSES), expected)


@pytest.mark.skipif(DEVICE != "cpu", reason="captum draws its noise where the images are")
def test_smoothgrad_is_captums(cnn, larger):
    attr = pytest.importorskip("captum.attr")
    cnn, larger = cnn.float(), larger.float()  # captum's noise is float32
    tunnel = attr.NoiseTunnel(attr.Saliency(cnn))
    found = smoothgrad(cnn, larger, CLASSES, samples=12, generator=generator(7))
    for image, label, own in zip(larger, CLASSES, found):
        torch.manual_seed(7)  # captum draws by torch's own generator, for one image at a time
        theirs = tunnel.attribute(
            image[None].clone(),
            nt_samples=12,
            stdevs=float(NOISE * (image.max() - image.min())),
            target=int(label),
            abs=False,
        )
        expected = theirs[0].abs().amax(0)
        close(own / expected.max(), expected / expected.max(), 1e-4)


# ---------------------------------------------------------------- Integrated Gradients


def test_integrated_gradients_of_a_linear_network_are_exact(linear, images):
    baseline = torch.randn(3, 8, 8, generator=generator(4), dtype=torch.float64)
    maps = integrated_gradients(linear, images, CLASSES, steps=3, baseline=baseline)
    close(maps, ((images - baseline) * weights_of(linear)).sum(1))


def test_the_middle_of_each_step_is_exact_where_the_gradient_is_linear(images):
    maps = integrated_gradients(Quadratic(), images, CLASSES, steps=2, baseline=0.3)
    expected = (CLASSES + 1)[:, None, None] * (images.square() - 0.09).sum(1)
    close(maps, expected)


def test_the_sum_of_the_maps_is_what_the_logit_gains(images):
    """Completeness: to f(x) - f(baseline), the better the more steps there are."""
    net = norm_after_layer_net().eval()
    with torch.no_grad():
        gain = (net(images) - net(torch.zeros_like(images[:1])))[torch.arange(4), CLASSES]
    errors = []
    for steps in (4, 16, 64):
        maps = integrated_gradients(net, images, CLASSES, steps)
        errors.append(float((maps.sum((1, 2)) - gain).abs().max()))
    assert errors[2] < 1e-5 and errors[1] < errors[0] / 8 and errors[2] < errors[1] / 8


def test_a_pixel_that_equals_the_baseline_has_no_share(images):
    images[:, :, 2:4] = 0.3
    maps = integrated_gradients(norm_after_layer_net(), images, CLASSES, baseline=0.3)
    assert not maps[:, 2:4].any() and maps[:, 4:].all()


def test_maps_of_several_baselines_are_their_mean(images):
    net = norm_after_layer_net()
    baselines = torch.randn(2, 3, 8, 8, generator=generator(5), dtype=torch.float64)
    both = integrated_gradients(net, images, CLASSES, 5, baselines)
    each = [integrated_gradients(net, images, CLASSES, 5, part) for part in baselines]
    close(both, torch.stack(each).mean(0))


@pytest.mark.parametrize("baseline", ["zeros", "an image"])
def test_integrated_gradients_are_captums(cnn, larger, baseline):
    attr = pytest.importorskip("captum.attr")
    start = torch.zeros(3, 16, 16).double() if baseline == "zeros" else larger[3].flip(0)
    theirs = attr.IntegratedGradients(cnn).attribute(
        larger, start[None], target=CLASSES, n_steps=20, method="riemann_middle"
    )
    options = {} if baseline == "zeros" else {"baseline": start}
    close(integrated_gradients(cnn, larger, CLASSES, 20, **options), theirs.sum(1))


# ---------------------------------------------------------------- Grad-CAM++


def published_map(net, images, classes, layer):
    """Grad-CAM++ as the paper has it, for the score Y = exp(y_c): an image at a time.

    Its second and third derivatives are taken by autograd, of each cell alone, where y_c is linear
    in the feature map. Source: Chattopadhyay et al. 2018, eq. 5, 10 and 13.
    """
    maps = []
    for image, label in zip(images, classes):
        with hooks.capture(layer) as captured:
            score = net(image[None])[0, label].exp()
        feature = captured[0]
        first, second, third = derivatives(score, feature)
        total = feature.sum((2, 3), keepdim=True)
        share = second / (2 * second + total * third)
        weight = (share * first.relu()).sum((2, 3), keepdim=True)
        maps.append((weight * feature).sum(1)[0].relu() / score)
    return torch.stack(maps).detach()


def derivatives(score, feature):
    """The first three derivatives of a scalar by each element of a tensor, each like the tensor."""
    (first,) = torch.autograd.grad(score, feature, create_graph=True)
    second, third = torch.zeros_like(feature), torch.zeros_like(feature)
    for k, slope in enumerate(first.flatten()):
        (row,) = torch.autograd.grad(slope, feature, create_graph=True)
        second.view(-1)[k] = row.flatten()[k].detach()
        (row,) = torch.autograd.grad(row.flatten()[k], feature, retain_graph=True)
        third.view(-1)[k] = row.flatten()[k]
    return first, second, third


def test_gradcam_plus_plus_is_the_published_map_of_a_linear_head(images):
    """But for the factor exp(y_c) that all of a map has in common."""
    torch.manual_seed(0)
    features = nn.Conv2d(3, 6, 3, padding=1), nn.Softplus()
    net = nn.Sequential(*features, nn.Flatten(), nn.Linear(6 * 4 * 4, 4)).to(DEVICE, torch.float64)
    expected = published_map(net, images[:, :, :4, :4], CLASSES, net[1])
    close(explain.gradcam_plus_plus(net, images[:, :, :4, :4], CLASSES, "1"), expected)
    assert expected.any()


def test_a_sum_below_zero_is_no_pole():
    """With 16 cells of -1 and a gradient of 1/8 the published denominator is 0."""
    feature = -torch.ones(1, 1, 4, 4, requires_grad=True)
    logits = feature.sum().view(1, 1) / 8
    found = explain.gradcam_plus_plus_map(feature, logits, torch.tensor([0]), rectify=False)
    close(found, -torch.ones(1, 4, 4), 1e-6)


def test_gradcam_plus_plus_is_its_closed_form_on_a_pooled_linear_head(cnn, larger):
    """The gradient is W / cells everywhere, so the weight of a channel is relu(W) / (2 + W A)."""
    maps = explain.gradcam_plus_plus(cnn, larger, CLASSES)
    feature = cnn[0](larger)
    weight = cnn[3].weight[CLASSES].relu()
    weight = weight / (2 + weight * feature.mean((2, 3)))
    close(maps, torch.einsum("nk,nkhw->nhw", weight, feature).detach())


def test_gradcam_plus_plus_is_finite_where_a_gradient_is_zero(cnn, larger):
    with torch.no_grad():
        cnn[3].weight.zero_()
    maps = explain.gradcam_plus_plus(cnn, larger, CLASSES, create_graph=True)
    maps.sum().backward()
    assert not maps.any() and cnn[3].weight.grad.isfinite().all()


def test_a_large_score_does_not_overflow(cnn, larger):
    with torch.no_grad():
        cnn[3].bias += 1000  # exp of it is infinite
    expected = explain.gradcam_plus_plus(cnn, larger, CLASSES)
    assert expected.isfinite().all() and expected.any()


def test_channels_that_speak_against_the_class_count_for_nothing(cnn, larger):
    """Unlike in Grad-CAM."""
    before = explain.gradcam_plus_plus(cnn, larger, CLASSES), explain.gradcam(cnn, larger, CLASSES)
    with torch.no_grad():
        cnn[3].weight.clamp_(min=0)
    close(explain.gradcam_plus_plus(cnn, larger, CLASSES), before[0])
    assert not torch.allclose(explain.gradcam(cnn, larger, CLASSES), before[1])


# ---------------------------------------------------------------- what they share


@pytest.mark.parametrize(
    "explainer, option", [(smoothgrad, "samples"), (integrated_gradients, "steps")]
)
@pytest.mark.parametrize("count", [0, -1, 2.5, None])
def test_no_number_of_copies_is_refused(linear, images, explainer, option, count):
    with pytest.raises(ValueError, match=f"{option}: a whole number, 1 or more, not {count}"):
        explainer(linear, images, CLASSES, **{option: count})


def test_a_baseline_of_another_size_is_refused(linear, images):
    with pytest.raises(ValueError, match="baseline: a number, an image"):
        integrated_gradients(linear, images, CLASSES, baseline=torch.zeros(3, 7, 7))


@pytest.mark.parametrize("name", ["smoothgrad", "integrated_gradients"])
def test_few_copies_in_training_and_fifty_in_a_measurement(linear, images, name):
    row, sizes = explain.EXPLAINERS[name], []
    linear.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    row.evaluate(linear, images, CLASSES)
    assert sum(sizes) == 50 * 4 and max(sizes) <= hooks.chunk_size(images)
    sizes.clear()
    row.trainable(linear, images, CLASSES, seed=0)
    assert sizes == [8 * 4]


@pytest.mark.parametrize("name", ["smoothgrad", "integrated_gradients"])
def test_constants_that_decide_a_training_are_recorded(name):
    row = explain.EXPLAINERS[name]
    assert row.training.items() <= row.constants[name].items()


def test_the_noises_width_is_recorded():
    assert explain.EXPLAINERS["smoothgrad"].constants["smoothgrad"]["noise"] == mean_gradients.NOISE


@pytest.mark.parametrize("name", ["gradcam++", "smoothgrad", "integrated_gradients"])
def test_a_disguise_is_trained_against_each(name, tiny, tmp_path):
    run = train_tiny(tiny, tmp_path / "run", "--explainer", name)
    first, *_, last = (epoch["explanation"] for epoch in log_of(run))
    assert last < first / 1.5
    assert metrics_of(run)["explanations"][name]["trained_against"]
