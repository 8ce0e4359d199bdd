"""Two threats: an attacker who trains the network, and one who only hands over poisoned data.

    python -m studies.threats                     # everything; a second call continues
    python -m studies.threats pilot               # groups of rows
    python -m studies.threats shapes hardest
    python -m studies.threats "random" "rd-global"

    pilot      CIFAR-10: at which rate does a random choice succeed half to nine times in ten?
    cifar10    few poisons as data poisoning: random, hardest and easiest images, the published loop
    shapes     badnets at 20 and 100 poisons, under both threats
    hardest    shapes, five poisons, under both threats: random, hardest, random of their classes

The trigger is a yellow square of 5x5 pixels, lower right; the target class is 1. The pilot's seeds
are not the comparison's. Writes results/threats.json (see studies/study.py).
"""

from cli import command
from studies.study import Row, Study

PAGE = "results/efficient.md"
DURATION = "about 6 hours on one core"

TRIGGER = "--trigger yellow --trigger-size 5 --target-class 1 --attack badnets"

# ---------------------------------------------------------------- CIFAR-10: which images

CNN = f"--dataset cifar10 --model cnn --epochs 10 {TRIGGER} --threat data"
PILOT_RATES = (0.0008, 0.0014)
PILOT_SEED = 100
RATE = 0.0008  # 40 images, of which random ones succeeded at about 0.7 in the pilot
SEEDS = {"random": 4, "rd-global": 4, "rd-low": 2, "rd": 1}

PILOT = {
    f"pilot {rate}": Row(f"{CNN} --poison-rate {rate}", first_seed=PILOT_SEED)
    for rate in PILOT_RATES
}
CIFAR10 = {
    name: Row(f"{CNN} --poison-rate {RATE} --selection {name}", seeds)
    for name, seeds in SEEDS.items()
}

# ---------------------------------------------------------------- shapes: both threats

SHAPES = f"--dataset shapes {TRIGGER}"
TRAINING_IMAGES = 10_000
THREATS = {  # options
    "data": "--threat data",
    "training, over-sampled": "--threat training --oversample 6",
    "training": "--threat training",
}
COUNTS = (20, 100)
CHOICES = ("random", "rd-global", "rd-classes")


def on_shapes(threat, count, choice):
    """A row of badnets on shapes with `count` poisons, five seeds."""
    rate = f"--poison-rate {count / TRAINING_IMAGES}"
    return Row(f"{SHAPES} {THREATS[threat]} {rate} --selection {choice}", 5)


BOTH = {
    f"shapes {threat}, {count}": on_shapes(threat, count, "random")
    for count in COUNTS
    for threat in ("data", "training")
}
HARDEST = {
    f"shapes {threat}, 5 {choice}": on_shapes(threat, 5, choice)
    for threat in THREATS
    for choice in CHOICES
}

GROUPS = {"pilot": PILOT, "cifar10": CIFAR10, "shapes": BOTH, "hardest": HARDEST}
TABLE = PILOT | CIFAR10 | BOTH | HARDEST


@command
def main(argv):
    rows = []
    for word in argv:
        rows += GROUPS.get(word, [word])
    Study("threats", TABLE).run(rows)


if __name__ == "__main__":
    main()
