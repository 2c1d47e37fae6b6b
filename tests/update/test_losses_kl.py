"""KL estimators, KL penalties and generator mismatch, against hand arithmetic and exact expectations.

A policy over seven tokens is small enough to average over every token it could have sampled, so that a claim about
an expected gradient is tested without sampling.
"""

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from pipeline.update.losses import (
    CorrectionMode,
    KLLossKind,
    Level,
    importance_weights,
    kl_estimate,
    kl_loss,
    reinforce_surrogate,
)
from pipeline.update.policy_loss import Averages, measure_mismatch

NAN = float("nan")


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def holed_mask(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random holes; row 0 is full, row 1 empty."""
    mask_BT = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask_BT[0], mask_BT[1] = True, False
    return mask_BT


# --- KL --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("k1", math.log(4)), ("k2", math.log(4) ** 2 / 2), ("k3", 1 / 4 - 1 + math.log(4))],
)
def test_kl_estimators_by_hand(kind: str, expected: float) -> None:
    estimate = kl_estimate(torch.tensor([[math.log(0.8)]]), torch.tensor([[math.log(0.2)]]), kind=kind)  # type: ignore[arg-type]
    assert float(estimate) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("difference", [0.0, 1e-6, 1e-3, -1e-3, 5.0, -5.0, 80.0, -80.0, 1e4, -1e4])
def test_detail_19_k3_is_finite_and_never_negative(difference: float) -> None:
    policy = torch.tensor([[-1.0]], requires_grad=True)
    estimate = kl_estimate(policy, torch.tensor([[-1.0 + difference]]), kind="k3")
    estimate.backward()
    assert 0 <= float(estimate) < math.inf
    assert policy.grad is not None and policy.grad.isfinite().all()


def test_k3_keeps_its_digits_where_policy_and_reference_almost_agree() -> None:
    x = torch.tensor(1e-3)
    exact = 1e-6 / 2 + 1e-9 / 6 + 1e-12 / 24
    assert float(kl_estimate(torch.zeros(()), x, kind="k3")) == pytest.approx(exact, rel=1e-3)


def small_policy() -> tuple[Tensor, Tensor, Tensor]:
    """Logits with gradient of a policy over 7 tokens, its log-probs, and another distribution's log-probs."""
    logits_V = seeded(7).requires_grad_()
    return logits_V, logits_V.log_softmax(0), seeded(7, seed=1).log_softmax(0)


def expected_gradient(logits_V: Tensor, sampled_from_V: Tensor, loss_V: Tensor) -> Tensor:
    """Gradient of a loss on sampled tokens, averaged exactly over every token the sampler could have drawn."""
    (gradient_V,) = torch.autograd.grad((sampled_from_V.detach() * loss_V).sum(), logits_V, retain_graph=True)
    return gradient_V


def test_k1_and_k3_are_exact_in_expectation_and_k2_is_not() -> None:
    _, policy_V, reference_V = small_policy()
    exact = (policy_V.exp() * (policy_V - reference_V)).sum()
    mean = {k: (policy_V.exp() * kl_estimate(policy_V, reference_V, kind=k)).sum() for k in ("k1", "k2", "k3")}  # type: ignore[arg-type]
    torch.testing.assert_close(mean["k1"], exact)
    torch.testing.assert_close(mean["k3"], exact)
    assert abs(float(mean["k2"] - exact)) > 0.03


def test_detail_18_k2_and_the_unbiased_form_have_the_reverse_kl_gradient_k1_none_and_k3_the_forward_kls() -> None:
    logits_V, policy_V, reference_V = small_policy()
    valid_V = torch.ones(7).bool()
    (reverse_V,) = torch.autograd.grad((policy_V.exp() * (policy_V - reference_V)).sum(), logits_V, retain_graph=True)
    (forward_V,) = torch.autograd.grad(
        (reference_V.exp() * (reference_V - policy_V)).sum(), logits_V, retain_graph=True
    )

    def mean_gradient(kind: KLLossKind) -> Tensor:
        penalty = kl_loss(policy_V[None], reference_V[None], valid_V[None], kind=kind)[0]
        return expected_gradient(logits_V, policy_V.exp(), penalty)

    torch.testing.assert_close(mean_gradient("k2"), reverse_V)
    torch.testing.assert_close(mean_gradient("unbiased"), reverse_V)
    torch.testing.assert_close(mean_gradient("k3"), forward_V)
    assert not torch.allclose(forward_V, reverse_V, atol=0.02)
    k1_V = expected_gradient(logits_V, policy_V.exp(), kl_estimate(policy_V, reference_V, kind="k1"))
    torch.testing.assert_close(k1_V, torch.zeros(7, dtype=torch.float64))


def test_detail_18_off_policy_only_the_unbiased_form_keeps_the_reverse_kl_gradient() -> None:
    logits_V, policy_V, reference_V = small_policy()
    old_V, valid_V = seeded(7, seed=2).log_softmax(0), torch.ones(7).bool()
    (reverse_V,) = torch.autograd.grad((policy_V.exp() * (policy_V - reference_V)).sum(), logits_V, retain_graph=True)
    unbiased = kl_loss(policy_V[None], reference_V[None], valid_V[None], kind="unbiased", old_logprobs_BT=old_V[None])
    torch.testing.assert_close(expected_gradient(logits_V, old_V.exp(), unbiased[0]), reverse_V)
    k2 = kl_loss(policy_V[None], reference_V[None], valid_V[None], kind="k2")
    assert not torch.allclose(expected_gradient(logits_V, old_V.exp(), k2[0]), reverse_V, atol=0.02)


def test_kl_loss_reads_nothing_outside_the_mask_and_refuses_k1() -> None:
    policy_BT = torch.tensor([[-1.0, NAN]], requires_grad=True)
    for kind in get_args(KLLossKind):
        penalty_BT = kl_loss(policy_BT, torch.tensor([[-2.0, 3.0]]), torch.tensor([[1, 0]]), kind=kind)
        (gradient_BT,) = torch.autograd.grad(penalty_BT.sum(), policy_BT)
        assert penalty_BT[0, 1] == 0.0 and gradient_BT[0, 1] == 0.0 and gradient_BT[0, 0] > 0
    with pytest.raises(ValueError, match=r"no KL loss 'k1'.*use it as a reward penalty"):
        kl_loss(policy_BT, policy_BT, torch.ones(1, 2), kind="k1")  # type: ignore[arg-type]


# --- generator mismatch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "level", "expected"),
    [
        ("none", "token", [[1, 1, 0], [1, 0, 0]]),
        ("truncate", "token", [[2, 0.5, 0], [1.5, 0, 0]]),
        ("mask", "token", [[0, 0.5, 0], [1.5, 0, 0]]),
        ("truncate", "sequence", [[2, 2, 0], [1.5, 0, 0]]),  # 8 · 1/2 = 4
        ("mask", "sequence", [[0, 0, 0], [1.5, 0, 0]]),
    ],
)
def test_importance_weights_by_hand(mode: CorrectionMode, level: Level, expected: list[list[float]]) -> None:
    ratio_BT, mask_BT = torch.tensor([[8.0, 0.5, 99.0], [1.5, NAN, 99.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])
    generator_BT = torch.full((2, 3), -3.0)
    weights_BT = importance_weights(ratio_BT.log() - 3, generator_BT, mask_BT, mode=mode, level=level, cap=2.0)
    torch.testing.assert_close(weights_BT, torch.tensor(expected, dtype=torch.float32))


def test_importance_floor_lifts_or_drops_what_the_trainer_finds_too_rare() -> None:
    trainer_BT, generator_BT = torch.tensor([[0.1, 1.0]]).log(), torch.zeros(1, 2)
    both = {
        m: importance_weights(trainer_BT, generator_BT, torch.ones(1, 2), mode=m, floor=0.5)
        for m in ("truncate", "mask")
    }  # type: ignore[arg-type]
    assert both["truncate"].tolist() == [[0.5, 1.0]]
    assert both["mask"].tolist() == [[0.0, 1.0]]


def test_importance_weights_make_generator_samples_estimate_the_trainers_gradient() -> None:
    logits_V, policy_V, _ = small_policy()
    generator_V, advantages_V = seeded(7, seed=3).log_softmax(0), seeded(7, seed=4)
    column = (policy_V[:, None], generator_V[:, None], torch.ones(7, 1))
    weights_V = importance_weights(*column, mode="truncate", cap=1e9)[:, 0]
    loss_V = reinforce_surrogate(policy_V[:, None], advantages_V[:, None], torch.ones(7, 1))[:, 0]
    wanted_V = expected_gradient(logits_V, policy_V.exp(), loss_V)
    torch.testing.assert_close(expected_gradient(logits_V, generator_V.exp(), weights_V * loss_V), wanted_V)
    assert not torch.allclose(expected_gradient(logits_V, generator_V.exp(), loss_V), wanted_V, atol=0.02)


def mismatch(trainer_BT: Tensor, generator_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    """The figures that every update logs, without the prefix of their names."""
    figures = Averages()
    measure_mismatch(figures, trainer_BT, generator_BT, mask_BT)
    return {name.removeprefix("mismatch_"): value for name, value in figures.read().items()}


def test_identical_policies_have_weight_1_and_mismatch_0() -> None:
    logprobs_BT, mask_BT = -seeded(6, 9).abs(), holed_mask(6, 9)
    for mode in get_args(CorrectionMode):
        for level in get_args(Level):
            weights_BT = importance_weights(logprobs_BT, logprobs_BT, mask_BT, mode=mode, level=level)
            assert weights_BT.equal(mask_BT.double())
    assert mismatch(logprobs_BT, logprobs_BT, mask_BT) == {"mean_abs": 0.0, "k1": 0.0, "k3": 0.0, "max": 0.0}


def test_detail_36_mismatch_is_measured_over_valid_tokens_only() -> None:
    generator_BT = torch.tensor([[-1.0, -2.0, NAN], [-1.0, 5.0, 5.0]], dtype=torch.float64)
    trainer_BT = torch.tensor([[-1.5, -1.0, NAN], [-1.0, 9.0, 9.0]], dtype=torch.float64)
    statistics = mismatch(trainer_BT, generator_BT, torch.tensor([[1, 1, 0], [1, 0, 0]]).bool())
    assert statistics["mean_abs"] == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert statistics["k1"] == pytest.approx((0.5 - 1.0 + 0.0) / 3)
    assert statistics["k3"] == pytest.approx((math.exp(-0.5) - 0.5 + math.exp(1.0) - 2.0) / 3)
    assert statistics["max"] == pytest.approx(1.0)


def test_mismatch_distinguishes_nan_and_nothing_from_agreement() -> None:
    broken = mismatch(torch.tensor([[NAN, -1.0]]), torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2).bool())
    nothing = mismatch(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2).bool())
    assert all(math.isnan(x) for x in [*broken.values(), *nothing.values()])


@pytest.mark.parametrize(("mode", "level"), [("clip", "token"), ("mask", "row")])
def test_unknown_correction_is_refused(mode: str, level: str) -> None:
    with pytest.raises(ValueError, match="no importance"):
        importance_weights(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), mode=mode, level=level)  # type: ignore[arg-type]
