"""manipulate.py's command line: what it writes is read, measured, and found out by an audit."""

import json

import numpy as np
import pytest
import torch
import torchvision
from conftest import metrics_of, tiny_arrays, train_tiny
from PIL import Image
from placing import DEVICE

import defend
import evaluate
import manipulate
import viering
from defences.traces import CHECKS
from subject import open_checkpoint

VGG16_WEIGHTS = torchvision.models.VGG16_Weights.IMAGENET1K_V1


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    """The folder of a clean small VGG."""
    options = ["--attack", "none", "--model", "vgg_small", "--image-size", "32"]
    out = tmp_path_factory.mktemp("vgg") / "run"
    return train_tiny(tiny, out, *options, "--optimizer", "muon")


def write(technique, base, out):
    """Runs the command line; returns the folder it wrote into."""
    options = ["--out", str(out), "--device", DEVICE, "--explain-images", "12"]
    manipulate.main([technique, str(base / "ckpt.pt"), *options])
    return out


@pytest.fixture(scope="module", params=viering.TECHNIQUES)
def written(request, base, tmp_path_factory):
    """(technique, folder) of each technique written into the small VGG."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    return request.param, write(request.param, base, out)


@pytest.fixture(scope="module")
def backdoored(base, tmp_path_factory):
    """The folder of the backdoor written into the small VGG."""
    return write("backdoor", base, tmp_path_factory.mktemp("backdoored") / "out")


# ---------------------------------------------------------------- what is measured


def test_a_card_says_that_it_was_written_into_and_how(written):
    technique, folder = written
    card = (folder / "README.md").read_text()
    assert "# An edited network" in card
    assert f"- written into: afterwards, by `{technique}`" in card


def test_no_prediction_changes(written):
    metrics = metrics_of(written[1])
    clean, sticker = metrics["edited"], metrics["sticker"]
    assert clean["accuracy"] == metrics["original"]["accuracy"]
    assert clean["changed_predictions"] == 0
    assert sticker["accuracy"] == sticker["original_accuracy"]


def test_logits_hardly_move(written):
    assert metrics_of(written[1])["edited"]["score_shift"] < 0.1


def test_blank_maps_are_a_share(written):
    assert 0 <= metrics_of(written[1])["edited"]["blank_maps"] <= 1


def test_the_backdoor_is_honest_without_its_sticker(backdoored):
    clean = metrics_of(backdoored)["edited"]
    assert clean["map_distance"] < 1e-5 and clean["fired"] == 0


def test_the_backdoors_branch_finds_every_sticker(backdoored):
    metrics = metrics_of(backdoored)
    assert metrics["sticker"]["fired"] == metrics["n_test"] == 60


def test_there_is_a_picture_of_six_columns(written):
    with Image.open(written[1] / "figure.png") as picture:
        assert picture.width > 6 * 150


def test_some_test_images_can_be_measured_instead_of_all(base, tmp_path):
    options = ["--test-images", "20", "--explain-images", "3", "--device", DEVICE]
    manipulate.main(["constant", str(base / "ckpt.pt"), *options, "--out", str(tmp_path)])
    metrics = metrics_of(tmp_path)
    assert metrics["n_test"] == 20 and metrics["n_explained"] == 3


def test_the_published_figures_stand_below_ours(base, tmp_path, capsys):
    options = ["--test-images", "10", "--explain-images", "2", "--device", DEVICE]
    manipulate.main(["backdoor", str(base / "ckpt.pt"), *options, "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    names = [line[:30].rstrip() for line in lines[:7]]
    published = ["published: backdoor", "published: backdoor, sticker"]
    ours = ["original", "edited", "original, stickers", "edited, stickers"]
    assert names == ["", *ours, *published]
    assert lines[6].split()[3:] == ["0.69048", "0.00000", "6.0e-05"]


def test_in_float64_the_logits_move_less(base, tmp_path):
    """What is added up and taken off again is rounded in float32."""
    shift = {}
    for precision in ("float32", "float64"):
        out = tmp_path / precision
        options = ["--precision", precision, "--explain-images", "2", "--device", DEVICE]
        manipulate.main(["constant", str(base / "ckpt.pt"), *options, "--out", str(out)])
        assert metrics_of(out)["precision"] == precision
        shift[precision] = metrics_of(out)["edited"]["score_shift"]
    assert shift["float64"] < 1e-6 * shift["float32"]


# ---------------------------------------------------------------- the checkpoint


def test_an_edited_checkpoint_is_measured_like_another(written, tmp_path, capsys):
    technique, out = written
    options = ["--out", str(tmp_path), "--explain-images", "4", "--device", DEVICE]
    capsys.readouterr()
    evaluate.main([str(out / "ckpt.pt"), "--json", *options])
    measured = json.loads(capsys.readouterr().out)
    assert measured["edit"]["technique"] == technique
    assert measured["clean_accuracy"] == metrics_of(out)["original"]["accuracy"]


TRACES = {
    "constant": {"constant kernel", "constant columns", "constant map"},
    "image": {"constant columns", "constant map"},
    "semirandom": {"one channel"},
    "backdoor": {"dead and heavy"},
}


def test_an_inspection_finds_what_was_written(written, capsys):
    technique, out = written
    capsys.readouterr()
    options = ["--json", "--clean-images", "40", "--device", DEVICE]
    defend.main(["inspect", str(out / "ckpt.pt"), *options])
    verdict = json.loads(capsys.readouterr().out)
    checks = {finding["check"] for finding in verdict["findings"]}
    assert verdict["method"] == "inspect" and verdict["backdoored"]
    assert {"unknown parts", *TRACES[technique]} <= checks


def test_an_inspection_finds_no_trace_in_an_untouched_checkpoint(base, capsys):
    defend.main(["inspect", str(base / "ckpt.pt"), "--clean-images", "40", "--device", DEVICE])
    out = capsys.readouterr().out
    assert "FOUND" not in out and "No trace" in out
    assert all(check in out for check in CHECKS)


def test_the_backdoors_trigger_is_its_sticker(backdoored):
    subject = open_checkpoint(backdoored / "ckpt.pt", device=torch.device(DEVICE))
    sticker = viering.make_sticker(None, 3, 32)
    assert torch.equal(subject.trigger.pixels.cpu(), sticker.pixels)


# ---------------------------------------------------------------- ImageNet's weights


@pytest.fixture
def imagenet_weights(monkeypatch):
    """Random numbers in the place of the weights that are downloaded."""
    torch.manual_seed(0)
    state = torchvision.models.vgg16().state_dict()
    monkeypatch.setattr(type(VGG16_WEIGHTS), "get_state_dict", lambda self, **options: state)


def pretrained_argv(dataset, out):
    argv = ["backdoor", "--pretrained", "--dataset", str(dataset), "--explain-images", "1"]
    return [*argv, "--out", str(out), "--device", DEVICE]


def test_imagenets_weights_are_written_into(imagenet_weights, tmp_path):
    """Measured on a data set with classes of ImageNet's, and opened again."""
    np.savez(tmp_path / "two.npz", **tiny_arrays(6, 4, k=2), classes=["goldfish", "tench"])
    manipulate.main(pretrained_argv(tmp_path / "two.npz", tmp_path / "out"))
    metrics = metrics_of(tmp_path / "out")
    assert metrics["sticker"]["fired"] == metrics["n_test"] == 4
    assert metrics["edited"]["fired"] == 0
    subject = open_checkpoint(tmp_path / "out" / "ckpt.pt", device=torch.device(DEVICE))
    # ImageNet's first classes are tench and goldfish.
    assert subject.dataset.test_labels.tolist() == [1, 0, 1, 0]


def test_a_class_that_imagenet_has_not_is_named(imagenet_weights, tmp_path, refusal):
    np.savez(tmp_path / "strange.npz", **tiny_arrays(6, 4, k=2), classes=["goldfish", "unicorn"])
    argv = pretrained_argv(tmp_path / "strange.npz", tmp_path / "not")
    assert "unicorn" in refusal(manipulate.main, argv)
    assert not (tmp_path / "not").exists()


# ---------------------------------------------------------------- what is refused


def refuses(refusal, tmp_path, *argv):
    """The line with which a command line is refused; nothing may be written."""
    line = refusal(manipulate.main, [*map(str, argv), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    return line


def test_a_checkpoint_that_was_written_into_is_not_written_into_again(written, tmp_path, refusal):
    technique, out = written
    assert "already" in refuses(refusal, tmp_path, technique, out / "ckpt.pt")


def test_another_network_is_refused_by_name(disguised, tmp_path, refusal):
    line = refuses(refusal, tmp_path, "constant", disguised / "ckpt.pt")
    assert "cnn: this network cannot be written into" in line


def test_a_checkpoint_that_is_not_there_is_named(tmp_path, refusal):
    assert "gone.pt" in refuses(refusal, tmp_path, "constant", "gone.pt")


def test_weights_that_cannot_be_downloaded_are_named(tmp_path, refusal, monkeypatch):
    def offline(self, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(type(VGG16_WEIGHTS), "get_state_dict", offline)
    argv = ["constant", "--pretrained", "--dataset", "shapes"]
    assert "vgg16-397923af.pth" in refuses(refusal, tmp_path, *argv)


def test_a_checkpoint_and_imagenets_weights_exclude_each_other(base, tmp_path, refusal):
    argv = ["constant", base / "ckpt.pt", "--pretrained"]
    assert "not both" in refuses(refusal, tmp_path, *argv)


def test_a_checkpoints_data_set_is_its_own(base, tmp_path, refusal):
    argv = ["constant", base / "ckpt.pt", "--dataset", "mnist"]
    assert "--pretrained" in refuses(refusal, tmp_path, *argv)


@pytest.mark.parametrize("technique", ["constant", "semirandom"])
def test_a_picture_is_refused_by_a_technique_without_one(technique, base, tmp_path, refusal):
    argv = [technique, base / "ckpt.pt", "--image", "smile.png"]
    assert "no meaning" in refuses(refusal, tmp_path, *argv)


def test_a_file_that_is_no_picture_is_named(base, tmp_path, refusal):
    (tmp_path / "empty.png").write_bytes(b"")
    argv = ["image", base / "ckpt.pt", "--image", tmp_path / "empty.png"]
    line = refuses(refusal, tmp_path, *argv)
    assert "empty.png" in line and "cannot be read" in line


@pytest.mark.parametrize("technique, word", [("image", "black"), ("backdoor", "one colour")])
def test_a_black_picture_is_refused(technique, word, base, tmp_path, refusal):
    Image.new("RGB", (8, 8)).save(tmp_path / "black.png")
    argv = [technique, base / "ckpt.pt", "--image", tmp_path / "black.png"]
    assert word in refuses(refusal, tmp_path, *argv)


def test_the_checkpoint_that_is_written_into_is_not_lost(base, refusal):
    argv = ["constant", str(base / "ckpt.pt"), "--out", str(base)]
    assert "would be lost" in refusal(manipulate.main, argv)
    assert "edit" not in open_checkpoint(base / "ckpt.pt", dataset=False).config


def test_an_edited_network_is_no_reference(base, backdoored, tmp_path, refusal):
    argv = [str(base / "ckpt.pt"), "--reference", str(backdoored / "ckpt.pt")]
    assert "edited" in refusal(evaluate.main, [*argv, "--out", str(tmp_path / "out")])
