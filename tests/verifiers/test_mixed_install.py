"""PyPI's package `verifiers` and ours in one folder: refused with the fix, whichever was installed last."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages with our packages in it."""
    for package in ("verifiers", "rewards"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def imported(site: Path, name: str) -> str:
    """The last line of what importing says; empty where it works."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); import {name}"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def record_theirs(site: Path) -> None:
    info = site / "verifiers-0.1.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verifiers\nVersion: 0.1.9\n")


def test_ours_alone_starts(site: Path) -> None:
    assert imported(site, "verifiers") == imported(site, "rewards") == ""


def test_a_folder_that_pip_recorded_for_both_is_refused_with_the_fix(site: Path) -> None:
    record_theirs(site)
    line = imported(site, "verifiers")
    assert line.startswith("ImportError") and "verifiers 0.1.9" in line and "pip uninstall -y verifiers" in line


def test_what_an_uninstalled_package_left_behind_is_refused_too(site: Path) -> None:
    (site / "verifiers" / "rubrics").mkdir()
    (site / "verifiers" / "types.py").write_text("")
    assert "rubrics, types.py" in imported(site, "verifiers")


def test_rewards_refuse_when_their_package_was_installed_over_ours(site: Path) -> None:
    record_theirs(site)
    (site / "verifiers" / "__init__.py").write_text("__version__ = '0.1.9'\n")
    line = imported(site, "rewards")
    assert line.startswith("ImportError") and "PyPI's package" in line and "pip uninstall -y verifiers" in line
