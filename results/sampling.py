"""How far KernelSHAP from a sample of coalitions is from the exact values: the README's table.

    python results/sampling.py    # about 10 minutes on one core

Clean models of `shapes` and `mnist`, those of transfer.py, and a network of random weights; test images drawn by a seed, 4x4 patches, the logit of the
predicted class. Every coalition is evaluated once; then draws cost nothing. Relative error in the Euclidean norm; its median over images and draws, by kriging and by
KernelSHAP's weighted least squares from the same draws. Writes results/sampling.json.
"""
import json
import math
import statistics
import sys

import study  # first: it makes the project's modules known
import evaluate
import explain
import transfer
from study import torch

IMAGES, DRAWS = 8, 20
COUNTS = (64, 128, 512, 1024)
PLAYERS = 16
ALL = (torch.arange(2**PLAYERS)[:, None] >> torch.arange(PLAYERS)) & 1 == 1


def weighted_least_squares(coalitions):
    """Lundberg and Lee, NeurIPS 2017, theorem 2, as a map like explain.shapley_map's; coalitions that were drawn share the kernel weight of their sizes."""
    count, players = coalitions.shape
    size = coalitions.sum(1)
    total = (players - 1) / (torch.arange(1, players) * (players - torch.arange(1, players))).double()  # of all coalitions of size 1, 2, ...
    number = torch.tensor([math.comb(players, s) for s in range(1, players)])
    whole = size.bincount(minlength=players)[1:players] == number
    weights = torch.where(whole, total / number, total[~whole].sum() / (~whole[size - 1]).sum())[size - 1]
    z = coalitions.double()
    inverse = torch.linalg.inv(z.T @ (weights[:, None] * z))
    offset = inverse.sum(1) / inverse.sum()
    free = weights[:, None] * z @ inverse
    return free - free.sum(1, keepdim=True) * offset, offset


def worth(model, images, classes):
    """Of every coalition of each image's patches, an absent one showing the mean colour: float64 [N, 2^PLAYERS]."""
    patch = explain.patch_of_pixel(math.isqrt(PLAYERS), *images.shape[2:]).to(images.device)
    with torch.no_grad():
        rows = [explain.coalition_values(model, image[None], label[None], ALL.to(images.device)[None], patch, images.new_zeros(())) for image, label in zip(images, classes)]
    return torch.cat(rows).double().cpu()


def applied(coalitions, linear, value):
    """The values [N, PLAYERS] by a linear map of the worth of these coalitions."""
    slope, offset = linear
    where = (coalitions * 2 ** torch.arange(PLAYERS)).sum(1)
    return (value[:, where] - value[:, :1]) @ slope + (value[:, -1:] - value[:, :1]) * offset


def errors(value, method):
    """{number of coalitions: median relative error}."""
    exact, result = applied(ALL[1:-1], explain.shapley_map(ALL[1:-1]), value), {}
    for count in COUNTS:
        found = []
        for draw in range(DRAWS):
            coalitions = explain.draw_coalitions(PLAYERS, count, torch.Generator().manual_seed(draw))
            found += ((applied(coalitions, method(coalitions), value) - exact).norm(dim=1) / exact.norm(dim=1)).tolist()
        result[str(count)] = statistics.median(found)
    return result


def games():
    """(name, worth) of each network."""
    this = study.Study("transfer", transfer.TABLE)
    for name in ("shapes", "mnist", "random weights"):
        trained = "shapes none" if name == "random weights" else f"{name} none"
        this.train(trained, 0)
        subject = evaluate.open_checkpoint(this.folder(trained, 0) / "ckpt.pt", study.ROOT / "data")
        rows = evaluate.draw_images(subject, IMAGES, 0)
        images = study.train.data.normalise(subject.dataset.test_images[rows].to(subject.device).float() / 255, subject.checkpoint["mean"], subject.checkpoint["std"])
        if name == "random weights":
            torch.manual_seed(0)
            subject.model = study.train.models.build("cnn", images.shape[1], 10, images.shape[2]).eval().to(images.device)
        with torch.no_grad():
            classes = subject.model(images).argmax(1)
        yield name, worth(subject.model, images, classes)


def main():
    results = {}
    for name, value in games():
        results[name] = {method.__name__: errors(value, method) for method in (explain.shapley_map, weighted_least_squares)}
        for method, found in results[name].items():
            print(f"{name}, {method}: " + "  ".join(f"{count}: {100 * part:.2f}%" for count, part in found.items()), flush=True)
    record = {"command": "python results/sampling.py", "images": IMAGES, "draws": DRAWS, "seed": 0, "hardware": study.hardware(), "commit": study.commit(), "median_relative_error": results}
    (study.ROOT / "results" / "sampling.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
