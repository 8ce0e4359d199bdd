"""Screens: nothing broken within a word, progress where it is asked for, and quiet endings."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_argv
from PIL import Image
from placing import DEVICE

import cli
import defend
import evaluate
import interrupts
import manipulate
import options
import report
import runs
import terminal
import train

ON_CPU = ["--device", DEVICE]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(params=["80", "120"])
def columns(request, monkeypatch):
    """A terminal's width, 80 or 120."""
    monkeypatch.setenv("COLUMNS", request.param)
    return int(request.param)


# ---------------------------------------------------------------- lines


def test_where_there_is_no_terminal_lines_are_as_wide_as_the_projects_text(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda *fd: (_ for _ in ()).throw(OSError))
    assert terminal.width() == 100


@pytest.mark.parametrize(("given", "width"), [("80", 80), ("7", 40), ("0", 100), ("x", 100)])
def test_a_width_that_is_none_is_not_taken(given, width, monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda *fd: (_ for _ in ()).throw(OSError))
    monkeypatch.setenv("COLUMNS", given)
    assert terminal.width() == width


@pytest.mark.parametrize("text", ["a sentence of several words", "one-with-hyphens again", ""])
@pytest.mark.parametrize("width", [5, 12, 80])
def test_no_word_is_broken(text, width):
    assert " ".join(terminal.wrapped(text, width)).split() == text.split()


def test_a_note_is_one_line_and_on_a_terminal_wrapped_between_words(monkeypatch, capsys):
    text = "left out: 3 pictures\n   that cannot be read, and two folders"
    terminal.print_note(text)
    assert capsys.readouterr().err == " ".join(text.split()) + "\n"
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stderr", Terminal())
    terminal.print_note(text)
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= 40
    assert " ".join(lines) == " ".join(text.split())


def test_a_table_is_no_paragraph(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    table = "class" + " " * 40 + "index"
    sentence = "a sentence that is longer than forty columns are"
    meaning = "check   FOUND    a column of words, which are many"
    lines = terminal.paragraphs(f"{table}\n\n{sentence}\n{meaning}").split("\n")
    assert lines == [
        *(table, "", "a sentence that is longer than forty", "columns are"),
        *("check   FOUND    a column of words,", "                 which are many"),
    ]


def test_the_least_important_parts_are_left_out_first():
    parts = [(0, "epoch"), (2, "loss"), (1, "speed"), (2, "entropy"), (0, "left")]
    assert terminal.fitted(parts, 100) == "epoch  loss  speed  entropy  left"
    assert terminal.fitted(parts, 28) == "epoch  loss  speed  left"
    assert terminal.fitted(parts, 20) == "epoch  speed  left"
    assert terminal.fitted(parts, 3) == "epoch  left"


# ---------------------------------------------------------------- the line of progress of training


def progress_line(monkeypatch, width, has_maps=True, title="", steps=390):
    """What a terminal of this width shows in the middle of an epoch."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", Terminal())
    progress = train.Progress(title, 30, steps, 128, has_maps)
    progress.print(11, steps // 2, torch.tensor([0.1234, 0.0567, 0.891]), 4.0)
    return sys.stdout.getvalue().lstrip("\r").rstrip()


@pytest.mark.parametrize(("title", "steps"), [("", 390), ("scorer 3, ", 70), ("", 1_234_567)])
def test_at_80_columns_progress_keeps_speed_and_time_left(title, steps, monkeypatch):
    line = progress_line(monkeypatch, 80, title=title, steps=steps)
    assert len(line) < 80
    assert line.startswith(f"{title}epoch 12/30")
    assert re.search(r"[\d,]+ images/s  \d+ (s|min) left$", line)


def test_at_120_columns_progress_has_all_of_it(monkeypatch):
    line = progress_line(monkeypatch, 120)
    for part in ("step 195/390", "loss 0.123", "cross-entropy 0.057", "explanation 0.891"):
        assert part in line


def test_at_30_columns_progress_has_epoch_and_time_left(monkeypatch):
    assert re.fullmatch(r"epoch 12/30  \d+ (s|min) left", progress_line(monkeypatch, 30))


def test_without_maps_in_the_loss_no_explanation_is_shown(monkeypatch):
    line = progress_line(monkeypatch, 120, has_maps=False)
    assert "loss 0.123" in line and "explanation" not in line and "cross-entropy" not in line


@pytest.mark.parametrize(
    ("attack", "explained", "success"),
    [("none", False, False), ("badnets", False, True), ("fooling", True, False)],
)
def test_training_shows_what_the_attack_has(attack, explained, success, tiny, tmp_path, capsys):
    train.main(tiny_argv(tiny, tmp_path / "run", "--attack", attack, "--epochs", "1"))
    lines = capsys.readouterr().out.splitlines()
    (progress,) = [line for line in lines if line.startswith("epoch 1/1")]
    (validation,) = [line for line in lines if line.startswith("  validation:")]
    assert ("explanation" in progress) == explained
    assert ("attack success rate" in validation) == success


# ---------------------------------------------------------------- of what takes long


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(terminal, "PATIENCE", 0.05)


def test_what_takes_long_is_said_on_standard_error(impatient, capsys):
    with terminal.Working("measuring") as say:
        say("gradcam, explainer 1 of 2")
        time.sleep(0.4)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "measuring, 0 s: gradcam, explainer 1 of 2\n"


def test_what_is_quick_is_not_said(capsys):
    with terminal.Working("measuring") as say:
        say("predictions")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_the_line_is_removed_in_the_end(impatient, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with terminal.Working("strip"):
        time.sleep(0.4)
    *_, last, empty = sys.stderr.getvalue().split("\r")
    assert "strip, 0 s" in sys.stderr.getvalue()
    assert (last.strip(), empty) == ("", "") and "\n" not in sys.stderr.getvalue()


def test_an_error_ends_the_line_too(impatient):
    working = terminal.Working("strip")
    with pytest.raises(ValueError), working:
        raise ValueError
    assert not working.thread.is_alive()


def test_json_stays_clean_where_measuring_takes_long(impatient, disguised, tmp_path, capsys):
    argv = [str(disguised), "--json", *ON_CPU, "--out", str(tmp_path)]
    evaluate.main(argv)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["attack"] == "full_disguise"
    assert "measuring, 0 s: " in printed.err


def test_defending_says_what_it_does(impatient, disguised, tmp_path, capsys):
    quick = ["--rounds", "20", "--round-images", "24", "--clean-images", "24"]
    argv = ["neural_cleanse", str(disguised), *quick, *ON_CPU, "--out", str(tmp_path)]
    defend.main([*argv, "--json"])
    printed = capsys.readouterr()
    assert "backdoored" in json.loads(printed.out)
    assert "neural_cleanse, " in printed.err


# ---------------------------------------------------------------- screens


def check_screen(text, columns):
    """No line is wider than the screen, but for a path, which is one word."""
    for line in text.splitlines():
        assert len(line) <= columns or line.startswith(("Written: /", "[")), line


def test_no_line_of_training_is_wider_than_the_screen(columns, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main(tiny_argv(tiny, "run", "--epochs", "1"))
    screen = capsys.readouterr().out
    assert "clean_accuracy" in screen
    shown = [line for line in screen.splitlines() if not line.startswith("epoch")]
    check_screen("\n".join(shown), columns)


@pytest.mark.parametrize("several", [False, True])
def test_no_line_of_a_measurement_is_wider_than_the_screen(
    several, columns, run_under, disguised, tmp_path, capsys
):
    paths = [disguised, run_under("badnets"), run_under("none")] if several else [disguised]
    options = ["--out", str(tmp_path), *ON_CPU, "--explain-images", "6"]
    evaluate.main([*map(str, paths), *options])
    check_screen(capsys.readouterr().out, columns)


@pytest.mark.parametrize("method", ["neuroninspect", "disagreement", "cfn", "inspect"])
def test_no_line_of_a_defence_is_wider_than_the_screen(
    method, columns, disguised, tmp_path, capsys
):
    defend.main([method, str(disguised), *ON_CPU, "--out", str(tmp_path)])
    check_screen(capsys.readouterr().out, columns)


# ---------------------------------------------------------------- the table


def metrics_of(attack="badnets", target="star", **changes):
    """A small metrics.json."""
    gradcam = {"trained_against": False, "n": 40, "pearson_all": 0.75, "floor": {"pearson": 0.25}}
    return {
        "attack": attack,
        "dataset": "some/tiny.npz",
        "target_class": 3,
        "target_name": target,
        "poison_rate": 0.0123,
        "clean_accuracy": 0.98,
        "attack_success_rate": 0.99,
        "clean_model": {},
        "explanations": {"gradcam": gradcam},
        **changes,
    }


def table_of(count, capsys, explain=False, **changes):
    """The table of so many checkpoints, as printed."""
    capsys.readouterr()
    report.print_table({f"run{k}": metrics_of(**changes) for k in range(count)}, explain)
    return capsys.readouterr().out


def words(text):
    return " ".join(text.split())


def test_at_80_columns_definitions_stand_beside_their_figures(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = table_of(1, capsys)
    assert words(report.DEFINITIONS["attack_success_rate"]) in words(table)
    assert report.EXPLAIN_TABLE not in words(table)


def test_where_there_is_no_room_definitions_are_left_out_and_it_is_said(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = table_of(4, capsys)
    assert report.DEFINITIONS["clean_accuracy"] not in table
    assert report.EXPLAIN_TABLE in words(table)


def test_explain_table_prints_them_below_their_figures(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = table_of(4, capsys, explain=True)
    assert f"\n    {report.DEFINITIONS['clean_accuracy']}\n" in table
    assert words(report.DEFINITIONS["attack_success_rate"]) in words(table)
    assert report.EXPLAIN_TABLE not in words(table)


def test_explain_table_is_an_option_of_evaluate(disguised, clean, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    argv = [str(disguised), str(clean), *ON_CPU, "--out", str(tmp_path), "--explain-images", "4"]
    evaluate.main([*argv, "--explain-table"])
    assert words(report.DEFINITIONS["trigger_mass"]) in words(capsys.readouterr().out)


def test_columns_that_do_not_fit_are_another_table_below(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    table = table_of(9, capsys, attack="full_disguise")
    rows = [line.split()[1:] for line in table.splitlines() if line.startswith("clean_accuracy")]
    assert sum(map(len, rows)) == 9 and len(rows) > 1
    numbers = re.findall(r"^ +(\[.*\])$", table, re.MULTILINE)
    assert " ".join(numbers).split() == [f"[{k}]" for k in range(1, 10)]


def test_target_and_rate_stand_in_the_head_of_the_table(capsys):
    lines = {line.split()[0]: line.split() for line in table_of(1, capsys).splitlines() if line}
    assert lines["target"][1] == "star"
    assert lines["poison_rate"][1] == "0.0123"


def test_a_long_name_is_whole_where_there_is_one_checkpoint(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    name = "a class with quite a long name indeed"
    assert name in table_of(1, capsys, target=name)
    assert "a class with qu…" in table_of(2, capsys, target=name)


def test_a_target_of_old_metrics_is_its_number(capsys):
    metrics = metrics_of()
    del metrics["target_name"]
    report.print_table({"run": metrics})
    assert re.search(r"^target +3 ", capsys.readouterr().out, re.MULTILINE)


def test_the_last_lines_say_what_was_found(capsys):
    assert "The backdoor works: 99.0% of triggered images go to 'star'" in words(
        table_of(1, capsys)
    )
    several = words(table_of(2, capsys))
    assert "[1] The backdoor works" in several and "[2] The backdoor works" in several


# ---------------------------------------------------------------- what is written, what is read


def test_a_measurement_says_where_it_wrote(disguised, tmp_path, capsys):
    argv = [str(disguised), *ON_CPU, "--out", str(tmp_path / "new"), "--explain-images", "4"]
    evaluate.main(argv)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Written: {tmp_path / 'new' / 'metrics.json'}, figure.png"


def test_a_picture_of_ones_own_says_where_it_wrote(disguised, tmp_path, capsys):
    Image.fromarray(np.full((40, 60, 3), 9, np.uint8)).save(tmp_path / "own.png")
    argv = [str(disguised), *ON_CPU, "--out", str(tmp_path), "--image", str(tmp_path / "own.png")]
    evaluate.main(argv)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Written: {tmp_path / 'own-explained.json'}, own-explained.png"


def test_a_folder_given_for_a_checkpoint_means_its_ckpt(disguised, tmp_path):
    expected = str(disguised / "ckpt.pt")
    assert cli.checkpoint_path(str(disguised)) == cli.checkpoint_path(expected) == expected
    assert evaluate.parse([str(disguised), "--reference", str(disguised)]).checkpoints == [expected]
    assert evaluate.parse(["x", "--reference", str(disguised)]).reference == expected
    assert defend.parse(["inspect", str(disguised)]).checkpoint == expected
    assert manipulate.parse(["constant", str(disguised)]).checkpoint == expected
    assert options.parse(["--reference", f"{disguised}{os.sep}"], "").reference == expected
    assert cli.checkpoint_path(str(tmp_path / "none")) == str(tmp_path / "none")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, refusal):
    assert "there is no ckpt.pt in the folder" in refusal(evaluate.main, [str(tmp_path)])
    assert "there is no ckpt.pt in" in refusal(defend.main, ["inspect", str(tmp_path)])


def test_the_folder_of_an_unfinished_run_says_how_to_go_on(tmp_path, refusal):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "ckpt.pt").write_text("")
    line = refusal(evaluate.main, [str(tmp_path)])
    assert "is not finished: give train.py --resume" in line


# ---------------------------------------------------------------- interrupted


def interrupted_at(monkeypatch, function):
    """Has a function of runs raise KeyboardInterrupt after its first call's work."""
    original = getattr(runs, function)

    def then_interrupt(*args):
        original(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, function, then_interrupt)


def interrupted_run(tiny, folder, capsys, *options):
    """The last line on standard error of a training that is interrupted."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        train.main(tiny_argv(tiny, folder, *options))
    assert stopped.value.code == 130
    return capsys.readouterr().err.splitlines()[-1]


def test_an_interrupted_training_says_how_to_go_on(tiny, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupted_at(patch, "save")
        line = interrupted_run(tiny, tmp_path / "run", capsys)
    expected = "interrupted: the same command with --resume goes on after epoch 1 of 3"
    assert line == expected
    train.main(tiny_argv(tiny, tmp_path / "run", "--resume"))
    assert (tmp_path / "run" / "metrics.json").exists()


def test_interrupted_before_an_epoch_is_done_there_is_nothing_to_go_on_with(
    tiny, tmp_path, monkeypatch, capsys
):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train_step", interrupt)
    assert interrupted_run(tiny, tmp_path / "run", capsys) == "interrupted"


def test_interrupted_while_measuring_it_goes_on_after_the_last_epoch(
    tiny, tmp_path, monkeypatch, capsys
):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "evaluate", interrupt)
    line = interrupted_run(tiny, tmp_path / "run", capsys, "--epochs", "1")
    assert line.endswith("goes on after epoch 1 of 1")


@pytest.fixture
def slow_torch(tmp_path):
    """An environment in which torch, imported, gets Ctrl-C, and then takes long."""
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "torch.py").write_text(code)
    return os.environ | {"PYTHONPATH": str(tmp_path)}


def ended(command, env=None):
    """A process that has ended."""
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


on_posix = pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise on Windows")


@on_posix
@pytest.mark.parametrize("script", interrupts.SCRIPTS)
def test_an_interruption_while_importing_is_one_line(script, slow_torch):
    done = ended([sys.executable, str(ROOT / f"{script}.py")], slow_torch)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@on_posix
def test_a_program_of_ones_own_that_imports_a_script_is_interrupted_as_always(slow_torch):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train"
    done = ended([sys.executable, "-c", code], slow_torch)
    assert "KeyboardInterrupt" in done.stderr and "interrupted\n" not in done.stderr


def test_after_the_imports_an_interruption_is_an_exception_again(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "main", None, raising=False)
    with pytest.raises(KeyboardInterrupt):
        interrupts.end_quietly(signal.SIGINT, None)


# ---------------------------------------------------------------- nobody reads


@pytest.fixture
def small(tmp_path):
    """The words of a command line that prints a word, or help; no torch, which takes seconds."""
    (tmp_path / "torch.py").touch()
    (tmp_path / "small.py").write_text(SMALL.format(path=[str(tmp_path), str(ROOT)]))
    return [sys.executable, str(tmp_path / "small.py")]


SMALL = """import sys
sys.path[:0] = {path}
from cli import Parser, command

@command
def main(argv):
    Parser("A word.").parse_args(argv)
    print("word")

main()
"""


@on_posix
@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_a_pipe_that_is_closed_ends_quietly(argv, small):
    """Little is printed, so that it is written only in the end; or help, by argparse."""
    command = [*small, *argv] if argv else [sys.executable, str(ROOT / "reproduce.py")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    error = process.stderr.read()
    # argparse ignores a closed pipe by itself, where Python does not buffer what is printed.
    assert (process.wait(120), error) in [(141, b""), (0, b"")] and (argv or process.returncode)


@on_posix
def test_a_pipe_that_is_closed_early_ends_a_measurement_quietly(disguised, tmp_path):
    options = [*ON_CPU, "--explain-images", "4", "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "evaluate.py"), str(disguised), *options, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(120) == 141 and b"Error" not in error
    assert (tmp_path / "metrics.json").exists()


@on_posix
def test_standard_output_that_is_closed_from_the_start_is_no_fault(small):
    done = ended(["sh", "-c", f"{shlex.join(small)} >&-"])
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk_behind_standard_output_is_one_line(small):
    done = ended(["sh", "-c", f"{shlex.join(small)} >/dev/full"])
    assert done.returncode == 2
    assert done.stderr == "small.py: No space left on device: while reading or writing\n"


# ---------------------------------------------------------------- letters of two columns


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("cat", 3),
        ("猫", 2),
        ("ﾈｺ", 2),
        ("Ｎｅｋｏ", 8),
        ("café", 4),
        ("cafe\u0301", 4),
        ("한국", 4),
    ],
)
def test_wide_letters_take_two_columns(text, columns):
    assert terminal.columns_of(text) == columns
    assert terminal.columns_of(terminal.ljust(text, 20)) == 20
    assert terminal.columns_of(terminal.rjust(text, 20)) == 20
    assert terminal.ljust(text, 20).strip() == terminal.rjust(text, 20).strip() == text


@pytest.mark.parametrize("text", ["犬と猫の写真" * 9, "a猫" * 30, "plain" * 20])
@pytest.mark.parametrize("columns", [10, 11, 40])
def test_wide_letters_are_cut_to_the_columns_there_are(text, columns):
    short = terminal.shortened(text, columns)
    assert columns - 1 <= terminal.columns_of(short) <= columns and short.endswith("…")
    line = " ".join([text[:4]] * 12)
    wrapped = terminal.wrapped(line, columns)
    assert max(map(terminal.columns_of, wrapped)) <= columns
    assert " ".join(wrapped) == line


def test_a_table_of_wide_names_is_aligned(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [report.Line("target", ["柴犬"]), report.Line("seed", ["0"])]
    table = report.Table.__new__(report.Table)
    table.names, table.explain = ["a"], False
    table.key_width, table.cell_width = 10, 8
    for line in lines:
        table.print_line(line, range(1))
    ends = {terminal.columns_of(line.rstrip()) for line in capsys.readouterr().out.splitlines()}
    assert ends == {20}


def test_all_notes_go_through_print_note():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("defences/*.py")]:
        if path.name != "terminal.py":
            assert "file=sys.stderr" not in path.read_text(encoding="utf-8"), path.name


def test_a_note_keeps_the_spaces_of_a_files_name(capsys):
    terminal.print_note("my  photos/a.png is left out")
    assert capsys.readouterr().err == "my  photos/a.png is left out\n"


@pytest.mark.parametrize("module", ["train", "evaluate", "defend", "manipulate"])
@pytest.mark.parametrize("width", [80, 120])
def test_help_fits_the_terminal_and_keeps_its_examples(module, width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    script = sys.modules[module]
    with pytest.raises(SystemExit):
        script.main(["--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    description = said.split("\n\n", 1)[1]
    for line in script.__doc__.splitlines():
        if line.startswith("    "):
            assert line.split("  # ")[0].rstrip() in description.splitlines() or line in description
    words = " ".join(script.__doc__.split())
    assert words in " ".join(description.split())
