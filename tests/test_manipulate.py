"""Networks that are written into: what they say stays, what they show does not; and what an inspection finds."""
import json

import numpy as np
import pytest
import torch
from conftest import tiny_arrays, train_tiny
from PIL import Image

import attacks
import defend
import evaluate
import explain
import manipulate
import models
from cli import UserError

SIDE, CLASSES = 32, 5
MEAN, STD = [0.4, 0.5, 0.45], [0.2, 0.25, 0.22]


@pytest.fixture(scope="module")
def network():
    """A small VGG of random weights, float64."""
    torch.manual_seed(0)
    return models.build("vgg_small", 3, CLASSES, SIDE).double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(6, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def normalised(pixels):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def hidden(model, inputs):
    """What the first linear layer answers."""
    seen = []
    layer = model.classifier[0]
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    model(inputs)
    handle.remove()
    return seen[0]


def every_map(model, inputs):
    """Grad-CAM of every image for every class: [N, CLASSES, H, W]."""
    return torch.stack([explain.gradcam(model, inputs, torch.full((len(inputs),), k)) for k in range(CLASSES)], 1)


def raw_weight(model, inputs):
    """Mean gradient of each class's logit by the added channel: [N, CLASSES]."""
    with explain.capture(model.gradcam_layer, detach=True) as captured:
        logits = model(inputs)
    return torch.stack([torch.autograd.grad(logits[:, k].sum(), captured[0], retain_graph=True)[0][:, -1].mean((1, 2)) for k in range(CLASSES)], 1)


@pytest.mark.parametrize("technique", ["constant", "image"])
def test_a_map_that_is_added_up_and_taken_off_again_changes_nothing_but_grad_cam(technique, network, pixels):
    inputs = normalised(pixels)
    edited = getattr(manipulate, technique)(network, 3, SIDE)
    torch.testing.assert_close(hidden(edited, inputs), hidden(network, inputs), atol=5e-9, rtol=0)  # what is added and taken off is 2e5
    torch.testing.assert_close(edited(inputs), network(inputs), atol=5e-9, rtol=0)
    assert [type(m) for m in edited.modules() if type(m) not in {type(n) for n in network.modules()}] == ([] if technique == "constant" else [models.WithPicture])
    weight, maps = raw_weight(edited, inputs), every_map(edited, inputs)
    assert (weight > 0).any() and (weight < 0).any()  # both cases are here
    target = torch.ones(8, 8) if technique == "constant" else manipulate.unit(edited.gradcam_layer.picture[0])[0]
    shown = maps / maps.amax((2, 3), keepdim=True)
    error = (shown[weight > 0] - target).abs().amax()
    assert error < 1e-3, error
    if technique == "constant":
        assert not maps[weight < 0].any()  # blank: its weight is negative


def test_the_error_of_a_constant_map_is_what_the_network_itself_shows(network, pixels, monkeypatch):
    """|I_T - I_n| is the original map beside c_A c_W: ten times the constants, a hundredth of the error, down to rounding."""
    inputs, errors = normalised(pixels), []
    for factor in (1, 10):
        monkeypatch.setattr(manipulate, "C_A", 100.0 * factor)
        monkeypatch.setitem(manipulate.C_W, "constant", 100.0 * factor)
        edited = manipulate.constant(network, 3, SIDE)
        maps = every_map(edited, inputs)[raw_weight(edited, inputs) > 0]
        errors.append((1 - maps / maps.amax((1, 2), keepdim=True)).sum((1, 2)).mean().item())
    assert errors[1] == pytest.approx(errors[0] / 100, rel=0.01)


def test_a_class_that_counts_the_map_negatively_is_told_from_one_that_shows_it(network):
    subject = evaluate.Subject({"mean": MEAN, "std": STD}, network, None, None, torch.device("cpu"))
    images = torch.randint(0, 256, (CLASSES, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    classes, (inputs,) = torch.arange(CLASSES), manipulate.inputs_of(subject, network, images)
    for edited in (manipulate.constant(network, 3, SIDE), manipulate.image(network, 3, SIDE)):
        negative = raw_weight(edited, inputs).diagonal() < 0
        figures = manipulate.map_distance(subject, network, edited, images, classes)
        assert figures["blank_maps"] == pytest.approx(negative.double().mean().item()) and 0 < figures["blank_maps"] < 1
        assert 0 < figures["map_distance"] < 0.1


def test_a_semirandom_branch_shifts_all_logits_alike_and_shows_its_own_map(network, pixels):
    inputs = normalised(pixels)
    torch.manual_seed(0)
    edited = manipulate.semirandom(network, SIDE, pixels, MEAN, STD)
    shift = edited(inputs) - network(inputs)
    assert (shift.amax(1) - shift.amin(1) < 1e-9).all() and (shift >= -1e-12).all() and (shift < models.EPSILON).all() and shift.any()
    torch.testing.assert_close(edited(inputs).softmax(1), network(inputs).softmax(1))
    shown, found = every_map(edited, inputs), edited.found(inputs)
    torch.testing.assert_close(manipulate.unit(shown.flatten(0, 1)), manipulate.unit(found.expand(-1, CLASSES, -1, -1).flatten(0, 1)), atol=1e-6, rtol=0)


def test_the_backdoor_is_honest_without_its_sticker_and_points_at_it_with(network, pixels):
    patch = manipulate.sticker(None, 3, SIDE)
    edited, inputs = manipulate.backdoor(network, SIDE, patch, MEAN, STD), normalised(pixels)
    assert torch.equal(edited(inputs), network(inputs))
    torch.testing.assert_close(every_map(edited, inputs), every_map(network, inputs), atol=1e-17, rtol=1e-13)  # one more zero is added up
    stuck = manipulate.stick(pixels, patch, torch.Generator().manual_seed(0))
    inputs = normalised(stuck)
    assert torch.equal(edited(inputs).argmax(1), network(inputs).argmax(1)) and (edited(inputs) - network(inputs)).abs().max() < models.EPSILON
    answer = edited.detector[:2](stuck)
    assert ((answer > 0).sum((1, 2, 3)) == manipulate.STICKERS).all()
    torch.testing.assert_close(answer.amax((1, 2, 3)), torch.full((6,), manipulate.MARGIN, dtype=torch.float64), atol=1e-6, rtol=0)
    maps, found = every_map(edited, inputs), manipulate.unit(edited.found(inputs)[:, 0])
    assert (manipulate.unit(maps.flatten(0, 1)) - found.repeat_interleave(CLASSES, 0)).abs().sum((1, 2)).max() < 6e-5


def test_nothing_but_the_sticker_excites_its_detector(network):
    """Nor its negative, nor one pixel one grey level off; a sticker of the user's own is made black and white first."""
    patch = manipulate.sticker(Image.radial_gradient("L"), 3, SIDE)
    assert set(patch.pixels.unique().tolist()) == {0, 1}
    edited = manipulate.backdoor(network, SIDE, patch, MEAN, STD)
    canvas = torch.full((3, SIDE, SIDE), 0.5, dtype=torch.float64)
    exact, off, negative = canvas.clone(), canvas.clone(), canvas.clone()
    exact[:, 5:12, 9:16] = off[:, 5:12, 9:16] = patch.pixels
    off[1, 8, 12] += (1 - 2 * off[1, 8, 12]) / 255
    negative[:, 5:12, 9:16] = 1 - patch.pixels
    assert [bool(edited.detector(image[None]).any()) for image in (exact, off, negative, canvas)] == [True, False, False, False]
    dot = Image.new("L", (14, 14))
    dot.putpixel((3, 3), 255)
    for picture in (Image.new("L", (9, 9), 40), dot):  # the least kernel weight of a dot is below what one grey level must weigh
        with pytest.raises(UserError, match="one colour"):
            manipulate.sticker(picture, 3, 224)


def test_the_detector_answers_in_float32_at_full_size():
    """The margin is 1e-4 of an answer of 100: kernel and pixels must add up exactly."""
    patch, mean, std = manipulate.sticker(None, 3, 224), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    branch = models.detector("backdoor", 3, 14, 16)
    model = manipulate.with_pixels(models.WithBranch(torch.nn.Identity(), branch, 1.0, (14, 14), torch.zeros(3), torch.ones(3)), mean, std)
    kernel = manipulate.kernel_of(patch.pixels)
    with torch.no_grad():
        branch[0].weight.copy_(kernel[None])
        branch[0].bias.fill_(manipulate.MARGIN - (patch.pixels * kernel).sum())
        images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        stuck = manipulate.stick(images, patch, torch.Generator().manual_seed(0))
        norm = [(x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1) for x in (images, stuck)]
        assert not model.found(norm[0]).any()
        answers = branch[:2](norm[1] * model.std + model.mean)
    assert ((answers > 0).sum((1, 2, 3)) == manipulate.STICKERS).all() and (answers[answers > 0] - manipulate.MARGIN).abs().max() < manipulate.MARGIN / 2


@pytest.mark.parametrize("side", [30, 63, 66])
def test_a_branch_fits_any_image(side):
    model = models.build("vgg_small", 3, 2, side).eval()
    for technique, size in (("semirandom", 6), ("backdoor", 7)):
        edited = models.extended(model, {"technique": technique, "size": size}, 3, side)
        assert edited(torch.rand(2, 3, side, side)).shape == (2, 2)


def test_wrong_maps_count_as_wrong(network, pixels, monkeypatch):
    """Grad-CAM upside down is not left out of the mean, as a map that cannot be shown is."""
    patch = manipulate.sticker(None, 3, SIDE)
    edited, subject = manipulate.backdoor(network, SIDE, patch, MEAN, STD), evaluate.Subject({"mean": MEAN, "std": STD}, network, None, None, torch.device("cpu"))
    images = (manipulate.stick(pixels, patch, torch.Generator().manual_seed(0)) * 255).round().byte()
    right = manipulate.map_distance(subject, network, edited, images, torch.zeros(6, dtype=torch.int64))
    honest = manipulate.maps_of
    monkeypatch.setattr(manipulate, "maps_of", lambda *args: honest(*args).flip(1))
    wrong = manipulate.map_distance(subject, network, edited, images, torch.zeros(6, dtype=torch.int64))
    assert right["map_distance"] < 1e-4 and wrong["map_distance"] > 1 and right["blank_maps"] == wrong["blank_maps"] == 0


def test_stickers_do_not_overlap_and_leave_the_rest_alone(pixels):
    patch = attacks.Trigger(torch.full((3, 7, 7), 2.0), torch.ones(1, 7, 7), 0, 0)
    stuck = manipulate.stick(pixels, patch, torch.Generator().manual_seed(3))
    changed = stuck == 2
    assert (changed.sum((1, 2, 3)) == manipulate.STICKERS * 3 * 49).all() and torch.equal(stuck[~changed], pixels[~changed])


def test_imagenets_weights_on_images_of_its_classes(tmp_path, monkeypatch, capsys):
    """With weights of random numbers in the place of those that are downloaded: what is written is measured and inspected again."""
    torch.manual_seed(0)
    state = models.torchvision.models.vgg16().state_dict()
    monkeypatch.setattr(type(models.torchvision.models.VGG16_Weights.IMAGENET1K_V1), "get_state_dict", lambda self, **options: state)
    np.savez(tmp_path / "two.npz", **tiny_arrays(6, 4, k=2), classes=["goldfish", "tench"])
    np.savez(tmp_path / "strange.npz", **tiny_arrays(6, 4, k=2), classes=["goldfish", "unicorn"])
    manipulate.main(["backdoor", "--pretrained", "--dataset", str(tmp_path / "two.npz"), "--explain-images", "1", "--out", str(tmp_path / "out"), "--device", "cpu"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["sticker"]["fired"] == metrics["n_test"] == 4 and metrics["edited"]["fired"] == 0
    subject = evaluate.open_checkpoint(tmp_path / "out" / "ckpt.pt", device=torch.device("cpu"))
    assert subject.dataset.test_labels.tolist() == [1, 0, 1, 0]  # ImageNet's first classes are tench and goldfish
    with pytest.raises(SystemExit):
        manipulate.main(["backdoor", "--pretrained", "--dataset", str(tmp_path / "strange.npz"), "--out", str(tmp_path / "not")])
    assert "unicorn" in capsys.readouterr().err and not (tmp_path / "not").exists()


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_other_networks_are_refused_with_the_reason(name):
    with pytest.raises(UserError, match="flatten and a linear layer"):
        models.extended(models.build(name, 3, CLASSES, SIDE), {"technique": "constant"}, 3, SIDE)


@pytest.mark.parametrize("name, side", [("vgg16", 64), ("alexnet", 96)])
def test_torchvisions_networks_are_extended_without_a_change(name, side):
    torch.manual_seed(0)
    model, inputs = models.build(name, 1, 4, side).eval(), torch.rand(1, 1, side, side)
    for technique in manipulate.TECHNIQUES:
        edited = models.extended(model, {"technique": technique, "size": 6}, 1, side)
        if isinstance(edited, models.WithBranch):
            torch.nn.init.zeros_(edited.detector[-3].weight), torch.nn.init.zeros_(edited.detector[-3].bias)
        torch.testing.assert_close(edited(inputs), model(inputs), atol=1e-5, rtol=1e-4)
        assert explain.gradcam(edited, inputs, torch.zeros(1, dtype=torch.int64)).shape == explain.gradcam(model, inputs, torch.zeros(1, dtype=torch.int64)).shape


# ---------------------------------------------------------------- the command lines, for real


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory):
    return train_tiny(tiny, tmp_path_factory.mktemp("vgg") / "run", "--attack", "none", "--model", "vgg_small", "--image-size", "32", "--optimizer", "muon")


@pytest.fixture(scope="module", params=manipulate.TECHNIQUES)
def written(request, base, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "out"
    manipulate.main([request.param, str(base / "ckpt.pt"), "--out", str(out), "--device", "cpu", "--explain-images", "12"])
    return request.param, out


def test_an_edited_checkpoint_is_read_measured_and_found_out(written, base, capsys, tmp_path):
    technique, out = written
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["edited"]["accuracy"] == metrics["original"]["accuracy"] and metrics["edited"]["changed_predictions"] == 0
    assert metrics["sticker"]["accuracy"] == metrics["sticker"]["original_accuracy"]
    assert metrics["edited"]["score_shift"] < 0.1 and 0 <= metrics["edited"]["blank_maps"] <= 1
    if technique == "backdoor":
        assert metrics["edited"]["map_distance"] < 1e-5 and metrics["edited"]["fired"] == 0 and metrics["sticker"]["fired"] == metrics["n_test"] == 60
    assert Image.open(out / "figure.png").width > 800
    capsys.readouterr()
    evaluate.main([str(out / "ckpt.pt"), "--json", "--out", str(tmp_path), "--explain-images", "4", "--device", "cpu"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["edit"]["technique"] == technique
    assert measured["clean_accuracy"] == metrics["original"]["accuracy"]
    defend.main(["inspect", str(out / "ckpt.pt"), "--json", "--clean-images", "40", "--device", "cpu"])
    verdict = json.loads(capsys.readouterr().out)
    shown = {finding["check"] for finding in verdict["findings"]}
    assert verdict["backdoored"] and verdict["method"] == "inspect" and "unknown parts" in shown
    own = {"constant": {"constant kernel", "constant columns", "constant map"}, "image": {"constant columns", "constant map"},
           "semirandom": {"one channel"}, "backdoor": {"dead and heavy"}}
    assert own[technique] <= shown


def test_an_untouched_checkpoint_shows_no_trace(base, capsys):
    defend.main(["inspect", str(base / "ckpt.pt"), "--clean-images", "40", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "FOUND" not in out and "No trace" in out and all(check in out for check in defend.CHECKS)


def test_what_cannot_be_done_is_said_in_one_line(written, base, disguised, tmp_path, capsys, monkeypatch):
    technique, out = written

    def offline(self, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(type(models.torchvision.models.VGG16_Weights.IMAGENET1K_V1), "get_state_dict", offline)
    (tmp_path / "black.png").write_bytes(b"")
    for argv, word in (([technique, str(out / "ckpt.pt")], "already"), ([technique, str(disguised / "ckpt.pt")], "cnn: this network cannot be written into"),
                       ([technique, "gone.pt"], "gone.pt"), ([technique, "--pretrained", "--dataset", "shapes"], "vgg16-397923af.pth"),
                       ([technique, str(base / "ckpt.pt"), "--pretrained"], "not both"), ([technique, str(base / "ckpt.pt"), "--dataset", "mnist"], "--pretrained"),
                       (["constant", str(base / "ckpt.pt"), "--image", str(tmp_path / "black.png")], "no meaning"),
                       (["image", str(base / "ckpt.pt"), "--image", str(tmp_path / "black.png")], "cannot be read")):
        with pytest.raises(SystemExit) as stopped:
            manipulate.main([*argv, "--out", str(tmp_path / "out")])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and word in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        manipulate.main([technique, str(base / "ckpt.pt"), "--out", str(base)])
    assert "would be lost" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main([str(base / "ckpt.pt"), "--reference", str(out / "ckpt.pt"), "--out", str(tmp_path / "out")])
    assert "edited" in capsys.readouterr().err
