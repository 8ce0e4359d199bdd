"""What the command lines share: mistakes are one line, files are whole, numbers are in range."""

import argparse
import io
import json
import platform
import subprocess
import sys

import pytest
import torch

import cli
import terminal
from cli import UserError, number, numbers

# ---------------------------------------------------------------- how a command line ends


def ending_in(error):
    """A command line, main(argv), that raises an exception."""

    @cli.command
    def main(argv):
        raise error

    return main


def test_a_mistake_is_one_line_after_the_scripts_name(refusal):
    line = refusal(ending_in(UserError("this is wrong:\n   do that")), [])
    assert line == "test_cli.py: this is wrong: do that\n"


def test_a_file_that_cannot_be_read_is_a_line_with_its_name(refusal):
    error = PermissionError(13, "Permission denied", "secret.npz")
    assert refusal(ending_in(error), []) == "test_cli.py: Permission denied: secret.npz\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_that_is_full_is_a_line_that_says_what_to_do(error, refusal):
    line = refusal(ending_in(error), [])
    assert "memory is full" in line and "--batch-size" in line


def test_a_bug_stays_a_traceback():
    with pytest.raises(RuntimeError, match="shapes differ"):
        ending_in(RuntimeError("shapes differ"))([])


def test_an_interruption_exits_with_130(capsys):
    with pytest.raises(SystemExit) as stopped:
        ending_in(KeyboardInterrupt())([])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_main_returns_what_the_command_returns():
    assert cli.command(lambda argv: len(argv))(["a", "b"]) == 2


def test_main_without_arguments_takes_those_of_the_process(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script.py", "--seed", "3"])
    assert cli.command(lambda argv: argv)() == ["--seed", "3"]


def test_a_librarys_value_error_becomes_the_users():
    with pytest.raises(UserError, match="^model: no such layer$"):
        with cli.user_errors("model: "):
            raise ValueError("no such layer")


def test_other_errors_of_a_library_stay_what_they_are():
    with pytest.raises(KeyError):
        with cli.user_errors():
            raise KeyError("x")


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("one\ntwo"), "one"), (EOFError(), "EOFError"), (ValueError("\n three "), "three")],
)
def test_the_first_line_of_an_error(error, line):
    assert cli.first_line(error) == line


# ---------------------------------------------------------------- options


@pytest.fixture
def parser():
    """A parser with an option that has a default, one without, and a switch."""
    parser = cli.Parser("Does something.\n\n    python script.py")
    parser.add_argument("--epochs", type=number(int, 1, 100), default=5, help="how long")
    parser.add_argument("--out", help="where to")
    parser.add_argument("--resume", action="store_true", help="go on")
    return parser


@pytest.mark.parametrize("argv", [["--speed", "3"], ["--epochs"], ["--epochs", "0"], ["word"]])
def test_what_the_parser_refuses_is_the_users_mistake(parser, argv):
    with pytest.raises(UserError):
        parser.parse_args(argv)


def test_no_option_may_be_abbreviated(parser):
    with pytest.raises(UserError, match="--epo"):
        parser.parse_args(["--epo", "3"])


def test_help_shows_the_defaults_that_there_are(parser):
    text = parser.format_help()
    assert "how long (default: 5)" in text
    assert text.count("default") == 1


def test_help_keeps_the_lines_of_the_description(parser):
    assert "Does something.\n\n    python script.py\n" in parser.format_help()


@pytest.mark.parametrize(("kind", "text"), [(int, "1"), (int, "10"), (float, "2.5"), (float, "1")])
def test_a_number_may_be_either_bound(kind, text):
    assert number(kind, 1, 10)(text) == kind(text)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (number(int, 1, 10), "0"),
        (number(int, 1, 10), "11"),
        (number(int, 1, 10), "2.5"),
        (number(float, 0, 1), "some"),
        (number(float, 0, 1), "nan"),
        (number(float, 0, 1), "inf"),
        (number(float, 0, 1, above=True), "0"),
        (numbers(0), "1,-2"),
        (numbers(0), "1,,2"),
        (numbers(0, count=3), "1,2"),
    ],
)
def test_a_number_out_of_range_is_refused(parse, text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse(text)


def test_numbers_are_separated_by_commas():
    assert numbers(0, count=3)("0.1,1,10") == (0.1, 1.0, 10.0)
    assert numbers(0)("7") == (7.0,)


def test_auto_is_a_device_that_is_here():
    assert torch.ones(1, device=cli.choose_device("auto")).item() == 1


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "hpu", ""])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(UserError, match="use cpu, cuda, mps or auto"):
        cli.choose_device(name)


@pytest.mark.parametrize("name", ["bf16", "float32"])
def test_a_precision_that_is_asked_for_is_taken(name):
    assert cli.choose_precision(name, torch.device("cpu")) == name


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({}, "float32"),
        ({"amx_bf16": False, "avx512_bf16": False}, "float32"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
    ],
)
def test_auto_precision_is_bf16_where_the_cpu_has_it(capabilities, precision, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert cli.choose_precision("auto", torch.device("cpu")) == precision


# ---------------------------------------------------------------- output


def test_a_file_is_replaced_and_nothing_else_stays(tmp_path):
    (tmp_path / "a").write_text("old")
    cli.replace_file(tmp_path / "a", lambda path: path.write_text("new"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("No space left\nin the middle of a zip"),
    ],
)
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    (tmp_path / "a").write_text("old")

    def fail(path):
        path.write_text("half")
        raise error

    with pytest.raises(UserError, match="No space left"):
        cli.replace_file(tmp_path / "a", fail)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_halves_of_ended_processes_go_and_other_machines_stay(tmp_path):
    """A number of a process says nothing of another machine's."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = tmp_path / f".a.{platform.node()}.{ended.pid}"
    others = tmp_path / f".a.elsewhere-{platform.node()}.{ended.pid}"
    for half in (own, others):
        half.write_text("half")
    cli.replace_file(tmp_path / "a", lambda path: path.write_text("new"))
    assert {path.name for path in tmp_path.iterdir()} == {"a", others.name}


def test_json_comes_back_as_it_was_written(tmp_path):
    record = {"rate": 0.1, "classes": ["a", "b"], "floor": None}
    cli.write_json(tmp_path / "a.json", record)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == record
    assert text.endswith("}\n")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_rewritten_on_a_terminal():
    screen = Terminal()
    terminal.print_progress("step 1", False, screen)
    terminal.print_progress("step 2", True, screen)
    lines = [line.rstrip() for line in screen.getvalue().split("\r")]
    assert lines == ["", "step 1", "step 2"]
    assert screen.getvalue().count("\n") == 1


def test_progress_that_is_too_long_for_the_terminal_is_cut_off(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    screen = Terminal()
    terminal.print_progress("x" * 50, False, screen)
    assert screen.getvalue() == "\r" + 9 * "x"


def test_progress_elsewhere_is_a_line_each():
    stream = io.StringIO()
    terminal.print_progress("step 1", False, stream)
    terminal.print_progress("step 2", True, stream)
    assert stream.getvalue() == "step 1\nstep 2\n"


# ---------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--out", "a\0b"], "NUL"),
        (["--epochs=--"], "argument --epochs: expected one argument"),
        (["--epochs", "--"], "argument --epochs: expected one argument"),
    ],
)
def test_what_argparse_or_the_system_stumbles_over_is_the_users_mistake(parser, argv, text):
    with pytest.raises(UserError, match=text):
        parser.parse_args(argv)


def test_a_loop_of_links_is_one_line(refusal, tmp_path):
    (tmp_path / "loop").symlink_to("loop")

    @cli.command
    def main(argv):
        (tmp_path / "loop").resolve()  # from Python 3.13 on no error
        raise UserError("Symlink loop from here")

    assert "Symlink loop" in refusal(main, [])


@pytest.mark.parametrize("error", [UserError("no " + "9" * 5000), OSError(36, "long", "x" * 5000)])
def test_a_line_is_not_thousands_of_characters(error, refusal):
    assert 100 < len(refusal(ending_in(error), [])) < 400


def test_a_line_does_not_change_the_terminal(refusal):
    assert "\\x1b[31m" in refusal(ending_in(UserError("no \x1b[31mred")), [])


@pytest.mark.parametrize(("text", "is_so"), [("0", 1), ("12", 1), ("9" * 5000, 0), ("²", 0)])
def test_what_is_a_count(text, is_so):
    assert cli.is_count(text) == bool(is_so)
