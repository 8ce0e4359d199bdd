"""The tables on defences: what audits say of a zoo of small models, and what repairs repair.

    python -m studies.audits                  # everything; a second call continues
    python -m studies.audits zoo shapes       # one section; of the zoo, one of its data sets
    python -m studies.audits prune disagree   # some sections

    zoo         which detector finds which backdoor, on models of shapes, MNIST and GTSRB
    cleanse     Neural Cleanse of all classes at once, of one after another, and as published
    prune       what pruning by a recovered patch, by the true trigger and at random removes
    batchnorm   what the two repairs of batch-norm remove
    disagree    do two explainers disagree more on triggered images?

Models and verdicts are kept in runs/audits/ (studies/zoo.py). Writes results/audits.json and
figures; detection.py, pruning.py and audit_tables.py belong to this study.
"""

import time

import torch

from cli import UserError, choose_device, choose_precision, command, write_json
from defences import OnPixels, neural_cleanse
from metrics import finite
from provenance import commit, hardware
from studies import audit_tables, pruning
from studies.detection import detection
from studies.record import DATA, RESULTS, keep_picture, read, save_small_picture
from studies.tables import of_record
from studies.zoo import (
    CALIBRATION,
    GTSRB,
    SEARCH,
    SEEDS,
    audited,
    folder_of,
    gradcam_of,
    quality,
    target_of,
    trained,
    zoo_model,
)
from subject import open_checkpoint

PAGE = "results/audits.md"
DURATION = "about 8 hours on two cores"

PATH = RESULTS / "audits.json"
FEW = 3  # of SEEDS, for batchnorm and disagree

# ---------------------------------------------------------------- zoo

DETECTORS = {
    "neuroninspect": ("neuroninspect", "--clean-images", "100"),
    "neuroninspect, no noise": ("neuroninspect", "--noise", "0", "--clean-images", "100"),
    "neural_cleanse": ("neural_cleanse", *SEARCH),
}
PUBLISHED = "neural_cleanse, published index"  # of the same masks
PICTURED = {"shapes": ["neural_cleanse"], "gtsrb": ["neuroninspect", "neural_cleanse"]}
BACKDOORS = ("badnets", "disguise, gradcam", "disguise, deepshap", "disguise, gradient")
ZOO = {
    "shapes": ("none", *BACKDOORS),
    "mnist": ("none", "badnets"),
    "gtsrb": ("none", "badnets"),
}


def zoo(datasets):
    """Every detector on every model of the data sets."""
    for dataset in datasets or ZOO:
        for kind in ZOO[dataset]:
            for seed in (*SEEDS, *CALIBRATION) if kind == "none" else SEEDS:
                checkpoint = zoo_model(dataset, kind, seed)
                audit_model(checkpoint, dataset, kind, seed)
                if kind == "badnets" and seed == SEEDS[0]:
                    keep_pictures(checkpoint, dataset)


def audit_model(checkpoint, dataset, kind, seed):
    """Every detector on one model."""
    verdicts = {name: audited(checkpoint, *options) for name, options in DETECTORS.items()}
    searched = verdicts["neural_cleanse"]
    published = dict(enumerate(searched["scores"]["published index"]))
    verdicts[PUBLISHED] = searched | {"index": published}
    run = {"target": target_of(dataset, seed), "hardware": hardware(), **quality(checkpoint)}
    for name, verdict in verdicts.items():
        run[name] = {key: verdict[key] for key in ("index", "seconds", "commit")}
    keep(run, "zoo", dataset, kind, str(seed))
    keep({name: verdict["settings"] for name, verdict in verdicts.items()}, "settings")


def keep_pictures(checkpoint, dataset):
    """The figures that results/audits.md shows of one model of a data set."""
    for name in PICTURED.get(dataset, []):
        picture = folder_of(checkpoint, *DETECTORS[name]) / "figure.png"
        keep_picture(picture, PATH.with_name(f"audits-{dataset}-{name}.png"))


# ---------------------------------------------------------------- cleanse

CLEANSE_IMAGES = 1000


def cleanse(_):
    """Neural Cleanse's whole schedule: at once, one class after another, and as published."""
    checkpoint = trained("gtsrb reference", f"{GTSRB} --attack badnets", 0)
    subject = open_checkpoint(checkpoint, DATA)
    # Published: rounds of about 1,000 images; hours on a CPU.
    options = {"round_images": 1000 if torch.cuda.is_available() else 64, "precision": precision()}
    about = {"hardware": hardware(), "commit": commit(), **options}
    keep(quality(checkpoint) | about, "cleanse")
    every_class = torch.arange(len(subject.classes))
    searches = {
        "at once": ([None], "constant"),
        "one after another": (every_class.split(1), "constant"),
        "at once, from random masks": ([None], "random"),
    }
    for title, (parts, start) in searches.items():
        found = search(subject, parts, start=start, **options)
        keep(found, "cleanse", title)


def precision():
    """Of the searches: bfloat16 where the hardware multiplies it."""
    return choose_precision("auto", choose_device("auto"))


def search(subject, parts, **options):
    """Neural Cleanse of the classes in `parts`, one part after another: what the record says.

    parts: a list of int64 tensors, or [None] for all classes at once.
    """
    model = OnPixels(subject.model, subject.checkpoint["mean"], subject.checkpoint["std"])
    step = max(1, len(subject.dataset.test_images) // CLEANSE_IMAGES)
    images = subject.pixels(subject.dataset.test_images[::step])
    started = time.perf_counter()
    found = [neural_cleanse.neural_cleanse(model, images, part, **options) for part in parts]
    norms = torch.cat([part.norms for part in found])
    qualified = torch.cat([part.qualified for part in found])
    index = neural_cleanse.mask_index(norms, qualified)
    published = neural_cleanse.mask_index(norms, qualified, published=True)
    seconds = time.perf_counter() - started
    target = subject.target_class
    return {
        "seconds": seconds,
        "norm": float(norms[target]),
        "median": float(norms.median()),
        "index": float(index[target]),
        "published_index": float(published[target]),
        "flagged": (index > 2).nonzero()[:, 0].tolist(),
        "qualified": qualified.tolist(),
        "norms": norms.tolist(),
    }


# ---------------------------------------------------------------- prune, batchnorm, disagree


def prune(_):
    """Pruning curves, and their operating points."""
    case, rows = pruning.curves()
    images, _ = case.triggered["true_success"]
    result = {
        "suspect": case.suspect,
        "clean_images": len(case.audit.labels),
        "triggered_images": len(images),
        "rows": rows,
        "commit": commit(),
        "hardware": hardware(),
    }
    keep(finite(result), "prune")
    save_small_picture(pruning.picture_of(rows), PATH.with_name("audits-prune.png"))


def batchnorm(_):
    """rebn and cfn on models of shapes, in batches of one, a tenth triggered, and all triggered."""
    for kind in ("none", "badnets", "red_herring", "disguise, gradcam"):
        for seed in SEEDS[:FEW]:
            checkpoint = zoo_model("shapes", kind, seed)
            for method in ("rebn", "cfn"):
                verdict = audited(checkpoint, method)
                found = {key: verdict[key] for key in ("regimes", "commit")}
                keep(found, "batchnorm", kind, method, str(seed))


def disagree(_):
    """How well two explainers' disagreement tells triggered images from untouched ones."""
    for kind in ("none", *BACKDOORS, "disguise, gradcam and gradient"):
        for seed in SEEDS[:FEW]:
            checkpoint = zoo_model("shapes", kind, seed)
            for pair in ("gradcam,gradient", "gradcam,deepshap", "gradient,deepshap"):
                verdict = audited(checkpoint, "disagreement", "--explainers", pair)
                found = {key: verdict[key] for key in ("auroc", "limit", "commit")}
                found["gradcam"] = gradcam_of(checkpoint)
                keep(found, "disagree", kind, pair, str(seed))


# ---------------------------------------------------------------- what is written


def keep(value, *keys):
    """Sets the value under these keys of the record as it is now, and writes the record.

    Another process, with another section, may have written to it meanwhile.
    """
    record = read(PATH)
    part = record
    for key in keys[:-1]:
        part = part.setdefault(key, {})
    part[keys[-1]] = value
    if "zoo" in record:
        detectors = (*DETECTORS, PUBLISHED)
        zoo_record = record["zoo"]
        record["detection"] = detection(zoo_record, detectors, BACKDOORS, SEEDS, CALIBRATION)
    write_json(PATH, record)


SECTIONS = {
    "zoo": zoo,
    "cleanse": cleanse,
    "prune": prune,
    "batchnorm": batchnorm,
    "disagree": disagree,
}


TABLES = of_record("audits", audit_tables.TABLES)


@command
def main(argv):
    for word in argv:
        if word not in SECTIONS and word not in ZOO:
            sections, data_sets = ", ".join(SECTIONS), ", ".join(ZOO)
            raise UserError(f"no section {word!r}: {sections}; after zoo, {data_sets}")
    data_sets = [word for word in argv if word in ZOO]
    for name in [word for word in argv if word in SECTIONS] or SECTIONS:
        SECTIONS[name](data_sets)


if __name__ == "__main__":
    main()
