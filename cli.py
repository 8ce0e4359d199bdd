"""What the command lines share: a user's mistake ends in one line on standard error and exit code 2."""
import argparse
import contextlib
import os
import shutil
import sys
from pathlib import Path

import torch


class UserError(Exception):
    """A mistake of the user's: its text, one line, says what is wrong and what to do."""


class Parser(argparse.ArgumentParser):
    """A parser that refuses abbreviations and raises UserError where argparse would print its usage."""

    def __init__(self, description):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message):
        raise UserError(message)


def command(run):
    """Decorates main(argv): UserError becomes one line and exit code 2, an interrupt one line and 130."""

    script = Path(run.__code__.co_filename).name

    def main(argv=None):
        try:
            return run(sys.argv[1:] if argv is None else argv)
        except UserError as error:
            print(f"{script}: {' '.join(str(error).split())}", file=sys.stderr)
            code = 2
        except OSError as error:  # whatever no script foresaw: a name too long, a folder that may not be read, a full disk
            print(f"{script}: {error.strerror or error}: {error.filename or 'while reading or writing'}", file=sys.stderr)
            code = 2
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(error):
                raise
            print(f"{script}: the device's memory is full: lower --batch-size or --image-size, or use --device cpu", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = 130
        raise SystemExit(code)

    return main


def replace_file(path, write):
    """Call write(temporary path), then move what it wrote into place: a reader never sees half a file."""
    partial = Path(path).with_name(f".{Path(path).name}.{os.getpid()}")
    try:
        write(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save's word for a full disk is RuntimeError
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or str(error).splitlines()[0]}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def print_progress(line, last, stream):
    """A line rewritten in place on a terminal, and left there if it is the last; elsewhere a line of its own."""
    if stream.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + line[:width].ljust(width), end="\n" if last else "", file=stream, flush=True)
    else:
        print(line, file=stream, flush=True)


def number(kind, low, high, *, above=False):
    """An argparse type: an int or float from low to high; above=True leaves low itself out."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
        if not (low < value if above else low <= value) or not value <= high:  # nan fails both
            raise argparse.ArgumentTypeError(f"{text} is not {'above' if above else 'at least'} {low} and at most {high}")
        return value

    return parse


def choose_device(name):
    """The torch.device called `name`; "auto" is CUDA, else MPS, else the CPU. Raises UserError for one that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if name.split(":")[0] not in ("cpu", "cuda", "mps"):
            raise RuntimeError
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"there is no device {name!r} here: use cpu, cuda, mps or auto") from None
    return torch.device(name)


def choose_precision(name, device):
    """"bf16" or "float32"; "auto" is bf16 on CUDA and on CPUs that multiply bf16 in hardware (AMX, or AVX-512's BF16)."""
    if name != "auto":
        return name
    if device.type == "cpu":
        able = getattr(torch.cpu, "get_capabilities", dict)()
        return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
