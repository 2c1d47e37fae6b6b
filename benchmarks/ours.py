"""Our side of a step: the grpo stage as run by `python -m pipeline run`, including files and logs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gate import Gate
from benchmarks.judge_path import judge
from benchmarks.workload import Workload
from pipeline.config import load
from pipeline.records import Prompt, Scored
from pipeline.stages import policy, run_stage
from pipeline.stages.context import Context
from pipeline.stages.rollout_source import SampledRollouts

PHASES = ("rollout", "experience", "update", "sync")


def train(place: Path, work: Workload, gate: Gate, *, backend: str) -> None:
    """Run the stage; the gate opens each step."""
    os.chdir(place)
    cfg = load.load(place / "ours.yaml", [f"generate.backend={backend}"])
    waited: dict[str, float] = {}
    make_learner = policy.make_learner

    def make_judged(ctx: Context, forward: object) -> policy.Learner:
        learner = make_learner(ctx, forward)  # type: ignore[arg-type]
        if work.judge_every:
            gate.judge, gate.every = (lambda: judge(place, learner.model, work)), work.judge_every
        return learner

    class GatedRollouts(SampledRollouts):
        """Waits for the gate to open the step, then samples."""

        def sample_and_score(self, prompts: Sequence[Prompt], step: int, attempt: int) -> list[Scored]:
            note_phases(self.ctx.dir.path / "timing.jsonl", gate, waited.pop("s", 0.0))
            requested = time.perf_counter()
            gate.step()
            waited["s"] = time.perf_counter() - requested
            scored = super().sample_and_score(prompts, step, attempt)
            gate.note("tokens", sum(len(s.rollout.ids) for s in scored))
            gate.note("longest", max(len(s.rollout.ids) for s in scored))
            return scored

    policy.make_source, policy.make_learner = GatedRollouts, make_judged  # type: ignore[assignment]
    run_stage(cfg, "grpo")


def note_phases(timing: Path, gate: Gate, waited_s: float) -> None:
    """Note the last step's wall seconds by phase, as logged by the stage; its rollout phase includes the wait."""
    if timing.exists():
        last = json.loads(timing.read_text().splitlines()[-1])
        for name in PHASES:
            gate.note(f"phase_{name}", last[name] - (waited_s if name == "rollout" else 0.0))
