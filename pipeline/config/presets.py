"""Named methods: `method: dapo` on a policy stage sets credit, loss and KL as the paper does; keys beside it win.

Each preset names every key of credit, loss and KL in which methods differ, so that it means the same on a block of any
kind. What a paper leaves open is set here as its `note` says. Budgets (prompts, samples, steps, learning rate) are the
user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GROUP = {"kind": "group", "scale": True}
NO_KL = {"coef": 0.0, "where": "loss", "kind": "k3"}


@dataclass(frozen=True, slots=True)
class Preset:
    """paper: title and arXiv id. note: what the paper leaves open, or what else it does."""

    paper: str
    sets: Mapping[str, Any]
    note: str = ""


def _clip(low: float, high: float, aggregate: str, kind: str = "clip") -> dict[str, Any]:
    return {"kind": kind, "clip_low": low, "clip_high": high, "aggregate": aggregate}


def _preset(
    paper: str, credit: Mapping[str, Any], loss: Mapping[str, Any], kl: Mapping[str, Any] = NO_KL, *,
    critic: Mapping[str, Any] | None = None, groups: Mapping[str, Any] | None = None, note: str = "",
) -> Preset:  # fmt: skip
    sets = {"credit": credit, "loss": loss, "kl": kl, "critic": critic, **({"groups": groups} if groups else {})}
    return Preset(paper, sets, note)


PRESETS: dict[str, Preset] = {
    "ppo": _preset(
        "PPO, arXiv:1707.06347, as in InstructGPT, arXiv:2203.02155",
        {"kind": "gae", "gamma": 1.0, "lam": 0.95, "whiten": True},
        _clip(0.2, 0.2, "token_mean"),
        {"coef": 0.02, "where": "reward", "kind": "k1"},
        critic={},
    ),
    "grpo": _preset(
        "GRPO, DeepSeekMath, arXiv:2402.03300",
        GROUP,
        _clip(0.2, 0.2, "sequence_mean"),
        {"coef": 0.04, "where": "loss", "kind": "k3"},
        note="the paper does not give the clip range; 0.2 is PPO's",
    ),
    "dr_grpo": _preset(
        "Dr. GRPO, arXiv:2503.20783",
        {"kind": "group", "scale": False},
        _clip(0.2, 0.2, "constant_length"),
    ),
    "dapo": _preset(
        "DAPO, arXiv:2503.14476",
        GROUP,
        _clip(0.2, 0.28, "token_mean"),
        groups={"dynamic": True},
        note="its length penalty depends on your limit: there groups.overlong_buffer is a fifth of sampling.max_tokens",
    ),
    "gspo": _preset(
        "GSPO, arXiv:2507.18071",
        GROUP,
        _clip(3e-4, 4e-4, "sequence_mean", "gspo"),
    ),
    "cispo": _preset(
        "CISPO, MiniMax-M1, arXiv:2506.13585",
        GROUP,
        _clip(1.0, 4.0, "token_mean", "cispo"),
        groups={"dynamic": True},
        note="no lower bound, as in the paper; the upper bound it leaves open is 5, from ScaleRL, arXiv:2510.13786",
    ),
    "rloo": _preset(
        "RLOO, arXiv:2402.14740",
        {"kind": "leave_one_out"},
        {"kind": "reinforce", "aggregate": "constant_length"},
        {"coef": 0.03, "where": "reward", "kind": "k1"},
        note="the paper's KL weight for TL;DR; it uses a larger one for dialogue",
    ),
    "reinforce++": _preset(
        "REINFORCE++, arXiv:2501.03262",
        {"kind": "global_baseline"},
        _clip(0.2, 0.2, "token_mean"),
        {"coef": 0.01, "where": "reward", "kind": "k1"},
        note="the paper's KL weight for general tasks; it uses a smaller one for mathematics",
    ),
    "vineppo": _preset(
        "VinePPO, arXiv:2410.01679",
        {"kind": "monte_carlo", "gamma": 1.0, "continuations": 9, "whiten": True},
        _clip(0.2, 0.2, "token_mean"),
        {"coef": 1e-4, "where": "loss", "kind": "k3"},
        note="the paper samples at every reasoning step; here credit.points positions are spread evenly",
    ),
}
