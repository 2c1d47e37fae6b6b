"""When a run stops by itself: the limits of its alarms and of the reward-hacking monitor, as blocks of the YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
STRICT = ConfigDict(extra="forbid")


@dataclass(slots=True)
class Alarms:
    """Limits past which a run stops with exit code 3 and says why."""

    __pydantic_config__: ClassVar = STRICT
    mismatch_mean_abs: Annotated[float, Field(gt=0)] = 0.1
    """Largest mean absolute difference of log-probs between generator and trainer, in nats per token."""
    checker_broken_share: Share = 0.2
    """Largest share of rows whose checker failed and that therefore have no score."""
    rewritten_history_share: Share = 1.0
    """Largest share of episodes with tools whose history the chat template rewrites: each turn is a row of its own."""
    no_signal_steps: Positive = 20
    """Consecutive steps in which every group may have constant reward."""
    loss_abs: Annotated[float, Field(gt=0)] = 1e4
    """Largest absolute value of the loss."""


@dataclass(slots=True)
class Monitor:
    """A second, stricter score of some rollouts of each step; a null limit is recorded and never stops the run."""

    __pydantic_config__: ClassVar = STRICT
    strict: dict[str, dict[str, Any]] | None = None
    """Rewards of the second score; null: parts of weight 0, else the run's verifiers if the stage has others."""
    samples: Positive = 64
    """Rollouts per step that are scored a second time."""
    alarm: bool | None = None
    """Whether a limit stops the run; null: where there is a second score."""
    gap: NonNegative | None = 0.15
    """Largest rise of the training score minus the strict score, where both are verifiers' scores."""
    fall: NonNegative | None = 0.15
    """Largest fall of the strict score from its best value while the training score does not fall."""
    length_factor: Annotated[float, Field(gt=1)] | None = 4.0
    """Largest factor by which the mean completion length may grow or shrink from the baseline."""
    format_drop: Share | None = 0.3
    """Largest fall of the share of completions in the required format."""
    commonest_rise: Share | None = 0.4
    """Largest rise of the share of the most common completion."""
    duplicate_rise: Share | None = None
    """Largest rise of the share of duplicate completions."""
    window: Positive = 5
    """Steps over which each figure is averaged."""
    baseline: Positive = 5
    """First steps, which define the normal value of each figure."""


__all__ = ["STRICT", "Alarms", "Monitor", "NonNegative", "Positive", "Share"]
