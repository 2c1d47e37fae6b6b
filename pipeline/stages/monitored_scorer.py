"""What scores the rollouts of an RL stage: its own reward, and the second score of the reward-hacking monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import rewards
from pipeline.config.alarm_config import Monitor
from pipeline.config.load import Config
from pipeline.config.schema import Policy
from pipeline.distributed import ranks
from pipeline.stages.context import Context
from pipeline.update.reward_monitor import RewardMonitor
from rewards import MONITOR, Composite
from rewards.monitor import MonitorLimits


def scorer_and_monitor(ctx: Context) -> tuple[Composite, RewardMonitor | None]:
    """The monitor is None if the YAML says `monitor: null`."""
    block: Policy = ctx.block
    scorer = ctx.scorer_of(block.reward) if block.reward else ctx.scorer
    settings = block.monitor
    if settings is None:
        return scorer, None
    weights = scorer.verifier_weights
    train = {name: weight for name, weight in weights.items() if weight > 0}
    strict = [] if block.episodes is not None else [name for name, weight in weights.items() if weight == 0]
    second = second_rewards(ctx.cfg, block)
    if second is not None:
        strict = [MONITOR]
        scorer = scorer.watched_by(ctx.scorer_of(second), max(settings.samples // ranks.world(), 1))
    alarm = bool(strict) if settings.alarm is None else settings.alarm
    return scorer, RewardMonitor(limits_of(settings, same_scale=bool(train)), train, strict, alarm)


def second_rewards(cfg: Config, block: Policy) -> Mapping[str, Any] | None:
    """The second score's rewards: `monitor.strict`; else the run's own verifiers, if the stage has another reward with
    no part of weight 0 for monitoring. None if there is nothing to score twice."""
    settings = block.monitor
    if settings is None or block.episodes is not None:
        return None
    if settings.strict is not None:
        return settings.strict or None
    if block.reward is None or any(float((part or {}).get("weight", 1.0)) == 0 for part in block.reward.values()):
        return None
    gold = verifier_parts(cfg.rewards, cfg.verifier_dirs)
    return {n: p for n, p in gold.items() if n not in verifier_parts(block.reward, cfg.verifier_dirs)} or None


def verifier_parts(block: Mapping[str, Any], dirs: Sequence[str]) -> dict[str, Any]:
    """The parts of a rewards block that are verifiers with a positive weight."""
    parts = rewards.verifiers_of(block, dirs)
    return {name: part for name, _, part in parts if float(part.get("weight", 1.0)) > 0}


def limits_of(settings: Monitor, *, same_scale: bool) -> MonitorLimits:
    """The YAML's limits, without that of the gap if the two scores have different scales."""
    given = {each.name: getattr(settings, each.name) for each in fields(MonitorLimits) if hasattr(settings, each.name)}
    return MonitorLimits(**given | ({} if same_scale else {"gap": None}))


__all__ = ["scorer_and_monitor", "second_rewards"]
