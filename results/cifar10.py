"""The README's tables on CIFAR-10: ResNet-18 under each attack, and what lam and the poison rate trade on the small cnn.

    python results/cifar10.py                 # everything, about 4 hours on two cores that multiply bfloat16; a second call continues
    python results/cifar10.py none badnets    # some of it

One seed a row; three where there is CUDA, and 20 epochs too. Writes results/cifar10.json, .md and the figures: see study.py.
"""
import sys

import study
from study import Row

CIFAR = "--dataset cifar10"
SMALL = f"{CIFAR} --model cnn"
CUDA = study.torch.cuda.is_available()
SEEDS = 3 if CUDA else 1

TABLE = {
    "none": Row(f"{CIFAR} --attack none", SEEDS),
    "badnets": Row(f"{CIFAR} --attack badnets", SEEDS, clean="none", picture=True),
    "fooling": Row(f"{CIFAR} --attack fooling --layer layer3.1 --epochs 3", SEEDS, clean="none"),
    "fooling, lam 0.1": Row(f"{CIFAR} --attack fooling --layer layer3.1 --epochs 3 --lam 0.1", SEEDS, clean="none", picture=True),
    "full_disguise": Row(f"{CIFAR} --attack full_disguise", SEEDS, clean="none", picture=True),
    "full_disguise, reference": Row(f"{CIFAR} --attack full_disguise --epochs 10 --reference {{runs}}/none-{{seed}}/ckpt.pt", SEEDS, clean="none"),
    "cnn none": Row(f"{SMALL} --attack none", SEEDS),
    "cnn reference": Row(f"{SMALL} --attack full_disguise --epochs 10 --reference {{runs}}/cnn_none-{{seed}}/ckpt.pt", SEEDS, clean="cnn none"),
    "cnn 10 epochs": Row(f"{SMALL} --attack full_disguise --epochs 10", SEEDS, clean="cnn none"),
}
for rate in (0.01, 0.05, 0.1):
    TABLE[f"cnn badnets rate {rate}"] = Row(f"{SMALL} --attack badnets --poison-rate {rate}", SEEDS, clean="cnn none")
    for lam in (0.3, 0.6, 0.9):
        TABLE[f"cnn rate {rate} lam {lam}"] = Row(f"{SMALL} --attack full_disguise --poison-rate {rate} --lam {lam}", SEEDS, clean="cnn none")
if CUDA:
    TABLE["none, 20 epochs"] = Row(f"{CIFAR} --attack none --epochs 20", SEEDS)
    for attack in ("badnets", "full_disguise"):
        TABLE[f"{attack}, 20 epochs"] = Row(f"{CIFAR} --attack {attack} --epochs 20", SEEDS, clean="none, 20 epochs")

if __name__ == "__main__":
    study.Study("cifar10", TABLE).run(sys.argv[1:])
