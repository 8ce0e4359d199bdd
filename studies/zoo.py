"""The models that studies/audits.py audits, and the verdicts on them, kept in runs/audits/.

A model of the zoo is known by its data set, the kind of its backdoor, and a seed.
"""

import json

import defend
import train
from provenance import commit
from studies.record import DATA, RUNS, read

FOLDER = RUNS / "audits"

KINDS = {
    "none": "--attack none",
    "badnets": "--attack badnets",
    "disguise, gradcam": "--attack full_disguise --explainer gradcam",
    "disguise, deepshap": "--attack full_disguise --explainer deepshap",
    "disguise, gradient": "--attack full_disguise --explainer gradient",
    "red_herring": "--attack red_herring",
    "disguise, gradcam and gradient": "--attack full_disguise --explainer gradcam,gradient",
}
SEEDS = range(1, 6)  # seed 0, and those from 100 on, are the pilot's
CALIBRATION = range(6, 11)  # of clean models that set a threshold and are in no count
CLASSES = {"shapes": 10, "mnist": 10, "gtsrb": 43}
# Colour and place by seed, seed 5 the first; on MNIST grey.
TRIGGERS = [
    ("square", "lower-right"),
    ("red", "upper-left"),
    ("square", "upper-right"),
    ("yellow", "lower-left"),
    ("white", "6,6"),
]

# The model that Wang et al. 2019 report on: a white square of 4x4, target class 33.
GTSRB = "--dataset gtsrb --trigger-size 4 --target-class 33 --poison-rate 0.09"
SEARCH = ("--round-images", "64")  # Neural Cleanse of 43 classes then takes minutes, not hours

# ---------------------------------------------------------------- models


def trained(name, options, seed):
    """The path of a checkpoint, trained if need be; options: of train.py, text."""
    folder = FOLDER / f"{name.replace(', ', '_').replace(' ', '_')}-{seed}"
    argv = [*options.split(), "--seed", str(seed), "--data-dir", str(DATA)]
    train.main([*argv, "--out", str(folder), "--resume", "--overwrite"])
    return folder / "ckpt.pt"


def target_of(dataset, seed):
    """The number of the target class."""
    return (3 * seed + 2) % CLASSES[dataset]


def zoo_model(dataset, kind, seed):
    """The path of the checkpoint of a model of the zoo, trained if need be."""
    options = f"--dataset {dataset} {KINDS[kind]}"
    if kind != "none":
        colour, place = TRIGGERS[seed % len(TRIGGERS)]
        target = target_of(dataset, seed)
        options += f" --trigger {colour} --trigger-position {place} --target-class {target}"
    return trained(f"{dataset} {kind}", options, seed)


def metrics_of(checkpoint):
    """What evaluate.py said of a model."""
    return read(checkpoint.parent / "metrics.json")


def quality(checkpoint):
    """How well the model and its backdoor work."""
    metrics = metrics_of(checkpoint)
    return {key: metrics[key] for key in ("clean_accuracy", "attack_success_rate")}


def gradcam_of(checkpoint):
    """What the trigger does to Grad-CAM's maps of test images."""
    gradcam = metrics_of(checkpoint)["explanations"]["gradcam"]
    return {key: gradcam[key] for key in ("pearson_all", "trigger_mass", "trigger_mass_clean")}


# ---------------------------------------------------------------- verdicts


def folder_of(checkpoint, method, *options):
    """Where a method's verdict is kept: each set of options has a folder of its own."""
    words = [word.strip("-").replace(",", "+") for word in options]
    return checkpoint.parent / "-".join([f"defend-{method}", *words])


def audited(checkpoint, method, *options):
    """What verdict.json says of a checkpoint, and under "commit" which code said so.

    The verdict is made unless there is one of these weights under these settings: a method's
    options, and its constants.
    """
    folder = folder_of(checkpoint, method, *options)
    argv = [method, str(checkpoint), *options, "--data-dir", str(DATA), "--out", str(folder)]
    if not is_made(folder, checkpoint, argv):
        made_at = folder / "commit"
        made_at.unlink(missing_ok=True)  # it is written last: with it the verdict is complete
        defend.main(argv)
        made_at.write_text(commit())
    return read(folder / "verdict.json") | {"commit": (folder / "commit").read_text()}


def is_made(folder, checkpoint, argv):
    """Whether a folder has the whole verdict of defend.py's command line on these weights."""
    path = folder / "verdict.json"
    if not (folder / "commit").exists() or path.stat().st_mtime <= checkpoint.stat().st_mtime:
        return False
    settings = defend.settings(defend.parse(argv))
    as_json = json.loads(json.dumps(settings))  # tuples are lists there
    return read(path).get("settings") == as_json
