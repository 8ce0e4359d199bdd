"""Pruning on planted channels, and what the verdict prunes by."""

import pytest
import torch
from placing import DEVICE
from planted import audit_of, reversed_triggers
from torch import nn

import checkpoints
import hooks
from defences import neural_cleanse, prune
from edited import keep_channels

ON_DEVICE = True

# ---------------------------------------------------------------- channels and steps


@pytest.fixture
def images():
    return torch.rand(7, 1, 8, 8)


@pytest.fixture
def planted_channel():
    """A model whose channel 3 responds most; its convolution's ReLU is module 1."""
    layers = [nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 64, 3)]
    model = nn.Sequential(*layers).to(DEVICE).eval().requires_grad_(False)
    model[0].weight.data[3] = 4.0
    return model


@pytest.fixture
def steps(planted_channel, images):
    return prune.prune_steps(prune.channel_scores(planted_channel, images, "1"))


@pytest.mark.parametrize(
    "norm, of_maps",
    [
        ("linf", lambda maps: maps.amax((2, 3))),
        ("l1", lambda maps: maps.sum((2, 3))),
        ("l2", lambda maps: maps.flatten(2).norm(dim=2)),
    ],
)
def test_channel_scores_are_means_of_norms(planted_channel, images, norm, of_maps):
    expected = of_maps(planted_channel[:2](images)).double().mean(0).cpu()
    scores = prune.channel_scores(planted_channel, images, planted_channel[1], norm)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", prune.NORMS)
def test_a_channel_responds_as_much_with_its_sign_changed(planted_channel, images, norm):
    scores = prune.channel_scores(planted_channel, images, "0", norm)
    for parameter in planted_channel[0].parameters():
        parameter.data.neg_()
    changed = prune.channel_scores(planted_channel, images, "0", norm)
    torch.testing.assert_close(changed, scores)


def test_feature_maps_that_are_not_finite_are_refused(planted_channel, images):
    planted_channel[0].weight.data[2] = torch.nan
    with pytest.raises(ValueError, match="7 of 7 maps are not finite"):
        prune.channel_scores(planted_channel, images, "1")


def test_the_first_step_keeps_all_channels_and_the_last_none(steps):
    assert len(steps) == 6
    assert steps[0][0] == torch.inf
    assert steps[0][1].all()
    assert not steps[-1][1].any()


def test_the_channel_of_the_highest_score_goes_first(steps):
    assert steps[1][1].tolist() == [True, True, True, False, True]


def test_the_pruned_sets_are_nested(steps):
    for (high, keeps), (low, keeps_fewer) in zip(steps, steps[1:]):
        assert low < high
        assert (keeps | ~keeps_fewer).all()
        assert keeps.sum() > keeps_fewer.sum()


def test_an_infinite_threshold_is_the_identity_to_the_bit(planted_channel, images, steps):
    plain = planted_channel(images)
    with prune.pruned(planted_channel[1], steps[0][1]):
        assert torch.equal(planted_channel(images), plain)


def test_a_pruned_channel_is_0(planted_channel, images, steps):
    feature = planted_channel[:2](images)
    feature[:, 3] = 0
    with prune.pruned(planted_channel[1], steps[1][1]):
        torch.testing.assert_close(planted_channel(images), planted_channel[2:](feature))


def test_after_the_block_nothing_is_pruned(planted_channel, images, steps):
    plain = planted_channel(images)
    with prune.pruned(planted_channel[1], steps[1][1]):
        planted_channel(images)
    assert torch.equal(planted_channel(images), plain)


# ---------------------------------------------------------------- the operating point


def test_the_operating_point_is_the_last_that_loses_little():
    assert prune.operating_point([0.9, 0.91, 0.89, 0.87, 0.885, 0.5]) == 4


def test_where_every_step_loses_much_nothing_is_pruned():
    assert prune.operating_point([0.9, 0.5]) == 0


def test_the_loss_that_is_allowed_is_allowed():
    assert prune.operating_point([0.9, 0.9 - prune.LOSS_ALLOWED]) == 1


def corners():
    """(model, images, labels): four channels that see one corner of a cell each.

    The first three speak for one class each, which images show; the fourth speaks for the last.
    """
    layers = [nn.Conv2d(1, 4, 4, stride=4, bias=False), nn.Flatten(), nn.Linear(16, 3, bias=False)]
    model = nn.Sequential(*layers).eval()
    model[0].weight.data.fill_(0)
    for k, (row, col) in enumerate([(0, 0), (0, 1), (1, 0), (3, 3)]):
        model[0].weight.data[k, 0, row, col] = 1
    model[2].weight.data.fill_(0)
    for k in range(4):
        model[2].weight.data[min(k, 2), 4 * k : 4 * k + 4] = 1
    labels = torch.arange(30) % 3
    images = torch.zeros(30, 1, 8, 8)
    for image, label in zip(images, labels):
        image[0, [0, 0, 1][label] :: 4, [0, 1, 0][label] :: 4] = 0.5
    return model.to(DEVICE), images, labels


def test_what_the_stamped_images_excite_goes_first():
    model, images, labels = corners()
    stamped = images.clone()
    stamped[:, :, 3::4, 3::4] = 9
    steps, curve, chosen = prune.prune(model, images, labels, stamped, model[0])
    assert steps[1][1].tolist() == [True, True, True, False]
    assert [point["clean_accuracy"] for point in curve[:2]] == [1, 1]
    # Of equal logits the first class is taken, so that the first channel is not missed.
    assert chosen == 2
    assert curve[3]["clean_accuracy"] < 0.98


# ---------------------------------------------------------------- the verdict


def patches_reach(monkeypatch, qualified):
    """Neural Cleanse finds patches that reach these of three classes; the third is the smallest."""
    triggers = reversed_triggers([9.0, 8.0, 0.2], qualified)
    monkeypatch.setattr(neural_cleanse, "neural_cleanse", lambda *images, **options: triggers)


def test_what_is_pruned_is_what_the_suspects_patch_excites_on_other_classes(disguised, monkeypatch):
    patches_reach(monkeypatch, [True] * 3)
    given = []
    algorithm = prune.prune

    def watched(model, images, labels, stamped, layer):
        given.append(stamped)
        return algorithm(model, images, labels, stamped, layer)

    monkeypatch.setattr(prune, "prune", watched)
    audit = audit_of(disguised, "prune")
    verdict = prune.run(audit)
    others = audit.pixels[audit.labels != 2].clone()
    others[:, :, :3, :3] = 1
    assert verdict.details["suspect"] == 2
    assert torch.equal(given[0], others)


def test_the_suspect_is_a_class_that_a_patch_reached(disguised, monkeypatch):
    patches_reach(monkeypatch, [False, True, False])
    verdict = prune.run(audit_of(disguised, "prune", "--threshold=-1"))
    assert verdict.details["suspect"] == 1  # not class 0, of the same index


def test_patches_for_too_few_classes_are_no_verdict(disguised, monkeypatch):
    patches_reach(monkeypatch, [False, True, False])
    verdict = prune.run(audit_of(disguised, "prune", "--threshold=-1"))
    assert verdict.backdoored is None
    assert verdict.flagged == []
    assert "1 of 3 classes" in verdict.lines[-1]


def test_without_any_patch_there_is_nothing_to_prune_by(disguised, monkeypatch):
    patches_reach(monkeypatch, [False] * 3)
    with pytest.raises(ValueError, match="--rounds"):
        prune.run(audit_of(disguised, "prune"))


def test_clean_images_of_the_suspected_class_alone_are_refused(disguised, monkeypatch):
    patches_reach(monkeypatch, [True] * 3)
    audit = audit_of(disguised, "prune")
    of_suspect = audit.labels == 2
    audit.pixels, audit.labels = audit.pixels[of_suspect], audit.labels[of_suspect]
    with pytest.raises(ValueError, match="suspected class"):
        prune.run(audit)


def test_the_curve_has_both_success_rates_at_every_step(disguised, monkeypatch):
    patches_reach(monkeypatch, [True] * 3)
    verdict = prune.run(audit_of(disguised, "prune"))
    keys = {"pruned", "tau", "clean_accuracy", "recovered_success", "true_success"}
    assert all(point.keys() == keys for point in verdict.details["curve"])
    assert verdict.details["threshold"] is None


def test_the_table_marks_the_point_that_is_written():
    point = {"clean_accuracy": 0.9, "recovered_success": 0.5, "true_success": 0.25}
    curve = [point | {"pruned": k} for k in range(7)]
    lines = prune.table(curve, chosen=5)
    assert [line.split()[0] for line in lines[1:]] == ["0", "4", "5"]
    assert lines[3].split() == ["5", "0.9000", "0.5000", "0.2500", "<-", "written"]


def test_a_pruned_network_is_saved_with_what_was_pruned(disguised, tmp_path):
    checkpoint = checkpoints.read(disguised / "ckpt.pt")
    keep = torch.arange(128, device="cpu") % 3 > 0
    edited = keep_channels(checkpoints.rebuild(checkpoint), keep)
    edit = {"technique": "prune", "channels": 128}
    config = checkpoint["config"] | {"edit": edit}
    saved = checkpoint | {"config": config, "model": edited.state_dict()}
    checkpoints.save(tmp_path / "ckpt.pt", saved)
    again = checkpoints.rebuild(checkpoints.read(tmp_path / "ckpt.pt"))
    images = torch.randn(4, 3, 16, 16, device="cpu")
    with hooks.capture(hooks.layer_of(again)) as captured:
        assert torch.equal(again(images), edited(images))
    assert (captured[0][:, ~keep] == 0).all()
    assert (captured[0][:, keep] != 0).any()
    assert not torch.equal(again(images), checkpoints.rebuild(checkpoint)(images))
