"""Each alarm with its fault put in on purpose, through the command line: exit code 3 and the cause in words."""

import math
from dataclasses import replace

import pytest
import torch
from loop_kit import manifest, metrics, run_stage, tiny_model

from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.run import alarms
from pipeline.stages import policy
from pipeline.update import canary, loop, policy_loss

pytestmark = [pytest.mark.stages, pytest.mark.usefixtures("no_engine_left_behind")]


def stopped(tmp_path, model, capsys, *overrides: str, stage: str = "grpo", notice: str = "") -> str:
    """What an alarm said. notice: how the only other line, before it, begins."""
    code = run_stage(tmp_path, model, stage, *overrides)
    said = capsys.readouterr().err
    assert code == 3, said
    *before, alarm = said.splitlines()
    assert alarm.startswith("stopped by an alarm: ") and len(before) == bool(notice), said
    assert all(line.startswith(notice) for line in before), said
    assert not (tmp_path / "t" / stage / "manifest.json").exists()
    return said


def test_without_a_fault_no_alarm_is_raised(tmp_path, model):
    assert run_stage(tmp_path, model, "grpo", "grpo.kl.coef=0.1") == 0
    assert run_stage(tmp_path, model, "ppo", "grpo.kl.coef=0.1") == 0
    assert manifest(tmp_path, "grpo")["metrics"]["canary_max_abs"] < 1e-4


@pytest.mark.parametrize(
    "left_out", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight+lm_head.weight"]
)
def test_detail_7_a_tensor_left_out_of_the_sync_stops_the_run(tmp_path, model, capsys, monkeypatch, left_out):
    whole = loop.named_weights
    monkeypatch.setattr(loop, "named_weights", lambda m: [(n, t) for n, t in whole(m) if n not in left_out])
    said = stopped(tmp_path, model, capsys)
    assert "step 0" in said and "the generator is stale or misses a tensor" in said


def test_detail_7_a_stale_generator_stops_the_run(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(TransformersGenerator, "sync", lambda self, weights: None)
    assert "the generator is stale" in stopped(tmp_path, model, capsys)


def test_the_canary_is_measured_against_the_gap_of_equal_weights_on_sampled_tokens_too(
    tmp_path, model, capsys, monkeypatch
):
    """float32 allows 1e-4 or three times the floor. The gaps: greedy tokens, then sampled ones before and after the
    first update, then those of later steps."""
    gaps = iter([1e-5, 9e-5, 2.5e-4])
    monkeypatch.setattr(canary, "measure", lambda *given: next(gaps, 1e-5))
    assert run_stage(tmp_path, model, "grpo") == 0
    assert metrics(tmp_path, "grpo")[0]["canary_limit"] == pytest.approx(2.7e-4)
    gaps = iter([1e-5, 2e-3])
    said = stopped(tmp_path / "other", model, capsys)
    assert "step 0" in said and "0.002" in said


def test_detail_8_a_leaked_top_p_stops_the_run(tmp_path, model, capsys, monkeypatch):
    plain = TransformersGenerator.sample
    monkeypatch.setattr(
        TransformersGenerator,
        "sample",
        lambda self, requests, sampling, ends: plain(self, requests, replace(sampling, top_p=0.5), ends),
    )
    said = stopped(tmp_path, model, capsys)
    assert "log-probs of the sampled tokens differ" in said and "top_p" in said


@pytest.mark.parametrize("key", ["top_p=0.9", "top_k=5", "min_p=0.1", "repetition_penalty=1.2"])
def test_detail_8_a_cut_sampling_distribution_is_refused_before_anything_loads(tmp_path, model, capsys, key):
    assert run_stage(tmp_path, model, "grpo", f"sampling.{key}") == 2
    said = capsys.readouterr().err
    assert f"sampling.{key.split('=')[0]} would change what is sampled and not what is trained on" in said


def test_nan_in_the_loss_stops_the_run(tmp_path, model, capsys, monkeypatch):
    plain = policy_loss.SURROGATES["clip"]
    monkeypatch.setitem(policy_loss.SURROGATES, "clip", lambda *given, **clip: plain(*given, **clip) * math.nan)
    assert "step 0: the policy loss is nan" in stopped(tmp_path, model, capsys)


def test_nan_in_the_weights_stops_the_run_at_the_canary(tmp_path, model, capsys, monkeypatch):
    def poisoned(*given):
        with torch.no_grad():
            next(given[0].learner.model.parameters())[3, 5] = math.nan
        return updates(*given)

    updates = loop.update_policy
    monkeypatch.setattr(loop, "update_policy", poisoned)
    said = stopped(tmp_path, model, capsys)
    assert "nan" in said


def test_one_nan_among_the_canarys_log_probs_is_not_passed_over():
    assert math.isnan(canary.weighted_gap([(-0.1, -0.1), (-0.2, math.nan), (-0.3, -0.3)]))
    with pytest.raises(alarms.Alarm):
        alarms.check_canary(math.nan, 1e-3, 0)


def test_an_exploding_loss_stops_the_run(tmp_path, model, capsys):
    assert "training has exploded" in stopped(tmp_path, model, capsys, "grpo.alarms.loss_abs=1e-12")


def test_a_batch_with_every_row_masked_stops_the_run(tmp_path, model, capsys):
    # the length limit cuts all but the rows whose first token is the end
    said = stopped(
        tmp_path, model, capsys, "grpo.groups.overlong=mask", "sampling.max_tokens=1", "grpo.samples=2",
        "grpo.prompts=2",
    )  # fmt: skip
    assert "no token left to train on" in said and "truncated" in said


def test_a_broken_checker_stops_the_run_past_its_share_and_names_the_fault(tmp_path, model, capsys):
    early = "rewards.letters: RuntimeError: the checker's disk is full"  # the trial before the run
    said = stopped(tmp_path, model, capsys, "rewards.letters.path=loop_kit:broken", notice=early)
    assert "100% of the samples could not be scored (limit 20%)" in said and "disk is full" in said


def test_equal_rewards_for_too_many_steps_stop_the_run(tmp_path, model, capsys):
    said = stopped(
        tmp_path, model, capsys, "rewards.letters.path=loop_kit:constant", "grpo.alarms.no_signal_steps=2"
    )  # fmt: skip
    assert "step 1: every group had constant reward for 2 consecutive steps (all are 0.25)" in said


@pytest.mark.parametrize(
    ("stage", "overrides"),
    [("grpo", ["grpo.kl.coef=0.1"]), ("ppo", ["ppo.kl.coef=0.1"])],
    ids=["in the loss", "in the reward"],
)
def test_a_reference_that_is_another_model_stops_the_run(
    tmp_path, model, capsys, monkeypatch, tmp_path_factory, stage, overrides
):
    other = tiny_model(tmp_path_factory.mktemp("other"), seed=2)
    load = policy.models.load_policy

    def start_of(ctx, learner, **how):
        return policy.CompletionLogprobs(load(str(other), ctx.cfg.model), temperature=1.0)

    monkeypatch.setattr(policy, "start_of", start_of)
    said = stopped(tmp_path, model, capsys, *overrides, stage=stage)
    assert "KL of policy to reference" in said and "the reference is another model than the start" in said


def test_detail_4_before_the_first_update_the_ratio_is_1_and_the_kl_to_the_reference_0(tmp_path, model):
    assert run_stage(tmp_path, model, "grpo", "grpo.kl.coef=0.1", "grpo.steps=1") == 0
    first = metrics(tmp_path, "grpo")[0]
    assert first["ratio_max"] == 1.0 and first["clipped_low"] == first["clipped_high"] == 0.0
    assert abs(first["kl_k1"]) < 1e-6 and 0 <= first["kl_k3"] < 1e-9


@pytest.mark.parametrize(
    ("check", "fine", "bad"),
    [
        (lambda x: alarms.check_canary(x, 1e-3, 1), 1e-3, 1.1e-3),
        (lambda x: alarms.check_mismatch(x, 0.1, 1), 0.1, 0.11),
        (lambda x: alarms.check_reference(x, 1e-5), -1e-5, -1.1e-5),
        (lambda x: alarms.check_finite("loss", x, 1, 10.0), -10.0, -10.1),
    ],
)
def test_a_limit_may_be_reached_and_not_passed_and_nan_is_past_every_limit(check, fine, bad):
    check(fine)
    for value in (bad, math.nan):
        with pytest.raises(alarms.Alarm):
            check(value)
