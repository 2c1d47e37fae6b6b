"""When a run stops by itself: the limits of its alarms and of the hacking monitor, as blocks of the YAML."""

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
    """Past these a run stops with exit 3 and says why."""

    __pydantic_config__: ClassVar = STRICT
    mismatch_mean_abs: Annotated[float, Field(gt=0)] = 0.1
    checker_broken_share: Share = 0.2
    no_signal_steps: Positive = 20  # steps in a row without one group that teaches
    loss_abs: Annotated[float, Field(gt=0)] = 1e4


@dataclass(slots=True)
class Monitor:
    """A second, stricter look at an RL run; a limit that is null is watched and never trips. See rewards/monitor.py."""

    __pydantic_config__: ClassVar = STRICT
    # rewards; None: parts of weight 0, else the run's own verifiers where the stage earns something else
    strict: dict[str, dict[str, Any]] | None = None
    samples: Positive = 64  # rollouts a step that are scored a second time
    alarm: bool | None = None  # None: where there is a second score
    gap: NonNegative | None = 0.15  # rise of train - strict, where both are verifiers' scores
    fall: NonNegative | None = 0.15  # fall of strict from its best, while train does not fall
    length_factor: Annotated[float, Field(gt=1)] | None = 4.0
    format_drop: Share | None = 0.3
    commonest_rise: Share | None = 0.4
    duplicate_rise: Share | None = None
    window: Positive = 5  # steps a figure is the mean of
    baseline: Positive = 5  # first steps that say what is normal


__all__ = ["STRICT", "Alarms", "Monitor", "NonNegative", "Positive", "Share"]
