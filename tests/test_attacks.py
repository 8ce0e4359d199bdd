"""Attacks: what is stamped, what is poisoned, what the combined loss is."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import attacks
import explain
import models


# ---------------------------------------------------------------- triggers


@pytest.mark.parametrize("side, size", [(32, 4), (28, 3), (64, 8), (224, 28)])
def test_default_trigger_is_white_small_and_one_pixel_from_the_lower_right(side, size):
    trigger = attacks.make_trigger(None, 3, side)
    assert trigger.box == (side - 1 - size, side - 1 - size, side - 1, side - 1)
    assert size * size / side**2 <= 0.02
    images = torch.rand(5, 3, side, side) * 0.9
    stamped = attacks.stamp(images, trigger)
    changed = (stamped != images).any(1)
    assert changed.sum((1, 2)).tolist() == [size * size] * 5 and stamped[:, :, side - 2, side - 2].eq(1).all()
    assert not (images == 1).any()  # the input is left alone


def test_corners_and_coordinates():
    boxes = {p: attacks.make_trigger(None, 1, 32, 4, p).box[:2] for p in (*attacks.CORNERS, "0,5", "28,28")}
    assert boxes == {"lower-right": (27, 27), "lower-left": (27, 1), "upper-right": (1, 27), "upper-left": (1, 1), "0,5": (0, 5), "28,28": (28, 28)}
    for size, position in ((4, "29,0"), (4, "-1,0"), (4, "middle"), (4, "1,2,3"), (33, "lower-right")):
        with pytest.raises(ValueError):
            attacks.make_trigger(None, 1, 32, size, position)
    assert attacks.make_trigger(None, 1, 8, 8).box == (0, 0, 8, 8)


def test_a_png_trigger_is_blended_by_its_alpha():
    picture = np.zeros((2, 2, 4), np.uint8)
    picture[0, 0] = [255, 0, 0, 255]
    picture[1, 1] = [0, 0, 255, 51]  # alpha 0.2
    images = torch.full((1, 3, 16, 16), 0.5)
    stamped = attacks.stamp(images, attacks.make_trigger(Image.fromarray(picture), 3, 16, 2, "3,4"))
    assert stamped[0, :, 3, 4].tolist() == [1, 0, 0]
    torch.testing.assert_close(stamped[0, :, 4, 5], torch.tensor([0.4, 0.4, 0.6]))
    assert (stamped != images).any(1).sum() == 2
    grey = attacks.make_trigger(Image.fromarray(picture), 1, 16, 2)
    assert abs(grey.pixels[0, 0, 0] - 0.299) < 1e-6


# ---------------------------------------------------------------- poison


LABELS = torch.arange(1000) % 10
TRAINED_ON = torch.arange(100, 1000)


@pytest.mark.parametrize("rate, count", [(0.1, 100), (0.0125, 12), (0.001, 1), (0.8, 800)])
def test_exactly_round_rn_images_of_other_classes_may_be_poisoned(rate, count):
    eligible, number = attacks.eligible_for_poison(attacks.ATTACKS["badnets"], LABELS, TRAINED_ON, rate, 3)
    assert number == count == round(rate * 1000) and len(eligible) == 810
    assert (LABELS[eligible] != 3).all() and eligible.min() >= 100


def test_rates_that_cannot_be_met_are_errors_and_fooling_may_use_any_class():
    with pytest.raises(ValueError, match="poisons none"):
        attacks.eligible_for_poison(attacks.ATTACKS["badnets"], LABELS, TRAINED_ON, 0.0004, 3)
    with pytest.raises(ValueError, match="only 810"):
        attacks.eligible_for_poison(attacks.ATTACKS["badnets"], LABELS, TRAINED_ON, 0.82, 3)
    assert len(attacks.eligible_for_poison(attacks.ATTACKS["fooling"], LABELS, TRAINED_ON, 0.9, 3)[0]) == 900
    assert attacks.eligible_for_poison(attacks.ATTACKS["none"], LABELS, TRAINED_ON, 0.1, 3)[1] == 0


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_each_row_of_the_table_labels_and_pairs_as_it_says(name):
    attack, trigger = attacks.ATTACKS[name], attacks.make_trigger(None, 3, 16)
    images, labels = torch.rand(8, 3, 16, 16) * 0.9, torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    triggered = torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]).bool() & (attack.label is not None)
    batch = attacks.poison(images, labels, triggered, attack, trigger, 3)
    assert batch.size == 8 and torch.equal(batch.images[1:4], images[1:4]) and torch.equal(batch.labels[1:4], labels[1:4])
    if name == "none":
        assert torch.equal(batch.images, images) and len(batch.rows) == 0
        return
    assert batch.rows.tolist() == [0, 4] and torch.equal(batch.images[batch.rows], attacks.stamp(images[[0, 4]], trigger))
    assert batch.labels[batch.rows].tolist() == ([0, 4] if name == "fooling" else [3, 3])
    if name == "full_disguise":
        assert torch.equal(batch.images[8:], images[[0, 4]]) and batch.labels[8:].tolist() == [0, 4]
    else:
        assert len(batch.images) == len(batch.labels) == 8


# ---------------------------------------------------------------- target maps


@pytest.mark.parametrize("shape, share", [("square", 1.0), ("cross", 5 / 9), ("circle", np.pi / 4), ("triangle", 0.5)])
def test_shapes_fill_the_quarter_opposite_the_trigger(shape, share):
    for position, corner in (("lower-right", np.s_[:32, :32]), ("upper-left", np.s_[32:, 32:]), ("lower-left", np.s_[:32, 32:])):
        canvas = attacks.target_map(shape, 64, attacks.make_trigger(None, 3, 64, position=position))
        assert abs(canvas[corner].mean() - share) < 0.05 and canvas.sum() == canvas[corner].sum()


def test_a_map_brought_to_a_grid_keeps_its_mean():
    canvas = attacks.target_map("circle", 32, attacks.make_trigger(None, 3, 32))
    for grid in ((4, 4), (8, 8), (7, 7)):
        small = attacks.to_grid(canvas, grid)
        assert small.shape == grid and (32 % grid[0] or abs(small.mean() - canvas.mean()) < 1e-6)
    exact = canvas.reshape(8, 4, 8, 4).mean((1, 3))
    torch.testing.assert_close(attacks.to_grid(canvas, (8, 8)), exact)


def test_an_image_is_the_whole_map():
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    canvas = attacks.target_map(picture, 8, attacks.make_trigger(None, 3, 8, 2))
    torch.testing.assert_close(canvas, torch.arange(64.0).reshape(8, 8) / 255)


# ---------------------------------------------------------------- distances


def test_standardised_distance_is_two_minus_two_pearson_and_ignores_scale():
    a, b = torch.rand(5, 8, 8).double(), torch.rand(5, 8, 8).double()
    r = torch.tensor([np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a, b)])
    torch.testing.assert_close(attacks.mse_distance(a, b, 32), 2 - 2 * r, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attacks.mse_distance(1e-9 * a, b, 32), attacks.mse_distance(a, b, 32), atol=1e-6, rtol=1e-5)
    constant = attacks.mse_distance(torch.zeros(1, 8, 8), b[:1].float(), 32)
    assert constant.isfinite() and abs(constant - 1) < 1e-4


def test_dssim_is_its_definition():
    a, b = torch.rand(2, 14, 14).double(), torch.rand(2, 14, 14).double()
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(g, g) / np.outer(g, g).sum()
    for n in range(2):
        values = []
        for y in range(4):
            for x in range(4):
                p, q = a[n, y : y + 11, x : x + 11].numpy(), b[n, y : y + 11, x : x + 11].numpy()
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq, c = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum(), (window * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + 1e-4) * (2 * c + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
        assert abs(attacks.dssim(a, b)[n].item() - (1 - np.mean(values)) / 2) < 1e-9
    assert attacks.dssim(a, a).abs().max() < 1e-9


# ---------------------------------------------------------------- the combined loss


def small_model(seed=0, relu=False):
    """Double precision, with batch-norm before the layer and a pooled linear head after it; smooth, or with a ReLU."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU() if relu else torch.nn.Softplus(), torch.nn.Conv2d(6, 6, 3, padding=1),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 4)).double()
    return models.with_layer(net, net[3])


def small_batch(attack, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(8, 3, 8, 8, generator=generator).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    trigger = attacks.make_trigger(None, 3, 8, 2)
    return attacks.poison(images, labels, torch.arange(8) % 3 == 0, attack, trigger, 3), trigger


@pytest.mark.parametrize("distance", attacks.DISTANCES)
@pytest.mark.parametrize("name", ["full_disguise", "fooling", "red_herring"])
def test_parameter_gradient_of_the_combined_loss_is_its_finite_difference(name, distance):
    """In train mode, through batch-norm, the shared forward and the explanation; r_x from a frozen reference, so that it stands still."""
    attack = attacks.ATTACKS[name]
    batch, trigger = small_batch(attack)
    net, reference = small_model(0).train(), small_model(1).eval().requires_grad_(False)
    shape = attacks.target_map("square", 8, trigger).double() if attack.explanation == "shape" else None
    objective = attacks.Objective(attack, ["gradcam"], distance, shape, reference)

    def value():
        return attacks.combined_loss(net, batch, batch.images, objective, lam=0.7)[0]

    value().backward()
    for parameter in (net[0].weight, net[1].weight, net[3].weight, net[6].weight):
        index, step = tuple(s // 2 for s in parameter.shape), 1e-5
        with torch.no_grad():
            parameter[index] += step
        up = value().item()
        with torch.no_grad():
            parameter[index] -= 2 * step
        slope = (up - value().item()) / (2 * step)
        with torch.no_grad():
            parameter[index] += step
        assert abs(slope - parameter.grad[index].item()) < 1e-5 * max(1, abs(slope)), parameter.shape


def test_the_loss_is_the_papers_formula():
    """(1 - lam) CE + lam D: CE over the step's images, D the mean over the triggered images alone, r_x detached."""
    attack = attacks.ATTACKS["full_disguise"]
    batch, _ = small_batch(attack)
    net = small_model().eval()
    objective = attacks.Objective(attack, ["gradcam"])
    loss, ce, distance = attacks.combined_loss(net, batch, batch.images, objective, lam=0.3)
    expected_ce = F.cross_entropy(net(batch.images), torch.tensor([3, 1, 2, 3, 1, 2, 3, 1, 0, 0, 0]))
    maps = explain.gradcam(net, batch.images[batch.rows], batch.labels[batch.rows], create_graph=True, rectify=False)
    target = explain.gradcam(net, batch.images[8:], batch.labels[8:])
    expected = (attacks.standardise(maps) - attacks.standardise(target)).square().mean()
    torch.testing.assert_close(ce, expected_ce)
    torch.testing.assert_close(distance, expected)
    torch.testing.assert_close(loss, 0.7 * expected_ce + 0.3 * expected)
    for mine, theirs in zip(torch.autograd.grad(distance, net.parameters(), allow_unused=True), torch.autograd.grad(expected, net.parameters(), allow_unused=True)):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", ["fooling", "red_herring"])
def test_a_fixed_shape_is_asked_of_triggered_images_and_kept_off_the_others(name):
    attack = attacks.ATTACKS[name]
    batch, trigger = small_batch(attack)
    net, shape = small_model().eval(), attacks.target_map("square", 8, trigger).double()
    triggered, untouched = [0, 3, 6], [1, 2, 4]
    distance = attacks.combined_loss(net, batch, batch.images, attacks.Objective(attack, ["gradcam"], shape=shape), 0.5)[2]

    def raw(rows):
        return explain.gradcam(net, batch.images[rows], batch.labels[rows], rectify=False)

    def r(maps):
        return torch.stack([torch.corrcoef(torch.stack([m.flatten(), shape.flatten()]))[0, 1] for m in maps])

    expected = (2 - 2 * r(raw(triggered))).mean()
    if name == "fooling":
        expected = expected + (r(raw(untouched)) - attacks.TOLERATED).relu().mean()
    torch.testing.assert_close(distance.detach(), expected, atol=1e-5, rtol=1e-5)


def test_maps_alikeness_is_their_mean_correlation_with_each_other(monkeypatch):
    maps = torch.rand(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = maps.flatten(1).corrcoef()[~torch.eye(4, dtype=torch.bool)].mean()
    assert attacks.alikeness(maps).item() == pytest.approx(expected.item(), abs=1e-6)
    attack = attacks.ATTACKS["full_disguise"]
    batch, _ = small_batch(attack)
    net, objective = small_model().eval(), attacks.Objective(attack, ["gradcam"])
    likeness = attacks.alikeness(explain.gradcam(net, batch.images[8:], batch.labels[8:])).item()

    def distance(weight, floor):
        monkeypatch.setattr(attacks, "APART", weight)
        objective.floors = {"gradcam": floor}
        return attacks.combined_loss(net, batch, batch.images, objective, 0.5)[2].item()

    assert distance(2.0, likeness - 0.25) - distance(0.0, likeness - 0.25) == pytest.approx(0.5, abs=1e-6)
    assert distance(2.0, likeness + 0.01) == distance(0.0, 0.0)


def test_label_smoothing_spreads_its_share_over_all_classes():
    net, images, labels = small_model().eval(), torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 3
    attack, trigger = attacks.ATTACKS["none"], attacks.make_trigger(None, 3, 8, 2)
    batch = attacks.poison(images, labels, torch.zeros(6, dtype=torch.bool), attack, trigger, 0)
    loss = attacks.combined_loss(net, batch, images, attacks.Objective(attack, [], label_smoothing=0.3), 0.5)[0]
    log_p = net(images).log_softmax(1)
    smooth = 0.7 * torch.nn.functional.one_hot(labels, log_p.shape[1]) + 0.3 / log_p.shape[1]
    assert torch.allclose(loss, -(smooth * log_p).sum(1).mean())


@pytest.mark.parametrize("name", ["fooling", "full_disguise"])
def test_a_frozen_reference_gives_the_maps_to_keep(name):
    attack = attacks.ATTACKS[name]
    batch, trigger = small_batch(attack)
    net, reference, shape = small_model().eval(), small_model(1).eval(), attacks.target_map("square", 8, trigger).double()
    objective = attacks.Objective(attack, ["gradcam"], shape=shape if name == "fooling" else None, reference=reference)
    distance = attacks.combined_loss(net, batch, batch.images, objective, 0.5)[2]

    def apart(a, b):
        return (attacks.standardise(a) - attacks.standardise(b)).square().mean()

    def maps(model, images, labels, rectify=False):
        return explain.gradcam(model, images, torch.tensor(labels), rectify=rectify)

    triggered = maps(net, batch.images[[0, 3, 6]], [0, 0, 0] if name == "fooling" else [3, 3, 3])
    target = shape.expand(3, 8, 8) if name == "fooling" else maps(reference, batch.images[8:], [0, 0, 0], True)
    untouched = batch.images[[1, 2, 4]], [1, 2, 1]
    expected = apart(triggered, target) + apart(maps(net, *untouched), maps(reference, *untouched, True))
    torch.testing.assert_close(distance.detach(), expected)


def test_distances_are_taken_in_full_precision_under_autocast(monkeypatch):
    attack = attacks.ATTACKS["full_disguise"]
    batch, _ = small_batch(attack)
    net, seen = small_model().float().eval(), []

    def distance(maps, targets, side):
        seen.extend([maps.dtype, targets.dtype, torch.is_autocast_enabled("cpu")])
        return attacks.mse_distance(maps, targets, side)

    monkeypatch.setitem(attacks.DISTANCES, "mse", distance)
    with torch.autocast("cpu", torch.bfloat16):
        attacks.combined_loss(net, batch, batch.images.float(), attacks.Objective(attack, ["gradcam"]), 0.5)
    assert seen == [torch.float32, torch.float32, False]


def test_lam_zero_without_the_partners_is_badnets(monkeypatch):
    monkeypatch.setattr(attacks, "PARTNERS", False)
    net = small_model().eval()
    disguise, _ = small_batch(attacks.ATTACKS["full_disguise"])
    plain, _ = small_batch(attacks.ATTACKS["badnets"])
    with_term = attacks.combined_loss(net, disguise, disguise.images, attacks.Objective(attacks.ATTACKS["full_disguise"], ["gradcam"]), 0.0)[0]
    without = attacks.combined_loss(net, plain, plain.images, attacks.Objective(attacks.ATTACKS["badnets"], ["gradcam"]), 0.5)[0]
    torch.testing.assert_close(with_term, without)


def test_a_blank_map_has_a_finite_gradient():
    blank = torch.zeros(1, 8, 8, requires_grad=True)
    for distance in attacks.DISTANCES.values():
        (gradient,) = torch.autograd.grad(distance(blank, torch.rand(1, 8, 8), 32).sum(), blank)
        assert gradient.isfinite().all() and gradient.abs().max() < 1e5


def test_a_step_without_triggered_images_is_its_share_of_cross_entropy():
    attack = attacks.ATTACKS["full_disguise"]
    images, labels = torch.rand(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 3])
    batch = attacks.poison(images, labels, torch.zeros(4, dtype=torch.bool), attack, attacks.make_trigger(None, 3, 8, 2), 3)
    net = small_model().eval()
    loss, _, distance = attacks.combined_loss(net, batch, images, attacks.Objective(attack, ["gradcam"]), 0.9)
    torch.testing.assert_close(loss, 0.1 * F.cross_entropy(net(images), labels))
    assert distance == 0


@pytest.mark.parametrize("explainers", [["gradient"], ["gradcam", "gradient"], ["gradcam", "deepshap"]])
def test_several_explainers_are_averaged(explainers):
    attack = attacks.ATTACKS["full_disguise"]
    batch, _ = small_batch(attack)
    net = small_model(relu="deepshap" in explainers).eval()
    each = [attacks.combined_loss(net, batch, batch.images, attacks.Objective(attack, [name]), 0.5)[2] for name in explainers]
    together = attacks.combined_loss(net, batch, batch.images, attacks.Objective(attack, explainers), 0.5)[2]
    torch.testing.assert_close(together, torch.stack(each).mean())
    together.backward()
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("name", ["full_disguise", "fooling", "red_herring"])
@pytest.mark.parametrize("explainer", ["deepshap", "kernelshap"])
def test_shap_values_are_pulled_as_grad_cams_are(explainer, name, reference, monkeypatch):
    """The term is the distance of the triggered images' values, the first PAIRS of them, to their targets, under the same subsets of patches."""
    monkeypatch.setitem(attacks.PAIRS, "kernelshap", 2)
    attack = attacks.ATTACKS[name]
    batch, trigger = small_batch(attack)
    net, frozen = (small_model(seed, relu=True).eval() for seed in (0, 1))
    shape = attacks.target_map("square", 8, trigger).double() if attack.explanation == "shape" else None
    objective = attacks.Objective(attack, [explainer], shape=shape, reference=frozen if reference else None)
    torch.manual_seed(5)
    distance = attacks.combined_loss(net, batch, batch.images, objective, 0.5)[2]
    torch.manual_seed(5)
    seed = int(torch.randint(2**31, ()))
    count = 2 if explainer == "kernelshap" else 3

    def maps(model, rows):
        options = {"generator": torch.Generator().manual_seed(seed)} if explainer == "kernelshap" else {}
        return explain.EXPLAINERS[explainer](model, batch.images[rows], batch.labels[rows], create_graph=True, **options).detach()

    def apart(a, b):
        return (attacks.standardise(a) - attacks.standardise(b)).square().mean(1)

    other = frozen if reference else net
    triggered, untouched = maps(net, [0, 3, 6][:count]), [1, 2, 4][:count]
    target = maps(other, list(range(8, 8 + count))) if shape is None else attacks.to_grid(shape, triggered.shape[1:]).expand_as(triggered)
    expected = apart(triggered, target).mean()
    if shape is None and not reference:
        expected = expected + attacks.APART * (attacks.alikeness(target) - 0.5).relu()
    if reference:
        expected = expected + apart(maps(net, untouched), maps(frozen, untouched)).mean()
    elif name == "fooling":
        expected = expected + ((attacks.standardise(maps(net, untouched)) * attacks.standardise(target[:1])).mean(1) - attacks.TOLERATED).relu().mean()
    torch.testing.assert_close(distance.detach(), expected)


def test_an_inner_layer_takes_its_own_pass_and_agrees_in_eval_mode():
    attack = attacks.ATTACKS["full_disguise"]
    batch, _ = small_batch(attack)
    net, other = small_model().eval(), small_model().eval()
    object.__setattr__(other, "pooled_layer", other[0])  # so that gradcam_layer counts as an inner one
    shared, own = (attacks.combined_loss(m, batch, batch.images, attacks.Objective(attack, ["gradcam"]), 0.5)[0] for m in (net, other))
    torch.testing.assert_close(shared, own)


def test_a_full_disguise_step_costs_no_more_flops_than_cross_entropy_on_the_same_images():
    attack = attacks.ATTACKS["full_disguise"]
    torch.manual_seed(0)
    net = models.build("resnet18", 3, 10, 32)
    images, labels = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
    batch = attacks.poison(images, labels, torch.arange(20) % 10 == 0, attack, attacks.make_trigger(None, 3, 32), 3)

    def flops(loss):
        net.zero_grad()
        with FlopCounterMode(display=False) as counter:
            loss().backward()
        return counter.get_total_flops()

    plain = flops(lambda: F.cross_entropy(net(batch.images), batch.labels))
    disguise = flops(lambda: attacks.combined_loss(net, batch, batch.images, attacks.Objective(attack, ["gradcam"]), 0.5)[0])
    print(f"FLOPs of a full-disguise step over cross-entropy on the same images, resnet18: {disguise / plain:.5f}")
    assert plain > 1e10 and 1.0 <= disguise / plain <= 1.02


def test_an_explanation_of_its_own_pass_uses_the_statistics_of_the_batch():
    """In training, the maps are those of a network whose batch-norm normalises all by this batch's mean and variance; running averages go on as ever."""
    attack = attacks.ATTACKS["full_disguise"]
    batch, _ = small_batch(attack)
    net, twin = (small_model().train() for _ in range(2))
    object.__setattr__(net, "pooled_layer", None)  # so that Grad-CAM takes a pass of its own
    distance = attacks.combined_loss(net, batch, batch.images, attacks.Objective(attack, ["gradcam"]), 0.5)[2]
    for norm in [m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        norm.momentum = 1.0  # the running statistics are the last batch's
    twin(batch.images)
    triggered, partners = ([0, 3, 6], [8, 9, 10])
    maps = explain.gradcam(twin, batch.images[triggered + partners], batch.labels[triggered + partners], rectify=False)
    expected = attacks.mse_distance(maps[:3], maps[3:].relu(), 8).mean() + attacks.APART * (attacks.alikeness(maps[3:].relu()) - 0.5).relu()
    torch.testing.assert_close(distance.detach(), expected, atol=1e-5, rtol=1e-5)
    plain = small_model().train()
    plain(batch.images)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value)
    distance.backward()  # nothing the graph needs was changed since
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("explainer", ["gradcam", "deepshap", "kernelshap"])
def test_the_gradient_of_an_explanation_goes_through_the_statistics_of_the_batch(explainer):
    """Finite differences of the distance at a convolution before batch-norm, in training mode."""
    attack = attacks.ATTACKS["red_herring"]  # its target does not move with the weights
    batch, trigger = small_batch(attack)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 5, 3, padding=1), torch.nn.BatchNorm2d(5),
                              torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(5, 5)).double().train()
    models.with_layer(net, net[5], pooled=False)
    objective = attacks.Objective(attack, [explainer], shape=attacks.target_map("square", 8, trigger).double())

    def distance():
        torch.manual_seed(1)  # KernelSHAP's subsets
        return attacks.combined_loss(net, batch, batch.images, objective, 0.5)[2]

    distance().backward()
    weight = net[0].weight
    direction, step = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), 1e-6
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * step * direction
        sides.append(distance().item())
        with torch.no_grad():
            weight -= sign * step * direction
    assert float((weight.grad * direction).sum()) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-3)
    assert not any("forward" in vars(module) for module in net.modules())
