"""LESSON.md: its code stands in the files it names, and its exercises do what it says."""

import importlib
import re
import types

import pytest
from conftest import ROOT

TEXT = (ROOT / "LESSON.md").read_text()
PARTS = re.split(r"^## (?=\d\. )", TEXT, flags=re.MULTILINE)[1:]
QUOTED = re.compile(r"[Ii]n\s`([\w/]+\.py)`, `(\w+)`:\n\n```python\n(.*?)```", re.DOTALL)
EXERCISE = re.compile(r"```python\n# exercise.py\n(.*?)```", re.DOTALL)
CHANGED = re.compile(r"change three lines of `([\w/]+\.py)`:\n\n```diff\n(.*?)```", re.DOTALL)


def title(part):
    return part.splitlines()[0]


@pytest.mark.parametrize("file, function, code", QUOTED.findall(TEXT))
def test_quoted_code_stands_in_the_file_it_names(file, function, code):
    source = (ROOT / file).read_text()
    start = source.index(f"def {function}(")
    body = source[start : source.find("\ndef ", start + 1)]
    lines = [line for line in code.splitlines() if line.strip()]
    assert [line for line in lines if line not in body.splitlines()] == []
    assert sorted(lines, key=body.index) == lines


def test_every_part_quotes_code_and_has_a_picture_and_an_exercise():
    assert len(PARTS) == 5
    for part in PARTS:
        assert QUOTED.search(part) and "](results/" in part, title(part)
        assert len(EXERCISE.findall(part)) == len(CHANGED.findall(part)) == 1, title(part)


def changed(source, diff):
    """The source of a file with a lesson's three lines changed; they may stand apart in it."""
    old, new = ([line[1:] for line in diff.splitlines() if line[0] == sign] for sign in "-+")
    assert len(old) == len(new) == 3
    block = "\n".join(["", *old, ""])
    if source.count(block) == 1:
        return source.replace(block, "\n".join(["", *new, ""]))
    for before, after in zip(old, new):
        (line,) = re.findall(rf"^{re.escape(before)}(?:  #.*)?$", source, re.MULTILINE)
        source = source.replace(f"\n{line}\n", f"\n{after}\n")
    return source


def module_of(file, diff):
    """The module of a file, as it is with three lines changed; the file stays as it is."""
    name = file.removesuffix(".py").replace("/", ".")
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / file)
    module.__package__ = name.rpartition(".")[0]
    return name, module, changed((ROOT / file).read_text(), diff)


def printed(code, capsys):
    """What the code of an exercise prints, in one line."""
    capsys.readouterr()
    exec(compile(code, "exercise.py", "exec"), {"__name__": "__main__"})
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("part", PARTS, ids=title)
def test_an_exercise_prints_what_the_lesson_says(part, monkeypatch, capsys):
    (code,), ((file, diff),) = EXERCISE.findall(part), CHANGED.findall(part)
    before = re.search(r"^It prints `([^`]+)`", part, re.MULTILINE)[1]
    after = re.search(r"^It now prints `([^`]+)`", part, re.MULTILINE)[1]
    assert printed(code, capsys) == before
    name, module, source = module_of(file, diff)
    importlib.import_module(name)  # whatever imports it keeps the one that is as it was
    monkeypatch.setitem(__import__("sys").modules, name, module)
    exec(compile(source, file, "exec"), vars(module))
    assert printed(code, capsys) == after


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#]+)\)", TEXT))
def test_its_links_and_pictures_are_there(target):
    assert (ROOT / target).exists()
