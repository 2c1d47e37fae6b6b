"""Checks that stop a run: each raises Alarm with what is wrong, and the process ends with exit code 3."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.config.alarm_config import Alarms
from pipeline.config.errors import Alarm


def check_canary(gap: float, tolerance: float, step: int) -> None:
    """Promise 3: after a sync, generator and trainer hold the same weights."""
    if not gap <= tolerance:  # also true of NaN
        raise Alarm(
            f"step {step}: after the weight sync the generator's log-probs of likely tokens differ from the trainer's "
            f"by {gap:.3g} on average (tolerance {tolerance:.3g}): the generator is stale or misses a tensor"
        )


def check_mismatch(mean_abs: float, limit: float, step: int) -> None:
    """Promise 2: what was sampled is what is trained on."""
    if not mean_abs <= limit:
        raise Alarm(
            f"step {step}: log-probs of the sampled tokens differ between generator and trainer by {mean_abs:.3g} on "
            f"average (limit {limit:.3g}): the sampling distribution is not the one in the loss; check temperature, "
            "top_p, top_k, and that the generator was synced"
        )


def check_reference(kl: float, tolerance: float) -> None:
    """Promise 3: reference = policy at step 0."""
    if not abs(kl) <= tolerance:
        raise Alarm(
            f"step 0: KL of policy to reference is {kl:.3g}, not 0: the reference is another model than the start"
        )


def check_checkers(broken_share: float, limit: float, step: int, detail: str) -> None:
    """Promise 5: a broken checker is not a wrong answer."""
    if broken_share > limit:
        raise Alarm(f"step {step}: {broken_share:.0%} of the samples could not be scored (limit {limit:.0%}): {detail}")


def check_rewritten(share: float, limit: float, step: int) -> None:
    """Promise 1: a turn's prompt is what the template renders; what was sampled is never tokenized again."""
    if share > limit:
        raise Alarm(
            f"step {step}: the chat template rewrites the history of {share:.0%} of the episodes (limit {limit:.0%}), "
            "so their turns are rows of their own: it drops earlier thinking, or writes calls otherwise than the policy"
        )


def check_finite(name: str, value: float, step: int, limit: float = math.inf) -> None:
    """Promise 7: a NaN would spoil the training silently."""
    if not math.isfinite(value):
        raise Alarm(f"step {step}: {name} is {value}; lower the learning rate or check the rewards of this step")
    if abs(value) > limit:
        raise Alarm(f"step {step}: {name} is {value:.3g}, past the limit {limit:.3g}: training has exploded")


def check_signal(steps_without: int, limit: int, step: int, rewards: Sequence[float]) -> None:
    """Promise 7: a step in which every group has constant reward has no gradient."""
    if steps_without >= limit:
        last = f"all are {rewards[0]:.3g}" if len(set(rewards)) == 1 else "they differ between groups only"
        raise Alarm(
            f"step {step}: every group had constant reward for {steps_without} consecutive steps ({last}): the task is "
            "too easy or too hard for this policy, or the reward does not distinguish answers"
        )


def check_masked(tokens: int, step: int) -> None:
    if tokens == 0:
        raise Alarm(f"step {step}: no token left to train on: every row is masked (truncated, or not scorable)")


MONITORED = {"length": "length_factor", "format": "format_drop", "commonest": "commonest_rise",
             "duplicates": "duplicate_rise"}  # fmt: skip


def check_monitor(tripped: str, reason: str, step: int) -> None:
    """The policy improves on its reward and not on its task. tripped: the figure past its limit."""
    key = MONITORED.get(tripped, tripped)
    raise Alarm(f"step {step}: {tripped}: {reason} (limit: monitor.{key}; null reports without stopping)")


__all__ = [
    "Alarm",
    "Alarms",
    "check_canary",
    "check_checkers",
    "check_finite",
    "check_masked",
    "check_mismatch",
    "check_monitor",
    "check_reference",
    "check_rewritten",
    "check_signal",
]
