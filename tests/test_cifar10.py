"""studies/cifar10.py: the published figures stand below ours, in the same columns."""

import pytest

from studies import cifar10

SECTIONS_BY_TABLE = {
    "attacks": ["3.1, clean model", "3.1, `badnets`", "3.3, `full_disguise`"],
    "fooling": ["3.2, `fooling`"],
}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("table", SECTIONS_BY_TABLE)
def test_published_figures_stand_in_the_column_of_their_name(table):
    lines = cifar10.TABLES[table]()
    titles = cells(lines[0])
    published = {
        cells(line)[0]: dict(zip(titles[1:], cells(line)[1:]))
        for line in lines
        if line.startswith("| published")
    }
    for section in SECTIONS_BY_TABLE[table]:
        row = published.pop(f"published, {section}")
        figures = cifar10.PUBLISHED[section].items()
        expected = {f"`{key}`": f"{value:.3f}" for key, value in figures}
        assert {title: x for title, x in row.items() if x} == expected
    assert not published


def test_every_poison_rate_is_shown_with_every_lam_and_without():
    rows = cifar10.lam_and_rate()
    assert len(rows) == 1 + len(cifar10.RATES) * (1 + len(cifar10.LAMS))
    assert set(rows.values()) <= set(cifar10.table(cuda=False))
