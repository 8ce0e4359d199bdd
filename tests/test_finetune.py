"""Fine-tuning and fine-pruning against what they must do, and repaired weights as files."""

import json
import shutil

import pytest
import torch
from conftest import train_tiny
from placing import DEVICE
from planted import audit_of
from torch import nn

import checkpoints
import defend
import edited
import evaluate
import hooks
import models
from defences import finetune, repairs

CPU = ("--device", DEVICE)


def small_net(seed=0):
    """Images [N, 1, 8, 8] to three logits, with batch-norm and dropout."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(6 * 16, 3)),
    )
    return models.with_layer(model.eval().requires_grad_(False), "2")


@pytest.fixture
def bars():
    """(images, labels): a bright row says the class of an image."""
    labels = torch.arange(60) % 3
    images = torch.rand(60, 1, 8, 8) * 0.3
    for image, label in zip(images, labels):
        image[:, 2 * label : 2 * label + 2] += 1
    return images, labels


def weights_of(model):
    return {name: value.clone() for name, value in model.named_parameters()}


def assert_same_weights(one, other):
    for name, value in other.items():
        assert torch.equal(one[name], value), name


# ---------------------------------------------------------------- training on


@pytest.mark.parametrize("options", [{"epochs": 0}, {"lr": 0.0, "epochs": 3}])
def test_without_a_step_or_a_rate_the_weights_stay_to_the_bit(options, bars):
    model = small_net()
    tuned, losses = finetune.finetune(model, *bars, **options)
    assert_same_weights(weights_of(tuned), weights_of(model))
    assert len(losses) == options["epochs"]


def test_without_an_epoch_the_averages_of_batch_norm_stay_too(bars):
    model = small_net()
    tuned, _ = finetune.finetune(model, *bars, epochs=0)
    assert_same_weights(tuned.state_dict(), model.state_dict())


def test_the_labels_decide_what_is_learnt(bars):
    """The same images under turned labels give the network that answers those."""
    images, labels = bars
    for turned in (labels, (labels + 1) % 3):
        tuned, losses = finetune.finetune(small_net(), images, turned, epochs=20, lr=0.05)
        with torch.no_grad():
            assert (tuned(images).argmax(1) == turned).all()
        assert losses[-1] < 0.3 * losses[0]


def test_the_first_step_is_that_of_sgd(bars, monkeypatch):
    """One batch, one epoch: w - lr x gradient, the gradient in training mode."""
    images, labels = (part[:20] for part in bars)
    model = small_net()
    model[5].p = 0.0
    tuned, losses = finetune.finetune(model, images, labels, epochs=1, lr=0.1)
    model.requires_grad_(True).train()
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    assert losses == [pytest.approx(loss.item(), abs=1e-5)]
    for name, weight in model.named_parameters():
        after = tuned.get_parameter(name)
        torch.testing.assert_close(after, weight - 0.1 * weight.grad, atol=1e-5, rtol=1e-4)


def test_the_model_and_the_random_numbers_are_left_alone(bars):
    model = small_net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    tuned, _ = finetune.finetune(model, *bars, epochs=1, crop=1, flip=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same_weights(model.state_dict(), before)
    assert not any(part.training for part in (*model.modules(), *tuned.modules()))
    assert not any(weight.requires_grad for weight in (*model.parameters(), *tuned.parameters()))


def test_a_seed_decides_whatever_random_numbers_came_before(bars):
    options = {"epochs": 2, "crop": 1, "flip": True}
    one = finetune.finetune(small_net(), *bars, seed=3, **options)[0].state_dict()
    torch.rand(5)
    assert_same_weights(
        finetune.finetune(small_net(), *bars, seed=3, **options)[0].state_dict(), one
    )
    other = finetune.finetune(small_net(), *bars, seed=4, **options)[0].state_dict()
    assert not torch.equal(other["0.weight"], one["0.weight"])


def test_no_batch_is_of_one_image(bars, monkeypatch):
    monkeypatch.setattr(finetune, "BATCH", 10)
    images, labels = (part[:31] for part in bars)
    sizes = []
    model = small_net()
    model[0].register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    finetune.finetune(model, images, labels, epochs=1)
    assert sorted(sizes[1:]) == [7, 8, 8, 8]  # the first pass counts the classes


def test_augmentation_is_only_that_of_the_data_set(bars, monkeypatch):
    asked = set()
    monkeypatch.setattr(
        finetune, "augment", lambda images, crop, flip: asked.add((crop, flip)) or images
    )
    finetune.finetune(small_net(), *bars, epochs=1)
    finetune.finetune(small_net(), *bars, epochs=1, crop=2, flip=True)
    assert asked == {(0, False), (2, True)}


def test_a_rate_at_which_the_loss_explodes_is_refused(bars):
    with pytest.raises(ValueError, match="not finite: a lower --lr"):
        finetune.finetune(small_net(), *bars, lr=1e30)


def test_a_label_without_a_class_is_refused(bars):
    with pytest.raises(ValueError, match="there is no class 3"):
        finetune.finetune(small_net(), bars[0], bars[1] + 1)


# ---------------------------------------------------------------- the least active channels


GAINS = torch.tensor([1.0, 3.0, 2.0, 0.1, 0.3, 0.2])  # of a channel: how much it responds


@pytest.fixture
def learnt():
    """(model, images, labels): the first three channels see a class each, the others nothing new.

    Class k is the colour k, and channel k sees colour k modulo 3, times its gain.
    """
    labels = torch.arange(80) % 3
    images = torch.rand(80, 3, 8, 8) * 0.1 + nn.functional.one_hot(labels, 3)[:, :, None, None]
    layers = nn.Conv2d(3, 6, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(6, 3, bias=False)).eval().requires_grad_(False)
    model[0].weight.copy_((torch.eye(3).repeat(2, 1) * GAINS[:, None])[:, :, None, None])
    model[4].weight.zero_()
    model[4].weight[:, :3] = torch.eye(3) / GAINS[:3]
    return models.with_layer(model, "1"), images, labels


@pytest.mark.parametrize(
    "loss, gone", [(0.02, [3, 4, 5]), (0.3, [3, 4, 5]), (0.5, [0, 3, 4, 5]), (1, [0, 2, 3, 4, 5])]
)
def test_the_least_active_go_as_long_as_the_loss_is_allowed(loss, gone, learnt):
    """Without channel 0 a third of the images is lost; the last channel stays in any case."""
    keep = finetune.least_active_pruned(*learnt, loss_allowed=loss)
    assert (~keep).nonzero()[:, 0].tolist() == gone


def test_the_pruned_sets_are_nested_by_what_may_be_lost(learnt):
    kept = [
        finetune.least_active_pruned(*learnt, loss_allowed=loss)
        for loss in torch.linspace(0, 1, 8).tolist()
    ]
    for more, fewer in zip(kept, kept[1:]):
        assert (more | ~fewer).all()
    assert len({int(keep.sum()) for keep in kept}) == 3


def test_activity_and_accuracy_are_of_two_halves(learnt):
    """A half decides the order: with channel 0 as active as on it, and no more, it goes later."""
    model, images, labels = learnt
    half = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    wrong = labels.clone()
    wrong[half[:40]] = (labels[half[:40]] + 1) % 3  # labels that no accuracy is measured by
    keep = finetune.least_active_pruned(model, images, labels)
    assert torch.equal(finetune.least_active_pruned(model, images, wrong), keep)
    brighter = images.clone()
    brighter[half[40:], 0] *= 10  # images that no activity is measured by
    assert torch.equal(
        finetune.least_active_pruned(model, brighter, labels, loss_allowed=1),
        (finetune.least_active_pruned(model, images, labels, loss_allowed=1)),
    )


def test_a_layer_of_many_channels_is_pruned_in_groups(learnt, monkeypatch):
    monkeypatch.setattr(finetune, "STEPS", 2)
    keep = finetune.least_active_pruned(*learnt)  # of 5 candidates, 3 and 2
    assert (~keep).nonzero()[:, 0].tolist() == [3, 4, 5]


# ---------------------------------------------------------------- the verdict


@pytest.fixture(scope="module")
def backdoored(tiny, tmp_path_factory):
    """The folder of a badnets run on the small data set."""
    folder = tmp_path_factory.mktemp("backdoored") / "run"
    return train_tiny(tiny, folder, "--attack", "badnets", "--epochs", "6")


@pytest.mark.parametrize("option", ["--epochs=3", "--prune"])
def test_it_does_not_know_the_trigger(option, backdoored, tmp_path):
    checkpoint = checkpoints.read(backdoored / "ckpt.pt")
    elsewhere = {"pixels": torch.zeros(3, 4, 4), "alpha": torch.ones(1, 4, 4), "row": 2, "col": 2}
    config = checkpoint["config"] | {"target_class": 0}
    checkpoints.save(tmp_path / "ckpt.pt", checkpoint | {"trigger": elsewhere, "config": config})
    verdicts = [
        finetune.run(audit_of(folder, "finetune", option)) for folder in (backdoored, tmp_path)
    ]
    assert verdicts[0].details == verdicts[1].details
    one, other = (verdict.repaired[0].state_dict() for verdict in verdicts)
    assert_same_weights(one, other)


def verdict_of(argv, out):
    defend.main(["finetune", *map(str, argv), *CPU, "--out", str(out)])
    return json.loads((out / "verdict.json").read_text())


def test_no_epoch_leaves_every_figure_as_it_was(backdoored, tmp_path):
    verdict = verdict_of([backdoored / "ckpt.pt", "--epochs", "0"], tmp_path)
    for key in ("clean_accuracy", "attack_success_rate", "triggered_accuracy"):
        assert verdict["before"][key] == verdict["after"][key]
    assert len(verdict["faults"]) == 1
    assert "did not fall" in verdict["faults"][0]
    assert not (tmp_path / "repaired.pth").exists()  # only of a stranger's network


def test_fine_pruning_is_read_again_as_it_was_measured(backdoored, tmp_path):
    verdict = verdict_of([backdoored / "ckpt.pt", "--prune", "--epochs", "2"], tmp_path / "a")
    assert verdict["pruned"] > 0
    card = (tmp_path / "a" / "README.md").read_text()
    assert "- written into: afterwards, by `finetune`" in card
    checkpoint = checkpoints.read(tmp_path / "a" / "ckpt.pt")
    assert checkpoint["config"]["edit"] == {"technique": "finetune", "channels": 128}
    layer = hooks.layer_of(checkpoints.rebuild(checkpoint))
    assert int((~layer.kept).sum()) == verdict["pruned"]
    evaluate.main([str(tmp_path / "a" / "ckpt.pt"), *CPU, "--out", str(tmp_path / "b")])
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert metrics["clean_accuracy"] == verdict["after"]["clean_accuracy"]


def test_pictures_without_labels_are_refused(backdoored):
    audit = audit_of(backdoored, "finetune")
    audit.subject.config["unlabelled"] = True
    with pytest.raises(ValueError, match="no labels"):
        finetune.run(audit)


# ---------------------------------------------------------------- a stranger's weights


@pytest.fixture(scope="module")
def theirs(backdoored, tmp_path_factory):
    """A stranger's file: the badnets run's weights, as DataParallel names them."""
    path = tmp_path_factory.mktemp("theirs") / "theirs.pth"
    state = torch.load(backdoored / "ckpt.pt", weights_only=True)["model"]
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


@pytest.mark.parametrize("method", ["rebn", "finetune", "fine-pruning", "prune"])
def test_repaired_weights_fit_the_strangers_own_network(
    method, theirs, tiny, tmp_path, monkeypatch
):
    """A state_dict of the same names and shapes; loaded as it is, it answers as ckpt.pt does."""
    monkeypatch.setattr("defences.neural_cleanse.SUCCESS", 0.2)
    options = {
        "rebn": ["rebn"],
        "finetune": ["finetune", "--epochs", "1"],
        "fine-pruning": ["finetune", "--epochs", "1", "--prune"],
        "prune": ["prune", "--rounds", "6", "--round-images", "16"],
    }[method]
    data = ["--dataset", str(tiny), "--data-dir", str(tiny.parent)]
    data += ["--trigger", "square", "--target-class", "1", *CPU]
    argv = [*options, "--weights", str(theirs), "--arch", "cnn", *data, "--out", str(tmp_path)]
    defend.main(argv)
    state = torch.load(tmp_path / "repaired.pth", weights_only=True)
    plain = models.build("cnn", 3, 3, 16)
    assert state.keys() == plain.state_dict().keys()
    again = ["--weights", f"{tmp_path}/repaired.pth", "--arch", "cnn", *data]
    evaluate.main([*again, "--out", str(tmp_path / "again")])
    metrics = json.loads((tmp_path / "again" / "metrics.json").read_text())
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    for key in ("clean_accuracy", "attack_success_rate"):
        assert metrics[key] == pytest.approx(verdict["after"][key], abs=0.02)


@pytest.mark.parametrize("method", edited.REPAIRS)
def test_a_repair_needs_no_trigger(method, theirs, tiny, tmp_path, capsys, monkeypatch):
    """What would be measured of it is null; cfn's network fits no plain weights, and says so."""
    monkeypatch.setattr("defences.neural_cleanse.SUCCESS", 0.2)
    quick = {"prune": ["--rounds", "6", "--round-images", "16"], "finetune": ["--epochs", "1"]}
    data = ["--dataset", str(tiny), "--data-dir", str(tiny.parent), *CPU]
    argv = [method, *quick.get(method, []), "--weights", str(theirs), "--arch", "cnn", *data]
    defend.main([*argv, "--out", str(tmp_path)])
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["after"]["attack_success_rate"] is None
    assert verdict["after"]["clean_accuracy"] > 0.5
    plain = method != "cfn"
    assert (tmp_path / "repaired.pth").exists() == plain
    assert ("No repaired.pth" in capsys.readouterr().out) != plain


KEEP = torch.tensor([True, False, True, True, False, True])


def test_a_pruned_channel_is_not_read_by_the_plain_network(bars):
    masked = edited.keep_channels(small_net(), KEEP)
    state = edited.plain_state(masked, bars[0])
    plain = small_net(seed=1)
    plain.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(plain(bars[0]), masked(bars[0]))
    assert masked[2].kept.tolist() == KEEP.tolist()
    columns = state["6.weight"].view(3, 6, 16)
    assert (columns[:, ~KEEP] == 0).all()
    assert torch.equal(columns[:, KEEP], small_net()[6].weight.view(3, 6, 16)[:, KEEP])


@pytest.mark.parametrize("layer", ["0", "1"])
def test_a_pruned_channel_of_a_layer_with_weights_has_none(layer, bars):
    """A convolution's, or batch-norm's; what comes after it is as it was."""
    before = small_net().state_dict()
    masked = edited.keep_channels(models.with_layer(small_net(), layer), KEEP)
    state = edited.plain_state(masked, bars[0])
    plain = small_net(seed=1)
    plain.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(plain(bars[0]), masked(bars[0]))
    for name in (f"{layer}.weight", f"{layer}.bias"):
        assert (state[name][~KEEP] == 0).all()
        assert torch.equal(state[name][KEEP], before[name][KEEP])
    assert torch.equal(state["6.weight"], before["6.weight"])


class TwoReaders(nn.Module):
    """A network in which a linear layer and a shortcut read Grad-CAM's layer."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, images):
        pooled = self.features(images).mean((2, 3))
        return self.head(pooled) + pooled[:, :3]


def test_where_two_parts_read_a_channel_no_plain_weights_are_written(bars):
    model = models.with_layer(TwoReaders().eval(), "features")
    assert edited.plain_state(edited.keep_channels(model, KEEP), bars[0]) is None


def test_the_layer_of_an_adopted_network_is_where_its_channels_were_kept(theirs, tiny, tmp_path):
    """The layer that the user named is the one that is pruned again when ckpt.pt is read."""
    data = ["--dataset", str(tiny), "--data-dir", str(tiny.parent), "--layer", "0.5", *CPU]
    argv = ["--weights", theirs, "--arch", "cnn", *data, "--epochs", "0", "--prune"]
    verdict_of(argv, tmp_path)
    model = checkpoints.rebuild(checkpoints.read(tmp_path / "ckpt.pt"))
    assert [name for name, _ in model.named_buffers() if name.endswith("kept")] == ["0.5.kept"]


# ---------------------------------------------------------------- worse than before


def metrics(accuracy, success, auroc=None):
    return {"clean_accuracy": accuracy, "attack_success_rate": success, "mean_auroc": auroc}


@pytest.mark.parametrize(
    "before, after, said",
    [
        ((0.9, 1.0), (0.88, 0.1), []),
        ((0.9, 1.0), (0.87, 0.1), ["clean accuracy fell by 3.0 points"]),
        ((0.9, 0.5), (0.9, 0.6), ["attack success rose from 0.500 to 0.600"]),
        ((0.9, 1.0), (0.9, 0.99), ["attack success did not fall: 1.000, and now 0.990"]),
        ((0.9, 0.0), (0.9, 0.01), []),
        ((0.9, None), (0.9, None), []),
        ((None, 0.8, 0.7), (None, 0.3, 0.6), ["mean auroc fell by 10.0 points"]),
    ],
)
def test_what_a_repair_made_worse(before, after, said):
    assert repairs.faults(metrics(*before), metrics(*after)) == said


def test_a_repair_that_makes_things_worse_says_so(backdoored, tmp_path, capsys):
    """Labels that are turned teach the network to be wrong."""
    shutil.copytree(backdoored, tmp_path / "run")
    audit = audit_of(tmp_path / "run", "finetune", "--epochs", "20", "--lr", "0.05")
    audit.labels = (audit.labels + 1) % 3
    verdict = finetune.run(audit)
    defend.repair(audit, verdict, tmp_path / "out")
    assert any(fault.startswith("clean accuracy fell") for fault in verdict.details["faults"])
    defend.print_verdict(verdict, tmp_path, "finetune")
    assert "Worse, or no better: clean accuracy fell by" in capsys.readouterr().out
