"""The front door to every table and figure: the papers' beside ours, and this project's own.

    python reproduce.py                        # lists the entries: what each is, needs, has
    python reproduce.py 3.3                    # makes one, and prints ours beside the paper's
    python reproduce.py 3.3 --seeds 3          # with so many seeds
    python reproduce.py --quick                # all of them small, on shapes: a quarter of an hour
    python reproduce.py 3.3 four-lies --quick  # some of them small

An entry is a table or figure of a paper (studies/entries.py). It is made by some rows of a study, a
file in studies/, which has a page of its own, and may be named, too:

    python reproduce.py foundation                       # all rows of a study
    python reproduce.py foundation disguise badnets      # some of its rows
    python reproduce.py foundation --jobs 4              # four runs at once
    python reproduce.py foundation --shard 2/8           # the second of eight shares of its runs
    python reproduce.py foundation --gather              # records what is finished in runs/
    python reproduce.py sweep --lam 0.1,0.3 --seed 0-4   # a table by options of train.py

A second call continues what was stopped, and reuses what is finished. Figures are left in results/,
trained networks in runs/. Then results/README.md, where all entries stand beside the papers, and
the tables of README.md and of the pages in results/ are filled in anew.
"""

import interrupts  # noqa: F401  # isort: skip

from cli import Parser, UserError, command
from studies import jobs, overview, quick, sweep
from studies.entries import ENTRIES
from studies.pages import STUDIES, fill_pages
from studies.record import ROOT

# Studies whose rows are training runs, which can be shared out.
OF_RUNS = (
    *("foundation", "cifar10", "transfer", "efficient", "threats", "radiographs", "gpu"),
    *("breadth", "explainers"),
)


def parse(argv):
    parser = Parser(__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="an entry, or a study")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="of a study (default: all)")
    parser.add_argument("--quick", action="store_true", help="entries small, in runs/quick/")
    jobs.add_seeds(parser)
    jobs.add_options(parser)
    return parser.parse_intermixed_args(argv)


def listing():
    """Lines: the entries; of each study its name, its page, how long it takes, what it is about."""
    lines = ["Entries: python reproduce.py NAME", "", *overview.listing(), ""]
    lines += ["Studies, from which the entries come: python reproduce.py NAME [ROW ...]", ""]
    for name, study in STUDIES.items():
        about = study.__doc__.splitlines()[0]
        lines += [f"{name}: {study.PAGE}, {study.DURATION}", f"  {about}"]
    return [*lines, "sweep: its table is printed", f"  {sweep.__doc__.splitlines()[0]}"]


def run_quick(args, options):
    """Makes entries small: those that are named, or all. Raises UserError."""
    names = [name for name in (args.name, *args.rows) if name is not None]
    for name in names:
        if name not in ENTRIES:
            raise UserError(f"no entry {name!r}: one of {', '.join(ENTRIES)}")
    if args.shard or args.gather:
        raise UserError("--quick takes --seeds and --jobs, and no other option")
    quick.run(names, options)


def run_entry(name, options):
    """Makes an entry, and prints ours beside the paper's."""
    entry = ENTRIES[name]
    run_study(entry.study_name, entry.rows, options)
    print("\n" + "\n".join([f"{name} {entry.title}", *overview.comparison(name)]))


def run_study(name, rows, options):
    """Runs rows of a study, all of none, and fills the pages in. Raises UserError."""
    study = STUDIES[name]
    if options and name not in OF_RUNS:
        raise UserError(
            f"{name} does not take {options[0]}, only studies of runs: {', '.join(OF_RUNS)}"
        )
    study.main([*rows, *options])
    fill_pages()
    if not (ROOT / study.PAGE).exists():
        raise UserError(
            f"the figures are in results/, but there is no page {study.PAGE}:"
            f" write one, with the marker <!-- table: {name}.TABLE --> and, on a line of its"
            " own, <!-- end -->"
        )


@command
def main(argv):
    if argv[:1] == ["sweep"]:
        sweep.main(argv[1:])
        return
    args = parse(argv)
    options = jobs.words(args)
    if args.quick:
        run_quick(args, options)
    elif args.name is None:
        if options:
            raise UserError(f"{options[0]} is for an entry or a study: give its name")
        print("\n".join(listing()))
    elif args.name in ENTRIES:
        if args.rows:
            raise UserError(f"the entry {args.name} has its own rows: leave out {args.rows[0]!r}")
        run_entry(args.name, options)
    elif args.name in STUDIES:
        run_study(args.name, args.rows, options)
    else:
        raise UserError(
            f"no study {args.name!r}: one of {', '.join(STUDIES)}; no entry either: one of"
            f" {', '.join(ENTRIES)}"
        )


if __name__ == "__main__":
    main()
