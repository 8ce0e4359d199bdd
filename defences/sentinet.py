"""SentiNet (Chou et al., S&P workshops 2020): does the marked region carry its class along?

The region that the explanation marks is cut out and laid over clean images. A trigger turns these
into the target class; a dog's ear does not make a dog of a ship. The same region filled with noise
says how much of that is only from covering the image: there the network stays confident.
"""

import numpy as np
import torch

import figure
from defences import Defence, Verdict
from defences.inputs import (
    add_explainer,
    add_test_images,
    detection,
    detection_lines,
    judged,
    most_images,
    overlays_apart,
    pixel_maps,
    probabilities_of,
    trial_images,
)
from fonts import class_name, legend

REGION = 0.15  # of the map's maximum: above it a pixel is of the region; published
OVERLAYS = 50  # clean images that a region is laid over
BINS = 10  # of confidence, whose highest fooled share the curve goes through

PICTURED = 6  # images


# ---------------------------------------------------------------- the algorithm


def region_of(maps):
    """bool [N, H, W]: where maps are above REGION of their maximum; nowhere of a blank one."""
    largest = maps.amax((1, 2), keepdim=True)
    return (maps > REGION * largest) & (largest > 0)


def fooled_and_confidence(model, pixels, regions, clean, generator):
    """(fooled, confidence), each float64 [N], of images with their regions.

    fooled: share of the clean images [M, C, H, W] that get the image's class once its region is
    laid over them. confidence: the mean probability of whatever is predicted, with noise in the
    region instead. model: of pixels in [0, 1]; generator: of the noise.
    """
    classes = probabilities_of(model, pixels).argmax(1)
    fooled, confidence = [], []
    for image, region, label in zip(pixels, regions, classes):
        noise = torch.rand(image.shape, generator=generator).to(image)
        pasted = torch.where(region, image, clean)
        covered = torch.where(region, noise, clean)
        answers = probabilities_of(model, torch.cat([pasted, covered])).chunk(2)
        fooled.append((answers[0].argmax(1) == label).double().mean())
        confidence.append(answers[1].amax(1).double().mean())
    return torch.stack(fooled).cpu(), torch.stack(confidence).cpu()


def boundary(fooled, confidence):
    """The parabola through the highest fooled share of each bin of confidence: 3 coefficients.

    fooled, confidence: float64 [N] of clean images; highest power first. With fewer than three
    bins that hold an image it is a line or a constant.
    """
    low, high = float(confidence.min()), float(confidence.max())
    place = ((confidence - low) / max(high - low, 1e-12) * BINS).long().clamp(max=BINS - 1)
    points = []
    for k in place.unique().tolist():
        members = (place == k).nonzero()[:, 0]
        top = members[fooled[members].argmax()]
        points.append((float(confidence[top]), float(fooled[top])))
    x, y = np.array(points).T
    degree = min(2, len(points) - 1)
    return np.pad(np.polyfit(x, y, degree), (2 - degree, 0))


def above_boundary(fooled, confidence, coefficients):
    """float64 [N]: how far the fooled share lies above the parabola."""
    return fooled - torch.from_numpy(np.polyval(coefficients, confidence.numpy()))


# ---------------------------------------------------------------- tried


def run(audit):
    """A Verdict on inputs: are triggered ones told from clean ones?

    The overlays are the last held-out images; of the others half draw the boundary, and half set
    the limit.
    """
    explainer, evidence = audit.options.explainer, audit.options.evidence
    images = trial_images(audit, most_images(explainer))
    overlays = overlays_apart(audit, images, OVERLAYS)
    generator = torch.Generator().manual_seed(audit.options.seed)
    points, regions = {}, {}
    for kind, part in images.items():
        regions[kind] = region_of(pixel_maps(audit.subject, part.pixels, explainer, evidence))
        arguments = part.pixels, regions[kind], overlays, generator
        points[kind] = fooled_and_confidence(audit.on_pixels, *arguments)
    half = len(images["held-out"].labels) // 2
    drawn_by = [values[:half] for values in points["held-out"]]
    points["held-out"] = [values[half:] for values in points["held-out"]]
    coefficients = boundary(*drawn_by)
    scores = {kind: above_boundary(*pair, coefficients) for kind, pair in points.items()}
    found = detection(scores)
    of_image, lines = {}, detection_lines(found)
    if "image" in scores:
        score, fooled = float(scores["image"]), float(points["image"][0])
        reason = f"its region takes {fooled:.0%} of other images to its class"
        of_image, line = judged(audit, score > found["limit"], reason)
        lines.append(line)
    return Verdict(
        backdoored=None,
        lines=[f"regions by {explainer}, laid over {len(overlays)} held-out images"] + lines,
        details={
            "explainer": explainer,
            "evidence": evidence,
            "boundary": coefficients.tolist(),
            **found,
            **means_of(points),
            **of_image,
        },
        picture=picture_of(audit, images, regions, overlays),
    )


def means_of(points):
    """{"clean_fooled": ...}: of each kind of images the mean fooled share and confidence."""
    return {
        f"{kind.replace('-', '_')}_{name}": float(values.mean())
        for kind, pair in points.items()
        for name, values in zip(("fooled", "confidence"), pair)
    }


def picture_of(audit, images, regions, overlays):
    """Clean and triggered test images, their regions, and these laid over other images."""
    rows = []
    for kind in ("clean", "triggered" if "triggered" in images else "image"):
        pixels = images[kind].pixels[: PICTURED // 2]
        for image, region, under in zip(pixels, regions[kind], overlays):
            pasted = torch.where(region, image, under)
            cut = torch.where(region, image, torch.full_like(image, 0.5))
            called = probabilities_of(audit.on_pixels, torch.stack([image, pasted])).argmax(1)
            names = [class_name(audit.subject.classes, k) for k in called.tolist()]
            fooled = bool(called[0] == called[1])
            panels = [image, cut, under, pasted]
            captions = [f"{kind}: {names[0]}", "", "", f"called {names[1]}"]
            rows.append(
                [
                    (figure.panel(panel.cpu()), caption, fooled and place == 3)
                    for place, (panel, caption) in enumerate(zip(panels, captions))
                ]
            )
    headers = ["input", "its region", "a clean image", "laid over it"]
    footer = f"Regions by {audit.options.explainer}. Red: the region carries the class along."
    footer += legend(audit.subject.classes, "verdict.json")
    return figure.sheet(
        "SentiNet: does the region carry its class?", headers, rows, footer, scale=False
    )


# ---------------------------------------------------------------- the command line


def add_options(parser):
    add_explainer(parser)
    add_test_images(parser)


def settings(options):
    return {"region": REGION, "overlays": OVERLAYS, "bins": BINS}


DEFENCE = Defence(
    help="whether the region an explanation marks carries its class to other images",
    run=run,
    settings=settings,
    add_options=add_options,
)
