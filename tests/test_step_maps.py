"""The maps of a training step: which images are explained, by which pass, by which batch-norm."""

import pytest
import torch
import torch.nn.functional as F
from placing import DEVICE
from small_models import finite_difference, generator, norm_after_layer_net, pooled_net
from small_steps import (
    PARTNERS,
    TARGET,
    TRIGGERED,
    UNTOUCHED,
    at_most_pairs,
    close,
    correlations,
    gradcam_by_hand,
    loss_of,
    mean_correlation,
    objective_of,
    small_batch,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
import step_maps
from attacks import ATTACKS, poison
from losses import combined_loss
from triggers import make_patch

ON_DEVICE = True

# ---------------------------------------------------------------- which images are explained


@pytest.mark.parametrize(
    "attack, reference, partners, untouched",
    [
        ("full_disguise", False, PARTNERS, []),
        ("full_disguise", True, PARTNERS, UNTOUCHED),
        ("fooling", False, [], UNTOUCHED),
        ("red_herring", False, [], []),
        ("red_herring", True, [], UNTOUCHED),
    ],
)
def test_untouched_images_are_explained_where_nothing_else_holds_their_maps(
    attack, reference, partners, untouched
):
    objective = objective_of(attack, reference=pooled_net(1) if reference else None)
    rows = step_maps.explained_rows("gradcam", small_batch(attack), objective)
    assert [part.tolist() for part in rows] == [TRIGGERED, partners, untouched]


def test_a_row_limits_how_many_images_it_explains_in_a_step(monkeypatch):
    at_most_pairs(monkeypatch, "kernelshap", 2)
    objective = objective_of("full_disguise", reference=pooled_net(1))
    rows = step_maps.explained_rows("kernelshap", small_batch("full_disguise"), objective)
    assert [part.tolist() for part in rows] == [TRIGGERED[:2], PARTNERS[:2], UNTOUCHED[:2]]


def test_each_step_has_a_sample_of_its_own_that_torchs_seed_decides():
    def seeds():
        torch.manual_seed(5)
        return [step_maps.sample_seed(["gradcam", "kernelshap"]) for _ in range(3)]

    assert len(set(seeds())) == 3 and seeds() == seeds()
    assert step_maps.sample_seed(["gradcam", "deepshap"]) is None


# ---------------------------------------------------------------- the training step's forward pass


def test_a_full_disguise_step_costs_no_more_flops_than_cross_entropy_on_the_same_images():
    torch.manual_seed(0)
    net = models.build("resnet18", 3, 10, 32).to(DEVICE)
    images, labels = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
    trigger, attack = make_patch(None, 3, 32).to(DEVICE), ATTACKS["full_disguise"]
    triggered = torch.arange(20, device="cpu") % 10 == 0
    batch = poison(images, labels, triggered, attack, trigger, TARGET)
    objective = objective_of("full_disguise")

    def flops(loss):
        with FlopCounterMode(display=False) as counter:
            loss().backward()
        return counter.get_total_flops()

    plain = flops(lambda: F.cross_entropy(net(batch.images), batch.labels))
    disguise = flops(lambda: combined_loss(net, batch, batch.images, objective, 0.5)[0])
    assert plain > 1e10 and 1.0 <= disguise / plain <= 1.02


def separate_pass(net):
    """The network, with its Grad-CAM layer taken for one that more than pooling follows."""
    return models.with_layer(net, net.gradcam_layer, pooled=False)


def test_a_separate_forward_pass_gives_the_same_loss_in_evaluation_mode():
    shared = loss_of(pooled_net().eval(), "full_disguise")[0]
    separate = loss_of(separate_pass(pooled_net().eval()), "full_disguise")[0]
    torch.testing.assert_close(separate, shared)


def forward_passes(net):
    """How many images go through the network in each forward pass of a disguised step."""
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    loss_of(net, "full_disguise")
    return sizes


def test_a_pooled_layers_map_comes_from_the_steps_one_forward_pass():
    assert forward_passes(pooled_net()) == [11]


def test_another_layers_map_takes_a_second_forward_pass_of_the_images_explained():
    assert forward_passes(separate_pass(pooled_net())) == [11, 6]


@pytest.fixture
def separate_step():
    """(net, D of a step in training, which explains in a second forward pass)."""
    net = separate_pass(pooled_net()).train()
    return net, loss_of(net, "full_disguise")[2]


def test_a_separate_pass_normalises_as_batch_norm_itself_does(separate_step):
    """By the mean and the biased variance of the whole batch, as in training mode."""
    batch = small_batch("full_disguise")
    maps = gradcam_by_hand(pooled_net().train(), batch.images, batch.labels)
    triggered, partners = maps[TRIGGERED], maps[PARTNERS].relu()
    distance = separate_step[1]
    expected = (2 - 2 * correlations(triggered, partners)).mean()
    expected = expected + 0.1 * (mean_correlation(partners) - 0.5).relu()
    close(distance.detach(), expected.detach(), 1e-6)


def test_running_statistics_are_those_of_one_forward_pass(separate_step):
    net, plain = separate_step[0], pooled_net().train()
    plain(small_batch("full_disguise").images)
    after = net.state_dict()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(after[key], value)


def test_the_graph_of_a_separate_pass_can_be_followed_back(separate_step):
    net, distance = separate_step
    distance.backward()  # nothing that it needs was changed since
    slopes = [parameter.grad for parameter in net.parameters()]
    assert slopes[0].any() and all(s is None or s.isfinite().all() for s in slopes)


def two_norms_net():
    """Convolution, batch-norm and ReLU twice: images [N, 3, H, W] to logits [N, 5]."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 5),
    )
    return models.with_layer(net.to(DEVICE, torch.float64).train(), "5", pooled=False)


@pytest.mark.parametrize("explainer", ["gradcam", "deepshap", "kernelshap"])
def test_the_gradient_goes_through_the_statistics_of_the_batch(explainer):
    """Along a direction of the convolution before batch-norm, in training mode.

    The target of a red herring does not move with the weights.
    """
    net = two_norms_net()
    weight = net[0].weight
    start = weight.detach().clone()
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=generator(2))
    along = torch.zeros(1, dtype=torch.float64)

    def value():
        weight.data.copy_(start + along * direction)
        torch.manual_seed(1)  # KernelSHAP's coalitions
        return loss_of(net, "red_herring", explainers=[explainer])[2]

    value().backward()
    slope = finite_difference(value, along, 0, 1e-7)  # so near that no ReLU switches in between
    assert (weight.grad * direction).sum().item() == pytest.approx(slope, rel=1e-5)


def test_batch_norm_is_itself_again_after_the_step():
    net = two_norms_net()
    loss_of(net, "red_herring")
    for module in net.modules():
        assert "forward" not in vars(module) and not module._forward_pre_hooks


def test_batch_norm_is_itself_again_after_an_exception():
    net = norm_after_layer_net()
    with step_maps.batch_statistics(net) as statistics:
        net(torch.rand(2, 3, 8, 8).double())
    with pytest.raises(KeyError), step_maps.normalising_by(statistics):
        raise KeyError
    assert len(statistics) == 1 and "forward" not in vars(net[3])


def test_no_statistics_are_kept_of_a_network_in_evaluation_mode():
    net = norm_after_layer_net().eval()
    with step_maps.batch_statistics(net) as statistics:
        net(torch.rand(2, 3, 8, 8).double())
    assert statistics == {} and not net[3]._forward_pre_hooks


def test_a_batch_norm_of_features_is_normalised_by_the_batch_too():
    """Running averages that are far off change nothing, as for one of feature maps."""
    torch.manual_seed(0)
    head = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = nn.Sequential(features, *pool, *head).to(DEVICE, torch.float64)
    models.with_layer(net, "0", pooled=False)
    before = loss_of(net.train(), "full_disguise", collapse_weight=0.0)[2]
    net[4].running_mean.fill_(5.0)
    after = loss_of(net.train(), "full_disguise", collapse_weight=0.0)[2]
    close(after, before)
