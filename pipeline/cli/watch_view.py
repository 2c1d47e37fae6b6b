"""The files of a run, complete or being written -> what `watch` shows. Reads, and never writes or locks."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError, nearest
from pipeline.report.collect import Stage, is_stage, parents_first, read_stage, runs_of_seeds, tail_rows
from pipeline.report.rollouts import expected_of
from pipeline.run import lock
from pipeline.run.manifest import read_manifest
from pipeline.stats import is_number

TAIL = 512 << 10  # bytes of rollouts.jsonl that are read for the newest samples
# figure -> what it is called; those that a stage logs are shown, in this order
FIGURES = {
    "reward_mean": "reward", "heldout_accuracy": "held-out accuracy", "validation_accuracy": "validation accuracy",
    "validation_reward": "validation reward", "kl_sequence": "KL, nats per completion", "kl_k3": "KL, nats per token",
    "heldout_kl": "KL from the start, nats", "entropy": "entropy, nats per token", "length_mean": "length, tokens",
    "truncated": "truncated", "groups_with_signal": "groups with signal", "loss": "loss",
    "mean_token_accuracy": "token accuracy", "accuracy": "pair accuracy", "margin": "margin of the chosen",
    "grad_norm": "gradient norm",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class AlarmDistance:
    """How near a figure is to the limit at which the run stops. share: of the way there, 0 to 1 and beyond."""

    name: str
    now: float
    limit: float
    share: float
    stops: bool = True
    """False: reported only."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    prompt: str
    completion: str
    expected: str
    status: str
    reward: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class View:
    """A run at one instant. stages: (name, accuracy or None, complete) of each. curves: figure -> values by step."""

    name: str
    alive: bool
    stages: list[tuple[str, float | None, bool]]
    stage: str
    step: int
    steps: int | None
    seconds_per_step: float | None
    age_s: float | None
    """Seconds since the stage wrote a step."""
    curves: dict[str, list[float]]
    alarms: list[AlarmDistance]
    samples: list[ShownSample]
    sampled_at: str = ""
    alarm: str | None = None
    """The alarm that stopped the stage."""


def read(run: Path, stage: str | None = None, *, samples: int = 4, now: Callable[[], float] = time.time) -> View:
    """The run at `run` (a run, one stage of it, or a run of several seeds). stage: the one to show; None: the newest.

    Raises ConfigError where there is no run, or no such stage.
    """
    run, stage = _place(run, stage)
    stages = [read_stage(path) for path in sorted(run.iterdir()) if is_stage(path) or (path / "begun.json").is_file()]
    if not stages:
        raise ConfigError([f"{run}: no stage has begun in it"])
    stages = parents_first(stages)
    shown = _chosen(stages, stage)
    block = shown.block or (read_manifest(shown.path / "begun.json") or {}).get("config", {}).get("stage", {})
    rows = [row for row in shown.metrics if is_number(row.get("step"))]
    rows = [row for row in rows if row.get("part") == rows[-1].get("part")]  # of a stage in parts: the part under way
    newest, at = newest_samples(shown.path / "rollouts.jsonl", samples)
    last = shown.path / "metrics.jsonl"
    return View(
        name=str(run),
        # a comparison holds the directory above its runs
        alive=any(lock.holder(directory) is not None for directory in (run, run.parent)),
        stages=[(s.name, s.figures.get("heldout_accuracy"), s.manifest is not None) for s in stages],
        stage=shown.name + (f", {rows[-1]['part']}" if rows and rows[-1].get("part") else ""),
        step=int(rows[-1]["step"]) if rows else 0,
        steps=steps_of(block),
        seconds_per_step=seconds_per_step(shown.timing),
        age_s=now() - last.stat().st_mtime if last.is_file() else None,
        curves={n: values for n in FIGURES if (values := [float(r[n]) for r in rows if is_number(r.get(n))])},
        alarms=distances(rows, block, shown.figures),
        samples=newest,
        sampled_at=at,
        alarm=shown.alarm,
    )


def _place(run: Path, stage: str | None) -> tuple[Path, str | None]:
    """The run's directory and the stage to show, whichever of them was named."""
    if not run.is_dir():
        raise ConfigError([f"{run}: no such run directory; a run is in runs/NAME, where NAME is the YAML's `run`"])
    if is_stage(run) or (run / "begun.json").is_file():
        return run.parent, run.name
    table = runs_of_seeds(run)
    seeds = sorted(path for path in run.glob("seed-*") if path.is_dir())
    if seeds and not any(is_stage(path) for path in run.iterdir() if path.is_dir()):
        alive = [path for path in seeds if lock.holder(path) is not None]
        return max(alive or seeds, key=_written), stage
    return (run / table["runs"][0], stage) if table else (run, stage)


def _written(directory: Path) -> float:
    """When a log below it was last written."""
    return max((path.stat().st_mtime for path in directory.glob("*/metrics.jsonl")), default=0.0)


def _chosen(stages: Sequence[Stage], name: str | None) -> Stage:
    """The stage of that name, else the one under way, else the last one that logged steps."""
    names = [stage.name for stage in stages]
    if name is not None:
        if name not in names:
            raise ConfigError([f"watch: no stage {name!r} in this run{nearest(name, names)}"])
        return stages[names.index(name)]
    unfinished = [stage for stage in stages if stage.manifest is None]
    logged = [stage for stage in stages if stage.metrics]
    newest = max(unfinished or logged or stages, key=lambda s: s.path.stat().st_mtime)
    return newest if unfinished else (logged or stages)[-1]


def steps_of(block: Mapping[str, Any]) -> int | None:
    trainer = block.get("trainer") or {}
    found = block.get("steps") or trainer.get("max_steps")
    return int(found) if is_number(found) and found > 0 else None


def seconds_per_step(timing: Sequence[Mapping[str, Any]], window: int = 20) -> float | None:
    """Mean wall time of the last steps; None before the second. A resumed run's clock continues where it stopped."""
    times = [row["elapsed_s"] for row in timing if is_number(row.get("elapsed_s"))][-window:]
    gaps = [later - before for before, later in itertools.pairwise(times) if later > before]
    return math.fsum(gaps) / len(gaps) if gaps else None


# --- alarms -----------------------------------------------------------------------------------------------------------


def distances(
    rows: Sequence[Mapping[str, Any]], block: Mapping[str, Any], figures: Mapping[str, Any]
) -> list[AlarmDistance]:
    """Every alarm of a policy stage with its newest figure, nearest to its limit first. Empty for other stages.

    rows: lines of metrics.jsonl. block: the stage's settings. figures: its manifest's, where it is complete.
    """
    limits = block.get("alarms")
    if not rows or not isinstance(limits, Mapping):
        return []
    out = list(_loop_alarms(rows, block, limits, figures)) + list(_monitor_alarms(rows, block.get("monitor") or {}))
    return sorted(out, key=lambda alarm: -alarm.share)


def _loop_alarms(
    rows: Sequence[Mapping[str, Any]], block: Mapping[str, Any], limits: Mapping[str, Any], figures: Mapping[str, Any]
) -> Iterator[AlarmDistance]:
    last = rows[-1]
    canary = last.get("canary_limit", figures.get("canary_tolerance"))
    shares = [("generator and trainer after a sync", "canary_max_abs", canary),
              ("generator and trainer on the samples", "mismatch_mean_abs", limits.get("mismatch_mean_abs")),
              ("checkers broken", "checker_broken", limits.get("checker_broken_share")),
              ("histories rewritten", "rewritten_history", limits.get("rewritten_history_share"))]  # fmt: skip
    for name, figure, limit in shares:
        if is_number(last.get(figure)) and is_number(limit):
            yield AlarmDistance(name, last[figure], limit, last[figure] / limit if limit else 0.0)
    losses = [abs(last[n]) for n in ("policy_loss", "value_loss", "ptx_loss") if is_number(last.get(n))]
    if losses and is_number(limits.get("loss_abs")):
        yield AlarmDistance("largest loss", max(losses), limits["loss_abs"], max(losses) / limits["loss_abs"])
    if (block.get("credit") or {}).get("kind") in ("group", "leave_one_out") and limits.get("no_signal_steps"):
        silent = next((n for n, row in enumerate(reversed(rows)) if row.get("groups_with_signal") != 0), len(rows))
        yield AlarmDistance("steps without a signal", silent, limits["no_signal_steps"],
                            silent / limits["no_signal_steps"])  # fmt: skip


def _monitor_alarms(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Iterator[AlarmDistance]:
    """The reward-hacking monitor's figures, averaged over its window and against its first steps as it does itself."""
    last = rows[-1]
    stops = settings.get("alarm")
    stops = any(is_number(row.get("monitor_strict")) for row in rows) if stops is None else bool(stops)
    for name, figure, key in (("rise of reward over second score", "monitor_gap_rise", "gap"),
                              ("fall of the second score", "monitor_fall", "fall")):  # fmt: skip
        if is_number(last.get(figure)) and settings.get(key):
            yield AlarmDistance(name, last[figure], settings[key], max(last[figure], 0.0) / settings[key], stops)
    factor, most = last.get("monitor_length_factor"), settings.get("length_factor")
    if is_number(factor) and factor > 0 and most:
        yield AlarmDistance("length, times the first", factor, most, abs(math.log(factor)) / math.log(most), stops)
    window, baseline = int(settings.get("window") or 5), int(settings.get("baseline") or 5)
    for name, figure, key, sign in (("fall of the format share", "monitor_format", "format_drop", -1),
                                    ("rise of the commonest answer", "monitor_commonest", "commonest_rise", 1),
                                    ("rise of duplicates", "monitor_duplicates", "duplicate_rise", 1)):  # fmt: skip
        values = [row[figure] for row in rows if is_number(row.get(figure))]
        if values and settings.get(key):
            moved = sign * (_mean(values[-window:]) - _mean(values[:baseline]))
            yield AlarmDistance(name, moved or 0.0, settings[key], max(moved, 0.0) / settings[key], stops)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# --- samples ----------------------------------------------------------------------------------------------------------


def newest_samples(path: Path, count: int) -> tuple[list[ShownSample], str]:
    """Samples of the newest step and which step it was: failures, the highest rewards first, and one that passed.

    Of different prompts while there are enough.
    """
    rows = tail_rows(path, size=TAIL) if count else []
    if not rows:
        return [], ""
    key = next((name for name in ("step", "round", "policy") if name in rows[-1]), None)
    newest = [row for row in rows if key is None or row.get(key) == rows[-1][key]]
    failed, passed = (_one_per_prompt([row for row in newest if (row.get("status") == "pass") is right])
                      for right in (False, True))  # fmt: skip
    chosen = failed[: count - 1] + passed[:1] + failed[count - 1 :] + passed[1:]
    value = rows[-1].get(key or "")
    at = "" if key is None else f"{key} {value + 1 if is_number(value) else value}"  # logged steps count from 1
    return [_sample(row) for row in chosen[:count]], at


def _one_per_prompt(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By falling reward, first one row of each prompt, then the others."""
    ranked = sorted(rows, key=lambda row: -(row.get("reward") or 0.0))
    first: dict[str, dict[str, Any]] = {}
    for row in ranked:
        first.setdefault(str(row.get("prompt")), row)
    return [*first.values(), *(row for row in ranked if row is not first[str(row.get("prompt"))])]


def _sample(row: Mapping[str, Any]) -> ShownSample:
    return ShownSample(str(row.get("prompt", "")), str(row.get("completion", "")), expected_of(row.get("task")),
                  str(row.get("status", "")), row.get("reward"), str(row.get("detail") or ""))  # fmt: skip


__all__ = ["AlarmDistance", "ShownSample", "View", "distances", "newest_samples", "read"]
