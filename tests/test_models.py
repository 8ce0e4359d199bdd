"""Models and their checkpoints."""
import pytest
import torch

import models
from cli import UserError, replace_file


@pytest.mark.parametrize("name, size, grid", [("cnn", 32, 8), ("cnn", 28, 7), ("resnet18", 32, 4), ("resnet18", 64, 8), ("resnet18", 224, 7), ("vgg16", 64, 4), ("alexnet", 96, 5)])
def test_grid_of_the_gradcam_layer(name, size, grid):
    model, shapes = models.build(name, 1, 5, size), []
    model.gradcam_layer.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    assert model.eval()(torch.zeros(2, 1, size, size)).shape == (2, 5)
    assert shapes[0][2:] == (grid, grid)


def test_the_layer_is_listed_once_and_can_be_chosen():
    model = models.build("resnet18", 3, 10, 32, "layer3.1")
    assert model.gradcam_layer is model.layer3[1] and model.pooled_layer is model.layer4[1]
    assert not any("gradcam" in key or "pooled" in key for key in model.state_dict())
    with pytest.raises(UserError, match="layer9"):
        models.build("resnet18", 3, 10, 32, "layer9")


def test_a_cell_of_the_cnn_sees_only_its_neighbourhood():
    model = models.build("cnn", 3, 10, 32).eval()
    image = torch.rand(1, 3, 32, 32)
    other = image.clone()
    other[:, :, 28:, 28:] = 1
    assert torch.equal(model.gradcam_layer(image)[..., 0, 0], model.gradcam_layer(other)[..., 0, 0])


def test_checkpoint_round_trip_is_plain_data(disguised):
    path = disguised / "ckpt.pt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["config"]["attack"] == "full_disguise" and checkpoint["epoch"] == 6
    model = models.from_checkpoint(models.read(path))
    assert all(torch.equal(model.state_dict()[key], value) for key, value in checkpoint["model"].items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_damaged_checkpoint_never_ends_in_another_error(disguised, tmp_path):
    whole = (disguised / "ckpt.pt").read_bytes()
    refused = 0
    for place in range(0, 3000, 61):  # where the pickle lies
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        (tmp_path / "broken.pt").write_bytes(broken)
        try:
            models.from_checkpoint(models.read(tmp_path / "broken.pt"))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("No space left\nin the middle of a zip")])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    (tmp_path / "a").write_text("old")

    def fail(path):
        path.write_text("half")
        raise error

    with pytest.raises(UserError, match="No space"):
        replace_file(tmp_path / "a", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"
