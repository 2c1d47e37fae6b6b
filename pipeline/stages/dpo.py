"""dpo: prefer the better of two answers to one prompt, without a reward model, with TRL's DPOTrainer.

The loss of a pair (arXiv:2305.18290, equation 7) is -log sigmoid(beta · [(log p(chosen) - log r(chosen)) - (log
p(rejected) - log r(rejected))]) with the policy p and the reference r, which is the stage's start. Pairs come from a
preference file or from scored samples; with rounds > 1 each round samples from the current policy (online DPO).
"""

from __future__ import annotations

import random
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.run import console
from pipeline.stages.context import Context
from pipeline.stages.preference_rounds import Rows, run_rounds, samples_of
from pipeline.stages.reward_model import fitting, max_length, pairs_from_rows, preference_pairs
from pipeline.stages.sampled_only import flags_of, with_flags


def run(ctx: Context) -> dict[str, Any]:
    from trl import DPOConfig, DPOTrainer

    return run_rounds(ctx, DPOTrainer, DPOConfig, pairs_of)


def pairs_of(ctx: Context, policy: str, number: int) -> tuple[Rows, dict[str, Any]]:
    """prompt_ids, chosen_ids, rejected_ids of a round. Raises ConfigError where no pair is left."""
    from trl import DPOConfig

    block = ctx.block
    rng = random.Random(ctx.seed("pairs", number))
    samples = [] if block.data is not None else samples_of(ctx, policy, number)
    if block.data is not None:
        pairs = pairs_from_rows(ctx)[0]
    else:
        pairs = preference_pairs(samples, per_prompt=block.pairs_per_prompt, rng=rng)
    if not pairs:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}: no preference pair: of each prompt all samples that ended "
                           "earned the same; raise samples, or sampling.max_tokens if few end"])  # fmt: skip
    limit = max_length(block.trainer, DPOConfig)
    kept = fitting(pairs, limit, where=f"{ctx.cfg.path}: {ctx.name}")
    if len(kept) < len(pairs):
        console.say(f"{ctx.name}: left out {len(pairs) - len(kept)} of {len(pairs)} pairs longer than "
                    f"trainer.max_length {limit}")  # fmt: skip
    rng.shuffle(kept)
    rows = [{"prompt_ids": list(p), "chosen_ids": list(c), "rejected_ids": list(r)} for p, c, r in kept]
    return with_flags(rows, flags_of(samples)), {}
