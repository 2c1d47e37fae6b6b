"""Values of logged steps as tables: TD, successor features, reward-weighted successor values, a model with planning.

A step is (state, action, reward, arrival, over); a state is the text that the policy reads. Worlds here are
deterministic, so the newest record of a step is the model of it. These are the formulas, with the network left out:

    TD                            Q(s, a)   = r + gamma * max_a' Q(s', a')
    successor features            psi(s, a) = phi(s') + gamma * psi(s', a'),  Q = psi . w
    reward-weighted successors    H(s, a)   = r(s') phi(s') + gamma * H(s', a'),  Q = sum of H

Sources: Watkins 1989 (TD for control); Dayan 1993 and arXiv:1606.05312 (successors); Sutton 1990 (`Dyna`).
phi(s') is one-hot in the arrival, w what an arrival pays, a' the best known action by the current Q.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

State = Hashable
Action = Hashable
Pair = tuple[State, Action]


@dataclass(frozen=True, slots=True)
class Transition:
    """One observed step. arrival: the state it led to, of an end too. over: whether the walk ended there."""

    state: State
    action: Action
    reward: float
    arrival: State
    over: bool

    @property
    def pair(self) -> Pair:
        return self.state, self.action


@dataclass
class TransitionModel:
    """The newest record of every step."""

    newest: dict[Pair, Transition] = field(default_factory=dict)
    actions: dict[State, list[Action]] = field(default_factory=lambda: defaultdict(list))

    def observe(self, transitions: Iterable[Transition]) -> None:
        for one in transitions:
            if one.pair not in self.newest:
                self.actions[one.state].append(one.action)
            self.newest[one.pair] = one

    def best_action(self, q: Mapping[Pair, float], state: State) -> Action | None:
        """The action of highest value among those ever taken in a state; None where none was."""
        known = self.actions.get(state, [])
        return max(known, key=lambda action: q[state, action]) if known else None


class TDLearner:
    """Q(s, a) moves by `rate` towards r + gamma * max_a' Q(s', a') for each step, in the order given."""

    def __init__(self, *, gamma: float = 1.0, rate: float = 1.0) -> None:
        self.gamma, self.rate = gamma, rate
        self.model = TransitionModel()  # of TD itself only which actions exist
        self.q: dict[Pair, float] = defaultdict(float)

    def learn(self, transitions: Sequence[Transition]) -> None:
        """Each step is used once, when it is observed."""
        for one in transitions:
            self.model.observe([one])
            self.update(one)

    def update(self, one: Transition) -> None:
        self.q[one.pair] += self.rate * (self.target(one) - self.q[one.pair])

    def target(self, one: Transition) -> float:
        action = None if one.over else self.model.best_action(self.q, one.arrival)
        return one.reward + (0.0 if action is None else self.gamma * self.q[one.arrival, action])

    def settle(self, transitions: Sequence[Transition], *, passes: int) -> None:
        """Learn the same steps again and again, until every value has followed the others."""
        for _ in range(passes):
            self.learn(transitions)

    def values(self) -> dict[Pair, float]:
        return {pair: self.q[pair] for pair in self.model.newest}


class SuccessorFeatures(TDLearner):
    """psi by TD, and w from the newest reward of each arrival. A changed reward is right wherever psi already leads."""

    def __init__(self, *, gamma: float = 1.0, rate: float = 1.0) -> None:
        super().__init__(gamma=gamma, rate=rate)
        self.psi: dict[Pair, dict[State, float]] = defaultdict(dict)
        self.w: dict[State, float] = {}

    def update(self, one: Transition) -> None:
        self.w[one.arrival] = one.reward
        self.q.update(self._evaluated())
        action = None if one.over else self.model.best_action(self.q, one.arrival)
        ahead = {} if action is None else self.psi[one.arrival, action]
        target = {place: self.gamma * share for place, share in ahead.items()}
        target[one.arrival] = target.get(one.arrival, 0.0) + 1.0
        self.psi[one.pair] = _towards(self.psi[one.pair], target, self.rate)
        self.q.update(self._evaluated())

    def _evaluated(self) -> dict[Pair, float]:
        return {
            pair: sum(share * self.w[place] for place, share in self.psi[pair].items()) for pair in self.model.newest
        }


class RewardWeightedSuccessors(TDLearner):
    """H by TD: which later arrivals a step's return comes from, as amounts of reward.

    Where an arrival that paid something pays another amount, its component of every H is scaled by new / old. An
    arrival that paid nothing has no component: what it pays later is not seen before it is propagated.
    """

    def __init__(self, *, gamma: float = 1.0, rate: float = 1.0) -> None:
        super().__init__(gamma=gamma, rate=rate)
        self.h: dict[Pair, dict[State, float]] = defaultdict(dict)
        self.paid: dict[State, float] = {}

    def update(self, one: Transition) -> None:
        before = self.paid.get(one.arrival, 0.0)
        if before and before != one.reward:
            for components in self.h.values():
                if one.arrival in components:
                    components[one.arrival] *= one.reward / before
        self.paid[one.arrival] = one.reward
        self.q.update({pair: sum(self.h[pair].values()) for pair in self.model.newest})
        action = None if one.over else self.model.best_action(self.q, one.arrival)
        ahead = {} if action is None else self.h[one.arrival, action]
        target = {place: self.gamma * amount for place, amount in ahead.items()}
        target[one.arrival] = target.get(one.arrival, 0.0) + one.reward
        self.h[one.pair] = _towards(self.h[one.pair], target, self.rate)
        self.q[one.pair] = sum(self.h[one.pair].values())


class Dyna(TDLearner):
    """TD, and after each observed step `planning` updates on steps drawn from the model (Sutton 1990)."""

    def __init__(self, *, planning: int, rng: random.Random, gamma: float = 1.0, rate: float = 1.0) -> None:
        super().__init__(gamma=gamma, rate=rate)
        self.planning, self.rng = planning, rng

    def update(self, one: Transition) -> None:
        super().update(one)
        known = list(self.model.newest.values())
        for _ in range(self.planning):
            super().update(self.rng.choice(known))


class DepthLimitedSearch(TDLearner):
    """TD, and at decision time the best of all walks of at most `depth` steps in the model, with Q beyond them."""

    def __init__(self, *, depth: int, gamma: float = 1.0, rate: float = 1.0) -> None:
        super().__init__(gamma=gamma, rate=rate)
        self.depth = depth

    def values(self) -> dict[Pair, float]:
        return {pair: self.searched(pair, self.depth) for pair in self.model.newest}

    def searched(self, pair: Pair, depth: int) -> float:
        """The return of a step by the model; `depth` steps deep, then Q. Depth 0 is Q itself."""
        if depth == 0:
            return self.q[pair]
        one = self.model.newest[pair]
        known = [] if one.over else self.model.actions.get(one.arrival, [])
        ahead = [self.searched((one.arrival, action), depth - 1) for action in known]
        return one.reward + self.gamma * max(ahead, default=0.0)


def _towards(now: Mapping[State, float], target: Mapping[State, float], rate: float) -> dict[State, float]:
    return {key: (1 - rate) * now.get(key, 0.0) + rate * target.get(key, 0.0) for key in {**now, **target}}
