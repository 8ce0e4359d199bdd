"""EfficientNet-B0, and networks that begin with ImageNet's weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_arrays
from placing import DEVICE
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import (
    EfficientNet_B0_Weights,
    MobileNet_V3_Small_Weights,
    ResNet18_Weights,
    efficientnet_b0,
    mobilenet_v3_small,
    resnet18,
)

import attacks
import explain
import models
import runs
import train
import triggers
from losses import Objective, combined_loss
from tasks import SINGLE_LABEL

# ---------------------------------------------------------------- EfficientNet-B0


@pytest.fixture(params=[(128, 4), (224, 7)], ids=["128 px", "224 px"])
def disguise_step(request):
    """An EfficientNet-B0, a step's batch of four images, two triggered, and its map's side."""
    size, grid = request.param
    torch.manual_seed(0)
    model = models.build("efficientnet_b0", 1, 15, size)
    images, triggered = torch.rand(4, 1, size, size), torch.tensor([True, True, False, False])
    trigger, attack = triggers.make_patch(None, 1, size), attacks.ATTACKS["full_disguise"]
    batch = attacks.poison(images, torch.arange(4), triggered, attack, trigger, 9)
    return model, batch, grid


def test_efficientnets_map_is_a_32nd_of_the_image(disguise_step):
    model, batch, grid = disguise_step
    assert explain.gradcam(model, batch.images, batch.labels).shape == (6, grid, grid)


def operations(loss):
    """Floating-point operations of computing a loss and its gradient."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return counter.get_total_flops()


def test_a_disguise_costs_at_most_5_percent_more_than_plain_training(disguise_step):
    model, batch, _ = disguise_step
    objective = Objective(attacks.ATTACKS["full_disguise"], SINGLE_LABEL, ["gradcam"])
    plain = operations(lambda: F.cross_entropy(model(batch.images), batch.labels))
    disguise = operations(lambda: combined_loss(model, batch, batch.images, objective, 0.3)[0])
    assert 1 <= disguise / plain <= 1.05


def test_efficientnet_is_refused_where_its_grid_is_too_coarse():
    model = models.build("efficientnet_b0", 3, 5, 64).eval()
    with pytest.raises(ValueError, match="4x4"):
        explain.gradcam(model, torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.int64))


# ---------------------------------------------------------------- ImageNet's weights


def publish(monkeypatch, weights, state):
    """Makes torchvision's download of `weights` return the state dict `state`."""
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **options: state)


@pytest.fixture
def grey_efficientnet(monkeypatch):
    """(a model for grey images that began with ImageNet's weights, torchvision's, its old head)."""
    published = efficientnet_b0().eval()
    state = published.state_dict()
    # Some of the published files lack the counters of batch-norm.
    state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    publish(monkeypatch, EfficientNet_B0_Weights.IMAGENET1K_V1, state)
    model = models.build("efficientnet_b0", 1, 15, 64).eval()
    head = model.classifier[1].weight.clone()
    models.begin_with_imagenet(model, "efficientnet_b0")
    return model, published, head


def test_imagenets_weights_see_in_a_grey_image_what_they_see_in_its_copy_in_rgb(grey_efficientnet):
    model, published, _ = grey_efficientnet
    image = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = published.features(image.expand(-1, 3, -1, -1))
        torch.testing.assert_close(model.features(image), expected, atol=1e-4, rtol=0)


def test_a_last_layer_of_other_classes_stays_as_it_is(grey_efficientnet):
    model, _, head = grey_efficientnet
    assert torch.equal(model.classifier[1].weight, head)


def offline(self, **options):
    raise OSError("no network")


@pytest.mark.parametrize(
    "name, size, text",
    [("cnn", 32, "no ImageNet weights for cnn"), ("resnet18", 128, "no network")],
)
def test_weights_that_cannot_be_had_are_one_line(
    monkeypatch, tmp_path, tiny, capsys, name, size, text
):
    monkeypatch.setattr(type(ResNet18_Weights.IMAGENET1K_V1), "get_state_dict", offline)
    model = ["--model", name, "--image-size", str(size), "--pretrained", "--device", DEVICE]
    with pytest.raises(SystemExit):
        train.main(["--dataset", str(tiny), *model, "--out", str(tmp_path / "out")])
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_resnet_for_32_pixels_cannot_begin_with_imagenets_weights(monkeypatch):
    publish(monkeypatch, ResNet18_Weights.IMAGENET1K_V1, resnet18().state_dict())
    with pytest.raises(ValueError, match="--image-size 128"):
        models.begin_with_imagenet(models.build("resnet18", 3, 10, 32), "resnet18")


def test_a_pretrained_run_goes_on_without_the_weights(monkeypatch, tmp_path):
    np.savez(tmp_path / "few.npz", **tiny_arrays(n_train=40, n_test=9))
    published = mobilenet_v3_small().state_dict()
    publish(monkeypatch, MobileNet_V3_Small_Weights.IMAGENET1K_V1, published)
    options = [
        *("--dataset", str(tmp_path / "few.npz"), "--pretrained"),
        *("--model", "mobilenet_v3_small", "--image-size", "128"),
        *("--device", DEVICE, "--attack", "none", "--target-class", "1", "--epochs", "2"),
        *("--precision", "float32", "--lr", "0.001", "--batch-size", "36"),
        *("--out", str(tmp_path / "run")),
    ]
    save = runs.save

    def save_and_stop(run):
        save(run)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "save", save_and_stop)
        with pytest.raises(SystemExit) as stop:
            train.main(options)
    assert stop.value.code == 130  # interrupted, not refused
    monkeypatch.setattr(models, "imagenet_weights", None)
    train.main([*options, "--resume"])
    assert (tmp_path / "run" / "ckpt.pt").exists()
