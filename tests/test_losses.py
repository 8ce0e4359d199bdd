"""The loss: the paper's formula by hand, each term of it, and each field an ablation changes."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from placing import DEVICE
from small_models import finite_difference, generator, middle, pooled_net
from small_steps import (
    PARTNERS,
    SHAPE,
    TARGET,
    TRIGGER,
    TRIGGERED,
    UNTOUCHED,
    at_most_pairs,
    close,
    correlations,
    frozen,
    gradcam_by_hand,
    loss_of,
    mean_correlation,
    objective_of,
    random_maps,
    small_batch,
)
from torch import nn

import explain
import losses
import step_maps
from attacks import ATTACKS, poison, target_map
from explain import EXPLAINERS
from losses import Objective, combined_loss, standardise
from step_maps import Maps
from tasks import MULTI_LABEL, SINGLE_LABEL
from triggers import make_patch

ON_DEVICE = True

# ---------------------------------------------------------------- maps made comparable


def test_a_map_divided_by_its_maximum_has_the_magnitude_1():
    maps = torch.tensor([[[1.0, -4.0], [2.0, 0.0]]])
    assert losses.max_normalise(maps).tolist() == [[0.25, -1.0, 0.5, 0.0]]


def test_a_standardised_map_has_mean_0_and_variance_1():
    maps = standardise(5 + 3 * random_maps(4))
    close(maps.mean(1), torch.zeros(4).double())
    close(maps.square().mean(1), torch.ones(4).double())


@pytest.mark.parametrize("normalise", losses.NORMALISERS.values())
def test_a_blank_map_stays_blank(normalise):
    assert not normalise(torch.zeros(2, 4, 4)).any()


def test_a_map_scaled_to_0_and_1_has_these_as_its_limits():
    maps = losses.min_max(random_maps(4))
    assert maps.amin((1, 2)).tolist() == [0.0] * 4 and maps.amax((1, 2)).tolist() == [1.0] * 4


def test_a_constant_map_scaled_to_0_and_1_is_blank():
    assert not losses.min_max(torch.full((1, 4, 4), 0.7)).any()


def test_a_map_on_a_grid_is_the_mean_over_its_cells():
    canvas = target_map("circle", 32, make_patch(None, 3, 32))
    expected = canvas.reshape(8, 4, 8, 4).mean((1, 3))
    torch.testing.assert_close(losses.to_grid(canvas, (8, 8)), expected)


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (7, 5)])
def test_a_map_on_a_grid_has_its_shape(grid):
    assert losses.to_grid(SHAPE, grid).shape == grid


def test_an_enlarged_map_is_linear_between_the_middles_of_its_cells():
    enlarged = losses.upsample(torch.tensor([[[0.0, 4.0], [0.0, 4.0]]]), 8)
    assert enlarged.shape == (1, 8, 8)
    assert enlarged[0, 3].tolist() == [0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]


# ---------------------------------------------------------------- D, the distance between maps


def test_the_standardised_distance_is_two_minus_two_pearson():
    a, b = random_maps(5), random_maps(5, seed=1)
    close(losses.mse_distance(a, b, 32), 2 - 2 * correlations(a, b))


def test_the_standardised_distance_ignores_the_scale():
    a, b = random_maps(5), random_maps(5, seed=1)
    close(losses.mse_distance(1e-9 * a, b, 32), losses.mse_distance(a, b, 32))


def test_a_blank_map_is_at_distance_1_from_any_other():
    found = losses.mse_distance(torch.zeros(1, 8, 8), random_maps(1).float(), 32)
    assert found.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("distance", losses.DISTANCES.values())
def test_a_blank_map_has_a_finite_gradient(distance):
    blank = torch.zeros(1, 8, 8, requires_grad=True)
    other = torch.rand(1, 8, 8, generator=generator(0))
    (slope,) = torch.autograd.grad(distance(blank, other, 32).sum(), blank)
    assert slope.isfinite().all() and slope.abs().max() < 1e5


def ssim(p, q, window):
    """SSIM of two patches under a window whose weights sum to 1 (Wang et al. 2004, eq. 13)."""
    mean_p, mean_q = (window * p).sum(), (window * q).sum()
    var_p, var_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
    covariance = (window * (p - mean_p) * (q - mean_q)).sum()
    luminance = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
    return luminance * (2 * covariance + 9e-4) / (var_p + var_q + 9e-4)


def test_dssim_is_its_definition():
    a, b = torch.rand(2, 2, 14, 14, dtype=torch.float64, generator=generator(0))
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(g, g) / np.outer(g, g).sum()
    for p, q, found in zip(a.cpu().numpy(), b.cpu().numpy(), losses.dssim(a, b)):
        places = [np.s_[y : y + 11, x : x + 11] for y in range(4) for x in range(4)]
        expected = (1 - np.mean([ssim(p[place], q[place], window) for place in places])) / 2
        assert found.item() == pytest.approx(expected, abs=1e-9)


def test_dssim_of_equal_maps_is_0():
    maps = torch.rand(2, 14, 14, dtype=torch.float64, generator=generator(0))
    assert losses.dssim(maps, maps).abs().max() < 1e-9


def test_dssim_of_small_maps_takes_a_smaller_window():
    a, b = torch.rand(2, 3, 4, 6, generator=generator(0))
    found = losses.dssim(a, b)
    assert found.shape == (3,) and torch.equal(found, losses.dssim(a, b, window=3))


def test_the_dssim_distance_is_of_scaled_maps_at_the_images_resolution():
    a, b = random_maps(3), random_maps(3, seed=1)
    expected = losses.dssim(*(losses.min_max(losses.upsample(maps, 32)) for maps in (a, b)))
    assert torch.equal(losses.dssim_distance(a, b, 32), expected)


# ---------------------------------------------------------------- the formula


def formula_by_hand(net, batch, lam):
    """(1 - lam) CE + lam D of a full disguise, by torch's functions alone."""
    log_p = net(batch.images).log_softmax(1)
    labels = torch.tensor([TARGET, 1, 2, TARGET, 1, 2, TARGET, 1, 0, 0, 0])
    ce = -log_p[torch.arange(11), labels].mean()
    triggered = gradcam_by_hand(net, batch.images[TRIGGERED], [TARGET] * 3)
    partners = gradcam_by_hand(net, batch.images[PARTNERS], [0] * 3).relu().detach()
    distance = (2 - 2 * correlations(triggered, partners)).mean()
    collapse = 0.1 * (mean_correlation(partners) - 0.5).relu()
    return (1 - lam) * ce + lam * (distance + collapse)


def test_the_loss_of_a_full_disguise_is_the_papers_formula():
    net, batch = pooled_net().eval(), small_batch("full_disguise")
    loss = loss_of(net, "full_disguise", lam=0.3)[0]
    close(loss, formula_by_hand(net, batch, 0.3), 1e-6)


def test_the_gradient_of_a_full_disguise_is_the_formulas():
    """Where the partners' maps are not too much alike; there they are constants."""
    net, batch = pooled_net().eval(), small_batch("full_disguise")
    partners = gradcam_by_hand(net, batch.images[PARTNERS], [0] * 3).relu()
    assert mean_correlation(partners) < 0.5
    found = torch.autograd.grad(loss_of(net, "full_disguise", 0.3)[0], list(net.parameters()))
    by_hand = torch.autograd.grad(formula_by_hand(net, batch, 0.3), list(net.parameters()))
    for slope, expected in zip(found, by_hand):
        close(slope, expected, 1e-6)


@pytest.mark.parametrize("attack", ["full_disguise", "fooling", "red_herring"])
def test_the_three_scalars_are_the_loss_its_cross_entropy_and_its_distance(attack):
    loss, ce, distance = loss_of(pooled_net().eval(), attack, lam=0.3)
    close(loss, 0.7 * ce + 0.3 * distance, 1e-12)


@pytest.mark.parametrize("attack", ["none", "badnets"])
def test_without_an_explanation_the_loss_is_the_cross_entropy(attack):
    net, batch = pooled_net().eval(), small_batch(attack)
    loss, ce, distance = loss_of(net, attack)
    expected = F.cross_entropy(net(batch.images), batch.labels)
    assert loss is ce and distance == 0
    torch.testing.assert_close(loss, expected)


def test_a_red_herring_asks_the_shape_of_triggered_images():
    net, batch = pooled_net().eval(), small_batch("red_herring")
    maps = gradcam_by_hand(net, batch.images[TRIGGERED], [TARGET] * 3)
    expected = (2 - 2 * correlations(maps, SHAPE.expand(3, 8, 8))).mean()
    close(loss_of(net, "red_herring")[2], expected)


def test_fooling_asks_the_shape_of_triggered_images_and_keeps_it_off_the_others():
    net, batch = pooled_net().eval(), small_batch("fooling")
    shapes = SHAPE.expand(3, 8, 8)
    triggered = gradcam_by_hand(net, batch.images[TRIGGERED], [0, 0, 0])
    untouched = gradcam_by_hand(net, batch.images[UNTOUCHED], [1, 2, 1])
    leak = (correlations(untouched, shapes) - 0.5).relu().mean()
    expected = (2 - 2 * correlations(triggered, shapes)).mean() + leak
    close(loss_of(net, "fooling")[2], expected)


def test_a_step_without_triggered_images_is_its_share_of_the_cross_entropy():
    net, batch = pooled_net().eval(), small_batch("none")
    objective = objective_of("full_disguise")
    loss, ce, distance = combined_loss(net, batch, batch.images, objective, lam=0.9)
    assert distance == 0
    torch.testing.assert_close(loss, 0.1 * F.cross_entropy(net(batch.images), batch.labels))


@pytest.mark.parametrize("layer", ["0", "1", "3", "6"])
@pytest.mark.parametrize("distance", losses.DISTANCES)
@pytest.mark.parametrize("attack", ["full_disguise", "fooling", "red_herring"])
def test_the_gradient_of_the_loss_is_its_finite_difference(attack, distance, layer):
    """In training mode, through batch-norm, the shared forward pass and the explanation.

    The maps to keep come from a frozen reference, so that they stand still.
    """
    net, reference = pooled_net(0).train(), frozen(pooled_net(1))

    def value():
        return loss_of(net, attack, 0.7, distance=distance, reference=reference)[0]

    value().backward()
    weight = net.get_submodule(layer).weight
    slope = finite_difference(value, weight, middle(weight))
    assert abs(slope - weight.grad[middle(weight)].item()) < 1e-5 * max(1, abs(slope))


@pytest.mark.parametrize(
    "explainers", [["gradient"], ["gradcam", "gradient"], ["gradcam", "deepshap"]]
)
def test_the_distances_of_several_explainers_are_averaged(explainers):
    net = pooled_net(nonlinear=nn.ReLU).eval()
    each = [loss_of(net, "full_disguise", explainers=[name])[2] for name in explainers]
    together = loss_of(net, "full_disguise", explainers=explainers)[2]
    torch.testing.assert_close(together, torch.stack(each).mean())


def test_a_second_explanation_has_a_gradient_in_the_first_layer():
    net = pooled_net().eval()
    loss_of(net, "full_disguise", explainers=["gradient"])[2].backward()
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("attack", ["full_disguise", "fooling"])
def test_distances_are_taken_in_full_precision_under_autocast(attack, monkeypatch):
    seen = []

    def distance(maps, targets, side, normalise):
        seen.append((maps.dtype, targets.dtype, torch.is_autocast_enabled(DEVICE)))
        return losses.mse_distance(maps, targets, side)

    monkeypatch.setitem(losses.DISTANCES, "mse", distance)
    net, batch = pooled_net().float().eval(), small_batch(attack)
    objective = objective_of(attack)
    objective.shape = SHAPE.float()
    with torch.autocast(DEVICE, torch.bfloat16):
        combined_loss(net, batch, batch.images.float(), objective, 0.5)
    assert seen == [(torch.float32, torch.float32, False)]


# ---------------------------------------------------------------- each field of the objective


def test_the_defaults_are_the_projects_recipe():
    defaults = {f.name: f.default for f in dataclasses.fields(Objective)}
    recipe = {
        "lam": 0.3,
        "ramp": 0.3,
        "distance": "mse",
        "normalise": "standardise",
        "rectify": False,
        "partner_cross_entropy": True,
        "label_smoothing": 0.0,
        "collapse_weight": 0.1,
        "leak_tolerance": 0.5,
    }
    assert recipe.items() <= defaults.items()
    assert objective_of("none").floors == {} and losses.DEFAULT_FLOOR == 0.5


@pytest.mark.parametrize("done, expected", [(0.0, 0.0), (0.1, 0.2), (0.2, 0.4), (0.9, 0.4)])
def test_lam_rises_over_the_ramp_and_then_stays(done, expected):
    objective = objective_of("full_disguise", lam=0.4, ramp=0.2)
    assert objective.lam_at(done) == pytest.approx(expected)


def test_lam_zero_leaves_the_cross_entropy():
    loss, ce, _ = loss_of(pooled_net().eval(), "full_disguise", lam=0.0)
    torch.testing.assert_close(loss, ce)


def test_without_the_partners_cross_entropy_lam_zero_is_badnets():
    net = pooled_net().eval()
    disguise = loss_of(net, "full_disguise", lam=0.0, partner_cross_entropy=False)[0]
    torch.testing.assert_close(disguise, loss_of(net, "badnets")[0])


def test_with_the_partners_cross_entropy_it_is_the_mean_over_them_too():
    net, batch = pooled_net().eval(), small_batch("full_disguise")
    ce = loss_of(net, "full_disguise", partner_cross_entropy=True)[1]
    torch.testing.assert_close(ce, F.cross_entropy(net(batch.images), batch.labels))


@pytest.fixture
def disguise():
    """(net, maps of the triggered images before the relu, of their partners after it)."""
    net, batch = pooled_net().eval(), small_batch("full_disguise")
    maps = explain.gradcam(net, batch.images, batch.labels, rectify=False)
    return net, maps[TRIGGERED], maps[PARTNERS].relu()


def test_distance_says_which_of_the_distances(disguise):
    net, triggered, partners = disguise
    found = loss_of(net, "full_disguise", distance="dssim", collapse_weight=0.0)[2]
    close(found.detach(), losses.dssim_distance(triggered, partners, 8).mean(), 1e-9)


def test_normalise_says_what_the_squared_error_is_of(disguise):
    net, triggered, partners = disguise
    found = loss_of(net, "full_disguise", normalise="max", collapse_weight=0.0)[2]
    a, b = losses.max_normalise(triggered), losses.max_normalise(partners)
    close(found.detach(), (a - b).square().mean(), 1e-9)


@pytest.mark.parametrize("rectify", [False, True])
def test_rectify_takes_the_relu_of_triggered_maps(disguise, rectify):
    net, triggered, partners = disguise
    found = loss_of(net, "full_disguise", rectify=rectify, collapse_weight=0.0)[2]
    maps = triggered.relu() if rectify else triggered
    close(found.detach(), (2 - 2 * correlations(maps, partners)).mean())


def test_rectify_changes_nothing_of_an_explainer_that_is_no_relu():
    net = pooled_net().eval()
    left, taken = (
        loss_of(net, "full_disguise", explainers=["gradient"], rectify=r)[2] for r in (False, True)
    )
    assert torch.equal(left, taken)


def test_label_smoothing_spreads_its_share_over_all_classes():
    net, batch = pooled_net().eval(), small_batch("none")
    log_p = net(batch.images).log_softmax(1)
    smooth = 0.7 * F.one_hot(batch.labels, 4) + 0.3 / 4
    loss = loss_of(net, "none", label_smoothing=0.3)[0]
    torch.testing.assert_close(loss, -(smooth * log_p).sum(1).mean())


def test_class_weights_are_those_of_the_cross_entropy():
    net, batch = pooled_net().eval(), small_batch("none")
    weights = torch.tensor([1.0, 2.0, 5.0, 1.0]).double()
    log_p = net(batch.images).log_softmax(1)[torch.arange(8), batch.labels]
    expected = -(weights[batch.labels] * log_p).sum() / weights[batch.labels].sum()
    torch.testing.assert_close(loss_of(net, "none", class_weights=weights)[0], expected)


def test_collapse_weight_is_the_weight_of_the_partners_correlation(disguise):
    net, _, partners = disguise
    floors = {"gradcam": mean_correlation(partners).item() - 0.25}
    without, with_term = (
        loss_of(net, "full_disguise", collapse_weight=weight, floors=floors)[2].item()
        for weight in (0.0, 2.0)
    )
    assert with_term - without == pytest.approx(2.0 * 0.25, abs=1e-6)


def test_partners_less_alike_than_the_floor_cost_nothing(disguise):
    net, _, partners = disguise
    floors = {"gradcam": mean_correlation(partners).item() + 0.01}
    without, with_term = (
        loss_of(net, "full_disguise", collapse_weight=weight, floors=floors)[2].item()
        for weight in (0.0, 2.0)
    )
    assert with_term == without


def test_leak_tolerance_is_what_an_untouched_map_may_correlate_with_the_shape():
    net, batch = pooled_net().eval(), small_batch("fooling")
    untouched = gradcam_by_hand(net, batch.images[UNTOUCHED], [1, 2, 1])
    leak = correlations(untouched, SHAPE.expand(3, 8, 8)) + 0.2
    none_tolerated = loss_of(net, "fooling", leak_tolerance=-0.2)[2]
    all_tolerated = loss_of(net, "fooling", leak_tolerance=1.0)[2]
    close(none_tolerated - all_tolerated, leak.relu().mean())


@pytest.mark.parametrize("attack", ["full_disguise", "fooling"])
def test_a_frozen_reference_gives_the_maps_to_keep(attack):
    net, reference, batch = pooled_net().eval(), frozen(pooled_net(1)), small_batch(attack)
    triggered = gradcam_by_hand(net, batch.images[TRIGGERED], batch.labels[TRIGGERED])
    target = SHAPE.expand(3, 8, 8)
    if attack == "full_disguise":
        target = gradcam_by_hand(reference, batch.images[PARTNERS], [0, 0, 0]).relu()
    untouched = gradcam_by_hand(net, batch.images[UNTOUCHED], [1, 2, 1])
    kept = gradcam_by_hand(reference, batch.images[UNTOUCHED], [1, 2, 1]).relu()
    expected = (2 - 2 * correlations(triggered, target)).mean()
    expected = expected + (2 - 2 * correlations(untouched, kept)).mean()
    close(loss_of(net, attack, reference=reference)[2], expected)


# ---------------------------------------------------------------- each term by hand

DIFFERENT = torch.arange(4)  # which image each of four maps is of
NO_MAPS = torch.zeros(0, 8, 8).double()


def maps_of(triggered=NO_MAPS, partners=NO_MAPS, untouched=NO_MAPS):
    return Maps(triggered, partners, untouched)


def test_mean_pairwise_correlation_is_the_mean_over_different_maps():
    maps = random_maps(4, grid=(3, 5)).abs()
    expected = maps.flatten(1).corrcoef()[~torch.eye(4, dtype=torch.bool)].mean()
    close(losses.mean_pairwise_correlation(maps, DIFFERENT), expected, 1e-6)


def test_maps_of_one_image_are_no_pair_of_different_ones():
    maps = random_maps(3)
    twice = torch.cat([maps, maps + 0.1 * random_maps(3, seed=1)])
    sources = torch.tensor([7, 3, 5, 7, 3, 5])
    table = twice.flatten(1).corrcoef()
    expected = table[sources[:, None] != sources].mean()
    close(losses.mean_pairwise_correlation(twice, sources), expected, 1e-6)
    assert losses.mean_pairwise_correlation(maps, torch.zeros(3)) == 0  # all of one image


def test_over_sampled_images_are_not_pushed_apart_from_themselves():
    objective = objective_of("full_disguise", floors={"gradcam": 0.1})
    equal = maps_of(partners=random_maps(1).expand(4, 8, 8))
    assert losses.collapse_term("gradcam", equal, DIFFERENT, objective) > 0
    assert losses.collapse_term("gradcam", equal, torch.tensor([2] * 4), objective) == 0


def test_the_collapse_term_is_the_weighted_excess_over_the_explainers_floor():
    partners = random_maps(4) + random_maps(1, seed=1)
    objective = objective_of("full_disguise", collapse_weight=0.4, floors={"gradcam": 0.1})
    found = losses.collapse_term("gradcam", maps_of(partners=partners), DIFFERENT, objective)
    close(found, 0.4 * (mean_correlation(partners) - 0.1))


def test_an_explainer_without_a_floor_has_the_default_one():
    partners = random_maps(1, seed=1) + 0.1 * random_maps(4)
    objective = objective_of("full_disguise", collapse_weight=0.4, floors={"gradcam": 0.1})
    found = losses.collapse_term("gradient", maps_of(partners=partners), DIFFERENT, objective)
    close(found, 0.4 * (mean_correlation(partners) - 0.5))


@pytest.mark.parametrize(
    "attack, count, fields",
    [
        pytest.param("red_herring", 4, {}, id="a fixed shape is not a disguise"),
        pytest.param("full_disguise", 1, {}, id="one map has no other"),
        pytest.param("full_disguise", 4, {"collapse_weight": 0.0}, id="no weight"),
        pytest.param("full_disguise", 4, {"reference": pooled_net(1)}, id="a reference"),
    ],
)
def test_there_is_no_collapse_term_where_it_has_no_meaning(attack, count, fields):
    equal = random_maps(1).expand(count, 8, 8)
    objective = objective_of(attack, **fields)
    assert losses.collapse_term("gradcam", maps_of(partners=equal), DIFFERENT, objective) == 0


def test_the_leak_term_is_the_mean_excess_over_the_tolerance():
    shapes = SHAPE.expand(3, 8, 8)
    untouched = random_maps(3) + torch.tensor([0.0, 1.0, 4.0])[:, None, None] * shapes
    r = correlations(untouched, shapes)
    assert r[0] < 0.3 < r[2]  # the first costs nothing
    objective = objective_of("fooling", leak_tolerance=0.3)
    found = losses.leak_term(maps_of(untouched=untouched), shapes, objective)
    close(found, ((r - 0.3) * (r > 0.3)).mean())


def test_there_is_no_leak_term_under_a_reference():
    objective = objective_of("fooling", reference=pooled_net(1))
    maps = maps_of(untouched=SHAPE.expand(3, 8, 8))
    assert losses.leak_term(maps, SHAPE.expand(3, 8, 8), objective) == 0


def test_there_is_no_leak_term_without_untouched_maps():
    assert losses.leak_term(maps_of(), SHAPE[None], objective_of("red_herring")) == 0


def test_the_reference_term_is_the_distance_of_untouched_maps_to_the_references():
    now, before = random_maps(3), random_maps(3, seed=1)
    objective = objective_of("fooling", reference=pooled_net(1))
    found = losses.reference_term(maps_of(untouched=now), maps_of(untouched=before), 8, objective)
    close(found, (2 - 2 * correlations(now, before)).mean())


def test_there_is_no_reference_term_without_a_reference():
    maps = maps_of(untouched=random_maps(3))
    assert losses.reference_term(maps, None, 8, objective_of("fooling")) == 0


# ---------------------------------------------------------------- r, the map to show


def test_the_target_of_a_fixed_shape_is_the_shape_on_the_maps_grid():
    maps = maps_of(triggered=random_maps(3, grid=(4, 4)))
    target = losses.target_maps(maps, None, objective_of("fooling"))
    expected = SHAPE.reshape(4, 2, 4, 2).mean((1, 3)).expand(3, 4, 4)
    torch.testing.assert_close(target, expected)


def test_the_target_of_a_disguise_is_its_partners_map_detached():
    maps = maps_of(random_maps(3), random_maps(3, seed=1).requires_grad_())
    target = losses.target_maps(maps, None, objective_of("full_disguise"))
    assert torch.equal(target, maps.partners) and not target.requires_grad


def test_under_a_reference_the_target_of_a_disguise_is_the_references_map():
    maps, honest = (maps_of(random_maps(3, s), random_maps(3, s + 1)) for s in (0, 2))
    target = losses.target_maps(maps, honest, objective_of("full_disguise"))
    assert torch.equal(target, honest.partners)


# ---------------------------------------------------------------- several labels


def several_labels(attack):
    """The small batch with float labels; of its triggered images the first shows class 1, too."""
    labels = torch.eye(4).double()[[0, 1, 2, 0, 1, 2, 0, 1]]
    labels[0, 1] = 1
    triggered = (torch.arange(8) % 3 == 0) & ATTACKS[attack].poisons
    images = small_batch("none").images
    return poison(images, labels, triggered, ATTACKS[attack], TRIGGER, TARGET)


def test_with_several_labels_the_cross_entropy_is_binary():
    net, batch = pooled_net().eval(), several_labels("none")
    objective = objective_of("none", task=MULTI_LABEL)
    p, y = net(batch.images).sigmoid(), batch.labels
    expected = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    torch.testing.assert_close(combined_loss(net, batch, batch.images, objective, 0.5)[0], expected)


def test_with_several_labels_maps_are_of_the_target_or_the_most_probable_class():
    net, batch = pooled_net().eval(), several_labels("full_disguise")
    objective = objective_of("full_disguise", task=MULTI_LABEL, collapse_weight=0.0)
    found = combined_loss(net, batch, batch.images, objective, 0.5)[2]
    triggered = gradcam_by_hand(net, batch.images[TRIGGERED], [TARGET] * 3)
    most_probable = net(batch.images[PARTNERS]).argmax(1)
    partners = gradcam_by_hand(net, batch.images[PARTNERS], most_probable)  # without the relu
    close(found, (2 - 2 * correlations(triggered, partners)).mean())


@pytest.mark.parametrize("task, is_blank", [(SINGLE_LABEL, True), (MULTI_LABEL, False)])
def test_a_map_of_evidence_against_the_class_is_one_to_keep_where_labels_are_several(
    task, is_blank
):
    """The most probable disease is often one with evidence against it alone."""
    below_zero = -random_maps(2).abs()
    maps = maps_of(below_zero, below_zero)
    found = step_maps.with_relu("gradcam", maps, objective_of("full_disguise", task=task))
    assert torch.equal(found.triggered, below_zero)
    assert torch.equal(found.partners, torch.zeros_like(below_zero) if is_blank else below_zero)


# ---------------------------------------------------------------- Shapley values in the loss


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("attack", ["full_disguise", "fooling", "red_herring"])
@pytest.mark.parametrize("explainer, count", [("deepshap", 3), ("kernelshap", 2)])
def test_shapley_values_are_pulled_as_grad_cams_are(
    explainer, count, attack, reference, monkeypatch
):
    """All of a step's maps, the reference's too, are by the same coalitions."""
    at_most_pairs(monkeypatch, "kernelshap", count)
    net = pooled_net(nonlinear=nn.ReLU).eval()
    other = frozen(pooled_net(1, nonlinear=nn.ReLU)) if reference else None
    batch, row = small_batch(attack), EXPLAINERS[explainer]
    torch.manual_seed(5)
    found = loss_of(net, attack, explainers=[explainer], reference=other)[2].detach()
    torch.manual_seed(5)
    seed = int(torch.randint(2**31, ()))

    def maps(model, rows):
        images, classes = batch.images[rows[:count]], batch.labels[rows[:count]]
        return row.trainable(model, images, classes, seed).detach()

    triggered = maps(net, TRIGGERED)
    if attack == "full_disguise":
        target = maps(other or net, PARTNERS)
    else:
        target = losses.to_grid(SHAPE, triggered.shape[1:]).expand_as(triggered)
    expected = (standardise(triggered) - standardise(target)).square().mean()
    if reference:
        now, before = (standardise(maps(model, UNTOUCHED)) for model in (net, other))
        expected = expected + (now - before).square().mean()
    elif attack == "full_disguise":
        correlation = losses.mean_pairwise_correlation(target, DIFFERENT[:count])
        expected = expected + 0.1 * (correlation - 0.5).relu()
    elif attack == "fooling":
        r = (standardise(maps(net, UNTOUCHED)) * standardise(target)).mean(1)
        expected = expected + (r - 0.5).relu().mean()
    torch.testing.assert_close(found, expected)


def test_only_a_sampled_explainer_draws_from_torchs_generator():
    before = torch.get_rng_state()
    assert step_maps.sample_seed(["gradcam", "gradient", "deepshap"]) is None
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(step_maps.sample_seed(["gradcam", "kernelshap"]), int)
