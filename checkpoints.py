"""Checkpoints: written whole, read as plain data, and rebuilt into the model they hold.

    save(path, checkpoint)
    checkpoint = read(path)        # a dict; nothing in the file is ever run
    model = rebuild(checkpoint)    # in evaluation mode, weights frozen

A checkpoint has the keys KEYS: weights, the whole config, class names, mean and standard deviation
of the images, the trigger, which images were poisoned, and what an unfinished run needs to go on.
"""

import warnings
from pathlib import Path

import torch

import edited
import models
import strangers
from cli import UserError, replace_file

KEYS = set(
    "model config classes mean std channels poison_indices trigger target_map epoch seconds torch"
    " log optimizer schedule random selection".split()
)
CONFIG_KEYS = set(
    "attack explainer dataset data_dir model layer image_size epochs poison_rate lam target_class"
    " selection reference seed device precision".split()
)
FORMAT = 2  # of the config: current_config says what the formats before were
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
    """Writes a checkpoint, a dict of tensors and plain values, whole or not at all."""
    replace_file(path, lambda temporary: torch.save(checkpoint, temporary))


def read(path):
    """A checkpoint of train.py's, on the CPU, its config in today's words: see current_config.

    Only plain data is unpickled. Raises UserError for a file that is no such checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles: such a file is refused here, in a line
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise anything at all
        raise UserError(f"{path} is damaged, or no checkpoint of train.py's") from None
    if is_newer(checkpoint):
        raise UserError(f"{path} was written by a newer version of this code")
    try:
        if is_complete(checkpoint):
            return checkpoint | {"config": current_config(checkpoint["config"])}
    except (KeyError, TypeError, AttributeError, ValueError):
        pass
    raise UserError(f"{path} is no checkpoint of train.py's, or one of another version")


def is_newer(checkpoint):
    """Whether unpickled data has a config of a later format than this code knows."""
    try:
        number = checkpoint["config"]["format"]
    except (KeyError, TypeError, IndexError):
        return False
    return isinstance(number, int) and number > FORMAT


def is_complete(checkpoint):
    """Whether unpickled data has a checkpoint's parts, and a trigger seen inside the image."""
    try:
        config, trigger = checkpoint["config"], checkpoint["trigger"]
        if trigger is None and config.get("adopted"):  # none is known
            return checkpoint.keys() >= KEYS and config.keys() >= CONFIG_KEYS
        height, width = trigger["alpha"].shape[1:]
        is_seen = bool((trigger["alpha"] > 0).any())
        fits_down = 0 <= trigger["row"] <= config["image_size"] - height
        fits_across = 0 <= trigger["col"] <= config["image_size"] - width
        complete = checkpoint.keys() >= KEYS and config.keys() >= CONFIG_KEYS
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        return False
    return fits_down and fits_across and is_seen and complete


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


def rebuild(checkpoint, architecture=None):
    """The trained model of a checkpoint: evaluation mode, weights frozen, channels_last.

    architecture: what strangers.network takes, named anew by the user; of an adopted network that
    is a function in a Python file it is needed: no file is run that a checkpoint names.
    Raises UserError where the weights do not fit the model the config names.
    """
    config = checkpoint["config"]
    if config.get("adopted"):
        return rebuild_adopted(checkpoint, architecture)
    channels, size = checkpoint["channels"], config["image_size"]
    if config["model"] not in models.MODELS:
        raise UserError(f"the checkpoint is of a network {config['model']!r}, unknown here")
    try:
        classes = len(checkpoint["classes"])
        model = models.build(config["model"], channels, classes, size, config["layer"])
        if edit := config.get("edit"):
            model = edited.apply_edit(model, edit, channels, size)
        model.load_state_dict(checkpoint["model"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError):
        raise UserError(
            "the checkpoint's weights do not fit its model:"
            " the file is damaged or from another version"
        ) from None
    return model.eval().requires_grad_(False)


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
