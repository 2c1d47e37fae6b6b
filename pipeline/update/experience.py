"""Scored rollouts -> what an update needs of them: rows, old and reference log-probs, values, advantages.

Axes: B rows of the whole step, prompt-major, T completion tokens, E episodes (one row each, or one a turn). Every
rank holds all rows, so group means, whitening and alarms are those of one process; only forward passes are shared out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import Groups
from pipeline.credit import advantages as credit
from pipeline.credit import token_rewards
from pipeline.records import Scored, episodes, whole
from pipeline.run import alarms
from pipeline.score import tally
from pipeline.update import episode_credit, losses, vineppo
from pipeline.update.forward import Row, stack
from pipeline.update.learner import Experience
from pipeline.update.loop_state import Parts, State
from rewards import MALFORMED, MONITOR


@dataclass(frozen=True, slots=True)
class Earned:
    """What the rows earned. scores_B: after penalties, NaN where a checker broke. steps: per row, (its T,) rewards that
    fell along the way, beside the score. kl: per row, the penalty's KL a token; None where it is not in the reward."""

    scored: Sequence[Scored]
    rows: list[Row]
    scores_B: Tensor
    steps: list[Tensor]
    kl: list[Tensor] | None
    kl_coef: float

    @property
    def totals_B(self) -> Tensor:
        """All that each row earned; NaN where it could not be scored."""
        return self.scores_B + torch.stack([x.sum() for x in self.steps]) - self.kl_coef * self.kl_B

    @property
    def kl_B(self) -> Tensor:
        if self.kl is None:
            return torch.zeros(len(self.rows))
        return torch.stack([k[torch.tensor(r.mask)].sum() for k, r in zip(self.kl, self.rows, strict=True)])

    def rewards(self) -> list[Tensor]:
        """Per row, (its T,) rewards on tokens; they sum to the row's total. All 0 where nothing is to be trained."""
        mask_BT = stack([r.mask for r in self.rows]).bool()
        kl_BT = torch.zeros(mask_BT.shape) if self.kl is None else stack(self.kl)
        rewards_BT = token_rewards.token_rewards(self.scores_B, kl_BT, mask_BT, kl_coef=self.kl_coef)
        return [x[: len(along)] + along for x, along in zip(rewards_BT, self.steps, strict=True)]


def make_experience(parts: Parts, state: State, scored: Sequence[Scored]) -> tuple[Experience, dict[str, Any]]:
    """Old and reference log-probs, values, and the advantages they give; no forward that nothing asks for."""
    block, learner = parts.block, parts.learner
    rows = [as_row(s, masked=block.groups.overlong == "mask" and not s.rollout.finished) for s in scored]
    kl_in_reward = block.kl.where == "reward" and parts.reference is not None
    old = values = None
    warming = block.critic is not None and state.step < block.critic.warmup_steps  # no update looks at the policy yet
    if learner.shared:
        old, values = learner.logprobs_and_values(rows)
    elif block.epochs * block.minibatches > 1 or kl_in_reward or warming:
        old = learner.logprobs(rows)
    if learner.critic is not None:
        values = learner.values(rows)
    reference = parts.reference.logprobs(rows) if parts.reference is not None else None
    generator = [torch.tensor(s.rollout.logprobs) for s in scored]
    seen = Experience(rows, [], generator, old, reference)
    metrics: dict[str, Any] = mismatch(seen) if warming else {}
    if state.step == 0 and old is not None and reference is not None and seen.learnt_from:
        alarms.check_reference(kl_to_reference(seen), parts.reference_tolerance)
    earned = earnings(parts, state, scored, seen, metrics, kl_in_reward=kl_in_reward)
    assign_credit(parts, state, seen, earned, values, metrics)
    return seen, metrics


def mismatch(seen: Experience) -> dict[str, float]:
    """How far the generator's log-probs are from the policy's own."""
    assert seen.old_logprobs is not None
    gap_BT = (stack(seen.old_logprobs) - stack(seen.generator_logprobs)).abs()
    mask_BT = stack([r.mask for r in seen.rows]).bool()  # of all rows: every rank has them, and none asks the others
    return {"mismatch_mean_abs": credit.masked_mean(gap_BT, mask_BT),
            "mismatch_max": float(gap_BT.masked_fill(~mask_BT, 0.0).max())}  # fmt: skip


def kl_to_reference(seen: Experience) -> float:
    """Nats a token, k3."""
    assert seen.old_logprobs is not None and seen.reference_logprobs is not None
    pairs = zip(seen.old_logprobs, seen.reference_logprobs, strict=True)
    k3_BT = stack([losses.kl_estimate(old, reference, kind="k3") for old, reference in pairs])
    return credit.masked_mean(k3_BT, stack([r.mask for r in seen.rows]).bool())


def token_figures(seen: Experience) -> list[dict[str, Any]]:
    """Per row what a reader of the rollouts wants to see: advantages (one number where all tokens share it), and the
    log-prob's lead over the reference, whose sum's mean is the KL."""
    out: list[dict[str, Any]] = []
    for place, advantages in enumerate(seen.advantages):
        values = [round(x, 4) for x in advantages.tolist()]
        one: dict[str, Any] = {"advantages": values[0] if len(set(values)) == 1 else values}
        if seen.reference_logprobs is not None:
            now = (seen.old_logprobs or seen.generator_logprobs)[place]
            one["kl"] = [round(x, 4) for x in (now - seen.reference_logprobs[place]).tolist()]
        out.append(one)
    return out


def as_row(scored: Scored, *, masked: bool) -> Row:
    """masked: an overlong row that is filtered. A row the checker broke on is masked too."""
    rollout = scored.rollout
    off = masked or not scored.scorable
    return Row(rollout.prompt.ids, rollout.ids, (False,) * len(rollout.ids) if off else rollout.mask)


def earnings(
    parts: Parts, state: State, scored: Sequence[Scored], seen: Experience, metrics: dict[str, Any], *,
    kl_in_reward: bool,
) -> Earned:  # fmt: skip
    """Scores, step rewards and the KL penalty; steers the KL controller where the penalty is in the reward."""
    scores_B = shaped_scores(scored, parts.block.groups, parts.max_tokens)
    steps = [step_rewards(s, r) for s, r in zip(scored, seen.rows, strict=True)]
    if not kl_in_reward:
        return Earned(scored, seen.rows, scores_B, steps, None, 0.0)
    assert seen.old_logprobs is not None and seen.reference_logprobs is not None
    pairs = list(zip(seen.old_logprobs, seen.reference_logprobs, strict=True))
    kl = [losses.kl_estimate(old, reference, kind="k1") for old, reference in pairs]
    earned = Earned(scored, seen.rows, scores_B, steps, kl, state.controller.coefficient)
    metrics["kl_sequence"] = float(earned.kl_B.sum()) / max(seen.learnt_from, 1)
    metrics["kl_coef"] = earned.kl_coef
    alarms.check_finite("the KL to the reference", metrics["kl_sequence"], state.step)
    state.controller = state.controller.update(metrics["kl_sequence"], seen.learnt_from)
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


def outcomes(scored: Sequence[Scored], groups: Groups, max_tokens: int) -> Tensor:
    """(B,) all that finished rows earned: the score and what fell along the way."""
    along_B = torch.tensor([math.fsum(r for _, r in s.step_rewards) for s in scored], dtype=torch.float32)
    return shaped_scores(scored, groups, max_tokens) + along_B


def step_rewards(scored: Scored, row: Row) -> Tensor:
    """(T,) rewards that fell along the way. One on a token of the environment is the last action's: it goes to the
    nearest token before it that the policy sampled, or to the first one it sampled."""
    out_T = torch.zeros(len(row.ids))
    sampled = [i for i, on in enumerate(row.mask) if on]
    for at, reward in scored.step_rewards:
        if sampled:
            out_T[max((i for i in sampled if i <= at), default=sampled[0])] += reward
    return out_T


def assign_credit(
    parts: Parts, state: State, seen: Experience, earned: Earned, values: list[Tensor] | None, metrics: dict[str, Any]
) -> None:
    """Fill seen.advantages, and values and returns where there is a critic."""
    settings, rows = parts.block.credit, seen.rows
    layout = episode_credit.layout_of(earned.scored)
    mask_BT = stack([r.mask for r in rows]).bool()
    if settings.kind == "gae":
        assert values is not None
        seen.advantages = _gae(parts, seen, earned, layout, values, metrics)
    elif settings.kind == "monte_carlo":
        groups, limit = parts.block.groups, parts.max_tokens
        advantages_BT = vineppo.advantages(
            parts, state, earned.scored, earned.totals_B, mask_BT, metrics, lambda some: outcomes(some, groups, limit)
        )
        seen.advantages = [a[: len(r.ids)] for a, r in zip(advantages_BT, rows, strict=True)]
    elif settings.level == "turn" or any(bool(x.any()) for x in earned.steps):
        masks = episode_credit.join([torch.tensor(r.mask) for r in rows], layout)
        advantages_ET = credit.reward_to_go_advantages(
            stack(episode_credit.join(earned.rewards(), layout)), stack([m.float() for m in masks]).bool(),
            group=parts.block.samples, baseline=settings.kind, scale=settings.scale,
        )  # fmt: skip
        seen.advantages = episode_credit.split(list(advantages_ET), layout, rows)
    else:
        totals_PG = episode_credit.episode_returns(earned.totals_B, layout).view(-1, parts.block.samples)
        seen.advantages = episode_credit.to_rows(_by_sequence(totals_PG, settings.kind, settings.scale), layout, rows)
    if settings.kind in ("gae", "monte_carlo") and settings.whiten:
        whitened_BT = credit.whiten(stack(seen.advantages), mask_BT)
        seen.advantages = [a[: len(r.ids)] for a, r in zip(whitened_BT, rows, strict=True)]


def _by_sequence(rewards_PG: Tensor, kind: str, scale: bool) -> Tensor:
    """(E,) one advantage for all tokens of an episode."""
    if kind == "group":
        return credit.group_advantages(rewards_PG, scale=scale).flatten()
    if kind == "leave_one_out":
        return credit.leave_one_out(rewards_PG).flatten()
    return credit.global_baseline(rewards_PG).flatten()


def _gae(
    parts: Parts, seen: Experience, earned: Earned, layout: episode_credit.Layout, with_last: list[Tensor],
    metrics: dict[str, Any],
) -> list[Tensor]:  # fmt: skip
    """with_last: per row its values before each token and after the last. Fills seen.values and seen.returns."""
    block = parts.block
    assert block.critic is not None
    seen.values = [v[:-1] for v in with_last]
    ends = [places[-1] for places in layout]
    cut_E = torch.tensor([not earned.scored[i].rollout.finished for i in ends])
    last_E = torch.where(cut_E, torch.stack([with_last[i][-1] for i in ends]), 0.0) if block.critic.bootstrap else None
    advantages, seen.returns = episode_credit.gae_by_episode(
        block.credit, seen.rows, layout, earned.rewards(), seen.values, last_E
    )
    values_BT, returns_BT = stack(seen.values), stack(seen.returns)
    mask_BT = stack([r.mask for r in seen.rows]).bool()
    metrics["explained_variance"] = credit.explained_variance(values_BT, returns_BT, mask_BT)
    metrics["value_mean"] = credit.masked_mean(values_BT, mask_BT)
    return advantages


def describe(scored: Sequence[Scored]) -> dict[str, Any]:
    """Lengths, reward parts and shares of a step's episodes, before any update."""
    rows = [whole(episode) for episode in episodes(scored)]
    summary = tally(rows)
    lengths = [sum(s.rollout.mask) for s in rows]
    parts = {}
    watched = (MONITOR, MALFORMED)  # told by the watch
    for name in sorted({name for s in rows for name in s.parts}.difference(watched)):
        values = [v for s in rows if (v := s.parts.get(name)) is not None]
        parts[f"reward/{name}"] = math.fsum(values) / len(values) if values else math.nan
    if any(s.step_rewards for s in scored):
        parts["reward/steps"] = math.fsum(r for s in scored for _, r in s.step_rewards) / len(rows)
    if len(rows) < len(scored) or any(s.rollout.sampled is not None for s in rows):
        taken = [
            sum(int(credit.turns_of(torch.tensor([s.rollout.mask])).max()) + 1 for s in e) for e in episodes(scored)
        ]
        parts["turns_mean"] = sum(taken) / len(taken)
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
