"""Defences against closed forms and planted models; and defend.py's command line on real checkpoints."""
import copy
import json
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, train_tiny
from PIL import Image
from torch import nn

import attacks
import data
import defend
import evaluate
import explain
import figure
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
    even = torch.randn(10, dtype=torch.float64)
    middle = statistics.median(even.tolist())
    spread = 1.4826 * statistics.median((even - middle).abs().tolist())
    torch.testing.assert_close(defend.anomaly_index(even), (middle - even) / spread)


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
    assert (index.argmax(1) == 4).all() and (index[:, 4] > 2).all() and features.shape == (2, CLASSES, 3)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    shuffled = defend.neuroninspect(linear(kernels[order]), images, weights)[0]
    torch.testing.assert_close(shuffled, index[:, order])


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, CLASSES)).eval()


class Silent(nn.Module):
    """A small network with a detector of a bright corner, for class 4, that no clean image wakes."""

    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, x):
        corner = x[:, :, -3:, -3:].sum((1, 2, 3))
        return self.network(x) + 20 * F.one_hot(torch.tensor(4), CLASSES) * (corner - 13).relu()[:, None]


def test_noise_wakes_the_detector_of_a_trigger():
    """By sparseness and smoothness. By the default weights it is not found: where most of a map is near zero, what is above the median is chance, and
    persistence, in its own small spread, outweighs the other two."""
    images = torch.rand(12, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    index, features = defend.neuroninspect(Silent(), images, (1, 1, 0))
    assert index.shape == (len(defend.NOISE), CLASSES) and index[1].argmax() == 4 and index[1, 4] > 2
    alone, its = defend.neuroninspect(Silent(), images, (1, 1, 0), noise=defend.NOISE[1:])
    torch.testing.assert_close(alone[0], index[1])
    torch.testing.assert_close(its[0], features[1])
    quiet, plain = (defend.neuroninspect(network, images, noise=(0,))[0] for network in (Silent(), small_network()))
    torch.testing.assert_close(quiet, plain)


def test_neuroninspects_score_is_of_features_in_their_own_spread():
    images = torch.rand(12, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    index, features = defend.neuroninspect(small_network(), images, noise=(0,))
    spread = torch.stack([defend.anomaly_index(features[0, :, k]) for k in range(3)])
    torch.testing.assert_close(index[0], defend.anomaly_index(-spread.sum(0)))
    weighed, _ = defend.neuroninspect(small_network(), images, (0.1, 1, 2), noise=(0,))
    torch.testing.assert_close(weighed[0], defend.anomaly_index(features[0] @ torch.tensor([0.1, 1, 2], dtype=torch.float64)))


def test_smoothed_heatmaps_are_means_of_gradients(monkeypatch):
    """In chunks of any size, under batch-norm in training mode, and where gradients are off."""
    model, images = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(400, CLASSES)), torch.randn(5, 2, SIDE, SIDE)
    total = 0
    for draw in range(defend.SAMPLES):
        noisy = (images + 3 * images.std((0, 2, 3), keepdim=True) * defend.own_noise(torch.arange(5), draw, images)).requires_grad_()
        total = total + torch.autograd.grad(model.eval()(noisy)[:, 1].sum(), noisy)[0]
    expected = attacks.min_max(total.abs().amax(1))
    model.train()
    monkeypatch.setattr(explain, "CHUNK_CPU", 2)
    with torch.no_grad():
        maps = defend.heatmaps(model, images, 3)
        torch.testing.assert_close(maps[1], expected)
        torch.testing.assert_close(maps[:, 3:], defend.heatmaps(model, images, 3)[:, 3:])
    assert maps.shape == (CLASSES, 5, SIDE, SIDE) and model.training
    torch.testing.assert_close(defend.heatmaps(model, images)[1], attacks.min_max(explain.gradient(model, images, torch.ones(5, dtype=torch.int64))))


def test_noise_is_an_images_own_and_gaussian():
    images = torch.zeros(40, 3, SIDE, SIDE)
    noise = defend.own_noise(torch.arange(40), 0, images)
    torch.testing.assert_close(defend.own_noise(torch.tensor([7]), 0, images)[0], noise[7])
    assert len({float(part.sum()) for part in noise}) == 40 and not torch.equal(noise[:1], defend.own_noise(torch.tensor([0]), 1, images))
    assert abs(float(noise.mean())) < 0.03 and float(noise.std()) == pytest.approx(1, abs=0.03)


def test_a_search_begins_with_nearly_transparent_masks():
    mask, pattern = defend.Search(torch.arange(2), (3, 8, 8), torch.device("cpu"), 0).stamp(slice(None))
    assert mask.detach().flatten().tolist() == pytest.approx([defend.START] * 128, rel=0.05) and float(pattern.detach().std()) == pytest.approx(12**-0.5, abs=0.05)


def test_neural_cleanse_finds_the_planted_patch():
    images = torch.rand(48, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.5
    for n, image in enumerate(images):
        image[:, 2 * (n % CLASSES) : 2 * (n % CLASSES) + 2, :-3] += 0.5  # the stripe of its class
    model = Planted(2)
    found = defend.neural_cleanse(model, images, rounds=120, round_images=48)
    index = defend.anomaly_index(found.norms)
    assert index.argmax() == 2 and index[2] > 2 and found.norms[2] < 0.6 * found.norms.median() and found.qualified[2] and found.success[2] >= defend.SUCCESS
    mask = found.masks[2, 0]
    assert mask[-3:, -3:].sum() > 0.8 * mask.sum() and found.norms[2] == pytest.approx(mask.sum().item()) and found.norms[2] < 9
    with torch.no_grad():
        stamped = (1 - found.masks[2]) * images + found.masks[2] * found.patterns[2]
        assert (model(stamped).argmax(1) == 2).float().mean() >= 0.9  # judged while the mask still moved
    assert model.unused.requires_grad and found.rounds.max() <= 120


def test_a_targets_search_is_the_same_alone_and_among_others(monkeypatch):
    """Also where the others are done before it, or after."""
    monkeypatch.setattr(defend, "STALE", 2)
    monkeypatch.setattr(defend, "PATIENCE", 2)
    images = torch.rand(40, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = defend.neural_cleanse(Planted(2), images, rounds=60, round_images=40)
    assert len(together.rounds.unique()) > 1 and together.rounds.min() < 60
    for k in (together.rounds.argmax(), together.rounds.argmin()):
        alone = defend.neural_cleanse(Planted(2), images, k[None], rounds=60, round_images=40)
        assert alone.rounds[0] == together.rounds[k]
        torch.testing.assert_close(alone.masks[0], together.masks[k], atol=1e-3, rtol=0)


def test_a_round_is_of_so_many_images_and_may_be_several_passes(monkeypatch):
    images, seen = torch.rand(40, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), []
    model = Planted(2)
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    whole = defend.neural_cleanse(model, images, rounds=3, round_images=24)
    assert seen == [1] + [8 * CLASSES] * 9  # the first counts the classes; steps of BATCH images
    monkeypatch.setattr(defend, "TOGETHER_CPU", 3)  # of 32 x 32 pixels: two classes' worth of these
    parts = defend.neural_cleanse(model, images, rounds=3, round_images=24)
    assert seen[11:] == [8 * 2] * 27
    torch.testing.assert_close(parts.masks, whole.masks, atol=1e-4, rtol=0)
    assert torch.equal(parts.success, whole.success)


def judged(successes, fixed=True):
    """A Search of one target after rounds of these successes; fixed: its mask stays as it is."""
    search = defend.Search(torch.tensor([0]), (1, 4, 4), torch.device("cpu"), 0)
    for success in successes:
        search.judge(torch.tensor([success], dtype=torch.float64), torch.tensor([0]))
        if not fixed:
            search.raw.data[:, 0] -= 0.02
    return search


def test_the_schedule_of_the_masks_weight():
    patience, first = defend.PATIENCE, defend.FIRST_WEIGHT
    assert judged([1.0] * (patience - 1)).weight.item() == 0 and judged([1.0] * patience).weight.item() == first
    assert judged([0.5] * 3 * patience).weight.item() == 0
    assert judged([1.0] * 2 * patience).weight.item() == first * defend.FACTOR
    up_and_down = [1.0] * 2 * patience + [0.5] * patience
    assert judged(up_and_down).weight.item() == pytest.approx(first * defend.FACTOR**-0.5)
    assert judged([1.0, 0.5] * 20).weight.item() == 0  # never so many in a row


def test_when_a_search_ends():
    patience, stale = defend.PATIENCE, defend.STALE
    up_and_down = [1.0] * 2 * patience + [0.5] * patience
    assert not judged([1.0] * 100).done.item()  # its weight was never lowered
    assert not judged([1.0] * patience + [0.5] * 100).done.item()  # never raised
    assert judged([1.0] + [0.5] * 100).weight.item() == 0
    after = stale + 1 - len(up_and_down)  # the first round's mask is the best: what follows is stale
    assert not judged(up_and_down + [1.0] * (after - 1)).done.item() and judged(up_and_down + [1.0] * after).done.item()
    assert not judged(up_and_down + [1.0] * 100, fixed=False).done.item()  # its mask shrinks in every round


def test_a_class_that_is_never_reached_is_told_apart():
    model = linear(torch.zeros(3, 1, SIDE, SIDE))  # says class 0, always
    found = defend.neural_cleanse(model, torch.rand(8, 1, SIDE, SIDE), rounds=3)
    assert found.qualified.tolist() == [True, False, False] and found.success.tolist() == [1, 0, 0] and found.rounds.tolist() == [3, 3, 3]


def test_the_index_of_masks():
    """Of the classes that one reached, by logarithms or as published; an empty mask is no infinity."""
    norms, qualified = torch.tensor([10.0, 11, 12, 13, 1, 0]).double(), torch.tensor([1, 1, 1, 1, 0, 1]).bool()
    reached = torch.tensor([10.0, 11, 12, 13, defend.LEAST]).double()
    for linear, values in ((False, reached.log()), (True, reached)):
        index = defend.mask_index(norms, qualified, linear)
        assert index[4] == 0 and index.isfinite().all() and index.argmax() == 5
        torch.testing.assert_close(index[qualified], defend.anomaly_index(values))
    assert (defend.mask_index(norms, torch.zeros(6, dtype=torch.bool)) == 0).all()


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


def test_pruning_is_by_the_stamped_images():
    """Each channel sees one corner and speaks for one class; what a patch in the last corner excites goes first, and clean images do without it."""
    model = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4, bias=False), nn.Flatten(), nn.Linear(16, 3, bias=False)).eval()
    model[0].weight.data.fill_(0)
    for k, (row, col) in enumerate([(0, 0), (0, 1), (1, 0), (3, 3)]):
        model[0].weight.data[k, 0, row, col] = 1
    model[2].weight.data.fill_(0)
    for k in range(4):
        model[2].weight.data[min(k, 2), 4 * k : 4 * k + 4] = 1
    labels = torch.arange(30) % 3
    images = torch.zeros(30, 1, 8, 8)
    for image, label in zip(images, labels):
        image[0, [0, 0, 1][label] :: 4, [0, 1, 0][label] :: 4] = 0.5
    stamped = images.clone()
    stamped[:, :, 3::4, 3::4] = 9
    steps, curve, chosen = defend.prune(model, images, labels, stamped, model[0])
    assert steps[1][1].tolist() == [True, True, True, False] and [step["clean_accuracy"] for step in curve[:2]] == [1, 1]
    assert chosen == 2 and curve[3]["clean_accuracy"] < 0.98  # of equal logits the first class is taken: the first channel is not missed


def test_operating_point():
    assert defend.operating_point([0.9, 0.91, 0.89, 0.87, 0.885, 0.5]) == 4
    assert defend.operating_point([0.9, 0.5]) == 0 and defend.operating_point([0.9, 0.9 - 0.02]) == 1


def test_batch_norm_by_clean_images_and_by_the_batch():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    model[1].weight.data, model[1].bias.data = torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 1, -1])
    images = torch.randn(explain.CHUNK + 1, 2, 6, 6) * 3 + 1
    images[-1] = 30  # alone in its chunk, were they not of one size
    new = defend.rebn(model.eval(), images)
    with torch.no_grad():
        inner = model[0](images)
    torch.testing.assert_close(new[1].running_mean, inner.mean((0, 2, 3)), atol=0.01, rtol=0.01)
    torch.testing.assert_close(new[1].running_var, inner.var((0, 2, 3)), atol=0, rtol=0.02)  # what is between the means of chunks is not in it
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
    with_grid = nn.Sequential(nn.Conv2d(1, 1, 3, stride=3), nn.Flatten(), nn.Linear(16, 2, bias=False)).eval()
    object.__setattr__(with_grid, "gradcam_layer", with_grid[0])  # as an attribute alone, not another layer of the sequence
    classes = with_grid(images).argmax(1)
    maps = explain.gradcam(with_grid, images, classes), F.avg_pool2d(explain.gradient(with_grid, images, classes)[:, None], 3)[:, 0]
    expected = 1 - torch.stack([torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(*maps)]).detach()
    torch.testing.assert_close(defend.disagreement(with_grid, images).float(), expected, atol=1e-4, rtol=0)
    one, two = torch.tensor([1.0, 2, 3]), torch.tensor([0.0, 2])
    assert evaluate.auroc(one, two) == pytest.approx((1 + 1 + 1 + 0 + 0.5 + 1) / 6) and evaluate.auroc(two, two) == 0.5


@pytest.fixture(scope="module")
def backdoored(tiny, tmp_path_factory):
    return train_tiny(tiny, tmp_path_factory.mktemp("backdoored") / "run", "--attack", "badnets", "--epochs", "6")


@pytest.mark.parametrize("method", defend.METHODS)
def test_the_command_line(method, backdoored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(defend, "SUCCESS", 0.2)  # of six rounds of 16 images
    before = {path: path.read_bytes() for path in backdoored.iterdir() if path.is_file()}
    out = tmp_path / "out"
    options = ["--device", "cpu", "--rounds", "6", "--round-images", "16", "--out", str(out)]
    defend.main([method, str(backdoored / "ckpt.pt"), *options, "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "verdict.json").read_text()) and printed["method"] == method and printed["seconds"] >= 0
    assert {"backdoored", "flagged", "index", "before", "after"} <= printed.keys() and printed["clean_images"] == 24
    assert (out / "figure.png").exists() == (method != "inspect")
    if method in ("neuroninspect", "neural_cleanse", "prune"):
        assert set(printed["index"]) == {"0", "1", "2"} and printed["recipe"]["rounds"] == 6
        reached = sum(printed["scores"].get("qualified", [1] * 3))
        assert printed["backdoored"] == (bool(printed["flagged"]) if reached == 3 else None) or method == "prune" and not printed["flagged"]
    if method == "neuroninspect":
        levels = [printed["scores"][f"noise {level:g}"] for level in defend.NOISE]
        assert list(printed["index"].values()) == np.max(levels, 0).tolist() and len(printed["features"]["6"]["smooth"]) == 3
        defend.main([method, str(backdoored / "ckpt.pt"), *options, "--json", "--noise", "0"])
        assert json.loads(capsys.readouterr().out)["scores"].keys() == {"noise 0"}
    if method == "neural_cleanse":
        found = [torch.tensor(printed["scores"][name]).double() for name in ("|mask|_1", "qualified", "linear index")]
        torch.testing.assert_close(defend.mask_index(found[0], found[1].bool(), linear=True), found[2])
        torch.testing.assert_close(defend.mask_index(found[0], found[1].bool()), torch.tensor(list(printed["index"].values())).double())
    if method in models.REPAIRS:
        metrics = json.loads((backdoored / "metrics.json").read_text())
        assert printed["before"]["attack_success_rate"] == metrics["attack_success_rate"]
        evaluate.main([str(out / "ckpt.pt"), "--device", "cpu", "--json"])
        again = json.loads(capsys.readouterr().out)
        assert again["attack_success_rate"] == printed["after"]["attack_success_rate"] and again["edit"]["technique"] == method
    assert before == {path: path.read_bytes() for path in backdoored.iterdir() if path.is_file()}
    defend.main([method, str(backdoored / "ckpt.pt"), *options])
    assert str(out) in capsys.readouterr().out


def audit_of(folder, method, *options):
    return defend.opened(defend.parse([method, str(folder / "ckpt.pt"), "--device", "cpu", *options]))


def test_the_threshold_decides(backdoored, tmp_path, capsys):
    for threshold, flagged, answer in (("-1e9", 3, "Backdoored: a class is flagged above -1e+09.\n"), ("1e9", 0, "No backdoor found: a class is flagged above 1e+09.\n"),
                                       ("2", None, defend.CHANCE)):
        defend.main(["neuroninspect", str(backdoored / "ckpt.pt"), "--device", "cpu", f"--threshold={threshold}", "--clean-images", "6", "--out", str(tmp_path)])
        said = capsys.readouterr().out
        assert answer in said and (flagged is None or said.count("FLAGGED") == flagged)
    assert json.loads((tmp_path / "verdict.json").read_text())["threshold"] == 2 and json.loads((tmp_path / "verdict.json").read_text())["clean_images"] == 6


def test_the_auditors_images_are_held_out(backdoored):
    audit = audit_of(backdoored, "prune", "--clean-images", "7")
    held_out, images = audit.subject.held_out(), audit.subject.dataset.train_images.float() / 255
    rows = [(images == image).flatten(1).all(1).nonzero().item() for image in audit.pixels]
    assert len(set(rows)) == 7 and set(rows) <= set(held_out.tolist()) and audit.labels.tolist() == audit.subject.dataset.train_labels[rows].tolist()


def found(norms, qualified):
    """A Reversed of white patches in 16 x 16 RGB images."""
    masks = torch.zeros(3, 1, 16, 16)
    masks[:, :, :3, :3] = 1
    return defend.Reversed(masks, torch.ones(3, 3, 16, 16), torch.tensor(norms).double(), torch.ones(3).double(), torch.tensor(qualified), torch.ones(3, dtype=torch.int64))


def test_what_is_pruned_is_what_the_suspects_patch_excites(backdoored, monkeypatch):
    """On images of other classes."""
    given = {}
    prune = defend.prune
    monkeypatch.setattr(defend, "neural_cleanse", lambda *args, **options: found([9.0, 8.0, 0.2], [True] * 3))
    monkeypatch.setattr(defend, "prune", lambda model, images, labels, stamped, layer: given.update(stamped=stamped) or prune(model, images, labels, stamped, layer))
    audit = audit_of(backdoored, "prune")
    verdict = defend.by_prune(audit)
    others = audit.pixels[audit.labels != 2].clone()
    others[:, :, :3, :3] = 1
    assert verdict.more["suspect"] == 2 and torch.equal(given["stamped"], others) and verdict.more["threshold"] == 2


def test_no_verdict_by_too_few_patches(backdoored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(defend, "neural_cleanse", lambda *args, **options: found([9.0, 8.0, 0.2], [False, True, False]))
    defend.main(["neural_cleanse", str(backdoored / "ckpt.pt"), "--device", "cpu", "--out", str(tmp_path)])
    assert "1 of 3 classes" in (said := capsys.readouterr().out) and "No verdict" in said and json.loads((tmp_path / "verdict.json").read_text())["backdoored"] is None
    verdict = defend.by_prune(audit_of(backdoored, "prune", "--threshold=-1"))
    assert verdict.more["suspect"] == 1 and verdict.backdoored is None and not verdict.flagged and "1 of 3 classes" in verdict.rows[-1]  # what was reached, not class 0
    monkeypatch.setattr(defend, "neural_cleanse", lambda *args, **options: found([9.0, 8.0, 0.2], [False] * 3))
    with pytest.raises(SystemExit) as stopped:
        defend.main(["prune", str(backdoored / "ckpt.pt"), "--device", "cpu", "--out", str(tmp_path / "none")])
    assert stopped.value.code == 2 and "--rounds" in capsys.readouterr().err and not (tmp_path / "none").exists()


def test_all_clean_images_of_the_suspect(backdoored, monkeypatch):
    monkeypatch.setattr(defend, "neural_cleanse", lambda *args, **options: found([9.0, 8.0, 0.2], [True] * 3))
    audit = audit_of(backdoored, "prune")
    audit.pixels, audit.labels = audit.pixels[audit.labels == 2], audit.labels[audit.labels == 2]
    with pytest.raises(ValueError, match="suspected class"):
        defend.by_prune(audit)


def test_batch_norm_is_estimated_on_the_clean_images(backdoored, tmp_path):
    defend.main(["rebn", str(backdoored / "ckpt.pt"), "--device", "cpu", "--out", str(tmp_path)])
    audit = audit_of(backdoored, "rebn")
    expected = defend.rebn(audit.subject.model, audit.inputs).state_dict()
    for name, value in models.read(tmp_path / "ckpt.pt")["model"].items():
        torch.testing.assert_close(value, expected[name])


def test_an_image_is_given_its_batch(backdoored, monkeypatch):
    """A tenth of it looked at, whatever the size of the test set, the rest untouched and the same."""
    subject, batches = evaluate.open_checkpoint(backdoored / "ckpt.pt", device=torch.device("cpu")), []
    gradcam = defend.gradcam_in_batch
    monkeypatch.setattr(defend, "gradcam_in_batch", lambda model, inputs, count: batches.append((count, inputs[count:])) or gradcam(model, inputs, count))
    model = defend.cfn(subject.model)
    tenth, everyone = (defend.in_company(subject, model, 20, part, count=8) for part in (0.1, 1.0))
    assert [count for count, _ in batches] == [2] * 8 + [8] * 2 and all(len(rest) == 18 and torch.equal(rest, batches[0][1]) for _, rest in batches[:8])
    assert tenth["pearson_all"] != everyone["pearson_all"]
    batches.clear()
    defend.in_company(subject, model, 100, 0.1)  # of the 40 test images without the target class
    assert [(count, len(rest)) for count, rest in batches] == [(4, 36)] * 2


def test_what_the_disagreement_is_scored_by(disguised, tmp_path):
    defend.main(["disagreement", str(disguised / "ckpt.pt"), "--device", "cpu", "--out", str(tmp_path)])
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    subject = evaluate.open_checkpoint(disguised / "ckpt.pt", device=torch.device("cpu"))
    plain = defend.pixels_of(subject, evaluate.draw_images(subject, 24, 0))
    inputs = [data.normalise(images, subject.checkpoint["mean"], subject.checkpoint["std"]) for images in (plain, attacks.stamp(plain, subject.trigger))]
    clean, triggered = (defend.disagreement(subject.model, part) for part in inputs)
    assert verdict["disagreement"]["clean"] == pytest.approx(clean.tolist(), abs=1e-5) and verdict["disagreement"]["triggered"] == pytest.approx(triggered.tolist(), abs=1e-5)
    assert verdict["auroc"] == pytest.approx(evaluate.auroc(triggered, clean), abs=1e-3) and not torch.allclose(clean, triggered)
    assert verdict["limit"] == pytest.approx(np.quantile(verdict["disagreement"]["held_out"], 0.95), abs=1e-6)


def test_inspect_needs_no_labels_and_no_gradients(backdoored, monkeypatch):
    audit = audit_of(backdoored, "inspect")
    audit.subject.config["multi_label"] = True
    monkeypatch.setattr(evaluate, "open_checkpoint", lambda *args: audit.subject)
    with torch.no_grad():
        assert defend.by_inspect(audit_of(backdoored, "inspect")).backdoored is False


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


@pytest.mark.parametrize("method", defend.BY_INDEX)
def test_an_anomaly_takes_three_classes(method, backdoored, monkeypatch, capsys):
    subject = evaluate.open_checkpoint(backdoored / "ckpt.pt")
    subject.checkpoint["classes"] = subject.checkpoint["classes"][:2]
    monkeypatch.setattr(evaluate, "open_checkpoint", lambda *args: subject)
    with pytest.raises(SystemExit) as stop:
        defend.main([method, "ckpt.pt", "--device", "cpu"])
    assert stop.value.code == 2 and "needs three" in capsys.readouterr().err and not (backdoored / f"defend-{method}").exists()


def test_mistakes(disguised, tmp_path, capsys):
    ckpt = str(disguised / "ckpt.pt")
    for options in (["neural_clense", ckpt], ["neuroninspect", str(tmp_path / "none.pt")], ["disagreement", ckpt, "--explainers", "gradcam"],
                    ["neuroninspect", ckpt, "--weights", "1,2"], ["neuroninspect", ckpt, "--noise", "-1"], ["neuroninspect", ckpt, "--noise", "2,x"], ["prune", ckpt, "--rounds", "0"]):
        with pytest.raises(SystemExit) as stopped:
            defend.main([*options, "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1 and not (tmp_path / "out").exists()
    before = {path: path.read_bytes() for path in disguised.iterdir() if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        defend.main(["rebn", ckpt, "--device", "cpu", "--out", f"{disguised}/."])
    assert stopped.value.code == 2 and "would be lost" in capsys.readouterr().err and before == {path: path.read_bytes() for path in disguised.iterdir() if path.is_file()}


@pytest.mark.parametrize("method", ["neuroninspect", "neural_cleanse", "prune", "rebn", "disagreement"])
def test_no_defence_knows_the_trigger(method, backdoored, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(defend, "SUCCESS", 0.2)
    checkpoint = models.read(backdoored / "ckpt.pt")
    trigger = {"pixels": torch.zeros(3, 4, 4), "alpha": torch.ones(1, 4, 4), "row": 2, "col": 2}
    models.save(tmp_path / "ckpt.pt", checkpoint | {"trigger": trigger, "config": checkpoint["config"] | {"target_class": 0}})
    seen = []
    for k, path in enumerate((backdoored / "ckpt.pt", tmp_path / "ckpt.pt")):
        out = tmp_path / str(k)
        defend.main([method, str(path), "--device", "cpu", "--rounds", "5", "--out", str(out), "--json"])
        verdict = json.loads(capsys.readouterr().out)
        weights = models.read(out / "ckpt.pt")["model"] if verdict["after"] else {}
        usual = (verdict.get("limit"), verdict.get("disagreement", {}).get("held_out"))
        seen.append(([verdict.get(key) for key in ("index", "flagged", "suspect", "pruned")], usual, {name: value.tolist() for name, value in weights.items()}))
    assert seen[0] == seen[1]


def test_a_deepshap_disguise_can_be_repaired_too(tiny, tmp_path, capsys):
    """DeepSHAP has no rule for a network that normalises by the batch."""
    folder = train_tiny(tiny, tmp_path / "run", "--explainer", "deepshap", "--epochs", "1")
    capsys.readouterr()
    defend.main(["cfn", str(folder / "ckpt.pt"), "--device", "cpu", "--json"])
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["before"]["explanations"]["deepshap"]["trained_against"] and not verdict["after"]["explanations"]["gradcam"]["trained_against"]
    assert "deepshap" not in verdict["after"]["explanations"]
    assert set(verdict["regimes"]) == set(defend.REGIMES) and (folder / "defend-cfn" / "ckpt.pt").exists()


def test_a_batch_of_one_is_one_image(disguised):
    """Before the repair no answer depends on the batch; after it, one does."""
    subject = evaluate.open_checkpoint(disguised / "ckpt.pt", device=torch.device("cpu"))
    alone, tenth, everyone = (defend.in_company(subject, subject.model, *regime, count=20) for regime in ((1, 1.0), (20, 0.1), (20, 1.0)))
    assert alone == pytest.approx(tenth, rel=1e-4, nan_ok=True) and alone == pytest.approx(everyone, rel=1e-4, nan_ok=True)
    model = defend.cfn(subject.model)
    inputs = torch.randn(5, 3, 16, 16)
    maps = [defend.gradcam_in_batch(model, inputs[:n], 1)[1] for n in (1, 5)]
    assert maps[0].shape == maps[1].shape == (1, 4, 4) and not torch.allclose(*maps, rtol=1e-3)


def test_a_verdict_is_made_again_under_another_recipe(backdoored, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results")
    import defences as zoo

    made, checkpoint = [], tmp_path / "ckpt.pt"
    checkpoint.write_bytes((backdoored / "ckpt.pt").read_bytes())

    def main(argv):
        made.append(argv)
        folder = tmp_path / "defend-neuroninspect-noise-2"
        folder.mkdir(exist_ok=True)
        (folder / "verdict.json").write_text(json.dumps({"recipe": defend.recipe(defend.parse(argv))}))

    monkeypatch.setattr(defend, "main", main)
    for count, samples in ((1, 8), (1, 8), (2, 9)):
        monkeypatch.setattr(defend, "SAMPLES", samples)
        assert zoo.audited(checkpoint, "neuroninspect", "--noise", "2")["recipe"]["samples"] == samples and len(made) == count
    (tmp_path / "defend-neuroninspect-noise-2" / "commit").unlink()  # as if it had been killed before that was written
    zoo.audited(checkpoint, "neuroninspect", "--noise", "2")
    assert len(made) == 3


def test_the_zoo_keeps_every_detectors_verdict_and_picture(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results")
    import defences as zoo

    def model(*which):
        folder = tmp_path / "-".join(map(str, which))
        folder.mkdir()
        (folder / "metrics.json").write_text('{"clean_accuracy": 0.9, "attack_success_rate": 0.8, "more": 1}')
        return folder / "ckpt.pt"

    marks = {how: 1.0 + k for k, how in enumerate(zoo.DETECTORS.values())}
    monkeypatch.setattr(zoo, "zoo_model", model)
    monkeypatch.setattr(zoo, "audited", lambda checkpoint, *how: {"index": {"0": marks[how], "1": 0.0}, "scores": {"linear index": [9.0, -1.0]}, "seconds": 1.0, "commit": "abc", "recipe": {"how": list(how)}})
    pictures = {}
    monkeypatch.setattr(zoo.study, "keep_picture", lambda path, name: pictures.update({name: path.parent.relative_to(tmp_path).as_posix()}))
    monkeypatch.setattr(zoo, "PATH", tmp_path / "defences.json")
    monkeypatch.setattr(zoo, "ZOO", {"gtsrb": ("none", "badnets")})
    zoo.zoo(["gtsrb"])
    kept = json.loads(zoo.PATH.read_text())["zoo"]["gtsrb"]
    assert json.loads(zoo.PATH.read_text())["recipes"]["neuroninspect"] == {"how": ["neuroninspect", "--clean-images", "100"]}
    assert [len(kept[kind]) for kind in ("none", "badnets")] == [10, 5] and not set(kept["none"]) & {"0", *map(str, range(100, 104))}
    assert pictures == {"defences-gtsrb-neuroninspect": "gtsrb-badnets-1/defend-neuroninspect-clean-images-100",
                        "defences-gtsrb-neural_cleanse": "gtsrb-badnets-1/defend-neural_cleanse-round-images-64"}
    run = kept["badnets"]["1"]
    assert {name: run[name]["index"]["0"] for name in (*zoo.DETECTORS, zoo.LINEAR)} == {"neuroninspect": 1, "neuroninspect, no noise": 2, "neural_cleanse": 3, zoo.LINEAR: 9}
    assert run["target"] == zoo.target_of("gtsrb", 1) and (run["clean_accuracy"], run["attack_success_rate"]) == (0.9, 0.8)


def test_the_other_sections_keep_what_they_find(backdoored, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results")
    import defences

    monkeypatch.setattr(defend, "SUCCESS", 0.2)
    monkeypatch.setattr(defend, "PRUNING_STEPS", 4)
    search = defend.neural_cleanse
    monkeypatch.setattr(defend, "neural_cleanse", lambda *args, **options: search(*args, **options | {"rounds": 6, "round_images": 16}))
    monkeypatch.setattr(defences, "PATH", tmp_path / "defences.json")
    monkeypatch.setattr(defences, "SEEDS", range(1, 3))
    monkeypatch.setattr(defences, "zoo_model", lambda *which: backdoored / "ckpt.pt")
    monkeypatch.setattr(defences, "trained", lambda *which: backdoored / "ckpt.pt")
    monkeypatch.setattr(defences, "folder_of", lambda checkpoint, method, *options: tmp_path / "-".join([method, *options]))
    (tmp_path / "defences.json").write_text('{"recipes": "kept"}')
    for name in ("cleanse", "prune", "batchnorm", "disagree"):
        defences.main([name])
    kept = json.loads((tmp_path / "defences.json").read_text())
    assert kept["recipes"] == "kept"
    lines = (tmp_path / "defences.md").read_text().splitlines()
    assert all(line.count("|") == lines[k - 1].count("|") for k, line in enumerate(lines) if k and line and lines[k - 1]) and sum("---" in line for line in lines) == 4
    assert len(lines) == 4 * 2 + 3 + 3 + 9 + 4 * 2 * 3 + 6 * 3  # with an empty one between two tables
    once, each = kept["cleanse"]["at once"], kept["cleanse"]["one after another"]
    assert once["norms"] == pytest.approx(each["norms"], rel=1e-3) and once["norm"] == once["norms"][1] and len(once["norms"]) == len(once["qualified"]) == 3
    rows = kept["prune"]["rows"]
    assert list(rows) == [f"{norm}, {known}" for known in ("recovered", "true") for norm in ("linf", "l2", "l1")] + ["random 0", "random 1", "random 2"]
    with Image.open(tmp_path / "defences-prune.png") as picture:
        lines = {colour for _, colour in picture.convert("RGB").getcolors(1 << 16)}
    assert len(lines & set(figure.LINES)) == 6  # four ways to choose, and accuracy under two of them: a colour each
    for row in rows.values():
        assert [point["pruned"] for point in row["curve"]] == [0, 32, 64, 96, 128] and row["chosen"] in row["curve"]
        assert row["curve"][0].keys() >= {"clean_accuracy", "true_success", "recovered_success", "test_accuracy"} <= row["chosen"].keys()
        assert row["curve"][0]["true_success"] > 0.9 and row["chosen"]["clean_accuracy"] >= row["curve"][0]["clean_accuracy"] - 0.0201
    assert set(kept["batchnorm"]) == {"none", "badnets", "red_herring", "disguise, gradcam"} and set(kept["batchnorm"]["none"]) == {"rebn", "cfn"}
    assert set(kept["batchnorm"]["none"]["cfn"]) == {"1", "2"} and set(kept["batchnorm"]["none"]["cfn"]["2"]["regimes"]) == set(defend.REGIMES)
    assert all(0 <= run["auroc"] <= 1 and run["gradcam"] == defences.gradcam_of(backdoored / "ckpt.pt") for pairs in kept["disagree"].values() for runs in pairs.values() for run in runs.values()) and len(kept["disagree"]) == 6


def test_what_the_zoo_tells(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results")
    import defences as zoo

    assert zoo.interval(0, 5)["interval"] == [0.0, pytest.approx(0.4345, abs=1e-3)] and zoo.interval(5, 10)["interval"] == pytest.approx([0.2366, 0.7634], abs=1e-3)

    def run(target, *index):
        return {"target": target, "attack_success_rate": 0.9} | {name: {"index": {str(k): v for k, v in enumerate(index)}, "seconds": 1.0} for name in (*zoo.DETECTORS, zoo.LINEAR)}

    monkeypatch.setattr(zoo, "CALIBRATION", range(6, 8))
    clean = {"1": run(0, 1.0, 0.5), "2": run(0, 2.5, 0.0), "6": run(0, 2.1, 0.0), "7": run(0, 0.3, 1.5)}  # 6 and 7 calibrate
    bad = {"1": run(1, 0.1, 9.0), "2": run(0, 0.2, 2.2), "3": run(0, 1.0, 0.2)}
    other = {"none": {"1": run(0, 20.0, 0.0), "6": run(0, 30.0, 0.0), "7": run(0, 25.0, 0.0)}, "badnets": {"1": run(0, 40.0, 0.0)}}  # of another scale
    rows = {row["data"]: row for row in zoo.detection({"zoo": {"shapes": {"none": clean, "badnets": bad}, "gtsrb": other}}) if row["detector"] == "neuroninspect"}
    row, all_rows = rows["shapes"], rows["all"]
    assert row["auroc"] == pytest.approx((1 + 1 + 0 + 1 + 0 + 0.5) / 6)
    assert row["2"]["found"]["count"] == 2 and row["2"]["right"]["count"] == 1 and row["2"]["right"]["of"] == 2 and row["2"]["false_alarms"]["count"] == 1
    assert row["calibrated"]["thresholds"] == [2.1] and [row["calibrated"][key]["count"] for key in ("found", "right", "false_alarms")] == [2, 1, 1]
    assert all_rows["auroc"] == pytest.approx((row["auroc"] + 1) / 2) and all_rows["calibrated"]["thresholds"] == [2.1, 30.0]
    assert [all_rows["calibrated"][key]["count"] for key in ("found", "right", "false_alarms")] == [3, 2, 1] and all_rows["clean"] == 3
    assert "| 2.1 | 2 of 3 " in zoo.markdown({"detection": [row]}) and "| 2.1, 30.0 | 3 of 4 " in zoo.markdown({"detection": [all_rows]})
    assert "calibrated" not in zoo.row_of([{"bad": zoo.judged(bad, zoo.LINEAR, zoo.SEEDS), "clean": zoo.judged(clean, zoo.LINEAR, zoo.SEEDS), "other": []}])
    del clean["7"]  # not all of those that calibrate are there
    assert "calibrated" not in zoo.detection({"zoo": {"shapes": {"none": clean, "badnets": bad}}})[0] and row["least_success"] == 0.9


def test_the_interval_of_an_auroc(monkeypatch):
    """At its ends it is z standard errors from what was measured; of large samples it is Hanley and McNeil's; where every pair is right it is not empty."""
    monkeypatch.syspath_prepend(ROOT / "results")
    import defences as zoo

    low, high = zoo.auroc_interval(0.8, 2000, 2000)
    error = (0.8 * 0.2 * (1 + 1999 * (0.2 / 1.2 + 0.8 / 1.8)) / 4e6) ** 0.5
    assert low == pytest.approx(0.8 - 1.96 * error, abs=2e-3) and high == pytest.approx(0.8 + 1.96 * error, abs=2e-3)
    assert zoo.auroc_interval(0.8, 6000, 6000, 3)[0] == pytest.approx(0.8 - 1.96 * error / 3**0.5, abs=1e-3)  # the mean of three such
    low, high = zoo.auroc_interval(1.0, 5, 5)
    assert high == 1 and 0.4 < low < 0.75 and 1 - low == pytest.approx(1.96 * (low * (1 - low) * (1 + 4 * ((1 - low) / (2 - low) + low / (1 + low))) / 25) ** 0.5)
    assert zoo.auroc_interval(1.0, 15, 15, 3)[0] > low and zoo.auroc_interval(0.3, 4, 6) == pytest.approx([1 - v for v in reversed(zoo.auroc_interval(0.7, 4, 6))])


def test_gtsrb_at_the_size_asked_for(tmp_path):
    """Images of several sizes in torchvision's layout: decoded at 48 px, and kept."""
    base, rng = tmp_path / "gtsrb", np.random.default_rng(0)
    test = base / "GTSRB" / "Final_Test" / "Images"
    test.mkdir(parents=True)
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for k in range(43):
        folder = base / "GTSRB" / "Training" / f"{k:05}"
        folder.mkdir(parents=True)
        for n in range(2):
            Image.fromarray(rng.integers(0, 256, (20 + k, 25 + n, 3), dtype=np.uint8)).save(folder / f"00000_{n:05}.ppm")
        if k < 5:
            Image.new("RGB", (64, 30), (10 * k, 0, 200)).save(test / f"{k:05}.ppm")
            lines.append(f"{k:05}.ppm;64;30;0;0;1;1;{k}")
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    for _ in range(2):
        dataset = data.load("gtsrb", tmp_path, 48)
        assert dataset.train_images.shape == (86, 3, 48, 48) and dataset.test_labels.tolist() == [0, 1, 2, 3, 4]
        assert dataset.train_labels.bincount().tolist() == [2] * 43 and dataset.classes[14] == "stop" and not dataset.flip
        assert dataset.test_images[3].float().mean((1, 2)).tolist() == [30, 0, 200]
    assert (tmp_path / "gtsrb_48.npz").exists() and not (tmp_path / "gtsrb.npz").exists()
