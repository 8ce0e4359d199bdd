"""SentiNet against regions, parabolas and models that are known by hand."""

import numpy as np
import pytest
import torch
from planted import CLASSES, SIDE, audit_of, linear

from defences.sentinet import above_boundary, boundary, fooled_and_confidence, region_of, run

ON_DEVICE = True


@pytest.fixture
def planted():
    """A linear model whose class 2 is decided by a patch of 3x3 pixels in the corner."""
    weights = 0.1 * torch.randn(CLASSES, 1, SIDE, SIDE)
    weights[:, :, :3, :3] = 0
    weights[2, :, :3, :3] = 20
    return linear(weights)


def corner():
    region = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    region[:, :3, :3] = True
    return region


# ---------------------------------------------------------------- the algorithm


def test_a_region_is_what_is_above_a_share_of_the_maximum():
    maps = torch.tensor([[[0.0, 0.14, 0.16], [1.0, 0.15, 0.5]]])
    assert region_of(maps).tolist() == [[[False, False, True], [True, False, True]]]


def test_a_blank_map_has_no_region():
    assert not region_of(torch.zeros(2, 5, 5)).any()


def test_a_trigger_carries_its_class_along(planted):
    clean = torch.rand(20, 1, SIDE, SIDE)
    clean[:, :, :3, :3] = 0
    triggered = clean[:1].clone()
    triggered[:, :, :3, :3] = 1
    generator = torch.Generator().manual_seed(0)
    fooled, _ = fooled_and_confidence(planted, triggered, corner(), clean, generator)
    assert fooled.tolist() == [1.0]


def test_without_a_region_nothing_is_carried_along(planted):
    clean = torch.rand(30, 1, SIDE, SIDE)
    clean[:, :, :3, :3] = 0
    image = clean[:1]
    called = planted(image).argmax(1)
    same = float((planted(clean).argmax(1) == called).double().mean())
    none = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    fooled, confidence = fooled_and_confidence(planted, image, none, clean, generator)
    assert fooled.item() == pytest.approx(same)
    expected = planted(clean).softmax(1).amax(1).double().mean().item()
    assert confidence.item() == pytest.approx(expected, abs=1e-6)


def test_confidence_is_of_noise_and_not_of_what_was_in_the_region(planted):
    clean = torch.rand(20, 1, SIDE, SIDE)
    images = torch.rand(1, 1, SIDE, SIDE).repeat(2, 1, 1, 1)
    images[0, :, :3, :3], images[1, :, :3, :3] = 1, 0
    found = [
        fooled_and_confidence(
            planted, image[None], corner(), clean, torch.Generator().manual_seed(0)
        )
        for image in images
    ]
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[1][0])


def test_the_boundary_of_points_on_a_parabola_is_the_parabola():
    confidence = torch.linspace(0.1, 0.95, 200, dtype=torch.float64, device="cpu")
    fooled = 0.3 * confidence**2 - 0.2 * confidence + 0.5
    found = boundary(fooled, confidence)
    np.testing.assert_allclose(found, [0.3, -0.2, 0.5], atol=1e-8)
    assert above_boundary(fooled, confidence, found).abs().max() < 1e-8


def test_the_boundary_goes_through_the_highest_of_each_bin():
    confidence = torch.linspace(0.0, 1.0, 201, dtype=torch.float64)
    low = torch.zeros(201, dtype=torch.float64)
    high = low.clone()
    high[5::20] = 0.6  # one of each bin
    np.testing.assert_allclose(boundary(high, confidence)[:2], [0, 0], atol=1e-6)
    assert boundary(high, confidence)[2] == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_few_clean_images_draw_a_line_or_a_constant(count):
    confidence = torch.linspace(0.2, 0.8, count, dtype=torch.float64, device="cpu")
    fooled = torch.linspace(0.1, 0.3, count, dtype=torch.float64, device="cpu")
    found = boundary(fooled, confidence)
    assert len(found) == 3
    assert found[0] == 0
    assert above_boundary(fooled, confidence, found).abs().max() < 1e-9


# ---------------------------------------------------------------- a checkpoint


def test_triggered_regions_of_a_plain_backdoor_fool(run_under, monkeypatch):
    monkeypatch.setattr("defences.sentinet.OVERLAYS", 8)
    audit = audit_of(run_under("badnets"), "sentinet", "--test-images", "12")
    verdict = run(audit)
    details = verdict.details
    assert verdict.backdoored is None
    assert details["triggered_fooled"] > 0.9
    assert 0 <= details["auroc"] <= 1
    assert details["explainer"] == "gradcam"


def test_too_few_clean_images_are_refused(run_under):
    audit = audit_of(run_under("badnets"), "sentinet", "--clean-images", "6")
    with pytest.raises(ValueError, match="24 are held out of training: 8 --clean-images or more"):
        run(audit)
