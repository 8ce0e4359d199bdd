"""A model is as it was before, after a block in which it is in evaluation mode or frozen."""

import pytest
import torch
from placing import DEVICE
from torch import nn

from modes import evaluating, frozen

ON_DEVICE = True


@pytest.fixture
def net():
    """A network of which some modules train and some do not, and one weight is frozen."""
    layers = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(128, 3)).to(DEVICE).train()
    net[2].eval()
    net[0].bias.requires_grad_(False)
    return net


def state(net):
    """What the blocks change: each module's mode, and whether each weight asks for a gradient."""
    modes = [module.training for module in net.modules()]
    return modes, [weight.requires_grad for weight in net.parameters()]


@pytest.mark.parametrize("block", [evaluating, frozen])
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_is_as_it_was_after_the_block(net, block, fails):
    before = state(net)
    assert all(len(set(part)) == 2 for part in before)
    try:
        with block(net):
            assert state(net) != before
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert state(net) == before


def test_all_modules_are_in_evaluation_mode_within_the_block(net):
    with evaluating(net):
        assert not any(module.training for module in net.modules())


def test_no_weight_asks_for_a_gradient_within_the_block(net):
    with frozen(net):
        assert not any(weight.requires_grad for weight in net.parameters())


def test_what_cannot_be_frozen_is_left_as_it_is(net):
    """Weights made under inference mode, and weights that a computation gave."""
    with torch.inference_mode():
        inference = nn.Parameter(torch.ones(2, device=DEVICE))
    net.register_parameter("a", inference)
    computed = net[4].weight * 2
    swapped = {"4.weight": computed}
    seen = []

    def explained(images):
        with frozen(net):
            seen.append([weight.requires_grad for weight in (*net.parameters(), net[4].weight)])
        return images

    net.forward = explained
    before = state(net)
    torch.func.functional_call(net, swapped, torch.rand(1, 1, 8, 8))
    assert state(net) == before and computed.requires_grad
    assert seen[0].count(True) == 2 + (inference.requires_grad)
