"""Networks with parts added or taken out: the parts fit, and change nothing until they are used."""

import pytest
import torch
from torch import nn

import edited
import explain
import models

SIDE = 32
CLASSES = 5
NEAR = {"atol": 0.02, "rtol": 0}
KERNELS = {"constant": 0, "image": 0, "semirandom": 6, "backdoor": 7}


def vgg(channels=3, side=SIDE):
    torch.manual_seed(0)
    return models.build("vgg_small", channels, CLASSES, side).eval().requires_grad_(False)


def edit_of(technique):
    return {"technique": technique, "size": KERNELS[technique]}


def silence(model):
    """Let a branch's detector answer nothing."""
    if isinstance(model, edited.WithBranch):
        last = [part for part in model.detector if isinstance(part, nn.Conv2d)][-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


# ---------------------------------------------------------------- parts added


@pytest.mark.parametrize("technique", KERNELS)
@pytest.mark.parametrize("name, side", [("vgg16", 64), ("alexnet", 96), ("alexnet_small", 32)])
def test_parts_that_are_zero_change_no_logit(name, side, technique):
    torch.manual_seed(0)
    model = models.build(name, 1, 4, side).eval()
    images = torch.rand(1, 1, side, side)
    new = edited.extended(model, edit_of(technique), 1, side)
    silence(new)
    torch.testing.assert_close(new(images), model(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("technique", KERNELS)
@pytest.mark.parametrize("name, side", [("vgg16", 64), ("alexnet", 96)])
def test_gradcam_keeps_its_grid(name, side, technique):
    model = models.build(name, 1, 4, side).eval()
    images, classes = torch.rand(1, 1, side, side), torch.tensor([0])
    new = edited.extended(model, edit_of(technique), 1, side)
    before = explain.gradcam(model, images, classes)
    assert explain.gradcam(new, images, classes).shape == before.shape


@pytest.mark.parametrize("technique", KERNELS)
def test_gradcams_layer_has_one_channel_more(technique):
    new = edited.extended(vgg(), edit_of(technique), 3, SIDE)
    layer = dict(new.named_modules())[new.gradcam_layer]
    shapes = []
    layer.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    new(torch.rand(2, 3, SIDE, SIDE))
    assert shapes == [(2, 129, 8, 8)] and new.pooled_layer is None


@pytest.mark.parametrize("technique", KERNELS)
def test_the_network_given_is_not_changed(technique):
    model = vgg()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    new = edited.extended(model, edit_of(technique), 3, SIDE)
    for parameter in new.parameters():
        parameter.data.fill_(7.0)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)


@pytest.mark.parametrize("technique", ["semirandom", "backdoor"])
@pytest.mark.parametrize("side", [30, 63, 66])
def test_a_branch_fits_any_image(side, technique):
    new = edited.extended(vgg(side=side), edit_of(technique), 3, side)
    assert new(torch.rand(2, 3, side, side)).shape == (2, CLASSES)


ADDED_KEYS = {
    "constant": set(),
    "image": {"features.6.picture"},
    "semirandom": {
        *("mean", "std", "detector.0.weight", "detector.0.bias"),
        *("detector.2.weight", "detector.2.bias"),
    },
    "backdoor": {"mean", "std", "detector.0.weight", "detector.0.bias"},
}


@pytest.mark.parametrize("technique", KERNELS)
def test_keys_of_the_weights_are_those_of_older_checkpoints(technique):
    model = vgg()
    new = edited.extended(model, edit_of(technique), 3, SIDE)
    prefix = "network." if isinstance(new, edited.WithBranch) else ""
    old_keys = {prefix + key for key in model.state_dict()}
    assert set(new.state_dict()) == old_keys | ADDED_KEYS[technique]


def test_a_picture_stands_behind_the_relu_of_every_image():
    picture = torch.rand(1, 1, 4, 4)
    maps = torch.randn(3, 2, 4, 4)
    out = edited.WithPicture(picture)(maps)
    assert torch.equal(out[:, :2], maps.relu())
    assert torch.equal(out[:, 2], picture[:, 0].expand(3, -1, -1))


def test_a_branch_sees_pixels_as_they_were_before_the_normalisation():
    new = edited.extended(vgg(), edit_of("backdoor"), 3, SIDE)
    new.mean.fill_(0.4)
    new.std.fill_(0.2)
    pixels = torch.rand(2, 3, SIDE, SIDE)
    answer = new.detector(pixels)[:, :, :8, :8]
    found = new.branch_map((pixels - 0.4) / 0.2)
    torch.testing.assert_close(found, edited.C_F["backdoor"] * answer, rtol=1e-4, atol=1e3)


@pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Conv2d(3, 4, 3)])
def test_a_wider_layer_takes_and_gives_zeros_more(layer):
    shape = (5, 3) if isinstance(layer, nn.Linear) else (5, 3, 6, 6)
    x = torch.rand(shape)
    more = torch.cat([x, torch.rand(5, 2, *shape[2:])], 1)
    out = edited.wider(layer, inputs=2, outputs=1)(more)
    torch.testing.assert_close(out[:, :4], layer(x))
    assert not out[:, 4:].any() and out.shape[1] == 5


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_other_networks_are_refused_with_the_reason(name):
    model = models.build(name, 3, CLASSES, SIDE)
    with pytest.raises(ValueError, match="flatten and a linear layer"):
        edited.extended(model, {"technique": "constant"}, 3, SIDE)


def test_an_edited_network_is_not_edited_again():
    new = edited.extended(vgg(), edit_of("image"), 3, SIDE)
    with pytest.raises(ValueError, match="flatten and a linear layer"):
        edited.linear_head(new)


def test_an_unknown_edit_is_refused():
    with pytest.raises(ValueError, match="unknown edit 'magic'"):
        edited.apply_edit(vgg(), {"technique": "magic"}, 3, SIDE)


# ---------------------------------------------------------------- repaired networks


def test_channels_that_are_not_kept_are_zero():
    model = vgg()
    images = torch.rand(2, 3, SIDE, SIDE)
    keep = torch.arange(128) % 2 == 0
    layer = dict(model.named_modules())[model.gradcam_layer]
    outputs = []
    with torch.no_grad():
        whole = model.features[:-1](images)
        edited.keep_channels(model, keep)
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        model(images)
    assert torch.equal(outputs[0], whole * keep[:, None, None])


def test_channels_kept_travel_with_the_weights():
    keep = torch.arange(128) % 3 > 0
    pruned = edited.keep_channels(vgg(), keep)
    again = edited.apply_edit(vgg(), {"technique": "prune", "channels": 128}, 3, SIDE)
    again.load_state_dict(pruned.state_dict())
    images = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(again(images), pruned(images))


def test_every_batch_norm_normalises_by_the_batch_at_hand():
    model = edited.normalise_by_batch(models.build("cnn", 3, CLASSES, SIDE))
    outputs = []
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(100 * torch.rand(8, 3, SIDE, SIDE) + 5)
    assert len(outputs) == 6
    for output in outputs:
        torch.testing.assert_close(output.mean((0, 2, 3)), torch.zeros(output.shape[1]), **NEAR)
        torch.testing.assert_close(output.var((0, 2, 3)), torch.ones(output.shape[1]), **NEAR)


def test_a_batch_norm_used_twice_stays_one():
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(norm, nn.Identity(), norm)
    edited.normalise_by_batch(model)
    assert model[0] is model[2] is not norm


def test_gradcam_looks_at_the_batch_norm_that_took_the_place_of_its_layer():
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    models.with_layer(model, norm)
    edited.normalise_by_batch(model)
    images, classes = torch.rand(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)
    assert explain.gradcam(model, images, classes).shape == (6, 6, 6)


def test_repaired_statistics_need_no_other_parts():
    model = models.build("cnn", 3, CLASSES, SIDE)
    assert edited.apply_edit(model, {"technique": "rebn"}, 3, SIDE) is model
