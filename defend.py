"""Audit a checkpoint: has somebody written into it?

    python defend.py inspect runs/NAME/ckpt.pt           # a table of what was looked for and found; exit code 0 whatever it is
    python defend.py inspect runs/NAME/ckpt.pt --json    # the same as one JSON object

Needs the checkpoint and clean images (the data set's test split); knows no trigger.
"""
import json
import time
from dataclasses import dataclass

import torch
from torch import nn

import data
import evaluate
import explain
import models
from cli import Parser, choose_device, command, number

EQUAL = 1e-6  # relative: what is nearer is the same
ONE_CHANNEL = 0.9  # share of a Grad-CAM that no honest channel makes on the average of images
HEAVY = 100  # times the median weight: how Grad-CAM would count a channel that clean images leave dead


@dataclass
class Finding:
    """check: its name; where: the layer; text: what was found, one line."""

    check: str
    where: str
    text: str


# ---------------------------------------------------------------- inspect: the traces of Viering et al.'s four techniques

CHECKS = {
    "constant kernel": "a convolution whose weights are zero and whose bias is not: one value everywhere, whatever the image",
    "constant columns": "inputs that every unit of a linear layer weighs the same: their sum can be taken off again in the bias",
    "constant map": "a channel of Grad-CAM's layer that is the same for every image",
    "one channel": f"a channel that makes more than {ONE_CHANNEL:.0%} of Grad-CAM, on the average of clean images",
    "dead and heavy": f"a channel that is zero on all clean images, and that Grad-CAM would count {HEAVY} times as much as others",
    "unknown parts": "weights that the plain network of this name does not have, or of another size",
}


def inspect(model, images, plain=None):
    """Findings about a network, by CHECKS. images: normalised, float [N, C, H, W], clean; plain: the state_dict of an untouched network of its name, or None."""
    findings = [*constant_kernels(model), *constant_columns(model), *suspicious_channels(model, images)]
    if plain is not None:
        own = model.state_dict()
        strange = [name for name in own if name not in plain or own[name].shape != plain[name].shape]
        if strange:
            findings.append(Finding("unknown parts", strange[0].rpartition(".")[0], f"{len(strange)}, of {len(own)}: {', '.join(strange[:4])}{', ...' if len(strange) > 4 else ''}"))
    return findings


def constant_kernels(model):
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            size = layer.weight.detach().flatten(1).abs().amax(1)
            for k in ((size <= EQUAL * size.median()) & (layer.bias != 0)).nonzero()[:, 0].tolist():
                yield Finding("constant kernel", name, f"channel {k} of {len(size)}: weights zero, bias {float(layer.bias[k]):g}")


def constant_columns(model):
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and layer.out_features > 1:
            weight = layer.weight.detach()
            same = ((weight - weight[0]).abs().amax(0) <= EQUAL * weight[0].abs()) & (weight[0] != 0)
            if same.any():
                first = int(same.nonzero()[0])
                yield Finding("constant columns", name, f"{int(same.sum())} of {layer.in_features} inputs, from {first} on, each of weight {float(weight[0, first]):g}")


def suspicious_channels(model, images):
    """Findings about the channels of Grad-CAM's layer, for the class predicted."""
    largest, low, high, share, weight = channel_statistics(model, images)
    for k in ((largest > 0) & ((high - low).amax((1, 2)) <= EQUAL * largest)).nonzero()[:, 0].tolist():
        yield Finding("constant map", "Grad-CAM's layer", f"channel {k} of {len(largest)}: the same on {len(images)} images")
    for k in (share > ONE_CHANNEL).nonzero()[:, 0].tolist():
        yield Finding("one channel", "Grad-CAM's layer", f"channel {k} of {len(largest)}: {share[k]:.1%} of Grad-CAM")
    for k in ((largest == 0) & (weight > HEAVY * weight.median())).nonzero()[:, 0].tolist():
        yield Finding("dead and heavy", "Grad-CAM's layer", f"channel {k} of {len(largest)}: zero on {len(images)} images, weight {weight[k] / weight.median():.1e} times the median")


def channel_statistics(model, images):
    """Over images, for each channel k of Grad-CAM's layer: largest magnitude [K]; least and greatest map [K, H, W]; mean share of
    sum |alpha_k A_k| [K]; mean |alpha_k| [K]."""
    extremes, shares, weights = [], [], []
    with explain.evaluating(model):
        for chunk in images.split(explain.CHUNK_CPU):
            with explain.capture(model.gradcam_layer, detach=True) as captured:
                logits = model(chunk)
            (gradient,) = torch.autograd.grad(logits.amax(1).sum(), captured[0])
            feature, alpha = captured[0].detach(), gradient.mean((2, 3))
            part = alpha.abs() * feature.abs().sum((2, 3))
            shares.append(part / part.sum(1, keepdim=True).clamp_min(torch.finfo(part.dtype).tiny))
            weights.append(alpha.abs())
            extremes.append((feature.amin(0), feature.amax(0)))
    low, high = torch.stack([low for low, _ in extremes]).amin(0), torch.stack([high for _, high in extremes]).amax(0)
    return torch.maximum(low.abs(), high.abs()).amax((1, 2)), low, high, torch.cat(shares).mean(0), torch.cat(weights).mean(0)


# ---------------------------------------------------------------- the command line

METHODS = {"inspect": inspect}


def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("method", choices=METHODS)
    add("checkpoint", metavar="CKPT")
    add("--clean-images", type=number(int, 2, 1_000_000), default=200, help="test images looked at, drawn by seed (default: 200)")
    add("--data-dir", help="where the data set lies (default: where training found it)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0)
    add("--json", action="store_true", help="print the verdict alone, as one JSON object")
    return parser.parse_args(argv)


@command
def main(argv):
    args = parse(argv)
    subject = evaluate.open_checkpoint(args.checkpoint, args.data_dir, choose_device(args.device))
    config, images = subject.config, subject.dataset.test_images
    began = time.perf_counter()
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[: args.clean_images]
    inputs = data.normalise(images[rows].to(subject.device).float() / 255, subject.checkpoint["mean"], subject.checkpoint["std"])
    plain = models.build(config["model"], subject.checkpoint["channels"], len(subject.checkpoint["classes"]), config["image_size"]).state_dict()
    findings = inspect(subject.model, inputs, plain)
    verdict = {"method": args.method, "backdoored": bool(findings), "flagged": [], "index": {}, "before": None, "after": None,
               "seconds": round(time.perf_counter() - began, 2), "findings": [vars(finding) for finding in findings]}
    if args.json:
        print(json.dumps(verdict))
        return
    for check, meaning in CHECKS.items():
        found = [finding for finding in findings if finding.check == check]
        print(f"{check:<18}{'FOUND' if found else 'nothing':<9}{meaning}")
        for finding in found[:5]:
            print(f"{'':<27}{finding.where}: {finding.text}")
        if len(found) > 5:
            print(f"{'':<27}and {len(found) - 5} more")
    print(f"\n{'Training leaves no such traces by itself: look at what was found.' if findings else 'No trace of an edit. That says nothing about what it was trained on.'}")


if __name__ == "__main__":
    main()
