"""LoRA on a policy: put on, read as merged weights, switched off to be the reference. The base is never written to.

The base may be kept in 4 bits (QLoRA, arXiv:2305.14314 section 3). Whoever reads merged weights, a generator or a
checkpoint, gets what the trainer multiplies with: the 4 bits read back, the adapter's share added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pipeline.config.load import ConfigError
from pipeline.distributed import sharding


def add_lora(model: Any, settings: Mapping[str, Any], *, where: str) -> Any:
    """The model under a fresh adapter that changes nothing yet. settings: fields of peft's LoraConfig.

    Raises ConfigError for what peft refuses, and for an adapter that a generator could not be given as plain weights.
    """
    from peft import LoraConfig, get_peft_model

    try:
        config = LoraConfig(**{"task_type": "CAUSAL_LM", **settings})
        wrapped = get_peft_model(model, config)
    except (ValueError, TypeError) as exc:
        raise ConfigError([f"{where}.peft: {' '.join(str(exc).split())}"]) from exc
    if getattr(config, "use_dora", False):
        raise ConfigError([f"{where}.peft.use_dora: its weights cannot be pushed as base plus adapter; leave it out"])
    if getattr(model.config, "tie_word_embeddings", False):
        touched = {name.split(".")[-1] for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
        touched |= set(config.modules_to_save or [])
        tied = sorted(touched & {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out"})
        if tied:
            raise ConfigError(
                [f"{where}.peft: {tied[0]} is tied (embedding and head are one tensor), and an adapter on it would "
                 "untie them; leave it out of target_modules and modules_to_save"]
            )  # fmt: skip
    return wrapped


def is_adapted(model: Any) -> bool:
    return hasattr(model, "get_base_model") and hasattr(model, "disable_adapter")


def base_of(model: Any) -> Any:
    """The causal model itself, under an adapter or not; the adapter's layers are in it."""
    return model.get_base_model() if is_adapted(model) else model


@torch.no_grad()
def merged_weights(model: Any) -> dict[str, torch.Tensor]:
    """Every weight of the base by its own name, whole, the adapter's share added.

    Summed aside: merging in place and unmerging again would wear the base down by rounding, step after step.
    """
    base, adapter = model.get_base_model(), model.active_adapter
    weights = {
        name.replace(".base_layer.", ".").replace(f".modules_to_save.{adapter}.", "."): plain(parameter)
        for name, parameter in base.named_parameters()
        if "lora_" not in name and ".original_module." not in name
    }
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight") and adapter in getattr(module, "scaling", {}):
            with sharding.gathered(module.parameters()):
                delta = sharding.whole(module.get_delta_weight(adapter))
            weight = weights[f"{name}.weight"]
            weights[f"{name}.weight"] = (weight.float() + delta.float()).to(weight.dtype)
    return weights


def plain(parameter: Any) -> torch.Tensor:
    """A weight as numbers, whole: read back from 4 bits, gathered where it is cut."""
    if type(parameter).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        read_back: torch.Tensor = dequantize_4bit(parameter.data, parameter.quant_state)
        return read_back
    whole: torch.Tensor = sharding.whole(parameter)
    return whole.detach()


__all__ = ["add_lora", "base_of", "is_adapted", "merged_weights", "plain"]
