"""surrogate_study: what a surrogate reward does to scores and gradients at a fixed policy, against the share of checks.

The classifier learns from samples of some training prompts, all of them checked; bias and variance are measured on
other prompts. Axes: P prompts, G samples each, B = P * G rows, D draws of the rows that are checked.

With leave-one-out advantages A = L r the policy gradient is linear in the scores: g = sum_i A_i G_i / B, G_i the
gradient of row i's log-prob. The checks add to it sum_i n_i (L' G)_i / B with independent n_i of mean 0 and variance
(1/q - 1)(r_i - s_i)^2, so its variance needs no draws: only K = G G', the inner products of the rows' gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.models import models
from pipeline.records import Scored
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json
from pipeline.seeds import rng
from pipeline.stages.context import Context
from pipeline.stages.sampling import next_prompts
from pipeline.stats import mean
from pipeline.update.forward import CompletionLogprobs, Row, pad_rows
from rewards.ngram_classifier import NgramClassifier, calibration_error, features
from rewards.surrogate import corrected

COLUMNS = ("share", "prediction", "score_bias_z", "score_variance", "gradient_bias_z", "added_gradient_variance")
CHUNK = 64  # samples between two updates of the classifier, as in a training step


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    scorer, generator = ctx.scorer_of({block.of: {}}), ctx.generator()
    prompts = next_prompts(ctx, ctx.train_prompts, block.training_prompts + block.prompts)
    scored = [s for s in ctx.scored(generator, prompts, block.samples, "study", scorer=scorer)]
    border = block.training_prompts * block.samples
    classifier, first = learned(scored[:border])
    rows = scored[border:]
    real_B = torch.tensor([s.reward for s in rows], dtype=torch.float64)
    predictions = {"learned": torch.tensor(classifier.predict([features_of(s) for s in rows]), dtype=torch.float64),
                   "constant": torch.full_like(real_B, mean([s.reward for s in scored[:border]]))}  # fmt: skip
    gram_BB = row_gradients(ctx, rows)
    sampling = sampling_variance(gram_BB, real_B, block.samples)
    table = []
    for share in block.shares:
        for name, predicted_B in predictions.items():
            draws_DB = torch.from_numpy(
                rng(ctx.cfg.seed, ctx.name, "draw", f"{share}").random((block.draws, len(rows)))
            )
            table.append({"share": share, "prediction": name, **figures(gram_BB, real_B, predicted_B, share=share,
                          draws_DB=draws_DB, samples=block.samples, sampling=sampling)})  # fmt: skip
    console.show_table(table, COLUMNS)
    explained = {name: 1 - float((real_B - p_B).square().mean() / real_B.var(unbiased=False))
                 for name, p_B in predictions.items()}  # fmt: skip
    out = {"table": table, "explained_variance": explained, "real_mean": float(real_B.mean()), "learning": first,
           "calibration_error": calibration_error(predictions["learned"].tolist(), real_B.tolist()),
           "charts": [variance_chart(table)]}  # fmt: skip
    atomic_write(ctx.dir.path / "table.json", dump_json(out, indent=1) + "\n")
    return out


def features_of(scored: Scored) -> Any:
    return features(scored.rollout.prompt.ids, scored.rollout.ids)


def learned(scored: Sequence[Scored]) -> tuple[NgramClassifier, list[dict[str, float]]]:
    """A classifier that learned from these in chunks, and its error on each chunk before it learned from it."""
    classifier, log = NgramClassifier(), []
    for start in range(0, len(scored), CHUNK):
        some = scored[start : start + CHUNK]
        rows, real = [features_of(s) for s in some], [s.reward for s in some]
        errors = [(p - r) ** 2 for p, r in zip(classifier.predict(rows), real, strict=True)]
        log.append({"samples": float(classifier.seen), "error": mean(errors)})
        classifier.learn(rows, real)
    return classifier, log


def row_gradients(ctx: Context, rows: Sequence[Scored]) -> Tensor:
    """(B, B) inner products of the gradients of the rows' log-probs."""
    model = models.load_policy(ctx.policy_path, ctx.cfg.model)
    forward = CompletionLogprobs(model, temperature=ctx.cfg.sampling.temperature)
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = []
    for s in rows:
        padded = pad_rows([Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask)], weights[0].device)
        logprobs_1T = forward(padded)[0]
        each = torch.autograd.grad(logprobs_1T[padded.mask_BT].sum(), weights, allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in each if g is not None]))
    matrix_BN = torch.stack(gradients).double()
    return matrix_BN @ matrix_BN.T


# --- arithmetic -----------------------------------------------------------------------------------------------------


def leave_one_out_matrix(rows: int, group: int) -> Tensor:
    """(B, B) the matrix L with A = L r: a score minus the mean of the others of its group."""
    block = torch.eye(group, dtype=torch.float64) * group / (group - 1) - 1 / (group - 1)
    return torch.block_diag(*[block] * (rows // group))


def sampling_variance(gram_BB: Tensor, real_B: Tensor, group: int) -> float:
    """Expected squared distance of the fully checked gradient from its mean over prompts and samples.

    Groups are independent, so it is the variance of their mean gradient over the number of groups.
    """
    count = len(real_B) // group
    advantages_B = leave_one_out_matrix(len(real_B), group) @ real_B
    groups_PB = torch.block_diag(*[a[None] for a in advantages_B.view(count, group)]) / group
    inner_PP = groups_PB @ gram_BB @ groups_PB.T
    scatter = float(inner_PP.diagonal().sum() - inner_PP.sum() / count)  # sum of |h_p - mean|^2
    return scatter / max(count - 1, 1) / count


def added_variance(gram_BB: Tensor, real_B: Tensor, predicted_B: Tensor, *, share: float, group: int) -> float:
    """Expected squared distance of the gradient from the fully checked one, over draws of the checked rows."""
    noise_B = (1 / share - 1) * (real_B - predicted_B).square()
    matrix_BB = leave_one_out_matrix(len(real_B), group)
    through_BB = matrix_BB.T @ gram_BB @ matrix_BB
    return float((noise_B * through_BB.diagonal()).sum()) / len(real_B) ** 2


def figures(
    gram_BB: Tensor,
    real_B: Tensor,
    predicted_B: Tensor,
    *,
    share: float,
    draws_DB: Tensor,
    samples: int,
    sampling: float,
) -> dict[str, float]:
    """Monte-Carlo bias in standard errors, and the variances that leaving checks out adds.

    score_bias_z: mean over draws and rows of score minus real score, over its standard error. gradient_bias_z: squared
    norm of the mean error of the gradient over what the closed form expects of so many draws; 1 on average where there
    is no bias. score_variance, added_gradient_variance: relative to the variance of the real scores, and to that of the
    fully checked gradient.
    """
    scores_DB = torch.tensor(
        [[corrected(p, r if u < share else None, share)
          for p, r, u in zip(predicted_B.tolist(), real_B.tolist(), row, strict=True)]
         for row in draws_DB.tolist()], dtype=torch.float64)  # fmt: skip
    error_DB = scores_DB - real_B
    expected_B = (1 / share - 1) * (real_B - predicted_B).square()
    deviation = math.sqrt(float(expected_B.sum()) / len(draws_DB)) / len(real_B)
    matrix_BB = leave_one_out_matrix(len(real_B), samples)
    mean_B = matrix_BB @ error_DB.mean(0)
    added = added_variance(gram_BB, real_B, predicted_B, share=share, group=samples)
    seen = float(mean_B @ gram_BB @ mean_B) / len(real_B) ** 2
    return {
        "score_bias_z": float(error_DB.mean()) / deviation if deviation else 0.0,
        "score_variance": float(error_DB.square().mean() / real_B.var(unbiased=False)),
        "gradient_bias_z": seen / (added / len(draws_DB)) if added else 0.0,
        "added_gradient_variance": added / sampling,
    }


def variance_chart(table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Added gradient variance by the share of checks."""
    names = list(dict.fromkeys(line["prediction"] for line in table))
    series = [{"name": f"{name} prediction", "x": [r["share"] for r in table if r["prediction"] == name],
               "y": [r["added_gradient_variance"] for r in table if r["prediction"] == name]}
              for name in names]  # fmt: skip
    return {"title": "gradient variance that unchecked rows add, relative to that of sampling",
            "xLabel": "share of rows checked", "series": series, "yMin": 0.0}  # fmt: skip
