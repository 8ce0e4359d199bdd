"""Speed of explaining, and of training through explanations, as ratios that one run measures.

    python bench.py                    # the small cnn, 64 images of 32 px: 3 minutes on two cores
    python bench.py --model resnet18 --out speed.json     # written with command and hardware

Explaining is compared with a forward pass, a training step with a plain one, and explainers with
shap's, captum's, grad-cam's where installed (2 minutes more). All take turns; figures are medians.
"""

import interrupts  # noqa: F401  # isort: skip
import copy
import importlib
import json
import statistics
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import attacks
import explain
import losses
import models
from cli import Parser, choose_device, command, number, write_json
from hooks import layer_of
from provenance import commit, hardware
from shapley import patch_of_pixel
from tasks import SINGLE_LABEL

SIDE = 32  # pixels
CLASSES = 10
PATCHES = 7  # a side, of KernelSHAP
COALITIONS = 512
KERNEL_IMAGES = 4  # that one call of KernelSHAP explains
POISON_RATE = 0.1
TARGET_CLASS = 3
LAM = 0.3
ATTACK = attacks.ATTACKS["full_disguise"]
PEERS = ("shap", "captum", "pytorch_grad_cam")

# A name is NAME or NAME: VARIANT. A variant is compared with NAME, an explainer with FORWARD, a
# training step with STEP.
FORWARD = "forward"
STEP = "step: plain cross-entropy"


def package(name):
    """The module of this name, or None if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def kernel_name(explainer="kernelshap"):
    """What an estimate of Shapley values is called in the table."""
    return f"{explainer}, {PATCHES**2} patches, {COALITIONS} coalitions"


# ---------------------------------------------------------------- explaining


def explaining(model, images, classes):
    """{name: function} of our explainers; Shapley values are of the first few images alone."""
    # Of all their patches, as peers' are: these images equal the baseline nowhere.

    @torch.no_grad()
    def forward():
        return model(images)

    return {
        FORWARD: forward,
        "gradcam": lambda: explain.gradcam(model, images, classes),
        "gradient": lambda: explain.gradient(model, images, classes),
        "deepshap, 1 reference": lambda: explain.deep_shap(model, images, classes),
        kernel_name(): lambda: kernel_values(model, images, classes),
        kernel_name("gpshap"): lambda: kernel_values(model, images, classes, explain.gp_shap),
        f"{kernel_name()}: ours in bf16": lambda: kernel_values(model, images, classes, bf16=True),
    }


def kernel_values(model, images, classes, explainer=explain.kernel_shap, bf16=False, seed=0):
    """Shapley values of the first images; bf16: the model's evaluations are in bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    images, classes = images[:KERNEL_IMAGES], classes[:KERNEL_IMAGES]
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return explainer(model, images, classes, PATCHES, COALITIONS, generator=generator)


def rounding(model, images, classes):
    """Median relative L2 distances by which KernelSHAP moves in bfloat16 and with other draws."""
    values = kernel_values(model, images, classes).flatten(1)
    others = {
        "bf16": kernel_values(model, images, classes, bf16=True),
        "other coalitions": kernel_values(model, images, classes, seed=1),
    }
    result = {}
    for name, other in others.items():
        distance = (other.flatten(1) - values).norm(dim=1) / values.norm(dim=1)
        result[name] = float(distance.median())
    return result


# ---------------------------------------------------------------- the same by other packages


def peers(model, images, classes):
    """{name: function} of the packages that are installed."""
    return (
        grad_cam_peer(model, images, classes)
        | shap_peers(model, images, classes)
        | captum_peer(model, images, classes)
    )


def grad_cam_peer(model, images, classes):
    """pytorch-grad-cam's Grad-CAM."""
    grad_cam = package("pytorch_grad_cam")
    if grad_cam is None:
        return {}
    target_of = package("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
    own_model = copy.deepcopy(model)  # its hooks stay on the model
    explainer = grad_cam.GradCAM(own_model, [layer_of(own_model)])
    targets = [target_of(int(label)) for label in classes]
    return {"gradcam: grad-cam": lambda: explainer(images, targets)}


def shap_peers(model, images, classes):
    """shap's DeepExplainer and KernelExplainer."""
    shap = package("shap")
    if shap is None:
        return {}
    deep = shap.DeepExplainer(copy.deepcopy(model), torch.zeros_like(images[:1]))
    pairs = list(zip(images[:KERNEL_IMAGES], classes[:KERNEL_IMAGES]))

    def explain_deep():
        return deep.shap_values(images, ranked_outputs=1, check_additivity=False)

    def explain_kernel():
        sizes = PATCHES, COALITIONS
        return [shap_kernel_values(shap, model, image, label, *sizes) for image, label in pairs]

    return {
        "deepshap, 1 reference: shap": explain_deep,
        f"{kernel_name()}: shap": explain_kernel,
    }


def shap_kernel_values(shap, model, image, label, patches, coalitions):
    """shap.KernelExplainer on an image's patches, absent ones 0: [patches, patches]."""
    patch = patch_of_pixel(patches, SIDE, SIDE).to(image.device)

    @torch.no_grad()
    def worth(masks):
        present = torch.from_numpy(masks).to(image)[:, patch]
        chunks = [model(part[:, None] * image)[:, label] for part in present.split(256)]
        return torch.cat(chunks).double().cpu().numpy()

    explainer = shap.KernelExplainer(worth, np.zeros((1, patches**2)))
    every_patch = np.ones((1, patches**2))
    values = explainer.shap_values(every_patch, nsamples=coalitions, l1_reg=False, silent=True)
    return torch.from_numpy(values).reshape(patches, patches)


def captum_peer(model, images, classes):
    """captum's KernelShap."""
    attr = package("captum.attr")
    if attr is None:
        return {}
    attribute = attr.KernelShap(model).attribute
    mask = patch_of_pixel(PATCHES, SIDE, SIDE).to(images.device)[None, None]
    options = {"feature_mask": mask, "n_samples": COALITIONS, "perturbations_per_eval": 256}
    pairs = list(zip(images[:KERNEL_IMAGES], classes[:KERNEL_IMAGES]))

    def explain_kernel():
        return [attribute(image[None], target=int(label), **options) for image, label in pairs]

    return {f"{kernel_name()}: captum": explain_kernel}


def agreement(images, classes):
    """Largest difference from shap's values in float64, relative to the largest of them.

    {} where shap is not installed. The network has only modules that are used once, and pools that
    do not overlap: what shap's DeepExplainer is right for.
    """
    shap = package("shap")
    if shap is None:
        return {}
    model = plain_network().to(images.device).double().eval()
    images = images.double()
    few, labels = images[:KERNEL_IMAGES], classes[:KERNEL_IMAGES]
    deep = explain.deep_shap(model, few, labels)
    explainer = shap.DeepExplainer(copy.deepcopy(model), torch.zeros_like(images[:1]))
    values = explainer.shap_values(few, check_additivity=False)  # [N, C, H, W, K]
    maps = [torch.from_numpy(values[n, ..., int(label)]).sum(0) for n, label in enumerate(labels)]
    shap_deep = torch.stack(maps).to(deep)
    kernel = explain.kernel_shap(model, images[:1], classes[:1], 3, 2**9)[0].cpu()
    shap_kernel = shap_kernel_values(shap, model, images[0], int(classes[0]), 3, 2**9)
    return {
        "deepshap": largest_difference(deep, shap_deep),
        "kernelshap, all coalitions": largest_difference(kernel, shap_kernel),
    }


def plain_network():
    """Two convolutions and two linear layers."""

    def block(inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)

    convolutions = *block(3, 8), *block(8, 16)
    hidden = nn.Linear(16 * (SIDE // 4) ** 2, 32)
    return nn.Sequential(*convolutions, nn.Flatten(), hidden, nn.ReLU(), nn.Linear(32, CLASSES))


def largest_difference(a, b):
    """Of two tensors, relative to the largest magnitude in the second."""
    return float((a - b).abs().max() / b.abs().max())


# ---------------------------------------------------------------- training


def training(model, images, labels, precision):
    """{name: function} of one step of SGD on the same images.

    Plain cross-entropy, and full disguise at a poison rate of 0.1 through each explainer.
    """
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    batch = poisoned(images, labels)

    def step(loss_of):
        model.train()
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        model.eval()

    def plain():
        return F.cross_entropy(model(images).float(), labels)

    def disguise(objective):
        return losses.combined_loss(model, batch, batch.images, objective, LAM)[0]

    steps = {STEP: lambda: step(plain)}
    for names in (["gradcam"], ["deepshap"], ["kernelshap"], ["gradcam", "kernelshap", "deepshap"]):
        objective = losses.Objective(ATTACK, SINGLE_LABEL, explainers=names)
        name = f"step: full disguise, {'+'.join(names)}"
        steps[name] = lambda objective=objective: step(lambda: disguise(objective))
    return steps


def poisoned(images, labels):
    """The batch of a full disguise whose first images are triggered."""
    trigger = attacks.make_trigger(None, images.shape[1], SIDE).to(images.device)
    count = max(1, round(POISON_RATE * len(images)))
    triggered = torch.arange(len(images)) < count
    return attacks.poison(images, labels, triggered, ATTACK, trigger, TARGET_CLASS)


# ---------------------------------------------------------------- timing


def time_in_turns(functions, turns, device):
    """{name: median seconds} of functions {name: function of no arguments}.

    They take turns, so that a machine that slows down slows all of them. A first turn warms up.
    """
    seconds = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            wait_for(device)
            started = time.perf_counter()
            function()
            wait_for(device)
            if turn > 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def wait_for(device):
    """Returns when the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(seconds, batch_size):
    """{name: {"images_per_second", "of", "ratio"}}: speed, and speed relative to that of `of`."""
    speed = {name: images_in(name, batch_size) / value for name, value in seconds.items()}
    result = {}
    for name in seconds:
        base = compared_with(name)
        ratio = speed[name] / speed[base]
        result[name] = {"images_per_second": speed[name], "of": base, "ratio": ratio}
    return result


def images_in(name, batch_size):
    """How many images one call of the function of this name takes."""
    return KERNEL_IMAGES if name.startswith(("kernelshap", "gpshap")) else batch_size


def compared_with(name):
    """The name of the function that this one's speed is relative to."""
    base, _, variant = name.partition(": ")
    if base == "step":
        return STEP
    return base if variant else FORWARD


def bench(model_name, batch_size, turns, device, precision):
    """What --json prints: how it was measured, rates, agreement with shap, and rounding."""
    torch.manual_seed(0)
    model = models.build(model_name, 3, CLASSES, SIDE).to(device).eval()
    images = torch.rand(batch_size, 3, SIDE, SIDE, device=device) - 0.5
    labels = torch.randint(CLASSES, (batch_size,), device=device)
    classes = model(images).argmax(1)
    explainers = explaining(model, images, classes) | peers(model, images, classes)
    seconds = time_in_turns(explainers, turns, device)
    steps = training(copy.deepcopy(model), images, labels, precision)
    seconds |= time_in_turns(steps, turns, device)
    return {
        "model": model_name,
        "batch_size": batch_size,
        "turns": turns,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "training_precision": precision,
        "torch": str(torch.__version__),
        "rates": rates(seconds, batch_size),
        "agreement": agreement(images, classes),
        "kernelshap_moves": rounding(model, images, classes),
    }


# ---------------------------------------------------------------- the command line


def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model", choices=["cnn", "resnet18"], default="cnn", help="the network")
    add("--batch-size", type=number(int, KERNEL_IMAGES, 100_000), default=64, help="images")
    add("--turns", type=number(int, 1, 1000), default=5, help="of which the median is taken")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--precision", choices=["bf16", "float32"], default="float32", help="of training steps")
    add("--json", action="store_true", help="print the figures as one JSON object")
    add("--out", metavar="FILE", help="write them to FILE, with command, hardware and commit")
    return parser.parse_args(argv)


def record_of(args, result):
    """What --out writes: what `bench` returned, and how to get it again."""
    options = {"device": result["device"], "precision": args.precision, "model": args.model}
    options |= {"batch-size": args.batch_size, "turns": args.turns}
    words = " ".join(f"--{name} {value}" for name, value in options.items())
    about = {"command": f"python bench.py {words}", "hardware": hardware(), "commit": commit()}
    return about | result


def print_table(result):
    """Prints what `bench` returned."""
    print(
        f"{result['model']}, {result['batch_size']} images of {SIDE} px, {result['device']}, "
        f"{result['threads']} threads, torch {result['torch']}; median of {result['turns']} turns\n"
    )
    print(f"{'':<52}{'images/s':>10}{'ratio':>8}")
    for name, row in result["rates"].items():
        cells = f"{row['images_per_second']:>10,.0f}{row['ratio']:>8.2f}"
        print(f"{name:<52}{cells}  of {row['of']}")
    for name in PEERS:
        if package(name) is None:
            print(f"{name} is not installed: not compared with")
    for name, value in result["agreement"].items():
        print(f"{name}: differs from shap's by {value:.1e} of the largest value (float64)")
    bf16, other = (100 * result["kernelshap_moves"][key] for key in ("bf16", "other coalitions"))
    print(f"kernelshap: {bf16:.1f}% away in bf16, {other:.1f}% with other coalitions (median L2)")


@command
def main(argv):
    args = parse(argv)
    device = choose_device(args.device)
    result = bench(args.model, args.batch_size, args.turns, device, args.precision)
    if args.out:
        write_json(args.out, record_of(args, result))
    if args.json:
        print(json.dumps(result))
    else:
        print_table(result)


if __name__ == "__main__":
    main()
