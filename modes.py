"""A model in evaluation mode, or with frozen weights, within a block; after it, as before."""

import contextlib


@contextlib.contextmanager
def evaluating(model):
    """Within the block every module is in evaluation mode; after it, each in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def frozen(model):
    """Within the block no weight asks for a gradient; after it, those do that did before.

    Computed weights and those of inference mode, which torch cannot change so, stay as they are.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    weights = [weight for weight in weights if weight.is_leaf and not weight.is_inference()]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
