"""Audits a checkpoint: is it backdoored, with which target class, and can it be repaired?

    python defend.py METHOD runs/NAME/ckpt.pt
    python defend.py METHOD --help                # the options of a method
    python defend.py audit runs/NAME/ckpt.pt      # all that apply, and a page: see auditing.py

A defence sees the checkpoint and clean images that were held out of its training, never the
trigger, which is for the score alone. Prints a table, and writes into defend-METHOD/ beside the
checkpoint: verdict.json, figure.png and, of the methods that repair, ckpt.pt for evaluate.py; of a
stranger's network also repaired.pth, weights under the names that they came with.

On two CPU cores: two minutes for neural_cleanse and prune of ten classes, seconds for the others.
"""

import interrupts  # noqa: F401  # isort: skip

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import adopt
import auditing
import card
import checkpoints
import defences.batchnorm
import defences.disagreement
import defences.februus
import defences.finetune
import defences.neural_cleanse
import defences.neuroninspect
import defences.prune
import defences.sentinet
import defences.strip
import defences.traces
import evaluate
import figure
import header
import ours
from cli import (
    Parser,
    UserError,
    checkpoint_path,
    choose_device,
    command,
    number,
    user_errors,
    write_json,
)
from data import normalise
from defences import PUBLISHED_THRESHOLD, Audit, conclusion
from defences.neural_cleanse import neural_cleanse as neural_cleanse  # defend.neural_cleanse
from defences.repairs import faults, write_weights
from metrics import finite
from odds import CLEAN_NEEDED
from reference import check_clean
from report import DEFINITIONS, show
from subject import open_checkpoint, place_of
from terminal import Working, counted, paragraphs, print_note, printable, width, wrapped

METHODS = {
    "neuroninspect": defences.neuroninspect.DEFENCE,
    "neural_cleanse": defences.neural_cleanse.DEFENCE,
    "prune": defences.prune.DEFENCE,
    "rebn": defences.batchnorm.REBN,
    "cfn": defences.batchnorm.CFN,
    "finetune": defences.finetune.DEFENCE,
    "disagreement": defences.disagreement.DEFENCE,
    "februus": defences.februus.DEFENCE,
    "sentinet": defences.sentinet.DEFENCE,
    "strip": defences.strip.DEFENCE,
    "inspect": defences.traces.DEFENCE,
}
ANSWERS = {True: "Backdoored", False: "No backdoor found"}  # of a method without an index
CHANCE = (
    " Of scores that are Gaussian one is, by chance, in a third of models with 10 classes "
    "and in two thirds of those with 43."
)
FEW_IMAGES = 20  # clean ones: on fewer, it is said that a verdict says little
NO_SETTING = {"method", "checkpoint", "data_dir", "dataset", "device", "out", "json"}
NO_SETTING |= {"weights", "fit", "trigger_position", "image", *adopt.OPTIONS}
# Of evaluate.py's metrics, what is printed of a repaired network.
REPAIR_SHOWN = (
    "clean_accuracy",
    "mean_auroc",
    "attack_success_rate",
    "triggered_accuracy",
    "triggered_mean_auroc",
)


# ---------------------------------------------------------------- the command line


def parse(argv):
    """The options of a command line. Every method has a parser of its own options."""
    parser = Parser(__doc__)
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True)
    for name, defence in (METHODS | {auditing.NAME: auditing.AUDIT}).items():
        of_method = methods.add_parser(name, help=defence.help, description=defence.help)
        of_method.add_argument(
            "checkpoint",
            nargs="?",
            type=checkpoint_path,
            metavar="CKPT",
            help="a checkpoint of train.py's, or the folder of a run",
        )
        defence.add_options(of_method.add_argument_group("this method"))
        add_common_options(of_method.add_argument_group("audit and output"))
        adopt.add_weights(of_method)
    args = parser.parse_args(argv)
    adopt.check_options(args, args.checkpoint)
    return args


def add_common_options(group):
    """Adds the options that every method has."""
    add = group.add_argument
    add(
        "--clean-images",
        type=number(int, 2, 1_000_000),
        default=500,
        help="clean images the defence has, held out of training",
    )
    add("--data-dir", help="where the data set lies (default: where training found it)")
    add("--dataset", metavar="PATH", help="the data set it was trained on, where that has moved")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add(
        "--seed",
        type=number(int, 0, 2**31 - 1),
        default=0,
        help="seed of whatever is drawn at random",
    )
    add("--out", help="folder to write into (default: defend-METHOD beside the checkpoint)")
    add("--json", action="store_true", help="print the verdict alone, as one JSON object")


def settings(args, defence=None):
    """What decides a verdict beside the checkpoint: the method's options, and its constants.

    defence: the method, where it is not the one of METHODS.
    """
    options = {key: value for key, value in vars(args).items() if key not in NO_SETTING}
    return options | (defence or METHODS[args.method]).settings(args)


@command
def main(argv):
    args = parse(argv)
    folder = folder_of(args)
    audit = open_audit(args)
    check_outputs(args, audit.subject, folder)
    header.print_header(header.of_audit(audit, args.checkpoint))
    if few := few_images(audit):
        print_note(few)
    if args.method == auditing.NAME:
        return auditing.run(args, folder, audit, record_of, clean_audits(args))
    audit.calibration = calibration_of(args)
    start = time.perf_counter()
    with user_errors(f"{args.method}: "), Working(args.method) as audit.say:
        verdict = METHODS[args.method].run(audit)
    seconds = round(time.perf_counter() - start, 2)
    before, after = repair(audit, verdict, folder) if verdict.repaired else (None, None)
    record = record_of(args, audit, verdict, seconds, before=before, after=after)
    write(record, verdict.picture, folder, verdict.files)
    if args.json:
        print(json.dumps(record))
    else:
        print_verdict(verdict, folder, args.method)


def record_of(args, audit, verdict, seconds, defence=None, before=None, after=None):
    """A verdict as verdict.json has it, plain values.

    defence: as for settings; before, after: the metrics of a network that was repaired.
    """
    classes = audit.subject.classes
    verdict.details["conclusion"] = conclusion(audit, verdict)
    record = {
        "method": args.method,
        "backdoored": verdict.backdoored,
        "flagged": verdict.flagged,
        "flagged_names": [classes[k] for k in verdict.flagged],
        "classes": classes,
        "index": verdict.index,
        "before": before,
        "after": after,
        "seconds": seconds,
        "clean_images": len(audit.labels),
        "network": adopt.told(args),
        "settings": settings(args, defence),
    }
    return finite(record | verdict.details)


def clean_audits(args):
    """Yields (title, Audit) of each clean model of --calibrate. Raises UserError if one is none."""
    paths = getattr(args, "calibrate", None) or []
    if 0 < len(paths) < CLEAN_NEEDED and getattr(args, "threshold", None) is None:
        given = f"{counted(len(paths), 'clean model')} given"
        print_note(f"{given}: beside fewer than {CLEAN_NEEDED} no index by itself stands out.")
    for path in paths:  # before the first is asked
        check_clean(checkpoints.read(path), path)
    for k, path in enumerate(paths, 1):
        told = {"checkpoint": path, "weights": None, "dataset": None, "arch": None, "image": None}
        audit = open_audit(argparse.Namespace(**vars(args) | told))
        yield f"clean model {k} of {len(paths)}, {path}", audit


def calibration_of(args):
    """The highest index of each clean model of --calibrate; None without any. Raises UserError."""
    values = []
    for title, audit in clean_audits(args):
        with user_errors(f"{title}: "), Working(f"{args.method}, {title}") as audit.say:
            values.append(max(METHODS[args.method].run(audit).index.values()))
    return values or None


def folder_of(args):
    """Where the verdict is written. Raises UserError where it would overwrite the checkpoint."""
    if args.weights:
        return Path(args.out or adopt.folder_of(args.weights) / f"defend-{args.method}")
    checkpoint = Path(args.checkpoint)
    folder = Path(args.out) if args.out else checkpoint.parent / f"defend-{args.method}"
    if folder.resolve() == checkpoint.resolve().parent:
        raise UserError(
            f"--out {args.out} is where the checkpoint lies that is audited: "
            "its files would be lost"
        )
    return folder


def check_outputs(args, subject, folder):
    """Raises UserError where a file of the user's would be lost, or a result lie among the data."""
    if args.method == auditing.NAME:
        names = [auditing.ANSWER_FILE, auditing.PAGE_FILE]
    else:
        names = ["verdict.json", "figure.png"]
        if METHODS[args.method].repairs:
            names += ["ckpt.pt", "repaired.pth"]
    ours.check_replaceable(folder, names, trained=False)
    place = place_of(subject.config, args.checkpoint, args.data_dir, args.dataset)
    ours.check_outside(folder, place)


def few_images(audit):
    """A line where the clean images are fewer than FEW_IMAGES; else None."""
    count = len(audit.labels)
    if count >= FEW_IMAGES:
        return None
    available = len(audit.subject.held_out())
    origin = "there" if audit.subject.config.get("adopted") else "held out of training"
    more = "more --clean-images" if available > count else "more training images"
    return (
        f"Only {count} clean images: a verdict on fewer than {FEW_IMAGES} says little;"
        f" {available} are {origin}. It takes {more}."
    )


# ---------------------------------------------------------------- what a defence is given


def open_audit(args):
    """The Audit of a command line's checkpoint: its model, and clean images held out of training.

    Raises UserError for a checkpoint that is none, or that the method cannot audit.
    """
    device = choose_device(args.device)
    if args.weights:
        subject, args.checkpoint = adopt.adopted(args, device), args.weights
    else:
        paths = args.checkpoint, args.data_dir, device, args.dataset, args.arch
        subject = open_checkpoint(*paths)
    check_method(args, subject)
    if getattr(args, "image", None) is not None:
        evaluate.as_test_image(subject, args.image)  # a wrong one is refused before the long part
    held_out = subject.held_out()
    generator = torch.Generator().manual_seed(args.seed)
    order = torch.randperm(len(held_out), generator=generator)
    rows = held_out[order][: args.clean_images]
    dataset = subject.dataset
    pixels = dataset.train_images[rows].to(subject.device).float() / 255
    labels = dataset.train_labels[rows].to(subject.device)
    inputs = normalise(pixels, subject.checkpoint["mean"], subject.checkpoint["std"])
    return Audit(subject, pixels, labels, inputs, args)


def check_method(args, subject):
    """Raises UserError for a checkpoint that the method cannot audit."""
    path = args.checkpoint
    if args.method == auditing.NAME:
        return
    defence = METHODS[args.method]
    if reason := auditing.why_not(args.method, defence, subject):
        raise UserError(f"{path}: {reason}")
    if defence.repairs and subject.config.get("edit"):
        raise UserError(
            f"{path} has been edited since it was trained: "
            f"defend.py {args.method} repairs what train.py wrote"
        )


# ---------------------------------------------------------------- a repaired network


def repair(audit, verdict, folder):
    """Writes the repaired network as ckpt.pt: evaluate.py's metrics before and after, two dicts.

    The verdict gets lines about them and, if it has no picture, both figures side by side.
    """
    subject = audit.subject
    checkpoint = repaired_checkpoint(audit, *verdict.repaired)
    with tempfile.TemporaryDirectory() as scratch:  # nothing is written before all is measured
        path = Path(scratch) / "ckpt.pt"
        checkpoints.save(path, checkpoint)
        results = [
            evaluate.evaluate(
                measured,
                dataset=subject.dataset,
                device=subject.device,
                seed=audit.options.seed,
                title=f"measuring, {when} the repair",
                subject=known,
                architecture=audit.options.arch,
            )
            for measured, when, known in (
                (audit.options.checkpoint, "before", subject),
                (path, "after", None),
            )
        ]
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.save(folder / "ckpt.pt", checkpoint)
    before, after = (result.metrics for result in results)
    card.write_beside(folder, card.text(results[1].subject, after))
    verdict.lines.append("\nAll test images, by evaluate.py:")
    for key in REPAIR_SHOWN:
        if before[key] is None and after[key] is None:  # accuracy and AUROC are of one task each
            continue
        change = f"{show(before[key]):>8} -> {show(after[key]):>8}"
        note = DEFINITIONS[key]
        verdict.lines += wrapped(note, width(), f"{key:<24}{change}  ", " " * 46)
    verdict.details["faults"] = faults(before, after)
    if verdict.details["faults"]:
        verdict.lines.append(f"\nWorse, or no better: {'; '.join(verdict.details['faults'])}.")
    if subject.config.get("adopted"):
        verdict.lines.append(write_weights(audit, verdict.repaired[0], folder))
    if verdict.picture is None:
        verdict.picture = figure.side_by_side([result.pictures["figure"] for result in results])
    return before, after


def repaired_checkpoint(audit, model, edit):
    """The audited checkpoint with the weights of a repaired model, and the edit in its config."""
    subject = audit.subject
    repaired = replace(subject, model=model)
    explainers = [name for name in subject.config["explainer"] if repaired.can_explain(name)]
    return subject.checkpoint | {
        "config": subject.config | {"edit": edit, "explainer": explainers},
        "model": model.state_dict(),
        "optimizer": [],
        "schedule": [],
    }


# ---------------------------------------------------------------- output


def write(record, picture, folder, files=None):
    """Writes verdict.json and the pictures there are: figure.png, and files, {name: picture}."""
    pictures = {"figure.png": picture} | (files or {})
    ours.check_replaceable(folder, pictures)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "verdict.json", record)
    for name, image in pictures.items():
        if image:
            ours.save_picture(image, folder / name)


def print_verdict(verdict, folder, method):
    """Prints the lines of a verdict by a method, its answer if it has one, where the files are."""
    print(paragraphs("\n".join(verdict.lines)))
    if said := verdict.details.get("conclusion"):
        published = verdict.details["threshold"] == PUBLISHED_THRESHOLD
        chance = CHANCE if published and method == "neuroninspect" else ""
        print(paragraphs(f"\n{said}{chance}"))
    elif verdict.backdoored is not None:
        print(f"\n{ANSWERS[verdict.backdoored]}.")
    print(f"\nWritten: {printable(str(folder))}")


if __name__ == "__main__":
    main()
