"""What ppo and grpo share: build what the loop works with, run it, evaluate the policy and save it."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch

import rewards
from pipeline.config.load import ConfigError
from pipeline.config.schema import Credit, Kl, Loss, Policy, trains_adapter
from pipeline.data.lazy_rows import Mapped
from pipeline.data.prompt_columns import task_of
from pipeline.data.teacher_prompts import teacher_prompt_ids
from pipeline.distributed import sharding
from pipeline.models import adapters, models, weights
from pipeline.models.model_dir import activation_limit
from pipeline.run import console
from pipeline.stages.context import Context, Judged
from pipeline.stages.heldout_episodes import judge_episodes
from pipeline.stages.kl_to_start import mean_kl
from pipeline.stages.monitored_scorer import scorer_and_monitor
from pipeline.stages.rollout_source import make_source
from pipeline.update import best_step, canary, sharded
from pipeline.update.critic import SharedCritic, ValueModel, from_model
from pipeline.update.forward import CompletionLogprobs, Row, affordable_tokens
from pipeline.update.learner import Learner
from pipeline.update.loop import optimise
from pipeline.update.loop_state import LoopDeps
from pipeline.update.overlap import Prefetch
from pipeline.update.reference import AdapterOff, Copy, Reference
from pipeline.update.segmenter import Segmenter
from pipeline.update.served_teacher import ServedTeacher
from pipeline.update.teacher import TeacherModel
from rewards.source_parts import SOURCE

# KL per token between a policy and its copy that rounding may explain
REFERENCE_TOLERANCE = {torch.float32: 1e-5}
COARSE_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True)
class Method:
    """What makes a policy-gradient method: how scores become advantages, the loss on them, and the KL."""

    credit: Credit
    loss: Loss
    kl: Kl

    def departures(self, block: Policy) -> list[str]:
        """The settings of a block that differ from the method's, as `kl.coef=0.2`."""
        pairs: list[tuple[str, Any, Any]] = [
            ("credit", self.credit, block.credit),
            ("loss", self.loss, block.loss),
            ("kl", self.kl, block.kl),
        ]
        return [f"{part}.{field.name}={getattr(chosen, field.name)}" for part, usual, chosen in pairs
                for field in fields(usual) if getattr(usual, field.name) != getattr(chosen, field.name)]  # fmt: skip


def train_policy(ctx: Context, method: Method) -> dict[str, Any]:
    """Run the policy loop with the stage's settings. Returns the manifest's metrics."""
    block: Policy = ctx.block
    if departures := method.departures(block):
        console.say(f"{ctx.name}: settings that differ from {block.kind}'s own: {', '.join(departures)}")
    policy, precision = make_policy(ctx)
    learner = make_learner(ctx, policy)
    generator = ctx.generator()
    generator.weights = lambda: models.named_weights(learner.model)
    if block.compile:
        compile_in_place(policy)
    scorer, monitor = scorer_and_monitor(ctx)
    source = make_source(ctx, generator, scorer)
    deps = LoopDeps(
        block=block,
        seed_key=(ctx.cfg.seed, ctx.name),
        prompts=ctx.train_prompts.in_memory(),
        source=source,
        learner=learner,
        generator=generator,
        reference=make_reference(ctx, learner),
        teacher=make_teacher(ctx, learner),
        max_tokens=ctx.cfg.sampling.max_tokens,
        canary_tolerance=canary.tolerance(precision, ctx.cfg.generate.canary_tolerance),
        reference_tolerance=REFERENCE_TOLERANCE.get(precision, COARSE_TOLERANCE),
        directory=ctx.dir,
        record=ctx.record,
        sources=sources_of(ctx),
        ratios=block.sampler.ratios or {name: source.ratio for name, source in ctx.cfg.prompts.sources.items()},
        reward_weights={part.name: part.weight for part in scorer.parts if part.weight},
        demonstrations=demonstrations(ctx),
        monitor=monitor,
        prefetch=Prefetch(source) if block.max_lag else None,
        surrogates=scorer.surrogates,
        segmenter=Segmenter(block.credit.segments, ctx.tokenizer) if block.credit.level == "segment" else None,
    )
    with deps.prefetch or contextlib.nullcontext():
        state = optimise(deps)
    if state.step and state.steps_without_signal >= state.step:
        console.say(f"{ctx.name}: no group had a signal in any of the {state.step} steps, so nothing was learned; "
                    "docs/tasks.md, Alarms, says what to do")  # fmt: skip
    judged = ctx.evaluate(generator)
    distance = kl_to_start(ctx, deps, judged)
    models.save(learner.model, ctx.tokenizer, ctx.dir.model_dir, dtype=precision)
    console.show_samples(judged.scored)
    return {
        **judged.figures,
        **judge_episodes(ctx, generator, block.episodes),
        **distance,
        **best_step.chosen(deps, state),
        "steps": state.step,
        "mismatch_mean_abs": state.mismatch,
        "canary_max_abs": state.canary_max,
        "canary_tolerance": deps.canary_tolerance.limit(state.canary_floor),
        "generator": generator.name,
    }


def make_policy(ctx: Context) -> tuple[CompletionLogprobs, torch.dtype]:
    """The policy to train, and the precision it computes, samples and is saved in.

    Below float32 the trained weights are kept in float32 and multiplied in the lower precision: a step of 1e-6 on a
    bfloat16 weight would be rounded away. Under LoRA the base keeps its precision; the adapter is float32 by itself.
    """
    block: Policy = ctx.block
    model = models.load_policy(ctx.policy_path, ctx.cfg.model, adapted=trains_adapter(block), to_shard=True)
    precision = model.dtype
    if precision == torch.float16:
        raise ConfigError([f"{ctx.cfg.path}: model.dtype: float16 gradients overflow in {ctx.name}; use bfloat16"])
    if block.peft:
        torch.manual_seed(ctx.seed("adapter"))
        model = models.without_dropout(adapters.add_lora(model, block.peft, key=f"{ctx.cfg.path}: {ctx.name}"))
    elif precision != torch.float32:
        model = model.float()
    model.train()  # train() only matters for gradient checkpointing; dropout is already 0
    if block.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    kind = SharedCritic if block.critic is not None and block.critic.shared else CompletionLogprobs
    autocast = precision if precision != torch.float32 else None
    head = ctx.cfg.model.float32_head
    return kind(model, temperature=ctx.cfg.sampling.temperature, autocast=autocast, float32_head=head), precision


def make_learner(ctx: Context, policy: CompletionLogprobs) -> Learner:
    block: Policy = ctx.block
    warmup = block.critic.warmup_steps if block.critic is not None else 0  # the schedule stands still meanwhile
    return Learner(
        sharding.accelerator(),
        policy,
        make_critic(ctx, policy.autocast),
        loss=block.loss,
        optimizer=block.optimizer,
        critic_settings=block.critic,
        updates=max(block.steps - warmup, 1) * block.epochs * block.minibatches,
        max_tokens=ctx.cfg.sampling.max_tokens,
        budget=microbatch_tokens(block, policy.model),
    )


def microbatch_tokens(block: Policy, model: Any) -> int:
    """Tokens of a micro-batch: those of the config, on CPU no more than the limit for activations allows."""
    if block.gradient_checkpointing or torch.cuda.is_available():
        return block.tokens_per_microbatch
    limit = activation_limit(sum(p.numel() for p in model.parameters()))
    return min(block.tokens_per_microbatch, affordable_tokens(model, limit))


def make_critic(ctx: Context, autocast: torch.dtype | None) -> ValueModel | None:
    """A critic of its own, on the reward model's backbone or the policy's; None without a critic or if it is shared."""
    settings = ctx.block.critic
    if settings is None or settings.shared:
        return None
    learned = list(rewards.learned_models(ctx.block.reward or {}).values())
    if settings.init == "reward_model" and learned:
        path = ctx.model_path(learned[0], f"{ctx.name}.critic")
        start = models.load_reward_model(path, ctx.cfg.model, to_shard=True)
    else:
        start = models.load_policy(ctx.policy_path, ctx.cfg.model, to_shard=True)
    if ctx.block.gradient_checkpointing:
        start.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return from_model(start.float(), autocast=autocast).train()


def make_reference(ctx: Context, learner: Learner) -> Reference | None:
    """None if no KL is used; under LoRA the base itself."""
    block: Policy = ctx.block
    if not block.kl.coef:
        return None
    if block.peft:
        return AdapterOff(learner)
    return Copy(start_of(ctx, learner, ema=block.kl.reference == "ema"), learner, block.kl)


def sources_of(ctx: Context) -> dict[str, Sequence[int]]:
    """Source -> positions of its prompts, for a sampler with ratios. Raises ConfigError for an unknown source."""
    sampler, rows = ctx.block.sampler, ctx.train_prompts.rows
    if not sampler.ratios and not ctx.cfg.prompts.sources:
        return {}
    column = sampler.column if sampler.ratios else SOURCE
    out = {name: array("q") for name in sampler.ratios or ctx.cfg.prompts.sources}
    have = set[str]()
    for i, row in enumerate(rows):
        name = row[column] if column in row else task_of(row, ctx.cfg.prompts).get(column)
        if name is not None:
            have.add(str(name))
        if str(name) in out:
            out[str(name)].append(i)
    where = f"{ctx.cfg.path}: {ctx.name}.sampler"
    if not have:
        raise ConfigError([f"{where}.column: no row has a column {column!r}; have: {', '.join(map(str, rows[0]))}"])
    for source, positions in out.items():
        if not positions and not sampler.ratios:
            raise ConfigError([f"{ctx.cfg.path}: prompts.sources.{source}: no prompt left to train on"])
        if not positions:
            raise ConfigError([f"{where}.ratios: no prompt has {column} {source!r}; have: "
                               f"{', '.join(sorted(have))[:200]}"])  # fmt: skip
    return dict(out)


def make_teacher(ctx: Context, learner: Learner) -> TeacherModel | None:
    """The stage's teacher: another model, one behind a server, or a copy of the policy. Raises ConfigError for another
    tokenizer."""
    settings = ctx.block.teacher
    if settings is None:
        return None
    prompt_ids = partial(teacher_prompt_ids, shows=settings.shows, source=ctx.cfg.prompts, tokenizer=ctx.tokenizer)
    if settings.server is not None:
        served = ServedTeacher(settings.server, f"{ctx.cfg.path}: {ctx.name}.teacher.server")
        served.check_tokenizer(ctx.train_prompts, ctx.tokenizer)
        console.say(f"{ctx.name}: the teacher is {served.model} at {settings.server}")
        return TeacherModel(served, settings, prompt_ids, samples=ctx.block.samples)
    kl = Kl(reference="periodic" if settings.follow == "live" else settings.follow, ema=settings.ema, every=1)
    whole = settings.form == "full"
    forward = (start_of(ctx, learner, ema=settings.follow == "ema", whole=whole) if settings.model is None else
               other_model(ctx, learner))  # fmt: skip
    return TeacherModel(Copy(forward, learner, kl), settings, prompt_ids, samples=ctx.block.samples)


def other_model(ctx: Context, learner: Learner) -> CompletionLogprobs:
    """The teacher that the YAML names, frozen. Vocabularies may be padded differently, but ids must mean the same."""
    key = f"{ctx.name}.teacher.model"
    path = ctx.model_path(ctx.block.teacher.model, key)
    own, other = ctx.tokenizer.get_vocab(), models.load_tokenizer(path, ctx.cfg.model).get_vocab()
    if differing := next((token for token in own if token in other and own[token] != other[token]), None) or (
        next(iter(own.keys() ^ other.keys()), None)
    ):
        there, here = other.get(differing, "none"), own.get(differing, "none")
        raise ConfigError([f"{ctx.cfg.path}: {key}: the teacher has another tokenizer, but must read the policy's "
                           f"token ids: {differing!r} is token {there} there and {here} here"])  # fmt: skip
    return second_model(ctx, learner, path, whole=ctx.block.teacher.form == "full")


def start_of(ctx: Context, learner: Learner, *, ema: bool = False, whole: bool = False) -> CompletionLogprobs:
    """The stage's start. ema: for a moving average, in float32: it would lose hundredths of a step in bfloat16."""
    return second_model(ctx, learner, ctx.policy_path, float32=ema, whole=whole)


def second_model(
    ctx: Context, learner: Learner, path: str, *, float32: bool = False, whole: bool = False
) -> CompletionLogprobs:
    """A model that is not trained, with the policy's temperature and precision of products. Under FSDP2 it is sharded
    like the policy. whole: not even there, for what calls the head by itself."""
    model = models.load_policy(path, ctx.cfg.model, to_shard=not whole)
    forward = CompletionLogprobs(
        model.float() if float32 else model, temperature=ctx.cfg.sampling.temperature,
        autocast=learner.unwrapped.autocast, float32_head=learner.unwrapped.float32_head,
    )  # fmt: skip
    if whole or not sharding.is_fsdp2():
        return forward.to(learner.device)
    return sharded.shard(forward, learner.device, trained=False)


def demonstrations(ctx: Context) -> Sequence[Row]:
    """Rows to imitate in each update if the loss has a ptx_coef: `ptx_data`, or the run's own completions."""
    block: Policy = ctx.block
    if not block.loss.ptx_coef:
        return []
    from pipeline.stages.sft import encode  # imports TRL's side, PEFT and bitsandbytes: a third of a stage's start

    source = block.ptx_data or ctx.cfg.prompts
    split = ctx.rows_of(source, f"{ctx.name}.ptx_data") if block.ptx_data else ctx.split
    examples = encode(split.train, source, ctx)
    return Mapped(examples, lambda e: Row(e.prompt_ids, e.completion_ids, e.trained or (True,) * len(e.completion_ids)))


def kl_to_start(ctx: Context, deps: LoopDeps, judged: Judged) -> Mapping[str, float]:
    """KL of the trained policy from its start, on its own held-out samples: nats per completion and per token."""
    learner = deps.learner
    rows = [Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask) for s in judged.scored]
    now = learner.inference.logprobs(rows)
    if deps.reference is not None and ctx.block.kl.reference == "frozen":
        before = deps.reference.logprobs(rows)
    elif ctx.block.peft:
        before = AdapterOff(learner).logprobs(rows)
    else:
        before = Copy(start_of(ctx, learner), learner, ctx.block.kl).logprobs(rows)
    kl = mean_kl(rows, [a.tolist() for a in now], [b.tolist() for b in before])
    return {"kl_to_reference": kl.per_completion, "kl_to_reference_per_token": kl.per_token}


def compile_in_place(policy: CompletionLogprobs) -> None:
    """Compile the transformer below the head; its weights keep their names. vLLM on CPU switches the compiler off for
    the whole process, so it is switched on again here."""
    import torch._dynamo

    torch._dynamo.config.disable = False
    policy.packs = False  # packed rows have another shape each time: every batch would be compiled again
    models.backbone(weights.base_of(policy.model)).compile(dynamic=True)


__all__ = ["Method", "train_policy"]
