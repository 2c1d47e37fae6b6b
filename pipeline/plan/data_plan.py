"""Summary of a run's data: rows, prompts, lengths, and one example of each kind of row as it is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.load import Config, ConfigError
from pipeline.config.schema import KINDS, Prompts
from pipeline.config.work import Data
from pipeline.data import encoding, prompts, sample_pool
from pipeline.data.conversations import Demonstration
from pipeline.data.tool_schemas import ToolSet, with_tools
from pipeline.plan.data_checks import imitates_prompts
from pipeline.plan.trial import TRIED_PROMPTS, Inputs
from pipeline.run import console

Marked = list[tuple[str, bool]]  # (token's text, whether it is trained on)
ROWS = 2000  # rows whose completions are tokenized to measure lengths
OWN_ROWS = 200  # rows of a stage's own data that are read for the examples


def data_of(cfg: Config, tokenizer: Any) -> tuple[Data, dict[str, Marked], Inputs]:
    """Counts and lengths, an example per kind of row, and what a trial samples from.

    Raises ConfigError for a row that a stage could not read.
    """
    source = cfg.prompts
    rows = prompts.load_rows(source, seed=cfg.seed, where="prompts", dirs=cfg.verifier_dirs)
    named = prompts.named_heldout(source, seed=cfg.seed, dirs=cfg.verifier_dirs)
    if cfg.tools is not None:
        schemas = ToolSet(cfg.tools, path=cfg.path).schemas
        rows, named = with_tools(rows, schemas), with_tools(named, schemas)
    parts = prompts.split(rows, source, heldout=named)
    train = prompts.LazyPrompts(parts.train, source, tokenizer)
    heldout = prompts.LazyPrompts(parts.heldout, source, tokenizer)
    validation = prompts.LazyPrompts(parts.validation, source, tokenizer)
    distinct = prompts.num_distinct([parts.train, parts.heldout, parts.validation], source)
    barred = prompts.barred_texts(parts, source)
    stop_token_ids = ends_of(cfg, tokenizer)
    found = imitated(cfg, parts.train[:ROWS], tokenizer, stop_token_ids, barred)
    examples = by_kind("prompts", found, tokenizer)
    if train and not examples:
        examples["prompts: sampled from, not imitated"] = [(tokenizer.decode([i]), False) for i in train[0].ids]
    for key, own in own_sources(cfg):
        examples |= own_examples(cfg, key, own, tokenizer, stop_token_ids)
    lengths = [len(one.completion_ids) for one in found]
    tokens = np.concatenate([some.lengths for some in (train, heldout, validation)])
    data = Data(
        rows=len(parts.train),
        train_prompts=len(train),
        heldout_prompts=min(len(heldout), cfg.evaluation.prompts or len(heldout)),
        validation_prompts=min(len(validation), cfg.evaluation.prompts or len(validation)),
        prompt_tokens=spread(tokens),
        completion_tokens=spread(lengths) if lengths else None,
        own_rows={key.partition(".")[0]: own_rows(cfg, key, own, barred) for key, own in own_sources(cfg)
                  if key.endswith(".data")},
        pool_rows={name: pool_rows(cfg, block.pool) for name, block in cfg.blocks.items()
                   if getattr(block, "pool", None)},
        dropped=1 - len(tokens) / max(distinct, 1),
        truncated=sum(n > cfg.sampling.max_tokens for n in lengths) / max(len(lengths), 1),
    )  # fmt: skip
    tried = tuple(prompt.ids for prompt in train[:TRIED_PROMPTS])
    return data, examples, Inputs(tried, data.prompt_tokens[2], stop_token_ids)


def imitated(
    cfg: Config, rows: Sequence[prompts.Row], tokenizer: Any, stop_token_ids: frozenset[int], barred: prompts.TextSet
) -> Sequence[Demonstration]:
    """Demonstrations in the run's own rows. Rows that cannot be rendered matter only if a stage imitates them."""
    answered = [row for row in rows if prompts.has_completion(row, cfg.prompts)]
    if not answered:
        return []
    try:
        demonstrations = encoding.Demonstrations(
            answered, cfg.prompts, tokenizer, stop_token_ids=stop_token_ids, barred=barred
        )
    except ConfigError:
        if any(imitates_prompts(cfg.blocks[name]) for name in cfg.stages):
            raise
        return []
    if demonstrations.report:
        console.say(demonstrations.report)
    return demonstrations


def own_sources(cfg: Config) -> Iterator[tuple[str, Prompts]]:
    """(key, data) for every stage that reads its own rows."""
    for name, block in cfg.blocks.items():
        for field in ("data", "ptx_data"):
            own = getattr(block, field, None)
            if isinstance(own, Prompts):
                yield f"{name}.{field}", own


def own_examples(
    cfg: Config, key: str, source: Prompts, tokenizer: Any, stop_token_ids: frozenset[int]
) -> dict[str, Marked]:
    """Examples of a stage's own rows: demonstrations, or both sides of a pair. Only for stages that would run."""
    if key.partition(".")[0] not in cfg.stages:
        return {}
    rows = prompts.load_rows(source, seed=cfg.seed, where=key, dirs=cfg.verifier_dirs)[:OWN_ROWS]
    if KINDS[cfg.blocks[key.partition(".")[0]].kind].reads_pairs:
        prompt, chosen, rejected = encoding.pair_of(
            rows[0], source, tokenizer, stop_token_ids=stop_token_ids, number=1, where=key
        )
        sides = {"preferred": chosen, "not preferred": rejected}
        return {f"{key}: {side}": marked(Demonstration(prompt, ids, (True,) * len(ids), ""), tokenizer)
                for side, ids in sides.items()}  # fmt: skip
    found = encoding.Demonstrations(rows, source, tokenizer, stop_token_ids=stop_token_ids, where=key)
    if found.report:
        console.say(found.report)
    return by_kind(key, found, tokenizer)


def by_kind(key: str, found: Sequence[Demonstration], tokenizer: Any) -> dict[str, Marked]:
    """The first row of each kind, with its tokens marked."""
    first: dict[str, Marked] = {}
    for one in found:
        if f"{key}: {one.kind}" not in first:
            first[f"{key}: {one.kind}"] = marked(one, tokenizer)
    return first


def marked(one: Demonstration, tokenizer: Any) -> Marked:
    flags = [False] * len(one.prompt_ids) + list(one.trained)
    return [
        (tokenizer.decode([i]), flag) for i, flag in zip([*one.prompt_ids, *one.completion_ids], flags, strict=True)
    ]


def show(examples: Mapping[str, Marked]) -> None:
    """Print one line per example, with each trained token in brackets."""
    for source_and_kind, tokens in examples.items():
        key, _, kind = source_and_kind.partition(": ")
        shown = "".join(f"[{text}]" if trained else text for text, trained in tokens)
        console.say(f"one example from {key} ({kind}); [ ] marks a trained token: " + console.visible(shown, 400))


def ends_of(cfg: Config, tokenizer: Any) -> frozenset[int]:
    """Ids that end a completion, as in a stage: from the tokenizer and the generation config."""
    from transformers import GenerationConfig

    from pipeline.models import models

    try:
        config = GenerationConfig.from_pretrained(cfg.model.path) if cfg.model.path else None
    except (OSError, ValueError):  # missing, or unreadable for a stage too
        config = None
    return models.end_ids(tokenizer, SimpleNamespace(generation_config=config))


def own_rows(cfg: Config, key: str, source: Prompts, barred: prompts.TextSet) -> int:
    """Number of training rows in a stage's own `data:`, without those whose prompt the run holds out."""
    rows = prompts.load_rows(source, seed=cfg.seed, where=key, dirs=cfg.verifier_dirs)
    named = prompts.named_heldout(source, seed=cfg.seed, where=key, dirs=cfg.verifier_dirs)
    return len(prompts.without(prompts.split(rows, source, where=key, heldout=named), barred, source).train)


def pool_rows(cfg: Config, references: Sequence[str]) -> int:
    """Number of samples in the rollouts of finished stages, and of rows with a score in files."""
    stages = [cfg.run_dir / name / "rollouts.jsonl" for name in references if name in cfg.blocks]
    files = [Path(name) for name in references if name not in cfg.blocks]
    sampled = sum(sum(1 for _ in path.open("rb")) for path in stages if path.is_file())
    return sampled + sum(sample_pool.count_rows(path, cfg.prompts).scored for path in files if path.is_file())


def spread(lengths: Sequence[int] | NDArray[np.integer]) -> tuple[float, int, int]:
    """Mean, 95th percentile and maximum."""
    ordered = np.sort(np.asarray(lengths if len(lengths) else [0], np.int64))
    return int(ordered.sum()) / len(ordered), int(ordered[int(0.95 * (len(ordered) - 1))]), int(ordered[-1])
