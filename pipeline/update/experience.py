"""Scored rollouts -> what an update needs of them: rows, old and reference log-probs, values, advantages.

Every rank holds all rows of the step, so group means, whitening and alarms equal those of one process; only forward
passes are divided among ranks. Axes: see pipeline/credit/__init__.py; B counts all rows of the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.config.load import ConfigError
from pipeline.config.schema import Credit, Critic, Groups
from pipeline.credit import advantages as credit
from pipeline.credit import group_credits, token_rewards
from pipeline.credit.segments import first_tokens
from pipeline.records import Scored, episodes, merged_episodes
from pipeline.run import alarms
from pipeline.stats import episode_figures, tally
from pipeline.update import episode_credit, losses, vineppo
from pipeline.update.forward import Row, stack
from pipeline.update.loop_state import LoopDeps, State
from pipeline.update.policy_loss import Experience
from pipeline.update.teacher import TeacherModel, reverse_kl_advantages
from rewards import is_part

BASELINES = ("group", "leave_one_out", "global_baseline")  # credits that also serve rewards along the way


@dataclass(frozen=True, slots=True)
class Earned:
    """What the rows earned. scores_B: after penalties, NaN where a checker broke. step_rewards: per row, (its T,)
    rewards given along the way, besides the score. kl: per row, KL per token; None if the KL is not in the reward."""

    scored: Sequence[Scored]
    rows: list[Row]
    scores_B: Tensor
    step_rewards: list[Tensor]
    kl: list[Tensor] | None
    kl_coef: float

    @property
    def totals_B(self) -> Tensor:
        """Everything each row earned; NaN where it could not be scored."""
        if not self.has_step_rewards:  # a sum per row costs more than the rest of the credit
            return self.scores_B - self.kl_coef * self.kl_B
        return self.scores_B + torch.stack([x.sum() for x in self.step_rewards]) - self.kl_coef * self.kl_B

    @property
    def has_step_rewards(self) -> bool:
        return any(s.step_rewards and bool(x.any()) for s, x in zip(self.scored, self.step_rewards, strict=True))

    @property
    def kl_B(self) -> Tensor:
        if self.kl is None:
            return torch.zeros(len(self.rows))
        return torch.stack([k[torch.tensor(r.mask)].sum() for k, r in zip(self.kl, self.rows, strict=True)])

    def rewards(self) -> list[Tensor]:
        """Per row, (its T,) rewards on tokens; they sum to the row's total. All 0 in a masked row."""
        mask_BT = stack([r.mask for r in self.rows]).bool()
        kl_BT = torch.zeros(mask_BT.shape) if self.kl is None else stack(self.kl)
        rewards_BT = token_rewards.token_rewards(self.scores_B, kl_BT, mask_BT, kl_coef=self.kl_coef)
        return [x[: len(along)] + along for x, along in zip(rewards_BT, self.step_rewards, strict=True)]


def make_experience(deps: LoopDeps, state: State, scored: Sequence[Scored]) -> tuple[Experience, dict[str, Any]]:
    """Old and reference log-probs, values, and the advantages they give, with the step's metrics so far.

    No forward pass is run whose result nothing uses.
    """
    block, learner, inference = deps.block, deps.learner, deps.learner.inference
    rows = [as_row(s, masked=block.groups.overlong == "mask" and not s.rollout.finished) for s in scored]
    kl_in_reward = block.kl.where == "reward" and deps.reference is not None
    old = values = None
    warming = block.critic is not None and state.step < block.critic.warmup_steps  # the policy is not updated yet
    entropies = squares = None
    by_energy = block.credit.kind == "optimal_baseline"
    if learner.shared:
        old, values = inference.logprobs_and_values(rows)
    elif by_energy or block.loss.top_entropy < 1:
        columns = list(zip(*inference.figures(rows, squares=by_energy), strict=True))
        old, entropies = list(columns[0]), list(columns[1])
        squares = list(columns[2]) if by_energy else None
    elif block.epochs * block.minibatches > 1 or kl_in_reward or warming or deps.token_choice is not None:
        old = inference.logprobs(rows)
    if learner.critic is not None:
        values = inference.values(rows)
    reference = deps.reference.logprobs(rows) if deps.reference is not None else None
    generator = [torch.tensor(s.rollout.logprobs) for s in scored]
    batch = Experience(rows, [], generator, old, reference)
    metrics: dict[str, Any] = mismatch(batch) if warming else {}
    if state.step == 0 and old is not None and reference is not None and batch.num_trainable_rows:
        alarms.check_reference(kl_to_reference(batch), deps.reference_tolerance)
    earned = earnings(deps, state, scored, batch, metrics, kl_in_reward=kl_in_reward)
    if squares is not None:
        batch.advantages = _by_energy(deps, batch, earned, squares)
    elif block.teacher is not None and not block.teacher.reward_coef:
        batch.advantages = [torch.zeros(len(r.ids)) for r in rows]
    else:
        assign_credit(deps, state, batch, earned, values, metrics)
    if deps.teacher is not None:
        metrics |= add_lesson(deps.teacher, batch, scored)
    if deps.token_choice is not None:
        deps.token_choice.choose(batch, entropies, state.step)
    return batch, metrics


def add_lesson(teacher: TeacherModel, batch: Experience, scored: Sequence[Scored]) -> dict[str, float]:
    """Put what the teacher says into the advantages or, for form full, into the loss. Returns the share of trainable
    rows that it says something about, and for form sampled its mean reverse KL per token."""
    settings, taught = teacher.settings, teacher.rows(scored, batch.rows)
    judged = sum(any(r.mask) for r in taught) / max(batch.num_trainable_rows, 1)
    if settings.form == "full":
        batch.advantages = [settings.reward_coef * a for a in batch.advantages]
        batch.lesson = teacher.lesson(taught)
        return {"teacher_judged": judged}
    policy = batch.old_logprobs or batch.generator_logprobs
    logprobs = teacher.logprobs(taught)
    batch.advantages = reverse_kl_advantages(
        batch.advantages, policy, logprobs, taught, coef=settings.coef, reward_coef=settings.reward_coef
    )
    mask_BT = stack([r.mask for r in taught]).bool()
    return {"teacher_judged": judged, "teacher_kl": credit.masked_mean(stack(policy) - stack(logprobs), mask_BT)}


def mismatch(batch: Experience) -> dict[str, float]:
    """Distance of the generator's log-probs from the policy's own, over all rows."""
    assert batch.old_logprobs is not None
    gap_BT = (stack(batch.old_logprobs) - stack(batch.generator_logprobs)).abs()
    mask_BT = stack([r.mask for r in batch.rows]).bool()  # every rank holds all rows: nothing is exchanged
    return {"mismatch_mean_abs": credit.masked_mean(gap_BT, mask_BT),
            "mismatch_max": float(gap_BT.masked_fill(~mask_BT, 0.0).max())}  # fmt: skip


def kl_to_reference(batch: Experience) -> float:
    """Nats per token, k3."""
    assert batch.old_logprobs is not None and batch.reference_logprobs is not None
    pairs = zip(batch.old_logprobs, batch.reference_logprobs, strict=True)
    k3_BT = stack([losses.kl_estimate(old, reference, kind="k3") for old, reference in pairs])
    return credit.masked_mean(k3_BT, stack([r.mask for r in batch.rows]).bool())


def token_figures(batch: Experience) -> list[dict[str, Any]]:
    """Per row, for rollouts.jsonl: advantages (one number if all tokens share it), and per token the log-prob minus
    the reference's, whose mean sum per row is the KL."""
    out: list[dict[str, Any]] = []
    for index, advantages in enumerate(batch.advantages):
        values = [round(x, 4) for x in advantages.tolist()]
        one: dict[str, Any] = {"advantages": values[0] if len(set(values)) == 1 else values}
        if batch.reference_logprobs is not None:
            now = (batch.old_logprobs or batch.generator_logprobs)[index]
            one["kl"] = [round(x, 4) for x in (now - batch.reference_logprobs[index]).tolist()]
        out.append(one)
    return out


def as_row(scored: Scored, *, masked: bool) -> Row:
    """masked: leave out an overlong row. A row on which the checker broke is left out too."""
    rollout = scored.rollout
    off = masked or not scored.scorable
    return Row(rollout.prompt.ids, rollout.ids, (False,) * len(rollout.ids) if off else rollout.mask)


def earnings(
    deps: LoopDeps, state: State, scored: Sequence[Scored], batch: Experience, metrics: dict[str, Any], *,
    kl_in_reward: bool,
) -> Earned:  # fmt: skip
    """Scores, step rewards and the KL penalty; updates the KL controller if the penalty is in the reward."""
    scores_B = shaped_scores(scored, deps.block.groups, deps.max_tokens)
    along = [step_rewards(s, r) for s, r in zip(scored, batch.rows, strict=True)]
    if not kl_in_reward:
        return Earned(scored, batch.rows, scores_B, along, None, 0.0)
    assert batch.old_logprobs is not None and batch.reference_logprobs is not None
    pairs = list(zip(batch.old_logprobs, batch.reference_logprobs, strict=True))
    kl = [losses.kl_estimate(old, reference, kind="k1") for old, reference in pairs]
    earned = Earned(scored, batch.rows, scores_B, along, kl, state.controller.coefficient)
    metrics["kl_sequence"] = float(earned.kl_B.sum()) / max(batch.num_trainable_rows, 1)
    metrics["kl_coef"] = earned.kl_coef
    alarms.check_finite("the KL to the reference", metrics["kl_sequence"], state.step)
    state.controller = state.controller.update(metrics["kl_sequence"], batch.num_trainable_rows)
    return earned


def shaped_scores(scored: Sequence[Scored], groups: Groups, max_tokens: int) -> Tensor:
    """(B,) rewards after the penalties for length and for a missing end."""
    scores_B = torch.tensor([s.reward for s in scored], dtype=torch.float32)
    finished_B = torch.tensor([s.rollout.finished for s in scored])
    if groups.missing_eos_penalty:
        scores_B = token_rewards.missing_eos_penalty(scores_B, finished_B, penalty=groups.missing_eos_penalty)
    if groups.overlong_buffer:
        lengths_B = torch.tensor([len(s.rollout.ids) for s in scored])
        scores_B = scores_B + token_rewards.soft_overlong_penalty(
            lengths_B, max_length=max_tokens, buffer=groups.overlong_buffer
        )
    return scores_B


def returns_as_credited(scored: Sequence[Scored], groups: Groups, max_tokens: int) -> Tensor:
    """(E,) total reward per episode as its group's baseline sees it, without the KL; NaN where it does not count."""
    totals_B = baseline_totals(outcomes(scored, groups, max_tokens), scored, groups)
    return episode_credit.episode_returns(totals_B, episode_credit.layout_of(scored))


def baseline_totals(totals_B: Tensor, scored: Sequence[Scored], groups: Groups) -> Tensor:
    """(B,) totals with NaN for the rows that are kept out of their group's baseline (groups.overlong_baseline)."""
    if groups.overlong != "mask" or groups.overlong_baseline == "include":
        return totals_B
    return totals_B.masked_fill(torch.tensor([not s.rollout.finished for s in scored]), torch.nan)


def outcomes(scored: Sequence[Scored], groups: Groups, max_tokens: int) -> Tensor:
    """(B,) total reward of finished rows: the score and what was given along the way."""
    along_B = torch.tensor([math.fsum(r for _, r in s.step_rewards) for s in scored], dtype=torch.float32)
    return shaped_scores(scored, groups, max_tokens) + along_B


def step_rewards(scored: Scored, row: Row) -> Tensor:
    """(T,) rewards given along the way. One on a token of the environment belongs to the last action: it goes to the
    nearest earlier token that the policy sampled, or else to the first one it sampled."""
    out_T = torch.zeros(len(row.ids))
    if not scored.step_rewards:
        return out_T
    sampled = [i for i, on in enumerate(row.mask) if on]
    for at, reward in scored.step_rewards:
        if sampled:
            out_T[max((i for i in sampled if i <= at), default=sampled[0])] += reward
    return out_T


def assign_credit(
    deps: LoopDeps,
    state: State,
    batch: Experience,
    earned: Earned,
    values: list[Tensor] | None,
    metrics: dict[str, Any],
) -> None:
    """Fill batch.advantages, and batch.values and batch.returns if there is a critic."""
    settings, rows = deps.block.credit, batch.rows
    layout = episode_credit.layout_of(earned.scored)
    mask_BT = stack([r.mask for r in rows]).bool()
    segments = deps.segmenter.numbers(rows, batch.generator_logprobs) if deps.segmenter is not None else None
    if segments is not None:
        metrics |= segment_figures(segments)
    totals_B = baseline_totals(earned.totals_B, earned.scored, deps.block.groups)
    if settings.kind == "gae":
        assert values is not None
        batch.advantages = _gae(deps, batch, earned, layout, values, metrics, segments)
    elif settings.kind == "monte_carlo":
        groups, limit = deps.block.groups, deps.max_tokens
        advantages_BT = vineppo.advantages(
            deps, state, earned.scored, totals_B, mask_BT, metrics, lambda some: outcomes(some, groups, limit), segments
        )
        batch.advantages = [a[: len(r.ids)] for a, r in zip(advantages_BT, rows, strict=True)]
    elif settings.kind in BASELINES and (settings.level != "token" or earned.has_step_rewards):
        masks = episode_credit.join([torch.tensor(r.mask) for r in rows], layout)
        advantages_ET = credit.reward_to_go_advantages(
            stack(episode_credit.join(earned.rewards(), layout)), stack([m.float() for m in masks]).bool(),
            group=deps.block.samples, baseline=cast(credit.Baseline, settings.kind), scale=settings.scale,
            totals_B=episode_credit.episode_returns(totals_B, layout), segments_BT=_joined(segments, layout),
        )  # fmt: skip
        batch.advantages = episode_credit.split(list(advantages_ET), layout, rows)
    else:
        totals_PG = episode_credit.episode_returns(totals_B, layout).view(-1, deps.block.samples)
        parts_NPG = reward_parts(deps, earned, totals_PG) if settings.kind == "gdpo" else None
        values_E = _by_sequence(totals_PG, settings, parts_NPG, [*deps.reward_weights.values(), 1.0])
        batch.advantages = episode_credit.to_rows(values_E, layout, rows)
    if settings.kind in ("gae", "monte_carlo") and settings.whiten:
        whitened_BT = credit.whiten(stack(batch.advantages), mask_BT)
        batch.advantages = [a[: len(r.ids)] for a, r in zip(whitened_BT, rows, strict=True)]


def _joined(segments: Sequence[Tensor] | None, layout: episode_credit.Layout) -> Tensor | None:
    """(E, T) int: the segment of each token of an episode; None without segments."""
    if segments is None:
        return None
    return episode_credit.padded_numbers(episode_credit.joined_numbers(segments, layout))


def segment_figures(segments: Sequence[Tensor]) -> dict[str, float]:
    """Segments per row that has any, and tokens per segment."""
    counts = [int(n.max()) + 1 for n in segments if len(n) and int(n.max()) >= 0]
    tokens = sum(int((n >= 0).sum()) for n in segments)
    return {"segments_mean": sum(counts) / max(len(counts), 1), "segment_tokens": tokens / max(sum(counts), 1)}


def _by_sequence(rewards_PG: Tensor, settings: Credit, parts_NPG: Tensor | None, weights: Sequence[float]) -> Tensor:
    """(E,) one advantage for all tokens of an episode; rewards_PG has one reward per episode."""
    if parts_NPG is not None:
        return group_credits.decoupled(parts_NPG, weights[: len(parts_NPG)]).flatten()
    if settings.kind == "group":
        return credit.group_advantages(rewards_PG, scale=settings.scale).flatten()
    if settings.kind == "leave_one_out":
        return credit.leave_one_out(rewards_PG).flatten()
    if settings.kind == "maxrl":
        try:
            return group_credits.maximum_likelihood(rewards_PG).flatten()
        except ValueError as exc:
            raise ConfigError([f"credit.kind: {exc}"]) from exc
    if settings.kind == "pass_at_k":
        return group_credits.pass_at_k(rewards_PG, k=settings.k).flatten()
    return credit.global_baseline(rewards_PG).flatten()


def reward_parts(deps: LoopDeps, earned: Earned, totals_PG: Tensor) -> Tensor:
    """(N, P, G) the parts of each episode's reward before their weights, and last, if there are any, the penalties for
    length and for a missing end, with weight 1. NaN where the total does not count."""
    merged = merged_episodes(earned.scored)
    columns = [[math.nan if (v := s.parts.get(name)) is None else v for s in merged] for name in deps.reward_weights]
    parts_NE = torch.tensor(columns, dtype=torch.float64).view(len(columns), -1)
    weights_N1 = torch.tensor(list(deps.reward_weights.values()), dtype=torch.float64)[:, None]
    penalties_E = totals_PG.flatten().double() - (weights_N1 * parts_NE).sum(0)
    if bool((penalties_E.nan_to_num(nan=0.0).abs() > 1e-5).any()):  # rewards were added up in float32
        parts_NE = torch.cat([parts_NE, penalties_E[None]])
    return parts_NE.masked_fill(totals_PG.flatten().isnan(), math.nan).view(-1, *totals_PG.shape)


def _by_energy(deps: LoopDeps, batch: Experience, earned: Earned, squares: list[Tensor]) -> list[Tensor]:
    """Per row, (its T,) advantages with a baseline per token; squares: sums of squared probabilities."""
    assert batch.old_logprobs is not None
    mask_BT = stack([r.mask for r in batch.rows]).bool()
    energy_BT = group_credits.token_energy(stack(batch.old_logprobs), stack(squares))
    advantages_BT = group_credits.optimal_token_baseline(
        stack(earned.rewards()), energy_BT, mask_BT, group=deps.block.samples
    )
    return [a[: len(r.ids)] for a, r in zip(advantages_BT, batch.rows, strict=True)]


def _gae(
    deps: LoopDeps, batch: Experience, earned: Earned, layout: episode_credit.Layout, with_last: list[Tensor],
    metrics: dict[str, Any], segments: list[Tensor] | None,
) -> list[Tensor]:  # fmt: skip
    """Per row, advantages; fills batch.values and batch.returns. with_last: per row, values before each token and after
    the last. segments: per row, the segment of each token, for credit.level segment."""
    block = deps.block
    assert block.critic is not None
    batch.values = [v[:-1] for v in with_last]
    last_rows = [indices[-1] for indices in layout]
    truncated_E = torch.tensor([not earned.scored[i].rollout.finished for i in last_rows])
    after_E = torch.stack([with_last[i][-1] for i in last_rows])
    last_E = torch.where(truncated_E, after_E, 0.0) if block.critic.bootstrap else None
    rewards = earned.rewards()
    if segments is not None:
        batch.valued = _valued(block.critic, segments)
        if last_E is not None and block.critic.segment_tokens == "all":
            last_E = last_E - torch.where(truncated_E, _earned_in_last(rewards, segments, last_rows), 0.0)
    advantages, batch.returns = episode_credit.gae_by_episode(
        block.credit, batch.rows, layout, rewards, batch.values, last_E, _joined(segments, layout)
    )
    values_BT, returns_BT = stack(batch.values), stack(batch.returns)
    mask_BT = stack([r.mask for r in batch.rows] if batch.valued is None else batch.valued).bool()
    metrics["explained_variance"] = credit.explained_variance(values_BT, returns_BT, mask_BT)
    metrics["value_mean"] = credit.masked_mean(values_BT, mask_BT)
    return advantages


def _valued(critic: Critic, segments: Sequence[Tensor]) -> list[Tensor] | None:
    """Per row, 1 on the tokens whose values are trained; None trains all of them."""
    if critic.segment_tokens == "all":
        return None
    return [first_tokens(n[None])[0].float() for n in segments]


def _earned_in_last(rewards: Sequence[Tensor], segments: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """(E,) what the last segment of each of these rows has earned.

    A critic of value prefixes includes it in its value after a truncated end, and the segment's own reward holds it
    already: without this it would be counted twice.
    """
    return torch.stack([rewards[i][segments[i] == segments[i].max()].sum() if len(segments[i]) else torch.tensor(0.0)
                        for i in rows])  # fmt: skip


def describe(scored: Sequence[Scored]) -> dict[str, Any]:
    """Lengths, reward parts and outcome shares of a step's episodes, before any update."""
    rows = merged_episodes(scored)
    summary = tally(rows)
    lengths = [sum(s.rollout.mask) for s in rows]
    parts = {}
    for name in sorted({name for s in rows for name in s.parts if is_part(name)}):
        values = [v for s in rows if (v := s.parts.get(name)) is not None]
        parts[f"reward/{name}"] = math.fsum(values) / len(values) if values else math.nan
    if any(s.step_rewards for s in scored):
        parts["reward/steps"] = math.fsum(r for s in scored for _, r in s.step_rewards) / len(rows)
    if len(rows) < len(scored) or any(s.rollout.sampled is not None for s in rows):
        taken = [
            sum(int(credit.turns_of(torch.tensor([s.rollout.mask])).max()) + 1 for s in e) for e in episodes(scored)
        ]
        parts["turns_mean"] = sum(taken) / len(taken)
    parts |= episode_figures(scored)
    return {
        "reward_mean": summary.reward_mean,
        "reward_std": summary.reward_std,
        **parts,
        "passed": summary.passed,
        "malformed": summary.malformed,
        "checker_broken": summary.broken,
        "length_mean": sum(lengths) / len(lengths),
        "length_max": max(lengths),
        "truncated": sum(not s.rollout.finished for s in rows) / len(rows),
        "distinct": len({(s.rollout.prompt.index, s.rollout.ids) for s in rows}) / len(rows),
        "tokens": sum(lengths),
    }
