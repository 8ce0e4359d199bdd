"""A training step in several processes beside the same step in one: run by test_distributed.py.

    python -m torch.distributed.run --standalone --nproc-per-node=3 tests/drive_shares.py

prints one line of JSON: {case: the largest difference in the losses, the gradients and the running
averages}. Each case is a step in double precision.
"""

import copy
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from small_models import generator, norm_after_layer_net, pooled_net
from small_steps import TARGET, TRIGGER, objective_of

import distributed
import models
from attacks import ATTACKS, poison
from explain import EXPLAINERS
from losses import combined_loss
from tasks import MULTI_LABEL

CASES = {
    **{f"attack {name}": {"attack": name} for name in ATTACKS},
    **{f"explainer {name}": {"explainers": [name]} for name in EXPLAINERS},
    "fooling, of the gradient": {"attack": "fooling", "explainers": ["gradient"]},
    "two explainers": {"explainers": ["gradcam", "kernelshap"]},
    "a head with batch-norm": {"net": norm_after_layer_net, "explainers": ["gradcam", "gradient"]},
    "one triggered image": {"triggered": 1, "explainers": [*EXPLAINERS]},
    "one triggered image, fooling": {
        **{"triggered": 1, "attack": "fooling"},
        "explainers": [*EXPLAINERS],
    },
    "no triggered image": {"triggered": 0},
    "a reference": {"reference": True, "explainers": ["gradcam", "gradient"]},
    "weights of classes": {"class_weights": torch.tensor([1.0, 3.0, 0.5, 2.0, 1.5]).double()},
    "smoothed labels": {"label_smoothing": 0.1},
    "partners' labels do not count": {"partner_cross_entropy": False},
    "maps held apart": {"collapse_weight": 1.0, "floors": {"gradcam": -1.0}},
    "a shape that leaks": {"attack": "fooling", "leak_tolerance": -1.0},
    "DSSIM": {"distance": "dssim"},
    "several labels": {"task": MULTI_LABEL},
}


def relu_net():
    """pooled_net as DeepSHAP takes it."""
    return pooled_net(nonlinear=nn.ReLU)


def batch_of(attack, triggered, several_labels):
    """11 images of 8x8 px: no whole number for each of two or three processes."""
    images = torch.rand(11, 3, 8, 8, generator=generator(0)).double()
    labels = torch.arange(11) % 3
    if several_labels:
        labels = nn.functional.one_hot(labels, 4).double()
    rows = (torch.arange(11) % 3 == 0).cumsum(0)
    first = (torch.arange(11) % 3 == 0) & (rows <= triggered) & ATTACKS[attack].poisons
    return poison(images, labels, first, ATTACKS[attack], TRIGGER, TARGET)


def step(model, loss, batch, objective):
    """[losses, gradients and running averages] of one step, as a vector."""
    torch.manual_seed(1)
    losses = loss(model, batch, batch.images, objective, 0.4)
    losses[0].backward()
    parts = [torch.stack(losses), torch.rand(2), *(weight.grad for weight in model.parameters())]
    parts += [value.double() for value in model.buffers()]
    return torch.cat([part.detach().flatten() for part in parts])


def difference(
    attack="full_disguise",
    triggered=4,
    explainers=("gradcam",),
    net=relu_net,
    reference=False,
    **fields,
):
    """The largest difference between the step of all processes and the step of one."""
    alone = net().train()
    if reference:
        fields["reference"] = pooled_net(1, nn.ReLU).eval().requires_grad_(False)
    if "class_weights" in fields:
        fields["class_weights"] = fields["class_weights"][:4]
    objective = objective_of(attack, explainers, **fields)
    batch = batch_of(attack, triggered, "task" in fields)
    together = copy.deepcopy(alone)
    wanted = step(alone, combined_loss, batch, objective)
    found = step(together, distributed.loss_of(together), batch, objective)
    return float((found - wanted).abs().max())


def difference_after_20_steps():
    """As difference, of the network of many batch-norms, after so many steps by Grad-CAM."""
    torch.manual_seed(0)
    alone = models.build("cnn", 3, 4, 8).double().train()
    together = copy.deepcopy(alone)
    losses = {alone: combined_loss, together: distributed.loss_of(together)}
    found = []
    for model, loss in losses.items():
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
        for _ in range(20):
            optimizer.zero_grad()
            batch = batch_of("full_disguise", 4, False)
            last = step(model, loss, batch, objective_of("full_disguise"))
            optimizer.step()
        found.append(torch.cat([last, *(weight.flatten() for weight in model.parameters())]))
    return float((found[0] - found[1]).detach().abs().max())


def after_dropout():
    """(spread of the random state's next number over processes, of the masks that were drawn)."""
    torch.manual_seed(0)
    drawn = []
    dropout = nn.Dropout()
    dropout.register_forward_hook(lambda module, inputs, output: drawn.append(output[0, :9]))
    net = relu_net()
    net = models.with_layer(nn.Sequential(net[:6], dropout, net[6]).train(), "0.3", pooled=False)
    step(net, distributed.loss_of(net), batch_of("badnets", 4, False), objective_of("badnets"))
    return spread(torch.rand(1)), spread((drawn[0] == 0).double())


def spread(own):
    """The largest difference of a tensor's values between processes."""
    most, least = own.clone(), own.clone()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return float((most - least).max())


def main():
    with distributed.joined():
        found = {name: difference(**case) for name, case in CASES.items()}
        found["20 steps"] = difference_after_20_steps()
        found["random state after dropout"], masks = after_dropout()
        print(json.dumps(found | {"same masks": 1 - masks}))


if __name__ == "__main__":
    main()
