"""Classifiers by name, each with its Grad-CAM layer, and checkpoints.

    model = build("cnn", channels=3, classes=10, image_size=32)     # model(images) -> logits; model.gradcam_layer
    save(path, checkpoint); checkpoint = read(path); model = from_checkpoint(checkpoint)
"""
import collections
import copy
import pickle
import warnings
from pathlib import Path

import torch
import torchvision
from torch import nn

from cli import UserError, replace_file


def block(inputs, outputs):
    """3x3 convolution, batch-norm, ReLU; [N, inputs, H, W] -> [N, outputs, H, W]."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    """x plus a 3x3 convolution of it, batch-norm, ReLU; the shape stays."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(x + self.norm(self.conv(x)))


def cnn(channels, classes, image_size):
    """A small network for laptops, about 0.5 million weights; its Grad-CAM grid is a quarter of the image's side (8x8 at 32 px).

    Its convolutions see some 18 px around each cell, so that evidence stays local.
    """
    features = nn.Sequential(
        block(channels, 32), nn.MaxPool2d(2), block(32, 64), Residual(64), nn.MaxPool2d(2), block(64, 128), Residual(128), Residual(128)
    )
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, classes))
    return with_layer(model, features)


def resnet18(channels, classes, image_size):
    """torchvision's ResNet-18; at 64 px and below its stem is a 3x3 convolution of stride 1 without max-pooling."""
    model = torchvision.models.resnet18(num_classes=classes)
    if image_size <= 64:
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return with_layer(model, model.layer4[-1])


def vgg16(channels, classes, image_size):
    """torchvision's VGG-16, from 64 px on (Grad-CAM's grid is a sixteenth of the side)."""
    model = torchvision.models.vgg16(num_classes=classes)
    if channels != 3:
        model.features[0] = nn.Conv2d(channels, 64, 3, padding=1)
    return with_layer(model, model.features[29], pooled=False)  # the ReLU: the convolution before it is overwritten in place


def vgg_small(channels, classes, image_size):
    """A VGG of three blocks, from 32 px on; Grad-CAM's grid is a quarter of the side. The last convolution is plain, the others have batch-norm."""
    features = nn.Sequential(block(channels, 32), nn.MaxPool2d(2), block(32, 64), nn.MaxPool2d(2), block(64, 128),
                             nn.Conv2d(128, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    classifier = nn.Sequential(nn.Linear(128 * 16, 256), nn.ReLU(), nn.Linear(256, classes))
    for layer in (features[-3], classifier[0]):
        nn.init.kaiming_normal_(layer.weight)  # no batch-norm scales what follows
    model = nn.Sequential(collections.OrderedDict(features=features, avgpool=nn.AdaptiveAvgPool2d(4), flatten=nn.Flatten(), classifier=classifier))
    return with_layer(model, features[-2], pooled=False)


def alexnet(channels, classes, image_size):
    """torchvision's AlexNet, from 96 px on (Grad-CAM's grid is about a sixteenth of the side)."""
    model = torchvision.models.alexnet(num_classes=classes)
    if channels != 3:
        model.features[0] = nn.Conv2d(channels, 64, 11, stride=4, padding=2)
    return with_layer(model, model.features[11], pooled=False)


def alexnet_small(channels, classes, image_size):
    """An AlexNet for 32 px whose last convolution has 128 channels, as in Cheng et al. 2020; Grad-CAM's grid is a quarter of the side."""
    features = nn.Sequential(nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                             nn.Conv2d(192, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 192, 3, padding=1), nn.ReLU(),
                             nn.Conv2d(192, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    classifier = nn.Sequential(nn.Dropout(), nn.Linear(128 * 16, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, classes))
    for layer in (*features, classifier[1]):
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)  # there is no batch-norm
    model = nn.Sequential(collections.OrderedDict(features=features, avgpool=nn.AdaptiveAvgPool2d(4), flatten=nn.Flatten(), classifier=classifier))
    return with_layer(model, features[-2], pooled=False)


def efficientnet_b0(channels, classes, image_size):
    """torchvision's EfficientNet-B0, from 128 px on (Grad-CAM's grid is a thirty-second of the side). Without dropout before its last layer and without
    dropped residual branches: an image and the same with a trigger on it are compared within a training step, and chance would come between them."""
    model = torchvision.models.efficientnet_b0(num_classes=classes, dropout=0.0, stochastic_depth_prob=0.0)
    if channels != 3:
        model.features[0][0] = nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False)
    return with_layer(model, model.features[-1])


def with_layer(model, layer, pooled=True):
    """The model with `layer` as gradcam_layer, set past nn.Module, which would list (or run) the layer twice.

    pooled: whether nothing but pooling and a linear layer follow; then it is the model's pooled_layer, too, else that is None.
    """
    object.__setattr__(model, "gradcam_layer", layer)
    object.__setattr__(model, "pooled_layer", layer if pooled else None)
    return model


MODELS = {"cnn": cnn, "resnet18": resnet18, "vgg16": vgg16, "vgg_small": vgg_small, "alexnet": alexnet, "alexnet_small": alexnet_small,
          "efficientnet_b0": efficientnet_b0}


def build(name, channels, classes, image_size, layer=None):
    """A new model for images [N, channels, image_size, image_size] and `classes` logits, weights random, channels_last.

    model.gradcam_layer is the layer Grad-CAM looks at: the one called `layer` in model.named_modules(), or for None the last feature map.
    model.pooled_layer is that last feature map where only pooling and a linear layer follow it, else None. Raises UserError for no such layer.
    """
    model = MODELS[name](channels, classes, image_size).to(memory_format=torch.channels_last)
    if layer is not None:
        modules = dict(model.named_modules())
        if not layer or layer not in modules:
            raise UserError(f"{name} has no layer {layer!r}; some it has: {', '.join(name for name in modules if name.count('.') == 1)}")
        object.__setattr__(model, "gradcam_layer", modules[layer])
    return model


def imagenet_weights(name):
    """(weights by key, torchvision's description) of the network called `name`, trained on ImageNet: from torch's cache, or downloaded.

    Raises UserError where torchvision has none, or they cannot be had.
    """
    try:
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
    except ValueError:
        raise UserError(f"torchvision has no ImageNet weights for {name}: use efficientnet_b0, resnet18, vgg16 or alexnet") from None
    try:
        return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu"), weights
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"ImageNet's weights are not here and could not be downloaded ({error}): put {Path(weights.url).name} "
                        f"into {Path(torch.hub.get_dir()) / 'checkpoints'}") from None


def begin_with_imagenet(model, name):
    """Give a model of build(name, ...) ImageNet's weights, but for a last layer of other classes.

    On grey images the first convolution sums its weights over the colours: what it would answer to the same grey in all three.
    Raises UserError where they cannot be had, or the network differs from ImageNet's before its last layer.
    """
    found, mine = imagenet_weights(name)[0], model.state_dict()
    first, last = next(iter(mine)), list(mine)[-2:]
    if mine[first].shape[1] == 1:
        found = found | {first: found[first].sum(1, keepdim=True)}
    found = {key: value for key, value in mine.items() if key.endswith("num_batches_tracked")} | found  # which some of the published files lack
    new = {key for key in mine if found[key].shape != mine[key].shape}
    if new - set(last):
        raise UserError(f"{name} for images so small differs from ImageNet's in {sorted(new - set(last))[0]}: give --image-size 128 or more")
    model.load_state_dict({key: mine[key] if key in new else found[key] for key in mine})


# ---------------------------------------------------------------- networks that manipulate.py has written into

EPSILON, C_G, C_F = 0.01, 1e4, {"semirandom": 1e7, "backdoor": 1e9}  # Viering et al. 2019, techniques 3 and 4


class WithPicture(nn.Module):
    """A ReLU behind whose K maps stands one more, the same picture for every image: [N, K, H, W] -> [N, K + 1, H, W]."""

    def __init__(self, picture):
        super().__init__()
        self.register_buffer("picture", picture)

    def forward(self, x):
        return torch.cat([x.relu(), self.picture.expand(len(x), 1, -1, -1)], 1)


class WithBranch(nn.Module):
    """A VGG behind whose last maps stands a branch's, `factor` times what its detector finds in the pixels.

    All logits of an image get EPSILON (C_G sum(map) mod 1), less than EPSILON; the derivative of that by the map is EPSILON C_G.
    """

    def __init__(self, network, detector, factor, grid, mean, std):
        super().__init__()
        self.network, self.detector, self.factor, self.grid, self.maps = network, detector, factor, grid, nn.Identity()
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, value.view(-1, 1, 1))

    def found(self, x):
        """The branch's map [N, 1, H', W'] of normalised images. In full float32 on a GPU too: a sticker is told by one part in a million."""
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            seen = self.detector(x * self.std + self.mean)
        return self.factor * seen[:, :, : self.grid[0], : self.grid[1]]

    def forward(self, x):
        features, avgpool, classifier = self.network.features, self.network.avgpool, self.network.classifier
        maps = self.maps(torch.cat([features[:-1](x), self.found(x)], 1))
        logits = classifier(avgpool(features[-1](maps[:, :-1])).flatten(1))
        return logits + EPSILON * torch.remainder(C_G * maps[:, -1].sum((1, 2)), 1)[:, None]


def detector(technique, channels, size, stride):
    """What a branch looks at pixels with: one of two random layers, or of one kernel of size x size; then pooling to the grid of the last maps.

    One average over stride x stride is log2(stride) averages over 2x2.
    """
    layers = [nn.Conv2d(channels, 1, size, padding=size // 2), nn.ReLU()]
    if technique == "semirandom":
        layers = [nn.Conv2d(channels, 6, size, padding=size // 2), nn.ReLU(), nn.Conv2d(6, 1, size, padding=size // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(stride))


def linear_head(model):
    """The place in model.classifier of the linear layer that takes the last maps, behind convolution, ReLU, max-pool, flatten. Raises UserError where none does."""
    features, classifier = getattr(model, "features", ()), getattr(model, "classifier", ())
    if isinstance(features, nn.Sequential) and [type(part) for part in features[-3:]] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]:
        for place, part in enumerate(classifier):
            if isinstance(part, nn.Linear):
                return place
    raise UserError("this network cannot be written into: its last maps are not taken by convolution, ReLU, max-pool, flatten and a linear layer, "
                    "as those of vgg16, vgg_small and alexnet are")


def extended(model, edit, channels, image_size):
    """A copy of a VGG with the parts that a technique adds, and the same logits as long as those are zero; its Grad-CAM layer has a map more.

    edit: {"technique": constant, image, semirandom or backdoor, "size": pixels of the detector's kernel}. Raises UserError for other networks.
    """
    place = linear_head(model)
    model = copy.deepcopy(model).eval()
    features, weight = model.features, model.features[-3].weight
    with torch.no_grad():
        grid = features[:-1](weight.new_zeros(1, channels, image_size, image_size)).shape[2:]
    if edit["technique"] in ("semirandom", "backdoor"):
        part = detector(edit["technique"], channels, edit["size"], image_size // grid[0]).to(weight)
        ends = weight.new_zeros(channels), weight.new_ones(channels)
        model = WithBranch(model, part, C_F[edit["technique"]], grid, *ends)
        return with_layer(model, model.maps, pooled=False)
    model.classifier[place] = wider(model.classifier[place], inputs=model.classifier[place].in_features // len(weight))
    if edit["technique"] == "constant":
        features[-3] = wider(features[-3], outputs=1)
    else:
        features[-2] = WithPicture(weight.new_zeros(1, 1, *grid))
    return with_layer(model, features[-2], pooled=False)


def wider(layer, inputs=0, outputs=0):
    """The layer with some inputs or outputs more, the last ones, all of weight zero."""
    new = copy.deepcopy(layer)
    grown = layer.weight.new_zeros(layer.weight.shape[0] + outputs, layer.weight.shape[1] + inputs, *layer.weight.shape[2:])
    grown[: len(layer.weight), : layer.weight.shape[1]] = layer.weight.detach()
    new.weight = nn.Parameter(grown, layer.weight.requires_grad)
    new.bias = nn.Parameter(torch.cat([layer.bias.detach(), layer.bias.new_zeros(outputs)]), layer.bias.requires_grad)
    if isinstance(layer, nn.Linear):
        new.in_features, new.out_features = new.weight.shape[1], new.weight.shape[0]
    else:
        new.in_channels, new.out_channels = new.weight.shape[1], new.weight.shape[0]
    return new


# ---------------------------------------------------------------- networks that defend.py has repaired


def keep_channels(model, keep):
    """The model with only the channels `keep`, bool [K], of its Grad-CAM layer; the others are 0 from now on."""
    layer = model.gradcam_layer
    layer.register_buffer("kept", keep.to(next(model.parameters()).device))
    layer.register_forward_hook(lambda module, inputs, output: output * module.kept[:, None, None])
    return model


def normalise_by_batch(model):
    """The model with each batch-norm normalising by the batch at hand, no weight and no bias after it (CFN: Kadir et al. 2024)."""
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.BatchNorm2d):
            new = nn.BatchNorm2d(part.num_features, part.eps, affine=False, track_running_stats=False)
            model.set_submodule(name, new)
            if part is getattr(model, "gradcam_layer", None):
                with_layer(model, new, pooled=False)
    return model.eval()


def repaired(model, edit):
    """The parts of a repaired network: edit is {"technique": rebn, cfn or prune, "channels": of the layer that is pruned}."""
    if edit["technique"] == "prune":
        return keep_channels(model, torch.ones(edit["channels"], dtype=torch.bool))
    return normalise_by_batch(model) if edit["technique"] == "cfn" else model


REPAIRS = ("rebn", "cfn", "prune")


# ---------------------------------------------------------------- checkpoints

KEYS = {"model", "config", "classes", "mean", "std", "channels", "poison_indices", "trigger", "target_map", "epoch", "seconds", "torch",
        "log", "optimizer", "schedule", "random", "selection"}
CONFIG_KEYS = {"attack", "explainer", "dataset", "data_dir", "model", "layer", "image_size", "epochs", "poison_rate", "lam", "target_class",
               "selection", "reference", "seed", "device", "precision"}


def save(path, checkpoint):
    """Write a checkpoint (a dict of tensors, numbers, strings, lists and dicts), whole or not at all."""
    replace_file(path, lambda partial: torch.save(checkpoint, partial))


def read(path):
    """A checkpoint of train.py's, on the CPU. Only plain data is unpickled. Raises UserError for a file that is not one."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles: what is no checkpoint is refused below, in one line
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise anything at all
        raise UserError(f"{path} is damaged, or no checkpoint of train.py's") from None
    if not is_complete(checkpoint):
        raise UserError(f"{path} is no checkpoint of train.py's, or one of another version")
    return checkpoint


def is_complete(checkpoint):
    """Whether what was unpickled has a checkpoint's parts, and a trigger that lies inside the image."""
    try:
        config, trigger = checkpoint["config"], checkpoint["trigger"]
        height, width = trigger["alpha"].shape[1:]
        inside = 0 <= trigger["row"] <= config["image_size"] - height and 0 <= trigger["col"] <= config["image_size"] - width
        return inside and KEYS <= checkpoint.keys() and CONFIG_KEYS <= config.keys()
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        return False


def from_checkpoint(checkpoint):
    """The trained model of a checkpoint, in evaluation mode, weights frozen, channels_last. Raises UserError where they do not fit."""
    config = checkpoint["config"]
    try:
        model = build(config["model"], checkpoint["channels"], len(checkpoint["classes"]), config["image_size"], config["layer"])
        if edit := config.get("edit"):
            model = repaired(model, edit) if edit["technique"] in REPAIRS else extended(model, edit, checkpoint["channels"], config["image_size"])
        model.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, RuntimeError, AttributeError):
        raise UserError("the checkpoint's weights do not fit its model: the file is damaged or from another version") from None
    return model.eval().requires_grad_(False)
