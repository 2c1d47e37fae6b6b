"""Tiny random models of real families, saved as the Hub saves them, with the chat templates that TRL ships.

Whatever a real checkpoint sets is set here too: soft caps and windows are on, every weight and persistent buffer is off
its default, newlines merge in the tokenizer. A default that a save or a sync loses would otherwise not be noticed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COMMON = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 256,
}  # fmt: skip
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """model_type: as transformers names it. template: a file of TRL's, or a template. end: the token that ends a turn.
    eos: the tokenizer's own. vision: the config of a tower around the text part. drop: common fields it has not."""

    model_type: str
    template: str = "chatml"
    end: str = "<|im_end|>"
    eos: str = "<|im_end|>"
    bos: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] | None = None


def _llama(model_type: str, **config: Any) -> Family:
    return Family(model_type, "llama3_2", "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>", config)


def _gemma(model_type: str, template: str = "gemma", end: str = "<end_of_turn>", **config: Any) -> Family:
    return Family(model_type, template, end, "<eos>", "<bos>", config)


MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_d_conv": 4,
         "mamba_expand": 2, "mamba_chunk_size": 16}  # fmt: skip
# heads of 128 as in released checkpoints; vLLM's kernels on a CPU refuse 32
GDN = {"linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
       "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
WINDOWS: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}

FAMILIES: dict[str, Family] = {
    "qwen2": Family("qwen2", "qwen2_5", config={"tie_word_embeddings": True}),
    "qwen2-r1": Family("qwen2", "deepseek_r1_distill", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
                       "<｜begin▁of▁sentence｜>"),
    "qwen2-moe": Family("qwen2_moe", "qwen2_5", config={**MOE, "shared_expert_intermediate_size": 32}),
    "qwen3": Family("qwen3", "qwen3", config={"tie_word_embeddings": True}),
    "qwen3-2507": Family("qwen3", "qwen3_instruct_2507"),
    "qwen3-moe": Family("qwen3_moe", "qwen3", config=MOE),
    "qwen3-next": Family("qwen3_next", "qwen3", config={**MOE, **GDN, "shared_expert_intermediate_size": 32}),
    "qwen3.5": Family("qwen3_5_text", "qwen3_5_think", config={**GDN, "tie_word_embeddings": True}),
    "qwen3.5-moe": Family("qwen3_5_moe_text", "qwen3_5_think",
                          config={**MOE, **GDN, "shared_expert_intermediate_size": 32}),
    "llama": _llama("llama", tie_word_embeddings=False),
    "gemma": _gemma("gemma", tie_word_embeddings=True),
    "gemma2": _gemma("gemma2", query_pre_attn_scalar=32, attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
                     **WINDOWS),
    "gemma3": _gemma("gemma3_text", "gemma3", query_pre_attn_scalar=32, **WINDOWS),
    "gemma3n": _gemma("gemma3n_text", "gemma3", hidden_size_per_layer_input=16, vocab_size_per_layer_input=64,
                      laurel_rank=8, num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0],
                      intermediate_size=[128, 128], final_logit_softcapping=30.0, **WINDOWS),
    "gemma4": _gemma("gemma4_text", "gemma4_v5", "<turn|>", hidden_size_per_layer_input=16, global_head_dim=32,
                     vocab_size_per_layer_input=64, num_kv_shared_layers=0, final_logit_softcapping=30.0, **WINDOWS),
    "smollm3": Family("smollm3", config={"no_rope_layers": [1, 0]}),
    "granite": Family("granite", config={"logits_scaling": 4.0, "residual_multiplier": 0.5,
                                         "attention_multiplier": 0.2, "embedding_multiplier": 2.0}),
    "granite-moe": Family("granitemoe", config={**MOE, "logits_scaling": 4.0}),
    "granite4-hybrid": Family("granitemoehybrid", config={**MOE, **MAMBA, "shared_intermediate_size": 64,
                                                          "layer_types": ["mamba", "attention"]}),
    "granite4-dense": Family("granitemoehybrid", config={"num_local_experts": 0, "num_experts_per_tok": 0, **MAMBA,
                             "shared_intermediate_size": 64, "layer_types": ["attention", "attention"]}),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo3", config=WINDOWS),
    "olmoe": Family("olmoe", config=MOE),
    "mistral": Family("mistral", config={"sliding_window": 16}),
    "ministral3": Family("ministral3", config={"sliding_window": None}),
    "mixtral": Family("mixtral", config=MOE),
    "phi3": Family("phi3", "phi3_5", "<|end|>", "<|endoftext|>", config={"sliding_window": 262_144}),
    "phimoe": Family("phimoe", "phi3_5", "<|end|>", "<|endoftext|>", config=MOE),
    "exaone4": Family("exaone4", config={**WINDOWS, "sliding_window_pattern": "LG"}),
    "hunyuan": Family("hunyuan_v1_dense"),
    "ernie4.5": Family("ernie4_5"),
    "ernie4.5-moe": Family("ernie4_5_moe", config={**MOE, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1,
                                                   "moe_num_shared_experts": 1}),
    "arcee": Family("arcee"),
    "glm4": Family("glm4", "glm4moe", "<|user|>", "<|endoftext|>"),
    "glm4-moe": Family("glm4_moe", "glm4moe", "<|user|>", "<|endoftext|>",
                       config={**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
                               "n_group": 1, "topk_group": 1}),
    "starcoder2": Family("starcoder2", config={"sliding_window": 16}),
    "bitnet": Family("bitnet"),
    "gpt2": Family("gpt2", config={"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    # a backend that reads the number of key heads from any config takes it from here; these models have one per head
    "pythia": Family("gpt_neox", config={"tie_word_embeddings": False, "num_key_value_heads": 2}),
    "cohere": Family("cohere", "cohere", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>",
                     {"logit_scale": 0.25}),
    "cohere2": Family("cohere2", "cohere2", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>",
                      {"logit_scale": 0.25, "max_position_embeddings": 2048, **WINDOWS}),
    "lfm2": Family("lfm2", "lfm2_v2", bos="<|startoftext|>",
                   config={"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False,
                           "conv_dim": 64, "block_dim": 64}),  # which released checkpoints name, and vLLM reads
    "lfm2-moe": Family("lfm2_moe", "lfm2_v2", bos="<|startoftext|>",
                       config={**MOE, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "falcon-h1": Family("falcon_h1", config={**MAMBA, "mamba_d_ssm": 128, "lm_head_multiplier": 0.5}),
    "nemotron-h": Family("nemotron_h", "nemotron_3_nano", config={
        "layers_block_type": ["mamba", "attention", "mlp"], "num_hidden_layers": 3, "mamba_num_heads": 4,
        "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 1, "conv_kernel": 4, "chunk_size": 16}),
    "apertus": Family("apertus"),
    "gpt-oss": Family("gpt_oss", "gptoss", "<|return|>", "<|return|>",
                      config={**MOE, "max_position_embeddings": 1024, **WINDOWS}),
    "deepseek-v3": Family("deepseek_v3", "deepseekv3", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
                          "<｜begin▁of▁sentence｜>",
                          {**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
                           "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc", "q_lora_rank": 16,
                           # 512 + 64 numbers per token of the cache, the one size of vLLM's kernel for CPUs
                           "kv_lora_rank": 512, "qk_rope_head_dim": 64, "head_dim": 64,
                           "qk_nope_head_dim": 16, "v_head_dim": 32, "num_key_value_heads": 2}),
    "seed-oss": Family("seed_oss"),
    "mamba2": Family("mamba2", config={"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1,
                                       "chunk_size": 16}),
    "rwkv": Family("rwkv", config={"attention_hidden_size": 64, "context_length": 256}),
    "gemma3-vision": _gemma("gemma3", "gemma3", query_pre_attn_scalar=32, **WINDOWS),
    "mistral3-vision": Family("mistral3", config={"sliding_window": None}),
    "qwen3-vl": Family("qwen3_vl", "qwen3_vl", config={"tie_word_embeddings": True}),
    "qwen3.5-vision": Family("qwen3_5", "qwen3_5_think", config=GDN),
}  # fmt: skip

# run by the ordinary tests: soft caps (gemma2), persistent buffers (gemma4), renamed weights (pythia), experts (olmoe),
# layers with a state (lfm2)
FAST = ("qwen2", "qwen3", "llama", "gemma2", "gemma4", "pythia", "olmoe", "lfm2")


def chat_template(name: str) -> str:
    """The text of a template that TRL ships; our ChatML for families of which it ships none."""
    if name == "chatml":
        return CHATML
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()


def special_tokens(family: Family, template: str) -> list[str]:
    """Every marker that the template writes, and the tokens that the tokenizer is made with."""
    written = re.findall(r"<\|?[A-Za-z_｜▁]+\|?>|</think>", template)
    extra = [t for t in written if "|" in t or "｜" in t or t in ("<think>", "</think>", "<start_of_turn>",
                                                                  "<end_of_turn>")]  # fmt: skip
    return list(dict.fromkeys(["<pad>", *[t for t in (family.bos, family.eos, family.end) if t], *extra]))


def make_tokenizer(family: Family) -> Any:
    """Byte-level BPE over printable characters with one merge, of two newlines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    template = chat_template(family.template)
    special = special_tokens(family, template)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    written = "".join(map(chr, range(32, 127))) + "\n"
    tokens = dict.fromkeys("".join(piece for piece, _ in byte_level.pre_tokenize_str(written)))
    newline = byte_level.pre_tokenize_str("\n")[0][0]
    vocab = {token: i for i, token in enumerate([*special, *tokens, newline * 2])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[(newline, newline)]))
    backend.pre_tokenizer, backend.decoder = byte_level, decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos, pad_token="<pad>",
        additional_special_tokens=[t for t in special if "think" not in t],
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def make_config(family: Family, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    vocab = tokenizer.get_vocab()
    size = -(-len(vocab) // 64) * 64
    ids = {"vocab_size": size, "pad_token_id": vocab["<pad>"], "bos_token_id": vocab.get(family.bos or ""),
           "eos_token_id": vocab[family.eos]}  # fmt: skip
    fields = {**COMMON, **ids, **family.config}
    if "vocab_size_per_layer_input" in fields:
        fields["vocab_size_per_layer_input"] = size
    text = {"gemma3": "gemma3_text", "mistral3": "ministral3", "qwen3_vl": "qwen3_vl_text", "qwen3_5": "qwen3_5_text"}
    if family.model_type not in text:
        return AutoConfig.for_model(family.model_type, **_known(family.model_type, fields))
    inner = {**_known(text[family.model_type], fields), "model_type": text[family.model_type]}
    tied = {name: fields[name] for name in ("tie_word_embeddings",) if name in family.config}
    return AutoConfig.for_model(
        family.model_type, text_config=inner, vision_config=_vision(family.model_type), **tied,
        **{name: size - 1 - i for i, name in enumerate(("image_token_index", "image_token_id", "video_token_id"))},
    )  # fmt: skip


def _vision(model_type: str) -> dict[str, Any]:
    if model_type == "mistral3":
        return {**VISION, "model_type": "pixtral", "head_dim": 16}
    if model_type == "gemma3":
        return {**VISION, "model_type": "siglip_vision_model"}
    return {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
            "patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}  # fmt: skip


def _known(model_type: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Without common fields that this family's config computes itself, or does not have."""
    computed = {"gpt2": ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
                         "intermediate_size", "num_key_value_heads", "head_dim"),
                "mamba2": ("intermediate_size",), "phimoe": ("moe_intermediate_size",)}.get(model_type, ())  # fmt: skip
    from transformers import AutoConfig

    own = AutoConfig.for_model(model_type)
    computed += tuple(name for name in ("num_experts", "num_local_experts") if not hasattr(own, name))
    return {name: value for name, value in fields.items() if name not in computed}


def perturb(model: Any, *, seed: int, scale: float = 0.1) -> None:
    """Every parameter and persistent floating buffer off its present value, in place; large enough to be seen in
    log-probs, small enough that nothing overflows."""
    import torch

    from pipeline.models.weights import persistent_buffers

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in [*model.named_parameters(), *persistent_buffers(model)]:
            if tensor.is_floating_point():
                tensor.add_(scale * torch.randn(tensor.shape, generator=generator).to(tensor))


def save(family: Family, path: Path, *, seed: int = 0) -> None:
    """Model, tokenizer with the template, and a generation config that names every end token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    tokenizer = make_tokenizer(family)
    config = make_config(family, tokenizer)
    torch.manual_seed(seed)
    sees = hasattr(config, "vision_config")
    model = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_config(config)
    perturb(model, seed=seed)
    vocab = tokenizer.get_vocab()
    model.generation_config.eos_token_id = sorted({vocab[family.eos], vocab[family.end]})
    model.generation_config.temperature, model.generation_config.do_sample = 0.3, True  # must not leak into sampling
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
