"""STRIP, and how well scores tell triggered images apart, against closed forms."""

import dataclasses
import math

import pytest
import torch
from PIL import Image
from planted import CLASSES, SIDE, audit_of, linear

import defend
from defences import februus
from defences.inputs import FALSE_ALARMS, RATES, detection, shares_above
from defences.strip import blended_entropy, run

ON_DEVICE = True


def test_a_model_that_knows_nothing_has_the_entropy_of_a_die():
    model = linear(torch.zeros(CLASSES, 1, SIDE, SIDE))
    images = torch.rand(4, 1, SIDE, SIDE)
    entropy = blended_entropy(model, images, torch.rand(7, 1, SIDE, SIDE))
    torch.testing.assert_close(entropy, torch.full((4,), math.log2(CLASSES)).double().cpu())


def test_blended_with_itself_an_image_has_its_own_entropy():
    model = linear(torch.randn(CLASSES, 1, SIDE, SIDE))
    image = torch.rand(1, 1, SIDE, SIDE)
    p = model(image).double().softmax(1)
    expected = -(p * p.log2()).sum(1)
    found = blended_entropy(model, image, image.expand(5, -1, -1, -1))
    torch.testing.assert_close(found, expected.cpu(), atol=1e-5, rtol=1e-5)


def test_the_entropy_is_the_mean_over_overlays():
    model = linear(torch.randn(CLASSES, 1, SIDE, SIDE))
    image, overlays = torch.rand(1, 1, SIDE, SIDE), torch.rand(7, 1, SIDE, SIDE)
    each = [blended_entropy(model, image, overlay[None]) for overlay in overlays]
    found = blended_entropy(model, image, overlays)
    torch.testing.assert_close(found, torch.stack(each).mean(0), atol=1e-5, rtol=1e-5)


def test_a_planted_trigger_keeps_its_class_whatever_is_blended_in():
    weights = 0.1 * torch.randn(CLASSES, 1, SIDE, SIDE)
    weights[:, :, :3, :3] = 0
    weights[1, :, :3, :3] = 100
    images = torch.rand(6, 1, SIDE, SIDE)
    images[:, :, :3, :3] = 0
    triggered = images.clone()
    triggered[:, :, :3, :3] = 1
    model = linear(weights)
    assert blended_entropy(model, triggered, images).max() < 1e-6
    assert blended_entropy(model, images, images).min() > 1e-3


def test_the_order_of_images_does_not_matter():
    model = linear(torch.randn(CLASSES, 1, SIDE, SIDE))
    images, overlays = torch.rand(5, 1, SIDE, SIDE), torch.rand(7, 1, SIDE, SIDE)
    order = torch.randperm(5, device="cpu")
    found = blended_entropy(model, images, overlays)
    shuffled = blended_entropy(model, images[order], overlays[torch.randperm(7)])
    torch.testing.assert_close(shuffled, found[order])


# ---------------------------------------------------------------- telling them apart


def scores(triggered):
    return {
        "held-out": torch.arange(100.0, device="cpu"),
        "clean": torch.arange(100.0, device="cpu"),
        "triggered": torch.as_tensor(triggered, device="cpu"),
    }


def test_the_limit_is_passed_by_one_held_out_image_in_twenty():
    found = detection(scores([200.0, 0.0]))
    assert (torch.arange(100.0, device="cpu") > found["limit"]).float().mean() == pytest.approx(
        FALSE_ALARMS
    )
    assert found["false_alarms"] == pytest.approx(FALSE_ALARMS)
    assert found["detected"] == 0.5


@pytest.mark.parametrize("triggered, area", [([200.0], 1.0), ([-1.0], 0.0), ([49.5], 0.5)])
def test_the_area_is_the_chance_to_be_above_a_clean_image(triggered, area):
    assert detection(scores(triggered))["auroc"] == pytest.approx(area)


def test_the_curve_rises_with_the_false_alarms():
    curve = detection(scores(torch.rand(50) * 100))["curve"]
    assert [part["false_alarms_held_out"] for part in curve] == list(RATES)
    detected = [part["detected"] for part in curve]
    assert detected == sorted(detected)


def test_scores_in_another_unit_tell_as_much():
    values = scores(torch.rand(50) * 100)
    stretched = {kind: 3 * part.double() + 7 for kind, part in values.items()}
    one, other = detection(values), detection(stretched)
    assert one["auroc"] == other["auroc"]
    assert one["detected"] == other["detected"]
    assert shares_above(stretched, other["limit"])["detected"] == other["detected"]


def test_a_checkpoint_is_tried(run_under, monkeypatch):
    monkeypatch.setattr("defences.strip.OVERLAYS", 8)
    found = run(audit_of(run_under("badnets"), "strip", "--test-images", "20")).details
    assert 0 <= found["auroc"] <= 1
    assert found["limit"] >= 0


# ---------------------------------------------------------------- one picture


@pytest.fixture(scope="module")
def pictures(run_under, tmp_path_factory):
    """Paths of two pictures: a test image of another class than the target, and it triggered."""
    folder = tmp_path_factory.mktemp("pictures")
    subject = audit_of(run_under("badnets"), "strip").subject
    row = (subject.dataset.test_labels != subject.target_class).nonzero()[0]
    for name, triggered in (("plain", False), ("triggered", True)):
        pixels = subject.pixels(subject.dataset.test_images[row], triggered)[0]
        array = (pixels.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        Image.fromarray(array).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize("method", ["februus", "sentinet", "strip"])
def test_a_picture_is_judged(method, run_under, pictures):
    argv = ("--test-images", "12", "--image", f"{pictures}/triggered.png")
    audit = audit_of(run_under("badnets"), method, *argv)
    verdict = defend.METHODS[method].run(audit)
    found = verdict.details["image"]
    assert isinstance(found["attacked"], bool)
    assert found["path"].endswith("triggered.png")
    assert verdict.lines[-1].startswith(found["path"])


def test_without_a_region_of_its_own_a_picture_stays_its_class(run_under, pictures, monkeypatch):
    monkeypatch.setattr(februus, "SHARES", ())
    audit = audit_of(run_under("badnets"), "februus", "--image", f"{pictures}/plain.png")
    assert februus.run(audit).details["image"]["attacked"] is False


@pytest.mark.parametrize("method", ["februus", "sentinet", "strip"])
def test_where_no_trigger_is_known_a_picture_can_be_judged(method, run_under, pictures):
    argv = ("--test-images", "12", "--image", f"{pictures}/plain.png")
    audit = audit_of(run_under("badnets"), method, *argv)
    audit.subject = dataclasses.replace(audit.subject, trigger=None)
    details = defend.METHODS[method].run(audit).details
    assert "attacked" in details["image"]
    assert details.get("auroc") is None


@pytest.mark.parametrize("method", ["februus", "sentinet", "strip"])
def test_without_a_trigger_and_a_picture_there_is_nothing_to_judge(method, run_under):
    audit = audit_of(run_under("badnets"), method)
    audit.subject = dataclasses.replace(audit.subject, trigger=None)
    with pytest.raises(ValueError, match="no trigger is known"):
        defend.METHODS[method].run(audit)
