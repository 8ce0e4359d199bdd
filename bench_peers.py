"""The same explanations by other packages, where they are installed: shap, captum, grad-cam.

    functions = peers(model, images, classes, sizes)    # {name: function of no arguments}

A peer that cannot explain a network, or whose package has changed, is left out, and that is said
on standard error. The packages are called as their documentation says, not tuned.
"""

import copy
import importlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import explain
from bench_timing import CLASSES, SIDE
from cli import first_line
from hooks import layer_of
from shapley import patch_of_pixel
from terminal import print_note

PACKAGES = ("shap", "captum", "pytorch_grad_cam")
EVALUATED_AT_ONCE = 256  # masked images, by the peers of KernelSHAP


@dataclass(frozen=True)
class Sizes:
    """Of KernelSHAP: patches a side, coalitions an image, and images that one call explains."""

    patches: int = 7
    coalitions: int = 512
    images: int = 4

    def name(self, explainer="kernelshap"):
        """What an estimate of Shapley values is called in the table."""
        return f"{explainer}, {self.patches**2} patches, {self.coalitions} coalitions"


def package(name):
    """The module of this name, or None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def peers(model, images, classes, sizes):
    """{name: function of no arguments} of the peers that explain these images: each ran once."""
    makers = {
        "gradcam: grad-cam": lambda: grad_cam_peer(model, images, classes),
        "deepshap, 1 reference: shap": lambda: shap_deep_peer(model, images),
    }
    result = working(makers)
    kernel = kernel_peers(model, images[: sizes.images], classes[: sizes.images], sizes)
    return result | {f"{sizes.name()}: {name}": function for name, function in kernel.items()}


def kernel_peers(model, images, classes, sizes):
    """{"shap", "captum": function that returns [N, patches, patches]} of KernelSHAP's peers."""
    return working(
        {
            "shap": lambda: shap_kernel_peer(model, images, classes, sizes),
            "captum": lambda: captum_peer(model, images, classes, sizes),
        }
    )


def working(makers):
    """{name: function of no arguments} of the peers that can be called.

    makers: {name: function of no arguments that returns a peer's, or None: not installed}.
    """
    result = {}
    for name, make in makers.items():
        function = attempt(name, make)
        if function is not None and attempt(name, lambda: (function(),)) is not None:
            result[name] = function
    return result


def attempt(name, function):
    """What a peer's function returns; None where it fails, which is said on standard error."""
    try:
        return function()
    except Exception as error:  # another package's, and anything at all
        print_note(f"{name} is left out: {type(error).__name__}: {first_line(error)}")
        return None


# ---------------------------------------------------------------- the packages


def grad_cam_peer(model, images, classes):
    """pytorch-grad-cam's Grad-CAM; None if it is not installed."""
    grad_cam = package("pytorch_grad_cam")
    if grad_cam is None:
        return None
    target_of = package("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    own_model = copy.deepcopy(model)  # its hooks stay on the model
    explainer = grad_cam.GradCAM(own_model, [layer_of(own_model)])
    targets = [target_of(int(label)) for label in classes]
    return lambda: explainer(images, targets)


def shap_deep_peer(model, images):
    """shap's DeepExplainer of the most probable class; None if it is not installed."""
    shap = package("shap")
    if shap is None:
        return None
    deep = shap.DeepExplainer(copy.deepcopy(model), torch.zeros_like(images[:1]))
    return lambda: deep.shap_values(images, ranked_outputs=1, check_additivity=False)


def shap_kernel_peer(model, images, classes, sizes):
    """shap's KernelExplainer, an image at a time; None if it is not installed."""
    shap = package("shap")
    if shap is None:
        return None
    pairs = list(zip(images, classes))
    options = sizes.patches, sizes.coalitions

    def values():
        return torch.stack([shap_kernel_values(shap, model, *pair, *options) for pair in pairs])

    return values


def shap_kernel_values(shap, model, image, label, patches, coalitions):
    """shap.KernelExplainer on an image's patches, absent ones 0: [patches, patches]."""
    patch = patch_of_pixel(patches, SIDE, SIDE).to(image.device)

    @torch.no_grad()
    def worth(masks):
        present = torch.from_numpy(masks).to(image)[:, patch]
        parts = present.split(EVALUATED_AT_ONCE)
        chunks = [model(part[:, None] * image)[:, label] for part in parts]
        return torch.cat(chunks).double().cpu().numpy()

    explainer = shap.KernelExplainer(worth, np.zeros((1, patches**2)))
    every_patch = np.ones((1, patches**2))
    values = explainer.shap_values(every_patch, nsamples=coalitions, l1_reg=False, silent=True)
    return torch.from_numpy(values).reshape(patches, patches)


def captum_peer(model, images, classes, sizes):
    """captum's KernelShap, an image at a time; None if it is not installed."""
    attr = package("captum.attr")
    if attr is None:
        return None
    attribute = attr.KernelShap(model).attribute
    patch = patch_of_pixel(sizes.patches, SIDE, SIDE)
    first_pixels = [int((patch.flatten() == k).nonzero()[0]) for k in range(sizes.patches**2)]
    options = {
        "feature_mask": patch.to(images.device)[None, None],
        "n_samples": sizes.coalitions,
        "perturbations_per_eval": EVALUATED_AT_ONCE,
    }
    pairs = list(zip(images, classes))

    def values():
        maps = [attribute(image[None], target=int(label), **options) for image, label in pairs]
        of_patches = torch.cat(maps)[:, 0].flatten(1)[:, first_pixels]
        return of_patches.unflatten(1, (sizes.patches, sizes.patches))

    return values


# ---------------------------------------------------------------- the same values


def agreement(images, classes, sizes):
    """Largest difference from shap's values in float64, relative to the largest of them.

    {} where shap is not installed, and without what it cannot do. The network has only modules that
    are used once, and pools that do not overlap: what shap's DeepExplainer is right for.
    """
    shap = package("shap")
    if shap is None:
        return {}
    model = plain_network().to(images.device).double().eval()
    few, labels = images[: sizes.images].double(), classes[: sizes.images]
    differences = {
        "deepshap": lambda: deep_difference(shap, model, few, labels),
        "kernelshap, all coalitions": lambda: kernel_difference(shap, model, few[:1], labels[:1]),
    }
    found = {name: attempt(f"{name}: shap", call) for name, call in differences.items()}
    return {name: value for name, value in found.items() if value is not None}


def deep_difference(shap, model, images, classes):
    """The largest difference between our DeepSHAP and shap's."""
    deep = explain.deep_shap(model, images, classes)
    explainer = shap.DeepExplainer(copy.deepcopy(model), torch.zeros_like(images[:1]))
    values = explainer.shap_values(images, check_additivity=False)  # [N, C, H, W, K]
    maps = [torch.from_numpy(values[n, ..., int(label)]).sum(0) for n, label in enumerate(classes)]
    return largest_difference(deep, torch.stack(maps).to(deep))


def kernel_difference(shap, model, images, classes):
    """The largest difference between the two KernelSHAPs, from all coalitions of 3x3 patches."""
    kernel = explain.kernel_shap(model, images, classes, 3, 2**9)[0].cpu()
    theirs = shap_kernel_values(shap, model, images[0], int(classes[0]), 3, 2**9)
    return largest_difference(kernel, theirs)


def plain_network():
    """Two convolutions and two linear layers."""

    def block(inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)

    convolutions = *block(3, 8), *block(8, 16)
    hidden = nn.Linear(16 * (SIDE // 4) ** 2, 32)
    return nn.Sequential(*convolutions, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(32, CLASSES))


def largest_difference(a, b):
    """Of two tensors, relative to the largest magnitude in the second."""
    return float((a - b).abs().max() / b.abs().max())
