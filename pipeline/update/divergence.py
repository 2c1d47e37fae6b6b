"""Divergence of a student from a teacher over the whole vocabulary or the student's top k, one chunk at a time.

Axes: B batch, T tokens, H and G hidden sizes of student and teacher, V vocabulary, N flat tokens, C tokens of a chunk.
As in logprobs.py, logits exist for one chunk at a time, in forward and again in backward: batch x length x vocabulary
is never materialized. First-order gradients to the student's hidden states, head and bias; none to the teacher.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.update.logprobs import (
    IMPOSSIBLE,
    HeadGradients,
    check_temperature,
    chunk_tokens,
    head_in_dtype,
    head_logits,
    scaled_logits,
    slices,
)

NEAR_AN_END = 0.05  # beta within this of 0 or 1: the mixture's divergence is a difference of nearly equal numbers
LARGEST_LOG_MASS = -1e-7  # of the top k, so that the rest keeps a probability that has a logarithm


# scaled logits (C, V) of the student and the rows they are of -> (C,) divergence from the teacher
Comparison = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True, slots=True)
class TeacherStates:
    """What a teacher gives for a micro-batch: hidden states before each completion token and its head, and how its
    distribution is compared with the student's. mask_BT: False where it has nothing to say."""

    hidden_BTG: Tensor
    weight_VG: Tensor
    bias_V: Tensor | None
    mask_BT: Tensor
    coef: float
    beta: float
    top_k: int | None
    normalise: bool

    def comparison(self, wanted_BT: Tensor, temperature: float) -> Comparison:
        hidden_NG = self.hidden_BTG[wanted_BT].detach()

        def compare(student_CV: Tensor, rows: slice) -> Tensor:
            head = head_in_dtype(hidden_NG[rows], self.weight_VG, self.bias_V)
            teacher_CV = scaled_logits(head_logits(hidden_NG[rows], *head), temperature)
            return divergence_of_logits(
                student_CV, teacher_CV, beta=self.beta, top_k=self.top_k, normalise=self.normalise
            )

        return compare


@dataclass(frozen=True, slots=True)
class TeacherTopK:
    """What a teacher behind a server gives for a micro-batch: its own K most likely tokens before each completion token
    and their log-probs, at the temperature of the comparison. All other tokens are compared as one."""

    indices_BTK: Tensor
    logprobs_BTK: Tensor
    mask_BT: Tensor
    coef: float
    beta: float
    normalise: bool

    def comparison(self, wanted_BT: Tensor, temperature: float) -> Comparison:
        indices_NK, logprobs_NK = self.indices_BTK[wanted_BT], self.logprobs_BTK[wanted_BT]

        def compare(student_CV: Tensor, rows: slice) -> Tensor:
            student_CK = student_CV.log_softmax(-1).gather(-1, indices_NK[rows])
            return jensen_shannon(
                with_rest(student_CK), with_rest(logprobs_NK[rows]), beta=self.beta, normalise=self.normalise
            )

        return compare


def jensen_shannon(student_CV: Tensor, teacher_CV: Tensor, *, beta: float, normalise: bool = True) -> Tensor:
    """(C,) generalised Jensen-Shannon divergence of log-probs in nats: with M = (1 - beta) S + beta T,
    beta KL(T || M) + (1 - beta) KL(S || M); KL(T || S) at beta 0 and KL(S || T) at beta 1.

    normalise: between the ends, divide by beta (1 - beta). Without it the value and its gradient fall to 0 towards both
    ends, where the two KL then appear at once; with it they are the limits, and the size is comparable over all beta.
    Source: GKD, arXiv:2306.13649 eq. 1; conventions (which end is which) as in TRL.
    """
    student_CV, teacher_CV = student_CV.clamp(min=IMPOSSIBLE), teacher_CV.clamp(min=IMPOSSIBLE)
    if beta in (0.0, 1.0):
        first_CV, second_CV = (teacher_CV, student_CV) if beta == 0 else (student_CV, teacher_CV)
        return (first_CV.exp() * (first_CV - second_CV)).sum(-1)
    if min(beta, 1 - beta) < NEAR_AN_END:
        student_CV, teacher_CV = student_CV.double(), teacher_CV.double()
    mixture_CV = torch.logaddexp(student_CV + math.log(1 - beta), teacher_CV + math.log(beta))
    teacher_C = (teacher_CV.exp() * (teacher_CV - mixture_CV)).sum(-1)
    student_C = (student_CV.exp() * (student_CV - mixture_CV)).sum(-1)
    out_C = beta * teacher_C + (1 - beta) * student_C
    return (out_C / (beta * (1 - beta)) if normalise else out_C).float()


def top_k_with_rest(student_CV: Tensor, teacher_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Log-probs of the student's k most likely tokens under both, and last that of all other tokens together.

    A divergence of these never exceeds that of the whole vocabulary. Source: SDPO, arXiv:2601.20802, as in TRL's
    add_tail; without the rest, probability could leave the k tokens unseen.
    """
    indices_CK = student_CV.detach().topk(min(k, student_CV.shape[-1]), dim=-1).indices
    return with_rest(student_CV.gather(-1, indices_CK)), with_rest(teacher_CV.gather(-1, indices_CK))


def with_rest(logprobs_CK: Tensor) -> Tensor:
    """(C, K + 1): log-probs of some tokens, and last that of all others together."""
    mass_C1 = logprobs_CK.logsumexp(-1, keepdim=True).clamp(max=LARGEST_LOG_MASS)
    return torch.cat([logprobs_CK, torch.log(-torch.expm1(mass_C1))], dim=-1)


def divergence_of_logits(
    student_CV: Tensor, teacher_CV: Tensor, *, beta: float, top_k: int | None, normalise: bool
) -> Tensor:
    """(C,) divergence of two sets of scaled logits in float32. Only tokens that both vocabularies have are compared:
    one of them may be padded."""
    shared = min(student_CV.shape[-1], teacher_CV.shape[-1])
    student_CV, teacher_CV = (x[..., :shared].log_softmax(-1) for x in (student_CV, teacher_CV))
    if top_k is not None:
        student_CV, teacher_CV = top_k_with_rest(student_CV, teacher_CV, top_k)
    return jensen_shannon(student_CV, teacher_CV, beta=beta, normalise=normalise)


def chunked_divergence(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    teacher: TeacherStates | TeacherTopK,
    mask_BT: Tensor,
    *,
    temperature: float,
    bias_V: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """(B, T) float32 divergence of the student from the teacher, per token; 0 outside the mask.

    hidden_BTH: the student's last hidden state before each token. temperature: of both distributions.
    chunk: tokens whose logits exist at a time; None = chosen from the vocabulary size.
    Raises ValueError unless temperature > 0.
    """
    check_temperature(temperature)
    chunk = chunk_tokens(chunk, 2 * weight_VH.shape[0])
    wanted_BT = mask_BT.bool() & teacher.mask_BT
    values_N = _Divergence.apply(
        hidden_BTH[wanted_BT], weight_VH, bias_V, teacher.comparison(wanted_BT, temperature), temperature, chunk
    )
    return values_N.new_zeros(wanted_BT.shape).masked_scatter(wanted_BT, values_N)


class _Divergence(torch.autograd.Function):
    """Computes the logits of one chunk at a time, and again in backward, where autograd differentiates the chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        compare: Comparison,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V)
        ctx.compare, ctx.temperature, ctx.chunk = compare, temperature, chunk
        with torch.autocast(hidden_NH.device.type, enabled=False):
            head = head_in_dtype(hidden_NH, weight_VH, bias_V)
            parts = [
                compare(scaled_logits(head_logits(hidden_NH[rows], *head), temperature), rows)
                for rows in slices(len(hidden_NH), chunk)
            ]
        return torch.cat(parts) if parts else hidden_NH.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V = ctx.saved_tensors
        gradients = HeadGradients(hidden_NH, weight_VH, bias_V, ctx.needs_input_grad[:3])
        with torch.autocast(hidden_NH.device.type, enabled=False):
            head_VH, head_V = head_in_dtype(hidden_NH, weight_VH, bias_V)
            for rows in slices(len(hidden_NH), ctx.chunk):
                scaled_CV = scaled_logits(head_logits(hidden_NH[rows], head_VH, head_V), ctx.temperature)
                with torch.enable_grad():
                    scaled_CV = scaled_CV.detach().requires_grad_()
                    values_C = ctx.compare(scaled_CV, rows)
                (wide_CV,) = torch.autograd.grad(values_C, scaled_CV, grads[0][rows])
                gradients.add(rows, wide_CV / ctx.temperature, head_VH)
        return *gradients.read(), None, None, None
