"""Studies: many training runs as one table. `python reproduce.py` lists them.

A study is a table {name: Row}. Its runs are kept in runs/STUDY/, and what is finished is not run
again, so that a study that was stopped continues. It leaves in results/:

    STUDY.json      the figures of every run, their mean and standard deviation, the command, the
                    hardware and the commit they were trained at
    STUDY-ROW.png   the figure of the first seed, of the rows that want one
    STUDY.md        a page: prose by hand, around tables that studies/pages.py fills in

One study is one file here: `python -m studies.NAME`. Two constants of it say what reproduce.py
lists: PAGE, the page that shows its tables, and DURATION, about how long it takes.
"""

import json
from dataclasses import dataclass

import torch

import evaluate
import explain
import report
import train
from cli import UserError, write_json
from provenance import commit, hardware
from studies.record import (
    ROOT,
    keep_picture,
    read,
    selection_cost,
)
from studies.tables import figures, summary


@dataclass(frozen=True)
class Row:
    """One row of a study's table: a training run, repeated with several seeds.

    options: of train.py; "{seed}" stands for the seed, "{runs}" for the folder of the study's runs
    seeds: how many
    first_seed: the smallest of them
    clean: the row whose model of the same seed is measured on the same images, or None
    picture: whether results/ keeps the figure of the first seed
    explainers: what it is evaluated with, beside those it was trained against
    """

    options: str
    seeds: int = 1
    first_seed: int = 0
    clean: str | None = None
    picture: bool = False
    explainers: tuple = explain.EVALUATED


class Study:
    """A table of rows, and the folders its runs and its record are kept in."""

    def __init__(self, name, table, root=ROOT, groups=None):
        """name: of the files in results/ and of the folder in runs/; table: {row's name: Row}.

        groups: {name: the rows it stands for, a table}, or None.
        """
        self.name = name
        self.table = table
        self.groups = groups or {}
        self.root = root
        self.runs = root / "runs" / name
        self.path = root / "results" / f"{name}.json"

    def run(self, names=()):
        """Trains and measures the rows `names`, or all; results/ is brought up to date after each.

        names: of rows and of groups of rows. Raises UserError for one that there is not.
        """
        names = [row for name in names for row in self.groups.get(name, [name])]
        for name in names:
            if name not in self.table:
                known = ", ".join(map(repr, self.table))
                raise UserError(f"no row {name!r}: one of {known}")
        for name in names or self.table:
            row = self.table[name]
            seeds = range(row.first_seed, row.first_seed + row.seeds)
            self.write(name, [self.run_once(name, seed) for seed in seeds])
            if row.picture:
                self.keep_pictures(name)

    # ------------------------------------------------------------ one run

    def folder(self, name, seed):
        """The folder of one run."""
        return self.runs / f"{file_name(name)}-{seed}"

    def run_once(self, name, seed):
        """The figures of one run, flat; the run and its clean model are trained if need be."""
        row = self.table[name]
        folder = self.folder(name, seed)
        clean = None
        if row.clean:
            clean = self.folder(row.clean, seed) / "ckpt.pt"
            if not clean.exists():
                self.train(row.clean, seed)
        self.train(name, seed, clean)
        metrics = read(folder / "metrics.json")
        if not is_complete(row, metrics):
            metrics = self.measure(name, seed, clean)
        result = figures(metrics) | read(folder / "study.json")
        return result | {"poisons_by_class": read(folder / "selection.json")["classes"]}

    def train(self, name, seed, clean=None):
        """Trains and measures one run, unless it is finished; clean: a checkpoint's path, or None.

        study.json in the run's folder says at which commit, on what and how fast.
        """
        folder = self.folder(name, seed)
        started_at = commit()
        options = self.table[name].options.format(seed=seed, runs=self.runs).split()
        options += ["--seed", str(seed), "--data-dir", str(self.root / "data")]
        options += ["--out", str(folder), "--resume", "--overwrite"]
        train.train_and_measure(train.parse(options), clean, self.table[name].explainers)
        note = folder / "study.json"
        checkpoint = folder / "ckpt.pt"
        if not note.exists() or note.stat().st_mtime < checkpoint.stat().st_mtime:
            note.write_text(json.dumps(made_by(folder, seed, started_at)))

    def measure(self, name, seed, clean):
        """The metrics of a run that was trained before its row asked for so much."""
        folder = self.folder(name, seed)
        result = evaluate.evaluate(
            folder / "ckpt.pt",
            data_dir=self.root / "data",
            reference=clean,
            explainers=self.table[name].explainers,
        )
        report.write(result, folder)
        return result.metrics

    # ------------------------------------------------------------ results/

    def write(self, name, runs):
        """Puts a row's runs into the record as it is now: another process may have added to it."""
        results = read(self.path)
        results[name] = self.entry(name, runs)
        order = [*self.table, *results]  # rows that the table no longer has stay, at the end
        results = {row: results[row] for row in sorted(results, key=order.index)}
        write_json(self.path, results)

    def entry(self, name, runs):
        """What the record says of a row: how it was made, the runs, their means."""
        row = self.table[name]
        options = row.options.format(seed="SEED", runs=self.runs.relative_to(self.root))
        command = f"python train.py {options} --seed SEED"
        if "{runs}" in row.options:  # train.py alone would not find that file
            command = f'python -m studies.{self.name} "{name}"'
        return {
            "command": command,
            "options": options,
            "seeds": [run["seed"] for run in runs],
            "summary": summary(runs),
            "runs": runs,
        }

    def keep_pictures(self, name):
        """Copies the figures of a row's first seed to results/."""
        folder = self.folder(name, self.table[name].first_seed)
        for picture in folder.glob("figure*.png"):
            kind = picture.stem.removeprefix("figure")  # "", or "-gradcam" and the like
            target = self.path.with_name(f"{self.name}-{file_name(name)}{kind}.png")
            keep_picture(picture, target)


def is_complete(row, metrics):
    """Whether a run's metrics have all that its row asks for: rows change, runs are kept."""
    if set(row.explainers) - set(metrics["explanations"]):
        return False
    if not all("floor_triggered" in part for part in metrics["explanations"].values()):
        return False  # of before the floor was between untouched maps
    return row.clean is None or "explanations" in metrics["clean_model"]


def made_by(folder, seed, started_at):
    """What study.json says of the finished run in `folder`; started_at: the commit."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = log[-1]
    return {
        "seed": seed,
        "images_per_second": round(last["images"] / last["seconds"], 1),
        **selection_cost(folder, last),
        "validation_success": [epoch["validation_success"] for epoch in log],
        "hardware": hardware(),
        "torch": str(torch.__version__),
        "commit": started_at,
    }


def file_name(row):
    """A row's name as a part of a file's: "trial 2, mended" is "trial_2_mended"."""
    return row.replace(" ", "_").replace(",", "")
