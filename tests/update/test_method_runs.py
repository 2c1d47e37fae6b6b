"""Named methods through the policy loop on a tiny model: each trains and logs its own figures."""

import json
import statistics
from pathlib import Path

import loop_kit
import pytest


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loop_kit.tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("method", "figures"),
    [
        ("dppo", {"clipped_low", "clipped_high"}),
        ("optimal_baseline", set()),
        ("kl_cov", set()),
        ("top_entropy", {"loss_kept"}),
        ("deepseek_v3.2", {"off_policy_masked"}),
    ],
)
def test_a_method_trains_and_logs_its_own_figures(method: str, figures: set[str], model: Path, tmp_path: Path) -> None:
    assert loop_kit.run_stage(tmp_path, model, "grpo", f"grpo.method={method}", "grpo.minibatches=2") == 0
    steps = loop_kit.metrics(tmp_path, "grpo")
    assert len(steps) == 2 and all(figures <= step.keys() for step in steps)
    before, after = loop_kit.weights_of(model), loop_kit.weights(tmp_path, "grpo")
    assert any(not before[name].equal(after[name]) for name in before)
    if "loss_kept" in figures:
        assert 0.15 < steps[0]["loss_kept"] < 0.35  # a fifth of all tokens, and ties


def test_gdpo_reads_the_parts_of_the_reward_and_the_penalties(model: Path, tmp_path: Path) -> None:
    """Two parts of very different size and a penalty; over the batch the advantages have mean 0 and deviation 1."""
    parts = 'rewards={letters: {kind: function, path: "loop_kit:letters"}, length: {weight: 0.01, max_tokens: 6, '
    given = [parts + "buffer_tokens: 3}}", "grpo.method=gdpo", "grpo.steps=1", "grpo.groups.missing_eos_penalty=0.1"]
    assert loop_kit.run_stage(tmp_path, model, "grpo", *given) == 0
    rows = [json.loads(line) for line in (tmp_path / "t/grpo/rollouts.jsonl").read_text().splitlines()]
    advantages = [row["advantages"] for row in rows]
    assert len(advantages) == 16 and abs(statistics.mean(advantages)) < 1e-3
    assert abs(statistics.stdev(advantages) - 1) < 1e-2


def test_sequences_rejected_by_the_mismatch_teach_nothing(model: Path, tmp_path: Path) -> None:
    """A bound below rounding rejects every row: the loss is 0 and no weight moves."""
    assert loop_kit.run_stage(tmp_path, model, "grpo", "grpo.loss.reject_k3=1.0e-30", "grpo.steps=1") == 0
    step = loop_kit.metrics(tmp_path, "grpo")[0]
    assert step["loss_kept"] < 0.5
