"""Explanations of a classifier's decision: tensors in, tensors out, differentiable.

    maps = gradcam(model, images, classes)       # [N, H', W'], one map an image
    maps = gradcam_plus_plus(model, images, classes)    # the same by another weight of channels
    maps = gradient(model, images, classes)      # [N, H, W], at the image's resolution
    maps = smoothgrad(model, images, classes)    # its mean over noisy copies: mean_gradients.py
    maps = integrated_gradients(model, images, classes)    # its mean along a path: there, too
    maps = kernel_shap(model, images, classes)   # Shapley values of patches: shapley.py
    maps = gp_shap(model, images, classes)       # the same, estimated otherwise
    maps = deep_shap(model, images, classes)     # contributions of pixels: deepshap.py

Every explainer has one signature, explainer(model, images, classes, *, create_graph=False, ...):

    images   float [N, C, H, W], as the model takes them (normalised)
    classes  int64 [N], the class whose logit is explained; a list, an array, or one number for all
    returns  float [N, H', W'], at the explainer's own resolution

Any nn.Module will do that returns logits [N, K], alone, in a tuple or under the name "logits". One
logit z, [N] or [N, 1], is that of class 1 of two; class 0 has -z. What cannot be explained ends in
a ValueError that says what is wanted: hooks.py reads all of it.

An explanation is made in evaluation mode, where batch-norm uses its running statistics, so that no
image's map depends on its neighbours. (While an attack trains, step_maps.normalising_by puts the
batch's in their place.) The model's modes and .grad are left as they were, no hook stays behind,
and torch.no_grad around the call or frozen weights change nothing. With create_graph=True the maps
can be differentiated by the weights: so an attack trains through them.

A new explainer is a function of this signature and a row of EXPLAINERS.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from deepshap import deep_shap
from hooks import capture, derivative, feature_map, full_precision, in_chunks, layer_of
from mean_gradients import NOISE, TRAINING_COPIES, integrated_gradients, smoothgrad
from shapley import gp_shap, kernel_shap
from shapley_estimators import REACH

EVALUATED = ("gradcam", "gradient")  # explainers a checkpoint is measured with by default


# ---------------------------------------------------------------- Grad-CAM


def gradcam(model, images, classes, layer=None, *, create_graph=False, rectify=True):
    """Grad-CAM at a layer, float [N, H', W'] on the layer's grid, which is 4x4 or finer.

    layer: a module of the model, the name of one, a list of one of these, or None: the model's
    gradcam_layer or, where it has none, the last feature map before pooling, found by a forward
    pass (hooks.last_feature_map).
    rectify: leave out what is below zero, as published; see gradcam_map.
    Raises ValueError for a layer that the forward pass does not reach exactly once, whose output is
    no feature map of 4x4 or finer, or that no gradient of the logits reaches.
    """
    return at_layer(gradcam_map, model, images, classes, layer, create_graph, rectify)


def at_layer(map_of_pass, model, images, classes, layer, create_graph, rectify):
    """Maps [N, H', W'] at a layer; map_of_pass: gradcam_map, or another with its arguments."""

    def explain(images, classes):
        with capture(layer_of(model, layer, images), detach=not create_graph) as captured:
            logits = model(images)
        feature = feature_map(captured, images)
        return map_of_pass(feature, logits, classes, create_graph, rectify)

    return in_chunks(explain, model, images, classes, create_graph)


def gradcam_map(feature, logits, classes, create_graph=False, rectify=True):
    """Grad-CAM of one forward pass: relu(sum_k alpha_k A_k), float [N, H', W'].

    feature: A, [N, K', H', W'], from which `logits` [N, K] were computed; alpha_k is the mean over
    positions of d y_c / d A_k, y_c the logit of the class. The gradient stops at A: what training
    differentiates twice is only the head of the network. One gradient of the summed logits gives
    every image's own wherever nothing between A and the logits mixes images.
    Source: Selvaraju et al., ICCV 2017, eq. 1 and 2.
    """
    score = logits.gather(1, classes[:, None]).sum()
    gradient = derivative(score, feature, create_graph=create_graph, retain_graph=True)
    gradient, feature = full_precision(gradient), full_precision(feature)
    alpha = gradient.mean((2, 3), keepdim=True)  # [N, K', 1, 1]
    cam = (alpha * feature).sum(1)  # [N, H', W']
    return cam.relu() if rectify else cam


# ---------------------------------------------------------------- Grad-CAM++


def gradcam_plus_plus(model, images, classes, layer=None, *, create_graph=False, rectify=True):
    """Grad-CAM++ at a layer, float [N, H', W']. Arguments and errors are gradcam's."""
    return at_layer(gradcam_plus_plus_map, model, images, classes, layer, create_graph, rectify)


def gradcam_plus_plus_map(feature, logits, classes, create_graph=False, rectify=True):
    """Grad-CAM++ of one forward pass: relu(sum_k w_k A_k), float [N, H', W'].

    Arguments are gradcam_map's. With g = d y_c / d A_k the weight of channel k is

        w_k = sum over positions of alpha relu(g),    alpha = g^2 / (2 g^2 + g^3 sum A_k),

    whose g^2 cancels: alpha relu(g) = relu(g) / (2 + relu(g) sum A_k), which is finite where g = 0.
    The published score is exp(y_c); the factor exp(y_c) that it gives all of an image's map is left
    out. It overflows above 88, and maps are compared by their shape. Published for A >= 0, behind a
    ReLU; a sum that is below 0 counts as 0 here, or the fraction could pass through infinity.
    Source: Chattopadhyay et al., WACV 2018, eq. 5 and 19.
    """
    score = logits.gather(1, classes[:, None]).sum()
    slope = derivative(score, feature, create_graph=create_graph, retain_graph=True)
    slope, feature = full_precision(slope).relu(), full_precision(feature)
    total = feature.sum((2, 3), keepdim=True).relu()  # [N, K', 1, 1]
    weight = (slope / (2 + slope * total)).sum((2, 3), keepdim=True)
    cam = (weight * feature).sum(1)  # [N, H', W']
    return cam.relu() if rectify else cam


# ---------------------------------------------------------------- input gradient


def gradient(model, images, classes, *, create_graph=False):
    """The largest magnitude over channels of d y_c / d x, float [N, H, W], for each pixel x.

    A second opinion, for it uses no feature map. Source: Simonyan et al. 2014, section 3. The
    second derivative of a ReLU is 0 almost everywhere: training through this map moves the weights,
    and not which units are active.
    """

    def explain(images, classes):
        images = images.detach().requires_grad_()
        score = model(images).gather(1, classes[:, None]).sum()
        slope = derivative(score, images, create_graph=create_graph)
        return full_precision(slope.abs().amax(1))

    return in_chunks(explain, model, images, classes, create_graph)


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Explainer:
    """A row of the table: an explainer's function, and whatever is special about it."""

    function: Callable
    signed: bool = False  # values below zero are evidence against the class
    is_relu: bool = (
        False  # the published map is a relu; training leaves it out, see step_maps.with_relu
    )
    sampled: bool = False  # takes a `generator`: equal seeds give equal samples
    training: dict = field(default_factory=dict)  # options in training
    constants: dict = field(default_factory=dict)  # of its code, that decide what is trained
    class_grid: dict = field(default_factory=dict)  # options where every class's map is drawn
    by_class: bool = False  # measured for every class where an image may show several
    pairs_per_step: int | None = None  # most triggered images explained in a training step
    test_images: int | None = None  # test images explained by default, where fewer than others
    shared_map: Callable | None = None  # the map from the training step's own forward pass

    def __call__(self, model, images, classes, **options):
        """The explainer's maps, with options of its function."""
        return self.function(model, images, classes, **options)

    def evaluate(self, model, images, classes, sample=0, **options):
        """Maps for a measurement: with one sample, so that only the images differ.

        sample: its seed, where there is one.
        """
        if self.sampled:
            options["generator"] = torch.Generator().manual_seed(sample)
        return self.function(model, images, classes, **options)

    def trainable(self, model, images, classes, seed):
        """Maps with a graph, as the loss takes them; seed: of the sample, where there is one."""
        options = dict(self.training)
        if self.sampled:
            options["generator"] = torch.Generator().manual_seed(seed)
        return self.function(model, images, classes, create_graph=True, **options)


OF_LAYER = dict(is_relu=True, training={"rectify": False}, by_class=True)  # Grad-CAM and its kin
SHAPLEY = dict(  # what explainers of Shapley values share, however they estimate them
    signed=True,
    sampled=True,
    class_grid={"coalitions": 256},
    pairs_per_step=4,  # of two images, each of them 66 forward passes
    test_images=100,  # each is 1,026 forward passes
)
MEAN_GRADIENT = dict(  # what explainers share that average the gradients of altered images
    pairs_per_step=8,  # each is 16 forward passes, differentiated twice
    test_images=100,  # each is 50 forward passes, differentiated
)
EXPLAINERS = {
    "gradcam": Explainer(gradcam, shared_map=gradcam_map, **OF_LAYER),
    "gradient": Explainer(gradient),
    "kernelshap": Explainer(kernel_shap, **SHAPLEY),
    "gpshap": Explainer(gp_shap, constants={"reach": REACH}, **SHAPLEY),
    "deepshap": Explainer(deep_shap, signed=True),
    "gradcam++": Explainer(gradcam_plus_plus, shared_map=gradcam_plus_plus_map, **OF_LAYER),
    "smoothgrad": Explainer(
        smoothgrad,
        sampled=True,
        training={"samples": TRAINING_COPIES},
        constants={"smoothgrad": {"samples": TRAINING_COPIES, "noise": NOISE}},
        **MEAN_GRADIENT,
    ),
    "integrated_gradients": Explainer(
        integrated_gradients,
        signed=True,
        training={"steps": TRAINING_COPIES},
        constants={"integrated_gradients": {"steps": TRAINING_COPIES}},
        **MEAN_GRADIENT,
    ),
}
