"""How much of a model a plan tries out."""

import pytest
import torch
from loop_kit import tiny_model

from pipeline.config.schema import Model, Sampling
from pipeline.models import models
from pipeline.plan import trial
from pipeline.records import Prompt, Rollout


def test_of_the_rows_a_large_model_is_tried_on_only_so_many_tokens_are_taken():
    rows = [[1] * n for n in (5, 3, 4, 2)]
    assert trial.first_tokens(rows, None) == rows
    assert trial.first_tokens(rows, 8) == rows[:2]
    assert trial.first_tokens(rows, 1) == rows[:1], "at least one"


@pytest.mark.stages
def test_a_rate_is_the_same_work_over_less_time_however_few_steps_are_timed(tmp_path, monkeypatch):
    """Time is counted in forward passes: 6 steps and 1 step of the same rows give the same tokens a second."""
    model = models.load_policy(str(tiny_model(tmp_path / "m")), Model())
    passes = [0]
    plain = type(model).forward

    def counted(self, *args, **options):
        passes[0] += 1
        return plain(self, *args, **options)

    monkeypatch.setattr(type(model), "forward", counted)
    monkeypatch.setattr(trial.time, "monotonic", lambda: float(passes[0]))
    rows = [[3, 4, 5, 6]] * 4
    one, six = (trial.learning_rates(model, rows, trial.Extent(steps=steps)) for steps in (1, 6))
    assert one == six == (16.0, 16.0, 0.0)
    assert not any(torch.isnan(p).any() for p in model.parameters())


def test_few_sampled_tokens_give_the_rate_of_completions_half_as_long_as_the_longest(monkeypatch):
    """By hand: a prompt takes 3 s and each token 2 s; 4 rows of 40 / 2 = 20 tokens take 3 + 20 * 2 s."""
    clock = [0.0]
    monkeypatch.setattr(trial.time, "monotonic", lambda: clock[0])

    def sample(prompts, sampling, *, samples):
        clock[0] += 3.0 + 2.0 * sampling.max_tokens
        ids = (1,) * sampling.max_tokens
        return [Rollout(p, k, ids, (0.0,) * len(ids), "", False) for p in prompts for k in range(samples)]

    prompts = [Prompt(i, f"p{i}", (1, 2)) for i in range(2)]
    extent = trial.Extent(samples=2, max_tokens=4)
    drawn, rate = trial.sampling_rate(sample, prompts, Sampling(max_tokens=40), extent)
    assert len(drawn) == 4 and rate == pytest.approx(4 * 20 / 43)
    drawn, rate = trial.sampling_rate(sample, prompts, Sampling(max_tokens=3), extent)
    assert len(drawn[0].ids) == 3 and rate == pytest.approx(4 * 3 / 9), "short completions are sampled in full"
