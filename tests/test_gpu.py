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

import graphs
import losses
import metrics
import options
import setting
import train
from attacks import ATTACKS
from cli import UserError
from dataset import send
from defences.neuroninspect import heatmap_features
from explain import EXPLAINERS
from optimizers import optimizers_of, step_at

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def steps_on(device, tiny, out, *options_of_run):
    """A function of no arguments: the next training step, with all that is fixed on the device.

    Its steps have other images, and by turns three of them triggered or four.
    """
    run = train.new_run(options.parse(tiny_argv(tiny, out, *options_of_run)))
    objective, model = run.setting.objective, run.training.model.to(device)
    shape = None if objective.shape is None else objective.shape.to(device)
    relabel = None if run.setting.relabel is None else run.setting.relabel.to(device)
    dataset = replace(run.setting.dataset, crop=2, flip=True)
    given = replace(
        run.setting,
        device=torch.device(device),
        trigger=run.setting.trigger.to(device),
        objective=replace(objective, shape=shape),
        relabel=relabel,
        dataset=dataset,
    )
    images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
    training = train.Training(model, optimizers_of(model, "sgd", 0.01), [])
    batches = itertools.cycle(given.trained_on.split(24)[:9])
    count = itertools.cycle([3, 4])
    poisons = ATTACKS[given.config["attack"]].poisons

    def step():
        index = next(batches)
        there = send(index, given.device)
        triggered = (torch.arange(24) < next(count)) & poisons
        batch = images[there], labels[there], triggered, index
        return train.train_step(given, training, *batch, 0.3)

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


MEASURES = {
    "pearson": lambda maps: metrics.pearson(maps, maps.roll(1, 0)),
    "dssim": lambda maps: losses.dssim(maps, maps.roll(1, 0)),
    "top overlap": lambda maps: metrics.top_overlap(maps, maps.roll(1, 0)),
    "NeuronInspect": heatmap_features,
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_what_is_measured_of_maps_is_made_on_their_device(measure):
    assert measure(torch.zeros(5, 16, 16, device="meta")).device.type == "meta"


def test_the_oracle_notices_a_value_that_is_asked_for():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").sum().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").nonzero()


@pytest.fixture
def as_shipped():
    """With the sums whose order changes: what pytest --device asks for is slower, and may wait."""
    asked = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(asked, warn_only=True)


@CUDA
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_step_on_cuda_waits_for_nothing(case, tiny, tmp_path, as_shipped):
    step = steps_on("cuda", tiny, tmp_path / "run", "--precision", "bf16", *case)
    for _ in range(4):  # records a step of each kind
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------- recorded steps


SAMPLED = {name for name, row in EXPLAINERS.items() if row.sampled}
RECORDED = [case for case in CASES if not SAMPLED & {*case}]


def losses_of(step, times=6):
    return torch.stack([step().cpu().clone() for _ in range(times)])


@CUDA
@pytest.mark.parametrize("case", RECORDED, ids=" ".join)
def test_recorded_steps_are_the_steps(case, tiny, tmp_path, as_shipped):
    options = ("--precision", "float32", *case)
    plain = losses_of(steps_on("cuda", tiny, tmp_path / "a", *options))
    recorded = losses_of(steps_on("cuda", tiny, tmp_path / "b", *options, "--cuda-graphs"))
    # Steps at a high rate make much of the last digits.
    torch.testing.assert_close(recorded, plain, atol=0.02, rtol=0.02)


class Replay:
    """Stands for a CUDA graph: to replay it is to call the function again, on the same tensors."""

    def __init__(self, result, again):
        self.result, self.again = result, again

    def replay(self):
        self.result.copy_(self.again())


@pytest.fixture
def recordings(monkeypatch):
    """A list of the kinds that were recorded, on the CPU."""
    kinds = []

    def record(function, batch, inputs, numbers, others):
        kinds.append((len(inputs), len(batch.rows)))
        copies = {name: getattr(batch, name).clone() for name in graphs.FROM_BATCH}
        batch, inputs, numbers = replace(batch, **copies), inputs.clone(), torch.zeros(len(numbers))
        result = torch.zeros(3)
        again = Replay(result, lambda: function(batch, inputs, numbers))
        return graphs.Record(again, batch, inputs, numbers, result)

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(setting, "check_recordable", lambda args, device: None)
    return kinds


@pytest.mark.parametrize("case", RECORDED, ids=" ".join)
def test_a_replay_is_of_this_steps_images_and_weight(case, tiny, tmp_path, recordings):
    options = ("--precision", "float32", *case)
    plain = losses_of(steps_on("cpu", tiny, tmp_path / "a", *options))
    recorded = losses_of(steps_on("cpu", tiny, tmp_path / "b", *options, "--cuda-graphs"))
    # Their weights differ in the last digit, and steps at a high rate make much of it.
    torch.testing.assert_close(recorded, plain, atol=0.02, rtol=0.02)
    assert len(recordings) == len(set(recordings)) == (1 if "none" in case else 2)


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_a_step_at_a_rate_that_is_a_tensor_is_the_step(name):
    def weights_after(by_tensor):
        torch.manual_seed(0)
        layers = torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5)
        model = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)
        images = torch.randn(16, 3, 8, 8)
        parts = optimizers_of(model, name, 0.1)
        for rate in (0.02, 0.06, 0.1, 0.05, 0.01):
            for part in parts:
                part.zero_grad(set_to_none=False)
                part.param_groups[0]["lr"] = rate if not by_tensor else float("nan")
            model(images).square().mean().backward()
            for part in parts:
                step_at(part, torch.tensor(rate)) if by_tensor else part.step()
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    torch.testing.assert_close(weights_after(True), weights_after(False), atol=1e-6, rtol=1e-5)


def test_what_the_cpu_sends_cannot_be_recorded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="cannot read from the CPU"):
        send(torch.ones(1), torch.device("cuda"))


def test_without_cuda_there_are_no_graphs(tiny, tmp_path, refusal):
    line = refusal(
        train.main, tiny_argv(tiny, tmp_path / "run", "--device", "cpu", "--cuda-graphs")
    )
    assert "--cuda-graphs is for a CUDA device, and this is cpu" in line


def test_a_sampled_map_is_not_recorded():
    args = options.parse(["--explainer", "kernelshap", "--cuda-graphs"])
    with pytest.raises(UserError, match="cannot record kernelshap"):
        setting.check_recordable(args, torch.device("cuda"))
