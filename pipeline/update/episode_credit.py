"""Credit over episodes of several turns, where a turn may be a row of its own.

The values and rewards of an episode's rows are concatenated, the recursion runs over the whole episode, and the result
is split into rows again. With one row per episode nothing changes. Axes: see pipeline/credit/__init__.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.config.schema import Credit
from pipeline.credit import advantages as credit
from pipeline.records import Scored
from pipeline.update.forward import Row, stack

Layout = list[list[int]]  # per episode, the indices of its rows


def layout_of(scored: Sequence[Scored]) -> Layout:
    """A new episode begins at each row of turn 0."""
    out: Layout = []
    for index, one in enumerate(scored):
        if one.rollout.turn == 0 or not out:
            out.append([])
        out[-1].append(index)
    return out


def episode_returns(scores_B: Tensor, layout: Layout) -> Tensor:
    """(E,) sums over the rows of each episode; NaN if one of them is NaN."""
    return torch.stack([scores_B[rows].sum() for rows in layout])


def to_rows(values_E: Tensor, layout: Layout, rows: Sequence[Row]) -> list[Tensor]:
    """One number per episode -> per row, (its T,) of that number."""
    out = [torch.empty(0)] * len(rows)
    for value, indices in zip(values_E, layout, strict=True):
        for i in indices:
            out[i] = value.expand(len(rows[i].ids))
    return out


def join(per_row: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """The tokens of each episode's rows, concatenated."""
    return [torch.cat([per_row[i] for i in indices]) for indices in layout]


def split(per_episode: Sequence[Tensor], layout: Layout, rows: Sequence[Row]) -> list[Tensor]:
    """The inverse of `join`: back to rows; padding after an episode's end is dropped."""
    out = [torch.empty(0)] * len(rows)
    for values, indices in zip(per_episode, layout, strict=True):
        start = 0
        for i in indices:
            out[i] = values[start : start + len(rows[i].ids)]
            start += len(rows[i].ids)
    return out


def turn_numbers(rows: Sequence[Row], layout: Layout) -> list[Tensor]:
    """Per episode, the turn of each token, -1 on tokens that were not sampled: each run of sampled tokens is a turn."""
    out = []
    for indices in layout:
        done, parts = 0, []
        for i in indices:
            turns_T = credit.turns_of(torch.tensor([rows[i].mask]))[0]
            parts.append(torch.where(turns_T >= 0, turns_T + done, -1))
            done += int(turns_T.max()) + 1 if len(turns_T) else 0
        out.append(torch.cat(parts))
    return out


def gae_by_episode(
    settings: Credit,
    rows: Sequence[Row],
    layout: Layout,
    rewards: Sequence[Tensor],
    values: Sequence[Tensor],
    last_values_E: Tensor | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Advantages and returns per row, (its T,) each, by GAE that runs on from one turn into the next.

    rewards, values: per row, (its T,). last_values_E: (E,) value after the last token of a truncated episode, else 0.
    settings.level `turn` makes a whole turn one step: discounts count turns and its tokens share an advantage.
    """
    mask_ET = stack([m.float() for m in join([torch.tensor(r.mask) for r in rows], layout)]).bool()
    gamma, lam = settings.gamma, settings.lam
    rewards_ET, values_ET = stack(join(rewards, layout)), stack(join(values, layout))
    if settings.level == "turn":
        turns_ET = stack(turn_numbers(rows, layout)).long()
        pair = credit.turn_gae(rewards_ET, values_ET, mask_ET, gamma=gamma, lam=lam, turns_BT=turns_ET,
                               last_values_B=last_values_E)  # fmt: skip
    else:
        pair = credit.gae(rewards_ET, values_ET, mask_ET, gamma=gamma, lam=lam, last_values_B=last_values_E)
    return split(list(pair[0]), layout, rows), split(list(pair[1]), layout, rows)
