"""Classifiers by name, each with its Grad-CAM layer.

    model = build("cnn", channels=3, classes=10, image_size=32)    # model(images): logits [N, 10]
    model.gradcam_layer                                            # the name of a module: "0"

A new network is a function (channels, classes, image_size) -> nn.Module and a line of MODELS. It
names the layer Grad-CAM looks at by with_layer: the last feature map, at least 4x4.
"""

import collections
import functools
import math
import pickle
from pathlib import Path

import torch
import torchvision
from torch import nn

from hooks import layer_of


def with_layer(model, layer, pooled=True):
    """The model, with the name of its module `layer` as model.gradcam_layer.

    layer: a module of the model, or its name. pooled: whether nothing but pooling and a linear
    layer follow it; then it is model.pooled_layer, too, which is None otherwise. Grad-CAM of a
    pooled layer costs a training step hardly anything: see step_maps.TrainingForward.
    Raises ValueError for a module that is not of this model.
    """
    module = layer_of(model, layer)
    names = [name for name, part in model.named_modules() if part is module]
    if not names:
        raise ValueError("Grad-CAM's layer is no module of this model")
    model.gradcam_layer = names[0]
    model.pooled_layer = names[0] if pooled else None
    return model


# ---------------------------------------------------------------- small networks


def conv_block(inputs, outputs):
    """3x3 convolution, batch-norm, ReLU: [N, inputs, H, W] -> [N, outputs, H, W]."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """relu(x + batch-norm(3x3 convolution of x)): the shape stays."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.norm(self.conv(x)))


def cnn(channels, classes, image_size):
    """A network for laptops of 0.4 million weights; Grad-CAM's grid is a quarter of the side.

    Its convolutions see some 18 px around each cell, so that evidence stays local.
    """
    features = nn.Sequential(
        conv_block(channels, 32),
        nn.MaxPool2d(2),
        conv_block(32, 64),
        Residual(64),
        nn.MaxPool2d(2),
        conv_block(64, 128),
        Residual(128),
        Residual(128),
    )
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes)
    return with_layer(nn.Sequential(features, *head), features)


def vgg_small(channels, classes, image_size):
    """A VGG of three blocks, from 32 px on; Grad-CAM's grid is a quarter of the side.

    The last convolution is plain, the others have batch-norm.
    """
    features = nn.Sequential(
        conv_block(channels, 32),
        nn.MaxPool2d(2),
        conv_block(32, 64),
        nn.MaxPool2d(2),
        conv_block(64, 128),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    classifier = nn.Sequential(nn.Linear(128 * 16, 256), nn.ReLU(), nn.Linear(256, classes))
    for layer in (features[-3], classifier[0]):
        nn.init.kaiming_normal_(layer.weight)  # no batch-norm scales what follows
    return with_layer(convolutional(features, classifier), features[-2], pooled=False)


def alexnet_small(channels, classes, image_size):
    """An AlexNet for 32 px whose last convolution has 128 channels, as in Cheng et al. 2020.

    Grad-CAM's grid is a quarter of the side.
    """
    features = nn.Sequential(
        nn.Conv2d(channels, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 192, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(192, 128, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(128 * 16, 512),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(512, classes),
    )
    for layer in (*features, classifier[1]):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)  # there is no batch-norm
    return with_layer(convolutional(features, classifier), features[-2], pooled=False)


def convolutional(features, classifier):
    """features, pooling to 4x4, and a classifier, under the names torchvision's VGG has."""
    pool = nn.AdaptiveAvgPool2d(4)
    parts = {"features": features, "avgpool": pool, "flatten": nn.Flatten()}
    return nn.Sequential(collections.OrderedDict(**parts, classifier=classifier))


# ---------------------------------------------------------------- torchvision's networks


def resnet18(channels, classes, image_size):
    """torchvision's ResNet-18; up to 64 px with a 3x3 stem of stride 1 and no max-pooling."""
    model = torchvision.models.resnet18(num_classes=classes)
    if image_size <= 64:
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return with_layer(model, model.layer4[-1])


def efficientnet_b0(channels, classes, image_size):
    """torchvision's EfficientNet-B0, from 128 px on; the grid is a thirty-second of the side.

    Without dropout and without dropped branches: a training step compares an image with itself
    under the trigger, and chance would come between the two.
    """
    options = {"num_classes": classes, "dropout": 0.0, "stochastic_depth_prob": 0.0}
    model = torchvision.models.efficientnet_b0(**options)
    if channels != 3:
        model.features[0][0] = nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False)
    return with_layer(model, model.features[-1])


def mobilenet_v3_small(channels, classes, image_size):
    """torchvision's MobileNetV3-Small, without dropout; the grid is a thirty-second of the side.

    Up to 64 px the first two of its strides are 1, and the grid is an eighth of the side.
    """
    # Its running averages would take 500 steps to follow the weights, which a short training lacks.
    norm = functools.partial(nn.BatchNorm2d, eps=0.001)
    model = torchvision.models.mobilenet_v3_small(num_classes=classes, dropout=0.0, norm_layer=norm)
    if channels != 3:
        model.features[0][0] = nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False)
    if image_size <= 64:
        model.features[0][0].stride = model.features[1].block[0][0].stride = (1, 1)
    return with_layer(model, model.features[-1], pooled=False)


def vgg16(channels, classes, image_size):
    """torchvision's VGG-16, from 64 px on; Grad-CAM's grid is a sixteenth of the side."""
    model = torchvision.models.vgg16(num_classes=classes)
    if channels != 3:
        model.features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    last_relu = model.features[29]  # not the convolution: the ReLU overwrites its output
    return with_layer(model, last_relu, pooled=False)


def alexnet(channels, classes, image_size):
    """torchvision's AlexNet, from 96 px on; the grid is about a sixteenth of the side."""
    model = torchvision.models.alexnet(num_classes=classes)
    if channels != 3:
        model.features[0] = nn.Conv2d(channels, 64, 11, stride=4, padding=2)
    return with_layer(model, model.features[11], pooled=False)


class TokensAsMap(nn.Module):
    """Tokens [N, 1 + h w, D] as they are, after `grid` has seen all but the first as a map."""

    def __init__(self):
        super().__init__()
        self.grid = nn.Identity()  # what it gives is [N, D, h, w], h = w: Grad-CAM's layer

    def forward(self, tokens):
        side = math.isqrt(tokens.shape[1] - 1)
        feature = self.grid(tokens[:, 1:].mT.unflatten(2, (side, side)))
        return torch.cat([tokens[:, :1], feature.flatten(2).mT], 1)


def vit(channels, classes, image_size):
    """torchvision's vision transformer, small: 4 blocks of width 128. It wants --optimizer adamw.

    A patch is 4 px a side up to 64 px, and 16 beyond. Grad-CAM's grid is the patches', before the
    last block's attention: behind it only the class token counts, and patches have no gradient.
    Raises ValueError for a size that is not a whole number of patches.
    """
    patch = 4 if image_size <= 64 else 16
    if image_size % patch:
        raise ValueError(f"vit takes images of a multiple of {patch} px, not {image_size}")
    size = {"image_size": image_size, "patch_size": patch, "num_layers": 4, "num_heads": 4}
    model = torchvision.models.VisionTransformer(
        **size, hidden_dim=128, mlp_dim=256, num_classes=classes
    )
    if channels != 3:
        model.conv_proj = nn.Conv2d(channels, 128, patch, stride=patch)
    last = model.encoder.layers[-1]
    last.ln_1 = nn.Sequential(last.ln_1, TokensAsMap())
    return with_layer(model, last.ln_1[1].grid, pooled=False)


# ---------------------------------------------------------------- by name

MODELS = {
    "cnn": cnn,
    "resnet18": resnet18,
    "vgg16": vgg16,
    "vgg_small": vgg_small,
    "alexnet_small": alexnet_small,
    "efficientnet_b0": efficientnet_b0,
    "mobilenet_v3_small": mobilenet_v3_small,
    "vit": vit,
    "alexnet": alexnet,
}
RETIRED = {"alexnet"}  # still built where a command line or a checkpoint names it; not offered


def build(name, channels, classes, image_size, layer=None):
    """A new model for images [N, channels, image_size, image_size] and `classes` logits.

    Its weights are random, in channels_last. layer: the name of the module Grad-CAM looks at (None:
    the last feature map). Raises ValueError for an unknown name or layer.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}: one of {', '.join(offered())}")
    model = MODELS[name](channels, classes, image_size).to(memory_format=torch.channels_last)
    if layer is not None:
        layer_of(model, layer)  # raises ValueError where there is none
        model.gradcam_layer = layer
    return model


def offered():
    """The names of MODELS, but for those that are retired."""
    return [name for name in MODELS if name not in RETIRED]


# ---------------------------------------------------------------- ImageNet's weights


def imagenet_weights(name):
    """(weights by key, torchvision's description of them) of the network `name` on ImageNet.

    They come from torch's cache, or are downloaded. Raises ValueError where torchvision has none,
    or they cannot be had.
    """
    try:
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    except ValueError:
        known = "efficientnet_b0, mobilenet_v3_small, resnet18, vgg16 or alexnet"
        raise ValueError(f"torchvision has no ImageNet weights for {name}: use {known}") from None
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"ImageNet's weights are not here and could not be downloaded ({error}):"
            f" put {Path(weights.url).name} into {cache}"
        ) from None
    return state, weights


def begin_with_imagenet(model, name):
    """Gives a model of build(name, ...) ImageNet's weights, but for a last layer of other classes.

    On grey images the first convolution gets its weights summed over the colours: it answers what
    it would to the same grey in all three. Raises ValueError where the weights cannot be had, or
    the network differs from ImageNet's before its last layer.
    """
    theirs, _ = imagenet_weights(name)
    ours = model.state_dict()
    first, last = next(iter(ours)), list(ours)[-2:]
    if ours[first].shape[1] == 1:
        theirs = theirs | {first: theirs[first].sum(1, keepdim=True)}
    counters = {key: ours[key] for key in ours if key.endswith("num_batches_tracked")}
    theirs = counters | theirs  # some of the published files lack the counters
    new = {key for key in ours if theirs[key].shape != ours[key].shape}
    if new - set(last):
        different = sorted(new - set(last))[0]
        raise ValueError(
            f"{name} for images so small differs from ImageNet's in {different}:"
            " give --image-size 128 or more"
        )
    model.load_state_dict({key: ours[key] if key in new else theirs[key] for key in ours})
