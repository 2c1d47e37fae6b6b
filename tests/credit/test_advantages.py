"""Credit against hand arithmetic, brute-force float64 loops and definitions; then its invariants.

`test_detail_N_…` are the numbered correctness details that are pure mathematics; the rest need the loop.
"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pipeline.credit.advantages import (
    discounted_returns,
    explained_variance,
    gae,
    global_baseline,
    group_advantages,
    groups_with_signal,
    leave_one_out,
    masked_mean,
    masked_moments,
    monte_carlo_values,
    step_values_to_advantages,
    turn_gae,
    turns_of,
    whiten,
)

NAN = float("nan")


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def holed_mask(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Random holes; row 0 is full, row 1 empty."""
    mask_BT = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) > 0.4
    mask_BT[0], mask_BT[1] = True, False
    return mask_BT


def brute_force_gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float, last_value: float = 0.0
) -> list[float]:
    """The definition: the sum over l of (γλ)^l (r + γ V' - V), each term computed again."""
    nexts = [*values, last_value][1:]
    errors = [r + gamma * after - v for r, after, v in zip(rewards, nexts, values, strict=True)]
    return [math.fsum((gamma * lam) ** (i - t) * errors[i] for i in range(t, len(errors))) for t in range(len(errors))]


# --- groups ----------------------------------------------------------------------------------------------------------


def test_detail_32_grpo_std_has_ddof_1_and_eps_1e_4() -> None:
    # 1, 0, 0, 1: mean 1/2, squared deviations sum to 1, over 4 - 1
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    advantages_PG = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), scale=True)
    assert advantages_PG.tolist() == [pytest.approx([expected, -expected, -expected, expected], rel=1e-6)]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, -1 / 3, 1e6 + 0.1])
@pytest.mark.parametrize("estimate", [lambda r: group_advantages(r, scale=True), leave_one_out, global_baseline])
def test_detail_32_equal_rewards_give_exactly_zero(estimate: Callable[[Tensor], Tensor], reward: float) -> None:
    # in float64 the mean of seven 0.1 is not 0.1
    for dtype in (torch.float32, torch.float64):
        assert estimate(torch.full((2, 7), reward, dtype=dtype)).tolist() == [[0.0] * 7] * 2


def test_dr_grpo_only_subtracts_the_mean() -> None:
    advantages_PG = group_advantages(torch.tensor([[3.0, 0.0, 0.0], [5.0, 5.0, 2.0]]), scale=False)
    assert advantages_PG.tolist() == [[2.0, -1.0, -1.0], [1.0, 1.0, -2.0]]


def test_detail_33_leave_one_out_is_reward_minus_the_mean_of_the_others() -> None:
    rewards_PG = seeded(5, 6)
    for row, advantages in zip(rewards_PG.tolist(), leave_one_out(rewards_PG).tolist(), strict=True):
        others = [math.fsum(row[:i] + row[i + 1 :]) / (len(row) - 1) for i in range(len(row))]
        assert advantages == pytest.approx([r - other for r, other in zip(row, others, strict=True)], abs=1e-12)


def test_detail_33_leave_one_out_is_the_centred_reward_times_n_over_n_minus_1() -> None:
    rewards_PG = seeded(5, 6)
    torch.testing.assert_close(leave_one_out(rewards_PG), group_advantages(rewards_PG, scale=False) * 6 / 5)


@pytest.mark.parametrize("scale", [True, False])
def test_reward_that_could_not_be_scored_gets_zero_and_leaves_its_group_as_if_it_had_not_been_sampled(
    scale: bool,
) -> None:
    with_gap = group_advantages(torch.tensor([[1.0, NAN, 0.0, 0.25, NAN]]), scale=scale)
    without = group_advantages(torch.tensor([[1.0, 0.0, 0.25]]), scale=scale)
    assert with_gap[0, [1, 4]].tolist() == [0.0, 0.0]
    assert with_gap[0, [0, 2, 3]].tolist() == without[0].tolist()
    assert leave_one_out(torch.tensor([[1.0, NAN, 0.0, 0.25]]))[0, [0, 2, 3]].tolist() == pytest.approx(
        [0.875, -0.625, -0.25]
    )


def test_group_with_one_scorable_reward_or_none_gives_no_signal() -> None:
    rewards_PG = torch.tensor([[NAN, 7.0, NAN], [NAN, NAN, NAN]])
    for advantages_PG in (group_advantages(rewards_PG, scale=True), leave_one_out(rewards_PG)):
        assert advantages_PG.tolist() == [[0.0] * 3] * 2
    assert groups_with_signal(rewards_PG).tolist() == [False, False]


def test_groups_with_signal_are_those_whose_advantages_are_not_all_zero() -> None:
    rewards_PG = torch.tensor([[0.0, 0.0, 1.0], [0.1, 0.1, 0.1], [NAN, 2.0, 2.0], [NAN, 2.0, 1.0]])
    assert groups_with_signal(rewards_PG).tolist() == [True, False, False, True]
    assert groups_with_signal(rewards_PG).equal(group_advantages(rewards_PG, scale=True).ne(0).any(1))


@pytest.mark.parametrize(
    "estimate",
    [
        lambda r: group_advantages(r, scale=True),
        lambda r: group_advantages(r, scale=False),
        leave_one_out,
        lambda r: global_baseline(r, subtract_group_mean=True),
    ],
)
def test_shifting_a_group_moves_nothing_and_permuting_it_permutes(estimate: Callable[[Tensor], Tensor]) -> None:
    rewards_PG, order_G = seeded(4, 6), torch.tensor([3, 0, 5, 1, 4, 2])
    shifts_P1 = torch.tensor([[0.0], [100.0], [-7.0], [1e6]], dtype=torch.float64)
    torch.testing.assert_close(estimate(rewards_PG + shifts_P1), estimate(rewards_PG), rtol=0, atol=1e-8)
    torch.testing.assert_close(estimate(rewards_PG[:, order_G]), estimate(rewards_PG)[:, order_G])
    torch.testing.assert_close(estimate(rewards_PG[[2, 0, 1, 3]]), estimate(rewards_PG)[[2, 0, 1, 3]])


def test_scaled_advantages_do_not_depend_on_the_rewards_unit_while_unscaled_ones_do() -> None:
    rewards_PG = seeded(4, 8)
    scaled = group_advantages(rewards_PG, scale=True)
    torch.testing.assert_close(group_advantages(rewards_PG * 50, scale=True), scaled, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        group_advantages(rewards_PG * 50, scale=False), group_advantages(rewards_PG, scale=False) * 50
    )


def test_half_precision_rewards_are_not_rounded_to_half_precision_advantages() -> None:
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.bfloat16)
    advantages_PG = group_advantages(rewards_PG, scale=False)
    assert advantages_PG.dtype == torch.float32
    assert advantages_PG[0].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3], rel=1e-6)


@pytest.mark.parametrize("estimate", [lambda r: group_advantages(r, scale=True), leave_one_out])
def test_group_of_one_is_refused(estimate: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="at least 2 samples per prompt"):
        estimate(torch.zeros(4, 1))


def test_infinite_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="infinite reward"):
        group_advantages(torch.tensor([[1.0, math.inf]]), scale=True)


def test_global_baseline_is_the_z_score_of_the_scorable_batch() -> None:
    rewards_PG = torch.tensor([[1.0, 2.0], [NAN, 6.0]])
    std = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / 3)
    advantages = global_baseline(rewards_PG).flatten().tolist()
    assert advantages == pytest.approx([-2 / (std + 1e-4), -1 / (std + 1e-4), 0.0, 3 / (std + 1e-4)], rel=1e-6)


# --- generalised advantage estimation -------------------------------------------------------------------------------


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_the_definition_summed_term_by_term_over_the_valid_steps(gamma: float, lam: float) -> None:
    rewards_BT, values_BT, mask_BT, last_B = seeded(6, 12), seeded(6, 12, seed=1), holed_mask(6, 12), seeded(6, seed=2)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=gamma, lam=lam, last_values_B=last_B)
    for b in range(6):
        steps = mask_BT[b]
        expected = brute_force_gae(
            rewards_BT[b][steps].tolist(), values_BT[b][steps].tolist(), gamma, lam, float(last_B[b])
        )
        assert advantages_BT[b][steps].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns_BT[b][steps].tolist() == pytest.approx(
            [a + v for a, v in zip(expected, values_BT[b][steps].tolist(), strict=True)], abs=1e-12
        )
        assert not advantages_BT[b][~steps].any() and not returns_BT[b][~steps].any()


def test_gae_by_hand() -> None:
    # δ = 0 + .5·2 - 1 = 0, then 4 - 2 = 2; A_0 = 0 + .5·.5·2 = .5
    advantages_BT, returns_BT = gae(
        torch.tensor([[0.0, 4.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([[True, True]]), gamma=0.5, lam=0.5
    )
    assert advantages_BT.tolist() == [[0.5, 2.0]]
    assert returns_BT.tolist() == [[1.5, 4.0]]


def test_detail_14_tool_tokens_between_two_turns_are_no_step() -> None:
    rewards_BT, values_BT = seeded(1, 5), seeded(1, 5, seed=1)
    mask_BT = torch.tensor([[True, True, False, False, True]])
    holed, _ = gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.8)
    joined, _ = gae(rewards_BT[mask_BT][None], values_BT[mask_BT][None], torch.ones(1, 3).bool(), gamma=0.9, lam=0.8)
    torch.testing.assert_close(holed[mask_BT], joined[0])


@pytest.mark.parametrize("junk", [1e9, NAN, math.inf])
def test_detail_24_rewards_and_values_outside_the_mask_are_never_read(junk: float) -> None:
    rewards_BT, values_BT, mask_BT = seeded(6, 12), seeded(6, 12, seed=1), holed_mask(6, 12)
    clean = gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.8)
    dirty = gae(
        rewards_BT.masked_fill(~mask_BT, junk), values_BT.masked_fill(~mask_BT, junk), mask_BT, gamma=0.9, lam=0.8
    )
    assert clean[0].equal(dirty[0]) and clean[1].equal(dirty[1])


def test_detail_25_lambda_1_gamma_1_gives_return_minus_value() -> None:
    rewards_BT, values_BT, mask_BT = seeded(6, 12), seeded(6, 12, seed=1), holed_mask(6, 12)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=1.0, lam=1.0)
    to_go_BT = rewards_BT.masked_fill(~mask_BT, 0).flip(1).cumsum(1).flip(1).masked_fill(~mask_BT, 0)
    torch.testing.assert_close(returns_BT, to_go_BT)
    torch.testing.assert_close(advantages_BT, (to_go_BT - values_BT).masked_fill(~mask_BT, 0))


def test_lambda_0_gives_the_one_step_error() -> None:
    rewards_BT, values_BT = seeded(2, 4), seeded(2, 4, seed=1)
    advantages_BT, _ = gae(rewards_BT, values_BT, torch.ones(2, 4).bool(), gamma=0.9, lam=0.0)
    after_BT = torch.cat([values_BT[:, 1:], torch.zeros(2, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(advantages_BT, rewards_BT + 0.9 * after_BT - values_BT)


def test_detail_26_a_truncated_end_bootstraps_from_its_last_value_and_a_true_end_does_not() -> None:
    rewards_BT, values_BT = torch.tensor([[0.0, 1.0]] * 2), torch.tensor([[0.5, 0.5]] * 2)
    mask_BT = torch.ones(2, 2).bool()
    advantages_BT, _ = gae(rewards_BT, values_BT, mask_BT, gamma=1.0, lam=0.0, last_values_B=torch.tensor([3.0, 0.0]))
    assert advantages_BT.tolist() == [[0.0, 3.5], [0.0, 0.5]]  # 1 + 3 - .5 against 1 + 0 - .5
    assert gae(rewards_BT, values_BT, mask_BT, gamma=1.0, lam=0.0)[0][1].tolist() == [0.0, 0.5]


def test_detail_27_returns_come_from_advantages_before_whitening() -> None:
    rewards_BT, values_BT, mask_BT = seeded(6, 12) + 40, seeded(6, 12, seed=1), holed_mask(6, 12)
    advantages_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma=1.0, lam=1.0)
    whiten(advantages_BT, mask_BT)  # returns a new tensor; the pair above stays what it was
    torch.testing.assert_close(returns_BT[0].flip(0).diff(prepend=torch.zeros(1)), rewards_BT[0].flip(0))


def test_padding_changes_nothing_in_gae() -> None:
    rewards_BT, values_BT, mask_BT = seeded(6, 12), seeded(6, 12, seed=1), holed_mask(6, 12)
    pad = torch.nn.functional.pad
    wider = gae(pad(rewards_BT, (2, 5)), pad(values_BT, (2, 5)), pad(mask_BT, (2, 5)), gamma=0.9, lam=0.8)
    narrow = gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.8)
    assert wider[0][:, 2:14].equal(narrow[0]) and wider[1][:, 2:14].equal(narrow[1])


def test_gae_gives_no_gradient_to_the_values_it_read() -> None:
    advantages_BT, returns_BT = gae(
        torch.ones(1, 3), torch.zeros(1, 3, requires_grad=True), torch.ones(1, 3).bool(), gamma=1.0, lam=1.0
    )
    assert not advantages_BT.requires_grad and not returns_BT.requires_grad


def test_discounted_returns_by_hand() -> None:
    rewards_BT = torch.tensor([[1.0, 99.0, 2.0, 4.0]])
    mask_BT = torch.tensor([[True, False, True, True]])
    assert discounted_returns(rewards_BT, mask_BT, gamma=0.5).tolist() == [[3.0, 0.0, 4.0, 4.0]]
    bootstrapped = discounted_returns(rewards_BT, mask_BT, gamma=0.5, last_values_B=torch.tensor([8.0]))
    assert bootstrapped.tolist() == [[4.0, 0.0, 6.0, 8.0]]


# --- turns and steps -------------------------------------------------------------------------------------------------


def test_turns_are_the_unbroken_runs_of_the_mask() -> None:
    mask_BT = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]])
    assert turns_of(mask_BT).tolist() == [[-1, 0, 0, -1, 1, -1], [0, -1, -1, 1, -1, 2], [-1] * 6]


def test_turn_gae_is_gae_over_turns_and_all_tokens_of_a_turn_share_it() -> None:
    mask_BT = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1], [0, 1, 0, 0, 1, 0, 0, 0]]).bool()
    rewards_BT, values_BT = seeded(2, 8), seeded(2, 8, seed=1)
    advantages_BT, returns_BT = turn_gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.7)
    for b, turns in enumerate([[[0, 1], [3, 4, 5], [7]], [[1], [4]]]):
        turn_rewards = [math.fsum(rewards_BT[b, turn].tolist()) for turn in turns]
        turn_values = [float(values_BT[b, turn[0]]) for turn in turns]
        for turn, expected, value in zip(
            turns, brute_force_gae(turn_rewards, turn_values, 0.9, 0.7), turn_values, strict=True
        ):
            assert advantages_BT[b, turn].tolist() == pytest.approx([expected] * len(turn), abs=1e-12)
            assert returns_BT[b, turn].tolist() == pytest.approx([expected + value] * len(turn), abs=1e-12)
    assert not advantages_BT[~mask_BT].any()


def test_turns_can_be_given_where_no_environment_token_separates_them() -> None:
    mask_BT, turns_BT = torch.ones(1, 4).bool(), torch.tensor([[0, 0, 1, 1]])
    advantages_BT, _ = turn_gae(
        torch.tensor([[0.0, 1.0, 0.0, 2.0]]), torch.zeros(1, 4), mask_BT, gamma=0.5, lam=1.0, turns_BT=turns_BT
    )
    assert advantages_BT.tolist() == [[2.0, 2.0, 2.0, 2.0]]  # 1 + .5·2, then 2


def test_with_one_token_a_turn_turn_gae_is_token_gae() -> None:
    mask_BT = torch.tensor([[1, 0, 1, 0, 1, 0]]).bool()
    rewards_BT, values_BT = seeded(1, 6), seeded(1, 6, seed=1)
    by_turn = turn_gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.7)
    by_token = gae(rewards_BT, values_BT, mask_BT, gamma=0.9, lam=0.7)
    torch.testing.assert_close(by_turn[0], by_token[0])
    torch.testing.assert_close(by_turn[1], by_token[1])


def test_monte_carlo_value_is_the_mean_of_the_scorable_continuations() -> None:
    values_BK = monte_carlo_values(torch.tensor([[[1.0, 0.0, NAN], [NAN, NAN, NAN]]]))
    assert values_BK[0, 0] == 0.5
    assert values_BK[0, 1].isnan()


def test_step_advantage_is_what_the_step_added_to_the_expected_score() -> None:
    steps_BT = torch.tensor([[0, 0, 1, 2, 2, 0], [0, 1, 1, 0, 0, 0]])
    mask_BT = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]).bool()
    step_values_BK = torch.tensor([[0.5, 0.75, 0.25], [0.25, 0.5, NAN]])
    advantages_BT = step_values_to_advantages(step_values_BK, torch.tensor([1.0, 0.0]), steps_BT, mask_BT)
    assert advantages_BT.tolist() == [[0.25, 0.25, -0.5, 0.75, 0.75, 0.0], [0.25, -0.5, -0.5, 0.0, 0.0, 0.0]]


def test_step_advantages_add_up_to_score_minus_first_value() -> None:
    values_BK, scores_B = seeded(3, 5), seeded(3, seed=1)
    steps_BT, mask_BT = torch.arange(5).expand(3, 5), torch.ones(3, 5).bool()
    advantages_BT = step_values_to_advantages(values_BK, scores_B, steps_BT, mask_BT)
    torch.testing.assert_close(advantages_BT.sum(1), scores_B - values_BK[:, 0])


def test_step_advantage_discounts_the_next_steps_value_but_not_the_score() -> None:
    steps_BT, mask_BT = torch.tensor([[0, 1]]), torch.ones(1, 2).bool()
    advantages_BT = step_values_to_advantages(
        torch.tensor([[0.25, 0.5]]), torch.tensor([1.0]), steps_BT, mask_BT, gamma=0.5
    )
    assert advantages_BT.tolist() == [[0.0, 0.5]]


def test_value_beyond_a_rows_last_step_is_not_read() -> None:
    steps_BT, mask_BT = torch.tensor([[0, 0]]), torch.ones(1, 2).bool()
    advantages_BT = step_values_to_advantages(torch.tensor([[0.25, 9.0]]), torch.tensor([1.0]), steps_BT, mask_BT)
    assert advantages_BT.tolist() == [[0.75, 0.75]]


def test_unknown_step_value_joins_the_steps_around_it_and_an_unknown_start_gives_none() -> None:
    steps_BT, mask_BT = torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.ones(2, 3).bool()
    step_values_BK = torch.tensor([[0.5, NAN, 0.75], [NAN, 0.5, 0.75]])
    advantages_BT = step_values_to_advantages(step_values_BK, torch.tensor([1.0, NAN]), steps_BT, mask_BT)
    assert advantages_BT.tolist() == [[0.25, 0.25, 0.25], [0.0, 0.25, 0.0]]


# --- moments ---------------------------------------------------------------------------------------------------------


def brute_force_whiten(x_BT: Tensor, mask_BT: Tensor, shift_mean: bool) -> list[float]:
    """Row-major valid entries, with Python floats."""
    valid = x_BT[mask_BT].tolist()
    mean = math.fsum(valid) / len(valid)
    variance = math.fsum((x - mean) ** 2 for x in valid) / len(valid)
    return [(x - mean) / math.sqrt(variance + 1e-8) + (0.0 if shift_mean else mean) for x in valid]


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_equals_a_brute_force_loop_over_valid_tokens(shift_mean: bool) -> None:
    x_BT, mask_BT = seeded(6, 12) * 5 + 3, holed_mask(6, 12)
    whitened_BT = whiten(x_BT.masked_fill(~mask_BT, NAN), mask_BT, shift_mean=shift_mean)
    assert whitened_BT[mask_BT].tolist() == pytest.approx(brute_force_whiten(x_BT, mask_BT, shift_mean), abs=1e-12)
    assert not whitened_BT[~mask_BT].any()


def test_detail_21_whitening_without_shift_keeps_the_mean_and_with_shift_removes_it() -> None:
    x_BT, mask_BT = seeded(6, 12) * 5 + 3.01, holed_mask(6, 12)
    before = x_BT[mask_BT].mean()
    torch.testing.assert_close(whiten(x_BT, mask_BT, shift_mean=False)[mask_BT].mean(), before)
    assert abs(float(whiten(x_BT, mask_BT)[mask_BT].mean())) < 1e-12
    assert float(whiten(x_BT, mask_BT)[mask_BT].std(correction=0)) == pytest.approx(1.0, abs=1e-6)


def test_padding_changes_nothing_in_whitening() -> None:
    x_BT, mask_BT = seeded(6, 12), holed_mask(6, 12)
    wider_BT = whiten(torch.nn.functional.pad(x_BT, (0, 3), value=50.0), torch.nn.functional.pad(mask_BT, (0, 3)))
    torch.testing.assert_close(wider_BT[:, :12], whiten(x_BT, mask_BT), rtol=1e-12, atol=1e-12)


def test_whitening_nothing_or_a_constant_gives_zeros_instead_of_nan() -> None:
    assert whiten(seeded(2, 3), torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    assert whiten(torch.full((2, 3), 0.1), torch.ones(2, 3)).abs().max() < 1e-6


def test_variance_far_from_zero_does_not_cancel() -> None:
    x_BT = torch.tensor([[1e8, 1e8 + 1, 1e8 + 2]], dtype=torch.float64)
    mean, variance = masked_moments(x_BT, torch.ones(1, 3))
    assert (float(mean), float(variance)) == (1e8 + 1, pytest.approx(2 / 3, rel=1e-12))


def test_detail_36_logged_means_exclude_padding() -> None:
    x_BT, mask_BT = torch.tensor([[1.0, 3.0, 900.0], [NAN, 900.0, 900.0]]), torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert masked_mean(x_BT, mask_BT) == 2.0
    assert math.isnan(masked_mean(x_BT, torch.zeros(2, 3)))


def test_explained_variance_is_1_for_a_perfect_critic_0_for_a_constant_and_negative_for_a_harmful_one() -> None:
    returns_BT, mask_BT = seeded(6, 12), holed_mask(6, 12)
    assert explained_variance(returns_BT + 5, returns_BT, mask_BT) == pytest.approx(1.0)  # an offset is not variance
    assert explained_variance(torch.full_like(returns_BT, 3), returns_BT, mask_BT) == pytest.approx(0.0)
    assert explained_variance(-returns_BT, returns_BT, mask_BT) == pytest.approx(-3.0)
    assert math.isnan(explained_variance(returns_BT, torch.ones_like(returns_BT), mask_BT))
