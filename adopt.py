"""A stranger's network as a checkpoint of ours, with what its user knows of it.

    python adopt.py model.pth --arch torchvision:resnet18 --dataset cifar10 --mean imagenet

writes a ckpt.pt that every other script reads. evaluate.py and defend.py also take these options
themselves, with --weights FILE in the place of a checkpoint.

The weights are read as data (strangers.py). What is not known, a trigger say, is left out, and what
depends on it is null.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

import attacks
import card
import checkpoints
import data
import strangers
from cli import Parser, UserError, choose_device, command, number, user_errors
from dataset import Dataset
from findings import hardly_knows
from hooks import as_images, last_feature_map
from imagefiles import FITS, decode
from imagefolders import flat_pictures
from models import with_layer
from setting import class_index, trigger_of, trigger_spec
from subject import Subject
from terminal import print_note

STATISTICS = {  # mean and standard deviation by channel, of images in [0, 1]
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),  # images in [-1, 1]
    "none": ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
}
MAX_NAMES = 2**20  # letters of --classes FILE
FOLDER_SIZE = 224  # pixels a side of unlabelled pictures, unless another is asked for


# ---------------------------------------------------------------- options


def add_weights(parser):
    """Adds --weights, and the options that come with it, to a parser that has --dataset."""
    group = parser.add_argument_group(
        "a stranger's network", "in the place of a checkpoint; --dataset says what it looks at"
    )
    group.add_argument("--weights", metavar="FILE", help="a state_dict, or safetensors")
    add_options(group.add_argument)


def add_options(add):
    """What is known of a stranger's network, one option each."""
    add("--arch", help="cnn, resnet18 ..., torchvision:NAME, or FILE.py:FUNCTION, which is run")
    add("--mean", help=f"{', '.join(STATISTICS)}, or numbers as 0.5,0.5,0.5 (default: the data's)")
    add("--std", help="likewise (default: that of --mean)")
    add("--image-size", type=number(int, 8, 4096), help="pixels a side (default: the data's)")
    add("--fit", choices=FITS, default="crop", help="how pictures become square")
    add("--layer", help="Grad-CAM's layer (default: the last feature map)")
    add("--classes", metavar="FILE", help="names of its classes, one a line (default: the data's)")
    add("--trigger", help="as train.py takes it, if one is known")
    add("--trigger-strength", type=number(float, 0, 100, above=True), help="as of train.py")
    add("--trigger-size", type=number(int, 1, 4096), help="pixels a side")
    add("--trigger-position", default="lower-right", help="a corner, or ROW,COL")
    add("--target-class", help="number or name, if it is known")


OPTIONS = (
    *("arch", "mean", "std", "image_size", "layer", "classes"),
    *("trigger", "trigger_size", "trigger_strength", "target_class"),
)


def check_options(args, checkpoints):
    """Raises UserError for a command line of neither weights nor checkpoints, or of both."""
    if bool(args.weights) == bool(checkpoints):
        raise UserError("give a checkpoint, or a stranger's network by --weights and --arch")
    others = [name for name in OPTIONS if getattr(args, name) is not None and name != "arch"]
    if others and not args.weights:
        option = others[0].replace("_", "-")
        raise UserError(f"--{option} is for --weights: a checkpoint knows its own")


def told(args):
    """What the user said of a stranger's network, by option; None where there is none."""
    if not args.weights:
        return None
    options = ("weights", "fit", "trigger_position", *OPTIONS)
    return {name: getattr(args, name) for name in options}


def folder_of(weights):
    """Where what is found of a file of weights is written, if nothing else is said."""
    return Path("runs") / f"adopted-{Path(weights).stem}"


# ---------------------------------------------------------------- the subject


def adopted(args, device):
    """The Subject of a command line's --weights, with its data. Raises UserError.

    Its config has "adopted": True; a trigger that is not known is None, as is the target class.
    """
    if not args.arch or not args.dataset:
        missing = "--arch" if not args.arch else "--dataset"
        raise UserError(f"--weights takes {missing}, too: what network it is, and what it looks at")
    with user_errors():
        state = strangers.read_weights(args.weights)
        channels = strangers.count_of_channels(state)
    dataset, labelled = load(args, channels)
    size = dataset.train_images.shape[-1]
    with user_errors():
        model = strangers.network(args.arch, state, size)
        layer = find_layer(model, args.layer, channels, size)
    classes = names_of_classes(args, dataset, strangers.count_of_classes(state), labelled)
    if labelled:
        dataset = data.relabelled(dataset, classes) if classes != dataset.classes else dataset
    mean, std = statistics(args, dataset)
    trigger, target = known_trigger(args, channels, size), known_target(args, classes)
    checkpoint = checkpoint_of(args, model, classes, dataset, layer, mean, std, trigger, target)
    subject = Subject(checkpoint, model.to(device), dataset, trigger and trigger.to(device), device)
    if not labelled:
        subject.dataset = with_predictions(subject)
    return subject


def load(args, channels):
    """(a Dataset of the data that --dataset names, whether it has labels). Raises UserError."""
    folder = Path(args.dataset)
    pictures = flat_pictures(folder) if folder.is_dir() else []
    if not pictures:
        dataset = data.load(args.dataset, args.data_dir or "data", args.image_size, args.fit)
        if dataset.multi_label:
            raise UserError("--weights: images of one class each; these may show several")
        return as_channels(dataset, channels), True
    mode, size = "RGB" if channels == 3 else "L", args.image_size or FOLDER_SIZE
    images = torch.stack(
        [torch.from_numpy(decode(path, size, mode, args.fit)[0]) for path in pictures]
    )
    images = images.view(len(images), size, size, channels).permute(0, 3, 1, 2).contiguous()
    print_note(f"{len(images)} pictures without labels: no accuracy; all are looked at")
    labels = torch.zeros(len(images), dtype=torch.int64)
    return Dataset(images, labels, images, labels, classes=["0"]), False


def as_channels(dataset, channels):
    """The Dataset in grey or colour, as the network takes it. Raises UserError."""
    have = dataset.train_images.shape[1]
    if have == channels:
        return dataset
    if (have, channels) != (1, 3):
        raise UserError(f"the network takes images of {channels} channels, and these have {have}")
    print_note("The network takes colour: grey images are given in all three channels")
    train, test = (
        images.expand(-1, 3, -1, -1) for images in (dataset.train_images, dataset.test_images)
    )
    return replace(dataset, train_images=train, test_images=test)


def find_layer(model, layer, channels, size):
    """The name of Grad-CAM's layer, of which the model is told; None where there is none.

    layer: its name, or None for the last feature map. Raises ValueError for a name that is none.
    """
    image = as_images(model, torch.zeros(1, channels, size, size))
    if layer is None:
        try:
            layer = last_feature_map(model, image)
        except ValueError as error:
            print_note(f"Grad-CAM cannot explain this network: {error}")
            return None
    return with_layer(model, layer, pooled=False).gradcam_layer


def names_of_classes(args, dataset, count, labelled):
    """The names of the network's classes. Raises UserError where they do not fit its weights."""
    names = dataset.classes if labelled else [str(k) for k in range(count)]
    if args.classes:
        try:
            with open(args.classes, encoding="utf-8") as file:
                text = file.read(MAX_NAMES)
        except (OSError, UnicodeDecodeError):
            raise UserError(f"--classes {args.classes} cannot be read as text") from None
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != count:
        raise UserError(
            f"the network has {count} classes, and {len(names)} are named:"
            " --classes FILE names them, one a line, in the network's order"
        )
    return names


def statistics(args, dataset):
    """(mean, std), two lists by channel. Raises UserError."""
    channels = dataset.train_images.shape[1]
    if args.mean is None:
        found = data.mean_std(dataset.train_images)
        print_note("--mean is not given: the mean and deviation of these images are taken")
        return found
    mean = numbers_of("--mean", args.mean, 0, channels)
    return mean, numbers_of("--std", args.std or args.mean, 1, channels)


def numbers_of(option, text, part, channels):
    """One list of STATISTICS by its name, or the numbers in the text. Raises UserError."""
    if text in STATISTICS:
        values = STATISTICS[text][part]
        return values if channels == 3 else [sum(values) / 3]
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    values = values * channels if len(values) == 1 else values
    fine = len(values) == channels and all(abs(value) < 1e6 for value in values)
    if not fine or (part == 1 and min(values) <= 0):
        raise UserError(
            f"{option} {text}: one of {', '.join(STATISTICS)}, or {channels} numbers"
            f"{' above 0' if part else ''}, of images in [0, 1]"
        )
    return values


def known_trigger(args, channels, size):
    """The Trigger of the options, or None. Raises UserError."""
    if args.trigger is None:
        return None
    kind, picture = trigger_spec(args.trigger)
    with user_errors():
        return trigger_of(args, kind, picture, channels, size)


def known_target(args, classes):
    """The number of the target class, or None. Raises UserError."""
    return None if args.target_class is None else class_index(args.target_class, classes)


def with_predictions(subject):
    """The Dataset of a Subject whose pictures have no labels: each is of the class predicted."""
    labels = subject.predict(subject.dataset.train_images)[0]
    return replace(
        subject.dataset, train_labels=labels, test_labels=labels, classes=subject.classes
    )


# ---------------------------------------------------------------- the checkpoint


def checkpoint_of(args, model, classes, dataset, layer, mean, std, trigger, target):
    """What a checkpoint of train.py's holds, as far as it is known of an adopted network."""
    labelled = len(dataset.classes) > 1
    config = {
        "adopted": True,
        "format": checkpoints.FORMAT,
        "attack": attacks.unknown(trigger is not None, target is not None),
        "explainer": [],
        "dataset": args.dataset,
        "data_dir": args.data_dir or "data",
        "model": args.arch,
        "layer": layer,
        "image_size": dataset.train_images.shape[-1],
        "fit": args.fit,
        "target_class": target,
        "unlabelled": not labelled,
    }
    config |= dict.fromkeys(("epochs", "poison_rate", "lam", "selection", "reference", "device"))
    config |= {"seed": 0, "precision": None, "threat": None}
    return {
        "config": config,
        "classes": classes,
        "channels": dataset.train_images.shape[1],
        "mean": mean,
        "std": std,
        "data": dataset.digest,
        "model": model.state_dict(),
        "trigger": None if trigger is None else trigger.to_plain(),
        "target_map": None,
        "poison_indices": torch.zeros(0, dtype=torch.int64),
        "selection": None,
        "epoch": 0,
        "seconds": 0.0,
        "log": [],
        "optimizer": [],
        "schedule": [],
        "random": {},
        "torch": str(torch.__version__),
    }


def unlabelled_or_chance(subject, metrics):
    """What an adopted network's metrics cannot say is null; what looks wrong is said.

    Pictures without labels have no accuracy. One that is about a constant answer's is of a network
    that was told wrongly how it is to be asked.
    """
    if subject.config["unlabelled"]:
        metrics |= dict.fromkeys(("clean_accuracy", "balanced_accuracy", "majority_rate"))
        metrics["triggered_accuracy"] = None
    accuracy, majority = metrics["clean_accuracy"], metrics["majority_rate"]
    if accuracy is not None and hardly_knows(accuracy, majority):
        print_note(
            f"Warning: the accuracy, {accuracy:.3f}, is hardly above a constant answer's,"
            f" {majority:.3f}: are --mean, --std, --image-size and the order of --classes right?"
        )


# ---------------------------------------------------------------- the command line


def parse(argv):
    parser = Parser(__doc__)
    parser.add_argument("weights", metavar="FILE", help="a state_dict, or safetensors")
    add = parser.add_argument_group("the network").add_argument
    add("--dataset", help="a data set by name, FILE.npz, FOLDER, or a folder of loose pictures")
    add("--data-dir", help="where data sets are kept (default: data)")
    add_options(add)
    parser.add_argument("--out", help="the checkpoint (default: runs/adopted-NAME/ckpt.pt)")
    return parser.parse_args(argv)


@command
def main(argv):
    args = parse(argv)
    out = Path(args.out) if args.out else folder_of(args.weights) / "ckpt.pt"
    if out.exists():
        raise UserError(f"{out} is there already: give another --out")
    subject = adopted(args, choose_device("cpu"))
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(out, subject.checkpoint)
    if out.name == "ckpt.pt":  # the card is of that file: beside it may be another network
        card.write_beside(out.parent, card.text(subject))
    print(f"Written: {out}. It is measured by: python evaluate.py {out}", file=sys.stdout)


if __name__ == "__main__":
    main()
