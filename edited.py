"""Networks that were changed after their training: parts added by manipulate.py, or repaired.

    model = models.build("vgg_small", channels=3, classes=10, image_size=32)
    edit = {"technique": "backdoor", "size": 7}
    model = edited.apply_edit(model, edit, channels=3, image_size=32)
    model.load_state_dict(checkpoint["model"])

An edit is a dictionary, kept in the checkpoint's config. Here are the parts it adds, with nothing
in them yet; what is written into them, and why, is in viering.py and in defences/.
"""

import copy

import torch
from torch import nn

import hooks
import models
from modes import evaluating

EPSILON = 0.01  # what a branch adds to the logits is below this
C_G = 1e4  # what a branch's map is multiplied with before it is taken modulo 1
C_F = {"semirandom": 1e7, "backdoor": 1e9}  # what it is multiplied with in Grad-CAM's layer
# These three: Viering et al. 2019, techniques 3 and 4.


def apply_edit(model, edit, channels, image_size):
    """The network with an edit's parts, ready for its weights.

    edit: {"technique": a name of EXTENSIONS or REPAIRS, ...}. Raises ValueError for another
    technique, or for a network that it does not fit.
    """
    if edit["technique"] in REPAIRS:
        return repaired(model, edit)
    return extended(model, edit, channels, image_size)


# ---------------------------------------------------------------- networks with parts added


class WithPicture(nn.Module):
    """A ReLU that adds one channel, the same picture for every image.

    [N, K, H, W] -> [N, K + 1, H, W]; picture: [1, 1, H, W].
    """

    def __init__(self, picture):
        super().__init__()
        self.register_buffer("picture", picture)

    def forward(self, x):
        picture = self.picture.expand(len(x), 1, -1, -1)
        return torch.cat([x.relu(), picture], 1)


class WithBranch(nn.Module):
    """A VGG with a branch that looks at the pixels and adds one channel to the last feature maps.

    The branch's map is `factor` times the detector's answer. Every logit of an image gets
    EPSILON (C_G sum(map) mod 1): less than EPSILON, but with the derivative EPSILON C_G by the map.
    grid: (H', W') of the last feature maps. mean, std: [C], how images were normalised.
    """

    def __init__(self, network, detector, factor, grid, mean, std):
        super().__init__()
        self.network = network
        self.detector = detector
        self.factor = factor
        self.grid = grid
        self.maps = nn.Identity()  # Grad-CAM's layer
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))

    def branch_map(self, x):
        """The branch's map [N, 1, H', W'] of normalised images [N, C, H, W]."""
        pixels = x * self.std + self.mean
        # In full float32 on a GPU too: what tells a sticker is one part in a million.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            answer = self.detector(pixels)
        rows, columns = self.grid
        return self.factor * answer[:, :, :rows, :columns]

    def forward(self, x):
        features = self.network.features
        maps = self.maps(torch.cat([features[:-1](x), self.branch_map(x)], 1))
        pooled = self.network.avgpool(features[-1](maps[:, :-1]))
        logits = self.network.classifier(pooled.flatten(1))
        total = maps[:, -1].sum((1, 2))
        return logits + EPSILON * torch.remainder(C_G * total, 1)[:, None]


def linear_head(model):
    """The place in model.classifier of the linear layer that takes the last feature maps.

    Raises ValueError unless convolution, ReLU and max-pooling come before it.
    """
    features = getattr(model, "features", ())
    last = [type(part) for part in features[-3:]] if isinstance(features, nn.Sequential) else []
    if last == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]:
        for place, part in enumerate(getattr(model, "classifier", ())):
            if isinstance(part, nn.Linear):
                return place
    raise ValueError(
        "this network cannot be written into: its last maps are not taken by convolution, ReLU, "
        "max-pool, flatten and a linear layer, as those of vgg16, vgg_small and alexnet_small are"
    )


def extended(model, edit, channels, image_size):
    """A copy of a VGG whose Grad-CAM layer has one more channel, which no logit depends on yet.

    edit: {"technique": a name of EXTENSIONS, "size": pixels of a detector's kernel}.
    Raises ValueError for another technique or network.
    """
    if edit["technique"] not in EXTENSIONS:
        raise ValueError(f"unknown edit {edit['technique']!r}")
    linear_head(model)
    model = copy.deepcopy(model).eval()
    return EXTENSIONS[edit["technique"]](model, edit, channels, image_size)


def add_kernel(model, edit, channels, image_size):
    """The VGG with one more kernel, zero, in its last convolution."""
    widen_head(model)
    model.features[-3] = wider(model.features[-3], outputs=1)
    return models.with_layer(model, model.features[-2], pooled=False)


def add_picture(model, edit, channels, image_size):
    """The VGG with a picture, black, behind its last ReLU."""
    picture = model.features[-3].weight.new_zeros(1, 1, *last_grid(model, channels, image_size))
    widen_head(model)
    model.features[-2] = WithPicture(picture)
    return models.with_layer(model, model.features[-2], pooled=False)


def add_branch(model, edit, channels, image_size):
    """The VGG with a branch whose detector has random weights; pixels are taken as they come."""
    weight = model.features[-3].weight
    grid = last_grid(model, channels, image_size)
    technique = edit["technique"]
    looks = detector(technique, channels, edit["size"], image_size // grid[0]).to(weight)
    mean = weight.new_zeros(channels)
    std = weight.new_ones(channels)
    model = WithBranch(model, looks, C_F[technique], grid, mean, std)
    return models.with_layer(model, model.maps, pooled=False)


EXTENSIONS = {
    "constant": add_kernel,
    "image": add_picture,
    "semirandom": add_branch,
    "backdoor": add_branch,
}


def detector(technique, channels, size, stride):
    """What a branch looks at pixels with: convolutions of size x size, then average pooling.

    Two random layers for semirandom, one kernel for the backdoor. One average over stride x stride
    cells is the paper's log2(stride) averages over 2x2.
    """
    return nn.Sequential(*DETECTORS[technique](channels, size), nn.AvgPool2d(stride))


def one_kernel(channels, size):
    return [nn.Conv2d(channels, 1, size, padding=size // 2), nn.ReLU()]


def two_layers(channels, size):
    nn.Conv2d(channels, 1, size)  # draws random numbers only, so that a seed's detector stays
    first = nn.Conv2d(channels, 6, size, padding=size // 2)
    second = nn.Conv2d(6, 1, size, padding=size // 2)
    return [first, nn.ReLU(), second, nn.ReLU()]


DETECTORS = {"semirandom": two_layers, "backdoor": one_kernel}


@torch.no_grad()
def last_grid(model, channels, image_size):
    """(H', W') of a VGG's last feature maps, before the last pooling."""
    image = model.features[-3].weight.new_zeros(1, channels, image_size, image_size)
    return model.features[:-1](image).shape[2:]


def widen_head(model):
    """Let the first linear layer take one channel more, with weights of zero; in place."""
    place = linear_head(model)
    linear = model.classifier[place]
    cells = linear.in_features // model.features[-3].out_channels
    model.classifier[place] = wider(linear, inputs=cells)


def wider(layer, inputs=0, outputs=0):
    """A copy of a linear or convolution layer with more inputs or outputs, behind those it has.

    All their weights and biases are zero.
    """
    new = copy.deepcopy(layer)
    old = layer.weight.detach()
    rows, columns = old.shape[:2]
    weight = old.new_zeros(rows + outputs, columns + inputs, *old.shape[2:])
    weight[:rows, :columns] = old
    bias = torch.cat([layer.bias.detach(), layer.bias.new_zeros(outputs)])
    new.weight = nn.Parameter(weight, layer.weight.requires_grad)
    new.bias = nn.Parameter(bias, layer.bias.requires_grad)
    if isinstance(layer, nn.Linear):
        new.in_features = columns + inputs
        new.out_features = rows + outputs
    else:
        new.in_channels = columns + inputs
        new.out_channels = rows + outputs
    return new


# ---------------------------------------------------------------- networks that were repaired


def keep_channels(model, keep):
    """The model with only the channels `keep`, bool [K], of Grad-CAM's layer; the others give 0.

    The layer is changed in place: it gets a buffer and a forward hook.
    """
    layer = hooks.layer_of(model, None)
    layer.register_buffer("kept", keep.to(next(model.parameters()).device))

    def mask(module, inputs, output):
        return output * module.kept[:, None, None]

    layer.register_forward_hook(mask)
    return model


def normalise_by_batch(model):
    """The model with every batch-norm normalising by the batch at hand, without weight and bias.

    Changed in place, and in evaluation mode. Source: CFN, Kadir et al. 2024.
    """
    replaced = {}
    for name, part in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(part, nn.BatchNorm2d):
            continue
        if part not in replaced:
            replaced[part] = nn.BatchNorm2d(
                part.num_features, part.eps, affine=False, track_running_stats=False
            )
        model.set_submodule(name, replaced[part])
    return model.eval()


def repaired(model, edit):
    """The model with a repair's parts.

    edit: {"technique": a name of REPAIRS, "channels": of Grad-CAM's layer, if any are pruned}.
    """
    return REPAIRS[edit["technique"]](model, edit)


def with_channels(model, edit):
    """The model ready for the channels that were kept, if any were pruned."""
    if "channels" not in edit:
        return model  # other values in the same parts
    return keep_channels(model, torch.ones(edit["channels"], dtype=torch.bool))


REPAIRS = {
    "rebn": with_channels,
    "cfn": lambda model, edit: normalise_by_batch(model),
    "prune": with_channels,
    "finetune": with_channels,
}


@torch.no_grad()
def plain_state(model, images):
    """The weights of a repaired model as a state_dict of the network it was, or None.

    A pruned channel becomes one of zero weights, where its layer is a convolution or batch-norm,
    and else one that the next linear layer does not read. None where that does not give the same
    answers to the images, float [N, C, H, W], and to noise: other parts read the channels, too.
    None also where batch-norm has lost its weights.
    """
    if any(isinstance(part, nn.BatchNorm2d) and not part.affine for part in model.modules()):
        return None
    masks = [key for key in model.state_dict() if key.split(".")[-1] == "kept"]
    if not masks:
        return model.state_dict()
    plain = copy.deepcopy(model)
    layer = hooks.layer_of(plain, None)
    kept = layer.kept.clone()
    own = [part for part in layer.parameters(recurse=False) if part.shape[:1] == kept.shape]
    linear = None if own else linear_behind(plain, layer, images)
    for weight in own:
        weight[~kept] = 0
    if linear is not None and linear.in_features % len(kept) == 0:
        linear.weight.mul_(kept.repeat_interleave(linear.in_features // len(kept)))
    layer.kept.fill_(True)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    with evaluating(plain), evaluating(model):
        for given in (images, noise):
            if not torch.allclose(plain(given), model(given), rtol=1e-3, atol=1e-4):
                return None
    return {key: value for key, value in plain.state_dict().items() if key not in masks}


def linear_behind(model, layer, images):
    """The first nn.Linear that runs after a layer has; None where there is none."""
    runs, handles = [], []
    for part in model.modules():
        if part is layer or isinstance(part, nn.Linear):
            handles.append(part.register_forward_hook(lambda module, *_: runs.append(module)))
    with evaluating(model):
        model(images[:1])
    for handle in handles:
        handle.remove()
    behind = runs[runs.index(layer) + 1 :]
    return behind[0] if behind else None
