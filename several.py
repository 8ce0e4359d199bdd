"""Several attacks on one model, each with a trigger, a label and a target map of its own.

    python train.py ... --and "--trigger-position upper-left --target-class 1 --target-map cross"

What --and does not name is as in the first attack. Each attack poisons as many images as the first,
of a share of its own. Source: Noppel, Peter and Wressnegger, S&P 2023: four triggers, four shapes.
"""

import argparse
import itertools
import shlex
from dataclasses import replace

import attacks
import selection
import setting
import triggers
from cli import Parser, UserError

# Options that belong to one attack: what --and may name.
PLACED = ("trigger_size", "trigger_position", "trigger_strength")  # they belong to one trigger
OWN = ("attack", "target_class", "source_class", "target_map", "trigger", *PLACED)


def differing(texts, *groups):
    """The options that each --and names, a list of dicts, or None without one. Raises UserError.

    texts: what was given; groups: functions of options.py that add train.py's options.
    """
    parser = Parser(add_help=False)

    def add(flag, **given):
        if flag.removeprefix("--").replace("-", "_") in OWN:
            parser.add_argument(flag, **given | {"default": argparse.SUPPRESS})

    for group in groups:
        group(add)
    found = []
    for text in texts or []:
        try:
            found.append(vars(parser.parse_args(shlex.split(text))))
        except (UserError, ValueError) as error:
            names = ", ".join(name.replace("_", "-") for name in OWN)
            raise UserError(f'--and "{text}": {error}; what may differ: {names}') from None
    return found or None


def set_targets(args, default):
    """Gives a further attack with a target class the data's default one where none is given."""
    for further in args.further or []:
        has_target = attacks.ATTACKS[further.get("attack", args.attack)].has_target
        if has_target and args.target_class is None and default is not None:
            further.setdefault("target_class", default)


def args_of_each(args):
    """The options of each attack, as if it were the only one, the first one first.

    Of another trigger, size, position and strength are its own: as where they are left open.
    """
    result = [argparse.Namespace(**vars(args) | {"further": None})]
    for options in args.further or []:
        left_open = dict.fromkeys(PLACED) | {"trigger_position": triggers.CORNERS[0]}
        own = (left_open if "trigger" in options else {}) | options
        if not attacks.ATTACKS[own.get("attack", args.attack)].has_target:
            own = {"target_class": None} | own
        result.append(argparse.Namespace(**vars(result[0]) | own))
    return result


def check(args):
    """Raises UserError for what does not go together with --and."""
    if not args.further:
        return
    if args.selection != "random":
        raise UserError(f"--and: images are chosen at random, not by --selection {args.selection}")
    if args.cuda_graphs:
        raise UserError("--and: --cuda-graphs records the steps of one attack, not of several")
    for part in args_of_each(args):
        if not attacks.ATTACKS[part.attack].poisons:
            raise UserError(f"--and: --attack {part.attack} poisons no image")


def setting_of(args):
    """The Setting that options ask for, of all its attacks. Raises UserError."""
    first_args, *others = args_of_each(args)
    count = 1 + len(others)
    first = setting.setting_of(first_args, share=(0, count))
    if not others:
        return first
    if first.dataset.multi_label:
        raise UserError("--and is for images of one class each: these may show several")
    further = [further_setting(part, first, (k, count)) for k, part in enumerate(others, 1)]
    for one, other in itertools.combinations([first, *further], 2):
        if triggers.are_same(one.trigger.to_plain(), other.trigger.to_plain()):
            raise UserError("--and: two attacks have the same trigger")
    options = [{name: part.config[name] for name in OWN} for part in further]
    return replace(
        first,
        config=first.config | {"further": options},
        objective=replace(first.objective, further=tuple(part.objective for part in further)),
        further=tuple(further),
        notes=list(dict.fromkeys(line for part in (first, *further) for line in part.notes)),
    )


def further_setting(args, first, share):
    """The Setting of an attack after the first: what it poisons is drawn at once."""
    part = setting.setting_of(args, first.dataset, share)
    labels, config = part.dataset.train_labels, part.config
    given = part.eligible, labels, config["target_class"], part.count, config["selection_seed"]
    chosen = selection.select("random", *given, source_class=config["source_class"])
    objective = replace(part.objective, reference=first.objective.reference)
    return replace(part, eligible=chosen.indices, objective=objective)
