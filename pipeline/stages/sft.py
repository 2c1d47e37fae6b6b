"""sft: imitate demonstrations, with TRL's SFTTrainer. `train` is also how FeedME and condition tokens imitate.

Departs from TRL in what it is fed: token ids that we rendered, with labels on the completion and its end token, so that
what is sampled later and what is imitated now are the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import console, models, prompts
from pipeline.config import ConfigError
from pipeline.stages.context import Context
from pipeline.stages.trainer import train_with

IGNORED = -100  # the label that transformers leaves out of the loss


@dataclass(frozen=True, slots=True)
class Example:
    """One demonstration: loss on `completion_ids`, which end with an end token."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    source = block.data or ctx.cfg.prompts
    split = ctx.rows_of(source, f"{ctx.name}.data") if block.data else ctx.split
    # a row is a demonstration only outside the run's own held-out prompts, whatever file it came from
    barred = {prompts.prompt_text(r, ctx.cfg.prompts) for r in ctx.split.heldout}
    rows = [r for r in split.train if prompts.prompt_text(r, source) not in barred]
    examples = encode(rows, source, ctx)
    console.say(f"{ctx.name}: {len(examples)} demonstrations, {len(ctx.split.heldout)} rows held out")
    figures = train(ctx, ctx.policy_path, examples, ctx.dir.model_dir, block.trainer, key=("sft",), resumable=True)
    return figures | ctx.evaluate(ctx.generator(str(ctx.dir.model_dir))).figures


def encode(rows: Sequence[prompts.Row], source: Any, ctx: Context) -> list[Example]:
    """Rows -> ids. Raises ConfigError naming the row that has no completion."""
    out = []
    for number, row in enumerate(rows, 1):
        prompt_ids = prompts.render_ids(row, source, ctx.tokenizer, number=number)
        completion = prompts.completion_ids(row, source, ctx.tokenizer, prompt_ids, ends=ctx.ends, number=number)
        out.append(Example(tuple(prompt_ids), tuple(completion)))
    return out


def train(
    ctx: Context,
    start: str,
    examples: Sequence[Example],
    place: Path,
    trainer: dict[str, Any],
    *,
    key: tuple[int | str, ...],
    resumable: bool = False,
) -> dict[str, Any]:
    """Imitate `examples` from the model at `start`; leaves the result in `place`. Returns the trainer's figures.

    Raises ConfigError where there is nothing to train on, or nothing fits max_length.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    limit = trainer.get("max_length", 1024)
    fitting = [e for e in examples if limit is None or len(e.prompt_ids) + len(e.completion_ids) <= limit]
    if not fitting:
        raise ConfigError([f"{ctx.name}: no example to train on" + (f" within max_length {limit}" if examples else "")])
    if len(fitting) < len(examples):
        console.say(f"{ctx.name}: {len(examples) - len(fitting)} of {len(examples)} examples exceed max_length {limit}")
    data = Dataset.from_dict(
        {
            "input_ids": [[*e.prompt_ids, *e.completion_ids] for e in fitting],
            "labels": [[IGNORED] * len(e.prompt_ids) + list(e.completion_ids) for e in fitting],
        }
    )
    return train_with(
        ctx,
        SFTTrainer,
        SFTConfig,
        models.load_policy(start, ctx.cfg.model),
        {"train_dataset": data},
        {"dataset_kwargs": {"skip_prepare_dataset": True}, **trainer},
        place=place,
        key=key,
        resumable=resumable,
    )
