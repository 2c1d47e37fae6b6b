"""Registry of stage kinds: all that the rest of the code must know of a kind, stated once at its schema class.

A new kind is one class under `@stage_kind(...)`, with its keys and its `work` estimate, and one module with
`run(ctx) -> metrics`. The command line, `make help`, the plan, the lineage and the report read this registry.
Nothing heavy is imported, and no stage module either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pipeline.config.load import Config

C = TypeVar("C", bound=type)


@dataclass(frozen=True, slots=True)
class StageKind:
    """What one kind of stage is."""

    name: str
    schema: type
    """The dataclass of its block."""
    module: str
    """The module with `run(ctx)`."""
    summary: str = ""
    """One line for help texts; empty for a kind that only other stages start."""
    order: int = 75
    """Place among stages that could come next, in the report."""
    makes_policy: bool = False
    """Whether it leaves a policy in model/ that can be sampled from, exported and evaluated."""
    samples: bool = False
    """Whether it may sample completions to train on."""
    trl_config: str = ""
    """The config class of the TRL trainer that it uses, as module:Class; its `trainer:` block is checked against it."""
    several_processes: bool = False
    """Whether the processes of a torchrun launch share its work."""
    scores_by_run_rewards: bool = True
    """Whether it scores samples by the run's own `rewards:`."""
    reads_pairs: bool = False
    """Whether rows of its own `data:` are preference pairs, with columns chosen and rejected."""
    may_be_start: bool = False
    """Whether the report may count a run's gain from its policy."""
    compares_policies: bool = False
    """Whether it only evaluates policies of other stages, side by side."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Keys that it sets where the YAML is silent, beyond the defaults of its dataclass."""


KINDS: dict[str, StageKind] = {}


def stage_kind(module: str, **facts: Any) -> Callable[[C], C]:
    """Class decorator: registers a block's dataclass under the default of its field `kind`.

    facts: fields of StageKind. Raises ValueError for a class without a `kind`.
    """

    def register(schema: C) -> C:
        name = next((f.default for f in fields(schema) if f.name == "kind"), None)
        if not isinstance(name, str):
            raise ValueError(f"{schema.__name__}: a stage's dataclass needs a field like kind: str = 'my_stage'")
        KINDS[name] = StageKind(name, schema, module, **facts)
        return schema

    return register


def kind_of(cfg: Config, stage: str) -> StageKind:
    """The kind of a stage of this config. Raises ConfigError where the YAML has no such stage."""
    return KINDS[cfg.block(stage).kind]


def recorded_kind(name: str) -> StageKind:
    """The kind that a manifest names; one that is not registered here, of another version, has no facts."""
    return KINDS.get(name) or StageKind(name, object, "", may_be_start=True)


def policies_before(cfg: Config, stage: str) -> list[str]:
    """Names of the policy stages that the YAML runs before this one; all of them if it does not run it."""
    earlier = cfg.stages[: cfg.stages.index(stage)] if stage in cfg.stages else cfg.stages
    return [name for name in earlier if KINDS[cfg.blocks[name].kind].makes_policy]
