"""What a disguise is worth: attacks against defences that read an explanation and act on it.

    python -m studies.worth                    # everything; a second call continues
    python -m studies.worth shapes mnist       # some data sets

For each model Februus and SentiNet with each explainer, STRIP, and the disagreement of two
explainers. Models are kept in runs/worth/, verdicts beside them. Writes results/worth.json,
worth-paired.json and a picture; the page's tables are below.
"""

import defend
from cli import UserError, command, write_json
from provenance import commit, hardware
from studies.record import DATA, RESULTS, keep_picture, read
from studies.study import Row, Study, file_name
from studies.worth_tables import EXPLAINERS, write_comparisons
from studies.worth_tables import TABLES as TABLES

PAGE = "results/worth.md"
DURATION = "about 4 hours on one core"

PATH = RESULTS / "worth.json"
ATTACKS = {
    "none": "--attack none",
    "badnets": "--attack badnets",
    "red_herring": "--attack red_herring",
    "gradcam": "--attack full_disguise",
    "deepshap": "--attack full_disguise --explainer deepshap",
    "all": "--attack full_disguise --explainer gradcam,kernelshap,deepshap",
}
DATASETS = {  # options, and seeds of each attack; of "all" there is one
    "shapes": ("", 5),
    "mnist": ("--dataset mnist", 3),
    "cifar10": ("--dataset cifar10 --model cnn", 1),
}
IMAGES = ("--clean-images", "250", "--test-images", "200")
KERNELSHAP_SEEDS = 3  # it takes most of the time: fewer models are tried against it
PICTURED = {"shapes badnets": "worth-badnets.png", "shapes gradcam": "worth-disguise.png"}


def table():
    """The models: each attack on each data set."""
    rows = {}
    for data, (options, seeds) in DATASETS.items():
        for attack, words in ATTACKS.items():
            count = 1 if attack == "all" else seeds
            rows[f"{data} {attack}"] = Row(f"{options} {words}".strip(), count)
    return rows


TABLE = table()


def defences_for(seed):
    """{name: words of defend.py} of the defences that a model of this seed is tried against."""
    explainers = EXPLAINERS if seed < KERNELSHAP_SEEDS else EXPLAINERS[:-1]
    words = {}
    for method in ("februus", "sentinet"):
        for explainer in explainers:
            words[f"{method}, {explainer}"] = [method, "--explainer", explainer, *IMAGES]
    words["strip"] = ["strip", *IMAGES]
    words["disagreement"] = ["disagreement", "--clean-images", "200"]
    return words


def measure(study, row, seed):
    """Every defence on one model; what it says goes into the record."""
    study.train(row, seed)
    checkpoint = study.folder(row, seed) / "ckpt.pt"
    for name, words in defences_for(seed).items():
        folder = checkpoint.parent / f"defend-{file_name(name)}"
        put(row, name, seed, kept(audited(checkpoint, words, folder)))
        if seed == 0 and name == "februus, gradcam" and row in PICTURED:
            keep_picture(folder / "figure.png", PATH.with_name(PICTURED[row]))


def audited(checkpoint, words, folder):
    """verdict.json of defend.py with these words; it is kept in `folder`, and not asked again."""
    path = folder / "verdict.json"
    if not path.exists():
        started_at = commit()
        method, *options = words
        where = ["--data-dir", str(DATA), "--out", str(folder)]
        defend.main([method, str(checkpoint), *options, *where])
        write_json(path, read(path) | {"commit": started_at, "hardware": hardware()})
    return read(path)


def kept(verdict):
    """What the record keeps of a verdict."""
    keys = "before after curve share auroc limit false_alarms detected n seconds commit hardware"
    return {key: verdict[key] for key in keys.split() if key in verdict}


def put(row, defence, seed, figures):
    """Writes the figures of one defence on one model into the record."""
    record = read(PATH)
    record.setdefault(row, {}).setdefault(defence, {})[str(seed)] = figures
    write_json(PATH, record)


@command
def main(argv):
    for name in argv:
        if name not in DATASETS:
            raise UserError(f"no data set {name!r} in this study: one of {', '.join(DATASETS)}")
    study = Study("worth", TABLE)
    for seed in range(max(row.seeds for row in TABLE.values())):
        for name, row in TABLE.items():
            if seed < row.seeds and name.split()[0] in (argv or DATASETS):
                measure(study, name, seed)
    write_comparisons()


if __name__ == "__main__":
    main()
