"""The one policy-optimisation loop; PPO and GRPO are settings of it.

A step: prompts -> rollouts -> scores -> credit -> update -> weight sync, checked by a canary. Everything random is a
function of (seed, stage, step).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import BY_GROUP, Overlap
from pipeline.credit import advantages as credit
from pipeline.credit.token_rewards import KLController
from pipeline.distributed import ranks
from pipeline.models.models import named_weights
from pipeline.records import Prompt, Scored, episodes, merged_episodes
from pipeline.run import alarms, console, shutdown
from pipeline.run.stage_logs import Stopwatch
from pipeline.seeds import cycle_indices, permutation
from pipeline.stats import counted, tally
from pipeline.update import best_step, canary
from pipeline.update.experience import describe, make_experience, returns_as_credited, token_figures
from pipeline.update.forward import Row
from pipeline.update.loop_state import LoopDeps, State, load, save
from pipeline.update.policy_loss import Experience
from pipeline.update.prompt_sampler import Rates, next_indices, observe
from rewards.monitor import MonitorHistory


def optimise(deps: LoopDeps) -> State:
    """Run to the last step, from the newest checkpoint if there is one. Raises alarms.Alarm."""
    block, name = deps.block, deps.directory.name
    state = State(controller=KLController(block.kl.coef, block.kl.target, block.kl.horizon))
    if deps.monitor is not None:
        state.monitor = MonitorHistory(deps.monitor.limits)
    checkpoint = deps.directory.checkpoints.resume()
    if ranks.is_main():
        deps.directory.checkpoints.drop_best_after(checkpoint.step if checkpoint is not None else 0)
    if checkpoint is not None:
        state = load(checkpoint.path, deps)
        console.say(f"{name}: resuming at step {state.step} of {block.steps}")
    sync_weights(deps, state, None, state.step)
    progress = console.Progress(name, block.steps, done=state.step, budget_share=share_spent(deps))
    clock = shutdown.CheckpointClock(shutdown.trained_bytes(deps.learner.policy, deps.learner.critic))
    while state.step < block.steps and not state.budget_spent and not state.stopped_early:
        with shutdown.finish_first():
            watch = Stopwatch()
            metrics = train_step(deps, state, watch)
            state.step += 1
            rates = log_step(deps, state, metrics, watch)
            if ranks.is_main():
                shown = {"reward": metrics["reward_mean"], "length": metrics["length_mean"]}
                shown |= {"entropy": metrics.get("entropy", math.nan), "tok/s": int(rates["tokens_per_s"])}
                progress.step(state.step, budget_share=share_spent(deps), **shown)
            stop, due = ranks.from_main(lambda: (shutdown.requested(), clock.due()))
            if stop or ((due or state.step % block.checkpoint_every == 0) and state.step < block.steps):
                save(deps, state)
                clock.saved()
        if stop:
            raise shutdown.Stopped
    if best_step.restore(deps, state):
        sync_weights(deps, state, None, state.step)
    return state


def share_spent(deps: LoopDeps) -> float:
    """Share of the token budget that is spent, as rank 0 counts it; 0 without a budget."""
    budget = deps.block.token_budget
    return deps.directory.logs.tokens["completion"] / budget if budget else 0.0


def tokens_left(deps: LoopDeps) -> float:
    """Completion tokens that may still be sampled; rank 0 counts all that were, earlier attempts included."""
    budget = deps.block.token_budget
    if budget is None:
        return math.inf
    return ranks.from_main(lambda: budget - deps.directory.logs.tokens["completion"])


def train_step(deps: LoopDeps, state: State, watch: Stopwatch) -> dict[str, Any]:
    """prompts -> rollouts -> scores -> credit -> update -> sync. Returns the step's metrics."""
    block, step = deps.block, state.step
    with watch.phase("rollout"):
        collected = sample_step(deps, state)
    scored = collected.scored
    metrics = describe(scored)
    if block.groups.dynamic:  # the groups that are trained on were chosen for their spread: they are not the policy
        metrics["batches_sampled"], metrics["reward_mean_trained"] = collected.batches, metrics["reward_mean"]
        metrics["reward_mean"] = tally(merged_episodes(collected.sampled)).reward_mean
    check_scores(deps, state, scored, metrics)
    if deps.monitor is not None:
        metrics |= deps.monitor.observe(state.monitor, scored, step)
    for part in deps.surrogates:
        metrics |= part.observe([(s.rollout.prompt.ids, s.rollout.ids, s.parts) for s in collected.sampled])
    with watch.phase("experience"):
        batch, more = make_experience(deps, state, scored)
    metrics |= more
    alarms.check_masked(sum(sum(r.mask) for r in batch.rows), step)
    if step == 0:
        raise_canary_floor(deps, state, batch.rows)
    spent = tokens_left(deps) <= 0  # before a batch that this step samples ahead is counted
    state.budget_spent = spent and not state.queue
    if deps.prefetch is not None:
        metrics["policy_lag"] = step - collected.version
        batch.stale = isinstance(block.overlap, Overlap) and collected.version < step  # `true` logs what it always did
        if not spent:
            start_prefetch(deps, state)
    with watch.phase("update"):
        metrics |= update_policy(deps, state, batch)
    check_update(deps, state, metrics)
    with watch.phase("wait"):
        if deps.prefetch is not None:
            deps.prefetch.wait()
    with watch.phase("sync"):
        if deps.reference is not None:
            deps.reference.after_step(step + 1)
        if deps.teacher is not None:
            deps.teacher.after_step(step + 1)
        metrics["canary_max_abs"] = sync_weights(deps, state, batch.rows, step)
        metrics["canary_limit"] = deps.canary_tolerance.limit(state.canary_floor)
    version: dict[str, int] = {}
    if isinstance(block.overlap, Overlap):
        version = {"policy_version": collected.version}
        metrics |= version
    deps.record(scored, step=step, **version, each=token_figures(batch))
    if ranks.is_main() and step % max(block.steps // 4, 1) == 0:
        console.show_samples(scored)
    return metrics


def log_step(deps: LoopDeps, state: State, metrics: dict[str, Any], watch: Stopwatch) -> dict[str, float]:
    """Two log lines: metrics, which a resumed run repeats to the byte, and times. Returns the times."""
    every = deps.block.evaluate_every
    if every and best_step.is_due(deps, state, every):
        figures = deps.source.evaluate(state.step)
        metrics |= figures
        best_step.compare(deps, state, figures)
    deps.directory.logs.log({"step": state.step, **metrics})
    rates = watch.rates(metrics["tokens"])
    checks = {f"{part.name}/check_s": round(part.seconds, 4) for part in deps.surrogates}
    checks |= {f"{part.name}/saved_s": round(part.seconds_saved, 4) for part in deps.surrogates}
    deps.directory.logs.log_timing({"step": state.step, **rates, **checks})
    if deps.prefetch is not None and not state.stopped_early:
        state.queue = state.queue[: len(state.queue) - deps.prefetch.keep()]
    return rates


# --- prompts -> rollouts -> scores -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Collected:
    """scored: the rows to train on, on every rank. sampled: all rows of the `batches` batches they were chosen from.
    version: updates that the policy which sampled them had had."""

    scored: list[Scored]
    sampled: list[Scored]
    batches: int
    version: int


def sample_step(deps: LoopDeps, state: State) -> Collected:
    """gather_groups; if a stop is requested meanwhile, the state at the start of the step is saved first."""
    mark = deps.directory.logs.mark()
    before = state.prompts_drawn, dict(state.drawn), state.rates, list(state.queue)
    try:
        return gather_groups(deps, state)
    except shutdown.Stopped:
        # with several processes only one has noticed the signal, and a checkpoint needs all of them
        if ranks.world() == 1 and not shutdown.late() and not deps.directory.checkpoints.has(state.step):
            deps.directory.logs.go_to(mark)
            state.prompts_drawn, state.drawn, state.rates, state.queue = before
            save(deps, state)
        raise


def gather_groups(deps: LoopDeps, state: State) -> Collected:
    """This step's scored rows.

    Dynamic sampling replaces groups with zero signal, by up to refill_cap batches; if that is not enough, the step is
    filled up with zero-signal groups, and says so. Source: DAPO, arXiv:2503.14476 §3.2.
    """
    block, attempt, version = deps.block, 0, state.step
    kept: list[list[Scored]] = []
    spare: list[list[Scored]] = []
    sampled: list[Scored] = []
    for attempt in range(block.groups.refill_cap if block.groups.dynamic else 1):
        queued = state.queue.pop(0) if state.queue else None
        version, by_source = queued or (state.step, next_positions(deps, state))
        prompts = prompts_at(deps, by_source)
        state.prompts_drawn += block.prompts
        for name, indices in by_source.items():
            state.drawn[name] = state.drawn.get(name, 0) + len(indices)
        if queued is not None:
            assert deps.prefetch is not None
            scored = deps.prefetch.take(prompts, state.step)
        else:
            scored = deps.source.sample_and_score(prompts, state.step, attempt)
        sampled += scored
        groups = grouped(scored, block.samples)
        lines = [{"step": state.step, "attempt": attempt, **difficulty(group)} for group in groups]
        deps.directory.logs.append("difficulty.jsonl", lines)
        if block.sampler.kind == "difficulty":
            state.rates = observed(deps, state, lines)
        returns_PG = returns_as_credited(scored, block.groups, deps.max_tokens).view(-1, block.samples)
        for group, by_score in zip(groups, credit.groups_with_signal(returns_PG).tolist(), strict=True):
            signal = by_score or any(reward for s in group for _, reward in s.step_rewards)
            (kept if signal or not block.groups.dynamic else spare).append(group)
        if len(kept) >= block.prompts:
            break
    if len(kept) < block.prompts and block.groups.dynamic:
        console.say(f"{deps.directory.name}: step {state.step}: only {len(kept)} of {block.prompts} groups have "
                    f"non-zero advantages after {attempt + 1} batches (groups.refill_cap); filling up with "
                    "zero-signal groups")  # fmt: skip
    chosen = (kept + spare)[: block.prompts]
    return Collected([s for group in chosen for s in group], sampled, attempt + 1, version)


def next_positions(deps: LoopDeps, state: State) -> dict[str, list[int]]:
    """Source -> positions in deps.prompts of what is sampled next; one source "" unless the sampler mixes several."""
    sampler = deps.block.sampler
    drawn = dict(state.drawn) if deps.ratios else {"": state.prompts_drawn}
    for _, by_source in state.queue:
        for name, indices in by_source.items():
            drawn[name] = drawn.get(name, 0) + len(indices)
    return next_indices(
        deps.sources or {"": range(len(deps.prompts))},
        deps.ratios or {"": 1.0},
        state.rates if sampler.kind == "difficulty" else None,
        drawn=drawn,
        count=deps.block.prompts,
        floor=sampler.floor,
        key=deps.seed_key,
    )


def prompts_at(deps: LoopDeps, by_source: Mapping[str, Sequence[int]]) -> list[Prompt]:
    return [deps.prompts[i] for indices in by_source.values() for i in indices]


def observed(deps: LoopDeps, state: State, lines: Sequence[Mapping[str, Any]]) -> Rates:
    """The pass rates after these lines of difficulty.jsonl; samples on which a checker broke do not count."""
    rates, discount = dict(state.rates), deps.block.sampler.discount
    for line in lines:
        i = line["prompt_index"]  # its position: a run's prompts are numbered in their order
        rates[i] = observe(rates.get(i), passed=line["passed"], samples=line["judged"], discount=discount)
    return rates


def start_prefetch(deps: LoopDeps, state: State) -> None:
    """Sample while the update runs, with the policy before it, up to the step that is max_lag ahead; in the first step
    that fills the queue. No steps beyond the last are sampled, and none once the budget is spent."""
    assert deps.prefetch is not None
    batches: dict[int, list[Prompt]] = {}
    for step in range(state.step + 1 + len(state.queue), min(state.step + deps.block.max_lag + 1, deps.block.steps)):
        by_source = next_positions(deps, state)
        state.queue.append((state.step, by_source))
        batches[step] = prompts_at(deps, by_source)
    deps.prefetch.start(batches, tokens_left=tokens_left(deps))


def grouped(scored: Sequence[Scored], samples: int) -> list[list[Scored]]:
    """Rows of each prompt together: `samples` episodes, of one row or of one row per turn."""
    all_of_them = episodes(scored)
    return [[s for e in all_of_them[i : i + samples] for s in e] for i in range(0, len(all_of_them), samples)]


def difficulty(rows: Sequence[Scored]) -> dict[str, Any]:
    """How hard one prompt was for this policy, zero-signal groups included: a line of difficulty.jsonl."""
    group = merged_episodes(rows)
    rewards = [s.reward for s in group if s.scorable]
    return {
        "prompt_index": group[0].rollout.prompt.index,
        "prompt": group[0].rollout.prompt.text,
        "samples": len(group),
        "scorable": len(rewards),
        "judged": len(counted(group)),  # what `passed` is a share of: every checker worked, those of weight 0 too
        "passed": sum(s.status == "pass" for s in counted(group)),
        "reward_mean": math.fsum(rewards) / len(rewards) if rewards else math.nan,
        "reward_min": min(rewards, default=math.nan),
        "reward_max": max(rewards, default=math.nan),
    }


def check_scores(deps: LoopDeps, state: State, scored: Sequence[Scored], metrics: dict[str, Any]) -> None:
    """Alarms of broken checkers and of steps without signal, by the rewards that credit is computed from."""
    block = deps.block
    detail = next((s.detail for s in scored if not s.scorable), "")
    alarms.check_rewritten(metrics.get("rewritten_history", 0.0), block.alarms.rewritten_history_share, state.step)
    alarms.check_checkers(metrics["checker_broken"], block.alarms.checker_broken_share, state.step, detail)
    rewards_PG = returns_as_credited(scored, block.groups, deps.max_tokens).view(-1, block.samples)
    signal = credit.groups_with_signal(rewards_PG).float().mean().item() if block.samples > 1 else 1.0
    metrics["groups_with_signal"] = signal
    along = any(s.step_rewards for s in scored)
    by_teacher = block.teacher is not None and not block.teacher.reward_coef
    if block.credit.kind in BY_GROUP and not along and not by_teacher:
        state.steps_without_signal = 0 if signal > 0 else state.steps_without_signal + 1
        rewards = rewards_PG[~rewards_PG.isnan()].tolist()
        alarms.check_signal(state.steps_without_signal, block.alarms.no_signal_steps, state.step, rewards)


# --- update ------------------------------------------------------------------------------------------------------


def update_policy(deps: LoopDeps, state: State, batch: Experience) -> dict[str, Any]:
    """All epochs and minibatches of one step; metrics are means over the updates, maxima over all."""
    block = deps.block
    warmup = block.critic.warmup_steps if block.critic is not None else 0
    kl_in_loss = block.kl.where == "loss" and deps.reference is not None
    learning_rate = deps.learner.schedule.get_last_lr()[0]  # of the first update; each update moves the schedule on
    updates: list[dict[str, float]] = []
    for number, indices in enumerate(minibatches(deps, state, batch)):
        updates.append(
            deps.learner.update(
                batch,
                indices,
                kl_coef=state.controller.coefficient if kl_in_loss else 0.0,
                kl_kind=block.kl.kind,
                train_policy=state.step >= warmup,
                demonstrations=demonstrations(deps, state.step, number),
            )
        )
    updates = [metrics for metrics in updates if metrics]  # without minibatches that were masked as a whole
    out = merge_updates(updates)
    out["learning_rate"] = learning_rate
    if kl_in_loss and "kl_k3" in updates[0]:
        if state.step == 0:
            alarms.check_reference(updates[0]["kl_k3"], deps.reference_tolerance)
        tokens = sum(sum(r.mask) for r in batch.rows)
        out["kl_sequence"] = out["kl_k1"] * tokens / batch.num_trainable_rows
        out["kl_coef"] = state.controller.coefficient
        alarms.check_finite("the KL to the reference", out["kl_sequence"], state.step)
        state.controller = state.controller.update(out["kl_sequence"], batch.num_trainable_rows)
    return out


def minibatches(deps: LoopDeps, state: State, batch: Experience) -> Iterator[list[int]]:
    """Row indices of each optimizer step: every epoch divides all rows in a new order."""
    count = deps.block.minibatches
    for epoch in range(deps.block.epochs):
        order = permutation(len(batch.rows), *deps.seed_key, "minibatch", state.step, epoch)
        # equal parts if the rows divide, which the config checks; episodes may have any number of turns
        bounds = [len(order) * k // count for k in range(count + 1)]
        for start, end in itertools.pairwise(bounds):
            yield order[start:end]


def merge_updates(updates: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Metrics of a step from those of its updates: means, and maxima of names in _max."""
    out: dict[str, Any] = {}
    for name in sorted({n for metrics in updates for n in metrics}):
        values = [metrics[name] for metrics in updates if name in metrics]
        out[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    first = updates[0]
    if "mismatch_mean_abs" in first:  # later updates have moved the policy: only the first compares like with like
        out["mismatch_mean_abs"], out["mismatch_max"] = first["mismatch_mean_abs"], first["mismatch_max"]
    return out


def demonstrations(deps: LoopDeps, step: int, update: int) -> list[Row]:
    """The rows to imitate in one update: as many as it has episodes, each pass over them in a new order."""
    if not deps.block.loss.ptx_coef:
        return []
    count = deps.block.prompts * deps.block.samples // deps.block.minibatches
    number = step * deps.block.epochs * deps.block.minibatches + update
    indices = cycle_indices(len(deps.demonstrations), number * count, count, *deps.seed_key, "ptx")
    return [deps.demonstrations[i] for i in indices]


def check_update(deps: LoopDeps, state: State, metrics: Mapping[str, Any]) -> None:
    """Alarms of losses, gradient norms and the mismatch between generator and trainer."""
    limits = deps.block.alarms
    for name in ("policy_loss", "value_loss", "ptx_loss"):
        alarms.check_finite(f"the {name.replace('_', ' ')}", metrics.get(name, 0.0), state.step, limits.loss_abs)
    for name in ("grad_norm", "critic_grad_norm"):
        alarms.check_finite(f"the {name.replace('_', ' ')}", metrics.get(name, 0.0), state.step)
    if "mismatch_mean_abs" in metrics:
        alarms.check_mismatch(metrics["mismatch_mean_abs"], limits.mismatch_mean_abs, state.step)
        state.mismatch = max(metrics["mismatch_mean_abs"], state.mismatch)  # the worst step; NaN compares as false


# --- sync --------------------------------------------------------------------------------------------------------


def raise_canary_floor(deps: LoopDeps, state: State, rows: Sequence[Row]) -> None:
    """Measure the gap of equal weights on sampled tokens too, before the first update.

    Greedy tokens, which the first sync was checked with, are likelier: on them the gap of Gemma 3 270M in bfloat16 was
    below .007, on sampled ones .018, and .021 after the first update.
    """
    gap = checked_gap(deps, state, canary.rows_of_step(rows), deps.canary_tolerance.most, state.step)
    state.canary_floor = max(state.canary_floor, gap)


def checked_gap(deps: LoopDeps, state: State, rows: Sequence[Row], limit: float, step: int) -> float:
    """The canary's gap on these rows, in nats. Raises Alarm where it is beyond the limit."""
    gap = canary.measure(deps.learner.inference, deps.generator, rows)
    alarms.check_canary(gap, limit, step)
    state.canary_max = max(state.canary_max, gap)
    return gap


def sync_weights(deps: LoopDeps, state: State, rows: Sequence[Row] | None, step: int) -> float:
    """Push the trainer's weights, then compare log-probs on rows of the step; every rank has its own generator.

    rows: None before the first step, when the model itself continues some prompts. The first gap of a run, between
    equal weights, is the floor that later gaps are compared with.
    """
    deps.generator.sync(named_weights(deps.learner.model))
    chosen = canary.rows_at_start(deps.generator, deps.prompts) if rows is None else canary.rows_of_step(rows)
    gap = checked_gap(deps, state, chosen, deps.canary_tolerance.limit(state.canary_floor), step)
    if math.isnan(state.canary_floor):
        state.canary_floor = gap
    return gap


__all__ = ["LoopDeps", "State", "difficulty", "gather_groups", "optimise"]
