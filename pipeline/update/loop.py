"""The one policy-optimisation loop. PPO and GRPO are settings of it.

A step: prompts -> rollouts -> scores -> advantages -> update -> weight sync and its canary. What to sample, how to
score and what credit to give come in as parts; everything random is a function of (seed, stage, step).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.credit import advantages as credit
from pipeline.credit.token_rewards import KLController
from pipeline.distributed import ranks
from pipeline.models.models import named_weights
from pipeline.records import Scored, episodes, whole
from pipeline.run import alarms, console, shutdown
from pipeline.seeds import cycle_indices, permutation
from pipeline.update import canary
from pipeline.update.experience import describe, make_experience, token_figures
from pipeline.update.forward import Row
from pipeline.update.learner import Experience
from pipeline.update.loop_state import Parts, State, Stopwatch, load, save
from rewards.monitor import Monitor


def optimise(parts: Parts) -> State:
    """Run to the last step, from the newest checkpoint if there is one. Raises alarms.Alarm."""
    block, name = parts.block, parts.directory.name
    state = State(controller=KLController(block.kl.coef, block.kl.target, block.kl.horizon))
    if parts.watch is not None:
        state.monitor = Monitor(parts.watch.limits)
    found = parts.directory.checkpoints.resume()
    if found is not None:
        state = load(found.path, parts)
        console.say(f"{name}: resuming at step {state.step} of {block.steps}")
    _sync(parts, state, None, state.step)
    progress = console.Progress(name, block.steps, done=state.step)
    while state.step < block.steps and not spent(parts):
        with shutdown.finish_first():
            metrics, rates = _measured_step(parts, state)
            if ranks.is_main():
                shown = {"reward": metrics["reward_mean"], "length": metrics["length_mean"]}
                shown |= {"entropy": metrics.get("entropy", math.nan), "tok/s": int(rates["tokens_per_s"])}
                progress.step(state.step, **shown)
            stop = ranks.from_main(shutdown.requested)
            if stop or (state.step % block.checkpoint_every == 0 and state.step < block.steps):
                save(parts, state)
        if stop:
            raise shutdown.Stopped
    return state


def _measured_step(parts: Parts, state: State) -> tuple[dict[str, Any], dict[str, float]]:
    """A step and its two log lines: figures, which a resumed run repeats to the byte, and times."""
    every, watch = parts.block.evaluate_every, Stopwatch()
    metrics = _step(parts, state, watch)
    state.step += 1
    if parts.judge is not None and every and state.step % every == 0:
        metrics |= parts.judge(state.step)
    parts.directory.logs.log({"step": state.step, **metrics})
    rates = watch.rates(metrics["tokens"])
    parts.directory.logs.log_timing({"step": state.step, **rates})
    if parts.ahead is not None:
        parts.ahead.keep()
    return metrics, rates


def spent(parts: Parts) -> bool:
    """True once the budget of completion tokens is used up; rank 0 has counted them all, earlier tries' too."""
    budget = parts.block.token_budget
    return budget is not None and ranks.from_main(lambda: parts.directory.logs.tokens["completion"] >= budget)


def _step(parts: Parts, state: State, watch: Stopwatch) -> dict[str, Any]:
    block, step = parts.block, state.step
    with watch.phase("rollout"):
        scored, batches = _rollouts(parts, state)
    metrics = describe(scored)
    if block.groups.dynamic:
        metrics["batches_sampled"] = batches
    _check_scores(parts, state, scored, metrics)
    if parts.watch is not None:
        metrics |= parts.watch.observe(state.monitor, scored, step)
    with watch.phase("experience"):
        seen, more = make_experience(parts, state, scored)
    metrics |= more
    alarms.check_masked(sum(sum(r.mask) for r in seen.rows), step)
    _start_ahead(parts, state, metrics)
    with watch.phase("update"):
        metrics |= _updates(parts, state, seen)
    for name in ("policy_loss", "value_loss", "ptx_loss"):
        alarms.check_finite(f"the {name.replace('_', ' ')}", metrics.get(name, 0.0), step, block.alarms.loss_abs)
    for name in ("grad_norm", "critic_grad_norm"):
        alarms.check_finite(f"the {name.replace('_', ' ')}", metrics.get(name, 0.0), step)
    if "mismatch_mean_abs" in metrics:
        alarms.check_mismatch(metrics["mismatch_mean_abs"], block.alarms.mismatch_mean_abs, step)
        state.mismatch = metrics["mismatch_mean_abs"]
    with watch.phase("wait"):
        if parts.ahead is not None:
            parts.ahead.wait()
    with watch.phase("sync"):
        if parts.reference is not None:
            parts.reference.after_step(step + 1)
        metrics["canary_max_abs"] = _sync(parts, state, seen.rows, step)
    parts.record(scored, step=step, each=token_figures(seen))
    if ranks.is_main() and step % max(block.steps // 4, 1) == 0:
        console.show_samples(scored)
    return metrics


def _rollouts(parts: Parts, state: State) -> tuple[list[Scored], int]:
    """gather_groups; asked to stop in the midst of it, the state that the step began with is saved first."""
    mark, drawn = parts.directory.logs.mark(), state.prompts_drawn
    try:
        return gather_groups(parts, state)
    except shutdown.Stopped:
        # of several processes one alone was in time to be told, and a checkpoint takes all of them
        if ranks.world() == 1 and not shutdown.late() and not parts.directory.checkpoints.has(state.step):
            parts.directory.logs.go_to(mark)
            state.prompts_drawn = drawn
            save(parts, state)
        raise


def _start_ahead(parts: Parts, state: State, metrics: dict[str, Any]) -> None:
    """Have the next step's samples drawn while the update runs; the last step has no next."""
    if parts.ahead is None:
        return
    metrics["policy_lag"] = 1 if state.step else 0
    if state.step + 1 < parts.block.steps:
        # gather_groups has moved prompts_drawn on: these are the ones it will ask for next
        places = cycle_indices(len(parts.prompts), state.prompts_drawn, parts.block.prompts, *parts.seed_key, "order")
        parts.ahead.start([parts.prompts[place] for place in places], state.step + 1)


def gather_groups(parts: Parts, state: State) -> tuple[list[Scored], int]:
    """This step's scored rows, on every rank, and how many batches were sampled for them.

    Dynamic sampling replaces groups that teach nothing, by up to refill_cap batches; where that is not enough, the step
    is filled up with groups that teach nothing, and says so. Source: DAPO, arXiv:2503.14476 §3.2.
    """
    block, attempt = parts.block, 0
    kept: list[list[Scored]] = []
    spare: list[list[Scored]] = []
    for attempt in range(block.groups.refill_cap if block.groups.dynamic else 1):
        places = cycle_indices(len(parts.prompts), state.prompts_drawn, block.prompts, *parts.seed_key, "order")
        state.prompts_drawn += block.prompts
        scored = parts.ahead.take(state.step) if parts.ahead is not None else None
        if scored is None:
            scored = parts.sample_and_score([parts.prompts[place] for place in places], state.step, attempt)
        groups = grouped(scored, block.samples)
        parts.directory.logs.append(
            "difficulty.jsonl", [{"step": state.step, "attempt": attempt, **difficulty(g)} for g in groups]
        )
        for group in groups:
            along = any(reward for s in group for _, reward in s.step_rewards)
            teaches = along or len({s.reward for s in wholes(group) if s.scorable}) > 1
            (kept if teaches or not block.groups.dynamic else spare).append(group)
        if len(kept) >= block.prompts:
            break
    if len(kept) < block.prompts and block.groups.dynamic:
        console.say(f"{parts.directory.name}: step {state.step}: {len(kept)} of {block.prompts} groups can teach after "
                    f"{attempt + 1} batches (groups.refill_cap)")  # fmt: skip
    chosen = (kept + spare)[: block.prompts]
    return [s for group in chosen for s in group], attempt + 1


def grouped(scored: Sequence[Scored], samples: int) -> list[list[Scored]]:
    """Rows of each prompt together: `samples` episodes, of one row or of a row a turn."""
    all_of_them = episodes(scored)
    return [[s for e in all_of_them[i : i + samples] for s in e] for i in range(0, len(all_of_them), samples)]


def wholes(scored: Sequence[Scored]) -> list[Scored]:
    return [whole(episode) for episode in episodes(scored)]


def difficulty(rows: Sequence[Scored]) -> dict[str, Any]:
    """How hard one prompt was for this policy, groups that taught nothing included: a line of difficulty.jsonl."""
    group = wholes(rows)
    rewards = [s.reward for s in group if s.scorable]
    return {
        "prompt_index": group[0].rollout.prompt.index,
        "prompt": group[0].rollout.prompt.text,
        "samples": len(group),
        "scorable": len(rewards),
        "passed": sum(s.status == "pass" for s in group),
        "reward_mean": math.fsum(rewards) / len(rewards) if rewards else math.nan,
        "reward_min": min(rewards, default=math.nan),
        "reward_max": max(rewards, default=math.nan),
    }


def _check_scores(parts: Parts, state: State, scored: Sequence[Scored], metrics: dict[str, Any]) -> None:
    block = parts.block
    detail = next((s.detail for s in scored if not s.scorable), "")
    alarms.check_checkers(metrics["checker_broken"], block.alarms.checker_broken_share, state.step, detail)
    rewards_PG = torch.tensor([s.earned for s in wholes(scored)]).view(-1, block.samples)
    signal = credit.groups_with_signal(rewards_PG).float().mean().item() if block.samples > 1 else 1.0
    metrics["groups_with_signal"] = signal
    along = any(s.step_rewards for s in scored)
    if block.credit.kind in ("group", "leave_one_out") and not along:
        state.steps_without_signal = 0 if signal > 0 else state.steps_without_signal + 1
        seen = [s.reward for s in wholes(scored) if s.scorable]
        alarms.check_signal(state.steps_without_signal, block.alarms.no_signal_steps, state.step, seen)


def _updates(parts: Parts, state: State, seen: Experience) -> dict[str, Any]:
    """All epochs and minibatches of one step; figures are means over the updates, maxima over all."""
    block = parts.block
    warmup = block.critic.warmup_steps if block.critic is not None else 0
    in_loss = block.kl.where == "loss" and parts.reference is not None
    out: list[dict[str, float]] = []
    for epoch in range(block.epochs):
        order = permutation(len(seen.rows), *parts.seed_key, "minibatch", state.step, epoch)
        # in equal parts where rows divide, as config sees to; episodes may have turns in any number
        ends = [len(order) * k // block.minibatches for k in range(block.minibatches + 1)]
        for start, end in itertools.pairwise(ends):
            out.append(
                parts.learner.update(
                    seen,
                    order[start:end],
                    kl_coef=state.controller.coefficient if in_loss else 0.0,
                    kl_kind=block.kl.kind,
                    policy_learns=state.step >= warmup,
                    demonstrations=demonstrations(parts, state.step, len(out)),
                )
            )
    out = [figures for figures in out if figures]  # of minibatches that were not masked as a whole
    merged: dict[str, Any] = {}
    for name in sorted({n for figures in out for n in figures}):
        values = [figures[name] for figures in out if name in figures]
        merged[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    merged["learning_rate"] = parts.learner.schedule.get_last_lr()[0]
    if "mismatch_mean_abs" in out[0]:  # later updates have moved the policy: only the first compares like with like
        merged["mismatch_mean_abs"], merged["mismatch_max"] = out[0]["mismatch_mean_abs"], out[0]["mismatch_max"]
    if in_loss and "kl_k3" in out[0]:
        if state.step == 0:
            alarms.check_reference(out[0]["kl_k3"], parts.reference_tolerance)
        tokens = sum(sum(r.mask) for r in seen.rows)
        merged["kl_sequence"] = merged["kl_k1"] * tokens / seen.learnt_from
        merged["kl_coef"] = state.controller.coefficient
        alarms.check_finite("the KL to the reference", merged["kl_sequence"], state.step)
        state.controller = state.controller.update(merged["kl_sequence"], seen.learnt_from)
    return merged


def demonstrations(parts: Parts, step: int, update: int) -> list[Row]:
    """The rows to imitate in one update: as many as it has episodes, each pass over them in a fresh order."""
    if not parts.block.loss.ptx_coef:
        return []
    count = parts.block.prompts * parts.block.samples // parts.block.minibatches
    number = step * parts.block.epochs * parts.block.minibatches + update
    places = cycle_indices(len(parts.demonstrations), number * count, count, *parts.seed_key, "ptx")
    return [parts.demonstrations[i] for i in places]


def _sync(parts: Parts, state: State, rows: Sequence[Row] | None, step: int) -> float:
    """Push the trainer's weights, then compare both sides on rows of the step; every rank its own generator.

    rows: None before the first step, where the model itself continues some prompts. The first gap of a run, between
    equal weights, is the floor that later ones are held against.
    """
    parts.generator.sync(named_weights(parts.learner.model))
    chosen = canary.rows_at_start(parts.generator, parts.prompts) if rows is None else canary.rows_of_step(rows)
    gap = canary.measure(parts.learner, parts.generator, chosen)
    alarms.check_canary(gap, parts.canary_tolerance.limit(state.canary_floor), step)
    if math.isnan(state.canary_floor):
        state.canary_floor = gap
    state.canary_max = max(state.canary_max, gap)
    return gap


__all__ = ["Parts", "State", "difficulty", "gather_groups", "optimise"]
