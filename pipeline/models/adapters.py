"""LoRA on a policy: settings that peft and the family allow, and the model under a new adapter.

The base may be kept in 4 bits (QLoRA, arXiv:2305.14314 section 3). It is never written to; weights.py gives the merged
weights, and update/reference.py switches the adapter off to get the reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.models import families
from pipeline.models.families import EMBEDDINGS, lora_mistakes
from pipeline.models.weights import base_of


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


__all__ = ["add_lora", "check_tied", "is_tied", "lora_config"]
