"""Time to target and the surrogate study: their arithmetic by hand, and small real runs of both."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from pipeline.__main__ import main
from pipeline.config.load import ConfigError, load
from pipeline.config.stage_graph import target_check
from pipeline.research import surrogate_study as study
from pipeline.research.time_to_target import Spent, break_even_cost, crossing, simulated

ROOT = Path(__file__).parents[2]


def test_the_crossing_is_linear_between_two_points():
    assert crossing([0.1, 0.3, 0.7], [100, 200, 300], 0.5) == pytest.approx(250)
    assert crossing([0.6, 0.3], [100, 200], 0.5) == 100
    assert math.isnan(crossing([0.1, 0.4], [100, 200], 0.5))
    # means of two: 0.0, 0.4, 0.6
    assert crossing([0.0, 0.8, 0.4], [10, 20, 30], 0.5, average=2) == pytest.approx(25)


def test_seconds_are_those_of_the_steps_and_of_rounds_of_checks():
    spent = Spent([], [], [], [], [32.0, 33.0, 16.0], [])
    # 2 s a step; rounds of 16 checks of 3 s: 2, 3, and half of the third step's 1
    assert simulated(spent, 2.5, step_s=2.0, check_s=3.0, at_once=16) == pytest.approx(2.5 * 2 + 3 * (2 + 3 + 0.5))


def test_the_break_even_cost_is_where_two_lines_cross():
    # 10 + 8 c against 16 + 2 c: c = 1
    assert break_even_cost((10.0, 18.0), (16.0, 18.0)) == pytest.approx(1.0)
    assert break_even_cost((10.0, 18.0), (9.0, 12.0)) == 0.0
    assert break_even_cost((10.0, 12.0), (16.0, 19.0)) == math.inf
    assert math.isnan(break_even_cost((math.nan, 1.0), (1.0, 2.0)))


def rows(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients in three dimensions, scores and predictions of n rows."""
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return gradients, torch.rand(n, generator=generator).double().round(), torch.rand(n, generator=generator).double()


def test_the_leave_one_out_matrix_gives_the_advantages_of_the_definition():
    real = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    expected = [1 - 0.0, 0 - 0.5, 0 - 0.5, 1 - 0.5, 1 - 0.5, 0 - 1.0]
    assert (study.leave_one_out_matrix(6, 3) @ real).tolist() == pytest.approx(expected)


def test_the_added_variance_is_the_mean_over_all_draws():
    """Every one of the 2^4 draws of four rows, weighted by its chance, against the closed form."""
    gradients, real, predicted = rows(4, 1)
    share, matrix = 0.3, study.leave_one_out_matrix(4, 2)
    exact = (matrix @ real) @ gradients / 4
    mean, variance = torch.zeros(3, dtype=torch.float64), 0.0
    for draw in range(16):
        checked = torch.tensor([bool(draw >> i & 1) for i in range(4)])
        chance = math.prod(share if c else 1 - share for c in checked.tolist())
        scores = predicted + checked * (real - predicted) / share
        gradient = (matrix @ scores) @ gradients / 4
        mean += chance * gradient
        variance += chance * float((gradient - exact).square().sum())
    torch.testing.assert_close(mean, exact)
    added = study.added_variance(gradients @ gradients.T, real, predicted, share=share, group=2)
    assert added == pytest.approx(variance)


def test_the_sampling_variance_is_that_of_the_mean_over_groups():
    gradients, real, _ = rows(6, 2)
    advantages = study.leave_one_out_matrix(6, 2) @ real
    each = (advantages[:, None] * gradients).view(3, 2, 3).mean(1)
    expected = float((each - each.mean(0)).square().sum()) / 2 / 3
    assert study.sampling_variance(gradients @ gradients.T, real, 2) == pytest.approx(expected)


# --- real runs -------------------------------------------------------------------------------------------------------

SMALL = ["generate.backend=transformers", "prompts.rows=400", "evaluation.samples=2", "evaluation.prompts=12"]


@pytest.mark.stages
def test_both_stages_run_on_the_demo_task_and_a_second_start_repeats_nothing(tmp_path, capsys):
    config = str(ROOT / "configs" / "research" / "surrogate.yaml")
    given = [config, f"runs_dir={tmp_path}", "run=small", *SMALL,
             "stages=[base, surrogate_study, time_to_target]", "time_to_target.seeds=[1]",
             "time_to_target.methods=[full, quarter]", "time_to_target.slow_runs={}", "time_to_target.target=0.0",
             "time_to_target.check_costs_s=[0, 1]", "time_to_target.workers=1",
             *(f"{m}.{key}" for m in ("full", "quarter") for key in ("steps=2", "evaluate_every=1", "prompts=4")),
             "surrogate_study.training_prompts=8", "surrogate_study.prompts=4", "surrogate_study.draws=20"]  # fmt: skip
    assert main(["run", *given]) == 0, capsys.readouterr().err
    table = json.loads((tmp_path / "small" / "time_to_target" / "table.json").read_text())
    assert [line["method"] for line in table["table"]] == ["full", "quarter"]
    assert table["table"][0]["reached"] == "1 of 1" and table["seconds"]["full"][1] > table["seconds"]["full"][0]
    quarter = [json.loads(line) for line in (tmp_path / "small" / "seed-1" / "quarter" / "metrics.jsonl").open()]
    assert 0 < quarter[0]["slow/share_checked"] < 1
    assert 0 < table["table"][1]["checks"] < table["table"][0]["checks"]
    found = json.loads((tmp_path / "small" / "surrogate_study" / "table.json").read_text())
    whole = next(line for line in found["table"] if line["share"] == 1.0)
    assert whole["score_variance"] == 0 and whole["added_gradient_variance"] == 0
    capsys.readouterr()
    assert main(["run", *given]) == 0
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override, words",
    [
        ("time_to_target.methods=[ful]", "did you mean 'full'"),
        ("time_to_target.methods=[base]", "no policy-optimisation stage"),
        ("time_to_target.seeds=[1, 1]", "names a seed twice"),
        ("time_to_target.start=bas", "did you mean 'base'"),
    ],
)
def test_mistakes_in_the_block_are_reported_in_one_line(override, words):
    cfg = load(str(ROOT / "configs" / "research" / "surrogate.yaml"), [override])
    with pytest.raises(ConfigError) as caught:
        target_check(cfg, "time_to_target")
    assert words in str(caught.value)
