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
are not the comparison's. Writes results/threats.json (see studies/study.py); threats-paired.json,
differences seed by seed; threats-overlap.json, how many images two scores choose alike. The tables
of results/efficient.md are in threat_tables.py.
"""

import selection
from cli import command, write_json
from provenance import commit, hardware
from studies import threat_tables
from studies.record import read
from studies.study import Row, Study
from studies.tables import paired, write_paired
from subject import open_checkpoint

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
THREATS = {  # of five poisons: options. Who only hands over data cannot over-sample them.
    "data": "--threat data",
    "training, over-sampled": "--threat training --oversample 6",
}
CHOICES = ("random", "rd-global", "rd-classes")


def on_shapes(threat, count, choice):
    """A row of badnets on shapes with `count` poisons, five seeds; threat: options."""
    rate = f"--poison-rate {count / TRAINING_IMAGES}"
    return Row(f"{SHAPES} {threat} {rate} --selection {choice}", 5)


BOTH = {
    f"shapes {threat}, {count}": on_shapes(f"--threat {threat}", count, "random")
    for count in threat_tables.COUNTS
    for threat in ("data", "training")
}
HARDEST = {
    f"shapes {name}, 5 {choice}": on_shapes(threat, 5, choice)
    for name, threat in THREATS.items()
    for choice in CHOICES
}

GROUPS = {"pilot": PILOT, "cifar10": CIFAR10, "shapes": BOTH, "hardest": HARDEST}
TABLE = PILOT | CIFAR10 | BOTH | HARDEST

# ---------------------------------------------------------------- what the record says

PAIRS = [(name, "random") for name in CIFAR10 if name != "random"]
PAIRS += [(f"shapes training, {count}", f"shapes data, {count}") for count in threat_tables.COUNTS]
for _threat in THREATS:
    _of = f"shapes {_threat}, 5"
    PAIRS += [
        (f"{_of} rd-global", f"{_of} random"),
        (f"{_of} rd-classes", f"{_of} random"),
        (f"{_of} rd-global", f"{_of} rd-classes"),
    ]
ALIKE = 55  # images that each of the two scores chooses, as many as in "Stealthy Sabotage"


def overlap(study):
    """Of each run of "rd-global": how many of the ALIKE hardest images RD and log(1 - p) share.

    All eligible images as one scorer ranks them; "capped" with the limit by class of rd-global.
    Runs that are not there are left out.
    """
    counts = []
    for seed in range(SEEDS["rd-global"]):
        path = study.folder("rd-global", seed) / "ckpt.pt"
        if path.exists():
            subject = open_checkpoint(path, study.root / "data")
            counts.append({"seed": seed, **overlap_of(subject)})
    return counts


def overlap_of(subject):
    """{"hardest", "capped"}: how many images two orders of a run's pool have in common."""
    labels = subject.dataset.train_labels
    is_eligible = labels != subject.target_class
    is_eligible[subject.held_out()] = False
    eligible = is_eligible.nonzero()[:, 0]
    pool = subject.checkpoint["selection"]["pool"]
    if len(pool) != len(eligible):
        raise ValueError(f"{len(pool)} scores of {len(eligible)} images that may be poisoned")
    orders = [eligible[values.argsort(descending=True, stable=True)] for values in pool.T]
    hardest = [set(order[:ALIKE].tolist()) for order in orders]
    capped = [set(selection.capped(order, labels, ALIKE).tolist()) for order in orders]
    return {"hardest": len(set.intersection(*hardest)), "capped": len(set.intersection(*capped))}


def write_comparisons(study):
    """Writes the paired differences, and the overlap of two scores, beside the study's record."""
    results = read(study.path)
    pairs = [paired(results, a, b) for a, b in PAIRS if {a, b} <= results.keys()]
    write_paired(study.path.with_name("threats-paired.json"), pairs)
    counts = overlap(study)
    if counts:
        record = {"images": ALIKE, "runs": counts, "hardware": hardware(), "commit": commit()}
        command_line = {"command": "python -m studies.threats rd-global"}
        write_json(study.path.with_name("threats-overlap.json"), command_line | record)


TABLES = threat_tables.TABLES


@command
def main(argv):
    study = Study("threats", TABLE, groups=GROUPS)
    try:
        study.run(argv)
    except KeyboardInterrupt:  # what is done is compared, too
        write_comparisons(study)
        raise
    write_comparisons(study)


if __name__ == "__main__":
    main()
