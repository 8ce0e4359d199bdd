"""What a disguise is worth: attacks against defences that read an explanation and act on it.

    python -m studies.worth                    # everything; a second call continues
    python -m studies.worth shapes mnist       # some data sets

For each model Februus and SentiNet with each explainer, Februus with two and with what speaks
against a class, STRIP, and the disagreement of two explainers. Models are kept in runs/worth/,
verdicts beside them. Writes results/worth.json, worth-paired.json and pictures; the page's tables
are in worth_tables.py.
"""

import defend
from cli import UserError, command, write_json
from provenance import commit, hardware
from studies.record import DATA, RESULTS, keep_picture, read
from studies.study import Row, Study, file_name
from studies.worth_tables import AGAINST, EXPLAINERS, UNIONS, write_comparisons
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
PICTURES = {  # in results/: of which row and defence; of the first seed that has one
    "worth-badnets.png": ("shapes badnets", "februus, gradcam"),
    "worth-disguise.png": ("shapes gradcam", "februus, gradcam"),
    "worth-against.png": ("shapes gradcam", "februus, deepshap against"),
}


def table():
    """The models: each attack on each data set."""
    rows = {}
    for data, (options, seeds) in DATASETS.items():
        for attack, words in ATTACKS.items():
            count = 1 if attack == "all" else seeds
            rows[f"{data} {attack}"] = Row(f"{options} {words}".strip(), count)
    return rows


TABLE = table()


def defences():
    """{name: words of defend.py} of the defences that every model is tried against."""
    words = {}
    for method in ("februus", "sentinet"):
        for explainer in EXPLAINERS:
            words[f"{method}, {explainer}"] = [method, "--explainer", explainer, *IMAGES]
    for one, other in UNIONS:
        both = ["--explainer", one, "--union", other]
        words[f"februus, {one} or {other}"] = ["februus", *both, *IMAGES]
    for explainer in AGAINST:
        against = ["--explainer", explainer, "--evidence", "against"]
        words[f"februus, {explainer} against"] = ["februus", *against, *IMAGES]
    words["strip"] = ["strip", *IMAGES]
    words["disagreement"] = ["disagreement", "--clean-images", "200"]
    return words


def measure(study, row, seed):
    """Has every defence try one model; their verdicts are left beside it."""
    study.train(row, seed)
    checkpoint = study.folder(row, seed) / "ckpt.pt"
    for name, words in defences().items():
        audited(checkpoint, words, checkpoint.parent / f"defend-{file_name(name)}")


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
    """What the record keeps of a verdict; of a curve each figure's values, in a line of text.

    The points of a curve, a dict each, would be most of the record.
    """
    keys = "before after share auroc limit false_alarms detected n seconds commit hardware"
    result = {key: verdict[key] for key in keys.split() if key in verdict}
    if points := verdict.get("curve"):
        columns = {key: [point[key] for point in points] for key in points[0]}
        result["curve"] = {key: " ".join(map(figure_text, of)) for key, of in columns.items()}
    return result


def figure_text(value):
    """A figure of a curve as text; "-" of None."""
    return "-" if value is None else f"{value:g}"


def keep_pictures(study):
    """Copies PICTURES to results/, as far as their figures are here."""
    for picture, (row, name) in PICTURES.items():
        folder = f"defend-{file_name(name)}"
        seeds = range(TABLE[row].seeds) if row in TABLE else []
        figures = [study.folder(row, seed) / folder / "figure.png" for seed in seeds]
        if found := [figure for figure in figures if figure.exists()]:
            keep_picture(found[0], PATH.with_name(picture))


def gather(study):
    """Writes results/worth.json from the verdicts that lie beside the models, and the pictures."""
    keep_pictures(study)
    record = read(PATH)
    for row, options in TABLE.items():
        for name in defences():
            for seed in range(options.seeds):
                folder = study.folder(row, seed) / f"defend-{file_name(name)}"
                verdict = read(folder / "verdict.json")
                if verdict.get("commit"):  # written last: see audited
                    record.setdefault(row, {}).setdefault(name, {})[str(seed)] = kept(verdict)
    write_json(PATH, {row: record[row] for row in sorted(record, key=[*TABLE, *record].index)})


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
                gather(study)
    write_comparisons()


if __name__ == "__main__":
    main()
