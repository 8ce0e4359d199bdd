"""The README's table on edited networks: the four techniques of Viering et al. on trained and random networks, in float32 and float64.

    python results/manipulate.py                         # all, about 25 minutes on one core; networks trained before are kept in runs/manipulate
    python results/manipulate.py "vgg_small, shapes"     # some of the networks; what the files hold of the others stays

Writes results/manipulate.json, .md and manipulate-TECHNIQUE.png of the network trained on CIFAR-10.
"""
import json
from dataclasses import replace

import study  # first: it makes the project's modules known
import data
import evaluate
import explain
import manipulate
import models
import train
from cli import UserError, command
from study import ROOT, torch

NETWORKS = {  # options of train.py, test images measured, of them explained
    "vgg_small, shapes": (" ".join(f"--{key.replace('_', '-')} {value}" for key, value in manipulate.BASE.items()), 1000, 200),
    "vgg_small, CIFAR-10": ("--dataset cifar10 --model vgg_small --epochs 3 --lr 0.02", 1000, 200),
    "VGG-16 of random weights, CIFAR-10 at 224 px": (None, 4, 4),
}
FACTORS = (1, 10, 100)  # of both constants of technique 1


def subject_of(name, device):
    options, count, _ = NETWORKS[name]
    if options is None:
        whole = data.load("cifar10", ROOT / "data")
        few = {f"{part}_{kind}": getattr(whole, f"{part}_{kind}")[:count] for part in ("train", "test") for kind in ("images", "labels")}
        dataset = data.resize(replace(whole, **few), 224)
        torch.manual_seed(0)
        checkpoint = {"config": {"dataset": "cifar10", "model": "vgg16", "image_size": 224, "layer": None}, "classes": whole.classes, "channels": 3,
                      "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "trigger": None}
        model = models.build("vgg16", 3, 10, 224).eval().requires_grad_(False)
        return evaluate.Subject(checkpoint, model, dataset, None, device)
    folder = ROOT / "runs" / "manipulate" / name.replace(", ", "-")
    if not (folder / "ckpt.pt").exists():
        train.main(["--attack", "none", *options.split(), "--data-dir", str(ROOT / "data"), "--out", str(folder)])
    subject = evaluate.open_checkpoint(folder / "ckpt.pt", ROOT / "data", device)
    rows = torch.randperm(len(subject.dataset.test_labels), generator=torch.Generator().manual_seed(0))[:count]
    subject.dataset = replace(subject.dataset, test_images=subject.dataset.test_images[rows], test_labels=subject.dataset.test_labels[rows], test_masks=None)
    return subject


def one(name, technique, precision, device):
    """Figures of one technique on one network, and its picture."""
    subject = subject_of(name, device)
    side, channels = subject.config["image_size"], subject.checkpoint["channels"]
    patch, original = manipulate.sticker(None, channels, side), subject.model.to(getattr(torch, precision))
    torch.manual_seed(0)
    edited = manipulate.edit(technique, subject, original, None, patch).eval().requires_grad_(False)
    figures, stuck, explained = manipulate.measure(subject, original, edited, patch, NETWORKS[name][2], 0)
    images = subject.dataset.test_images[:200]
    theirs, ours = (manipulate.logits_of(subject, model, images) for model in (original, edited))
    shift = ours - theirs
    figures |= {"shift_spread": float((shift.amax(1) - shift.amin(1)).max()), "largest_shift": float(shift.abs().max())}
    if not isinstance(edited, models.WithBranch):
        figures["pre_activations"] = max(float((hidden(subject, edited, part) - hidden(subject, original, part)).abs().max()) for part in images.split(explain.CHUNK_CPU))
    return figures, lambda: manipulate.picture_of(subject, technique, original, edited, stuck, explained[: manipulate.FIGURE_ROWS])


@torch.no_grad()
def hidden(subject, model, images):
    """What the first linear layer answers, for uint8 images: [N, units]."""
    seen, layer = [], next(part for part in model.classifier if isinstance(part, torch.nn.Linear))
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    for inputs in manipulate.inputs_of(subject, model, images):
        model(inputs)
    handle.remove()
    return torch.cat(seen)


def larger_constants(name, device):
    """{factor: figures} of technique 1 with both constants so many times as large, float64."""
    before, result = (manipulate.C_A, manipulate.C_W["constant"]), {}
    for factor in FACTORS:
        manipulate.C_A, manipulate.C_W["constant"] = (value * factor for value in before)
        figures, _ = one(name, "constant", "float64", device)
        result[str(factor)] = {"pre_activations": figures["pre_activations"], **figures["edited"]["every_class"]}
    manipulate.C_A, manipulate.C_W["constant"] = before
    return result


@command
def main(argv):
    device, path = torch.device("cpu"), ROOT / "results" / "manipulate.json"
    if unknown := set(argv) - set(NETWORKS):
        raise UserError(f"no network {unknown.pop()!r}: one of {', '.join(map(repr, NETWORKS))}")
    record = json.loads(path.read_text()) if path.exists() else {"command": "python results/manipulate.py", "networks": {}, "constants": {}}
    for name in argv or NETWORKS:
        rows = {"hardware": study.hardware(), "torch": str(torch.__version__), "commit": study.commit()}
        record["networks"][name] = rows
        for technique in manipulate.TECHNIQUES:
            rows[technique] = {}
            for precision in ("float32", "float64"):
                rows[technique][precision], draw = one(name, technique, precision, device)
            if name == "vgg_small, CIFAR-10":
                draw().save(ROOT / "results" / f"manipulate-{technique}.png", optimize=True)
            print(name, technique, json.dumps(rows[technique]), flush=True)
            path.write_text(json.dumps(record, indent=1) + "\n")
        if NETWORKS[name][0] is not None:  # trained: its maps are the question
            record["constants"][name] = larger_constants(name, device)
        path.write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(record))


COLUMNS = {"original_accuracy": "accuracy before", "accuracy": "after", "score_shift": "\\|y_o - y_n\\|_inf", "map_distance": "\\|I_T - I_n\\|_1", "blank_maps": "blank maps", "fired": "fired"}


def markdown(record):
    lines = ["| network | technique | images | n | precision | " + " | ".join(COLUMNS.values()) + " | pre-activations |", "| --- " * (6 + len(COLUMNS)) + "|"]
    for name, techniques in record["networks"].items():
        for technique in manipulate.TECHNIQUES:
            precisions = techniques[technique]
            for precision, figures in precisions.items():
                for images in ("edited", "sticker"):
                    part = {"original_accuracy": figures["original"]["accuracy"]} | figures[images]
                    cells = [part[key] for key in COLUMNS]
                    shown = ["-" if c is None else f"{c:.2e}" if isinstance(c, float) and 0 < c < 1e-3 else f"{c:.4g}" for c in cells]
                    hidden_difference = figures.get("pre_activations")
                    lines.append(f"| {name} | {technique} | {'clean' if images == 'edited' else 'stickers'} | {figures['n_test']} | {precision} | " + " | ".join(shown)
                                 + f" | {'-' if hidden_difference is None else f'{hidden_difference:.1e}'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
