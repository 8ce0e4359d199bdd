"""Explanations of a classifier's decision: tensors in, tensors out, differentiable.

    maps = gradcam(model, images, classes)       # [N, H', W'], one map an image, for the logit of its class
    maps = kernel_shap(model, images, classes)   # Shapley values of patches, from masked images
    maps = deep_shap(model, images, classes)     # contributions of pixels, layer by layer

Every explainer has one signature, explainer(model, images, classes, *, create_graph=False, ...): images float [N, C, H, W] as the
model takes them, classes int64 [N], maps float32 [N, H', W'] at the explainer's own resolution. Any nn.Module that returns logits
[N, K] will do. Batch normalisation uses its running statistics while an explanation is made, so that no image's map depends on its
neighbours; the model's modes and `.grad` are left as they were, no hook stays behind, and no_grad around the call or frozen weights
change nothing. With create_graph=True the maps can be differentiated with respect to the weights: training through them.
"""
import contextlib
import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

CHUNK = 256  # images explained at a time when no graph is kept, so that memory does not grow with N; on a CPU what fits its cache is faster
CHUNK_CPU = 32
SMALLEST_MAP = 4  # cells a side; a coarser map cannot point at anything


@contextlib.contextmanager
def capture(layer, detach=False):
    """Within the block, a list that receives the layer's output at each forward pass, ready to be differentiated to.

    What flows on is a copy, so that an in-place operation after the layer leaves the captured tensor alone. With detach=True
    the graph begins at the layer: enough for an explanation that is not trained through.
    """
    captured = []

    def hook(module, inputs, output):
        feature = output.detach().requires_grad_() if detach or not output.requires_grad else output
        captured.append(feature)
        return feature.clone()

    handle = layer.register_forward_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()


@contextlib.contextmanager
def evaluating(model):
    """Every module in evaluation mode within the block, each in its own mode again after it."""
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


def gradcam_map(feature, logits, classes, create_graph=False, rectify=True):
    """Grad-CAM from one forward pass: relu(sum_k alpha_k A_k), alpha_k the mean over positions of d y_c / d A_k.

    feature: A, [N, K', H', W'], what `logits` [N, K] were computed from; classes: int64 [N]; returns [N, H', W'], float32 or finer.
    The gradient stops at A: what is differentiated twice in training is the head alone. One gradient of the summed logits is
    right wherever nothing between A and the logits mixes samples. rectify=False leaves out the relu.
    Source: Selvaraju et al., ICCV 2017, eq. 1 and 2.
    """
    score = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, feature, create_graph=create_graph, retain_graph=True)
    gradient, feature = full_precision(gradient), full_precision(feature)
    alpha = gradient.mean((2, 3), keepdim=True)  # [N, K', 1, 1]
    cam = (alpha * feature).sum(1)
    return cam.relu() if rectify else cam


def gradcam(model, images, classes, layer=None, *, create_graph=False, rectify=True):
    """Grad-CAM at `layer` (None: model.gradcam_layer), [N, H', W'] on the layer's grid, at least 4x4.

    Raises ValueError for a layer the forward pass does not reach just once, or whose output is no feature map of 4x4 or more.
    """
    layer = model.gradcam_layer if layer is None else layer

    def explain(images, classes):
        with capture(layer, detach=not create_graph) as captured:
            logits = model(images)
        if len(captured) != 1:
            raise ValueError(f"Grad-CAM's layer ran {len(captured)} times in one forward pass: choose one that runs once")
        check_feature(captured[0])
        return gradcam_map(captured[0], logits, classes, create_graph, rectify)

    return _chunked(explain, model, images, classes, create_graph)


def check_feature(feature):
    """Raise ValueError unless `feature` is [N, K', H', W'] with a grid of 4x4 cells or finer."""
    if feature.ndim != 4 or min(feature.shape[2:]) < SMALLEST_MAP:
        raise ValueError(f"Grad-CAM's layer gives {list(feature.shape[1:])}, not a feature map of 4x4 or finer: "
                         "choose an earlier layer or a larger --image-size")


def gradient(model, images, classes, *, create_graph=False):
    """Input gradient: the largest magnitude over channels of d y_c / d x, [N, H, W] at the image's resolution.

    A second opinion: it uses no feature map. Source: Simonyan et al., 2014, section 3. Under create_graph the second derivative
    of a ReLU is 0 almost everywhere, so training through it moves the weights and not the gates.
    """

    def explain(images, classes):
        images = images.detach().requires_grad_()
        score = model(images).gather(1, classes[:, None]).sum()
        return full_precision(torch.autograd.grad(score, images, create_graph=create_graph)[0].abs().amax(1))

    return _chunked(explain, model, images, classes, create_graph)


# ---------------------------------------------------------------- KernelSHAP

REACH = 1.6  # of what one coalition's worth says about others: no one's and everyone's correlate at about exp(-2 REACH)
TRAINING_COALITIONS, COALITIONS = 64, 1024  # what an image is evaluated on where a graph is kept, and where not


def kernel_shap(model, images, classes, patches=4, coalitions=None, baseline=0.0, generator=None, *, create_graph=False):
    """Shapley values of patches x patches image patches, an absent patch showing the baseline: [N, patches, patches], signed.

    They sum to f(image) - f(baseline), f the logit of the class. coalitions: non-empty proper subsets of the M patches that an image is evaluated on (None: 64 with
    create_graph, else 1024), of an odd number one fewer; 2^M - 2 or more are all of them, and the values exact. From fewer they are estimated, by
    Gaussian process regression in the place of KernelSHAP's least squares: see shapley_map, whose time grows with the cube of their number. baseline: a value, an image
    [C, H, W] or a background set [B, C, H, W], whose mean is taken, in the units of `images`. generator: draws the seed of the subsets, on the CPU
    (None: torch's own). The values are one fixed linear map of the model's outputs: training through them needs first derivatives only.
    Without a graph, patches equal to the baseline get 0, and the subsets are spent on the others.
    Raises ValueError for fewer coalitions than 2 M (all, if those are fewer), or patches smaller than a pixel.
    Source: Lundberg and Lee, NeurIPS 2017, section 4.1.
    """
    players, count = patches**2, coalitions or (TRAINING_COALITIONS if create_graph else COALITIONS)
    if not 1 <= patches <= min(images.shape[2:]):
        raise ValueError(f"KernelSHAP: {patches}x{patches} patches do not fit images of {images.shape[2]}x{images.shape[3]} px")
    if count < min(2 * players, 2**players - 2):
        raise ValueError(f"KernelSHAP: {count} coalitions do not determine the values of {players} patches: {2 * players} or more do")
    absent = as_baseline(baseline, images)
    patch = patch_of_pixel(patches, *images.shape[2:]).to(images.device)
    seed = int(torch.randint(2**31, (), generator=generator))

    @functools.cache  # the same for every image with so many patches, whatever else is in the batch
    def design(size):
        coalitions = draw_coalitions(size, count, torch.Generator().manual_seed(seed + size))
        return coalitions, shapley_map(coalitions)

    def explain(images, classes):
        active = torch.ones(len(images), players, dtype=torch.bool, device=images.device)
        if not create_graph:
            differs = (images != absent).any(1).flatten(1).float()
            active = differs @ F.one_hot(patch.flatten(), players).float() > 0
        order, values = [images.new_zeros(0, dtype=torch.int64)], [images.new_zeros(0, players)]
        with torch.set_grad_enabled(create_graph):
            for size in active.sum(1).unique().tolist():
                rows = (active.sum(1) == size).nonzero()[:, 0]
                where = active[rows].nonzero()[:, 1].view(len(rows), size)
                found = from_coalitions(model, images[rows], classes[rows], *design(size), where, patch, absent)
                order.append(rows)
                values.append(found.new_zeros(len(rows), players).scatter(1, where, found))
        return torch.cat(values)[torch.cat(order).argsort()].unflatten(1, (patches, patches))

    return _chunked(explain, model, images, classes, create_graph)


def as_baseline(baseline, images):
    """What stands where a patch is absent: something that broadcasts against images [N, C, H, W]."""
    baseline = torch.as_tensor(baseline, dtype=images.dtype, device=images.device)
    return baseline.mean(0) if baseline.ndim == 4 else baseline


def patch_of_pixel(patches, height, width):
    """int64 [H, W]: the number of the patch a pixel belongs to; patches of an uneven division differ by a pixel."""
    rows, cols = (torch.arange(n) * patches // n for n in (height, width))
    return rows[:, None] * patches + cols


def draw_coalitions(players, count, generator=None):
    """Half of `count` coalitions, bool [count // 2, players]: with their complements they are distinct non-empty proper subsets.

    All there are, if `count` allows. Else single players (so that all but one are there, too), and of the other sizes s distinct ones at random, a
    size drawn in proportion to s (players - s).
    """
    if count >= 2**players - 2:
        with_first = torch.tensor(range(1, 2**players - 1, 2), dtype=torch.int64)[:, None]
        return (with_first >> torch.arange(players)) & 1 == 1
    sizes, drawn = torch.arange(2, players - 1), torch.zeros(0, players, dtype=torch.bool)
    while missing := count // 2 - players - len(drawn):
        size = sizes[torch.multinomial((sizes * (players - sizes)).double(), missing, replacement=True, generator=generator)]
        half = torch.rand(missing, players, generator=generator).argsort(1).argsort(1) < size[:, None]
        drawn = torch.cat([drawn, half ^ ~half[:, :1]]).unique(dim=0)  # of a pair, the one with the first player
    return torch.cat([torch.eye(players, dtype=torch.bool), drawn])


def shapley_map(coalitions):
    """Shapley values of M players as a fixed linear map of what coalitions are worth: the sum of (v(S) - v(not S)) slope_S, S everyone and each of `coalitions`.

    coalitions: bool [K, M] as draw_coalitions returns them; slope: float64 [1 + K, M], everyone's first. From all pairs the values are exact, by the definition.

    From fewer they are those of the game that the known values let one expect (Gaussian process regression; universal kriging: Cressie 1993, section
    3.4), in O(K^3): v is taken for an additive game, of any coefficients, plus a process whose correlation between two coalitions is multiplied by (1 - rho) / (1 + rho) for each
    player in one of them alone, rho = REACH / M. Additive games are exact, and the values always sum to v(everyone) - v(no one). Shapley values are odd under complement, hence the
    differences. Those of a correlation, a product over players, are the integral of its multilinear extension's derivative along the diagonal (Owen 1972), a polynomial of degree M - 1.
    """
    known = torch.cat([torch.ones(1, coalitions.shape[1], dtype=torch.bool), coalitions])
    size, players = known.sum(1, keepdim=True), known.shape[1]
    if 2 * len(coalitions) >= 2**players - 2:
        number = torch.tensor([math.comb(players, s) for s in range(players + 1)], dtype=torch.float64)[size]
        return torch.where(known, 1 / (size * number), -1 / ((players - size) * number))
    signs, rho = 2.0 * known.double() - 1, REACH / players
    differ, step = (players - signs @ signs.T) / 2, (1 - rho) / (1 + rho)
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss((players + 1) // 2))
    others = torch.arange(players)[:, None]  # how many of the other players are in a coalition
    gain = rho * ((1 + rho * nodes) ** others * (1 - rho * nodes) ** (players - 1 - others) * weights).sum(1) / (1 + rho) ** players
    shares = torch.where(known, gain[size - 1], -gain[size.clamp(max=players - 1)])
    system = torch.cat([torch.cat([step**differ - step ** (players - differ), signs], 1), torch.cat([signs.T, signs.new_zeros(players, players)], 1)])
    return torch.linalg.solve(system, torch.cat([shares, torch.eye(players, dtype=torch.float64)]))[: len(known)]


def from_coalitions(model, images, classes, coalitions, slope, where, patch, absent):
    """Shapley values [N, M] of the patches `where` [N, M] of images; coalitions bool [K, M] are of these, slope their shapley_map."""
    masks = torch.cat([torch.ones(1, coalitions.shape[1], dtype=torch.bool), coalitions])
    masks = torch.cat([masks, ~masks]).to(images.device).expand(len(images), -1, -1)
    present = masks.new_zeros(*masks.shape[:2], int(patch.max()) + 1).scatter(2, where[:, None].expand_as(masks), masks)
    with_, without = coalition_values(model, images, classes, present, patch, absent).chunk(2, dim=1)
    with torch.autocast(images.device.type, enabled=False):
        return (with_ - without) @ slope.to(with_)


def coalition_values(model, images, classes, present, patch, absent):
    """The class's logit [N, K] of each image with only its `present` patches: bool [N, K, M]."""
    count, values = present.shape[1], []
    for pair in torch.arange(len(images) * count, device=images.device).split(chunk_of(images)):
        image = pair // count
        mask = present[image, pair % count][:, patch]
        logits = model(torch.where(mask[:, None], images[image], absent))
        values.append(full_precision(logits).gather(1, classes[image, None])[:, 0])
    return torch.cat(values).view(-1, count)


# ---------------------------------------------------------------- DeepSHAP

SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__isub__", "cat"}
SCALINGS = {"mul", "mul_", "__mul__", "__rmul__", "__imul__", "div", "div_", "__truediv__", "__itruediv__"}
LAYERS = {"conv2d", "linear", "batch_norm", "dropout", "avg_pool2d", "adaptive_avg_pool2d", "mean", "sum", "flatten", "reshape", "view", "expand",
          "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "clone", "pad", "to", "float", "double", "__getitem__"}
QUESTIONS = {"dim", "size", "numel", "__len__", "__get__"}  # answered by no tensor
MAX_POOLS = {"max_pool2d": F.max_pool2d, "adaptive_max_pool2d": F.adaptive_max_pool2d}
CLOSE = 1e-7  # activations nearer than this have no difference to explain


def deep_shap(model, images, classes, references=None, *, create_graph=False):
    """DeepLIFT's rescale rule, averaged over references: each pixel's share of f(image) - f(reference), summed over channels: [N, H, W].

    references: [R, C, H, W] in the units of `images` (None: one of zeros); the cost grows with R. A nonlinearity passes on the difference
    quotient of its output and input between image and reference, instead of its derivative. With create_graph the model first runs on the images as it is, to
    find these quotients, then with them in the nonlinearities' place: so they, too, are differentiated as what they are. Handles what
    SUMS, SCALINGS, LAYERS and MAX_POOLS name, and ReLU, as modules or functions; raises ValueError, with its name, for anything else
    that the image goes through.
    Source: Shrikumar et al., ICML 2017, section 3.5.2; Lundberg and Lee, NeurIPS 2017, section 4.2.
    """
    references = images.new_zeros(1, *images.shape[1:]) if references is None else references.to(images)

    def explain(images, classes):
        with torch.set_grad_enabled(create_graph):
            theirs = Recording.of(model, references)
            own = Recording.of(model, images) if create_graph else None
        maps = []
        for r, reference in enumerate(references):
            leaf = images.detach().clone().requires_grad_()
            with Gated(leaf, [[part[r : r + 1] for part in seen] for seen in theirs], own) as gated:
                logits = model(gated.image)
            if not getattr(logits, "from_image", False):
                raise ValueError("DeepSHAP cannot follow the image through this model: its output does not come from torch functions called in Python")
            score = full_precision(logits).gather(1, classes[:, None]).sum()
            (multiplier,) = torch.autograd.grad(score, leaf, create_graph=create_graph)
            maps.append(full_precision(multiplier * (images - reference)).sum(1))
        return torch.stack(maps).mean(0)

    return _chunked(explain, model, images, classes, create_graph)


class Following(TorchFunctionMode):
    """Within the block, sees every torch function applied to what comes from `image`, and refuses those the rescale rule is not known for."""

    def __init__(self, image):
        super().__init__()
        self.image = image.clone()
        self.image.from_image = True

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, "__name__", str(function))
        followed = [t for t in flattened([*args, *kwargs.values()]) if getattr(t, "from_image", False)]
        if not followed or name in QUESTIONS:
            answer = function(*args, **kwargs)
            if not followed or not isinstance(answer, torch.Tensor):
                return answer
        if name in ("relu", "relu_"):
            in_place = name == "relu_" or given(args, kwargs, "inplace", 1)
            result = self.relu(args[0].clone() if in_place else args[0])
            result = args[0].copy_(result) if in_place else result
        elif name in MAX_POOLS:
            result = self.max_pool(args[0], lambda: MAX_POOLS[name](*args, **kwargs | {"return_indices": True}))
        elif self.is_linear(name, args, kwargs, followed):
            result = function(*args, **kwargs)
        else:
            raise ValueError(f"DeepSHAP has no rule for {name}{' of two activations' if name in SCALINGS else ''}")
        result.from_image = True
        return result

    @staticmethod
    def is_linear(name, args, kwargs, followed):
        if name in ("batch_norm", "dropout") and given(args, kwargs, "training", 5 if name == "batch_norm" else 2):
            return False
        alone = len(followed) == 1  # neither a weight nor a factor comes from the image
        return name in SUMS or (alone and name in LAYERS) or (alone and name in SCALINGS and (followed[0] is args[0] or "mul" in name))


class Recording(Following):
    """Remembers what went into each nonlinearity, and for max-pooling what came out and from where."""

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
        with cls(images) as recording:
            model(recording.image)
        return recording.seen


class Gated(Following):
    """The slope of every nonlinearity is its difference quotient between the images and one reference.

    theirs: what a Recording saw of the reference; own: of the images, or None to take what comes by. With own, what is computed means nothing;
    its gradient does. Without, values are the model's.
    """

    def __init__(self, image, theirs, own=None):
        super().__init__(image)
        self.theirs, self.own = iter(theirs), own and iter(own)

    def relu(self, x):
        (theirs,), (own,) = next(self.theirs), next(self.own) if self.own else (x.detach(),)
        low, high = torch.minimum(own, theirs), torch.maximum(own, theirs)
        gate = (high / (high - low).clamp_min(CLOSE)).clamp(0, 1)  # 1 where both are positive, 0 where none is
        return x.clone() * gate if self.own else Sloped.apply(x, own.relu, gate)

    def max_pool(self, x, pool):
        """What came from the image's maximum passes on (larger - y_ref), from the reference's (y - larger), each over the difference there."""
        if self.own:
            own, y, index = next(self.own)
        else:
            with torch.no_grad():
                own, (y, index) = x.detach(), pool()
        theirs, y_ref, index_ref = next(self.theirs)
        index_ref, theirs = index_ref.expand_as(index), theirs.expand_as(own)
        larger = torch.maximum(y, y_ref)
        gate = quotient_or_zero(larger - y_ref, y - pick(theirs, index))
        gate_ref = quotient_or_zero(y - larger, pick(own, index_ref) - y_ref)
        result = pick(x, index) * gate + pick(x, index_ref) * gate_ref
        return result if self.own else Sloped.apply(result, lambda: y, torch.ones_like(y))


class Sloped(torch.autograd.Function):
    """The value of a function, whose derivative by x is the slope."""

    @staticmethod
    def forward(ctx, x, value, slope):
        ctx.save_for_backward(slope)
        return value()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None, None


def pick(x, index):
    """x [N, C, H, W] at flat positions [N, C, h, w]."""
    return x.flatten(2).gather(2, index.flatten(2)).view_as(index)


def quotient_or_zero(above, below):
    close = below.abs() < CLOSE
    return torch.where(close, 0, above / torch.where(close, 1, below))


def given(args, kwargs, name, position):
    """An option of a call, however it was passed; False if it was not."""
    return kwargs.get(name, args[position] if len(args) > position else False)


def flattened(values):
    """Tensors among values, and those inside lists and tuples."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flattened(value)
        elif isinstance(value, torch.Tensor):
            yield value


def _chunked(explain, model, images, classes, create_graph):
    """explain(images, classes) in evaluation mode with gradients on: whole if a graph is kept, else in chunks, detached."""
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        images, classes = (t.clone() if t.is_inference() else t for t in (images, classes))
        if create_graph:
            return explain(images, classes)
        chunks = zip(images.split(chunk_of(images)), classes.split(chunk_of(images)))
        return torch.cat([explain(image, label).detach() for image, label in chunks])


def chunk_of(images):
    return CHUNK_CPU if images.device.type == "cpu" else CHUNK


EXPLAINERS = {"gradcam": gradcam, "gradient": gradient, "kernelshap": kernel_shap, "deepshap": deep_shap}
SIGNED = {"kernelshap", "deepshap"}
RECTIFIED = {"gradcam"}  # explainers whose map is a relu, which training may leave out
