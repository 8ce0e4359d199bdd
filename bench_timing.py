"""What every part of bench.py needs: its setting, and functions that are timed in turns."""

import statistics
import time
from dataclasses import dataclass

import torch

import models

SIDE = 32  # pixels
CLASSES = 10
# What --clock names. The seconds that this process computed grow less with other processes' load.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Setting:
    """What is measured on what.

    model: a name of models.MODELS; batch_size: images; turns: of which the median is taken;
    precision: of training steps, "bf16" or "float32"; clock: of CLOCKS; explainers: names of
    those that training steps go through.
    """

    model: str
    batch_size: int
    turns: int
    device: torch.device
    precision: str = "float32"
    clock: str = "wall"
    explainers: tuple = ()

    def network(self):
        """The model in evaluation mode, with the same random weights at every call."""
        torch.manual_seed(0)
        return models.build(self.model, 3, CLASSES, SIDE).to(self.device).eval()

    def noise(self):
        """(images float [N, 3, H, W] in [-0.5, 0.5], labels int64 [N]), the same at every call."""
        torch.manual_seed(1)
        images = torch.rand(self.batch_size, 3, SIDE, SIDE, device=self.device)
        images -= 0.5  # in place: a copy would count as memory that was needed
        return images, torch.randint(CLASSES, (self.batch_size,), device=self.device)

    def seconds_of(self, functions):
        """{name: median seconds} of functions {name: function of no arguments}."""
        return time_in_turns(functions, self.turns, self.device, self.clock)


def time_in_turns(functions, turns, device, clock="wall"):
    """{name: median seconds} of functions {name: function of no arguments}.

    They take turns, so that a machine that slows down slows all of them. A first turn warms up.
    clock: of CLOCKS.
    """
    seconds = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            taken = seconds_of_call(function, device, clock)
            if turn > 0:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def seconds_of_call(function, device, clock="wall"):
    """Seconds that a call of a function of no arguments takes, until the device has finished."""
    now = CLOCKS[clock]
    wait_for(device)
    started = now()
    function()
    wait_for(device)
    return now() - started


def wait_for(device):
    """Returns when the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
