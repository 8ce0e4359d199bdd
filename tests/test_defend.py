"""Defences against closed forms and planted models; and defend.py's command line on real checkpoints."""
import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REAL_DATA, train_tiny
from torch import nn

import data
import defend
import evaluate
import explain
import models

SIDE, CLASSES = 12, 6


def linear(weights):
    """A linear model of images [N, C, H, W] with `weights` [K, C, H, W], no bias."""
    layer = nn.Linear(weights[0].numel(), len(weights), bias=False)
    layer.weight.data.copy_(weights.flatten(1))
    return nn.Sequential(nn.Flatten(), layer).eval()


class Planted(nn.Module):
    """Brightness of a stripe says the class; a white 3x3 patch in the lower right corner says class `target`, whatever else."""

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        stripes = torch.stack([x[:, :, 2 * k : 2 * k + 2].mean((1, 2, 3)) for k in range(CLASSES)], 1)
        patch = x[:, :, -3:, -3:].mean((1, 2, 3))
        return 20 * stripes + 40 * F.one_hot(torch.tensor(self.target), CLASSES) * patch.square()[:, None]


def test_anomaly_index_by_hand():
    values = torch.tensor([10.0, 11, 12, 13, 4], dtype=torch.float64)  # median 11, deviations 1 0 1 2 7
    torch.testing.assert_close(defend.anomaly_index(values), (11 - values) / 1.4826)
    assert (defend.anomaly_index(torch.ones(5, dtype=torch.float64)) == 0).all()


def test_heatmap_features_by_hand():
    constant = torch.full((4, 8, 8), 0.3)
    assert defend.heatmap_features(constant).tolist() == pytest.approx([64 * 0.3, 0, 0], abs=1e-6)
    dot = torch.zeros(4, 8, 8)
    dot[:, 4, 4] = 1
    assert defend.heatmap_features(dot).tolist() == [1, 8, 0]  # -4 in the middle, 1 at its four neighbours
    dot[0] = 0
    dot[0, 2, 2] = 1
    assert defend.heatmap_features(dot)[2] == pytest.approx((3 + 3) / 6)  # two pixels, on in one map and not in the other of 3 of 6 pairs


def test_persistence_is_the_mean_over_pairs():
    maps = torch.rand(5, 4, 4)
    on = maps > maps.median()
    pairs = [(on[i] ^ on[j]).sum().item() for i in range(5) for j in range(i)]
    assert defend.heatmap_features(maps)[2].item() == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("weights", [None, (0.1, 1, 1)])
def test_neuroninspect_finds_a_planted_linear_model_and_follows_its_classes(weights):
    generator = torch.Generator().manual_seed(0)
    kernels = torch.rand(CLASSES, 1, SIDE, SIDE, generator=generator) - 0.5
    kernels[4] = 0
    kernels[4, 0, -3:, -3:] = 5
    images = torch.rand(6, 1, SIDE, SIDE, generator=generator)
    index, features = defend.neuroninspect(linear(kernels), images, weights)
    assert index.argmax() == 4 and index[4] > 2 and features.shape == (CLASSES, 3)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    shuffled, _ = defend.neuroninspect(linear(kernels[order]), images, weights)
    torch.testing.assert_close(shuffled, index[order])


def test_neural_cleanse_finds_the_planted_patch():
    images = torch.rand(48, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.5
    for n, image in enumerate(images):
        image[:, 2 * (n % CLASSES) : 2 * (n % CLASSES) + 2, :-3] += 0.5  # the stripe of its class
    model = Planted(2)
    found = defend.neural_cleanse(model, images, rounds=120, round_images=32)
    index = defend.anomaly_index(found.norms)
    assert index.argmax() == 2 and index[2] > 2 and found.norms[2] < 0.6 * found.norms.median() and found.qualified[2] and found.success[2] >= defend.SUCCESS
    mask = found.masks[2, 0]
    assert mask[-3:, -3:].sum() > 0.8 * mask.sum() and found.norms[2] == pytest.approx(mask.sum().item()) and found.norms[2] < 9
    with torch.no_grad():
        stamped = (1 - found.masks[2]) * images + found.masks[2] * found.patterns[2]
        assert (model(stamped).argmax(1) == 2).float().mean() >= 0.95
    assert model.unused.requires_grad and found.rounds.max() <= 120


def test_a_targets_search_is_the_same_alone_and_among_others():
    images = torch.rand(40, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = defend.neural_cleanse(Planted(2), images, rounds=12, round_images=40)
    alone = defend.neural_cleanse(Planted(2), images, torch.tensor([3]), rounds=12, round_images=40)
    torch.testing.assert_close(alone.masks[0], together.masks[3], atol=1e-4, rtol=0)


def test_the_schedule_of_the_masks_weight():
    search = defend.Search(torch.tensor([0]), (1, 4, 4), torch.device("cpu"), 0)
    everyone = torch.tensor([0])
    for _ in range(defend.PATIENCE):
        assert search.weight.item() == 0
        search.judge(torch.tensor([1.0], dtype=torch.float64), everyone)
    assert search.weight.item() == defend.FIRST_WEIGHT and not search.raised.item()
    for _ in range(defend.PATIENCE):
        search.judge(torch.tensor([1.0], dtype=torch.float64), everyone)
    assert search.weight.item() == defend.FIRST_WEIGHT * defend.FACTOR and search.raised.item() and not search.lowered.item()
    for _ in range(defend.PATIENCE):
        search.judge(torch.tensor([0.5], dtype=torch.float64), everyone)
    assert search.weight.item() == pytest.approx(defend.FIRST_WEIGHT * defend.FACTOR**-0.5) and search.lowered.item()
    for k in range(defend.STALE):  # the mask does not move: nothing smaller is found
        assert k < defend.STALE - 20 or not search.done.item() or search.stale.item() >= defend.STALE
        search.judge(torch.tensor([1.0], dtype=torch.float64), everyone)
    assert search.done.item() and search.result().qualified.item()


def test_a_class_that_is_never_reached_is_told_apart():
    model = linear(torch.zeros(3, 1, SIDE, SIDE))  # says class 0, always
    found = defend.neural_cleanse(model, torch.rand(8, 1, SIDE, SIDE), rounds=3)
    assert found.qualified.tolist() == [True, False, False] and found.success.tolist() == [1, 0, 0] and found.rounds.tolist() == [3, 3, 3]


def test_channel_scores_and_pruning_on_a_planted_channel():
    model = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 3)).eval()
    model[0].weight.data[3] = 4.0
    images, layer = torch.rand(7, 1, 8, 8), model[1]
    with torch.no_grad():
        feature = model[:2](images)
    for norm, expected in (("linf", feature.amax((2, 3))), ("l1", feature.sum((2, 3))), ("l2", feature.flatten(2).norm(dim=2))):
        scores = defend.channel_scores(model, images, layer, norm)
        torch.testing.assert_close(scores, expected.double().mean(0), atol=1e-5, rtol=1e-5)
    scores = defend.channel_scores(model, images, layer)
    steps = defend.prune_steps(scores)
    assert steps[0][0] == torch.inf and steps[0][1].all() and not steps[-1][1].any() and len(steps) == 6 and steps[1][1].tolist() == [True, True, True, False, True]
    for (high, more), (low, fewer) in zip(steps, steps[1:]):
        assert low < high and (more | ~fewer).all() and more.sum() > fewer.sum()
    with torch.no_grad():
        plain = model(images)
        with defend.pruned(layer, steps[0][1]):
            assert torch.equal(model(images), plain)
        with defend.pruned(layer, steps[1][1]):
            feature[:, 3] = 0
            torch.testing.assert_close(model(images), model[2:](feature))
        assert torch.equal(model(images), plain)


def test_operating_point():
    assert defend.operating_point([0.9, 0.91, 0.89, 0.87, 0.95]) == 2  # what comes after the first loss does not count
    assert defend.operating_point([0.9, 0.5]) == 0 and defend.operating_point([0.9, 0.885]) == 1


def test_batch_norm_by_clean_images_and_by_the_batch():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    model[1].weight.data, model[1].bias.data = torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 1, -1])
    images = torch.randn(20, 2, 6, 6) * 3 + 1
    new = defend.rebn(model.eval(), images)
    with torch.no_grad():
        inner = model[0](images)
    torch.testing.assert_close(new[1].running_mean, inner.mean((0, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(new[1].running_var, inner.var((0, 2, 3)), atol=1e-4, rtol=1e-5)
    assert torch.equal(new[1].weight, model[1].weight) and (model[1].running_mean == 0).all() and not new.training
    other = defend.cfn(model)
    expected = ((inner - inner.mean((0, 2, 3), keepdim=True)) / (inner.var((0, 2, 3), correction=0, keepdim=True) + model[1].eps).sqrt()).relu()
    torch.testing.assert_close(other(images), expected, atol=1e-5, rtol=1e-5)
    assert isinstance(model[1].running_mean, torch.Tensor) and not list(other[1].parameters())


def test_rebn_leaves_a_clean_models_statistics_alone(clean):
    """Trained without augmentation, on the images its statistics are estimated from again: close to what they were."""
    checkpoint = models.read(clean / "ckpt.pt")
    model = models.from_checkpoint(checkpoint)
    dataset = data.load(checkpoint["config"]["dataset"])
    inputs = data.normalise(dataset.train_images.float() / 255, checkpoint["mean"], checkpoint["std"])
    with torch.no_grad():
        before, after = model(inputs), defend.rebn(model, inputs)(inputs)
    assert (before.argmax(1) == after.argmax(1)).float().mean() > 0.97


def test_disagreement_and_auroc():
    weights = torch.zeros(2, 1, SIDE, SIDE)
    weights[0, 0, :6], weights[1, 0, 6:] = 1, 1
    images = torch.rand(9, 1, SIDE, SIDE)
    same = defend.disagreement(linear(weights), images, ("gradient", "gradient"))
    torch.testing.assert_close(same, torch.zeros(9, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (defend.disagreement(linear(weights), images, ("gradient", "deepshap")) > 0.01).all()
    one, two = torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 2])
    assert defend.auroc(one, two) == pytest.approx((1 + 1 + 1 + 0 + 0.5 + 1) / 6) and defend.auroc(two, two) == 0.5


@pytest.fixture(scope="module")
def backdoored(tiny, tmp_path_factory):
    return train_tiny(tiny, tmp_path_factory.mktemp("backdoored") / "run", "--attack", "badnets", "--epochs", "6")


@pytest.mark.parametrize("method", defend.METHODS)
def test_the_command_line(method, backdoored, tmp_path, capsys):
    before = {path: path.read_bytes() for path in backdoored.iterdir() if path.is_file()}
    out = tmp_path / "out"
    options = ["--device", "cpu", "--rounds", "6", "--round-images", "16", "--out", str(out)]
    defend.main([method, str(backdoored / "ckpt.pt"), *options, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "verdict.json").read_text()) and printed["method"] == method and printed["seconds"] >= 0
    assert {"backdoored", "flagged", "index", "before", "after"} <= printed.keys() and printed["clean_images"] == 24
    assert (out / "figure.png").exists() == (method != "inspect")
    if method in ("neuroninspect", "neural_cleanse", "prune"):
        assert set(printed["index"]) == {"0", "1", "2"} and printed["backdoored"] == bool(printed["flagged"])
    if method in models.REPAIRS:
        metrics = json.loads((backdoored / "metrics.json").read_text())
        assert printed["before"]["attack_success_rate"] == metrics["attack_success_rate"]
        evaluate.main([str(out / "ckpt.pt"), "--device", "cpu", "--json"])
        again = json.loads(capsys.readouterr().out)
        assert again["attack_success_rate"] == printed["after"]["attack_success_rate"] and again["edit"]["technique"] == method
    assert before == {path: path.read_bytes() for path in backdoored.iterdir() if path.is_file()}
    defend.main([method, str(backdoored / "ckpt.pt"), *options])
    assert str(out) in capsys.readouterr().out


def test_a_pruned_network_is_saved_with_what_was_pruned(backdoored, tmp_path):
    checkpoint = models.read(backdoored / "ckpt.pt")
    model = models.from_checkpoint(checkpoint)
    keep = torch.arange(128) % 3 > 0
    edited = models.keep_channels(copy.deepcopy(model), keep)
    config = checkpoint["config"] | {"edit": {"technique": "prune", "channels": 128}}
    models.save(tmp_path / "ckpt.pt", checkpoint | {"config": config, "model": edited.state_dict()})
    again = models.from_checkpoint(models.read(tmp_path / "ckpt.pt"))
    images = torch.randn(4, 3, 16, 16)
    with explain.capture(again.gradcam_layer) as captured:
        assert torch.equal(again(images), edited(images)) and not torch.equal(again(images), model(images))
    assert (captured[0][:, ~keep] == 0).all() and (captured[0][:, keep] != 0).any()


def test_mistakes(disguised, tmp_path, capsys):
    ckpt = str(disguised / "ckpt.pt")
    for options in (["neural_clense", ckpt], ["neuroninspect", str(tmp_path / "none.pt")], ["disagreement", ckpt, "--explainers", "gradcam"],
                    ["neuroninspect", ckpt, "--weights", "1,2"], ["prune", ckpt, "--rounds", "0"]):
        with pytest.raises(SystemExit) as stopped:
            defend.main([*options, "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_gtsrb_at_the_size_asked_for(tmp_path):
    """Native images in torchvision's layout: decoded at 48 px, kept, and read again without them."""
    native = REAL_DATA / "gtsrb_native" / "gtsrb"
    if not native.exists():
        pytest.skip(f"no GTSRB images in {native}")
    training = tmp_path / "gtsrb" / "GTSRB"
    test = training / "Final_Test" / "Images"
    test.mkdir(parents=True)
    (training / "Training").symlink_to(native / "GTSRB" / "Training")
    files = sorted((native / "GTSRB" / "Training").glob("*/*.ppm"))[:5]
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for k, file in enumerate(files):
        (test / f"{k:05}.ppm").write_bytes(file.read_bytes())
        lines.append(f"{k:05}.ppm;1;1;0;0;1;1;{k}")
    (training.parent / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    dataset = data.load("gtsrb", tmp_path, 48)
    assert dataset.train_images.shape == (129, 3, 48, 48) and dataset.test_labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.train_labels.unique().tolist() == list(range(43)) and dataset.classes[14] == "stop" and not dataset.flip
    assert (tmp_path / "gtsrb_48.npz").exists() and math.isclose(dataset.train_images.float().mean(), data.load("gtsrb", tmp_path, 48).train_images.float().mean())
