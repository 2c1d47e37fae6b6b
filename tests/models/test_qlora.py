"""QLoRA: a base of 4 bits under the adapter, in the stages that train one, and what the generator and the disk get."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from loop_kit import manifest, run_stage, tiny_model, weights
from safetensors.torch import load_file

from pipeline.config import load
from pipeline.config.load import ConfigError
from pipeline.config.schema import Model
from pipeline.models import adapters, models
from pipeline.plan import estimate, trial

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.usefixtures("no_engine_left_behind")
LORA = {"r": 4, "target_modules": "all-linear", "lora_alpha": 16}
NF4 = "model.quantization=nf4"
PEFT = "peft={r: 4, target_modules: all-linear, lora_alpha: 16}"


@pytest.fixture
def adapted(tmp_path):
    """A policy of 4 bits under an adapter that is not zero."""
    place = tiny_model(tmp_path / "m")
    policy = models.load_policy(str(place), Model(quantization="nf4"), adapted=True)
    policy = adapters.add_lora(policy, LORA, key="test")
    torch.manual_seed(0)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return place, policy


def test_the_merged_weights_give_the_logits_of_the_adapted_four_bits(adapted, tmp_path):
    place, policy = adapted
    ids = torch.arange(12).reshape(2, 6) % 20
    expected = policy(ids).logits
    merged = models.load_policy(str(place), Model())
    merged.load_state_dict(dict(models.named_weights(policy)))
    assert torch.allclose(merged(ids).logits, expected, atol=1e-5)
    full = models.load_policy(str(place), Model())
    assert not torch.allclose(full(ids).logits, expected, atol=1e-3), "4 bits and an adapter must show"


def test_what_is_saved_is_whole_and_needs_nothing_to_be_loaded(adapted, tmp_path):
    place, policy = adapted
    ids = torch.arange(12).reshape(2, 6) % 20
    expected = policy(ids).logits
    policy.get_base_model().generation_config.eos_token_id = [2, 5]
    models.save(policy, models.load_tokenizer(str(place), Model()), tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["eos_token_id"] == [2, 5]
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert torch.allclose(models.load_policy(str(tmp_path / "saved"), Model())(ids).logits, expected, atol=1e-5)


def test_without_an_adapter_the_base_is_loaded_in_full(tmp_path):
    place = str(tiny_model(tmp_path / "m"))
    one, two = models.load_policy(place, Model(quantization="nf4")), models.load_policy(place, Model())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_four_bits_without_an_adapter_anywhere_are_a_mistake(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run: r\nmodel: {path: x, quantization: nf4}\nprompts: {procedural: countdown}\nsft: {}\n")
    with pytest.raises(
        ConfigError, match=r"model\.quantization: quantized weights cannot be trained and no stage uses LoRA"
    ):
        load.load(path)


def test_bytes_of_a_base_in_four_bits():
    """By hand: 1,000 parameters, of them 2 x 10 x 20 in embedding and head at 2 bytes; 600 at 4.127 bits."""
    shape = estimate.Shape(parameters=1000, hidden=20, layers=1, kv_width=1, vocabulary=10, bytes_each=2)
    assert estimate.in_4_bits(shape) == 400 * 2 + round(600 * 4.127 / 8)


def test_a_plans_trial_counts_four_bits_whole_and_learns_the_adapter_alone(adapted):
    place, policy = adapted
    full = models.load_policy(str(place), Model())
    packed = models.load_policy(str(place), Model(quantization="nf4"), adapted=True)
    assert trial.shape_of(packed) == trial.shape_of(full)
    assert trial.bytes_here(packed) < trial.bytes_here(full) == sum(4 * p.numel() for p in full.parameters())
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    assert all(rate > 0 for rate in trial.learning_rates(policy, [(1, 2, 3, 4)] * 3))
    assert trial.optimizer_seconds(policy) > 0
    moved = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all("lora_" in name for name in moved)


STAGES = {
    "grpo": ["generate.backend=vllm"],
    "ppo": ["ppo.critic.shared=true", "ppo.critic.warmup_steps=0"],
    "sft": ["sft={policy: MODEL, trainer: {max_steps: 2, learning_rate: 1.0e-2}}"],
    "reward_model": [
        "reward_model={policy: MODEL, prompts: 60, samples: 8, heldout_prompts: 4}",
        "reward_model.trainer={max_steps: 2, learning_rate: 1.0e-2}",
    ],
}


@pytest.mark.stages
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_on_four_bits(model: Path, tmp_path: Path, stage: str):
    more = [word.replace("MODEL", str(model)) for word in STAGES[stage]]
    assert run_stage(tmp_path, model, stage, NF4, *more, f"{stage}.{PEFT}") == 0
    assert manifest(tmp_path, stage)["versions"]["bitsandbytes"]
    start, end = load_file(model / "model.safetensors"), weights(tmp_path, stage)
    moved = [name for name in start if name in end and not torch.equal(start[name], end[name])]
    assert any(name.endswith("q_proj.weight") for name in moved)
    assert not any("norm" in name or "embed" in name for name in moved), "the base keeps what is not in 4 bits"
