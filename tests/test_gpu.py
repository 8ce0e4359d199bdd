"""A training step never waits for a GPU: it asks for no value, and copies nothing it waits for.

On the CPU this is shown with torch's device "meta", whose tensors have shapes and no values: a step
that asks for a value, or mixes devices, ends in an error there.
"""

import contextlib
from dataclasses import replace

import pytest
import torch
from conftest import tiny_argv

import options
import train
from attacks import ATTACKS

EXPLAINERS = ("gradcam", "gradient", "kernelshap", "deepshap")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def step_on(device, tiny, out, *options_of_run):
    """A function of no arguments: one training step, with all that is fixed on the device."""
    args = options.parse(tiny_argv(tiny, out, *options_of_run))
    run = train.new_run(args)
    setting, training = run.setting, run.training
    objective, model = setting.objective, training.model.to(device)
    shape = None if objective.shape is None else objective.shape.to(device)
    setting = replace(
        setting,
        device=torch.device(device),
        trigger=setting.trigger.to(device),
        objective=replace(objective, shape=shape),
        dataset=replace(setting.dataset, crop=2, flip=True),
    )
    images, labels = (
        t.to(device) for t in (setting.dataset.train_images, setting.dataset.train_labels)
    )
    optimizers = train.optimizers_of(model, "sgd", 0.1)
    training = train.Training(model, optimizers, [])
    index = setting.trained_on[:24]
    triggered = torch.arange(24) < 3
    return lambda: train.train_step(
        setting, training, images[:24], labels[:24], triggered, index, 0.3
    )


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
    step = step_on("meta", tiny, tmp_path / "run", "--precision", "float32", *case)
    assert step().device.type == "meta"


def test_the_oracle_notices_a_value_that_is_asked_for():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").sum().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").nonzero()


@CUDA
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_step_on_cuda_waits_for_nothing(case, tiny, tmp_path):
    step = step_on("cuda", tiny, tmp_path / "run", *case)
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
