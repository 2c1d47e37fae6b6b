"""Surrogates, means and the value loss against hand arithmetic, and their invariants.

KL and generator mismatch are in test_losses_kl.py, the comparison with TRL's own loss in test_losses_vs_trl.py.
"""

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from pipeline.update.losses import (
    Aggregation,
    aggregate,
    cispo_surrogate,
    clipped_surrogate,
    clipped_tokens,
    denominator,
    gspo_surrogate,
    kl_estimate,
    loss_sum,
    reinforce_surrogate,
    value_loss,
)

NAN = float("nan")
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
Surrogate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
SURROGATES: dict[str, Surrogate] = {
    "ppo": lambda p, old, a, m: clipped_surrogate(p, old, a, m, clip_low=0.2, clip_high=0.28),
    "dual clip": lambda p, old, a, m: clipped_surrogate(p, old, a, m, clip_low=0.2, clip_high=0.28, ratio_max=3.0),
    "gspo": lambda p, old, a, m: gspo_surrogate(p, old, a, m, clip_low=3e-4, clip_high=4e-4),
    "cispo": lambda p, old, a, m: cispo_surrogate(p, old, a, m, clip_low=1.0, clip_high=0.28),
    "reinforce": lambda p, old, a, m: reinforce_surrogate(p, a, m),
}
every_surrogate = pytest.mark.parametrize("surrogate", SURROGATES.values(), ids=SURROGATES.keys())
every_aggregation = pytest.mark.parametrize("kind", AGGREGATIONS)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def holed_mask(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random holes; row 0 is full, row 1 empty."""
    mask_BT = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask_BT[0], mask_BT[1] = True, False
    return mask_BT


def batch(rows: int = 6, columns: int = 9) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprobs with gradient, old log-probs some way off, one advantage a row, mask."""
    old_BT = -seeded(rows, columns).abs() - 0.1
    logprobs_BT = (old_BT + 0.3 * seeded(rows, columns, seed=1)).requires_grad_()
    return logprobs_BT, old_BT, seeded(rows, 1, seed=2), holed_mask(rows, columns)


def at_ratio(ratio: float, advantage: float, surrogate: Surrogate) -> tuple[float, float]:
    """Loss and its derivative by the log-prob, for a row of one token."""
    logprob = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    loss = surrogate(logprob, torch.full_like(logprob, -1.0), torch.full_like(logprob, advantage), torch.ones(1, 1))
    (gradient,) = torch.autograd.grad(loss.sum(), logprob)
    return float(loss.detach()), float(gradient)


# --- surrogates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.5, 2.0, -2.56, 0.0),  # rewarded enough: held at 1.28
        (1.25, 2.0, -2.5, -2.5),  # between 1.2 and 1.28: the upper bound is its own
        (0.5, 2.0, -1.0, -1.0),  # too rare and good: never held
        (0.5, -2.0, 1.6, 0.0),  # punished enough: held at 0.8
        (1.5, -2.0, 3.0, 3.0),  # too frequent and bad: never held
        (0.9, -2.0, 1.8, 1.8),
    ],
)
def test_ppo_clips_each_side_at_its_own_bound(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert at_ratio(ratio, advantage, SURROGATES["ppo"]) == (pytest.approx(loss), pytest.approx(gradient))


def test_dual_clip_bounds_a_bad_token_the_minimum_leaves_unbounded() -> None:
    assert at_ratio(50.0, -2.0, SURROGATES["ppo"])[0] == pytest.approx(100.0)
    assert at_ratio(50.0, -2.0, SURROGATES["dual clip"]) == (pytest.approx(6.0), 0.0)
    assert at_ratio(50.0, 2.0, SURROGATES["dual clip"]) == at_ratio(50.0, 2.0, SURROGATES["ppo"])


@every_surrogate
def test_detail_4_at_ratio_1_every_surrogate_has_the_plain_policy_gradient(surrogate: Surrogate) -> None:
    logprobs_BT, _, advantages_B1, mask_BT = batch()
    loss = aggregate(
        surrogate(logprobs_BT, logprobs_BT.detach(), advantages_B1, mask_BT), mask_BT, kind="sequence_mean"
    )
    (gradient_BT,) = torch.autograd.grad(loss, logprobs_BT)
    rows = int(mask_BT.any(1).sum())
    expected_BT = -advantages_B1 * mask_BT / mask_BT.sum(1, keepdim=True).clamp(min=1) / rows
    torch.testing.assert_close(gradient_BT, expected_BT)


def test_detail_4_before_the_first_update_nothing_is_clipped_and_every_kl_is_0() -> None:
    logprobs_BT, _, advantages_B1, mask_BT = batch()
    low_BT, high_BT = clipped_tokens(logprobs_BT, logprobs_BT, advantages_B1, mask_BT, clip_low=0.2, clip_high=0.2)
    assert not low_BT.any() and not high_BT.any()
    for kind in ("k1", "k2", "k3"):
        assert not kl_estimate(logprobs_BT, logprobs_BT, kind=kind).any()


def test_clipped_tokens_are_those_without_gradient() -> None:
    logprobs_BT, old_BT, advantages_B1, mask_BT = batch()
    bounds: dict[str, Any] = {"clip_low": 0.1, "clip_high": 0.15}
    loss_BT = clipped_surrogate(logprobs_BT, old_BT, advantages_B1, mask_BT, **bounds)
    (gradient_BT,) = torch.autograd.grad(loss_BT.sum(), logprobs_BT)
    low_BT, high_BT = clipped_tokens(logprobs_BT, old_BT, advantages_B1, mask_BT, **bounds)
    assert low_BT.any() and high_BT.any() and not (low_BT & high_BT).any()
    assert ((low_BT | high_BT) == ((gradient_BT == 0) & mask_BT)).all()


def test_gspo_holds_rows_as_a_whole_and_they_are_counted_so() -> None:
    logprobs_BT, old_BT, advantages_B1, mask_BT = batch()
    bounds: dict[str, Any] = {"clip_low": 0.02, "clip_high": 0.03}
    loss_BT = gspo_surrogate(logprobs_BT, old_BT, advantages_B1, mask_BT, **bounds)
    (gradient_BT,) = torch.autograd.grad(loss_BT.sum(), logprobs_BT)
    low_BT, high_BT = clipped_tokens(logprobs_BT, old_BT, advantages_B1, mask_BT, level="sequence", **bounds)
    held_BT = low_BT | high_BT
    assert held_BT.any() and not held_BT[mask_BT].all()
    assert (held_BT == ((gradient_BT == 0) & mask_BT)).all()


def test_gspo_ratio_is_the_geometric_mean_over_the_rows_valid_tokens() -> None:
    logprobs_BT, old_BT, advantages_B1, mask_BT = batch()
    loss_BT = gspo_surrogate(logprobs_BT, old_BT, advantages_B1, mask_BT, clip_low=0.02, clip_high=0.03)
    for b, valid in enumerate(mask_BT):
        n = int(valid.sum())
        if n == 0:
            continue
        ratio = math.prod((logprobs_BT - old_BT)[b, valid].exp().tolist()) ** (1 / n)
        advantage = float(advantages_B1[b])
        expected = -min(ratio * advantage, min(max(ratio, 0.98), 1.03) * advantage)
        assert loss_BT[b, valid].tolist() == pytest.approx([expected] * n)


@pytest.mark.parametrize(("ratio", "weight"), [(0.01, 0.01), (1.0, 1.0), (1.2, 1.2), (40.0, 1.28)])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_cispo_weighs_the_gradient_by_the_bounded_ratio_and_drops_no_token(
    ratio: float, weight: float, advantage: float
) -> None:
    loss, gradient = at_ratio(ratio, advantage, SURROGATES["cispo"])
    assert gradient == pytest.approx(-weight * advantage)
    assert loss == pytest.approx(-weight * advantage * (math.log(ratio) - 1.0))


def test_cispo_lower_bound_holds_where_it_is_asked() -> None:
    bounded: Surrogate = lambda p, old, a, m: cispo_surrogate(p, old, a, m, clip_low=0.2, clip_high=0.2)  # noqa: E731
    assert at_ratio(0.01, 1.0, bounded)[1] == pytest.approx(-0.8)


@every_surrogate
def test_padding_changes_nothing_in_a_surrogate(surrogate: Surrogate) -> None:
    logprobs_BT, old_BT, advantages_B1, mask_BT = batch()
    narrow_BT = surrogate(logprobs_BT, old_BT, advantages_B1, mask_BT)
    pad = torch.nn.functional.pad
    wide_BT = surrogate(
        pad(logprobs_BT, (2, 4), value=-7.0), pad(old_BT, (2, 4), value=-7.0), advantages_B1, pad(mask_BT, (2, 4))
    )
    torch.testing.assert_close(wide_BT[:, 2:11], narrow_BT)
    assert not wide_BT[:, :2].any() and not wide_BT[:, 11:].any()


@every_surrogate
@pytest.mark.parametrize("junk", [NAN, math.inf, -math.inf, 1e30])
def test_detail_14_what_stands_outside_the_mask_reaches_neither_loss_nor_gradient(
    surrogate: Surrogate, junk: float
) -> None:
    logprobs_BT, old_BT, advantages_B1, mask_BT = batch()
    advantages_BT = advantages_B1.expand(6, 9)
    dirty_BT = logprobs_BT.detach().masked_fill(~mask_BT, junk).requires_grad_()
    clean = surrogate(logprobs_BT, old_BT, advantages_BT, mask_BT)
    dirty = surrogate(dirty_BT, old_BT.masked_fill(~mask_BT, -junk), advantages_BT.masked_fill(~mask_BT, NAN), mask_BT)
    (gradient_BT,) = torch.autograd.grad(dirty.sum(), dirty_BT)
    assert dirty.equal(clean)
    assert gradient_BT.equal(torch.autograd.grad(clean.sum(), logprobs_BT)[0])
    assert not gradient_BT[~mask_BT].any()


@every_surrogate
def test_old_log_probs_and_advantages_get_no_gradient(surrogate: Surrogate) -> None:
    logprobs_BT, old_BT, advantages_B1, mask_BT = batch()
    old_BT.requires_grad_()
    advantages_B1.requires_grad_()
    surrogate(logprobs_BT, old_BT, advantages_B1, mask_BT).sum().backward()
    assert logprobs_BT.grad is not None and logprobs_BT.grad.any()
    assert old_BT.grad is None and advantages_B1.grad is None


@every_surrogate
def test_a_ratio_beyond_float32_stays_finite(surrogate: Surrogate) -> None:
    logprobs_BT = torch.tensor([[-0.1, -900.0]], requires_grad=True)
    loss_BT = surrogate(logprobs_BT, torch.tensor([[-900.0, -0.1]]), torch.tensor([[-1.0]]), torch.ones(1, 2))
    loss_BT.sum().backward()
    assert loss_BT.isfinite().all()
    assert logprobs_BT.grad is not None and logprobs_BT.grad.isfinite().all()


# --- aggregation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("token_mean", (1 + 2 + 3 + 10) / 4),
        ("sequence_mean", (2 + 10) / 2),
        ("constant_length", (1 + 2 + 3 + 10) / (2 * 8)),
    ],
)
def test_the_three_means_by_hand(kind: Aggregation, expected: float) -> None:
    loss_BT = torch.tensor([[1.0, 2.0, 3.0], [10.0, 77.0, 77.0]])
    mask_BT = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert float(aggregate(loss_BT, mask_BT, kind=kind, max_length=8)) == pytest.approx(expected)


@every_aggregation
@pytest.mark.parametrize("cuts", [[6], [1, 5], [2, 2, 2], [1, 1, 1, 1, 1, 1], [3, 1, 2]])
def test_detail_34_loss_and_gradient_do_not_depend_on_how_the_batch_is_cut(kind: Aggregation, cuts: list[int]) -> None:
    mask_BT = holed_mask(6, 9)
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    data_BT = seeded(6, 9)
    whole = aggregate((weight * data_BT).exp(), mask_BT, kind=kind, max_length=12)
    (expected,) = torch.autograd.grad(whole, weight)
    total = torch.stack([denominator(part, kind=kind) for part in mask_BT.split(cuts)]).sum()
    losses = []
    for data, mask in zip(data_BT.split(cuts), mask_BT.split(cuts), strict=True):
        longest = int(mask.any(0).nonzero().max()) + 1 if mask.any() else 1  # each cut to its own longest row
        part = aggregate((weight * data[:, :longest]).exp(), mask[:, :longest], kind=kind, max_length=12, total=total)
        part.backward()
        losses.append(float(part.detach()))
    assert math.fsum(losses) == pytest.approx(float(whole.detach()), rel=1e-12)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-12, atol=0)


@every_aggregation
def test_detail_35_fully_masked_rows_add_to_neither_numerator_nor_denominator(kind: Aggregation) -> None:
    loss_BT, mask_BT = seeded(6, 9), holed_mask(6, 9)
    more_BT = torch.cat([loss_BT, torch.full((3, 9), NAN, dtype=torch.float64)])
    more_mask_BT = torch.cat([mask_BT, torch.zeros(3, 9, dtype=torch.bool)])
    assert denominator(more_mask_BT, kind=kind) == denominator(mask_BT, kind=kind)
    assert loss_sum(more_BT, more_mask_BT, kind=kind, max_length=12) == loss_sum(
        loss_BT, mask_BT, kind=kind, max_length=12
    )


@every_aggregation
def test_a_batch_without_a_valid_token_is_0_and_still_runs_backward(kind: Aggregation) -> None:
    loss_BT = torch.ones(2, 3, requires_grad=True)
    loss = aggregate(loss_BT * 2, torch.zeros(2, 3), kind=kind, max_length=3)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert loss_BT.grad is not None and not loss_BT.grad.any()


def test_constant_length_does_not_favour_long_wrong_answers_as_the_sequence_mean_does() -> None:
    loss_BT = torch.ones(2, 8, requires_grad=True)
    mask_BT = torch.tensor([[1] * 2 + [0] * 6, [1] * 8])
    per_token = {}
    for kind in ("sequence_mean", "constant_length"):
        (gradient_BT,) = torch.autograd.grad(aggregate(loss_BT, mask_BT, kind=kind, max_length=8), loss_BT)
        per_token[kind] = (float(gradient_BT[0, 0]), float(gradient_BT[1, 0]))
    assert per_token["constant_length"][0] == per_token["constant_length"][1]
    assert per_token["sequence_mean"][0] == 4 * per_token["sequence_mean"][1]


def test_constant_length_without_a_length_and_an_unknown_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="constant_length with max_length None"):
        loss_sum(torch.ones(1, 1), torch.ones(1, 1), kind="constant_length")
    with pytest.raises(ValueError, match="no aggregation 'mean'; have: token_mean, sequence_mean, sequence_sum"):
        denominator(torch.ones(1, 1), kind="mean")  # type: ignore[arg-type]


# --- value loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (1.3, 2.0, 0.5 * 0.7**2, -0.7),  # within ±.5 of the old 1.0: the plain half square
        (3.0, 3.0, 0.5 * 1.5**2, 0.0),  # moved further than allowed towards its target: no more pull
        (3.0, 1.0, 0.5 * 2.0**2, 2.0),  # moved far the wrong way: full pull back
        (0.0, 2.0, 0.5 * 2.0**2, -2.0),
    ],
)
def test_detail_28_value_loss_is_half_the_larger_of_two_squares(
    value: float, target: float, loss: float, gradient: float
) -> None:
    values_BT = torch.tensor([[value, NAN]], dtype=torch.float64, requires_grad=True)
    old_BT, returns_BT = torch.tensor([[1.0, NAN]]).double(), torch.tensor([[target, NAN]]).double()
    loss_BT = value_loss(values_BT, old_BT, returns_BT, torch.tensor([[1, 0]]), clip=0.5)
    (gradient_BT,) = torch.autograd.grad(loss_BT.sum(), values_BT)
    assert loss_BT[0].tolist() == pytest.approx([loss, 0.0])
    assert gradient_BT[0].tolist() == pytest.approx([gradient, 0.0])


def test_value_loss_without_clip_is_half_the_square_and_equals_a_very_wide_clip() -> None:
    arguments = (seeded(4, 5), seeded(4, 5, seed=1), seeded(4, 5, seed=2), torch.ones(4, 5))
    torch.testing.assert_close(value_loss(*arguments, clip=None), (arguments[0] - arguments[2]).square() / 2)
    torch.testing.assert_close(value_loss(*arguments, clip=1e9), value_loss(*arguments, clip=None))
