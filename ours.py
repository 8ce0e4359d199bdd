"""Which files are ours to replace: a file of the user's is neither overwritten nor deleted.

check_replaceable(folder, ["metrics.json", "figure.png"])    # before anything is measured
check_outside(folder, "photos")                              # no result becomes data
save_picture(picture, folder / "figure.png")                 # with the mark that tells it
"""

import json
import os
from pathlib import Path

from PIL import Image, PngImagePlugin

import checkpoints
from cli import UserError, replace_file
from data import DATASETS

MARK = "Backdoors that lie through the explanation, too"  # under "Software" in a picture
JSON_KEYS = (  # an object with all keys of one set is ours
    {"attack", "explanations"},  # metrics.json
    {"technique", "edited"},  # manipulate.py's
    {"method", "backdoored"},  # verdict.json
    {"image", "untouched", "triggered"},  # of a picture of the user's
    {"strategy", "indices"},  # selection.json
    {"epoch", "loss"},  # a line of log.jsonl
)
RECORDS = ("metrics.json", "verdict.json", "comparison.json")  # beside what has no mark


def check_replaceable(folder, names, trained=True):
    """Raises UserError where a file in `folder` of one of the names is not ours to replace.

    trained: whether that may be the checkpoint of a training, not only of an edited network.
    """
    for path in (Path(folder) / name for name in names):
        if not path.exists():
            continue
        if not is_ours(path):
            raise UserError(f"{path} is not this program's, and would be lost: give another --out")
        if path.name == "ckpt.pt" and not trained and not is_edited(path):
            raise UserError(f"{path} is of a training, and would be lost: give another --out")


def is_ours(path):
    """Whether a file is this program's, by what is in it.

    Pictures of earlier versions, pages and plain weights have no mark: the record beside them,
    which is written with them, tells.
    """
    path = Path(path)
    if not path.is_file():
        return False
    if path.stat().st_size == 0:  # nothing to lose
        return True
    if path.suffix in (".json", ".jsonl"):
        return is_our_record(path)
    if path.name == "ckpt.pt":
        return is_checkpoint(path)
    if path.suffix == ".md":
        return is_card(path)
    return is_marked(path) or any(is_our_record(record) for record in records_of(path))


def records_of(path):
    """The paths of the JSON files that would have been written with a file without a mark."""
    if path.stem == "comparison" or path.stem.endswith("-explained"):
        return [path.with_suffix(".json")]
    return [path.with_name(name) for name in RECORDS]


def is_our_record(path):
    """Whether a file holds a JSON object of ours, or such objects by name; of lines, the first."""
    try:
        with path.open(encoding="utf-8") as file:
            record = json.loads(file.readline() if path.suffix == ".jsonl" else file.read())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(record, dict):
        return False
    return has_our_keys(record) or (bool(record) and all(map(has_our_keys, record.values())))


def has_our_keys(record):
    """Whether a value of a JSON is an object with all keys of one of JSON_KEYS."""
    return isinstance(record, dict) and any(keys <= record.keys() for keys in JSON_KEYS)


def is_checkpoint(path):
    """Whether a file is a checkpoint of train.py's that can be read."""
    try:
        checkpoints.read(path)
    except UserError:
        return False
    return True


def is_edited(path):
    """Whether a checkpoint's network was edited after its training: it can be made again."""
    return bool(checkpoints.read(path)["config"].get("edit"))


def is_card(path):
    """Whether a file is a run's card: its first line is a comment with MARK."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().strip() == f"<!-- {MARK} -->"
    except (OSError, UnicodeDecodeError):
        return False


def is_marked(path):
    """Whether a file is a picture with MARK in it."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("Software") == MARK
    except Exception:  # a damaged picture can raise anything at all
        return False


def save_picture(picture, path):
    """Writes a PIL image as PNG with MARK in it, whole or not at all. Raises UserError."""
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", MARK)
    replace_file(path, lambda temporary: picture.save(temporary, format="PNG", pnginfo=mark))


def check_outside(folder, dataset):
    """Raises UserError where `folder` lies in the folder of the user's data `dataset`.

    dataset: a data set by name or path, or None; only a folder can take what is written for data.
    """
    if dataset is None or str(dataset) in DATASETS or not os.path.isdir(dataset):
        return
    if Path(folder).resolve().is_relative_to(Path(dataset).resolve()):
        raise UserError(
            f"{folder} lies in the data set {dataset}, and what is written there would be taken for"
            " data: give an --out elsewhere"
        )
