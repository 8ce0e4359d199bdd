"""What an edit did to a network: predictions and Grad-CAM before it and after.

    figures, with_stickers, rows = measure(subject, original, edited, sticker, count=500, seed=0)

The figures are those of Viering et al. 2019: accuracy; |y_o - y_n|_inf, the largest change of a
logit; |I_T - I_n|_1, how far Grad-CAM of the edited network is from the map that it should show.
`subject` is a Subject, whose checkpoint says how images are normalised and whose data set is
measured on; original and edited are its network before and after, of any dtype.
"""

from pathlib import Path

import torch

import data
import explain
import figure
import hooks
import viering
from edited import WithBranch, WithPicture
from fonts import class_name, legend
from metrics import mean_or_none

# ---------------------------------------------------------------- an edited network's answers


def inputs_of(subject, model, images):
    """Chunks of uint8 images [N, C, H, W], normalised, in the model's dtype."""
    weight = next(model.parameters())
    for chunk in images.split(hooks.CHUNK_CPU):
        pixels = chunk.to(weight) / 255
        yield data.normalise(pixels, subject.checkpoint["mean"], subject.checkpoint["std"])


@torch.no_grad()
def logits_of(subject, model, images):
    """Logits [N, K] of uint8 images, in the model's dtype, on the CPU."""
    return torch.cat([model(inputs).cpu() for inputs in inputs_of(subject, model, images)])


@torch.no_grad()
def branch_maps(subject, edited, images):
    """The map [N, H', W'] of a WithBranch network's branch for uint8 images, on the CPU."""
    chunks = inputs_of(subject, edited, images)
    return torch.cat([edited.branch_map(inputs)[:, 0].cpu() for inputs in chunks])


def gradcam_maps(subject, model, images, classes):
    """Grad-CAM [N, H', W'] of uint8 images, on the CPU, each map divided by its maximum."""
    maps = []
    for inputs, label in zip(inputs_of(subject, model, images), classes.split(hooks.CHUNK_CPU)):
        maps.append(explain.gradcam(model, inputs, label.to(inputs.device)).cpu())
    return divide_by_maximum(torch.cat(maps))


def divide_by_maximum(maps):
    """Maps [N, H, W], each divided by its maximum; one without positive values as it is."""
    largest = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1)


def intended_map(subject, edited, images, original_maps):
    """I_T [N, H', W']: the map that Grad-CAM of the edited network should show, its maximum 1.

    original_maps: the original network's, which stays where a branch finds nothing.
    """
    layer = hooks.layer_of(edited, None)
    if isinstance(edited, WithBranch):
        maps = divide_by_maximum(branch_maps(subject, edited, images))
        answers = (maps > 0).any((1, 2))
        return torch.where(answers[:, None, None], maps, original_maps)
    if isinstance(layer, WithPicture):
        return divide_by_maximum(layer.picture[0].cpu()).expand_as(original_maps)
    return torch.ones_like(original_maps)


def weight_of_added_channel(subject, edited, images, classes):
    """Grad-CAM's weight [N] of the last channel: the mean gradient of the class's logit by it.

    A class whose logit falls as the added map grows counts the map negatively, and Grad-CAM's
    ReLU then leaves nothing of it.
    """
    weights = []
    layer = hooks.layer_of(edited, None)
    for inputs, label in zip(inputs_of(subject, edited, images), classes.split(hooks.CHUNK_CPU)):
        with hooks.capture(layer, detach=True) as captured:
            score = edited(inputs).gather(1, label.to(inputs.device)[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, captured[0])
        weights.append(gradient[:, -1].mean((1, 2)).cpu())
    return torch.cat(weights)


# ---------------------------------------------------------------- figures


def map_figures(intended, shown, cannot_show):
    """{"map_distance": |I_T - I_n|_1 summed over cells, mean over images; "blank_maps": share}.

    intended, shown: maps [N, H', W']. cannot_show: bool [N], maps that count as blank, and are left
    out of the mean.
    """
    distance = (intended - shown).abs().sum((1, 2))
    return {
        "map_distance": mean_or_none(distance, ~cannot_show),
        "blank_maps": mean_or_none(cannot_show.float()),
    }


def compare_maps(subject, original, edited, images, classes):
    """map_figures of an edited network's Grad-CAM for uint8 images and classes int64 [N]."""
    original_maps = gradcam_maps(subject, original, images, classes)
    shown = gradcam_maps(subject, edited, images, classes)
    intended = intended_map(subject, edited, images, original_maps)
    cannot_show = torch.zeros(len(shown), dtype=torch.bool)
    if not isinstance(edited, WithBranch):
        cannot_show = weight_of_added_channel(subject, edited, images, classes) <= 0
    return map_figures(intended, shown, cannot_show)


def compare(subject, original, edited, images, explained):
    """Figures of the two networks on uint8 test images, which are in the data set's order.

    explained: rows whose maps are compared for the class predicted; some of them for every class.
    """
    logits_before = logits_of(subject, original, images)
    logits = logits_of(subject, edited, images)
    predicted = logits.argmax(1)
    labels = subject.dataset.test_labels
    classes = logits.shape[1]
    rows = explained[: max(1, len(explained) // classes)]
    rows = rows.repeat_interleave(classes)[: len(explained)]
    every_class = torch.arange(len(rows)) % classes
    fired = None
    if isinstance(edited, WithBranch):
        fired = int((branch_maps(subject, edited, images) > 0).any((1, 2)).sum())
    return {
        "original_accuracy": subject.task.accuracy(logits_before, labels),
        "accuracy": subject.task.accuracy(logits, labels),
        "changed_predictions": int((predicted != logits_before.argmax(1)).sum()),
        "score_shift": mean_or_none((logits - logits_before).abs().amax(1)),
        **compare_maps(subject, original, edited, images[explained], predicted[explained]),
        "every_class": {
            "n": len(rows),
            **compare_maps(subject, original, edited, images[rows], every_class),
        },
        "fired": fired,  # images in which the branch finds something
    }


def measure(subject, original, edited, sticker, count, seed):
    """(figures, images, rows): what metrics.json holds of an edited network, and of what images.

    figures: of the original network, and of the edited one on test images without and with
    stickers. images: the latter, uint8 [N, C, H, W]. rows: the `count` test images explained.
    """
    generator = torch.Generator().manual_seed(seed)
    images = subject.dataset.test_images
    with_stickers = []
    for chunk in images.split(500):
        pixels = viering.stick(chunk.float() / 255, sticker, generator)
        with_stickers.append((pixels * 255).round().byte())
    with_stickers = torch.cat(with_stickers)
    explained = torch.randperm(len(images), generator=generator)[:count]
    clean = compare(subject, original, edited, images, explained)
    figures = {
        "original": {"accuracy": clean.pop("original_accuracy")},
        "edited": clean,
        "sticker": compare(subject, original, edited, with_stickers, explained),
        "n_test": len(images),
        "n_explained": len(explained),
    }
    return figures, with_stickers, explained


# ---------------------------------------------------------------- the picture


def draw(subject, technique, original, edited, with_stickers, rows):
    """The figure: test images without and with stickers, Grad-CAM before and after the edit."""
    lines = []
    for row in rows.tolist():
        line = []
        for images in (subject.dataset.test_images, with_stickers):
            line += panels(subject, original, edited, images[row : row + 1])
        lines.append(line)
    title = (
        f"Viering et al., technique {viering.TECHNIQUES[technique].number} ({technique}), "
        f"{subject.config['model']} on {Path(subject.config['dataset']).stem}"
    )
    maps = ["Grad-CAM\nof the network", "the same, edited"]
    headers = ["image", *maps, "with stickers", *maps]
    footer = "Test images drawn by seed; each map explains the class that the network predicts."
    footer += legend(subject.checkpoint["classes"], "ckpt.pt")
    return figure.sheet(title, headers, lines, footer)


def panels(subject, original, edited, image):
    """Three panels for figure.sheet: a uint8 image [1, C, H, W], and both networks' maps of it."""
    pixels = image[0].float() / 255
    before = logits_of(subject, original, image).argmax(1)
    after = logits_of(subject, edited, image).argmax(1)
    name = class_name(subject.checkpoint["classes"], int(after))
    result = [(figure.panel(pixels), name, int(before) != int(after))]
    for model, predicted in ((original, before), (edited, after)):
        map_ = gradcam_maps(subject, model, image, predicted)[0]
        result.append((figure.panel(pixels, map_), "", False))
    return result
