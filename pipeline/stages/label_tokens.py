"""Condition labels as new tokens (`vocabulary: special`): one id per label, at the price of new embedding rows.

A new row must be trained and saved with the model. Full fine-tuning does both. An adapter leaves embeddings alone
unless `modules_to_save` names them; it is merged when it is saved, so no server has to load embeddings of an adapter.
This is checked here, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pipeline.config.load import ConfigError
from pipeline.models import models
from pipeline.stages.context import Context


def with_new_tokens(ctx: Context, labels: Sequence[str]) -> str:
    """A copy of the policy whose vocabulary holds every label as one token; the stage's tokenizer becomes its own.

    Raises ConfigError where the adapter would not train the new rows.
    """
    check_trained(ctx.block.peft, f"{ctx.cfg.path}: {ctx.name}.peft")
    target = ctx.dir.path / "with_tokens"
    tokenizer = models.load_tokenizer(ctx.policy_path, ctx.cfg.model)
    tokenizer.add_tokens([label.strip() for label in labels], special_tokens=True)
    model = models.load_policy(ctx.policy_path, ctx.cfg.model)
    extend(model, len(tokenizer), seed=ctx.seed("new tokens"))
    models.save(model, tokenizer, target)
    ctx.use_tokenizer(tokenizer)
    return str(target)


def check_trained(peft: Mapping[str, Any] | None, where: str) -> None:
    saved = {*((peft or {}).get("modules_to_save") or ()), *((peft or {}).get("target_modules") or ())}
    if peft and not saved & {"embed_tokens", "wte", "embed_in"}:
        raise ConfigError([f"{where}: vocabulary: special adds embeddings that this adapter does not train; add "
                           "modules_to_save: [embed_tokens, lm_head], drop peft, or use vocabulary: text"])  # fmt: skip


@torch.no_grad()
def extend(model: Any, size: int, *, seed: int) -> None:
    """Grow the embeddings to `size` rows, the new ones drawn with the mean and spread of the old (Quark,
    arXiv:2205.13636)."""
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = tables[0].shape[0]
    if size <= before:
        return  # a padded vocabulary has room
    old = [table.detach().clone() for table in tables]
    model.resize_token_embeddings(size, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    new = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for table, rows in zip(new, old, strict=True):
        if table is new[0] or table.data_ptr() != new[0].data_ptr():  # a tied head shares the rows
            noise = torch.randn(size - before, rows.shape[1], generator=generator).to(rows)
            table[before:] = rows.mean(0) + rows.std(0) * noise
