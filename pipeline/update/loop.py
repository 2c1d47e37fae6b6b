"""The one policy-optimisation loop. PPO and GRPO are settings of it.

A step: prompts -> rollouts -> scores -> advantages -> update -> weight sync and its canary. What to sample, how to
score and what credit to give come in as parts; everything random is a function of (seed, stage, step).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import alarms, console
from pipeline.credit import advantages as credit
from pipeline.credit import shaping
from pipeline.generate import CANARY_TOLERANCE, Generator, canary_gap
from pipeline.models import named_weights
from pipeline.records import Prompt, Scored
from pipeline.runs import StageDir
from pipeline.schema import Policy
from pipeline.score import tally
from pipeline.seeds import cycle_indices, permutation
from pipeline.update.critic import values_of
from pipeline.update.forward import Row, completion_logprobs, stack
from pipeline.update.learner import Experience, Learner, value_fit


@dataclass(slots=True)
class Parts:
    """What the loop is given. sample_and_score(prompts, step, attempt) -> Scored rows, prompt-major."""

    block: Policy
    seed_key: tuple[int | str, ...]
    prompts: Sequence[Prompt]
    sample_and_score: Callable[[Sequence[Prompt], int, int], list[Scored]]
    learner: Learner
    generator: Generator
    reference: Any | None  # CompletionLogprobs, or None where no KL is asked
    max_tokens: int
    canary_tolerance: float | None
    directory: StageDir
    record: Callable[..., None]


@dataclass(slots=True)
class State:
    """Besides weights and optimisers, all that a resumed run cannot compute anew."""

    step: int = 0
    controller: shaping.KLController = field(default_factory=lambda: shaping.KLController(0.0))
    steps_without_signal: int = 0
    prompts_drawn: int = 0
    canary_max: float = 0.0
    mismatch: float = math.nan


class Stopwatch:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Any:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def optimise(parts: Parts) -> State:
    """Run to the last step, from the newest checkpoint if there is one. Raises alarms.Alarm."""
    block, learner = parts.block, parts.learner
    state = State(controller=shaping.KLController(block.kl.coef, block.kl.target, block.kl.horizon))
    found = parts.directory.resume()
    if found is not None:
        saved = torch.load(found.place / "state.pt", weights_only=True)
        learner.load_state(saved["learner"])
        state = _restored(saved["loop"])
        console.say(f"{parts.directory.name}: resuming at step {state.step} of {block.steps}")
    sequences = canary_sequences(parts.prompts)
    _sync(parts, state, sequences, state.step)
    progress = console.Progress(parts.directory.name, block.steps, done=state.step)
    while state.step < block.steps:
        watch = Stopwatch()
        metrics = _step(parts, state, sequences, watch)
        state.step += 1
        parts.directory.log({"step": state.step, **metrics})
        spent = {k: round(v, 4) for k, v in watch.seconds.items()}
        rate = metrics["tokens"] / max(sum(watch.seconds.values()), 1e-9)
        parts.directory.log_timing({"step": state.step, **spent, "tokens_per_s": round(rate, 1)})
        progress.step(state.step, reward=metrics["reward_mean"], length=metrics["length_mean"],
                      entropy=metrics.get("entropy", math.nan), **{"tok/s": int(rate)})  # fmt: skip
        if state.step % block.checkpoint_every == 0 and state.step < block.steps:
            parts.directory.save_checkpoint(state.step, lambda place: _save(place, learner, state))
    return state


def _step(parts: Parts, state: State, sequences: Sequence[Sequence[int]], watch: Stopwatch) -> dict[str, Any]:
    block, step = parts.block, state.step
    with watch.phase("rollout"):
        scored = gather_groups(parts, state)
    metrics = describe(scored, parts.max_tokens)
    _check_scores(parts, state, scored, metrics)
    with watch.phase("experience"):
        seen, more = make_experience(parts, state, scored)
    metrics |= more
    alarms.check_masked(sum(sum(r.mask) for r in seen.rows), step)
    with watch.phase("update"):
        metrics |= _updates(parts, state, seen)
    alarms.check_finite("the policy loss", metrics.get("policy_loss", 0.0), step, block.alarms.loss_abs)
    alarms.check_finite("the gradient norm", metrics.get("grad_norm", 0.0), step)
    if "mismatch_mean_abs" in metrics:
        alarms.check_mismatch(metrics["mismatch_mean_abs"], block.alarms.mismatch_mean_abs, step)
        state.mismatch = metrics["mismatch_mean_abs"]
    with watch.phase("sync"):
        metrics["canary_max_abs"] = _sync(parts, state, sequences, step)
    parts.record(scored, step=step)
    if step % max(block.steps // 4, 1) == 0:
        console.show_samples(scored)
    return metrics


def gather_groups(parts: Parts, state: State) -> list[Scored]:
    """This step's scored rows. Dynamic sampling replaces groups that teach nothing, up to refill_cap batches.

    Source: DAPO, arXiv:2503.14476 §3.2.
    """
    block = parts.block
    kept: list[list[Scored]] = []
    spare: list[list[Scored]] = []
    for attempt in range(block.groups.refill_cap if block.groups.dynamic else 1):
        places = cycle_indices(len(parts.prompts), state.prompts_drawn, block.prompts, *parts.seed_key, "order")
        state.prompts_drawn += block.prompts
        scored = parts.sample_and_score([parts.prompts[i] for i in places], state.step, attempt)
        groups = [scored[i : i + block.samples] for i in range(0, len(scored), block.samples)]
        for group in groups:
            usable = {s.reward for s in group if s.scorable}
            (kept if len(usable) > 1 or not block.groups.dynamic else spare).append(group)
        if len(kept) >= block.prompts:
            break
    chosen = (kept + spare)[: block.prompts]
    return [s for group in chosen for s in group]


def describe(scored: Sequence[Scored], max_tokens: int) -> dict[str, Any]:
    """Figures of what was sampled, before any update."""
    summary = tally(scored)
    lengths = [len(s.rollout.ids) for s in scored]
    names = sorted({name for s in scored for name in s.parts})
    parts = {}
    for name in names:
        values = [v for s in scored if (v := s.parts.get(name)) is not None]
        parts[f"reward/{name}"] = math.fsum(values) / len(values) if values else math.nan
    return {
        "reward_mean": summary.reward_mean,
        "reward_std": summary.reward_std,
        **parts,
        "passed": summary.passed,
        "malformed": summary.malformed,
        "checker_broken": summary.broken,
        "length_mean": sum(lengths) / len(lengths),
        "length_max": max(lengths),
        "truncated": sum(not s.rollout.finished for s in scored) / len(scored),
        "distinct": len({(s.rollout.prompt.index, s.rollout.ids) for s in scored}) / len(scored),
        "tokens": sum(lengths),
    }


def _check_scores(parts: Parts, state: State, scored: Sequence[Scored], metrics: dict[str, Any]) -> None:
    block = parts.block
    detail = next((s.detail for s in scored if not s.scorable), "")
    alarms.check_checkers(metrics["checker_broken"], block.alarms.checker_broken_share, state.step, detail)
    rewards_PG = torch.tensor([s.reward for s in scored]).view(-1, block.samples)
    signal = credit.groups_with_signal(rewards_PG).float().mean().item() if block.samples > 1 else 1.0
    metrics["groups_with_signal"] = signal
    if block.credit.kind in ("group", "leave_one_out"):
        state.steps_without_signal = 0 if signal > 0 else state.steps_without_signal + 1
        seen = [s.reward for s in scored if s.scorable]
        alarms.check_signal(state.steps_without_signal, block.alarms.no_signal_steps, state.step, seen)


def make_experience(parts: Parts, state: State, scored: Sequence[Scored]) -> tuple[Experience, dict[str, Any]]:
    """Old and reference log-probs, values, and the advantages they give."""
    block, learner = parts.block, parts.learner
    rows = [as_row(s, masked=block.groups.overlong == "mask" and not s.rollout.finished) for s in scored]
    scores_B = shaped_scores(scored, block, parts.max_tokens)
    rows = [row if math.isfinite(x) else Row(row.prompt_ids, row.ids, (False,) * len(row.ids))
            for row, x in zip(rows, scores_B.tolist(), strict=True)]  # fmt: skip
    kl_in_reward = block.kl.where == "reward" and parts.reference is not None
    several = block.epochs * block.minibatches > 1
    old = learner.logprobs(rows) if several or kl_in_reward else None
    reference = None
    if parts.reference is not None:
        reference = completion_logprobs(parts.reference, rows, budget=block.tokens_per_microbatch, where=learner.where)
    metrics: dict[str, Any] = {}
    kl = None
    if kl_in_reward:
        assert old is not None and reference is not None
        kl = [a - b for a, b in zip(old, reference, strict=True)]
        sequence_kl = float(sum((k * torch.tensor(r.mask)).sum() for k, r in zip(kl, rows, strict=True)) / len(rows))
        if state.step == 0:
            alarms.check_reference(sequence_kl, 1e-2)
        metrics |= {"kl_sequence": sequence_kl, "kl_coef": state.controller.coefficient}
        state.controller = state.controller.update(sequence_kl, len(rows))
    seen = Experience(rows, [], [torch.tensor(s.rollout.logprobs) for s in scored], old, reference)
    assign_credit(parts, seen, scores_B, kl, metrics)
    return seen, metrics


def assign_credit(parts: Parts, seen: Experience, scores_B: Tensor, kl: list[Tensor] | None, metrics: dict) -> None:
    """Fill seen.advantages, and values and returns where there is a critic."""
    block, rows = parts.block, seen.rows
    if block.credit.kind == "gae":
        advantages_BT = _gae(parts, seen, scores_B, kl, metrics)
    else:
        rewards_B = scores_B if kl is None else scores_B - metrics["kl_coef"] * torch.stack(
            [(k * torch.tensor(r.mask)).sum() for k, r in zip(kl, rows, strict=True)])  # fmt: skip
        rewards_PG = rewards_B.view(-1, block.samples)
        if block.credit.kind == "group":
            advantages_PG = credit.group_advantages(rewards_PG, scale=block.credit.scale)
        elif block.credit.kind == "leave_one_out":
            advantages_PG = credit.leave_one_out(rewards_PG)
        else:
            advantages_PG = credit.global_baseline(rewards_PG)
        longest = max(len(r.ids) for r in rows)
        advantages_BT = advantages_PG.reshape(-1, 1).expand(-1, longest)
    seen.advantages = [a[: len(r.ids)] for a, r in zip(advantages_BT, rows, strict=True)]


def _gae(parts: Parts, seen: Experience, scores_B: Tensor, kl: list[Tensor] | None, metrics: dict) -> Tensor:
    block, rows, critic = parts.block, seen.rows, parts.learner.critic
    assert critic is not None and block.critic is not None
    with_last = values_of(critic, rows, budget=block.tokens_per_microbatch, where=parts.learner.where)
    values = [v[:-1] for v in with_last]
    mask_BT = stack([r.mask for r in rows]).bool()
    kl_BT = stack(kl) if kl is not None else torch.zeros(mask_BT.shape)
    rewards_BT = shaping.token_rewards(scores_B, kl_BT, mask_BT, kl_coef=metrics.get("kl_coef", 0.0))
    cut_B = torch.tensor([len(r.ids) >= parts.max_tokens for r in rows])
    last_B = torch.where(cut_B, torch.stack([v[-1] for v in with_last]), 0.0) if block.critic.bootstrap else None
    advantages_BT, returns_BT = credit.gae(
        rewards_BT, stack(values), mask_BT, gamma=block.credit.gamma, lam=block.credit.lam, last_values_B=last_B
    )
    seen.values = values
    seen.returns = [x[: len(r.ids)] for x, r in zip(returns_BT, rows, strict=True)]
    metrics["explained_variance"] = value_fit(seen.values, seen.returns, rows)
    metrics["value_mean"] = credit.masked_mean(stack(values), mask_BT)
    return credit.whiten(advantages_BT, mask_BT) if block.credit.whiten else advantages_BT


def _updates(parts: Parts, state: State, seen: Experience) -> dict[str, Any]:
    """All epochs and minibatches of one step; figures are means over the updates, maxima over all."""
    block = parts.block
    warmup = block.critic.warmup_steps if block.critic is not None else 0
    in_loss = block.kl.where == "loss"
    out: list[dict[str, float]] = []
    for epoch in range(block.epochs):
        order = permutation(len(seen.rows), *parts.seed_key, "minibatch", state.step, epoch)
        size = len(order) // block.minibatches
        for start in range(0, len(order), size):
            out.append(
                parts.learner.update(
                    seen,
                    order[start : start + size],
                    kl_coef=block.kl.coef if in_loss else 0.0,
                    kl_kind=block.kl.kind,
                    policy_learns=state.step >= warmup,
                )
            )
    merged: dict[str, Any] = {}
    for name in sorted({n for figures in out for n in figures}):
        values = [figures[name] for figures in out if name in figures]
        merged[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    merged["learning_rate"] = parts.learner.schedule.get_last_lr()[0]
    if "mismatch_mean_abs" in out[0]:  # later updates have moved the policy: only the first compares like with like
        merged["mismatch_mean_abs"], merged["mismatch_max"] = out[0]["mismatch_mean_abs"], out[0]["mismatch_max"]
    if state.step == 0 and "kl_k3" in out[0]:
        alarms.check_reference(out[0]["kl_k3"], 1e-3)
    return merged


def shaped_scores(scored: Sequence[Scored], block: Policy, max_tokens: int) -> Tensor:
    """(B,) rewards after the penalties for length and for a missing end."""
    scores_B = torch.tensor([s.reward for s in scored], dtype=torch.float32)
    finished_B = torch.tensor([s.rollout.finished for s in scored])
    if block.groups.missing_eos_penalty:
        scores_B = shaping.missing_eos_penalty(scores_B, finished_B, penalty=block.groups.missing_eos_penalty)
    if block.groups.overlong_buffer:
        lengths_B = torch.tensor([len(s.rollout.ids) for s in scored])
        scores_B = scores_B + shaping.soft_overlong_penalty(
            lengths_B, max_length=max_tokens, buffer=block.groups.overlong_buffer
        )
    return scores_B


def as_row(scored: Scored, *, masked: bool) -> Row:
    """masked: an overlong row that is filtered, or one the checker broke on."""
    rollout = scored.rollout
    off = masked or not scored.scorable
    return Row(rollout.prompt.ids, rollout.ids, (False,) * len(rollout.ids) if off else rollout.mask)


def canary_sequences(prompts: Sequence[Prompt], count: int = 4) -> list[list[int]]:
    """Fixed token sequences to compare both sides on: prompts that stand far apart in the data, two copies long."""
    stride = max(len(prompts) // count, 1)
    return [[*p.ids, *reversed(p.ids)] for p in list(prompts)[::stride][:count]]


def _sync(parts: Parts, state: State, sequences: Sequence[Sequence[int]], step: int) -> float:
    """Push the trainer's weights and compare both sides on fixed tokens."""
    model = parts.learner.model
    parts.generator.sync(named_weights(model))
    gap = canary_gap(parts.generator, model, sequences)
    tolerance = parts.canary_tolerance or CANARY_TOLERANCE.get(next(model.parameters()).dtype, 0.25)
    alarms.check_canary(gap, tolerance, step)
    state.canary_max = max(state.canary_max, gap)
    return gap


def _save(place: Path, learner: Learner, state: State) -> None:
    loop = {name: getattr(state, name) for name in State.__slots__}
    loop["controller"] = state.controller.to_dict()
    torch.save({"learner": learner.state(), "loop": loop}, place / "state.pt")


def _restored(saved: dict[str, Any]) -> State:
    return State(**{**saved, "controller": shaping.KLController.from_dict(saved["controller"])})
