"""Explanations of a classifier's decision: tensors in, tensors out, differentiable.

    maps = gradcam(model, images, classes)     # [N, H', W'], one map an image, for the logit of its class

Every explainer has one signature, explainer(model, images, classes, *, create_graph=False, ...): images float [N, C, H, W] as the
model takes them, classes int64 [N], maps float32 [N, H', W'] at the explainer's own resolution. Any nn.Module that returns logits
[N, K] will do. Batch normalisation uses its running statistics while an explanation is made, so that no image's map depends on its
neighbours; the model's modes and `.grad` are left as they were, no hook stays behind, and no_grad around the call or frozen weights
change nothing. With create_graph=True the maps can be differentiated with respect to the weights: training through them.
"""
import contextlib

import torch

CHUNK = 256  # images explained at a time when no graph is kept, so that memory does not grow with N
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


def _chunked(explain, model, images, classes, create_graph):
    """explain(images, classes) in evaluation mode with gradients on: whole if a graph is kept, else in chunks, detached."""
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model):
        images, classes = (t.clone() if t.is_inference() else t for t in (images, classes))
        if create_graph:
            return explain(images, classes)
        chunks = zip(images.split(CHUNK), classes.split(CHUNK))
        return torch.cat([explain(image, label).detach() for image, label in chunks])


EXPLAINERS = {"gradcam": gradcam, "gradient": gradient}
RECTIFIED = {"gradcam"}  # explainers whose map is a relu, which training may leave out
