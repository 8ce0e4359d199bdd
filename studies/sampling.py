"""How far KernelSHAP from a sample of coalitions is from the exact Shapley values.

    python -m studies.sampling

Clean models of `shapes` and `mnist`, those of studies/transfer.py, and a network of random weights;
test images drawn by a seed, 4x4 patches, the logit of the predicted class. All 65,536 coalitions of
an image are evaluated once; then samples cost nothing. The error is relative, in the Euclidean
norm; its median is over images and samples. Two estimators: ours, and KernelSHAP as published,
least squares with the kernel's weights. Writes results/sampling.json.
"""

import math

import torch

import models
from cli import UserError, command, write_json
from provenance import commit, hardware
from shapley import coalition_values, draw_coalitions, patch_of_pixel, shapley_map
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


# ---------------------------------------------------------------- two estimators

# Each returns (coalitions bool [K, M], slopes float64 [K, M]) of M players: the Shapley values are
# the sum over coalitions of what they are worth times their slope.


def by_regression(players, count, generator):
    """Ours: Gaussian process regression, see shapley.shapley_map."""
    coalitions = draw_coalitions(players, count, generator)
    slopes = shapley_map(coalitions)
    full = torch.ones(1, players, dtype=torch.bool)
    known = torch.cat([full, coalitions])
    return torch.cat([known, ~known]), torch.cat([slopes, -slopes])


def by_least_squares(players, count, generator):
    """As published: Lundberg and Lee, NeurIPS 2017, theorem 2.

    Small sizes are enumerated with their complements, as long as they fit. The rest is drawn by the
    kernel, in pairs of complements that share the weight that is left.
    """
    coalitions, sizes = all_coalitions(players)
    kernel = kernel_of_sizes(players)
    number = sizes.bincount(minlength=players + 1)
    whole, left = whole_sizes(number, count)

    enumerated = whole[sizes].nonzero()[:, 0]
    chance = (kernel / number * ~whole)[sizes]
    drawn = torch.zeros(0, dtype=torch.int64)
    if chance.any():
        drawn = torch.multinomial(chance, left // 2, replacement=True, generator=generator)
    index = torch.cat([enumerated, drawn, 2**players - 1 - drawn])

    size = sizes[index]
    weight_of_drawn = (kernel * ~whole).sum() / (2 * len(drawn))
    weights = torch.where(whole[size], (kernel / number)[size], weight_of_drawn)
    slopes = least_squares_slopes(coalitions[index].double(), weights)
    known = torch.cat([coalitions[index], coalitions[-1:], coalitions[:1]])  # and full, empty
    return known, torch.cat([slopes, -slopes.sum(0, keepdim=True)])


def all_coalitions(players):
    """All coalitions bool [2^M, M], by the binary number that each is, and their sizes [2^M]."""
    coalitions = (torch.arange(2**players)[:, None] >> torch.arange(players)) & 1 == 1
    return coalitions, coalitions.sum(1)


def kernel_of_sizes(players):
    """float64 [M + 1]: the kernel's weight of all coalitions of a size together."""
    weights = [(players - 1) / (s * (players - s)) for s in range(1, players)]
    return torch.tensor([0, *weights, 0], dtype=torch.float64)


def whole_sizes(number, count):
    """bool [M + 1], the sizes whose coalitions all fit into `count`, and how many more would fit.

    number: int64 [M + 1], how many coalitions there are of each size.
    """
    players = len(number) - 1
    whole = torch.zeros(players + 1, dtype=torch.bool)
    left = count
    for size in range(1, players // 2 + 1):
        pair = torch.tensor(sorted({size, players - size}))
        needed = int(number[pair].sum())
        if needed > left:
            break
        whole[pair] = True
        left -= needed
    return whole, left


def least_squares_slopes(z, weights):
    """Slopes float64 [K + 1, M] of coalitions z [K, M] and, last, of the full one.

    The values minimise the weighted squared error under the condition that they add up to
    v(full) - v(empty), v(empty) taken as 0.
    """
    inverse = torch.linalg.inv(z.T @ (weights[:, None] * z))
    share = inverse.sum(1) / inverse.sum()  # of what is missing to the sum
    slopes = weights[:, None] * z @ inverse
    slopes = slopes - slopes.sum(1, keepdim=True) * share
    return torch.cat([slopes, share[None]])


# ---------------------------------------------------------------- errors


def worth_of_all(model, images, classes, players=PLAYERS):
    """What every coalition of each image's patches is worth, float64 [N, 2^M].

    It is the logit of the image's class; an absent patch shows the mean colour.
    """
    side = math.isqrt(players)
    patch = patch_of_pixel(side, *images.shape[2:]).to(images.device)
    coalitions = all_coalitions(players)[0].to(images.device)[None]
    mean_colour = images.new_zeros(())
    rows = []
    with torch.no_grad():
        for image, label in zip(images, classes):
            worth = coalition_values(
                model, image[None], label[None], coalitions, patch, mean_colour
            )
            rows.append(worth)
    return torch.cat(rows).double().cpu()


def errors(worth, estimator, counts, samples=SAMPLES):
    """{number of coalitions: median relative error of the estimator}.

    worth: float64 [N, 2^M] of every coalition.
    """
    players = worth.shape[1].bit_length() - 1
    place_value = 2 ** torch.arange(players)

    def values(count, seed):
        generator = torch.Generator().manual_seed(seed)
        coalitions, slopes = estimator(players, count, generator)
        return worth[:, (coalitions * place_value).sum(1)] @ slopes

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


NETWORKS = {"shapes": "trained on `shapes`", "mnist": "trained on MNIST"}  # what the page says
ESTIMATORS = {"by_regression": "regression, ours", "by_least_squares": "least squares, published"}


def error_table(record):
    """Median relative errors in percent, a line for each network and estimator."""
    found = record["median_relative_error"]
    lines = header(["network", "estimator", *(f"{count:,} coalitions" for count in COUNTS)])
    for name, estimators in found.items():
        for estimator, errors_ in estimators.items():
            cells = [f"{100 * error:.1f}%" for error in errors_.values()]
            lines.append(line([NETWORKS.get(name, name), ESTIMATORS[estimator], *cells]))
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
        for estimator in (by_regression, by_least_squares):
            found = errors(worth, estimator, COUNTS)
            results[name][estimator.__name__] = found
            shown = "  ".join(f"{count}: {100 * error:.2f}%" for count, error in found.items())
            print(f"{name}, {estimator.__name__}: {shown}", flush=True)
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
