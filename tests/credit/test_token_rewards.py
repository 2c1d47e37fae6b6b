"""Penalties, placement on tokens and the KL controller, against hand arithmetic."""

import json

import pytest
import torch

from pipeline.credit.token_rewards import (
    KLController,
    last_valid,
    missing_eos_penalty,
    soft_overlong_penalty,
    token_rewards,
)

MASK_BT = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()


def test_detail_15_the_score_lands_on_the_last_valid_token() -> None:
    rewards_BT = token_rewards(torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.zeros(4, 4), MASK_BT, kl_coef=0.1)
    assert rewards_BT.tolist() == [[0, 0, 5, 0], [0, 0, 6, 0], [0, 0, 0, 0], [0, 0, 0, 8]]


def test_detail_16_token_rewards_sum_to_score_minus_coefficient_times_kl() -> None:
    scores_B, kl_BT = torch.tensor([1.0, -1.0, 0.5, 0.0]), torch.arange(16.0).view(4, 4) / 10
    rewards_BT = token_rewards(scores_B, kl_BT.masked_fill(~MASK_BT, float("nan")), MASK_BT, kl_coef=0.2)
    # rows of KL: 0+.1+.2, .4+.6, nothing, 1.2+1.3+1.4+1.5
    assert rewards_BT.sum(1).tolist() == pytest.approx([1 - 0.06, -1 - 0.2, 0.0, -1.08], abs=1e-6)
    assert rewards_BT[1].tolist() == pytest.approx([-0.08, 0.0, -1 - 0.12, 0.0], abs=1e-6)


def test_row_without_a_score_is_refused_unless_it_is_masked_out() -> None:
    scores_B = torch.tensor([1.0, 1.0, float("nan"), 1.0])
    assert token_rewards(scores_B, torch.zeros(4, 4), MASK_BT, kl_coef=0.0)[2].tolist() == [0.0] * 4
    with pytest.raises(ValueError, match=r"rows \[2\] have no finite score"):
        token_rewards(scores_B, torch.zeros(4, 4), torch.ones(4, 4), kl_coef=0.0)


def test_detail_14_no_reward_falls_on_a_token_the_policy_did_not_sample() -> None:
    rewards_BT = token_rewards(torch.ones(4), torch.ones(4, 4), MASK_BT, kl_coef=0.3)
    assert not rewards_BT[~MASK_BT].any()
    assert rewards_BT[MASK_BT].ne(0).all()


def test_last_valid_token_of_a_row_with_a_hole_lies_after_the_hole() -> None:
    assert last_valid(MASK_BT).int().tolist() == [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_detail_13_the_missing_eos_penalty_falls_on_exactly_the_truncated_rows() -> None:
    ended_B = torch.tensor([True, True, False])
    assert missing_eos_penalty(torch.tensor([1.0, 0.5, 1.0]), ended_B, penalty=0.75).tolist() == [1.0, 0.5, 0.25]


def test_soft_overlong_penalty_falls_linearly_over_its_buffer() -> None:
    penalty_B = soft_overlong_penalty(torch.tensor([0, 80, 90, 100, 130]), max_length=100, buffer=20)
    assert penalty_B.tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


@pytest.mark.parametrize("buffer", [0, 101])
def test_overlong_buffer_that_does_not_fit_is_refused(buffer: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in 1\.\.100"):
        soft_overlong_penalty(torch.tensor([5]), max_length=100, buffer=buffer)


# --- KL controller ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1 + 0.1 * 256 / 10_000),  # a tenth above
        (600.0, 1 + 0.2 * 256 / 10_000),  # far above: clipped
        (0.0, 1 - 0.2 * 256 / 10_000),  # far below: clipped
    ],
)
def test_detail_20_the_controller_clips_its_error_and_scales_with_episodes_over_horizon(
    kl: float, factor: float
) -> None:
    controller = KLController(coefficient=0.15, target=6.0, horizon=10_000)
    assert controller.update(kl, n_episodes=256).coefficient == pytest.approx(0.15 * factor, rel=1e-12)


def test_detail_20_the_controller_survives_resume_through_json() -> None:
    straight = resumed = KLController(coefficient=0.15, target=6.0, horizon=500)
    for step, kl in enumerate([9.0, 1.0, 6.5, 7.0]):
        straight = straight.update(kl, n_episodes=64)
        resumed = resumed.update(kl, n_episodes=64)
        if step == 1:
            resumed = KLController.from_dict(json.loads(json.dumps(resumed.to_dict())))
    assert resumed == straight
    assert straight.coefficient != 0.15


def test_controller_without_a_target_stays_constant() -> None:
    assert KLController(0.05).update(1e9, n_episodes=10_000).coefficient == 0.05


def test_diverged_kl_is_reported_instead_of_poisoning_the_coefficient() -> None:
    with pytest.raises(ValueError, match="diverged"):
        KLController(0.1, target=6.0).update(float("nan"), n_episodes=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coefficient": -0.1}, "KL coefficient -0.1"),
        ({"coefficient": 0.1, "target": 0.0}, "target KL 0.0"),
        ({"coefficient": 0.1, "target": 1.0, "horizon": 0.0}, "KL horizon 0.0"),
    ],
)
def test_senseless_controller_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KLController(**settings)
