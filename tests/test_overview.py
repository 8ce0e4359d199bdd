"""studies/entries.py, overview.py, quick.py: the papers beside ours, and every entry made small."""

import json

import pytest
from conftest import ROOT

import train
from studies import overview, pages, published, quick
from studies.claims import Claim, Entry, at_path
from studies.entries import ENTRIES
from studies.record import read
from studies.study import Row, Study

# ---------------------------------------------------------------- the page


def test_the_page_is_what_the_script_makes():
    assert (ROOT / overview.PAGE).read_text() == overview.text(), "run: python -m studies.pages"


def test_the_page_is_brought_up_to_date(tmp_path):
    (tmp_path / "results").mkdir()
    assert overview.write(tmp_path) == [tmp_path / overview.PAGE]
    assert overview.write(tmp_path) == []


def test_every_section_of_the_paper_has_an_entry():
    sections = {name[:3] for name in ENTRIES}
    assert {f"3.{k}" for k in range(1, 7)} <= sections


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_of_a_study_that_is_listed_and_has_rows_of_it(name):
    entry = ENTRIES[name]
    assert pages.STUDIES[entry.study_name] is entry.study
    assert name not in pages.STUDIES
    groups, table = getattr(entry.study, "GROUPS", {}), getattr(entry.study, "TABLE", None)
    table = table or read(ROOT / "results" / f"{entry.study_name}.json")
    assert set(entry.rows) <= {*groups, *table}


@pytest.mark.parametrize("name", ENTRIES)
def test_where_ours_is_short_a_sentence_says_why(name):
    short = [claim for claim in ENTRIES[name].claims if claim.verdict() == "short"]
    assert [claim.what for claim in short if not claim.why] == []


def test_the_headlines_are_claims_of_the_page():
    """A headline without a picture's words: the paper's figure or the limit, ours, the verdict."""
    lines = overview.headlines()[2:-2]
    assert len(lines) == len(overview.HEADLINES)
    for (name, what), line in zip(overview.HEADLINES, lines):
        (claim,) = (claim for claim in ENTRIES[name].claims if claim.what == what)
        assert line.endswith(f"| {overview.ours_text(claim)} | {claim.verdict()} |")
    assert "| at most 0.125 |" in "\n".join(lines) and "resembles" not in "\n".join(lines)


def test_a_line_of_the_listing_fits_a_hundred_columns():
    assert max(map(len, overview.listing())) <= 100


# ---------------------------------------------------------------- verdicts


def claim(ours, published="", **options):
    found = None if ours is None else {"mean": ours, "sd": None, "n": 1}
    return Claim("a", lambda: found, published, **options)


@pytest.mark.parametrize(
    "ours, options, verdict",
    [
        (0.96, {"published": 0.95}, "passed"),
        (0.953, {"published": 0.95}, "met"),
        (0.947, {"published": 0.95}, "met"),
        (0.94, {"published": 0.95}, "short"),
        (0.94, {"published": 0.95, "higher": False}, "passed"),
        (16.5, {"published": 16.1, "higher": False, "relative": True}, "met"),
        (20.0, {"published": 16.1, "higher": False, "relative": True}, "short"),
        (0.0, {"published": 0.0, "higher": False, "relative": True}, "met"),
        (0.9, {"published": "a picture", "bound": 0.9}, "met"),
        (0.8, {"published": "a picture", "bound": 0.9}, "short"),
        (0.8, {"published": "a picture"}, ""),
        (None, {"published": 0.95}, "not run"),
    ],
)
def test_a_claims_verdict(ours, options, verdict):
    assert claim(ours, **options).verdict() == verdict


PASSED, MET, SHORT = claim(0.9, 0.8), claim(0.8, 0.8), claim(0.7, 0.8, why="so")
PICTURE, NOTHING = claim(0.95, "a picture", bound=0.9), claim(0.5)


@pytest.mark.parametrize(
    "claims, verdict",
    [
        ((PASSED, PICTURE), "passed"),
        ((PASSED, MET), "met"),
        ((PASSED, SHORT), "short"),
        ((PICTURE, NOTHING), "met"),
        ((NOTHING,), ""),
        ((PASSED, claim(None, 0.8)), "not run"),
    ],
)
def test_an_entrys_verdict_is_its_worst(claims, verdict):
    assert overview.verdict_of(claims) == verdict


def test_a_row_has_a_line_for_each_claim_and_says_why():
    entry = Entry("t", pages.STUDIES["lies"], (), "none", 1, (PASSED, SHORT))
    row = overview.row_of("x", entry)
    assert row == (
        "| **x** t | a<br>a | 0.800<br>0.800 | 0.900, n = 1<br>0.700, n = 1"
        " | **short**<br>a: so | [lies](lies.md) |"
    )


def test_values_at_a_path():
    record = {"a": {"0": {"b": 1}, "1": {"b": 2}, "2": {}}}
    assert at_path(record, ("a", "*", "b")) == [1, 2]
    assert at_path(record, ("c",)) == []


def test_members_of_the_target_class_are_taken_out_of_a_published_success():
    """A tenth of the images counts as a success before any attack: of 0.1 nothing is left."""
    assert published.without_members(0.1) == 0 and published.without_members(1.0) == 1


# ---------------------------------------------------------------- seeds


def row_of_seeds(seeds):
    return {"seeds": seeds, "options": "--attack none", "summary": {}, "runs": runs_of(seeds)}


def runs_of(seeds):
    return [{"seed": seed, "clean_accuracy": 0.5} for seed in seeds]


@pytest.mark.parametrize("words, seeds", [(["--seeds", "2"], [0, 1, 2, 3]), ([], [0])])
def test_with_fewer_seeds_what_is_recorded_of_others_stays(words, seeds, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    study = Study("a", {"row": Row("--attack none")}, tmp_path)
    study.path.write_text(json.dumps({"row": row_of_seeds([1, 2, 3])}))
    monkeypatch.setattr(study, "run_once", lambda row, seed: runs_of([seed])[0])
    study.run(words)
    assert read(study.path)["row"]["seeds"] == seeds


def test_runs_of_other_options_do_not_stay(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    study = Study("a", {"row": Row("--attack badnets")}, tmp_path)
    study.path.write_text(json.dumps({"row": row_of_seeds([1, 2, 3])}))
    monkeypatch.setattr(study, "run_once", lambda row, seed: runs_of([seed])[0])
    study.run(["--seeds", "1"])
    assert read(study.path)["row"]["seeds"] == [0]


# ---------------------------------------------------------------- small


def test_every_entry_can_be_made_small():
    assert list(quick.QUICK) == list(ENTRIES)
    rows = {row for entry in quick.QUICK.values() for row in entry.rows}
    assert rows == set(quick.TABLE)


@pytest.mark.parametrize("row", quick.TABLE)
def test_what_is_trained_is_drawn_and_takes_no_data(row):
    assert train.parse(quick.TABLE[row].options.split()).dataset == "shapes"


def test_nothing_is_written_outside_its_folder_and_what_is_done_is_reused(tmp_path, monkeypatch):
    folder, called = tmp_path / "runs" / "quick", []

    def run(study, words):
        called.append(words)
        for row in words:
            (study.folder(row, 0)).mkdir(parents=True, exist_ok=True)
        study.path.write_text(json.dumps({row: row_of_seeds([0]) for row in words}))

    def main(argv):
        called.append(argv[:1])
        out = tmp_path / argv[-1]
        out.mkdir(exist_ok=True)
        (out / "verdict.json").write_text(json.dumps({"index": {"3": 2.5}}))
        (out / "figure.png").write_text("")

    before = {path: path.stat().st_mtime_ns for path in (ROOT / "results").glob("*")}
    monkeypatch.setattr(Study, "run", run)
    task = quick.Task("badnets", main, ("neural_cleanse",), {"index": ("index", "3")})
    monkeypatch.setitem(quick.QUICK, "zoo", quick.Quick(("badnets",), (task,)))
    quick.run(["zoo"], [], folder)
    quick.run(["zoo"], [], folder)
    assert called == [["badnets"], ["neural_cleanse"], ["badnets"]]
    (folder / "badnets-0" / "neural_cleanse" / quick.DONE).unlink()  # as if it was stopped
    quick.run(["zoo"], [], folder)
    assert called[-2:] == [["badnets"], ["neural_cleanse"]]
    page = (folder / "README.md").read_text()
    assert "| `badnets`: neural_cleanse | 1 | index 2.5 |" in page
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "results").glob("*")} == before
