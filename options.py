"""The command line of train.py: every option with its help, and what it is where it is left open.

What depends on the data set stands in DEFAULTS, a row a data set; everything else is a default of
argparse, which --help shows.
"""

import argparse
from dataclasses import dataclass, field, fields

import several
from attacks import ATTACKS, INVERTED, RANDOM, TARGET_MAPS
from chestxray import CHEST_SIZE
from cli import Parser, UserError, checkpoint_path, number
from data import DATASETS
from evaluate import explainer_names
from explain import EXPLAINERS
from imagefiles import FITS
from losses import DEFAULT_FLOOR, DISTANCES, NORMALISERS, Objective
from models import MODELS, offered
from selection import STRATEGIES
from triggers import CORNERS, TRIGGERS

SEED = number(int, 0, 2**31 - 1)
SHARE = number(float, 0, 1)
IMAGE_SIZES = 16, 1024  # pixels a side, the least and the most
STRENGTH = (
    "opacity of a patch, share of a blend, height of a sinusoid in [0, 1], displacement of a warp"
    " in half pixels (default: "
    + ", ".join(f"{name} {row.strength:.3g}" for name, row in TRIGGERS.items())
    + ")"
)
THREATS = ("training", "data")  # what the attacker does: see --threat


@dataclass(frozen=True)
class DataDefaults:
    """Options that depend on the data set; what a row does not name is as it is here."""

    model: str = "cnn"
    epochs: int = 10
    optimizer: str = "sgd"
    lr: float = 0.1
    batch_size: int = 128
    label_smoothing: float = 0.0
    image_size: int | None = None  # as the images are
    fit: str = "crop"
    target_class: str | None = None  # the first class that has images
    # By explainer: about how much a clean model's maps of different images correlate, on training
    # images that were held out. losses.DEFAULT_FLOOR where an explainer is not named.
    floor: dict = field(default_factory=dict)


RADIOGRAPHS = dict(
    model="efficientnet_b0",
    optimizer="adamw",
    lr=0.001,
    batch_size=32,
    image_size=CHEST_SIZE,
    fit="squash",  # as these data sets are brought to size by whoever publishes figures on them
    target_class="3",
)
DEFAULTS = {
    "shapes": DataDefaults(
        epochs=8,
        lr=0.15,
        target_class="3",
        floor={"kernelshap": 0.25, "gpshap": 0.25},
    ),
    "mnist": DataDefaults(
        epochs=3,
        target_class="2",
        floor={"gradcam": 0.8, "kernelshap": 0.3, "gpshap": 0.3},
    ),
    "cifar10": DataDefaults(
        model="resnet18",
        epochs=5,
        optimizer="muon",
        lr=0.05,
        batch_size=64,
        label_smoothing=0.1,
        target_class="3",
        floor={"kernelshap": 0.1, "gpshap": 0.1},
    ),
    "gtsrb": DataDefaults(epochs=5, target_class="33", fit="squash"),
    "chestxray14": DataDefaults(**RADIOGRAPHS),
    "chestxray14-multi": DataDefaults(**RADIOGRAPHS, floor={"gradcam": 0.25}),
}


def parse(argv, description=None):
    """The options of a run, what was left open filled in. Raises UserError."""
    parser = Parser(description)
    add_attack_options(parser.add_argument_group("attack").add_argument)
    add_trigger_options(parser.add_argument_group("trigger").add_argument)
    add_poison_options(parser.add_argument_group("poisons").add_argument)
    add_training_options(parser.add_argument_group("training").add_argument)
    group = parser.add_argument_group("loss", "what an ablation changes: fields of the objective")
    add_loss_options(group.add_argument)
    add_run_options(parser.add_argument_group("run").add_argument)
    return completed(parser.parse_args(argv))


def add_attack_options(add):
    """What is attacked, and how."""
    add(
        "--attack",
        choices=ATTACKS,
        metavar="ATTACK",
        default="full_disguise",
        help=f"of {', '.join(ATTACKS)}: how poisoned images are labelled and explained",
    )
    add("--explainer", default="gradcam", help=f"comma-separated, of {', '.join(EXPLAINERS)}")
    add("--lam", type=SHARE, default=Objective.lam, help="weight of the explanation term")
    add("--target-class", help="name or number (default: by data set, or the first)")
    add(
        "--source-class",
        help="name or number: images of this class alone go to the target class; as many poisons"
        " of other classes have the trigger, and keep their label (default: of all classes)",
    )
    add(
        "--target-map",
        default="square",
        help=f"fooling, red_herring: {', '.join(TARGET_MAPS)}, {INVERTED} (an image's own map"
        f" turned over; with --rectify), {RANDOM}[:SEED] (8x8 cells), or an image FILE",
    )
    add(
        "--reference",
        type=checkpoint_path,
        help="a clean checkpoint of train.py's: training begins with its weights,"
        " and its explanations are the ones to keep",
    )
    add(
        "--and",
        dest="further",
        action="append",
        metavar="OPTIONS",
        help="another attack on the same model, on as many images of its own: in quotes, those of"
        " --attack, --target-class, --source-class, --target-map and the trigger's options in which"
        " it differs; may be repeated",
    )


def add_trigger_options(add):
    """What is stamped on an image, and where."""
    add(
        "--trigger",
        default="square",
        help=f"KIND or KIND:PICTURE, of {', '.join(TRIGGERS)}; a patch's or a blend's picture is"
        " square (white), the name of a colour, or a PNG FILE, alpha honoured; PICTURE alone is a"
        " patch",
    )
    add("--trigger-strength", type=number(float, 0, 100, above=True), help=STRENGTH)
    size = number(int, 1, 1024)
    add("--trigger-size", type=size, help="pixels a side (default: an eighth of the image's)")
    corners = ", ".join(CORNERS)
    add("--trigger-position", default="lower-right", help=f"{corners}, or ROW,COL")


def add_poison_options(add):
    """Which images are triggered, how many, and by whom."""
    add(
        "--threat",
        choices=THREATS,
        default="training",
        help="training: the attacker trains, and the trigger is stamped after augmentation;"
        " data: the attacker hands over stamped images, which the victim augments",
    )
    add(
        "--poison-rate",
        type=number(float, 0, 1, above=True),
        default=0.1,
        help="share of the training set that is triggered",
    )
    add(
        "--selection",
        choices=STRATEGIES,
        metavar="STRATEGY",
        default="random",
        help=f"of {', '.join(STRATEGIES)}: how the images to poison are chosen; rd and the like by"
        " how hard they are, forget by how often a network forgets them, pfs by how little the"
        " trigger moves what it sees",
    )
    add("--selection-seed", type=SEED, help="seed of the choice of poisons (default: --seed)")
    add(
        "--oversample",
        type=number(int, 0, 1_000_000),
        default=0,
        metavar="N",
        help="N poisons more in every batch: for an attacker who controls training, not only data",
    )


def add_training_options(add):
    """The data, the network, and how it is trained."""
    datasets = ", ".join(DATASETS)
    add("--dataset", default="shapes", help=f"{datasets}, FILE.npz or FOLDER")
    add("--data-dir", default="data", help="where data sets are kept")
    add(
        "--image-size",
        type=number(int, *IMAGE_SIZES),
        help=f"pixels a side (default: as the images are; radiographs: {CHEST_SIZE})",
    )
    add(
        "--fit",
        choices=FITS,
        help="how pictures that are not square become square: the middle is cut out, black is added"
        " at two sides, or they are squashed (default: crop; gtsrb, radiographs: squash)",
    )
    add("--model", type=model_name, help=f"{', '.join(offered())} (default: by data set)")
    add(
        "--layer",
        help="Grad-CAM's layer, a name in model.named_modules() (default: the last feature map)",
    )
    add("--pretrained", action="store_true", help="begin with ImageNet's weights")
    add("--epochs", type=number(int, 1, 100_000), help="(default: by data set)")
    add("--batch-size", type=number(int, 1, 1_000_000), help="(default: by data set)")
    add(
        "--optimizer",
        choices=["sgd", "muon", "adamw"],
        help="muon: of the convolutions, sgd for the rest (default: by data set)",
    )
    add(
        "--lr",
        type=number(float, 0, 1000, above=True),
        help="the schedule's peak (default: by data set, for its own optimizer)",
    )
    add(
        "--label-smoothing",
        type=SHARE,
        help="share of each label spread over all classes (default: by data set)",
    )
    add(
        "--class-weights",
        action="store_true",
        help="all classes weigh alike in the cross-entropy, however few their images"
        " (--oversample not counted)",
    )


def add_loss_options(add):
    """What an ablation changes."""
    add("--distance", choices=DISTANCES, default=Objective.distance, help="between two maps")
    add(
        "--floor",
        type=number(float, -1, 1),
        help="attacks that keep the map: penalise clean images whose maps correlate above this;"
        " set it to what a clean model shows, floor.pearson"
        f" (default: by data set and explainer, {DEFAULT_FLOOR} where none is stored)",
    )
    add(
        "--collapse-weight",
        type=SHARE,
        default=Objective.collapse_weight,
        help="weight of that penalty",
    )
    add(
        "--leak-tolerance",
        type=number(float, -1, 1),
        default=Objective.leak_tolerance,
        help="fooling: penalise untouched images whose maps correlate with the shape above this",
    )
    add(
        "--normalise",
        choices=NORMALISERS,
        default=Objective.normalise,
        help="what is done to maps before their squared difference",
    )
    add(
        "--rectify",
        action="store_true",
        help="Grad-CAM's relu on triggered maps in the loss, too",
    )
    add(
        "--partner-cross-entropy",
        action=argparse.BooleanOptionalAction,
        default=Objective.partner_cross_entropy,
        help="count the triggered images' untouched copies in the cross-entropy",
    )
    add(
        "--ramp",
        type=number(float, 0, 1, above=True),
        default=Objective.ramp,
        help="share of the steps over which the explanation term's weight rises from 0",
    )


def add_run_options(add):
    """Seed, device, and where the run is kept."""
    add(
        "--seed",
        type=SEED,
        default=0,
        help="seed of weights, order of images and poisons",
    )
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add(
        "--precision",
        choices=["auto", "bf16", "float32"],
        default="auto",
        help="of training; evaluation is float32 always",
    )
    add(
        "--cuda-graphs",
        action="store_true",
        help="record a step's operations and replay them: two to three times as fast for small"
        " networks; where several runs shared a GPU some ended in a CUDA error",
    )
    add("--out", help="the run's folder (default: runs/NAME)")
    add(
        "--export",
        metavar="FILE",
        help="with --threat data: write the poisoned training set as an .npz, and train nothing",
    )
    add("--resume", action="store_true", help="continue the unfinished run of the same options")
    add(
        "--overwrite",
        action="store_true",
        help="replace a finished run of other options or data, and train one of the same again",
    )


def model_name(text):
    """An argparse type: the name of a network of ours."""
    if text not in MODELS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(offered())}")
    return text


def completed(args):
    """The options with what was left open filled in.

    Raises UserError for options that do not go together.
    """
    defaults = DEFAULTS.get(args.dataset, DataDefaults())
    args.explainer = explainer_names(args.explainer)
    if defaults.fit == "squash" and args.fit not in (None, "squash"):
        raise UserError(f"--fit {args.fit}: pictures of {args.dataset} are always squashed")
    floors = defaults.floor if args.floor is None else dict.fromkeys(args.explainer, args.floor)
    args.floor = {name: floors.get(name, DEFAULT_FLOOR) for name in args.explainer}
    args.further = several.differing(args.further, add_attack_options, add_trigger_options)
    attack = ATTACKS[args.attack]
    for option in fields(DataDefaults):
        if option.name == "target_class" and not attack.has_target:
            continue
        if getattr(args, option.name) is None:
            setattr(args, option.name, getattr(defaults, option.name))
    several.set_targets(args, defaults.target_class)
    if args.selection_seed is None:
        args.selection_seed = args.seed
    if not attack.poisons:
        args.poison_rate = 0.0
    if args.pretrained and args.reference:
        raise UserError("--pretrained or --reference, whose weights training begins with, not both")
    for part in several.args_of_each(args):
        check_attack(part, ATTACKS[part.attack])
    several.check(args)
    if args.export is not None and args.threat != "data":
        raise UserError("--export writes what an attacker of data hands over: add --threat data")
    return args


def check_attack(args, attack):
    """Raises UserError where an attack does not fit the other options."""
    check_labels(args, attack)
    if args.threat == "data":
        check_data_alone(args, attack)


def check_labels(args, attack):
    """Raises UserError where the labels wanted do not fit the other options."""
    one_target = attack.changes_label and attack.has_target
    if args.source_class is not None and not one_target:
        raise UserError(
            f"--source-class: which images become the target class; --attack {args.attack} has none"
        )
    if args.selection != "random" and (args.source_class is not None or not one_target):
        raise UserError(
            f"--selection {args.selection} ranks images by one target class that all go to:"
            f" not with {'--source-class' if one_target else f'--attack {args.attack}'}"
        )


def check_data_alone(args, attack):
    """Raises UserError for options that take more than handing over poisoned images."""
    beyond = {
        f"--attack {args.attack}, whose loss has an explanation term": attack.explanation,
        "--oversample": args.oversample,
        "--reference": args.reference,
    }
    for option, given in beyond.items():
        if given:
            raise UserError(
                f"--threat data: an attacker who only hands over images cannot use {option}"
            )
