"""The command line of train.py that trains a checkpoint's network again.

command_of(checkpoint["config"])    # ["train.py", "--attack", "badnets", ...]
"""

import shlex

import options

# Of the config: nothing that a network depends on, but for rounding.
NOT_GIVEN = {"data_dir", "device", "cuda_graphs", "out", "resume", "overwrite", "export"}
ALWAYS = ("attack", "explainer", "dataset", "threat", "seed")


def command_of(config, classes=()):
    """The words of the command line that gives this config, of a checkpoint or a Setting.

    What is as it is where left open is left out. classes: the names of its classes.
    """
    config = by_name(config, classes)
    if config.get("further"):
        config["further"] = [by_name(part, classes) for part in config["further"]]
    words = ["train.py", *words_of_all({key: config[key] for key in ALWAYS})]
    left_open = vars(options.parse(words[1:]))
    others = {key: config.get(key) for key in left_open if key not in {*ALWAYS, *NOT_GIVEN}}
    if not others["poison_rate"]:  # nothing is poisoned, whatever was asked for
        del others["poison_rate"]
    size, (least, most) = others["image_size"], options.IMAGE_SIZES
    if size is not None and not least <= size <= most:  # of the images themselves
        del others["image_size"]
    differing = {
        key: value
        for key, value in others.items()
        if value is not None and str(value) != str(left_open[key])
    }
    return words + words_of_all(differing)


def by_name(given, classes):
    """The options, with a class by its name where another may be called like its number."""
    numbers = {key: given.get(key) for key in ("target_class", "source_class")}
    named = {k: classes[n] for k, n in numbers.items() if n is not None and str(n) in classes}
    return given | named


def words_of_all(given):
    """The words of options of train.py, {name: value}."""
    return [word for key, value in given.items() for word in words_of(key, value)]


def words_of(key, value):
    """The words of one option."""
    flag = f"--{key.replace('_', '-')}"
    if key == "further":
        parts = [{k: v for k, v in part.items() if v is not None} for part in value]
        return [word for part in parts for word in ("--and", shlex.join(words_of_all(part)))]
    if value is True or value is False:
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, dict):  # the floor by explainer: one number for all
        value = next(iter(value.values()))
    value = ",".join(value) if isinstance(value, list) else str(value)
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]
