"""The device of `pytest --device`, and the mode that puts there what the tests make.

A test file that says ON_DEVICE = True has its tensors made on the CPU, with the CPU's random
numbers, and moved to the device; what the library makes stays where the library puts it, so that
tensors on two devices that are mixed end in an error. Networks the tests place themselves, by
.to(DEVICE). Nothing here is a test.
"""

import os
import sys

import torch
from torch.overrides import TorchFunctionMode

DEVICE = "cpu"  # a test file that imports it gets the option's: files are read after the options
FACTORIES = {
    *(torch.arange, torch.as_tensor, torch.empty, torch.eye, torch.full, torch.linspace),
    *(torch.ones, torch.rand, torch.randint, torch.randn, torch.randperm, torch.tensor),
    torch.zeros,
}


class Placing(TorchFunctionMode):
    """Under it what a file with ON_DEVICE makes, without naming a device, is on the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function not in FACTORIES or "device" in (kwargs or {}):
            return made
        if not sys._getframe(1).f_globals.get("ON_DEVICE", False):
            return made
        # A leaf stays a leaf.
        return made.detach().to(DEVICE).requires_grad_(made.requires_grad)


def use(name):
    """Makes this the device of all that follows; there, equal calls then give equal digits."""
    global DEVICE
    if name == "cpu":
        return
    torch.empty(1, device=name)  # ends here where there is none
    DEVICE = name
    # Sums in an order that changes by the run, and products of 11 bits, are no fault of the code.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.set_flags(_allow_tf32=False)
    Placing().__enter__()


def agree(found, expected, tolerance=1e-5):
    """Whether two tensors are equal: on the CPU to the bit, elsewhere to the tolerance.

    For what a GPU sums in another order: batches of another size, and other layouts.
    """
    if DEVICE == "cpu" or not found.is_floating_point():
        return torch.equal(found, expected)
    return torch.allclose(found, expected, atol=tolerance, rtol=tolerance)
