"""kto: learn from answers labelled good or bad one by one, with TRL's KTOTrainer.

A good answer is pushed above the batch's KL from the reference, a bad one below it (arXiv:2402.01306, equation 7). The
KL is estimated on completions paired with other prompts of the same batch, so a row's neighbours matter: rows are in an
order drawn from the seed, good and bad mixed, and stay in it (the library keeps the order of the file).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.data import encoding
from pipeline.records import Scored
from pipeline.run import console
from pipeline.stages.context import Context
from pipeline.stages.preference_rounds import Rows, run_rounds, samples_of
from pipeline.stages.reward_model import max_length
from pipeline.stages.sampled_only import flags_of, with_flags

WITHOUT_KL = ("apo_zero_unpaired",)  # losses that need no mismatched completions
WEIGHTS = {"desirable_weight", "undesirable_weight"}
Labelled = tuple[tuple[int, ...], tuple[int, ...], bool]  # prompt, completion, good


def run(ctx: Context) -> dict[str, Any]:
    from trl import KTOConfig, KTOTrainer

    return run_rounds(ctx, KTOTrainer, KTOConfig, rows_of)


def rows_of(ctx: Context, policy: str, number: int) -> tuple[Rows, dict[str, Any]]:
    """prompt_ids, completion_ids, KL_completion_ids, label of a round. Raises ConfigError unless both labels occur."""
    from trl import KTOConfig

    block, where = ctx.block, f"{ctx.cfg.path}: {ctx.name}"
    batch = block.trainer.get("per_device_train_batch_size", 8)
    with_kl = block.trainer.get("loss_type", "kto") not in WITHOUT_KL
    if with_kl and batch < 2:
        raise ConfigError([f"{where}.trainer.per_device_train_batch_size: kto needs at least 2 rows per batch, because "
                           "the KL is estimated on completions of the others"])  # fmt: skip
    samples = [] if block.data is not None else samples_of(ctx, policy, number)
    found = labelled_rows(ctx) if block.data is not None else labelled(samples, block.at_least)
    limit = max_length(block.trainer, KTOConfig)
    kept = [row for row in found if limit is None or len(row[0]) + len(row[1]) <= limit]
    good = sum(label for _, _, label in kept)
    if not 0 < good < len(kept):
        raise ConfigError([f"{where}: kto needs good and bad answers; {good} of {len(kept)} are good, and "
                           f"{len(found) - len(kept)} exceed trainer.max_length {limit}"])  # fmt: skip
    if len(kept) < len(found):
        console.say(f"{ctx.name}: left out {len(found) - len(kept)} of {len(found)} rows over max_length {limit}")
    weights = balanced(good, len(kept) - good) if not WEIGHTS & block.trainer.keys() else {}
    console.say(f"{ctx.name}: {len(kept)} answers, {good} of them good" + (f"; {weights}" if weights else ""))
    random.Random(ctx.seed("rows", number)).shuffle(kept)
    rows = with_mismatched(kept, batch) if with_kl else [as_row(row) for row in kept]
    return with_flags(rows, flags_of(samples)), weights


def balanced(good: int, bad: int) -> dict[str, float]:
    """Weights under which both labels count the same; with equal ones the rarer label is drowned by the other, and a
    policy whose samples mostly fail unlearns its good answers too (arXiv:2402.01306, equation 8)."""
    return {"desirable_weight": bad / good} if good < bad else {"undesirable_weight": good / bad}


def as_row(row: Labelled) -> dict[str, Any]:
    return {"prompt_ids": list(row[0]), "completion_ids": list(row[1]), "label": row[2]}


def with_mismatched(rows: Sequence[Labelled], batch: int) -> list[dict[str, Any]]:
    """Rows with the completion of their predecessor in the batch (the first takes the last one's), for the KL."""
    out = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        if len(part) == 1:
            break  # the last row has nobody to be paired with
        out += [{**as_row(row), "KL_completion_ids": list(part[i - 1][1])} for i, row in enumerate(part)]
    return out


def labelled(scored: Sequence[Scored], at_least: float | None) -> list[Labelled]:
    """Each distinct answer that ended and could be scored, good where it passed or earned at_least."""
    usable = {(s.rollout.prompt.ids, s.rollout.ids): s for s in scored if s.scorable and s.rollout.finished}
    return [(p, c, s.status == "pass" if at_least is None else s.reward >= at_least) for (p, c), s in usable.items()]


def labelled_rows(ctx: Context) -> list[Labelled]:
    """Rows of a file with prompt, completion and a true or false `label`: TRL's unpaired preference format."""
    # by its columns such a file would be recognised as demonstrations, without the rows labelled false
    source, out = replace(ctx.block.data, format=ctx.block.data.format or "plain"), []
    for number, row in enumerate(ctx.rows_of(source, f"{ctx.name}.data").train, 1):
        if not isinstance(row.get("label"), bool):
            raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.data: row {number}: label must be true or false, "
                               f"found {row.get('label')!r}"])  # fmt: skip
        prompt = tuple(encoding.render_ids(row, source, ctx.tokenizer, number=number))
        completion = encoding.completion_ids(
            row, source, ctx.tokenizer, prompt, stop_token_ids=ctx.stop_token_ids, number=number
        )
        out.append((prompt, tuple(completion), row["label"]))
    return out
