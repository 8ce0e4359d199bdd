"""Audit a checkpoint: is it backdoored, with which target class, and can it be repaired?

    python defend.py neuroninspect runs/NAME/ckpt.pt    # saliency heatmaps of every class: a backdoor's target has the plainest
    python defend.py neural_cleanse runs/NAME/ckpt.pt   # the smallest patch that turns every image into a class: a target's is tiny
    python defend.py prune runs/NAME/ckpt.pt            # takes out the channels that such a patch excites
    python defend.py rebn runs/NAME/ckpt.pt             # estimates batch-norm's statistics anew, on clean images
    python defend.py cfn runs/NAME/ckpt.pt              # batch-norm by the batch at hand
    python defend.py disagreement runs/NAME/ckpt.pt     # two explainers on one image
    python defend.py inspect runs/NAME/ckpt.pt          # the traces of manipulate.py's edits

A defence sees the checkpoint and clean images (held out of its training), never the trigger, which is for the score alone. Written into
runs/NAME/defend-METHOD/ (or --out): verdict.json, figure.png and, of what repairs, ckpt.pt, which evaluate.py reads. Any nn.Module can be given to the
functions: what they call images are float [N, C, H, W] as that module takes them, but for Neural Cleanse, whose module takes pixels in [0, 1].
"""
import argparse
import contextlib
import copy
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import attacks
import data
import evaluate
import explain
import figure
import models
from cli import Parser, UserError, choose_device, choose_precision, command, number, print_progress, replace_file

PUBLISHED_THRESHOLD = 2.0  # of the anomaly index: Wang et al. 2019 and Huang et al. 2019
CHANCE = " Of scores that are Gaussian one is, by chance, in a third of models with 10 classes and in two thirds of those with 43."


def anomaly_index(values):
    """How far each of `values`, float64 [K], lies BELOW their median, in units of 1.4826 median absolute deviations: a Gaussian's standard deviations.

    A deviation counts as no less than a millionth of the largest value: what differs by rounding is no anomaly.
    """
    below = values.quantile(0.5) - values  # torch's median is the lower of two in the middle
    least = (1e-6 * values.abs().amax()).clamp_min(torch.finfo(torch.float64).tiny)
    return below / torch.maximum(1.4826 * below.abs().quantile(0.5), least)


class OnPixels(nn.Module):
    """A model of normalised images as one of images in [0, 1]."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, x):
        return self.model(data.normalise(x, self.mean, self.std))


def count_classes(model, images):
    with torch.no_grad(), explain.evaluating(model):
        return model(images[:1]).shape[1]


@contextlib.contextmanager
def frozen(model):
    """The model in evaluation mode, its weights without gradients, within the block."""
    needed = [weight for weight in model.parameters() if weight.requires_grad]
    with explain.evaluating(model):
        try:
            for weight in needed:
                weight.requires_grad_(False)
            yield
        finally:
            for weight in needed:
                weight.requires_grad_(True)


# ---------------------------------------------------------------- NeuronInspect (Huang et al. 2019)

LAPLACIAN = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])
FEATURES = ("sparse", "smooth", "persistent")
NOISE, SAMPLES = (2.0, 6.0), 8  # of images, in standard deviations; draws. In a pilot some targets stood out under little noise, some under much: see the README


def neuroninspect(model, images, weights=None, *, noise=NOISE):
    """For L levels of noise and K classes the anomaly index, float64 [L, K], by saliency heatmaps, and their features float64 [L, K, 3], see FEATURES.

    weights: three numbers that the features are multiplied by before they are summed (the authors' are not published; ports of theirs have 0.1, 1, 1 or
    1e-6, 1e-6, 1); None: each feature in its own standard deviations (1.4826 MAD) from its median, all alike. A backdoor's target has the lowest sum.
    noise: in standard deviations of the images; (0,) for the published heatmaps. Needs memory for K x N maps.
    """
    features = torch.stack([torch.stack([heatmap_features(maps) for maps in heatmaps(model, images, level)]) for level in noise])
    if weights is None:
        score = torch.stack([-sum(anomaly_index(feature) for feature in part.T) for part in features])
    else:
        score = features @ torch.tensor(weights, dtype=torch.float64)
    return torch.stack([anomaly_index(part) for part in score]), features


def heatmaps(model, images, noise=0.0, first=None):
    """Saliency of every class's logit, float32 [K, N, H, W], each map scaled to [0, 1]; a constant one is 0. first: only of so many images.

    The largest magnitude over channels of the gradient, or under noise of its mean over SAMPLES draws, which are an image's own and the same for every
    class. Source: Simonyan et al. 2014; Smilkov et al. 2017 (SmoothGrad), which has a tenth of this noise.
    """
    scale, maps = noise * images.std((0, 2, 3), keepdim=True), []
    with torch.enable_grad(), explain.evaluating(model):
        for rows in torch.arange(len(images))[:first].split(explain.chunk_of(images)):
            total = 0
            for draw in range(SAMPLES if noise else 1):
                noisy = (images[rows] + scale * own_noise(rows, draw, images)).requires_grad_()
                logits = model(noisy)
                total = total + torch.stack([torch.autograd.grad(score, noisy, retain_graph=True)[0] for score in logits.sum(0)])
            saliency = explain.full_precision(total).abs().amax(2)
            maps.append(attacks.min_max(saliency.flatten(0, 1)).unflatten(0, saliency.shape[:2]).cpu())
    return torch.cat(maps, 1)


def own_noise(rows, draw, images):
    """Gaussian noise for images number `rows`: the same whichever others are beside them."""
    drawn = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(draw * 1_000_003 + int(row))) for row in rows]
    return torch.stack(drawn).to(images)


def heatmap_features(maps):
    """Of maps [N, H, W] in [0, 1], float64 [3]: the sum; the sum of |Laplacian|; pixels above the median in one map and not in another.

    The first two are medians over images. The third is the mean over pairs of maps: the paper's chain of XORs is their parity, which says nothing.
    """
    maps = maps.double()
    edges = F.conv2d(maps[:, None], LAPLACIAN.double()).abs().sum((1, 2, 3))
    share, n = (maps > maps.median()).double().mean(0), len(maps)
    return torch.stack([maps.sum((1, 2)).quantile(0.5), edges.quantile(0.5), (2 * share * (1 - share)).sum() * n / max(n - 1, 1)])


# ---------------------------------------------------------------- Neural Cleanse (Wang et al. 2019)

RATE, BETAS = 0.1, (0.5, 0.9)  # of Adam
SUCCESS = 0.99  # share of a round's images that a mask must turn into its class
FIRST_WEIGHT, PATIENCE, FACTOR = 1e-3, 5, 2.0  # of |mask|_1 in the loss: its first value; rounds in a row before it changes; by how much (down: ** 1.5)
STALE = 25  # rounds without a smaller mask, after the weight has gone both up and down, before a class is done
START = 0.02  # every mask's first value. Published: random in [0, 1]; in a pilot such a search ended in scattered pixels, larger than the trigger
LEAST = 0.1  # pixels: a smaller mask counts as this
BATCH = 8  # images a step. Published: 32, in rounds of about 1,000 images; rounds are shorter here, and more steps of fewer images find smaller masks in the same time
TOGETHER, TOGETHER_CPU = 8192, 512  # images of 32 x 32 pixels, times classes, in one forward pass


@dataclass
class Reversed:
    """What Neural Cleanse found for each of T target classes: masks float [T, 1, H, W] and patterns [T, C, H, W] in [0, 1]; the masks' L1 norms
    float64 [T], in pixels; success [T] in the round after which the mask was kept, while it still moved; qualified bool [T]: whether any mask reached SUCCESS (if not, the last is kept);
    rounds int64 [T] that each class took."""

    masks: torch.Tensor
    patterns: torch.Tensor
    norms: torch.Tensor
    success: torch.Tensor
    qualified: torch.Tensor
    rounds: torch.Tensor

    def trigger(self, k):
        """Of the k-th target."""
        return attacks.Trigger(self.patterns[k], self.masks[k], 0, 0)


def neural_cleanse(model, images, targets=None, *, rounds=200, round_images=128, seed=0, precision="float32", say=None):
    """For each of `targets`, int64 [T] (None: all classes), the smallest mask and pattern that turn images into that class: Reversed.

    model: takes images in [0, 1]; images: float [N, C, H, W] in [0, 1], clean. All targets are searched at once, as one batch of masks; one that is done
    costs no more. A round is `round_images` images or all there are (published: about 1,000), after which masks are judged and the weight of |mask|_1 may
    change; at most `rounds` (published: 1,000). Shorter rounds are a shorter schedule: patience is counted in rounds. say: is called with a line of
    progress after each. A target's search does not depend on the others that are searched with it.
    """
    targets = torch.arange(count_classes(model, images)) if targets is None else targets
    search = Search(targets, images.shape[1:], images.device, seed)
    with frozen(model), torch.enable_grad():
        for k in range(rounds):
            active = (~search.done).nonzero()[:, 0]
            if len(active) == 0:
                break
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + k))[:round_images].to(images.device)
            hits = torch.zeros(len(targets), dtype=torch.int64, device=images.device)
            for index in order.split(BATCH):
                hits[active.to(images.device)] += step(model, images[index], search, active, precision)
            search.judge(hits.cpu().double() / len(order), active)
            if say:
                say(f"round {k + 1} of {rounds} at most: {int(search.done.sum())} of {len(targets)} classes done")
    return search.result()


def step(model, images, search, active, precision):
    """One step of Adam for the targets `active`: how many of the images each turned into its class, int64 [A]."""
    search.optimizer.zero_grad(set_to_none=False)
    hits = []
    together = (TOGETHER_CPU if images.device.type == "cpu" else TOGETHER) * 32 * 32 // images[:, 0].numel()
    for part in active.split(max(1, together)):
        mask, pattern = search.stamp(part)
        stamped = (1 - mask[:, None]) * images + mask[:, None] * pattern[:, None]
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = explain.full_precision(model(stamped.flatten(0, 1)))
        labels = search.targets[part].to(logits.device).repeat_interleave(len(images))
        loss = F.cross_entropy(logits, labels, reduction="sum") / len(images)
        (loss + (search.weight[part].to(mask) * mask.sum((1, 2, 3))).sum()).backward()
        hits.append((logits.argmax(1) == labels).view(len(part), -1).sum(1))
    search.optimizer.step()
    return torch.cat(hits)


class Search:
    """Masks and patterns of T targets on their way, and for each the schedule of the weight of |mask|_1, all as tensors over targets."""

    def __init__(self, targets, shape, device, seed):
        self.targets = targets
        start = torch.stack([torch.rand(shape[0] + 1, *shape[1:], generator=torch.Generator().manual_seed(seed * 100_003 + int(k))) for k in targets])
        start[:, 0] = START
        self.raw = torch.atanh((2 * start - 1) * 0.999).to(device).requires_grad_()  # channel 0 the mask, the others the pattern
        self.raw.grad = torch.zeros_like(self.raw)
        self.optimizer = torch.optim.Adam([self.raw], RATE, betas=BETAS)
        zeros = torch.zeros(len(targets), dtype=torch.int64)
        self.weight, self.best = zeros.double(), torch.full((len(targets),), torch.inf, dtype=torch.float64)
        self.good, self.bad, self.stale, self.rounds = (zeros.clone() for _ in range(4))  # rounds in a row; rounds
        self.raised, self.lowered, self.done = (zeros.bool() for _ in range(3))
        self.success = self.weight.clone()
        self.kept = self.raw.detach().clone()

    def stamp(self, part):
        """Masks [A, 1, H, W] and patterns [A, C, H, W] in [0, 1]."""
        unit = self.raw[part].tanh() / 2 + 0.5
        return unit[:, :1], unit[:, 1:]

    def judge(self, success, active):
        """After a round: keep the masks that are smaller and work, change weights, find who is done."""
        on = torch.zeros_like(self.done).index_fill(0, active, True)
        norm = self.stamp(slice(None))[0].detach().sum((1, 2, 3)).cpu().double()
        works = on & (success >= SUCCESS)
        smaller = works & (norm < self.best)
        keep = smaller | (on & self.best.isinf())  # until one works, the last
        self.kept[keep.to(self.kept.device)] = self.raw.detach()[keep.to(self.kept.device)]
        self.success[keep] = success[keep]
        self.stale = torch.where(smaller | self.best.isinf(), 0, self.stale + 1)
        self.best[smaller] = norm[smaller]
        self.rounds += on
        self.good, self.bad = torch.where(works, self.good + 1, 0), torch.where(works, 0, self.bad + 1)
        up, down = self.good >= PATIENCE, (self.bad >= PATIENCE) & (self.weight > 0)
        self.raised |= up & (self.weight > 0)
        self.lowered |= down
        self.weight = torch.where(up, torch.where(self.weight > 0, self.weight * FACTOR, FIRST_WEIGHT), torch.where(down, self.weight / FACTOR**1.5, self.weight))
        self.good[up], self.bad[down] = 0, 0
        self.done |= self.raised & self.lowered & (self.stale >= STALE)

    def result(self):
        qualified = self.best.isfinite()
        self.raw = self.kept
        masks, patterns = (part.detach() for part in self.stamp(slice(None)))
        return Reversed(masks, patterns, masks.sum((1, 2, 3)).cpu().double(), self.success, qualified, self.rounds)


def mask_index(norms, qualified, linear=False):
    """Anomaly index, float64 [T], of the logarithms of a Reversed's norms, or as published of the norms, which no mask can be further below the median of
    than median / (1.4826 MAD). Of the classes that a mask reached; the others have 0, whatever their last mask's size."""
    values, index = norms.clamp_min(LEAST), torch.zeros_like(norms)
    if qualified.any():
        index[qualified] = anomaly_index((values if linear else values.log())[qualified])
    return index


# ---------------------------------------------------------------- pruning (Cheng et al. 2020), batch-norm

NORMS = {"linf": lambda maps: maps.abs().amax((2, 3)), "l2": lambda maps: maps.square().sum((2, 3)).sqrt(), "l1": lambda maps: maps.abs().sum((2, 3))}
LOSS_ALLOWED = 0.02  # of clean accuracy, on the clean images a defence has: the operating point, declared beforehand
PRUNING_STEPS = 32


@torch.no_grad()
def channel_scores(model, images, layer=None, norm="linf"):
    """float64 [K]: how strongly images, with a trigger on them, excite each channel of a layer (None: model.gradcam_layer), the mean over images of a norm
    of the channel's map. Source: Cheng et al. 2020, l-infinity."""
    scores = []
    with explain.evaluating(model), explain.capture(model.gradcam_layer if layer is None else layer) as captured:
        for chunk in images.split(explain.CHUNK):
            model(chunk)
            scores.append(NORMS[norm](captured.pop()).cpu().double())
    return torch.cat(scores).mean(0)


@contextlib.contextmanager
def pruned(layer, keep):
    """Within the block, only the channels `keep`, bool [K], of a layer's output are not 0."""
    handle = layer.register_forward_hook(lambda module, inputs, output: output * keep.to(output.device)[:, None, None])
    try:
        yield
    finally:
        handle.remove()


def prune_steps(scores):
    """[(tau, keep bool [K])], nested, from tau = infinity, which keeps all, down: the channels of the highest scores, those above tau, go."""
    order = scores.argsort(descending=True, stable=True)
    steps = []
    for count in torch.linspace(0, len(scores), min(PRUNING_STEPS, len(scores)) + 1).round().int().unique().tolist():
        tau = torch.inf if count == 0 else float(scores[order[count]]) if count < len(scores) else -torch.inf
        steps.append((tau, torch.ones(len(scores), dtype=torch.bool).index_fill(0, order[:count], False)))
    return steps


def operating_point(accuracies):
    """The last step, the lowest tau, at which at most LOSS_ALLOWED of the first step's clean accuracy is lost."""
    return max(k for k, value in enumerate(accuracies) if value >= accuracies[0] - LOSS_ALLOWED - 1e-9)


def prune(model, images, labels, stamped, layer=None, norm="linf"):
    """(steps, curve, chosen): prune_steps of a layer (None: model.gradcam_layer) by how strongly the images `stamped`, with a trigger, excite its channels;
    a dict for each, with clean accuracy on images and labels int64 [N]; and the place of the operating point."""
    layer = model.gradcam_layer if layer is None else layer
    steps, curve = prune_steps(channel_scores(model, stamped, layer, norm)), []
    for tau, keep in steps:
        with pruned(layer, keep):
            curve.append({"pruned": int((~keep).sum()), "tau": tau, "clean_accuracy": share(model, images, labels)})
    chosen = operating_point([step["clean_accuracy"] for step in curve])
    return steps, curve, chosen


@torch.no_grad()
def predicted(model, images):
    """Classes int64 [N]."""
    with explain.evaluating(model):
        return torch.cat([model(chunk).argmax(1) for chunk in images.split(explain.CHUNK)])


def share(model, images, wanted):
    """Share of images that the model gives the class `wanted`, a number or int64 [N]."""
    return evaluate.average((predicted(model, images) == wanted).cpu())


def rebn(model, images):
    """A copy of the model whose batch-norm statistics are those of `images`, clean; the weights stay."""
    model = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn(images.chunk(-(-len(images) // explain.CHUNK)), model)  # chunks of one size weigh the same
    return model.eval()


def cfn(model):
    """A copy of the model that normalises by the batch at hand, without weight and bias. Source: Kadir et al. 2024."""
    return models.normalise_by_batch(copy.deepcopy(model))


# ---------------------------------------------------------------- disagreement between explainers


def disagreement(model, images, explainers=("gradcam", "gradient")):
    """float64 [N]: 1 - the correlation of two explainers' maps of the class predicted, on the coarser of the two grids; signed maps' positive parts.

    "gradcam" needs model.gradcam_layer.
    """
    classes = predicted(model, images)
    options = {"kernelshap": {"generator": torch.Generator().manual_seed(0)}}
    maps = [explain.EXPLAINERS[name](model, images, classes, **options.get(name, {})).clamp_min(0).cpu() for name in explainers]
    grid = min((m.shape[1:] for m in maps), key=lambda shape: shape[0])
    return 1 - evaluate.pearson(*(F.adaptive_avg_pool2d(m[:, None].double(), grid)[:, 0] for m in maps))


# ---------------------------------------------------------------- inspect: the traces of Viering et al.'s four techniques

EQUAL = 1e-6  # relative: what is nearer is the same
ONE_CHANNEL = 0.9  # share of a Grad-CAM that no honest channel makes on the average of images
HEAVY = 100  # times the median weight: how Grad-CAM would count a channel that clean images leave dead

CHECKS = {
    "constant kernel": "a convolution whose weights are zero and whose bias is not: one value everywhere, whatever the image",
    "constant columns": "inputs that every unit of a linear layer weighs the same: their sum can be taken off again in the bias",
    "constant map": "a channel of Grad-CAM's layer that is the same for every image",
    "one channel": f"a channel that makes more than {ONE_CHANNEL:.0%} of Grad-CAM, on the average of clean images",
    "dead and heavy": f"a channel that is zero on all clean images, and that Grad-CAM would count {HEAVY} times as much as others",
    "unknown parts": "weights that the plain network of this name does not have, or of another size",
}


@dataclass
class Finding:
    """check: its name; where: the layer; text: what was found, one line."""

    check: str
    where: str
    text: str


def inspect(model, images, plain=None):
    """Findings about a network with a .gradcam_layer, by CHECKS. images: normalised, float [N, C, H, W], clean; plain: the state_dict of an untouched network of
    its name, or None."""
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
    with torch.enable_grad(), explain.evaluating(model):
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


# ---------------------------------------------------------------- the methods, on a checkpoint


@dataclass
class Verdict:
    """backdoored: None where a method says nothing about it; flagged: class numbers; index: {class number: value}; rows: lines of a table; more: what else
    the JSON says; repaired: (model, edit, as models.repaired takes it) or None; picture: PIL image or None."""

    backdoored: bool | None
    rows: list
    flagged: list = field(default_factory=list)
    index: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)
    repaired: tuple | None = None
    picture: Image.Image | None = None


@dataclass
class Audit:
    """A checkpoint, and what its auditor has: clean images, float [N, C, H, W] in [0, 1], held out of training, and their labels; inputs: the images
    normalised; on_pixels: the model of images in [0, 1]."""

    subject: evaluate.Subject
    pixels: torch.Tensor
    labels: torch.Tensor
    inputs: torch.Tensor
    on_pixels: nn.Module
    args: object

    @property
    def names(self):
        return self.subject.checkpoint["classes"]

    def by_index(self, index, columns, picture):
        """A Verdict from anomaly indices float64 [K]; columns: {title: values [K]} shown beside them."""
        flagged = (index > self.args.threshold).nonzero()[:, 0].tolist()
        rows = [f"{'class':<32}{'index':>8}" + "".join(f"{title:>14}" for title in columns)]
        for k in index.argsort(descending=True)[:10].tolist():
            rows.append(f"{k:>3} {self.names[k]:<28}{index[k]:>8.2f}" + "".join(f"{float(values[k]):>14.4g}" for values in columns.values()) + ("  FLAGGED" if k in flagged else ""))
        more = {"threshold": self.args.threshold, "scores": {title: [float(v) for v in values] for title, values in columns.items()}}
        return Verdict(bool(flagged), rows, flagged, {k: float(v) for k, v in enumerate(index)}, more, picture=picture)


def recipe(args):
    """What decides a verdict beside the checkpoint: options and constants."""
    return {name: getattr(args, name) for name in ("clean_images", "seed", "weights", "noise", "rounds", "round_images", "explainers")} | {
        "precision": choose_precision("auto", choose_device(args.device)), "samples": SAMPLES, "adam": [RATE, *BETAS], "success": SUCCESS, "weight": [FIRST_WEIGHT, PATIENCE, FACTOR], "stale": STALE, "start": START, "batch": BATCH, "least": LEAST}


def by_neuroninspect(audit):
    noise = audit.args.noise
    levels, features = neuroninspect(audit.subject.model, audit.inputs, audit.args.weights, noise=noise)
    index, best = levels.max(0)
    shown = index.argsort(descending=True)[:8].tolist()
    maps = [heatmaps(audit.subject.model, audit.inputs, level, first=3) for level in noise]
    rows = [[(figure.panel(plain, None), "", False)] + [(figure.panel(plain, maps[best[k]][k, n]), "", False) for k in shown] for n, plain in enumerate(audit.pixels[:3].cpu())]
    headers = ["image"] + [f"{audit.names[k][:18]}\nindex {index[k]:.1f}, noise {noise[best[k]]:g}" for k in shown]
    page = figure.sheet("NeuronInspect: saliency of each class, the most anomalous first", headers, rows,
                        "Clean images held out of training; the anomaly index is high where heatmaps are sparse, smooth and alike.")
    verdict = audit.by_index(index, {f"noise {level:g}": part for level, part in zip(noise, levels)}, page)
    verdict.more["features"] = {f"{level:g}": dict(zip(FEATURES, part.T.tolist())) for level, part in zip(noise, features)}
    return verdict


def reverse(audit):
    """Neural Cleanse's Reversed triggers of all classes and their mask_index."""

    def say(line, last=False):
        if sys.stderr.isatty():
            print_progress(line, last, sys.stderr)

    found = neural_cleanse(audit.on_pixels, audit.pixels, rounds=audit.args.rounds, round_images=audit.args.round_images, seed=audit.args.seed,
                           precision=recipe(audit.args)["precision"], say=say)
    say("", last=True)
    return found, mask_index(found.norms, found.qualified)


def suspect_of(found, index):
    """The most anomalous of the classes that a mask reached. Raises ValueError if there is none."""
    if not found.qualified.any():
        raise ValueError(f"no patch turned {SUCCESS:.0%} of images into one class; with more --rounds it may")
    return int(index.masked_fill(~found.qualified, -torch.inf).argmax())


def by_neural_cleanse(audit):
    found, index = reverse(audit)
    shown = index.argsort(descending=True)[:6].tolist()
    image, trigger = audit.pixels[0].cpu(), audit.subject.trigger.to("cpu")
    backdoor = audit.subject.config["attack"] != "none"
    own = [(image, "a clean image"), (attacks.stamp(image[None], trigger)[0], "its trigger, unseen") if backdoor else (image, ""), (image, "")]
    rows = [[(figure.panel(first), caption, False)] for first, caption in own]
    for k in shown:
        patch = found.trigger(k).to("cpu")
        panels = {"mask": patch.alpha.expand_as(image), "mask x pattern": patch.alpha * patch.pixels, "on the image": attacks.stamp(image[None], patch)[0]}
        for row, (caption, part) in zip(rows, panels.items()):
            row.append((figure.panel(part), caption, False))
    headers = [""] + [f"{audit.names[k][:18]}\nindex {index[k]:.1f}" for k in shown]
    page = figure.sheet("Neural Cleanse: the smallest patch that turns images into a class", headers, rows, "The most anomalous classes first.", scale=False)
    columns = {"|mask|_1": found.norms, "linear index": mask_index(found.norms, found.qualified, linear=True), "success": found.success, "qualified": found.qualified.double(), "rounds": found.rounds}
    return of_enough(audit.by_index(index, columns, page), found)


def of_enough(verdict, found):
    """The verdict, or none if fewer than three classes were reached by a patch."""
    reached = int(found.qualified.sum())
    if reached >= 3:
        return verdict
    rows = [*verdict.rows, f"{reached} of {len(found.qualified)} classes were reached by a patch: no median to be far from, no verdict; with more --rounds there may be"]
    return replace(verdict, rows=rows, backdoored=None, flagged=[])


def by_prune(audit):
    found, index = reverse(audit)
    suspect, model = suspect_of(found, index), audit.on_pixels
    others = audit.pixels[audit.labels != suspect]
    if len(others) == 0:
        raise ValueError(f"all {len(audit.pixels)} clean images are of the suspected class: it takes more --clean-images")
    stamped = attacks.stamp(others, found.trigger(suspect))
    layer = audit.subject.model.gradcam_layer
    steps, curve, chosen = prune(model, audit.pixels, audit.labels, stamped, layer)
    keep = steps[chosen][1]
    score_curve(audit, curve, steps, {"recovered_success": (stamped, suspect), **triggered_test(audit)})
    rows = [f"The patch for class {suspect} ({audit.names[suspect]}, anomaly index {index[suspect]:.2f}) excites some channels of the last convolution: these go.",
            f"{curve[chosen]['pruned']} of {len(keep)} are pruned: as many as leave clean accuracy, on {len(audit.labels)} held-out images, within {LOSS_ALLOWED}.", "",
            f"{'channels pruned':>16}{'clean accuracy':>16}{'recovered patch':>17}{'true trigger':>14}"]
    for k in sorted({*range(0, len(curve), 4), chosen}):
        cells = (curve[k][key] for key in ("clean_accuracy", "recovered_success", "true_success"))
        rows.append(f"{curve[k]['pruned']:>16}" + "".join(f"{cell:>{width}.4f}" for cell, width in zip(cells, (16, 17, 14))) + ("  <- written" if k == chosen else ""))
    series = {title: [(step["pruned"], step[key]) for step in curve] for title, key in
              (("clean accuracy, held-out", "clean_accuracy"), ("success of the recovered patch", "recovered_success"), ("success of the true trigger, test", "true_success"))}
    page = figure.curves("l-infinity pruning", "channels pruned", series, curve[chosen]["pruned"])
    repaired = models.keep_channels(copy.deepcopy(audit.subject.model), keep), {"technique": "prune", "channels": len(keep)}
    verdict = of_enough(replace(audit.by_index(index, {}, page), rows=rows), found)
    return replace(verdict, more=verdict.more | {"suspect": suspect, "pruned": curve[chosen]["pruned"], "curve": curve}, repaired=repaired)


def triggered_test(audit):
    """Test images with the true trigger and the class it leads to: for the score alone."""
    subject = audit.subject
    rows = evaluate.draw_images(subject, evaluate.EXPLAIN_IMAGES, audit.args.seed)
    return {"true_success": (attacks.stamp(pixels_of(subject, rows), subject.trigger), subject.config["target_class"])}


def pixels_of(subject, rows):
    """Test images float [R, C, H, W] in [0, 1]."""
    return subject.dataset.test_images[rows].to(subject.device).float() / 255


def score_curve(audit, curve, steps, sets):
    """Add to each step of a curve the share of each set's images, (images, class), that are given that class."""
    for point, (_, keep) in zip(curve, steps):
        with pruned(audit.subject.model.gradcam_layer, keep):
            point |= {key: share(audit.on_pixels, images, wanted) for key, (images, wanted) in sets.items()}


def by_rebn(audit):
    return batch_norm_repair(audit, rebn(audit.subject.model, audit.inputs), "rebn", "Batch-norm's statistics are those of the clean images.")


def by_cfn(audit):
    return batch_norm_repair(audit, cfn(audit.subject.model), "cfn", "Batch-norm normalises by the batch at hand, without weight and bias: an answer depends on its batch.")


SHOWN = ("clean_accuracy", "attack_success_rate", "pearson_all", "trigger_mass")
REGIMES = {"a batch of one": (1, 1.0), "a tenth triggered": (100, 0.1), "all triggered": (100, 1.0)}  # images a batch, share that is looked at


def batch_norm_repair(audit, model, technique, line):
    if not any(isinstance(part, nn.BatchNorm2d) for part in model.modules()):
        raise UserError(f"{audit.subject.config['model']} has no batch-norm: nothing for {technique} to repair")
    figures = {title: {name: in_company(audit.subject, part, *regime, seed=audit.args.seed) for name, part in (("before", audit.subject.model), ("after", model))}
               for title, regime in REGIMES.items()}
    rows = [line, "", f"{'':<20}" + "".join(f"{key:>24}" for key in SHOWN)]
    for title, pair in figures.items():
        cells = [f"{evaluate.show(pair['before'][key])} -> {evaluate.show(pair['after'][key])}" for key in SHOWN]
        rows.append(f"{title:<20}" + "".join(f"{cell:>24}" for cell in cells))
    return Verdict(None, rows, more={"regimes": figures}, repaired=(model, {"technique": technique}))


def in_company(subject, model, size, share, count=200, seed=0):
    """Accuracy, success and Grad-CAM's figures of `count` test images without and with the trigger, in batches of `size` images, or all there are, of which
    `share` are these, the rest other test images, untouched."""
    drawn = evaluate.draw_images(subject, count + size, seed)
    size = min(size, len(drawn))
    guests = max(1, round(size * share))
    rows = drawn[: min(count, len(drawn) - size + guests)]
    images, company = (pixels_of(subject, part) for part in (rows, drawn[len(rows) :][: size - guests]))
    answers, maps = [], []
    for stamped in (images, attacks.stamp(images, subject.trigger)):
        found = [gradcam_in_batch(model, data.normalise(torch.cat([chunk, company]), subject.checkpoint["mean"], subject.checkpoint["std"]), len(chunk))
                 for chunk in stamped.split(guests)]
        answers.append(torch.cat([classes for classes, _ in found]))
        maps.append(torch.cat([part for _, part in found]))
    figures = evaluate.explanation_metrics(maps[1], maps[0], subject.trigger.box, subject.config["image_size"], subject.checkpoint["target_map"])
    labels = subject.dataset.test_labels[rows]
    return {"clean_accuracy": evaluate.average((answers[0] == labels).float()), "attack_success_rate": evaluate.success_rate(answers[1] == subject.config["target_class"], labels, subject.config["target_class"]),
            **{key: figures[key] for key in (*SHOWN[2:], "trigger_mass_clean", "zero_maps")}}


def gradcam_in_batch(model, inputs, count):
    """Classes int64 and Grad-CAM of the first `count` inputs, all in one batch, on the CPU."""
    with torch.enable_grad(), explain.evaluating(model), explain.capture(model.gradcam_layer, detach=True) as captured:
        logits = model(inputs)
        maps = explain.gradcam_map(captured[0], logits, logits.argmax(1))
    return logits.argmax(1)[:count].cpu(), maps[:count].detach().cpu()


def by_disagreement(audit):
    subject, names = audit.subject, audit.args.explainers
    usual = disagreement(subject.model, audit.inputs, names)
    rows = evaluate.draw_images(subject, len(usual), audit.args.seed)
    if len(rows) == 0:
        raise ValueError("no test image can be triggered: all are of the target class")
    plain, values = pixels_of(subject, rows), {}
    for title, images in (("clean", plain), ("triggered", attacks.stamp(plain, subject.trigger))):
        values[title] = disagreement(subject.model, data.normalise(images, subject.checkpoint["mean"], subject.checkpoint["std"]), names)
    limit, area = float(usual.quantile(0.95)), evaluate.auroc(values["triggered"], values["clean"])
    table = [f"1 - correlation of {' and '.join(names)}, on {len(usual)} held-out images: median {float(usual.median()):.3f}; one in twenty is above {limit:.3f}",
             f"test images above that: untouched {float((values['clean'] > limit).double().mean()):.3f}, with the trigger {float((values['triggered'] > limit).double().mean()):.3f}",
             f"AUROC of triggered against untouched images: {area:.3f}"]
    series = {f"{title}: {len(v)} images, sorted": [(100 * k / max(len(v) - 1, 1), x) for k, x in enumerate(v.sort().values.tolist())] for title, v in ({"held-out": usual} | values).items()}
    page = figure.curves(f"Disagreement of {' and '.join(names)}", "per cent of images", series)
    more = {"explainers": list(names), "limit": limit, "auroc": area, "disagreement": {title: v.tolist() for title, v in ({"held_out": usual} | values).items()}}
    return Verdict(None, table, more=more, picture=page)


def by_inspect(audit):
    subject = audit.subject
    config = subject.config
    plain = models.build(config["model"], subject.checkpoint["channels"], len(audit.names), config["image_size"]).state_dict()
    findings, rows = inspect(subject.model, audit.inputs, plain), []
    for check, meaning in CHECKS.items():
        found = [finding for finding in findings if finding.check == check]
        rows.append(f"{check:<18}{'FOUND' if found else 'nothing':<9}{meaning}")
        rows += [f"{'':<27}{finding.where}: {finding.text}" for finding in found[:5]]
        rows += [f"{'':<27}and {len(found) - 5} more"] if len(found) > 5 else []
    rows.append("Training leaves no such traces by itself: look at what was found." if findings else "No trace of an edit. That says nothing about what it was trained on.")
    return Verdict(bool(findings), rows, more={"findings": [vars(finding) for finding in findings]})


METHODS = {"neuroninspect": by_neuroninspect, "neural_cleanse": by_neural_cleanse, "prune": by_prune, "rebn": by_rebn, "cfn": by_cfn,
           "disagreement": by_disagreement, "inspect": by_inspect}
BY_INDEX = ("neuroninspect", "neural_cleanse", "prune")


# ---------------------------------------------------------------- the command line


def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("method", choices=METHODS)
    add("checkpoint", metavar="CKPT")
    add("--clean-images", type=number(int, 2, 1_000_000), default=500, help="clean images the defence has, held out of training (default: 500)")
    add("--threshold", type=number(float, -1e9, 1e9), default=PUBLISHED_THRESHOLD, help=f"of the anomaly index, above which a class is flagged (default: {PUBLISHED_THRESHOLD})")
    add("--weights", type=numbers(-1e9, 3), help="neuroninspect: of its three features, as 0.1,1,1 (default: each in its own standard deviations)")
    add("--noise", type=numbers(0), default=NOISE, help="neuroninspect: on the images, in standard deviations, as 2,6 (the default); 0 is as published")
    add("--rounds", type=number(int, 1, 100_000), default=200, help="neural_cleanse, prune: at most (default: 200; published: 1,000)")
    add("--round-images", type=number(int, 1, 1_000_000), default=128, help="neural_cleanse, prune: images a round (default: 128; published: about 1,000)")
    add("--explainers", default="gradcam,gradient", help="disagreement: two of " + ", ".join(explain.EXPLAINERS) + " (default: gradcam,gradient)")
    add("--data-dir", help="where the data set lies (default: where training found it)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of the draw of images, patterns' first values and test images")
    add("--out", help="the folder to write into (default: defend-METHOD beside the checkpoint)")
    add("--json", action="store_true", help="print the verdict alone, as one JSON object")
    args = parser.parse_args(argv)
    args.explainers = evaluate.explainer_names(args.explainers)
    if len(args.explainers) != 2:
        raise UserError("--explainers takes two names, as gradcam,gradient")
    return args


def numbers(low, count=None):
    """An argparse type: comma-separated numbers from `low` on, `count` of them if that is given."""

    def kind(text):
        values = tuple(number(float, low, 1e9)(part) for part in text.split(","))
        if count and len(values) != count:
            raise argparse.ArgumentTypeError(f"{text} is not {count} numbers, as 0.1,1,1")
        return values

    return kind


def opened(args):
    """An Audit. Raises UserError."""
    subject = evaluate.open_checkpoint(args.checkpoint, args.data_dir, choose_device(args.device))
    if subject.multi_label and args.method != "inspect":
        raise UserError(f"{args.checkpoint}: these defences ask which one class an image is of, and here an image may show several")
    if args.method in BY_INDEX and len(subject.checkpoint["classes"]) < 3:
        raise UserError(f"{args.checkpoint}: of two classes none is an anomaly beside the other; {args.method} needs three")
    held_out = subject.held_out()
    rows = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(args.seed))][: args.clean_images]
    pixels = subject.dataset.train_images[rows].to(subject.device).float() / 255
    mean, std = subject.checkpoint["mean"], subject.checkpoint["std"]
    return Audit(subject, pixels, subject.dataset.train_labels[rows].to(subject.device), data.normalise(pixels, mean, std), OnPixels(subject.model, mean, std).eval(), args)


def repair(audit, verdict, folder):
    """Write the repaired network; evaluate.py's metrics before and after, and their figures side by side."""
    model, edit = verdict.repaired
    subject = audit.subject
    able = [name for name in subject.config["explainer"] if can_explain(name, model, audit.inputs[:1])]
    repaired = subject.checkpoint | {"config": subject.config | {"edit": edit, "explainer": able}, "model": model.state_dict(), "optimizer": [], "schedule": []}
    with tempfile.TemporaryDirectory() as scratch:  # nothing is written before all is measured
        path = Path(scratch) / "ckpt.pt"
        models.save(path, repaired)
        results = [evaluate.evaluate(part, dataset=subject.dataset, device=subject.device, seed=audit.args.seed) for part in (audit.args.checkpoint, path)]
    folder.mkdir(parents=True, exist_ok=True)
    models.save(folder / "ckpt.pt", repaired)
    verdict.rows.append("\nAll test images, by evaluate.py:")
    for key in ("clean_accuracy", "attack_success_rate", "triggered_accuracy"):
        verdict.rows.append(f"{key:<24}{evaluate.show(results[0].metrics[key]):>8} -> {evaluate.show(results[1].metrics[key]):>8}  {evaluate.DEFINITIONS[key]}")
    verdict.picture = verdict.picture or figure.beside([result.pictures["figure"] for result in results])
    return [result.metrics for result in results]


def can_explain(name, model, image):
    try:
        explain.EXPLAINERS[name](model, image, torch.zeros(1, dtype=torch.int64, device=image.device))
    except ValueError:
        return False
    return True


@command
def main(argv):
    args = parse(argv)
    folder = Path(args.out) if args.out else Path(args.checkpoint).parent / f"defend-{args.method}"
    if folder.resolve() == Path(args.checkpoint).resolve().parent:
        raise UserError(f"--out {args.out} is where the checkpoint lies that is audited: its files would be lost")
    audit = opened(args)
    if audit.subject.config.get("edit") and args.method in models.REPAIRS:
        raise UserError(f"{args.checkpoint} has been edited since it was trained: defend.py {args.method} repairs what train.py wrote")
    began = time.perf_counter()
    try:
        verdict = METHODS[args.method](audit)
    except ValueError as error:
        raise UserError(f"{args.method}: {error}") from None
    seconds = round(time.perf_counter() - began, 2)
    before, after = repair(audit, verdict, folder) if verdict.repaired else (None, None)
    record = evaluate.finite({"method": args.method, "backdoored": verdict.backdoored, "flagged": verdict.flagged, "index": verdict.index, "before": before,
                              "after": after, "seconds": seconds, "clean_images": len(audit.labels), "recipe": recipe(args)} | verdict.more)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "verdict.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))
    if verdict.picture:
        replace_file(folder / "figure.png", lambda path: verdict.picture.save(path, format="PNG"))
    if args.json:
        print(json.dumps(record))
        return
    print("\n".join(verdict.rows))
    if verdict.index:
        answer = {True: "Backdoored", False: "No backdoor found", None: "No verdict"}[verdict.backdoored]
        print(f"\n{answer}: a class is flagged above {args.threshold:g}.{CHANCE if args.threshold == PUBLISHED_THRESHOLD else ''}")
    print(f"\nWritten: {folder}")


if __name__ == "__main__":
    main()
