"""Named methods against the settings their papers state, and keys written beside a method win over it."""

import math
from pathlib import Path

import pytest

from pipeline.config.load import ConfigError, load
from pipeline.config.presets import PRESETS

DEMO = str(Path(__file__).parents[2] / "configs/demo/pipeline.yaml")

# From the papers: (credit, divides by std, loss, low, high, mean over, KL weight, KL in, critic, refills)
PAPERS = {
    "ppo": ("gae", None, "clip", 0.2, 0.2, "token_mean", 0.02, "reward", True, False),
    "grpo": ("group", True, "clip", 0.2, 0.2, "sequence_mean", 0.04, "loss", False, False),
    "dr_grpo": ("group", False, "clip", 0.2, 0.2, "constant_length", 0, None, False, False),
    "dapo": ("group", True, "clip", 0.2, 0.28, "token_mean", 0, None, False, True),
    "gspo": ("group", True, "gspo", 3e-4, 4e-4, "sequence_mean", 0, None, False, False),
    "cispo": ("group", True, "cispo", None, 4.0, "token_mean", 0, None, False, True),
    "rloo": ("leave_one_out", None, "reinforce", None, None, "constant_length", 0.03, "reward", False, False),
    "reinforce++": ("global_baseline", None, "clip", 0.2, 0.2, "token_mean", 0.01, "reward", False, False),
    "vineppo": ("monte_carlo", None, "clip", 0.2, 0.2, "token_mean", 1e-4, "loss", False, False),
    "maxrl": ("maxrl", None, "clip", 0.2, 0.2, "token_mean", 0, None, False, False),
    "dppo": ("group", False, "dppo", 0.15, 0.15, "constant_length", 0, None, False, False),
    "gdpo": ("gdpo", None, "clip", 0.2, 0.2, "token_mean", 0, None, False, False),
    "sapo": ("group", True, "sapo", None, None, "sequence_mean", 0, None, False, False),
    "vespo": ("group", True, "vespo", None, None, "token_mean", 0, None, False, False),
    "luspo": ("group", True, "gspo", 2e-3, 2.5e-3, "sequence_sum", 0, None, False, False),
    "kl_cov": ("group", True, "kl_cov", None, None, "token_mean", 0, None, False, False),
    "clip_cov": ("group", True, "clip_cov", 0.2, 0.2, "token_mean", 0, None, False, False),
    "top_entropy": ("group", True, "clip", 0.2, 0.28, "token_mean", 0, None, False, True),
    "deepseek_v3.2": ("group", True, "clip", 0.2, 0.2, "sequence_mean", 0.001, "loss", False, False),
    "optimal_baseline": ("optimal_baseline", None, "clip", 0.2, 0.2, "token_mean", 0, None, False, False),
    "pass_at_k": ("pass_at_k", None, "reinforce", None, None, "constant_length", 0, None, False, False),
}  # fmt: skip


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
@pytest.mark.parametrize("method", PRESETS)
def test_a_method_sets_what_its_paper_states_on_a_block_of_either_kind(method, stage):
    block = load(DEMO, [f"{stage}={{policy: sft, method: {method}, samples: 8, prompts: 4}}"]).block(stage)
    credit, scale, loss, low, high, aggregate, coef, where, critic, dynamic = PAPERS[method]
    assert block.credit.kind == credit and (scale is None or block.credit.scale is scale)
    assert block.loss.kind == loss and block.loss.aggregate == aggregate
    assert low is None or math.isclose(block.loss.clip_low, low)
    assert high is None or math.isclose(block.loss.clip_high, high)
    assert block.kl.coef == coef and (where is None or block.kl.where == where)
    assert (block.critic is not None) is critic and block.groups.dynamic is dynamic


def test_every_method_names_a_paper():
    assert PAPERS.keys() == PRESETS.keys()
    assert all("arXiv:" in preset.paper for preset in PRESETS.values())


def test_keys_beside_a_method_win():
    words = ["grpo={policy: sft, method: dapo, loss: {clip_high: 0.5}, kl: {coef: 0.1}, groups: {dynamic: false}}"]
    block = load(DEMO, words).block("grpo")
    assert (block.loss.clip_low, block.loss.clip_high, block.loss.aggregate) == (0.2, 0.5, "token_mean")
    assert block.kl.coef == 0.1 and block.groups.dynamic is False


def test_cispo_has_no_lower_bound_and_vineppo_nine_continuations():
    cispo = load(DEMO, ["grpo={policy: sft, method: cispo}"]).block("grpo")
    assert 1 - cispo.loss.clip_low == 0 and 1 + cispo.loss.clip_high == 5
    vineppo = load(DEMO, ["grpo={policy: sft, method: vineppo}"]).block("grpo")
    assert vineppo.credit.continuations == 9 and vineppo.credit.gamma == 1


def test_settings_beyond_credit_and_clip_range_are_those_of_the_papers():
    def loss(method):
        return load(DEMO, [f"grpo={{policy: sft, method: {method}}}"]).block("grpo").loss

    assert (loss("dppo").divergence, loss("dppo").old_policy) == ("tv", "generator")
    assert (loss("sapo").sapo_tau_positive, loss("sapo").sapo_tau_negative) == (1.0, 1.05)
    vespo = loss("vespo")
    assert (vespo.vespo_k_positive, vespo.vespo_lambda_positive) == (2.0, 3.0)
    assert (vespo.vespo_k_negative, vespo.vespo_lambda_negative, vespo.old_policy) == (3.0, 2.0, "generator")
    assert (loss("kl_cov").cov_share, loss("kl_cov").cov_coef) == (2e-3, 1.0)
    assert (loss("clip_cov").cov_share, loss("clip_cov").cov_low, loss("clip_cov").cov_high) == (2e-4, 1.0, 5.0)
    assert loss("top_entropy").top_entropy == 0.2
    v32 = load(DEMO, ["grpo={policy: sft, method: deepseek_v3.2}"]).block("grpo")
    assert (v32.loss.off_policy_limit, v32.kl.kind) == (0.5, "unbiased")
    assert load(DEMO, ["grpo={policy: sft, method: pass_at_k}"]).block("grpo").credit.k == 4


@pytest.mark.parametrize(
    ("block", "reported"),
    [
        ("credit: {kind: pass_at_k, k: 9}", "the best of 9 samples"),
        ("credit: {kind: maxrl, level: turn}", "maxrl credit has no turns"),
        ("credit: {kind: maxrl}, groups: {missing_eos_penalty: 1.0}", "no penalty may be subtracted"),
        ("credit: {kind: gdpo}, kl: {coef: 0.1, where: reward, kind: k1}", "gdpo credit reads the reward alone"),
        ("loss: {old_policy: generator, importance: truncate}", "includes the mismatch already"),
        ("loss: {old_policy: generator, kind: reinforce}", "reinforce has no ratio"),
        ("loss: {aggregate: sequence_sum}", "meant for a ratio per sequence"),
        ("loss: {kind: clip_cov, cov_low: 5, cov_high: 1}", "must lie below cov_high"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(block, reported):
    with pytest.raises(ConfigError, match=reported):
        load(DEMO, [f"grpo={{policy: sft, samples: 8, {block}}}"])


def test_without_a_method_nothing_changes():
    plain = load(DEMO, ["grpo={policy: sft}"]).block("grpo")
    assert (plain.credit.kind, plain.loss.aggregate, plain.kl.coef, plain.method) == ("group", "token_mean", 0.0, None)
