"""python -m benchmarks [NAME ...] [--rounds N]: measure, print a table, merge the ratios into results/latest.json."""

from __future__ import annotations

import argparse
import fcntl
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import machine, prepare_environment

NAMES = (
    "step", "long_prompt", "rollout", "scoring", "overlapped_scoring", "agent_loop", "learn", "learn_short", "sync",
    "trainers", "start", "memory", "scale", "large_data",
    "gpu",  # not run by default: for a machine with a GPU
    "real", "real_step", "real_update", "real_plan", "real_learn",  # not run by default: they need a model
)  # fmt: skip
LATEST = Path(__file__).parent / "results" / "latest.json"
# figure: (bound, True if higher is better)
TARGETS: dict[str, tuple[float, bool]] = {
    "step_vs_trl_hf": (2.2, True),
    "step_vs_trl_vllm": (2.0, True),
    "step_long_prompt_vs_trl_vllm": (3.0, True),
    "rollout_vs_vllm": (0.95, True),
    "score_overlap_overhead": (0.10, False),
    "pool_vs_subprocess": (10.0, True),
    "pool_vs_bwrap": (4.0, True),
    "judge_vs_subprocess": (2.0, True),
    "shell_vs_bwrap": (1.3, False),
    "tool_episodes_vs_subprocess": (5.0, True),
    "learn_vs_trl": (2.0, True),
    "learn_short_vs_trl": (2.0, True),
    "sync_vs_copy": (3.0, False),
    "real_sync_vs_copy": (4.0, False),
    "sft_vs_trl": (0.97, True),
    "reward_model_vs_trl": (0.97, True),
    "real_rollout_vs_bare": (2.0, True),
    "real_rollout_vs_slow_draw": (3.0, True),
    "real_step_vs_trl": (2.5, True),
    "real_memory_vs_trl": (0.6, False),
    "real_update_vs_floor": (0.5, True),
    "packed_sliding_vs_padded": (1.5, True),
    "real_plan_s": (30.0, False),
    "help_s": (0.5, False),
    "wrong_config_s": (1.5, False),
    "large_data_peak_mib": (1000.0, False),
    "memory_vs_trl": (0.7, False),
    "memory_large_vs_trl": (1.0, False),
    "memory_large_heavy_tail_vs_trl": (0.7, False),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all of them")
    parser.add_argument("--rounds", type=int, help="turns of each side; more is steadier")
    asked = parser.parse_args(arguments)
    unknown = sorted(set(asked.names) - set(NAMES))
    if unknown:
        print(f"no benchmark {unknown[0]!r}; have: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    prepare_environment()
    for name in asked.names or [name for name in NAMES if not name.startswith(("real", "gpu"))]:
        started = time.perf_counter()
        run = importlib.import_module(f"benchmarks.{name}").run
        takes_rounds = asked.rounds is not None and "rounds" in inspect.signature(run).parameters
        found = run(rounds=asked.rounds) if takes_rounds else run()
        merge(name, found)
        print(f"\n{name} ({time.perf_counter() - started:.0f} s)")
        print(table(found.get("ratios", {})))
        print(json.dumps({k: v for k, v in found.items() if k != "ratios"}, indent=1))
    return 0


def merge(name: str, found: Mapping[str, Any]) -> None:
    """Merge into latest.json: ratios in one table, details under the benchmark's name, each with its machine."""
    here = machine()
    ratios = {k: round(float(v), 4) for k, v in found.get("ratios", {}).items()}
    details = {k: v for k, v in found.items() if k != "ratios"}
    LATEST.parent.mkdir(exist_ok=True)
    folder = os.open(LATEST.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two benchmarks may finish at the same time
        known = json.loads(LATEST.read_text()) if LATEST.exists() else {"ratios": {}, "details": {}}
        merged = {
            "machine": here,
            "ratios": {**known["ratios"], **ratios},
            "details": {**known["details"], name: {"measured_on": here, **details}},
        }
        part = LATEST.with_suffix(".part")
        part.write_text(json.dumps(merged, indent=1) + "\n")
        part.replace(LATEST)
    finally:
        os.close(folder)


def table(ratios: Mapping[str, float]) -> str:
    lines = []
    for name, value in ratios.items():
        bound, more = TARGETS.get(name, (None, True))
        held = "" if bound is None else f"{'≥' if more else '≤'} {bound}  {_verdict(value, bound, more)}"
        lines.append(f"  {name:32} {value:9.3f}  {held}")
    return "\n".join(lines)


def _verdict(value: float, bound: float, more: bool) -> str:
    return "held" if (value >= bound if more else value <= bound) else "MISSED"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
