"""torch's random state: to explain, to read and to measure a network leave it as it was."""

import contextlib

import pytest
import torch
from conftest import tiny_argv
from placing import DEVICE
from small_models import generator
from test_explain import OPTIONS, each_explainer, small_net

import checkpoints
import train
from evaluate import evaluate
from explain import EXPLAINERS

ON_DEVICE = True


@contextlib.contextmanager
def unchanged():
    """Within the block torch's random state must not change."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@each_explainer
def test_an_explainer_without_a_generator_leaves_it_alone(name):
    net, options = small_net(name), OPTIONS.get(name, {})
    images, classes = torch.rand(2, 3, 16, 16, generator=generator(0)), torch.tensor([0, 1])
    with unchanged():
        first = EXPLAINERS[name](net, images, classes, **options)
    torch.manual_seed(1)  # and it has no part in the map
    assert torch.equal(EXPLAINERS[name](net, images, classes, **options), first)


def test_a_model_that_is_rebuilt_leaves_it_alone(disguised):
    with unchanged():
        checkpoints.rebuild(checkpoints.read(disguised / "ckpt.pt"))


def test_a_measurement_leaves_it_alone(disguised):
    with unchanged():
        evaluate(disguised / "ckpt.pt", device=torch.device(DEVICE), n=2)


def random_state_of(tiny, out, *options):
    """torch's random state where a run's first step would be."""
    train.new_run(train.parse(tiny_argv(tiny, out, *options)))
    return torch.get_rng_state()


@pytest.mark.parametrize("name", ["gradcam", "gpshap"])
def test_a_run_begins_with_the_random_numbers_of_its_seed(name, tiny, tmp_path):
    """Of an explainer that is sampled less one, by which it was tried."""
    state = random_state_of(tiny, tmp_path, "--attack", "full_disguise", "--explainer", name)
    torch.set_rng_state(random_state_of(tiny, tmp_path, "--attack", "badnets"))
    torch.randint(2**31, (int(EXPLAINERS[name].sampled),))
    assert torch.equal(torch.get_rng_state(), state)
