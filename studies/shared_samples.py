"""By how much a shared sample of coalitions flatters the likeness of two sampled maps.

    python -m studies.shared_samples

A sampled explainer estimates both maps of a pair, untouched and triggered, from one sample of
coalitions. So its error is partly the same in both, and makes them more alike. Here the triggered
map is estimated from samples of its own, too, and so is the untouched map, which shows how alike
two estimates of one map are. Models of studies/transfer.py, seed 0; test images drawn by a seed, on
which the attack succeeds. Writes results/shared_samples.json.
"""

from answers import ask
from cli import UserError, command, write_json
from metrics import mean_or_none, pearson
from provenance import commit, hardware
from studies import transfer
from studies.record import DATA, RESULTS
from studies.study import Study
from studies.tables import cell, header, line, mean_and_sd, note, of_record
from subject import draw_images, open_checkpoint

PAGE = "results/sampling.md"
DURATION = "about 30 minutes on one core"

ROWS = ("shapes none", "shapes badnets", "shapes kernelshap")  # of studies/transfer.py
EXPLAINERS = ("kernelshap", "gpshap")
IMAGES = 100
SAMPLES = (1, 2, 3)  # seeds of further samples of coalitions; the shared one's is 0


def pearson_all(maps, others):
    """The figure of that name: mean correlation of maps [N, H, W] and others, blank ones as 0."""
    return mean_or_none(pearson(maps, others))


def measure(subject, name):
    """pearson_all of an explainer: "shared", "independent" and, of the untouched map, "itself".

    The last two are lists, an entry each of SAMPLES.
    """
    answers = ask(subject, None)
    rows = draw_images(subject, len(subject.dataset.test_labels), 0)
    if subject.attack.changes_label:
        rows = rows[answers.success[rows]]
    rows = rows[:IMAGES]
    images = subject.dataset.test_images[rows]
    classes = [part[rows] for part in answers.classes]

    def maps(triggered, sample):
        return subject.explain(name, images, classes[triggered], bool(triggered), sample=sample)

    untouched = maps(0, 0)
    return {
        "n": len(rows),
        "shared": pearson_all(maps(1, 0), untouched),
        "independent": [pearson_all(maps(1, k), untouched) for k in SAMPLES],
        "itself": [pearson_all(maps(0, k), untouched) for k in SAMPLES],
    }


def samples_table(record):
    """pearson_all by one sample and by two, a line for each model and explainer."""
    titles = ["model", "explainer", "n", "one sample", "two samples", "difference"]
    lines = header([*titles, "the untouched map, estimated twice"])
    for row, parts in record["pearson_all"].items():
        for name, part in parts.items():
            independent, itself = (mean_and_sd(part[key]) for key in ("independent", "itself"))
            gain = f"{part['shared'] - independent['mean']:+.3f}"
            cells = [part["n"], f"{part['shared']:.3f}", cell(independent), gain, cell(itself)]
            lines.append(line([transfer.title(row), f"`{name}`", *cells]))
    about = f"1,024 coalitions; mean (standard deviation) of {len(SAMPLES)} further samples"
    return [*lines, "", note(about, [record["hardware"]], [record["commit"]])]


TABLES = of_record("shared_samples", {"samples": samples_table})


@command
def main(argv):
    if argv:
        raise UserError(f"shared_samples has no rows: {argv[0]!r} is none")
    study = Study("transfer", transfer.TABLE)
    found = {}
    for row in ROWS:
        study.train(row, 0)
        subject = open_checkpoint(study.folder(row, 0) / "ckpt.pt", DATA)
        found[row] = {name: measure(subject, name) for name in EXPLAINERS}
        print(row, found[row], flush=True)
    record = {
        "command": "python -m studies.shared_samples",
        "seed": 0,
        "hardware": hardware(),
        "commit": commit(),
        "pearson_all": found,
    }
    write_json(RESULTS / "shared_samples.json", record)


if __name__ == "__main__":
    main()
