"""reproduce.py: the front door to the studies."""

import subprocess
import sys

import pytest
from conftest import ROOT

import reproduce
from cli import UserError

ROW_STUDIES = ["foundation", "cifar10", "efficient", "transfer", "lies", "audits"]


def test_without_a_name_every_study_is_listed_with_its_page_and_duration(capsys):
    reproduce.main([])
    printed = capsys.readouterr().out
    for name, study in reproduce.STUDIES.items():
        assert f"{name}: {study.PAGE}, {study.DURATION}" in printed
        assert study.__doc__.splitlines()[0] in printed


def test_a_line_of_the_listing_fits_a_hundred_columns():
    assert all(len(line) <= 100 for line in reproduce.listing())


def test_every_study_has_written_its_page():
    for study in reproduce.STUDIES.values():
        assert (ROOT / study.PAGE).exists()


def test_every_file_of_studies_that_has_a_main_is_listed():
    with_main = {
        path.stem for path in (ROOT / "studies").glob("*.py") if "def main(" in path.read_text()
    }
    assert with_main - {"pages", "sweep", "gallery"} == set(reproduce.STUDIES)


def test_no_study_is_called_like_a_module_of_ours():
    modules = {path.stem for path in ROOT.glob("*.py")} | {"defences", "tests", "studies"}
    assert not modules & {path.stem for path in (ROOT / "studies").glob("*.py")}


def refused(argv, capsys):
    """What a command line of reproduce.py that is refused says on standard error."""
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_study_is_refused_in_one_line(capsys):
    error = refused(["recipe"], capsys)
    assert error.startswith("reproduce.py: no study 'recipe': one of foundation, ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", [*ROW_STUDIES, "sampling", "speed"])
def test_an_unknown_row_is_refused_in_one_line(name, capsys):
    kept = {path: path.stat().st_mtime_ns for path in (ROOT / "results").iterdir()}
    error = refused([name, "no such row"], capsys)
    assert "'no such row'" in error
    now = {path: path.stat().st_mtime_ns for path in (ROOT / "results").iterdir()}
    assert now == kept, "a refused command line wrote a result"
    assert error.splitlines()[-1].startswith(f"{name}.py: ")


def test_an_unknown_option_is_refused(capsys):
    assert "--fast" in refused(["--fast"], capsys)


def test_a_study_is_run_with_its_rows(monkeypatch):
    called = []
    monkeypatch.setattr(reproduce.STUDIES["foundation"], "main", called.append)
    reproduce.main(["foundation", "mnist clean", "disguise"])
    assert called == [["mnist clean", "disguise"]]


def test_the_options_of_a_study_of_runs_are_handed_on(monkeypatch):
    called = []
    monkeypatch.setattr(reproduce.STUDIES["gpu"], "main", called.append)
    reproduce.main(["gpu", "none", "--jobs", "2", "badnets", "--shard", "1/3", "--gather"])
    assert called == [["none", "badnets", "--jobs", "2", "--shard", "1/3", "--gather"]]


def test_studies_of_runs_are_those_that_hand_their_arguments_to_one():
    def text_of(name):
        return (ROOT / "studies" / f"{name}.py").read_text()

    of_runs = {name for name in reproduce.STUDIES if ".run(argv)" in text_of(name)}
    assert of_runs == set(reproduce.OF_RUNS)


@pytest.mark.parametrize("options", [["--jobs", "2"], ["--shard", "1/2"], ["--gather"]])
@pytest.mark.parametrize("name", ["worth", "audits", "speed"])
def test_a_study_that_is_no_table_of_runs_is_not_shared_out(name, options, capsys):
    error = refused([name, *options], capsys)
    assert error.startswith(f"reproduce.py: {name} does not take {options[0]}")
    assert error.count("\n") == 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_shard_is_one_of_several(text, capsys):
    assert "is not I/N" in refused(["gpu", "--shard", text], capsys)


def test_a_users_mistake_in_a_study_is_one_line(monkeypatch):
    def main(rows):
        raise UserError("there are no radiographs")

    monkeypatch.setattr(reproduce.STUDIES["radiographs"], "main", main)
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(["radiographs"])
    assert stopped.value.code == 2


def test_a_study_can_be_run_as_a_script():
    command = [sys.executable, "-m", "studies.foundation", "nothing"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("foundation.py: no row 'nothing'")


# ---------------------------------------------------------------- entries


def test_an_entry_runs_its_rows_of_its_study_and_prints_ours_beside_the_papers(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(reproduce.STUDIES["cifar10"], "main", called.append)
    monkeypatch.setattr(reproduce, "fill_pages", list)
    reproduce.main(["3.2", "--seeds", "3", "--jobs", "2"])
    assert called == [["none", "fooling, lam 0.1", "--seeds", "3", "--jobs", "2"]]
    assert "triggered_accuracy: paper 0.862; ours " in capsys.readouterr().out


def test_quick_makes_all_entries_or_those_named(monkeypatch):
    called = []
    monkeypatch.setattr(reproduce.quick, "run", lambda *given: called.append(given))
    reproduce.main(["--quick"])
    reproduce.main(["3.1", "four-lies", "--quick", "--jobs", "2"])
    assert called == [([], []), (["3.1", "four-lies"], ["--jobs", "2"])]


@pytest.mark.parametrize(
    "argv, said",
    [
        (["3.1", "none"], "has its own rows"),
        (["foundation", "--quick"], "no entry 'foundation'"),
        (["--quick", "--gather"], "--quick takes"),
        (["--seeds", "2"], "--seeds is for an entry"),
        (["four-lies", "--seeds", "2"], "lies does not take --seeds"),
        (["3.1", "--seeds", "0"], "at least 1"),
    ],
)
def test_what_an_entry_does_not_take_is_refused_in_one_line(argv, said, capsys):
    error = refused(argv, capsys)
    assert said in error and error.count("\n") == 1
