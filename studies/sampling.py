"""How far Shapley values from a sample of coalitions are from the exact ones.

    python -m studies.sampling

Clean models of `shapes` and `mnist`, those of studies/transfer.py, and a network of random weights;
test images drawn by a seed, 4x4 patches, the logit of the predicted class. All 65,536 coalitions of
an image are evaluated once; then samples cost nothing. The error is relative, in the Euclidean
norm; its median is over images and samples. Two estimators: gpshap's Gaussian process, and
kernelshap's least squares, which is the published one. Writes results/sampling.json.
"""

import math

import torch

import models
from cli import UserError, command, write_json
from provenance import commit, hardware
from shapley import as_baselines, coalition_values, patch_of_pixel
from shapley_estimators import gaussian_process, least_squares, with_full
from studies import transfer
from studies.record import DATA, RESULTS
from studies.study import Study
from studies.tables import header, line, note, of_record
from subject import draw_images, open_checkpoint

PAGE = "results/sampling.md"
DURATION = "about 15 minutes on one core"

IMAGES = 8
SAMPLES = 20  # of coalitions, for each number of them
COUNTS = (64, 128, 512, 1024)  # coalitions
PLAYERS = 16  # patches


# By their names in the record.
ESTIMATORS = {"by_regression": gaussian_process, "by_least_squares": least_squares}


# ---------------------------------------------------------------- errors


def all_coalitions(players):
    """All coalitions bool [2^M, M], by the binary number that each is, and their sizes [2^M]."""
    coalitions = (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1 == 1
    return coalitions, coalitions.sum(1)


def worth_of_all(model, images, classes, players=PLAYERS):
    """What every coalition of each image's patches is worth, float64 [N, 2^M].

    It is the logit of the image's class; an absent patch shows the mean colour.
    """
    side = math.isqrt(players)
    patch = patch_of_pixel(side, *images.shape[2:]).to(images.device)
    coalitions = all_coalitions(players)[0].to(images.device)[None]
    mean_colour = as_baselines(0.0, images)
    rows = []
    with torch.no_grad():
        for image, label in zip(images, classes):
            worth = coalition_values(
                model, image[None], label[None], coalitions, patch, mean_colour
            )
            rows.append(worth)
    return torch.cat(rows).double().cpu()


def values_of(worth, coalitions, slopes):
    """Shapley values [N, M] of games by what an estimator drew; worth: [N, 2^M] of every coalition.

    coalitions: bool [K, M]; slopes: [1 + K, M].
    """
    known = with_full(coalitions)
    number = (known * 2 ** torch.arange(known.shape[1])).sum(1)
    return (worth[:, number] - worth[:, worth.shape[1] - 1 - number]) @ slopes


def errors(worth, estimator, counts, samples=SAMPLES):
    """{number of coalitions: median relative error of the estimator}.

    worth: float64 [N, 2^M] of every coalition; estimator: of shapley_estimators.
    """
    players = worth.shape[1].bit_length() - 1

    def values(count, seed):
        return values_of(worth, *estimator(players, count, torch.Generator().manual_seed(seed)))

    exact = values(2**players, 0)
    result = {}
    for count in counts:
        estimates = torch.stack([values(count, seed) for seed in range(samples)])
        relative = (estimates - exact).norm(dim=2) / exact.norm(dim=1)
        result[str(count)] = float(relative.median())
    return result


def games():
    """Yields (name, worth_of_all) of each network; the models are trained if need be."""
    study = Study("transfer", transfer.TABLE)
    rows = {"shapes": "shapes none", "mnist": "mnist none", "random weights": "shapes none"}
    for name, row in rows.items():
        study.train(row, 0)
        subject = open_checkpoint(study.folder(row, 0) / "ckpt.pt", DATA)
        drawn = draw_images(subject, IMAGES, 0)
        images = subject.inputs(subject.dataset.test_images[drawn])
        model = subject.model
        if name == "random weights":
            torch.manual_seed(0)
            model = models.build("cnn", images.shape[1], 10, images.shape[2])
            model = model.eval().to(images.device)
        with torch.no_grad():
            classes = model(images).argmax(1)
        yield name, worth_of_all(model, images, classes)


NETWORKS = {"shapes": "trained on `shapes`", "mnist": "trained on MNIST"}
ESTIMATOR_NAMES = {  # what the page says
    "by_regression": "`gpshap`: Gaussian process, ours",
    "by_least_squares": "`kernelshap`: least squares, published",
}


def error_table(record):
    """Median relative errors in percent, a line for each network and estimator."""
    found = record["median_relative_error"]
    lines = header(["network", "estimator", *(f"{count:,} coalitions" for count in COUNTS)])
    for name, estimators in found.items():
        for estimator, errors_ in estimators.items():
            cells = [f"{100 * error:.1f}%" for error in errors_.values()]
            lines.append(line([NETWORKS.get(name, name), ESTIMATOR_NAMES[estimator], *cells]))
    about = f"{record['images']} test images, {record['draws']} draws of coalitions"
    return [*lines, "", note(about, [record["hardware"]], [record["commit"]])]


TABLES = of_record("sampling", {"errors": error_table})


@command
def main(argv):
    if argv:
        raise UserError(f"sampling has no rows: {argv[0]!r} is none")
    results = {}
    for name, worth in games():
        results[name] = {}
        for estimator, function in ESTIMATORS.items():
            found = errors(worth, function, COUNTS)
            results[name][estimator] = found
            shown = "  ".join(f"{count}: {100 * error:.2f}%" for count, error in found.items())
            print(f"{name}, {estimator}: {shown}", flush=True)
    record = {
        "command": "python -m studies.sampling",
        "images": IMAGES,
        "draws": SAMPLES,
        "seed": 0,
        "hardware": hardware(),
        "commit": commit(),
        "median_relative_error": results,
    }
    write_json(RESULTS / "sampling.json", record)


if __name__ == "__main__":
    main()
