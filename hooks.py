"""What every explainer needs: a layer's output, evaluation mode, full precision, chunks.

This is the room below explain.py, shapley.py and deepshap.py. Whatever is changed here on a model
is as it was before when the block ends, also when it ends in an exception.
"""

import contextlib

import torch
from torch import nn

# Images explained at a time when no graph is kept, so that memory does not grow with their number.
CHUNK = 256
CHUNK_CPU = 32  # on a CPU, what fits its cache is faster


def layer_of(model, layer=None):
    """The nn.Module that `layer` means: a module, the name of one, or None for model.gradcam_layer.

    Raises ValueError where the model has no such module.
    """
    layer = getattr(model, "gradcam_layer", None) if layer is None else layer
    if isinstance(layer, nn.Module):
        return layer
    if layer is None:
        raise ValueError("this model has no gradcam_layer: say which layer Grad-CAM looks at")
    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        names = [name for name in modules if name]  # the model itself has none
        examples = ", ".join([name for name in names if name.count(".") == 1] or names)
        raise ValueError(f"the model has no layer {layer!r}; some it has: {examples}")
    return modules[layer]


@contextlib.contextmanager
def capture(layer, detach=False):
    """Within the block, a list that receives the layer's output at each forward pass.

    The outputs are ready to be differentiated with respect to. What flows on is a copy, so that an
    in-place operation after the layer leaves the captured tensor alone. With detach=True the graph
    begins at the layer, which is enough for an explanation that is not trained through.
    """
    captured = []

    def hook(module, inputs, output):
        feature = output
        if detach or not output.requires_grad:
            feature = output.detach().requires_grad_()
        captured.append(feature)
        return feature.clone()

    handle = layer.register_forward_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()


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


def full_precision(tensor):
    """bfloat16 and float16 as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def in_chunks(explain, model, images, classes, create_graph):
    """explain(images, classes) -> maps [N, H, W], in evaluation mode with gradients on.

    images: [N, C, H, W]; classes: int64 [N]. With create_graph all images are explained at once;
    without, in chunks whose maps are detached. torch.no_grad and inference mode around the call,
    and weights that are frozen, change nothing.
    """
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        images, classes = (t.clone() if t.is_inference() else t for t in (images, classes))
        if create_graph:
            return explain(images, classes)
        size = chunk_size(images)
        chunks = zip(images.split(size), classes.split(size))
        return torch.cat([explain(image, label).detach() for image, label in chunks])


def chunk_size(images):
    """How many images to explain at a time on the device where `images` are."""
    return CHUNK_CPU if images.device.type == "cpu" else CHUNK
