"""offline_q: the best return the logged samples support, and a policy that reaches it, without any sampling.

Q and V heads are fitted to scored samples (q_values.py), turn by turn if the samples are multi-turn episodes. Then the
policy imitates every logged token with weight exp(beta * (Q - V)) (IQL), or its logits are shifted by beta * (Q - V)
(ILQL). Both produce a plain causal model. Unlike a policy gradient, this can join two halves that never occurred
together in one episode (`configs/stitch/`).
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.load import ConfigError
from pipeline.config.schema import Loss, OfflineQ
from pipeline.credit.advantages import masked_mean
from pipeline.data import sample_pool
from pipeline.distributed import sharding
from pipeline.models import models
from pipeline.records import Scored, episodes
from pipeline.research.q_values import Logged, QValues, fit, regression_weights, shifted, token_advantages
from pipeline.run import console
from pipeline.run.stage_dir import StageDir
from pipeline.seeds import cycle_indices
from pipeline.stages.context import Context
from pipeline.stages.sampling import draw, next_prompts
from pipeline.update.episode_credit import layout_of
from pipeline.update.experience import step_rewards
from pipeline.update.forward import CompletionLogprobs, Row, stack
from pipeline.update.learner import Learner
from pipeline.update.policy_loss import Experience


def run(ctx: Context) -> dict[str, Any]:
    block: OfflineQ = ctx.block
    ctx.dir.checkpoints.resume()  # no checkpoints are kept: this removes the lines of a killed attempt
    scored = logged_samples(ctx)
    logged = as_logged(scored)
    console.say(f"{ctx.name}: {len(logged.layout)} episodes of {len(logged.rows)} turns")
    model = models.load_policy(ctx.policy_path, ctx.cfg.model)
    precision = model.dtype
    autocast = precision if precision != torch.float32 else None
    heads = QValues(model.float(), autocast=autocast)  # as in `make_policy`: bfloat16 rounds small steps away
    log = progress(ctx, "values", block.value_steps)
    figures = fit(heads, logged, block, key=(ctx.cfg.seed, ctx.name), log=log)
    advantages = token_advantages(heads, logged.rows, budget=block.tokens_per_microbatch)
    if block.extract == "shift":
        policy = shifted(heads, beta=block.beta)
    else:
        start = models.load_policy(ctx.policy_path, ctx.cfg.model).float()
        log = progress(ctx, "policy", block.policy_steps)
        forward = CompletionLogprobs(start, temperature=1.0, autocast=autocast)
        policy = regress(forward, logged, advantages, block, key=(ctx.cfg.seed, ctx.name), log=log)
    models.save(policy, ctx.tokenizer, ctx.dir.model_dir, dtype=precision)
    judged = ctx.evaluate(ctx.generator(str(ctx.dir.model_dir)))
    console.show_samples(judged.scored)
    return {**judged.figures, **figures, **told_apart(logged, advantages), "episodes": len(logged.layout)}


def logged_samples(ctx: Context) -> list[Scored]:
    """Episodes from the files and stages named in `pool`, or from the policy; an episode's rows are in order."""
    block: OfflineQ = ctx.block
    if not block.pool:
        drawn_prompts = next_prompts(ctx, ctx.train_prompts, block.prompts)
        found = draw(ctx, ctx.generator(), drawn_prompts, block.samples, "pool")
        ctx.record(found)
    else:
        found = [s for reference in block.pool for s in read_samples(ctx, reference)]
    usable = whole_episodes(found, ctx.barred)
    if not usable:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.pool: of {len(found)} samples none is scorable and of a prompt "
                           "that is not held out"])  # fmt: skip
    return usable


def read_samples(ctx: Context, reference: str) -> list[Scored]:
    """The samples of a stage of this run, or of a file; registers the files it reads."""
    path = Path(reference)
    if reference in ctx.cfg.blocks:
        ctx.model_path(reference, f"{ctx.name}.pool")  # registers the parent and checks its files
        path = StageDir(ctx.cfg.run_dir, reference).path / "rollouts.jsonl"
    elif path.is_file():
        ctx.depend_on(path)
    return [entry.scored for entry in sample_pool.read(path, ctx.cfg.prompts, ctx.tokenizer, ctx.stop_token_ids)]


def whole_episodes(scored: Sequence[Scored], barred: Container[str]) -> list[Scored]:
    """All rows of the episodes usable for training: an episode with a gap would credit the wrong step."""
    return [
        row
        for episode in episodes(scored)
        if all(s.scorable and s.rollout.ids and s.rollout.prompt.text not in barred for s in episode)
        for row in episode
    ]


def as_logged(scored: Sequence[Scored]) -> Logged:
    rows = [Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask) for s in scored]
    layout = layout_of(scored)
    truncated = [not scored[indices[-1]].rollout.finished for indices in layout]
    return Logged(rows, layout, [token_rewards(s, r) for s, r in zip(scored, rows, strict=True)], truncated)


def token_rewards(scored: Scored, row: Row) -> Tensor:
    """(its T,): step rewards at the tokens where they were given; the final reward on the last sampled token."""
    rewards_T = step_rewards(scored, row)
    sampled = [position for position, on in enumerate(row.mask) if on]
    if sampled:
        rewards_T[sampled[-1]] += scored.reward
    return rewards_T


def regress(
    forward: CompletionLogprobs, logged: Logged, advantages: Sequence[Tensor], block: OfflineQ, *,
    key: tuple[int | str, ...], log: Any,
) -> Any:  # fmt: skip
    """The model trained to imitate each logged token with weight exp(beta * (Q - V)), by the policy loop's learner."""
    weights = [regression_weights(a, beta=block.beta, max_weight=block.max_weight) for a in advantages]
    # with the weight in place of an advantage, the REINFORCE loss is weighted imitation
    batch = Experience(logged.rows, weights, [torch.zeros(len(r.ids)) for r in logged.rows])
    longest = max(len(r.ids) for r in logged.rows)
    learner = Learner(
        sharding.accelerator(), forward, None,
        loss=Loss(kind="reinforce"), optimizer=block.optimizer, critic_settings=None, updates=block.policy_steps,
        max_tokens=longest, budget=block.tokens_per_microbatch,
    )  # fmt: skip
    size = min(block.batch, len(logged.layout))
    for step in range(block.policy_steps):
        chosen = cycle_indices(len(logged.layout), step * size, size, *key, "regression")
        figures = learner.update(batch, [i for e in chosen for i in logged.layout[e]], kl_coef=0.0, kl_kind="k3")
        if step % 10 == 9 or step == block.policy_steps - 1:
            log(step + 1, {name: figures[name] for name in ("policy_loss", "entropy") if name in figures})
    return learner.model


def progress(ctx: Context, part: str, steps: int) -> Any:
    """Write the figures to metrics.jsonl and a line to the terminal."""
    shown = console.Progress(f"{ctx.name} {part}", steps)

    def log(step: int, figures: dict[str, float]) -> None:
        ctx.dir.logs.log({"part": part, "step": step, **figures})
        shown.step(step, **figures)

    return log


def told_apart(logged: Logged, advantages: Sequence[Tensor]) -> dict[str, float]:
    """How well the heads separate logged tokens: mean and mean absolute value of Q - V."""
    mask_BT = stack([r.mask for r in logged.rows]).bool()
    advantages_BT = stack(advantages)
    return {
        "advantage_mean": masked_mean(advantages_BT, mask_BT),
        "advantage_abs": masked_mean(advantages_BT.abs(), mask_BT),
    }
