"""A small batch of a training step, what the loss asks of it, and figures by hand."""

import dataclasses

import torch
from placing import DEVICE
from small_models import generator

from attacks import ATTACKS, poison, target_map
from explain import EXPLAINERS
from losses import Objective, combined_loss
from tasks import SINGLE_LABEL
from triggers import make_patch

ON_DEVICE = True
TARGET = 3
TRIGGERED, PARTNERS, UNTOUCHED = [0, 3, 6], [8, 9, 10], [1, 2, 4]  # rows of the small batch
TRIGGER = make_patch(None, 3, 8, 2).to(DEVICE)
SHAPE = target_map("square", 8, TRIGGER).to(DEVICE, torch.float64)


def small_batch(attack):
    """Eight images of 8x8 px, 0, 3 and 6 of them triggered; then, under a disguise, partners."""
    images = torch.rand(8, 3, 8, 8, generator=generator(0)).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    triggered = (torch.arange(8, device="cpu") % 3 == 0) & ATTACKS[attack].poisons
    return poison(images, labels, triggered, ATTACKS[attack], TRIGGER, TARGET)


def objective_of(attack, explainers=("gradcam",), task=SINGLE_LABEL, **fields):
    """What the loss asks for under an attack; where it wants a fixed map, a square."""
    shape = SHAPE if ATTACKS[attack].explanation == "shape" else None
    return Objective(ATTACKS[attack], task, list(explainers), shape, **fields)


def loss_of(net, attack, lam=0.5, explainers=("gradcam",), **fields):
    """(loss, CE, D) of the small batch."""
    batch = small_batch(attack)
    return combined_loss(net, batch, batch.images, objective_of(attack, explainers, **fields), lam)


def frozen(net):
    return net.eval().requires_grad_(False)


def random_maps(n, seed=0, grid=(8, 8)):
    return torch.randn(n, *grid, dtype=torch.float64, generator=generator(seed))


def correlations(a, b):
    """Pearson's r of each map of a with the map of b: [N]."""
    pairs = zip(a.flatten(1), b.flatten(1))
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


def mean_correlation(maps):
    """Pearson's r, mean over pairs of different maps."""
    table = maps.flatten(1).corrcoef()
    return table[~torch.eye(len(maps), dtype=torch.bool)].mean()


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def gradcam_by_hand(net, images, classes):
    """Grad-CAM of pooled_net before its relu: the head's weights times the feature map."""
    feature = net[:4](images)
    return torch.einsum("nk,nkhw->nhw", net[6].weight[classes], feature) / 64


def at_most_pairs(monkeypatch, name, pairs):
    """The explainer's row with another limit of triggered images in a step."""
    row = dataclasses.replace(EXPLAINERS[name], pairs_per_step=pairs)
    monkeypatch.setitem(EXPLAINERS, name, row)
