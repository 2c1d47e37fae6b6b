"""CPU time, wall time and sampled tokens until a policy reaches a held-out score: ours against TRL with either engine.

The workload is that of `step`: 64 completions with heavy-tailed lengths, 80 tokens on average and at most 256, and the
share of vowels as reward. All sides start from the same random model of 3.4M weights and use the same learning rate,
without a KL. Every few steps the same code evaluates them on unseen prompts; this is not counted. `learn_short` has
answers of five tokens.
"""

from __future__ import annotations

import contextlib
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.bench_worker import SideProcess
from benchmarks.workload import CHARACTERS, Workload, lay_out

SEEDS = (1, 2, 3)
HELDOUT = 32
WORK = Workload(steps=81, kl=0.0, learning_rate=1.5e-4, judge_every=3, judge_by="score")


@dataclass(frozen=True, slots=True)
class Race:
    """lay(place, work): writes the inputs of a side. gain: the target, as an increase of the held-out score."""

    work: Workload
    lay: Callable[[Path, Workload], None]
    sides: tuple[str, ...]
    gain: float


def run(rounds: int = len(SEEDS)) -> dict[str, Any]:
    """rounds: number of seeds to use."""
    races = [Race(replace(WORK, seed=seed), lay, ("ours", "trl_hf", "trl_vllm"), 0.25) for seed in SEEDS[:rounds]]
    return compared(races, "learn_vs_trl")


def lay(place: Path, work: Workload) -> None:
    lay_out(place, work)
    random = Random(1000 + work.seed)
    prompts = ["".join(random.choices(CHARACTERS[:60], k=work.prompt_tokens)) for _ in range(HELDOUT)]
    rows = [json.dumps({"prompt": prompt, "task": {}}) for prompt in prompts]
    (place / "heldout.jsonl").write_text("\n".join(rows) + "\n")


def compared(races: Sequence[Race], name: str) -> dict[str, Any]:
    """Medians over the races of TRL's better side over ours; `at_least` and `ours_missed`: the seeds with bounds."""
    ended = []
    for each in races:
        ended.append(race(each))
        print(json.dumps(ended[-1]), flush=True)

    def ratio(figure: str) -> float:
        return statistics.median(better(r["sides"], figure) for r in ended)

    return {
        "ratios": {name: ratio("cpu")},
        "wall_ratio": ratio("wall"),
        "token_ratio": ratio("tokens"),
        "gain": races[0].gain,
        "at_least": [r["seed"] for r in ended if not cheapest(r["sides"], ours=False)["reached"]],
        "ours_missed": [r["seed"] for r in ended if not cheapest(r["sides"], ours=True)["reached"]],
        "seeds": ended,
    }


def better(sides: dict[str, dict[str, Any]], figure: str) -> float:
    """TRL's best side over ours. A TRL side that never reached the target counts with what it had spent, so the ratio
    is a lower bound; if ours never reached it, the ratio is 0."""
    ours, theirs = (cheapest(sides, ours=own, figure=figure) for own in (True, False))
    return float(theirs[figure] / ours[figure]) if ours["reached"] else 0.0


def cheapest(sides: dict[str, dict[str, Any]], *, ours: bool, figure: str = "cpu") -> dict[str, Any]:
    """Of our sides the cheapest that reached the target, if any; of TRL's the cheapest, whether or not it did."""
    ways = [s for side, s in sides.items() if side.startswith("ours") is ours]
    return min(ways, key=lambda s: (ours and not s["reached"], s[figure]))


def race(each: Race) -> dict[str, Any]:
    """Run steps in turns until every side has reached the target."""
    work = each.work
    with contextlib.ExitStack() as open_:
        workers = [open_.enter_context(SideProcess(side, work, each.lay)) for side in each.sides]
        start = start_accuracy(Path(workers[0].folder.name), work)
        target = start + each.gain
        running, taken = list(workers), {side: list[dict[str, float]]() for side in each.sides}
        while running:
            for worker in tuple(running):
                figures = worker.step()
                taken[worker.side].append(figures)
                reached = figures.get("accuracy", 0.0) >= target
                if reached or len(taken[worker.side]) == work.steps - 1:
                    running.remove(worker)
    return {"seed": work.seed, "start": start, "target": target,
            "sides": {side: total(steps, target) for side, steps in taken.items()}}  # fmt: skip


def total(steps: Sequence[dict[str, float]], target: float) -> dict[str, Any]:
    curve = [round(s["accuracy"], 4) for s in steps if "accuracy" in s]
    sums = {name: sum(s[name] for s in steps) for name in ("wall", "cpu", "tokens")}
    return {**sums, "steps": len(steps), "reached": curve[-1] >= target, "curve": curve}


def start_accuracy(place: Path, work: Workload) -> float:
    from transformers import AutoModelForCausalLM

    from benchmarks.judge_path import judge

    return judge(place, AutoModelForCausalLM.from_pretrained(place / "model", dtype="float32"), work)
