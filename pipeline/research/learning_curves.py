"""What stages cost to reach an accuracy, over the seeds of a run.

Reads what ordinary stages leave on disk: the evaluation passes in a policy stage's metrics.jsonl (`evaluate_every`),
the manifests, and the held-out samples of the run's `evaluate` stage. One line per stage, over runs/NAME/seed-*:

    python -m pipeline.research.learning_curves runs/dense target=0.6
    python -m pipeline.research.learning_curves runs/demonstrations demonstrations=true

target: held-out accuracy that counts as reached. demonstrations=true: for each stage shown_N, how many completions each
policy stage sampled to reach the accuracy that N demonstrations give.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json
from pipeline.run.manifest import read_manifest
from pipeline.stats import mean

SHOWN, START = "shown_", "model"  # model: the run's own start, as `evaluate` names it


@dataclass(frozen=True, slots=True)
class EvaluationPass:
    """What a policy stage had sampled, and what it was worth, after a step."""

    completions: int
    tokens: int
    accuracy: float
    own_reward: float


@dataclass
class Curve:
    """One stage under one seed. solutions: prompt -> distinct right answers among its held-out samples."""

    stage: str
    seed: str
    accuracy: float
    tokens: int
    length: float
    passes: list[EvaluationPass] = field(default_factory=list)
    solutions: dict[str, set[str]] = field(default_factory=dict)


def read_run(directory: Path) -> list[Curve]:
    """The curves of every policy stage in a seed's run."""
    out = []
    solutions = solutions_by_policy(directory / "evaluate" / "rollouts.jsonl")
    judged = {row["policy"]: row for row in _metrics(directory / "evaluate").get("policies", [])}
    if (start := judged.get(START)) is not None:
        out.append(Curve(START, directory.name, start["heldout_accuracy"], 0, start["mean_completion_tokens"]))
        out[0].solutions = solutions.get(START, {})
    for stage in sorted(directory.iterdir()):
        metrics = _metrics(stage)
        if "heldout_accuracy" not in metrics or stage.name == "evaluate":
            continue
        manifest = read_manifest(stage / "manifest.json") or {}
        figures = judged.get(stage.name, metrics)
        curve = Curve(stage.name, directory.name, figures["heldout_accuracy"], manifest["tokens"]["completion"],
                      figures["mean_completion_tokens"])  # fmt: skip
        curve.passes = passes_of(stage / "metrics.jsonl", manifest["config"]["stage"])
        curve.solutions = solutions.get(stage.name, {})
        out.append(curve)
    return out


def _metrics(stage: Path) -> Mapping[str, Any]:
    manifest = read_manifest(stage / "manifest.json") if (stage / "manifest.json").is_file() else None
    metrics: Mapping[str, Any] = manifest["metrics"] if manifest is not None else {}
    return metrics


def passes_of(path: Path, block: Mapping[str, Any]) -> list[EvaluationPass]:
    """The evaluation passes of a policy stage with this block, in order; none for a stage that samples nothing."""
    tokens, completions, out = 0, 0, []
    for row in _rows(path):
        if "tokens" not in row or "reward_mean" not in row:
            continue
        tokens += int(row["tokens"])
        completions += block["prompts"] * block["samples"] * int(row.get("batches_sampled", 1))
        if "heldout_accuracy" in row:
            out.append(EvaluationPass(completions, tokens, row["heldout_accuracy"], row["reward_mean"]))
    return out


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open() as lines:
            yield from map(json.loads, lines)


def solutions_by_policy(path: Path) -> dict[str, dict[str, set[str]]]:
    """Policy -> prompt -> distinct answers that pass, from the rollouts of an `evaluate` stage."""
    out: dict[str, dict[str, set[str]]] = {}
    for row in _rows(path):
        answers = out.setdefault(row["policy"], {}).setdefault(row["prompt"], set())
        if row["status"] == "pass":
            answers.add(row["completion"].strip())
    return out


def first_reaching(passes: Sequence[EvaluationPass], target: float) -> EvaluationPass | None:
    """The first evaluation pass at which the target accuracy is reached."""
    return next((one for one in passes if one.accuracy >= target), None)


def completions_at(passes: Sequence[EvaluationPass], accuracy: float, *, start: float) -> float | None:
    """Completions sampled when the curve first reaches an accuracy, between two passes by a straight line.

    start: accuracy before the first step. None where the curve never reaches it; 0 where the start does.
    """
    if start >= accuracy:
        return 0.0
    before, at = start, 0
    for one in passes:
        if one.accuracy >= accuracy:
            return at + (one.completions - at) * (accuracy - before) / (one.accuracy - before)
        before, at = one.accuracy, one.completions
    return None


def lines_of(curves: Sequence[Curve], target: float) -> list[dict[str, Any]]:
    """One line per stage: means over seeds.

    tokens_to_target: mean over the seeds that reach it, with how many do. solutions: distinct right answers per
    held-out prompt, in one seed's samples and in those of all seeds together. own_reward: rise of the reward that it
    trains on, from its first to its last evaluation pass. fall: how far accuracy ends below its best pass.
    """
    out = []
    for stage in dict.fromkeys(curve.stage for curve in curves):
        own = [curve for curve in curves if curve.stage == stage]
        reached = [one.tokens for c in own if (one := first_reaching(c.passes, target)) is not None]
        trained = [c.passes for c in own if c.passes]
        prompts = sorted({prompt for c in own for prompt in c.solutions})
        union = [len(set().union(*(c.solutions.get(prompt, set()) for c in own))) for prompt in prompts]
        out.append({
            "stage": stage, "accuracy": mean([c.accuracy for c in own]),
            "range": [min(c.accuracy for c in own), max(c.accuracy for c in own)], "seeds": len(own),
            "tokens": mean([c.tokens for c in own]),
            "tokens_to_target": mean(reached) if reached else None, "reached": len(reached),
            "length": mean([c.length for c in own]),
            "solutions_one_seed": mean([mean([len(s) for s in c.solutions.values()]) for c in own if c.solutions]),
            "solutions_all_seeds": mean(union),
            "own_reward_rise": mean([p[-1].own_reward - p[0].own_reward for p in trained]),
            "fall": mean([max(one.accuracy for one in p) - p[-1].accuracy for p in trained]),
        })  # fmt: skip
    return out


def replacement(curves: Sequence[Curve], *, start: str = START) -> list[dict[str, Any]]:
    """Per policy stage and stage shown_N: completions sampled to reach that accuracy, and per demonstration."""
    out = []
    by_name: dict[tuple[str, str], Curve] = {(curve.stage, curve.seed): curve for curve in curves}
    shown = sorted({c.stage for c in curves if c.stage.startswith(SHOWN)}, key=lambda n: int(n.removeprefix(SHOWN)))
    sampled = sorted({c.stage for c in curves if c.passes})
    for stage in shown:
        count, seeds = int(stage.removeprefix(SHOWN)), [c.seed for c in curves if c.stage == stage]
        line: dict[str, Any] = {"demonstrations": count,
                                "accuracy": mean([by_name[stage, seed].accuracy for seed in seeds])}  # fmt: skip
        for policy in sampled:
            needed = [
                completions_at(by_name[policy, seed].passes, by_name[stage, seed].accuracy,
                               start=by_name[start, seed].accuracy) for seed in seeds
            ]  # fmt: skip
            known = [n for n in needed if n is not None]
            line[policy] = mean(known) / count if len(known) == len(needed) else None
            line[f"{policy}_reached"] = len(known)
        out.append(line)
    return out


def main(words: Sequence[str]) -> int:
    try:
        directory, options = _arguments(words)
        curves = [curve for run in _runs(directory) for curve in read_run(run)]
        if not curves:
            raise ConfigError([f"{directory}: no finished policy stage in it or in its seed-* directories"])
    except ConfigError as exc:
        print("\n".join(exc.mistakes), file=sys.stderr)
        return 2
    table = lines_of(curves, float(options.get("target", "0.6")))
    console.show_table(table, list(table[0]))
    report: dict[str, Any] = {"lines": table}
    if options.get("demonstrations") == "true":
        report["replacement"] = replacement(curves)
        console.show_table(report["replacement"], list(report["replacement"][0]))
    atomic_write(directory / "learning_curves.json", dump_json(report, indent=1) + "\n")
    return 0


def _arguments(words: Sequence[str]) -> tuple[Path, dict[str, str]]:
    usage = "usage: python -m pipeline.research.learning_curves RUN_DIR [target=0.6] [demonstrations=true]"
    pairs = [word.partition("=") for word in words[1:]]
    if not words or any(key not in ("target", "demonstrations") or not value for key, _, value in pairs):
        raise ConfigError([usage])
    options = {key: value for key, _, value in pairs}
    try:
        float(options.get("target", "0"))
    except ValueError as exc:
        raise ConfigError([f"target={options['target']}: not a number; {usage}"]) from exc
    if not Path(words[0]).is_dir():
        raise ConfigError([f"{words[0]}: no such directory; {usage}"])
    return Path(words[0]), options


def _runs(directory: Path) -> list[Path]:
    """The runs of all seeds, or the directory itself if it is a single run."""
    return sorted(directory.glob("seed-*")) or [directory]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
