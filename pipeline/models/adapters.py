"""LoRA on a policy: add it, read merged weights, switch it off to get the reference. The base is never written to.

The base may be kept in 4 bits (QLoRA, arXiv:2305.14314 section 3). A generator or a checkpoint gets what the trainer
multiplies with: the dequantized base plus the adapter's delta.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pipeline.config.load import ConfigError
from pipeline.distributed import sharding
from pipeline.models import families
from pipeline.models.families import EMBEDDINGS, lora_mistakes


def lora_config(model: Any, settings: Mapping[str, Any], *, task: str = "CAUSAL_LM", key: str) -> Any:
    """peft's LoraConfig for this model; every stage that trains an adapter gets it from here.

    Where embedding and head are tied and `modules_to_save` names one, both stay one tensor (`ensure_weight_tying`),
    unless the YAML says otherwise. Raises ConfigError for what peft or `lora_mistakes` refuses.
    """
    from peft import LoraConfig

    lines = lora_mistakes(settings)
    if lines:
        raise ConfigError([f"{key}.peft.{line}" for line in lines])
    fields = {"task_type": task, **settings}
    if is_tied(model) and set(settings.get("modules_to_save") or ()) & set(EMBEDDINGS):
        fields.setdefault("ensure_weight_tying", True)
    skipped = families.WITHOUT_ADAPTER.get(model.config.get_text_config().model_type)
    if skipped and fields.get("target_modules") == "all-linear":
        fields.setdefault("exclude_modules", skipped)
    try:
        return LoraConfig(**fields)
    except (ValueError, TypeError) as exc:
        raise ConfigError([f"{key}.peft: {' '.join(str(exc).split())}"]) from exc


def add_lora(model: Any, settings: Mapping[str, Any], *, key: str, task: str = "CAUSAL_LM") -> Any:
    """The model under a new adapter that changes nothing yet. settings: fields of peft's LoraConfig.

    Raises ConfigError for what peft refuses, and for an adapter that cannot be merged into the model.
    """
    from peft import get_peft_model

    config = lora_config(model, settings, task=task, key=key)
    try:
        adapted = get_peft_model(model, config)
    except (ValueError, TypeError) as exc:
        raise ConfigError([f"{key}.peft: {' '.join(str(exc).split())}"]) from exc
    check_tied(adapted, key=key)
    return adapted


def check_tied(adapted: Any, *, key: str) -> None:
    """Raises ConfigError where LoRA lies on a tensor that embedding and head share: the merged tensor could not be the
    embedding with one delta and the head with another."""
    base = base_of(adapted)
    if not is_tied(base):
        return
    both = {id(base.get_input_embeddings()), id(base.get_output_embeddings())}
    for name, module in base.named_modules():
        if id(module) in both and hasattr(module, "get_delta_weight"):
            raise ConfigError(
                [f"{key}.peft: {name.split('.')[-1]} is tied (embedding and head are one tensor), and LoRA on it would "
                 "save another model than it trained; remove it from target_modules, or train it in full with "
                 "modules_to_save: [embed_tokens, lm_head]"]
            )  # fmt: skip


def is_tied(model: Any) -> bool:
    """Whether embedding and head are one tensor."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return bool(getattr(config, "tie_word_embeddings", False)) and not hasattr(model, "score")


def is_adapted(model: Any) -> bool:
    return hasattr(model, "get_base_model") and hasattr(model, "disable_adapter")


def base_of(model: Any) -> Any:
    """The causal model itself, under an adapter or not; the adapter's layers are in it."""
    return model.get_base_model() if is_adapted(model) else model


def trained_module(module: Any) -> Any:
    """The copy that the adapter trains where `modules_to_save` made one; else the module itself."""
    copies = getattr(module, "modules_to_save", None)
    return copies[module.active_adapters[0]] if copies else module


@torch.no_grad()
def merged_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the base, tensor) of every parameter and persistent buffer, gathered, the adapter's delta added.

    Added into new tensors: merging in place and unmerging again would change the base by rounding at every step.
    """
    base, adapter = model.get_base_model(), model.active_adapter
    deltas: dict[str, list[Any]] = {}
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight") and adapter in getattr(module, "scaling", {}):
            target = getattr(module, "parameter_name", "weight")  # fused experts are adapted by parameter
            deltas.setdefault(name_in_base(f"{name}.{target}", adapter), []).append(module)
    seen: set[int] = set()
    buffers = ((f"{m}.{n}" if m else n, b) for m, module in base.named_modules() for n, b in module._buffers.items()
               if b is not None and n not in module._non_persistent_buffers_set)  # fmt: skip
    for named in (base.named_parameters(remove_duplicate=False), buffers):
        for name, tensor in named:
            if ".lora_" in name or ".original_module." in name or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            in_base = name_in_base(name, adapter)
            yield in_base, _plus(plain(tensor), deltas.get(in_base, ()), adapter)


def name_in_base(name: str, adapter: str) -> str:
    """A parameter's name without what peft put around its module; adapters of several parameters lie in each other."""
    parts = name.replace(f".modules_to_save.{adapter}.", ".").split(".")
    return ".".join(part for part in parts if part != "base_layer")


def _plus(weight: torch.Tensor, modules: Any, adapter: str) -> torch.Tensor:
    for module in modules:
        with sharding.gathered(module.parameters()):
            delta = sharding.full(module.get_delta_weight(adapter))
        weight = (weight.float() + delta.float()).to(weight.dtype)
    return weight


def plain(parameter: Any) -> torch.Tensor:
    """A weight as numbers, in full: dequantized from 4 bits, gathered where it is sharded."""
    if type(parameter).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        dequantized: torch.Tensor = dequantize_4bit(parameter.data, parameter.quant_state)
        return dequantized
    full: torch.Tensor = sharding.full(parameter)
    return full.detach()


__all__ = [
    "add_lora", "base_of", "check_tied", "is_adapted", "is_tied", "lora_config", "merged_weights",
    "plain", "trained_module",
]  # fmt: skip
