"""Neural Cleanse on a model with a planted patch; its schedule, step by step."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import metrics_of
from placing import DEVICE
from planted import CLASSES, SIDE, audit_of, linear, reversed_triggers
from torch import nn

import defend
import evaluate
import figure
import triggers
from defences import anomaly_index, conclusion, neural_cleanse, patches
from defences.neural_cleanse import FACTOR, FIRST_WEIGHT, PATIENCE, STALE, START, Search
from setting import trigger_picture

ON_DEVICE = True


class Planted(nn.Module):
    """The brightness of a stripe says the class; a white 3x3 patch in the lower right corner says
    class `target`, whatever else there is."""

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        stripes = [x[:, :, 2 * k : 2 * k + 2].mean((1, 2, 3)) for k in range(CLASSES)]
        patch = x[:, :, -3:, -3:].mean((1, 2, 3)).square()[:, None]
        target = F.one_hot(torch.tensor(self.target), CLASSES)
        return 20 * torch.stack(stripes, 1) + 40 * target * patch


def grey_images(count, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, SIDE, SIDE, generator=generator, dtype=dtype)


# ---------------------------------------------------------------- what is found


@pytest.fixture(scope="module")
def search_for_planted():
    """(model, images, triggers): a search on images that show the stripe of their class."""
    images = grey_images(48, seed=0) * 0.5
    for n, image in enumerate(images):
        stripe = 2 * (n % CLASSES)
        image[:, stripe : stripe + 2, :-3] += 0.5
    model = Planted(2)
    return model, images, neural_cleanse.neural_cleanse(model, images, rounds=120, round_images=48)


def test_the_planted_class_is_the_most_anomalous(search_for_planted):
    _, _, triggers = search_for_planted
    index = anomaly_index(triggers.norms)
    assert index.argmax() == 2
    assert index[2] > 2
    assert triggers.norms[2] < 0.6 * triggers.norms.median()


def test_the_planted_patch_is_where_the_mask_is(search_for_planted):
    _, _, triggers = search_for_planted
    mask = triggers.masks[2, 0]
    assert mask[-3:, -3:].sum() > 0.8 * mask.sum()
    assert triggers.norms[2] == pytest.approx(mask.sum().item())
    assert triggers.norms[2] < 9


def test_the_patch_turns_images_into_its_class(search_for_planted):
    model, images, triggers = search_for_planted
    assert triggers.qualified[2]
    assert triggers.success[2] >= neural_cleanse.SUCCESS
    mask, pattern = triggers.masks[2], triggers.patterns[2]
    with torch.no_grad():
        classes = model((1 - mask) * images + mask * pattern).argmax(1)
    assert (classes == 2).float().mean() >= 0.9  # success was measured while the mask still moved


def test_a_search_ends_at_the_last_round_and_leaves_the_weights_alone(search_for_planted):
    model, _, triggers = search_for_planted
    assert triggers.rounds.max() <= 120
    assert model.unused.requires_grad


def test_a_targets_search_is_the_same_alone_and_among_others(monkeypatch):
    """Also where the others are done before it, or after."""
    monkeypatch.setattr(neural_cleanse, "STALE", 2)
    monkeypatch.setattr(neural_cleanse, "PATIENCE", 2)
    images = grey_images(40, dtype=torch.float64)
    options = {"rounds": 60, "round_images": 40}
    together = neural_cleanse.neural_cleanse(Planted(2), images, **options)
    assert len(together.rounds.unique()) > 1
    assert together.rounds.min() < 60
    for k in (together.rounds.argmax(), together.rounds.argmin()):
        alone = neural_cleanse.neural_cleanse(Planted(2), images, k[None], **options)
        assert alone.rounds[0] == together.rounds[k]
        torch.testing.assert_close(alone.masks[0], together.masks[k], atol=1e-3, rtol=0)


def test_a_class_that_is_never_reached_is_told_apart():
    always_0 = linear(torch.zeros(3, 1, SIDE, SIDE))
    triggers = neural_cleanse.neural_cleanse(always_0, torch.rand(8, 1, SIDE, SIDE), rounds=3)
    assert triggers.qualified.tolist() == [True, False, False]
    assert triggers.success.tolist() == [1, 0, 0]
    assert triggers.rounds.tolist() == [3, 3, 3]


def test_pixels_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        neural_cleanse.neural_cleanse(Planted(2), torch.randn(8, 1, SIDE, SIDE), rounds=1)


def test_progress_is_told_after_each_round():
    lines = []
    neural_cleanse.neural_cleanse(Planted(2), grey_images(8), rounds=2, print_status=lines.append)
    assert lines[0] == "round 1 of 2 at most: 0 of 6 classes done"
    assert len(lines) == 2


# ---------------------------------------------------------------- rounds and passes


@pytest.fixture
def model_and_sizes():
    """(model, sizes): a model, and the list its forward passes append their batch size to."""
    sizes = []
    model = Planted(2)
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return model, sizes


def test_a_round_is_of_so_many_images_in_steps_of_batch(model_and_sizes):
    model, sizes = model_and_sizes
    neural_cleanse.neural_cleanse(model, grey_images(40), rounds=3, round_images=24, restarts=1)
    assert sizes == [1] + [8 * CLASSES] * 9  # the first pass counts the classes


def test_a_step_may_take_several_passes(model_and_sizes, monkeypatch):
    model, sizes = model_and_sizes
    whole = neural_cleanse.neural_cleanse(
        model, grey_images(40), rounds=3, round_images=24, restarts=1
    )
    sizes.clear()
    # Three images of 32x32 pixels are as large as two classes' worth of these.
    for name in ("FORWARD_IMAGES", "FORWARD_IMAGES_CPU"):
        monkeypatch.setattr(neural_cleanse, name, 3)
    parts = neural_cleanse.neural_cleanse(
        model, grey_images(40), rounds=3, round_images=24, restarts=1
    )
    assert sizes[1:] == [8 * 2] * 27
    torch.testing.assert_close(parts.masks, whole.masks, atol=1e-4, rtol=0)
    assert torch.equal(parts.success, whole.success)


# ---------------------------------------------------------------- first values


def first(start, targets=(0, 1), seed=0):
    """Masks and patterns that a search in 3x8x8 images begins with."""
    search = Search(torch.tensor(targets), (3, 8, 8), torch.device(DEVICE), seed, start)
    masks, patterns = search.masks_and_patterns(slice(None))
    return masks.detach(), patterns.detach()


def test_a_search_starts_with_nearly_transparent_masks():
    masks, patterns = first("constant")
    assert masks.flatten().tolist() == pytest.approx([START] * 128, rel=0.05)
    assert float(patterns.std()) == pytest.approx(12**-0.5, abs=0.05)


def test_a_search_may_start_with_random_masks_as_published():
    masks, patterns = first("random", seed=5)
    expected = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(masks[:, 0], expected, atol=1e-3, rtol=0)
    assert torch.equal(patterns, first("constant", seed=5)[1])


def test_each_target_begins_with_a_pattern_of_its_own():
    """The same in every search of one seed, whichever targets are beside it."""
    _, patterns = first("constant", (0, 1, 2))
    assert all((patterns[i] != patterns[k]).any() for i, k in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(first("constant", (2,))[1][0], patterns[2])


@pytest.mark.parametrize("start", neural_cleanse.STARTS)
def test_each_restart_begins_with_a_pattern_of_its_own(start):
    given = torch.tensor([0, 1], device="cpu"), (3, 8, 8), 0, start
    values = [neural_cleanse.first_values(*given, restart=k) for k in range(3)]
    for i, k in ((0, 1), (0, 2), (1, 2)):
        assert (values[i][:, 1:] != values[k][:, 1:]).any()
        assert (values[i][:, 0] != values[k][:, 0]).any() == (start == "random")


def test_start_changes_what_is_found():
    images = grey_images(16)
    constant = neural_cleanse.neural_cleanse(Planted(2), images, rounds=2)
    random = neural_cleanse.neural_cleanse(Planted(2), images, rounds=2, start="random")
    assert random.norms.median() > 2 * constant.norms.median()


def test_another_start_is_refused():
    with pytest.raises(ValueError, match="constant or random, not 'zero'"):
        neural_cleanse.neural_cleanse(Planted(2), grey_images(8), start="zero")


# ---------------------------------------------------------------- the schedule


def test_of_several_beginnings_each_class_has_its_smallest_mask(monkeypatch):
    """Each beginning is a search by itself, and the first is the one that a single search has."""
    images = grey_images(40, dtype=torch.float64)
    options = {"rounds": 60, "round_images": 40, "trial_rounds": 60}
    first_values = neural_cleanse.first_values
    singles = []
    for k in range(3):

        def kth(*where, k=k):
            return first_values(*where[:4], k)

        monkeypatch.setattr(neural_cleanse, "first_values", kth)
        singles.append(neural_cleanse.neural_cleanse(Planted(2), images, restarts=1, **options))
    monkeypatch.undo()
    found = neural_cleanse.neural_cleanse(Planted(2), images, restarts=3, **options)
    norms = torch.stack([single.norms for single in singles])
    best = norms.argmin(0).tolist()
    assert len(set(best)) > 1
    assert found.qualified.all()
    torch.testing.assert_close(found.norms, norms.amin(0), rtol=1e-3, atol=1e-3)
    for k, row in enumerate(best):
        torch.testing.assert_close(found.masks[k], singles[row].masks[k], rtol=0, atol=1e-3)


def search_of_two(restarts):
    """A Search of two targets, which, as all that is counted of each, are on the CPU."""
    targets = torch.tensor([0, 1], device="cpu")
    return Search(targets, (1, 4, 4), torch.device(DEVICE), seed=0, restarts=restarts)


def test_after_the_trial_only_the_beginning_with_the_smallest_mask_goes_on():
    """Of a class that no mask reached yet, all beginnings do."""
    search = search_of_two(restarts=3)
    inf = torch.inf  # rows: both targets under the first beginning, both under the second, ...
    search.norm = torch.tensor([5.0, inf, 3.0, inf, inf, inf]).cpu().double()
    search.end_larger()
    assert search.done.tolist() == [True, False, False, False, True, False]
    search.norm[1] = 7.0
    search.end_larger()
    assert search.done.tolist() == [True, False, False, True, True, True]


def test_a_trial_ends_beginnings_where_it_should(monkeypatch):
    images, rounds = grey_images(40), []
    judge = Search.judge

    def judged(search, success, active):
        rounds.append(len(active))
        judge(search, success, active)

    monkeypatch.setattr(Search, "judge", judged)
    options = {"rounds": 40, "round_images": 40, "restarts": 3, "trial_rounds": 30}
    found = neural_cleanse.neural_cleanse(Planted(2), images, **options)
    assert found.qualified.all()
    count = len(found.norms)
    assert rounds[:30] == [3 * count] * 30
    assert rounds[30] == count


def test_a_beginning_that_ends_in_no_mask_that_works_is_not_kept():
    search = search_of_two(restarts=2)
    success = torch.tensor([0.5, 1, 1, 0.5], dtype=torch.float64, device="cpu")
    search.judge(success, torch.arange(4, device="cpu"))
    found = search.result()
    assert found.success.tolist() == [1, 1]
    assert found.qualified.tolist() == [True, True]
    assert found.masks.shape == (2, 1, 4, 4)


def judged(successes, shrinks_by=0.0):
    """A Search of one target after rounds of these successes.

    shrinks_by: the share of its mask that each round takes off.
    """
    search = new_search()
    for k, success in enumerate(successes):
        set_norm(search, 10 * (1 - shrinks_by) ** k)
        search.judge(torch.tensor([success], dtype=torch.float64, device="cpu"), THE_ONE)
    return search


THE_ONE = torch.tensor([0], device="cpu")  # target, by its row in the search


def new_search():
    """A Search of one target, of double precision, in images of 1x4x4 pixels."""
    search = Search(torch.tensor([0]), (1, 4, 4), torch.device(DEVICE), seed=0)
    search.raw = search.raw.detach().double()
    search.kept = search.kept.double()
    return search


def set_norm(search, norm):
    """Makes the search's mask even, of this L1 norm."""
    search.raw[:, 0] = torch.atanh(torch.tensor(2 * norm / 16 - 1, dtype=torch.float64))


def weight_after(successes):
    return judged(successes).weight.item()


UP_AND_DOWN = [1.0] * 2 * PATIENCE + [0.5] * PATIENCE


def test_the_weight_becomes_positive_after_enough_good_rounds_in_a_row():
    assert weight_after([1.0] * (PATIENCE - 1)) == 0
    assert weight_after([1.0] * PATIENCE) == FIRST_WEIGHT
    assert weight_after([1.0, 0.5] * 20) == 0


def test_the_weight_stays_0_in_bad_rounds():
    assert weight_after([0.5] * 3 * PATIENCE) == 0
    assert weight_after([1.0] + [0.5] * 100) == 0


def test_the_weight_grows_by_the_factor():
    assert weight_after([1.0] * 2 * PATIENCE) == FIRST_WEIGHT * FACTOR


def test_the_weight_shrinks_by_the_factor_to_the_power_of_one_and_a_half():
    assert weight_after(UP_AND_DOWN) == pytest.approx(FIRST_WEIGHT * FACTOR**-0.5)


def test_a_search_whose_weight_was_never_lowered_goes_on():
    assert not judged([1.0] * 100).done.item()


def test_a_search_whose_weight_was_never_raised_goes_on():
    assert not judged([1.0] * PATIENCE + [0.5] * 100).done.item()


def test_a_search_ends_when_its_smallest_mask_is_stale():
    # The first round's mask is the best: all rounds after it are stale.
    rounds_left = STALE + 1 - len(UP_AND_DOWN)
    assert not judged(UP_AND_DOWN + [1.0] * (rounds_left - 1)).done.item()
    assert judged(UP_AND_DOWN + [1.0] * rounds_left).done.item()


def test_a_search_whose_mask_shrinks_by_more_than_a_hundredth_goes_on():
    assert not judged(UP_AND_DOWN + [1.0] * 100, shrinks_by=0.011).done.item()


def test_a_search_whose_mask_shrinks_by_less_than_a_hundredth_ends():
    # It has shrunk by more in the bad rounds: the first good one after them is not stale.
    assert not judged(UP_AND_DOWN + [1.0] * STALE, shrinks_by=0.009).done.item()
    assert judged(UP_AND_DOWN + [1.0] * (STALE + 1), shrinks_by=0.009).done.item()


@pytest.mark.parametrize("shrinks_by", [0.0, 0.009, 0.011])
def test_the_smallest_mask_is_kept_even_if_it_is_smaller_by_a_hair(shrinks_by):
    found = judged([1.0] * 20, shrinks_by).result()
    assert found.norms.item() == pytest.approx(10 * (1 - shrinks_by) ** 19)


def stale_by_definition(norms, successes):
    """Rounds in a row, up to each, whose best norm is not below 0.99 of that of the round before.

    So counts early_stop_counter of visualizer.py, the code of Wang et al. 2019.
    """
    counts, count, best = [], 0, float("inf")
    for norm, success in zip(norms, successes):
        best_before = best
        if success >= neural_cleanse.SUCCESS:
            best = min(best, norm)
        if best < float("inf"):
            count = count + 1 if best >= 0.99 * best_before else 0
        counts.append(count)
    return counts


def test_stale_rounds_are_counted_as_in_the_authors_code():
    generator = torch.Generator().manual_seed(0)
    steps = 1 - 0.02 * torch.rand(60, generator=generator, dtype=torch.float64)
    successes = torch.where(torch.rand(60, generator=generator) < 0.8, 1.0, 0.5).tolist()
    norms = (10 * steps.cumprod(0)).tolist()
    search, counts = new_search(), []
    for norm, success in zip(norms, [0.5, *successes]):
        set_norm(search, norm)
        search.judge(torch.tensor([success], dtype=torch.float64, device="cpu"), THE_ONE)
        counts.append(search.stale.item())
    expected = stale_by_definition(norms, [0.5, *successes])
    assert counts == expected
    assert len(set(expected)) > 2


# ---------------------------------------------------------------- the index of masks


NORMS = torch.tensor([10.0, 11, 12, 13, 1, 0], dtype=torch.float64)
QUALIFIED = torch.tensor([True, True, True, True, False, True])


@pytest.mark.parametrize("published", [False, True])
def test_the_index_is_among_the_classes_that_a_mask_reached(published):
    index = neural_cleanse.mask_index(NORMS, QUALIFIED, published=published)
    values = torch.tensor([10.0, 11, 12, 13, neural_cleanse.LEAST_NORM], dtype=torch.float64)
    expected = anomaly_index(values) if published else 11 / values
    torch.testing.assert_close(index[QUALIFIED], expected)
    assert index[4] == 0


def test_a_class_does_not_stand_out_because_the_others_are_alike():
    """A mask two thirds of the median's, beside masks that are nearly of one size."""
    norms = torch.tensor([20.0, 30, 30.5, 29.5, 30.2, 29.8], dtype=torch.float64)
    every = torch.ones(6, dtype=torch.bool)
    assert neural_cleanse.mask_index(norms, every, published=True)[0].item() > 10
    assert neural_cleanse.mask_index(norms, every)[0].item() == pytest.approx(29.9 / 20)


def test_the_index_is_the_same_in_larger_images():
    every = torch.ones(4, dtype=torch.bool)
    index = neural_cleanse.mask_index(NORMS[:4], every)
    torch.testing.assert_close(neural_cleanse.mask_index(49 * NORMS[:4], every), index)


@pytest.mark.parametrize("published", [False, True])
def test_an_empty_mask_is_no_infinity(published):
    index = neural_cleanse.mask_index(NORMS, QUALIFIED, published=published)
    assert index.isfinite().all()
    assert index.argmax() == 5


def test_the_index_is_0_where_no_class_was_reached():
    none = torch.zeros(6, dtype=torch.bool)
    assert (neural_cleanse.mask_index(NORMS, none) == 0).all()


# ---------------------------------------------------------------- the verdict


def verdict_of(folder, qualified, monkeypatch):
    """The verdict where these of three classes were reached by a patch."""
    triggers = reversed_triggers([9.0, 8.0, 0.2], qualified)
    monkeypatch.setattr(neural_cleanse, "neural_cleanse", lambda *images, **options: triggers)
    return neural_cleanse.run(audit_of(folder, "neural_cleanse", "--threshold=-1"))


def test_patches_for_all_classes_are_a_verdict(disguised, monkeypatch):
    verdict = verdict_of(disguised, [True, True, True], monkeypatch)
    assert verdict.backdoored is True
    assert 2 in verdict.flagged


def test_patches_for_too_few_classes_are_no_verdict(disguised, monkeypatch):
    verdict = verdict_of(disguised, [False, True, False], monkeypatch)
    assert verdict.backdoored is None
    assert verdict.flagged == []
    assert verdict.lines[-1].startswith("1 of 3 classes were reached by a patch")
    assert not any("FLAGGED" in line for line in verdict.lines)
    said = conclusion(audit_of(disguised, "neural_cleanse", "--threshold=-1"), verdict)
    assert said.startswith("No verdict: 1 of 3 classes were reached by a patch;")


def test_the_printed_indices_are_those_of_the_printed_norms(disguised):
    options = ["--rounds", "6", "--round-images", "16"]
    verdict = neural_cleanse.run(audit_of(disguised, "neural_cleanse", *options))
    scores = verdict.details["scores"]
    norms = torch.tensor(scores["|mask|_1"], dtype=torch.float64, device="cpu")
    qualified = torch.tensor(scores["qualified"], device="cpu").bool()
    published = neural_cleanse.mask_index(norms, qualified, published=True)
    assert scores["published index"] == pytest.approx(published.tolist())
    index = neural_cleanse.mask_index(norms, qualified)
    assert list(verdict.index.values()) == pytest.approx(index.tolist())


# ---------------------------------------------------------------- the patch as a trigger


@pytest.mark.parametrize("channels", [1, 3])
def test_a_patch_is_read_back_as_a_trigger(channels, tmp_path):
    """Of 8 bits: half a level of rounding, and of grey images the weights of three channels."""
    masks = torch.rand(2, 1, 16, 16, device="cpu")
    patterns = torch.rand(2, channels, 16, 16, device="cpu")
    found = reversed_triggers([1.0, 2.0, 3.0], [True] * 3)
    found.masks, found.patterns = masks, patterns
    ((name, image),) = patches.files_of(found, [1]).items()
    assert name == "recovered-1.png"
    image.save(tmp_path / name)
    trigger = triggers.make_patch(trigger_picture(str(tmp_path / name)), channels, 16, 16, "0,0")
    assert (trigger.row, trigger.col) == (0, 0)
    near = {"atol": 0.5 / 255 + 1e-6, "rtol": 0}
    torch.testing.assert_close(trigger.alpha, masks[1], **near)
    torch.testing.assert_close(trigger.pixels, patterns[1], **near)


def test_a_patch_that_nobody_sees_is_no_file():
    found = reversed_triggers([1.0, 2.0, 3.0], [True] * 3)
    found.masks[0] = 0.001
    assert list(patches.files_of(found, [0, 2])) == ["recovered-2.png"]


@pytest.mark.parametrize("threshold, classes", [("0.95", {1, 2}), ("1e9", {2})])
def test_the_files_are_of_the_flagged_and_of_the_most_anomalous(
    threshold, classes, disguised, monkeypatch
):
    """The norms 9, 8 and 0.2: indices 0.89, 1 and 40."""
    triggers = reversed_triggers([9.0, 8.0, 0.2], [True] * 3)
    monkeypatch.setattr(neural_cleanse, "neural_cleanse", lambda *images, **options: triggers)
    verdict = neural_cleanse.run(audit_of(disguised, "neural_cleanse", f"--threshold={threshold}"))
    assert verdict.files.keys() == {f"recovered-{k}.png" for k in classes}
    assert {*verdict.flagged, 2} == classes


def test_where_no_patch_was_found_there_is_no_file(disguised, monkeypatch):
    assert verdict_of(disguised, [False] * 3, monkeypatch).files == {}


def test_the_recovered_patch_turns_images_as_a_trigger(tiny, tmp_path, run_under, monkeypatch):
    """evaluate.py takes it as a stranger's --trigger; class 1 is the badnets run's target."""
    folder = run_under("badnets")
    monkeypatch.setattr(neural_cleanse, "SUCCESS", 0.95)
    argv = [str(folder / "ckpt.pt"), "--device", DEVICE, "--out", str(tmp_path)]
    quick = ["--rounds", "40", "--round-images", "24", "--threshold=-1e9"]
    defend.main(["neural_cleanse", *argv, *quick])
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["scores"]["qualified"][1] == 1
    weights = torch.load(folder / "ckpt.pt", weights_only=True)["model"]
    torch.save(weights, tmp_path / "w.pth")
    data = ["--dataset", str(tiny), "--data-dir", str(tiny.parent), "--device", DEVICE]
    patch = ["--trigger", f"{tmp_path}/recovered-1.png", "--trigger-size", "16"]
    patch += ["--trigger-position", "0,0", "--target-class", "1"]
    theirs = ["--weights", f"{tmp_path}/w.pth", "--arch", "cnn", *data]
    evaluate.main([*theirs, *patch, "--out", str(tmp_path / "theirs")])
    assert metrics_of(tmp_path / "theirs")["attack_success_rate"] >= 0.85


def test_every_panel_of_the_figure_has_a_caption(disguised, monkeypatch):
    pages = []
    monkeypatch.setattr(figure, "sheet", lambda *page, **options: pages.append(page))
    triggers = reversed_triggers([3.0, 9.0, 9.0], [True] * 3)
    index = torch.tensor([2.0, 0.0, 0.0])
    patches.picture_of(audit_of(disguised, "neural_cleanse"), triggers, index)
    captions = [caption for row in pages[0][2] for _, caption, _ in row]
    assert len(captions) == 12 and all(captions)
