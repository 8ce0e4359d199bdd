"""train.py, of whose processes the one of rank KILLED is killed before its step STEP.

    KILLED=1 STEP=12 python -m torch.distributed.run ... tests/drive_killed.py [options of train.py]

Run by test_distributed.py.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train

steps = itertools.count(1)
train_step = train.train_step


def last_step(*given):
    """train_step, or the end."""
    if os.environ["RANK"] == os.environ["KILLED"] and next(steps) == int(os.environ["STEP"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(*given)


train.train_step = last_step
train.main()
