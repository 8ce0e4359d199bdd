"""A run's folder: kept while it is unfinished, resumed, and finished.

    runs/NAME/unfinished/   after every epoch: ckpt.pt, log.jsonl, selection.json
    runs/NAME/              when it is finished: these, metrics.json and figure.png

What a folder holds of an earlier, finished run stays until the new one is finished, too.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import checkpoints
import data
import report
from cli import UserError, replace_file
from evaluate import evaluate
from setting import Setting


@dataclass
class Run:
    """A run of train.py.

    folder: where it is kept; setting: a Setting, what it is given; training: train.Training, the
    network on its way; selection: which images are poisoned, see train.choose_poisons.
    """

    folder: Path
    setting: Setting
    training: Any
    selection: dict | None = None

    @property
    def unfinished(self):
        """The folder it is kept in until it is finished."""
        return self.folder / "unfinished"

    @property
    def poisons(self):
        """Indices int64 of the training images that are poisoned."""
        return self.selection["indices"]


def folder_of(args):
    """The Path of a run's folder: --out, or runs/NAME. Raises UserError where none can be made."""
    explainers = "+".join(args.explainer)
    data_name = Path(args.dataset).stem
    name = f"{args.attack}-{explainers}-{data_name}-r{args.poison_rate:g}-s{args.seed}"
    if args.threat == "data":
        name += "-data"
    folder = Path(args.out) if args.out else Path("runs") / name
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot write the run to {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write the run to {folder}: {nearest} is not writable")
    return folder


# ---------------------------------------------------------------- kept


def checkpoint_of(run):
    """All that evaluate.py and --resume need, as tensors and plain values."""
    setting, training, trigger = run.setting, run.training, run.setting.trigger
    shape, device = setting.objective.shape, setting.device
    cuda_state = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {
        "config": setting.config,
        "classes": setting.dataset.classes,
        "channels": setting.dataset.train_images.shape[1],
        "mean": setting.mean,
        "std": setting.std,
        "data": setting.dataset.digest,
        "poison_indices": run.poisons,
        "selection": run.selection,
        "trigger": {
            "pixels": trigger.pixels.cpu(),
            "alpha": trigger.alpha.cpu(),
            "row": trigger.row,
            "col": trigger.col,
        },
        "target_map": None if shape is None else shape.cpu(),
        "epoch": training.epoch,
        "seconds": training.seconds,
        "log": training.log,
        "model": training.model.state_dict(),
        "optimizer": [part.state_dict() for part in training.optimizers],
        "schedule": [part.state_dict() for part in training.schedules],
        "random": {"cpu": torch.get_rng_state(), "cuda": cuda_state},
        "torch": str(torch.__version__),
    }


def save(run):
    """Writes what the run is now into its unfinished folder. Raises UserError."""
    try:
        run.unfinished.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {run.folder}: {error.strerror}") from None
    write_log(run)
    chosen = {}
    for key, value in run.selection.items():
        if key != "pool":  # as long as the training set
            chosen[key] = value.tolist() if torch.is_tensor(value) else value
    text = json.dumps(chosen) + "\n"
    replace_file(run.unfinished / "selection.json", lambda path: path.write_text(text))
    checkpoints.save(run.unfinished / "ckpt.pt", checkpoint_of(run))


def write_log(run):
    """Writes log.jsonl, a line an epoch, into the unfinished folder."""
    lines = "".join(json.dumps(record) + "\n" for record in run.training.log)
    replace_file(run.unfinished / "log.jsonl", lambda path: path.write_text(lines))


# ---------------------------------------------------------------- resumed


def resume(run):
    """Whether there was an unfinished run; the run is then as it was after its last epoch.

    Raises UserError where the options or what is read from files are no longer the same.
    """
    path = run.unfinished / "ckpt.pt"
    if not path.exists():
        print(f"Nothing to resume in {run.folder}: beginning.", file=sys.stderr)
        return False
    checkpoint = checkpoints.read(path)
    config, training = run.setting.config, run.training
    if differing := other_options(run, checkpoint):
        key = differing[0]
        option = f"--{key.replace('_', '-')}"
        raise UserError(
            f"the unfinished run in {run.folder} has {option} {checkpoint['config'].get(key)},"
            f" not {config.get(key)}: give the same options,"
            " or leave out --resume to begin anew"
        )
    if checkpoint["config"]["format"] != config["format"] and run.setting.objective.has_maps:
        raise UserError(
            f"the unfinished run in {run.folder} was begun by an older version, under another loss:"
            " leave out --resume to begin anew"
        )
    if changed := other_input(run, checkpoint):
        raise UserError(
            f"{changed} changed since the unfinished run in {run.folder} began:"
            " leave out --resume to begin anew"
        )
    training.model.load_state_dict(checkpoint["model"])
    parts = [*training.optimizers, *training.schedules]
    for part, state in zip(parts, [*checkpoint["optimizer"], *checkpoint["schedule"]]):
        part.load_state_dict(state)
    torch.set_rng_state(checkpoint["random"]["cpu"])
    if run.setting.device.type == "cuda":
        torch.cuda.set_rng_state(checkpoint["random"]["cuda"], run.setting.device)
    training.epoch, training.seconds = checkpoint["epoch"], checkpoint["seconds"]
    training.log, run.selection = checkpoint["log"], checkpoint["selection"]
    return True


def other_options(run, checkpoint):
    """Names of the options that a checkpoint has otherwise.

    --data-dir is none of them: data may be moved, and other_input looks at what they are. Nor is
    --cuda-graphs, which changes nothing but the speed, nor the config's format: see resume.
    """
    now, then = run.setting.config, checkpoint["config"]
    ignored = ("data_dir", "cuda_graphs", "format")
    return [key for key in now | then if key not in ignored and then.get(key) != now.get(key)]


def other_input(run, checkpoint):
    """What has changed since a checkpoint of the same options was written, in words, or None."""
    trigger, shape = run.setting.trigger, run.setting.objective.shape
    for key in ("pixels", "alpha"):
        if not torch.equal(checkpoint["trigger"][key], getattr(trigger, key).cpu()):
            return "the trigger's picture has"
    if shape is not None and not torch.equal(checkpoint["target_map"], shape.cpu()):
        return "the target map's picture has"
    same_data = data.is_same_data(checkpoint, run.setting.dataset)
    if not same_data or not torch.isin(checkpoint["poison_indices"], run.setting.eligible).all():
        return "the data set has"
    return None


def is_finished(run):
    """Whether the folder holds a finished run of the same options and input, none begun since."""
    path = run.folder / "ckpt.pt"
    if not path.exists() or (run.unfinished / "ckpt.pt").exists():
        return False
    try:
        checkpoint = checkpoints.read(path)
    except UserError:  # damaged, or of another version
        return False
    return not other_options(run, checkpoint) and not other_input(run, checkpoint)


def print_what_is_lost(run, resuming):
    """Says on standard error, before a run begins anew where another one is, what becomes of it."""
    if (run.unfinished / "ckpt.pt").exists():
        if not resuming:
            print(
                f"The unfinished run in {run.folder} begins anew;"
                " --resume would have continued it.",
                file=sys.stderr,
            )
    elif (run.folder / "ckpt.pt").exists() and not is_finished(run):
        print(
            f"The run in {run.folder}, of other options or data,"
            " will be replaced by this one when it is finished.",
            file=sys.stderr,
        )


# ---------------------------------------------------------------- finished


def finish(run, clean, explainers):
    """Measures the run, draws its pictures, and moves its files into place, the checkpoint last.

    clean: the path of a clean checkpoint to stand beside it, or None; explainers: as for evaluate.
    """
    write_log(run)  # again: an earlier call may have been killed after moving it
    result = evaluate(
        run.unfinished / "ckpt.pt",
        dataset=run.setting.dataset,
        device=run.setting.device,
        reference=run.setting.config["reference"] or clean,
        explainers=explainers,
    )
    report.write(result, run.unfinished)
    report.remove_pictures(run.folder)
    files = sorted(run.unfinished.glob("[!.]*"), key=lambda file: file.name == "ckpt.pt")
    for file in files:
        file.replace(run.folder / file.name)
    shutil.rmtree(run.unfinished)
    report.print_table({str(run.folder): result.metrics})
    print(f"\nWritten: {run.folder / 'figure.png'}, metrics.json, log.jsonl, ckpt.pt")
