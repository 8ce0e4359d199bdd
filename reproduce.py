"""The front door to every table and figure of this project.

    python reproduce.py                                  # lists the studies
    python reproduce.py foundation                       # runs one; a second call continues
    python reproduce.py foundation disguise badnets      # some of its rows

A study is a file in studies/, whose docstring says what its rows, groups or sections are called. It
leaves its figures in results/, and the networks it trains in runs/. Then the tables of README.md
and of the pages in results/ are filled in anew.
"""

import interrupts  # noqa: F401  # isort: skip

from cli import Parser, UserError, command
from studies.pages import STUDIES, fill_pages
from studies.record import ROOT


def parse(argv):
    parser = Parser(__doc__)
    parser.add_argument("study", nargs="?", metavar="NAME", help="a study (default: list them)")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows of its table (default: all)")
    return parser.parse_args(argv)


def listing():
    """Lines: of each study its name, its page, how long it takes, and what it is about."""
    lines = []
    for name, study in STUDIES.items():
        about = study.__doc__.splitlines()[0]
        lines += [f"{name}: {study.PAGE}, {study.DURATION}", f"  {about}"]
    return lines


@command
def main(argv):
    args = parse(argv)
    if args.study is None:
        print("\n".join(listing()))
        return
    if args.study not in STUDIES:
        raise UserError(f"no study {args.study!r}: one of {', '.join(STUDIES)}")
    study = STUDIES[args.study]
    study.main(args.rows)
    fill_pages()
    if not (ROOT / study.PAGE).exists():
        raise UserError(
            f"the figures are in results/, but there is no page {study.PAGE}:"
            f" write one, with the marker <!-- table: {args.study}.TABLE --> and, on a line of its"
            " own, <!-- end -->"
        )


if __name__ == "__main__":
    main()
