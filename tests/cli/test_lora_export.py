"""export to=lora: base and adapter together are the merged model, for one LoRA stage and for two in a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from pipeline.cli import export
from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Tiny
from pipeline.models import models
from pipeline.run.manifest import manifest_sha
from pipeline.run.stage_dir import StageDir

IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])


def stage(run: Path, name: str, block: dict[str, Any], parents: dict[str, str], policy: Any, tokenizer: Any) -> str:
    """A finished stage with this model; returns its manifest's hash."""
    place = StageDir(run, name)
    place.open()
    models.save(policy, tokenizer, place.model_dir)
    config = {"stage": block, "model": {}, "prompts": {}, "rewards": {}, "sampling": {}}
    made = place.complete(config=config, seed=1, parents=parents, inputs={}, metrics={}, code={})
    return manifest_sha(made)


def adapted(policy: Any, rank: int, seed: int, targets: list[str]) -> Any:
    """The policy with a LoRA adapter that is not zero."""
    torch.manual_seed(seed)
    out: Any = get_peft_model(policy, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    for name, parameter in out.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return out


@pytest.fixture
def run(tmp_path) -> Path:
    """base, grpo and ppo with LoRA of ranks 2 and 3, and sft without."""
    root = tmp_path / "mine"
    models.make_tiny(Tiny(characters="abcde12345>:<0RLUD "), tmp_path / "m", seed=1)
    tokenizer = models.load_tokenizer(str(tmp_path / "m"), Model())
    sha = stage(root, "base", {"kind": "base"}, {}, models.load_policy(str(tmp_path / "m"), Model()), tokenizer)
    first = adapted(models.load_policy(str(root / "base" / "model"), Model()), 2, 1, ["q_proj", "down_proj"])
    block = {"kind": "grpo", "policy": "base", "peft": {"r": 2}}
    sha = stage(root, "grpo", block, {"base": sha}, first, tokenizer)
    second = adapted(models.load_policy(str(root / "grpo" / "model"), Model()), 3, 2, ["q_proj", "v_proj"])
    stage(root, "ppo", {"kind": "ppo", "policy": "grpo", "peft": {"r": 3}}, {"grpo": sha}, second, tokenizer)
    return root


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize(("name", "rank"), [("grpo", 2), ("ppo", 5)])
def test_base_and_adapter_together_are_the_merged_model(run, name, rank) -> None:
    place = export.export(run, ["to=lora", f"stage={name}"])
    assert place == run / "lora" and json.loads((place / "adapter_config.json").read_text())["r"] == rank
    base = AutoModelForCausalLM.from_pretrained(run / "base" / "model")
    before = logits(base)
    merged = logits(AutoModelForCausalLM.from_pretrained(run / name / "model"))
    together = logits(PeftModel.from_pretrained(base, place))
    assert (before - merged).abs().max() > 0.01
    assert torch.allclose(together, merged, atol=1e-4)
    assert not any("model-" in file.name or file.name == "model.safetensors" for file in place.iterdir())


def test_a_stage_without_an_adapter_is_refused(run) -> None:
    with pytest.raises(ConfigError, match="'base' trained all weights, so there is no adapter"):
        export.export(run, ["to=lora", "stage=base"])
    assert not (run / "lora").exists()


def test_a_change_beyond_the_adapter_is_refused(run) -> None:
    """A norm that was trained too: the merged model is no low rank away."""
    from pipeline.cli import lora_export

    policy = models.load_policy(str(run / "grpo" / "model"), Model())
    policy.model.norm.weight.data += 0.5
    tokenizer = models.load_tokenizer(str(run / "grpo" / "model"), Model())
    models.save(policy, tokenizer, run / "other")
    with pytest.raises(ConfigError, match=r"model\.norm\.weight was trained in full"):
        lora_export.write_lora(run / "base" / "model", run / "other", run / "lora", 2)
    assert not (run / "lora").exists() and not list(run.glob(".lora*"))
