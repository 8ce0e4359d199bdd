"""What the command lines share: a user's mistake ends in one line and exit code 2."""

import argparse
import contextlib
import glob
import json
import os
import platform
import sys
from pathlib import Path

import torch

from terminal import columns_of, is_terminal, print_note, wrapped

INTERRUPTED = 130  # exit code: 128 and the number of SIGINT
# Options that name files: a leading ~ is the user's home.
PATHS = ("out", "data_dir", "dataset", "weights", "classes", "image", "trigger", "target_map")
PATHS += ("export", "maps")
LONGEST_WORD = 300  # characters of a word in a message; of a path's part there are up to 255
PIPE_CLOSED = 141  # 128 and the number of SIGPIPE, as a shell says of `yes | head`


class UserError(Exception):
    """A mistake of the user's. Its text, one line, says what is wrong and what to do."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """The description's sentences wrapped, its examples not; argparse's note of each default."""

    def _fill_text(self, text, width, indent):
        """The text in lines of `width`; lines that begin with spaces are examples, and stay.

        Of an example that is too long the comment goes below it.
        """
        lines, paragraph = [], []
        for line in [*text.splitlines(), ""]:
            if line.strip() and not line.startswith(" "):
                paragraph.append(line)
                continue
            if paragraph:
                lines += wrapped(" ".join(paragraph), width, indent, indent)
                paragraph = []
            command, _, comment = line.partition("  # ")
            if columns_of(line) > width and comment:
                lines += [command.rstrip(), *wrapped(f"# {comment}", width, " " * 8, " " * 8)]
            else:
                lines.append(line)
        return "\n".join(lines[:-1])

    def _get_help_string(self, action):
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError where argparse would print its usage; no abbreviations."""

    def __init__(self, description=None, **options):
        options = {"formatter_class": HelpFormatter, "allow_abbrev": False} | options
        super().__init__(description=description, **options)

    def parse_args(self, args=None, namespace=None):
        """What argparse returns, with the user's home for a leading ~ in options of PATHS."""
        parsed = super().parse_args(args, namespace)
        for name in PATHS:
            if isinstance(value := getattr(parsed, name, None), str):
                setattr(parsed, name, os.path.expanduser(value))
        return parsed

    def parse_known_args(self, args=None, namespace=None):
        """What argparse returns. Raises UserError where it, or the system, would stumble."""
        args = sys.argv[1:] if args is None else list(args)
        for word in args:
            if "\0" in word:
                self.error(f"{word!r} has a NUL in it")
            if word.startswith("--") and word.endswith("=--"):  # argparse drops the value
                self.error(f"argument {word[:-3]}: expected one argument")
        return super().parse_known_args(args, namespace)

    def error(self, message):
        raise UserError(message)


def command(run):
    """Returns main(argv) of run(argv), which exits with 2 after a UserError, 130 if interrupted.

    A full disk, a file that may not be read and memory that is full are one line and exit code 2,
    too. Where nobody reads what is printed, as after `| head`, it ends with 141, silently. Anything
    else is a bug of ours, and stays a traceback.
    """
    script = Path(run.__code__.co_filename).name

    def main(argv=None):
        escape_what_consoles_lack()
        try:
            try:
                return run(sys.argv[1:] if argv is None else argv)
            finally:
                flush_output()  # here, where a closed pipe can still be caught
        except BrokenPipeError:
            discard_output()
            raise SystemExit(PIPE_CLOSED) from None
        except KeyboardInterrupt as interruption:
            print_interruption(interruption)
            raise SystemExit(INTERRUPTED) from None
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            message = message_of(error)
            if message is None:
                raise
        print_last_line(f"{script}: {message}")
        raise SystemExit(2)

    return main


def escape_what_consoles_lack():
    """From now on, letters that the console's encoding has not are printed as escapes."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # no text stream, or closed
            stream.reconfigure(errors="backslashreplace")


def message_of(error):
    """The line that a command line ends in after an exception; None where it is a bug of ours."""
    if isinstance(error, UserError):
        return " ".join(map(abridged, str(error).split()))
    if isinstance(error, OSError):
        place = abridged(str(error.filename or "while reading or writing"))
        return f"{error.strerror or error}: {place}"
    if str(error).startswith("Symlink loop"):  # pathlib's, of Path.resolve until Python 3.13
        return abridged(str(error))
    if is_out_of_memory(error):
        remedy = "lower --batch-size or --image-size, or use --device cpu"
        return f"the device's memory is full: {remedy}"
    return None


def abridged(word):
    """A word, without its middle where it is longer than LONGEST_WORD."""
    return word if len(word) <= LONGEST_WORD else f"{word[:100]}…{word[-50:]}"


def flush_output():
    """Writes what is still to be printed; sys.stdout is None where it was closed at the start."""
    if sys.stdout is not None:
        sys.stdout.flush()


def discard_output():
    """Lets go what is still to be printed: of a closed pipe Python would complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def print_interruption(interruption):
    """Says that it was interrupted and, where the exception has a text, how to go on."""
    if is_terminal(sys.stderr):  # the cursor stands behind ^C, or in a line of progress
        print_last_line("")
    print_last_line(": ".join(["interrupted", *map(str, interruption.args)]))


def print_last_line(line):
    """Prints a line on standard error, if anybody reads it."""
    try:
        print_note(line)
        flush_output()
    except OSError:
        discard_output()


def is_out_of_memory(error):
    """Whether an exception says that memory is full: Python's, CUDA's or the CPU allocator's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def user_errors(prefix=""):
    """Within the block, a ValueError of the library becomes a UserError with `prefix` before it."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from None


def first_line(error):
    """The first line of an exception's text, or its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# ---------------------------------------------------------------- output


def replace_file(path, write):
    """Calls write(temporary path), then moves what it wrote to `path`: nobody sees half a file.

    What processes that were killed left of writing to `path` is removed. Raises UserError where
    that fails.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    try:
        remove_halves(path)
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # On a full disk torch.save raises RuntimeError, of whatever else it could not do.
        reasons = [getattr(part, "strerror", None) for part in (error, error.__context__)]
        reason = next(filter(None, reasons), None) or first_line(error)
        raise UserError(f"cannot write {path}: {reason}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def remove_halves(path):
    """Removes replace_file's temporary files for `path` whose process ended, on this machine."""
    for half in path.parent.glob(f".{glob.escape(f'{path.name}.{platform.node()}')}.*"):
        process = half.suffix[1:]
        if process.isdecimal() and not is_running(int(process)):
            half.unlink(missing_ok=True)


def is_running(process):
    """Whether a process of this id runs on this machine; True where that cannot be asked."""
    if os.name == "nt":  # there, os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's, or no number of a process
        pass
    return True


def write_json(path, record):
    """Writes a record of plain values as indented JSON, whole or not at all. Raises UserError."""
    text = json.dumps(record, indent=1) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text))


# ---------------------------------------------------------------- options


def checkpoint_path(text):
    """An argparse type: the path of a checkpoint; of a folder, a run's, the ckpt.pt in it."""
    text = os.path.expanduser(text)
    path = Path(text)
    if not path.is_dir():
        return text
    if (path / "ckpt.pt").is_file():
        return str(path / "ckpt.pt")
    if (path / "unfinished" / "ckpt.pt").is_file():
        raise argparse.ArgumentTypeError(
            f"the run in {text} is not finished: give train.py --resume,"
            f" or take {path / 'unfinished' / 'ckpt.pt'}"
        )
    raise argparse.ArgumentTypeError(f"there is no ckpt.pt in the folder {text}")


def is_count(text):
    """Whether a text is a whole number from 0, of so few digits that Python reads it."""
    return text.isdecimal() and len(text) < 19


def number(kind, low, high, *, above=False):
    """Returns an argparse type: an int or a float from `low` to `high`.

    kind: int or float; above: leave `low` itself out. nan is refused.
    """

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            name = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {name}") from None
        high_enough = low < value if above else low <= value
        if not (high_enough and value <= high):
            bound = "above" if above else "at least"
            raise argparse.ArgumentTypeError(f"{text} is not {bound} {low} and at most {high}")
        return value

    return parse


def numbers(low, count=None):
    """Returns an argparse type: comma-separated floats from `low` on, `count` of them if given."""
    parse_one = number(float, low, 1e9)

    def parse(text):
        values = tuple(parse_one(part) for part in text.split(","))
        if count is not None and len(values) != count:
            raise argparse.ArgumentTypeError(f"{text} is not {count} numbers, as 0.1,1,1")
        return values

    return parse


def choose_device(name):
    """The torch.device called `name`; "auto" is CUDA, else MPS, else the CPU.

    Raises UserError for a device that is not here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        elif torch.backends.mps.is_available():
            name = "mps"
        else:
            name = "cpu"
    try:
        if name.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"there is no device {name!r} here: use cpu, cuda, mps or auto") from None
    # "float32" is what it says: by default a GPU's convolutions round to 11 bits of it (TF32).
    torch.backends.cudnn.set_flags(_allow_tf32=False)
    return torch.device(name)


def choose_precision(name, device):
    """ "bf16" or "float32"; "auto" is bf16 where the device multiplies bfloat16 in hardware.

    These are CUDA devices that support it, and CPUs with AMX or with AVX-512's BF16.
    """
    if name != "auto":
        return name
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
    else:
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if fast else "float32"
