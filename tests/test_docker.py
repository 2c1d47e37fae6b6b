"""Dockerfile: what it copies, installs and names exists, and its dependency layer is what the installer needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """(instruction, its words), continued lines joined and comments left out."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined.splitlines() if line.strip()]


def test_every_file_that_is_copied_exists() -> None:
    copied = [word for kind, words in instructions() if kind == "COPY" for word in words.split()[:-1]]
    assert copied and all((ROOT / word).exists() for word in copied)


def test_each_flavour_has_its_lock_and_the_sandbox_its_program() -> None:
    assert re.search(r"ARG FLAVOUR=(\w+)", TEXT)[1] == "cpu"  # type: ignore[index]
    for flavour in ("cpu", "cuda"):
        assert (ROOT / "requirements" / f"{flavour}.txt").is_file()
    assert "bubblewrap" in TEXT and "USER whetstone" in TEXT


def test_nothing_of_this_machine_is_copied_into_an_image() -> None:
    left_out = (ROOT / ".dockerignore").read_text().split()
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().split() if line not in ("*.py[cod]",)]
    assert {".git", ".venv", "runs"} <= set(left_out)
    assert {name.removeprefix("**/") for name in left_out} >= {name for name in ignored}


def test_the_dependency_layer_can_be_installed_from_what_is_copied_before_the_code(tmp_path) -> None:
    """The files of that layer alone are a project that pip can read the metadata of, with all packages it names."""
    first = next(words for kind, words in instructions() if kind == "COPY" and "pyproject.toml" in words)
    for name in first.split()[:-1]:
        shutil.copy(ROOT / name, tmp_path)
    made = next(words for kind, words in instructions() if kind == "RUN" and "mkdir" in words)
    subprocess.run(["sh", "-c", made.split("&& python -m venv")[0]], cwd=tmp_path, check=True)
    find = "from setuptools import find_packages; print(*sorted(find_packages(include=['pipeline*', 'rewards*', 'verifiers*', 'benchmarks*'])))"  # noqa: E501
    pytest.importorskip("setuptools")
    out = subprocess.run([sys.executable, "-c", find], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["benchmarks", "pipeline", "rewards", "verifiers"]
