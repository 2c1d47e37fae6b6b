"""After every save the directory is loaded again and compared with the trained model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from loop_kit import TINY, run_stage, tiny_model
from transformers import AutoModelForCausalLM

from pipeline.config.load import ConfigError
from pipeline.config.schema import Model
from pipeline.models import adapters, models, saved_check, weights
from tests.family_twins import FAMILIES, perturb, save

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory):
    """A family that scales each layer by a persistent buffer."""
    path = tmp_path_factory.mktemp("gemma4")
    save(FAMILIES["gemma4"], path)
    return path


def adapted(path, settings=LORA, **model):
    policy = adapters.add_lora(models.load_policy(str(path), Model(**model), adapted=True), settings, key="test")
    torch.manual_seed(0)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return policy


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_persistent_buffers_are_saved_with_an_adapter(gemma4, tmp_path, quantization):
    if quantization:
        pytest.importorskip("bitsandbytes")
    policy = adapted(gemma4, quantization=quantization)
    before = {name: buffer.clone() for name, buffer in weights.persistent_buffers(policy.get_base_model())}
    models.save(policy, models.load_tokenizer(str(gemma4), Model()), tmp_path)
    after = dict(weights.persistent_buffers(models.load_policy(str(tmp_path), Model())))
    assert before.keys() == after.keys() and any(name.endswith("layer_scalar") for name in before)
    for name, buffer in before.items():
        assert not torch.equal(buffer, torch.ones_like(buffer)) and torch.equal(buffer, after[name])


def test_a_generator_gets_persistent_buffers_too(gemma4):
    one, other = (models.load_policy(str(gemma4), Model()).eval() for _ in range(2))
    perturb(other, seed=5)
    assert float((saved_check.outputs(one) - saved_check.outputs(other)).abs().max()) > 1e-2
    weights.copy_into(one, weights.named_weights(other))
    assert torch.equal(saved_check.outputs(one), saved_check.outputs(other))


@pytest.mark.parametrize("lost", ["layer_scalar", "norm", "o_proj", "embed_tokens"])
def test_a_save_that_loses_any_tensor_is_refused(gemma4, tmp_path, monkeypatch, lost):
    policy = adapted(gemma4)
    every = weights.NamedWeights.in_memory

    def some(self):
        dropped = next(name for name, _ in every(self) if lost in name)
        return ((name, tensor) for name, tensor in every(self) if name != dropped)

    monkeypatch.setattr(weights.NamedWeights, "in_memory", some)
    with pytest.raises(saved_check.SavedModelDiffers, match="lost or changed a tensor"):
        models.save(policy, models.load_tokenizer(str(gemma4), Model()), tmp_path)


def test_a_run_whose_save_differs_from_what_it_trained_ends_with_exit_3(tmp_path, monkeypatch, capsys):
    model = tiny_model(tmp_path / "m")
    write = models._write

    def write_another(trained: Any, *rest: Any) -> None:
        perturb(trained, seed=1)
        write(trained, *rest)

    monkeypatch.setattr(models, "_write", write_another)
    assert run_stage(tmp_path, model, "grpo") == 3
    assert "differs from the trained one" in capsys.readouterr().err
    assert not (tmp_path / "t" / "grpo" / "manifest.json").exists()


def test_a_difference_in_one_entry_of_one_weight_is_found(tmp_path):
    """Float32 noise is far below the limit, and a change of one entry in a thousand above it."""
    model = models.load_policy(str(tiny_model(tmp_path / "m")), Model())
    perturb(model, seed=2)
    models.save(model, models.load_tokenizer(str(tmp_path / "m"), Model()), tmp_path / "s")
    expected = saved_check.outputs(model)
    kind: dict[str, Any] = {"kind": AutoModelForCausalLM, "attn": None, "remote_code": False}
    assert saved_check.check_saved(expected, tmp_path / "s", **kind) < 1e-6
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, : TINY.hidden_size] += 1.0
    with pytest.raises(saved_check.SavedModelDiffers):
        saved_check.check_saved(saved_check.outputs(model), tmp_path / "s", **kind)


# --- adapters that a merge cannot hold ------------------------------------------------------------------------------

SFT = "sft={policy: MODEL, trainer: {max_steps: 2, learning_rate: 1.0e-2}}"


def sft(tmp_path, model, peft):
    return run_stage(tmp_path, model, "sft", SFT.replace("MODEL", str(model)), f"sft.peft={peft}")


@pytest.mark.stages
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_sft_refuses_lora_on_a_tied_embedding_as_the_policy_stages_do(tmp_path, capsys, target):
    """Merged, the embedding's delta would fall on the head too: accuracy .465 before and .000 after, with exit 0."""
    model = tiny_model(tmp_path / "m")
    assert sft(tmp_path, model, f"{{r: 2, target_modules: [q_proj, {target}]}}") == 2
    told = capsys.readouterr().err  # TRL itself refuses an adapter on the head, tied or not
    assert f"sft.peft.target_modules: {target}" in told or (target == "lm_head" and "sft.peft: Applying a PEFT" in told)


@pytest.mark.stages
@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_embeddings_in_modules_to_save_are_trained_and_saved_tied_or_not(tmp_path, stage, tied):
    model = tiny_model(tmp_path / "m", tied=tied)
    peft = "{r: 2, target_modules: [q_proj], modules_to_save: [embed_tokens, lm_head]}"
    if stage == "sft":
        assert sft(tmp_path, model, peft) == 0
    else:
        assert run_stage(tmp_path, model, "grpo", f"grpo.peft={peft}") == 0
    saved = models.load_policy(str(tmp_path / "t" / stage / "model"), Model())
    start = models.load_policy(str(model), Model())
    assert (saved.lm_head.weight is saved.model.embed_tokens.weight) == tied
    assert not torch.equal(saved.model.embed_tokens.weight, start.model.embed_tokens.weight)


@pytest.mark.parametrize(
    "settings",
    [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}, {"trainable_token_indices": [5]}, {"use_dora": True}],
    ids=str,
)
def test_an_adapter_that_is_not_base_plus_delta_is_refused_with_the_fix(tmp_path, settings):
    policy = models.load_policy(str(tiny_model(tmp_path / "m")), Model())
    with pytest.raises(ConfigError, match=rf"grpo\.peft\.{next(iter(settings))}: .*(remove|use|train) "):
        adapters.add_lora(policy, {**LORA, **settings}, key="grpo")


def test_router_logits_are_off_in_what_is_saved(tmp_path):
    """TRL switches them on for training, and batched generation of the saved model then fails."""
    path = tmp_path / "m"
    save(FAMILIES["olmoe"], path)
    model = models.load_policy(str(path), Model())
    model.config.output_router_logits = True
    models.save(model, models.load_tokenizer(str(path), Model()), tmp_path / "s")
    assert json.loads((tmp_path / "s" / "config.json").read_text())["output_router_logits"] is False


def test_a_cast_model_computes_what_the_loaded_one_does(tmp_path):
    """Rotary frequencies are in no checkpoint: rounded with the weights, they would differ from those of a load."""
    path = tiny_model(tmp_path / "m")
    model = models.load_policy(str(path), Model())
    perturb(model, seed=3)
    frequencies = {n: b.clone() for n, b in model.named_buffers() if "inv_freq" in n}
    models.save(model, models.load_tokenizer(str(path), Model()), tmp_path / "saved", dtype=torch.bfloat16)
    assert frequencies and all(torch.equal(dict(model.named_buffers())[n], b) for n, b in frequencies.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    assert loaded.dtype == model.dtype == torch.bfloat16
    assert torch.equal(saved_check.outputs(model), saved_check.outputs(loaded))
    plain = models.load_policy(str(path), Model())
    perturb(plain, seed=3)
    assert not torch.equal(saved_check.outputs(plain.to(torch.bfloat16)), saved_check.outputs(loaded))


def test_in_low_precision_a_gap_within_the_models_own_rounding_is_no_fault(tmp_path, monkeypatch):
    path = tiny_model(tmp_path / "m")
    models.save(models.load_policy(str(path), Model()), models.load_tokenizer(str(path), Model()), tmp_path / "saved",
                dtype=torch.bfloat16)  # fmt: skip
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="auto")
    in_float32 = saved_check.outputs(rounded.float())
    check: dict[str, Any] = {"kind": AutoModelForCausalLM, "attn": "sdpa", "remote_code": False}
    monkeypatch.setattr(saved_check, "MEAN_GAP", 0.0)  # so that the model's own rounding decides
    gap = saved_check.check_saved(in_float32, tmp_path / "saved", **check)
    assert gap > 0
    monkeypatch.setattr(saved_check, "TIMES_OWN_ROUNDING", 0.5)
    with pytest.raises(saved_check.SavedModelDiffers):
        saved_check.check_saved(in_float32, tmp_path / "saved", **check)
