"""DeepSHAP: what each pixel adds to the logit, layer by layer, against a reference image.

    maps = deep_shap(model, images, classes)    # [N, H, W], signed

DeepLIFT's rescale rule walks back through the network like a gradient. Only at a nonlinearity it
passes on, instead of the derivative, the difference quotient

    (f(h) - f(h_reference)) / (h - h_reference)

of the activations that the image and the reference have there. The result times (image - reference)
sums to f(image) - f(reference) (Shrikumar et al., ICML 2017, section 3.5.2; averaged over
references it is DeepSHAP: Lundberg and Lee, NeurIPS 2017, section 4.2).

The network is run as it is. A torch-function mode sees each operation on what comes from the image,
and replaces ReLU and max-pooling; an operation that no rule is known for is refused by name.
"""

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from hooks import as_images, derivative, full_precision, in_chunks

# Operations that the rescale rule passes through unchanged, by the names torch calls them.
SUMS = {
    *("add", "add_", "__add__", "__radd__", "__iadd__"),
    *("sub", "sub_", "__sub__", "__isub__"),
    "cat",
}
SCALINGS = {
    *("mul", "mul_", "__mul__", "__rmul__", "__imul__"),
    *("div", "div_", "__truediv__", "__itruediv__"),
}
LAYERS = {
    *("conv2d", "linear", "batch_norm", "dropout"),
    *("avg_pool2d", "adaptive_avg_pool2d", "mean", "sum"),
    *("flatten", "reshape", "view", "expand", "permute", "transpose", "squeeze", "unsqueeze"),
    *("contiguous", "clone", "pad", "to", "float", "double", "__getitem__"),
}
# Whose answer is no tensor, or a property (__get__), which may be one.
QUESTIONS = {"dim", "size", "numel", "__len__", "__get__"}
MAX_POOLS = {"max_pool2d": F.max_pool2d, "adaptive_max_pool2d": F.adaptive_max_pool2d}
CLOSE = 1e-7  # activations nearer than this have no difference to explain


def deep_shap(model, images, classes, references=None, *, create_graph=False):
    """Each pixel's share of f(image) - f(reference), summed over channels, float [N, H, W], signed.

    images: float [N, C, H, W], as the model takes them; classes: int64 [N]; f: the class's logit.
    references: [R, C, H, W] in the units of `images` (None: one of zeros). The maps are means over
        references; the cost grows with R.

    With create_graph the model first runs on the images as it is, to find the difference quotients,
    and then with these in the nonlinearities' place. So the quotients are differentiated, too.
    Autocast is off within, so images and weights are of one dtype: the derivative of a quotient of
    small differences is large, and in bfloat16 it is mostly rounding.
    Handles ReLU and what SUMS, SCALINGS, LAYERS and MAX_POOLS name, as modules or functions. Raises
    ValueError, with its name, for anything else that the image goes through.
    """
    images = as_images(model, images)
    references = as_references(model, references, images)

    def explain(images, classes):
        with torch.set_grad_enabled(create_graph):
            seen_of_references = Recording.of(model, references)
            seen_of_images = Recording.of(model, images) if create_graph else None
        maps = []
        for r, reference in enumerate(references):
            seen = [[part[r : r + 1] for part in parts] for parts in seen_of_references]
            leaf = images.detach().clone().requires_grad_()
            with Gated(leaf, seen, seen_of_images) as gated:
                logits = model(gated.image)
            check_followed(logits)
            score = full_precision(logits).gather(1, classes[:, None]).sum()
            multiplier = derivative(score, leaf, create_graph=create_graph)
            maps.append(full_precision(multiplier * (images - reference)).sum(1))
        return torch.stack(maps).mean(0)

    with torch.autocast(images.device.type, enabled=False):
        return in_chunks(explain, model, images, classes, create_graph)


def as_references(model, references, images):
    """The references [R, C, H, W] where the images are; None is one of zeros. Raises ValueError."""
    if references is None:
        return images.new_zeros(1, *images.shape[1:])
    references = as_images(model, references, "references", at_least=1)
    if references.shape[1:] != images.shape[1:]:
        sizes = f"{list(references.shape[1:])} for images {list(images.shape[1:])}"
        raise ValueError(f"references are of the images' size, not {sizes}")
    return references.to(images)


def check_followed(logits):
    """Raises ValueError where the mode has lost sight of the image within the model."""
    if not getattr(logits, "from_image", False):
        raise ValueError(
            "DeepSHAP cannot follow the image through this model:"
            " its output does not come from torch functions called in Python"
        )


# ---------------------------------------------------------------- following the image


class Following(TorchFunctionMode):
    """Within the block, sees every torch function that is applied to what comes from `image`.

    A subclass says what relu(x) and max_pool(x, pool) return. Raises ValueError for functions the
    rescale rule is not known for.
    """

    def __init__(self, image):
        super().__init__()
        self.image = image.clone()
        self.image.from_image = True

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", str(function))
        tensors = flattened([*args, *kwargs.values()])
        followed = [t for t in tensors if getattr(t, "from_image", False)]
        if not followed:
            return function(*args, **kwargs)
        if name in QUESTIONS:
            answer = function(*args, **kwargs)
            if not isinstance(answer, torch.Tensor):
                return answer
        result = self.apply_rule(name, function, args, kwargs, followed)
        result.from_image = True
        return result

    def apply_rule(self, name, function, args, kwargs, followed):
        """The operation's result, by the rule for it."""
        if name in ("relu", "relu_"):
            if name == "relu_" or argument(args, kwargs, "inplace", 1):
                return args[0].copy_(self.relu(args[0].clone()))
            return self.relu(args[0])
        if name in MAX_POOLS:
            options = kwargs | {"return_indices": True}
            return self.max_pool(args[0], lambda: MAX_POOLS[name](*args, **options))
        if is_linear(name, args, kwargs, followed):
            return function(*args, **kwargs)
        operands = " of two activations" if name in SCALINGS else ""
        if name == "__get__":
            name = getattr(getattr(function, "__self__", None), "__name__", name)
        raise ValueError(f"DeepSHAP has no rule for {name}{operands}")


def is_linear(name, args, kwargs, followed):
    """Whether an operation is affine in the image: neither weights nor factors come from it."""
    if name == "batch_norm" and argument(args, kwargs, "training", 5):
        return False
    if name == "dropout" and argument(args, kwargs, "training", 2):
        return False
    if name in SUMS:
        return True
    if len(followed) > 1:
        return False
    return name in LAYERS or (name in SCALINGS and (followed[0] is args[0] or "mul" in name))


class Recording(Following):
    """Remembers what went into each nonlinearity, and of max-pooling what came out, from where."""

    def __init__(self, image):
        super().__init__(image)
        self.seen = []

    def relu(self, x):
        self.seen.append((x.clone(),))  # the model may go on to change x
        return x.relu()

    def max_pool(self, x, pool):
        y, index = pool()
        self.seen.append((x.clone(), y.clone(), index))
        return y

    @classmethod
    def of(cls, model, images):
        """What is remembered of one forward pass: a tuple of tensors for each nonlinearity."""
        with cls(images) as recording:
            model(recording.image)
        return recording.seen


class Gated(Following):
    """Gives every nonlinearity, as slope, its difference quotient between images and a reference.

    of_reference: what a Recording saw of the reference; of_images: of the images, or None to take
    the activations as they come. With of_images the computed values mean nothing, and their
    gradient is the result. Without, the values are the model's.
    """

    def __init__(self, image, of_reference, of_images=None):
        super().__init__(image)
        self.of_reference = iter(of_reference)
        self.of_images = None if of_images is None else iter(of_images)

    def relu(self, x):
        (reference,) = next(self.of_reference)
        (own,) = next(self.of_images) if self.of_images else (x.detach(),)
        high = above_close(torch.maximum(own, reference))
        difference = (own - reference).abs().clamp_min(CLOSE)
        gate = F.hardtanh(high / difference, 0, 1)  # 1: both positive; 0: neither
        if self.of_images:
            return x.clone() * gate
        return WithSlope.apply(x, own.relu, gate)

    def max_pool(self, x, pool):
        """Two paths: from the image's maximum (larger - y_ref), from the reference's (y - larger).

        larger is max(y, y_ref), so one of the two is 0. The other is divided by the difference of
        the inputs at its own place, which is no smaller.
        """
        if self.of_images:
            own, y, index = next(self.of_images)
        else:
            with torch.no_grad():
                own = x.detach()
                y, index = pool()
        reference, y_reference, index_reference = next(self.of_reference)
        index_reference = index_reference.expand_as(index)
        reference = reference.expand_as(own)
        rise, fall = above_close(y - y_reference), above_close(y_reference - y)
        gate = rise / (y - pick(reference, index)).clamp_min(CLOSE)
        gate_reference = fall / (y_reference - pick(own, index_reference)).clamp_min(CLOSE)
        result = pick(x, index) * gate + pick(x, index_reference) * gate_reference
        if self.of_images:
            return result
        return WithSlope.apply(result, lambda: y, torch.ones_like(y))


class WithSlope(torch.autograd.Function):
    """The value of a function, with `slope` as its derivative with respect to x."""

    @staticmethod
    def forward(ctx, x, value, slope):
        ctx.save_for_backward(slope)
        return value()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


# ---------------------------------------------------------------- small parts


def above_close(x):
    """x where it is above CLOSE, else 0, without a gradient: divided by CLOSE it would be large."""
    return F.threshold(x, CLOSE, 0)


def pick(x, index):
    """x [N, C, H, W] at flat positions [N, C, h, w], as max-pooling counts them.

    What is returned, and the gradient that comes back, are laid out in memory as x is.
    """
    if x.is_contiguous():
        return x.flatten(2).gather(2, index.flatten(2)).view_as(index)
    positions = index.permute(0, 2, 3, 1).flatten(1, 2)
    picked = x.permute(0, 2, 3, 1).flatten(1, 2).gather(1, positions)
    return picked.unflatten(1, index.shape[2:]).permute(0, 3, 1, 2)


def argument(args, kwargs, name, position):
    """An argument of a call, however it was passed; False if it was not."""
    return kwargs.get(name, args[position] if len(args) > position else False)


def flattened(values):
    """Yields the tensors among values, and those inside lists and tuples."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flattened(value)
        elif isinstance(value, torch.Tensor):
            yield value
