"""Verdicts of code and SQL as an ordinary user: root starts them as nobody, from a copy of the tree."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TREE = Path(__file__).parents[2]
NAMES = ("python_tests", "python_stdio", "sql_query")  # these need nothing but the standard library
GRADE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import verifiers
rows = json.load(sys.stdin)
verifier = verifiers.load(rows["name"])
problem = getattr(verifier, "unavailable", lambda: None)()
verdicts = [] if problem else verifier.grade(rows["completions"], rows["tasks"])
print(json.dumps([problem, [[v.status, v.detail] for v in verdicts]]))
"""


def interpreter(uid: int) -> str | None:
    """An interpreter that this user may start: the one of these tests, or else that of the system."""
    script = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        try:
            if subprocess.run([python, "-c", script], user=uid, extra_groups=[], cwd="/").returncode == 0:
                return python
        except OSError:
            continue
    return None


@pytest.fixture(scope="module")
def readable_tree() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    shutil.copytree(TREE / "verifiers", directory / "verifiers", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chmod", "-R", "a+rX", str(directory)], check=True)
    yield directory
    shutil.rmtree(directory)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.parametrize("name", NAMES)
def test_the_reported_rows_get_the_right_verdicts_as_nobody(name: str, readable_tree: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    python = interpreter(nobody.pw_uid)
    if python is None:
        pytest.skip("no Python 3.11 or later that nobody may start")
    lines = (TREE / "tests" / "corpora" / "reported" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    request = {"name": name, "completions": [r["completion"] for r in rows], "tasks": [r["task"] for r in rows]}
    process = subprocess.run(
        [python, "-c", GRADE, str(readable_tree)], input=json.dumps(request), capture_output=True, text=True, cwd="/",
        user=nobody.pw_uid, group=nobody.pw_gid, extra_groups=[], env={"PATH": "/usr/bin:/bin"}, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    problem, verdicts = json.loads(process.stdout)
    if problem:
        pytest.skip(f"nobody cannot isolate code here: {problem}")
    for row, (status, detail) in zip(rows, verdicts, strict=True):
        expected = [row["expect"]] if isinstance(row["expect"], str) else row["expect"]
        assert status in expected, (row["why"], status, detail)
