"""Credit without a critic: what each part of a completion is worth, by sampling on from its intermediate points.

Source: VinePPO, arXiv:2410.01679 §4. Departs from it in where a part ends (equal shares of the tokens, for a task need
not have lines), and in the first value: the prompt's own samples are its continuations and cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config.load import ConfigError
from pipeline.credit import advantages as credit
from pipeline.records import Scored
from pipeline.update.loop_state import Cut, Parts, State


def cut_places(tokens: int, points: int) -> list[int]:
    """Where to leave a completion of so many tokens: at most `points` places, none at its start or end."""
    return sorted({round(tokens * k / (points + 1)) for k in range(1, points + 1)} - {0, tokens})


def advantages(
    parts: Parts,
    state: State,
    scored: Sequence[Scored],
    totals_B: Tensor,
    mask_BT: Tensor,
    metrics: dict[str, Any],
    outcome: Callable[[Sequence[Scored]], Tensor],
) -> Tensor:
    """(B, T): what each part of a row added to the score that is to be expected.

    outcome: what finished rows earned in all, as totals_B was made of them.
    Raises ConfigError for rows with tokens that the policy did not sample: sampling on needs their environment.
    """
    settings, samples = parts.block.credit, parts.block.samples
    assert parts.continue_and_score is not None, "monte_carlo credit samples continuations"
    if any(s.rollout.sampled is not None or s.rollout.turn for s in scored):
        raise ConfigError(["credit.kind monte_carlo: an episode of several turns cannot be sampled on without its "
                           "environment; choose gae or group"])  # fmt: skip
    # a masked row teaches nothing, so nothing is sampled for it
    used = mask_BT.any(1).tolist()
    cuts = [cut_places(len(s.rollout.ids), settings.points) if on else [] for s, on in zip(scored, used, strict=True)]
    starts = [[0, *places] if samples == 1 and on else places for places, on in zip(cuts, used, strict=True)]
    asked = [(row, at) for row, places in enumerate(starts) for at in places]
    todo = [Cut(place, scored[row], at) for place, (row, at) in enumerate(asked)]
    answers = parts.continue_and_score(todo, state.step)
    values_BK = torch.full((len(scored), settings.points + 1), math.nan)
    if samples > 1:
        values_BK[:, 0] = totals_B.view(-1, samples).nanmean(1).repeat_interleave(samples)
    for (row, at), answer in zip(asked, answers, strict=True):
        step = 0 if at == 0 else cuts[row].index(at) + 1
        values_BK[row, step] = credit.monte_carlo_values(outcome(answer).view(1, 1, -1))[0, 0]
    drawn = [a for answer in answers for a in answer]
    new = sum(len(a.rollout.ids) for a in drawn) - sum(c.at * len(a) for c, a in zip(todo, answers, strict=True))
    parts.directory.logs.tokens["completion"] += new
    metrics |= {"continuations": len(drawn), "continuation_tokens": new}
    return credit.step_values_to_advantages(values_BK, totals_B, steps_of(cuts, mask_BT), mask_BT, gamma=settings.gamma)


def steps_of(cuts: Sequence[Sequence[int]], mask_BT: Tensor) -> Tensor:
    """(B, T) the part each token lies in: the number of cuts at or before it."""
    steps_BT = torch.zeros(mask_BT.shape, dtype=torch.long)
    for row, places in enumerate(cuts):
        for at in places:
            steps_BT[row, at:] += 1
    return steps_BT
