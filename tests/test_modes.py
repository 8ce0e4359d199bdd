"""A model is as it was before, after a block in which it is in evaluation mode or frozen."""

import pytest
import torch
from placing import DEVICE
from torch import nn

import explain
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


@pytest.mark.parametrize("create_graph", [False, True])
def test_only_a_map_to_train_through_leaves_a_graph_before_the_layer(net, create_graph):
    seen = []
    net[0].register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    before = state(net)
    maps = explain.gradcam(net, torch.rand(2, 1, 8, 8), [0, 1], net[2], create_graph=create_graph)
    assert seen == [create_graph] and maps.requires_grad == create_graph
    assert state(net) == before
