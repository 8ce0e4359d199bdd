"""Which kinds of trigger two defences find, on the models of the study on breadth.

    python -m studies.kinds_found     # a second call continues

Neural Cleanse searches for a patch, STRIP blends inputs; neither knows the trigger. Models are
trained, or taken as they are, in runs/breadth/. Writes results/kinds_found.json.
"""

from cli import command, write_json
from odds import NOTHING
from studies import breadth
from studies.record import RESULTS, read
from studies.study import Study, file_name
from studies.tables import header, line, note, of_record
from studies.worth import audited

PAGE = breadth.PAGE
DURATION = "about half an hour on one core, beside the study on breadth"

PATH = RESULTS / "kinds_found.json"
SEED = 0
ROWS = breadth.rows_of("shapes")
DEFENCES = {  # words of defend.py, and what is kept of the verdict
    "neural_cleanse": (["neural_cleanse"], ("index", "odds", "flagged", "scores")),
    "strip": (
        ["strip", "--clean-images", "250", "--test-images", "200"],
        ("auroc", "detected", "false_alarms"),
    ),
}
ORIGIN = ("seconds", "commit", "hardware")


def measure(study, row):
    """The row's record: each defence's verdict on its model of SEED, and the target class."""
    study.train(row, SEED)
    folder = study.folder(row, SEED)
    found = {"target": read(folder / "metrics.json")["target_class"]}
    for name, (words, kept) in DEFENCES.items():
        verdict = audited(folder / "ckpt.pt", words, folder / f"defend-{file_name(name)}")
        found[name] = {key: verdict[key] for key in (*kept, *ORIGIN)}
    return found


def table(record):
    """Lines: a row for each model, by its kind of trigger and its attack."""
    titles = ["trigger, attack", "Neural Cleanse: the target's index", "the largest other", "says"]
    lines = header([*titles, "STRIP: AUROC", "detected", "at false alarms"])
    for title, row in ROWS.items():
        if row in record:
            lines.append(line([title, *cells_of(record[row])]))
    runs = [record[row][name] for row in record for name in DEFENCES]
    origin = {run["hardware"] for run in runs}, {run["commit"] for run in runs}
    return [*lines, "", note(f"n = 1, seed {SEED}", *origin)]


def cells_of(found):
    """The cells of one model. A clean model's target is the class its trigger was measured for."""
    cleanse, strip = found["neural_cleanse"], found["strip"]
    index = {int(k): value for k, value in cleanse["index"].items()}
    target = index.pop(found["target"])
    says = cleanse["odds"]["word"]
    if says != NOTHING:
        right = target > max(index.values())
        says += ": the target" if right else ": another class"
    rates = [f"{strip[key]:.2f}" for key in ("auroc", "detected", "false_alarms")]
    return [f"{target:.2f}", f"{max(index.values()):.2f}", says, *rates]


TABLES = of_record("kinds_found", {"found": table})


@command
def main(argv):
    study = Study("breadth", breadth.TABLE)
    for row in ROWS.values():
        record = read(PATH) | {row: measure(study, row)}
        write_json(PATH, record)


if __name__ == "__main__":
    main()
