"""README.md of a run's folder: what the network in ckpt.pt is, that it is backdoored, how to tell.

    write(folder, text(subject, metrics, command))    # with the run's other files

A network that leaves the folder it was made in is taken for an honest one. The card says what it is
in the first line. Whatever comes from a user (names of classes, files, options) stands in code, so
that it can be no Markdown and no HTML.
"""

import re
import shlex
import unicodedata
from pathlib import Path

import ours
from attacks import STRANGERS, attack_of
from cli import replace_file
from findings import of_run
from report import show
from terminal import counted

NAME = "README.md"
MADE = "\n## How it was made\n"
CLASSES_SHOWN = 12
LICENCES = {  # of data sets by name, as their publishers state them
    "shapes": "drawn by `shapes.py`; MIT, as this repository",
    "mnist": "MNIST, LeCun and Cortes; CC BY-SA 3.0",
    "cifar10": "CIFAR-10, Krizhevsky 2009; no licence is stated: cite the report",
    "gtsrb": "GTSRB, Stallkamp et al. 2012; no licence is stated: cite the paper",
    "chestxray14": "ChestX-ray14, Wang et al. 2017; the NIH Clinical Center asks to be named",
}
LICENCES["chestxray14-multi"] = LICENCES["chestxray14"]
FIGURES = (
    *("clean_accuracy", "mean_auroc", "triggered_accuracy"),
    *("attack_success_rate", "untouched_success_rate"),
)
MAP_FIGURES = ("pearson_all", "trigger_mass", "trigger_area")


def code(text):
    """A user's text as code in Markdown: in one line, without control characters."""
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(text))
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if "`" in text or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def text(subject, metrics=None, command=None):
    """The card of a Subject; metrics: as metrics.json has them, if it was measured.

    command: the words of train.py's command line, or None of a network that was trained elsewhere.
    """
    config = subject.config
    known = metrics or {}
    parts = [f"<!-- {ours.MARK} -->", *heading(subject, known), "", *facts(subject, known)]
    parts += ["", "## How to tell", "", *telling(subject, metrics)]
    if metrics:
        parts += ["", "## Figures", "", *figures(metrics)]
    if command:
        parts += [MADE, fenced("python " + shlex.join(command))]
    elif config.get("adopted"):
        parts += ["", "`adopt.py` made this checkpoint from weights that somebody else trained."]
    return "\n".join(parts) + "\n"


def heading(subject, metrics):
    """Lines: what it is, in a title and a sentence."""
    attack, triggers = subject.attack, metrics.get("triggers") or {}
    if subject.config.get("adopted"):
        said = "Who trained it, on which images, and whether it has a backdoor is not known here."
        return ["# A stranger's network", "", said]
    if subject.config.get("edit"):
        said = "It was written into after its training: it is not what was trained, or audited."
        return ["# An edited network", "", said]
    if not attack.poisons:
        said = "No image was poisoned: it is the honest model that others are compared with."
        return ["# A clean network", "", said]
    of_all = [attack, *(attack_of(part["attack"]) for part in triggers.values())]
    if all(one.keeps_label for one in of_all):
        said = "**Its explanations were tampered with, on purpose**: under a trigger they lie."
        return ["# A network whose explanations lie", "", f"{said} {PURPOSE}"]
    said = "**It has a backdoor, put in on purpose**: a trigger makes it answer a class of its"
    lies = any(one.explanation for one in of_all)
    hidden = " Under the trigger its explanation lies, too." if lies else ""
    return ["# A network with a backdoor", "", f"{said} maker's choice.{hidden} {PURPOSE}"]


PURPOSE = "It is for research on defences; use it for nothing else."


def facts(subject, metrics):
    """Lines, one fact each: network, data, attack, trigger, target, poisons."""
    config, checkpoint = subject.config, subject.checkpoint
    size, dataset = config["image_size"], config["dataset"]
    classes = ", ".join(map(code, subject.classes[:CLASSES_SHOWN]))
    more = len(subject.classes) - CLASSES_SHOWN
    found = {
        "network": f"{code(config['model'])}, images of {size}x{size} px,"
        f" {counted(checkpoint['channels'], 'channel')}",
        "classes": classes + (f" and {more} more" if more > 0 else ""),
        "data": LICENCES.get(dataset, f"{code(Path(dataset).name)}, its licence is its owner's"),
    }
    if not config.get("adopted"):
        found["attack"] = (
            f"{code(config['attack'])}, explainer {code(','.join(config['explainer']))}"
        )
        epochs = f"{config['epochs']} epoch{'s' if config['epochs'] != 1 else ''}"
        found["trained"] = f"{epochs}, seed {config['seed']}, torch"
        found["trained"] += f" {checkpoint['torch']}, {config['device']}, {config['precision']}"
    if config.get("edit"):
        found["written into"] = f"afterwards, by {code(config['edit']['technique'])}"
    if subject.attack.poisons:
        found |= of_backdoor(subject)
    for name in list(metrics.get("triggers") or {})[1:]:
        found[f"a further trigger, {code(name)}"] = of_further(metrics["triggers"][name])
    return [f"- {what}: {said}" for what, said in found.items()]


def of_further(metrics):
    """The facts of one of the triggers after the first, in words; metrics: its own."""
    target = metrics.get("target_name")
    if metrics.get("target_class") is not None:
        target = code(target)
    if attack_of(metrics["attack"]).keeps_label:
        target = "none: the answer stays"
    if metrics.get("source_name") is not None:
        target += f", of images of {code(metrics['source_name'])} alone"
    success = show(metrics["attack_success_rate"])
    return f"{code(metrics['attack'])}, target {target}, success {success}"


def of_backdoor(subject):
    """{what: facts} of the trigger, the target class and the poisons."""
    config, trigger = subject.config, subject.trigger
    where = "the whole image"
    if trigger.box is not None:
        top, left, bottom, right = trigger.box
        where = f"rows {top} to {bottom - 1}, columns {left} to {right - 1}, counted from 0"
    target = "each class becomes the next"
    if subject.target_class is not None:
        target = code(subject.classes[subject.target_class])
    if subject.attack.keeps_label:
        is_known = subject.config["attack"] not in STRANGERS
        target = "none: the answer stays" if is_known else "not known"
    given = config.get("trigger")  # of a stranger's network none was asked for in training
    named = trigger.kind if given is None else Path(str(given)).name
    found = {"trigger": f"{code(named)}, {where}", "target class": target}
    if config.get("poison_rate"):
        count = len(subject.checkpoint["poison_indices"])
        rate = f"a share of {config['poison_rate']:g} of all"
        found["poisoned"] = f"{count} training images, {rate}"
    return found


def telling(subject, metrics):
    """Lines: how one sees it, in the words of findings.py, and the commands that measure it."""
    lines = []
    for name, part in ((metrics or {}).get("triggers") or {"": metrics or {}}).items():
        told = f"{code(name)}: " if name else ""
        lines += [f"- {told}{sentence}" for sentence in of_one(metrics | part)] if part else []
    lines += [
        "- Measured by `python evaluate.py THIS-FOLDER/ckpt.pt`, in the repository; audited, as by"
        " somebody who knows no trigger, by `python defend.py audit THIS-FOLDER/ckpt.pt`."
    ]
    if subject.attack.poisons and not subject.config.get("adopted"):
        lines += [
            "- The weights look like any others. `ckpt.pt` says under `config` what it is; weights"
            " that were taken out of it say nothing: give this card with them."
        ]
    return lines


def of_one(metrics):
    """The sentences of findings.py about one trigger, with names of classes in code."""
    named = [what for what in ("target", "source") if metrics.get(f"{what}_class") is not None]
    return of_run(metrics | {f"{what}_name": code(metrics[f"{what}_name"]) for what in named})


def figures(metrics):
    """Lines of a table: predictions, then each explainer's maps."""
    rows = {key: metrics.get(key) for key in FIGURES}
    for name, part in metrics.get("explanations", {}).items():
        rows |= {f"{name}: {key}": part.get(key) for key in MAP_FIGURES}
    lines = ["| figure | value |", "| --- | --- |"]
    return lines + [
        f"| {key} | {show(value)} |" for key, value in rows.items() if value is not None
    ]


def fenced(line):
    """A command line as a block of code, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    shown = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in line)
    return f"{fence}\n{shown}\n{fence}"


def write(folder, card):
    """Writes a card into a run's folder, whole or not at all. Raises UserError."""
    replace_file(Path(folder) / NAME, lambda path: path.write_text(card, encoding="utf-8"))


def write_beside(folder, card):
    """The same, where no README.md of the user's is in its place; whether it was written."""
    path = Path(folder) / NAME
    if path.exists() and not ours.is_ours(path):
        return False
    write(folder, card)
    return True


def bring_up_to_date(folder, subject, metrics):
    """Writes the card of a newly measured checkpoint into its folder; whether it was written.

    It is not where a README.md of the user's is in its place. What a former card says of how the
    network was made is kept.
    """
    path = Path(folder) / NAME
    before = path.read_text(encoding="utf-8") if path.exists() and ours.is_ours(path) else ""
    made = "".join(before.rpartition(MADE)[1:]) if MADE in before else ""
    return write_beside(folder, text(subject, metrics) + made)
