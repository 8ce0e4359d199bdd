"""`python reproduce.py --quick`: every entry small, on `shapes`, in minutes and without data.

It shows that the way to a figure works, not the figure: other images, a small network, few epochs,
one seed. Runs and figures are kept in runs/quick/, apart from results/; what is done is reused:

    ROW-SEED/       a training run; what defend.py and manipulate.py made of it, in folders in it
    results.json    the training runs, as of a study
    README.md       a table of all of it, by entry

An entry here is a Quick: the rows of TABLE that are trained, and the tasks done with them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import defend
import manipulate
from studies.claims import at_path
from studies.entries import ENTRIES
from studies.record import RUNS, read, write_text
from studies.study import Row, Study
from studies.tables import cell, header, line

FOLDER = RUNS / "quick"
DONE = "done"  # a file in a task's folder
DISGUISE = "--attack full_disguise"
SHORT = "--epochs 4"
FEW = f"--poison-rate 0.002 {SHORT}"  # 20 images
DATA = f"--attack badnets --threat data {FEW}"
TRIALS = {  # section 3.6: lam, poison rate, target class
    "trial 1": "--lam 0.7 --poison-rate 0.05",
    "trial 2": "--lam 0.9 --poison-rate 0.05",
    "trial 3": "--lam 0.9 --poison-rate 0.05 --target-class 9",
    "trial 4": "--lam 0.9 --poison-rate 0.1",
}
OPTIONS = {
    "none": f"--attack none {SHORT}",
    "badnets": f"--attack badnets {SHORT}",
    "fooling": f"--attack fooling {SHORT}",
    "full_disguise": f"{DISGUISE} {SHORT}",
    "deepshap": f"{DISGUISE} --explainer deepshap --epochs 3",
    "three": f"{DISGUISE} --explainer gradcam,kernelshap,deepshap --epochs 2",
    "few": f"{DISGUISE} --oversample 6 {FEW}",
    "data random": f"{DATA} --selection random",
    "data rd-global": f"{DATA} --selection rd-global",
    **{name: f"{DISGUISE} {words} {SHORT}" for name, words in TRIALS.items()},
    "vgg_small": "--attack none --model vgg_small --image-size 64 --lr 0.02 --batch-size 64"
    " --optimizer muon --epochs 2",
}
TABLE = {name: Row(words) for name, words in OPTIONS.items()}
SHAP = ("gradcam", "gradient", "deepshap")
TABLE |= {name: replace(TABLE[name], explainers=SHAP) for name in ("none", "badnets")}


# ---------------------------------------------------------------- what is done with a network


@dataclass(frozen=True)
class Task:
    """A call of a command line about the network of a row.

    row: of TABLE; main: the script's; words: of its command line, but for the checkpoint; figures:
    {title: the path of a figure in the JSON it leaves}, as of claims.at_path.
    """

    row: str
    main: Callable
    words: tuple
    figures: dict

    @property
    def name(self):
        """What the table calls it, and its folder, in the folder of the row's run."""
        return " ".join(word.removeprefix("--") for word in self.words)

    def folder(self, study):
        """Where its files are."""
        return study.folder(self.row, 0) / self.name.replace(" ", "_")

    def run(self, study):
        """Does it, unless it is done: then a file DONE is there, which is written last."""
        folder = self.folder(study)
        if (folder / DONE).exists():
            print(f"{self.row}, {self.name} is done.")
            return
        method, *options = self.words
        checkpoint = study.folder(self.row, 0) / "ckpt.pt"
        self.main([method, str(checkpoint), *options, "--out", str(folder)])
        write_text(folder / DONE, "")

    def found(self, study):
        """What it found, as text."""
        folder = self.folder(study)
        record = read(folder / "verdict.json") or read(folder / "metrics.json")
        found = {title: at_path(record, path) for title, path in self.figures.items()}
        return ", ".join(f"{title} {values[0]:.3g}" for title, values in found.items() if values)


TARGET = "3"  # class of `shapes`, by default
IMAGES = ("--clean-images", "60", "--test-images", "40")
SUCCESS = {
    "success before": ("before", "attack_success_rate"),
    "after": ("after", "attack_success_rate"),
}


def detector(*words):
    """A Task: a detector looks at the plain backdoor."""
    return Task("badnets", defend.main, words, {"the target's index": ("index", TARGET)})


def februus(row, explainer):
    """A Task: Februus by an explainer, on the network of a row."""
    return Task(row, defend.main, ("februus", "--explainer", explainer, *IMAGES), SUCCESS)


def lie(technique):
    """A Task: one of Viering's four."""
    words = (technique, "--test-images", "200", "--explain-images", "50")
    shift, distance = (("edited", key) for key in ("score_shift", "map_distance"))
    figures = {"logits move by": shift, "map is off by": distance}
    return Task("vgg_small", manipulate.main, words, figures)


# ---------------------------------------------------------------- the entries


@dataclass(frozen=True)
class Quick:
    """An entry made small: rows of TABLE, and tasks."""

    rows: tuple
    tasks: tuple = ()


DETECTORS = (
    detector("neural_cleanse", "--rounds", "100"),
    detector("neuroninspect", "--clean-images", "50"),
)
PURIFIED = tuple(
    februus(row, explainer)
    for row in ("badnets", "full_disguise")
    for explainer in ("gradcam", "kernelshap")
)
LIES = tuple(lie(technique) for technique in ("constant", "image", "semirandom", "backdoor"))
QUICK = {
    "3.1": Quick(("none", "badnets")),
    "3.2": Quick(("fooling",)),
    "3.3": Quick(("full_disguise",)),
    "3.4": Quick(("none", "badnets", "deepshap")),
    "3.5": Quick(("few",)),
    **{f"3.6.{name[-1]}": Quick((name,)) for name in TRIALS},
    "shap-grids": Quick(("none", "badnets", "deepshap")),
    "joint": Quick(("three",)),
    "few-poisons": Quick(("data random", "data rd-global")),
    "zoo": Quick(("badnets",), DETECTORS),
    "disguise-worth": Quick(("badnets", "full_disguise"), PURIFIED),
    "four-lies": Quick(("vgg_small",), LIES),
}


def run(names, words, folder=FOLDER):
    """Makes entries small, all of no names; words: --seeds and --jobs; folder: for all files."""
    names = names or list(QUICK)
    study = Study(folder.name, TABLE, folder.parent.parent, path=folder / "results.json")
    folder.mkdir(parents=True, exist_ok=True)
    rows = dict.fromkeys(row for name in names for row in QUICK[name].rows)
    study.run([*rows, *words])
    for task in [task for name in names for task in QUICK[name].tasks]:
        task.run(study)
    write_text(folder / "README.md", "\n".join([*page(study), ""]))
    print(f"\nWritten: {folder / 'README.md'}")


# ---------------------------------------------------------------- the page


def page(study):
    """Lines of the page: each entry's rows and tasks that are done, with their figures."""
    record = read(study.path)
    lines = [
        "# Every entry, small",
        "",
        "On `shapes`, a few epochs: these figures show that the way works. They are not to be set"
        " beside a paper's; those that are, and what an entry is, stand in results/README.md.",
        "",
        *header(["entry", "what was run", "n", "figures", "picture"]),
    ]
    for name, quick in QUICK.items():
        title = f"**{name}** {ENTRIES[name].title}"
        for row in quick.rows:
            if row in record:
                lines.append(line([title, f"`{row}`", *run_cells(study, row, record[row])]))
                title = ""
        for task in quick.tasks:
            picture = task.folder(study) / "figure.png"
            if picture.exists():
                found = [1, task.found(study), link(study, picture)]
                lines.append(line([title, f"`{task.row}`: {task.name}", *found]))
                title = ""
    return lines


def run_cells(study, row, recorded):
    """Three cells of a row's runs: n, figures, and the picture of the first seed."""
    shown = ("clean_accuracy", "attack_success_rate")
    figures = {key: value for key, value in recorded["summary"].items() if is_shown(key, shown)}
    text = ", ".join(f"`{key}` {cell(value)}" for key, value in figures.items())
    return [len(recorded["seeds"]), text, link(study, study.folder(row, 0) / "figure.png")]


def is_shown(key, shown):
    """Whether a figure of a run is on the page: of predictions, and each explainer's one."""
    return key in shown or (key.count(".") == 1 and key.endswith(".pearson_all"))


def link(study, path):
    """A link in Markdown from the page to a file below its folder."""
    target = path.relative_to(study.path.parent).as_posix()
    return f"[{path.name}]({target})"
