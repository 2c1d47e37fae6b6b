"""Returns of logged steps: of their own episode, or the best that the logs hold from the state a step led to.

Conditions trained on the first cannot join two halves that never occurred in one episode; labels of the second can
(max-return relabelling; "stitching" in IQL, arXiv:2110.06169 §1, and QDT, arXiv:2209.03993).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

PRECISION = 1e-12  # relative change at which values have settled


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of a logged episode. state: what the policy was given; equal states must be the same situation."""

    state: Hashable
    action: Hashable
    reward: float


def returns_to_go(episodes: Sequence[Sequence[Step]], *, gamma: float = 1.0) -> list[list[float]]:
    """Per step, the discounted sum of its own episode's rewards from there on."""
    out = []
    for episode in episodes:
        running, values = 0.0, []
        for step in reversed(episode):
            running = step.reward + gamma * running
            values.append(running)
        out.append(values[::-1])
    return out


def best_in_data(episodes: Sequence[Sequence[Step]], *, gamma: float = 1.0) -> list[list[float]]:
    """Per step, its reward plus the best return that logged steps reach from the next state.

    Value iteration on the logged transitions: R(s, a) = r + gamma * max over logged a' of R(s', a'). An episode's last
    step leads nowhere. A step seen with several outcomes takes each of its own: where the world itself is random this
    is luck read as skill, and an expectile (`offline_q`) is the sounder choice.
    Raises ValueError where rewards on a cycle make a return grow without end.
    """
    transitions: dict[Hashable, list[tuple[float, Hashable | None]]] = defaultdict(list)
    for episode in episodes:
        for index, step in enumerate(episode):
            transitions[step.state].append((step.reward, _next_state(episode, index)))
    # -inf until an end is reached: a cycle must not look better than a bad end
    value: dict[Hashable | None, float] = dict.fromkeys(transitions, -math.inf) | {None: 0.0}

    def worth(reward: float, follows: Hashable | None) -> float:
        return reward + (gamma * value[follows] if gamma else 0.0)

    sweeps = len(transitions) + 1  # a path without a cycle is no longer than there are states
    if 0 < gamma < 1:
        sweeps = max(sweeps, math.ceil(math.log(PRECISION) / math.log(gamma)))
    for _ in range(sweeps):
        newer = {state: max(worth(*one) for one in onward) for state, onward in transitions.items()}
        settled = all(abs(newer[s] - value[s]) <= PRECISION * (1 + abs(newer[s])) for s in newer)
        value.update(newer)
        if settled:
            break
    else:
        if gamma >= 1:
            raise ValueError(f"best_in_data: a cycle of logged steps earns reward, so with gamma {gamma} returns grow "
                             "without bound; set gamma below 1")  # fmt: skip
    return [[worth(step.reward, _next_state(e, k)) for k, step in enumerate(e)] for e in episodes]


def _next_state(episode: Sequence[Step], index: int) -> Hashable | None:
    return episode[index + 1].state if index + 1 < len(episode) else None
