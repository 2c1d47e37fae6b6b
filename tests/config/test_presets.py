"""Named methods against the settings their papers state, and keys written beside a method win over it."""

import math
from pathlib import Path

import pytest

from pipeline.config.load import load
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


def test_without_a_method_nothing_changes():
    plain = load(DEMO, ["grpo={policy: sft}"]).block("grpo")
    assert (plain.credit.kind, plain.loss.aggregate, plain.kl.coef, plain.method) == ("group", "token_mean", 0.0, None)
