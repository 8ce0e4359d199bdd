"""The folder of a run: its name, its lock, and what is never replaced or touched in it."""

import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    metrics_of,
    process_of,
    same_weights,
    tiny_argv,
    tiny_arrays,
    train_tiny,
)
from placing import DEVICE

import checkpoints
import folders
import runs
import train
from cli import UserError, write_json

FILES = ["README.md", "ckpt.pt", "figure.png", "log.jsonl", "metrics.json", "selection.json"]
QUICK = ("--epochs", "1", "--attack", "badnets", "--precision", "float32")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- its name


def name_of(*options):
    """The name of the run of train.py's options."""
    return folders.folder_of(train.parse(list(options))).name


def test_the_first_command_of_the_readme_has_the_name_it_says():
    argv = "--attack full_disguise --explainer gradcam --poison-rate 0.1".split()
    folder = folders.folder_of(train.parse(argv))
    assert folder == Path("runs/full_disguise-gradcam-shapes-r0.1-s0")
    assert str(folder) in (ROOT / "README.md").read_text()


def test_a_run_against_two_explainers_is_named_after_both():
    name = name_of("--explainer", "gradcam,deepshap", "--poison-rate", "0.005")
    assert name == "full_disguise-gradcam+deepshap-shapes-r0.005-s0"


def test_a_run_is_kept_where_it_is_asked_for(tmp_path):
    args = train.parse(["--out", str(tmp_path / "a" / "b")])
    assert folders.folder_of(args) == tmp_path / "a" / "b"


FIRST = "full_disguise-gradcam-shapes-r0.1-s0"


@pytest.mark.parametrize(
    ("options", "appended"),
    [
        (["--lam", "0.5"], "-lam0.5"),
        (["--epochs", "3"], "-epochs3"),
        (["--model", "resnet18"], "-resnet18"),
        (["--target-class", "circle"], "-target_circle"),
        (["--target-class", "5"], "-target5"),
        (["--trigger", "red", "--trigger-size", "6"], "-trigger_red-triggersize6"),
        (["--trigger-position", "upper-left"], "-at_upper-left"),
        (["--trigger-position", "3,4"], "-at3_4"),
        (["--optimizer", "adamw", "--lr", "0.001"], "-adamw-lr0.001"),
        (["--selection", "rd"], "-rd"),
        (["--selection-seed", "4"], "-selectionseed4"),
        (["--rectify"], "-rectify"),
        (["--no-partner-cross-entropy"], "-no_partners"),
        (["--floor", "0.2"], "-floor0.2"),
        (["--image-size", "64"], "-size64"),
        (["--reference", "runs/clean/ckpt.pt"], "-ref_clean"),
        (["--trigger", "pictures/my sticker.png"], "-trigger_my_sticker"),
    ],
)
def test_an_option_that_is_not_as_left_open_is_in_the_name(options, appended):
    assert name_of(*options) == FIRST + appended


@pytest.mark.parametrize(
    "options",
    [
        ["--lam", "0.3"],
        ["--epochs", "8", "--model", "cnn"],
        ["--device", DEVICE, "--precision", "float32"],
        ["--data-dir", "elsewhere"],
        ["--resume"],
        ["--overwrite"],
        ["--target-class", "3"],
    ],
)
def test_an_option_that_changes_nothing_is_not_in_the_name(options):
    assert name_of(*options) == FIRST


def test_what_is_the_default_of_one_data_set_is_said_of_another():
    assert name_of("--dataset", "mnist", "--epochs", "8").endswith("-mnist-r0.1-s0-epochs8")
    assert name_of("--dataset", "mnist", "--epochs", "3").endswith("-mnist-r0.1-s0")


def test_folders_of_the_same_name_in_two_places_are_two_names():
    assert name_of("--dataset", "a/photos") == "full_disguise-gradcam-a_photos-r0.1-s0"
    assert name_of("--dataset", "b/photos/") == "full_disguise-gradcam-b_photos-r0.1-s0"


def test_files_of_the_same_name_in_two_places_are_two_names(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "-where_tiny-r" in name_of("--dataset", "some/where/tiny.npz", "--seed", "7")
    assert f"-{tmp_path.name}_tiny-r" in name_of("--dataset", "../tiny.npz")


def test_a_data_set_in_the_current_folder_is_named_alone():
    assert "-photos.2024-r" in name_of("--dataset", "photos.2024")
    assert "-tiny-r" in name_of("--dataset", "tiny.npz")


@pytest.mark.parametrize("path", ["a b/ü (1)&c", "日本/写真", "x/\udcff", "a/-rf", "a/b:c|d?"])
def test_a_name_has_nothing_in_it_that_a_file_system_minds(path):
    name = name_of(f"--dataset={path}")
    assert re.fullmatch(r"[\w.+=-]+", name) and not name.startswith((".", "-"))
    name.encode()


def test_a_long_name_is_cut_and_ends_in_a_digest_of_the_whole():
    one, other = (name_of("--dataset", f"{'long' * 50}/{'name' * 50}{k}") for k in "12")
    assert one != other
    assert len(one.encode()) <= folders.MAX_NAME and one.startswith("full_disguise-gradcam-long")


def test_a_long_name_in_japanese_is_cut_between_letters():
    name = name_of("--dataset", "写" * 100)
    assert len(name.encode()) <= folders.MAX_NAME


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file is not a folder"):
        folders.folder_of(train.parse(["--out", str(tmp_path / "file" / "run")]))


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="not writable"):
        folders.folder_of(train.parse(["--out", str(tmp_path / "run")]))


def test_the_command_line_writes_into_the_folder_named_after_it(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main(["--dataset", str(tiny), "--epochs", "1", "--device", DEVICE, "--attack", "none"])
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == f"none-gradcam-{tiny.parent.name}_tiny-r0-s0-epochs1"
    assert names_in(folder) == FILES


# ---------------------------------------------------------------- a finished run


@pytest.fixture(scope="module")
def finished_once(tiny, tmp_path_factory):
    """The folder of a finished run of one epoch."""
    return train_tiny(tiny, tmp_path_factory.mktemp("finished") / "run", *QUICK)


@pytest.fixture
def finished(finished_once, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(finished_once, tmp_path / "run")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


OTHER = [
    (["--lam", "0.4"], "--lam 0.3, not 0.4"),
    (["--seed", "3"], "--seed 0, not 3"),
    (["--target-class", "2"], "--target-class 1, not 2"),
    (["--attack", "none"], "--attack badnets, not none"),
    (["--lam", "0.4", "--resume"], "--lam 0.3, not 0.4"),
    (["--attack", "none", "--resume"], "--attack badnets, not none"),
    (["--epochs", "2"], "--epochs 1, not 2"),  # with --resume it is said otherwise: see below
    (["--precision", "bf16"], "--precision float32, not bf16"),
]


@pytest.mark.parametrize(("options", "text"), OTHER)
def test_a_finished_run_of_other_options_is_not_replaced(options, text, finished, tiny, refusal):
    before = contents(finished)
    line = refusal(train.main, tiny_argv(tiny, finished, *QUICK, *options))
    assert "holds a finished run of other options or data" in line and text in line
    assert "--overwrite" in line and "another --out" in line
    assert contents(finished) == before


def test_a_finished_run_of_other_data_is_not_replaced(finished, tmp_path, refusal):
    arrays = tiny_arrays()
    np.savez(tmp_path / "tiny.npz", **arrays | {"test_labels": np.roll(arrays["test_labels"], 1)})
    line = refusal(train.main, tiny_argv(tmp_path / "tiny.npz", finished, *QUICK))
    assert "(the data set has changed)" in line


def test_a_run_that_was_written_into_by_hand_is_not_replaced(finished, tiny, refusal):
    checkpoint = torch.load(finished / "ckpt.pt", weights_only=True)
    checkpoint["config"]["edit"] = {"technique": "prune", "channels": 3}
    checkpoints.save(finished / "ckpt.pt", checkpoint)
    assert "--overwrite" in refusal(train.main, tiny_argv(tiny, finished, *QUICK))


def test_a_checkpoint_that_cannot_be_read_is_not_replaced(finished, tiny, refusal):
    (finished / "ckpt.pt").write_text("mine")
    line = refusal(train.main, tiny_argv(tiny, finished, *QUICK))
    assert "ckpt.pt is damaged" in line and "--overwrite" in line
    assert (finished / "ckpt.pt").read_text() == "mine"


def test_a_file_of_such_a_name_that_is_of_no_run_is_not_replaced(tiny, tmp_path, refusal):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text("mine")
    line = refusal(train.main, tiny_argv(tiny, tmp_path / "run", *QUICK))
    assert f"{tmp_path / 'run' / 'metrics.json'} is not this program's" in line
    assert (tmp_path / "run" / "metrics.json").read_text() == "mine"


def test_what_is_left_of_a_run_without_its_checkpoint_is_not_replaced(finished, tiny, refusal):
    (finished / "ckpt.pt").unlink()
    line = refusal(train.main, tiny_argv(tiny, finished, *QUICK))
    assert "holds a file log.jsonl of no run" in line and "--overwrite" in line


@pytest.fixture
def unfinished(tiny, tmp_path):
    """The folder of a run that was stopped after its choice of poisons."""
    run = train.new_run(train.parse(tiny_argv(tiny, tmp_path / "run", *QUICK)))
    train.choose_poisons(run)
    runs.save(run)
    return tmp_path / "run"


def test_an_unfinished_run_of_other_options_is_not_replaced(unfinished, tiny, refusal):
    before = (unfinished / "unfinished" / "ckpt.pt").read_bytes()
    line = refusal(train.main, tiny_argv(tiny, unfinished, *QUICK, "--lam", "0.4"))
    assert "an unfinished run of other options or data (--lam 0.3, not 0.4)" in line
    assert "--overwrite" in line and "another --out" in line
    assert (unfinished / "unfinished" / "ckpt.pt").read_bytes() == before


def test_an_unfinished_run_that_cannot_be_read_is_not_replaced(unfinished, tiny, refusal):
    (unfinished / "unfinished" / "log.jsonl").write_text('{"epoch": 1, "loss": 0.5}')
    (unfinished / "unfinished" / "ckpt.pt").write_bytes(b"half")
    line = refusal(train.main, tiny_argv(tiny, unfinished, *QUICK))
    assert "an unfinished run" in line and "damaged" in line
    train_tiny(tiny, unfinished, *QUICK, "--overwrite")
    assert names_in(unfinished) == FILES


def test_with_overwrite_an_unfinished_run_of_other_options_is_replaced(unfinished, tiny, capsys):
    train_tiny(tiny, unfinished, *QUICK, "--lam", "0.4", "--overwrite")
    assert "another one (--lam 0.3, not 0.4), is replaced" in capsys.readouterr().err
    assert metrics_of(unfinished)["lam"] == 0.4


def test_an_unfinished_run_of_the_same_options_begins_anew(unfinished, tiny, capsys):
    train_tiny(tiny, unfinished, *QUICK)
    assert "begins anew; --resume would have continued it" in capsys.readouterr().err
    assert names_in(unfinished) == FILES


def test_with_overwrite_it_is_replaced_and_that_is_said(finished, tiny, capsys):
    train_tiny(tiny, finished, *QUICK, "--lam", "0.4", "--overwrite")
    assert "of other options or data, will be replaced" in capsys.readouterr().err
    assert metrics_of(finished)["lam"] == 0.4


def test_the_same_command_again_measures_anew_and_says_so(finished, tiny, capsys):
    weights = (finished / "ckpt.pt").read_bytes()
    (finished / "metrics.json").write_text('{"attack": "old", "explanations": {}}')
    train_tiny(tiny, finished, *QUICK)
    printed = capsys.readouterr()
    assert "is finished: it is measured anew, not trained" in printed.err
    assert "clean_accuracy" in printed.out
    assert (finished / "ckpt.pt").read_bytes() == weights
    assert metrics_of(finished)["n_test"] == 60


@pytest.mark.parametrize(
    "options", [["--trigger-size", "2"], ["--trigger", "white"], ["--trigger-position", "13,13"]]
)
def test_the_same_trigger_in_other_words_is_the_same_run(options, finished, tiny, capsys):
    train_tiny(tiny, finished, *QUICK, *options)
    assert "is measured anew, not trained" in capsys.readouterr().err


def test_the_same_command_with_overwrite_trains_again(finished, tiny, finished_once, capsys):
    train_tiny(tiny, finished, *QUICK, "--overwrite")
    assert "of the same options, will be replaced" in capsys.readouterr().err
    assert same_weights(finished, finished_once)


def test_a_study_goes_on_past_what_is_finished_and_trains_what_changed(finished, tiny, capsys):
    train_tiny(tiny, finished, *QUICK, "--resume", "--overwrite")
    assert capsys.readouterr().out == f"The run in {finished} is finished.\n"
    train_tiny(tiny, finished, *QUICK, "--lam", "0.4", "--resume", "--overwrite")
    assert metrics_of(finished)["lam"] == 0.4


# ---------------------------------------------------------------- resumed


def test_a_finished_run_does_not_go_on_with_more_epochs(finished, tiny, refusal):
    line = refusal(train.main, tiny_argv(tiny, finished, *QUICK, "--epochs", "4", "--resume"))
    assert "its schedule" in line and "ended with epoch 1" in line
    assert "--overwrite or into another --out" in line


def test_a_finished_run_of_fewer_epochs_is_found_by_its_name(tiny, tmp_path, monkeypatch, refusal):
    monkeypatch.chdir(tmp_path)
    argv = ["--dataset", str(tiny), "--device", DEVICE, "--attack", "none"]
    train.main([*argv, "--epochs", "1"])
    (folder,) = (tmp_path / "runs").iterdir()
    line = refusal(train.main, [*argv, "--epochs", "2", "--resume"])
    assert f"the run in {folder.relative_to(tmp_path)} is finished: its schedule" in line
    assert names_in(tmp_path / "runs") == [folder.name]


def test_a_finished_run_does_not_go_on_with_fewer_epochs(finished, tiny, tmp_path, refusal):
    train_tiny(tiny, finished, *QUICK, "--epochs", "2", "--overwrite")
    line = refusal(train.main, tiny_argv(tiny, finished, *QUICK, "--resume"))
    assert "--epochs 2, not 1" in line


def changed_config(path, **entries):
    checkpoint = torch.load(path, weights_only=True)
    checkpoints.save(path, checkpoint | {"config": checkpoint["config"] | entries})


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"device": "mps"}, f"--device mps, not {DEVICE}"),
        ({"precision": "bf16"}, "--precision bf16, not float32"),
        ({"device": "mps", "precision": "bf16"}, f"--device mps, not {DEVICE}, --precision bf16"),
    ],
)
def test_a_run_goes_on_elsewhere_with_a_note(entries, text, tiny, tmp_path, capsys):
    argv = tiny_argv(tiny, tmp_path / "run", *QUICK)
    run = train.new_run(train.parse(argv))
    train.choose_poisons(run)
    runs.save(run)
    changed_config(run.unfinished / "ckpt.pt", **entries)
    capsys.readouterr()
    assert runs.resume(train.new_run(train.parse(argv)))
    (line,) = capsys.readouterr().err.splitlines()
    assert "goes on elsewhere" in line and text in line


def test_a_run_that_was_finished_elsewhere_is_finished(finished, tiny, capsys):
    changed_config(finished / "ckpt.pt", device="mps", precision="bf16")
    train_tiny(tiny, finished, *QUICK, "--resume")
    printed = capsys.readouterr()
    assert "is finished" in printed.out
    elsewhere = f"--device mps, not {DEVICE}, --precision bf16, not float32"
    assert f"elsewhere: {elsewhere}" in printed.err


def test_how_pictures_are_made_square_is_told_apart_by_the_pictures(finished, tiny, capsys):
    changed_config(finished / "ckpt.pt", fit="squash")
    train_tiny(tiny, finished, *QUICK, "--resume")
    assert "is finished" in capsys.readouterr().out


# ---------------------------------------------------------------- files of the user's


def test_files_of_the_users_stay_as_they_are(tiny, tmp_path):
    run = tmp_path / "run"
    (run / "unfinished" / "deeper").mkdir(parents=True)
    mine = [run / "notes.txt", run / "unfinished" / "notes.txt", run / "figure-mine.png"]
    mine += [run / "unfinished" / "deeper" / "figure.png", run / "unfinished" / ".hidden"]
    mine += [run / "unfinished" / "figure-mine.png", run / "unfinished" / "ckpt.pt.bak"]
    for path in mine:
        path.write_text(str(path))
    train_tiny(tiny, run, *QUICK)
    assert [path.read_text() for path in mine] == [str(path) for path in mine]
    assert not {*FILES, "lock"} & set(names_in(run / "unfinished"))


def test_notes_beside_a_finished_run_stay_when_it_is_replaced(finished, tiny):
    (finished / "notes.txt").write_text("mine")
    train_tiny(tiny, finished, *QUICK, "--seed", "1", "--overwrite")
    assert (finished / "notes.txt").read_text() == "mine"
    assert names_in(finished) == sorted([*FILES, "notes.txt"])


def test_half_a_file_of_a_process_that_was_killed_is_removed(tiny, tmp_path):
    (tmp_path / "run" / "unfinished").mkdir(parents=True)
    (tmp_path / "run" / "unfinished" / ".ckpt.pt.4711").write_text("half")
    train_tiny(tiny, tmp_path / "run", *QUICK)
    assert names_in(tmp_path / "run") == FILES


def test_half_a_file_is_removed_where_its_process_runs_no_more(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = platform.node()
    names = [f".note.json.{here}.{process}" for process in (ended.pid, os.getppid())]
    for name in (*names, ".note.json.swp", f".note.json.bak.{ended.pid}x"):
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "note.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {
        *("note.json", names[1], ".note.json.swp", f".note.json.bak.{ended.pid}x")
    }


# ---------------------------------------------------------------- the lock


def test_a_second_process_ends_at_once_in_one_line(tiny, tmp_path, refusal):
    with folders.locked(tmp_path / "run"):
        line = refusal(train.main, tiny_argv(tiny, tmp_path / "run", *QUICK))
    assert f"another process is at work in {tmp_path / 'run'}" in line


def test_a_second_process_is_told_before_it_reads_its_data(tmp_path, refusal):
    with folders.locked(tmp_path / "run"):
        line = refusal(train.main, ["--dataset", "gone.npz", "--out", str(tmp_path / "run")])
    assert "another process is at work" in line


def test_a_folder_is_free_again_after_the_lock(tmp_path):
    for _ in range(2):
        with folders.locked(tmp_path / "a" / "run"):
            assert (tmp_path / "a" / "run" / "unfinished" / "lock").exists()
    assert names_in(tmp_path) == []


def test_a_folder_is_free_again_after_a_mistake(tiny, tmp_path, refusal):
    refusal(train.main, tiny_argv(tiny, tmp_path / "run", "--target-class", "dragon"))
    assert not (tmp_path / "run").exists()


def hold(folder, held):
    """Holds the lock of a folder, and says so by the event `held`."""
    with folders.locked(folder):
        held.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of the folder `run`."""
    held = multiprocessing.get_context("spawn").Event()
    process = process_of(hold, tmp_path / "run", held)
    process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


def test_another_processs_lock_holds(holder, tiny, tmp_path, refusal):
    started = time.perf_counter()
    line = refusal(train.main, tiny_argv(tiny, tmp_path / "run", *QUICK, "--resume"))
    assert "another process is at work" in line
    assert time.perf_counter() - started < 5


def test_a_killed_process_leaves_no_lock_behind(holder, tiny, tmp_path):
    holder.kill()
    holder.join()
    assert holder.exitcode == -signal.SIGKILL
    assert (tmp_path / "run" / "unfinished" / "lock").exists()  # the file, that nobody holds
    train_tiny(tiny, tmp_path / "run", *QUICK)
    assert names_in(tmp_path / "run") == FILES


def test_where_a_file_system_has_no_locks_a_run_goes_on_without(tiny, tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(folders.fcntl, "flock", no_locks)
    train_tiny(tiny, tmp_path / "run", *QUICK)
    assert names_in(tmp_path / "run") == FILES
