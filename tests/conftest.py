"""Environment of all tests, set before torch or a Hub library is imported: no network, no telemetry, one thread."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from browser import Page
    from forked import Forked

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # an unreachable Hub costs most of a minute per request
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# tensors are small: a second thread would cost time, and one thread gives the same results everywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from slow_tests import slow_functions

from pipeline.distributed.late_compile import compile_late

compile_late("bitsandbytes")  # as every command does
SLOW = slow_functions()

# The files that take longest, longest first. pytest-xdist hands out whole files: one of these begun last would leave
# the other processes idle until it ends.
LONGEST = [
    "run/test_resume.py",
    "plan/test_plan.py",
    "models/test_families.py",
    "verifiers/test_verifiers_cli.py",
    "stages/test_stages.py",
    "update/test_loop_runs.py",
    "stages/test_compare.py",
    "research/test_stitching.py",
    "distributed/test_several_processes.py",
    "config/test_config_fuzz.py",
    "examples/test_examples.py",
    "run/test_faults.py",
    "distributed/test_process.py",
    "verifiers/test_sandbox_failures.py",
]


def cuda_is_missing() -> bool:
    import torch

    return not torch.cuda.is_available()


def longest_files_first(items: list[pytest.Item]) -> None:
    """Sort in place; the order within a file, and of the other files, stays."""
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def mark_slow(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.partition("[")[0] in SLOW:
            item.add_marker("slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none; imports torch only if such a test was collected."""
    longest_files_first(items)
    mark_slow(items)
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and cuda_is_missing():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """Later garbage collections skip what the imports have left: scanning it takes half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a few thousand parameters to start a stage from."""
    from loop_kit import tiny_model

    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """Runs `python -m pipeline WORDS` without importing the libraries each time."""
    from forked import Forked

    runs = Forked(tmp_path_factory.mktemp("forked"))
    yield runs
    runs.close()


@pytest.fixture
def no_engine_left_behind() -> Iterator[None]:
    """Close all generators before and after the test: each may use other weights and settings."""
    from pipeline.generation import engines

    engines.close_generators()
    yield
    engines.close_generators()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of a headless Chromium; the test is skipped where there is none."""
    pytest.importorskip("websockets", reason="no websockets package to speak to Chromium")
    from browser import chromium, installed

    if installed() is None:
        pytest.skip("no chromium installed: apt-get install chromium")
    with chromium() as opened:
        yield opened
