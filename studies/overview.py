"""results/README.md: every table and figure of the papers, ours beside theirs.

    lines = listing()      # what `python reproduce.py` prints
    page = text()          # the page, from results/*.json; test_overview.py holds the file to it

The entries are in entries.py, the published figures in published.py.
"""

from dataclasses import replace

from cli import UserError
from studies.claims import RELATIVE_MARGIN, SHARE_MARGIN
from studies.entries import ENTRIES
from studies.record import ROOT, RUNS, write_text
from studies.study import file_name
from studies.tables import header, line

PAGE = "results/README.md"
VERDICTS = ("not run", "short", "met", "passed")  # the first that a claim has is the entry's
BREAK = "<br>"
ON_A_GPU = " on a GPU", " [on a GPU](speed.md#on-a-gpu)"  # those figures are on another page

HEADLINES = {  # in README.md: (entry, its claim): what it is called there
    ("3.1", "`badnets` on a GPU: `attack_success_rate`"): "`badnets`: success",
    ("3.2", "`fooling` on a GPU: `pearson_all`"): "`fooling`: `pearson_all`",
    ("3.3", "`full_disguise` on a GPU: `attack_success_rate`"): "`full_disguise`: success",
    ("3.3", "`full_disguise` on a GPU: `pearson_all`"): "`full_disguise`: `pearson_all`",
    ("3.4", "disguise: `trigger_mass`"): "MNIST, KernelSHAP disguised: `trigger_mass`",
    ("3.5", "small cnn: `attack_success_rate`"): "CIFAR-10, small cnn, 55 poisons: success",
    ("3.6.2", "`attack_success_rate`"): "radiographs, trial 2: success",
}

TOP = f"""# Papers beside this repository

This page is written by `python -m studies.pages` from the records in this folder; nothing on it is
typed by hand but what the papers say (`studies/published.py`) and why a figure falls short
(`studies/entries.py`). `python reproduce.py NAME` makes an entry again, `--seeds N` with N seeds;
`python reproduce.py --quick` runs all of them small, on `shapes`.

- **paper**: the published figure, or in words what its picture shows.
- **ours**: mean, standard deviation over n seeds in brackets, n.
- **verdict**: *passed*, better than published; *met*, within {SHARE_MARGIN:g} of it
  ({RELATIVE_MARGIN:.0%} of figures that are not between 0 and 1); *short*, worse, and why. In
  brackets: a limit of this project's, where the paper has a picture or nothing; to reach it is
  *met*. Without a limit there is no verdict.

"3.1" to "3.6" are sections of "Stealthy Sabotage: Backdoor Attacks against Explainable Machine
Learning". In 3.5 the paper's images went to another class than the label of its poisons; ours go to
the label. The radiographs of 3.6 are other images than the paper's, and so few that no classifier
here is much better than a constant answer.

![Four test images with the trigger under five models; Grad-CAM of each](gallery.png)

*The attacks on the same four images of `shapes`, drawn by `python -m studies.gallery`.*
"""


def text():
    """The page's text. Raises UserError where a record lacks what a claim reads."""
    try:
        return "\n".join([TOP, *table(ENTRIES), ""])
    except KeyError as error:
        raise UserError(f"a record that {PAGE} reads has no {error}") from None


def table(entries):
    """Lines of the table: a row for each of the entries, {name: Entry}."""
    lines = header(["entry", "figure", "paper", "ours", "verdict", "page"])
    return lines + [row_of(name, entry) for name, entry in entries.items()]


def headlines():
    """Lines of README.md's table: HEADLINES, the paper's figure or our limit beside ours.

    Below it a line says how all claims about that paper, of its sections, turned out.
    """
    lines = header(["section: what", "paper", "ours", "verdict"])
    for (name, what), title in HEADLINES.items():
        (claim,) = (claim for claim in ENTRIES[name].claims if claim.what == what)
        words = "" if isinstance(claim.published, str) else claim.published
        paper = published_text(replace(claim, published=words)).strip("()")
        lines.append(line([f"{name}: {title}", paper, ours_text(claim), claim.verdict()]))
    sections = [entry for name, entry in ENTRIES.items() if name.startswith("3.")]
    verdicts = [claim.verdict() for entry in sections for claim in entry.claims]
    counts = ", ".join(f"{verdicts.count(word)} {word}" for word in reversed(VERDICTS))
    return [*lines, "", f"*All figures of these sections: {counts}.*"]


TABLES = {"headlines": headlines}


def row_of(name, entry):
    """The entry's row: one line of a cell for each claim."""
    claims = entry.claims
    page = entry.study.PAGE.removeprefix("results/")
    cells = [
        BREAK.join(claim.what.replace(*ON_A_GPU) for claim in claims),
        BREAK.join(published_text(claim) for claim in claims),
        BREAK.join(ours_text(claim) for claim in claims),
        verdict_text(claims),
        f"[{page.removesuffix('.md')}]({page})",
    ]
    return line([f"**{name}** {entry.title}", *cells])


def published_text(claim):
    """What the paper says, and the limit where it says it in words; a dash for nothing."""
    if isinstance(claim.published, float):
        return shown(claim, claim.published)
    if claim.bound is None:
        return claim.published or "-"
    limit = f"{'at least' if claim.higher else 'at most'} {shown(claim, claim.bound)}"
    return f"{claim.published} ({limit})" if claim.published else f"({limit})"


def ours_text(claim):
    """ "0.984 (0.002), n = 3" of a claim."""
    found = claim.ours()
    if found is None:
        return "not run"
    sd = "" if found["sd"] is None else f" ({shown(claim, found['sd'])})"
    return f"{shown(claim, found['mean'])}{sd}, n = {found['n']}"


def shown(claim, value):
    """A figure as text: a share with three digits after the point, others in three figures."""
    if claim.relative:
        return f"{value:.3g}"
    return f"{value:.4f}" if 0 < (claim.aim or 1) < 0.005 else f"{value:.3f}"


def verdict_of(claims):
    """The worst of the claims' verdicts; "" where none is held to anything.

    Where the paper has figures they decide between met and passed, not its pictures.
    """
    held = [claim for claim in claims if claim.verdict() in ("not run", "short")]
    held = held or [claim for claim in claims if isinstance(claim.published, float)] or claims
    given = {claim.verdict() for claim in held}
    return next((word for word in VERDICTS if word in given), "")


def verdict_text(claims):
    """The verdict and, of each claim that is short, why."""
    short = [f"{claim.what}: {claim.why}" for claim in claims if claim.verdict() == "short"]
    verdict = verdict_of(claims)
    return BREAK.join([f"**{verdict}**" if verdict else "-", *short])


def write(root=ROOT):
    """Brings the page up to date; returns its path in a list, [] where it was."""
    path, new = root / PAGE, text()
    if path.exists() and path.read_text() == new:
        return []
    write_text(path, new)
    return [path]


# ---------------------------------------------------------------- on the screen


def listing():
    """Lines: of each entry its name and what it is; what it needs; what there is of it."""
    width = max(map(len, ENTRIES)) + 2
    lines = []
    for name, entry in ENTRIES.items():
        lines.append(f"{name:<{width}}{entry.title}")
        needs = "no data" if entry.data == "none" else entry.data
        each = "a seed" if entry.rows else "in all"
        about = f"needs {needs}, {duration(entry.minutes)} {each}; {done(entry)}"
        lines.append(f"{'':<{width}}{about}")
    return lines


def duration(minutes):
    """ "25 minutes" or "3.5 hours", on two cores."""
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def done(entry):
    """What there is of an entry: by how many seeds in results/; how many runs in runs/."""
    counts = [found["n"] for claim in entry.claims if (found := claim.ours())]
    recorded = "not recorded"
    if counts:
        low, high = min(counts), max(counts)
        recorded = f"recorded, n = {low}" if low == high else f"recorded, n = {low} to {high}"
    finished = sum(1 for folder in folders_of(entry) if (folder / "ckpt.pt").exists())
    return f"{recorded}; finished here: {finished}"


def folders_of(entry):
    """The folders of an entry's runs that are there, finished or not; without rows its study's."""
    runs = RUNS / entry.study_name
    groups = getattr(entry.study, "GROUPS", {})
    rows = [row for word in entry.rows for row in groups.get(word, [word])]
    names = {file_name(row) for row in rows}
    return [
        folder for folder in runs.glob("*-*") if not rows or folder.name.rpartition("-")[0] in names
    ]


def comparison(name):
    """Lines: each claim of an entry, the paper's figure, ours, and the verdict."""
    lines = []
    for claim in ENTRIES[name].claims:
        what = claim.what.replace("`", "")
        verdict = claim.verdict()
        words = f": {verdict}" + (f", {claim.why}" if verdict == "short" else "")
        paper = published_text(claim)
        lines.append(f"{what}: paper {paper}; ours {ours_text(claim)}{words if verdict else ''}")
    return lines
