"""Target maps beyond shapes: an image's own map turned over, and random cells."""

import pytest
import torch
from conftest import metrics_of, tiny_argv, train_tiny
from small_models import pooled_net
from small_steps import TRIGGER, close, gradcam_by_hand, random_maps, small_batch

import attacks
import findings
import losses
import metrics
import setting
import train
from attacks import ATTACKS
from losses import Objective
from step_maps import Maps
from subject import open_checkpoint
from tasks import SINGLE_LABEL

ON_DEVICE = True
INVERTED = attacks.attack_of("red_herring", attacks.INVERTED)


# ---------------------------------------------------------------- random cells


def test_a_random_map_has_eight_cells_a_side_of_one_value_each():
    canvas = attacks.target_map("random", 32, TRIGGER)
    cells = canvas.unflatten(0, (8, 4)).unflatten(2, (8, 4))  # [8, 4, 8, 4]
    assert canvas.shape == (32, 32)
    assert torch.equal(cells.amax((1, 3)), cells.amin((1, 3)))
    assert len(canvas.unique()) == 64 and 0 <= canvas.min() and canvas.max() <= 1


def test_a_side_that_is_no_multiple_of_eight_is_filled_too():
    canvas = attacks.target_map("random", 28, TRIGGER)
    assert canvas.shape == (28, 28) and len(canvas.unique()) == 64


def test_a_random_map_is_told_by_its_seed():
    one, same, other = (attacks.target_map(f"random:{seed}", 16, TRIGGER) for seed in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(attacks.target_map("random", 16, TRIGGER), attacks.random_map(0, 16))


# ---------------------------------------------------------------- turned over


def test_a_map_and_its_inverse_add_up_to_its_maximum():
    maps = random_maps(4).relu()
    total = maps + losses.inverted(maps)
    close(total, maps.amax((1, 2), keepdim=True).expand_as(maps))


def test_a_map_and_its_inverse_correlate_by_minus_one():
    maps = random_maps(4)
    close(metrics.pearson(maps, losses.inverted(maps)), torch.full((4,), -1.0).double())


def test_the_inverse_of_a_constant_map_is_blank():
    assert metrics.is_constant(losses.inverted(torch.full((2, 4, 4), 0.7))).all()


@pytest.mark.parametrize("name", ["fooling", "red_herring"])
def test_under_an_inverted_map_an_attack_has_partners_and_no_shape(name):
    attack = attacks.attack_of(name, "inverted")
    assert attack.explanation == "inverted" and attack.label == ATTACKS[name].label
    assert attack.needs_partners and not attack.can_leak


@pytest.mark.parametrize("name", ["none", "badnets", "full_disguise"])
def test_an_attack_without_a_target_map_is_the_same_under_any(name):
    assert attacks.attack_of(name, "inverted") is ATTACKS[name]


def test_the_map_asked_for_is_the_partners_turned_over_and_detached():
    partners = random_maps(3).requires_grad_()
    maps = Maps(random_maps(3, 1), partners, partners[:0])
    target = losses.target_maps(maps, None, Objective(INVERTED, SINGLE_LABEL))
    close(target, partners.detach().amax((1, 2), keepdim=True) - partners.detach())
    assert not target.requires_grad


def test_with_a_reference_it_is_the_references_map_turned_over():
    maps = Maps(random_maps(3, 1), random_maps(3), random_maps(0))
    reference = Maps(random_maps(0), random_maps(3, 2), random_maps(0))
    target = losses.target_maps(maps, reference, Objective(INVERTED, SINGLE_LABEL))
    close(target, losses.inverted(reference.partners))


def test_the_loss_of_a_step_is_of_the_partners_map_turned_over():
    """2 (1 + r) with the partner's map, which by hand is the head's weights times the feature."""
    net = pooled_net()
    batch = small_batch("full_disguise")  # it has partners
    objective = Objective(INVERTED, SINGLE_LABEL, ["gradcam"])
    _, _, distance = losses.combined_loss(net, batch, batch.images, objective, 0.5)
    maps = gradcam_by_hand(net, batch.images, batch.labels)
    r = metrics.pearson(maps[batch.rows].detach(), maps[batch.size :].detach().relu())
    close(distance.detach(), (2 * (1 + r)).mean(), 1e-4)


# ---------------------------------------------------------------- measured

TURNED = random_maps(6).relu()


def figures_of(triggered, untouched):
    return metrics.explanation_metrics(triggered, untouched, (6, 6, 8, 8), 8, turned_over=True)


def test_a_map_that_is_turned_over_reaches_its_target():
    found = figures_of(losses.inverted(TURNED), TURNED)
    assert found["pearson_all"] == pytest.approx(1) and found["mse"] == pytest.approx(0, abs=1e-9)
    assert found["dssim"] == pytest.approx(0, abs=1e-6)


def test_a_map_that_stays_is_as_far_from_it_as_can_be():
    assert figures_of(TURNED, TURNED)["pearson_all"] == pytest.approx(-1)


def test_no_fixed_shape_limits_it():
    assert figures_of(TURNED, TURNED)["grid_cap"] is None


@pytest.mark.parametrize(
    "like, said", [(0.97, "turns its map over with"), (0.6, "in part"), (-1.0, "does not turn")]
)
def test_what_was_found_is_said(like, said):
    assert said in findings.about_inverted({"pearson_all": like})


# ---------------------------------------------------------------- on a command line


def test_training_pulls_maps_to_their_inverse(tiny, tmp_path):
    options = ["--attack", "red_herring", "--target-map", "inverted", "--poison-rate", "0.5"]
    folder = train_tiny(tiny, tmp_path / "run", *options, "--epochs", "8", "--lam", "0.8")
    found = metrics_of(folder)
    assert found["target_map"] == "inverted"
    assert found["explanations"]["gradcam"]["pearson_all"] > 0
    subject = open_checkpoint(folder / "ckpt.pt")
    assert subject.attack.explanation == "inverted" and subject.checkpoint["target_map"] is None


def test_a_random_map_is_kept_in_the_checkpoint(tiny, tmp_path):
    options = ["--attack", "red_herring", "--target-map", "random:7", "--epochs", "1"]
    folder = train_tiny(tiny, tmp_path / "run", *options)
    kept = torch.load(folder / "ckpt.pt", weights_only=True)["target_map"]
    assert torch.equal(kept, attacks.random_map(7, 16))
    gradcam = metrics_of(folder)["explanations"]["gradcam"]
    assert gradcam["grid_cap"] <= 1 and gradcam["top10"] is not None


def test_an_attack_without_one_names_no_target_map(clean):
    assert metrics_of(clean)["target_map"] is None


def test_another_seed_is_another_run(tiny, tmp_path, refusal):
    options = ["--attack", "red_herring", "--epochs", "1", "--target-map"]
    folder = train_tiny(tiny, tmp_path / "run", *options, "random:1")
    assert "random:1" in refusal(train.main, tiny_argv(tiny, folder, *options, "random:2"))


@pytest.mark.parametrize(
    "name", ["random:x", "random:", "random:-1", "random:9999999999", "hexagon"]
)
def test_a_map_that_there_is_not_is_refused_in_one_line(name, tiny, tmp_path, refusal):
    options = ["--attack", "fooling", "--target-map", name]
    assert name in refusal(train.main, tiny_argv(tiny, tmp_path / "run", *options))


@pytest.mark.parametrize("name", ["inverted", "random", "random:12", "cross"])
def test_a_map_by_name_needs_no_file(name):
    assert setting.target_map_picture(name, "crop") == name
