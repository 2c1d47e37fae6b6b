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
        note="KL weight of the paper's training details (appendix C), as cited by TRL",
    ),
    "reinforce++": _preset(
        "REINFORCE++, arXiv:2501.03262",
        {"kind": "global_baseline"},
        _clip(0.2, 0.2, "token_mean"),
        {"coef": 0.01, "where": "reward", "kind": "k1"},
        note="KL weight of OpenRLHF's general scripts; its scripts for mathematics set 1e-5 to 1e-4",
    ),
    "vineppo": _preset(
        "VinePPO, arXiv:2410.01679",
        {"kind": "monte_carlo", "gamma": 1.0, "continuations": 9, "whiten": True},
        _clip(0.2, 0.2, "token_mean"),
        {"coef": 1e-4, "where": "loss", "kind": "k3"},
        note="the paper samples at every reasoning step; here credit.points positions are spread evenly; KL weight and "
        "estimator of its repository, which also bounds the estimate per token at 10",
    ),
    "maxrl": _preset(
        "MaxRL, arXiv:2602.02710",
        {"kind": "maxrl"},
        _clip(0.2, 0.2, "token_mean"),
        note="the paper derives the advantage; the clip range is PPO's, and on-policy it does nothing",
    ),
    "dppo": _preset(
        "DPPO, arXiv:2602.04879",
        {"kind": "group", "scale": False},
        {**_clip(0.15, 0.15, "constant_length", "dppo"), "divergence": "tv", "old_policy": "generator"},
        note="limits, mean and unscaled advantages of verl's script; loss.divergence kl has 0.05 there",
    ),
    "gdpo": _preset(
        "GDPO, arXiv:2601.05242",
        {"kind": "gdpo"},
        _clip(0.2, 0.2, "token_mean"),
        note="differs from grpo only where several reward parts have a weight",
    ),
    "sapo": _preset(
        "SAPO, arXiv:2511.20347",
        GROUP,
        {"kind": "sapo", "sapo_tau_positive": 1.0, "sapo_tau_negative": 1.05, "aggregate": "sequence_mean"},
    ),
    "vespo": _preset(
        "VESPO, arXiv:2602.10693",
        GROUP,
        {
            "kind": "vespo",
            "vespo_k_positive": 2.0,
            "vespo_lambda_positive": 3.0,
            "vespo_k_negative": 3.0,
            "vespo_lambda_negative": 2.0,
            "aggregate": "token_mean",
            "old_policy": "generator",
        },
        note="the ratio is to the policy that sampled, so that its weight covers the mismatch too",
    ),
    "luspo": _preset(
        "LUSPO, arXiv:2602.05261",
        GROUP,
        _clip(2e-3, 2.5e-3, "sequence_sum", "gspo"),
    ),
    "kl_cov": _preset(
        "KL-Cov, arXiv:2505.22617",
        GROUP,
        {"kind": "kl_cov", "cov_share": 2e-3, "cov_coef": 1.0, "aggregate": "token_mean"},
        note="share of the authors' script for 7B; 2e-4 in their script for 32B, which is verl's default",
    ),
    "clip_cov": _preset(
        "Clip-Cov, arXiv:2505.22617",
        GROUP,
        {**_clip(0.2, 0.2, "token_mean", "clip_cov"), "cov_share": 2e-4, "cov_low": 1.0, "cov_high": 5.0},
        note="band and share of the paper's 7B model; tokens in the band are drawn at random",
    ),
    "top_entropy": _preset(
        "Beyond the 80/20 rule, arXiv:2506.01939",
        GROUP,
        {**_clip(0.2, 0.28, "token_mean"), "top_entropy": 0.2},
        groups={"dynamic": True},
        note="DAPO on the fifth of the tokens with the highest entropy",
    ),
    "deepseek_v3.2": _preset(
        "DeepSeek-V3.2, arXiv:2512.02556",
        GROUP,
        {**_clip(0.2, 0.2, "sequence_mean"), "off_policy_limit": 0.5},
        {"coef": 0.001, "where": "loss", "kind": "unbiased"},
        note="the paper gives neither the limit nor the KL weight; 0.5 and 0.001 are the values of TRL's documentation",
    ),
    "optimal_baseline": _preset(
        "Optimal token baseline, arXiv:2602.07078",
        {"kind": "optimal_baseline"},
        _clip(0.2, 0.2, "token_mean"),
        note="the paper's baseline; the clip range is PPO's",
    ),
    "pass_at_k": _preset(
        "PKPO, arXiv:2505.15201",
        {"kind": "pass_at_k", "k": 4},
        {"kind": "reinforce", "aggregate": "constant_length"},
        note="k is yours to choose; a prompt needs at least k samples",
    ),
}
