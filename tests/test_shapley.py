"""Explainers of Shapley values against exact ones, their estimators against games of known values.

What holds for both is tested of both; the least squares is held to shap's, too.
"""

import inspect
import math

import numpy as np
import pytest
import torch
from placing import DEVICE, agree
from small_models import at_most_images, finite_difference, generator, two_channel_net

import shapley
import shapley_estimators
from shapley import gp_shap, kernel_shap
from shapley_estimators import gaussian_process, least_squares
from studies import sampling

CLASSES = torch.tensor([0, 1, 2, 1, 0], device=DEVICE)
EXPLAINERS = {kernel_shap: least_squares, gp_shap: gaussian_process}
each_explainer = pytest.mark.parametrize("explain", EXPLAINERS)
each_estimator = pytest.mark.parametrize("estimator", EXPLAINERS.values())


@pytest.fixture
def images():
    return torch.randn(5, 2, 12, 12, dtype=torch.float64, generator=generator(1)).to(DEVICE)


@pytest.fixture
def net():
    return two_channel_net()


def shapley_of_game(worth):
    """Shapley values [M] by their definition: the weighted mean of what a player adds.

    worth: float64 [2^M], of the coalition whose binary number is the index.
    """
    players = len(worth).bit_length() - 1
    coalitions, size = (part.to(worth.device) for part in sampling.all_coalitions(players))
    share = [1 / (players * math.comb(players - 1, s)) for s in range(players)]
    share = torch.tensor(share, dtype=torch.float64, device=worth.device)
    values = []
    for player in range(players):
        without = (~coalitions[:, player]).nonzero()[:, 0]
        added = worth[without + 2**player] - worth[without]
        values.append((share[size[without]] * added).sum())
    return torch.stack(values)


def exact_values(net, image, label, patches, baseline):
    """Shapley values [patches, patches] of an image, from all 2^M masked images."""
    masks, _ = sampling.all_coalitions(patches**2)
    worth = worth_of_masks(net, image, label, patches, baseline, masks)
    return shapley_of_game(worth).view(patches, patches)


def worth_of_masks(net, image, label, patches, baseline, masks):
    """Logits [K] of the label, with the patches in masks, bool [K, M], and the baseline else."""
    patch = shapley.patch_of_pixel(patches, *image.shape[1:])
    present = masks[:, patch][:, None].to(image.device)  # [2^M, 1, H, W]
    with torch.no_grad():
        logits = [net(torch.where(part, image, baseline)) for part in present.split(8192)]
    return torch.cat(logits)[:, label]


# ---------------------------------------------------------------- exact values


def test_both_explainers_take_the_same_arguments():
    assert inspect.signature(kernel_shap) == inspect.signature(gp_shap)


@pytest.mark.parametrize(
    "explain, patches", [*((e, p) for e in EXPLAINERS for p in (1, 2, 3)), (kernel_shap, 4)]
)
def test_with_all_coalitions_the_values_are_exact(net, images, patches, explain):
    baseline = images[4] / 3
    found = explain(net, images[:1], CLASSES[:1], patches, 2**patches**2, baseline)
    expected = exact_values(net, images[0], CLASSES[0], patches, baseline)
    torch.testing.assert_close(found[0], expected, atol=1e-10, rtol=1e-8)


@each_explainer
def test_the_values_are_of_the_logit_of_each_images_class(net, images, explain):
    found = explain(net, images, CLASSES, 2, 14)
    for image, label, values in zip(images, CLASSES, found):
        expected = exact_values(net, image, label, 2, torch.zeros((), device=DEVICE).double())
        torch.testing.assert_close(values, expected, atol=1e-10, rtol=1e-8)


@each_explainer
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("coalitions", [33, 64, 200])
def test_the_values_sum_to_the_difference_from_the_baseline(
    images, coalitions, create_graph, explain
):
    """Of a set of baselines, to the difference from the mean of their logits."""
    net, images = two_channel_net(torch.float32), images.float()
    background = torch.randn(7, 2, 12, 12, generator=generator(2)).to(DEVICE)
    values = explain(net, images, CLASSES, 4, coalitions, background, create_graph=create_graph)
    difference = net(images) - net(background).mean(0)
    expected = difference.gather(1, CLASSES[:, None])[:, 0]
    torch.testing.assert_close(values.sum((1, 2)), expected, atol=1e-5, rtol=1e-5)


@each_explainer
def test_the_values_are_those_of_the_explainers_own_estimator(net, images, worth, explain):
    """What its sample says of the game, whose worths are all known."""
    found = explain(net, images, CLASSES, 3, 100, generator=generator(0))
    sample = shapley.Sample(EXPLAINERS[explain], 100, generator(0), False)
    expected = sampling.values_of(worth, *sample.of(9)).view(5, 3, 3)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-10, rtol=1e-8)


def test_without_a_number_there_are_1024_coalitions_and_64_in_training(net, images):
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for create_graph, count in ((False, 1024), (True, 64)):
        sizes.clear()
        gp_shap(net, images[:1], CLASSES[:1], create_graph=create_graph)
        assert sum(sizes) == count + 2  # the full and the empty coalition, too


def test_what_kernelshap_draws_again_is_not_evaluated_again(net, images):
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    for create_graph, count in ((False, 1024), (True, 64)):
        sizes.clear()
        kernel_shap(net, images[:1], CLASSES[:1], create_graph=create_graph)
        assert 0.9 * count <= sum(sizes) <= count + 2


# ---------------------------------------------------------------- patches that are the baseline


@pytest.fixture
def half_empty(images):
    """Two images; of 4x4 patches the upper half, and in the second the third row, are 0.25."""
    images[:, :, :6] = 0.25
    images[1, :, 6:9] = 0.25
    return images[:2]


@each_explainer
def test_a_patch_equal_to_the_baseline_has_no_share(net, half_empty, explain):
    values = explain(net, half_empty, CLASSES[:2], 4, 254, 0.25)
    has_share = [[row.any().item() for row in value] for value in values]
    assert has_share == [[False, False, True, True], [False, False, False, True]]


@each_explainer
def test_a_patch_that_differs_in_one_channel_has_a_share(net, images, explain):
    image = torch.zeros_like(images[:1])
    image[:, 1, :6, :6] = images[:1, 1, :6, :6]
    values = explain(net, image, CLASSES[:1], 2, 14)[0].flatten()
    assert values[0] != 0 and values[1:].tolist() == [0, 0, 0]


@each_explainer
def test_the_sample_is_spent_on_the_other_patches(net, half_empty, explain):
    """Of 8 patches 254 coalitions are all, and the values exact."""
    values = explain(net, half_empty, CLASSES[:2], 4, 254, 0.25)
    lower, _ = sampling.all_coalitions(8)
    masks = torch.cat([torch.zeros_like(lower), lower], 1)
    worth = worth_of_masks(net, half_empty[0], CLASSES[0], 4, 0.25, masks)
    expected = shapley_of_game(worth).view(2, 4)
    torch.testing.assert_close(values[0, 2:], expected, atol=1e-10, rtol=1e-8)


@each_explainer
def test_an_image_that_is_the_baseline_has_a_blank_map(net, images, explain):
    values = explain(net, torch.full_like(images, 0.25), CLASSES, 4, 64, 0.25)
    assert values.shape == (5, 4, 4) and not values.any()


@each_explainer
@pytest.mark.parametrize("create_graph, count", [(False, 4), (True, 16)])
def test_with_a_graph_no_patch_is_left_out_of_the_sample(net, images, create_graph, count, explain):
    """2x2 patches, two of them the baseline: of all coalitions there are 2^2 or 2^4."""
    images[:, :, :6] = 0.25
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    explain(net, images[:1], CLASSES[:1], 2, 14, 0.25, create_graph=create_graph)
    assert sum(sizes) == count


@each_explainer
def test_values_do_not_depend_on_the_other_images_patches(net, images, monkeypatch, explain):
    """Each number of active patches has its own sample, drawn from one seed a call."""
    at_most_images(monkeypatch, 2)
    images[3, :, :3] = 0  # its first row of patches is the baseline

    def values(images):
        seed = generator(3)
        return explain(net, images, CLASSES[: len(images)], 4, 64, generator=seed)

    torch.testing.assert_close(values(images)[:3], values(images[:3]))


@each_explainer
def test_a_blank_image_among_others_changes_no_other_value(net, images, explain):
    with_blank = torch.cat([images[:2], torch.zeros_like(images[:1])])
    found = explain(net, with_blank, CLASSES[:3], 4, 64, generator=generator(3))
    expected = explain(net, images[:2], CLASSES[:2], 4, 64, generator=generator(3))
    torch.testing.assert_close(found[:2], expected)


# ---------------------------------------------------------------- sets of baselines


@each_explainer
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_coalitions_worth_is_the_mean_over_a_set_of_baselines(net, images, create_graph, explain):
    """Of the predictions: that of the baselines' mean is another."""
    background = images[2:]
    found = explain(net, images[:2], CLASSES[:2], 2, 14, background, create_graph=create_graph)
    for image, label, values in zip(images, CLASSES, found):
        by_baseline = [exact_values(net, image, label, 2, baseline) for baseline in background]
        expected = torch.stack(by_baseline).mean(0)
        torch.testing.assert_close(values, expected, atol=1e-10, rtol=1e-8)
        of_mean = exact_values(net, image, label, 2, background.mean(0))
        assert (expected - of_mean).norm() > 0.01 * expected.norm()


@each_explainer
def test_a_set_of_one_baseline_is_that_baseline(net, images, explain):
    found = explain(net, images, CLASSES, 4, 64, images[:1], generator(0))
    assert agree(found, explain(net, images, CLASSES, 4, 64, images[0], generator(0)), 1e-9)


@each_explainer
@pytest.mark.parametrize(
    "upper_half, active", [((0.25, 0.25), 2), ((0.25, 0.5), 4), ((0.5, 0.25), 4)]
)
def test_a_patch_is_left_out_where_it_equals_every_baseline(
    net, images, upper_half, active, explain
):
    """Of 2x2 patches two are 0.25; so many evaluations for each of two baselines."""
    images[:, :, :6] = 0.25
    background = torch.randn(2, 2, 12, 12, dtype=torch.float64, generator=generator(2)).to(DEVICE)
    background[:, :, :6] = torch.tensor(upper_half, device=DEVICE).double().view(-1, 1, 1, 1)
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    values = explain(net, images[:1], CLASSES[:1], 2, 14, background)
    assert sum(sizes) == 2 * 2**active
    assert (values != 0).sum() == active


@each_explainer
def test_an_empty_set_of_baselines_is_refused(net, images, explain):
    with pytest.raises(ValueError, match="one image or more"):
        explain(net, images, CLASSES, 2, 14, images[:0])


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("create_graph", [False, True])
@each_explainer
def test_no_images_have_no_values(net, images, create_graph, explain):
    values = explain(net, images[:0], CLASSES[:0], create_graph=create_graph)
    assert values.shape == (0, 4, 4)


@each_explainer
def test_fewer_coalitions_than_determine_the_values_are_refused(net, images, explain):
    with pytest.raises(ValueError, match="31 coalitions .* 16 patches: 32 or more do"):
        explain(net, images, CLASSES, 4, 31)


@each_explainer
def test_patches_smaller_than_a_pixel_are_refused(net, images, explain):
    with pytest.raises(ValueError, match="13x13 patches do not fit images of 12x12 px"):
        explain(net, images, CLASSES, 13)


@each_explainer
def test_memory_does_not_grow_with_the_number_of_masked_images(net, images, monkeypatch, explain):
    at_most_images(monkeypatch, 16)
    sizes = []
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    explain(net, images.repeat(8, 1, 1, 1), CLASSES.repeat(8), 2, 14, images[:3])
    assert max(sizes) == 16 and sum(sizes) == 40 * 16 * 3


@each_explainer
def test_an_equal_seed_gives_an_equal_sample(net, images, explain):
    first, second = (explain(net, images, CLASSES, 4, 64, generator=generator(0)) for _ in range(2))
    assert torch.equal(first, second)


@each_explainer
@pytest.mark.parametrize("baseline", [0.3, "image"])
def test_an_absent_patch_shows_the_baseline(net, images, baseline, explain):
    shown = images[3] if baseline == "image" else baseline
    found = explain(net, images[:1], CLASSES[:1], 2, 14, shown)[0]
    expected = exact_values(net, images[0], CLASSES[0], 2, shown)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("patches, side", [(4, 12), (4, 30), (3, 7)])
def test_patches_differ_in_height_and_width_by_a_pixel_at_most(patches, side):
    patch = shapley.patch_of_pixel(patches, side, side)
    heights = (patch[:, 0] // patches).bincount()
    assert patch.unique().tolist() == list(range(patches**2))
    assert patch[0].max() == patches - 1  # they are counted along rows
    assert heights.max() - heights.min() <= 1 and torch.equal(patch.T % patches, patch // patches)


# ---------------------------------------------------------------- training through the values


@each_explainer
@pytest.mark.parametrize("baselines", [1, 2])
@pytest.mark.parametrize("layer", ["0", "1", "4", "8"])
def test_the_derivative_in_the_weights_is_the_finite_difference(
    net, images, layer, baselines, explain
):
    """Two nonlinearities and max-pooling follow the first convolution."""
    background = images[3 : 3 + baselines]
    weighting = torch.randn(4, 4, dtype=torch.float64, generator=generator(2)).to(DEVICE)

    def value():
        sample = 40, background, generator(0)
        maps = explain(net, images[:2], CLASSES[:2], 4, *sample, create_graph=True)
        return (torch.tanh(maps) * weighting).sum()

    value().backward()
    weight = net.get_submodule(layer).weight
    flat, slopes = weight.view(-1), weight.grad.view(-1)
    for index in (0, flat.numel() // 2, flat.numel() - 1):
        slope = finite_difference(value, flat, index, 1e-6)
        assert abs(slope - slopes[index]) <= 1e-3 * max(abs(slope), 1e-3)


@each_explainer
def test_training_through_the_values_is_of_first_order(net, images, monkeypatch, explain):
    """No gradient is taken inside: the graph is the model's own."""
    monkeypatch.setattr(torch.autograd, "grad", None)
    assert explain(net, images, CLASSES, 2, create_graph=True).requires_grad


# ---------------------------------------------------------------- which coalitions

sampled_games = pytest.mark.parametrize(
    "players, count", [(4, 9), (7, 123), (9, 509), (16, 128), (16, 1024), (49, 512)]
)


def with_complements(estimator, players, count):
    half, _ = estimator(players, count, generator(0))
    return torch.cat([half, ~half])


@each_estimator
@sampled_games
def test_coalitions_and_their_complements_are_distinct(estimator, players, count):
    coalitions = with_complements(estimator, players, count)
    assert len(coalitions.unique(dim=0)) == len(coalitions) <= count


@sampled_games
def test_the_gaussian_process_has_as_many_as_asked(players, count):
    assert len(with_complements(gaussian_process, players, count)) == 2 * (count // 2)


@each_estimator
@sampled_games
def test_no_coalition_is_empty_or_full(estimator, players, count):
    size = with_complements(estimator, players, count).sum(1)
    assert size.min() > 0 and size.max() < players


@each_estimator
@sampled_games
def test_every_single_player_is_a_coalition(estimator, players, count):
    assert (with_complements(estimator, players, count).sum(1) == 1).sum() == players


@each_estimator
@pytest.mark.parametrize("players", range(1, 7))
def test_all_coalitions_are_there_where_as_many_are_asked(estimator, players):
    coalitions = with_complements(estimator, players, 64)
    assert len(coalitions) == len(coalitions.unique(dim=0)) == max(2**players - 2, 0)


def assert_sizes_are_drawn_by(chance, drawn):
    """chance: {size: in proportion to it}; drawn: bool [K, 40], one of each pair."""
    sizes = drawn.sum(1)
    for largest in (10, 15):  # sizes up to it, or within it of all players
        rare = sum(chance[s] for s in chance if min(s, 40 - s) <= largest) / sum(chance.values())
        share = (torch.minimum(sizes, 40 - sizes) <= largest).double().mean().item()
        assert share == pytest.approx(rare, abs=0.03)


def test_the_gaussian_process_draws_sizes_in_proportion_to_members_times_others():
    drawn, _ = gaussian_process(40, 5000, generator(0))
    assert_sizes_are_drawn_by({s: s * (40 - s) for s in range(2, 39)}, drawn[40:])


def test_least_squares_draws_sizes_by_the_kernel():
    """Sizes 1, 2, 38 and 39 are enumerated: 820 pairs."""
    drawn, _ = least_squares(40, 5000, generator(0))
    assert_sizes_are_drawn_by({s: 1 / (s * (40 - s)) for s in range(3, 38)}, drawn[820:])


@pytest.mark.parametrize(
    "count, sizes", [(32, [1]), (64, [1]), (271, [1]), (272, [1, 2]), (1024, [1, 2])]
)
def test_small_coalitions_are_enumerated_while_they_fit(count, sizes):
    """Of 16 players 16 coalitions have one member and 120 have two, and as many all but so many."""
    coalitions, _ = shapley_estimators.kernel_sample(16, count, generator(0))
    size = torch.minimum(coalitions.sum(1), (~coalitions).sum(1))
    whole = [s for s in range(1, 9) if (size == s).sum() == math.comb(16, s)]
    assert whole == sizes
    assert len(coalitions) <= count // 2


# ---------------------------------------------------------------- KernelSHAP's weights


def test_the_kernels_weights_of_four_and_five_players_by_hand():
    """(M - 1) / (s (M - s)) of each size s, the sizes s and M - s together."""
    assert shapley_estimators.kernel_of_sizes(4).tolist() == [1 + 1, 3 / 4]
    assert shapley_estimators.kernel_of_sizes(5).tolist() == [1 + 1, 4 / 6 + 4 / 6]


@pytest.mark.parametrize("players, count", [(6, 50), (16, 64), (16, 1024), (49, 512)])
def test_all_coalitions_together_weigh_what_the_kernel_does(players, count):
    """However many are drawn: sum over all sizes s of (M - 1) / (s (M - s))."""
    _, weights = shapley_estimators.kernel_sample(players, count, generator(0))
    kernel = sum((players - 1) / (s * (players - s)) for s in range(1, players))
    assert 2 * weights.sum().item() == pytest.approx(kernel)


@pytest.mark.parametrize("players, count, sizes", [(6, 50, 2), (16, 64, 1), (16, 1024, 2)])
def test_an_enumerated_coalition_has_the_kernels_own_weight(players, count, sizes):
    coalitions, weights = shapley_estimators.kernel_sample(players, count, generator(0))
    number = sum(math.comb(players, s) for s in range(1, sizes + 1))
    for coalition, weight in zip(coalitions[:number], weights[:number]):
        s = int(coalition.sum())
        own = (players - 1) / (math.comb(players, s) * s * (players - s))
        assert weight.item() == pytest.approx(own)


def test_drawn_coalitions_share_the_rest_equally_counting_repeats():
    """Of 6 players 42 coalitions are enumerated; 4 pairs of the 10 of three players are drawn."""
    repeated = 0
    for seed in range(20):
        _, weights = shapley_estimators.kernel_sample(6, 50, generator(seed))
        shares = weights[21:] / ((5 / 9) / (2 * 4))  # of what all of three players weigh
        torch.testing.assert_close(shares, shares.round())
        assert shares.sum().item() == pytest.approx(4)
        repeated += bool((shares.round() > 1).any())
    assert 0 < repeated < 20


# ---------------------------------------------------------------- KernelSHAP's solution


def constrained_least_squares(members, weights, worth, empty, full):
    """Values [M] that minimise the weighted squares and add up to full - empty.

    The last player's value is what the others leave of the sum. members: [K, M]; worth: [K].
    """
    z = members.double()
    root = weights.sqrt()[:, None]
    others = z[:, :-1] - z[:, -1:]
    left = worth - empty - z[:, -1] * (full - empty)
    values = torch.linalg.lstsq(root * others, root * left[:, None]).solution[:, 0]
    return torch.cat([values, (full - empty - values.sum())[None]])


@pytest.mark.parametrize("players, count", [(5, 10), (9, 100), (16, 64), (49, 512)])
def test_the_values_minimise_the_weighted_squares(players, count):
    half, weights = shapley_estimators.kernel_sample(players, count, generator(0))
    slopes = shapley_estimators.least_squares_slopes(half, weights)
    worth, complements = torch.randn(2, 1 + len(half), dtype=torch.float64, generator=generator(1))
    expected = constrained_least_squares(
        torch.cat([half, ~half]),
        weights.repeat(2),
        torch.cat([worth[1:], complements[1:]]),
        empty=complements[0],
        full=worth[0],
    )
    torch.testing.assert_close((worth - complements) @ slopes, expected, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("players", [2, 3, 4, 7, 10])
def test_the_kernels_weights_of_all_coalitions_give_exact_values(players):
    """Lundberg and Lee, theorem 2."""
    every, size = sampling.all_coalitions(players)
    half = every[1:-1:2]  # with the first player
    kernel = [
        (players - 1) / (math.comb(players, s) * s * (players - s)) for s in range(1, players)
    ]
    weights = torch.tensor([0, *kernel, 0], dtype=torch.float64)[size[1:-1:2]]
    slopes = shapley_estimators.least_squares_slopes(half, weights)
    worth = torch.randn(2**players, dtype=torch.float64, generator=generator(1))
    found = sampling.values_of(worth[None], half, slopes)[0]
    torch.testing.assert_close(found, shapley_of_game(worth), atol=1e-10, rtol=1e-8)


@pytest.fixture
def shap_explains():
    """Function (worth, count): shap's KernelExplainer after it explained a game, and the values.

    worth: float64 [2^M] of every coalition.
    """
    shap = pytest.importorskip("shap")

    def explained(worth, count):
        players = len(worth).bit_length() - 1

        def function(masks):
            number = (torch.from_numpy(masks).long() * 2 ** torch.arange(players)).sum(1)
            return worth[number].numpy()

        explainer = shap.KernelExplainer(function, np.zeros((1, players)))
        everyone = np.ones((1, players))
        values = explainer.shap_values(everyone, nsamples=count, l1_reg=False, silent=True)
        return explainer, torch.from_numpy(values[0])

    return explained


def test_with_all_coalitions_the_values_are_shaps(net, images, worth, shap_explains):
    values = kernel_shap(net, images, CLASSES, 3, 2**9)
    for game, found in zip(worth, values):
        _, expected = shap_explains(game, 2**9)
        torch.testing.assert_close(found.flatten().cpu(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("count", [60, 100, 300])
def test_from_the_same_sample_the_values_are_shaps(worth, shap_explains, count):
    """Of shap's coalitions and weights, which are alike for complements."""
    np.random.seed(0)
    for game in worth:
        explainer, expected = shap_explains(game, count)
        members, weights = (
            torch.from_numpy(x) for x in (explainer.maskMatrix, explainer.kernelWeights)
        )
        with_first = members[:, 0] == 1
        half, weights = members[with_first].bool(), weights[with_first]
        assert 2 * len(half) == count
        slopes = shapley_estimators.least_squares_slopes(half, weights)
        found = sampling.values_of(game[None], half, slopes)[0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("count", [60, 100, 300])
def test_of_our_sample_shaps_solution_is_ours(worth, shap_explains, count):
    half, weights = shapley_estimators.kernel_sample(9, count, generator(0))
    slopes = shapley_estimators.least_squares_slopes(half, weights)
    members = torch.cat([half, ~half])
    number = (members * 2 ** torch.arange(9)).sum(1)
    for game in worth:
        explainer, _ = shap_explains(game, count)
        explainer.maskMatrix, explainer.ey = members.double().numpy(), game[number, None].numpy()
        explainer.kernelWeights = weights.repeat(2).numpy()
        expected, _ = explainer.solve(1.0, 0)
        found = sampling.values_of(game[None], half, slopes)[0]
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------- both estimators

GAMES = [(5, 10), (9, 40), (16, 64), (49, 512), (196, 1024)]
SAMPLES = [(estimator, *game) for estimator in EXPLAINERS.values() for game in GAMES]


@pytest.fixture(params=SAMPLES, ids=lambda s: f"{s[0].__name__}-{s[1]}-{s[2]}")
def sample(request):
    """(players, signs float64 [1 + K, M] of the known coalitions, their slopes [1 + K, M])."""
    estimator, players, count = request.param
    coalitions, slopes = estimator(players, count, generator(0))
    full = torch.ones(1, players, dtype=torch.bool)
    signs = 2.0 * torch.cat([full, coalitions]).double() - 1
    return players, signs, slopes


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
def test_the_gaussian_processs_values_are_those_of_the_expected_game(players, count):
    """The expectation is written down for all coalitions, then come the values by definition.

    It is simple kriging, with a wide prior of the additive part.
    """
    rho, wide = shapley_estimators.REACH / players, 1e6
    half, slopes = gaussian_process(players, count, generator(0))
    full = torch.ones(1, players, dtype=torch.bool)
    known = torch.cat([full, half, ~full, ~half])
    every, _ = sampling.all_coalitions(players)

    def covariance(a, b):
        differ = (a[:, None] != b).sum(2)
        additive = 1 + (2.0 * a.double() - 1) @ (2.0 * b.double() - 1).T
        return ((1 - rho) / (1 + rho)) ** differ + wide * additive

    worth = torch.randn(len(known), dtype=torch.float64, generator=generator(1))
    expected_game = covariance(every, known) @ torch.linalg.solve(covariance(known, known), worth)
    expected = shapley_of_game(expected_game)
    with_players, without = worth.chunk(2)
    found = (with_players - without) @ slopes
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def worth():
    """What all coalitions of 9 patches are worth in `images`, float64 [5, 512]."""
    images = torch.randn(5, 2, 12, 12, dtype=torch.float64, generator=generator(1)).to(DEVICE)
    return sampling.worth_of_all(two_channel_net(), images, CLASSES, 9)


@each_estimator
def test_with_all_coalitions_both_estimators_are_exact(worth, estimator):
    values = sampling.values_of(worth, *estimator(9, 2**9, generator(0)))
    for game, found in zip(worth, values):
        torch.testing.assert_close(found, shapley_of_game(game), atol=1e-10, rtol=1e-8)


@pytest.fixture(scope="module")
def errors(worth):
    """{estimator: its relative errors with 40, 100 and 300 coalitions}."""
    counts = (40, 100, 300)
    return {e: [*sampling.errors(worth, e, counts).values()] for e in EXPLAINERS.values()}


@each_estimator
def test_errors_fall_with_the_number_of_coalitions(errors, estimator):
    first, second, third = errors[estimator]
    assert first > 1.2 * second > 2 * third > 0


def test_the_gaussian_processs_errors_are_below_the_least_squares(errors):
    pairs = zip(errors[gaussian_process], errors[least_squares])
    assert all(ours < 0.9 * published for ours, published in pairs), errors
