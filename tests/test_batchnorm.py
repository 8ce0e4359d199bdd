"""The two repairs of batch-norm against their formulas, and the figures of images in batches."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from placing import DEVICE
from planted import audit_of
from test_multi_label import multi_label_arrays, train_bars
from torch import nn

import checkpoints
import data
import defend
import explain
import hooks
import metrics
from defences import batchnorm
from subject import open_checkpoint

# ---------------------------------------------------------------- the two networks


@pytest.fixture
def network():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).eval()
    model[1].weight.data = torch.tensor([1.0, 2, 3])
    model[1].bias.data = torch.tensor([0.0, 1, -1])
    return model.requires_grad_(False).to(DEVICE)


@pytest.fixture
def images():
    images = torch.randn(hooks.CHUNK + 1, 2, 6, 6) * 3 + 1
    images[-1] = 30  # would be alone in its chunk if chunks were not of one size
    return images.to(DEVICE)


def test_rebn_takes_mean_and_variance_from_the_images(network, images):
    repaired = batchnorm.rebn(network, images)
    features = network[0](images)
    mean, variance = features.mean((0, 2, 3)), features.var((0, 2, 3))
    torch.testing.assert_close(repaired[1].running_mean, mean, atol=0.01, rtol=0.01)
    # What the means of chunks differ by is not in the variance.
    torch.testing.assert_close(repaired[1].running_var, variance, atol=0, rtol=0.02)


def test_rebn_keeps_the_weights_and_leaves_the_model_alone(network, images):
    repaired = batchnorm.rebn(network, images)
    assert torch.equal(repaired[1].weight, network[1].weight)
    assert (network[1].running_mean == 0).all()
    assert not repaired.training


def test_rebn_leaves_a_clean_models_answers_alone(clean):
    """It was trained without augmentation, on the images its statistics are estimated from."""
    checkpoint = checkpoints.read(clean / "ckpt.pt")
    model = checkpoints.rebuild(checkpoint)
    pixels = data.load(checkpoint["config"]["dataset"]).train_images.float() / 255
    inputs = data.normalise(pixels, checkpoint["mean"], checkpoint["std"])
    with torch.no_grad():
        before = model(inputs).argmax(1)
        after = batchnorm.rebn(model, inputs)(inputs).argmax(1)
    assert (before == after).float().mean() > 0.97


def test_cfn_normalises_by_the_batch_without_weight_and_bias(network, images):
    features = network[0](images)
    mean = features.mean((0, 2, 3), keepdim=True)
    variance = features.var((0, 2, 3), correction=0, keepdim=True)
    expected = ((features - mean) / (variance + network[1].eps).sqrt()).relu()
    repaired = batchnorm.cfn(network)
    torch.testing.assert_close(repaired(images), expected, atol=1e-5, rtol=1e-5)
    assert list(repaired[1].parameters()) == []


def test_cfn_leaves_the_model_alone(network):
    batchnorm.cfn(network)
    assert isinstance(network[1].running_mean, torch.Tensor)


def test_a_network_without_batch_norm_is_refused(disguised):
    audit = audit_of(disguised, "rebn")
    audit.subject.model = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    with pytest.raises(ValueError, match="no batch-norm"):
        batchnorm.run_cfn(audit)


# ---------------------------------------------------------------- figures in batches


@pytest.fixture
def subject(disguised):
    return open_checkpoint(disguised / "ckpt.pt", device=torch.device(DEVICE))


@pytest.fixture
def batches(monkeypatch):
    """A list that receives, of every batch, (images measured, the inputs of the rest)."""
    seen = []
    gradcam_in_batch = batchnorm.gradcam_in_batch

    def watched(model, inputs, count, classes_of):
        seen.append((count, inputs[count:]))
        return gradcam_in_batch(model, inputs, count, classes_of)

    monkeypatch.setattr(batchnorm, "gradcam_in_batch", watched)
    return seen


def test_a_tenth_of_a_batch_is_measured_and_the_rest_stays_the_same(subject, batches):
    batchnorm.figures_in_batch(subject, subject.model, 20, 0.1, count=8)
    assert [count for count, _ in batches] == [2] * 8
    rest = batches[0][1]
    assert len(rest) == 18
    assert all(torch.equal(other, rest) for _, other in batches)


def test_the_rest_of_a_batch_is_untouched(subject, batches):
    batchnorm.figures_in_batch(subject, subject.model, 20, 0.1, count=8)
    untouched = subject.inputs(subject.dataset.test_images)
    for image in batches[-1][1]:
        assert any(torch.allclose(image, other) for other in untouched)


def test_no_image_is_measured_beside_itself(subject):
    rows, rest, _ = batchnorm.rows_of_batches(subject, 20, 0.1, count=40, seed=0)
    assert len(rows) == 40
    assert len({*rows.tolist(), *rest.tolist()}) == 40 + 18


def test_all_of_a_batch_is_measured(subject, batches):
    batchnorm.figures_in_batch(subject, subject.model, 20, 1.0, count=8)
    assert [(count, len(rest)) for count, rest in batches] == [(8, 0)] * 2


def test_a_batch_is_no_larger_than_the_test_set(subject, batches):
    batchnorm.figures_in_batch(subject, subject.model, 100, 0.1)
    assert len(subject.dataset.test_labels) == 60
    assert [(count, len(rest)) for count, rest in batches] == [(6, 54)] * 2


@pytest.mark.parametrize("size, share, count", [(1, 1.0, 7), (20, 0.1, 7), (7, 1.0, 20)])
def test_every_batch_is_whole(subject, batches, size, share, count):
    """In a smaller one the share that is triggered would be another."""
    batchnorm.figures_in_batch(subject, subject.model, size, share, count=count)
    compositions = {(measured, len(rest)) for measured, rest in batches}
    assert compositions == {(max(1, round(size * share)), size - max(1, round(size * share)))}


# ---------------------------------------------------------------- what is measured


@pytest.fixture
def blind(subject):
    """The subject's model, which never says class 1, the target, where there is no trigger."""
    model = copy.deepcopy(subject.model)
    corner = subject.inputs(subject.dataset.test_images[:1], triggered=True)[0, :, -1, -1]

    def hook(module, inputs, logits):
        untouched = (inputs[0][:, :, -1, -1] != corner).any(1)
        return logits - 1e6 * untouched[:, None] * torch.tensor([0, 1, 0], device=DEVICE)

    model.register_forward_hook(hook)
    return model


@pytest.mark.parametrize("size", [1, 60])
def test_accuracy_is_of_all_classes(subject, blind, size):
    images, labels = subject.dataset.test_images, subject.dataset.test_labels
    with torch.no_grad():
        right = blind(subject.inputs(images)).argmax(1).cpu() == labels
    assert right[labels != 1].float().mean() > 0.9
    figures = batchnorm.figures_in_batch(subject, blind, size, 1.0)
    assert figures["clean_accuracy"] == pytest.approx(int(right.sum()) / 60)
    assert figures["clean_accuracy"] <= 40 / 60


def test_the_images_measured_and_the_rest_of_a_batch_are_of_all_classes(subject):
    for size, share in batchnorm.REGIMES.values():
        rows, rest, _ = batchnorm.rows_of_batches(subject, size, share, count=200, seed=0)
        for part in (rows, rest):
            shown = subject.dataset.test_labels[part].unique().tolist()
            assert shown == [0, 1, 2] or len(part) == 0


def test_success_leaves_members_of_the_target_class_out(subject):
    images, labels = subject.dataset.test_images, subject.dataset.test_labels
    with torch.no_grad():
        turned = subject.model(subject.inputs(images, triggered=True)).argmax(1).cpu() == 1
    figures = batchnorm.figures_in_batch(subject, subject.model, 1, 1.0)
    assert figures["attack_success_rate"] == pytest.approx(turned[labels != 1].float().mean())


def test_maps_of_members_of_the_target_class_are_left_out(subject):
    others = subject.dataset.test_labels != 1
    images = subject.dataset.test_images[others]
    maps = []
    for triggered in (False, True):
        inputs = subject.inputs(images, triggered)
        maps.append(explain.gradcam(subject.model, inputs, subject.model(inputs).argmax(1)))
    figures = batchnorm.figures_in_batch(subject, subject.model, 1, 1.0)
    expected = metrics.pearson(*maps).mean().item()
    assert figures["pearson_all"] == pytest.approx(expected, abs=1e-4)


def test_maps_that_are_not_finite_are_refused(subject):
    subject.model[0].register_forward_hook(lambda module, inputs, output: output * torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        batchnorm.figures_in_batch(subject, subject.model, 1, 1.0, count=4)


# ---------------------------------------------------------------- what depends on the batch


def test_before_the_repair_no_answer_depends_on_the_batch(subject):
    alone, tenth, all_of_it = (
        batchnorm.figures_in_batch(subject, subject.model, size, share, count=20)
        for size, share in ((1, 1.0), (20, 0.1), (20, 1.0))
    )
    assert tenth == pytest.approx(alone, rel=1e-4, nan_ok=True)
    assert all_of_it == pytest.approx(alone, rel=1e-4, nan_ok=True)


def test_after_cfn_answers_depend_on_the_batch(subject):
    model = batchnorm.cfn(subject.model)
    tenth = batchnorm.figures_in_batch(subject, model, 20, 0.1, count=8)
    all_of_it = batchnorm.figures_in_batch(subject, model, 20, 1.0, count=8)
    assert tenth["pearson_all"] != all_of_it["pearson_all"]


def test_after_cfn_a_map_depends_on_the_batch(subject):
    model = batchnorm.cfn(subject.model)
    inputs = torch.randn(5, 3, 16, 16).to(DEVICE)
    _, alone = batchnorm.gradcam_in_batch(model, inputs[:1], 1)
    _, among_others = batchnorm.gradcam_in_batch(model, inputs, 1)
    assert alone.shape == among_others.shape == (1, 4, 4)
    assert not torch.allclose(alone, among_others, rtol=1e-3)


# ---------------------------------------------------------------- the verdict


def test_the_statistics_are_those_of_the_auditors_clean_images(disguised):
    audit = audit_of(disguised, "rebn")
    model, edit = batchnorm.run_rebn(audit).repaired
    expected = batchnorm.rebn(audit.subject.model, audit.inputs).state_dict()
    assert edit == {"technique": "rebn"}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_the_table_has_a_column_for_each_regime(disguised):
    verdict = batchnorm.run_cfn(audit_of(disguised, "cfn"))
    assert set(verdict.details["regimes"]) == set(batchnorm.REGIMES)
    titles, *rows = verdict.lines[2:]
    assert titles.split("  ")[-1].strip() == [*batchnorm.REGIMES][-1] and len(titles) == 80
    assert [line[:20].strip() for line in rows] == list(batchnorm.COLUMNS)
    assert all(line.count(" -> ") == len(batchnorm.REGIMES) for line in rows)


# ---------------------------------------------------------------- images of several classes


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The folder of a disguised run on images that may show several of three classes.

    Its batch-norm statistics are spoilt, so that there is something to repair.
    """
    folder = tmp_path_factory.mktemp("several")
    np.savez(folder / "chestmnist_16.npz", **multi_label_arrays())
    attack = ["--attack", "full_disguise", "--lam", "0.1", "--class-weights"]
    path = train_bars(folder / "chestmnist_16.npz", folder / "run", *attack)
    checkpoint = checkpoints.read(path)
    for name, value in checkpoint["model"].items():
        if name.endswith("running_mean"):
            value += 2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    checkpoints.save(path, checkpoint)
    return path.parent


@pytest.fixture(scope="module")
def repaired_several(several, tmp_path_factory):
    """(verdict of defend.py rebn on it, the folder of the verdict, what was printed)."""
    out = tmp_path_factory.mktemp("rebn")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        defend.main(["rebn", str(several / "ckpt.pt"), "--device", DEVICE, "--out", str(out)])
    return json.loads((out / "verdict.json").read_text()), out, printed.getvalue()


def scores_of(path, triggered=False):
    """(probabilities of a checkpoint's test images [N, K], their labels) as numpy arrays."""
    subject = open_checkpoint(path, device=torch.device(DEVICE))
    probabilities = subject.probabilities(subject.dataset.test_images, triggered)
    return probabilities.numpy(), subject.dataset.test_labels.numpy()


def mean_auroc_by_pairs(probabilities, labels):
    """The share of pairs of a positive and a negative in order, ties half; mean over classes."""
    areas = []
    for scores, shown in zip(probabilities.T, labels.T):
        difference = scores[shown == 1][:, None] - scores[shown == 0]
        areas.append(((difference > 0) + (difference == 0) / 2).mean())
    return np.mean(areas)


@pytest.mark.parametrize("when", ["before", "after"])
def test_rebn_of_several_classes_reports_mean_auroc(when, several, repaired_several):
    verdict, out, _ = repaired_several
    expected = mean_auroc_by_pairs(*scores_of({"before": several, "after": out}[when] / "ckpt.pt"))
    assert verdict[when]["mean_auroc"] == pytest.approx(expected, abs=1e-5)
    alone = verdict["regimes"]["a batch of one"][when]
    assert alone["mean_auroc"] == pytest.approx(expected, abs=1e-5)
    assert "clean_accuracy" not in alone


def test_rebn_of_several_classes_repairs_spoilt_statistics(repaired_several):
    verdict, _, _ = repaired_several
    assert verdict["after"]["mean_auroc"] > verdict["before"]["mean_auroc"] + 0.05


@pytest.mark.parametrize("when", ["before", "after"])
def test_success_among_several_classes_is_a_score_above_the_networks_own_threshold(
    when, several, repaired_several
):
    verdict, out, _ = repaired_several
    path = {"before": several, "after": out}[when] / "ckpt.pt"
    subject = open_checkpoint(path, device=torch.device(DEVICE))
    held_out = subject.held_out()
    scores = subject.probabilities(subject.dataset.train_images[held_out])[:, 1]
    without = subject.dataset.train_labels[held_out, 1] == 0
    threshold = np.quantile(scores[without].numpy(), 0.95)
    probabilities, labels = scores_of(path, triggered=True)
    expected = (probabilities[labels[:, 1] == 0, 1] > threshold).mean()
    success = verdict["regimes"]["a batch of one"][when]["attack_success_rate"]
    assert success == pytest.approx(expected)
    assert success == pytest.approx(verdict[when]["attack_success_rate"])


def test_of_several_classes_the_target_is_explained_where_the_attack_succeeds(several):
    subject = open_checkpoint(several / "ckpt.pt", device=torch.device(DEVICE))
    logits = torch.tensor([[2.0, 1.0, 0.0], [3.0, -1.0, 0.0]])
    assert batchnorm.explained_classes(subject, logits, True, threshold=0.5).tolist() == [1, 0]
    assert batchnorm.explained_classes(subject, logits, False, threshold=0.5).tolist() == [0, 0]


def test_the_tables_of_several_classes_have_areas_and_no_accuracy(repaired_several):
    _, _, printed = repaired_several
    assert printed.count("mean_auroc") == 3  # the regimes; untouched, and triggered
    assert "accuracy" not in printed
