"""The README's tables on CIFAR-10: ResNet-18 under each attack, and what lam and the poison rate trade on the small cnn.

    python results/cifar10.py                 # everything, about 4 hours on two cores that multiply bfloat16; a second call continues
    python results/cifar10.py none badnets    # some of it

One seed a row; three where there is CUDA, and 20 epochs too. Runs go to runs/cifar10/; results/cifar10.json gets each run's figures with its
command, seeds, hardware and commit; results/cifar10.md the table; results/cifar10-NAME.png the figure of seed 0.
"""
import sys

import study

CIFAR = "--dataset cifar10"
SMALL = f"{CIFAR} --model cnn"
CUDA = study.torch.cuda.is_available()
SEEDS = 3 if CUDA else 1

OPTIONS = {
    "none": f"{CIFAR} --attack none",
    "badnets": f"{CIFAR} --attack badnets",
    "fooling": f"{CIFAR} --attack fooling --layer layer3.1 --epochs 3",
    "full_disguise": f"{CIFAR} --attack full_disguise",
    "full_disguise, reference": f"{CIFAR} --attack full_disguise --epochs 10 --reference {{runs}}/none-{{seed}}/ckpt.pt",
    "cnn none": f"{SMALL} --attack none",
    "cnn badnets": f"{SMALL} --attack badnets",
}
for rate in (0.01, 0.05, 0.1):
    for lam in (0.3, 0.6, 0.9):
        OPTIONS[f"cnn rate {rate} lam {lam}"] = f"{SMALL} --attack full_disguise --poison-rate {rate} --lam {lam}"
if CUDA:
    for attack in ("none", "badnets", "full_disguise"):
        OPTIONS[f"{attack}, 20 epochs"] = f"{CIFAR} --attack {attack} --epochs 20"

TABLE = {row: (options, SEEDS, {}) for row, options in OPTIONS.items()}

if __name__ == "__main__":
    study.Study("cifar10", TABLE, clean=("none", "cnn none")).run(sys.argv[1:])
