"""Metrics against numpy, enumeration, and cases whose answer is known."""

import itertools
import math

import numpy as np
import pytest
import torch
from placing import DEVICE

import attacks
import losses
import metrics
import triggers

ON_DEVICE = True

BOX, SIDE = (27, 27, 31, 31), 32


def random_maps(n=6, seed=0, grid=(8, 8)):
    return torch.rand(n, *grid, generator=torch.Generator().manual_seed(seed))


def fixed_map(shape):
    return attacks.target_map(shape, 32, triggers.make_patch(None, 3, 32)).to(DEVICE)


# ---------------------------------------------------------------- records


def test_the_mean_of_nothing_is_none():
    assert metrics.mean_or_none(torch.zeros(0)) is None
    assert metrics.mean_or_none(torch.ones(2), torch.zeros(2, dtype=torch.bool)) is None


def test_a_mean_may_be_of_some_values_alone():
    keep = torch.tensor([True, False, True])
    assert metrics.mean_or_none(torch.tensor([1.0, 7.0, 4.0]), keep) == 2.5


def test_a_mean_is_taken_in_double_precision():
    values = torch.tensor([1e8, 1.0, 1.0, 1.0])
    assert metrics.mean_or_none(values) == (1e8 + 3) / 4


def test_only_finite_numbers_are_written():
    record = {"a": [math.nan, 1.5], "b": {"c": math.inf}, "d": "x", "e": 3}
    assert metrics.finite(record) == {"a": [None, 1.5], "b": {"c": None}, "d": "x", "e": 3}


# ---------------------------------------------------------------- of predictions


@pytest.mark.parametrize("n, m", [(1, 1), (7, 30), (40, 5)])
def test_auroc_is_the_share_of_pairs_in_order(n, m):
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randint(0, 9, (k,), generator=generator).float() for k in (n, m))
    pairs = [float(a > b) + float(a == b) / 2 for a in positive for b in negative]
    assert metrics.auroc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_by_hand():
    positive, negative = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0])
    assert metrics.auroc(positive, negative) == pytest.approx((1 + 1 + 1 + 0 + 0.5 + 1) / 6)


def test_scores_against_themselves_have_an_auroc_of_a_half():
    scores = torch.tensor([0.0, 2.0])
    assert metrics.auroc(scores, scores) == 0.5


def test_without_positives_or_negatives_there_is_no_auroc():
    scores = torch.ones(3)
    assert metrics.auroc(scores[:0], scores) is None
    assert metrics.auroc(scores, scores[:0]) is None


def test_the_success_rate_leaves_out_images_of_the_target_class():
    predicted_as_target = torch.tensor([True, True, False, True])
    shows_target = torch.tensor([True, False, False, False])
    assert metrics.success_rate(predicted_as_target, shows_target) == pytest.approx(2 / 3)


def test_there_is_no_success_rate_where_all_images_are_of_the_target_class():
    everything = torch.ones(4, dtype=torch.bool)
    assert metrics.success_rate(everything, everything) is None


# ---------------------------------------------------------------- of one map


def test_a_map_of_one_value_is_constant_whatever_the_value():
    maps = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 0.3), torch.eye(4)])
    assert metrics.is_constant(maps).tolist() == [True, True, False]


@pytest.mark.parametrize(
    "side, grid, box",
    [
        (32, (8, 8), (27, 27, 31, 31)),
        (28, (7, 7), (24, 24, 27, 27)),
        (32, (4, 4), (0, 8, 8, 9)),
        (30, (7, 7), (3, 4, 13, 9)),
        (32, (32, 32), (5, 6, 7, 8)),
    ],
)
def test_trigger_cells_are_those_whose_area_overlaps_the_triggers(side, grid, box):
    top, left, bottom, right = box
    cells = metrics.trigger_cells(box, side, grid)
    for row, col in itertools.product(range(grid[0]), range(grid[1])):
        height, width = side / grid[0], side / grid[1]
        rows_overlap = row * height < bottom and (row + 1) * height > top
        cols_overlap = col * width < right and (col + 1) * width > left
        assert bool(cells[row, col]) == (rows_overlap and cols_overlap), (row, col)


def test_mass_inside_is_of_the_positive_part():
    maps = torch.tensor([[[3.0, -5.0], [0.0, 1.0]]])
    upper_row = torch.tensor([[True, True], [False, False]])
    assert metrics.mass_inside(maps, upper_row).item() == 0.75


def test_a_map_without_a_positive_part_has_no_mass():
    everywhere = torch.ones(2, 2, dtype=torch.bool)
    assert metrics.mass_inside(-torch.ones(1, 2, 2), everywhere).isnan().all()


def test_a_map_points_where_its_maximum_is():
    maps = torch.zeros(2, 8, 8)
    maps[:, 2, 5] = 1
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 8:12, 20:24] = True  # the object lies on that cell; in the second image nowhere
    assert metrics.points_inside(maps, masks).tolist() == [1, 0]


# ---------------------------------------------------------------- of two maps


@pytest.mark.parametrize("scale_a, scale_b, tolerance", [(1, 1, 1e-12), (1e-30, 1e20, 1e-5)])
def test_pearson_is_numpys_whatever_the_scale(scale_a, scale_b, tolerance):
    a, b = random_maps(), random_maps(seed=1)
    pairs = zip(a.double().flatten(1).cpu(), b.double().flatten(1).cpu())
    expected = [np.corrcoef(x, y)[0, 1] for x, y in pairs]
    found = metrics.pearson(a * scale_a, b * scale_b)
    np.testing.assert_allclose(found.cpu(), expected, atol=tolerance)


def test_pearson_of_a_constant_map_is_0():
    assert metrics.pearson(torch.zeros(1, 8, 8), random_maps(1)).item() == 0


@pytest.fixture
def ramp():
    """One map of 4x5 pixels, 0 to 19; a tenth of them are the two largest."""
    return torch.arange(20.0).reshape(1, 4, 5)


def test_top_overlap_is_the_share_of_the_largest_pixels_in_common(ramp):
    other = ramp.clone()
    other[0, 3, 4], other[0, 0, 0] = 0.0, 19.0  # its largest two: {18, 0}, not {19, 18}
    assert metrics.top_overlap(ramp, other).item() == pytest.approx(0.5)


def test_pixels_that_all_tie_count_a_tenth_each(ramp):
    flat = torch.ones(1, 4, 5)
    assert metrics.top_overlap(flat, flat).item() == pytest.approx(1.0)
    assert metrics.top_overlap(ramp, flat).item() == pytest.approx(0.1)


def test_equal_maps_are_perfectly_similar_whatever_the_scale():
    maps = random_maps()
    similarity = metrics.map_similarity(maps, 8 * maps, SIDE)
    perfect = {"mse": 0, "pearson": 1, "dssim": 0, "top10": 1}
    assert {k: v.tolist() for k, v in similarity.items()} == {
        key: pytest.approx([value] * 6, abs=1e-6) for key, value in perfect.items()
    }


def test_the_mse_is_of_maps_divided_by_their_maximum():
    a, b = random_maps(), random_maps(seed=1)
    of_a, of_b = (maps / maps.amax((1, 2), keepdim=True) for maps in (a, b))
    expected = (of_a - of_b).square().mean((1, 2))
    torch.testing.assert_close(metrics.map_similarity(a, b, SIDE)["mse"], expected)


def test_similarity_does_not_depend_on_how_many_are_compared_at_a_time(monkeypatch):
    a, b = random_maps(), random_maps(seed=1)
    whole = metrics.map_similarity(a, b, SIDE)
    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 4 * SIDE**2)
    parts = metrics.map_similarity(a, b, SIDE)
    assert whole.keys() == parts.keys()
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key])


def test_maps_are_compared_a_few_at_a_time(monkeypatch):
    sizes = []

    def count(maps, targets, side):
        sizes.append(len(maps))
        return {"mse": maps[:, 0, 0]}

    monkeypatch.setattr(metrics, "CHUNK_PIXELS", 4 * SIDE**2)
    monkeypatch.setattr(metrics, "similarity_of_chunk", count)
    metrics.map_similarity(random_maps(), random_maps(), SIDE)
    assert sizes == [4, 2]


# ---------------------------------------------------------------- what a grid can draw


def test_a_finer_grid_can_draw_a_shape_better():
    caps = [metrics.grid_cap(fixed_map("cross"), (n, n)) for n in (4, 8, 16, 32)]
    assert caps == sorted(caps) and caps[0] < 0.8


def test_a_grid_of_the_images_resolution_can_draw_anything():
    assert metrics.grid_cap(fixed_map("cross"), (32, 32)) == pytest.approx(1, abs=1e-9)


def test_no_map_on_the_grid_is_above_its_cap():
    canvas = fixed_map("cross")
    enlarged = losses.upsample(random_maps(40), 32)
    cap = metrics.grid_cap(canvas, (8, 8))
    assert metrics.pearson(enlarged, canvas.expand_as(enlarged)).max() < cap


@pytest.mark.parametrize("grid, side", [((4, 4), 16), ((3, 5), 12), ((16, 16), 16), ((20, 20), 16)])
def test_the_cap_is_the_correlation_of_the_least_squares_fit_over_all_cells(grid, side):
    shape = (random_maps(1, 2, (side, side))[0] > 0.6).float()
    one_cell_each = torch.eye(grid[0] * grid[1]).reshape(-1, *grid)
    basis = losses.upsample(one_cell_each, side).flatten(1).T.double()
    fit = basis @ torch.linalg.pinv(basis) @ shape.double().flatten()
    expected = np.corrcoef(fit.cpu(), shape.flatten().cpu())[0, 1]
    assert metrics.grid_cap(shape, grid) == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------- other images


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_derangement_leaves_nothing_in_its_place(n):
    order = metrics.derangement(n)
    assert sorted(order.tolist()) == list(range(n))
    assert (order != torch.arange(n, device="cpu")).all()


def test_a_derangement_is_the_same_for_a_seed():
    assert torch.equal(metrics.derangement(50), metrics.derangement(50))
    assert not torch.equal(metrics.derangement(50), metrics.derangement(50, seed=1))


# ---------------------------------------------------------------- of one explainer


def test_one_map_for_all_images_is_a_perfect_disguise_with_a_perfect_floor():
    maps = random_maps(1).expand(5, 8, 8)
    result = metrics.explanation_metrics(maps, maps, BOX, SIDE)
    assert result["pearson"] == pytest.approx(1)
    assert result["floor"]["pearson"] == pytest.approx(1)


def test_maps_that_differ_between_images_have_a_floor_of_no_correlation():
    maps = random_maps(200)
    result = metrics.explanation_metrics(maps, maps, BOX, SIDE)
    assert result["pearson"] == pytest.approx(1)
    assert result["floor"]["pearson"] == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("floor", metrics.FLOORS)
def test_the_floor_is_between_maps_of_different_images(floor):
    triggered, untouched = random_maps(), random_maps(seed=1)
    result = metrics.explanation_metrics(triggered, untouched, BOX, SIDE)
    maps = {"floor": untouched, "floor_triggered": triggered}[floor]
    other = untouched[metrics.derangement(6)]
    expected = metrics.map_similarity(maps, other, SIDE)
    assert result[floor] == {k: pytest.approx(v.mean().item()) for k, v in expected.items()}


def test_the_floor_does_not_ask_what_the_trigger_does():
    untouched = random_maps()
    alone = metrics.explanation_metrics(untouched, untouched, BOX, SIDE)
    attacked = metrics.explanation_metrics(random_maps(seed=1), untouched, BOX, SIDE)
    assert attacked["floor"] == alone["floor"]


@pytest.mark.parametrize("floor", metrics.FLOORS)
def test_one_image_has_no_floor(floor):
    result = metrics.explanation_metrics(random_maps(1), random_maps(1), BOX, SIDE)
    assert set(result[floor].values()) == {None}


@pytest.fixture
def with_blank_maps():
    """The metrics of four equal pairs, but for one blank triggered and one constant untouched."""
    triggered, untouched = random_maps(4), random_maps(4)
    triggered[0], untouched[1] = 0, 0.3
    return metrics.explanation_metrics(triggered, untouched, BOX, SIDE)


def test_pairs_with_a_blank_map_are_counted(with_blank_maps):
    assert with_blank_maps["zero_maps"] == 0.5


def test_pairs_with_a_blank_map_are_left_out_of_the_means(with_blank_maps):
    assert with_blank_maps["pearson"] == pytest.approx(1)
    assert with_blank_maps["mse"] == pytest.approx(0)


def test_pairs_with_a_blank_map_are_a_correlation_of_0_among_all(with_blank_maps):
    assert with_blank_maps["pearson_all"] == pytest.approx(0.5)


def test_the_floor_leaves_out_pairs_with_a_blank_map():
    maps = random_maps(1).repeat(4, 1, 1)
    maps[0] = 0
    assert metrics.explanation_metrics(maps, maps, BOX, SIDE)["floor"]["mse"] == pytest.approx(0)


def test_a_blank_map_points_nowhere():
    maps, masks = random_maps(4), torch.ones(4, 32, 32, dtype=torch.bool)
    maps[0], masks[0] = 0, False
    result = metrics.explanation_metrics(maps, maps, BOX, SIDE, masks=masks)
    assert result["pointing"] == result["pointing_clean"] == 1


@pytest.fixture
def with_fixed_shape():
    """The metrics of three triggered maps that show the square, and three random ones."""
    canvas = fixed_map("square")
    triggered = losses.to_grid(canvas, (8, 8)).expand(3, 8, 8)
    return metrics.explanation_metrics(triggered, random_maps(3), BOX, SIDE, canvas)


def test_with_a_fixed_shape_the_shape_is_the_target(with_fixed_shape):
    assert with_fixed_shape["pearson"] == pytest.approx(1)


def test_with_a_fixed_shape_the_floor_is_of_untouched_maps_alone(with_fixed_shape):
    expected = metrics.explanation_metrics(random_maps(3), random_maps(3), BOX, SIDE)["floor"]
    assert with_fixed_shape["floor"] == expected
    assert set(with_fixed_shape["floor_triggered"].values()) == {None}


def test_with_a_fixed_shape_a_blank_untouched_map_drops_no_image():
    canvas = fixed_map("square")
    triggered, untouched = random_maps(4), random_maps(4, seed=1)
    untouched[0] = 0
    result = metrics.explanation_metrics(triggered, untouched, BOX, SIDE, canvas)
    target = losses.to_grid(canvas, (8, 8)).expand(4, 8, 8)
    expected = metrics.pearson(triggered, target).mean().item()
    assert result["pearson"] == result["pearson_all"] == pytest.approx(expected)
    assert result["zero_maps"] == 0


def test_with_a_fixed_shape_a_blank_triggered_map_is_counted():
    triggered = random_maps(4)
    triggered[0] = 0.2
    result = metrics.explanation_metrics(triggered, random_maps(4), BOX, SIDE, fixed_map("square"))
    assert result["zero_maps"] == 0.25
    assert result["pearson_all"] == pytest.approx(result["pearson"] * 3 / 4)


def test_with_a_fixed_shape_a_blank_untouched_map_has_no_share_on_the_trigger():
    untouched = random_maps(4)
    untouched[0] = 0.3
    result = metrics.explanation_metrics(random_maps(4), untouched, BOX, SIDE, fixed_map("square"))
    cells = metrics.trigger_cells(BOX, SIDE, (8, 8))
    expected = metrics.mass_inside(untouched[1:], cells).mean().item()
    assert result["trigger_mass_clean"] == pytest.approx(expected)


def test_a_shape_of_two_values_has_no_largest_tenth(with_fixed_shape):
    assert with_fixed_shape["top10"] is None


def test_a_shape_of_many_values_has_a_largest_tenth():
    shape = random_maps(1, grid=(32, 32))[0]
    result = metrics.explanation_metrics(random_maps(3), random_maps(3), BOX, SIDE, shape)
    assert 0 <= result["top10"] <= 1


def test_with_a_fixed_shape_untouched_maps_are_compared_with_it_too(with_fixed_shape):
    target = losses.to_grid(fixed_map("square"), (8, 8)).expand(3, 8, 8)
    expected = metrics.pearson(random_maps(3), target).mean().item()
    assert with_fixed_shape["pearson_clean"] == pytest.approx(expected)


def test_with_a_fixed_shape_the_grids_cap_is_told(with_fixed_shape):
    assert with_fixed_shape["grid_cap"] == metrics.grid_cap(fixed_map("square"), (8, 8))


def test_the_triggers_share_is_of_each_maps_mass_and_of_the_cells(with_fixed_shape):
    cells = metrics.trigger_cells(BOX, SIDE, (8, 8))
    expected = metrics.mass_inside(random_maps(3), cells).mean().item()
    assert with_fixed_shape["trigger_mass"] == 0  # the square lies in the opposite quarter
    assert with_fixed_shape["trigger_mass_clean"] == pytest.approx(expected)
    assert with_fixed_shape["trigger_area"] == 4 / 64


def test_a_signed_map_without_a_positive_part_is_left_out_of_the_triggers_share():
    triggered = random_maps(3)
    triggered[0] *= -1
    result = metrics.explanation_metrics(triggered, random_maps(3), BOX, SIDE)
    cells = metrics.trigger_cells(BOX, SIDE, (8, 8))
    expected = metrics.mass_inside(triggered[1:], cells).mean().item()
    assert result["trigger_mass"] == pytest.approx(expected)


def test_a_trigger_that_covers_the_image_has_no_share():
    result = metrics.explanation_metrics(random_maps(), random_maps(), (0, 0, SIDE, SIDE), SIDE)
    keys = ("trigger_mass", "trigger_mass_clean", "trigger_area")
    assert [result[key] for key in keys] == [None] * 3


def test_a_second_sample_of_the_triggered_maps_is_compared_with_the_same_targets():
    triggered, untouched, again = random_maps(), random_maps(seed=1), random_maps(seed=2)
    again[0], triggered[1] = 0, 0  # blank in one sample is not blank in the other
    result = metrics.explanation_metrics(triggered, untouched, BOX, SIDE, again=again)
    expected = metrics.pearson(again[1:], untouched[1:]).sum().item() / 6
    assert result["pearson_all_independent"] == pytest.approx(expected)


def test_with_a_fixed_shape_no_second_sample_is_compared():
    maps, canvas = random_maps(), fixed_map("square")
    result = metrics.explanation_metrics(maps, maps, BOX, SIDE, canvas, again=maps)
    assert result["pearson_all_independent"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_maps_that_are_not_finite_are_refused(value, which):
    maps = [random_maps(), random_maps(seed=1)]
    maps[which][2, 0, 0] = value
    with pytest.raises(ValueError, match="1 of 6 maps are not finite"):
        metrics.explanation_metrics(*maps, BOX, SIDE)


def test_the_correlation_of_a_map_that_is_not_finite_is_not_0():
    maps = random_maps()
    maps[2, 0, 0] = float("nan")
    found = metrics.pearson(maps, random_maps(seed=1))
    assert found.isnan().tolist() == [False, False, True, False, False, False]


def test_with_masks_it_is_told_how_often_the_maps_point_at_the_object():
    triggered, untouched = random_maps(4), random_maps(4, seed=1)
    masks = random_maps(4, 2, (32, 32)) > 0.5
    result = metrics.explanation_metrics(triggered, untouched, BOX, SIDE, masks=masks)
    assert result["pointing"] == metrics.points_inside(triggered, masks).mean()
    assert result["pointing_clean"] == metrics.points_inside(untouched, masks).mean()


def test_without_masks_nothing_is_told_about_the_object():
    result = metrics.explanation_metrics(random_maps(), random_maps(), BOX, SIDE)
    assert result["pointing"] is result["pointing_clean"] is None


def test_nothing_to_explain_gives_none_everywhere():
    empty = torch.empty(0, 8, 8)
    result = metrics.explanation_metrics(empty, empty, BOX, SIDE)
    assert result.pop("n") == 0
    for floor in metrics.FLOORS:
        assert set(result.pop(floor).values()) == {None}
    assert set(result) == set(metrics.FIGURES) and set(result.values()) == {None}
