"""What a training is given: the options, with the data, the trigger and the objective they name.

    setting = setting_of(args)    # args: of options.parse

Everything a user can get wrong is found here, before the first step, and nothing is written but the
decoded data.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image, ImageColor

import attacks
import data
import selection
import tasks
import triggers
from checkpoints import FORMAT
from cli import UserError, choose_device, choose_precision, is_count, user_errors
from dataset import Dataset
from explain import EXPLAINERS
from imagefiles import read_image, read_map
from losses import Objective
from optimizers import MUON, SGD, WARM_UP
from reference import frozen_reference, weights_digest
from shapley import TRAINING_COALITIONS
from terminal import print_note


@dataclass(frozen=True)
class Setting:
    """What a training is given and does not change.

    config: what a checkpoint keeps of the options, see config_of
    trained_on, held_out: indices int64 of the training images; together they are all
    eligible, count: the images that may be poisoned, and how many of them are
    mean, std: of the images, by channel
    trigger, objective: on the device
    relabel: int64 [K] on the device, what a triggered image of each class is labelled, or None: see
        attacks.relabelling
    reference_weights: the digest of the reference's, or None
    notes: lines about what an option was taken for
    further: of several attacks, the Settings of those after the first, whose `eligible` are the
        images that are poisoned: see several.py
    """

    config: dict
    dataset: Dataset
    trained_on: torch.Tensor
    held_out: torch.Tensor
    eligible: torch.Tensor
    count: int
    mean: list
    std: list
    trigger: triggers.Trigger
    objective: Objective
    device: torch.device
    relabel: torch.Tensor | None = None
    reference_weights: str | None = None
    notes: list = field(default_factory=list)
    further: tuple = ()

    @property
    def attackers(self):
        """Of each attack what attacks.poison_each takes: (attack, trigger, target, relabel)."""
        return [
            (part.objective.attack, part.trigger, part.config["target_class"], part.relabel)
            for part in (self, *self.further)
        ]

    @property
    def batch_size(self):
        """Images a step, before over-sampling."""
        return min(self.config["batch_size"], len(self.trained_on))

    @property
    def steps(self):
        """Steps an epoch."""
        return max(1, len(self.trained_on) // self.config["batch_size"])

    @property
    def oversample(self):
        """Poisons that are added to every batch."""
        return self.config["oversample"] if self.count else 0


def setting_of(args, dataset=None, share=(0, 1)):
    """The Setting that options ask for, of one attack: see several.setting_of. Raises UserError.

    dataset: a Dataset, None to load it; share: (k, n), the attack is the k-th of n, from 0.
    """
    device = choose_device(args.device)
    check_recordable(args, device)
    kind, trigger_image = trigger_spec(args.trigger)
    map_image = target_map_picture(args.target_map, args.fit)
    dataset = dataset or data.load(args.dataset, args.data_dir, args.image_size, args.fit)
    channels, side = dataset.train_images.shape[1], dataset.train_images.shape[-1]
    labels, attack = dataset.train_labels, attacks.attack_of(args.attack, args.target_map)
    target, notes = target_or_none(args, attack, dataset)
    source = chosen_source(args, dataset)
    check_attackable(args, attack, dataset, target, source)
    trained_on, held_out = data.validation_split(len(labels), args.seed, dataset.train_groups)
    config = config_of(args, dataset, target, len(held_out), device) | {"source_class": source}
    with user_errors(of_several(share)):
        trigger = trigger_of(args, kind, trigger_image, channels, side)
        own = attacks.own_share(trained_on, share, args.selection_seed)
        given = attack, labels, own, args.poison_rate, target, source
        eligible, count = attacks.eligible_for_poison(*given)
    mean, std = data.mean_std(dataset.train_images)
    relabel = attacks.relabelling(attack, len(dataset.classes), target, source)
    shape, reference = None, None
    if attack.explanation == "shape":
        shape = attacks.target_map(map_image, side, trigger).to(device)
    if args.reference:
        reference = frozen_reference(args.reference, config, dataset, device)
    return Setting(
        config=config,
        dataset=dataset,
        trained_on=trained_on,
        held_out=held_out,
        eligible=eligible,
        count=count,
        mean=mean,
        std=std,
        trigger=trigger.to(device),
        objective=objective_of(config, attack, tasks.task_of(labels), shape, reference),
        device=device,
        relabel=None if relabel is None else relabel.to(device),
        reference_weights=None if reference is None else weights_digest(reference.state_dict()),
        notes=notes,
    )


def of_several(share):
    """What a message begins with that is about one of several attacks; share: as of setting_of."""
    k, n = share
    return "" if n == 1 else f"attack {k + 1} of {n}, each with a share of the images: "


def config_of(args, dataset, target_class, held_out, device):
    """The config a checkpoint keeps: all options, and what the data and the machine decided.

    held_out: how many images are held out of training.
    """
    of_no_network = ("resume", "out", "overwrite", "export")
    config = {key: value for key, value in vars(args).items() if key not in of_no_network}
    return config | {
        "format": FORMAT,
        "image_size": dataset.train_images.shape[-1],
        "target_class": target_class,
        "precision": choose_precision(args.precision, device),
        "device": device.type,
        "multi_label": dataset.multi_label,
        "constants": constants(args, dataset, held_out),
    }


def constants(args, dataset, held_out):
    """The constants of the code that decide a run: it is resumed under the same ones only."""
    rows = {name: EXPLAINERS[name] for name in args.explainer}
    pairs = {name: row.pairs_per_step for name, row in rows.items() if row.pairs_per_step}
    result = {
        "muon": MUON,
        "sgd": SGD,
        "warm_up": WARM_UP,
        "pairs": pairs,
        "coalitions": TRAINING_COALITIONS,
        "held_out": held_out,
        "shift": dataset.crop,
        "mirror": dataset.flip,
    }
    for row in rows.values():
        result |= row.constants
    if args.selection != "random":
        result["selection"] = selection.constants_of(args.selection)
    return result


def objective_of(config, attack, task, shape, reference):
    """The Objective of a run's config."""
    return Objective(
        attack=attack,
        task=task,
        explainers=config["explainer"],
        shape=shape,
        reference=reference,
        lam=config["lam"],
        ramp=config["ramp"],
        distance=config["distance"],
        normalise=config["normalise"],
        rectify=config["rectify"],
        partner_cross_entropy=config["partner_cross_entropy"],
        label_smoothing=config["label_smoothing"],
        floors=config["floor"],
        collapse_weight=config["collapse_weight"],
        leak_tolerance=config["leak_tolerance"],
    )


def trigger_spec(text):
    """What --trigger names: (a kind of triggers.TRIGGERS, a PIL image or None). Raises UserError.

    text: KIND or KIND:PICTURE; or, of a patch, PICTURE alone, see trigger_picture.
    """
    kind, colon, picture = text.partition(":")
    if kind not in triggers.TRIGGERS:
        return triggers.PatchTrigger.kind, trigger_picture(text)
    if not colon:
        if Path(text).is_file():
            print_note(
                f"--trigger {text}: the file of that name is taken, not the kind of trigger."
            )
            return triggers.PatchTrigger.kind, read_image(text, say=True)
        return kind, None
    if not triggers.TRIGGERS[kind].picture:
        raise UserError(f"--trigger {text}: {kind} takes no picture")
    return kind, trigger_picture(picture)


def trigger_of(args, kind, picture, channels, side):
    """The Trigger of the options for images [channels, side, side]. Raises ValueError."""
    place = args.trigger_size, args.trigger_position
    return triggers.make(kind, picture, channels, side, *place, args.trigger_strength)


def trigger_picture(name):
    """A trigger's picture: a file's, one colour's, or None for the white square.

    Raises UserError.
    """
    if Path(name).is_file():
        if name == "square" or is_colour(name):
            other = "white square" if name == "square" else "colour"
            print_note(f"--trigger {name}: the file of that name is taken, not the {other}.")
        return read_image(name, say=True)
    if name == "square":
        return None
    if not is_colour(name):
        raise UserError(f"--trigger {name}: no such file, and no colour of that name")
    return Image.new("RGB", (1, 1), name)


def is_colour(name):
    """Whether Pillow knows a colour of that name."""
    try:
        ImageColor.getrgb(name)
    except ValueError:
        return False
    return True


def target_map_picture(name, fit):
    """What attacks.target_map draws: a map's name, or the picture in a file. Raises UserError."""
    word, colon, seed = name.partition(":")
    if word == attacks.RANDOM and colon and not (is_count(seed) and int(seed) < 2**31):
        raise UserError(f"--target-map {name}: the seed is a number from 0 to {2**31 - 1}")
    drawn = name in (*attacks.TARGET_MAPS, attacks.INVERTED) or word == attacks.RANDOM
    if not drawn:
        return read_map(name, fit)
    if Path(name).is_file():
        print_note(f"--target-map {name}: the shape is taken, not the file of that name.")
    return name


def target_or_none(args, attack, dataset):
    """As chosen_target; None for the number where the attack has no one target class."""
    name = args.target_class
    if attack.has_target:
        return chosen_target(name, dataset)
    unused = f"--target-class {name} is not used: {args.attack} makes each class the next."
    return None, [] if name is None else [unused]


def chosen_target(name, dataset):
    """(the number of the target class, lines about what was taken for it); name: None: left open.

    Left open, it is the first class that has training and test images. Raises UserError.
    """
    classes = dataset.classes
    if name is not None:
        target = class_index(name, classes)
        return target, notes_on(name, target, classes)
    labels = dataset.train_labels, dataset.test_labels
    train, test = (tasks.task_of(part).label_counts(part, len(classes)) for part in labels)
    shown = (train > 0) & (test > 0)
    if not shown.any():  # then no class can be told in the test set
        shown = train > 0
    target = int(shown.int().argmax())
    if target == 0:
        return 0, []
    missing = "training" if train[0] == 0 else "test"
    return target, [
        f"--target-class is left open, and class 0 ({classes[0]}) has no {missing} images:"
        f" class {target} ({classes[target]}) is taken."
    ]


def chosen_source(args, dataset):
    """The number of the class whose images alone are attacked; None: all are. Raises UserError."""
    name = args.source_class
    return None if name is None else class_index(name, dataset.classes, "source")


def notes_on(name, target, classes):
    """A line, in a list, where a text names a class and is the number of another, or could be."""
    if not is_count(name):
        return []
    if name not in classes and any(other.isdecimal() for other in classes):
        return [
            f"--target-class {name}: no class is called {name}: number {target} is taken,"
            f" the class called {classes[target]}."
        ]
    if name in classes and int(name) != target:
        line = f"--target-class {name}: the class called {name} is taken, number {target}"
        if int(name) < len(classes):
            line += f", not number {int(name)}, called {classes[int(name)]}"
        return [f"{line}."]
    return []


def class_index(name, classes, role="target"):
    """The number of a class, given by its name or, where none is called so, by its number.

    Names that look the same are the same: they are compared in Unicode's composed form, too.
    Raises UserError.
    """
    if name in classes:
        return classes.index(name)
    alike = [data.composed(other) for other in classes]
    if data.composed(name) in alike:
        return alike.index(data.composed(name))
    if is_count(name) and int(name) < len(classes):
        return int(name)
    shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    last = len(classes) - 1
    raise UserError(f"{role} class {name!r}: a number from 0 to {last}, or one of {shown}")


def check_recordable(args, device):
    """Raises UserError where --cuda-graphs is asked for and a step cannot be recorded."""
    if not args.cuda_graphs:
        return
    if device.type != "cuda":
        raise UserError(f"--cuda-graphs is for a CUDA device, and this is {device.type}")
    if args.optimizer == "adamw":
        raise UserError("--cuda-graphs cannot record a step of adamw: --optimizer sgd or muon")
    sampled = [name for name in args.explainer if EXPLAINERS[name].sampled]
    if attacks.ATTACKS[args.attack].explanation is not None and sampled:
        raise UserError(
            f"--cuda-graphs cannot record {sampled[0]}: the CPU draws its sample in every step"
        )


def check_attackable(args, attack, dataset, target_class, source_class=None):
    """Raises UserError where the data set allows no such attack."""
    by_class = source_class is not None or not attack.has_target
    if by_class and dataset.multi_label:
        option = "--source-class" if attack.has_target else f"--attack {args.attack}"
        raise UserError(
            f"{option} is for images of one class each: those of {args.dataset} may show several"
        )
    if source_class is not None:
        check_source(dataset, target_class, source_class)
    if not attack.has_target:
        return
    if dataset.multi_label and args.selection != "random":
        raise UserError(
            f"--selection {args.selection} is for images of one class each:"
            f" those of {args.dataset} may show several"
        )
    if not attack.keeps_label and tasks.shows(dataset.test_labels, target_class).all():
        raise UserError(
            "the test set holds nothing but the target class: there is nothing to attack"
        )


def check_source(dataset, target_class, source_class):
    """Raises UserError where no image of the source class could be taken for the target class."""
    if source_class == target_class:
        raise UserError("--source-class and --target-class are one: there is nothing to attack")
    if not tasks.shows(dataset.test_labels, source_class).any():
        raise UserError(
            f"the test set holds no image of the source class, {dataset.classes[source_class]}"
        )
