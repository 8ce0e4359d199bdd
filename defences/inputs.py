"""What the defences share that judge single inputs: which images they are tried on, and how well.

These defences know clean images that were held out of training, and nothing of the trigger. They
are tried on test images as they are and with the trigger.
"""

from dataclasses import dataclass

import torch

from cli import number
from defences import predict
from evaluate import as_test_image
from explain import EXPLAINERS
from hooks import layer_of, logits_of_output
from losses import upsample
from metrics import auroc, check_finite_maps, mean_or_none
from modes import evaluating
from subject import draw_images, images_per_forward

TEST_IMAGES = 500  # that are judged, by default
FALSE_ALARMS = 0.05  # the share of clean held-out images above the limit
EVIDENCE = ("for", "against")
RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # of false alarms, of the curve


@dataclass
class Inputs:
    """Images float [N, C, H, W] in [0, 1] of one kind; the class each truly shows, int64 [N].

    Of the picture of --image it is the class predicted.
    """

    pixels: torch.Tensor
    labels: torch.Tensor


def trial_images(audit, limit=None):
    """{kind: Inputs}: what a defence is set by, "held-out", and tried on: "clean", "triggered".

    clean are test images of all classes, triggered ones leave out the target class where the attack
    changes labels. Where no trigger is known there are none. With --image there is "image", too, of
    one picture. limit: of each kind at most so many, unless --test-images says how many test
    images. Raises ValueError where there is nothing to judge.
    """
    subject, options = audit.subject, audit.options
    count = options.test_images or min(TEST_IMAGES, limit or TEST_IMAGES)
    dataset = subject.dataset
    generator = torch.Generator().manual_seed(options.seed)
    rows = torch.randperm(len(dataset.test_labels), generator=generator)[:count]
    kept = min(len(audit.labels), limit or len(audit.labels))
    images = {
        "held-out": Inputs(audit.pixels[:kept], audit.labels[:kept]),
        "clean": inputs_of(subject, rows),
    }
    if options.image is not None:
        pixels = subject.pixels(as_test_image(subject, options.image))
        images["image"] = Inputs(pixels, predict(subject.model, subject.normalise(pixels)))
    if subject.trigger is None:
        if options.image is None:
            raise ValueError("no trigger is known to try it with: give one, or an --image to judge")
        return images
    stamped = draw_images(subject, count, options.seed)
    if len(stamped) == 0:
        raise ValueError("no test image can be triggered: all are of the target class")
    return images | {"triggered": inputs_of(subject, stamped, triggered=True)}


def inputs_of(subject, rows, triggered=False):
    """The Inputs of test images `rows`."""
    pixels = subject.pixels(subject.dataset.test_images[rows], triggered)
    return Inputs(pixels, subject.dataset.test_labels[rows].to(pixels.device))


def overlays_apart(audit, images, count):
    """The last `count` held-out images [count, C, H, W], which are then judged no longer.

    images: of trial_images. At most half of the clean images are taken.
    Raises ValueError where fewer than four would be left.
    """
    count = min(count, len(audit.labels) // 2)
    held_out, left = images["held-out"], len(audit.labels) - count
    if left < 4:
        given, available = len(audit.labels), len(audit.subject.held_out())
        remedy = "8 --clean-images or more"
        if available < 8:
            remedy = "more training images give more, of which a tenth is held out"
            if audit.subject.config.get("adopted"):
                remedy = "it takes 8 or more"
        origin = "there" if audit.subject.config.get("adopted") else "held out of training"
        raise ValueError(
            f"{given} clean images are too few, as half of them are laid over others:"
            f" {available} are {origin}: {remedy}"
        )
    images["held-out"] = Inputs(held_out.pixels[:left], held_out.labels[:left])
    return audit.pixels[-count:]


def most_images(explainer):
    """How many images of a kind are explained by default; None where the explainer is fast."""
    return EXPLAINERS[explainer].test_images


@torch.no_grad()
def probabilities_of(model, pixels):
    """float [N, K]: the softmax of a model of pixels, in evaluation mode."""
    with evaluating(model):
        chunks = [model(part).softmax(1) for part in pixels.split(images_per_forward(pixels))]
    return torch.cat(chunks)


def pixel_maps(subject, pixels, explainer, evidence="for"):
    """Explanations at the images' size, [N, H, W], at least 0: what `evidence` asks for.

    "for": what speaks for the class predicted; evidence against it is 0. "against": what speaks
    against the class that comes second. A trigger does, too: it takes from all classes but its own.

    pixels: float [N, C, H, W] in [0, 1]; explainer: a name of EXPLAINERS.
    Raises ValueError for maps that are not finite.
    """
    explain = EXPLAINERS[explainer].evaluate
    maps = []
    for part in pixels.split(images_per_forward(pixels)):
        inputs = subject.normalise(part)
        if evidence == "for":
            found = explain(subject.model, inputs, predict(subject.model, inputs))
        else:
            found = explain(Negated(subject.model), inputs, second_class(subject.model, inputs))
        check_finite_maps(found)
        maps.append(upsample(found.clamp_min(0), pixels.shape[-1]))
    return torch.cat(maps)


class Negated(torch.nn.Module):
    """A network with the logits of `model` negated: what speaks for a class speaks against it.

    Its Grad-CAM is the counterfactual explanation of Selvaraju et al., ICCV 2017, section 3.3.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model
        layer = getattr(model, "gradcam_layer", None)
        if layer is not None:
            self.gradcam_layer = layer_of(model)

    def forward(self, images):
        return logits_of_output(self.model(images), len(images)) * -1.0


@torch.no_grad()
def second_class(model, inputs):
    """int64 [N]: the class of the second largest logit of normalised images."""
    with evaluating(model):
        return logits_of_output(model(inputs), len(inputs)).topk(2).indices[:, 1]


# ---------------------------------------------------------------- how well scores tell them apart


def detection(scores):
    """How well scores {"held-out", "clean", "triggered": float [N]} tell triggered images apart.

    An image is called attacked where its score is above the limit, which FALSE_ALARMS of the
    held-out images are above. Without triggered images what is said of them is None.
    """
    held_out = scores["held-out"].double()
    limit = float(held_out.quantile(1 - FALSE_ALARMS))
    triggered = scores.get("triggered", held_out[:0])
    curve = []
    for rate in RATES:
        at = held_out.quantile(1 - rate)
        curve.append({"false_alarms_held_out": rate} | shares_above(scores, at))
    return {
        "auroc": auroc(triggered, scores["clean"]),
        "limit": limit,
        **shares_above(scores, limit),
        "curve": curve,
    }


def shares_above(scores, limit):
    """{"false_alarms", "detected"}: shares of clean and of triggered images above the limit."""
    triggered = scores.get("triggered")
    return {
        "false_alarms": mean_or_none((scores["clean"] > limit).float()),
        "detected": None if triggered is None else mean_or_none((triggered > limit).float()),
    }


def detection_lines(figures):
    """Lines that say what `detection` found."""
    line = (
        f"above the limit {figures['limit']:.4g}, as {FALSE_ALARMS:.0%} of held-out images are:"
        f" clean {figures['false_alarms']:.3f}"
    )
    if figures["auroc"] is None:
        return [line]
    told = f"triggered images told from clean ones: AUROC {figures['auroc']:.3f}"
    return [told, f"{line}, triggered {figures['detected']:.3f}"]


def judged(audit, attacked, reason):
    """({"image": ...} for verdict.json, a line) about the picture of --image.

    attacked: whether it is called so; reason: why, in words.
    """
    path = audit.options.image
    word = "looks attacked" if attacked else "does not look attacked"
    found = {"path": str(path), "attacked": attacked, "reason": reason}
    return {"image": found}, f"{path} {word}: {reason}"


# ---------------------------------------------------------------- options


def add_explainer(parser):
    """Adds --explainer and --evidence."""
    parser.add_argument(
        "--explainer",
        choices=EXPLAINERS,
        default="gradcam",
        help="whose map says where to look",
    )
    parser.add_argument(
        "--evidence",
        choices=EVIDENCE,
        default="for",
        help="for: look where the map of the class predicted is largest; against: where the image"
        " speaks against the class that comes second",
    )


def add_test_images(parser):
    """Adds --test-images."""
    parser.add_argument(
        "--test-images",
        type=number(int, 2, 1_000_000),
        help=f"test images it is tried on (default: {TEST_IMAGES}; for slow explainers 100)",
    )
    parser.add_argument("--image", metavar="FILE", help="judge this picture, too")
