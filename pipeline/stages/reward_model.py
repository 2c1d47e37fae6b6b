"""reward_model: learn to rank answers, with TRL's RewardTrainer, on pairs of scored samples.

A pair is of one prompt, with different rewards, both with their end token. Corrupted negatives (truncated, changed,
extended) cover what sampled pairs never show; without them a policy exploits the gaps within seconds.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import trains_adapter
from pipeline.data import encoding
from pipeline.data.completion_text import completion_texts
from pipeline.distributed import ranks
from pipeline.models import models
from pipeline.records import Rollout, Scored, groups
from pipeline.run import console
from pipeline.score import score
from pipeline.stages.context import Context
from pipeline.stages.sampling import draw, from_pool, next_prompts
from pipeline.stages.trl_trainer import train_with
from pipeline.stats import mean

Ids = tuple[int, ...]
Pair = tuple[Ids, Ids, Ids]  # prompt, chosen, rejected


def run(ctx: Context) -> dict[str, Any]:
    from trl import RewardConfig, RewardTrainer

    block = ctx.block
    if block.data is not None:
        train_pairs, heldout_pairs, reference = pairs_from_rows(ctx)
    else:
        train_pairs, heldout_pairs, reference = pairs_from_samples(ctx)
    if not train_pairs:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}: no preference pair: all finished samples of each prompt "
                           "have the same reward; if few finish, raise sampling.max_tokens"])  # fmt: skip
    found, longest_allowed = len(train_pairs), max_length(block.trainer, RewardConfig)
    train_pairs = fitting(train_pairs, longest_allowed, where=f"{ctx.cfg.path}: {ctx.name}")
    console.say(f"{ctx.name}: {len(train_pairs)} training pairs, {len(heldout_pairs)} held out")
    if len(train_pairs) < found:
        console.say(f"{ctx.name}: left out {found - len(train_pairs)} of {found} pairs longer than trainer.max_length "
                    f"{longest_allowed}: the reward model sees short answers only; raise it to keep them")  # fmt: skip
    from datasets import Dataset

    data = Dataset.from_dict({"chosen_ids": [[*p, *c] for p, c, _ in train_pairs],
                              "rejected_ids": [[*p, *r] for p, _, r in train_pairs]})  # fmt: skip
    start = ctx.model_path(block.init, f"{ctx.name}.init") if block.init else ctx.policy_path

    def load() -> Any:
        model = models.load_reward_model(start, ctx.cfg.model, adapted=trains_adapter(block)).train()
        reset_head(model, ctx.seed("head"))
        return model

    distinct_pad(ctx.tokenizer)
    figures = train_with(ctx, RewardTrainer, RewardConfig, start, load, {"train_dataset": data}, block.trainer,
                         target=ctx.dir.model_dir, key=("reward",))  # fmt: skip
    model = models.load_reward_model(str(ctx.dir.model_dir), ctx.cfg.model)
    calibrate(model, reference)
    models.save(model, ctx.tokenizer, ctx.dir.model_dir)
    return {**figures, "pairs": len(train_pairs), "pairs_too_long": found - len(train_pairs),
            "heldout_pairs": len(heldout_pairs),
            "heldout_pair_accuracy": pair_accuracy(model, heldout_pairs),
            "calibration": model.config.reward_calibration}  # fmt: skip


def max_length(trainer: Mapping[str, Any], config_class: Any) -> int | None:
    """Tokens of prompt and answer beyond which TRL's trainer drops a pair without a word; None: it drops none."""
    default = next(f.default for f in fields(config_class) if f.name == "max_length")
    return trainer.get("max_length", default)


def fitting(pairs: Sequence[Pair], limit: int | None, *, where: str) -> list[Pair]:
    """The pairs of which both sides fit. Raises ConfigError where none does."""
    lengths = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in pairs]
    out = [pair for pair, length in zip(pairs, lengths, strict=True) if limit is None or length <= limit]
    if not out:
        raise ConfigError([f"{where}.trainer.max_length: all {len(pairs)} preference pairs are longer than {limit} "
                           f"tokens; the shortest has {min(lengths)}, the longest {max(lengths)}"])  # fmt: skip
    return out


def pairs_from_samples(ctx: Context) -> tuple[list[Pair], list[Pair], list[list[int]]]:
    """Training pairs, held-out pairs (sampled ones only), and sequences to set the reward's offset on."""
    block, generator = ctx.block, ctx.generator()
    scored = samples_of(ctx, generator)
    spent = dict(ctx.tokens)
    rng = random.Random(ctx.seed("pairs"))
    sampled = preference_pairs(scored, per_prompt=block.pairs_per_prompt, rng=rng)
    vocabulary = sorted({token for s in scored for token in s.rollout.ids} - ctx.stop_token_ids)
    broken = corruptions(scored, count=int(len(sampled) * block.corrupted), vocabulary=vocabulary, rng=rng)
    judged = ctx.scored(generator, ctx.heldout_prompts[: block.heldout_prompts], block.samples, "judge")
    ctx.tokens.update(spent)  # judging is not part of the budget
    heldout = preference_pairs(judged, per_prompt=block.pairs_per_prompt, rng=rng)
    return (
        sampled + worse(ctx, broken),
        heldout,
        [[*s.rollout.prompt.ids, *s.rollout.ids] for s in scored[:2048] if s.rollout.finished],
    )


def samples_of(ctx: Context, generator: Any) -> list[Scored]:
    """Sampled from the policy, or read from a pool of what other stages and people scored."""
    block = ctx.block
    if block.pool:
        return from_pool(ctx, block.pool, f"{ctx.name}.pool")
    requests = next_prompts(ctx, ctx.train_prompts, block.prompts)
    scored = draw(ctx, generator, requests, block.samples, "pairs", budget=block.token_budget)
    ctx.record(scored)
    return scored


def pairs_from_rows(ctx: Context) -> tuple[list[Pair], list[Pair], list[list[int]]]:
    """Pairs of a preference data set in TRL's format: prompt, chosen, rejected."""
    source = ctx.block.data
    split = ctx.rows_of(source, f"{ctx.name}.data")
    where = f"{ctx.cfg.path}: {ctx.name}.data"
    out = []
    for rows in (split.train, split.heldout):
        pairs = [
            encoding.pair_of(row, source, ctx.tokenizer, stop_token_ids=ctx.stop_token_ids, number=number, where=where)
            for number, row in enumerate(rows, 1)
        ]
        out.append(pairs)
    return out[0], out[1], [[*p, *c] for p, c, _ in out[0][:2048]]


def preference_pairs(scored: Sequence[Scored], *, per_prompt: int, rng: random.Random) -> list[Pair]:
    """Up to per_prompt pairs per prompt with different rewards, the widest gaps first; ties broken by rng."""
    out: list[Pair] = []
    for group in groups(scored):
        # one of equal completions, and no truncated one: a reward is read at the end token
        usable = {s.rollout.ids: s for s in group if s.scorable and s.rollout.finished}
        ranked = sorted(usable.values(), key=lambda s: -s.reward)
        # an environment may have added to the prompt of one of them
        found = [(a, b) for i, a in enumerate(ranked) for b in ranked[i + 1 :]
                 if a.reward > b.reward and a.rollout.prompt.ids == b.rollout.prompt.ids]  # fmt: skip
        rng.shuffle(found)
        found.sort(key=lambda pair: pair[1].reward - pair[0].reward)
        out += [(a.rollout.prompt.ids, a.rollout.ids, b.rollout.ids) for a, b in found[:per_prompt]]
    return out


def corruptions(
    scored: Sequence[Scored], *, count: int, vocabulary: Sequence[int], rng: random.Random
) -> list[tuple[Rollout, Ids]]:
    """Good samples, each with a copy in which tokens are removed, changed or added before the end token."""
    best = [s for s in scored if s.scorable and s.status == "pass" and s.rollout.finished and len(s.rollout.ids) > 2]
    good = {(s.rollout.prompt.ids, s.rollout.ids) for s in best}
    out: list[tuple[Rollout, Ids]] = []
    for _ in range(count * 4):
        if len(out) >= count or not best:
            break
        rollout = rng.choice(best).rollout
        *body, end = rollout.ids
        position, how = rng.randrange(len(body)), rng.choice(("truncate", "replace", "append"))
        if how == "truncate":
            body = body[:position]
        elif how == "replace":
            body[position] = rng.choice(vocabulary)
        else:
            body += rng.choices(vocabulary, k=rng.randint(1, 3))
        broken = (*body, end)
        if (rollout.prompt.ids, broken) not in good:
            out.append((rollout, broken))
    return out


def worse(ctx: Context, broken: Sequence[tuple[Rollout, Ids]]) -> list[Pair]:
    """Pairs of those corruptions that the run's rewards score below their original: a changed answer may also be right,
    and would train the opposite."""
    if not broken:
        return []
    texts = completion_texts(ctx.tokenizer, [ids for _, ids in broken], [r.prompt.ids for r, _ in broken])
    changed = [replace(r, ids=ids, logprobs=(0.0,) * len(ids), text=text, sampled=None)
               for (r, ids), text in zip(broken, texts, strict=True)]  # fmt: skip
    before, after = score(ctx.scorer, [r for r, _ in broken]), score(ctx.scorer, changed)
    return [(a.rollout.prompt.ids, a.rollout.ids, b.rollout.ids)
            for a, b in zip(before, after, strict=True) if b.reward < a.reward]  # fmt: skip


def reset_head(model: Any, seed: int) -> None:
    """A head initialised from our seed: loading initialises it from global state."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    weight = torch.normal(0.0, model.config.hidden_size**-0.5, model.score.weight.shape, generator=generator)
    model.score.weight.data.copy_(weight)


def distinct_pad(tokenizer: Any) -> None:
    """A pad token that is not EOS: the library takes the last token that is not padding as a sequence's end."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        other = next(i for i in range(len(tokenizer)) if i != tokenizer.eos_token_id)
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(other)


def calibrate(model: Any, sequences: Sequence[Sequence[int]]) -> None:
    """Offset and scale such that the reference samples have mean 0 and std 1: a constant added to the model's output
    then changes nothing downstream."""
    raw = ranks.mapped(partial(models.reward_scores, model), sequences)
    centre = mean(raw)
    model.config.reward_calibration = {"mean": centre, "std": mean([(x - centre) ** 2 for x in raw]) ** 0.5}


def pair_accuracy(model: Any, pairs: Sequence[Pair]) -> float:
    """Share of pairs in which the chosen one scores higher; NaN without pairs."""
    scores = partial(models.reward_scores, model)
    chosen = ranks.mapped(scores, [[*p, *c] for p, c, _ in pairs])
    rejected = ranks.mapped(scores, [[*p, *r] for p, _, r in pairs])
    return mean([float(a > b) for a, b in zip(chosen, rejected, strict=True)])
