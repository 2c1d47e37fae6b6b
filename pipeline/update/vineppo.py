"""Credit without a critic: the value of each part of a completion, estimated by sampling on from its end.

Source: VinePPO, arXiv:2410.01679 §4. It differs in where a part ends (equal shares of the tokens, since a task may have
no lines) and in the first value: the prompt's own samples serve as its continuations and cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config.load import ConfigError
from pipeline.credit import advantages as credit
from pipeline.credit.segments import evenly_chosen
from pipeline.records import Scored
from pipeline.update.loop_state import Branch, LoopDeps, State
from pipeline.update.segmenter import starts_of


def branch_points(tokens: int, points: int) -> list[int]:
    """Positions at which to branch off a completion of so many tokens: at most `points`, none at its start or end."""
    return sorted({round(tokens * k / (points + 1)) for k in range(1, points + 1)} - {0, tokens})


def advantages(
    deps: LoopDeps,
    state: State,
    scored: Sequence[Scored],
    totals_B: Tensor,
    mask_BT: Tensor,
    metrics: dict[str, Any],
    outcome: Callable[[Sequence[Scored]], Tensor],
    segments: Sequence[Tensor] | None = None,
) -> Tensor:
    """(B, T): how much each part of a row raised the expected score.

    outcome: total reward of finished rows, computed as totals_B is.
    segments: per row, the segment of each token; parts then end where segments end, at most `points` of them.
    Raises ConfigError for rows with tokens that the policy did not sample: sampling on needs their environment.
    """
    settings, samples = deps.block.credit, deps.block.samples
    if any(s.rollout.sampled is not None or s.rollout.turn for s in scored):
        raise ConfigError(["credit.kind monte_carlo: an episode of several turns cannot be sampled on without its "
                           "environment; choose gae or group"])  # fmt: skip
    # a masked row is not trained on, so nothing is sampled for it
    used = mask_BT.any(1).tolist()
    if segments is None:
        inner = [branch_points(len(s.rollout.ids), settings.points) for s in scored]
    else:
        inner = [evenly_chosen(starts_of(numbers_T), settings.points) for numbers_T in segments]
    inner = [positions if on else [] for positions, on in zip(inner, used, strict=True)]
    starts = [[0, *positions] if samples == 1 and on else positions for positions, on in zip(inner, used, strict=True)]
    points = [(row, at) for row, positions in enumerate(starts) for at in positions]
    branches = [Branch(index, scored[row], at) for index, (row, at) in enumerate(points)]
    continuations = deps.source.continue_and_score(branches, state.step)
    values_BK = torch.full((len(scored), settings.points + 1), math.nan)
    if samples > 1:
        values_BK[:, 0] = totals_B.view(-1, samples).nanmean(1).repeat_interleave(samples)
    for (row, at), sampled in zip(points, continuations, strict=True):
        step = 0 if at == 0 else inner[row].index(at) + 1
        values_BK[row, step] = credit.monte_carlo_values(outcome(sampled).view(1, 1, -1))[0, 0]
    new = sum(
        len(one.rollout.ids) - branch.at
        for branch, sampled in zip(branches, continuations, strict=True)
        for one in sampled
    )
    deps.directory.logs.tokens["completion"] += new
    metrics |= {"continuations": sum(map(len, continuations)), "continuation_tokens": new}
    steps_BT = steps_of(inner, mask_BT)
    return credit.step_values_to_advantages(values_BK, totals_B, steps_BT, mask_BT, gamma=settings.gamma)


def steps_of(branch_points: Sequence[Sequence[int]], mask_BT: Tensor) -> Tensor:
    """(B, T) the part each token lies in: the number of branch points at or before it."""
    steps_BT = torch.zeros(mask_BT.shape, dtype=torch.long)
    for row, positions in enumerate(branch_points):
        for at in positions:
            steps_BT[row, at:] += 1
    return steps_BT
