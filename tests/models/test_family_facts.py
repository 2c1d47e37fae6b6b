"""What config.json alone says of a family: its attention, its generator, and what is refused before anything loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from loop_kit import run_stage, tiny_model, write_config
from transformers import AutoModelForCausalLM

from pipeline.__main__ import main
from pipeline.config.load import ConfigError, read
from pipeline.config.schema import Generate, Model
from pipeline.generation import engines
from pipeline.models import families, models
from pipeline.models.precision import precision_of
from pipeline.plan import precision
from tests import family_runs
from tests.family_twins import FAMILIES, make_config, make_tokenizer, perturb, save


def config_json(name: str) -> families.Fields:
    family = FAMILIES[name]
    return json.loads(make_config(family, make_tokenizer(family)).to_json_string(use_diff=True))


def test_gemma_2_keeps_the_soft_cap_of_its_attention_scores(tmp_path):
    """By hand: scores of 300 under a cap of 50 weigh as 50 * tanh(300 / 50), which SDPA does not compute."""
    save(FAMILIES["gemma2"], tmp_path)
    model = models.load_policy(str(tmp_path), Model())
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 40  # so that the cap bites
    model.save_pretrained(tmp_path)
    ids = torch.arange(20, 60)[None]
    capped = models.load_policy(str(tmp_path), Model())(ids).logits.log_softmax(-1)
    uncapped = models.load_policy(str(tmp_path), Model())
    for layer in uncapped.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    uncapped.config.attn_logit_softcapping = None
    assert float((capped - uncapped(ids).logits.log_softmax(-1)).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["gpt-oss", "mamba2", "gemma2"])
def test_families_without_sdpa_take_eager_by_themselves(name):
    assert families.attention(config_json(name), "sdpa") == "eager"
    assert families.attention(config_json(name), "flash_attention_2") == "flash_attention_2"


def test_other_families_take_the_attention_that_is_asked_for():
    taken = {name for name in FAMILIES if families.attention(config_json(name), "sdpa") == "eager"}
    assert taken == {"gpt-oss", "mamba2", "gemma2", "rwkv"}


def test_experts_and_recurrent_layers_are_read_from_config_json():
    moe = {n for n in FAMILIES if families.is_moe(config_json(n))}
    recurrent = {n for n in FAMILIES if families.is_recurrent(config_json(n))}
    assert {n for n in FAMILIES if "moe" in n} <= moe
    assert moe.isdisjoint({"qwen3", "granite4-dense", "nemotron-h", "lfm2", "falcon-h1", "gemma4"})
    assert {"lfm2", "lfm2-moe", "granite4-hybrid", "falcon-h1", "nemotron-h", "qwen3.5", "mamba2"} <= recurrent
    assert recurrent.isdisjoint({"granite4-dense", "qwen3", "olmo3", "gemma3"})


def test_vllm_gets_the_options_that_a_family_needs_on_a_cpu():
    """Recurrent states cannot be cached by prefix without chunked prefill; a model with vision gets no images."""
    for name in FAMILIES:
        options, config = families.vllm_options(config_json(name)), config_json(name)
        assert (options.get("enable_prefix_caching") is False) == families.is_recurrent(config), name
        assert ("limit_mm_per_prompt" in options) == ("vision" in name or name == "qwen3-vl"), name
    assert families.vllm_options(None) == {}


def test_a_family_that_vllm_computes_wrongly_is_sampled_by_transformers_and_vllm_by_name_is_refused(
    tmp_path, monkeypatch, capsys
):
    pytest.importorskip("vllm")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "config.json").write_text(json.dumps(config_json("gpt-oss")))
    engines._printed.clear()
    assert engines.backend_for(str(tmp_path), Model(), Generate()) == "transformers"
    assert capsys.readouterr().out.startswith(
        "generator: transformers, not vLLM, for gpt_oss: a weight sync does not reach its experts"
    )
    with pytest.raises(ConfigError, match=r"generate\.backend: vllm cannot run gpt_oss here: .* use backend: tran"):
        engines.backend_for(str(tmp_path), Model(), Generate(backend="vllm"))
    for name in ("qwen3", "qwen3-moe"):
        (tmp_path / "config.json").write_text(json.dumps(config_json(name)))
        assert engines.backend_for(str(tmp_path), Model(), Generate()) == "vllm"


PROBLEMS = ("qwen2-moe", "qwen3-moe", "qwen3-next", "qwen3.5", "granite4-hybrid", "lfm2", "falcon-h1", "nemotron-h",
            "mamba2", "gpt-oss", "mixtral", "deepseek-v3", "qwen3.5-vision", "gemma2", "gemma3n",
            "gemma3-vision", "mistral3-vision")  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_plan_says_of_a_family_what_a_run_then_does(tmp_path, monkeypatch, capsys, name, dtype: Any):
    """From config.json alone; its checkpoint is in float32, which `auto` keeps."""
    pytest.importorskip("vllm")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "config.json").write_text(json.dumps({**config_json(name), "dtype": "float32"}))
    config = write_config(tmp_path / "c", tmp_path)
    cfg, _ = read(str(config), [f"model.dtype={dtype}", "generate.backend=auto"])
    assert cfg is not None
    fields = families.read_config(str(tmp_path))
    assert fields is not None
    said = families.line(fields, dtype=precision(cfg, fields), attn="sdpa", gpu=False)
    engines._printed.clear()
    resolved = str(precision_of(str(tmp_path), cfg.model)).removeprefix("torch.")
    backend = engines.backend_for(str(tmp_path), replace(cfg.model, dtype=cast(Any, resolved)), cfg.generate)
    reported = capsys.readouterr().out.strip()
    if backend == "vllm":
        assert "rollouts by vLLM where it is installed" in said and not reported
    else:
        cause = reported.partition(f"for {families.family_of(fields)}: ")[2]
        assert cause and f"rollouts by transformers, not vLLM: {cause}" in said
    with torch.device("meta"):
        taken = families.attention(fields, "sdpa")
        AutoModelForCausalLM.from_config(make_config(FAMILIES[name], make_tokenizer(FAMILIES[name])).get_text_config(),
                                         attn_implementation=taken)  # fmt: skip
    assert f"attention {taken}" in said


@pytest.mark.parametrize(
    ("fields", "line"),
    [({"model_type": "rwkv"}, "rwkv computes other log-probs"), ({"model_type": "t5"}, "t5 is no family that"),
     ({"model_type": "t5gemma"}, "t5gemma is no family that")],
)  # fmt: skip
def test_plan_and_run_refuse_a_family_with_one_and_the_same_line(tmp_path, capsys, fields, line):
    model = tiny_model(tmp_path / "m")
    (model / "config.json").write_text(json.dumps({**json.loads((model / "config.json").read_text()), **fields}))
    capsys.readouterr()
    assert plan(tmp_path, model) == 2
    planned = capsys.readouterr().err
    assert run_stage(tmp_path, model, "grpo") == 2
    assert capsys.readouterr().err == planned and f"model.path: {line}" in planned and planned.count("\n") == 1


def test_the_cause_of_a_failed_start_is_the_line_that_names_it():
    text = (
        "1 validation error for VllmConfig\n  Assertion failed, Chunked prefill is required for mamba cache mode "
        "'align'. [type=assertion_error, input_value=ArgsKwargs(())]\n    For further information visit "
        "https://errors.pydantic.dev/2.14/v/assertion_error"
    )
    assert engines.cause_of(ValueError(text)) == "Chunked prefill is required for mamba cache mode 'align'."
    assert engines.cause_of(RuntimeError("no space left")) == "no space left"
    assert engines.cause_of(KeyError()) == "KeyError"


# --- refused from config.json ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "quantization", "line"),
    [
        ({"model_type": "t5"}, None, "t5 is no family that transformers loads as a language model"),
        ({"model_type": "rwkv"}, None, "rwkv computes other log-probs for a row that is padded"),
        ({"model_type": "gpt2"}, "nf4", "gpt2 cannot be kept in 4 bits"),
        ({"model_type": "gpt2"}, None, None),
        ({"model_type": "mistral3", "text_config": {"model_type": "ministral3"}}, None, None),
        ({"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text"}}, None, None),
    ],
)
def test_a_family_that_cannot_be_trained_is_refused_in_one_line(fields, quantization, line):
    found = families.mistakes(fields, quantization=quantization)
    assert found == [] if line is None else len(found) == 1 and found[0].startswith(line)


@pytest.mark.parametrize("name", ["rwkv", "mamba2", "lfm2", "gemma3", "qwen2"])
def test_padding_moves_the_log_probs_of_the_families_that_are_refused_for_it_and_of_no_other(name):
    """Five tokens of padding on the left of a row of twenty; RWKV moves by nats."""
    family = FAMILIES[name]
    config = make_config(family, make_tokenizer(family))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=families.attention(config.to_dict(), "sdpa"))
    perturb(model.eval(), seed=1)
    ids = torch.arange(20, 40)[None]
    padding = torch.full((1, 5), config.pad_token_id)
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(ids)], dim=1)
    with torch.no_grad():
        alone = model(ids).logits.log_softmax(-1)
        positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if name in ("gemma3", "qwen2", "lfm2") else {}
        padded = model(torch.cat([padding, ids], dim=1), attention_mask=mask, **positions).logits.log_softmax(-1)
    gap = float((alone - padded[:, 5:]).abs().max())
    assert gap > 0.1 if config.model_type in families.PADDING_SENSITIVE else gap < 1e-4


def plan(tmp_path: Path, model: Path, *words: str) -> int:
    return main(["plan", str(write_config(tmp_path, model)), f"runs_dir={tmp_path}", "trial=false", *words])


@pytest.mark.parametrize(
    ("peft", "key"),
    [
        ("{r: 1, target_modules: [q_proj], bias: all}", "bias: all"),
        ("{r: 1, target_modules: [q_proj], lora_bias: true}", "lora_bias: "),
        ("{r: 1, target_modules: [q_proj], trainable_token_indices: [5]}", "trainable_token_indices: "),
        ("{r: 1, target_modules: [q_proj, embed_tokens]}", "target_modules: embed_tokens is tied"),
    ],
)
def test_plan_refuses_an_adapter_that_cannot_be_merged(tmp_path, capsys, peft, key):
    assert plan(tmp_path, tiny_model(tmp_path / "m"), f"grpo.peft={peft}") == 2
    assert f"grpo.peft.{key}" in capsys.readouterr().err


def test_plan_accepts_embeddings_in_modules_to_save_of_a_tied_model(tmp_path, capsys):
    peft = "{r: 2, target_modules: [q_proj], modules_to_save: [embed_tokens, lm_head]}"
    assert plan(tmp_path, tiny_model(tmp_path / "m"), f"grpo.peft={peft}") == 0


def test_plan_says_what_config_json_says_before_anything_is_loaded(tmp_path, capsys):
    assert plan(tmp_path, tiny_model(tmp_path / "m")) == 0
    assert capsys.readouterr().out.startswith("model: qwen2; attention sdpa; rollouts by transformers\n")
    moe = families.line(config_json("granite4-hybrid"), dtype="float32", attn="sdpa", gpu=False)
    assert moe.startswith("model: granitemoehybrid (mixture of experts, recurrent layers); attention sdpa; rollouts by "
                          "transformers, not vLLM: its CPU kernels for recurrent layers have no float32")  # fmt: skip
    assert "not vLLM" not in families.line(config_json("granite4-hybrid"), dtype="float32", attn="sdpa", gpu=True)


def test_plan_warns_where_vllm_computes_another_model():
    """Cohere 2 at a window of 16: the gap of the canary is 0.009 nats, of other families 4e-7."""
    said = families.line(config_json("cohere2"), dtype="float32", attn="sdpa", gpu=False)
    assert "vLLM's sliding window is one token longer than that of transformers" in said
    assert "window" not in families.line(config_json("cohere2"), dtype="float32", attn="sdpa", gpu=False,
                                         backend="transformers")  # fmt: skip
    assert "window" not in families.line(config_json("olmo3"), dtype="float32", attn="sdpa", gpu=False)


def test_plan_wants_demonstrations_that_the_template_can_render_only_where_a_stage_imitates_them(tmp_path, capsys):
    template = tmp_path / "no_answers.jinja"
    template.write_text("{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no answers') }}"
                        "{% endif %}{{ m.content }}{% endfor %}")  # fmt: skip
    model = tiny_model(tmp_path / "m")
    words = ("prompts.chat=true", f"model.chat_template={template}")
    assert plan(tmp_path, model, *words) == 0
    capsys.readouterr()
    assert plan(tmp_path, model, *words, "stages=[sft]", f"sft.policy={model}") == 2
    assert "no answers" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "grpo"])
def test_a_folder_with_an_adapter_alone_is_refused_as_a_model(tmp_path, capsys, command):
    model = tiny_model(tmp_path / "m")
    (model / "config.json").unlink()
    (model / "adapter_config.json").write_text("{}")
    assert (plan(tmp_path, model) if command == "plan" else run_stage(tmp_path, model, "grpo")) == 2
    assert "holds a LoRA adapter, not a model" in capsys.readouterr().err


# --- checkpoints that also see --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mistral3-vision", "qwen3-vl", "gemma3-vision", "qwen3.5-vision"])
def test_a_checkpoint_that_also_sees_is_loaded_and_trained_for_its_text(tmp_path, name):
    save(FAMILIES[name], tmp_path / "m")
    model = models.load_policy(str(tmp_path / "m"), Model())
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert all("vision" in n or "visual" in n or "multi_modal" in n for n in frozen)
    assert any("q_proj" in n for n, p in model.named_parameters() if p.requires_grad)
    models.save(model, models.load_tokenizer(str(tmp_path / "m"), Model()), tmp_path / "s")  # compares by itself


@pytest.mark.stages
@pytest.mark.parametrize("name", ["granite-moe", "granite4-dense"])
def test_sft_of_granite_runs_though_trl_cannot_compute_its_load_balancing_loss(name):
    """Their configs have no `num_experts`, which TRL reads; without this SFT ended in an AttributeError."""
    assert family_runs.try_family(name, backend="transformers", parts=["sft"]) == {"sft": True}
