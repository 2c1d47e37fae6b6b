"""The order in which files of tests are handed out to processes."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest
import slow_tests

TESTS = Path(conftest.__file__).parent


def test_files_that_take_longest_come_first_and_the_rest_stays_in_order():
    first, second = conftest.LONGEST[:2]
    names = ["a.py::1", "b.py::1", f"{second}::1", f"{first}::2", "a.py::2", f"{first}::1"]
    items = [SimpleNamespace(path=TESTS / name.partition("::")[0], name=name) for name in names]
    conftest.longest_files_first(items)
    assert [item.name for item in items] == [
        f"{first}::2", f"{first}::1", f"{second}::1", "a.py::1", "b.py::1", "a.py::2",
    ]  # fmt: skip


@pytest.mark.parametrize("name", conftest.LONGEST)
def test_each_file_named_as_long_exists(name):
    assert (TESTS / name).is_file()


def test_make_test_keeps_the_order_when_it_hands_out_files(tmp_path):
    """pytest-xdist by default begins with the files that hold the most tests, and a long file with few comes last."""
    recipe = next(line for line in (TESTS.parent / "Makefile").read_text().splitlines() if "--dist loadfile" in line)
    words = recipe.partition("--dist")[2].replace("$(ARGS)", "").split()
    (tmp_path / "conftest.py").write_text("def pytest_collection_modifyitems(items): items.reverse()")
    (tmp_path / "test_a.py").write_text("def test_1(): pass\ndef test_2(): pass\ndef test_3(): pass\n")
    (tmp_path / "test_b.py").write_text("def test_1(): pass\n")
    command = [sys.executable, "-m", "pytest", "-v", "-n1", "-p", "no:cacheprovider", "--dist", *words, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    ended = [line.split()[-1] for line in done.stdout.splitlines() if "PASSED" in line]
    assert ended == ["test_b.py::test_1", "test_a.py::test_3", "test_a.py::test_2", "test_a.py::test_1"]


@pytest.mark.parametrize(("target", "run"), [("check", {"plain"}), ("test", {"plain", "slow", "stages", "gpu"})])
def test_what_takes_minutes_is_left_out(tmp_path, target, run):
    makefile = (TESTS.parent / "Makefile").read_text()
    recipe = makefile.partition(f"\n{target}: ")[2].partition("\n\n")[0]
    chosen = re.findall(r'-m ("[^"]+")', recipe)
    marks = ["slow", "long", "stages", "gpu", "real"]
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n" + "".join(f"    {mark}\n" for mark in marks))
    tests = [f"@pytest.mark.{mark}\ndef test_{mark}(): pass\n" for mark in marks]
    (tmp_path / "test_marks.py").write_text("import pytest\ndef test_plain(): pass\n" + "".join(tests))
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", *map(ast.literal_eval, chosen)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert set(re.findall(r"test_(\w+) PASSED", done.stdout)) == run, done.stdout


def test_each_test_named_as_slow_exists():
    for name in conftest.SLOW:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (TESTS.parent / file).read_text(), name


def test_slow_tests_are_read_from_what_pytest_measured():
    log = ["0.30s setup    tests/a/test_x.py::test_one[b[0]-1]", "0.21s call     tests/a/test_x.py::test_one[b[0]-1]",
           "0.49s call     tests/a/test_x.py::test_two[1]", "0.40s call     tests/a/test_x.py::test_two[2]",
           "= 3 passed in 9.00s call it ="]  # fmt: skip
    assert slow_tests.measured_slow(log) == ["tests/a/test_x.py::test_one"]


def test_a_test_named_as_slow_is_marked_in_every_case(request):
    cases = [item for item in request.session.items if item.function is test_each_file_named_as_long_exists]
    try:
        conftest.SLOW, before = frozenset({cases[0].nodeid.partition("[")[0]}), conftest.SLOW
        conftest.mark_slow(cases)
        assert all(item.get_closest_marker("slow") for item in cases)
    finally:
        conftest.SLOW = before
