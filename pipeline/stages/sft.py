"""sft: imitate demonstrations, with TRL's SFTTrainer. `train` is also how FeedME and condition tokens imitate.

Departs from TRL in what it is fed: token ids that we rendered, with labels on the completion and its end token, so that
what is sampled later and what is imitated now are the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.load import ConfigError
from pipeline.config.schema import trains_adapter
from pipeline.data import encoding, prompts
from pipeline.data.completion_text import completion_text
from pipeline.data.lazy_rows import Mapped
from pipeline.models import models
from pipeline.records import Prompt, Rollout
from pipeline.run import console
from pipeline.score import score
from pipeline.stages.context import Context
from pipeline.stages.imitation import ImitationRow, as_dataset, imitator, lengths_of, pad
from pipeline.stages.trl_trainer import train_with

NO_EFFECT = ("packing", "padding_free", "completion_only_loss", "assistant_only_loss", "dataset_text_field")


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    source = block.data or ctx.cfg.prompts
    split = ctx.rows_of(source, f"{ctx.name}.data") if block.data else ctx.split
    rows = split.train if block.min_reward is None else rewarded(ctx, split.train, source, block.min_reward)
    examples = encode(rows, source, ctx)
    validation = f", {len(ctx.split.validation)} for validation" if ctx.split.validation else ""
    console.say(f"{ctx.name}: {len(examples)} demonstrations; rows held out: {len(ctx.split.heldout)}{validation}")
    figures = train(ctx, ctx.policy_path, examples, ctx.dir.model_dir, block.trainer, key=("sft",))
    return figures | ctx.evaluate(ctx.generator(str(ctx.dir.model_dir))).figures


def rewarded(ctx: Context, rows: Sequence[prompts.Row], source: Any, at_least: float) -> list[prompts.Row]:
    """The rows whose completion earns at least so much by the run's rewards. Raises ConfigError where none does."""
    rows = [row for row in rows if prompts.has_completion(row, source)]
    shown = []
    for number, (row, example) in enumerate(zip(rows, encode_last(rows, source, ctx), strict=True), 1):
        task = prompts.task_of(row, source, number=number)
        prompt = Prompt(number, prompts.prompt_text(row, source), example.prompt_ids, task)
        text = completion_text(ctx.tokenizer, example.completion_ids, example.prompt_ids)
        shown.append(Rollout(prompt, 0, example.completion_ids, (0.0,) * len(example.completion_ids), text, True))
    scored = score(ctx.scorer, shown)
    kept = [row for row, s in zip(rows, scored, strict=True) if s.scorable and s.reward >= at_least]
    if not kept:
        best = max((s.reward for s in scored if s.scorable), default=float("nan"))
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.min_reward: no demonstration earns {at_least:g}; "
                           f"the best earns {best:.3g}"])  # fmt: skip
    return kept


def encode(rows: Sequence[prompts.Row], source: Any, ctx: Context) -> Sequence[ImitationRow]:
    """Rows -> ids of every turn that is imitated; what is not is counted in one line.

    Raises ConfigError naming the row that has no completion, or that the chat template refuses.
    """
    found = encoding.Demonstrations(
        rows,
        source,
        ctx.tokenizer,
        stop_token_ids=ctx.stop_token_ids,
        where=f"{ctx.cfg.path}: {ctx.name}",
        barred=ctx.barred,
    )
    if found.report:
        console.say(found.report)
    return Mapped(found, lambda one: ImitationRow(one.prompt_ids, one.completion_ids, trained=one.trained))


def encode_last(rows: Sequence[prompts.Row], source: Any, ctx: Context) -> list[ImitationRow]:
    """One example per row: its prompt and its last answer, as if it had been sampled."""
    out = []
    for number, row in enumerate(rows, 1):
        prompt_ids = encoding.render_ids(row, source, ctx.tokenizer, number=number)
        completion = encoding.completion_ids(
            row, source, ctx.tokenizer, prompt_ids, stop_token_ids=ctx.stop_token_ids, number=number
        )
        out.append(ImitationRow(tuple(prompt_ids), tuple(completion)))
    return out


def train(
    ctx: Context,
    start: str,
    examples: Sequence[ImitationRow],
    target: Path,
    trainer: dict[str, Any],
    *,
    key: tuple[int | str, ...],
    kl_coef: float = 0.0,
    anchor: str | None = None,
) -> dict[str, Any]:
    """Imitate `examples` from the model at `start`; leaves the result in `target`. Returns the trainer's figures.

    kl_coef: weight of the KL from the model at `anchor` (`pipeline.stages.imitation`); 0 = none, and no second model.
    Raises ConfigError where there is nothing to train on, or nothing fits max_length.
    """
    from trl import SFTConfig

    limit = trainer.get("max_length", 1024)
    lengths = lengths_of(examples)
    fitting = np.flatnonzero(lengths <= limit) if limit is not None else np.arange(len(lengths))
    if not len(fitting):
        raise ConfigError([f"{ctx.name}: no example to train on" + (f" within max_length {limit}" if examples else "")])
    if len(fitting) < len(examples):
        console.say(f"{ctx.name}: {len(examples) - len(fitting)} of {len(examples)} examples exceed max_length {limit}")
    mistakes = [f"{ctx.cfg.path}: {ctx.name}.trainer.{name}: has no effect here, for examples come as token ids with "
                "the loss on the completion; remove it" for name in NO_EFFECT if trainer.get(name)]  # fmt: skip
    if mistakes:
        raise ConfigError(mistakes)
    return train_with(
        ctx,
        imitator(ctx, kl_coef, anchor or ctx.policy_path),
        SFTConfig,
        start,
        lambda: models.load_policy(start, ctx.cfg.model, adapted=trains_adapter(ctx.block)),
        {"train_dataset": as_dataset(examples, reference=kl_coef > 0, chosen=fitting), "data_collator": pad},
        {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, **trainer},
        target=target,
        key=key,
    )
