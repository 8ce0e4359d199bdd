"""The prose of the pages in results/: its figures stand in the tables that scripts fill in."""

import re

import pytest

from studies.record import RESULTS

PAGES = sorted(path.name for path in RESULTS.glob("*.md") if path.name != "README.md")
TABLE = re.compile(r"<!-- table.*?<!-- end -->", re.DOTALL)
COMMANDS = re.compile(r"```.*?```", re.DOTALL)
DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)")

# What else may stand there, by page: limits, settings, section numbers and published figures; and
# figures of which the page says that no record holds them.
SETTINGS = {
    "cifar10.md": "1.6 1.25",
    "foundation.md": "1.6 1.25",
    "radiographs.md": "3.6 1.05",
    "sampling.md": "3.4",
    "speed.md": "1.02",
    "steady.md": "2.5",
    "transfer.md": "1.25",
    "worth.md": "0.0025",
}
IN_NO_RECORD = {
    "breadth.md": "0.20",
    "cifar10.md": "0.873 0.866 0.583",
    "efficient.md": "0.859 0.933 0.992",
    "foundation.md": "0.427",
    "radiographs.md": "1.00001 0.58 0.995 0.867 0.49 0.639 0.27 0.78 0.575 0.662",
    "speed.md": "1.00001 1.20 35.9 30.0",
    "steady.md": "4.6 12.7 0.58 0.02",
    "transfer.md": "0.965 0.924",
}


def stands_in(decimal, figures):
    """Whether a decimal is one of the figures, or one of them rounded to as many digits.

    On a page with many figures a decimal of two digits hardly ever is not.
    """
    digits = len(decimal.split(".")[1])
    return any(f"{float(figure):.{digits}f}" == decimal for figure in figures)


def strangers(text):
    """The decimals of a page's prose that stand in none of its tables, a set of strings."""
    figures = set(re.findall(r"\d+\.\d+", " ".join(TABLE.findall(text))))
    prose = COMMANDS.sub("", TABLE.sub("", text))
    return {decimal for decimal in DECIMAL.findall(prose) if not stands_in(decimal, figures)}


def test_a_figure_that_no_table_has_is_found():
    table = "<!-- table: a.b -->\n| 0.1234 | 7.0 |\n<!-- end -->\n"
    assert strangers(f"{table} 0.123, 0.12 and 7 are here; 0.124, 0.1235 are not.") == {
        *("0.124", "0.1235")
    }
    assert strangers(f"{table} Version 1.2.3 and `x0.9` are no figures.\n```\n0.5\n```") == set()


@pytest.mark.parametrize("page", PAGES)
def test_each_figure_of_the_prose_stands_in_a_table_of_the_page(page):
    allowed = {
        *SETTINGS.get(page, "").split(),
        *IN_NO_RECORD.get(page, "").split(),
    }
    assert strangers((RESULTS / page).read_text()) == allowed
