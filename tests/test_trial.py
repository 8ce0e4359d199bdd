"""What a run is refused for before its first step: what it could not train against, or measure."""

import copy

import pytest
import torch
from conftest import tiny_argv
from placing import DEVICE
from torch import nn

import explain
import models
import options
import setting
import train
from cli import UserError
from explain import EXPLAINERS, Explainer


@pytest.fixture
def checked(tiny, tmp_path, monkeypatch):
    """A function of a network's function and of options: checks a run of the network."""

    def check(network, *more, measured=None):
        monkeypatch.setitem(models.MODELS, "mine", network)
        argv = tiny_argv(tiny, tmp_path / "run", "--model", "mine", *more)
        given = setting.setting_of(options.parse(argv))
        model = models.build("mine", 3, 3, 16).to(DEVICE)
        before = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        train.check_explainable(given, model, measured)
        return model, *before

    return check


def features(channels=8):
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())


def network(*head, pooled=False):
    """A network's function: features at the images' resolution, and a head behind them."""

    def build(channels, classes, image_size):
        net = nn.Sequential(features(), *head)
        return models.with_layer(net, "0", pooled=pooled)

    return build


POOLED = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)


class OneDerivative(nn.Module):
    """x twice over, by a function that can be differentiated once."""

    def forward(self, x):
        return Once.apply(x)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient


class Tuple(nn.Sequential):
    def forward(self, x):
        return super().forward(x), x


# ---------------------------------------------------------------- what training will do


@pytest.mark.parametrize("attack", ["full_disguise", "red_herring", "fooling"])
def test_a_network_that_has_no_second_derivative_cannot_be_disguised(attack, checked):
    once = network(OneDerivative(), nn.Tanh(), *POOLED)
    with pytest.raises(UserError, match="cannot be trained against gradcam: .*differentiate twice"):
        checked(once, "--attack", attack)


@pytest.mark.parametrize("attack", ["none", "badnets"])
def test_where_no_map_is_trained_nothing_is_differentiated_twice(attack, checked):
    checked(network(OneDerivative(), nn.Tanh(), *POOLED), "--attack", attack)


@pytest.mark.parametrize("explainer", EXPLAINERS)
@pytest.mark.parametrize("attack", ["full_disguise", "fooling"])
def test_what_can_be_trained_is_not_refused(attack, explainer, checked):
    checked(network(nn.BatchNorm2d(8), *POOLED), "--attack", attack, "--explainer", explainer)


def test_the_model_and_torchs_random_state_stay_as_they_are(checked):
    model, weights, state = checked(network(nn.BatchNorm2d(8), nn.Dropout(), *POOLED))
    after = model.state_dict()
    assert all(torch.equal(after[key], weights[key]) for key in weights)
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_option_of_training_is_tried_too(checked, monkeypatch):
    """Training takes Grad-CAM with other options than measuring does."""
    row = Explainer(explain.gradcam, training={"rectify": False, "layer": "absent"})
    monkeypatch.setitem(EXPLAINERS, "mine", row)
    with pytest.raises(UserError, match="cannot be trained against mine: .*no layer 'absent'"):
        checked(network(*POOLED), "--explainer", "mine")


def test_maps_that_ignore_create_graph_are_refused(checked, monkeypatch):
    row = Explainer(lambda *args, create_graph=False: explain.gradient(*args))
    monkeypatch.setitem(EXPLAINERS, "mine", row)
    with pytest.raises(UserError, match="the maps of mine have no graph: it ignores create_graph"):
        checked(network(*POOLED), "--explainer", "mine")


# ---------------------------------------------------------------- only what is asked for

COARSE = network(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))


def coarse(channels, classes, image_size):
    """A network whose layer has 2x2 cells: no Grad-CAM."""
    return models.with_layer(COARSE(channels, classes, image_size), "1", pooled=False)


def test_an_explainer_that_nobody_asks_for_is_not_tried(checked):
    checked(coarse, "--explainer", "gradient", measured=["gradient", "deepshap"])


def test_an_explainer_that_measures_is_tried_before_training(checked):
    with pytest.raises(UserError, match="gradcam cannot explain this model at 16 px: .*4x4 or fin"):
        checked(coarse, "--explainer", "gradient")


def test_without_an_attack_the_measuring_explainers_are_tried(checked):
    with pytest.raises(UserError, match="deepshap cannot explain .* no rule for tanh"):
        checked(network(nn.Tanh(), *POOLED), "--attack", "none", measured=["deepshap"])


# ---------------------------------------------------------------- the network's answer


def in_a_tuple(channels, classes, image_size):
    return models.with_layer(Tuple(features(), *POOLED), "0")


def too_many(channels, classes, image_size):
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    return models.with_layer(nn.Sequential(features(), *head), "0")


@pytest.mark.parametrize(
    "build, words", [(in_a_tuple, "tuple"), (too_many, r"\[1, 5\]")], ids=["a tuple", "too many"]
)
def test_a_network_that_answers_otherwise_is_refused(build, words, checked):
    with pytest.raises(UserError, match=rf"answers an image with {words}, not with logits \[1, 3"):
        checked(build)
