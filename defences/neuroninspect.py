"""NeuronInspect (Huang et al. 2019): a backdoor's target class has the plainest saliency heatmaps.

For every class, the saliency of its logit on clean images: a target's heatmaps are sparse, smooth
and alike on all images. Three features say how much, and the class where their sum is lowest is the
most anomalous. Two things differ from the paper:
- its persistence is a chain of XORs over images, which is their parity and says nothing; here it is
  the mean of the XORs of all pairs;
- the heatmaps are those of images under heavy noise (SmoothGrad), which wakes the detector of a
  trigger that clean images leave silent. `--noise 0` gives the paper's.
"""

import torch
import torch.nn.functional as F

import figure
from cli import numbers
from defences import Defence, add_threshold, anomaly_index, verdict_by_index
from fonts import class_name, legend
from hooks import answering, as_images, chunk_size, derivative, full_precision
from losses import min_max
from metrics import check_finite_maps

# Levels of noise, in standard deviations of the images; a class's largest index counts. In a pilot
# some targets stood out under little noise, some under much.
NOISE = (2.0, 6.0)
SAMPLES = 8  # draws of noise for one heatmap
FEATURES = ("sparse", "smooth", "persistent")
LAPLACIAN = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])

CLASSES_PICTURED = 8
IMAGES_PICTURED = 3


# ---------------------------------------------------------------- the algorithm


def neuroninspect(model, images, weights=None, *, noise=NOISE):
    """(index, features): how plain each class's heatmaps are, at each of L levels of noise.

    images: float [N, C, H, W] as the model takes them, clean; memory is needed for K x N maps.
    index: float64 [L, K], the anomaly index of the K classes, high where heatmaps are plain.
    features: float64 [L, K, 3], see FEATURES.
    weights: three numbers the features are multiplied by before they are summed. The authors' are
    not published; ports of their code have (0.1, 1, 1) or (1e-6, 1e-6, 1). None: each feature is
    taken in robust standard deviations from its median, and all three count alike.
    noise: in standard deviations of the images, one level or several; 0 for the published heatmaps.
    Raises ValueError for arguments that are not as said here, and for fewer than three classes.
    """
    noise = as_levels(noise)
    if weights is not None and len(weights) != len(FEATURES):
        raise ValueError(f"weights: {len(FEATURES)} numbers, not {weights!r}")
    levels = []
    for level in noise:
        maps = heatmaps(model, images, level)
        if len(maps) < 3:
            raise ValueError("of two classes none is an anomaly beside the other: it takes three")
        levels.append(torch.stack([heatmap_features(maps_of_class) for maps_of_class in maps]))
    features = torch.stack(levels)
    if weights is None:
        index = [index_of(part) for part in features]
    else:
        scores = features @ torch.tensor(weights, dtype=torch.float64)
        index = [anomaly_index(score) for score in scores]
    return torch.stack(index), features


def index_of(features):
    """The index of K classes by their features, [K, 3], each in its own spread: float64 [K]."""
    return anomaly_index(-sum(anomaly_index(column) for column in features.T))


def as_levels(noise):
    """Levels of noise as a list of numbers from 0 on. Raises ValueError."""
    levels = torch.as_tensor(noise, dtype=torch.float64).flatten()
    if len(levels) == 0 or not (levels.isfinite() & (levels >= 0)).all():
        raise ValueError(f"noise: numbers from 0 on, not {noise!r}")
    return levels.tolist()


@torch.inference_mode(False)
def heatmaps(model, images, noise=0.0, first=None):
    """Saliency of every class's logit, float32 [K, N, H, W], each map scaled to [0, 1].

    A map is the largest magnitude over channels of the logit's gradient, under noise of the
    gradient's sum over SAMPLES draws; a constant one becomes 0. first: only the first so many
    images, N of them. Raises ValueError for gradients that are not finite.
    Source: Simonyan et al. 2014; Smilkov et al. 2017 (SmoothGrad), with a tenth of this noise.
    """
    images = as_images(model, images, at_least=1)
    scale = noise * images.std((0, 2, 3), keepdim=True)
    numbers_of_images = torch.arange(len(images))[:first]
    maps = []
    with torch.enable_grad(), answering(model):
        for rows in numbers_of_images.split(chunk_size(images)):
            gradients = 0
            for draw in range(SAMPLES if noise else 1):
                noisy = images[rows] + scale * noise_of_images(rows, draw, images)
                gradients = gradients + logit_gradients(model, noisy)
            saliency = full_precision(gradients).abs().amax(2)  # [K, n, H, W]
            flat = saliency.flatten(0, 1)
            check_finite_maps(flat)
            maps.append(min_max(flat).unflatten(0, saliency.shape[:2]).cpu())
    return torch.cat(maps, 1)


def logit_gradients(model, images):
    """The gradient of every class's logit with respect to its image: [K, N, C, H, W]."""
    images = images.requires_grad_()
    totals = model(images).sum(0)  # of each logit over images: their gradients do not mix
    return torch.stack([derivative(total, images, retain_graph=True) for total in totals])


def noise_of_images(rows, draw, images):
    """Gaussian noise for images number `rows`, [len(rows), C, H, W].

    It depends on the image's number and on the draw alone, so it is the same for every class and
    whichever images are in the chunk.
    """
    noise = []
    for row in rows.tolist():
        generator = torch.Generator().manual_seed(draw * 1_000_003 + row)
        noise.append(torch.randn(images.shape[1:], generator=generator))
    return torch.stack(noise).to(images)


def heatmap_features(maps):
    """How plain one class's heatmaps are, float64 [3]: see FEATURES. Low is plain.

    maps: [N, H, W] in [0, 1].
    Sparse: the sum of a map. Smooth: the sum of its Laplacian's magnitude. Both are medians over
    images. Persistent: how many pixels are above the median of all maps in one image's map and not
    in another's, the mean over pairs.
    """
    maps = maps.double()
    sparse = maps.sum((1, 2)).quantile(0.5)
    edges = F.conv2d(maps[:, None], LAPLACIAN.to(maps))
    smooth = edges.abs().sum((1, 2, 3)).quantile(0.5)
    n = len(maps)
    share_above = (maps > maps.median()).double().mean(0)  # [H, W], share of images
    persistent = (2 * share_above * (1 - share_above)).sum() * n / max(n - 1, 1)
    return torch.stack([sparse, smooth, persistent])


# ---------------------------------------------------------------- the verdict


def run(audit):
    """A Verdict by the largest index over the levels of noise."""
    noise = audit.options.noise
    levels, features = neuroninspect(
        audit.subject.model, audit.inputs, audit.options.feature_weights, noise=noise
    )
    index, best_level = levels.max(0)
    picture = picture_of(audit, index, best_level)
    columns = {f"noise {level:g}": values for level, values in zip(noise, levels)}
    verdict = verdict_by_index(audit, index, columns, picture)
    verdict.details["features"] = {
        f"{level:g}": dict(zip(FEATURES, part.T.tolist())) for level, part in zip(noise, features)
    }
    return verdict


def picture_of(audit, index, best_level):
    """Three clean images, and their heatmaps of the most anomalous classes.

    best_level: int64 [K], which level of noise gave a class its index: its heatmaps are shown.
    """
    noise = audit.options.noise
    model = audit.subject.model
    shown = index.argsort(descending=True)[:CLASSES_PICTURED].tolist()
    maps = [heatmaps(model, audit.inputs, level, first=IMAGES_PICTURED) for level in noise]
    rows = []
    for n, image in enumerate(audit.pixels[:IMAGES_PICTURED].cpu()):
        panels = [figure.panel(image)]
        panels += [figure.panel(image, maps[best_level[k]][k, n]) for k in shown]
        rows.append([(panel, "", False) for panel in panels])
    headers = ["image"]
    for k in shown:
        name = class_name(audit.subject.classes, k)
        headers.append(f"{name}\nindex {index[k]:.1f}, noise {noise[best_level[k]]:g}")
    title = "NeuronInspect: saliency of each class, the most anomalous first"
    footer = "Clean images; the anomaly index is high where heatmaps are sparse, smooth and alike."
    footer += legend(audit.subject.classes, "verdict.json")
    return figure.sheet(title, headers, rows, footer)


# ---------------------------------------------------------------- the command line


def add_options(parser):
    parser.add_argument(
        "--feature-weights",
        type=numbers(-1e9, count=3),
        help="of the three features, as 0.1,1,1 (default: each in its own standard deviations)",
    )
    parser.add_argument(
        "--noise",
        type=numbers(0),
        default=",".join(f"{level:g}" for level in NOISE),
        help="levels of noise, in standard deviations of the images; 0 is as published",
    )
    add_threshold(parser)


def settings(options):
    return {"samples": SAMPLES}


DEFENCE = Defence(
    help="saliency heatmaps of every class: a backdoor's target has the plainest",
    run=run,
    settings=settings,
    add_options=add_options,
    compares_classes=True,
)
