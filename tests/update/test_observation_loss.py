"""The auxiliary loss on what tools answered (ECHO): its value by hand, its gradient against the bare model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from loop_kit import tiny_model
from test_learner import assert_same, gradients, make_batch, make_learner, make_rows

from pipeline.config.schema import Loss, Model
from pipeline.models import models
from pipeline.update import losses
from pipeline.update.forward import Row, pad_rows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model")))


def test_the_loss_is_the_mean_over_rows_of_each_rows_mean() -> None:
    half, quarter = math.log(0.5), math.log(0.25)
    logprobs_BT = torch.tensor([[half, quarter, half], [quarter, half, math.nan]])
    observed_BT = torch.tensor([[False, True, True], [True, False, False]])
    # row 1: (ln 4 + ln 2) / 2; row 2: ln 4; the NaN is padding
    expected = ((2 + 1) / 2 + 2) / 2 * math.log(2)
    assert float(losses.observation_loss(logprobs_BT, observed_BT, total=2)) == pytest.approx(expected)
    assert float(losses.observation_loss(logprobs_BT, torch.zeros_like(observed_BT), total=0)) == 0.0


def test_observations_are_what_was_not_sampled_in_rows_that_are_trained_on() -> None:
    rows = [Row((1,), (2, 3, 4), (True, False, True)), Row((1,), (2, 3), (False, False)), Row((1,), (2,), (True,))]
    assert pad_rows(rows, CPU).observed_BT.tolist() == [[False, True, False], [False] * 3, [False] * 3]
    assert [row.has_observations for row in rows] == [True, False, False]


@pytest.mark.parametrize("budget", [10_000, 30], ids=["one micro-batch", "several"])
def test_its_gradient_is_that_of_the_bare_models_cross_entropy(place: str, budget: int) -> None:
    rows = make_rows()
    observing = [row for row in rows if row.has_observations]
    assert 1 < len(observing) < len(rows)
    learners = [make_learner(place, loss=Loss(observation_coef=coef), budget=budget) for coef in (0.0, 0.5)]
    without, with_it = (gradients(one, make_batch(rows)) for one in learners)
    model = models.load_policy(place, Model()).train()
    total = torch.zeros(())
    for row in observing:
        logits = model(input_ids=torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0, len(row.prompt_ids) - 1 : -1]
        targets = torch.tensor([-100 if on else token for token, on in zip(row.ids, row.mask, strict=True)])
        total = total + torch.nn.functional.cross_entropy(logits / 1.3, targets) / len(observing)
    (0.5 * total).backward()
    names = {f"model.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same({n: with_it[n] - without[n] for n in names}, names, atol=2e-6)


def test_without_observations_the_config_is_refused(tmp_path: Path) -> None:
    from pipeline.config.load import read

    path = tmp_path / "t.yaml"
    path.write_text("run: t\nmodel: {path: x}\nprompts: {procedural: gridworld}\nrewards: {gridworld: {}}\n"
                    "stages: [grpo]\ngrpo: {policy: x, loss: {observation_coef: 0.05}}\n")  # fmt: skip
    assert any("grpo.loss.observation_coef: there are no observations" in line for line in read(str(path), [])[1])
    assert not any("observation_coef" in line for line in read(str(path), ["program.command=[python]"])[1])
