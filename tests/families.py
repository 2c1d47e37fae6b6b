"""Tiny random models of real architectures, with the shapes of their chat templates, saved as the Hub saves them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# a thinking model: an answer without thoughts still carries the empty tags, and the prompt does when thinking is off
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Family:
    """model_type: as transformers names it. end: the token that ends a turn. eos: the tokenizer's own."""

    model_type: str
    template: str
    special: tuple[str, ...]
    end: str
    eos: str
    bos: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "qwen2": Family("qwen2", CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>",
                    config={"tie_word_embeddings": True}),
    "qwen3": Family("qwen3", THINKING, ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
                    "<|im_end|>", "<|im_end|>", config={"tie_word_embeddings": True}),
    "llama": Family("llama", HEADERS, ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                       "<|end_header_id|>", "<|eot_id|>"),
                    "<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>", {"tie_word_embeddings": False}),
    "gemma2": Family("gemma2", TURNS, ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
                     "<end_of_turn>", "<eos>", "<bos>",
                     {"sliding_window": 16, "query_pre_attn_scalar": 32, "attn_logit_softcapping": None}),
    "smollm3": Family("smollm3", CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|im_end|>", "<|im_end|>"),
}  # fmt: skip


def save(family: Family, place: Path, *, seed: int = 0) -> None:
    """Model, tokenizer with the template, and a generation config that names every end token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    written = "".join(map(chr, range(32, 127))) + "\n"
    tokens = dict.fromkeys("".join(piece for piece, _ in byte_level.pre_tokenize_str(written)))
    vocab = {token: i for i, token in enumerate([*family.special, *tokens])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer, backend.decoder = byte_level, decoders.ByteLevel()
    pad = "<pad>" if "<pad>" in vocab else family.special[0]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos, pad_token=pad,
        additional_special_tokens=[t for t in family.special if "think" not in t],
    )  # fmt: skip
    tokenizer.chat_template = family.template
    config = AutoConfig.for_model(
        family.model_type, vocab_size=len(vocab), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32, max_position_embeddings=256,
        pad_token_id=vocab[pad], bos_token_id=vocab.get(family.bos or ""), eos_token_id=vocab[family.eos],
        **family.config,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = sorted({vocab[family.eos], vocab[family.end]})
    model.generation_config.temperature, model.generation_config.do_sample = 0.3, True  # must not leak into sampling
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
