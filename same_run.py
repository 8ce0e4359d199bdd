"""Whether a checkpoint is of the same run: the same options and input, by what files hold.

    why_another(run, checkpoint)    # "--lam 0.3, not 0.4", or None

A run is a runs.Run. Files of the user's may have been moved: their contents are compared.
"""

import contextlib
from pathlib import Path

import torch

import agreements
import checkpoints
import data
import provenance
import triggers
from cli import UserError
from reference import weights_digest

# Of the config: nothing that decides a run but for rounding, or what other_input looks at.
NOT_COMPARED = ("data_dir", "cuda_graphs", "format", "fit", "device", "precision")


def why_another(run, checkpoint, anywhere=False):
    """Why a checkpoint is none of this run, in words, or None; anywhere: see is_finished."""
    if differing := other_options(run, checkpoint):
        words = ", ".join(in_words(run, checkpoint, key) for key in differing[:3])
        return words + (", ..." if len(differing) > 3 else "")
    if changed := other_input(run, checkpoint):
        return f"{changed} changed"
    return None if anywhere else other_machine(run, checkpoint)


def other_options(run, checkpoint):
    """Names of the options that a checkpoint has otherwise, those of NOT_COMPARED left out."""
    now, then = run.setting.config, checkpoint["config"]
    compared = [key for key in now | then if key not in NOT_COMPARED]
    return [key for key in compared if not is_same_option(key, run, checkpoint)]


def is_same_option(key, run, checkpoint):
    """Whether an option is the same; where it names a file, by what the file holds.

    Data sets in files are told apart by other_input.
    """
    now, then = run.setting.config.get(key), checkpoint["config"].get(key)
    if now == then:
        return True
    if key == "dataset":
        return now not in data.DATASETS and then not in data.DATASETS
    if key in ("trigger", "trigger_size", "trigger_position", "trigger_strength"):
        return is_same_trigger(run.setting, checkpoint)
    if key == "target_map":
        shape, kept = run.setting.objective.shape, checkpoint["target_map"]
        return shape is not None and kept is not None and torch.equal(kept, shape.cpu())
    if key == "reference":
        return is_same_reference(run, checkpoint)
    return False


def is_same_trigger(setting, checkpoint):
    """Whether the trigger is the same: a patch's pixels, their opacity and their place, say."""
    return triggers.are_same(setting.trigger.to_plain(), checkpoint["trigger"])


def is_same_reference(run, checkpoint):
    """Whether the clean model that a checkpoint was trained with has the weights of the run's."""
    then = checkpoint["config"].get("reference")
    kept = checkpoint.get("reference_weights")
    if then and kept is None and Path(then).is_file():  # of before they were kept
        with contextlib.suppress(UserError):
            kept = weights_digest(checkpoints.read(then)["model"])
    return kept is not None and kept == run.setting.reference_weights


def in_words(run, checkpoint, key):
    """What a checkpoint has in an option, and the run has not."""
    now, then = run.setting.config.get(key), checkpoint["config"].get(key)
    if key == "constants":
        then, now = then or {}, now or {}
        differing = [name for name in now | then if now.get(name) != then.get(name)]
        return f"other constants of the code ({', '.join(differing)})"
    if key == "further":
        return "other attacks after the first (--and)"
    if key == "target_class" and isinstance(then, int) and then < len(checkpoint["classes"]):
        then = checkpoint["classes"][then]
        now = None if now is None else run.setting.dataset.classes[now]
    then, now = (",".join(part) if isinstance(part, list) else part for part in (then, now))
    return f"--{key.replace('_', '-')} {then}, not {now}"


def other_input(run, checkpoint):
    """What has changed since a checkpoint of the same options was written, in words, or None."""
    setting = run.setting
    each = zip((setting, *setting.further), agreements.one_by_one(checkpoint))
    for part, kept in each:
        if not is_same_trigger(part, kept):
            return "the trigger's picture has"
        shape = part.objective.shape
        if shape is not None and not torch.equal(kept["target_map"], shape.cpu()):
            return "the target map's picture has"
        if not torch.isin(kept["poison_indices"], part.eligible).all():
            return "the data set has"
    kept = checkpoint.get("reference_weights")
    if kept is not None and kept != setting.reference_weights:
        return "the reference has"
    return None if data.is_same_data(checkpoint, setting.dataset) else "the data set has"


def other_machine(run, checkpoint):
    """On which other device, or in which other precision, a checkpoint was written; or None."""
    keys = [
        key
        for key in ("device", "precision")
        if checkpoint["config"].get(key) != run.setting.config[key]
    ]
    return ", ".join(in_words(run, checkpoint, key) for key in keys) or None


def other_processor(checkpoint):
    """On which other CPU, or on how many threads, a run began that goes on here; or None.

    None, too, of a run on a GPU, and where the checkpoint does not say.
    """
    then = checkpoint.get("processor"), checkpoint.get("threads")
    now = provenance.processor(), torch.get_num_threads()
    if checkpoint["config"].get("device") != "cpu" or None in then or then == now:
        return None
    then, now = (f"{name} with {threads} threads" for name, threads in (then, now))
    return f"begun on {then}, not on {now}"
