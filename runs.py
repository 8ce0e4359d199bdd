"""A run's folder: kept while it is unfinished, resumed, and finished.

    runs/NAME/unfinished/   after every epoch: ckpt.pt, log.jsonl, selection.json
    runs/NAME/              when it is finished: these, metrics.json, figure.png and README.md

What a folder holds of an earlier, finished run stays until the new one is finished, too, and is
replaced by a run of the same options only, unless --overwrite is given. Other files in it are the
user's, and stay: where one has the name of a file of a run, the run is refused (ours.py).
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import card
import checkpoints
import header
import ours
import report
from cli import UserError, replace_file
from evaluate import evaluate
from folders import finished_with_other_epochs
from provenance import processor
from retrain import command_of
from same_run import (
    in_words,
    other_input,
    other_machine,
    other_options,
    other_processor,
    why_another,
)
from setting import Setting
from terminal import print_note

# In this order.
KEPT = ("log.jsonl", "selection.json", "metrics.json", "figure.png", card.NAME, "ckpt.pt")


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


# ---------------------------------------------------------------- begun


def is_done(run, args, clean, explainers):
    """Whether there is nothing to train: the run is finished, and measured anew without --resume.

    clean, explainers: as for finish. Raises UserError where a file of the user's would be lost.
    """
    check_files(run)
    remove_halves(run)
    if not is_finished(run, anywhere=args.resume) or (args.overwrite and not args.resume):
        return False
    if args.resume:
        print(f"The run in {run.folder} is finished.")
        if moved := other_machine(run, checkpoints.read(run.folder / "ckpt.pt")):
            print_note(f"It was trained elsewhere: {moved}.")
    else:
        measure_again(run, clean, explainers)
    return True


def begin(run, args):
    """Whether the run was resumed; else it begins, and what is lost by that is said.

    Raises UserError where it may not.
    """
    if not args.overwrite:
        check_replaceable(run, args.resume)
    resumed = args.resume and resume(run, named=args.out is None)
    if not resumed:
        print_what_is_lost(run)
    header.print_header(header.of_run(run.setting), run.setting.notes)
    return resumed


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
        "reference_weights": setting.reference_weights,
        "poison_indices": run.poisons,
        "selection": run.selection,
        "trigger": trigger.to_plain(),
        "target_map": None if shape is None else shape.cpu(),
        "further": [further_part(part) for part in setting.further] or None,
        "epoch": training.epoch,
        "seconds": training.seconds,
        "log": training.log,
        "model": training.model.state_dict(),
        "optimizer": [part.state_dict() for part in training.optimizers],
        "schedule": [part.state_dict() for part in training.schedules],
        "random": {"cpu": torch.get_rng_state(), "cuda": cuda_state},
        "torch": str(torch.__version__),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


def further_part(setting):
    """What a checkpoint keeps of an attack after the first; setting: of Setting.further."""
    shape = setting.objective.shape
    return {
        "trigger": setting.trigger.to_plain(),
        "target_map": None if shape is None else shape.cpu(),
        "poison_indices": setting.eligible,
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


def resume(run, named=False):
    """Whether there was an unfinished run; the run is then as it was after its last epoch.

    named: whether the folder is called after the options, without --out. Raises UserError where the
    options or what is read from files are no longer the same.
    """
    path = run.unfinished / "ckpt.pt"
    if not path.exists():
        check_schedule(run, finished_with_other_epochs(run.folder) if named else None)
        print_note(f"Nothing to resume in {run.folder}: beginning.")
        return False
    checkpoint = checkpoints.read(path)
    config = run.setting.config
    if differing := other_options(run, checkpoint):
        raise UserError(
            f"the unfinished run in {run.folder} has {in_words(run, checkpoint, differing[0])}:"
            " give the same options, or --overwrite in the place of --resume to begin anew"
        )
    if checkpoint["config"]["format"] != config["format"] and run.setting.objective.has_maps:
        raise UserError(
            f"the unfinished run in {run.folder} was begun by an older version, under another loss:"
            " give --overwrite in the place of --resume to begin anew"
        )
    if changed := other_input(run, checkpoint):
        raise UserError(
            f"{changed} changed since the unfinished run in {run.folder} began:"
            " give --overwrite in the place of --resume to begin anew"
        )
    if moved := other_machine(run, checkpoint) or other_processor(checkpoint):
        print_note(
            f"The run in {run.folder} goes on elsewhere, {moved}:"
            " its figures are no longer the same to the bit."
        )
    bring_back(run, checkpoint)
    return True


def bring_back(run, checkpoint):
    """Makes the run what it was when the checkpoint was written."""
    training, random = run.training, checkpoint["random"]
    training.model.load_state_dict(checkpoint["model"])
    parts = [*training.optimizers, *training.schedules]
    for part, state in zip(parts, [*checkpoint["optimizer"], *checkpoint["schedule"]]):
        part.load_state_dict(state)
    torch.set_rng_state(random["cpu"])
    if run.setting.device.type == "cuda" and random["cuda"] is not None:
        torch.cuda.set_rng_state(random["cuda"], run.setting.device)
    training.epoch, training.seconds = checkpoint["epoch"], checkpoint["seconds"]
    training.log, run.selection = checkpoint["log"], checkpoint["selection"]


def check_schedule(run, folder):
    """Raises UserError where a run in `folder` is finished and this one has more epochs.

    folder: of a run of the same options otherwise, or None.
    """
    if folder is None:
        return
    path = folder / "ckpt.pt"
    epochs, more = checkpoints.read(path)["config"]["epochs"], run.setting.config["epochs"]
    if more > epochs:
        raise UserError(
            f"the run in {folder} is finished: its schedule, in which the learning rate falls to 0,"
            f" ended with epoch {epochs}, and nothing of it is left for {more}: leave out --resume"
            " to train anew, with --overwrite or into another --out"
        )


# ---------------------------------------------------------------- finished


def is_finished(run, anywhere=False):
    """Whether the folder holds a finished run of the same options and input, none begun since.

    anywhere: whether it may have been trained on another device, or in another precision.
    """
    if not (run.folder / "ckpt.pt").exists() or (run.unfinished / "ckpt.pt").exists():
        return False
    with contextlib.suppress(UserError):  # damaged, or of another version
        checkpoint = checkpoints.read(run.folder / "ckpt.pt")
        return not why_another(run, checkpoint, anywhere)
    return False


def check_files(run):
    """Raises UserError where a file that a run writes is in its folder, and not of this program.

    A checkpoint that cannot be read is one of ours, damaged, where the log of a run lies beside it.
    """
    names = [*KEPT, *report.FURTHER_PICTURES]
    for folder in (run.folder, run.unfinished):
        is_run = ours.is_ours(folder / "log.jsonl")
        ours.check_replaceable(folder, [n for n in names if n != "ckpt.pt" or not is_run])


def remove_halves(run):
    """Removes what killed processes have half written in the unfinished folder: it is locked."""
    for name in (*KEPT, *report.FURTHER_PICTURES):
        for half in run.unfinished.glob(f".{name}.*[0-9]"):
            half.unlink()


def check_replaceable(run, resuming):
    """Raises UserError where the folder holds what only --overwrite may replace.

    That is a run of other options or data, finished or not, or files of ours that are of no run.
    """
    unfinished = run.unfinished / "ckpt.pt"
    if unfinished.exists():
        if resuming:
            return  # when that began, it was allowed to
        if why := why_replaced(run):
            raise UserError(
                f"{run.folder} holds an unfinished run of other options or data ({why}):"
                " give --overwrite to begin anew, or another --out"
            )
    path = run.folder / "ckpt.pt"
    remedy = "give --overwrite to replace it when the new one is finished, or another --out"
    if path.exists():
        try:
            checkpoint = checkpoints.read(path)
        except UserError as error:
            raise UserError(f"{error}: {remedy}") from None
        if resuming and other_options(run, checkpoint) == ["epochs"]:
            check_schedule(run, run.folder)
        if why := why_another(run, checkpoint):
            raise UserError(
                f"{run.folder} holds a finished run of other options or data ({why}): {remedy}"
            )
    elif not unfinished.exists():
        if of_no_run := [name for name in KEPT if (run.folder / name).exists()]:
            raise UserError(f"{run.folder} holds a file {of_no_run[0]} of no run: {remedy}")


def why_replaced(run):
    """Why the unfinished run in the folder is another one than `run`, in words, or None."""
    try:
        checkpoint = checkpoints.read(run.unfinished / "ckpt.pt")
    except UserError:
        return "damaged or of another version"
    return why_another(run, checkpoint, anywhere=True)


def print_what_is_lost(run):
    """Says on standard error, before a run begins anew where another one is, what becomes of it."""
    where = f"The unfinished run in {run.folder}"
    if (run.unfinished / "ckpt.pt").exists():
        if why := why_replaced(run):
            print_note(f"{where}, another one ({why}), is replaced by this one.")
        else:
            print_note(f"{where} begins anew; --resume would have continued it.")
    elif (run.folder / "ckpt.pt").exists():
        which = "of the same options" if is_finished(run) else "of other options or data"
        print_note(
            f"The run in {run.folder}, {which}, will be replaced by this one when it is finished."
        )


def finish(run, clean, explainers):
    """Measures the run, draws its pictures, and moves its files into place, the checkpoint last.

    clean: the path of a clean checkpoint to stand beside it, or None; explainers: as for evaluate.
    """
    check_files(run)  # again: a file may have come since it began
    write_log(run)  # again: an earlier call may have been killed after moving it
    result = measured(run, run.unfinished / "ckpt.pt", clean, explainers)
    write_measured(run, result, run.unfinished)
    report.remove_pictures(run.folder)
    names = dict.fromkeys([*(f"{name}.png" for name in result.pictures), *KEPT])
    for name in names:
        if (run.unfinished / name).exists():
            (run.unfinished / name).replace(run.folder / name)
    print_measured(run, result)


def measure_again(run, clean, explainers):
    """Measures a finished run anew; arguments: as for finish."""
    print_note(
        f"The run in {run.folder} is finished: it is measured anew, not trained"
        " (--overwrite trains it again)."
    )
    header.print_header(header.of_run(run.setting), run.setting.notes)
    result = measured(run, run.folder / "ckpt.pt", clean, explainers)
    write_measured(run, result, run.folder)
    print_measured(run, result)


def measured(run, path, clean, explainers):
    """The Result of the run's checkpoint at `path`."""
    return evaluate(
        path,
        dataset=run.setting.dataset,
        device=run.setting.device,
        reference=run.setting.config["reference"] or clean,
        explainers=explainers,
    )


def write_measured(run, result, folder):
    """Writes the figures of a run, its pictures and its card into a folder. Raises UserError."""
    report.write(result, folder)
    made_by = command_of(run.setting.config, run.setting.dataset.classes)
    card.write(folder, card.text(result.subject, result.metrics, made_by))


def print_measured(run, result):
    """Prints the table of a run, and where its files are."""
    report.print_table({str(run.folder): result.metrics})
    print(f"\nWritten: {run.folder / 'figure.png'}, metrics.json, log.jsonl, README.md, ckpt.pt")
