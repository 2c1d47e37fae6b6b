"""Library logs: silent by default, back with --verbose; in a process of its own, for they are settings of a process."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.distributed import process

ROOT = Path(__file__).parents[2]
CODE = """
import os, sys, warnings
from pipeline import __main__ as cli
from pipeline.distributed import process
words = sys.argv[1:]
cli.main([*words, "--version"]) if words else None
if not process.verbose():
    process.silence()
warnings.warn("old call", DeprecationWarning, stacklevel=2)
warnings.warn("old call of the future", FutureWarning, stacklevel=2)
warnings.warn("look at your data", UserWarning, stacklevel=2)
print(os.environ.get("VLLM_LOGGING_LEVEL"), os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"))
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    known = ("VLLM_LOGGING_LEVEL", "HF_HUB_DISABLE_PROGRESS_BARS", "PYTHONWARNINGS", "WHETSTONE_VERBOSE")
    environment = {k: v for k, v in os.environ.items() if k not in known} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "default", "-c", CODE, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True)


def test_logs_that_a_user_cannot_act_on_are_off_and_other_warnings_stay():
    quiet = run()
    assert "old call" not in quiet.stderr and "look at your data" in quiet.stderr
    assert quiet.stdout.splitlines()[-1] == "ERROR 1"


def test_verbose_brings_them_back():
    loud = run("--verbose")
    assert "old call" in loud.stderr and "old call of the future" in loud.stderr
    assert loud.stdout.splitlines()[-1] == "None None"


@pytest.mark.stages
def test_a_stage_with_vllm_writes_nothing_to_stderr(tmp_path):
    pytest.importorskip("vllm")
    words = ["stages=[base]", f"runs_dir={tmp_path}", "prompts.rows=300", "evaluation.samples=2", "evaluation.k=2",
             "generate.backend=vllm"]  # fmt: skip
    command = [sys.executable, "-m", "pipeline", "run", "configs/demo/pipeline.yaml", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what other C libraries keep is theirs to say")
def test_memory_below_a_block_that_is_still_in_use_is_returned_to_the_system():
    code = """
from pathlib import Path
from pipeline.distributed import process
def held():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("VmRSS"))
process.COLLECTED_FROM = 0
blocks = [bytes([1]) * 60_000 for _ in range(4000)]  # below the size from which glibc maps each block for itself
last, most = blocks[-1], held()
del blocks
before = held()
process.free_memory()
print(most - before, before - held())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    freed, returned = map(int, done.stdout.split())  # KiB
    assert freed < 20_000 and returned > 200_000


def test_waiting_threads_sleep_soon_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "silence", lambda: None)  # it would filter the warnings of this process
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    process.prepare_environment(None)
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "7")
    monkeypatch.delenv("GOMP_SPINCOUNT")
    process.prepare_environment(None)
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 10_000
