"""The list of small faults fits the code as it is; whether tests catch them, mutate.py finds."""

import re

import mutate
import pytest

ROW = "a.py: it is wrong\n- x = 1\n+ x = 2\n? test_a.py::test_x"


@pytest.fixture(scope="module")
def faults():
    return mutate.read_faults(mutate.LIST.read_text(encoding="utf-8"))


def test_each_text_stands_once_in_its_file_and_can_be_replaced(faults):
    assert mutate.out_of_date(faults) == []


def test_there_are_many_and_no_two_are_one(faults):
    assert len(faults) >= 80
    assert len({(fault.file, fault.old, fault.new) for fault in faults}) == len(faults)
    assert len({str(fault) for fault in faults}) == len(faults)
    assert all(fault.old != fault.new for fault in faults)


def test_the_tests_that_should_notice_are_there(faults):
    named = [name.split("::") for fault in faults for name in fault.tests]
    texts = {file: (mutate.LIST.parent / file).read_text(encoding="utf-8") for file, _ in named}
    there = {file: re.findall(r"^def (\w+)\(", text, re.M) for file, text in texts.items()}
    assert [name for file, name in named if name not in there[file]] == []


@pytest.mark.parametrize("old, new, words", [("x = 1", "y = 2", None), ("z", "y", "0 times")])
def test_a_row_is_tried_where_its_text_stands_once(old, new, words, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (fault,) = mutate.read_faults(ROW.replace("x = 1", old).replace("x = 2", new))
    assert len(mutate.out_of_date([fault], tmp_path)) == (words is not None)
    if words is None:
        assert mutate.mutated(fault, tmp_path) == "y = 2\n"
    else:
        with pytest.raises(
            ValueError, match=f"out of date, its text is there {words}: a.py: it is"
        ):
            mutate.mutated(fault, tmp_path)


@pytest.mark.parametrize("text, words", [("xx", "2 times"), ("x)", "no Python")])
def test_a_text_that_stands_twice_or_is_no_python_is_refused(text, words, tmp_path):
    (tmp_path / "a.py").write_text("x x" if text == "xx" else "x")
    (fault,) = mutate.read_faults("a.py: it is wrong\n- x\n+ x)\n? test_a.py")
    with pytest.raises(ValueError, match=words):
        mutate.mutated(fault, tmp_path)


@pytest.mark.parametrize("mark", "-+?")
def test_a_row_with_a_part_missing_is_refused(mark):
    row = "\n".join(line for line in ROW.splitlines() if not line.startswith(mark))
    with pytest.raises(ValueError, match="no fault .* a.py: it is wrong"):
        mutate.read_faults(row)


@pytest.mark.parametrize(
    "body, seconds, end",
    [("assert a.x == 1", 60, "caught"), ("pass", 60, "survived"), ("a.wait()", 1, "too slow")],
)
def test_a_fault_is_caught_where_a_test_fails_or_never_ends(body, seconds, end, tmp_path):
    waits = "import time\n\ndef wait():\n    time.sleep(60 if x == 2 else 0)\n\n\n"
    (tmp_path / "a.py").write_text(f"{waits}x = 1\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "conftest.py").write_text("")
    (tmp_path / "tests" / "test_a.py").write_text(
        f"import sys\n\nsys.path.insert(0, {str(tmp_path)!r})\nimport a\n\n\n"
        f"def test_x():\n    {body}\n"
    )
    (fault,) = mutate.read_faults(ROW)
    assert mutate.try_out(fault, tmp_path, seconds) == end
    assert (tmp_path / "a.py").read_text() == f"{waits}x = 1\n"
