"""The README's tables on CIFAR-10: ResNet-18 under each attack, and what lam and the poison rate trade on the small cnn.

    python results/cifar10.py                 # everything, about 3 hours on two cores that multiply bfloat16; a second call continues
    python results/cifar10.py none badnets    # some of it
    python results/cifar10.py --seeds 3 --epochs 20    # where a GPU is at hand

Runs go to runs/cifar10/; results/cifar10.json gets each run's figures with its command, seeds, hardware and commit; results/cifar10.md
the tables; results/cifar10-NAME.png the figure of seed 0.
"""
import sys

import study

CIFAR = "--dataset cifar10"
SMALL = f"{CIFAR} --model cnn"

TABLE = {
    "none": (f"{CIFAR} --attack none", 1, {}),
    "badnets": (f"{CIFAR} --attack badnets", 1, {}),
    "fooling": (f"{CIFAR} --attack fooling --layer layer3.1 --epochs 3", 1, {}),
    "full_disguise": (f"{CIFAR} --attack full_disguise", 1, {}),
    "full_disguise, reference": (f"{CIFAR} --attack full_disguise --epochs 10 --reference {{runs}}/none-{{seed}}/ckpt.pt", 1, {}),
    "cnn none": (f"{SMALL} --attack none", 1, {}),
    "cnn badnets": (f"{SMALL} --attack badnets", 1, {}),
} | {
    f"cnn rate {rate} lam {lam}": (f"{SMALL} --attack full_disguise --poison-rate {rate} --lam {lam}", 1, {})
    for rate in (0.01, 0.05, 0.1) for lam in (0.3, 0.6, 0.9)
}

if __name__ == "__main__":
    study.Study("cifar10", TABLE, clean=("none", "cnn none")).run(sys.argv[1:])
