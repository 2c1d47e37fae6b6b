"""How much of a model a plan tries out."""

import pytest
import torch
from loop_kit import tiny_model

from pipeline.config.schema import Model
from pipeline.models import models
from pipeline.plan import trial


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
    assert trial.learning_rates(model, rows, 1) == trial.learning_rates(model, rows, 6) == (16.0, 16.0)
    assert not any(torch.isnan(p).any() for p in model.parameters())
