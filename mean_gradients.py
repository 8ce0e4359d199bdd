"""Explanations by the gradient's mean over altered copies of the image.

    maps = smoothgrad(model, images, classes)              # [N, H, W]: over noisy copies
    maps = integrated_gradients(model, images, classes)    # [N, H, W], signed: along a path

Training through them takes second derivatives, as of explain.gradient: those of a ReLU are 0 almost
everywhere, so the weights move, and not which units are active.
"""

import torch

from dataset import send
from hooks import as_images, chunk_size, derivative, full_precision, in_chunks
from shapley import as_baselines, as_generator, is_whole

COPIES = 50  # of an image, in a measurement; published for both
TRAINING_COPIES = 8  # in a training step, all of whose graphs are kept
NOISE = 0.15  # its standard deviation as a share of the image's range: published are .1 to .2


def smoothgrad(model, images, classes, samples=COPIES, generator=None, *, create_graph=False):
    """The largest magnitude over channels of the mean gradient over noisy copies, float [N, H, W].

    samples: how many copies. The noise is normal, of standard deviation NOISE (max x - min x) of
    each image, and otherwise the same for all; generator: on the CPU; None: one of seed 0.
    Raises ValueError for no samples. Source: Smilkov et al. 2017, section 3.
    """
    images = as_images(model, images)
    check_count("samples", samples)
    shape = samples, *images.shape[1:]
    noise = torch.randn(shape, generator=as_generator(generator), dtype=images.dtype)
    noise = send(noise, images.device)

    def explain(images, classes):
        width = NOISE * (images.amax((1, 2, 3), True) - images.amin((1, 2, 3), True))
        copy = lambda k: images + width * noise[k]
        slope = mean_gradient(model, images, classes, copy, samples, create_graph)
        return slope.abs().amax(1)

    return in_chunks(explain, model, images, classes, create_graph)


def integrated_gradients(
    model, images, classes, steps=COPIES, baseline=None, *, create_graph=False
):
    """(x - baseline) x the mean gradient between the two, summed over channels: float [N, H, W].

    It is signed, and its sum tends to f(x) - f(baseline) with more steps, f the class's logit.
    steps: how many gradients, each in the middle of its part of the straight path; baseline: in the
    units of `images`, as of shapley.kernel_shap: of several the maps are averaged. None is 0.
    Raises ValueError for steps below 1, and for a baseline that does not fit. Source: Sundararajan
    et al. 2017, eq. 1 and 3.
    """
    images = as_images(model, images)
    check_count("steps", steps)
    if baseline is None:  # made where the images are: recorded CUDA graphs copy nothing there
        baseline = images.new_zeros(1, 1, 1, 1)
    baselines = as_baselines(baseline, images)

    def explain(images, classes):
        maps = []
        for start in baselines:
            way = images - start
            copy = lambda k, start=start, way=way: start + (k + 0.5) / steps * way
            slope = mean_gradient(model, images, classes, copy, steps, create_graph)
            maps.append((way * slope).sum(1))
        return torch.stack(maps).mean(0)

    return in_chunks(explain, model, images, classes, create_graph)


def mean_gradient(model, images, classes, copy, count, create_graph):
    """The mean of d y_c / d x over the copies copy(0), ..., copy(count - 1), float [N, C, H, W].

    copy: a function of a number that returns images [N, C, H, W]. Without create_graph as many go
    through the model at a time as hooks.chunk_size says, so that memory does not grow with `count`.
    """
    together = count if create_graph else max(1, chunk_size(images) // max(1, len(images)))
    total = 0
    for part in torch.arange(count).split(together):
        copies = torch.cat([copy(int(k)) for k in part]).detach().requires_grad_()
        score = model(copies).gather(1, classes.repeat(len(part))[:, None]).sum()
        slope = derivative(score, copies, create_graph=create_graph)
        total = total + full_precision(slope).unflatten(0, (len(part), len(images))).sum(0)
    return total / count


def check_count(name, value):
    """Raises ValueError for anything but a whole number from 1 on."""
    if not is_whole(value) or value < 1:
        raise ValueError(f"{name}: a whole number, 1 or more, not {value!r}")
