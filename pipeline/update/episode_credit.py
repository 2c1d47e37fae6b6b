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
    if len(layout) == len(scores_B):  # a row each
        return scores_B
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
    return joined_numbers([credit.turns_of(torch.tensor([r.mask]))[0] for r in rows], layout)


def joined_numbers(per_row: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """Per episode, the numbers of its rows' tokens, counted on from row to row; -1 stays -1.

    per_row: (its T,) int, rising from 0 in each row.
    """
    out = []
    for indices in layout:
        done, parts = 0, []
        for i in indices:
            parts.append(torch.where(per_row[i] >= 0, per_row[i] + done, -1))
            done += int(per_row[i].max()) + 1 if len(per_row[i]) else 0
        out.append(torch.cat(parts))
    return out


def padded_numbers(per_episode: Sequence[Tensor]) -> Tensor:
    """(E, T) int: the numbers of each episode's tokens, -1 after its end."""
    return torch.nn.utils.rnn.pad_sequence(list(per_episode), batch_first=True, padding_value=-1).long()


def gae_by_episode(
    settings: Credit,
    rows: Sequence[Row],
    layout: Layout,
    rewards: Sequence[Tensor],
    values: Sequence[Tensor],
    last_values_E: Tensor | None,
    steps_ET: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Advantages and returns per row, (its T,) each, by GAE that runs on from one turn into the next.

    rewards, values: per row, (its T,). last_values_E: (E,) value after the last token of a truncated episode, else 0.
    settings.level `turn` makes a whole turn one step: discounts count turns and its tokens share an advantage.
    steps_ET: (E, T) int, the step of each token, -1 outside the mask, for level `segment`.
    """
    mask_ET = stack([m.float() for m in join([torch.tensor(r.mask) for r in rows], layout)]).bool()
    gamma, lam = settings.gamma, settings.lam
    rewards_ET, values_ET = stack(join(rewards, layout)), stack(join(values, layout))
    if settings.level == "turn":
        steps_ET = padded_numbers(turn_numbers(rows, layout))
    if steps_ET is not None:
        pair = credit.turn_gae(rewards_ET, values_ET, mask_ET, gamma=gamma, lam=lam, turns_BT=steps_ET,
                               last_values_B=last_values_E)  # fmt: skip
    else:
        pair = credit.gae(rewards_ET, values_ET, mask_ET, gamma=gamma, lam=lam, last_values_B=last_values_E)
    return split(list(pair[0]), layout, rows), split(list(pair[1]), layout, rows)
