"""How far KernelSHAP from a sample of coalitions is from the exact values: the README's table.

    python results/sampling.py    # about 20 minutes on one core

Clean models of `shapes` and `mnist`, those of transfer.py; test images drawn by a seed, 4x4 patches, the logit of the predicted class. Relative error
in the Euclidean norm; its median over images and draws of coalitions. Writes results/sampling.json.
"""
import json
import statistics
import sys

import study  # first: it makes the project's modules known
import evaluate
import transfer
from study import torch

IMAGES, DRAWS = 8, 10
COUNTS = (64, 128, 512, 1024)
PLAYERS = 16


def errors(subject, seed=0):
    """{coalitions: [relative error for each image and draw]} of a checkpoint's model."""
    rows = evaluate.draw_images(subject, IMAGES, seed)
    images = subject.dataset.test_images[rows]
    classes, _ = subject.predict(images)
    exact = values(subject, images, classes, 2**PLAYERS, 0)
    result = {}
    for count in COUNTS:
        sampled = torch.stack([values(subject, images, classes, count, draw) for draw in range(DRAWS)])
        result[count] = ((sampled - exact).norm(dim=2) / exact.norm(dim=1)).flatten().tolist()
    return result


def values(subject, images, classes, coalitions, seed):
    inputs = study.train.data.normalise(images.to(subject.device).float() / 255, subject.checkpoint["mean"], subject.checkpoint["std"])
    generator = torch.Generator().manual_seed(seed)
    return evaluate.explain.kernel_shap(subject.model, inputs, classes.to(subject.device), coalitions=coalitions, generator=generator).cpu().double().flatten(1)


def main():
    this, results = study.Study("transfer", transfer.TABLE), {}
    for name in ("shapes", "mnist"):
        this.train(f"{name} none", 0)
        found = errors(evaluate.open_checkpoint(this.folder(f"{name} none", 0) / "ckpt.pt", study.ROOT / "data"))
        results[name] = {str(count): statistics.median(part) for count, part in found.items()}
        print(name, "  ".join(f"{count}: {100 * value:.2f}%" for count, value in results[name].items()))
    record = {"command": "python results/sampling.py", "images": IMAGES, "draws": DRAWS, "seed": 0, "hardware": study.hardware(), "commit": study.commit(), "median_relative_error": results}
    (study.ROOT / "results" / "sampling.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
