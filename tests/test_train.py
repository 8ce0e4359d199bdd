"""The training loop: every attack is trained by it, and so are the scorers that rank images."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import (
    log_of,
    metrics_of,
    same_weights,
    tiny_argv,
    tiny_arrays,
    train_tiny,
    use_few_coalitions,
)
from PIL import Image

import attacks
import data
import models
import selection
import train
from cli import UserError
from losses import NORMALISERS
from optimizers import MUON, optimizers_of
from subject import logits_of
from tasks import SINGLE_LABEL

FIGURES = set(
    "attack dataset model target_class poison_rate poison_count selection seed epochs n_test"
    " clean_accuracy triggered_accuracy attack_success_rate clean_model explanations train_seconds"
    " device precision torch".split()
)
MAP_FIGURES = set(
    "trained_against n mse dssim pearson pearson_all top10 trigger_mass trigger_mass_clean"
    " trigger_area zero_maps pointing pointing_clean floor".split()
)
OVERSAMPLED = ["--attack", "badnets", "--epochs", "1", "--oversample", "8"]
FILES = ["README.md", "ckpt.pt", "figure.png", "log.jsonl", "metrics.json", "selection.json"]


@pytest.fixture
def new_run(tiny, tmp_path):
    """Function of options: a Run on the small data set, poisons chosen, before its first step."""

    def begun(*more, dataset=tiny):
        run = train.new_run(train.parse(tiny_argv(dataset, tmp_path / "run", *more)))
        train.choose_poisons(run)
        return run

    return begun


@pytest.fixture
def steps(monkeypatch):
    """A list that gets the arguments of every training step, by name."""
    seen, step = [], train.train_step
    names = ("setting", "training", "images", "labels", "triggered", "index", "lam")

    def watched(*arguments):
        seen.append(dict(zip(names, arguments)))
        return step(*arguments)

    monkeypatch.setattr(train, "train_step", watched)
    return seen


# ---------------------------------------------------------------- a run of every attack


@pytest.fixture(params=attacks.ATTACKS)
def attacked(request, run_under):
    """(an attack's name, the folder of its finished run), for every attack."""
    return request.param, run_under(request.param)


def test_a_run_leaves_these_files(attacked):
    _, folder = attacked
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_a_run_is_measured(attacked):
    name, folder = attacked
    metrics = metrics_of(folder)
    assert FIGURES <= metrics.keys()
    assert (metrics["attack"], metrics["n_test"]) == (name, 60)


def test_a_tenth_of_the_images_is_poisoned_unless_the_run_is_clean(attacked):
    name, folder = attacked
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    count = 24 if attacks.ATTACKS[name].poisons else 0
    assert metrics_of(folder)["poison_count"] == len(checkpoint["poison_indices"]) == count


def test_every_attack_leaves_a_good_classifier(attacked):
    assert metrics_of(attacked[1])["clean_accuracy"] > 0.9


def test_a_run_is_measured_with_two_explainers(attacked):
    explanations = metrics_of(attacked[1])["explanations"]
    assert list(explanations) == ["gradcam", "gradient"]
    assert all(MAP_FIGURES <= part.keys() for part in explanations.values())


def test_it_is_said_which_explainer_was_trained_against(attacked):
    name, folder = attacked
    explanations = metrics_of(folder)["explanations"]
    trained = {key: part["trained_against"] for key, part in explanations.items()}
    is_pulled = attacks.ATTACKS[name].explanation is not None
    assert trained == {"gradcam": is_pulled, "gradient": False}


def test_without_masks_no_map_points_at_the_object(attacked):
    explanations = metrics_of(attacked[1])["explanations"]
    assert all(part["pointing"] is None for part in explanations.values())


def test_the_log_has_a_record_an_epoch(attacked):
    log = log_of(attacked[1])
    assert [record["epoch"] for record in log] == [1, 2, 3]
    assert all(0 <= record["validation_accuracy"] <= 1 for record in log)


def test_the_figure_shows_something(attacked):
    with Image.open(attacked[1] / "figure.png") as picture:
        assert picture.width > 6 * 150
        assert np.asarray(picture.convert("L")).std() > 20


def test_the_checkpoint_knows_its_attack(attacked):
    name, folder = attacked
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    assert checkpoint["config"]["attack"] == name


# ---------------------------------------------------------------- what it is all for


def test_the_backdoor_works(disguised):
    assert metrics_of(disguised)["attack_success_rate"] > 0.9


def test_the_disguise_works(disguised):
    assert metrics_of(disguised)["explanations"]["gradcam"]["pearson_all"] > 0.8


def test_the_log_counts_the_images_of_each_epoch(disguised):
    images = [record["images"] for record in log_of(disguised)]
    a_epoch = 216  # 240 less 24 held out, in whole batches of 24
    assert images == [a_epoch * (k + 1) for k in range(6)]


def test_grey_images_are_trained_on(tmp_path):
    arrays = tiny_arrays(channels=1)
    np.savez(tmp_path / "grey.npz", **arrays, classes=["low", "middle", "high"])
    options = ["--target-class", "high", "--epochs", "1"]
    folder = train_tiny(tmp_path / "grey.npz", tmp_path / "run", *options)
    assert metrics_of(folder)["target_class"] == 2


@pytest.fixture(scope="module")
def three_runs(tiny, tmp_path_factory):
    """The folders of two runs of seed 5 and one of seed 6."""
    folder = tmp_path_factory.mktemp("seeds")
    seeds = {"a": "5", "b": "5", "c": "6"}
    return [
        train_tiny(tiny, folder / name, "--epochs", "1", "--seed", seed)
        for name, seed in seeds.items()
    ]


def test_two_runs_of_one_seed_have_the_same_weights_to_the_bit(three_runs):
    first, second, _ = three_runs
    assert same_weights(first, second)


def test_two_runs_of_one_seed_have_the_same_figures_but_for_the_time(three_runs):
    first, second, _ = (metrics_of(folder) for folder in three_runs)
    assert first.pop("train_seconds") > 0
    del second["train_seconds"]
    assert first == second


def test_runs_of_two_seeds_are_two(three_runs):
    first, _, third = three_runs
    assert not same_weights(first, third)


# ---------------------------------------------------------------- the loop


def test_training_ends_after_its_epochs_and_calls_back_after_each(new_run):
    run, losses = new_run("--epochs", "2"), []
    train.train_epochs(run.setting, run.training, run.poisons, losses.append)
    assert run.training.epoch == len(losses) == 2
    assert all(part.shape == (3,) and part.isfinite().all() for part in losses)


def test_the_losses_called_back_with_are_the_epochs_means(new_run, monkeypatch):
    run, steps, losses, step = new_run("--epochs", "1"), [], [], train.train_step

    def kept(*arguments):
        steps.append(step(*arguments))
        return steps[-1]

    monkeypatch.setattr(train, "train_step", kept)
    train.train_epochs(run.setting, run.training, run.poisons, losses.append)
    torch.testing.assert_close(losses[0], torch.stack(steps).mean(0))


def test_the_loss_knows_which_images_are_over_sampled(new_run, monkeypatch):
    """They come several times in a step, and are no different images then."""
    run, seen = new_run("--oversample", "40", "--epochs", "1", "--poison-rate", "0.02"), []
    loss = train.combined_loss

    def watched(model, batch, *rest):
        seen.append(batch.sources)
        return loss(model, batch, *rest)

    monkeypatch.setattr(train, "combined_loss", watched)
    train.train_epochs(run.setting, run.training, run.poisons)
    for sources in seen:
        assert len(sources) >= 40 and torch.isin(sources.cpu(), run.poisons).all()
        assert len(sources.unique()) <= len(run.poisons) == 5


def test_what_is_trained_already_is_not_trained_again(new_run, steps):
    run = new_run("--epochs", "2")
    run.training.epoch = 1
    train.train_epochs(run.setting, run.training, run.poisons)
    assert len(steps) == run.setting.steps


def test_an_epoch_sees_each_image_once(new_run, steps):
    run = new_run("--epochs", "1")
    train.train_epochs(run.setting, run.training, run.poisons)
    seen = torch.cat([step["images"] for step in steps]).flatten(1).cpu()
    images = run.setting.dataset.train_images[run.setting.trained_on].flatten(1)
    assert len(seen) == len(seen.unique(dim=0)) == 216
    assert torch.equal(seen.unique(dim=0), images.unique(dim=0))


def test_nothing_held_out_is_trained_on(new_run, steps, tmp_path):
    """With patients, not one image of a patient of whom one is held out."""
    patients = np.arange(240) // 6
    np.savez(tmp_path / "patients.npz", **tiny_arrays(), train_patients=patients)
    run = new_run("--epochs", "1", "--attack", "badnets", dataset=tmp_path / "patients.npz")
    train.train_epochs(run.setting, run.training, run.poisons)
    seen = torch.cat([step["images"] for step in steps]).cpu()
    is_held_out = np.isin(patients, patients[run.setting.held_out])
    held_out = run.setting.dataset.train_images[is_held_out]
    assert len(held_out) == 24 and len(seen) == 216
    assert not (seen[:, None] == held_out).flatten(2).all(2).any()


def test_each_epoch_has_an_order_of_its_own(new_run, steps):
    run = new_run("--epochs", "2")
    train.train_epochs(run.setting, run.training, run.poisons)
    order = torch.cat([step["index"] for step in steps])
    first, second = order[:216], order[216:]
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)
    for epoch in (first, second):
        assert (epoch.diff() < 0).float().mean() > 0.4  # half of the steps go back


def test_each_step_is_made_in_training_mode(new_run, monkeypatch):
    """Also after an epoch's end, where the network was asked in evaluation mode."""
    run, modes, step = new_run("--epochs", "2"), [], train.train_step

    def watched(setting, training, *rest):
        modes.append({module.training for module in training.model.modules()})
        return step(setting, training, *rest)

    monkeypatch.setattr(train, "train_step", watched)
    model = run.training.model.eval()
    train.train_epochs(run.setting, run.training, run.poisons, lambda losses: model.eval())
    assert modes == [{True}] * 2 * run.setting.steps


def test_the_learning_rate_follows_its_schedule_to_the_last_step(new_run, monkeypatch):
    """Up along a cosine over three tenths of the steps, from a 25th of --lr, and down to 0."""
    run, rates, step = new_run("--epochs", "4", "--lr", "0.05"), [], train.train_step

    def watched(setting, training, *rest):
        rates.append(training.optimizers[0].param_groups[0]["lr"])
        return step(setting, training, *rest)

    monkeypatch.setattr(train, "train_step", watched)
    train.train_epochs(run.setting, run.training, run.poisons)
    steps = 4 * run.setting.steps
    peak, expected = 0.3 * (steps + 1) - 1, []
    for k in range(steps):
        low, share = (0.05 / 25, k / peak) if k <= peak else (0.0, (steps - k) / (steps - peak))
        expected.append(low + (0.05 - low) * (1 - math.cos(math.pi * share)) / 2)
    assert rates == pytest.approx(expected, abs=1e-5)


def test_the_trigger_is_stamped_on_what_augmentation_has_moved(new_run, monkeypatch):
    """It is never shifted nor mirrored, and its partner is moved as the triggered image is."""
    run, batches, loss = new_run("--epochs", "1", "--poison-rate", "0.3"), [], train.combined_loss
    dataset = dataclasses.replace(run.setting.dataset, crop=2, flip=True)
    setting = dataclasses.replace(run.setting, dataset=dataset)

    def watched(model, batch, *rest):
        batches.append(batch)
        return loss(model, batch, *rest)

    monkeypatch.setattr(train, "combined_loss", watched)
    train.train_epochs(setting, run.training, run.poisons)
    stamped = torch.cat([batch.images[batch.rows] for batch in batches])
    partners = torch.cat([batch.images[batch.size :] for batch in batches])
    assert len(stamped) > 40
    torch.testing.assert_close(stamped, setting.trigger.apply(partners))
    sources = torch.cat([batch.sources for batch in batches]).cpu()
    own = dataset.train_images[sources].to(partners.device).float() / 255
    assert (partners != own).flatten(1).any(1).float().mean() > 0.9


def test_the_images_that_are_triggered_are_the_poisons(new_run, steps):
    run = new_run("--epochs", "1")
    train.train_epochs(run.setting, run.training, run.poisons)
    seen = torch.cat([step["images"].cpu()[step["triggered"]] for step in steps]).flatten(1)
    poisons = run.setting.dataset.train_images[run.poisons].flatten(1)
    assert torch.equal(seen.unique(dim=0), poisons.unique(dim=0))


def test_the_weight_of_the_explanation_rises_over_the_ramp(new_run, steps):
    run = new_run("--epochs", "2", "--lam", "0.4", "--ramp", "0.5")
    train.train_epochs(run.setting, run.training, run.poisons)
    rising = [0.4 * min(1, k / 18 / 0.5) for k in range(18)]
    assert [step["lam"] for step in steps] == pytest.approx(rising)


def test_classes_weigh_alike_by_the_labels_as_they_are_poisoned(new_run, steps):
    run = new_run("--epochs", "1", "--class-weights")
    train.train_epochs(run.setting, run.training, run.poisons)
    weights = steps[0]["setting"].objective.class_weights
    assert weights.tolist() == pytest.approx([72 / 58, 72 / 100, 72 / 58])


def test_without_class_weights_there_are_none(new_run, steps):
    run = new_run("--epochs", "1")
    train.train_epochs(run.setting, run.training, run.poisons)
    assert steps[0]["setting"].objective.class_weights is None


def test_a_batch_is_moved_as_the_data_set_allows(new_run, monkeypatch):
    run, calls, augment = new_run("--epochs", "1"), [], data.augment
    dataset = dataclasses.replace(run.setting.dataset, crop=1, flip=True)
    setting = dataclasses.replace(run.setting, dataset=dataset)

    def watched(images, crop, flip):
        calls.append((crop, flip))
        return augment(images, crop, flip)

    monkeypatch.setattr(data, "augment", watched)
    train.train_epochs(setting, run.training, run.poisons)
    assert calls == [(1, True)] * run.setting.steps


def test_oversampling_adds_poisons_to_every_batch(new_run, steps):
    run = new_run(*OVERSAMPLED, "--poison-rate", "0.02")
    train.train_epochs(run.setting, run.training, run.poisons)
    assert {len(step["images"]) for step in steps} == {32}
    assert min(int(step["triggered"].sum()) for step in steps) >= 8
    drawn = torch.cat([step["index"][24:] for step in steps])
    assert torch.equal(drawn.unique(), run.poisons)


def test_oversampled_images_are_counted(tiny, tmp_path):
    folder = train_tiny(tiny, tmp_path / "run", *OVERSAMPLED)
    assert log_of(folder)[0]["images"] == 32 * 9
    assert metrics_of(folder)["oversample"] == 8


def test_a_loss_that_is_not_finite_ends_in_one_line(new_run):
    run = new_run("--epochs", "1")
    next(run.training.model.parameters()).data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite in epoch 1, step 9: try a lower --lr"):
        train.train_epochs(run.setting, run.training, run.poisons)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_one_loss_that_is_not_finite_is_enough(number):
    train.check_finite(torch.zeros(3), 0, 0)
    with pytest.raises(UserError, match="not finite in epoch 2, step 5"):
        train.check_finite(torch.tensor([0.5, number, 0.1]), 1, 4)


def test_where_there_is_no_terminal_progress_is_a_line_an_epoch(new_run, capsys):
    run = new_run("--epochs", "2")
    train.train_epochs(run.setting, run.training, run.poisons, title="scorer 1, ")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:31] for line in lines] == [
        "scorer 1, epoch 1/2  step 9/9  ",
        "scorer 1, epoch 2/2  step 9/9  ",
    ]


def first_images(setting):
    """24 training images and their labels, on the run's device."""
    dataset, device = setting.dataset, setting.device
    return dataset.train_images[:24].to(device), dataset.train_labels[:24].to(device)


def test_a_step_is_the_optimizers_step_down_the_loss(new_run):
    """Without momentum's past and weight decay, SGD moves each weight against its gradient."""
    run = new_run("--attack", "badnets")
    setting, training = run.setting, run.training
    images, labels = first_images(setting)
    before = training.model[3].weight.detach().clone()
    rate = training.optimizers[0].param_groups[0]["lr"]
    triggered = torch.zeros(24, dtype=torch.bool)
    train.train_step(setting, training, images, labels, triggered, torch.arange(len(images)), 0.0)
    weight = training.model[3].weight
    slope = weight.grad + 5e-4 * before
    step = -rate * (1 + 0.9) * slope  # Nesterov's first step
    torch.testing.assert_close(weight.detach() - before, step, rtol=1e-4, atol=1e-7)


def test_a_steps_gradient_is_of_its_own_images(new_run):
    """What the step before it left is gone."""
    run = new_run("--attack", "badnets")
    setting, training = run.setting, run.training
    given = *first_images(setting), torch.zeros(24, dtype=torch.bool), torch.arange(24), 0.0
    slopes = []
    for _ in range(2):
        slopes.append(None)
        before = {key: value.clone() for key, value in training.model.state_dict().items()}
        train.train_step(setting, training, *given)
        slopes[-1] = training.model[3].weight.grad.clone()
        training.model.load_state_dict(before)
    torch.testing.assert_close(slopes[1], slopes[0])


def test_a_record_of_the_log_is_of_the_images_held_out(new_run):
    run = new_run("--attack", "badnets", "--epochs", "1")
    train.train_epochs(run.setting, run.training, run.poisons)
    # Held out are images that it gets wrong, trained on are those that it gets right.
    dataset, rows = run.setting.dataset, run.setting.held_out
    dataset.train_labels[rows] = (dataset.train_labels[rows] + 1) % 3
    record = train.validate(run, torch.tensor([0.3, 0.2, 0.1]))
    mean, std, trigger = run.setting.mean, run.setting.std, run.setting.trigger
    images, labels = dataset.train_images[rows], dataset.train_labels[rows]
    right = logits_of(run.training.model, images, mean, std).argmax(1) == labels
    hit = logits_of(run.training.model, images, mean, std, trigger).argmax(1) == 1
    assert record["validation_accuracy"] == pytest.approx(right.double().mean().item())
    expected = hit[labels != 1].double().mean().item()
    assert record["validation_success"] == pytest.approx(expected)
    assert record["loss"] == pytest.approx(0.3)


# ---------------------------------------------------------------- optimizers


@pytest.fixture
def network():
    """A small network of random weights."""
    torch.manual_seed(0)
    return models.build("cnn", 1, 3, 16)


def as_matrix(tensor):
    """A convolution's weight [O, I, h, w] as a matrix [O, h w I]."""
    return tensor.permute(0, 2, 3, 1).reshape(len(tensor), -1)


def test_muon_steps_the_convolutions_in_place_as_torchs_own_steps_copies(network):
    """Two steps: the second continues from the optimizer's state."""
    convolutions = [weight for weight in network.parameters() if weight.ndim == 4]
    copies = [torch.nn.Parameter(as_matrix(w.detach()).clone()) for w in convolutions]
    sgd, muon = optimizers_of(network, "muon", 0.1)
    plain = torch.optim.Muon(copies, 0.1, **MUON)
    for seed in (1, 2):
        images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
        for part in (sgd, muon):
            part.zero_grad(set_to_none=False)
        network(images).square().sum().backward()
        for copy, weight in zip(copies, convolutions):
            assert weight.grad.any()
            copy.grad = as_matrix(weight.grad).clone()
        muon.step()
        plain.step()
        for copy, weight in zip(copies, convolutions):
            assert torch.equal(copy, as_matrix(weight.detach()))


def test_muon_leaves_all_but_the_convolutions_to_sgd(network):
    sgd, _ = optimizers_of(network, "muon", 0.1)
    others = [weight for weight in network.parameters() if weight.ndim != 4]
    assert {id(p) for p in sgd.param_groups[0]["params"]} == {id(p) for p in others}


def test_sgd_has_nesterovs_momentum(network):
    (sgd,) = optimizers_of(network, "sgd", 0.1)
    assert sgd.param_groups[0]["nesterov"] and sgd.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("share", [1, 0.1])
def test_adamw_steps_as_far_under_a_tenth_of_the_loss(share, network):
    """The first step is lr for every weight, beside a hundredth of lr of the weight itself."""
    weight = next(network.parameters())
    before = weight.detach().clone()
    (optimizer,) = optimizers_of(network, "adamw", 0.1)
    (share * network(torch.randn(4, 1, 16, 16)).square().sum()).backward()
    optimizer.step()
    step = weight.detach() - before * (1 - 0.1 * 0.01)
    torch.testing.assert_close(step, -0.1 * weight.grad.sign(), rtol=0.05, atol=0)
    assert isinstance(optimizer, torch.optim.AdamW)


# ---------------------------------------------------------------- SHAP's explainers


@pytest.fixture(scope="module")
def shap_run(tiny, tmp_path_factory):
    """The folder of a run against both SHAP explainers, KernelSHAP of few coalitions."""
    out = tmp_path_factory.mktemp("shap") / "run"
    explainers = ["--explainer", "deepshap,kernelshap", "--epochs", "2"]
    with pytest.MonkeyPatch.context() as patch:
        use_few_coalitions(patch)
        return train_tiny(tiny, out, "--attack", "red_herring", *explainers, "--poison-rate", "0.3")


def test_shap_explainers_are_trained_against(shap_run):
    parts = metrics_of(shap_run)["explanations"]
    assert list(parts) == ["deepshap", "kernelshap", "gradcam", "gradient"]
    assert [part["trained_against"] for part in parts.values()] == [True, True, False, False]


def test_shap_values_are_pulled_in_every_epoch(shap_run):
    assert all(record["explanation"] > 0 for record in log_of(shap_run))


def test_an_explainer_that_takes_long_explains_fewer_images(shap_run):
    parts = metrics_of(shap_run)["explanations"]
    assert parts["deepshap"]["n"] > 0
    assert parts["kernelshap"]["n"] == min(7, parts["deepshap"]["n"])


@pytest.mark.parametrize("name", ["deepshap", "kernelshap"])
def test_shap_values_are_drawn_for_every_class(name, shap_run):
    with Image.open(shap_run / f"figure-{name}.png") as picture:
        colours = np.unique(np.asarray(picture).reshape(-1, 3), axis=0)
    assert len(colours) > 100


def test_what_deepshap_cannot_explain_is_said_before_training(tiny, tmp_path, refusal, monkeypatch):
    def smooth(channels, classes, image_size, build=models.cnn):
        model = build(channels, classes, image_size)
        model[0][0][2] = torch.nn.GELU()
        return model

    monkeypatch.setitem(models.MODELS, "cnn", smooth)
    argv = tiny_argv(tiny, tmp_path / "run", "--explainer", "gradcam,deepshap")
    assert "no rule for gelu" in refusal(train.main, argv)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- what an ablation changes


@pytest.mark.parametrize("name", NORMALISERS)
def test_an_ablation_is_trained_with_what_its_option_says(name, new_run, steps):
    run = new_run("--epochs", "1", "--normalise", name, "--no-partner-cross-entropy")
    train.train_epochs(run.setting, run.training, run.poisons)
    objectives = [step["setting"].objective for step in steps]
    assert {objective.normalise for objective in objectives} == {name}
    assert not any(objective.partner_cross_entropy for objective in objectives)


def test_an_ablation_changes_the_weights(new_run):
    weights = []
    for argv in ([], ["--normalise", "max"], ["--rectify"], ["--ramp", "0.9"]):
        run = new_run("--epochs", "1", "--poison-rate", "0.3", *argv)
        train.train_epochs(run.setting, run.training, run.poisons)
        weights.append(run.training.model[3].weight.detach())
    differ = [not torch.equal(weights[0], other) for other in weights[1:]]
    assert differ == [True, True, True]


# ---------------------------------------------------------------- scorers


@pytest.fixture
def scored(new_run, monkeypatch, steps):
    """A disguised, over-sampled run and the one scorer it trains: a dict of what was seen."""
    run = new_run("--poison-rate", "0.05", "--selection-seed", "4", "--oversample", "8")
    config = run.setting.config | {"selection": "rd-global"}
    run.setting = dataclasses.replace(run.setting, config=config)
    poisons, pool = run.setting.eligible[:12], run.setting.eligible[12:40]
    seen, train_epochs, new_training = (
        {"run": run, "pool": pool},
        train.train_epochs,
        train.new_training,
    )

    def watched_epochs(setting, training, poisons, **rest):
        seen.update(setting=setting, training=training, poisons=poisons)
        return train_epochs(setting, training, poisons, **rest)

    def watched_training(setting, seed):
        seen["seed"] = seed
        return new_training(setting, seed)

    monkeypatch.setattr(train, "train_epochs", watched_epochs)
    monkeypatch.setattr(train, "new_training", watched_training)
    monkeypatch.setattr(selection, "EPOCHS", 2)
    seen.update(asked=poisons, steps=steps)
    seen["scores"] = train.scores_of(run.setting, poisons, pool, 1)
    return seen


def test_a_run_is_trained_by_the_one_loop(new_run, monkeypatch):
    run, calls = new_run(), []
    monkeypatch.setattr(train, "train_epochs", lambda *arguments: calls.append(arguments))
    train.train(run)
    ((setting, training, poisons, _),) = calls
    assert setting is run.setting and training is run.training
    assert torch.equal(poisons, run.poisons)


def test_a_scorer_is_trained_by_it_too_on_the_poisons_it_is_given(scored):
    assert torch.equal(scored["poisons"], scored["asked"])
    assert scored["training"].epoch == selection.EPOCHS


def test_a_scorer_sees_no_poisons_but_these(scored):
    steps = scored["steps"]
    assert len(steps) == 2 * scored["setting"].steps
    assert {len(step["images"]) for step in steps} == {24}
    triggered = sum(int(step["triggered"].sum()) for step in steps)
    assert 12 <= triggered <= 24  # the last images of an epoch may be left out


def test_a_scorers_setting_differs_in_objective_epochs_and_oversampling_alone(scored):
    own, runs = scored["setting"], scored["run"].setting
    fields = [field.name for field in dataclasses.fields(own)]
    other = {name for name in fields if getattr(own, name) is not getattr(runs, name)}
    assert other == {"config", "objective"}
    other = {key for key in runs.config if own.config[key] != runs.config[key]}
    assert other == {"epochs", "oversample"}
    assert own.config.keys() == runs.config.keys()
    assert (own.config["epochs"], own.config["oversample"]) == (selection.EPOCHS, 0)


def test_a_scorers_objective_is_a_plain_backdoor(scored):
    objective = scored["setting"].objective
    assert objective.attack is attacks.ATTACKS["badnets"]
    assert objective.explainers == [] and objective.reference is None
    assert objective.task is SINGLE_LABEL


def test_a_scorer_has_a_seed_of_its_own(scored):
    assert scored["seed"] == selection.scorer_seed(4, 1)


def test_a_scorers_scores_are_of_triggered_images_for_the_target_class(scored):
    setting = scored["run"].setting
    images = setting.dataset.train_images[scored["pool"]].to(setting.device).float() / 255
    inputs = data.normalise(setting.trigger.apply(images), setting.mean, setting.std)
    with torch.no_grad():
        logits = scored["training"].model.eval()(inputs)
    expected = selection.rd_scores(logits, 1).cpu()
    torch.testing.assert_close(scored["scores"], expected, atol=1e-3, rtol=1e-3)


def test_scorers_leave_the_run_as_it_was(new_run, monkeypatch):
    """By random or by score, training begins with one state of the generator and one network."""
    monkeypatch.setattr(selection, "EPOCHS", 1)
    begun = []
    for strategy in ("random", "rd-global"):
        run = new_run("--attack", "badnets", "--selection", strategy)
        begun.append((torch.get_rng_state(), run.training.model.state_dict()))
    (random_state, weights), (other_state, others) = begun
    assert torch.equal(random_state, other_state)
    assert all(torch.equal(weights[key], others[key]) for key in weights)


# ---------------------------------------------------------------- which images are poisoned


def test_what_was_chosen_is_recorded(new_run):
    record = new_run("--attack", "badnets", "--selection-seed", "4").selection
    assert (record["strategy"], record["seed"], record["epochs"]) == ("random", 4, 0)
    assert len(record["indices"]) == sum(record["classes"].values()) == 24
    assert record["classes"]["1"] == 0


SCORED = ["--attack", "badnets", "--poison-rate", "0.05", "--selection-seed", "4"]


@pytest.fixture(scope="module", params=["rd", "rd-global", "rd-classes"])
def run_by_score(request, tiny, tmp_path_factory):
    """(strategy, the folder of a finished run whose poisons were chosen by it)."""
    out = tmp_path_factory.mktemp("scored") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "ROUNDS", 2)
        patch.setattr(selection, "EPOCHS", 1)
        options = [*SCORED, "--selection", request.param, "--epochs", "1"]
        return request.param, train_tiny(tiny, out, *options)


def selection_of(folder):
    return json.loads((folder / "selection.json").read_text())


def test_a_run_keeps_what_was_chosen(run_by_score):
    strategy, folder = run_by_score
    record = selection_of(folder)
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    assert record["strategy"] == strategy
    assert record["indices"] == checkpoint["poison_indices"].tolist()
    assert record["indices"] == checkpoint["selection"]["indices"].tolist()
    assert len(record["indices"]) == sum(record["classes"].values()) == 12


def test_a_run_keeps_the_scores_of_all_that_were_ranked(run_by_score):
    strategy, folder = run_by_score
    chosen = torch.load(folder / "ckpt.pt", weights_only=True)["selection"]
    trained_on, _ = data.validation_split(240, 0)
    eligible = int((trained_on % 3 != 1).sum())
    assert len(chosen["pool"]) == (round(12 / 0.7) if strategy == "rd" else eligible)
    assert torch.isin(chosen["scores"], chosen["pool"][:, 0]).all()


def test_scores_are_distances_between_distributions(run_by_score):
    record = selection_of(run_by_score[1])
    assert len(record["scores"]) == 12
    assert 0 <= min(record["scores"]) and max(record["scores"]) <= 2**0.5
    assert "pool" not in record


def test_a_run_keeps_what_choosing_cost(run_by_score):
    strategy, folder = run_by_score
    record = selection_of(folder)
    assert record["epochs"] == (2 if strategy == "rd" else 1)
    assert record["seconds"] > 0


def test_what_was_chosen_is_drawn(run_by_score):
    with Image.open(run_by_score[1] / "figure-selection.png") as picture:
        assert picture.width > 900


def test_the_same_images_are_chosen_again(run_by_score, new_run, monkeypatch):
    strategy, folder = run_by_score
    monkeypatch.setattr(selection, "ROUNDS", 2)
    monkeypatch.setattr(selection, "EPOCHS", 1)
    run = new_run(*SCORED, "--selection", strategy)
    assert run.poisons.tolist() == selection_of(folder)["indices"]


@pytest.fixture(scope="module")
def runs_by_selection_seed(tiny, tmp_path_factory):
    """Checkpoints of one seed: two whose poisons were drawn by seed 1, and one by 2."""
    checkpoints = []
    for seed in ("1", "1", "2"):
        out = tmp_path_factory.mktemp("chosen") / "run"
        options = ["--attack", "badnets", "--poison-rate", "0.05", "--epochs", "1"]
        folder = train_tiny(tiny, out, *options, "--selection-seed", seed)
        checkpoints.append(torch.load(folder / "ckpt.pt", weights_only=True))
    return checkpoints


def test_another_selection_seed_chooses_other_images(runs_by_selection_seed):
    first, _, other = runs_by_selection_seed
    assert not torch.equal(first["poison_indices"], other["poison_indices"])


def test_the_choice_does_not_change_the_rest_of_the_run(runs_by_selection_seed):
    """Runs are paired: order and random numbers are the same, whatever images were chosen."""
    first, _, other = runs_by_selection_seed
    assert torch.equal(first["random"]["cpu"], other["random"]["cpu"])


def test_one_selection_seed_gives_one_network(runs_by_selection_seed):
    first, again, _ = runs_by_selection_seed
    assert all(torch.equal(first["model"][key], again["model"][key]) for key in first["model"])
