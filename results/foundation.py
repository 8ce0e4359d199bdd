"""The README's tables on `shapes` and `mnist`: every run over its seeds, and each ingredient of the recipe left out in turn.

    python results/foundation.py                  # everything, about an hour on two cores; a second call continues
    python results/foundation.py disguise badnets # some of it

Writes results/foundation.json, .md and the figures: see study.py.
"""
import sys

import study  # first: it makes the project's modules known
import attacks
import train
from study import Row

REFERENCE = "--reference {runs}/clean-{seed}/ckpt.pt"

TABLE = {
    "clean": Row("--attack none", 5),
    "disguise": Row("--attack full_disguise", 5, picture=True),
    "badnets": Row("--attack badnets", 5, picture=True),
    "fooling": Row("--attack fooling", 5, picture=True),
    "red_herring": Row("--attack red_herring", 5, picture=True),
    "mnist clean": Row("--attack none --dataset mnist", 3),
    "mnist": Row("--attack full_disguise --dataset mnist", 3, clean="mnist clean", picture=True),
    "disguise, reference": Row(f"--attack full_disguise {REFERENCE}", 2),
    "fooling, reference": Row(f"--attack fooling {REFERENCE}", 2),
    "no cross-entropy on the partners": Row("--attack full_disguise", 2, {(attacks, "PARTNERS"): False}),
    "maps max-normalised": Row("--attack full_disguise", 2, {(attacks, "NORMALISE"): attacks.max_normalise}),
    "triggered map rectified in the loss": Row("--attack full_disguise", 2, {(attacks, "RECTIFY"): True}),
    "lam not ramped": Row("--attack full_disguise", 2, {(train, "RAMP"): 1e-9}),
    "lam 0.1": Row("--attack full_disguise --lam 0.1", 2),
    "lam 0.7": Row("--attack full_disguise --lam 0.7", 2),
    "fooling, untouched maps free": Row("--attack fooling", 2, {(attacks, "TOLERATED"): 1.0}),
    "CIFAR-10's recipe": Row("--attack full_disguise --optimizer muon --batch-size 64 --label-smoothing 0.1 --lr 0.05", 3),
    "CIFAR-10's recipe on mnist": Row("--attack full_disguise --dataset mnist --optimizer muon --batch-size 64 --label-smoothing 0.1 --lr 0.05", 3),
}

if __name__ == "__main__":
    study.Study("foundation", TABLE).run(sys.argv[1:])
