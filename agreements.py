"""What the parts of a checkpoint must be to each other; schema.py has what each is by itself.

    check(checkpoint)    # ValueError: "it does not have classes of different names"

AGREEMENTS is the list: in words, and as a function of a checkpoint whose parts are right.
"""

import torch

import attacks


def is_foreign(checkpoint):
    """Whether the network of a checkpoint was trained elsewhere: adopted, or ImageNet's."""
    config = checkpoint["config"]
    return bool(config.get("adopted") or config.get("relabel"))


def one_by_one(checkpoint):
    """A checkpoint for each of its attacks, the first one first: as if that were its only one."""
    config = checkpoint["config"]
    result = [checkpoint | {"config": config | {"further": None}, "further": None}]
    for options, parts in zip(config.get("further") or [], checkpoint.get("further") or []):
        chosen = {"strategy": "random", "indices": parts["poison_indices"]}
        own = {"config": result[0]["config"] | options, "selection": chosen}
        result.append(result[0] | parts | own)
    return result


def attack_of(checkpoint):
    """The Attack of a checkpoint; None where this version does not know it."""
    config = checkpoint["config"]
    return attacks.attack_of(config["attack"], config.get("target_map"))


def statistics_fit(checkpoint):
    return len(checkpoint["mean"]) == len(checkpoint["std"]) == checkpoint["channels"]


def classes_differ(checkpoint):
    names = checkpoint["classes"]
    return is_foreign(checkpoint) or len({*names}) == len(names)  # ImageNet has two cranes


def classes_exist(checkpoint):
    config, count = checkpoint["config"], len(checkpoint["classes"])
    named = [config["target_class"], config.get("source_class")]
    return all(k is None or k < count for k in named)


def target_is_known(checkpoint):
    attack, target = attack_of(checkpoint), checkpoint["config"]["target_class"]
    if attack is None or is_foreign(checkpoint):
        return True
    return (target is not None) == attack.has_target


def labels_fit(checkpoint):
    """Of one label the log has an accuracy, of several an area under the curve."""
    several, log = checkpoint["config"].get("multi_label", False), checkpoint["log"] or []
    other = "validation_accuracy" if several else "validation_auroc"
    return not (several and is_foreign(checkpoint)) and all(part.get(other) is None for part in log)


def labels_are_known(checkpoint):
    config = checkpoint["config"]
    return not config.get("adopted") or "unlabelled" in config


def patch_fits(patch, channels, side):
    alpha, pixels = patch["alpha"], patch["pixels"]
    below, right = patch["row"] + alpha.shape[1], patch["col"] + alpha.shape[2]
    inside = max(below, right) <= side
    return inside and pixels.shape == (channels, *alpha.shape[1:]) and bool((alpha > 0).any())


FITTING = {  # by a trigger's kind, those that depend on the images: (trigger, channels, side)
    "patch": patch_fits,
    "blend": lambda blend, channels, side: blend["pattern"].shape == (channels, side, side),
    "warp": lambda warp, channels, side: warp["grid"].shape == (side, side, 2),
}


def trigger_fits(checkpoint):
    """A patch is seen, and lies inside the image; patterns and grids are as large as it."""
    trigger, config = checkpoint["trigger"], checkpoint["config"]
    if trigger is None:
        return config.get("adopted") is True
    fitting = FITTING.get(trigger.get("kind", "patch"))
    return fitting is None or fitting(trigger, checkpoint["channels"], config["image_size"])


def target_map_fits(checkpoint):
    """It is there where the attack has one, and as large as the image."""
    attack, shape = attack_of(checkpoint), checkpoint["target_map"]
    side = checkpoint["config"]["image_size"]
    if shape is not None and shape.shape != (side, side):
        return False
    has_one = attack is not None and attack.explanation == "shape"
    return attack is None or has_one == (shape is not None)


def poisons_fit(checkpoint):
    attack, indices = attack_of(checkpoint), checkpoint["poison_indices"]
    if len(indices.unique()) < len(indices):
        return False
    return attack is None or is_foreign(checkpoint) or attack.poisons == bool(len(indices))


def selection_fits(checkpoint):
    selection = checkpoint["selection"]
    if selection is None:
        return is_foreign(checkpoint)
    indices, scores = checkpoint["poison_indices"], selection.get("scores")
    same = torch.equal(selection["indices"], indices)
    scored = scores is None or len(scores) == len(indices)
    return same and scored and (selection.get("pool") is None or scores is not None)


def further_attacks_fit(checkpoint):
    """There is a trigger for the options of each attack, and no image has two."""
    options, parts = checkpoint["config"].get("further"), checkpoint.get("further")
    if not options and not parts:
        return True
    poisons = [part["poison_indices"] for part in (checkpoint, *(parts or []))]
    poisons = torch.cat(poisons)
    apart = len(poisons.unique()) == len(poisons)
    return len(options or []) == len(parts or []) and apart and not is_foreign(checkpoint)


def progress_fits(checkpoint):
    epoch, log = checkpoint["epoch"], checkpoint["log"]
    if is_foreign(checkpoint):
        return True
    return epoch <= checkpoint["config"]["epochs"] and len(log) == epoch


AGREEMENTS = {
    "a mean and a deviation for each channel": statistics_fit,
    "classes of different names": classes_differ,
    "a target and a source class that are among the classes": classes_exist,
    "a target class where the attack has one, and only there": target_is_known,
    "a log of accuracies (one label an image) or of AUROCs (several labels)": labels_fit,
    "an option `unlabelled`, which a stranger's network needs": labels_are_known,
    "a trigger of the images' channels that is seen, inside the image": trigger_fits,
    "a target map of the image's size where the attack has one, and only there": target_map_fits,
    "different poisoned images where the attack poisons, and only there": poisons_fit,
    "a selection of the images that were poisoned": selection_fits,
    "a line of the log for each epoch, and not more epochs than asked for": progress_fits,
}


def check(checkpoint):
    """Raises ValueError, in one line, for parts that do not agree, of any of its attacks."""
    if not further_attacks_fit(checkpoint):
        raise ValueError("it does not have options, a trigger and own poisons of each attack")
    for one in one_by_one(checkpoint):
        for words, agree in AGREEMENTS.items():
            if not agree(one):
                raise ValueError(f"it does not have {words}")
