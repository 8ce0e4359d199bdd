"""studies/sweep.py: a table of runs made from the command line."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

import reproduce
from cli import UserError
from studies import sweep


def test_rows_are_every_combination_and_named_after_what_differs():
    values = sweep.values_of("--attack badnets,fooling --lam 0.1,0.3 --epochs=2 --rectify".split())
    rows = sweep.table(values, range(1, 4))
    assert list(rows) == [
        f"attack {attack}, lam {lam}" for attack in ("badnets", "fooling") for lam in (0.1, 0.3)
    ]
    row = rows["attack fooling, lam 0.1"]
    assert row.options == "--attack fooling --lam 0.1 --epochs 2 --rectify"
    assert (row.first_seed, row.seeds) == (1, 3)
    assert sweep.name_of(values) == "sweep-epochs_2-rectify"


def test_values_with_commas_are_separated_by_semicolons():
    values = sweep.values_of(["--explainer", "gradcam;gradcam,deepshap"])
    assert values == {"--explainer": ["gradcam", "gradcam,deepshap"]}
    assert list(sweep.table(values, [0])) == ["explainer gradcam", "explainer gradcam_deepshap"]


def test_a_longer_list_of_values_goes_on_in_the_same_folder():
    short, longer = (sweep.values_of(["--lam", text]) for text in ("0.1,0.2", "0.1,0.2,0.3"))
    assert sweep.name_of(short) == sweep.name_of(longer) == "sweep"


def test_a_long_name_is_cut_and_still_tells_two_sweeps_apart():
    names = [sweep.name_of({"--dataset": [f"{'x' * 200}{end}"]}) for end in "ab"]
    assert len(set(names)) == 2 and {len(name) for name in names} == {sweep.MAX_NAME}


@pytest.mark.parametrize("text, seeds", [("3", [3]), ("0-2", [0, 1, 2])])
def test_seeds(text, seeds):
    assert list(sweep.seeds_of(text)) == seeds


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--seed", "2-1"], "FIRST-LAST"),
        (["--seed", "a"], "FIRST-LAST"),
        (["--lam", "0.1,2"], "--lam"),
        (["--lam", "0.1", "--lam", "0.2"], "--lam twice"),
        (["--out", "x"], "takes no --out"),
        (["--lamb", "1"], "--lamb"),
        (["badnets"], "'badnets' belongs to no option"),
        (["--lam", "0.1", "0.2"], "'0.2' belongs to no option"),
        (["--dataset", "my data"], "no spaces"),
    ],
)
def test_a_mistake_is_refused_in_one_line_before_anything_is_trained(
    argv, said, refusal, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    error = refusal(sweep.main, argv)
    assert error.startswith("sweep.py: ") and said in error
    assert not list(tmp_path.iterdir())


def test_names_that_fall_together_are_refused():
    values = {"--dataset": ["a/b.npz", "a_b.npz"]}
    with pytest.raises(UserError, match="two rows would be called"):
        sweep.table(values, [0])


def test_a_sweep_from_the_command_line(tiny, tmp_path, monkeypatch):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = f"--dataset {tiny} --model cnn --epochs 1 --batch-size 24 --target-class 1"
    options += " --device cpu --attack fooling --lam 0.1,0.3 --seed 1-2"

    sweep_of = ["sweep", *options.split()]
    command = [sys.executable, str(ROOT / "reproduce.py"), *sweep_of, "--jobs", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        *("lam_0.1-1", "lam_0.1-2", "lam_0.3-1", "lam_0.3-2"),
        "results.json",
    }
    lines = done.stdout.splitlines()
    assert sum(line.startswith(("| lam 0.1 | 2 |", "| lam 0.3 | 2 |")) for line in lines) == 2
    before = json.loads((folder / "results.json").read_text())
    (folder / "results.json").unlink()
    monkeypatch.chdir(tmp_path)
    reproduce.main([*sweep_of, "--gather"])
    assert json.loads((folder / "results.json").read_text()) == before
