"""Where a figure comes from: the hardware it was measured on, and the commit of the code."""

import functools
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent


def hardware(device="auto"):
    """The name of the GPU, or of the CPU with the number of threads that torch uses on it.

    device: "cpu" where a GPU that is here has no part in what was measured.
    """
    if device != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


@functools.cache
def processor():
    """The name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def commit(root=ROOT):
    """The commit of the code, with "-dirty" behind it where a script differs from that commit.

    "" where that is unknown: there is no git here, or the folder is no repository.
    """

    def git(*words):
        try:
            done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        except FileNotFoundError:  # git is not installed
            return ""
        return done.stdout.strip()

    changed = git("diff", "HEAD", "--name-only", "--", "*.py")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
