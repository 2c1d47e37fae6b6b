"""How long the command line takes to respond: `--help`, a config with an error, and the first step of a stage."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.workload import Workload, lay_out

TINY = Workload(hidden_size=64, intermediate_size=192, layers=2, heads=2, max_tokens=16, steps=1)


def run(rounds: int = 5) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lay_out(place, TINY)
        config = str(place / "ours.yaml")
        asked = {
            "python": (["-c", "pass"], 0),
            "help": (["-m", "pipeline", "--help"], 0),
            "wrong_config": (["-m", "pipeline", "run", config, "grpo.lerning_rate=1"], 2),
        }
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, (arguments, code) in asked.items():
                taken[name].append(spent(arguments, code))
    middle = {n: {k: statistics.median(v[k] for v in values) for k in values[0]} for n, values in taken.items()}
    return {
        "ratios": {"help_s": middle["help"]["cpu"], "wrong_config_s": middle["wrong_config"]["cpu"]},
        "seconds": middle,
    }


def spent(arguments: Sequence[str], code: int) -> dict[str, float]:
    """Wall and CPU seconds of one Python command. Raises AssertionError unless it ends with `code`."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    found = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.returncode == code, f"{arguments}: exit {found.returncode}\n{found.stderr[-1000:]}"
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.perf_counter() - wall, "cpu": cpu}
