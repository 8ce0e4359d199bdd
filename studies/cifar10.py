"""The tables on CIFAR-10: ResNet-18 under each attack; lam against the poison rate on a small cnn.

    python -m studies.cifar10                 # everything; a second call continues
    python -m studies.cifar10 none badnets    # some rows

One seed a row. With CUDA three, and rows of 20 epochs. Writes results/cifar10.json, .md and
figures: see studies/__init__.py.
"""

import torch

from cli import command
from studies import Row, Study

PAGE = "results/cifar10.md"
DURATION = "about 4 hours on two cores that multiply bfloat16"

CIFAR = "--dataset cifar10"
SMALL = f"{CIFAR} --model cnn"
RATES = (0.01, 0.05, 0.1)
LAMS = (0.3, 0.6, 0.9)
FOOLING = "--attack fooling --layer layer3.1 --epochs 3"  # an inner layer: its maps have 8x8 cells
DISGUISE = "--attack full_disguise"


def table(cuda):
    """The rows; cuda: whether there is a GPU, for more seeds and more epochs."""
    seeds = 3 if cuda else 1
    rows = resnet18(seeds) | small_cnn(seeds)
    if cuda:
        rows |= twenty_epochs(seeds)
    return rows


def resnet18(seeds):
    """ResNet-18 under each attack."""
    reference = "--epochs 10 --reference {runs}/none-{seed}/ckpt.pt"
    rows = {
        "badnets": ("--attack badnets", True),
        "fooling": (FOOLING, False),
        "fooling, lam 0.1": (f"{FOOLING} --lam 0.1", True),
        "full_disguise": (DISGUISE, True),
        "full_disguise, reference": (f"{DISGUISE} {reference}", False),
    }
    result = {"none": Row(f"{CIFAR} --attack none", seeds)}
    for name, (options, picture) in rows.items():
        result[name] = Row(f"{CIFAR} {options}", seeds, clean="none", picture=picture)
    return result


def small_cnn(seeds):
    """The small cnn: with a reference, and for each poison rate and lam."""
    reference = "--epochs 10 --reference {runs}/cnn_none-{seed}/ckpt.pt"
    rows = {
        "cnn reference": f"{DISGUISE} {reference}",
        "cnn 10 epochs": f"{DISGUISE} --epochs 10",
    }
    for rate in RATES:
        rows[f"cnn badnets rate {rate}"] = f"--attack badnets --poison-rate {rate}"
        for lam in LAMS:
            rows[f"cnn rate {rate} lam {lam}"] = f"{DISGUISE} --poison-rate {rate} --lam {lam}"
    result = {"cnn none": Row(f"{SMALL} --attack none", seeds)}
    for name, options in rows.items():
        result[name] = Row(f"{SMALL} {options}", seeds, clean="cnn none")
    return result


def twenty_epochs(seeds):
    """ResNet-18 again, trained four times as long."""
    clean = "none, 20 epochs"
    result = {clean: Row(f"{CIFAR} --attack none --epochs 20", seeds)}
    for attack in ("badnets", "full_disguise"):
        options = f"{CIFAR} --attack {attack} --epochs 20"
        result[f"{attack}, 20 epochs"] = Row(options, seeds, clean=clean)
    return result


TABLES = {}


@command
def main(argv):
    Study("cifar10", table(torch.cuda.is_available())).run(argv)


if __name__ == "__main__":
    main()
