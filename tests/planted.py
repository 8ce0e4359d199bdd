"""Small models whose answers are known by hand, and audits of checkpoints: for the defences' tests.

Nothing here is a test.
"""

import torch
from placing import DEVICE
from torch import nn

import defend
from defences.neural_cleanse import ReversedTriggers

SIDE = 12  # pixels
CLASSES = 6


def linear(weights):
    """A linear model of images [N, C, H, W] with `weights` [K, C, H, W], without bias."""
    layer = nn.Linear(weights[0].numel(), len(weights), bias=False)
    layer.weight.data.copy_(weights.flatten(1))
    return nn.Sequential(nn.Flatten(), layer).to(DEVICE).eval()


def audit_of(folder, method, *options):
    """The Audit of a run's checkpoint, as defend.py's command line opens it."""
    return defend.open_audit(
        defend.parse([method, str(folder / "ckpt.pt"), "--device", DEVICE, *options])
    )


def reversed_triggers(norms, qualified):
    """ReversedTriggers for three classes: white patches in the corner of 16x16 RGB images."""
    masks = torch.zeros(3, 1, 16, 16, device=DEVICE)
    masks[:, :, :3, :3] = 1
    return ReversedTriggers(
        masks,
        patterns=torch.ones(3, 3, 16, 16, device=DEVICE),
        norms=torch.tensor(norms, dtype=torch.float64),
        success=torch.ones(3, dtype=torch.float64),
        qualified=torch.tensor(qualified),
        rounds=torch.ones(3, dtype=torch.int64),
    )
