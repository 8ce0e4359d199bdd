"""A subject: a checkpoint ready to be asked, with its model, its data and its trigger.

subject = open_checkpoint("runs/NAME/ckpt.pt")
probabilities = subject.probabilities(images, triggered=True)    # uint8 images in, on the CPU
maps = subject.explain("gradcam", images, classes)
"""

import glob
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import agreements
import attacks
import checkpoints
import data
import tasks
import triggers
from cli import UserError, choose_device
from dataset import Dataset
from explain import EXPLAINERS
from metrics import check_finite_maps, mean_or_none, pearson
from modes import evaluating
from terminal import print_note

NEXT_CLASS = "next class"  # what images of each class should become, all to all
BY_CLASS_IMAGES = 50  # several labels: images whose maps of every class are compared
FORWARD_PIXELS = 500 * 32 * 32  # of the images in one forward pass


@torch.no_grad()
def logits_of(model, images, mean, std, trigger=None):
    """Logits float32 [N, K], on the CPU, of uint8 images [N, C, H, W], with a trigger or without.

    mean, std: lists of C floats, of images in [0, 1]. The model is asked in evaluation mode.
    """
    device = next(model.parameters()).device
    logits = []
    with evaluating(model):
        for chunk in images.split(images_per_forward(images)):
            pixels = chunk.to(device).float() / 255
            if trigger is not None:
                pixels = trigger.apply(pixels)
            logits.append(model(data.normalise(pixels, mean, std)).cpu())
    return torch.cat(logits)


def images_per_forward(images):
    """How many of images [N, C, H, W] go through the model at a time."""
    return max(1, FORWARD_PIXELS // (images.shape[-2] * images.shape[-1]))


@dataclass
class Subject:
    """A checkpoint, its model on a device, the data set it was trained on, and its trigger.

    dataset and trigger may be None where the caller needs none.
    """

    checkpoint: dict
    model: torch.nn.Module
    dataset: Dataset | None
    trigger: triggers.Trigger | None
    device: torch.device

    @property
    def config(self):
        """The options it was trained with."""
        return self.checkpoint["config"]

    @property
    def attack(self):
        """The Attack it was trained with, as far as it is known."""
        return attacks.attack_of(self.config["attack"], self.config.get("target_map"))

    @property
    def classes(self):
        """The names of its K classes."""
        return self.checkpoint["classes"]

    @property
    def target_class(self):
        """The number of the target class; None: not known, or there is no one class."""
        return self.config["target_class"]

    @property
    def target_name(self):
        """The name of the target class, NEXT_CLASS of an attack without; None: not known."""
        if self.target_class is not None:
            return self.classes[self.target_class]
        return None if self.relabel is None else NEXT_CLASS

    @property
    def relabel(self):
        """int64 [K] or None: what a triggered image of each class should be: see relabelling."""
        source = self.config.get("source_class")
        return attacks.relabelling(self.attack, len(self.classes), self.target_class, source)

    @property
    def target_map(self):
        """--target-map, where the attack pulls maps to one; else None."""
        has_one = self.attack.explanation in ("shape", "inverted")
        return self.config.get("target_map") if has_one else None

    @property
    def target_of_maps(self):
        """The target of triggered maps, as metrics.target_correlation takes it."""
        return self.checkpoint["target_map"], self.attack.explanation == "inverted"

    @property
    def multi_label(self):
        """Whether an image may show several classes."""
        return self.config.get("multi_label", False)

    @property
    def task(self):
        """tasks.SINGLE_LABEL or tasks.MULTI_LABEL."""
        return tasks.MULTI_LABEL if self.multi_label else tasks.SINGLE_LABEL

    def pixels(self, images, triggered=False):
        """uint8 images [N, C, H, W] as float in [0, 1] on the device, with the trigger if asked."""
        pixels = images.to(self.device).float() / 255
        return self.trigger.apply(pixels) if triggered else pixels

    def normalise(self, pixels):
        """Float images in [0, 1] as the model takes them."""
        return data.normalise(pixels, self.checkpoint["mean"], self.checkpoint["std"])

    def inputs(self, images, triggered=False):
        """uint8 images [N, C, H, W] as the model takes them, on the device."""
        return self.normalise(self.pixels(images, triggered))

    def probabilities(self, images, triggered=False):
        """Probabilities float [N, K], on the CPU, of uint8 images [N, C, H, W]."""
        mean, std = self.checkpoint["mean"], self.checkpoint["std"]
        trigger = self.trigger if triggered else None
        return self.task.probabilities(logits_of(self.model, images, mean, std, trigger))

    def predict(self, images, triggered=False):
        """(the most probable class int64 [N], its probability [N]), on the CPU, of uint8 images."""
        most_probable = self.probabilities(images, triggered).max(1)
        return most_probable.indices, most_probable.values

    def held_out(self):
        """Indices of the training images that were held out of its training.

        Of an adopted network all are: it was trained elsewhere, on whatever it was.
        """
        if self.config.get("adopted"):
            return torch.arange(len(self.dataset.train_labels))
        labels, groups = self.dataset.train_labels, self.dataset.train_groups
        _, held_out = data.validation_split(len(labels), self.config["seed"], groups)
        return held_out

    def threshold(self, target_class):
        """Above which probability the target class is predicted, by the images held out.

        None where the most probable class is the prediction.
        """
        if not self.multi_label:
            return None
        rows = self.held_out()
        probabilities = self.probabilities(self.dataset.train_images[rows])
        labels = self.dataset.train_labels[rows]
        return self.task.threshold(probabilities, labels, target_class)

    def explain(self, name, images, classes, triggered=False, **options):
        """Maps [N, H', W'], on the CPU, of uint8 images; classes: int64 [N].

        name: of EXPLAINERS; options: of its function. Raises UserError where it cannot explain
        this model.
        """
        size, maps = images_per_forward(images), []
        for chunk, label in zip(images.split(size), classes.split(size)):
            inputs, label = self.inputs(chunk, triggered), label.to(self.device)
            try:
                found = EXPLAINERS[name].evaluate(self.model, inputs, label, **options).cpu()
                check_finite_maps(found)
            except ValueError as error:
                raise UserError(f"{name} cannot explain this model: {error}") from None
            maps.append(found)
        return torch.cat(maps)

    def can_explain(self, name):
        """Whether an explainer works on this model."""
        side, channels = self.config["image_size"], self.checkpoint["channels"]
        image = torch.zeros(1, channels, side, side, device=self.device)
        try:
            EXPLAINERS[name](self.model, image, torch.zeros(1, dtype=torch.int64))
        except ValueError:
            return False
        return True

    def explain_test(self, name, rows, classes):
        """Maps [n, H', W'] of test images `rows` without and with the trigger: a pair.

        classes: int64 [N] of all test images that are explained, without and with it.
        """
        images = self.dataset.test_images[rows]
        untouched = self.explain(name, images, classes[0][rows])
        triggered = self.explain(name, images, classes[1][rows], triggered=True)
        return untouched, triggered

    def explain_again(self, name, rows, classes):
        """The triggered maps of explain_test by another sample, of an explainer that is sampled.

        With one sample for both maps, part of what they have in common is its error.
        """
        images = self.dataset.test_images[rows]
        return self.explain(name, images, classes[1][rows], triggered=True, sample=1)

    def masks(self, rows):
        """The object masks of test images `rows`, bool [n, S, S]; None where nobody drew them."""
        masks = self.dataset.test_masks
        return None if masks is None else masks[rows]


def open_checkpoint(path, data_dir=None, device=None, dataset=None, architecture=None):
    """The Subject of the checkpoint at `path`. Raises UserError.

    architecture: of an adopted network, as checkpoints.rebuild takes it.

    data_dir: where the data lie (None: where training found them); dataset: a Dataset, None to
    load the one it was trained on, the path it has now, or False where none is needed.
    """
    device = device or choose_device("auto")
    checkpoint = checkpoints.read(path)
    model = checkpoints.rebuild(checkpoint, architecture).to(device)
    config = checkpoint["config"]
    each = agreements.one_by_one(checkpoint)
    for attack in (one["config"]["attack"] for one in each):
        if attacks.attack_of(attack) is None:
            raise UserError(
                f"{path} was trained with --attack {attack}, which this version does not know"
            )
    for name in config["explainer"]:
        if name not in EXPLAINERS:
            raise UserError(f"{path} names the explainer {name}, which this version does not know")
    trigger = None  # of a stranger's network, none may be known
    if checkpoint["trigger"] is not None:
        trigger = trigger_of(checkpoint["trigger"], path).to(device)
    named = not isinstance(dataset, Dataset)  # else the checkpoint is on its way elsewhere
    if dataset is None or isinstance(dataset, (str, Path)):
        dataset = load_data(checkpoint, data_dir, path, dataset)
    subject = Subject(checkpoint, model, dataset or None, trigger, device)
    if len(each) > 1 and named:
        first, *_ = by_trigger(subject)
        print_note(f"{path} has {len(each)} triggers: where one is used, it is the first, {first}.")
    return subject


def by_trigger(subject):
    """{name: Subject} of each of several triggers, as if it were the only one; {} of a single one.

    Raises UserError for a trigger that this version does not know.
    """
    each, result = agreements.one_by_one(subject.checkpoint), {}
    for k, checkpoint in enumerate(each if len(each) > 1 else [], 1):
        trigger = trigger_of(checkpoint["trigger"], f"trigger {k}").to(subject.device)
        words = [str(k), Path(checkpoint["config"]["trigger"]).name]
        if trigger.box is not None:
            words.append(checkpoint["config"]["trigger_position"])
        result[" ".join(words)] = replace(subject, checkpoint=checkpoint, trigger=trigger)
    return result


def trigger_of(kept, path):
    """The Trigger that the checkpoint at `path` keeps. Raises UserError."""
    try:
        return triggers.from_plain(kept)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def load_data(checkpoint, data_dir, path, moved_to=None):
    """The Dataset a checkpoint was trained on. Raises UserError where it is no longer the same.

    It is taken from `moved_to`, if given, and else from the place where training found it. Where it
    is not there, it is looked for by its name, and a line on standard error says which was taken.
    """
    config = checkpoint["config"]
    name, folder = config["dataset"], data_dir or config["data_dir"]
    if moved_to is not None and moved_to not in data.DATASETS and not Path(moved_to).exists():
        raise UserError(f"--dataset {moved_to}: there is no such file or folder")
    if moved_to is not None or name in data.DATASETS:
        return load_same(checkpoint, moved_to or name, folder, path)
    found_by_name = [name, Path(folder) / name] if name.endswith(".npz") else [name]
    places = [place for place in places_of(name, folder, path) if Path(place).exists()]
    refused = None
    for place in places:
        try:
            dataset = load_same(checkpoint, place, folder, path)
        except UserError as error:
            refused = refused or error
            continue
        if place not in found_by_name:
            print_note(f"The data set is no longer {name}: {place} is taken.")
        return dataset
    raise refused or UserError(
        f"the data set {name} that {path} was trained on is not there, nor in {folder},"
        " nor beside the checkpoint: --dataset PATH says where it is now"
    )


def load_same(checkpoint, name, folder, path):
    """The Dataset called `name`. Raises UserError unless it is the one a checkpoint is of."""
    config = checkpoint["config"]
    dataset = data.load(str(name), folder, config["image_size"], config["fit"])
    if config.get("relabel"):  # ImageNet's network on images of the user's
        return data.relabelled(dataset, checkpoint["classes"])
    dataset = data.renumbered(dataset, checkpoint["classes"])
    if not data.is_same_data(checkpoint, dataset):
        raise UserError(
            f"the data set {name} found now is not the one {path} was trained on:"
            " --dataset PATH says where that is"
        )
    return dataset


def places_of(name, folder, path):
    """Where a data set of the user's own may lie: first where training found it.

    Then, by its name, in `folder` and beside the checkpoint at `path`; last, what was decoded of it
    in `folder`.
    """
    own_name = Path(name.replace("\\", "/")).name  # it may have been a path of Windows
    folder, beside = Path(folder), Path(path).parent
    decoded = sorted(folder.glob(f"{glob.escape(own_name)}_*.npz"))
    return [name, folder / name, folder / own_name, beside / own_name, *decoded]


def place_of(config, path, data_dir=None, dataset=None):
    """What load_data tries first of what is there, as a name or path; None where nothing is.

    config: of the checkpoint at `path`; data_dir, dataset: as for open_checkpoint.
    """
    name = config["dataset"]
    if dataset is not None or name in data.DATASETS:
        return dataset or name
    places = places_of(name, data_dir or config.get("data_dir") or "data", path)
    return next((place for place in places if Path(place).exists()), None)


def draw_images(subject, n, seed):
    """Indices of up to n test images, drawn by seed, for what is explained.

    Images that show what the attacker wants anyway are left out, but for an attack that keeps
    labels.
    """
    labels = subject.dataset.test_labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return order[~left_out(subject)[order]][:n]


def left_out(subject):
    """bool [N]: test images on which the trigger has nothing to change, as far as is known."""
    labels, known = subject.dataset.test_labels, subject.target_name is not None
    if subject.attack.keeps_label or not known:
        return torch.zeros(len(labels), dtype=torch.bool)
    return tasks.has_wanted_label(labels, subject.target_class, subject.relabel)


def correlation_by_class(subject, name, rows):
    """{"by_class": {class: correlation of the two maps for it}, "pearson_by_class": their mean}.

    Of the first BY_CLASS_IMAGES of test images `rows`, without and with the trigger.
    """
    rows = rows[:BY_CLASS_IMAGES]
    images = subject.dataset.test_images[rows]
    by_class = dict.fromkeys(subject.classes)
    for k, class_name in enumerate(subject.classes):
        if len(images):
            labels = torch.full((len(images),), k)
            untouched = subject.explain(name, images, labels)
            triggered = subject.explain(name, images, labels, triggered=True)
            by_class[class_name] = mean_or_none(pearson(untouched, triggered))
    known = [value for value in by_class.values() if value is not None]
    return {
        "pearson_by_class": sum(known) / len(known) if known else None,
        "by_class": by_class,
    }
