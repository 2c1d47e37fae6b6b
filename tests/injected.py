"""A process that forks stages with an injected fault: `python tests/injected.py`, driven by pipeline.cli.chaos.Server.

A fault is a function that patches something in the child before the stage starts.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from pipeline.cli import chaos
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.models import models
from pipeline.run import files, stage_dir
from pipeline.run.checkpoints import Checkpoints
from pipeline.run.stage_logs import StageLogs


def after(calls: int, real: Callable[..., Any], fault: Callable[[], None], *, times: int = 1) -> Callable[..., Any]:
    """`real`, but the `times` calls after the first `calls` run `fault` first."""
    count = 0

    def spoiled(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if calls < count <= calls + times:
            fault()
        return real(*arguments, **options)

    return spoiled


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/r/grpo")


def read_only() -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), "runs/r/grpo")


def no_space_says_safetensors() -> None:
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def engine_died() -> None:
    raise RuntimeError("EngineDeadError: the engine core died in the middle of a batch")


def generator_dies(calls: int, times: int) -> None:
    real = TransformersGenerator._batch
    TransformersGenerator._batch = after(calls, real, engine_died, times=times)  # type: ignore[method-assign]


def log_is_full(calls: int) -> None:
    real = StageLogs.append
    StageLogs.append = after(calls, real, no_space, times=99)  # type: ignore[method-assign]


def log_turns_read_only(calls: int) -> None:
    real = StageLogs.append
    StageLogs.append = after(calls, real, read_only, times=99)  # type: ignore[method-assign]


def checkpoint_is_full(calls: int) -> None:
    real = Checkpoints.seal
    Checkpoints.seal = after(calls, real, no_space, times=99)  # type: ignore[method-assign]


def model_is_full(calls: int) -> None:
    models.save = after(calls, models.save, no_space_says_safetensors, times=99)


def manifest_is_full() -> None:
    real = files.atomic_write

    def write(path: Path, data: str | bytes) -> None:
        if path.name == "manifest.json":
            no_space()
        real(path, data)

    stage_dir.atomic_write = write


def clock_jumps() -> None:
    """Every reading of the wall clock is a random time in the last fifty years."""
    real, jump = time.time, random.Random(0)
    time.time = lambda: real() - jump.uniform(0, 1.5e9)


FAULTS: dict[str, Callable[..., None]] = {
    "generator_dies": generator_dies,
    "log_is_full": log_is_full,
    "log_turns_read_only": log_turns_read_only,
    "checkpoint_is_full": checkpoint_is_full,
    "model_is_full": model_is_full,
    "manifest_is_full": manifest_is_full,
    "clock_jumps": clock_jumps,
}


def prepare(request: Mapping[str, Any]) -> None:
    if request.get("fault"):
        FAULTS[request["fault"]](*request.get("given", []))


if __name__ == "__main__":
    chaos.serve("transformers", prepare)
