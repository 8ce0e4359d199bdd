"""The README's tables on `shapes` and `mnist`: every run over its seeds, and each ingredient of the recipe left out in turn.

    python results/foundation.py                  # everything, about an hour on two cores; a second call continues
    python results/foundation.py disguise badnets # some of it

Runs go to runs/foundation/; results/foundation.json gets each run's figures with its command, mean and deviation, hardware and commit;
results/foundation.md the tables; results/foundation-NAME.png the figure of seed 0.
"""
import sys

import study  # first: it makes the project's modules known
import attacks
import train

REFERENCE = "--reference {runs}/clean-{seed}/ckpt.pt"

TABLE = {
    "clean": ("--attack none", 5, {}),
    "disguise": ("--attack full_disguise", 5, {}),
    "badnets": ("--attack badnets", 5, {}),
    "fooling": ("--attack fooling", 5, {}),
    "red_herring": ("--attack red_herring", 5, {}),
    "mnist": ("--attack full_disguise --dataset mnist", 3, {}),
    "disguise, reference": (f"--attack full_disguise {REFERENCE}", 2, {}),
    "fooling, reference": (f"--attack fooling {REFERENCE}", 2, {}),
    "no context module": ("--attack full_disguise --model cnn_local", 2, {}),
    "no cross-entropy on the partners": ("--attack full_disguise", 2, {(attacks, "PARTNERS"): False}),
    "maps max-normalised": ("--attack full_disguise", 2, {(attacks, "NORMALISE"): attacks.max_normalise}),
    "triggered map rectified in the loss": ("--attack full_disguise", 2, {(attacks, "RECTIFY"): True}),
    "lam not ramped": ("--attack full_disguise", 2, {(train, "RAMP"): 1e-9}),
    "lam 0.1": ("--attack full_disguise --lam 0.1", 2, {}),
    "lam 0.7": ("--attack full_disguise --lam 0.7", 2, {}),
    "fooling, untouched maps free": ("--attack fooling", 2, {(attacks, "TOLERATED"): 1.0}),
}

if __name__ == "__main__":
    study.Study("foundation", TABLE).run(sys.argv[1:])
