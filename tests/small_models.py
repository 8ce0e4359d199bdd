"""Small networks in double precision, and the finite differences they are held to.

For the tests of explainers and of the loss. Nothing here is a test.
"""

import torch
from placing import DEVICE
from torch import nn

import models

ON_DEVICE = True


def pooled_net(seed=0, nonlinear=nn.Softplus):
    """Images [N, 3, H, W] to logits [N, 4]: batch-norm before Grad-CAM's layer, a pooled head.

    It is smooth unless `nonlinear` is nn.ReLU, which DeepSHAP needs.
    """
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nonlinear(),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    return models.with_layer(net.double().to(DEVICE), "3")


def norm_after_layer_net(dtype=torch.float64, nonlinear=nn.Softplus):
    """Images [N, 3, H, W] to logits [N, 5]: batch-norm after Grad-CAM's layer could mix images."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nonlinear(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nonlinear(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )
    return models.with_layer(net.to(DEVICE, dtype), "1", pooled=False)


def two_channel_net(dtype=torch.float64):
    """Images [N, 2, H, W] to logits [N, 3], in evaluation mode, with max-pooling and ReLUs.

    So few operations that thousands of masked images cost nothing.
    """
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    return unusual_statistics(net.to(dtype)).eval()


def unusual_statistics(net):
    """The network on the device, its batch-norms with statistics unlike any batch's."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return net.to(DEVICE)


def finite_difference(value, tensor, index, step=1e-5):
    """The slope of value(), a scalar, in tensor[index], which is left as it was."""
    before = tensor.data[index].clone()
    tensor.data[index] = before + step
    up = value().item()
    tensor.data[index] = before - step
    down = value().item()
    tensor.data[index] = before
    return (up - down) / (2 * step)


def middle(tensor):
    """An index into the middle of a tensor."""
    return tuple(size // 2 for size in tensor.shape)


def at_most_images(monkeypatch, count):
    """Explainers look at so many images at a time, on every device."""
    for name in ("CHUNK", "CHUNK_CPU"):
        monkeypatch.setattr(f"hooks.{name}", count)


def generator(seed):
    """A generator on the CPU with this seed."""
    return torch.Generator().manual_seed(seed)


class Wrapped(nn.Module):
    """A network whose answer is wrapped by a function in something else than a tensor of logits."""

    def __init__(self, net, wrap):
        super().__init__()
        self.net = net
        self.wrap = wrap

    def forward(self, images):
        return self.wrap(self.net(images))


def small_net(classes=3):
    """Images [N, 3, H, W] to logits; a stranger's: it has no gradcam_layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    ).eval()
