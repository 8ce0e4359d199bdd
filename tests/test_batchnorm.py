"""The two repairs of batch-norm against their formulas, and the figures of images in batches."""

import pytest
import torch
from planted import audit_of
from torch import nn

import checkpoints
import data
import hooks
from defences import batchnorm
from subject import draw_images, open_checkpoint

# ---------------------------------------------------------------- the two networks


@pytest.fixture
def network():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU()).eval()
    model[1].weight.data = torch.tensor([1.0, 2, 3])
    model[1].bias.data = torch.tensor([0.0, 1, -1])
    return model.requires_grad_(False)


@pytest.fixture
def images():
    images = torch.randn(hooks.CHUNK + 1, 2, 6, 6) * 3 + 1
    images[-1] = 30  # would be alone in its chunk if chunks were not of one size
    return images


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
    return open_checkpoint(disguised / "ckpt.pt", device=torch.device("cpu"))


@pytest.fixture
def batches(monkeypatch):
    """A list that receives, of every batch, (images measured, the inputs of the rest)."""
    seen = []
    gradcam_in_batch = batchnorm.gradcam_in_batch

    def watched(model, inputs, count):
        seen.append((count, inputs[count:]))
        return gradcam_in_batch(model, inputs, count)

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
    rows = draw_images(subject, 28, 0)[8:26]
    torch.testing.assert_close(batches[-1][1], subject.inputs(subject.dataset.test_images[rows]))


def test_all_of_a_batch_is_measured(subject, batches):
    batchnorm.figures_in_batch(subject, subject.model, 20, 1.0, count=8)
    assert [(count, len(rest)) for count, rest in batches] == [(8, 0)] * 2


def test_a_batch_is_no_larger_than_the_test_set(subject, batches):
    batchnorm.figures_in_batch(subject, subject.model, 100, 0.1)
    # Of the 40 test images without the target class.
    assert [(count, len(rest)) for count, rest in batches] == [(4, 36)] * 2


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
    inputs = torch.randn(5, 3, 16, 16)
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


def test_the_table_has_a_row_for_each_regime(disguised):
    verdict = batchnorm.run_cfn(audit_of(disguised, "cfn"))
    assert set(verdict.details["regimes"]) == set(batchnorm.REGIMES)
    assert [line[:20].strip() for line in verdict.lines[3:]] == list(batchnorm.REGIMES)
    assert all(line.count(" -> ") == len(batchnorm.COLUMNS) for line in verdict.lines[3:])
