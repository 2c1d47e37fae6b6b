"""What ppo and grpo share: open the parts of the loop, run it, judge the policy and save it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from pipeline.config.load import ConfigError
from pipeline.config.schema import Episodes, Policy, trains_adapter
from pipeline.distributed import ranks, sharding
from pipeline.generation.episodes import load_environment, play
from pipeline.generation.generator import Generator, continuations, rollouts
from pipeline.models import adapters, models
from pipeline.records import Prompt, Scored
from pipeline.run import console, shutdown
from pipeline.score import score
from pipeline.stages.context import Context, Judged
from pipeline.stages.heldout_episodes import judge_episodes
from pipeline.stages.kl_to_start import from_start, mean_kl
from pipeline.stages.monitored_scorer import scorer_and_watch
from pipeline.stages.sft import encode
from pipeline.update import canary
from pipeline.update.critic import SharedCritic, ValueModel, from_model
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs
from pipeline.update.learner import Learner
from pipeline.update.loop import optimise
from pipeline.update.loop_state import Cut, Parts, SampleAndScore, count
from pipeline.update.overlap import Ahead
from pipeline.update.reference import AdapterOff, Copy, Reference
from rewards import Composite

# KL a token between a policy and its equal that rounding may explain
REFERENCE_TOLERANCE = {torch.float32: 1e-5}
COARSE_TOLERANCE = 1e-2


def run(ctx: Context) -> dict[str, Any]:
    block: Policy = ctx.block
    policy, precision = make_policy(ctx)
    learner = make_learner(ctx, policy)
    generator = ctx.generator()
    generator.weights = lambda: models.named_weights(learner.model)
    if block.compile:
        compile_in_place(policy)
    scorer, watch = scorer_and_watch(ctx)
    parts = Parts(
        block=block,
        seed_key=(ctx.cfg.seed, ctx.name),
        prompts=ctx.train_prompts,
        sample_and_score=make_sampler(ctx, generator, scorer),
        learner=learner,
        generator=generator,
        reference=make_reference(ctx, learner),
        max_tokens=ctx.cfg.sampling.max_tokens,
        canary_tolerance=canary.tolerance(precision, ctx.cfg.generate.canary_tolerance),
        reference_tolerance=REFERENCE_TOLERANCE.get(precision, COARSE_TOLERANCE),
        directory=ctx.dir,
        record=ctx.record,
        continue_and_score=make_continuer(ctx, generator),
        demonstrations=demonstrations(ctx),
        judge=make_judge(ctx, generator),
        ahead=make_ahead(ctx, generator, scorer),
        watch=watch,
    )
    state = optimise(parts)
    judged = ctx.evaluate(generator)
    distance = kl_to_start(ctx, parts, judged)
    models.save(learner.model, ctx.tokenizer, ctx.dir.model_dir, dtype=precision)
    console.show_samples(judged.scored)
    return {
        **judged.figures,
        **judge_episodes(ctx, generator, block.episodes),
        **distance,
        "steps": state.step,
        "mismatch_mean_abs": state.mismatch,
        "canary_max_abs": state.canary_max,
        "canary_tolerance": parts.canary_tolerance.limit(state.canary_floor),
        "generator": generator.name,
    }


def make_policy(ctx: Context) -> tuple[CompletionLogprobs, torch.dtype]:
    """The policy to train, and the precision it computes, samples and is saved in.

    Below float32 the weights that learn are kept in float32 and multiplied in the lower precision: a step of 1e-6 on a
    bfloat16 weight would be rounded away. Under LoRA the base stays as it is; the adapter is float32 by itself.
    """
    block: Policy = ctx.block
    model = models.load_policy(ctx.policy_path, ctx.cfg.model, adapted=trains_adapter(block))
    precision = model.dtype
    if precision == torch.float16:
        raise ConfigError([f"{ctx.cfg.path}: model.dtype: float16 gradients overflow in {ctx.name}; use bfloat16"])
    if block.peft:
        torch.manual_seed(ctx.seed("adapter"))
        model = models.without_dropout(adapters.add_lora(model, block.peft, key=f"{ctx.cfg.path}: {ctx.name}"))
    elif precision != torch.float32:
        model = model.float()
    model.train()  # of modes only dropout, which is off, and gradient checkpointing, which asks for it, take notice
    if block.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    kind = SharedCritic if block.critic is not None and block.critic.shared else CompletionLogprobs
    autocast = precision if precision != torch.float32 else None
    return kind(model, temperature=ctx.cfg.sampling.temperature, autocast=autocast), precision


def make_learner(ctx: Context, policy: CompletionLogprobs) -> Learner:
    block: Policy = ctx.block
    warmup = block.critic.warmup_steps if block.critic is not None else 0  # in which the schedule stands still
    return Learner(
        sharding.accelerator(),
        policy,
        make_critic(ctx, policy.autocast),
        loss=block.loss,
        optimizer=block.optimizer,
        critic_settings=block.critic,
        updates=max(block.steps - warmup, 1) * block.epochs * block.minibatches,
        max_tokens=ctx.cfg.sampling.max_tokens,
        budget=block.tokens_per_microbatch,
    )


def make_critic(ctx: Context, autocast: torch.dtype | None) -> ValueModel | None:
    """A critic of its own, on the reward model's backbone or the policy's; None without one or where it is shared."""
    settings = ctx.block.critic
    if settings is None or settings.shared:
        return None
    reward = ctx.block.reward or {}
    learned = [n for n, part in reward.items() if n == "reward_model" or (part or {}).get("kind") == "learned"]
    if settings.init == "reward_model" and learned:
        place = ctx.model_path((reward[learned[0]] or {}).get("model", learned[0]), f"{ctx.name}.critic")
        start = models.load_reward_model(place, ctx.cfg.model)
    else:
        start = models.load_policy(ctx.policy_path, ctx.cfg.model)
    if ctx.block.gradient_checkpointing:
        start.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return from_model(start.float(), autocast=autocast).train()


def make_reference(ctx: Context, learner: Learner) -> Reference | None:
    """None where no KL is asked; under LoRA the base itself."""
    block: Policy = ctx.block
    if not block.kl.coef:
        return None
    return AdapterOff(learner) if block.peft else Copy(start_of(ctx, learner), learner, block.kl)


def start_of(ctx: Context, learner: Learner) -> CompletionLogprobs:
    """The stage's start, computed as the policy is."""
    model = models.load_policy(ctx.policy_path, ctx.cfg.model).to(learner.where)
    if ctx.block.kl.reference == "ema":
        model = model.float()  # hundredths of a step would be rounded away in bfloat16
    return CompletionLogprobs(model, temperature=ctx.cfg.sampling.temperature, autocast=learner.bare.autocast)


def make_sampler(ctx: Context, generator: Generator, scorer: Composite) -> SampleAndScore:
    """Samples and their scores, kept on disk once finished."""
    block: Policy = ctx.block
    if block.episodes is not None:
        return make_player(ctx, generator, block.episodes)

    def sample_and_score(prompts: Sequence[Prompt], step: int, attempt: int) -> list[Scored]:
        with shutdown.at_once():
            return ctx.scored(generator, prompts, block.samples, "step", step, attempt, scorer=scorer)

    return sample_and_score


def make_ahead(ctx: Context, generator: Generator, scorer: Composite) -> Ahead | None:
    """The sampler's two halves for `overlap`: drawing, which a thread does, and keeping, which the loop does."""
    block: Policy = ctx.block
    if not block.overlap:
        return None
    ranks.open_aside()

    def draw(prompts: Sequence[Prompt], step: int) -> list[Scored]:
        drawn = rollouts(
            generator, prompts, ctx.cfg.sampling, samples=block.samples, tokenizer=ctx.tokenizer, ends=ctx.ends,
            key=(ctx.cfg.seed, ctx.name, "step", step, 0),
        )  # fmt: skip
        return score(scorer, drawn)

    def keep(prompts: Sequence[Prompt], scored: list[Scored], step: int) -> list[Scored]:
        def counted() -> list[Scored]:
            count(ctx.tokens, scored)
            return scored

        return ctx.kept(prompts, counted, "step", step, 0)

    def has(step: int) -> bool:
        return ctx.dir.checkpoints.index_of(ctx.dir.checkpoints.path / f"done-step-{step}-0") is not None

    return Ahead(draw, keep, has)


def make_player(ctx: Context, generator: Generator, settings: Episodes) -> SampleAndScore:
    """Episodes of several turns; what they earn is the environment's."""
    where = f"{ctx.cfg.path}: {ctx.name}.episodes.environment"
    environment = load_environment(settings.environment, ctx.cfg.verifier_dirs, where=where)

    def play_and_score(prompts: Sequence[Prompt], step: int, attempt: int) -> list[Scored]:
        with shutdown.at_once():
            played = play(
                generator, environment, prompts, ctx.cfg.sampling, samples=ctx.block.samples, tokenizer=ctx.tokenizer,
                ends=ctx.ends, max_turns=settings.max_turns, memory=settings.memory,
                key=(ctx.cfg.seed, ctx.name, "step", step, attempt), context=ctx.context_tokens(),
            )  # fmt: skip
        count(ctx.dir.logs.tokens, played)
        return played

    return play_and_score


def make_continuer(ctx: Context, generator: Any) -> Callable[[Sequence[Cut], int], list[list[Scored]]] | None:
    """For monte_carlo credit: completions sampled on from where they were cut, and scored as any other."""
    block: Policy = ctx.block
    if block.credit.kind != "monte_carlo":
        return None
    scorer = ctx.scorer_of(block.reward) if block.reward else ctx.scorer
    count = block.credit.continuations

    def continue_and_score(cuts: Sequence[Cut], step: int) -> list[list[Scored]]:
        drawn = continuations(
            generator, [(c.scored.rollout, c.at, c.place) for c in cuts], ctx.cfg.sampling, samples=count,
            key=(ctx.cfg.seed, ctx.name, "continue", step), tokenizer=ctx.tokenizer, ends=ctx.ends,
        )  # fmt: skip
        scored = score(scorer, drawn)
        return [scored[i : i + count] for i in range(0, len(scored), count)]

    return continue_and_score


def demonstrations(ctx: Context) -> list[Row]:
    """Rows to imitate in each update, where the loss has a ptx_coef: `ptx_data`, or the run's own completions."""
    block: Policy = ctx.block
    if not block.loss.ptx_coef:
        return []
    source = block.ptx_data or ctx.cfg.prompts
    split = ctx.rows_of(source, f"{ctx.name}.ptx_data") if block.ptx_data else ctx.split
    examples = encode(split.train, source, ctx)
    return [Row(e.prompt_ids, e.completion_ids, e.trained or (True,) * len(e.completion_ids)) for e in examples]


def make_judge(ctx: Context, generator: Any) -> Callable[[int], dict[str, Any]] | None:
    """A look at the held-out prompts on the way, as often as the YAML says."""
    block: Policy = ctx.block
    if block.evaluate_every is None:
        return None

    def judge(step: int) -> dict[str, Any]:
        judged = ctx.evaluate(generator, "step", step)
        return {**judged.figures, **from_start(ctx, judged, block.reward)}

    return judge


def kl_to_start(ctx: Context, parts: Parts, judged: Judged) -> Mapping[str, float]:
    """KL of the trained policy from where it started, on its own held-out samples: nats a completion and a token."""
    learner, budget = parts.learner, ctx.block.tokens_per_microbatch
    rows = [Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask) for s in judged.scored]
    now = learner.logprobs(rows)
    if parts.reference is not None and ctx.block.kl.reference == "frozen":
        before = parts.reference.logprobs(rows)
    elif ctx.block.peft:
        before = AdapterOff(learner).logprobs(rows)
    else:
        look = partial(completion_logprobs, start_of(ctx, learner), budget=budget, where=learner.where)
        before = ranks.mapped(look, rows)
    kl = mean_kl(rows, [a.tolist() for a in now], [b.tolist() for b in before])
    return {"kl_to_reference": kl.per_completion, "kl_to_reference_per_token": kl.per_token}


def compile_in_place(policy: CompletionLogprobs) -> None:
    """Compile the transformer under the head; its weights keep their names. vLLM on CPU switches the compiler off for
    the whole process, so it is switched on again here."""
    import torch._dynamo

    torch._dynamo.config.disable = False
    policy.packs = False  # packed rows are of another shape each time: every batch would be compiled anew
    models.backbone(adapters.base_of(policy.model)).compile(dynamic=True)


__all__ = ["run"]
