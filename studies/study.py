"""Studies: many training runs as one table. `python reproduce.py` lists them.

A study is a table {name: Row}. Its runs are kept in runs/STUDY/, and what is finished is not run
again, so that a study that was stopped continues. It leaves in results/:

    STUDY.json      the figures of every run, their mean and standard deviation, the command, the
                    hardware and the commit they were trained at
    STUDY-ROW.png   the figure of the first seed, of the rows that want one
    STUDY.md        a page: prose by hand, around tables that studies/pages.py fills in

Its runs may be shared out, on one machine or on several (studies/jobs.py):

    python -m studies.STUDY --jobs 4                # four runs at once
    python -m studies.STUDY --shard 2/8 --jobs 4    # the second of eight shares; results/ is left
    python -m studies.STUDY --gather                # results/ from what is finished in runs/STUDY/
    python -m studies.STUDY ROW --seeds 3           # a row with so many seeds, not the table's

To be gathered a run needs metrics.json, study.json, selection.json and log.jsonl in its folder:
those of other machines are copied there.

One study is one file here: `python -m studies.NAME`. Two constants of it say what reproduce.py
lists: PAGE, the page that shows its tables, and DURATION, about how long it takes.
"""

import json
import shlex
from dataclasses import dataclass, replace

import torch

import card
import evaluate
import explain
import report
import train
from cli import UserError, write_json
from provenance import commit, hardware
from studies import jobs
from studies.record import (
    ROOT,
    keep_picture,
    read,
    selection_cost,
    write_text,
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

    def __init__(self, name, table, root=ROOT, groups=None, path=None):
        """name: of the files in results/ and of the folder in runs/; table: {row's name: Row}.

        groups: {name: the rows it stands for, a table}, or None; path: of the record, where it is
        not results/NAME.json.
        """
        self.name = name
        self.table = table
        self.groups = groups or {}
        self.root = root
        self.runs = root / "runs" / name
        self.path = path or root / "results" / f"{name}.json"
        self.keeps_others = False  # whether recorded runs of other seeds stay: see take_seeds

    def run(self, argv=()):
        """Trains and measures rows, or all; results/ is brought up to date after each.

        argv: names of rows and of groups of rows, and options of jobs.parse. Raises UserError for a
        row that there is not, and SystemExit(0) after a share of the runs, which is no result yet.
        """
        args = jobs.parse(argv)
        names = self.named(args.rows)
        if args.seeds:
            self.take_seeds(names, args.seeds)
        if args.gather:
            self.gather(names)
        elif args.jobs or args.shard:
            self.run_at_once(names, args.jobs or 1, args.shard)
        else:
            for name in names:
                self.write(name, [self.run_once(name, seed) for seed in self.seeds(name)])
                self.keep_pictures(name)

    def named(self, words):
        """The names of the rows that names of rows and of groups stand for; of none, all."""
        names = [row for word in words for row in self.groups.get(word, [word])]
        for name in names:
            if name not in self.table:
                known = ", ".join(map(repr, self.table))
                raise UserError(f"no row {name!r}: one of {known}")
        return list(dict.fromkeys(names or self.table))

    def take_seeds(self, names, count):
        """From now on rows have so many seeds; what is recorded of others stays in the record."""
        self.table = self.table | {name: replace(self.table[name], seeds=count) for name in names}
        self.keeps_others = True

    def seeds(self, name):
        """The seeds of a row, a range."""
        row = self.table[name]
        return range(row.first_seed, row.first_seed + row.seeds)

    # ------------------------------------------------------------ several at once

    def run_at_once(self, names, processes, shard=None):
        """Trains and measures rows in several processes; a row's record is written when it is done.

        shard: (i, n), only the i-th of n shares of the runs. Raises as `run` does, and UserError at
        the end where a run failed.
        """
        runs = [(name, seed) for name in names for seed in self.seeds(name)]
        first, count = shard or (1, 1)
        queue = jobs.Queue(self.in_order(runs[first - 1 :: count]))

        def after_run(run):
            name = run[0]
            done = queue.done.issuperset((name, seed) for seed in self.seeds(name))
            if done and name in names and shard is None:
                self.gather([name])

        jobs.run_all(self, queue, processes, after_run)
        if shard is None:
            self.gather(names, without=queue.failed)
        queue.raise_failures()
        if shard is not None:
            print(f"Share {first} of {count} is done. When all are: --gather in its place.")
            raise SystemExit(0)

    def in_order(self, runs):
        """{run: the runs that come before it} of these runs, and of what they need and lack."""
        order = {}

        def add(run):
            if run not in order:
                before = [other for other in self.needed(*run) if self.is_missing(other, runs)]
                for other in before:
                    add(other)
                order[run] = before

        for run in runs:
            add(run)
        return order

    def needed(self, name, seed):
        """The runs (row, seed) whose checkpoint a run takes: its clean model, its reference."""
        options = self.options(name, seed)
        clean = self.table[name].clean
        checkpoints = {row: str(self.folder(row, seed) / "ckpt.pt") for row in self.table}
        return [(row, seed) for row in self.table if row == clean or checkpoints[row] in options]

    def is_missing(self, run, runs):
        """Whether a run is among those to be done, or has no checkpoint."""
        return run in runs or not (self.folder(*run) / "ckpt.pt").exists()

    # ------------------------------------------------------------ what is finished

    def gather(self, names, without=()):
        """Writes the record of rows from the folders of their finished runs; trains nothing.

        without: runs (row, seed) to leave out. A row of which none is finished stays as it was.
        What is missing is said in a line. Raises UserError where there is nothing at all.
        """
        missing, found = [], {}
        for name in names:
            figures_of = {seed: self.finished(name, seed) for seed in self.seeds(name)}
            lacking = [s for s in figures_of if not figures_of[s] or (name, s) in without]
            if lacking:
                missing.append(f"{name}: {', '.join(map(str, lacking))}")
            if runs := [figures_of[seed] for seed in figures_of if seed not in lacking]:
                found[name] = runs
        for name, runs in found.items():
            self.write(name, runs)
            self.keep_pictures(name)
        if missing:
            print(f"Not finished, by seed: {'; '.join(missing)}")
        if not found and not without:
            raise UserError(f"nothing to gather: no run of these rows is finished in {self.runs}")

    def finished(self, name, seed):
        """The figures of a finished run by its files, its checkpoint aside; None where it is not.

        What its row asks for today must be measured.
        """
        folder = self.folder(name, seed)
        files = [folder / file for file in ("metrics.json", "selection.json", "study.json")]
        if not all(path.exists() for path in files):
            return None
        if (folder / "unfinished" / "ckpt.pt").exists() or not has_note(folder):
            return None
        if not is_complete(self.table[name], read(files[0])):
            return None
        return recorded(folder)

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
        if not is_complete(row, read(folder / "metrics.json")):
            self.measure(name, seed, clean)
        return recorded(folder)

    def options(self, name, seed):
        """The words of train.py's command line that a row has for a seed."""
        words = shlex.split(self.table[name].options)
        return [word.format(seed=seed, runs=self.runs) for word in words]

    def train(self, name, seed, clean=None):
        """Trains and measures one run, unless it is finished; clean: a checkpoint's path, or None.

        study.json in the run's folder says at which commit, on what and how fast.
        """
        folder = self.folder(name, seed)
        started_at = commit()
        options = ["--data-dir", str(self.root / "data"), *self.options(name, seed)]
        options += ["--seed", str(seed), "--out", str(folder), "--resume", "--overwrite"]
        try:
            train.train_and_measure(train.parse(options), clean, self.table[name].explainers)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("the same command goes on with what is not finished") from None
        if not has_note(folder):
            write_text(folder / "study.json", json.dumps(made_by(folder, seed, started_at)))

    def measure(self, name, seed, clean):
        """Measures a run that was trained before its row asked for so much."""
        folder = self.folder(name, seed)
        result = evaluate.evaluate(
            folder / "ckpt.pt",
            data_dir=self.root / "data",
            reference=clean,
            explainers=self.table[name].explainers,
        )
        report.write(result, folder)
        card.bring_up_to_date(folder, result.subject, result.metrics)

    # ------------------------------------------------------------ results/

    def write(self, name, runs):
        """Puts a row's runs into the record as it is now: another process may have added to it."""
        with jobs.alone(self.runs / "gathering"):
            results = read(self.path)
            results[name] = self.entry(name, self.beside_others(results.get(name), name, runs))
            order = [*self.table, *results]  # rows that the table no longer has stay, at the end
            results = {row: results[row] for row in sorted(results, key=order.index)}
            write_json(self.path, results)

    def beside_others(self, recorded, name, runs):
        """A row's runs and, after take_seeds, those of other seeds that its record has, by seed.

        recorded: the row's record, or None; one of other options is left behind.
        """
        if not self.keeps_others or not recorded:
            return runs
        if recorded["options"] != self.entry(name, runs)["options"]:
            return runs
        seeds = {run["seed"] for run in runs}
        others = [run for run in recorded["runs"] if run.get("seed") not in (None, *seeds)]
        return sorted([*runs, *others], key=lambda run: run["seed"])

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
        """Copies the figures of a row's first seed to results/, of a row that wants a picture."""
        if not self.table[name].picture:
            return
        folder = self.folder(name, self.table[name].first_seed)
        for picture in folder.glob("figure*.png"):
            kind = picture.stem.removeprefix("figure")  # "", or "-gradcam" and the like
            target = self.path.with_name(f"{self.name}-{file_name(name)}{kind}.png")
            keep_picture(picture, target)


def recorded(folder):
    """The figures of the finished run in `folder`, flat, as the record has them."""
    result = figures(read(folder / "metrics.json")) | read(folder / "study.json")
    return result | {"poisons_by_class": read(folder / "selection.json")["classes"]}


def has_note(folder):
    """Whether study.json in `folder` is of the run in it: they agree on how fast it was."""
    noted = read(folder / "study.json").get("images_per_second")
    return noted is not None and (folder / "log.jsonl").exists() and noted == speed(log_of(folder))


def log_of(folder):
    """The lines of a run's log, one dict an epoch."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def speed(log):
    """Images a second of a run with this log."""
    return round(log[-1]["images"] / log[-1]["seconds"], 1)


def is_complete(row, metrics):
    """Whether a run's metrics have all that its row asks for: rows change, runs are kept."""
    if set(row.explainers) - set(metrics["explanations"]):
        return False
    if not all("floor_triggered" in part for part in metrics["explanations"].values()):
        return False  # of before the floor was between untouched maps
    return row.clean is None or "explanations" in metrics["clean_model"]


def made_by(folder, seed, started_at):
    """What study.json says of the finished run in `folder`; started_at: the commit."""
    log = log_of(folder)
    return {
        "seed": seed,
        "images_per_second": speed(log),
        **selection_cost(folder, log[-1]),
        "validation_success": [epoch["validation_success"] for epoch in log],
        "hardware": hardware(),
        "torch": str(torch.__version__),
        "commit": started_at,
    }


def file_name(row):
    """A row's name as a part of a file's: "trial 2, mended" is "trial_2_mended"."""
    return row.replace(" ", "_").replace(",", "")
