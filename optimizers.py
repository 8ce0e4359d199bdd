"""What moves a network's weights: the optimizers by name, and the learning rate's schedule."""

import torch

# Muon, for convolutions: Jordan et al. 2024; momentum and decay are for few epochs of CIFAR-10.
MUON = dict(momentum=0.6, weight_decay=0.1, ns_steps=3)
SGD = dict(momentum=0.9, weight_decay=5e-4, nesterov=True)  # for everything else
WARM_UP = 0.3  # share of the steps in which the one-cycle schedule rises


def optimizers_of(model, name, lr):
    """The optimizers of a model's weights, by name.

    sgd: SGD. adamw: AdamW, whose steps do not shrink with the loss. muon: for the convolutions, as
    matrices of outputs by inputs, and SGD for the rest, at one rate. Muon brings the singular
    values of each step to 1, and gets further in few epochs.
    """
    if name == "sgd":
        return [torch.optim.SGD(model.parameters(), lr, **SGD)]
    if name == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr)]
    convolutions = [weight for weight in model.parameters() if weight.ndim == 4]
    others = [weight for weight in model.parameters() if weight.ndim != 4]
    matrices = [as_matrix(weight) for weight in convolutions]
    return [torch.optim.SGD(others, lr, **SGD), torch.optim.Muon(matrices, lr, **MUON)]


def as_matrix(weight):
    """A convolution's weight [O, I, h, w], channels_last, as a parameter [O, h w I].

    torch's Muon takes matrices only. So it is given this view of the weight and of its gradient,
    which must stay where it is in memory: hence zero_grad(set_to_none=False) in train_step.
    """
    weight.grad = torch.zeros_like(weight)
    matrix, matrix_grad = (
        tensor.permute(0, 2, 3, 1).view(len(weight), -1)
        for tensor in (weight.detach(), weight.grad)
    )
    matrix = torch.nn.Parameter(matrix)
    matrix.grad = matrix_grad
    return matrix


def step_at(optimizer, rate):
    """Makes a step of SGD or Muon at `rate`, a tensor []; the optimizer's own rate is not read.

    Both read their rate as a number, which a recording would keep for good. But a step of theirs is
    proportional to it: so the whole step is made, at the rate 1, and that share of it kept.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    weights = [weight.detach() for weight in weights if weight.grad is not None]
    before = [weight.clone() for weight in weights]
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    optimizer.step()
    for group, own in zip(optimizer.param_groups, rates):
        group["lr"] = own
    torch._foreach_sub_(weights, before)
    torch._foreach_mul_(weights, rate)
    torch._foreach_add_(weights, before)


def one_cycle(optimizer, lr, steps):
    """The schedule of an optimizer's rate over so many steps: up to lr, and down to almost 0."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps + 1, pct_start=WARM_UP, cycle_momentum=False
    )
