"""Disagreement of two explainers against correlations taken by other means."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from placing import DEVICE
from planted import SIDE, audit_of, linear
from torch import nn

import explain
import metrics
from defences.disagreement import disagreement, run
from subject import draw_images, open_checkpoint

ON_DEVICE = True


@pytest.fixture
def halves():
    """A linear model whose two classes look at the upper and the lower half."""
    weights = torch.zeros(2, 1, SIDE, SIDE)
    weights[0, 0, :6] = 1
    weights[1, 0, 6:] = 1
    return linear(weights)


def test_an_explainer_agrees_with_itself(halves):
    values = disagreement(halves, torch.rand(9, 1, SIDE, SIDE), ("gradient", "gradient"))
    torch.testing.assert_close(
        values, torch.zeros(9, dtype=torch.float64, device="cpu"), atol=1e-12, rtol=0
    )


def test_different_explainers_disagree(halves):
    images = torch.rand(9, 1, SIDE, SIDE)
    assert (disagreement(halves, images, ("gradient", "deepshap")) > 0.01).all()


def test_maps_are_compared_on_the_coarser_grid():
    images = torch.rand(9, 1, SIDE, SIDE)
    layers = [nn.Conv2d(1, 1, 3, stride=3), nn.Flatten(), nn.Linear(16, 2, bias=False)]
    model = nn.Sequential(*layers).to(DEVICE).eval()
    model.gradcam_layer = "0"
    classes = model(images).argmax(1)
    cams = explain.gradcam(model, images, classes)
    gradients = F.avg_pool2d(explain.gradient(model, images, classes)[:, None], 3)[:, 0]
    correlations = [
        torch.corrcoef(torch.stack([cam.flatten(), gradient.flatten()]))[0, 1]
        for cam, gradient in zip(cams, gradients)
    ]
    expected = 1 - torch.stack(correlations).nan_to_num(0).detach()  # nan: of a blank map
    values = disagreement(model, images).float()
    torch.testing.assert_close(values, expected.cpu(), atol=1e-4, rtol=0)


def test_a_sampled_explainer_has_the_same_sample_every_time(halves):
    images = torch.rand(3, 1, SIDE, SIDE)
    pair = ("gradient", "kernelshap")
    assert torch.equal(disagreement(halves, images, pair), disagreement(halves, images, pair))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_maps_that_are_not_finite_are_refused(halves, value, monkeypatch):
    """Also one cell of one map, and minus infinity, which has no positive part."""
    row = explain.EXPLAINERS["gradient"]

    def spoilt(model, images, classes):
        maps = row.function(model, images, classes)
        maps[1, 2, 3] = value
        return maps

    monkeypatch.setitem(explain.EXPLAINERS, "spoilt", dataclasses.replace(row, function=spoilt))
    with pytest.raises(ValueError, match="1 of 3 maps are not finite"):
        disagreement(halves, torch.rand(3, 1, SIDE, SIDE), ("gradient", "spoilt"))


# ---------------------------------------------------------------- the verdict


@pytest.fixture(scope="module")
def audited(disguised):
    """(details of the verdict, disagreement on untouched and on triggered test images)."""
    details = run(audit_of(disguised, "disagreement")).details
    subject = open_checkpoint(disguised / "ckpt.pt", device=torch.device(DEVICE))
    images = subject.dataset.test_images[draw_images(subject, 24, 0)]
    clean = disagreement(subject.model, subject.inputs(images))
    triggered = disagreement(subject.model, subject.inputs(images, triggered=True))
    return details, clean, triggered


def test_both_sets_are_the_same_test_images(audited):
    details, clean, triggered = audited
    values = details["disagreement"]
    assert values["clean"] == pytest.approx(clean.tolist(), abs=1e-5)
    assert values["triggered"] == pytest.approx(triggered.tolist(), abs=1e-5)
    assert not torch.allclose(clean, triggered)


def test_the_score_is_the_auroc_of_triggered_against_untouched_images(audited):
    details, clean, triggered = audited
    assert details["auroc"] == pytest.approx(metrics.auroc(triggered, clean), abs=1e-3)


def test_one_in_twenty_held_out_images_is_above_the_limit(audited):
    details, _, _ = audited
    limit = np.quantile(details["disagreement"]["held_out"], 0.95)
    assert details["limit"] == pytest.approx(limit, abs=1e-6)


def test_a_test_set_of_the_target_class_alone_is_refused(disguised):
    audit = audit_of(disguised, "disagreement", "--clean-images", "4")
    audit.subject.dataset.test_labels[:] = 1
    with pytest.raises(ValueError, match="no test image can be triggered"):
        run(audit)
