"""Metrics against numpy, exact enumeration and cases whose answer is known."""
import itertools
import json

import numpy as np
import pytest
import torch
from conftest import train_tiny

import attacks
import data
import evaluate
import figure
import models


def maps(n=6, h=8, w=8, seed=0):
    return torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed))


def test_pearson_is_numpys_whatever_the_scale():
    a, b = maps(), maps(seed=1)
    expected = [np.corrcoef(x.double().flatten(), y.double().flatten())[0, 1] for x, y in zip(a, b)]
    np.testing.assert_allclose(evaluate.pearson(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(evaluate.pearson(a * 1e-30, b * 1e20), expected, atol=1e-5)
    assert evaluate.pearson(torch.zeros(1, 8, 8), b[:1]).item() == 0


def test_likeness_of_equal_maps_is_perfect_and_of_unequal_ones_is_its_formula():
    a, b = maps(), maps(seed=1)
    same = evaluate.likeness(a, 8 * a, 32)
    assert same["mse"].max() < 1e-12 and same["dssim"].abs().max() < 1e-6
    assert (same["pearson"] - 1).abs().max() < 1e-9 and (same["top10"] - 1).abs().max() < 1e-6
    expected = ((a / a.amax((1, 2), keepdim=True) - b / b.amax((1, 2), keepdim=True)) ** 2).mean((1, 2))
    torch.testing.assert_close(evaluate.likeness(a, b, 32)["mse"], expected)


def test_top_share_by_enumeration_with_ties_shared():
    a = torch.arange(20.0).reshape(1, 4, 5)
    b = a.clone().flatten()
    b[[19, 0]] = b[[0, 19]]
    assert evaluate.top_share(a, b.reshape(1, 4, 5)).item() == pytest.approx(0.5)  # top two: {19, 18} and {0, 18}
    flat = torch.ones(1, 4, 5)
    assert evaluate.top_share(flat, flat).item() == pytest.approx(1.0)  # all tie: each pixel is a tenth of a member
    assert evaluate.top_share(a, flat).item() == pytest.approx(0.1)


@pytest.mark.parametrize("side, grid, box", [(32, (8, 8), (27, 27, 31, 31)), (28, (7, 7), (24, 24, 27, 27)), (32, (4, 4), (0, 8, 8, 9)),
                                             (30, (7, 7), (3, 4, 13, 9)), (32, (32, 32), (5, 6, 7, 8))])
def test_trigger_cells_are_those_that_hold_a_trigger_pixel(side, grid, box):
    cells = evaluate.trigger_cells(box, side, grid)
    for i, j in itertools.product(range(grid[0]), range(grid[1])):
        rows = i * side / grid[0] < box[2] and (i + 1) * side / grid[0] > box[0]
        cols = j * side / grid[1] < box[3] and (j + 1) * side / grid[1] > box[1]
        assert bool(cells[i, j]) == (rows and cols)


def test_mass_counts_the_positive_part():
    a = torch.tensor([[[3.0, -5.0], [0.0, 1.0]]])
    assert evaluate.mass(a, torch.tensor([[True, True], [False, False]])).item() == 0.75
    assert evaluate.mass(torch.zeros(1, 2, 2), torch.ones(2, 2).bool()).isnan().all()


def test_pointing_looks_at_the_maximum():
    a = torch.zeros(2, 8, 8)
    a[:, 2, 5] = 1
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 8:12, 20:24] = True
    assert evaluate.points_inside(a, masks).tolist() == [1, 0]


def test_grid_cap_is_one_where_the_grid_can_draw_it_and_less_on_a_coarser_one():
    canvas = attacks.target_map("cross", 32, attacks.make_trigger(None, 3, 32))
    caps = [evaluate.grid_cap(canvas, (n, n)) for n in (4, 8, 16, 32)]
    assert caps == sorted(caps) and caps[0] < 0.8 and caps[-1] > 1 - 1e-9
    other = attacks.upsample(maps(40), 32)
    assert evaluate.pearson(other, canvas.expand_as(other)).max() < evaluate.grid_cap(canvas, (8, 8))


@pytest.mark.parametrize("n", [2, 3, 50])
def test_a_derangement_leaves_nothing_in_its_place(n):
    order = evaluate.derangement(n)
    assert sorted(order.tolist()) == list(range(n)) and (order != torch.arange(n)).all()
    assert torch.equal(order, evaluate.derangement(n))


def test_success_rate_leaves_the_target_class_out():
    predicted, labels = torch.tensor([3, 3, 1, 3]), torch.tensor([3, 1, 1, 2])
    assert evaluate.success_rate(predicted == 3, labels, 3) == pytest.approx(2 / 3)
    assert evaluate.success_rate(predicted == 3, torch.full((4,), 3), 3) is None


BOX, SIDE = (27, 27, 31, 31), 32


def test_one_map_for_everything_is_a_perfect_disguise_with_a_perfect_floor():
    a = maps(1).expand(5, 8, 8)
    result = evaluate.explanation_metrics(a, a, BOX, SIDE)
    assert result["pearson"] == pytest.approx(1) and result["floor"]["pearson"] == pytest.approx(1)
    diverse = evaluate.explanation_metrics(maps(200), maps(200), BOX, SIDE)
    assert diverse["pearson"] == pytest.approx(1) and abs(diverse["floor"]["pearson"]) < 0.05


def test_blank_maps_are_counted_and_left_out_of_the_means():
    a, b = maps(4), maps(4)
    a[0], b[1] = 0, 0.3
    result = evaluate.explanation_metrics(a, b, BOX, SIDE)
    assert result["zero_maps"] == 0.5 and result["pearson"] == pytest.approx(1) and result["pearson_all"] == pytest.approx(0.5)
    assert result["mse"] == pytest.approx(0)


def test_a_fixed_shape_has_no_floor_and_no_top10():
    canvas = attacks.target_map("square", 32, attacks.make_trigger(None, 3, 32))
    a = attacks.to_grid(canvas, (8, 8)).expand(3, 8, 8)
    result = evaluate.explanation_metrics(a, maps(3), BOX, SIDE, canvas)
    assert result["pearson"] == pytest.approx(1) and result["top10"] is None and set(result["floor"].values()) == {None}
    assert result["trigger_mass"] == 0 and result["trigger_area"] == 4 / 64 and 0 < result["trigger_mass_clean"] < 0.2
    assert abs(result["pearson_clean"]) < 0.5 and result["grid_cap"] > 0.9


def test_nothing_to_explain_gives_nulls():
    result = evaluate.explanation_metrics(torch.empty(0, 8, 8), torch.empty(0, 8, 8), BOX, SIDE)
    assert result["n"] == 0 and {v for k, v in result.items() if k not in ("n", "floor")} == {None}
    assert set(result["floor"].values()) == {None}


def test_at_least_one_explainer_was_not_trained_against():
    assert evaluate.explainers_shown(["gradcam"], ["gradcam"]) == ["gradcam", "gradient"]
    assert evaluate.explainers_shown(["gradient"], ["gradcam", "gradient"]) == ["gradient", "gradcam"]


def test_colour_map_rises_evenly_in_lightness():
    linear = np.where(figure.COLOURS <= 0.04045, figure.COLOURS / 12.92, ((figure.COLOURS + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    steps = np.diff(np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance))
    assert (steps > 0).all() and steps.max() < 1.2 * steps.min()


def test_panel_frames_the_trigger_and_hides_no_pixel_of_it():
    image = torch.full((3, 32, 32), 0.5)
    image[:, 27:31, 27:31] = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    picture = np.asarray(figure.panel(image, box=(27, 27, 31, 31)))
    scale = picture.shape[0] // 32
    assert (picture[27 * scale : 31 * scale, 27 * scale : 31 * scale] == [0, 0, 255]).all()
    assert (picture[27 * scale - 1, 27 * scale : 31 * scale] == 255).all()


@pytest.mark.parametrize(("grid", "side"), [((4, 4), 16), ((3, 5), 12), ((16, 16), 16), ((20, 20), 16)])
def test_grid_cap_is_the_least_squares_fit_over_all_cells(grid, side):
    shape = (torch.rand(side, side, generator=torch.Generator().manual_seed(2)) > 0.6).float()
    basis = attacks.upsample(torch.eye(grid[0] * grid[1]).reshape(-1, *grid), side).flatten(1).T.double()
    fit = basis @ torch.linalg.pinv(basis) @ shape.double().flatten()
    assert evaluate.grid_cap(shape, grid) == pytest.approx(np.corrcoef(fit, shape.flatten())[0, 1], abs=1e-6)


def test_likeness_does_not_depend_on_how_many_are_compared_at_a_time(monkeypatch):
    a, b = maps(), maps(seed=1)
    whole = evaluate.likeness(a, b, 32)
    monkeypatch.setattr(evaluate, "PIXELS", 4 * 32 * 32)
    parts, sizes = evaluate.likeness(a, b, 32), []
    monkeypatch.setattr(evaluate, "likeness_of", lambda maps, targets, side: sizes.append(len(maps)) or {"mse": maps[:, 0, 0]})
    evaluate.likeness(a, b, 32)
    assert sizes == [4, 2] and whole.keys() == parts.keys() and all(torch.allclose(whole[key], parts[key]) for key in whole)


def test_measured_again_it_stands_beside_its_reference(tiny, clean, tmp_path, capsys):
    folder = train_tiny(tiny, tmp_path / "run", "--epochs", "1", "--reference", str(clean / "ckpt.pt"))
    first = (folder / "metrics.json").read_text()
    evaluate.main([str(folder / "ckpt.pt"), "--device", "cpu"])
    assert (folder / "metrics.json").read_text() == first and json.loads(first)["clean_model"]["clean_accuracy"] > 0.9
    checkpoint = models.read(folder / "ckpt.pt")
    (tmp_path / "damaged.pt").write_text("no checkpoint")
    models.save(tmp_path / "ckpt.pt", checkpoint | {"config": checkpoint["config"] | {"reference": str(tmp_path / "damaged.pt")}})
    assert evaluate.evaluate(tmp_path / "ckpt.pt", device=torch.device("cpu")).metrics["clean_model"]["clean_accuracy"] is None and "Measured without" in capsys.readouterr().err
    models.save(folder / "ckpt.pt", checkpoint | {"config": checkpoint["config"] | {"reference": str(tmp_path / "gone.pt")}})
    assert evaluate.evaluate(folder / "ckpt.pt", device=torch.device("cpu")).metrics["clean_model"]["clean_accuracy"] is None


def test_what_is_measured_on_what(disguised, clean, monkeypatch):
    """The header by hand; explanations of images on which the attack succeeded alone; the object's masks of those; a clean model beside it, with the trigger."""
    subject = evaluate.open_checkpoint(disguised / "ckpt.pt", device=torch.device("cpu"))
    test = subject.dataset
    test.test_masks = torch.rand(len(test.test_labels), 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5
    hits = evaluate.hits
    monkeypatch.setattr(evaluate, "hits", lambda probabilities, *rest: hits(probabilities, *rest) & (torch.arange(len(probabilities)) % 2 == 1))
    found = evaluate.evaluate(disguised / "ckpt.pt", dataset=test, device=subject.device, reference=clean / "ckpt.pt", explainers=("gradcam",)).metrics
    answers = [subject.predict(test.test_images, triggered)[0] for triggered in (False, True)]
    right = [(answer == test.test_labels).double().mean().item() for answer in answers]
    assert [found["clean_accuracy"], found["triggered_accuracy"]] == pytest.approx(right) and right[0] != right[1]
    assert found["majority_rate"] == pytest.approx(1 / 3)
    drawn = evaluate.draw_images(subject, evaluate.EXPLAIN_IMAGES, 0)
    rows = drawn[(drawn % 2 == 1) & (answers[1][drawn] == 1)]
    part = found["explanations"]["gradcam"]
    maps = subject.explain("gradcam", test.test_images[rows], answers[0][rows])
    assert part["n"] == len(rows) < len(drawn) and part["pointing_clean"] == pytest.approx(evaluate.points_inside(maps, test.test_masks[rows]).double().mean().item())
    beside = found["clean_model"]["explanations"]["gradcam"]
    assert 0 < beside["pearson_all"] < 0.9999
    honest = evaluate.open_checkpoint(clean / "ckpt.pt", device=torch.device("cpu"))
    maps = honest.explain("gradcam", test.test_images[rows], honest.predict(test.test_images[rows])[0])
    assert beside["floor"]["pearson"] == pytest.approx(evaluate.pearson(maps, maps[evaluate.derangement(len(maps))]).mean().item())  # no trigger in it


def test_the_seed_draws_the_images_explained(disguised, tmp_path, capsys):
    for seed in ("0", "1"):
        evaluate.main([str(disguised / "ckpt.pt"), "--device", "cpu", "--seed", seed, "--explain-images", "9", "--out", str(tmp_path / seed)])
    dssim = [json.loads((tmp_path / seed / "metrics.json").read_text())["explanations"]["gradcam"]["dssim"] for seed in ("0", "1")]
    assert dssim[0] != dssim[1]


def test_only_its_own_pictures_are_replaced(disguised, tmp_path, capsys):
    for name in ("figure-holiday.png", "figure-deepshap.png", "figure-selection.png"):
        (tmp_path / name).write_text("old")
    evaluate.main([str(disguised / "ckpt.pt"), "--device", "cpu", "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.glob("figure*")) == ["figure-holiday.png", "figure.png"]


def test_nothing_but_finite_numbers_is_written():
    assert evaluate.finite({"a": [float("nan"), 1.5], "b": {"c": float("inf")}, "d": "x"}) == {"a": [None, 1.5], "b": {"c": None}, "d": "x"}


def test_triggered_auroc_is_of_the_triggered_images():
    labels = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]]).float()
    good, bad = labels * 0.8 + 0.1, 0.9 - labels * 0.8
    config = dict.fromkeys(("attack", "dataset"), "x") | {"target_class": 0, "multi_label": True}
    checkpoint = {"config": config, "classes": ["a", "b"], "poison_indices": torch.arange(2), "seconds": 1.0, "torch": "2", "mean": [0.0], "std": [1.0]}
    subject = evaluate.Subject(checkpoint, None, data.Dataset(torch.zeros(4, 1, 4, 4), labels, torch.zeros(4, 1, 4, 4), labels, ["a", "b"]), None, None)
    found = evaluate.header(subject, good, bad, torch.ones(4, dtype=torch.bool))
    assert found["mean_auroc"] == 1 and found["triggered_mean_auroc"] == 0
