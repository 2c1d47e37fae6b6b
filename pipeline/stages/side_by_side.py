"""`run ... workers=2`: the stages of a run, or of one run per seed, in several processes, parents first.

A stage depends on its parents' outputs and its own seed alone, so the files are the same bytes as one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.load import Config, ConfigError
from pipeline.config.registry import KINDS
from pipeline.config.stage_graph import ONE_PLACE, RUNS_OTHERS, ancestors
from pipeline.config.work import Data
from pipeline.distributed import ranks
from pipeline.run import console, trackers
from pipeline.stages.comparison.stage_pool import PooledStage, log_of, run_parts


def run_side_by_side(cfgs: Sequence[Config], workers: int, reports: Mapping[str, trackers.Listener]) -> None:
    """Bring the stages of all runs up to date, `workers` at once. reports: run -> its report, called
    every second while a stage of it trains.

    Their output appears line by line after the stage's name, and stays in runs/NAME/logs. Raises ConfigError where
    several processes would share the weights of one server, and under torchrun.
    """
    cfg = cfgs[0]
    words = f"workers={workers} on the command line:"
    if ranks.world() > 1:
        raise ConfigError([f"{words} torchrun gives every stage all of its processes; leave workers out"])
    if cfg.generate.backend in ONE_PLACE:
        raise ConfigError([f"{words} {workers} stages would send their weights to one place, for generate.backend is "
                           f"{cfg.generate.backend}; leave workers out"])  # fmt: skip
    logs = (cfg.run_dir if len(cfgs) == 1 else cfg.run_dir.parent) / "logs"
    output = LabelledOutput(several_runs=len(cfgs) > 1)

    def follow(part: PooledStage, log: Path) -> None:
        output.show(part, log)
        if (part.cfg.run_dir / part.name / "metrics.jsonl").is_file():
            reports[part.cfg.run]({})

    parts = longest_first(stages_of(cfgs))
    output.skip([log_of(part, logs) for part in parts])
    run_parts(parts, workers=workers, logs=logs, follow=follow)


def stages_of(cfgs: Sequence[Config]) -> list[PooledStage]:
    """The stages of ordinary runs. A stage waits for those that it needs, and for all before it where its block names
    none: an `evaluate` without `policies`, a comparison."""
    out = []
    for cfg in cfgs:
        for number, name in enumerate(cfg.stages):
            before = cfg.stages[:number]
            needed = before if takes_all_before(cfg.blocks[name]) else [n for n in ancestors(cfg, name) if n in before]
            out.append(PooledStage(cfg, name, after=[(cfg.run, n) for n in needed]))
    return out


def takes_all_before(block: Any) -> bool:
    return block.kind in RUNS_OTHERS or (KINDS[block.kind].compares_policies and not getattr(block, "policies", None))


def longest_first(parts: Sequence[PooledStage]) -> list[PooledStage]:
    """The order in which they start where several could: by the work of a stage and of the longest chain after it, so
    that no long stage is left for the end, when it would run alone."""
    after = {part.key: [other.key for other in parts if part.key in other.after] for part in parts}
    work = {part.key: rough_work(part) for part in parts}
    chains: dict[tuple[str, str], float] = {}

    def chain(key: tuple[str, str]) -> float:
        if key not in chains:
            chains[key] = work[key] + max(map(chain, after[key]), default=0.0)
        return chains[key]

    return sorted(parts, key=lambda part: -chain(part.key))


def rough_work(part: PooledStage) -> float:
    """Rows that the stage trains on, where one that it samples counts as three. The data's own counts do not matter."""
    block = part.cfg.blocks[part.name]
    if not hasattr(block, "work"):
        return 1.0
    work = block.work(part.name, part.cfg, SOME_DATA)
    return 1.0 + work.steps * work.batch * work.passes + 3 * (work.samples + work.judged)


SOME_DATA = Data(rows=1000, train_prompts=500, heldout_prompts=100, prompt_tokens=(10.0, 10, 10),
                 completion_tokens=(10.0, 10, 10), dropped=0.0, truncated=0.0)  # fmt: skip


@dataclass(slots=True)
class LabelledOutput:
    """Prints the complete lines that are new in the stages' log files."""

    several_runs: bool
    shown: dict[Path, int] = field(default_factory=dict)  # bytes

    def skip(self, logs: Sequence[Path]) -> None:
        """What an earlier attempt printed."""
        self.shown |= {log: log.stat().st_size for log in logs if log.is_file()}

    def show(self, part: PooledStage, log: Path) -> None:
        if not log.is_file():  # the process is still importing
            return
        with log.open("rb") as lines:
            lines.seek(self.shown.get(log, 0))
            text = lines.read()
        text = text[: text.rfind(b"\n") + 1]
        self.shown[log] = self.shown.get(log, 0) + len(text)
        label = part.label if self.several_runs else part.name
        for line in text.decode("utf-8", "replace").splitlines():
            console.say(f"{label} | {line}")


__all__ = ["LabelledOutput", "run_side_by_side", "stages_of"]
