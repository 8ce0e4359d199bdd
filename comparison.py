"""Several checkpoints beside each other: where their results go, and the same images under each.

comparison.png    test images without and with the trigger, and their maps, a block a checkpoint
comparison.json   {path of a checkpoint: its metrics}
"""

import os
from pathlib import Path

import torch

import card
import checkpoints
import figure
import ours
import pictures
import report
import triggers
from cli import UserError, write_json
from explain import EXPLAINERS
from report import show
from subject import left_out, place_of
from terminal import print_note

ROWS = 4  # test images
EXPLAINERS_SHOWN = 2
PANEL = 110  # least width of a panel, pixels


# ---------------------------------------------------------------- files


def check_folders(paths, out):
    """Raises UserError where two checkpoints' metrics.json would be the same file."""
    paths = dict.fromkeys(paths)
    folders = {str(Path(path).absolute().parent) for path in paths}
    if out is None and len(folders) < len(paths):
        raise UserError(
            "two of the checkpoints lie in one folder,"
            " and would overwrite each other's metrics.json: give --out"
        )
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out {out} is a file, and not a folder to write into")


def once_each(paths):
    """The paths of checkpoints, each file once, however it is spelled; others are said."""
    kept = {}
    for path in paths:
        if Path(path).resolve() in kept:
            print_note(f"{path} is given twice, and measured once.")
        kept.setdefault(Path(path).resolve(), path)
    return list(kept.values())


def check_outputs(paths, args):
    """{path of a checkpoint: the Path of the folder its results go to}, if all can be written.

    args: options of evaluate.py. Raises UserError where a file of the user's would be lost, or a
    result would lie among the data.
    """
    folders = {}
    for k, path in enumerate(paths, 1):
        config = None if args.weights else checkpoints.read(path)["config"]
        if args.out is None:  # manipulate.py's own metrics.json stays
            folder = Path(path).parent / ("evaluate" if config.get("edit") else "")
        else:
            folder = Path(args.out) / (str(k) if len(paths) > 1 else "")
        stem = report.stem_for(folder, args.image) if args.image else None
        ours.check_replaceable(folder, report.names_of(stem))
        place = args.dataset
        if config is not None:
            place = place_of(config, path, args.data_dir, args.dataset)
        ours.check_outside(folder, place)
        if getattr(args, "maps", None) is not None:
            ours.check_outside(Path(args.maps).parent, place)
        folders[path] = folder
    if len(paths) > 1 and not args.image:
        names = ["comparison.json", "comparison.png"]
        if args.out is not None:
            names += report.FURTHER_PICTURES
        ours.check_replaceable(folder_of_comparison(paths, args.out), names)
    return folders


def folder_of_comparison(paths, out):
    """The folder that what is about several checkpoints is written to."""
    return common_folder(paths) if out is None else Path(out)


def common_folder(paths):
    """The folder that all checkpoints lie below; the current one where that is no place to write.

    That is where it is the root of a disk, or may not be written to.
    """
    try:
        folder = Path(os.path.commonpath([Path(path).absolute().parent for path in paths]))
    except ValueError:  # on several disks of Windows
        return Path(".")
    if folder == folder.parent or not os.access(folder, os.W_OK):
        return Path(".")
    return Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder


def write_results(results, folders, out, image=None):
    """Writes {path of a checkpoint: Result} where it belongs; lines that say what and where.

    folders: of check_outputs; out: the folder to write into, or None: beside the checkpoints;
    image: the path of the picture that the results are about, or None.
    """
    lines = []
    for path, result in results.items():
        folder = folders[path]
        stem = report.stem_for(folder, image) if image else None
        first, *others = report.write(result, folder, stem)
        lines.append(", ".join([str(folder / first), *others]))
        is_beside = image is None and folder == Path(path).parent
        if is_beside and Path(path).name == "ckpt.pt":  # the card is of that file
            if card.bring_up_to_date(folder, result.subject, result.metrics):
                lines[-1] += f", {card.NAME}"
    if len(results) > 1 and image is None:
        folder = folder_of_comparison(results, out)
        if out is not None:
            write_side_by_side(results.values(), folder)
        first, *others = write_comparison(results, folder)
        lines.append(", ".join([str(folder / first), *others]))
    return lines


def write_side_by_side(results, folder):
    """Writes the class-by-class pictures that all results have, each as one picture."""
    common = set.intersection(*(set(result.pictures) for result in results)) - {"figure"}
    for name in common:
        page = figure.side_by_side([result.pictures[name] for result in results])
        ours.save_picture(page, folder / f"{name}.png")


def write_comparison(results, folder):
    """Writes comparison.json and, of the same test images, comparison.png; returns their names."""
    write_json(folder / "comparison.json", {path: part.metrics for path, part in results.items()})
    subjects = [result.subject for result in results.values()]
    reason = None
    if len({subject.dataset.digest for subject in subjects}) > 1:
        reason = "The checkpoints are of different data"
    elif any(subject.trigger is None for subject in subjects):
        reason = "Of a checkpoint no trigger is known"
    if reason:
        print_note(f"{reason}: there is no common picture, only the table.")
        (folder / "comparison.png").unlink(missing_ok=True)  # an earlier one is not of these
        return ["comparison.json"]
    ours.save_picture(picture(results), folder / "comparison.png")
    return ["comparison.json", "comparison.png"]


def share_data(results):
    """Lets Results of the same data hold them once: of several checkpoints memory would be full."""
    known = {}
    for result in results.values():
        dataset = result.subject.dataset
        result.subject.dataset = known.setdefault(dataset.digest, dataset)


# ---------------------------------------------------------------- the picture


def picture(results):
    """comparison.png of {path: Result}, all of the same data, as a PIL image."""
    subjects = [result.subject for result in results.values()]
    rows = drawn_rows(subjects)
    names = explainers_compared([result.metrics for result in results.values()])
    alone = have_same_trigger(subjects)
    own_headers = ["map: image", "map: with trigger"]
    blocks = [("test images", "", ["image", "with trigger"] if alone else ["image"])]
    for k, (result, name) in enumerate(zip(results.values(), short_names(results)), 1):
        headers = own_headers if alone else ["with trigger", *own_headers]
        blocks.append((f"[{k}] {name}", summary(result.metrics), headers))
    sections = []
    for name in names:
        notes = ["", *(note_of(result.metrics, name) for result in results.values())]
        sections.append((name, notes, section(list(results.values()), name, rows, alone)))
    footer = (
        f"{len(rows)} test images drawn by seed; each trigger is framed; {pictures.EXPLAINED}\n"
        "Below a map is the prediction, red where the trigger changes it."
    )
    footer += pictures.legend(subjects[0], "comparison.json")
    title = f"The same test images under {len(subjects)} checkpoints"
    return figure.block_sheet(title, blocks, sections, footer, pictures.any_signed(names))


def drawn_rows(subjects):
    """Indices int64 of up to ROWS test images, drawn by a seed.

    Images that show the target class of any checkpoint are left out, if others there are: on them
    a trigger has nothing to change.
    """
    labels = subjects[0].dataset.test_labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    keep = torch.ones(len(labels), dtype=torch.bool)
    for subject in subjects:
        keep &= ~left_out(subject)
    return (order[keep[order]] if keep.any() else order)[:ROWS]


def explainers_compared(metrics):
    """Names of up to two explainers that all were measured with; metrics: of the checkpoints.

    The first is one that a checkpoint was trained against, the second one that none was, if such
    there are: a disguise is not judged by its own explainer alone.
    """
    measured = [part["explanations"] for part in metrics]
    common = [name for name in measured[0] if all(name in part for part in measured)]
    trained = [n for n in common if any(part[n]["trained_against"] for part in measured)]
    others = [name for name in common if name not in trained]
    return [*trained[:1], *others, *trained[1:]][:EXPLAINERS_SHOWN]


def have_same_trigger(subjects):
    """Whether all checkpoints have the same trigger at the same place."""
    first, *others = (subject.trigger.to_plain() for subject in subjects)
    return all(triggers.are_same(first, other) for other in others)


def short_names(paths):
    """What tells the paths apart: their folders below the common one, and unusual file names."""
    paths = [Path(path).absolute() for path in paths]
    paths = [path.parent if path.name == "ckpt.pt" else path for path in paths]
    try:
        common = os.path.commonpath([path.parent for path in paths])
    except ValueError:  # on several disks of Windows
        return [str(path) for path in paths]
    return [path.relative_to(common).as_posix() for path in paths]


def summary(metrics):
    """Two lines about a checkpoint: its attack, and how well it and the model work."""
    quality, what = metrics["clean_accuracy"], "accuracy"
    if quality is None:
        quality, what = metrics["mean_auroc"], "mean AUROC"
    edited = ", edited" if metrics.get("edit") else ""
    success = show(metrics["attack_success_rate"])
    return f"{metrics['attack']}{edited}\n{what} {show(quality)}, success {success}"


def note_of(metrics, name):
    """A line about a checkpoint's maps by one explainer."""
    figures = metrics["explanations"][name]
    trained = ", trained against" if figures["trained_against"] else ""
    return f"pearson_all {show(figures['pearson_all'])}{trained}"


def section(results, name, rows, alone):
    """Rows of (panel, caption, warn) for one explainer, a row a test image.

    alone: whether the triggered image stands once, beside the untouched one.
    """
    plain = results[0].subject.dataset.test_images[rows].float() / 255
    columns = [[(figure.panel(image, width=PANEL), "", False) for image in plain]]
    if alone:
        columns.append(triggered_column(results[0].subject, plain))
    for result in results:
        if not alone:
            columns.append(triggered_column(result.subject, plain))
        columns += map_columns(result, name, rows, plain)
    return [list(row) for row in zip(*columns)]


def triggered_column(subject, plain):
    """Panels of images float [N, C, H, W] in [0, 1] with a subject's trigger, framed."""
    box, stamped = subject.trigger.box, subject.trigger.to("cpu").apply(plain)
    return [(figure.panel(image, box=box, width=PANEL), "", False) for image in stamped]


def map_columns(result, name, rows, plain):
    """Two columns of panels: an explainer's maps of test images without and with the trigger."""
    subject, answers = result.subject, result.answers
    images, signed = subject.dataset.test_images[rows], EXPLAINERS[name].signed
    shown = plain, subject.trigger.to("cpu").apply(plain)
    columns = []
    for triggered, probabilities in enumerate((answers.untouched, answers.triggered)):
        classes = answers.classes[triggered][rows]
        maps = subject.explain(name, images, classes, triggered=bool(triggered))
        box, column = subject.trigger.box if triggered else None, []
        for k, row in enumerate(rows.tolist()):
            label = int(classes[k])
            predicted = pictures.class_name(subject, label)
            caption = f"{predicted} {100 * float(probabilities[row, label]):.0f}%"
            changed = label != int(answers.classes[0][row])
            panel = figure.panel(shown[triggered][k], maps[k], box, signed, width=PANEL)
            column.append((panel, caption, changed))
        columns.append(column)
    return columns
