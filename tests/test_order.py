"""The order in which files of tests are handed out to processes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import pytest

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
