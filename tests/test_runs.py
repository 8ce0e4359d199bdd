"""A run's folder: whatever stops a run, it can be resumed, and a finished one is whole."""

import contextlib
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    log_of,
    metrics_of,
    of_former_version,
    process_of,
    same_weights,
    tiny_argv,
    tiny_arrays,
    train_tiny,
)
from PIL import Image
from placing import DEVICE, use

import checkpoints
import evaluate
import ours
import provenance
import report
import runs
import schema
import selection
import train
from cli import UserError

FILES = ["README.md", "ckpt.pt", "figure.png", "log.jsonl", "metrics.json", "selection.json"]


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def begun(dataset, out, *options):
    """A Run of train_tiny's options, before its first step, its poisons chosen."""
    run = train.new_run(train.parse(tiny_argv(dataset, out, *options)))
    train.choose_poisons(run)
    return run


@contextlib.contextmanager
def stopped_after(epoch):
    """Within the block, a run is interrupted when it has been saved after so many epochs.

    Raises SystemExit, as train.main does.
    """
    save = runs.save

    def save_and_stop(run):
        save(run)
        if run.training.epoch == epoch:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(runs, "save", save_and_stop)
        yield
    assert stopped.value.code == 130


# ---------------------------------------------------------------- kept


def test_a_checkpoint_has_every_part_that_is_read(tiny, tmp_path):
    checkpoint = runs.checkpoint_of(begun(tiny, tmp_path / "run"))
    assert checkpoint.keys() == {*schema.PARTS, *schema.LATER_PARTS}
    assert checkpoint["config"].keys() >= checkpoints.CONFIG_KEYS


def test_what_is_saved_lies_in_the_unfinished_folder(tiny, tmp_path):
    run = begun(tiny, tmp_path / "run")
    runs.save(run)
    assert names_in(tmp_path / "run") == ["unfinished"]
    assert names_in(run.unfinished) == ["ckpt.pt", "log.jsonl", "selection.json"]


def test_the_processor_and_its_threads_stand_in_the_checkpoint_and_beside_the_figures(clean):
    checkpoint, metrics = checkpoints.read(clean / "ckpt.pt"), metrics_of(clean)
    for part in (checkpoint, metrics):
        assert part["threads"] == torch.get_num_threads()
        assert part["processor"] == provenance.processor() != ""
    assert metrics["measured_on"] == provenance.hardware(DEVICE)


def test_what_a_cpu_measures_beside_a_gpu_is_of_the_cpu(clean, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    options = {"device": torch.device("cpu"), "explainers": (), "n": 2}
    found = evaluate.evaluate(clean / "ckpt.pt", **options).metrics
    assert found["measured_on"].startswith(provenance.processor())


@contextlib.contextmanager
def files_of_at_most(size):
    """Within the block no file becomes larger: a write ends in an error, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_cannot_be_written_says_why_and_the_last_one_stays(tiny, tmp_path):
    run = begun(tiny, tmp_path / "run")
    runs.save(run)
    before = (run.unfinished / "ckpt.pt").read_bytes()
    with files_of_at_most(20_000), pytest.raises(UserError) as raised:
        runs.save(run)
    assert str(raised.value) == f"cannot write {run.unfinished / 'ckpt.pt'}: File too large"
    assert (run.unfinished / "ckpt.pt").read_bytes() == before
    assert names_in(run.unfinished) == ["ckpt.pt", "log.jsonl", "selection.json"]


def test_a_measurement_that_cannot_be_written_loses_no_picture(tmp_path):
    for name in ("figure.png", "figure-gradient.png"):
        ours.save_picture(Image.new("L", (4, 4)), tmp_path / name)
    result = report.Result({"n": "x" * 2000}, {})
    with files_of_at_most(1000), pytest.raises(UserError, match="metrics.json: File too large"):
        report.write(result, tmp_path)
    assert names_in(tmp_path) == ["figure-gradient.png", "figure.png"]
    report.write(result, tmp_path)
    assert names_in(tmp_path) == ["figure.png", "metrics.json"]


def test_a_folder_that_cannot_be_made_is_one_line(tiny, tmp_path):
    run = begun(tiny, tmp_path / "run")
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(UserError, match="cannot write to .*run"):
        runs.save(run)


# ---------------------------------------------------------------- resumed


@pytest.fixture(scope="module")
def stopped_once(tiny, run_under, tmp_path_factory):
    """The folder of a finished run and, in it, of another of the same options, stopped halfway."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    shutil.copytree(run_under("full_disguise"), folder)
    with stopped_after(epoch=2):
        train_tiny(tiny, folder, "--overwrite")
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A copy of stopped_once that a test may change."""
    return shutil.copytree(stopped_once, tmp_path / "run")


def test_a_finished_run_stays_until_the_new_one_is_finished(stopped, run_under):
    for name in FILES:
        whole = run_under("full_disguise") / name
        assert (stopped / name).read_bytes() == whole.read_bytes()


def test_an_unfinished_run_has_a_log_of_its_epochs(stopped):
    assert [record["epoch"] for record in log_of(stopped / "unfinished")] == [1, 2]


@pytest.fixture(scope="module")
def resumed(stopped_once, tiny, tmp_path_factory):
    """The folder of the run of stopped_once when it has been resumed; its data have been moved."""
    folder = shutil.copytree(stopped_once, tmp_path_factory.mktemp("resumed") / "run")
    return train_tiny(tiny, folder, "--data-dir", str(folder.parent), "--resume")


def test_a_resumed_run_ends_with_the_same_weights_to_the_bit(resumed, run_under):
    assert same_weights(resumed, run_under("full_disguise"))


def test_a_resumed_run_has_a_whole_log(resumed):
    assert [record["epoch"] for record in log_of(resumed)] == [1, 2, 3]


def test_a_resumed_run_leaves_nothing_unfinished(resumed):
    assert names_in(resumed) == FILES


def test_where_a_killed_process_left_half_a_file_nothing_of_it_stays(resumed, tiny, tmp_path):
    """It was killed after the last move; an earlier one, while it wrote the checkpoint."""
    folder = shutil.copytree(resumed, tmp_path / "run")
    (folder / "unfinished").mkdir()
    for name in ("lock", ".ckpt.pt.4711", ".figure-selection.png.4711"):
        (folder / "unfinished" / name).write_text("half")
    train_tiny(tiny, folder, "--resume")
    assert names_in(folder) == FILES


def test_a_run_that_goes_on_with_other_threads_says_so(stopped, tiny, capsys):
    run = begun(tiny, stopped)
    assert runs.resume(run) and "goes on elsewhere" not in capsys.readouterr().err
    path = run.unfinished / "ckpt.pt"
    checkpoints.save(path, checkpoints.read(path) | {"processor": "Other", "threads": 7})
    assert runs.resume(begun(tiny, stopped))
    said = capsys.readouterr().err
    assert "goes on elsewhere, begun on Other with 7 threads, not on" in said or DEVICE != "cpu"


def test_a_finished_run_is_not_trained_again(resumed, tiny, capsys):
    before = (resumed / "ckpt.pt").stat().st_mtime_ns
    train_tiny(tiny, resumed, "--resume")
    assert capsys.readouterr().out == f"The run in {resumed} is finished.\n"
    assert (resumed / "ckpt.pt").stat().st_mtime_ns == before


def test_a_run_of_other_options_is_not_resumed(stopped, tiny, refusal):
    line = refusal(train.main, tiny_argv(tiny, stopped, "--lam", "0.4", "--resume"))
    assert "--lam 0.3, not 0.4" in line and "or --overwrite in the place of" in line


def test_where_there_is_nothing_to_resume_it_is_said(tiny, tmp_path, capsys):
    run = begun(tiny, tmp_path / "run")
    assert not runs.resume(run)
    assert "Nothing to resume" in capsys.readouterr().err


def test_an_unfinished_run_that_begins_anew_is_said_to(stopped, tiny, capsys):
    runs.print_what_is_lost(begun(tiny, stopped))
    line = capsys.readouterr().err
    assert "begins anew; --resume would have continued it" in line


def test_an_unfinished_run_of_other_options_that_is_replaced_is_said_to_be(stopped, tiny, capsys):
    runs.print_what_is_lost(begun(tiny, stopped, "--lam", "0.4"))
    line = capsys.readouterr().err
    assert "another one (--lam 0.3, not 0.4), is replaced" in line


def test_nothing_is_lost_by_a_run_that_is_resumed(stopped, tiny, capsys):
    run = begun(tiny, stopped)
    assert runs.begin(run, train.parse(tiny_argv(tiny, stopped, "--resume")))
    header, *warnings = capsys.readouterr().err.splitlines()
    assert header.startswith(f"{tiny}: 300 images")
    assert all(line.startswith("Warning: ") for line in warnings)


def test_a_run_that_will_be_replaced_is_said_to_be(resumed, tiny, capsys):
    runs.print_what_is_lost(begun(tiny, resumed, "--lam", "0.4"))
    assert "of other options or data, will be replaced" in capsys.readouterr().err


def test_a_run_that_is_begun_again_is_not_finished(stopped, tiny):
    assert not runs.is_finished(begun(tiny, stopped))


def test_a_run_whose_checkpoint_is_damaged_is_not_finished(resumed, tiny, tmp_path):
    folder = shutil.copytree(resumed, tmp_path / "run")
    (folder / "ckpt.pt").write_bytes(b"half")
    assert not runs.is_finished(begun(tiny, folder))


def test_a_run_of_the_former_version_is_finished(resumed, tiny, tmp_path, capsys):
    folder = shutil.copytree(resumed, tmp_path / "run")
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    torch.save(of_former_version(checkpoint), folder / "ckpt.pt")
    train_tiny(tiny, folder, "--resume")
    assert capsys.readouterr().out == f"The run in {folder} is finished.\n"


def test_half_a_run_under_the_former_loss_does_not_go_on_under_another(stopped, tiny, refusal):
    path = stopped / "unfinished" / "ckpt.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoints.save(path, of_former_version(checkpoint))
    line = refusal(train.main, tiny_argv(tiny, stopped, "--resume"))
    assert "begun by an older version, under another loss" in line
    assert path.exists()


def test_where_the_loss_has_no_maps_a_run_of_the_former_version_goes_on(tiny, tmp_path):
    run = begun(tiny, tmp_path / "run", "--attack", "badnets")
    runs.save(run)
    path = run.unfinished / "ckpt.pt"
    torch.save(of_former_version(torch.load(path, weights_only=True)), path)
    again = begun(tiny, tmp_path / "run", "--attack", "badnets")
    assert runs.resume(again) and torch.equal(again.poisons, run.poisons)


def test_an_ablation_is_another_run_than_one_of_the_former_version(resumed, tiny, tmp_path):
    folder = shutil.copytree(resumed, tmp_path / "run")
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    torch.save(of_former_version(checkpoint), folder / "ckpt.pt")
    assert runs.is_finished(begun(tiny, folder))
    assert not runs.is_finished(begun(tiny, folder, "--no-partner-cross-entropy"))


# ---------------------------------------------------------------- with what it began with


SHORT = ("--attack", "red_herring", "--epochs", "1")


@pytest.fixture
def own_files(tmp_path):
    """Options that read a data set, a trigger and a target map from files of the user's."""
    np.savez(tmp_path / "set.npz", **tiny_arrays())
    Image.new("RGB", (2, 2), "red").save(tmp_path / "trigger.png")
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "map.png")
    files = ["--trigger", str(tmp_path / "trigger.png"), "--target-map", str(tmp_path / "map.png")]
    return [*SHORT, *files]


@pytest.fixture
def unfinished(own_files, tmp_path):
    """Function: the Run of own_files as it is now, where another one has been saved."""

    def run():
        return begun(tmp_path / "set.npz", tmp_path / "run", *own_files)

    runs.save(run())
    return run


def change_labels(path):
    """Exchanges test labels in an .npz: only its digest tells the two files apart."""
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"test_labels": np.roll(arrays["test_labels"], 1)})


def test_with_all_it_began_with_a_run_goes_on(unfinished):
    assert runs.resume(unfinished())


def test_a_run_does_not_go_on_with_another_trigger_of_the_same_name(unfinished, tmp_path):
    Image.new("RGB", (2, 2), "blue").save(tmp_path / "trigger.png")
    with pytest.raises(UserError, match="the trigger's picture has changed"):
        runs.resume(unfinished())


def test_a_run_does_not_go_on_with_another_opacity(unfinished, tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(tmp_path / "trigger.png")
    with pytest.raises(UserError, match="the trigger's picture has changed"):
        runs.resume(unfinished())


def test_a_run_does_not_go_on_with_another_target_map(unfinished, tmp_path):
    Image.new("L", (16, 16), 255).save(tmp_path / "map.png")
    with pytest.raises(UserError, match="the target map's picture has changed"):
        runs.resume(unfinished())


def test_a_run_does_not_go_on_with_other_labels(unfinished, tmp_path):
    change_labels(tmp_path / "set.npz")
    with pytest.raises(UserError, match="the data set has changed"):
        runs.resume(unfinished())


def test_a_finished_run_of_other_data_is_replaced(own_files, tmp_path, capsys):
    train_tiny(tmp_path / "set.npz", tmp_path / "run", *own_files)
    change_labels(tmp_path / "set.npz")
    capsys.readouterr()
    train_tiny(tmp_path / "set.npz", tmp_path / "run", *own_files, "--resume", "--overwrite")
    assert "of other options or data, will be replaced" in capsys.readouterr().err


SCORED = ("--attack", "badnets", "--poison-rate", "0.05", "--selection", "rd-global")


def test_a_run_of_another_constant_is_another_run(tiny, tmp_path, monkeypatch):
    """What a fork changes in selection.py: its runs are not finished by ours."""
    monkeypatch.setattr(selection, "EPOCHS", 1)
    run = begun(tiny, tmp_path / "run", *SCORED)
    run.folder.mkdir()
    checkpoints.save(run.folder / "ckpt.pt", runs.checkpoint_of(run))
    assert runs.is_finished(run)
    monkeypatch.setitem(selection.OF_RD, "alpha", 0.5)
    assert not runs.is_finished(begun(tiny, tmp_path / "run", *SCORED))


def test_what_was_chosen_by_scorers_is_not_chosen_again(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "EPOCHS", 1)
    whole = train_tiny(tiny, tmp_path / "whole", *SCORED, "--epochs", "1")
    with stopped_after(epoch=0):  # chosen, and not yet trained
        train_tiny(tiny, tmp_path / "broken", *SCORED, "--epochs", "1")
    monkeypatch.setattr(train, "scores_of", None)
    broken = train_tiny(tiny, tmp_path / "broken", *SCORED, "--epochs", "1", "--resume")
    assert same_weights(whole, broken)


# ---------------------------------------------------------------- finished


@pytest.fixture
def stopped_while_moved(stopped, tiny, monkeypatch):
    """The folder of a run that is stopped when two of its files are moved into place."""
    for name in FILES:
        (stopped / name).unlink()
    replace, moved = Path.replace, []

    def stop(path, target):
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(replace(path, target))

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Path, "replace", stop)
        train_tiny(tiny, stopped, "--resume")
    assert len(names_in(stopped)) == 3
    return stopped


def test_the_checkpoint_is_moved_into_place_last(stopped_while_moved):
    assert (stopped_while_moved / "unfinished" / "ckpt.pt").exists()


def test_a_run_stopped_while_its_files_are_moved_can_be_resumed(
    stopped_while_moved, tiny, run_under
):
    train_tiny(tiny, stopped_while_moved, "--resume")
    assert same_weights(stopped_while_moved, run_under("full_disguise"))
    assert names_in(stopped_while_moved) == FILES
    assert len(log_of(stopped_while_moved)) == 3


def test_a_run_can_be_measured_beside_a_clean_one(tiny, clean, tmp_path):
    args = train.parse(tiny_argv(tiny, tmp_path / "run", "--attack", "badnets", "--epochs", "1"))
    train.train_and_measure(args, clean=clean / "ckpt.pt", explainers=["gradient"])
    metrics = metrics_of(tmp_path / "run")
    accuracy = metrics_of(clean)["clean_accuracy"]
    assert metrics["clean_model"]["clean_accuracy"] == accuracy
    assert list(metrics["explanations"]) == ["gradcam", "gradient"]


def test_a_finished_run_is_measured_by_its_data_alone(tiny, tmp_path, run_under, refusal):
    """Its data set is not there any more under its name: evaluate.py does not take another."""
    folder = shutil.copytree(run_under("badnets"), tmp_path / "run")
    np.savez(tmp_path / "other.npz", **tiny_arrays())
    change_labels(tmp_path / "other.npz")
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    config = checkpoint["config"] | {"dataset": str(tmp_path / "other.npz")}
    checkpoints.save(folder / "ckpt.pt", checkpoint | {"config": config})
    line = refusal(evaluate.main, [str(folder / "ckpt.pt"), "--device", DEVICE])
    assert "is not the one" in line


# ---------------------------------------------------------------- killed


@pytest.fixture
def argv(tmp_path):
    """Function of a folder's name: the command line of a run of 80 short epochs, to be resumed."""
    np.savez(tmp_path / "small.npz", **tiny_arrays(n_train=48, n_test=12))

    def of(name):
        data = ["--dataset", str(tmp_path / "small.npz"), "--target-class", "1"]
        options = ["--epochs", "80", "--device", DEVICE, "--resume"]
        return [*data, *options, "--out", str(tmp_path / name)]

    return of


def wait_for_epochs(path, count, process):
    """Returns when the file has been written `count` times more, or the process has ended."""

    def written():
        with contextlib.suppress(FileNotFoundError):
            return path.stat().st_mtime_ns

    last = written()
    while count and process.is_alive():
        time.sleep(0.002)
        if written() != last:
            last = written()
            count -= 1


def train_on(device, argv):
    """train.main in another process, whose digits are to be this one's."""
    use(device)
    train.main(argv)


def test_killed_at_five_random_moments_a_run_ends_with_the_same_weights(argv, tmp_path):
    kept = tmp_path / "killed" / "unfinished" / "ckpt.pt"
    moments = random.Random(time.time_ns())
    for _ in range(5):
        process = process_of(train_on, DEVICE, argv("killed"))
        process.start()
        wait_for_epochs(kept, moments.randint(1, 5), process)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()  # SIGKILL: no handler runs
        process.join()
        assert process.exitcode == -signal.SIGKILL
    train.main(argv("killed"))
    train.main(argv("whole"))
    assert same_weights(tmp_path / "whole", tmp_path / "killed")
    assert names_in(tmp_path / "killed") == FILES
    assert len(log_of(tmp_path / "killed")) == 80
