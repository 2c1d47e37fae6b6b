"""The divergence from a teacher: against torch's KL, against TRL 1.16's kernel and top-k loss, and its limits.

The kernel is what DistillationTrainer computes its loss with; `_chunked_divergence_loss` is called as it calls it.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.update.divergence import (
    TeacherStates,
    chunked_divergence,
    divergence_of_logits,
    jensen_shannon,
    top_k_with_rest,
)

STUDENT, TEACHER, VOCABULARY = 8, 12, 40


def seeded(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logprobs(*values: float) -> Tensor:
    return torch.tensor([values]).log()


def test_both_ends_are_the_two_kl_and_the_middle_is_jensen_shannon() -> None:
    student, teacher = logprobs(0.7, 0.2, 0.1), logprobs(0.5, 0.25, 0.25)
    reverse = 0.7 * math.log(0.7 / 0.5) + 0.2 * math.log(0.2 / 0.25) + 0.1 * math.log(0.1 / 0.25)
    forward = 0.5 * math.log(0.5 / 0.7) + 0.25 * math.log(0.25 / 0.2) + 0.25 * math.log(0.25 / 0.1)
    assert float(jensen_shannon(student, teacher, beta=1.0)) == pytest.approx(reverse)
    assert float(jensen_shannon(student, teacher, beta=0.0)) == pytest.approx(forward)
    middle = [0.6, 0.225, 0.175]
    half = sum(0.5 * q * math.log(q / m) + 0.5 * p * math.log(p / m)
               for p, q, m in zip([0.7, 0.2, 0.1], [0.5, 0.25, 0.25], middle, strict=True))  # fmt: skip
    assert float(jensen_shannon(student, teacher, beta=0.5, normalise=False)) == pytest.approx(half, rel=1e-5)
    assert float(jensen_shannon(student, teacher, beta=0.5)) == pytest.approx(4 * half, rel=1e-5)


@pytest.mark.parametrize(("beta", "end"), [(1e-4, 0.0), (1 - 1e-4, 1.0)])
def test_towards_its_ends_only_the_normalised_divergence_approaches_the_two_kl(beta: float, end: float) -> None:
    student, teacher = seeded(5, 30, seed=1).log_softmax(1), seeded(5, 30, seed=2).log_softmax(1)
    limit = jensen_shannon(student, teacher, beta=end)
    torch.testing.assert_close(jensen_shannon(student, teacher, beta=beta), limit, rtol=1e-3, atol=0)
    assert float(jensen_shannon(student, teacher, beta=beta, normalise=False).max()) < 1e-3 * float(limit.min())


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_token_that_is_impossible_gives_no_nan(beta: float) -> None:
    student = torch.tensor([[0.0, 1.0, -math.inf]]).requires_grad_()
    value = divergence_of_logits(student, torch.tensor([[1.0, -math.inf, 0.0]]), beta=beta, top_k=None, normalise=True)
    value.sum().backward()
    assert bool(value.isfinite().all()) and bool(student.grad.isfinite().all())  # type: ignore[union-attr]


def test_padding_of_one_vocabulary_is_left_out() -> None:
    student, teacher = seeded(4, 10, seed=3), seeded(4, 10, seed=4)
    padded = torch.cat([teacher, torch.full((4, 6), 5.0)], 1)
    settings: Any = {"beta": 0.5, "top_k": None, "normalise": True}
    plain = divergence_of_logits(student, teacher, **settings)
    torch.testing.assert_close(divergence_of_logits(student, padded, **settings), plain)


def test_the_top_k_and_the_rest_are_a_lower_bound_that_k_tightens() -> None:
    student, teacher = (2 * seeded(20, 30, seed=s).log_softmax(1) for s in (5, 6))
    student, teacher = student.log_softmax(1), teacher.log_softmax(1)
    full = jensen_shannon(student, teacher, beta=1.0)
    some, more = (jensen_shannon(*top_k_with_rest(student, teacher, k), beta=1.0) for k in (3, 12))
    assert bool((some <= full + 1e-6).all()) and bool((more <= full + 1e-6).all())
    assert float((full - more).mean()) < float((full - some).mean())
    reduced, _ = top_k_with_rest(student, teacher, 3)
    torch.testing.assert_close(reduced.exp().sum(1), torch.ones(20))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 5])
def test_the_top_k_loss_equals_trls(beta: float, k: int) -> None:
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    student, teacher = seeded(9, VOCABULARY, seed=7), seeded(9, VOCABULARY, seed=8)
    theirs = compute_topk_self_distillation_loss(
        student, teacher, distillation_topk=k, distillation_alpha=beta, distillation_add_tail=True
    )
    ours = divergence_of_logits(student, teacher, beta=beta, top_k=k, normalise=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# --- the chunked head ------------------------------------------------------------------------------------------------


def batch(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    mask_BT = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]]).bool()
    return {
        "hidden_BTH": seeded(2, 5, STUDENT, seed=9).to(dtype).requires_grad_(),
        "weight_VH": seeded(VOCABULARY, STUDENT, seed=10).to(dtype).requires_grad_(),
        "bias_V": seeded(VOCABULARY, seed=11).to(dtype).requires_grad_(),
        "teacher_BTG": seeded(2, 5, TEACHER, seed=12).to(dtype),
        "teacher_VG": seeded(VOCABULARY, TEACHER, seed=13).to(dtype),
        "mask_BT": mask_BT,
    }


def states(given: dict[str, Any], beta: float, *, top_k: int | None = None, normalise: bool = False) -> TeacherStates:
    everywhere_BT = torch.ones_like(given["mask_BT"])
    return TeacherStates(
        given["teacher_BTG"], given["teacher_VG"], None, everywhere_BT, 1.0, beta, top_k, normalise
    )  # fmt: skip


def ours(given: dict[str, Any], teacher: TeacherStates, *, chunk: int | None = None) -> Tensor:
    return chunked_divergence(
        given["hidden_BTH"], given["weight_VH"], teacher, given["mask_BT"], temperature=0.8, bias_V=given["bias_V"],
        chunk=chunk,
    )  # fmt: skip


def gradients(loss: Tensor, given: dict[str, Any]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [given["hidden_BTH"], given["weight_VH"], given["bias_V"]])


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_loss_and_gradient_equal_those_of_trls_distillation_trainer(beta: float) -> None:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    given = batch()
    theirs, _, _ = _chunked_divergence_loss(
        given["hidden_BTH"], given["teacher_BTG"], given["weight_VH"], given["teacher_VG"], given["mask_BT"].long(),
        beta, student_lm_head_bias=given["bias_V"], temperature=0.8,
    )  # fmt: skip
    loss = ours(given, states(given, beta), chunk=3).sum() / given["mask_BT"].sum()
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    for mine, other in zip(gradients(loss, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_chunks_and_recomputation_change_neither_value_nor_gradient(beta: float, top_k: int | None) -> None:
    given = batch()
    teacher = states(given, beta, top_k=top_k, normalise=True)
    values_BT = ours(given, teacher, chunk=2)
    logits_BTV = (given["hidden_BTH"] @ given["weight_VH"].T + given["bias_V"]) / 0.8
    teacher_BTV = given["teacher_BTG"] @ given["teacher_VG"].T / 0.8
    plain_BT = divergence_of_logits(logits_BTV, teacher_BTV, beta=beta, top_k=top_k, normalise=True)
    plain_BT = plain_BT.masked_fill(~given["mask_BT"], 0.0)
    torch.testing.assert_close(values_BT, plain_BT)
    for mine, other in zip(gradients(values_BT.sum(), given), gradients(plain_BT.sum(), given), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_a_fully_masked_batch_gives_zero_and_a_graph() -> None:
    given = batch()
    given["mask_BT"] = torch.zeros(2, 5).bool()
    values_BT = ours(given, states(given, 1.0))
    assert values_BT.shape == (2, 5) and not values_BT.any()
    assert all(not gradient.any() for gradient in gradients(values_BT.sum(), given))


def test_no_tensor_of_batch_times_length_times_vocabulary_is_made() -> None:
    """The largest tensor that the operation makes has the size of one chunk's logits, not of all tokens'."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else (out,):
                if isinstance(one, Tensor) and one.ndim and one.shape[-1] >= 500:
                    largest = max(largest, one.numel() // one.shape[-1])
            return out

    hidden_BTH, weight_VH = (
        seeded(4, 50, STUDENT, seed=1).requires_grad_(),
        seeded(500, STUDENT, seed=2).requires_grad_(),
    )
    teacher = TeacherStates(seeded(4, 50, TEACHER, seed=3), seeded(500, TEACHER, seed=4), None,
                            torch.ones(4, 50).bool(), 1.0, 0.5, None, True)  # fmt: skip
    with Sizes():
        chunked_divergence(
            hidden_BTH, weight_VH, teacher, torch.ones(4, 50).bool(), temperature=1.0, chunk=10
        ).sum().backward()
    assert 0 < largest <= 20  # rows of vocabulary size: a chunk, or both of a mixture's
