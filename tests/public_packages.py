"""Public packages that a test needs beside ours: downloaded or installed with pip into a cache directory, never into
the repository or its environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "whetstone-tests"


def unpacked(name: str, version: str, *, source: bool = False) -> Path:
    """The directory of the unpacked package, the source package if requested. Skips the test if it is not available."""
    directory = CACHE / f"{name}-{version}-{'source' if source else 'wheel'}"
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.{os.getpid()}")
        try:
            _download(f"{name}=={version}", name if source else None, partial)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory


def _download(requirement: str, from_source: str | None, directory: Path) -> None:
    directory.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip"] if shutil.which("pip") is None else ["pip"]
    form = ["--no-binary", from_source] if from_source else ["--only-binary", ":all:"]
    command = [*pip, "download", "-q", "--no-deps", *form, "-d", str(directory), requirement]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"{requirement} cannot be downloaded")
    (archive,) = (path for path in directory.iterdir() if path.is_file())
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(directory)
    else:
        with tarfile.open(archive) as file:
            file.extractall(directory, filter="data")


def interpreter(name: str, version: str) -> Path:
    """A Python of a virtual environment that holds the package. Skips the test if it cannot be installed."""
    directory = CACHE / f"{name}-{version}-{sys.version_info.major}.{sys.version_info.minor}"
    python = directory / "bin" / "python"
    if not (directory / "complete").exists():
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True, capture_output=True)
        install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", f"{name}=={version}"]
        if subprocess.run(install, capture_output=True).returncode:
            shutil.rmtree(directory, ignore_errors=True)
            pytest.skip(f"{name}=={version} cannot be installed")
        (directory / "complete").touch()
    return python
