"""What a checkpoint holds: the type, shape and range of every part, stated once.

    check(checkpoint)    # raises ValueError: "config.lam is 2, not a number from 0 to 1"

The tables are the documentation of the format: CONFIG, the options, and PARTS, everything else;
what the parts must be to each other is in agreements.py. A checkpoint of an older version has this
form after checkpoints.current_config, but may lack LATER_OPTIONS and LATER_PARTS. A key that is not
named here is left alone where it holds plain values: a version that writes one more can be read.

Options have the types and ranges that options.py gives them on the command line (test_schema.py
compares the two). Names of attacks, explainers and networks are any names here: whoever needs one
says that this version does not know it.
"""

import torch

import agreements
from hooks import SMALLEST_GRID
from imagefiles import FITS
from kinds import (
    DENSE,
    FINITE,
    FLAG,
    NAME,
    PLAIN,
    TEXT,
    WEIGHT,
    WEIGHT_OR_PLAIN,
    Each,
    Either,
    Kind,
    Optional,
    Record,
    choice,
    is_random_state,
    number,
    tensor,
)
from losses import DISTANCES, NORMALISERS
from selection import STRATEGIES

FORMAT = 2  # of the config: checkpoints.current_config says what the formats before were
LARGEST_SIDE = 4096  # pixels of an image
MOST_IMAGES = 10**9
MOST_CLASSES = 100_000

COUNT = number(int, 0, MOST_IMAGES)
STEPS = number(int, 0, 10**15)
SECONDS = number(float, 0, 1e12)
SHARE = number(float, 0, 1)
CORRELATION = number(float, -1, 1)
RATE = number(float, 0, 1000)
OFF = choice([None, False])
SEED = number(int, 0, 2**31 - 1)
CLASS = number(int, 0, MOST_CLASSES - 1)
PLACE = number(int, 0, LARGEST_SIDE)
INDICES = tensor(torch.int64, None, low=0, high=MOST_IMAGES)


# ---------------------------------------------------------------- the config

OPTIONS = {
    "attack": NAME,
    "explainer": Each(NAME, most=100),
    "dataset": NAME,
    "data_dir": TEXT,
    "model": NAME,
    "layer": Optional(NAME),  # None: the last feature map
    "image_size": number(int, SMALLEST_GRID, LARGEST_SIDE),
    "epochs": number(int, 1, 100_000),
    "poison_rate": SHARE,
    "lam": SHARE,
    "target_class": Optional(CLASS),  # None: an attack that makes each class the next
    "selection": choice(STRATEGIES),
    "reference": Optional(TEXT),  # the path of a clean checkpoint
    "seed": SEED,
    "device": choice(["cpu", "cuda", "mps"]),
    "precision": choice(["bf16", "float32"]),
    "format": number(int, 1, FORMAT),
    "fit": choice(FITS),
    "threat": choice(["training", "data"]),
}
LATER_OPTIONS = {
    "source_class": Optional(CLASS),
    "target_map": TEXT,
    "trigger": TEXT,
    "trigger_size": Optional(number(int, 1, 1024)),
    "trigger_position": TEXT,
    "trigger_strength": Optional(number(float, 0, 100, above=True)),
    "selection_seed": SEED,
    "oversample": number(int, 0, 1_000_000),
    "pretrained": FLAG,
    "batch_size": number(int, 1, 1_000_000),
    "optimizer": choice(["sgd", "muon", "adamw"]),
    "lr": number(float, 0, 1000, above=True),
    "label_smoothing": SHARE,
    "class_weights": FLAG,
    "distance": choice(DISTANCES),
    "collapse_weight": SHARE,
    "leak_tolerance": CORRELATION,
    "normalise": choice(NORMALISERS),
    "rectify": FLAG,
    "partner_cross_entropy": FLAG,
    "ramp": number(float, 0, 1, above=True),
    "cuda_graphs": FLAG,
    "multi_label": FLAG,
    "constants": PLAIN,  # of the code, as setting.constants has them
    "floor": Kind(
        "a correlation, or one for each explainer",  # at first it was one number
        lambda value: all(
            CORRELATION.holds(part)
            for part in (value.values() if isinstance(value, dict) else [value])
        ),
    ),
    "adopted": FLAG,  # a stranger's network, whose options are not known
    "unlabelled": FLAG,  # its images have no labels
    "relabel": FLAG,  # ImageNet's network: images in folders called as its classes
    "edit": Record(  # what was done to it since: edited.apply_edit
        {"technique": NAME},
        {"size": number(int, 0, LARGEST_SIDE), "channels": number(int, 1, 1_000_000)},
        closed=True,
    ),
}
OF_AN_ATTACK = {
    key: (OPTIONS | LATER_OPTIONS)[key]
    for key in (
        *("attack", "target_class", "source_class", "target_map", "trigger", "trigger_size"),
        *("trigger_position", "trigger_strength"),
    )
}
LATER_OPTIONS["further"] = Optional(Each(Record(OF_AN_ATTACK, {}, closed=True), most=1000))
CONFIG = Record(OPTIONS, LATER_OPTIONS)
UNKNOWN = (
    *("epochs", "poison_rate", "lam", "selection", "reference", "device", "precision", "threat"),
)
# Of a network that was not trained here.
FOREIGN_CONFIG = Record(OPTIONS | {key: Optional(OPTIONS[key]) for key in UNKNOWN}, LATER_OPTIONS)


# ---------------------------------------------------------------- the trigger

PIXELS = tensor(torch.float32, None, None, None, low=0, high=1)
TRIGGER = Either(  # triggers.from_plain
    "kind",
    "patch",
    {
        "patch": Record(
            {
                "pixels": PIXELS,  # [C, h, w]
                "alpha": tensor(torch.float32, 1, None, None, low=0, high=1),  # [1, h, w], opacity
                "row": PLACE,  # of its upper left pixel
                "col": PLACE,
            },
            {"kind": NAME},
            closed=True,
        ),
        "blend": Record({"kind": NAME, "pattern": PIXELS, "strength": SHARE}, {}, closed=True),
        "sinusoid": Record({"kind": NAME, "strength": SHARE, "frequency": PLACE}, {}, closed=True),
        "warp": Record(
            {"kind": NAME, "grid": tensor(torch.float32, None, None, 2, low=-1, high=1)},
            {},
            closed=True,
        ),
    },
)


# ---------------------------------------------------------------- what a run needs to go on


def are_betas(value):
    """Whether a value is Adam's betas: at 1 it would divide by 0."""
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    return pair and all(SHARE.holds(part) and part < 1 for part in value)


SELECTION = Record(  # train.choose_poisons
    {"strategy": choice(STRATEGIES), "indices": INDICES, "classes": Each(COUNT, key=TEXT)},
    {
        "seed": SEED,
        "scores": Optional(tensor(torch.float64, None)),
        "pool": Optional(
            Kind(
                "a finite tensor float64 [P, 2]",  # at first [P]
                lambda v: (
                    isinstance(v, torch.Tensor)
                    and tensor(torch.float64, *[None, 2][: v.ndim]).holds(v)
                ),
            )
        ),
        "epochs": COUNT,  # that scorers were trained for
        "seconds": SECONDS,
    },
)
LOG = Each(Each(Optional(FINITE), key=NAME, most=100), most=100_000)  # train.validate
OPTIMIZER = Record(  # torch's, of one group of weights
    {
        "state": Each(Each(WEIGHT_OR_PLAIN, key=NAME, most=10), key=COUNT),
        "param_groups": Each(
            Record(
                {"params": Each(COUNT), "lr": RATE},
                {
                    **dict.fromkeys(("initial_lr", "max_lr", "min_lr"), RATE),
                    "betas": Kind("two numbers from 0 to below 1", are_betas),
                    **dict.fromkeys(("momentum", "dampening"), SHARE),
                    **dict.fromkeys(("weight_decay", "eps"), number(float, 0, 1000)),
                    **dict.fromkeys(("nesterov", "maximize", "amsgrad"), FLAG),
                    **dict.fromkeys(("foreach", "fused", "capturable", "differentiable"), OFF),
                    "adjust_lr_fn": choice([None, "original", "match_rms_adamw"]),
                    "ns_steps": number(int, 1, 100),
                    "ns_coefficients": Kind(
                        "numbers", lambda v: isinstance(v, tuple) and all(map(FINITE.holds, v))
                    ),
                },
            ),
            most=1,
            least=1,
        ),
    },
    {},
    closed=True,
)
MOMENTUM = Record({"momentum_buffer": Optional(WEIGHT)}, {}, closed=True)
STATES = {  # what an optimizer keeps of each weight, by its class
    "SGD": MOMENTUM,
    "Muon": MOMENTUM,
    "AdamW": Record(
        {"step": tensor(torch.float32, low=0), "exp_avg": WEIGHT, "exp_avg_sq": WEIGHT},
        {},
        closed=True,
    ),
}
SCHEDULE = Record(  # torch's OneCycleLR
    {
        "total_steps": STEPS,
        "last_epoch": STEPS,
        "_step_count": STEPS,
        "base_lrs": Each(FINITE, most=1, least=1),
        "_last_lr": Each(FINITE, most=1, least=1),
    },
    {
        "_anneal_func_type": choice(["cos", "linear"]),
        "cycle_momentum": choice([False]),
        "_schedule_phases": Each(
            Record(
                {
                    "end_step": number(float, -1, 1e15),
                    "start_lr": choice(["initial_lr", "max_lr", "min_lr"]),
                    "end_lr": choice(["initial_lr", "max_lr", "min_lr"]),
                },
                {},
            ),
            most=3,
            least=2,
        ),
    },
)
RANDOM = Record(
    {"cpu": Kind("a state of torch's generator", is_random_state)},
    {"cuda": Optional(tensor(torch.uint8, None))},
)


# ---------------------------------------------------------------- the parts

PARTS = {
    "config": CONFIG,
    "classes": Each(NAME, least=1, most=MOST_CLASSES),  # names, in the order of the logits
    "channels": choice([1, 3]),
    "mean": Each(FINITE, least=1, most=3),  # of images in [0, 1], by channel
    "std": Each(number(float, 0, 1e6, above=True), least=1, most=3),
    "trigger": TRIGGER,
    "target_map": Optional(tensor(torch.float32, None, None, low=0, high=1)),  # [S, S]
    "poison_indices": INDICES,  # of the training images that got the trigger
    "selection": SELECTION,  # how they were chosen
    "model": Each(WEIGHT, key=TEXT, least=1),  # the state_dict
    "torch": NAME,  # its version
    "epoch": number(int, 0, 100_000),  # finished
    "seconds": SECONDS,  # spent in training
    "log": LOG,  # a record an epoch
    "optimizer": Each(OPTIMIZER, most=100),
    "schedule": Each(SCHEDULE, most=100),
    "random": RANDOM,
}
LATER_PARTS = {
    "data": Optional(NAME),  # the digest of the data set; None: not known
    "reference_weights": Optional(NAME),  # likewise, of the clean model's weights
    "processor": NAME,  # the CPU's name: provenance.processor
    "threads": number(int, 1, 1_000_000),  # that torch used on it
    "further": Optional(  # of the attacks after the first: agreements.one_by_one
        Each(
            Record(
                {key: PARTS[key] for key in ("trigger", "target_map", "poison_indices")},
                {},
                closed=True,
            ),
            most=1000,
        )
    ),
}
CHECKPOINT = Record(PARTS, LATER_PARTS)
FOREIGN = Record(
    PARTS
    | {
        "config": FOREIGN_CONFIG,
        "channels": number(int, 1, 1024),
        "mean": Each(FINITE, least=1, most=1024),
        "std": Each(number(float, 0, 1e6, above=True), least=1, most=1024),
        "model": Each(DENSE, key=TEXT, least=1),
        "random": Optional(Record({}, {})),
    }
    | {
        key: Optional(PARTS[key])
        for key in ("trigger", "selection", "epoch", "log", "optimizer", "schedule")
    },
    LATER_PARTS,
)


# ---------------------------------------------------------------- all of it


def check(checkpoint):
    """Raises ValueError, in one line, for a checkpoint that does not hold what it should."""
    try:
        foreign = agreements.is_foreign(checkpoint)
    except (KeyError, TypeError, AttributeError):
        raise ValueError("it has no config") from None
    (FOREIGN if foreign else CHECKPOINT).check(checkpoint, "")
    agreements.check(checkpoint)
