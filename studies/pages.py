"""The tables of README.md and of the pages in results/, filled in from the records beside them.

    python -m studies.pages    # after a study has been run: seconds

On a page a table stands between two markers, and nothing between them is typed by hand:

    <!-- table: foundation.attacks -->
    <!-- end -->

The name is that of a study and of one of its TABLES: a function without arguments that returns the
lines of a Markdown table. A test fails where a page and a record disagree. One page, overview.PAGE,
is written whole.
"""

import re
import sys
from pathlib import Path

from cli import UserError, command
from studies import (
    audits,
    breadth,
    cifar10,
    efficient,
    explainers,
    foundation,
    gpu,
    kinds_found,
    lies,
    overview,
    radiographs,
    running_averages,
    sampling,
    shared_samples,
    speed,
    steady,
    threats,
    transfer,
    worth,
)
from studies.record import ROOT, write_text

STUDIES = {
    "foundation": foundation,
    "cifar10": cifar10,
    "transfer": transfer,
    "efficient": efficient,
    "threats": threats,
    "lies": lies,
    "audits": audits,
    "radiographs": radiographs,
    "running_averages": running_averages,
    "sampling": sampling,
    "shared_samples": shared_samples,
    "speed": speed,
    "gpu": gpu,
    "worth": worth,
    "breadth": breadth,
    "kinds_found": kinds_found,
    "explainers": explainers,
    "steady": steady,
}
MARKED = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def pages():
    """The files that may have markers: README.md and results/*.md."""
    return [ROOT / "README.md", *sorted((ROOT / "results").glob("*.md"))]


def filled(text):
    """The text of a page with every marked table as the records have it now.

    Raises UserError for a marker that names no table.
    """

    def fill(match):
        name = match[1]
        lines = table_lines(name)
        return "\n".join([f"<!-- table: {name} -->", *lines, "<!-- end -->"])

    return MARKED.sub(fill, text)


def table_lines(name):
    """The lines of the table called STUDY.TABLE. Raises UserError for no such table."""
    study, _, table = name.partition(".")
    with_tables = STUDIES | {"overview": overview}  # which is no study
    tables = with_tables[study].TABLES if study in with_tables else {}
    if table not in tables:
        raise UserError(f"a page has the marker of a table {name!r}, which no study has")
    try:
        return tables[table]()
    except KeyError as error:
        raise UserError(f"the record of the table {name!r} has no {error}") from None


def fill_pages():
    """Brings every page up to date that can be; returns the paths of those that changed.

    Why another one cannot is said on standard error.
    """
    changed = []
    for path in pages():
        before = path.read_text()
        try:
            after = filled(before)
        except UserError as error:
            print(f"{path.relative_to(ROOT)} stays as it was: {error}", file=sys.stderr)
            continue
        if after != before:
            write_text(path, after)
            changed.append(path)
    return changed + overview.write(ROOT)


@command
def main(argv):
    if argv:
        raise UserError("studies.pages takes no arguments: it brings every page up to date")
    for path in fill_pages():
        print(f"brought up to date: {Path(path).relative_to(ROOT)}")


if __name__ == "__main__":
    sys.exit(main())
