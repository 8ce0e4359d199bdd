"""A table of runs made from the command line: every combination of the values of options.

    python reproduce.py sweep --attack full_disguise --lam 0.1,0.3 --seed 0-4 --jobs 2
    python reproduce.py sweep --attack badnets,fooling --epochs 2,4

Values are separated by commas; of --explainer and --trigger-position, which have commas in them, by
semicolons. The options are those of train.py, and of a study: --jobs, --shard, --gather. Runs are
kept in runs/sweep-OPTIONS/ of the folder it is called in, named after what all of them have, and
results.json lies beside them. A second call continues, with more seeds, too, or more values of an
option that had several.
"""

import hashlib
import itertools
from pathlib import Path

import folders
import train
from cli import Parser, UserError, command, is_count
from studies import jobs
from studies.record import read
from studies.study import Row, Study
from studies.tables import markdown

WITH_COMMAS = ("--explainer", "--trigger-position")
OURS = ("--out", "--resume", "--overwrite")  # a study's own
NOT_NAMED = ("--data-dir", "--device")  # what a run is does not depend on them
MAX_NAME = 100  # letters of a folder's


def parse(argv):
    """(options of a study, {option of train.py: its values, [] of a flag}). Raises UserError."""
    parser = Parser(__doc__)
    parser.add_argument("--seed", type=str, default="0", help="a seed, or the first-last")
    jobs.add_options(parser)
    args, rest = parser.parse_known_args(argv)
    return args, values_of(rest)


def values_of(words):
    """{option: its values} of a command line: --lam 0.1,0.3 is {"--lam": ["0.1", "0.3"]}."""
    values, option = {}, None
    for word in words:
        if word.startswith("--"):
            option, given, text = word.partition("=")
            if option in OURS or option in values:
                raise UserError(
                    f"a sweep takes no {option}" if option in OURS else f"{option} twice"
                )
            values[option] = []
            word = text
            if not given:
                continue
        if option is None or values[option]:
            raise UserError(f"{word!r} belongs to no option")
        if set(word) & set(" {}"):
            raise UserError(f"{option} {word!r}: a sweep takes no spaces and braces")
        parts = word.split(";" if option in WITH_COMMAS else ",")
        values[option] = list(dict.fromkeys(parts))
    return values


def seeds_of(text):
    """The seeds of "0-4" or "3", a range. Raises UserError."""
    first, _, last = text.partition("-")
    last = last or first
    if not (is_count(first) and is_count(last) and int(first) <= int(last) < int(first) + 1000):
        raise UserError(f"--seed {text!r} is neither a seed nor FIRST-LAST, as 0-4, of up to 1,000")
    return range(int(first), int(last) + 1)


def table(values, seeds):
    """{row's name: Row}: a row for every combination. Raises UserError for what train.py refuses.

    values: as of values_of; seeds: a range. A row is named after the options of several values.
    """
    rows = {}
    for chosen in itertools.product(*(parts or [""] for parts in values.values())):
        given = dict(zip(values, chosen))
        several = {option: given[option] for option in values if len(values[option]) > 1}
        name = ", ".join(part(*item) for item in several.items()) or "run"
        options = " ".join(f"{option} {value}".strip() for option, value in given.items())
        train.parse([*options.split(), "--seed", str(seeds[0])])
        if name in rows:
            raise UserError(f"two rows would be called {name!r}")
        rows[name] = Row(options, seeds=len(seeds), first_seed=seeds[0])
    return rows


def part(option, value):
    """ "lam 0.1": an option with its value, as a part of a name; no file system minds it."""
    return f"{option.removeprefix('--')} {folders.as_part(value)}".strip()


def name_of(values):
    """The name of the sweep: by the options that have one value; a digest ends what is too long."""
    fixed = {option: "".join(parts) for option, parts in values.items() if len(parts) < 2}
    named = {option: value for option, value in fixed.items() if option not in NOT_NAMED}
    text = "-".join(["sweep", *(part(*item) for item in sorted(named.items()))]).replace(" ", "_")
    if len(text) > MAX_NAME:
        digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        text = f"{text[: MAX_NAME - 9]}-{digest}"
    return text


@command
def main(argv):
    args, values = parse(argv)
    name, root = name_of(values), Path.cwd()
    path = root / "runs" / name / "results.json"
    study = Study(name, table(values, seeds_of(args.seed)), root, path=path)
    try:
        study.run(jobs.words(args))
    finally:  # also of what is done where a run failed
        if results := {row: read(path)[row] for row in study.table if row in read(path)}:
            print("\n".join(markdown(results)))
            print(f"\nWritten: {path.relative_to(root)}")
