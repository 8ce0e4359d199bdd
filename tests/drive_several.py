"""train.py with several command lines, one after another in the same processes.

    python -m torch.distributed.run ... tests/drive_several.py '[["--model", "cnn", ...], ...]'

Run by test_distributed.py.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch.distributed as dist

import train


def main():
    [store, rank, size] = next(dist.rendezvous("env://"))
    for turn, argv in enumerate(json.loads(sys.argv[1])):
        # A group of its own for each: what another one left in the store is not seen.
        own = dist.PrefixStore(str(turn), store)
        dist.rendezvous = lambda url, own=own: iter([(own, rank, size)])
        train.main(argv)


if __name__ == "__main__":
    main()
