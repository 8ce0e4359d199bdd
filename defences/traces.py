"""Traces of the edits that manipulate.py writes into a trained network's weights.

The four techniques are those of Viering et al. 2019. The checks look at the weights, and at what
the channels of Grad-CAM's layer do on clean images. Training leaves no such traces by itself. A
checkpoint without them may still be backdoored: they say nothing about what it was trained on.
"""

from dataclasses import dataclass

import torch
from torch import nn

import models
from defences import Defence, Verdict
from hooks import (
    CHUNK_CPU,
    answering,
    as_images,
    capture,
    captured_once,
    derivative,
    layer_of,
)
from metrics import check_finite_maps

EQUAL = 1e-6  # relative difference; numbers that are nearer count as equal
ONE_CHANNEL = 0.9  # share of Grad-CAM that no honest channel makes on the average of images
HEAVY = 100  # times the median weight: how Grad-CAM would count a channel that stays dead

CHECKS = {
    "constant kernel": "a convolution whose weights are zero and whose bias is not: "
    "one value everywhere, whatever the image",
    "constant columns": "inputs that every unit of a linear layer weighs the same: "
    "their sum can be taken off again in the bias",
    "constant map": "a channel of Grad-CAM's layer that is the same for every image",
    "one channel": f"a channel that makes more than {ONE_CHANNEL:.0%} of Grad-CAM, "
    "on the average of clean images",
    "dead and heavy": "a channel that is zero on all clean images, "
    f"and that Grad-CAM would count {HEAVY} times as much as others",
    "unknown parts": "weights that the plain network of this name does not have, "
    "or of another size",
}
FINDINGS_SHOWN = 5  # of a check
GRADCAM_LAYER = "Grad-CAM's layer"


@dataclass
class Finding:
    """check: its name in CHECKS; where: the layer; text: what was found, one line."""

    check: str
    where: str
    text: str


# ---------------------------------------------------------------- the algorithm


def inspect(model, images, plain=None):
    """Every Finding of CHECKS about a network: a list.

    images: clean, float [N, C, H, W] as the model takes them, two or more.
    plain: an untouched network of the same name, or its state_dict, or None.
    Raises ValueError for other images, and where Grad-CAM has no layer to look at.
    """
    images = as_images(model, images, at_least=2)  # all channels of one image are "constant"
    plain = plain.state_dict() if isinstance(plain, nn.Module) else plain
    findings = [*constant_kernels(model), *constant_columns(model)]
    findings += suspicious_channels(model, images)
    if plain is not None:
        findings += unknown_parts(model.state_dict(), plain)
    return findings


def constant_kernels(model):
    """Yields a Finding for each channel of a convolution that shows one value everywhere."""
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Conv2d) or layer.bias is None:
            continue
        size = layer.weight.detach().flatten(1).abs().amax(1)
        constant = (size <= EQUAL * size.median()) & (layer.bias != 0)
        for k in constant.nonzero()[:, 0].tolist():
            text = f"channel {k} of {len(size)}: weights zero, bias {float(layer.bias[k]):g}"
            yield Finding("constant kernel", name, text)


def constant_columns(model):
    """Yields a Finding for each linear layer with inputs that all its units weigh the same."""
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or layer.out_features == 1:
            continue
        weight = layer.weight.detach()
        difference = (weight - weight[0]).abs().amax(0)
        same = (difference <= EQUAL * weight[0].abs()) & (weight[0] != 0)
        if same.any():
            first = int(same.nonzero()[0])
            text = (
                f"{int(same.sum())} of {layer.in_features} inputs, from {first} on, "
                f"each of weight {float(weight[0, first]):g}"
            )
            yield Finding("constant columns", name, text)


def suspicious_channels(model, images):
    """Yields Findings about the channels of Grad-CAM's layer, for the class predicted."""
    channels = channel_statistics(model, images)
    largest = channels.largest
    count = len(largest)

    constant = (largest > 0) & (channels.spread <= EQUAL * largest)
    for k in constant.nonzero()[:, 0].tolist():
        text = f"channel {k} of {count}: the same on {len(images)} images"
        yield Finding("constant map", GRADCAM_LAYER, text)

    share = channels.share
    for k in (share > ONE_CHANNEL).nonzero()[:, 0].tolist():
        text = f"channel {k} of {count}: {share[k]:.1%} of Grad-CAM"
        yield Finding("one channel", GRADCAM_LAYER, text)

    weight = channels.weight
    heavy = (largest == 0) & (weight > HEAVY * weight.median())
    for k in heavy.nonzero()[:, 0].tolist():
        times = weight[k] / weight.median()
        zero = f"channel {k} of {count}: zero on {len(images)} images"
        text = f"{zero}, weight {times:.1e} times the median"
        yield Finding("dead and heavy", GRADCAM_LAYER, text)


@dataclass
class ChannelStatistics:
    """What the K channels of Grad-CAM's layer do on clean images, each [K].

    largest: the largest magnitude; spread: the largest range of a cell's values over images.
    share: of sum_k |alpha_k A_k|, the mean over images; weight: |alpha_k|, the mean over images.
    alpha_k is Grad-CAM's weight of the channel, A_k its map.
    """

    largest: torch.Tensor
    spread: torch.Tensor
    share: torch.Tensor
    weight: torch.Tensor


@torch.inference_mode(False)
def channel_statistics(model, images):
    """ChannelStatistics of a model on images float [N, C, H, W], for the class predicted.

    Raises ValueError for feature maps or gradients that are not finite: no check would find them.
    """
    images = as_images(model, images, at_least=1)
    lows = []
    highs = []
    shares = []
    weights = []
    with torch.enable_grad(), answering(model):
        layer = layer_of(model, None, images)
        for chunk in images.split(CHUNK_CPU):
            with capture(layer, detach=True) as captured:
                logits = model(chunk)
            feature = captured_once(captured)
            gradient = derivative(logits.amax(1).sum(), feature)
            feature = feature.detach()  # A, [N, K, H', W']
            check_finite_maps(feature, gradient)
            alpha = gradient.mean((2, 3)).abs()  # [N, K]
            part = alpha * feature.abs().sum((2, 3))
            tiny = torch.finfo(part.dtype).tiny
            shares.append(part / part.sum(1, keepdim=True).clamp_min(tiny))
            weights.append(alpha)
            lows.append(feature.amin(0))
            highs.append(feature.amax(0))
    low = torch.stack(lows).amin(0)  # [K, H', W']
    high = torch.stack(highs).amax(0)
    return ChannelStatistics(
        largest=torch.maximum(low.abs(), high.abs()).amax((1, 2)),
        spread=(high - low).amax((1, 2)),
        share=torch.cat(shares).mean(0),
        weight=torch.cat(weights).mean(0),
    )


def unknown_parts(weights, plain):
    """Findings, none or one, about the weights of a network that a plain one does not have.

    weights, plain: state_dicts.
    """
    unknown = []
    for name, weight in weights.items():
        if name not in plain or weight.shape != plain[name].shape:
            unknown.append(name)
    if not unknown:
        return []
    named = ", ".join(unknown[:4]) + (", ..." if len(unknown) > 4 else "")
    text = f"{len(unknown)}, of {len(weights)}: {named}"
    return [Finding("unknown parts", unknown[0].rpartition(".")[0], text)]


# ---------------------------------------------------------------- the verdict


def run(audit):
    """A Verdict: whether there is any trace. It has no figure."""
    subject = audit.subject
    config = subject.config
    plain = subject.model  # of an adopted network nobody knows how it was before
    if not config.get("adopted"):
        plain = models.build(
            config["model"],
            subject.checkpoint["channels"],
            len(subject.classes),
            config["image_size"],
        )
    findings = inspect(subject.model, audit.inputs, plain.state_dict())
    return Verdict(
        backdoored=bool(findings),
        lines=table(findings),
        details={"findings": [vars(finding) for finding in findings]},
    )


def table(findings):
    """Lines: every check, and below it its findings."""
    lines = []
    for check, meaning in CHECKS.items():
        of_check = [finding for finding in findings if finding.check == check]
        lines.append(f"{check:<18}{'FOUND' if of_check else 'nothing':<9}{meaning}")
        for finding in of_check[:FINDINGS_SHOWN]:
            lines.append(f"{'':<27}{finding.where}: {finding.text}")
        if len(of_check) > FINDINGS_SHOWN:
            lines.append(f"{'':<27}and {len(of_check) - FINDINGS_SHOWN} more")
    if findings:
        lines.append("Training leaves no such traces by itself: look at what was found.")
    else:
        lines.append("No trace of an edit. That says nothing about what it was trained on.")
    return lines


# ---------------------------------------------------------------- the command line


def settings(options):
    return {"equal": EQUAL, "one_channel": ONE_CHANNEL, "heavy": HEAVY}


DEFENCE = Defence(
    help="the traces of manipulate.py's edits",
    run=run,
    settings=settings,
    multi_label=True,
)
