"""The folder of a run: the name that tells it from other runs, and its lock.

folder_of(args)          # --out, or runs/NAME by the options of train.py
with locked(folder):     # one process at a time
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path

import options
import ours
from cli import UserError
from data import DATASETS

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

# Said at the head of a name, or nothing that a figure depends on.
NOT_APPENDED = {
    *("attack", "explainer", "dataset", "poison_rate", "seed", "threat"),
    *("data_dir", "device", "precision", "cuda_graphs", "out", "resume", "overwrite"),
}
# Options by a shorter word; "": the value says what it is.
SHORT = {
    "target_class": "target",
    "target_map": "map",
    "reference": "ref",
    "trigger_size": "triggersize",
    "trigger_position": "at",
    "trigger_strength": "strength",
    "source_class": "source",
    "further": "and",
    "selection": "",
    "selection_seed": "selectionseed",
    "image_size": "size",
    "model": "",
    "batch_size": "batch",
    "optimizer": "",
    "label_smoothing": "smoothing",
    "distance": "",
    "collapse_weight": "collapse",
    "leak_tolerance": "leak",
    "partner_cross_entropy": "partners",
}
MAX_NAME = 150  # bytes: file systems take 255
EPOCHS = re.compile(r"-epochs\d+")  # in a name


# ---------------------------------------------------------------- its name


def folder_of(args):
    """The Path of a run's folder: --out, or runs/NAME. Raises UserError where none can be made."""
    folder = Path(args.out) if args.out else Path("runs") / name_of(args)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot write the run to {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"cannot write the run to {folder}: {nearest} is not writable")
    ours.check_outside(folder, args.dataset)
    return folder


def name_of(args):
    """The name of a run by its options: what is not as it is where left open is appended.

    A name that is too long ends in a digest of the whole.
    """
    explainers = "+".join(args.explainer)
    parts = [args.attack, explainers, data_name(args.dataset)]
    parts += [f"r{args.poison_rate:g}", f"s{args.seed}"]
    if args.threat == "data":
        parts.append("data")
    name = "-".join(as_part(part) for part in [*parts, *appended(args)])
    raw = name.encode()
    if len(raw) > MAX_NAME:
        digest = hashlib.blake2b(raw, digest_size=4).hexdigest()
        name = raw[: MAX_NAME - 9].decode(errors="ignore") + "-" + digest
    return name


def as_part(text):
    """A text with nothing in it that a file system or a shell minds."""
    return re.sub(r"[^\w.+=-]", "_", text)


def data_name(name):
    """A data set's name; of a path its last part, behind that of the folder it lies in."""
    if name in DATASETS:
        return name
    path = Path(name)
    own = path.stem if path.suffix == ".npz" else Path(os.path.abspath(path)).name
    if len(path.parts) < 2:  # beside runs/, where there is one of that name
        return own
    parent = Path(os.path.abspath(path)).parent.name
    return f"{parent}_{own}" if parent else own


def appended(args):
    """Options that are not as they are where left open, as short texts."""
    given = [f"--dataset={args.dataset}", f"--explainer={','.join(args.explainer)}"]
    given += [f"--attack={args.attack}", f"--threat={args.threat}", f"--seed={args.seed}"]
    left_open = vars(options.parse(given))
    texts = []
    for key, value in vars(args).items():
        if key not in NOT_APPENDED and value != left_open[key]:
            word, said = SHORT.get(key, key), as_text(value)
            if value is True or value is False:
                texts.append(word if value else f"no_{word}")
            else:
                joint = "_" if word and not said[:1].isdigit() else ""
                texts.append(f"{word}{joint}{said}")
    return texts


def as_text(value):
    """An option's value, short: of a path what tells it from others."""
    if isinstance(value, dict):  # the floor by explainer
        return "+".join(dict.fromkeys(as_text(part) for part in value.values()))
    if isinstance(value, list):  # the options of further attacks
        return "_".join(
            "+".join(f"{SHORT.get(key, key)}{as_text(part[key])}" for key in sorted(part))
            for part in value
        )
    if isinstance(value, float):
        return f"{value:g}"
    path = Path(str(value))
    if path.suffix == ".pt":  # of a reference, each is called ckpt.pt
        return path.parent.name or path.stem
    return path.stem if len(path.parts) > 1 or path.suffix == ".png" else str(value)


def finished_with_other_epochs(folder):
    """The folder of a finished run that is called the same but for its epochs, or None."""
    name = EPOCHS.sub("", folder.name)
    for other in sorted(folder.parent.glob("*/ckpt.pt")):
        if other.parent.name != folder.name and EPOCHS.sub("", other.parent.name) == name:
            return other.parent
    return None


# ---------------------------------------------------------------- its lock


@contextlib.contextmanager
def locked(folder):
    """Within the block this process alone works in FOLDER/unfinished, which is made.

    The system holds the lock, and lets go of it when the process ends, however it ends. What is
    empty afterwards is removed. Raises UserError where another process holds it.
    """
    unfinished = folder / "unfinished"
    path = unfinished / "lock"
    made = [part for part in (unfinished, *unfinished.parents) if not part.exists()]
    file = hold(path)
    try:
        yield
    finally:
        if (
            fcntl is None
        ):  # Windows removes no open file; elsewhere nobody may hold one that is gone
            file.close()
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()
        with contextlib.suppress(OSError):  # not there, or not empty
            for part in dict.fromkeys([unfinished, *made]):
                part.rmdir()


def hold(path):
    """The open file at `path`, made if need be, that this process has locked. Raises UserError."""
    folder = path.parent.parent
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except FileNotFoundError:  # its last holder has removed the folder in between
            continue
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None
        if not is_locked(file):
            file.close()
            raise UserError(
                f"another process is at work in {folder}: wait for it, or give another --out"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its last holder has removed the file in between


def is_locked(file):
    """Whether this process has now locked an open file, at once; True where nothing can be."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
