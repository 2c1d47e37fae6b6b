"""Segments of a completion as single steps of credit: macro actions, each of which earns what its tokens earn.

A segment is a run of tokens that the policy sampled; a gap in the mask (tool or environment text) always ends one. Its
state is the one before its first token, so the value there is a baseline that no token of the segment has influenced.
Axes: see pipeline/credit/__init__.py. Segment numbers rise from 0 in each row and are -1 outside the mask.
Source: MA-RLHF, arXiv:2410.02743 §3; options as single steps: Sutton, Precup and Singh 1999.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segments_of_ends(ends_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) int: the segment of each token, given the tokens that end one.

    ends_BT: (B, T) bool, True on the last token of a segment; read inside the mask only.
    """
    mask_BT = mask_BT.bool()
    before_BT = torch.nn.functional.pad(mask_BT, (1, 0))[:, :-1]
    ended_BT = torch.nn.functional.pad(ends_BT.bool() & mask_BT, (1, 0))[:, :-1]
    starts_BT = mask_BT & (~before_BT | ended_BT)
    return (starts_BT.cumsum(1) - 1).masked_fill(~mask_BT, -1)


def fixed_ends(mask_BT: Tensor, *, tokens: int) -> Tensor:
    """(B, T) bool: True on every `tokens`-th token of each unbroken run of the mask.

    Raises ValueError if tokens < 1.
    """
    if tokens < 1:
        raise ValueError(f"segments of {tokens} tokens: give at least 1")
    mask_BT = mask_BT.bool()
    counted_BT = mask_BT.cumsum(1)
    # what was counted before the run a token lies in
    before_BT = counted_BT.masked_fill(mask_BT, 0).cummax(1).values
    return mask_BT & ((counted_BT - before_BT) % tokens == 0)


def peak_ends(logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, T) bool: True on the token before each peak of surprise, which begins the next segment.

    logprobs_BT: log-prob of each sampled token, in nats; not read outside the mask. A peak is a token whose surprise is
    above that of the token before it, not below that of the token after it, and above the mean of its row. Neighbours
    across a gap in the mask do not count. Source: perplexity-based termination, MA-RLHF, arXiv:2410.02743 §3.1; there a
    segment ends wherever the perplexity rises, here only at a peak, so that a slow rise is one segment.
    """
    mask_BT = mask_BT.bool()
    surprise_BT = (-logprobs_BT.double()).masked_fill(~mask_BT, 0.0)
    mean_B1 = surprise_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)
    outside_BT = surprise_BT.masked_fill(~mask_BT, -torch.inf)
    before_BT = torch.nn.functional.pad(outside_BT, (1, 0), value=torch.inf)[:, :-1]
    after_BT = torch.nn.functional.pad(outside_BT, (0, 1), value=-torch.inf)[:, 1:]
    peak_BT = mask_BT & (surprise_BT > before_BT) & (surprise_BT >= after_BT) & (surprise_BT > mean_B1)
    return torch.nn.functional.pad(peak_BT, (0, 1))[:, 1:] & mask_BT


def first_tokens(segments_BT: Tensor) -> Tensor:
    """(B, T) bool: True on the first token of each segment."""
    latest_BT = torch.nn.functional.pad(segments_BT.cummax(1).values, (1, 0), value=-1)[:, :-1]
    return (segments_BT >= 0) & (segments_BT != latest_BT)


def earned_so_far(rewards_BT: Tensor, segments_BT: Tensor) -> Tensor:
    """(B, T) the value prefix of each token: what its segment has earned before it, undiscounted; 0 outside the mask.

    A critic that is trained towards the whole segment's return on each of its tokens predicts this plus what follows.
    Source: value prefix, EfficientZero, arXiv:2111.00210 §3.3.
    """
    valid_BT = segments_BT >= 0
    rewards_BT = rewards_BT.double().masked_fill(~valid_BT, 0.0)
    before_BT = rewards_BT.cumsum(1) - rewards_BT
    index_BT = segments_BT.masked_fill(~valid_BT, 0)
    first_BT = first_tokens(segments_BT)
    count = int(index_BT.max()) + 1 if index_BT.numel() else 0
    at_start_BK = before_BT.new_zeros(before_BT.shape[0], count)
    at_start_BK = at_start_BK.scatter_add(1, index_BT, before_BT.masked_fill(~first_BT, 0.0))
    return (before_BT - at_start_BK.gather(1, index_BT)).masked_fill(~valid_BT, 0.0)


def spread_from_start(x_BT: Tensor, segments_BT: Tensor) -> Tensor:
    """(B, T) what x holds at the first token of each segment, on all of its tokens; 0 outside the mask."""
    valid_BT = segments_BT >= 0
    index_BT = segments_BT.masked_fill(~valid_BT, 0)
    count = int(index_BT.max()) + 1 if index_BT.numel() else 0
    first_BK = x_BT.new_zeros(x_BT.shape[0], count)
    first_BK = first_BK.scatter_add(1, index_BT, x_BT.masked_fill(~first_tokens(segments_BT), 0.0))
    return first_BK.gather(1, index_BT).masked_fill(~valid_BT, 0.0)


def evenly_chosen(starts: list[int], count: int) -> list[int]:
    """At most `count` of the positions, spread evenly over them, in order; all of them if there are no more."""
    if len(starts) <= count:
        return starts
    return [starts[(2 * k + 1) * len(starts) // (2 * count)] for k in range(count)]
