"""Score -> token rewards, before credit is assigned: KL and length penalties, their place on tokens, the KL controller.

Axes: see pipeline/credit/__init__.py.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

MAX_KL_ERROR = 0.2  # arXiv:1909.08593 §2.2: one odd batch must not swing the coefficient


@dataclass(frozen=True, slots=True)
class KLController:
    """The coefficient of a KL penalty: constant, or adapted towards a target KL.

    coefficient: the present factor of the KL. target: nats per sequence, None = constant.
    horizon: episodes over which a full-size error multiplies the coefficient by about e.
    Source: arXiv:1909.08593 §2.2.
    """

    coefficient: float
    target: float | None = None
    horizon: float = 10_000.0

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise ValueError(f"KL coefficient {self.coefficient}: a negative one rewards drift; give 0 or more")
        if self.target is not None and self.target <= 0:
            raise ValueError(f"target KL {self.target}: must be above 0; leave it out for a constant coefficient")
        if self.horizon <= 0:
            raise ValueError(f"KL horizon {self.horizon}: must be above 0 (episodes)")

    def update(self, kl: float, n_episodes: int) -> "KLController":
        """The controller after a batch of n_episodes whose mean sequence KL was kl.

        Raises ValueError if kl is not finite.
        """
        if self.target is None:
            return self
        if not math.isfinite(kl):
            raise ValueError(f"KL of {kl} after {n_episodes} episodes: the policy has diverged")
        error = min(max(kl / self.target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
        return replace(self, coefficient=self.coefficient * (1 + error * n_episodes / self.horizon))

    def to_dict(self) -> dict[str, float | None]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, float | None]) -> "KLController":
        """What `to_dict` gave; an unknown key raises TypeError."""
        return cls(**state)  # type: ignore[arg-type]


@torch.no_grad()
def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, *, kl_coef: float) -> Tensor:
    """Per-token rewards of a scored completion: -kl_coef * KL everywhere, and the score on the last valid token.

    kl_BT: (B, T) KL estimate per token (k1 for an unbiased penalty); not read outside the mask.
    Returns (B, T) that sums per row to score - kl_coef * ΣKL; 0 outside the mask; a fully masked row is all 0.
    Raises ValueError if a row with valid tokens has no finite score: mask such a row first.
    Source: arXiv:1909.08593 eq. 2.
    """
    mask_BT = mask_BT.bool()
    used_B = mask_BT.any(1)
    broken_B = used_B & ~scores_B.isfinite()
    if bool(broken_B.any()):
        rows = broken_B.nonzero().flatten().tolist()
        raise ValueError(f"rows {rows[:8]} have no finite score but valid tokens; take them out of the mask first")
    scores_B1 = scores_B.to(torch.promote_types(kl_BT.dtype, torch.float32))[:, None]
    penalty_BT = (kl_coef * kl_BT.to(scores_B1.dtype)).masked_fill(~mask_BT, 0.0)
    return torch.where(last_valid(mask_BT), scores_B1, 0.0) - penalty_BT


def last_valid(mask_BT: Tensor) -> Tensor:
    """(B, T) bool: True on each row's last valid token; nowhere in a fully masked row."""
    mask_BT = mask_BT.bool()
    remaining_BT = mask_BT.flip(1).cumsum(1).flip(1)
    return mask_BT & (remaining_BT == 1)


def missing_eos_penalty(scores_B: Tensor, ended_B: Tensor, *, penalty: float) -> Tensor:
    """Score minus penalty for the rows that did not end with an end token.

    ended_B: (B,) bool, from the generator's finish reason, never from a mask.
    """
    return scores_B - penalty * (~ended_B).to(scores_B.dtype)


def soft_overlong_penalty(lengths_B: Tensor, *, max_length: int, buffer: int) -> Tensor:
    """(B,) in [-1, 0], to be added to the score: 0 up to max_length - buffer, then down linearly to -1 at max_length.

    Raises ValueError unless 0 < buffer <= max_length.
    Source: DAPO, arXiv:2503.14476 eq. 13.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"overlong buffer {buffer}: must lie in 1..{max_length} (the longest completion, in tokens)")
    excess_B = lengths_B.to(torch.float32) - (max_length - buffer)
    return -(excess_B / buffer).clamp(min=0.0, max=1.0)
