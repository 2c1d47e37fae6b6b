"""How much of a model a plan tries out, and how the rates of full batches follow from it."""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loop_kit import tiny_model
from torch import nn

from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Sampling
from pipeline.models import models
from pipeline.plan import trial, trial_process
from pipeline.plan.trial_process import TrialProcess

INPUTS = trial.Inputs(((1, 2),), 2, frozenset({2}))


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock that stands still unless a test moves it."""
    now = [0.0]
    monkeypatch.setattr(trial.time, "monotonic", lambda: now[0])
    return now


def test_only_as_many_prompt_tokens_of_a_large_model_are_timed():
    rows = [(1,) * n for n in (5, 3, 4, 2)]
    assert trial.first_rows(rows, 100) == rows
    assert trial.first_rows(rows, 8) == rows[:2]
    assert trial.first_rows(rows, 3) == [(1,) * 3], "one row at least, cut"


def test_few_tokens_give_the_rate_of_a_full_micro_batch(clock, monkeypatch):
    """By hand: 2 s per micro-batch and 0.5 s per token, so 512 tokens take 258 s."""

    def act(rows):
        clock[0] += 2.0 + 0.5 * sum(map(len, rows))
        computed.append(sum(map(len, rows)))

    for rows in ([(1,) * 300, (2,) * 300], [(1, 2, 3)]):
        computed: list[int] = []
        assert trial.extrapolated_rate(act, rows) == pytest.approx(512 / 258)
        assert sum(computed) <= 192, "a full micro-batch is never computed"


def test_the_rate_of_all_rows_leaves_the_warm_up_out(clock):
    steps: list[int] = []

    def act(rows):
        clock[0] += 100.0 if not steps else 3.0
        steps.append(len(rows))

    assert trial.full_rate(act, [(1,) * 6, (2,) * 3]) == pytest.approx(3.0)
    assert len(steps) == 1 + trial.STEPS


@pytest.mark.parametrize("few", [False, True])
def test_rates_are_those_of_the_forward_and_backward_that_a_policy_stage_runs(tmp_path, few):
    model = models.load_policy(str(tiny_model(tmp_path / "m")), Model())
    fetched, learned = trial.learning_rates(model, [(3, 4, 5, 6)] * 4, few=few)
    assert fetched > 0 and learned > 0
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients) and any(g.any() for g in gradients)


def test_a_canary_is_timed_in_the_trainer_and_in_the_engine(tmp_path, clock):
    model = models.load_policy(str(tiny_model(tmp_path / "m")), Model())
    asked: list[int] = []

    def logprobs(sequences: Any) -> Any:
        clock[0] += 2.0
        asked.extend(len(s) for s in sequences)
        return [[-1.0] * (len(s) - 1) for s in sequences]

    engine: Any = SimpleNamespace(logprobs=logprobs)
    rows = [(3, 4, 5, 6)] * 20
    assert trial.canary_seconds(engine, model, rows, autocast=None) == 2.0
    assert asked == [8] * 8, "eight rows, each a prompt and its canary's tokens"


def test_a_step_of_the_optimizer_is_timed_on_some_weights_and_scaled_to_all(clock, monkeypatch):
    """By hand: 1 s per number; of 2 x 3, 4 and 5 x 8 numbers, the first two are within 12."""
    model = nn.ParameterList([nn.Parameter(torch.ones(*size)) for size in ((5, 8), (2, 3), (4,), (7,))])
    model[3].requires_grad_(False)
    monkeypatch.setattr(trial, "OPTIMIZED", 12)

    def step(self):
        clock[0] += sum(p.numel() for group in self.param_groups for p in group["params"])

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert trial.optimizer_seconds(model) == pytest.approx(50.0)


def test_few_sampled_tokens_give_the_rate_of_completions_half_as_long_as_the_longest(clock):
    """By hand: 0.1 s per prompt token and 2 s per step; 64 rows of 10 prompt and 20 completion tokens take
    64 * 10 * 0.1 + 20 * 2 s."""
    sampled = []

    def sample(prompts: Any, sampling: Any) -> Any:
        before = clock[0]
        clock[0] += 0.1 * sum(map(len, prompts)) + 2.0 * (sampling.max_tokens - 1)
        sampled.append(len(prompts) * sampling.max_tokens)
        return [], clock[0] - before

    prompts = [(1,) * n for n in (8, 12, 10)]
    rows, rate = trial.few_sampled(sample, prompts, Sampling(max_tokens=40))
    assert rows == prompts and rate == pytest.approx(64 * 20 / (64 + 40))
    assert sum(sampled) < 64 * 5, "of 64 x 20 tokens"


def test_small_models_are_sampled_in_full_after_a_warm_up(clock):
    calls = []

    def sample(prompts: Any, sampling: Any) -> Any:
        calls.append(len(prompts))
        return [SimpleNamespace(ids=(9,) * sampling.max_tokens) for _ in prompts], 4.0

    rows, rate = trial.all_sampled(sample, [(1, 2), (3,)], Sampling(max_tokens=5))
    assert calls == [2, 8] and rate == 8 * 5 / 4.0
    assert rows[0] == (1, 2, 9, 9, 9, 9, 9) and rows[4] == (3, 9, 9, 9, 9, 9)


def test_a_trial_that_fails_is_reported_by_the_last_line_of_its_errors(monkeypatch):
    monkeypatch.setattr(
        trial_process, "BODY", "import sys; print('first', file=sys.stderr); sys.exit('no such engine')"
    )
    cfg: Any = SimpleNamespace(path="x.yaml")
    with (
        TrialProcess(cfg) as trying,
        pytest.raises(ConfigError, match=r"x.yaml: the model could not .* no such engine$"),
    ):
        trying.measure(INPUTS)


def test_a_trial_that_takes_too_long_is_ended_and_reported(monkeypatch):
    monkeypatch.setattr(trial_process, "BODY", "import time; time.sleep(60)")
    monkeypatch.setattr(trial_process, "TRIAL_S", 0.2)
    started = time.monotonic()
    cfg: Any = SimpleNamespace(path="x.yaml")
    with TrialProcess(cfg) as trying, pytest.raises(ConfigError, match="not be tried out within 0 s"):
        trying.measure(INPUTS)
    assert trying.process.returncode is not None and time.monotonic() - started < 30


def test_a_trial_gets_its_config_and_inputs_and_is_measured_once(monkeypatch):
    body = ("import json, pickle, sys; m = sys.stdin.buffer; cfg, given = pickle.load(m), pickle.load(m); "
            "print('noise'); print(json.dumps({'engine_s': given.longest, 'generator': cfg.path}))")  # fmt: skip
    monkeypatch.setattr(trial_process, "BODY", body)
    cfg: Any = SimpleNamespace(path="x.yaml")
    with TrialProcess(cfg) as trying:
        first = trying.measure(INPUTS)
        assert first == trial.Trial(engine_s=2, generator="x.yaml") and trying.measure(INPUTS) is first
