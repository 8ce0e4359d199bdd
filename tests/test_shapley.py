"""KernelSHAP against exact Shapley values, and its estimator against games of known values."""

import math

import pytest
import torch
from small_models import finite_difference, generator, two_channel_net

import hooks
import shapley
from shapley import kernel_shap
from studies import sampling

CLASSES = torch.tensor([0, 1, 2, 1, 0])


@pytest.fixture
def images():
    return torch.randn(5, 2, 12, 12, dtype=torch.float64, generator=generator(1))


@pytest.fixture
def net():
    return two_channel_net()


def shapley_of_game(worth):
    """Shapley values [M] by their definition: the weighted mean of what a player adds.

    worth: float64 [2^M], of the coalition whose binary number is the index.
    """
    players = len(worth).bit_length() - 1
    coalitions, size = sampling.all_coalitions(players)
    share = [1 / (players * math.comb(players - 1, s)) for s in range(players)]
    share = torch.tensor(share, dtype=torch.float64)
    values = []
    for player in range(players):
        without = (~coalitions[:, player]).nonzero()[:, 0]
        added = worth[without + 2**player] - worth[without]
        values.append((share[size[without]] * added).sum())
    return torch.stack(values)


def exact_values(net, image, label, patches, baseline):
    """Shapley values [patches, patches] of an image, from all 2^M masked images."""
    masks, _ = sampling.all_coalitions(patches**2)
    patch = shapley.patch_of_pixel(patches, *image.shape[1:])
    present = masks[:, patch][:, None]  # [2^M, 1, H, W]
    with torch.no_grad():
        logits = [net(torch.where(part, image, baseline)) for part in present.split(8192)]
    worth = torch.cat(logits)[:, label]
    return shapley_of_game(worth).view(patches, patches)


# ---------------------------------------------------------------- exact values


@pytest.mark.parametrize("patches", [1, 2, 3, 4])
def test_with_all_coalitions_the_values_are_exact(net, images, patches):
    baseline = images[4] / 3
    found = kernel_shap(net, images[:1], CLASSES[:1], patches, 2**patches**2, baseline)
    expected = exact_values(net, images[0], CLASSES[0], patches, baseline)
    torch.testing.assert_close(found[0], expected, atol=1e-10, rtol=1e-8)


def test_the_values_are_of_the_logit_of_each_images_class(net, images):
    found = kernel_shap(net, images, CLASSES, 2, 14)
    for image, label, values in zip(images, CLASSES, found):
        expected = exact_values(net, image, label, 2, torch.zeros(()).double())
        torch.testing.assert_close(values, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("coalitions", [33, 64, 200])
def test_the_values_sum_to_the_difference_from_the_baseline(images, coalitions, create_graph):
    net, images = two_channel_net(torch.float32), images.float()
    background = torch.randn(7, 2, 12, 12, generator=generator(2))
    values = kernel_shap(net, images, CLASSES, 4, coalitions, background, create_graph=create_graph)
    difference = net(images) - net(background.mean(0, keepdim=True))
    expected = difference.gather(1, CLASSES[:, None])[:, 0]
    torch.testing.assert_close(values.sum((1, 2)), expected, atol=1e-5, rtol=1e-5)


def test_without_a_number_there_are_1024_coalitions_and_64_in_training(net, images):
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for create_graph, count in ((False, 1024), (True, 64)):
        sizes.clear()
        kernel_shap(net, images[:1], CLASSES[:1], create_graph=create_graph)
        assert sum(sizes) == count + 2  # the full and the empty coalition, too


# ---------------------------------------------------------------- patches that are the baseline


@pytest.fixture
def half_empty(images):
    """Two images; of 4x4 patches the upper half, and in the second the third row, are 0.25."""
    images[:, :, :6] = 0.25
    images[1, :, 6:9] = 0.25
    return images[:2]


def test_a_patch_equal_to_the_baseline_has_no_share(net, half_empty):
    values = kernel_shap(net, half_empty, CLASSES[:2], 4, 254, 0.25)
    has_share = [[row.any().item() for row in value] for value in values]
    assert has_share == [[False, False, True, True], [False, False, False, True]]


def test_the_sample_is_spent_on_the_other_patches(net, half_empty):
    """Of 8 patches 254 coalitions are all, and the values exact."""
    values = kernel_shap(net, half_empty, CLASSES[:2], 4, 254, 0.25)
    expected = exact_values(net, half_empty[0], CLASSES[0], 4, 0.25)
    torch.testing.assert_close(values[0], expected, atol=1e-10, rtol=1e-8)


def test_an_image_that_is_the_baseline_has_a_blank_map(net, images):
    values = kernel_shap(net, torch.full_like(images, 0.25), CLASSES, 4, 64, 0.25)
    assert values.shape == (5, 4, 4) and not values.any()


@pytest.mark.parametrize("create_graph, count", [(False, 4), (True, 16)])
def test_with_a_graph_no_patch_is_left_out_of_the_sample(net, images, create_graph, count):
    """2x2 patches, two of them the baseline: of all coalitions there are 2^2 or 2^4."""
    images[:, :, :6] = 0.25
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    kernel_shap(net, images[:1], CLASSES[:1], 2, 14, 0.25, create_graph=create_graph)
    assert sum(sizes) == count


def test_values_do_not_depend_on_the_other_images_patches(net, images, monkeypatch):
    """Each number of active patches has its own sample, drawn from one seed a call."""
    monkeypatch.setattr(hooks, "CHUNK_CPU", 2)
    images[3, :, :3] = 0  # its first row of patches is the baseline

    def values(images):
        seed = generator(3)
        return kernel_shap(net, images, CLASSES[: len(images)], 4, 64, generator=seed)

    torch.testing.assert_close(values(images)[:3], values(images[:3]))


def test_a_blank_image_among_others_changes_no_other_value(net, images):
    with_blank = torch.cat([images[:2], torch.zeros_like(images[:1])])
    found = kernel_shap(net, with_blank, CLASSES[:3], 4, 64, generator=generator(3))
    expected = kernel_shap(net, images[:2], CLASSES[:2], 4, 64, generator=generator(3))
    torch.testing.assert_close(found[:2], expected)


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_images_have_no_values(net, images, create_graph):
    values = kernel_shap(net, images[:0], CLASSES[:0], create_graph=create_graph)
    assert values.shape == (0, 4, 4)


def test_fewer_coalitions_than_determine_the_values_are_refused(net, images):
    with pytest.raises(ValueError, match="31 coalitions .* 16 patches: 32 or more do"):
        kernel_shap(net, images, CLASSES, 4, 31)


def test_patches_smaller_than_a_pixel_are_refused(net, images):
    with pytest.raises(ValueError, match="13x13 patches do not fit images of 12x12 px"):
        kernel_shap(net, images, CLASSES, 13)


def test_memory_does_not_grow_with_the_number_of_masked_images(net, images, monkeypatch):
    monkeypatch.setattr(hooks, "CHUNK_CPU", 16)
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    kernel_shap(net, images.repeat(8, 1, 1, 1), CLASSES.repeat(8), 2, 14)
    assert max(sizes) == 16 and sum(sizes) == 40 * 16


def test_an_equal_seed_gives_an_equal_sample(net, images):
    first, second = (
        kernel_shap(net, images, CLASSES, 4, 64, generator=generator(0)) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("baseline", [0.3, "image", "images"])
def test_an_absent_patch_shows_the_baseline(net, images, baseline):
    """A number, an image, or the mean of images."""
    given = {"image": images[3], "images": images[3:]}.get(baseline, baseline)
    shown = {"image": images[3], "images": images[3:].mean(0)}.get(baseline, baseline)
    found = kernel_shap(net, images[:1], CLASSES[:1], 2, 14, given)[0]
    expected = exact_values(net, images[0], CLASSES[0], 2, shown)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("patches, side", [(4, 12), (4, 30), (3, 7)])
def test_patches_differ_in_height_and_width_by_a_pixel_at_most(patches, side):
    patch = shapley.patch_of_pixel(patches, side, side)
    heights = (patch[:, 0] // patches).bincount()
    assert patch.unique().tolist() == list(range(patches**2))
    assert heights.max() - heights.min() <= 1 and torch.equal(patch.T % patches, patch // patches)


# ---------------------------------------------------------------- training through the values


@pytest.mark.parametrize("layer", ["0", "1", "4", "8"])
def test_the_derivative_in_the_weights_is_the_finite_difference(net, images, layer):
    """Two nonlinearities and max-pooling follow the first convolution."""
    weighting = torch.randn(4, 4, dtype=torch.float64, generator=generator(2))

    def value():
        maps = kernel_shap(
            net, images[:2], CLASSES[:2], 4, 40, generator=generator(0), create_graph=True
        )
        return (torch.tanh(maps) * weighting).sum()

    value().backward()
    weight = net.get_submodule(layer).weight
    flat, slopes = weight.view(-1), weight.grad.view(-1)
    for index in (0, flat.numel() // 2, flat.numel() - 1):
        slope = finite_difference(value, flat, index, 1e-6)
        assert abs(slope - slopes[index]) <= 1e-3 * max(abs(slope), 1e-3)


def test_training_through_the_values_is_of_first_order(net, images, monkeypatch):
    """No gradient is taken inside: the graph is the model's own."""
    monkeypatch.setattr(torch.autograd, "grad", None)
    assert kernel_shap(net, images, CLASSES, 2, create_graph=True).requires_grad


# ---------------------------------------------------------------- which coalitions

sampled_games = pytest.mark.parametrize(
    "players, count", [(4, 9), (7, 123), (9, 509), (16, 128), (16, 1024), (49, 512)]
)


def with_complements(players, count):
    half = shapley.draw_coalitions(players, count, generator(0))
    return torch.cat([half, ~half])


@sampled_games
def test_coalitions_and_their_complements_are_distinct_and_as_many_as_asked(players, count):
    assert len(with_complements(players, count).unique(dim=0)) == 2 * (count // 2)


@sampled_games
def test_no_coalition_is_empty_or_full(players, count):
    size = with_complements(players, count).sum(1)
    assert size.min() > 0 and size.max() < players


@sampled_games
def test_every_single_player_is_a_coalition(players, count):
    assert (with_complements(players, count).sum(1) == 1).sum() == players


def test_other_sizes_are_drawn_in_proportion_to_members_times_others():
    drawn = shapley.draw_coalitions(40, 5000, generator(0))[40:].sum(1)
    chance = {s: s * (40 - s) for s in range(2, 39)}
    for largest in (10, 15):  # sizes up to it, or within it of all players
        rare = sum(chance[s] for s in chance if min(s, 40 - s) <= largest) / sum(chance.values())
        share = (torch.minimum(drawn, 40 - drawn) <= largest).double().mean().item()
        assert share == pytest.approx(rare, abs=0.03)


@pytest.mark.parametrize("players", range(1, 7))
def test_all_coalitions_are_there_where_as_many_are_asked(players):
    coalitions = with_complements(players, 64)
    assert len(coalitions) == len(coalitions.unique(dim=0)) == max(2**players - 2, 0)


# ---------------------------------------------------------------- the estimator


@pytest.fixture(params=[(5, 10), (9, 40), (16, 64), (49, 512), (196, 1024)], ids=str)
def sample(request):
    """(players, signs float64 [1 + K, M] of the known coalitions, their slopes [1 + K, M])."""
    players, count = request.param
    coalitions = shapley.draw_coalitions(players, count, generator(0))
    full = torch.ones(1, players, dtype=torch.bool)
    signs = 2.0 * torch.cat([full, coalitions]).double() - 1
    return players, signs, shapley.shapley_map(coalitions)


def test_additive_games_are_exact_from_any_coalitions(sample):
    players, signs, slopes = sample
    worth = torch.randn(players, dtype=torch.float64, generator=generator(1))
    torch.testing.assert_close((signs @ worth) @ slopes, worth, atol=1e-7, rtol=0)


def test_one_players_worth_is_no_other_players(sample):
    players, signs, slopes = sample
    unit = torch.eye(players, dtype=torch.float64)
    torch.testing.assert_close(signs.T @ slopes, unit, atol=1e-7, rtol=0)


def test_the_values_of_every_game_sum_to_its_worth(sample):
    _, signs, slopes = sample
    full_alone = torch.eye(len(signs), dtype=torch.float64)[0]
    torch.testing.assert_close(slopes.sum(1), full_alone, atol=1e-7, rtol=0)


@pytest.mark.parametrize("players, count", [(5, 16), (6, 30), (8, 60)])
def test_the_estimates_are_the_shapley_values_of_the_expected_game(players, count):
    """The expectation is written down for all coalitions, then come the values by definition.

    It is simple kriging, with a wide prior of the additive part.
    """
    rho, wide = shapley.REACH / players, 1e6
    known, slopes = sampling.by_regression(players, count, generator(0))
    every, _ = sampling.all_coalitions(players)

    def covariance(a, b):
        differ = (a[:, None] != b).sum(2)
        additive = 1 + (2.0 * a.double() - 1) @ (2.0 * b.double() - 1).T
        return ((1 - rho) / (1 + rho)) ** differ + wide * additive

    worth = torch.randn(len(known), dtype=torch.float64, generator=generator(1))
    expected_game = covariance(every, known) @ torch.linalg.solve(covariance(known, known), worth)
    expected = shapley_of_game(expected_game)
    torch.testing.assert_close(worth @ slopes, expected, atol=1e-5, rtol=1e-5)


ESTIMATORS = [sampling.by_regression, sampling.by_least_squares]


@pytest.fixture(scope="module")
def worth():
    """What all coalitions of 9 patches are worth in five images, float64 [5, 512]."""
    images = torch.randn(5, 2, 12, 12, dtype=torch.float64, generator=generator(1))
    return sampling.worth_of_all(two_channel_net(), images, CLASSES, 9)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_with_all_coalitions_both_estimators_are_exact(worth, estimator):
    coalitions, slopes = estimator(9, 2**9, generator(0))
    number = (coalitions * 2 ** torch.arange(9)).sum(1)
    for game in worth:
        expected = shapley_of_game(game)
        torch.testing.assert_close(game[number] @ slopes, expected, atol=1e-10, rtol=1e-8)


@pytest.fixture(scope="module")
def errors(worth):
    """{estimator: its relative errors with 40, 100 and 300 coalitions}."""
    counts = (40, 100, 300)
    return {e: list(sampling.errors(worth, e, counts).values()) for e in ESTIMATORS}


def test_errors_fall_with_the_number_of_coalitions(errors):
    first, second, third = errors[sampling.by_regression]
    assert first > 1.5 * second > 2 * third > 0


def test_errors_are_below_those_of_the_published_regression(errors):
    ours, published = (errors[estimator] for estimator in ESTIMATORS)
    assert all(a < 0.9 * b for a, b in zip(ours, published)), (ours, published)
