"""Potential-based step rewards: denser feedback that does not change the optimal policy.

With potential Φ over states and F(s, s') = γΦ(s') - Φ(s), the optimal policies stay optimal (Ng, Harada, Russell 1999,
theorem 1). The end of an episode has potential 0: only then do the discounted step rewards telescope to -Φ(s0), a
constant of the prompt, so the policy cannot exploit them by the way it ends.
"""

from __future__ import annotations

from collections.abc import Sequence


def potential_differences(potentials_S: Sequence[float], *, gamma: float = 1.0) -> list[float]:
    """γΦ(s') - Φ(s) for each of the S steps from states s0 … s(S-1); the state after the last step is terminal.

    potentials_S: (S,) potential of the state *before* each step. Returns (S,).
    """
    after_S = [*potentials_S[1:], 0.0]
    return [gamma * after - before for before, after in zip(potentials_S, after_S, strict=True)]
