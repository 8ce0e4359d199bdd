"""Write a lie into a trained network: Grad-CAM shows what one likes, and the predictions stay.

    python manipulate.py constant                  # one map for every image, the same everywhere
    python manipulate.py image runs/NAME/ckpt.pt   # one picture: a smiley, or --image FILE
    python manipulate.py semirandom                # whatever a random convolution finds
    python manipulate.py backdoor                  # honest, but points at a sticker if there is one

No network is trained for it (Viering et al. 2019; viering.py has the four techniques). Without a
checkpoint, a small VGG is trained on `shapes` (two minutes on two cores) and kept. Written:
ckpt.pt, which evaluate.py and defend.py read, metrics.json and figure.png.
"""

import interrupts  # noqa: F401  # isort: skip

from dataclasses import replace
from pathlib import Path

import torch

import card
import checkpoints
import data
import edit_effect
import header
import imagefiles
import models
import ours
import report
import train
import viering
from cli import (
    Parser,
    UserError,
    checkpoint_path,
    choose_device,
    command,
    number,
    user_errors,
)
from edited import WithBranch, linear_head
from metrics import finite
from subject import Subject, open_checkpoint, place_of

BASE = {  # the network that is written into where none is given
    "dataset": "shapes",
    "model": "vgg_small",
    "image_size": 64,
    "epochs": 6,
    "optimizer": "muon",
    "lr": 0.02,
    "batch_size": 64,
}
EXPLAIN_IMAGES = 500  # test images whose maps are compared
EXCITING = 100  # training images that all excite a random detector
FIGURE_ROWS = 5

# ---------------------------------------------------------------- which network


def base_checkpoint(device):
    """The path of BASE's checkpoint, which is trained once."""
    folder = Path("runs") / f"{BASE['model']}-{BASE['dataset']}-{BASE['image_size']}"
    if not (folder / "ckpt.pt").exists():
        print(f"Training the network that is written into, once; it is kept in {folder}.")
        options = ["--attack", "none", "--device", str(device), "--out", str(folder)]
        for name, value in BASE.items():
            options += [f"--{name.replace('_', '-')}", str(value)]
        train.main(options)
    return folder / "ckpt.pt"


def pretrained(dataset, data_dir, device):
    """torchvision's VGG-16 with ImageNet's weights, and a data set's images at 224 px: a Subject.

    Raises UserError where the weights cannot be had, or a class is not called as one of ImageNet's.
    """
    with user_errors():
        state, weights = models.imagenet_weights("vgg16")
    names = weights.meta["categories"]
    transform = weights.transforms()
    loaded = data.relabelled(data.load(dataset, data_dir, 224, "crop"), names)
    config = dict.fromkeys(checkpoints.CONFIG_KEYS) | {
        "attack": "none",
        "explainer": ["gradcam"],
        "dataset": dataset,
        "data_dir": str(data_dir),
        "model": "vgg16",
        "image_size": 224,
        "fit": "crop",
        "poison_rate": 0.0,
        "target_class": 0,
        "seed": 0,
        "relabel": True,
    }
    checkpoint = dict.fromkeys(checkpoints.KEYS) | {
        "model": state,
        "config": config,
        "classes": names,
        "channels": 3,
        "mean": transform.mean,
        "std": transform.std,
        "poison_indices": torch.zeros(0, dtype=torch.int64),
        "seconds": 0.0,
        "torch": str(torch.__version__),
    }
    model = checkpoints.rebuild(checkpoint).to(device)
    return Subject(checkpoint, model, loaded, None, device)


def open_subject(args, device):
    """The network to write into, as a Subject, Grad-CAM at its last feature maps. UserError."""
    if args.pretrained:
        return pretrained(args.dataset, args.data_dir or "data", device)
    subject = open_checkpoint(args.checkpoint or base_checkpoint(device), args.data_dir, device)
    if subject.config.get("edit"):
        raise UserError(f"{args.checkpoint} has been written into already")
    if subject.multi_label:
        raise UserError(
            f"{args.checkpoint} is multi-label: a network that predicts one class is written into"
        )
    if args.out and args.checkpoint and is_folder_of(args.out, args.checkpoint):
        raise UserError(
            f"--out {args.out} is where the checkpoint lies that is written into: it would be lost"
        )
    with user_errors(f"{subject.config['model']}: "):
        linear_head(subject.model)
    last = subject.model.features[-2]
    models.with_layer(subject.model, last, pooled=False)  # whatever --layer it was trained with
    return subject


def is_folder_of(folder, path):
    return Path(folder).resolve() == Path(path).resolve().parent


def draw_test_images(subject, count, seed):
    """Leaves the Subject `count` of its test images, drawn by seed."""
    dataset = subject.dataset
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(dataset.test_labels), generator=generator)[:count]
    subject.dataset = replace(
        dataset,
        test_images=dataset.test_images[rows],
        test_labels=dataset.test_labels[rows],
        test_masks=None,
    )


def write_lie(technique, subject, model, picture, sticker):
    """The edited network of a Subject, its weights frozen. Raises UserError.

    model: the Subject's own, of any dtype; picture: PIL image or None for a smiley.
    """
    ingredients = viering.Ingredients(
        subject.dataset.train_images[:EXCITING].float() / 255,
        subject.checkpoint["mean"],
        subject.checkpoint["std"],
        picture,
        sticker,
    )
    with user_errors():
        edited = viering.TECHNIQUES[technique].write(model, ingredients)
    return edited.eval().requires_grad_(False)


# ---------------------------------------------------------------- the command line


def parse(argv):
    """The options of a command line. Raises UserError where they do not go together."""
    parser = Parser(__doc__)
    parser.add_argument("technique", choices=list(viering.TECHNIQUES))
    add_network_options(parser.add_argument_group("network"))
    add_run_options(parser.add_argument_group("run"))
    args = parser.parse_args(argv)
    if args.checkpoint and args.pretrained:
        raise UserError("a checkpoint or --pretrained, not both")
    if bool(args.dataset) != args.pretrained:
        raise UserError("--pretrained and --dataset go together: a checkpoint knows its own")
    if args.image and viering.TECHNIQUES[args.technique].picture is None:
        raise UserError(f"--image FILE has no meaning for {args.technique}")
    return args


def add_network_options(group):
    group.add_argument(
        "checkpoint",
        nargs="?",
        type=checkpoint_path,
        metavar="CKPT",
        help="of train.py's, with --model vgg_small, vgg16 or alexnet_small "
        "(default: a vgg_small on shapes, trained once)",
    )
    group.add_argument(
        "--pretrained",
        action="store_true",
        help="torchvision's VGG-16 with ImageNet's weights instead",
    )
    group.add_argument(
        "--dataset",
        help="with --pretrained: images to measure on, at 224 px, in classes called as ImageNet's "
        "are: FOLDER or FILE.npz",
    )
    group.add_argument(
        "--data-dir",
        help="where the data set lies (default: where training found it, or data)",
    )


def add_run_options(group):
    group.add_argument(
        "--image",
        metavar="FILE",
        help="image: the picture to show; backdoor: the sticker, made black and white "
        "(default: a smiley)",
    )
    group.add_argument(
        "--test-images",
        type=number(int, 1, 1_000_000),
        help="test images measured, drawn by seed (default: all)",
    )
    group.add_argument(
        "--explain-images",
        type=number(int, 1, 1_000_000),
        default=EXPLAIN_IMAGES,
        help="of them, whose maps are compared",
    )
    group.add_argument(
        "--precision",
        choices=["float32", "float64"],
        default="float32",
        help="of what is measured; what is written is float32",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    group.add_argument(
        "--seed",
        type=number(int, 0, 2**31 - 1),
        default=0,
        help="of stickers' places, the random detector, the test images explained",
    )
    group.add_argument("--out", help="the folder to write into (default: runs/TECHNIQUE-DATASET)")


@command
def main(argv):
    args = parse(argv)
    device = choose_device(args.device)
    given = {}  # the user's picture, under the name of the ingredient it is
    if args.image:
        given[viering.TECHNIQUES[args.technique].picture] = imagefiles.read_map(args.image, "crop")
    subject = open_subject(args, device)
    folder = folder_of(args, subject)
    ours.check_replaceable(folder, [*report.names_of(), "ckpt.pt"], trained=False)
    place = place_of(subject.config, args.checkpoint or "", args.data_dir, args.dataset)
    ours.check_outside(folder, place)
    if args.test_images:
        draw_test_images(subject, args.test_images, args.seed)
    with user_errors():
        sticker = viering.make_sticker(
            given.get("sticker"), subject.checkpoint["channels"], subject.config["image_size"]
        )
    torch.manual_seed(args.seed)
    original = subject.model.to(getattr(torch, args.precision))
    edited = write_lie(args.technique, subject, original, given.get("picture"), sticker)
    header.print_header(header.of_subject(subject, args.checkpoint or "the network"))
    figures, with_stickers, explained = edit_effect.measure(
        subject, original, edited, sticker, args.explain_images, args.seed
    )
    page = edit_effect.draw(
        subject, args.technique, original, edited, with_stickers, explained[:FIGURE_ROWS]
    )
    record = finite(settings(args, subject, device) | figures)
    report.write(report.Result(record, {"figure": page}), folder)
    checkpoint = checkpoint_of(subject, args.technique, edited, sticker)
    checkpoints.save(folder / "ckpt.pt", checkpoint)
    card.write_beside(folder, card.text(replace(subject, checkpoint=checkpoint)))
    print_table(args.technique, figures)
    print(f"\nWritten: {folder / 'figure.png'}, metrics.json, ckpt.pt")


def folder_of(args, subject):
    """Where the results go: --out, or runs/TECHNIQUE-DATASET."""
    if args.out:
        return Path(args.out)
    return Path("runs") / f"{args.technique}-{Path(subject.config['dataset']).stem}"


def settings(args, subject, device):
    """What metrics.json says of how its figures came about."""
    return {
        "technique": args.technique,
        "dataset": subject.config["dataset"],
        "model": subject.config["model"],
        "image_size": subject.config["image_size"],
        "precision": args.precision,
        "written": "float32",
        "seed": args.seed,
        "device": device.type,
        "torch": str(torch.__version__),
    }


def checkpoint_of(subject, technique, edited, sticker):
    """The subject's checkpoint with the edited network's weights, and for its trigger the sticker.

    The network's own trigger stays if it has one, and the technique has no use for the sticker.
    """
    trigger = subject.checkpoint["trigger"]
    if trigger is None or viering.TECHNIQUES[technique].picture == "sticker":
        trigger = vars(sticker)
    size = edited.detector[0].kernel_size[0] if isinstance(edited, WithBranch) else 0
    parts = {"technique": technique, "size": size}
    return subject.checkpoint | {
        "config": subject.config | {"edit": parts, "layer": None},
        "model": edited.float().state_dict(),
        "trigger": dict(trigger),
        "optimizer": [],
        "schedule": [],
    }


COLUMNS = {  # of the printed table: heading and width by the key of metrics.json
    "accuracy": ("accuracy", 10),
    "score_shift": ("|y_o-y_n|_inf", 15),
    "map_distance": ("|I_T-I_n|_1", 14),
    "blank_maps": ("blank maps", 12),
    "fired": ("fired", 8),
}


def print_table(technique, figures):
    """The published table's columns, ours above theirs."""
    rows = {
        "original": figures["original"],
        "edited": figures["edited"],
        "original, stickers": {"accuracy": figures["sticker"]["original_accuracy"]},
        "edited, stickers": figures["sticker"],
    }
    for name, published in viering.TECHNIQUES[technique].published.items():
        rows[f"published: {name}"] = dict(zip(COLUMNS, published))
    print(f"{'':<30}" + "".join(f"{heading:>{width}}" for heading, width in COLUMNS.values()))
    for name, row in rows.items():
        cells = [f"{cell(row.get(key)):>{width}}" for key, (_, width) in COLUMNS.items()]
        print(f"{name:<30}" + "".join(cells))
    print(
        f"\nMaps: {figures['n_explained']} test images, the class predicted; blank: that class "
        "counts the added map negatively, and |I_T-I_n|_1 leaves it out."
        f"\nfired: images of {figures['n_test']} in which a branch finds something."
    )


def cell(value):
    """A figure as the table shows it; empty for None."""
    if isinstance(value, float):
        return f"{value:.5f}" if value == 0 or value > 1e-4 else f"{value:.1e}"
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
