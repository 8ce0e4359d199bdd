"""The pages: every table is what the records say, and every link leads somewhere."""

import re

import pytest
from conftest import ROOT
from PIL import Image

from cli import UserError
from studies import overview, pages
from studies.record import RESULTS, read
from studies.tables import Table

PAGES = [path.relative_to(ROOT) for path in pages.pages()]
TEXTS = [*PAGES, "METRICS.md", "EXTENDING.md", "LESSON.md"]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_tables_are_those_of_the_records(page):
    text = (ROOT / page).read_text()
    assert pages.filled(text) == text, "run: python -m studies.pages"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_marker_has_its_end(page):
    lines = (ROOT / page).read_text().splitlines()
    starts = sum(line.startswith("<!-- table: ") for line in lines)
    assert starts == lines.count("<!-- end -->")
    assert starts == len(pages.MARKED.findall("\n".join(lines) + "\n"))


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_links_lead_to_files_and_headings_that_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in headings(file.read_text()), target


def headings(text):
    """The anchors of a Markdown file's headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_picture_is_on_a_page():
    shown = "".join((ROOT / page).read_text() for page in PAGES)
    pictures = {path.name for path in (ROOT / "results").glob("*.png")}
    assert {name for name in pictures if name not in shown} == set()


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.png")), ids=lambda p: p.name)
def test_a_picture_has_a_palette(path):
    assert Image.open(path).mode == "P"


@pytest.mark.parametrize("page", TEXTS, ids=str)
def test_a_name_that_a_page_puts_in_a_file_is_there(page):
    text = (ROOT / page).read_text()
    for name, file in re.findall(r"`(\w+)` in\s`(\w+\.py)`", text):
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), (name, file)


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in (ROOT / "results").glob("*.png")) < 4e6


def test_a_marker_of_no_table_is_an_error():
    with pytest.raises(UserError, match="nothing.here"):
        pages.filled("<!-- table: nothing.here -->\n<!-- end -->")


def test_filling_replaces_what_stands_between_markers(monkeypatch):
    monkeypatch.setitem(pages.STUDIES["foundation"].TABLES, "two", lambda: ["| a |", "| - |"])
    text = "before\n<!-- table: foundation.two -->\nold\n<!-- end -->\nafter\n"
    filled = pages.filled(text)
    assert filled == ("before\n<!-- table: foundation.two -->\n| a |\n| - |\n<!-- end -->\nafter\n")
    assert pages.filled(filled) == filled


def test_a_row_that_the_record_lacks_is_said_to_be_not_run():
    lines = Table("foundation", {"x": "unheard of"}, {"success": "attack_success_rate"})()
    assert lines[-1] == "| x (not run) | 0 | |"


@pytest.mark.parametrize("name", pages.STUDIES)
def test_the_rows_of_a_studys_tables_are_rows_of_the_study_or_its_record(name):
    study = pages.STUDIES[name]
    known = set(getattr(study, "TABLE", {})) | set(read(RESULTS / f"{name}.json"))
    tables = [table for table in study.TABLES.values() if isinstance(table, Table)]
    assert {row for table in tables for row in table.rows.values()} <= known


def test_a_page_that_cannot_be_filled_leaves_the_others_filled(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setitem(pages.STUDIES["foundation"].TABLES, "two", lambda: ["| a |", "| - |"])
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text("<!-- table: no.such -->\n<!-- end -->\n")
    good = tmp_path / "results" / "good.md"
    good.write_text("<!-- table: foundation.two -->\n<!-- end -->\n")
    assert pages.fill_pages() == [good, tmp_path / overview.PAGE]  # which is written whole
    assert capsys.readouterr().err.startswith("README.md stays as it was: ")


def test_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 250
    assert len(text.split()) <= 2500
