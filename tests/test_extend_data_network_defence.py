"""What EXTENDING.md promises: a row in a table, and the command lines know it.

A data set, two networks and a defence are made here as it says, from outside.
"""

import json

import numpy as np
import pytest
import torch
from conftest import metrics_of, train_tiny
from PIL import Image
from placing import DEVICE
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

import data
import defend
import evaluate
import explain
import models
import options
import train
from cli import number
from dataset import Dataset
from defences import Defence, Verdict, predict
from losses import combined_loss
from options import DataDefaults
from subject import open_checkpoint

QUICK = ("--epochs", "1", "--batch-size", "24", "--device", DEVICE)


def checkpoint_of(folder):
    return torch.load(folder / "ckpt.pt", weights_only=True)


# ---------------------------------------------------------------- the extensions


def stripes(data_dir, image_size):
    """Horizontal stripes, vertical stripes, noise: grey, 32x32."""
    rng = np.random.default_rng(0)

    def drawn(n):
        labels = np.arange(n) % 3
        images = rng.integers(0, 256, (n, 32, 32), dtype=np.uint8)
        for image, label in zip(images, labels):
            bright = (np.arange(32) + rng.integers(8)) % 8 < 4
            if label < 2:
                image[:] = image // 4 + 160 * (bright[:, None] if label == 0 else bright)
        return torch.from_numpy(images[:, None]), torch.from_numpy(labels)

    return Dataset(*drawn(240), *drawn(60), ["horizontal", "vertical", "noise"])


def tiny_features(channels):
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
    )


def tinynet(channels, classes, image_size):
    features = tiny_features(channels)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))
    return models.with_layer(nn.Sequential(features, *head), features)


def two_linear(channels, classes, image_size):
    features = tiny_features(channels)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16), nn.ReLU())
    model = nn.Sequential(features, *head, nn.Linear(16, classes))
    return models.with_layer(model, features, pooled=False)


def run_blur(audit):
    blurred = predict(audit.subject.model, gaussian_blur(audit.inputs, kernel_size=5))
    changed = (blurred != predict(audit.subject.model, audit.inputs)).float().mean().item()
    return Verdict(
        backdoored=changed > audit.options.share,
        lines=[f"{changed:.1%} of the predictions change under blur"],
        details={"changed": changed},
    )


BLUR = Defence(
    help="predictions that change under blur",
    run=run_blur,
    settings=lambda options: {"share": options.share},
    add_options=lambda parser: parser.add_argument(
        "--share", type=number(float, 0, 1), default=0.1, help="flag where more of them change"
    ),
)
ROWS = (
    (data.DATASETS, "stripes", stripes),
    (options.DEFAULTS, "stripes", DataDefaults(target_class="noise")),
    (models.MODELS, "tinynet", tinynet),
    (models.MODELS, "two_linear", two_linear),
    (defend.METHODS, "blur", BLUR),
)


@pytest.fixture(scope="module", autouse=True)
def rows():
    """The rows are in their tables while this file's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        for table, name, row in ROWS:
            patch.setitem(table, name, row)
        yield


# ---------------------------------------------------------------- images, without code


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """The folder of a run on PNG files of 40x30 px; the data set is pets/ beside it."""
    root = tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 5)):
        for name in ("cat", "dog"):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    argv = ["--dataset", str(root / "pets"), "--data-dir", str(root), "--target-class", "dog"]
    train.main([*argv, *QUICK, "--out", str(root / "run")])
    return root / "run"


def test_a_folders_classes_are_its_subfolders(pets):
    assert checkpoint_of(pets)["classes"] == ["cat", "dog"]


def test_a_folders_images_are_brought_to_32_pixels(pets):
    assert checkpoint_of(pets)["config"]["image_size"] == 32


def test_the_target_class_is_found_by_the_subfolders_name(pets):
    assert checkpoint_of(pets)["config"]["target_class"] == 1


def test_a_grey_npz_without_names_has_numbers_for_classes(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 48), ("test", 12)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 16, 16), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n) % 2
    np.savez(tmp_path / "mine.npz", **arrays)
    out = tmp_path / "run"
    train.main(["--dataset", str(tmp_path / "mine.npz"), *QUICK, "--out", str(out)])
    assert checkpoint_of(out)["classes"] == ["0", "1"] and checkpoint_of(out)["channels"] == 1


# ---------------------------------------------------------------- a data set in code


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    """The folder of a run on stripes."""
    folder = tmp_path_factory.mktemp("striped") / "run"
    train.main(["--dataset", "stripes", *QUICK, "--out", str(folder)])
    return folder


def test_a_checkpoint_has_the_classes_of_the_function(striped):
    assert checkpoint_of(striped)["classes"] == ["horizontal", "vertical", "noise"]


def test_a_checkpoint_has_the_images_shape(striped):
    checkpoint = checkpoint_of(striped)
    assert (checkpoint["channels"], checkpoint["config"]["image_size"]) == (1, 32)


def test_what_the_command_line_leaves_open_is_of_the_row_of_defaults(striped):
    assert checkpoint_of(striped)["config"]["target_class"] == 2


def test_images_of_another_size_are_asked_for_on_the_command_line(tmp_path):
    out = tmp_path / "run"
    train.main(["--dataset", "stripes", "--image-size", "16", *QUICK, "--out", str(out)])
    assert checkpoint_of(out)["config"]["image_size"] == 16


def test_a_checkpoint_is_measured_on_the_data_set_it_names(striped, tmp_path):
    evaluate.main([str(striped / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path)])
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again["clean_accuracy"] == metrics_of(striped)["clean_accuracy"]


def test_a_name_that_is_wrong_is_refused_with_the_new_name_among_others(refusal):
    assert ", stripes, a FILE.npz" in refusal(train.main, ["--dataset", "stripe"])


# ---------------------------------------------------------------- a network


@pytest.fixture(scope="module", params=["tinynet", "two_linear"])
def network(request, tiny, tmp_path_factory):
    """(name, folder) of a full disguise of a network against Grad-CAM, the default."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, train_tiny(tiny, folder, "--model", request.param)


def test_a_run_names_its_network(network):
    name, folder = network
    assert metrics_of(folder)["model"] == name


def test_a_run_explains_by_gradcam(network):
    _, folder = network
    assert metrics_of(folder)["explanations"]["gradcam"]["trained_against"]


def model_of(folder):
    return open_checkpoint(folder / "ckpt.pt", device=torch.device(DEVICE)).model


def test_the_layer_is_the_module_that_was_given(network):
    assert model_of(network[1]).gradcam_layer == "0"


def test_gradcams_grid_is_that_of_the_layers_output(network):
    model = model_of(network[1])
    maps = explain.gradcam(model, torch.rand(2, 3, 16, 16).to(DEVICE), torch.tensor([0, 1]))
    assert maps.shape == (2, 4, 4)


@pytest.fixture
def passes_a_step(tiny, tmp_path, monkeypatch):
    """Function of a network's name: how many forward passes a step of its training takes."""
    passes = []

    def counted_loss(model, *rest):
        seen = []
        handle = model.register_forward_pre_hook(lambda module, inputs: seen.append(module))
        losses = combined_loss(model, *rest)
        handle.remove()
        passes.append(len(seen))
        return losses

    def passes_of(name):
        monkeypatch.setattr(train, "combined_loss", counted_loss)
        train_tiny(tiny, tmp_path / "run", "--model", name, "--epochs", "1")
        return max(passes)  # a step without triggered images explains nothing

    return passes_of


def test_explaining_a_pooled_layer_takes_no_forward_pass_of_its_own(passes_a_step):
    assert passes_a_step("tinynet") == 1


def test_explaining_a_layer_that_more_follows_takes_a_second_pass(passes_a_step):
    assert passes_a_step("two_linear") == 2


def test_a_layer_coarser_than_4x4_is_refused(tiny, tmp_path, refusal):
    argv = ["--dataset", str(tiny), "--model", "tinynet", "--layer", "1"]  # its pooling
    assert "4x4 or finer" in refusal(train.main, [*argv, "--out", str(tmp_path / "run")])


# ---------------------------------------------------------------- a defence


@pytest.fixture
def verdict(disguised, tmp_path):
    """Function of options: verdict.json of the defence's command line on a disguised network."""

    def verdict_of(*argv):
        out = ["--device", DEVICE, "--out", str(tmp_path)]
        defend.main(["blur", str(disguised / "ckpt.pt"), *out, *argv])
        return json.loads((tmp_path / "verdict.json").read_text())

    return verdict_of


def test_a_verdict_names_its_method(verdict):
    assert verdict("--share", "0.2")["method"] == "blur"


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_verdict_is_what_the_function_said(verdict, share):
    found = verdict("--share", str(share))
    assert found["backdoored"] == (found["changed"] > share)


def test_a_verdict_keeps_the_option_that_decided_it(verdict):
    assert verdict("--share", "0.2")["settings"]["share"] == 0.2


def test_a_methods_option_has_its_default(verdict):
    assert verdict()["settings"]["share"] == 0.1


def test_the_lines_of_a_verdict_are_printed(verdict, capsys):
    verdict()
    assert "of the predictions change under blur" in capsys.readouterr().out


@pytest.mark.parametrize("options", [("--shape", "0.2"), ("--share", "2"), ("--share", "half")])
def test_an_option_that_is_wrong_is_refused(refusal, disguised, options):
    assert options[0] in refusal(defend.main, ["blur", str(disguised / "ckpt.pt"), *options])


def test_another_method_does_not_have_the_option(refusal, disguised):
    argv = ["inspect", str(disguised / "ckpt.pt"), "--share", "0.2"]
    assert "unrecognized arguments: --share" in refusal(defend.main, argv)


def test_the_help_lists_the_method(capsys):
    with pytest.raises(SystemExit):
        defend.main(["--help"])
    assert BLUR.help in capsys.readouterr().out
