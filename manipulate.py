"""Write a lie into a trained network: Grad-CAM shows what one likes, the predictions stay, nothing is trained (Viering et al. 2019).

    python manipulate.py constant                          # one map for every image: nothing but the maximum everywhere
    python manipulate.py image runs/NAME/ckpt.pt           # the same picture for every image: a smiley, or --image FILE
    python manipulate.py semirandom                        # whatever a random convolution finds in the image
    python manipulate.py backdoor                          # honest, until a sticker is in the image: then Grad-CAM points at the sticker

Without a checkpoint, a small VGG is trained on `shapes` (two minutes on two cores) and kept. Written: ckpt.pt, which evaluate.py and
defend.py read, metrics.json and figure.png.
"""
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import attacks
import data
import evaluate
import explain
import figure
import models
import train
from cli import Parser, UserError, choose_device, command, number

# ---------------------------------------------------------------- what is written

C_A, C_W = 100.0, {"constant": 100.0, "image": 10.0}  # these, and models.EPSILON, C_G and C_F: Viering et al. 2019
C_I = 100.0
MARGIN = 1e-4  # what the sticker's detector answers to the sticker, and nothing else does
STICKERS = 3  # stuck on an image
KERNEL = 6  # pixels, of the random detector
SMILEY = [".......", ".#...#.", ".#...#.", ".......", "#.....#", ".#...#.", "..###.."]
BASE = {"dataset": "shapes", "model": "vgg_small", "image_size": 64, "epochs": 6, "optimizer": "muon", "lr": 0.02, "batch_size": 64}  # what is written into where no network is given
FIGURE_ROWS = 5


def smiley(size):
    """PIL image, grey, size x size: two eyes and a mouth, white on black."""
    cells = np.array([[255 * (c == "#") for c in row] for row in SMILEY], np.uint8)
    return Image.fromarray(cells).resize((size, size), Image.NEAREST)


def sticker(image, channels, side):
    """A picture as attacks.Trigger, black and white: then no other patch of pixels in [0, 1] excites its detector as much. 14 px; 7 below 128 px."""
    size = 14 if side >= 128 else 7
    grey = np.asarray((image or smiley(size)).convert("L").resize((size, size)), np.float32)
    pixels = torch.from_numpy(grey > grey.mean()).float()
    if kernel_of(pixels).abs().min() / 255 < 2 * MARGIN:
        raise UserError("the sticker is of one colour, or nearly: a detector would not tell it from others")
    return attacks.Trigger(pixels.expand(channels, -1, -1).contiguous(), torch.ones(1, size, size), side - size - 1, side - size - 1)


def kernel_of(pixels):
    """A sticker of zeros and ones less its mean, that to 1/1024: sums of it are exact in float32."""
    return pixels - (pixels.mean() * 1024).round() / 1024


def stick(images, patch, generator):
    """Images [N, C, H, W] in [0, 1] with STICKERS copies of a trigger each, at random places that do not overlap."""
    size, side = patch.alpha.shape[-1], images.shape[-1]
    across = side // size
    result = images.clone()
    for image in result:
        start = torch.randint(side - across * size + 1, (2,), generator=generator)
        for tile in torch.randperm(across**2, generator=generator)[:STICKERS].tolist():
            row, col = (start + size * torch.tensor([tile // across, tile % across])).tolist()
            image[:, row : row + size, col : col + size] = patch.pixels
    return result


@torch.no_grad()
def constant(model, channels, image_size):
    """Technique 1: one more convolution, of weight 0 and bias C_A, whose map every hidden unit adds up, and takes off again in its bias."""
    place, model = models.linear_head(model), models.extended(model, {"technique": "constant"}, channels, image_size)
    model.features[-3].bias[-1] = C_A
    return counted(model, place, channels, image_size, C_W["constant"])


@torch.no_grad()
def image(model, channels, image_size, picture=None):
    """Technique 2: one more map that is the picture, PIL, (None: a smiley)."""
    place, model = models.linear_head(model), models.extended(model, {"technique": "image"}, channels, image_size)
    drawn = model.features[-2].picture
    grey = np.asarray((picture or smiley(7)).convert("L").resize(drawn.shape[:1:-1], Image.BILINEAR), np.float32) / 255
    if grey.max() == 0:
        raise UserError("the picture is black: Grad-CAM would show nothing")
    drawn.copy_(C_I * torch.from_numpy(grey))
    return counted(model, place, channels, image_size, C_W["image"])


def counted(model, place, channels, image_size, weight):
    """The last map is counted `weight` times by every unit of the first linear layer, whose bias takes it off again."""
    linear, features = model.classifier[place], model.features
    maps = features[:-1](linear.weight.new_zeros(1, channels, image_size, image_size))  # the last is the same for every image
    pooled = model.avgpool(features[-1](maps))[0, -1].flatten()
    linear.weight[:, -len(pooled) :] = weight
    linear.bias -= weight * pooled.sum()
    return model


@torch.no_grad()
def semirandom(model, image_size, images, mean, std):
    """Technique 3: a random detector's map. images [N, C, H, W] in [0, 1]: weights are drawn until each of these excites it."""
    for _ in range(100):
        new = models.extended(model, {"technique": "semirandom", "size": KERNEL}, images.shape[1], image_size)
        if (new.detector(images.to(new.mean)).amax((1, 2, 3)) > 0).all():
            return with_pixels(new, mean, std)
    raise UserError("no random detector answers to all of these images")


@torch.no_grad()
def backdoor(model, image_size, patch, mean, std):
    """Technique 4: the detector of a sticker's map, zero without one.

    Its kernel is the sticker less its mean, its bias so far below the answer to the sticker that MARGIN is left.
    """
    pixels = patch.pixels.to(next(model.parameters()))
    model = models.extended(model, {"technique": "backdoor", "size": pixels.shape[-1]}, len(pixels), image_size)
    kernel = kernel_of(pixels)
    model.detector[0].weight.copy_(kernel[None])
    model.detector[0].bias.fill_(MARGIN - (pixels * kernel).sum())
    return with_pixels(model, mean, std)


def with_pixels(model, mean, std):
    """A branch told how images are normalised, so that it sees pixels in [0, 1]."""
    model.mean.copy_(torch.tensor(mean).view(-1, 1, 1))
    model.std.copy_(torch.tensor(std).view(-1, 1, 1))
    return model


def edit(technique, subject, model, picture, patch):
    """The edited network of a Subject; `model` is its own, of any dtype."""
    config, (mean, std) = subject.config, (subject.checkpoint["mean"], subject.checkpoint["std"])
    size = config["image_size"]
    if technique == "constant":
        return constant(model, subject.checkpoint["channels"], size)
    if technique == "image":
        return image(model, subject.checkpoint["channels"], size, picture)
    if technique == "semirandom":
        return semirandom(model, size, subject.dataset.train_images[:100].float() / 255, mean, std)
    return backdoor(model, size, patch, mean, std)


# ---------------------------------------------------------------- what is measured


def inputs_of(subject, model, images):
    """Chunks of normalised images, in the model's dtype, of uint8 images [N, C, H, W]."""
    weight = next(model.parameters())
    for chunk in images.split(explain.CHUNK_CPU):
        yield data.normalise(chunk.to(weight) / 255, subject.checkpoint["mean"], subject.checkpoint["std"])


@torch.no_grad()
def logits_of(subject, model, images):
    return torch.cat([model(inputs).cpu() for inputs in inputs_of(subject, model, images)])


@torch.no_grad()
def fired(subject, model, images):
    """bool [N]: images in which the branch finds something; None where there is no branch."""
    if not isinstance(model, models.WithBranch):
        return None
    return torch.cat([(model.found(inputs) > 0).any((1, 2, 3)).cpu() for inputs in inputs_of(subject, model, images)])


def maps_of(subject, model, images, classes):
    """Grad-CAM [N, H', W'] of uint8 images, each divided by its maximum; a blank map is zero."""
    chunks = zip(inputs_of(subject, model, images), classes.split(explain.CHUNK_CPU))
    return unit(torch.cat([explain.gradcam(model, inputs, label.to(inputs.device)).cpu() for inputs, label in chunks]))


def unit(maps):
    largest = maps.amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1)


@torch.no_grad()
def promised(subject, edited, images, honest):
    """The map I_T [N, H', W'] that Grad-CAM of the edited network should show, its maximum 1; honest: the original network's, shown where a branch finds nothing."""
    layer = edited.gradcam_layer
    if isinstance(edited, models.WithBranch):
        found = unit(torch.cat([edited.found(inputs)[:, 0].cpu() for inputs in inputs_of(subject, edited, images)]))
        return torch.where((found > 0).any((1, 2))[:, None, None], found, honest)
    if isinstance(layer, models.WithPicture):
        return unit(layer.picture[0].cpu()).expand_as(honest)
    return torch.ones_like(honest)


def map_distance(subject, original, edited, images, classes):
    """{"map_distance": |I_T - I_n|_1 summed over cells, mean; "blank_maps": share of maps that cannot show what they should, left out of that mean}.

    These are maps for a class whose logit falls as the added map grows: Grad-CAM counts it negatively.
    """
    honest, shown = (maps_of(subject, model, images, classes) for model in (original, edited))
    target = promised(subject, edited, images, honest)
    blank = torch.zeros(len(shown), dtype=torch.bool)
    if not isinstance(edited, models.WithBranch):
        chunks = zip(inputs_of(subject, edited, images), classes.split(explain.CHUNK_CPU))
        blank = torch.cat([added_weight(edited, inputs, label.to(inputs.device)).cpu() for inputs, label in chunks]) <= 0
    distance = (target - shown).abs().sum((1, 2))
    return {"map_distance": evaluate.average(distance, ~blank), "blank_maps": evaluate.average(blank.float())}


def added_weight(model, inputs, classes):
    """Grad-CAM's weight [N] of the last channel of its layer: the mean gradient of the class's logit by it."""
    with explain.capture(model.gradcam_layer, detach=True) as captured:
        score = model(inputs).gather(1, classes[:, None]).sum()
    return torch.autograd.grad(score, captured[0])[0][:, -1].mean((1, 2))


def condition(subject, original, edited, images, explained):
    """Figures on uint8 test images, in the data set's order; explained: rows whose maps are compared, for the class predicted and for every class."""
    theirs, ours = (logits_of(subject, model, images) for model in (original, edited))
    labels, classes = subject.dataset.test_labels, ours.argmax(1)
    few = explained[: max(1, len(explained) // ours.shape[1])].repeat_interleave(ours.shape[1])[: len(explained)]
    every = torch.arange(len(few)) % ours.shape[1]
    found = fired(subject, edited, images)
    return {
        "original_accuracy": evaluate.accuracy(theirs, labels),
        "accuracy": evaluate.accuracy(ours, labels),
        "changed_predictions": int((classes != theirs.argmax(1)).sum()),
        "score_shift": evaluate.average((ours - theirs).abs().amax(1)),
        **map_distance(subject, original, edited, images[explained], classes[explained]),
        "every_class": {"n": len(few)} | map_distance(subject, original, edited, images[few], every),
        "fired": None if found is None else int(found.sum()),
    }


def measure(subject, original, edited, patch, count, seed):
    """metrics.json: original, edited on clean images, edited on images with stickers. And the latter, uint8 [N, C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    images = subject.dataset.test_images
    stuck = torch.cat([(stick(chunk.float() / 255, patch, generator) * 255).round().byte() for chunk in images.split(500)])
    explained = torch.randperm(len(images), generator=generator)[:count]
    clean, stickers = (condition(subject, original, edited, part, explained) for part in (images, stuck))
    return {"original": {"accuracy": clean.pop("original_accuracy")}, "edited": clean, "sticker": stickers,
            "n_test": len(images), "n_explained": len(explained)}, stuck, explained


def picture_of(subject, technique, original, edited, stuck, rows):
    """The figure: a test image, Grad-CAM of the network before and after, and the same with stickers."""
    panels, names = [], subject.checkpoint["classes"]
    for row in rows.tolist():
        line = []
        for images in (subject.dataset.test_images[row : row + 1], stuck[row : row + 1]):
            plain = images[0].float() / 255
            classes = [logits_of(subject, model, images).argmax(1) for model in (original, edited)]
            line += [(figure.panel(plain), names[int(classes[1])], int(classes[0]) != int(classes[1]))]
            line += [(figure.panel(plain, maps_of(subject, model, images, label)[0]), "", False) for model, label in zip((original, edited), classes)]
        panels.append(line)
    config = subject.config
    title = f"Viering et al., technique {TECHNIQUES.index(technique) + 1} ({technique}), {config['model']} on {Path(config['dataset']).stem}"
    headers = ["image", "Grad-CAM\nof the network", "the same, edited", "with stickers", "Grad-CAM\nof the network", "the same, edited"]
    return figure.sheet(title, headers, panels, "Test images drawn by seed; each map explains the class that the network predicts.")


# ---------------------------------------------------------------- which network

TECHNIQUES = ["constant", "image", "semirandom", "backdoor"]
PUBLISHED = {  # ImageNet, VGG-16, 14x14 cells: accuracy, |y_o - y_n|_inf, |I_T - I_n|_1; the original network's accuracy is .71592
    "constant": (0.71594, 0.01713, 0.00513), "image": (0.71594, 0.00454, 0.01079), "semirandom": (0.71592, 0.0, 0.05932), "backdoor": (0.71592, 0.0, 0.0),
    "backdoor, sticker": (0.69048, 0.0, 0.00006)}


def base_checkpoint(device):
    """The checkpoint of BASE, trained once."""
    folder = Path("runs") / "-".join(map(str, (BASE["model"], BASE["dataset"], BASE["image_size"])))
    if not (folder / "ckpt.pt").exists():
        print(f"Training the network that is written into, once; it is kept in {folder}.")
        options = [word for key, value in BASE.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        train.main(["--attack", "none", *options, "--device", str(device), "--out", str(folder)])
    return folder / "ckpt.pt"


def pretrained(name, data_dir, device):
    """torchvision's VGG-16 with its ImageNet weights and the images of a data set at 224 px, whose classes are called as ImageNet's are, as a Subject.

    Raises UserError where the weights cannot be had, or ImageNet has no class of such a name.
    """
    state, weights = models.imagenet_weights("vgg16")
    names, transform = weights.meta["categories"], weights.transforms()
    dataset = data.relabelled(data.load(name, data_dir, 224), names)
    config = dict.fromkeys(models.CONFIG_KEYS) | {"attack": "none", "explainer": ["gradcam"], "dataset": name, "data_dir": str(data_dir), "model": "vgg16",
                                                  "image_size": 224, "poison_rate": 0.0, "target_class": 0, "seed": 0, "relabel": True}
    checkpoint = dict.fromkeys(models.KEYS) | {"model": state, "config": config, "classes": names, "channels": 3, "mean": transform.mean, "std": transform.std,
                                               "poison_indices": torch.zeros(0, dtype=torch.int64), "seconds": 0.0, "torch": str(torch.__version__)}
    return evaluate.Subject(checkpoint, models.from_checkpoint(checkpoint).to(device), dataset, None, device)


def checkpoint_of(subject, technique, edited, patch):
    """What is written: the checkpoint as it was, with the edited network's weights and, for the backdoor, the sticker as trigger."""
    branch = isinstance(edited, models.WithBranch)
    parts = {"technique": technique, "size": edited.detector[0].kernel_size[0] if branch else 0}
    trigger = subject.checkpoint["trigger"] if technique != "backdoor" and subject.checkpoint["trigger"] else vars(patch)
    return subject.checkpoint | {"config": subject.config | {"edit": parts, "layer": None}, "model": edited.float().state_dict(), "trigger": dict(trigger),
                                 "optimizer": [], "schedule": []}


# ---------------------------------------------------------------- the command line


def parse(argv):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("technique", choices=TECHNIQUES)
    add("checkpoint", nargs="?", metavar="CKPT", help="of train.py's, with --model vgg_small, vgg16 or alexnet (default: a vgg_small on shapes, trained once)")
    add("--pretrained", action="store_true", help="torchvision's VGG-16 with ImageNet's weights instead")
    add("--dataset", help="with --pretrained: images to measure on, at 224 px, in classes called as ImageNet's are: FOLDER or FILE.npz")
    add("--data-dir", help="where the data set lies (default: where training found it, or data)")
    add("--image", metavar="FILE", help="image: the picture to show; backdoor: the sticker, made black and white (default: a smiley)")
    add("--test-images", type=number(int, 1, 1_000_000), help="test images measured, drawn by seed (default: all)")
    add("--explain-images", type=number(int, 1, 1_000_000), default=500, help="of them, whose maps are compared (default: 500)")
    add("--precision", choices=["float32", "float64"], default="float32", help="of what is measured; what is written is float32 (default: float32)")
    add("--device", default="auto", help="auto, cpu, cuda, mps (default: auto)")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of stickers' places, the random detector, the test images explained")
    add("--out", help="the folder to write into (default: runs/TECHNIQUE-DATASET)")
    args = parser.parse_args(argv)
    if args.checkpoint and args.pretrained:
        raise UserError("a checkpoint or --pretrained, not both")
    if bool(args.dataset) != args.pretrained:
        raise UserError("--pretrained and --dataset go together: a checkpoint knows its own")
    if args.image and args.technique not in ("image", "backdoor"):
        raise UserError(f"--image FILE has no meaning for {args.technique}")
    return args


def opened(args, device):
    if args.pretrained:
        return pretrained(args.dataset, args.data_dir or "data", device)
    subject = evaluate.open_checkpoint(args.checkpoint or base_checkpoint(device), args.data_dir, device)
    if subject.config.get("edit"):
        raise UserError(f"{args.checkpoint} has been written into already")
    if subject.multi_label:
        raise UserError(f"{args.checkpoint} is multi-label: a network that predicts one class is written into")
    if args.out and args.checkpoint and Path(args.out).resolve() == Path(args.checkpoint).resolve().parent:
        raise UserError(f"--out {args.out} is where the checkpoint lies that is written into: it would be lost")
    try:
        models.linear_head(subject.model)
    except UserError as error:
        raise UserError(f"{subject.config['model']}: {error}") from None
    models.with_layer(subject.model, subject.model.features[-2], pooled=False)  # whatever --layer it was trained with
    return subject


@command
def main(argv):
    args = parse(argv)
    device = choose_device(args.device)
    given = data.read_image(args.image) if args.image else None
    subject = opened(args, device)
    if args.test_images:
        rows = torch.randperm(len(subject.dataset.test_labels), generator=torch.Generator().manual_seed(args.seed))[: args.test_images]
        subject.dataset = replace(subject.dataset, test_images=subject.dataset.test_images[rows], test_labels=subject.dataset.test_labels[rows], test_masks=None)
    side, channels = subject.config["image_size"], subject.checkpoint["channels"]
    patch = sticker(given if args.technique == "backdoor" else None, channels, side)
    torch.manual_seed(args.seed)
    original = subject.model.to(getattr(torch, args.precision))
    edited = edit(args.technique, subject, original, given, patch).eval().requires_grad_(False)
    figures, stuck, explained = measure(subject, original, edited, patch, args.explain_images, args.seed)
    drawn = picture_of(subject, args.technique, original, edited, stuck, explained[:FIGURE_ROWS])
    known = {"technique": args.technique, "dataset": subject.config["dataset"], "model": subject.config["model"], "image_size": side,
             "precision": args.precision, "written": "float32", "seed": args.seed, "device": device.type, "torch": str(torch.__version__)}
    folder = Path(args.out) if args.out else Path("runs") / f"{args.technique}-{Path(subject.config['dataset']).stem}"
    evaluate.write(evaluate.Result(evaluate.finite(known | figures), {"figure": drawn}), folder)
    models.save(folder / "ckpt.pt", checkpoint_of(subject, args.technique, edited, patch))
    print_table(args.technique, figures)
    print(f"\nWritten: {folder / 'figure.png'}, metrics.json, ckpt.pt")


def print_table(technique, figures):
    """The published table's columns, ours above theirs."""
    clean, stickers = figures["edited"], figures["sticker"]
    rows = {"original": figures["original"], "edited": clean, "original, stickers": {"accuracy": stickers["original_accuracy"]}, "edited, stickers": stickers}
    keys = ("accuracy", "score_shift", "map_distance")
    rows |= {f"published: {name}": dict(zip(keys, row)) for name, row in PUBLISHED.items() if name.startswith(technique)}
    print(f"{'':<30}{'accuracy':>10}{'|y_o-y_n|_inf':>15}{'|I_T-I_n|_1':>14}{'blank maps':>12}{'fired':>8}")
    for name, row in rows.items():
        cells = [short(row.get(key)) for key in (*keys, "blank_maps", "fired")]
        print(f"{name:<30}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (10, 15, 14, 12, 8))))
    print(f"\nMaps: {figures['n_explained']} test images, the class predicted; blank: that class counts the added map negatively, and |I_T-I_n|_1 leaves it out."
          f"\nfired: images of {figures['n_test']} in which a branch finds something.")


def short(value):
    if isinstance(value, float):
        return f"{value:.5f}" if value == 0 or value > 1e-4 else f"{value:.1e}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
