"""What ppo and grpo share: open the parts of the loop, run it, save and judge the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from pipeline import console, models, stopping
from pipeline.records import Prompt, Scored
from pipeline.schema import Policy
from pipeline.stages.context import Context, Judged
from pipeline.update.critic import ValueModel, from_model
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs
from pipeline.update.learner import Learner
from pipeline.update.loop import Parts, optimise


def run(ctx: Context) -> dict[str, Any]:
    block: Policy = ctx.block
    temperature = ctx.cfg.sampling.temperature
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    scorer = ctx.scorer_of(block.reward) if block.reward else ctx.scorer
    start = models.load_policy(ctx.policy_path, ctx.cfg.model)
    if block.gradient_checkpointing:
        start.gradient_checkpointing_enable()
    reference = None
    if block.kl.coef or block.kl.target:
        frozen = models.load_policy(ctx.policy_path, ctx.cfg.model).eval().requires_grad_(False)
        reference = CompletionLogprobs(frozen, temperature=temperature)
    learner = Learner(
        accelerator,
        CompletionLogprobs(start, temperature=temperature),
        make_critic(ctx),
        loss=block.loss,
        optimizer=block.optimizer,
        critic_settings=block.critic,
        updates=block.steps * block.epochs * block.minibatches,
        max_tokens=ctx.cfg.sampling.max_tokens,
        budget=block.tokens_per_microbatch,
    )
    generator = ctx.generator()
    generator.weights = lambda: models.named_weights(learner.model)

    def sample_and_score(asked: Sequence[Prompt], step: int, attempt: int) -> list[Scored]:
        with stopping.at_once():
            return ctx.scored(generator, asked, block.samples, "step", step, attempt, scorer=scorer)

    state = optimise(
        Parts(
            block,
            (ctx.cfg.seed, ctx.name),
            ctx.train_prompts,
            sample_and_score,
            learner,
            generator,
            reference,
            ctx.cfg.sampling.max_tokens,
            ctx.cfg.generate.canary_tolerance,
            ctx.dir,
            ctx.record,
        )
    )
    models.save(learner.model, ctx.tokenizer, ctx.dir.model_dir)
    judged = ctx.evaluate(generator)
    console.show_samples(judged.scored)
    return {
        **judged.figures,
        **kl_to_start(ctx, learner, judged),
        "steps": state.step,
        "mismatch_mean_abs": state.mismatch,
        "canary_max_abs": state.canary_max,
        "generator": generator.name,
    }


def make_critic(ctx: Context) -> ValueModel | None:
    settings = ctx.block.critic
    if settings is None:
        return None
    if settings.init == "reward_model":
        learned = [
            n for n, part in (ctx.block.reward or {}).items() if n == "reward_model" or part.get("kind") == "learned"
        ]
        if learned:
            place = ctx.model_path((ctx.block.reward[learned[0]] or {}).get("model", learned[0]), f"{ctx.name}.critic")
            return from_model(models.load_reward_model(place, ctx.cfg.model)).train()
    return from_model(models.load_policy(ctx.policy_path, ctx.cfg.model)).train()


def kl_to_start(ctx: Context, learner: Learner, judged: Judged) -> dict[str, float]:
    """KL of the trained policy from where it started, on its own held-out samples: nats a completion and a token."""
    rows = [Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask) for s in judged.scored]
    start = CompletionLogprobs(
        models.load_policy(ctx.policy_path, ctx.cfg.model), temperature=ctx.cfg.sampling.temperature
    )
    budget = ctx.block.tokens_per_microbatch
    now = learner.logprobs(rows)
    before = completion_logprobs(start, rows, budget=budget, where=learner.where)
    gaps = [float((a - b).sum()) for a, b in zip(now, before, strict=True)]
    tokens = sum(len(r.ids) for r in rows)
    return {"kl_to_reference": sum(gaps) / len(gaps), "kl_to_reference_per_token": sum(gaps) / tokens}
