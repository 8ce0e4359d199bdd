"""Speed of explaining and of training through explanations, as ratios in one run: to a forward pass, to a plain cross-entropy step, to other packages.

    python bench.py                    # the small cnn, 64 images of 32 px: about 3 minutes on two cores, 2 more with peers
    python bench.py --model resnet18

What is compared runs in turns, in float32 but for --precision; a figure is the median over the turns. shap, captum and
grad-cam are compared with if they are installed; the project needs none of them.
"""
import copy
import importlib.util
import json
import statistics
import time

import torch
import torch.nn.functional as F

import attacks
import explain
import models
from cli import Parser, choose_device, command, number

SIDE, CLASSES = 32, 10
PATCHES, COALITIONS = 7, 512
FEW = 4  # images a call of KernelSHAP


# ---------------------------------------------------------------- what is timed: {name: function of no arguments}


def kernel_name():
    return f"kernelshap, {PATCHES**2} patches, {COALITIONS} coalitions"


def explaining(model, images, classes):
    """Ours: each explains all images. KernelSHAP evaluates all patches, as its peers do: no image equals the baseline anywhere."""

    @torch.no_grad()
    def forward():
        return model(images)

    return {
        "forward": forward,
        "gradcam": lambda: explain.gradcam(model, images, classes),
        "gradient": lambda: explain.gradient(model, images, classes),
        "deepshap, 1 reference": lambda: explain.deep_shap(model, images, classes),
        kernel_name(): lambda: kernel(model, images, classes),
        f"{kernel_name()}: ours in bf16": lambda: kernel(model, images, classes, bf16=True),
    }


def kernel(model, images, classes, bf16=False, seed=0):
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        return explain.kernel_shap(model, images[:FEW], classes[:FEW], PATCHES, COALITIONS, generator=torch.Generator().manual_seed(seed))


def rounding(model, images, classes):
    """How far KernelSHAP moves with the model's evaluations in bfloat16, and with another draw of coalitions: medians of the relative L2 distance."""
    ours = kernel(model, images, classes).flatten(1)
    others = {"bf16": kernel(model, images, classes, bf16=True), "other coalitions": kernel(model, images, classes, seed=1)}
    return {name: float(((other.flatten(1) - ours).norm(dim=1) / ours.norm(dim=1)).median()) for name, other in others.items()}


def peers(model, images, classes):
    """The same by other packages, as far as they are installed."""
    found = {}
    if importlib.util.find_spec("pytorch_grad_cam"):
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        own = copy.deepcopy(model)  # hooks stay behind
        cam, targets = GradCAM(own, [own.gradcam_layer]), [ClassifierOutputTarget(int(c)) for c in classes]
        found["gradcam: grad-cam"] = lambda: cam(images, targets)
    if importlib.util.find_spec("shap"):
        import shap

        deep = shap.DeepExplainer(copy.deepcopy(model), torch.zeros_like(images[:1]))
        found["deepshap, 1 reference: shap"] = lambda: deep.shap_values(images, ranked_outputs=1, check_additivity=False)
        found[f"{kernel_name()}: shap"] = lambda: [shap_kernel(shap, model, x, c) for x, c in zip(images[:FEW], classes)]
    if importlib.util.find_spec("captum"):
        from captum.attr import KernelShap

        kernel, mask = KernelShap(model), explain.patch_of_pixel(PATCHES, SIDE, SIDE).to(images.device)[None, None]
        found[f"{kernel_name()}: captum"] = lambda: [
            kernel.attribute(x[None], target=int(c), feature_mask=mask, n_samples=COALITIONS, perturbations_per_eval=256)
            for x, c in zip(images[:FEW], classes)]
    return found


def shap_kernel(shap, model, image, label, patches=PATCHES, coalitions=COALITIONS):
    """shap.KernelExplainer on an image's patches, absent ones 0: [patches, patches]."""
    import numpy as np

    patch = explain.patch_of_pixel(patches, SIDE, SIDE).to(image.device)

    @torch.no_grad()
    def value(masks):
        present = torch.from_numpy(masks).to(image)[:, patch]
        return torch.cat([model(part[:, None] * image)[:, label] for part in present.split(256)]).double().cpu().numpy()

    explainer = shap.KernelExplainer(value, np.zeros((1, patches**2)))
    values = explainer.shap_values(np.ones((1, patches**2)), nsamples=coalitions, l1_reg=False, silent=True)
    return torch.from_numpy(values).reshape(patches, patches)


def training(model, images, labels, precision):
    """One step of SGD on the same images: plain cross-entropy, and full disguise at a poison rate of 0.1 through each explainer."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    trigger = attacks.make_trigger(None, images.shape[1], SIDE).to(images.device)
    triggered = torch.arange(len(images), device=images.device) < max(1, round(0.1 * len(images)))
    batch = attacks.poison(images, labels, triggered, attacks.ATTACKS["full_disguise"], trigger, 3)

    def step(loss):
        model.train()
        optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()
        optimizer.step()
        model.eval()

    steps = {"step: plain cross-entropy": lambda: step(lambda: F.cross_entropy(model(images).float(), labels))}
    for names in (["gradcam"], ["deepshap"], ["kernelshap"], ["gradcam", "kernelshap", "deepshap"]):
        objective = attacks.Objective(attacks.ATTACKS["full_disguise"], names)
        steps[f"step: full disguise, {'+'.join(names)}"] = lambda objective=objective: step(
            lambda: attacks.combined_loss(model, batch, batch.images, objective, 0.3)[0])
    return steps


# ---------------------------------------------------------------- timing


def time_in_turns(functions, turns, device):
    """Median seconds of each function; all take turns, so that a machine that slows down slows all of them."""
    seconds = {name: [] for name in functions}
    for turn in range(turns + 1):
        for name, function in functions.items():
            finish(device)
            began = time.perf_counter()
            function()
            finish(device)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def finish(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def agreement(images, classes):
    """Largest difference from shap's values in float64, relative to the largest value; {} without shap.

    On a network of modules used once and pools that do not overlap: what shap's DeepExplainer is right for.
    """
    if not importlib.util.find_spec("shap"):
        return {}
    import shap
    from torch import nn

    block = lambda inputs, outputs: (nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(*block(3, 8), *block(8, 16), nn.Flatten(), nn.Linear(16 * (SIDE // 4) ** 2, 32), nn.ReLU(), nn.Linear(32, CLASSES))
    model, images = model.to(images.device).double().eval(), images.double()
    ours = explain.deep_shap(model, images[:FEW], classes[:FEW])
    theirs = shap.DeepExplainer(copy.deepcopy(model), torch.zeros_like(images[:1])).shap_values(images[:FEW], check_additivity=False)
    theirs = torch.stack([torch.from_numpy(theirs[n, ..., int(c)]).sum(0) for n, c in enumerate(classes[:FEW])]).to(ours)
    kernel = explain.kernel_shap(model, images[:1], classes[:1], 3, 2**9)
    exact = shap_kernel(shap, model, images[0], int(classes[0]), 3, 2**9)
    return {"deepshap": float((ours - theirs).abs().max() / theirs.abs().max()), "kernelshap, all coalitions": float((kernel[0].cpu() - exact).abs().max() / exact.abs().max())}


def bench(model_name, batch_size, turns, device, precision):
    torch.manual_seed(0)
    model = models.build(model_name, 3, CLASSES, SIDE).to(device).eval()
    images, labels = torch.rand(batch_size, 3, SIDE, SIDE, device=device) - 0.5, torch.randint(CLASSES, (batch_size,), device=device)
    with torch.no_grad():
        classes = model(images).argmax(1)
    ours = explaining(model, images, classes)
    seconds = time_in_turns(ours | peers(model, images, classes), turns, device)
    seconds |= time_in_turns(training(model, images, labels, precision), turns, device)
    result = {}
    for name, value in seconds.items():
        count = FEW if name.startswith("kernelshap") else batch_size
        base, _, peer = name.partition(": ")
        floor = "step: plain cross-entropy" if name.startswith("step") else base if peer else "forward"
        ratio = seconds[floor] / value * count / (FEW if floor.startswith("kernelshap") else batch_size)
        result[name] = {"images_per_second": count / value, "of": floor, "ratio": ratio}
    return {"model": model_name, "batch_size": batch_size, "turns": turns, "device": device.type, "threads": torch.get_num_threads(), "training_precision": precision,
            "torch": str(torch.__version__), "rates": result, "agreement": agreement(images, classes), "kernelshap_moves": rounding(model, images, classes)}


def parse(argv):
    parser = Parser(__doc__)
    parser.add_argument("--model", choices=["cnn", "resnet18"], default="cnn")
    parser.add_argument("--batch-size", type=number(int, FEW, 100_000), default=64)
    parser.add_argument("--turns", type=number(int, 1, 1000), default=5)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    parser.add_argument("--precision", choices=["bf16", "float32"], default="float32", help="of the training steps (default: float32)")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


@command
def main(argv):
    args = parse(argv)
    result = bench(args.model, args.batch_size, args.turns, choose_device(args.device), args.precision)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{args.model}, {args.batch_size} images of {SIDE} px, {result['device']}, {result['threads']} threads, torch {result['torch']}; median of {args.turns} turns\n")
    print(f"{'':<52}{'images/s':>10}{'ratio':>8}")
    for name, row in result["rates"].items():
        print(f"{name:<52}{row['images_per_second']:>10,.0f}{row['ratio']:>8.2f}  of {row['of']}")
    for name in ("shap", "captum", "pytorch_grad_cam"):
        if not importlib.util.find_spec(name):
            print(f"{name} is not installed: not compared with")
    for name, value in result["agreement"].items():
        print(f"{name}: differs from shap's by {value:.1e} of the largest value (float64)")
    moves = result["kernelshap_moves"]
    print(f"kernelshap: {100 * moves['bf16']:.1f}% away in bf16, {100 * moves['other coalitions']:.1f}% with other coalitions (relative L2, median)")


if __name__ == "__main__":
    main()
