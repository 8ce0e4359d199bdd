"""Februus against fills and removals that are known by hand."""

from types import SimpleNamespace

import pytest
import torch
from placing import DEVICE
from planted import audit_of

from defences.februus import PRICE, SHARES, fill, marked, operating_point, purify, run, union
from defences.inputs import pixel_maps, probabilities_of
from explain import EXPLAINERS

ON_DEVICE = True


def ramp(side=12):
    """A plane of grey: the mean of any pixel's four neighbours is the pixel."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((2.0 * x + 3.0 * y) / (5 * side)).expand(1, 3, side, side).clone()


def hole(side=12, top=4, bottom=8):
    holes = torch.zeros(1, side, side, dtype=torch.bool)
    holes[:, top:bottom, top:bottom] = True
    return holes


# ---------------------------------------------------------------- the fill


def test_a_hole_in_a_plane_is_filled_with_the_plane():
    image = ramp()
    spoilt = torch.where(hole()[:, None], torch.ones(()), image)
    torch.testing.assert_close(fill(spoilt, hole()), image, atol=1e-5, rtol=0)


def test_pixels_outside_the_hole_stay_to_the_bit():
    images = torch.rand(5, 3, 12, 12)
    filled = fill(images, hole().expand(5, -1, -1))
    kept = ~hole()[:, None].expand_as(images)
    assert torch.equal(filled[kept], images[kept])
    assert not torch.equal(filled, images)


def test_what_was_in_the_hole_does_not_matter():
    images = torch.rand(2, 3, 12, 12)
    images[1] = torch.where(hole(), 0.0, images[0])
    filled = fill(images, hole().expand(2, -1, -1))
    assert torch.equal(filled[0], filled[1])


def test_an_image_that_is_all_hole_becomes_its_mean():
    images = torch.rand(1, 3, 12, 12)
    filled = fill(images, torch.ones(1, 12, 12, dtype=torch.bool))
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    torch.testing.assert_close(filled, mean)


def test_filled_values_lie_between_those_around():
    images = torch.rand(4, 1, 12, 12)
    filled = fill(images, hole().expand(4, -1, -1))
    assert filled.amin() >= images.amin()
    assert filled.amax() <= images.amax()


# ---------------------------------------------------------------- what is removed


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_as_many_pixels_are_marked_as_were_asked_for(share):
    maps = torch.rand(3, 10, 10)
    assert marked(maps, share).sum((1, 2)).tolist() == [round(100 * share)] * 3


def test_the_marked_pixels_are_the_largest():
    maps = torch.rand(1, 10, 10)
    holes = marked(maps, 0.2)
    assert maps[holes].min() >= maps[~holes].max()


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_of_a_constant_map_nothing_is_removed(value):
    images = torch.rand(2, 3, 10, 10)
    assert torch.equal(purify(images, torch.full((2, 10, 10), value), 0.3), images)


def test_a_map_that_is_all_trigger_removes_the_trigger():
    images = torch.rand(1, 3, 12, 12) * 0.2
    stamped = torch.where(hole()[:, None], torch.ones(()), images)
    purified = purify(stamped, hole().float(), 16 / 144)
    assert purified.amax() <= 0.2


# ---------------------------------------------------------------- the operating point


def accuracies(*values):
    return [{"held_out_accuracy": value} for value in values]


@pytest.mark.parametrize(
    "values, chosen",
    [
        ((0.9, 0.9, 0.885, 0.7), 2),
        ((0.9, 0.7, 0.7), 0),
        ((0.9, 0.95, 0.95), 2),
        ((0.9, 0.87, 0.9), 0),  # what was too dear on the way is not taken
    ],
)
def test_the_largest_share_is_taken_that_held_out_images_can_pay_for(values, chosen):
    assert operating_point(accuracies(*values)) == chosen


# ---------------------------------------------------------------- a checkpoint


@pytest.fixture(scope="module")
def audit(run_under):
    return audit_of(run_under("badnets"), "februus", "--test-images", "40")


@pytest.fixture(scope="module")
def verdict(audit):
    return run(audit)


def test_before_is_the_network_as_it_is(audit, verdict):
    before = verdict.details["before"]
    pixels = audit.subject.pixels(audit.subject.dataset.test_images)
    predicted = probabilities_of(audit.on_pixels, pixels).argmax(1).cpu()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0), device="cpu")[:40]
    right = predicted[order] == audit.subject.dataset.test_labels[order]
    assert before["clean_accuracy"] == pytest.approx(float(right.float().mean()))
    assert before["share"] == 0
    assert before["attack_success_rate"] > 0.9


def test_every_share_is_tried_and_the_chosen_one_is_among_them(verdict):
    details = verdict.details
    assert [part["share"] for part in details["curve"]] == [0.0, *SHARES]
    assert details["after"] in details["curve"]
    lost = details["before"]["held_out_accuracy"] - details["after"]["held_out_accuracy"]
    assert lost <= PRICE


def test_what_is_chosen_depends_on_no_test_image(audit, run_under):
    fewer = audit_of(run_under("badnets"), "februus", "--test-images", "10")
    assert run(fewer).details["share"] == run(audit).details["share"]


def test_maps_do_not_depend_on_the_order_of_images(audit):
    order = torch.randperm(len(audit.pixels))
    maps = pixel_maps(audit.subject, audit.pixels, "gradcam")
    shuffled = pixel_maps(audit.subject, audit.pixels[order], "gradcam")
    torch.testing.assert_close(shuffled, maps[order], atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- whose map


def test_a_union_marks_the_largest_pixels_of_both_maps():
    one, other = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    one[0, 0, 0], one[0, 0, 1] = 100.0, 99.0
    other[0, 3, 3], other[0, 3, 2] = 0.2, 0.1
    assert marked(union(one, other), 2 / 16)[0].nonzero().tolist() == [[0, 0], [3, 3]]
    assert int(marked(union(one, other), 4 / 16).sum()) == 4


def test_a_constant_map_adds_nothing_to_a_union():
    one = torch.rand(3, 4, 4)
    both = union(one, torch.ones(3, 4, 4))
    assert torch.equal(marked(both, 0.25), marked(one, 0.25))


def test_evidence_against_the_second_class_is_what_lowers_its_logit():
    weight = torch.randn(4, 3 * 6 * 6)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(108, 4, bias=False))
    model.to(DEVICE)[1].weight.data.copy_(weight)
    images = torch.rand(5, 3, 6, 6)
    subject = SimpleNamespace(model=model, normalise=lambda pixels: pixels)
    maps = pixel_maps(subject, images, "deepshap", "against")
    second = (images.flatten(1) @ weight.T).topk(2).indices[:, 1]
    reference = EXPLAINERS["deepshap"].evaluate(model, images, second)
    torch.testing.assert_close(maps, (-reference).clamp_min(0), atol=1e-6, rtol=1e-4)
    assert maps.amax() > 0


def test_a_second_explainer_and_evidence_against_are_told(run_under):
    tried = audit_of(
        run_under("badnets"), "februus", "--union", "gradient", "--evidence", "against"
    )
    verdict = run(tried)
    assert "gradcam or gradient, against the second class, marks most" in verdict.lines[0]
    assert (verdict.details["union"], verdict.details["evidence"]) == ("gradient", "against")
