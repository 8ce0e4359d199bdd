"""Audits a checkpoint: is it backdoored, with which target class, and can it be repaired?

    python defend.py METHOD runs/NAME/ckpt.pt
    python defend.py METHOD --help                # the options of a method

A defence sees the checkpoint and clean images that were held out of its training, never the
trigger, which is for the score alone. Prints a table, and writes into defend-METHOD/ beside the
checkpoint: verdict.json, figure.png and, of the methods that repair, ckpt.pt for evaluate.py.

On two CPU cores: a minute for neural_cleanse and prune of ten classes, seconds for the others.
"""

import interrupts  # noqa: F401  # isort: skip

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import adopt
import checkpoints
import defences.batchnorm
import defences.disagreement
import defences.februus
import defences.neural_cleanse
import defences.neuroninspect
import defences.prune
import defences.sentinet
import defences.strip
import defences.traces
import evaluate
import figure
import header
from cli import (
    Parser,
    UserError,
    checkpoint_path,
    choose_device,
    command,
    number,
    replace_file,
    user_errors,
    write_json,
)
from data import normalise
from defences import PUBLISHED_THRESHOLD, Audit
from defences.neural_cleanse import neural_cleanse as neural_cleanse  # defend.neural_cleanse
from metrics import finite
from report import DEFINITIONS, show
from subject import open_checkpoint
from terminal import Working, paragraphs, width, wrapped

METHODS = {
    "neuroninspect": defences.neuroninspect.DEFENCE,
    "neural_cleanse": defences.neural_cleanse.DEFENCE,
    "prune": defences.prune.DEFENCE,
    "rebn": defences.batchnorm.REBN,
    "cfn": defences.batchnorm.CFN,
    "disagreement": defences.disagreement.DEFENCE,
    "februus": defences.februus.DEFENCE,
    "sentinet": defences.sentinet.DEFENCE,
    "strip": defences.strip.DEFENCE,
    "inspect": defences.traces.DEFENCE,
}
ANSWERS = {True: "Backdoored", False: "No backdoor found", None: "No verdict"}
CHANCE = (
    " Of scores that are Gaussian one is, by chance, in a third of models with 10 classes "
    "and in two thirds of those with 43."
)
NO_SETTING = {"method", "checkpoint", "data_dir", "dataset", "device", "out", "json"}
NO_SETTING |= {"weights", "fit", "trigger_position", *adopt.OPTIONS}
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
    for name, defence in METHODS.items():
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


def settings(args):
    """What decides a verdict beside the checkpoint: the method's options, and its constants."""
    options = {key: value for key, value in vars(args).items() if key not in NO_SETTING}
    return options | METHODS[args.method].settings(args)


@command
def main(argv):
    args = parse(argv)
    folder = folder_of(args)
    audit = open_audit(args)
    header.print_header(header.of_audit(audit, args.checkpoint))
    start = time.perf_counter()
    with user_errors(f"{args.method}: "), Working(args.method) as audit.say:
        verdict = METHODS[args.method].run(audit)
    seconds = round(time.perf_counter() - start, 2)
    before, after = repair(audit, verdict, folder) if verdict.repaired else (None, None)
    classes = audit.subject.classes
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
        "settings": settings(args),
    }
    record = finite(record | verdict.details)
    write(record, verdict.picture, folder)
    if args.json:
        print(json.dumps(record))
    else:
        print_verdict(verdict, folder)


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
    defence = METHODS[args.method]
    path = args.checkpoint
    if subject.multi_label and not defence.multi_label:
        raise UserError(
            f"{path}: these defences ask which one class an image is of, "
            "and here an image may show several"
        )
    if defence.compares_classes and len(subject.checkpoint["classes"]) < 3:
        raise UserError(
            f"{path}: of two classes none is an anomaly beside the other; {args.method} needs three"
        )
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
    verdict.lines.append("\nAll test images, by evaluate.py:")
    for key in REPAIR_SHOWN:
        if before[key] is None and after[key] is None:  # accuracy and AUROC are of one task each
            continue
        change = f"{show(before[key]):>8} -> {show(after[key]):>8}"
        note = DEFINITIONS[key]
        verdict.lines += wrapped(note, width(), f"{key:<24}{change}  ", " " * 46)
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


def write(record, picture, folder):
    """Writes verdict.json and, if there is a picture, figure.png."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "verdict.json", record)
    if picture:
        replace_file(folder / "figure.png", lambda path: picture.save(path, format="PNG"))


def print_verdict(verdict, folder):
    """Prints a verdict's lines, its answer where it has one, and where the files are."""
    print(paragraphs("\n".join(verdict.lines)))
    threshold = verdict.details.get("threshold")
    if threshold is not None:
        chance = CHANCE if threshold == PUBLISHED_THRESHOLD else ""
        answer = ANSWERS[verdict.backdoored]
        print(paragraphs(f"\n{answer}: a class is flagged above {threshold:g}.{chance}"))
    elif verdict.backdoored is not None:
        print(f"\n{ANSWERS[verdict.backdoored]}.")
    print(f"\nWritten: {folder}")


if __name__ == "__main__":
    main()
