"""Rewards: turn a batch of rollouts into one score per rollout, a weighted sum of verifiers, reward model and shaping.

    reward_block.py  what the YAML block says, read without building it
    compose.py       the YAML block -> Composite
    composite.py     a weighted sum of parts: submit (in the background) or score
    parts.py         the kinds of reward part: verifier, function, learned, potential
    graders/         graders of other tools as parts: OpenAI's JSON, TRL, verl and open-instruct files
    shaping.py       length, repetition, missing_eos, format, random: functions with TRL's signature
    learned.py       a reward model as a function with TRL's signature
    source_parts.py  parts that judge the rows of some of prompts.sources alone
    steps.py         potential-based step rewards
    monitor.py       reward-hacking monitor: compares the train scores with those of a second verifier; can stop a run
    batch.py         the input (Batch) and the output (Score)

Outside Whetstone: `GRPOTrainer(reward_funcs=[rewards.verifier("math_answer"), rewards.length(...)])`, or a whole
block with `reward_funcs=[rewards.build({...})]`. None means not scorable; it never counts as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import verifiers

if not hasattr(verifiers, "ENTRY_POINTS"):  # another `verifiers` package overwrote ours or shadows it
    from verifiers._mixed_install import FIX

    raise ImportError(
        f"`import verifiers` finds {verifiers.__file__}, PyPI's package of that name, and not ours: {FIX}"
    )

from rewards.batch import MALFORMED, MONITOR, Batch, Score, is_part
from rewards.compose import build
from rewards.composite import Composite, Pending
from rewards.learned import learned
from rewards.reward_block import (
    fields_needed,
    judges_answers,
    learned_models,
    module_file,
    real_parts,
    verifiers_of,
)
from rewards.shaping import format, length, missing_eos, random, repetition
from rewards.source_parts import parts_for

__all__ = [
    "MALFORMED",
    "MONITOR",
    "Batch",
    "Composite",
    "Pending",
    "Score",
    "build",
    "fields_needed",
    "format",
    "is_part",
    "judges_answers",
    "learned",
    "learned_models",
    "length",
    "missing_eos",
    "module_file",
    "parts_for",
    "random",
    "real_parts",
    "repetition",
    "verifier",
    "verifiers_of",
]


def verifier(name: str, *, verifier_dirs: Sequence[str | Path] = (), **fields: object) -> Composite:
    """The verifier `name` as a reward function with TRL's signature; fields as in its YAML part."""
    composite = build({name: {"kind": "verifier", **fields}}, verifier_dirs=verifier_dirs)
    composite.__name__ = name
    return composite
