"""Measure a checkpoint of train.py's: is the backdoor there, and what do the explanations show?

    python evaluate.py runs/NAME/ckpt.pt                    # metrics.json and figure.png beside it
    python evaluate.py runs/A runs/B                        # one table, and runs/comparison.png
    python evaluate.py runs/NAME/ckpt.pt --image cat.png    # one picture of your own
    python evaluate.py runs/NAME/ckpt.pt --json             # the metrics alone on standard output

Always in float32. What each figure means is in report.py, how it is computed in metrics.py and
tasks.py.
"""

import interrupts  # noqa: F401  # isort: skip

import json
from dataclasses import replace
from pathlib import Path

import torch

import adopt
import comparison
import exports
import figure
import header
import metrics
import pictures
import report
from answers import ask, prediction_metrics
from checkpoints import FORMAT
from cli import Parser, UserError, checkpoint_path, choose_device, command, number
from explain import EVALUATED, EXPLAINERS
from imagefiles import decode, described
from reference import clean_metrics, open_clean, own_reference
from report import Result
from subject import by_trigger, correlation_by_class, draw_images, open_checkpoint
from terminal import Working, print_note, printable
from untouched import measure_untouched

EXPLAIN_IMAGES = 500  # test images drawn for the explanation metrics
OF_A_TRIGGER = (  # of several in one model, each has figures of its own
    "attack target_class target_name source_class source_name trigger target_map poison_count"
    " triggered_accuracy attack_success_rate untouched_success_rate other_classes_accuracy"
    " clean_model explanations"
).split()


# ---------------------------------------------------------------- a checkpoint, measured


def evaluate(
    path,
    *,
    dataset=None,
    data_dir=None,
    device=None,
    reference=None,
    explainers=None,
    n=None,
    seed=0,
    title="measuring",
    subject=None,
    architecture=None,
    kept=None,
):
    """The Result of measuring the checkpoint at `path`: metrics and pictures. Raises UserError.

    dataset: a Dataset, None to load the one it was trained on, from data_dir if given, or the path
    it has now; reference: the path of a clean checkpoint to stand beside it (None: the one it was
    trained with, if that is still there); explainers: names to measure with, beside those trained
    against (None: EVALUATED); n: test images to explain (None: EXPLAIN_IMAGES, for some explainers
    fewer); seed: of their draw; title: of the line of progress, where it takes long; subject: a
    Subject, where the checkpoint is opened already; architecture: of an adopted one, see
    checkpoints.rebuild; kept: a dict to fill with maps as exports.write_maps takes them, or None.
    """
    subject = subject or open_checkpoint(path, data_dir, device, dataset, architecture)
    if subject.config["format"] < FORMAT:
        print_note(f"{path} is of an older version: it is measured by today's rules")
    if subject.trigger is None and kept is not None:
        raise UserError("--maps are those without and with the trigger, and none is known")
    clean_model = open_clean(subject, reference) if reference else own_reference(subject)
    if dataset is not subject.dataset:  # else whoever loaded it has said what it is
        header.print_header(header.of_subject(subject, path))
    names = explainers_shown(subject.config["explainer"], explainers or EVALUATED)
    if subject.config.get("adopted"):
        names = [name for name in names if subject.can_explain(name)]
    with Working(title) as say:
        if subject.trigger is None:
            result = measure_untouched(subject, names, n or EXPLAIN_IMAGES, seed, say)
        else:
            each = by_trigger(subject) or {"": subject}
            result = measure_each(each, clean_model, names, n, seed, say, kept)
    if subject.config.get("adopted"):
        adopt.unlabelled_or_chance(subject, result.metrics)
    return result


def measure_each(each, clean_model, names, n, seed, say, kept=None):
    """The Result of measuring the first of `each`, {name of a trigger: Subject}.

    Of several it has the figures of all as "triggers", and a picture of all; crossed, in
    explanations, is how far its maps are what each of the triggers should show. The rest: measure.
    """
    first, *others = each
    maps, results = {name: {} if others else None for name in each}, {}
    if kept is not None:
        maps[first] = kept
    for name, one in each.items():
        clean = clean_model and replace(clean_model, trigger=one.trigger)
        told = lambda what, name=name: say(f"trigger {name}, {what}" if others else what)
        results[name] = measure(one, clean, names, n, seed, told, maps[name])
    if not others:
        return results[first]
    for name, result in results.items():
        for explainer, (_, untouched, triggered) in maps[name].items():
            result.metrics["explanations"][explainer]["crossed"] = {
                other: metrics.target_correlation(triggered, untouched, *one.target_of_maps)
                for other, one in each.items()
            }
    parts = {name: result.metrics for name, result in results.items()}
    triggers = {name: {key: part[key] for key in OF_A_TRIGGER} for name, part in parts.items()}
    page = pictures.trigger_picture(results, names, seed)
    drawings = results[first].pictures | {"figure": page}
    together = parts[first] | {"triggers": triggers}
    return replace(results[first], metrics=together, pictures=drawings)


def measure(subject, clean_model, names, n, seed, say, kept=None):
    """The Result of a Subject, beside a clean one or None; names: of explainers.

    say(what): is told what is being measured; n, seed, kept: as for evaluate.
    """
    say("predictions")
    threshold = (clean_model or subject).threshold(subject.target_class)
    answers = ask(subject, threshold)
    drawn = draw_images(subject, n or EXPLAIN_IMAGES, seed)
    explained = drawn
    if subject.attack.changes_label:  # only where the backdoor works is there something to hide
        explained = drawn[answers.success[drawn]]
    result = prediction_metrics(subject, answers, threshold, clean_model)
    maps = add_explanations(result, subject, names, explained, answers, n, say, kept)
    if clean_model is not None:
        say("the clean model")
        result["clean_model"] = clean_metrics(subject, clean_model, maps, explained, threshold)
    say("pictures")
    given = answers.classes, answers.probabilities
    drawings = pictures.pictures_of(subject, result, *given, drawn, names)
    return Result(metrics.finite(result), drawings, subject, answers)


def add_explanations(result, subject, names, explained, answers, n, say, kept=None):
    """Adds the figures of explainers `names` to the metrics; returns {name: untouched maps}.

    explained: rows of the test images to explain; n: how many of them (None: by explainer); kept:
    as for evaluate.
    """
    untouched_maps = {}
    for k, name in enumerate(names, 1):
        say(f"maps of {name}, explainer {k} of {len(names)}")
        rows = explained[: n or EXPLAINERS[name].test_images]
        untouched, triggered = subject.explain_test(name, rows, answers.classes)
        again = None
        if EXPLAINERS[name].sampled:
            again = subject.explain_again(name, rows, answers.classes)
        figures = explainer_metrics(subject, name, untouched, triggered, rows, again)
        if subject.multi_label and EXPLAINERS[name].by_class:
            figures |= correlation_by_class(subject, name, explained)
        result["explanations"][name] = figures
        untouched_maps[name] = untouched
        if kept is not None:
            kept[name] = rows, untouched, triggered
    return untouched_maps


def explainer_metrics(subject, name, untouched, triggered, rows, again=None):
    """The figures about one explainer's maps of test images `rows`, as metrics.json has them.

    again: the triggered maps by another sample, of an explainer that is sampled.
    """
    attack, config = subject.attack, subject.config
    trained_against = attack.explanation is not None and name in config["explainer"]
    figures = metrics.explanation_metrics(
        triggered,
        untouched,
        subject.trigger.box,
        config["image_size"],
        subject.checkpoint["target_map"],
        subject.masks(rows),
        again,
        turned_over=attack.explanation == "inverted",
    )
    return {"trained_against": trained_against} | figures


def explainers_shown(trained, others):
    """Names of the explainers to measure with: those trained against, then the others.

    At least one was not trained against: a disguise is not judged by its own explainer alone.
    """
    names = list(dict.fromkeys([*trained, *others]))
    if set(names) - set(trained):
        return names
    unseen = [name for name in EXPLAINERS if name not in trained]
    return names + unseen[:1]


# ---------------------------------------------------------------- a picture of the user's own


def explain_file(subject, image_path, names):
    """A Result about one picture: predictions and explanations without and with the trigger.

    Raises UserError where no trigger, or no target class, is known.
    """
    if subject.trigger is None:
        raise UserError("--image shows what a trigger does: give --trigger")
    images = as_test_image(subject, image_path)
    probabilities = [subject.probabilities(images, triggered) for triggered in (False, True)]
    predictions = [(part.argmax(1), part.amax(1)) for part in probabilities]
    target = subject.target_class
    if subject.relabel is not None:  # of the class it is taken for without the trigger
        target = int(subject.relabel[predictions[0][0]])
    if target is None:
        raise UserError("--image shows the target class's probability: give --target-class")
    if subject.multi_label:  # the target may come up beside a class that is more probable
        predictions[1] = torch.tensor([target]), probabilities[1][:, target]
    figures = {
        "image": str(image_path),
        "target_class": target,
        "target_name": subject.classes[target],
        "classes": subject.classes,
    }
    for key, (classes, confidence), part in zip(
        ("untouched", "triggered"), predictions, probabilities
    ):
        figures[key] = {
            "class": subject.classes[int(classes)],
            "class_number": int(classes),
            "confidence": float(confidence),
            "target": float(part[0, target]),
        }
    names = explainers_shown(subject.config["explainer"], names)
    page = figure.sheet(
        f"{Path(image_path).name}, by a model under {subject.config['attack']},"
        f" trained on {Path(subject.config['dataset']).stem}",
        pictures.headers_of(subject, names),
        pictures.panels_of(subject, images, predictions, names),
        f"{pictures.about_trigger(subject).capitalize()}; {pictures.EXPLAINED}"
        + pictures.legend(subject, f"{Path(image_path).stem}-explained.json"),
        pictures.any_signed(names),
    )
    return Result(figures, {"figure": page})


def as_test_image(subject, path):
    """A picture on disk as uint8 [1, C, S, S], the channels and size the subject was trained on.

    What is done to it is said on standard error.
    """
    side, channels = subject.config["image_size"], subject.checkpoint["channels"]
    fit = subject.config["fit"]
    pixels, changes = decode(path, side, "RGB" if channels == 3 else "L", fit)
    if changes:
        print_note(described(path, changes, fit))
    return torch.from_numpy(pixels).reshape(1, side, side, channels).permute(0, 3, 1, 2)


# ---------------------------------------------------------------- the command line


def explainer_names(text):
    """A comma-separated list of explainers, each once. Raises UserError for an unknown one."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in EXPLAINERS:
            raise UserError(f"unknown explainer {name!r}: choose from {', '.join(EXPLAINERS)}")
    return names


def parse(argv):
    """The options of evaluate.py. Raises UserError."""
    parser = Parser(__doc__)
    parser.add_argument(
        "checkpoints",
        nargs="*",
        type=checkpoint_path,
        metavar="CKPT",
        help="a checkpoint of train.py's, or the folder of a run",
    )
    adopt.add_weights(parser)
    add_measurement_options(parser.add_argument_group("measurement").add_argument)
    add_output_options(parser.add_argument_group("output").add_argument)
    args = parser.parse_args(argv)
    adopt.check_options(args, args.checkpoints)
    exports.check_maps(args)
    return args


def add_measurement_options(add):
    """What is measured, and on what."""
    add(
        "--explainer",
        help="comma-separated, measured beside those trained against:"
        f" {', '.join(EXPLAINERS)} (default: {','.join(EVALUATED)})",
    )
    fewer = ", ".join(f"{k}: {row.test_images}" for k, row in EXPLAINERS.items() if row.test_images)
    add(
        "--explain-images",
        type=number(int, 2, 1_000_000),
        help=f"test images explained (default: {EXPLAIN_IMAGES}; {fewer})",
    )
    add(
        "--reference",
        type=checkpoint_path,
        help="a clean checkpoint to stand beside it (default: the one it was trained with)",
    )
    add("--image", metavar="FILE", help="explain this picture instead of measuring")
    add("--data-dir", help="where the data set lies (default: where training found it)")
    add("--dataset", metavar="PATH", help="the data set it was trained on, where that has moved")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, help="of the draw of test images")


def add_output_options(add):
    """What is printed, and where files are written."""
    add("--json", action="store_true", help="print the metrics alone, as JSON (several: by path)")
    add("--out", help="write here, not beside the checkpoint (several: into sub-folders 1, 2, ...)")
    add("--maps", metavar="FILE", help="write the raw maps, too, as an .npz (of one checkpoint)")
    add(
        "--explain-table",
        action="store_true",
        help="print what each figure means, however narrow the terminal is",
    )


def print_results(results, args):
    """Prints {path of a checkpoint: Result}: as JSON, as sentences about a picture, as a table."""
    reports = {path: result.metrics for path, result in results.items()}
    if args.json:
        print(json.dumps(reports if len(reports) > 1 else next(iter(reports.values()))))
    elif args.image:
        for path, figures in reports.items():
            for key in ("untouched", "triggered"):
                part = figures[key]
                confidence, target = 100 * part["confidence"], 100 * part["target"]
                print(
                    f"{path}: {key}: {part['class']} ({confidence:.1f}%),"
                    f" target class {target:.1f}%"
                )
    else:
        report.print_table(reports, args.explain_table)


@command
def main(argv):
    args = parse(argv)
    device = choose_device(args.device)
    names = explainer_names(args.explainer) if args.explainer else EVALUATED
    if args.weights:
        args.checkpoints, args.out = [args.weights], args.out or str(adopt.folder_of(args.weights))
    paths = comparison.once_each(args.checkpoints)
    comparison.check_folders(paths, args.out)
    folders = comparison.check_outputs(paths, args)
    subject, results = adopt.adopted(args, device) if args.weights else None, {}
    kept = None if args.maps is None else {}
    for k, path in enumerate(paths, 1):  # all are measured before anything is written
        if args.image:
            opened = subject or open_checkpoint(path, args.data_dir, device, False, args.arch)
            results[path] = explain_file(opened, args.image, names)
            continue
        results[path] = evaluate(
            path,
            dataset=args.dataset,
            data_dir=args.data_dir,
            device=device,
            reference=args.reference,
            explainers=names,
            n=args.explain_images,
            seed=args.seed,
            title="measuring" if len(paths) == 1 else f"measuring {k} of {len(paths)}",
            subject=subject,
            architecture=args.arch,
            kept=kept,
        )
        comparison.share_data(results)
    written = comparison.write_results(results, folders, args.out, args.image)
    if kept is not None:
        written.append(exports.write_maps(results[paths[0]], kept, args.maps))
    print_results(results, args)
    if not args.json:
        print()
        print("\n".join(f"Written: {printable(line)}" for line in written))


if __name__ == "__main__":
    main()
