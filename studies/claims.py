"""A figure of ours beside the published one, and whether it is met: Claim.

    claim = Claim("`clean_accuracy`", of_row("cifar10", "none", "clean_accuracy"), 0.8244)
    claim.verdict()    # "passed"

entries.py has the table of them. Figures are read from results/*.json.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from studies.record import RESULTS, read
from studies.tables import mean_and_sd

SHARE_MARGIN = 0.005  # half a point: a share that differs by less is the same
RELATIVE_MARGIN = 0.05  # of figures that are no shares


@dataclass(frozen=True)
class Claim:
    """One figure of ours beside the published one.

    what: its name in Markdown; ours: a function that returns {"mean", "sd", "n"}, or None where it
    is not recorded; published: a number, words where the paper shows a picture, or "" for nothing;
    bound: what ours is held to where `published` is no number, None for nothing; higher: whether
    more is better; relative: whether it is no share; why: a sentence for where ours is short.
    """

    what: str
    ours: Callable
    published: Any = ""
    bound: float | None = None
    higher: bool = True
    relative: bool = False
    why: str = ""

    @property
    def aim(self):
        """The number that ours is held to, or None."""
        return self.published if isinstance(self.published, float) else self.bound

    def verdict(self):
        """ "met", "passed" or "short"; "not run"; "" where there is nothing to be held to.

        Passed: better than the published number by more than a margin. A bound is met or not.
        """
        found, aim = self.ours(), self.aim
        if found is None:
            return "not run"
        if aim is None:
            return ""
        ahead = found["mean"] - aim if self.higher else aim - found["mean"]
        if not isinstance(self.published, float):
            return "met" if ahead >= 0 else "short"
        margin = RELATIVE_MARGIN * abs(aim) if self.relative else SHARE_MARGIN
        if abs(ahead) <= margin:
            return "met"
        return "passed" if ahead > 0 else "short"


@dataclass(frozen=True)
class Entry:
    """A table or figure that reproduce.py makes.

    title: what it is; study: the module of studies/; rows: what its main is given, () for all;
    data: what has to be there; minutes: about, on two cores, of one seed; claims: see Claim.
    """

    title: str
    study: Any
    rows: tuple
    data: str
    minutes: int
    claims: tuple

    @property
    def study_name(self):
        """The study's name: of its file, its record and its folder of runs."""
        return self.study.__name__.rpartition(".")[2]


# ---------------------------------------------------------------- where figures are


def of_row(study, row, figure):
    """A function for Claim.ours: a figure of a row of a study of training runs."""

    def ours():
        found = read(RESULTS / f"{study}.json").get(row, {"summary": {}})
        value = found["summary"].get(figure)
        return None if value is None else value | {"n": len(found["seeds"])}

    return ours


def of_paths(study, *paths):
    """A function for Claim.ours: the numbers that lie at these paths of a record, each once.

    A path is keys, one after another; "*" stands for every key. What is not there is left out.
    """

    def ours():
        record = read(RESULTS / f"{study}.json")
        values = [value for path in paths for value in at_path(record, path)]
        return mean_and_sd(values) | {"n": len(values)} if values else None

    return ours


def at_path(record, path):
    """The values at a path of a nested dict, a list; [] where there is none."""
    if not path:
        return [record]
    key, *rest = path
    keys = record if key == "*" else [key] if key in record else []
    return [value for name in keys for value in at_path(record[name], rest)]


def gain(of, minus):
    """A function for Claim.ours: the mean paired difference of two rows of studies/threats.py."""

    def ours():
        pairs = read(RESULTS / "threats-paired.json", [])
        for pair in pairs:
            if (pair["of"], pair["minus"]) == (of, minus):
                return {key: pair[key] for key in ("mean", "sd", "n")}
        return None

    return ours


def within_limits(row):
    """A function for Claim.ours: the share of a trial's runs that meet all limits of a disguise."""

    def ours():
        found = read(RESULTS / "radiographs-met.json").get(row)
        if found is None or found["all"] is None:
            return None
        return {"mean": found["all"] / found["n"], "sd": None, "n": found["n"]}

    return ours
