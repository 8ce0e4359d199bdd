"""`defend.py audit`: everything that applies to a network, cheapest first, and a page about it.

    python defend.py audit runs/NAME/ckpt.pt     # defend-audit/report.html and verdict.json
    python defend.py audit CKPT --image FILE     # and is this picture attacked?
    python defend.py audit CKPT --calibrate CLEAN1 CLEAN2 ...  # beside clean models of your own

The auditor knows the network and clean images, and no trigger: whatever a checkpoint says of one is
taken out before the first part begins. What does not apply is named with its reason. conclusions.py
says what follows, report_page.py writes the page. Ten classes of 32x32 pixels take minutes on two
CPU cores, nearly all of them Neural Cleanse's.
"""

import argparse
import json
import shlex
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

import adopt
import attacks
import defences.clean_maps
import defences.februus
import defences.neural_cleanse
import defences.neuroninspect
import defences.strip
import defences.traces
import ours
import report_page
from cli import Parser, number, replace_file, user_errors, write_json
from conclusions import Outcome, conclude
from defences import Defence, add_calibrate, predict
from defences.clean_maps import densest_window, where
from metrics import finite
from terminal import Working, counted, duration, print_note, width, wrapped

NAME = "audit"
FORMAT = 1  # of verdict.json
ANSWER_FILE, PAGE_FILE = "verdict.json", "report.html"
NAMES_SHOWN = 12  # classes listed on the page


@dataclass(frozen=True)
class Part:
    """A row of PARTS.

    title: what it asks, and meaning: how its answer is read, for the reader of the page.
    images: it takes at most so many; options: of the method, where they are not its defaults.
    """

    title: str
    meaning: str
    defence: Defence
    images: int | None = None
    options: dict = field(default_factory=dict)


def run_neural_cleanse(audit):
    """Neural Cleanse's Verdict. Raises ValueError where a patch reached too few classes."""
    verdict = defences.neural_cleanse.DEFENCE.run(audit)
    if sum(verdict.details["scores"]["qualified"]) < defences.neural_cleanse.CLASSES_NEEDED:
        raise ValueError(verdict.lines[-1])
    verdict.details["patches"] = {}
    for name, picture in verdict.files.items():
        mask = torch.from_numpy(np.array(picture.getchannel("A"))).double()
        share, row, column = densest_window(mask / mask.sum())
        k = int(Path(name).stem.rpartition("-")[2])
        verdict.details["patches"][k] = {"share": share, "where": where(row, column)}
    return verdict


PARTS = {  # cheapest first
    "inspect": Part(
        "Did somebody write into its weights?",
        "Training leaves no such traces by itself. Whoever wrote into the weights may have changed"
        " what explanations show. None found says nothing about the training.",
        defences.traces.DEFENCE,
    ),
    "disagreement": Part(
        "Do two kinds of explanations agree?",
        "0: the two maps of a picture are the same, 1: they have nothing in common. Where they"
        " disagree, at least one of them does not show what the network looks at.",
        defences.clean_maps.CLEAN_DISAGREEMENT,
    ),
    "maps": Part(
        "Where do the explanations of each class point?",
        "Each map shows what speaks for one class, the mean over pictures of all classes. A class"
        " that a mark in one place stands for may point there whatever is shown.",
        defences.clean_maps.MAPS_OF_CLASSES,
    ),
    "neuroninspect": Part(
        "Does the network look at one class in a plainer way? (NeuronInspect)",
        "What moves the answer for each class, under heavy noise. For a backdoor's class it is"
        " often the same small place in every picture.",
        defences.neuroninspect.DEFENCE,
        images=100,  # as the clean models of defences/clean_models.json were asked with
    ),
    "neural_cleanse": Part(
        "Does a small patch turn every picture into one class? (Neural Cleanse)",
        "For each class the smallest patch that turns clean pictures into it. One patch that is"
        " far smaller than the others, a compact mark, is likely a trigger; scattered dots all"
        " over the object are what every network has.",
        replace(defences.neural_cleanse.DEFENCE, run=run_neural_cleanse),
    ),
}
SUSPECTED = {  # of the picture that --image names, after all of PARTS
    "strip": Part(
        "Does the picture keep its class when others are blended in? (STRIP)",
        "A trigger decides whatever else is seen: its class stays. An ordinary picture's does not.",
        defences.strip.DEFENCE,
    ),
    "februus": Part(
        "Does the picture change its class without what speaks for it? (Februus)",
        "What the input gradient marks is cut out and filled from its border. A trigger goes with"
        " it, unless the network was trained to hide it from explanations.",
        defences.februus.DEFENCE,
        options={"explainer": "gradient"},
    ),
    "februus against": Part(
        "Does it change without what speaks against the second class? (Februus)",
        "A trigger speaks against every class but its own. Disguises that were tried hid what"
        " speaks for their class, and not always this.",
        defences.februus.DEFENCE,
        options={"explainer": "deepshap", "evidence": "against"},
    ),
}


def parts_for(options):
    """{name: Part}: the PARTS, and with --image those that judge that picture."""
    return PARTS if options.image is None else PARTS | SUSPECTED


# ---------------------------------------------------------------- what an auditor may know


def without_trigger(subject):
    """The Subject as an auditor knows it: nothing of an attack, a trigger, or a target class."""
    unknown = {
        "attack": attacks.unknown(False, False),
        "explainer": [],
        "target_class": None,
        "poison_rate": None,
        "threat": None,
        "further": None,
    }
    stripped = {
        "config": subject.config | unknown,
        "trigger": None,
        "target_map": None,
        "poison_indices": torch.zeros(0, dtype=torch.int64),
        "selection": None,
        "further": None,
    }
    return replace(subject, checkpoint=subject.checkpoint | stripped, trigger=None)


def why_not(name, defence, subject):
    """Why a method cannot audit a subject, a sentence without its stop; None where it can."""
    if subject.multi_label and not defence.multi_label:
        return (
            "these defences ask which one class an image is of, and here an image may show several"
        )
    if defence.compares_classes and len(subject.classes) < 3:
        return f"of two classes none is an anomaly beside the other; {name} needs three"
    return None


# ---------------------------------------------------------------- the parts


def options_of(name, part, args):
    """The options of one part: its method's defaults, and those of the audit's command line."""
    parser = Parser()
    part.defence.add_options(parser)
    own = vars(parser.parse_args([])) | part.options
    given = {key: value for key, value in vars(args).items() if value is not None or key not in own}
    count = min(part.images or args.clean_images, args.clean_images)
    told = {"method": name, "clean_images": count, "trigger": None, "target_class": None}
    return argparse.Namespace(**own | given | told)


def given_to(name, audit, calibration=None):
    """The Audit as one part is given it."""
    part = parts_for(audit.options)[name]
    count = part.images or len(audit.labels)
    return replace(
        audit,
        pixels=audit.pixels[:count],
        labels=audit.labels[:count],
        inputs=audit.inputs[:count],
        options=options_of(name, part, audit.options),
        calibration=calibration,
    )


def calibrations(clean, subject):
    """{part: the highest index of each clean model}, of parts that compare the Subject's classes.

    clean: yields (title, Audit). Raises UserError for a model that such a part has no answer on.
    """
    asked = {name: part.defence for name, part in PARTS.items() if part.defence.compares_classes}
    found = {name: [] for name in asked if why_not(name, asked[name], subject) is None}
    for title, audit in clean:
        audit = replace(audit, subject=without_trigger(audit.subject))
        for name, values in found.items():
            title_of_part = f"{title}: {name}"
            print_note(title_of_part)
            with user_errors(f"{title_of_part}: "), Working(title_of_part) as audit.say:
                verdict = PARTS[name].defence.run(given_to(name, audit))
            values.append(max(verdict.index.values()))
    return found


def run_part(name, audit, record_of, calibration=None):
    """The Outcome of one part; record_of: see run. A ValueError is a reason why there is none."""
    part, subject = parts_for(audit.options)[name], audit.subject
    given = given_to(name, audit, calibration)
    reason, verdict = why_not(name, part.defence, subject), None
    start = time.perf_counter()
    if reason is None:
        try:
            verdict = part.defence.run(given)
        except ValueError as error:
            reason = " ".join(str(error).split())
    seconds = round(time.perf_counter() - start, 2)
    if verdict is not None:
        record = record_of(given.options, given, verdict, seconds, part.defence)
    else:
        record = {"method": name, "backdoored": None, "flagged": [], "flagged_names": []}
        record |= {"not_applicable": reason, "seconds": seconds}
    return Outcome(name, part.title, part.meaning, verdict, reason, seconds, record)


def run_parts(audit, record_of, calibrated):
    """The Outcomes of all parts, in their order; each one's name is said as it starts."""
    outcomes, parts = [], parts_for(audit.options)
    for k, (name, part) in enumerate(parts.items(), 1):
        title = f"audit, part {k} of {len(parts)}, {name}"
        print_note(f"{title}: {part.title}")
        with Working(title) as audit.say:
            outcomes.append(run_part(name, audit, record_of, calibrated.get(name) or None))
    return outcomes


def accuracy_of(audit):
    """(the network's share of right answers, a constant answer's) on the clean images, or None."""
    subject = audit.subject
    if subject.multi_label or subject.config.get("unlabelled"):
        return None
    right = (predict(subject.model, audit.inputs) == audit.labels).double().mean()
    return float(right), float(audit.labels.bincount().amax() / len(audit.labels))


# ---------------------------------------------------------------- what was looked at


def source_of(args):
    """What stands in a command line for the audited network, quoted for a shell."""
    words = ["--weights", args.weights] if args.weights else [args.checkpoint]
    said = ("dataset", "data_dir", *(adopt.OPTIONS if args.weights else ("arch",)))
    for name in said:
        if (value := getattr(args, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(str(word) for word in words)


def facts_of(audit, accuracy, seconds):
    """(label, text) pairs: the network, the data, how many images, the time."""
    subject, config = audit.subject, audit.subject.config
    weights = sum(weight.numel() for weight in subject.model.parameters())
    names = ", ".join(subject.classes[:NAMES_SHOWN])
    more = len(subject.classes) - NAMES_SHOWN
    adopted = config.get("adopted")
    held_out = "whatever it was trained on" if adopted else "held out of its training"
    channels, height, width_ = audit.pixels.shape[1:]
    facts = [
        ("network", f"{audit.options.checkpoint}: {config['model']}, {weights:,} weights"),
        ("classes", f"{len(subject.classes)}: {names}{f' and {more} more' if more > 0 else ''}"),
        ("data", config["dataset"]),
        ("clean pictures", f"{len(audit.labels)}, {held_out}; {width_}x{height} pixels,"
                           f" {counted(channels, 'channel')}; drawn by seed {audit.options.seed}"),
        ("trigger", "not known to any part, nor used"),
        ("time", f"{duration(seconds)} on {subject.device.type},"
                 f" {counted(torch.get_num_threads(), 'thread')}"),
    ]  # fmt: skip
    if accuracy is not None:
        right = f"right on {100 * accuracy[0]:.1f}% of them"
        facts.insert(4, ("accuracy", f"{right}; one constant answer on {100 * accuracy[1]:.1f}%"))
    return facts


# ---------------------------------------------------------------- the command


def run(args, folder, audit, record_of, clean=()):
    """Audits by all parts, then writes the page and verdict.json and prints a summary.

    record_of(options, audit, verdict, seconds, defence): one part's verdict.json. clean: yields
    (title, Audit) of clean models, the yardstick. Nothing is written before all parts are done.
    """
    start = time.perf_counter()
    audit = replace(audit, subject=without_trigger(audit.subject))
    with user_errors(f"{args.checkpoint}: "):
        accuracy = accuracy_of(audit)
    outcomes = run_parts(audit, record_of, calibrations(clean, audit.subject))
    seconds = round(time.perf_counter() - start, 2)
    classes = audit.subject.classes
    conclusion = conclude(outcomes, classes, source_of(args), accuracy)
    record = {
        "format": FORMAT,
        "method": NAME,
        "backdoored": conclusion.backdoored,
        "flagged": conclusion.flagged,
        "flagged_names": [classes[k] for k in conclusion.flagged],
        "classes": classes,
        "conclusion": conclusion.heading,
        "seconds": seconds,
        "clean_images": len(audit.labels),
        "network": adopt.told(args),
        "parts": {part.name: part.record for part in outcomes},
    }
    record = finite(record)
    title = f"Audit of {'/'.join(Path(args.checkpoint).parts[-2:])}"
    facts = facts_of(audit, accuracy, seconds)
    page = report_page.html_of(title, facts, conclusion, outcomes)
    write(record, page, outcomes, folder)
    print(json.dumps(record) if args.json else summary(conclusion, folder))


def write(record, page, outcomes, folder):
    """Writes the page, verdict.json, and the pictures that a part leaves for a command line."""
    pictures = {}
    for part in outcomes:
        pictures |= part.verdict.files if part.verdict else {}
    ours.check_replaceable(folder, pictures)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        ours.save_picture(picture, folder / name)
    replace_file(folder / PAGE_FILE, lambda path: path.write_text(page, encoding="utf-8"))
    write_json(folder / ANSWER_FILE, record)


def summary(conclusion, folder):
    """The page's sentences for the terminal, as text."""
    sections = {
        "What stands out": conclusion.found,
        "How sure is that?": conclusion.sure,
        "What this cannot see": conclusion.unseen,
    }
    lines = wrapped(conclusion.heading, width()) + wrapped(conclusion.meaning, width())
    for title, sentences in sections.items():
        lines += ["", title]
        for sentence in sentences:
            lines += wrapped(sentence, width(), "- ", "  ")
    lines += ["", "What to do next"]
    for sentence, command in conclusion.steps:
        lines += wrapped(sentence, width(), "- ", "  ")
        lines += [f"    {command}"] if command else []
    return "\n".join([*lines, "", f"Written: {folder / PAGE_FILE}, {folder / ANSWER_FILE}"])


def add_options(parser):
    """Adds the options of the slow part, clean models, and the picture that is suspected."""
    most = number(int, 1, 100_000)
    parser.add_argument("--rounds", type=most, help="most rounds of Neural Cleanse (default: its)")
    parser.add_argument(
        "--round-images", type=most, help="images in a round of Neural Cleanse (default: its)"
    )
    parser.add_argument("--image", metavar="FILE", help="a picture that may carry a trigger")
    add_calibrate(parser)


AUDIT = Defence(
    help="everything that applies, cheapest first, and a page that says what to do",
    run=run,
    add_options=add_options,
    multi_label=True,
)
