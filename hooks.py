"""What every explainer needs: images, classes and answers as people bring them; a layer's output.

This is the room below explain.py and the files it imports. Whatever is changed here on a model is
as it was before when the block ends, also when it ends in an exception.
"""

import contextlib
import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dataset import send
from modes import evaluating

# Images explained at a time when no graph is kept, so that memory does not grow with their number.
CHUNK = 256
CHUNK_CPU = 32  # on a CPU, what fits its cache is faster
SMALLEST_GRID = 4  # cells a side of Grad-CAM's map; a coarser one cannot point at anything


# ---------------------------------------------------------------- what is asked, and the answer


def as_images(model, images, what="images", at_least=0):
    """The images as they are, float [N, C, H, W]; their values are not looked at.

    what: their name in a message; at_least: how many there must be.
    Raises ValueError for a model that is no module, and for anything but such a tensor, dense and
    of a pixel or more.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is a torch.nn.Module, not {type(model).__name__}")
    if type(model) is torch.jit.RecursiveScriptModule:  # it takes no hooks
        raise ValueError("a scripted model is explained as torch.nn.Sequential(model)")
    if not isinstance(images, torch.Tensor):
        kind = type(images).__name__
        raise ValueError(f"{what}: a float tensor [N, C, H, W], not {kind}: see torch.from_numpy")
    check_dense(what, images)
    if images.ndim != 4:
        hint = f": give {what}[None]" if images.ndim == 3 else ""
        raise ValueError(f"{what}: [N, C, H, W], not {list(images.shape)}{hint}")
    if 0 in images.shape[1:]:
        raise ValueError(f"{what}: of a channel and a pixel or more, not {list(images.shape)}")
    if not images.is_floating_point() or images.itemsize == 1:  # of 8 bits torch cannot compute
        raise ValueError(
            f"{what}: float, as the model takes them, not {images.dtype}:"
            f" {what}.float() / 255, normalised as in training"
        )
    if len(images) < at_least:
        raise ValueError(f"{what}: {at_least} or more, not {len(images)}")
    if images.is_inference():
        with torch.inference_mode(False):
            return images.clone()
    return images


def check_dense(what, tensor):
    """Raises ValueError for a sparse, nested or quantised tensor; what: its name."""
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        kind = "nested" if tensor.is_nested else f"{tensor.layout} of {tensor.dtype}"
        raise ValueError(f"{what}: a dense tensor, as torch.rand gives one, not {kind}")


def as_classes(classes, count):
    """Classes int64 [count], one an image, on the device where they are.

    classes: whole numbers, as a list, an array or a tensor [N] or [N, 1]; or one for all images.
    count: of the images; None where there are none, and any number of classes is right.
    Raises ValueError for others. Whether the model has them is for `answering` to find.
    """
    images = "" if count is None else f" for each of {count} images"
    wanted = f"classes: a whole number{images}"
    try:
        classes = torch.as_tensor(classes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{wanted}, not {type(classes).__name__}: {error}") from None
    check_dense("classes", classes)
    count = classes.numel() if count is None else count
    whole = not (classes.dtype.is_floating_point or classes.dtype.is_complex)
    if classes.dtype == torch.bool or not (whole or classes.numel() == 0):
        raise ValueError(f"{wanted}, not {classes.dtype}; of one-hot or soft labels, argmax(1)")
    if classes.shape == (count, 1):
        classes = classes[:, 0]
    elif classes.ndim == 0:
        classes = classes.expand(count)
    if classes.shape != (count,):
        hint = "; of one-hot or soft labels, argmax(1)" if classes.ndim == 2 else ""
        raise ValueError(f"{wanted}, not {list(classes.shape)}{hint}")
    return classes.long()


def classes_needed(classes):
    """How many classes a model must have for these, int64 [N]. Raises ValueError below 0."""
    if len(classes) and int(classes.min()) < 0:
        raise ValueError(f"classes are numbered from 0 on: there is no class {int(classes.min())}")
    return int(classes.max()) + 1 if len(classes) else 0


def logits_of_output(output, count):
    """The logits [count, K] in what a model returned.

    output: a tensor; a dict, dataclass or named tuple with "logits"; or a tuple, list or dict in
    which all tensors that could be logits are of one shape: then the first. One logit z an image,
    [N] or [N, 1], stands for two classes, whose logits are -z and z: its probability is class 1's.
    Raises ValueError for others.
    """
    if isinstance(output, Mapping):
        parts = [output["logits"]] if "logits" in output else list(output.values())
    elif hasattr(output, "logits"):
        parts = [output.logits]
    else:
        parts = list(output) if isinstance(output, (tuple, list)) else [output]
    tensors = [part for part in parts if could_be_logits(part, count)]
    if len({tuple(part.shape) for part in tensors}) != 1:
        kinds = [list(p.shape) if torch.is_tensor(p) else type(p).__name__ for p in parts]
        raise ValueError(
            f"the model returns {', '.join(map(str, kinds))} for {count} images, not logits"
            f" [{count}, K] (of two classes also [{count}]), alone or named 'logits':"
            " wrap it in a module that returns them"
        )
    logits = tensors[0] if tensors[0].ndim == 2 else tensors[0][:, None]
    return logits if logits.shape[1] != 1 else torch.cat([-1 * logits, logits], 1)


def could_be_logits(value, count):
    """Whether a part of an output is a float tensor [count, K] or [count]."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.dtype.is_floating_point
        and value.ndim in (1, 2)
        and len(value) == count
    )


@contextlib.contextmanager
def answering(model, needed=0):
    """Within the block the model is in evaluation mode, and returns logits [N, K] alone.

    They are read by logits_of_output. Raises ValueError for fewer than `needed` classes, and where
    `refusing` does.
    """

    def read(module, inputs, output):
        logits = logits_of_output(output, len(inputs[0]))
        if logits.shape[1] < needed:
            have = f"{logits.shape[1]} classes, numbered from 0"
            raise ValueError(f"the model has {have}: there is no class {needed - 1}")
        return logits

    with evaluating(model), refusing(model):
        handle = model.register_forward_hook(read)
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def refusing(model):
    """Within the block a forward pass that fails on its images ends in a ValueError that says so.

    Of another size, kind or device than the model takes, say. Memory that is full is no such case.
    """
    entered = []  # images whose forward pass has not ended
    enter = lambda module, inputs: entered.append(inputs[0])
    leave = lambda module, inputs, output: entered.clear()
    handles = model.register_forward_pre_hook(enter), model.register_forward_hook(leave)
    try:
        yield
    except (RuntimeError, TypeError, IndexError, AssertionError) as error:
        if not entered or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(f"{refusal(model, entered[0])}: {error}") from error
    finally:
        for handle in handles:
            handle.remove()


def refusal(model, images):
    """What to say where a model's forward pass fails on images."""
    line = f"the model does not take images {list(images.shape)} of {images.dtype}"
    weight = next(model.parameters(), None)
    own = "" if weight is None else f", its weights being {weight.dtype} on {weight.device}"
    return f"{line} on {images.device}{own}"


def derivative(score, tensor, **options):
    """d score / d tensor; options: of torch.autograd.grad.

    Raises ValueError where no gradient flows from one to the other, or torch knows none.
    """
    found = None
    if score.requires_grad:
        try:
            (found,) = torch.autograd.grad(score, tensor, allow_unused=True, **options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(f"torch cannot differentiate this model: {error}") from error
    check_differentiable(found is not None)
    return found


def check_differentiable(differentiable):
    """Raises ValueError where no gradient came out."""
    if not differentiable:
        raise ValueError(
            "no gradient flows back from the logits: a part of the model runs under torch.no_grad"
            " or inference mode, or detaches; take that out (to freeze weights, set their"
            " requires_grad to False) or, of Grad-CAM, choose a layer behind it"
        )


# ---------------------------------------------------------------- a layer, and what it gives


def layer_of(model, layer=None, images=None):
    """The nn.Module that `layer` means: a module, the name of one, a list of one of these, or None.

    None is model.gradcam_layer or, where the model has none and images [N, C, H, W] are given, its
    last_feature_map. Raises ValueError where the model has no such module.
    """
    layer = getattr(model, "gradcam_layer", None) if layer is None else layer
    if isinstance(layer, (list, tuple)):  # as pytorch-grad-cam takes them
        if len(layer) != 1:
            raise ValueError(f"Grad-CAM looks at one layer, not {len(layer)}")
        (layer,) = layer
    if isinstance(layer, nn.Module):
        return layer
    if layer is None and images is not None:
        return last_feature_map(model, images[:1])
    if layer is None:
        raise ValueError("this model has no gradcam_layer: say which layer Grad-CAM looks at")
    modules = dict(model.named_modules())
    if not isinstance(layer, str) or not layer or layer not in modules:
        names = [name for name in modules if name]  # the model itself has none
        examples = ", ".join([name for name in names if name.count(".") == 1] or names)
        raise ValueError(f"the model has no layer {layer!r}; some it has: {examples}")
    return modules[layer]


@torch.no_grad()
def last_feature_map(model, image):
    """The last module, before final pooling, that gives a feature map of 4x4 or finer.

    It is found by a forward pass on an image [1, C, H, W], among modules that run once.
    Raises ValueError where there is none, or where tokens follow it: then the network is a
    transformer, and its last feature map is hardly more than the image.
    """
    runs = []  # (name, module, output), in the order in which modules end
    with contextlib.ExitStack() as hooks, answering(model):
        for name, module in list(model.named_modules())[1:]:
            note = lambda module, _, output, name=name: runs.append((name, module, output))
            hooks.callback(module.register_forward_hook(note).remove)
        model(image)
    times = [module for _, module, _ in runs]
    pooled = {id(output) for _, module, output in runs if "pool" in type(module).__name__.lower()}
    found, tokens = None, None
    for name, module, output in runs:
        if fault_of_map(output, image) is None and times.count(module) == 1:
            if id(output) not in pooled:
                found, tokens = (name, module), None
        elif torch.is_tensor(output) and output.ndim == 3:
            tokens = list(output.shape[1:])
    if found is None:
        at = f"{image.shape[2]}x{image.shape[3]} px"
        fault = f"no module gives a feature map of {SMALLEST_GRID}x{SMALLEST_GRID} or finer at {at}"
        raise ValueError(f"{fault}: Grad-CAM has no layer to look at")
    if tokens is not None:
        fault = (
            f"after {found[0]!r}, the last feature map, come tokens {tokens}, as in transformers"
        )
        raise ValueError(f"{fault}: say which layer Grad-CAM looks at")
    return found[1]


def fault_of_map(feature, images):
    """Why a layer's output is no feature map [N, K, H', W'] of 4x4 or finer; None if it is one."""
    if not torch.is_tensor(feature):
        return f"returns {type(feature).__name__}, not a feature map [N, C, H, W]"
    shape = list(feature.shape[1:])
    if feature.ndim == 3 and min(shape) > 1:
        return f"gives {shape}, tokens as in transformers, not a feature map [C, H, W]"
    if feature.ndim != 4 or min(shape[1:]) < SMALLEST_GRID:
        return f"gives {shape}, not a feature map of {SMALLEST_GRID}x{SMALLEST_GRID} or finer"
    if len(feature) != len(images):
        return f"gives {len(feature)} maps for {len(images)} images"
    # A grid has nearly the image's proportions. Where the first two sizes fit better, they are it.
    height, width = images.shape[2:]
    first, last = (abs(math.log(h / w * width / height)) for h, w in (shape[:2], shape[1:]))
    if first < last and min(shape[:2]) >= SMALLEST_GRID:
        return f"gives {shape}, channels last, as swin transformers, not a feature map [C, H, W]"
    return None


def captured_once(captured):
    """The maps [N, K, H', W'] that one forward pass left in `captured`.

    Raises ValueError for a layer that the pass does not reach exactly once, or that gives no maps.
    """
    if len(captured) != 1:
        raise ValueError(
            f"the layer ran {len(captured)} times in one forward pass: choose one that runs once"
        )
    if captured[0].ndim != 4:
        raise ValueError(f"the layer {fault_of_map(captured[0], captured[0])}")
    return captured[0]


def feature_map(captured, images):
    """Grad-CAM's feature map [N, K, H', W'], which a forward pass on images left in `captured`.

    Raises ValueError as captured_once, and for a grid that is coarser than 4x4.
    """
    fault = fault_of_map(captured_once(captured), images)
    if fault is not None:
        raise ValueError(f"the layer {fault}: choose an earlier layer or a larger --image-size")
    return captured[0]


@contextlib.contextmanager
def capture(layer, detach=False):
    """Within the block, a list that receives the layer's output at each forward pass.

    The outputs are ready to be differentiated with respect to. What flows on is a copy, so that an
    in-place operation after the layer leaves the captured tensor alone. With detach=True the graph
    begins at the layer, which is enough for an explanation that is not trained through.
    """
    captured = []

    def hook(module, inputs, output):
        if not torch.is_tensor(output):
            raise ValueError(f"the layer {fault_of_map(output, None)}")
        with torch.enable_grad():  # a backbone may run without, and a head behind it with
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


def full_precision(tensor):
    """bfloat16 and float16 as float32; float32 and float64 as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def in_chunks(explain, model, images, classes, create_graph):
    """explain(images, classes) -> maps [N, H, W], in evaluation mode with gradients on.

    images: float [N, C, H, W]; classes: as of as_classes; within `explain` they are int64 [n], and
    model(images) is logits [n, K]: see answering. With create_graph all images are explained at
    once; without, in chunks whose maps are detached. torch.no_grad and inference mode around the
    call, and weights that are frozen, change nothing.
    Raises ValueError for images or classes that are none, and for classes the model does not have;
    with create_graph nobody waits for a GPU, and classes that are there are not looked at.
    """
    images = as_images(model, images)
    classes = as_classes(classes, len(images))
    readable = classes.device.type == "cpu" or not create_graph
    needed = classes_needed(classes) if readable else 0
    classes = send(classes, images.device)
    # Fused attention has no second derivative.
    attention = sdpa_kernel(SDPBackend.MATH) if create_graph else contextlib.nullcontext()
    with torch.inference_mode(False), torch.enable_grad(), answering(model, needed), attention:
        classes = classes.clone() if classes.is_inference() else classes
        if create_graph:
            return explain(images, classes)
        size = chunk_size(images)
        chunks = zip(images.split(size), classes.split(size))
        return torch.cat([explain(image, label).detach() for image, label in chunks])


def chunk_size(images):
    """How many images to explain at a time on the device where `images` are."""
    return CHUNK_CPU if images.device.type == "cpu" else CHUNK
