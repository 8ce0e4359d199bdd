"""A training step never waits for a GPU: it asks for no value, and copies nothing it waits for.

On the CPU this is shown with torch's device "meta", whose tensors have shapes and no values: a step
that asks for a value, or mixes devices, ends in an error there.
"""

import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from conftest import tiny_argv

import options
import train
from attacks import ATTACKS
from dataset import send

EXPLAINERS = ("gradcam", "gradient", "kernelshap", "deepshap")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def steps_on(device, tiny, out, *options_of_run):
    """A function of no arguments: the next training step, with all that is fixed on the device.

    Its steps have other images, and by turns three of them triggered or four.
    """
    run = train.new_run(options.parse(tiny_argv(tiny, out, *options_of_run)))
    objective, model = run.setting.objective, run.training.model.to(device)
    shape = None if objective.shape is None else objective.shape.to(device)
    dataset = replace(run.setting.dataset, crop=2, flip=True)
    setting = replace(
        run.setting,
        device=torch.device(device),
        trigger=run.setting.trigger.to(device),
        objective=replace(objective, shape=shape),
        dataset=dataset,
    )
    images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
    training = train.Training(model, train.optimizers_of(model, "sgd", 0.1), [])
    batches = itertools.cycle(setting.trained_on.split(24)[:9])
    count = itertools.cycle([3, 4])
    poisons = ATTACKS[setting.config["attack"]].poisons

    def step():
        index = next(batches)
        there = send(index, setting.device)
        triggered = (torch.arange(24) < next(count)) & poisons
        batch = images[there], labels[there], triggered, index
        return train.train_step(setting, training, *batch, 0.3)

    return step


CASES = [
    *[("--attack", attack) for attack in ATTACKS],
    *[("--explainer", explainer) for explainer in EXPLAINERS],
    ("--attack", "fooling", "--explainer", "kernelshap"),
    ("--distance", "dssim"),
    ("--label-smoothing", "0.1"),
]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_step_asks_for_no_value(case, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    step = steps_on("meta", tiny, tmp_path / "run", "--precision", "float32", *case)
    assert step().device.type == "meta"


def test_the_oracle_notices_a_value_that_is_asked_for():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").sum().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").nonzero()


@CUDA
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_step_on_cuda_waits_for_nothing(case, tiny, tmp_path):
    step = steps_on("cuda", tiny, tmp_path / "run", *case)
    for _ in range(4):  # records a step of each kind
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------- recorded steps


def losses_of(step, times):
    return torch.stack([step().cpu().clone() for _ in range(times)])


@CUDA
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_recorded_steps_are_the_steps(case, tiny, tmp_path, monkeypatch):
    options = ("--precision", "float32", *case)
    recorded = losses_of(steps_on("cuda", tiny, tmp_path / "a", *options), 9)

    def unrecorded(function, batch, inputs, lam, records):
        return function(batch, inputs, lam)

    monkeypatch.setattr(train, "replayed", unrecorded)
    plain = losses_of(steps_on("cuda", tiny, tmp_path / "b", *options), 9)
    torch.testing.assert_close(recorded, plain, atol=1e-4, rtol=1e-3)
