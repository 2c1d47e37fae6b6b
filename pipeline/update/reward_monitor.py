"""The reward-hacking monitor in the loop: each step's rollouts get a second score. See rewards/monitor.py.

The second scores come with the rollouts (rewards.Composite.watched_by), so they are cached and resumed with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.records import Scored, merged_episodes
from pipeline.run import alarms
from rewards import MALFORMED
from rewards.monitor import Decision, MonitorHistory, MonitorLimits, Observation, commonest_share, duplicate_share


@dataclass(frozen=True, slots=True)
class RewardMonitor:
    """train: verifier part -> weight; empty: the reward itself, on a scale of its own. strict: the parts that give the
    second score; empty = no second score. alarm: stop the run, or only log the figures."""

    limits: MonitorLimits
    train: Mapping[str, float]
    strict: Sequence[str]
    alarm: bool

    def observe(self, monitor: MonitorHistory, scored: Sequence[Scored], step: int) -> dict[str, float]:
        """The figures of one step, for its log. Raises alarms.Alarm past a limit."""
        rows = merged_episodes(scored)
        observation = self.observation(rows)
        decision = monitor.observe(observation)
        if self.alarm and decision.tripped:
            alarms.check_monitor(decision.tripped, decision.reason + self.example(rows, decision), step)
        return self.figures(observation, decision)

    def observation(self, rows: Sequence[Scored]) -> Observation:
        pairs = [(self.train_score(s), self.strict_score(s)) for s in rows]
        both = [(train, strict) for train, strict in pairs if math.isfinite(train) and math.isfinite(strict)]
        texts = [s.rollout.text for s in rows]
        return Observation(
            train_scores=[train for train, _ in both],
            strict_scores=[strict for _, strict in both],
            lengths=[sum(s.rollout.mask) for s in rows],
            format_share=1.0 - malformed_share(rows),
            duplicate_share=duplicate_share(texts),
            commonest_share=commonest_share(texts),
        )

    def train_score(self, scored: Scored) -> float:
        """The mean of its verifiers' scores by weight, in [0, 1]; the reward where no verifier is trained on."""
        if not self.train:
            return scored.reward
        values = [(weight, scored.parts.get(name)) for name, weight in self.train.items()]
        total = math.fsum(weight for weight, _ in values)
        return math.fsum(w * (math.nan if v is None else v) for w, v in values) / total

    def strict_score(self, scored: Scored) -> float:
        values = [math.nan if (v := scored.parts.get(name)) is None else v for name in self.strict]
        return math.fsum(values) / len(values) if values else math.nan

    def figures(self, observation: Observation, decision: Decision) -> dict[str, float]:
        out = {
            "monitor_format": observation.format_share,
            "monitor_duplicates": observation.duplicate_share,
            "monitor_commonest": observation.commonest_share,
            "monitor_length_factor": decision.drift["length_factor"],
        }
        if observation.strict_scores:
            out["monitor_train"] = math.fsum(observation.train_scores) / len(observation.train_scores)
            out["monitor_strict"] = math.fsum(observation.strict_scores) / len(observation.strict_scores)
            out["monitor_fall"] = decision.drift["fall"]
        if observation.strict_scores and self.train:
            out["monitor_gap"] = out["monitor_train"] - out["monitor_strict"]
            out["monitor_gap_rise"] = decision.drift["gap_rise"]
        return out

    def example(self, rows: Sequence[Scored], decision: Decision) -> str:
        """The rollout of this step on which the two scores differ most."""
        pairs = [(self.train_score(s) - self.strict_score(s), s) for s in rows]
        differing = [(gap, s) for gap, s in pairs if math.isfinite(gap)]
        if decision.tripped not in ("gap", "fall") or not differing:
            return ""
        worst = max(differing, key=lambda pair: pair[0])[1]
        text = worst.rollout.text if len(worst.rollout.text) <= 60 else worst.rollout.text[:60] + "..."
        return (
            f". For example {text!r} to {worst.rollout.prompt.text[-60:]!r}: {self.train_score(worst):.2g} by what is "
            f"trained on, {self.strict_score(worst):.2g} by the second score"
        )


def malformed_share(rows: Sequence[Scored]) -> float:
    """By the second score if there is one: a learned reward does not judge the format."""
    second = [value for s in rows if (value := s.parts.get(MALFORMED)) is not None]
    values = second or [float(s.status == "malformed") for s in rows]
    return math.fsum(values) / max(len(values), 1)


__all__ = ["RewardMonitor"]
