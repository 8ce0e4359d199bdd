"""The front door to every table and figure of this project.

    python reproduce.py                                  # lists the studies
    python reproduce.py foundation                       # runs one; a second call continues
    python reproduce.py foundation disguise badnets      # some of its rows
    python reproduce.py foundation --jobs 4              # four runs at once
    python reproduce.py foundation --shard 2/8           # the second of eight shares of its runs
    python reproduce.py foundation --gather              # records what is finished in runs/
    python reproduce.py sweep --lam 0.1,0.3 --seed 0-4   # a table by options of train.py

A study is a file in studies/, whose docstring says what its rows, groups or sections are called. It
leaves its figures in results/, and the networks it trains in runs/. Then the tables of README.md
and of the pages in results/ are filled in anew.
"""

import interrupts  # noqa: F401  # isort: skip

from cli import Parser, UserError, command
from studies import jobs, sweep
from studies.pages import STUDIES, fill_pages
from studies.record import ROOT

# Studies whose rows are training runs, which can be shared out.
OF_RUNS = (
    *("foundation", "cifar10", "transfer", "efficient", "threats", "radiographs", "gpu"),
    "breadth",
)


def parse(argv):
    parser = Parser(__doc__)
    parser.add_argument("study", nargs="?", metavar="NAME", help="a study (default: list them)")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows of its table (default: all)")
    jobs.add_options(parser)
    return parser.parse_intermixed_args(argv)


def listing():
    """Lines: of each study its name, its page, how long it takes, and what it is about."""
    lines = []
    for name, study in STUDIES.items():
        about = study.__doc__.splitlines()[0]
        lines += [f"{name}: {study.PAGE}, {study.DURATION}", f"  {about}"]
    return [*lines, "sweep: its table is printed", f"  {sweep.__doc__.splitlines()[0]}"]


@command
def main(argv):
    if argv[:1] == ["sweep"]:
        sweep.main(argv[1:])
        return
    args = parse(argv)
    if args.study is None:
        print("\n".join(listing()))
        return
    if args.study not in STUDIES:
        raise UserError(f"no study {args.study!r}: one of {', '.join(STUDIES)}")
    study = STUDIES[args.study]
    options = jobs.words(args)
    if options and args.study not in OF_RUNS:
        raise UserError(
            f"{args.study} does not take {options[0]}, only studies of runs: {', '.join(OF_RUNS)}"
        )
    study.main([*args.rows, *options])
    fill_pages()
    if not (ROOT / study.PAGE).exists():
        raise UserError(
            f"the figures are in results/, but there is no page {study.PAGE}:"
            f" write one, with the marker <!-- table: {args.study}.TABLE --> and, on a line of its"
            " own, <!-- end -->"
        )


if __name__ == "__main__":
    main()
