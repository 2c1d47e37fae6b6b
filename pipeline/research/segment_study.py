"""segment_study: which step of credit on a hand-made Markov chain, whose pass rate and values have closed forms.

An answer has L lines of N tokens; the token at position t is right with probability p_t = sigmoid(theta_t), its own
parameter. An answer earns 1 at its end if every token is right, so the pass rate is the product of all p_t and the
value of a state without an error is the product of the p_t still to come (0 after an error). Credit is that of the
policy loop (`pipeline.credit`); only the policy and the critic, tables both, are simpler. A blind critic knows the
position and not whether there was an error. Axes: B answers per step, T = L * N tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pipeline.credit import advantages as credit
from pipeline.credit.segments import fixed_ends, segments_of_ends
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json
from pipeline.stages.context import Context
from pipeline.stats import mean

CRITICS = ("exact", "learned", "blind")
COLUMNS = ("level", "critic", "tokens", "tokens_low", "tokens_high", "reached")


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    length = block.lines * block.line_tokens
    levels = {"token": 1, "line": block.line_tokens, "misaligned": block.line_tokens + 1, "sequence": length}
    table = []
    for critic in CRITICS:
        for name, tokens in levels.items():
            spent = [tokens_to_target(block, tokens, critic=critic, seed=ctx.seed("chain", seed))
                     for seed in block.seeds]  # fmt: skip
            reached = [s for s in spent if not math.isnan(s)]
            table.append({"level": name, "critic": critic, "tokens": mean(reached), "tokens_by_seed": spent,
                          "tokens_low": min(reached, default=math.nan), "tokens_high": max(reached, default=math.nan),
                          "reached": f"{len(reached)} of {len(spent)}"})  # fmt: skip
    console.show_table(table, COLUMNS)
    atomic_write(ctx.dir.path / "table.json", dump_json(table, indent=1) + "\n")
    return {"table": table, "target": block.target, "start": block.start_rate}


def tokens_to_target(block: Any, segment_tokens: int, *, critic: str, seed: int) -> float:
    """Sampled tokens until the pass rate, known exactly, reaches the target; NaN if it does not within block.steps."""
    length = block.lines * block.line_tokens
    generator = torch.Generator().manual_seed(seed)
    each = block.start_rate ** (1 / length)
    theta_T = torch.full((length,), math.log(each / (1 - each)), dtype=torch.float64)
    values_2T = torch.zeros(2, length, dtype=torch.float64)  # a learned V without and after an error
    mask_BT = torch.ones(block.batch, length, dtype=torch.bool)
    segments_BT = segments_of_ends(fixed_ends(mask_BT, tokens=segment_tokens), mask_BT)
    for step in range(block.steps):
        rate_T = torch.sigmoid(theta_T)
        if float(rate_T.log().sum().exp()) >= block.target:
            return float(step * block.batch * length)
        right_BT = torch.rand(block.batch, length, generator=generator, dtype=torch.float64) < rate_T
        failed_BT = torch.nn.functional.pad((~right_BT).cumsum(1) > 0, (1, 0))[:, :-1].long()  # before each token
        state_BT = torch.zeros_like(failed_BT) if critic == "blind" else failed_BT
        rewards_BT = torch.zeros(block.batch, length, dtype=torch.float64)
        rewards_BT[:, -1] = right_BT.all(1).double()
        table_2T = exact_values(rate_T) if critic == "exact" else values_2T
        values_BT = table_2T[state_BT, torch.arange(length)]
        given_BT, returns_BT = credit.turn_gae(
            rewards_BT, values_BT, mask_BT, gamma=1.0, lam=block.lam, turns_BT=segments_BT
        )
        values_2T = fitted(values_2T, state_BT, returns_BT, rate=block.critic_rate)
        scaled_BT = credit.whiten(given_BT, mask_BT)
        theta_T = theta_T + block.learning_rate * (scaled_BT * (right_BT.double() - rate_T)).mean(0)
    return math.nan


def exact_values(rate_T: Tensor) -> Tensor:
    """(2, T) V before each token: the product of the rates still to come without an error, 0 after one."""
    onward_T = rate_T.log().flip(0).cumsum(0).flip(0).exp()
    return torch.stack([onward_T, torch.zeros_like(onward_T)])


def fitted(values_2T: Tensor, state_BT: Tensor, returns_BT: Tensor, *, rate: float) -> Tensor:
    """The table moved towards the mean return of the answers that visited each of its states."""
    out = values_2T.clone()
    for state in (0, 1):
        visited_BT = state_BT == state
        count_T = visited_BT.sum(0)
        mean_T = (returns_BT * visited_BT).sum(0) / count_T.clamp(min=1)
        out[state] += torch.where(count_T > 0, rate * (mean_T - out[state]), 0.0)
    return out


__all__ = ["exact_values", "fitted", "run", "tokens_to_target"]
