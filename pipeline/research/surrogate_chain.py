"""surrogate_chain: what a surrogate reward costs and saves on a policy whose expected reward has a closed form.

An answer is T letters, each from its own softmax over V letters; its real score is 1 where half of the letters are
the first one, and falls to 0 where all or none are. More of that letter earns more at first, and nothing in the end.
The surrogate part, its classifier and its draws are those of the policy loop, and so is leave-one-out credit; only the
policy, a table, is simpler, and nothing is sampled to know its expected score. Axes: B answers per step, T letters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import rewards
from pipeline.credit import advantages as credit
from pipeline.research import time_to_target as spending
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json
from pipeline.seeds import derive, rng
from pipeline.stages.context import Context
from pipeline.stats import mean
from rewards.batch import Batch

LETTERS = "RABCDEFGHIJKLMNO"
REAL = {"kind": "function", "path": "pipeline.research.surrogate_chain:half_scores"}
METHODS: dict[str, dict[str, Any]] = {
    "full": REAL,
    "quarter": {"verify_share": 0.25},
    "tenth": {"verify_share": 0.1},
    "adaptive": {"verify_share": 0.5, "added_variance": 1.0},
    "constant": {"verify_share": 0.25, "learn": False},
    "uncorrected": {"verify_share": 0.25, "correct": False},
    "frozen": {"verify_share": 1.0, "correct": False, "learn_rows": 64},
}


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    spent = {name: [learn(block, name, seed=ctx.seed("chain", seed)) for seed in block.seeds] for name in block.methods}
    table = []
    for name in block.methods:
        seeds = [one for one, _ in spent[name]]
        line = spending.row(name, seeds, block.target, 1)
        table.append(
            line | {"best": mean([max(s.values) for s in seeds]), "believed": mean([b for _, b in spent[name]])}
        )
    console.show_table(table, (*spending.COLUMNS, "best", "believed"))
    curves = {name: [one for one, _ in seeds] for name, seeds in spent.items()}
    out = {"table": table, "target": block.target, **spending.costs(block, curves)}
    out["charts"] = [spending.learning_chart(block, curves), spending.cost_chart(block, out["seconds"])]
    console.show_table(out["break_even"], ("method", "against", "break_even_s", "faster"))
    atomic_write(ctx.dir.path / "table.json", dump_json(out, indent=1) + "\n")
    return out


def half_scores(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """1 where half of the letters are R; 0 where all or none are."""
    return [1 - abs(2 * text.count("R") / len(text) - 1) for text in completions]


def expected_score(probability_T: Tensor) -> float:
    """Mean score of the policy; probability_T: chance of R at each position. The count of R by convolution."""
    counts = torch.ones(1, dtype=torch.float64)
    for p in probability_T.double():
        counts = torch.nn.functional.pad(counts, (0, 1)) * (1 - p) + torch.nn.functional.pad(counts, (1, 0)) * p
    n = len(probability_T)
    return math.fsum(float(c) * (1 - abs(2 * k / n - 1)) for k, c in enumerate(counts))


def learn(block: Any, method: str, *, seed: int) -> tuple[spending.Spent, float]:
    """One run: its curve of expected real scores, and the mean score that it was trained on in its last ten steps."""
    fields = METHODS[method]
    part = fields if method == "full" else {"kind": "surrogate", "of": "real", "settings": REAL, **fields}
    scorer = rewards.build({"slow": part})
    generator = torch.Generator().manual_seed(seed)
    theta_TV = torch.zeros(block.letters, len(LETTERS), dtype=torch.float64)
    out, believed = spending.Spent([], [], [], [], [], []), [0.0]
    for step in range(block.steps):
        probability_TV = torch.softmax(theta_TV, 1)
        ids_BT = torch.multinomial(probability_TV, block.batch, replacement=True, generator=generator).T
        texts = ["".join(LETTERS[i] for i in row) for row in ids_BT.tolist()]
        draws = [float(x) for x in rng(derive(seed, "check"), step).random(block.batch)]
        n = block.batch
        batch = Batch([":"] * n, [[99]] * n, texts, ids_BT.tolist(), [True] * n, [{}] * n, draws)
        scores = scorer.score(batch)
        for surrogate in scorer.surrogates:
            surrogate.observe([([99], ids, s.parts) for ids, s in zip(ids_BT.tolist(), scores, strict=True)])
        score_B = torch.tensor([s.reward for s in scores], dtype=torch.float64)
        advantage_B = credit.leave_one_out(score_B[None])[0]
        chosen_BTV = torch.nn.functional.one_hot(ids_BT, len(LETTERS)).double()
        gradient_TV = (advantage_B[:, None, None] * (chosen_BTV - probability_TV)).mean(0)
        theta_TV = theta_TV + block.learning_rate * gradient_TV
        believed.append(float(score_B.mean()))
        checked = sum("slow/real" in s.parts for s in scores) if scorer.surrogates else n
        out.checks_per_step.append(float(checked))
        out.step_s.append(block.step_s)
        out.steps.append(step + 1)
        out.values.append(expected_score(torch.softmax(theta_TV, 1)[:, 0]))
        out.tokens.append(float((step + 1) * n * block.letters))
        out.checks.append(math.fsum(out.checks_per_step))
    return out, mean(believed[-10:])


__all__ = ["expected_score", "half_scores", "learn", "run"]
