"""What the defences' functions are given, checked: images in [0, 1], target classes, counts."""

from numbers import Integral

import torch

from hooks import answering, as_classes, as_images, classes_needed


def as_pixels(model, images):
    """The images as they are, float [N, C, H, W] in [0, 1], one or more. Raises ValueError."""
    images = as_images(model, images, at_least=1)
    if not ((images >= 0) & (images <= 1)).all():
        low, high = float(images.min()), float(images.max())
        raise ValueError(
            f"images are pixels in [0, 1] here, and these go from {low:.3g} to {high:.3g}:"
            " undo the normalisation, and give the model as defences.OnPixels(model, mean, std)"
        )
    return images


def as_targets(model, images, targets):
    """The target classes int64 [T] on the CPU; None: all the model has. Raises ValueError."""
    if targets is not None:
        targets = as_classes(targets, None).cpu()
        if len(targets) == 0:
            raise ValueError("targets: one class or more, or None for all")
    with torch.no_grad(), answering(model, 0 if targets is None else classes_needed(targets)):
        known = model(images[:1]).shape[1]
    return torch.arange(known) if targets is None else targets


def check_counts(**counts):
    """Raises ValueError for what is no whole number from 1 on."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}: a whole number from 1 on, not {value!r}")


def check_choice(choices, **options):
    """Raises ValueError for what is none of the choices."""
    for name, value in options.items():
        if value not in list(choices):
            raise ValueError(f"{name}: {' or '.join(choices)}, not {value!r}")
