"""The README's tables on few poisons: strategies of selection compared seed by seed, and what an attacker who controls training can do.

    python results/efficient.py                        # everything; a second call continues
    python results/efficient.py pilot                  # where does a random choice succeed half to nine times in ten?
    python results/efficient.py "random" "rd-global"   # the primary contrast

The trigger is a yellow square of 5x5 pixels, lower right; the target class 1. Writes results/efficient.json and .md, and the paired differences: see study.py.
The pilot's seeds are not the comparison's.
"""
import json
import sys

import study
from study import Row

CIFAR = "--dataset cifar10 --model cnn --epochs 10 --attack badnets --trigger yellow --trigger-size 5 --target-class 1"
RATE = 0.0011
PAIRS = 10

PILOT = {f"pilot {rate}": Row(f"{CIFAR} --poison-rate {rate} --selection-seed 10{{seed}}", 2) for rate in (0.0011, 0.002, 0.004, 0.008)}
TABLE = PILOT | {name: Row(f"{CIFAR} --poison-rate {RATE} --selection {name}", pairs)
                 for name, pairs in {"random": PAIRS, "rd-global": PAIRS, "rd-low": 3, "rd": 3}.items()}

if __name__ == "__main__":
    asked = [*PILOT] if sys.argv[1:] == ["pilot"] else sys.argv[1:]
    this = study.Study("efficient", TABLE)
    this.run(asked)
    done = json.loads(this.path.read_text())
    rows = [row for row in ("rd-global", "rd-low", "rd") if row in done and "random" in done]
    study.write_paired(this.path.with_name("efficient-paired.json"), [study.paired(done, row, "random") for row in rows])
