"""Ctrl-C while a script still imports: one line and exit code 130, as later on.

A script imports this first, for torch takes seconds. Once its main function is there, Ctrl-C is a
KeyboardInterrupt again, which cli.command ends quietly. Where the program is none of SCRIPTS,
nothing is changed.
"""

import contextlib
import os
import signal
import sys
import threading

SCRIPTS = ("train", "evaluate", "defend", "manipulate", "bench", "reproduce")


def is_ours(program):
    """Whether the module that Python runs is one of SCRIPTS, in the folder of this file."""
    path = getattr(program, "__file__", None)
    if path is None:
        return False
    folder, name = os.path.split(os.path.abspath(path))
    stem = os.path.splitext(name)[0]
    return folder == os.path.dirname(os.path.abspath(__file__)) and stem in SCRIPTS


def end_quietly(number, frame):
    """Handles Ctrl-C: while the program has no main function yet, ends it."""
    if hasattr(sys.modules["__main__"], "main"):
        signal.default_int_handler(number, frame)
    # Not an exception: code in C that imports modules would report it, and might go on.
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(130)


def install():
    """Installs end_quietly, unless Ctrl-C is ignored or handled otherwise already."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    unchanged = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours(sys.modules["__main__"]) and in_main_thread and unchanged:
        signal.signal(signal.SIGINT, end_quietly)


install()
