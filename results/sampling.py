"""How far KernelSHAP from a sample of coalitions is from the exact values: the README's table.

    python results/sampling.py    # about 15 minutes on one core

Clean models of `shapes` and `mnist`, those of transfer.py, and a network of random weights; test images drawn by a seed, 4x4 patches, the logit of the
predicted class. Every coalition is evaluated once; then draws cost nothing. Relative error in the Euclidean norm; its median over images and draws: ours, and
KernelSHAP's as published, least squares with the kernel's weights. Writes results/sampling.json.
"""
import json
import math
import sys

import study  # first: it makes the project's modules known
import evaluate
import explain
import transfer
from study import torch

IMAGES, DRAWS = 8, 20
COUNTS = (64, 128, 512, 1024)
PLAYERS = 16


def by_regression(players, count, generator):
    """explain.shapley_map's: (coalitions bool [K, players], what the worth of each adds to the values, float64 [K, players])."""
    coalitions = explain.draw_coalitions(players, count, generator)
    slope = explain.shapley_map(coalitions)
    known = torch.cat([torch.ones(1, players, dtype=torch.bool), coalitions])
    return torch.cat([known, ~known]), torch.cat([slope, -slope])


def by_least_squares(players, count, generator):
    """The same by Lundberg and Lee, NeurIPS 2017, theorem 2: small sizes enumerated with their complements while they fit, the rest drawn by the kernel, in pairs that share its weight."""
    kernel = torch.tensor([0] + [(players - 1) / (s * (players - s)) for s in range(1, players)] + [0], dtype=torch.float64)  # of all coalitions of a size
    every, size = everything(players)
    number = size.bincount(minlength=players + 1)
    whole, left = torch.zeros(players + 1, dtype=torch.bool), count
    for s in range(1, players // 2 + 1):
        pair = torch.tensor(sorted({s, players - s}))
        if number[pair].sum() > left:
            break
        whole[pair], left = True, left - int(number[pair].sum())
    rest = (kernel / number * ~whole)[size]
    drawn = torch.multinomial(rest, left // 2, replacement=True, generator=generator) if rest.any() else torch.zeros(0, dtype=torch.int64)
    index = torch.cat([whole[size].nonzero()[:, 0], drawn, 2**players - 1 - drawn])
    weights = torch.where(whole[size[index]], (kernel / number)[size[index]], (kernel * ~whole).sum() / (2 * len(drawn)))
    z = every[index].double()
    inverse = torch.linalg.inv(z.T @ (weights[:, None] * z))
    last = inverse.sum(1) / inverse.sum()
    slope = weights[:, None] * z @ inverse
    slope = torch.cat([slope - slope.sum(1, keepdim=True) * last, last[None]])
    return torch.cat([every[index], every[-1:], every[:1]]), torch.cat([slope, -slope.sum(0, keepdim=True)])


def everything(players):
    """All coalitions bool [2^players, players], in the order of the numbers they are in binary, and their sizes."""
    every = (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1 == 1
    return every, every.sum(1)


def worth(model, images, classes, players=PLAYERS):
    """Of every coalition of each image's patches, an absent one showing the mean colour: float64 [N, 2^players]."""
    patch = explain.patch_of_pixel(math.isqrt(players), *images.shape[2:]).to(images.device)
    every = everything(players)[0].to(images.device)
    with torch.no_grad():
        rows = [explain.coalition_values(model, image[None], label[None], every[None], patch, images.new_zeros(())) for image, label in zip(images, classes)]
    return torch.cat(rows).double().cpu()


def errors(value, method, counts=COUNTS, draws=DRAWS):
    """{number of coalitions: median relative error} of the worth of every coalition, float64 [N, 2^players]."""
    players = value.shape[1].bit_length() - 1

    def values(count, seed):
        coalitions, slope = method(players, count, torch.Generator().manual_seed(seed))
        return value[:, (coalitions * 2 ** torch.arange(players)).sum(1)] @ slope

    exact = values(2**players, 0)
    found = {count: torch.stack([values(count, draw) for draw in range(draws)]) for count in counts}
    return {str(count): float(((part - exact).norm(dim=2) / exact.norm(dim=1)).median()) for count, part in found.items()}


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
        results[name] = {method.__name__: errors(value, method) for method in (by_regression, by_least_squares)}
        for method, found in results[name].items():
            print(f"{name}, {method}: " + "  ".join(f"{count}: {100 * part:.2f}%" for count, part in found.items()), flush=True)
    record = {"command": "python results/sampling.py", "images": IMAGES, "draws": DRAWS, "seed": 0, "hardware": study.hardware(), "commit": study.commit(), "median_relative_error": results}
    (study.ROOT / "results" / "sampling.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
