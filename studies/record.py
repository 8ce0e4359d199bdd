"""What a study records beside its figures: cost of selection, pictures.

It also knows the folders: results/ is in the repository, runs/ is not.
"""

import io
import json
from pathlib import Path

from PIL import Image

from cli import replace_file

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
RUNS = ROOT / "runs"
RESULTS = ROOT / "results"

# Of kept pictures. Those of photographs make large files.
HEIGHTS = (1200, 1000, 900, 800)  # pixels, at most: the first that makes a small file, or the last
LARGEST = 200_000  # bytes
COLOURS = 128  # not dithered, which would triple the bytes
VICTIM_EPOCHS = 30  # the cost of selection is set against these: "Stealthy Sabotage", section 3.5


def read(path, missing=None):
    """The JSON object in the file `path`; `missing` (None: an empty one) if there is no file."""
    if path.exists():
        return json.loads(path.read_text())
    return {} if missing is None else missing


def write_text(path, text):
    """Writes a text file, whole or not at all. Raises UserError."""
    replace_file(path, lambda temporary: temporary.write_text(text))


def selection_cost(folder, last):
    """What choosing the poisoned images took: epochs, and seconds relative to a victim's training.

    folder: of the run; last: the last line of its log, a dict. The victim is trained for
    VICTIM_EPOCHS at this run's speed. Empty where no scorer was trained.
    """
    selection = read(folder / "selection.json")
    if not selection["epochs"]:
        return {}
    victim_seconds = VICTIM_EPOCHS * last["seconds"] / last["epoch"]
    return {
        "selection_epochs": selection["epochs"],
        "selection_cost": selection["seconds"] / victim_seconds,
    }


def keep_picture(source, target):
    """Saves the picture in the file `source` as `target`, smaller: see save_small_picture."""
    with Image.open(source) as picture:
        save_small_picture(picture, target)


def save_small_picture(picture, target):
    """Saves a PIL image as PNG, in COLOURS and as high as HEIGHTS and LARGEST allow."""
    picture = picture.convert("RGB")
    for height in HEIGHTS:
        small, file = picture.copy(), io.BytesIO()
        small.thumbnail((picture.width, height))
        small = small.quantize(COLOURS, kmeans=2, dither=Image.Dither.NONE)
        small.save(file, format="PNG", optimize=True)
        if len(file.getvalue()) <= LARGEST:
            break
    Path(target).write_bytes(file.getvalue())
