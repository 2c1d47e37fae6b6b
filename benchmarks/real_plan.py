"""Seconds of `plan` of the chain on a real pretrained model (configs/real), all of it, in a process of its own.

`cpu_seconds` is the CPU time of that process and of its trial.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.real_model import fetch

CONFIG = Path(__file__).parents[1] / "configs" / "real" / "pipeline.yaml"


def run(rounds: int = 1) -> dict[str, Any]:
    path = os.environ.get("MODEL") or str(fetch())
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    seconds, cpu = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable,
                "-m",
                "pipeline",
                "plan",
                str(CONFIG),
                f"model.path={path}",
                f"runs_dir={folder}",
            ]
            started, before = time.perf_counter(), children_cpu_s()
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            seconds.append(time.perf_counter() - started)
            cpu.append(children_cpu_s() - before)
    return {
        "ratios": {"real_plan_s": min(seconds)},
        "seconds": seconds,
        "cpu_seconds": cpu,
        "plan": output.splitlines()[-2:],
    }


def children_cpu_s() -> float:
    """CPU seconds of all processes that this one has started and that have ended, theirs included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
