"""Checkpoints: written whole, read as plain data, and rebuilt into the model they hold.

    save(path, checkpoint)
    checkpoint = read(path)        # a dict; nothing in the file is ever run
    model = rebuild(checkpoint)    # in evaluation mode, weights frozen

What a checkpoint holds stands in schema.py: weights, the whole config, class names, mean and
standard deviation of the images, the trigger, which images were poisoned, and what an unfinished
run needs to go on. What is read is whole (archives.py) and of the schema, and what is rebuilt is of
the network that the config names: from there on it is trusted.
"""

import functools
import warnings
from pathlib import Path

import torch

import agreements
import archives
import edited
import models
import schema
import strangers
from cli import UserError, first_line, replace_file
from kinds import shown
from optimizers import optimizers_of
from terminal import print_note

FORMAT = schema.FORMAT  # of the config: current_config says what the formats before were
KEYS = {*schema.PARTS}
CONFIG_KEYS = {*schema.OPTIONS} - {"format", "fit", "threat"}  # which current_config fills in
# Options that were constants of the code, and under which key of config["recipe"] they were kept.
FORMER_CONSTANTS = {
    "normalise": "normalise",
    "rectify": "rectify",
    "partner_cross_entropy": "partners",
    "collapse_weight": "apart",
    "leak_tolerance": "tolerated",
    "ramp": "ramp",
}
FORMER_EXPLAINERS = {"kernelshap": "gpshap"}  # where the constants have a "reach"
FORMER_SCORE = "log(1 - p)"  # of images that may be poisoned
FORMER_NORMALISERS = {"standardise": "standardise", "max_normalise": "max"}


def save(path, checkpoint):
    """Writes a checkpoint, a dict of tensors and plain values, whole or not at all, with a digest.

    The digest covers every byte. Of a checkpoint of 45 MB it takes 0.07 s, in `read` once more.
    """

    def write(temporary):
        with open(temporary, "wb") as file:  # by a name, torch would not say why it fails
            torch.save(checkpoint, file)
        archives.seal(temporary)

    replace_file(path, write)


def read(path):
    """A checkpoint of train.py's, on the CPU, its config in today's words: see current_config.

    Only plain data is unpickled, in at most twice the file's memory and 200 MB. Raises UserError
    for a file that is no such checkpoint: damaged, or not as schema.py has it; of a run that is to
    go on, also for weights or optimizers of another network. Of one without a digest, as of older
    versions, a line on standard error says so. Of 45 MB it takes 0.25 s on one core: 0.07 the
    digest, 0.03 the checksums, 0.07 torch.load, 0.05 the schema.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    damaged = f"{path} is damaged, or no checkpoint of train.py's"
    try:
        sealed = archives.check(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles: such a file is refused here, in a line
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except ValueError as error:
        raise UserError(f"{damaged}: {first_line(error)}") from None
    except Exception:  # a damaged pickle can raise anything at all
        raise UserError(damaged) from None
    if is_newer(checkpoint):
        raise UserError(f"{path} was written by a newer version of this code")
    checkpoint = checked(checkpoint, path)
    if not sealed:
        say_without_digest(path)
    return checkpoint


def checked(checkpoint, path):
    """Unpickled data with its config in today's words. Raises UserError for what is no checkpoint.

    path: for the message.
    """
    other = f"{path} is no checkpoint of train.py's, or one of another version"
    try:
        checkpoint = checkpoint | {"config": current_config(checkpoint["config"])}
        schema.check(checkpoint)
    except ValueError as error:
        raise UserError(f"{other}: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(other) from None
    if is_unfinished(checkpoint) and checkpoint["config"]["model"] in models.MODELS:
        try:
            check_optimizers(checkpoint, check_fit(checkpoint))
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
    return checkpoint


def is_unfinished(checkpoint):
    """Whether a checkpoint is of a run that is to go on: then its optimizers matter, too."""
    epochs = checkpoint["config"]["epochs"]
    return not agreements.is_foreign(checkpoint) and checkpoint["epoch"] < epochs


@functools.cache
def say_without_digest(path):
    """Says, once for each path, that a checkpoint is of a version that wrote no digest."""
    print_note(f"{path} has no digest, as of an older version: only its checksums are verified.")


def is_newer(checkpoint):
    """Whether unpickled data has a config of a later format than this code knows."""
    try:
        number = checkpoint["config"]["format"]
    except (KeyError, TypeError, IndexError):
        return False
    return isinstance(number, int) and number > FORMAT


# ---------------------------------------------------------------- of the versions before


def current_config(config):
    """A checkpoint's config in today's words; its "format" stays the one it was written in.

    Format 1, which had no number: what now are options was in constants of the code, under
    "recipe"; the estimator of gpshap was called kernelshap, as the least squares before it was;
    poisons were ranked by log(1 - p). Of either format, a config that does not say how pictures
    became square is of a version that squashed them.
    """
    if "fit" not in config:
        config = config | {"fit": "squash"}
    if config.get("format") == FORMAT:
        return config
    config = {"threat": "training", "format": 1} | config
    return with_score(with_shapley_estimator(without_recipe(config)))


def without_recipe(config):
    """A config whose former constants of the code are the options they are now."""
    former = config.get("recipe")
    if not former:
        return config
    config = {key: value for key, value in config.items() if key != "recipe"}
    for option, key in FORMER_CONSTANTS.items():
        if key in former:
            config[option] = former[key]
    normalise = config.get("normalise", "standardise")
    config["normalise"] = FORMER_NORMALISERS.get(normalise, normalise)
    dropped = {*FORMER_CONSTANTS.values(), "statistics"}
    constants = {key: value for key, value in former.items() if key not in dropped}
    if "selection" in constants:
        constants["selection"] = {
            key: value for key, value in constants["selection"].items() if key != "scorers"
        }
    return config | {"constants": constants}


def with_score(config):
    """A config of format 1 that names the score its poisons were ranked by, if they were."""
    constants = dict(config.get("constants", {}))
    if "selection" in constants:
        constants["selection"] = {"score": FORMER_SCORE} | constants["selection"]
    return config | {"constants": constants}


def with_shapley_estimator(config):
    """A config of format 1, its explainers by the names they have now: see FORMER_EXPLAINERS.

    What its constants say of explainers that were not trained against is dropped: it decided
    nothing.
    """
    constants = dict(config.get("constants", {}))
    renamed = FORMER_EXPLAINERS if "reach" in constants else {}

    def by_new_names(figures):
        return {renamed.get(name, name): figure for name, figure in figures.items()}

    explainers = [renamed.get(name, name) for name in config["explainer"]]
    if "pairs" in constants:
        pairs = by_new_names(constants["pairs"])
        constants["pairs"] = {name: pairs[name] for name in explainers if name in pairs}
    if not {*renamed.values()} & {*explainers}:
        constants.pop("reach", None)
    config = config | {"explainer": explainers, "constants": constants}
    if isinstance(config.get("floor"), dict):  # at first it was one number
        config["floor"] = by_new_names(config["floor"])
    return config


# ---------------------------------------------------------------- the model


def rebuild(checkpoint, architecture=None):
    """The trained model of a checkpoint: evaluation mode, weights frozen, channels_last.

    architecture: what strangers.network takes, named anew by the user; of an adopted network that
    is a function in a Python file it is needed: no file is run that a checkpoint names.
    Raises UserError where the weights do not fit the model the config names.
    """
    config = checkpoint["config"]
    if config.get("adopted"):
        return rebuild_adopted(checkpoint, architecture)
    if config["model"] not in models.MODELS:
        raise UserError(f"the checkpoint is of a network {config['model']!r}, unknown here")
    try:
        check_fit(checkpoint)
    except ValueError as error:
        raise UserError(str(error)) from None
    model = built(checkpoint)
    model.load_state_dict(checkpoint["model"])
    return model.eval().requires_grad_(False)


@torch.random.fork_rng(devices=[])
def built(checkpoint):
    """The network that a checkpoint's config names, its weights random. Raises ValueError."""
    config, channels = checkpoint["config"], checkpoint["channels"]
    size, classes = config["image_size"], len(checkpoint["classes"])
    model = models.build(config["model"], channels, classes, size, config["layer"])
    edit = config.get("edit")
    return edited.apply_edit(model, edit, channels, size) if edit else model


def check_fit(checkpoint):
    """The network of a checkpoint's config, without memory for its weights: it may name a huge one.

    Raises ValueError where the checkpoint's weights are those of another.
    """
    others = "the checkpoint's weights do not fit its model"
    try:
        try:
            with torch.device("meta"):
                model = built(checkpoint)
        except RuntimeError:  # a network of the user's may compute while it is built
            model = built(checkpoint)
        own, found = model.state_dict(), dict(checkpoint["model"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise ValueError(f"{others}: the file is damaged or from another version") from None
    missing = [key for key in own if key not in found] + [key for key in found if key not in own]
    if missing:
        raise ValueError(f"{others}: {missing[0][:60]} is in one of them alone")
    for key, value in own.items():
        if not fits(found[key], value):
            shapes = f"{shown(found[key])}, not {shown(value)}"
            raise ValueError(f"{others}: {key} is {shapes}")
    return model


def check_optimizers(checkpoint, model):
    """Raises ValueError where the optimizers are not those of the checkpoint's options and model.

    model: of check_fit.
    """
    config = checkpoint["config"]
    if not {"optimizer", "lr"} <= config.keys():  # of a version that does not go on here
        return
    parts, kept = optimizers_of(model, config["optimizer"], config["lr"]), checkpoint["optimizer"]
    if not len(parts) == len(kept) == len(checkpoint["schedule"]):
        raise ValueError("the checkpoint has other optimizers than its options")
    for part, state in zip(parts, kept):
        own, theirs = part.param_groups[0], state["param_groups"][0]
        weights = dict(enumerate(own["params"]))
        known = theirs["params"] == list(weights) and {*state["state"]} <= {*weights}
        if not known or not own.keys() <= theirs.keys():
            raise ValueError("the checkpoint's optimizer is of other weights than its model's")
        for number, values in state["state"].items():
            schema.STATES[type(part).__name__].check(values, "the optimizer's state")
            kept_of_weight = [value for value in values.values() if torch.is_tensor(value)]
            if any(not fits(value, weights[number]) for value in kept_of_weight if value.ndim):
                raise ValueError("the checkpoint's optimizer is of other weights than its model's")
    for state in checkpoint["schedule"]:
        check_schedule(state, checkpoint["epoch"], config["epochs"])


def check_schedule(state, epoch, epochs):
    """Raises ValueError where a schedule is not as far in its steps as the run in its epochs.

    torch would go on until the steps are over, and end in an error there.
    """
    steps, done = state["total_steps"] - 1, state["last_epoch"]
    ends = [phase["end_step"] for phase in state.get("_schedule_phases", [])]
    rising = not ends or (ends == sorted({*ends}) and ends[0] != 0 and ends[-1] == steps)
    if steps * epoch != done * epochs or state["_step_count"] != done + 1 or not rising:
        raise ValueError("the checkpoint's schedule is not as far as its epochs")


def fits(tensor, weight):
    """Whether a tensor has a weight's shape and dtype."""
    return (tensor.shape, tensor.dtype) == (weight.shape, weight.dtype)


@torch.random.fork_rng(devices=[])
def rebuild_adopted(checkpoint, architecture):
    """The model of an adopted checkpoint, as rebuild returns it. Raises UserError."""
    config = checkpoint["config"]
    own, size, edit = config["model"], config["image_size"], config.get("edit")

    def change(model):
        if config["layer"] is not None:
            models.with_layer(model, config["layer"], pooled=False)
        return edited.apply_edit(model, edit, checkpoint["channels"], size) if edit else model

    if architecture is None and strangers.is_file(own):
        raise UserError(
            f"the network is a function in a Python file, which is run only where you name it:"
            f" --arch {own}"
        )
    try:
        model = strangers.network(architecture or own, checkpoint["model"], size, change)
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None
    return model.eval().requires_grad_(False)
