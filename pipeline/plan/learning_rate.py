"""Advice on learning rates, from the size of the model and whether LoRA is trained; shown by `plan`, never applied.

Source: tinker-cookbook's hyperparam_utils.get_lr, fitted by its authors to supervised runs over models of two families:
    5e-5 * (2000 / hidden size)^p, ten times as much under LoRA; p = 0.781 for Llama, 0.0775 for Qwen.
That LoRA wants ten times the rate of full training, for reinforcement learning too and at any rank as long as
alpha / rank is the adapter's only scale, is from "LoRA Without Regret", thinkingmachines.ai/blog/lora (2025). Policy
gradients have no fitted formula there: only the factor is used for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config.load import Config
from pipeline.config.schema import KINDS, Policy, trains_adapter
from pipeline.models import families

BASE, LORA_FACTOR, WIDTH = 5e-5, 10.0, 2000
EXPONENTS = {"llama": 0.781, "qwen": 0.0775}
FAR = 10.0  # a rate this many times off is worth a line


def advised(fields: Mapping[str, Any], *, lora: bool) -> float | None:
    """Learning rate of supervised training for a config.json; None for a family without a fitted exponent."""
    family, hidden = families.family_of(fields), families.text_fields(fields).get("hidden_size")
    exponent = next((p for name, p in EXPONENTS.items() if family.startswith(name)), None)
    if exponent is None or not isinstance(hidden, int) or hidden < 1:
        return None
    return BASE * (LORA_FACTOR if lora else 1.0) * (WIDTH / hidden) ** exponent


def advice(cfg: Config, fields: Mapping[str, Any]) -> list[str]:
    """A line for each stage whose rate is far from the advice, or that trains an adapter at a rate for all weights."""
    out = []
    for name in cfg.stages:
        block = cfg.blocks[name]
        lora = trains_adapter(block)
        if isinstance(block, Policy):
            rate = block.optimizer.learning_rate
            if lora and rate <= 1e-6 * (1 + 1e-9):  # the default, which is meant for all weights
                out.append(f"{name}: an adapter learns at about {LORA_FACTOR:.0f} times the rate of all weights, at "
                           f"any rank; optimizer.learning_rate is {rate:g}, consider {10 * rate:g}")  # fmt: skip
            continue
        given, suggested = getattr(block, "trainer", {}).get("learning_rate"), advised(fields, lora=lora)
        if KINDS[block.kind].name != "sft" or given is None or suggested is None:
            continue
        if not suggested / FAR <= float(given) <= suggested * FAR:
            kind = "LoRA" if lora else "all weights"
            family, hidden = families.family_of(fields), families.text_fields(fields)["hidden_size"]
            out.append(f"{name}: trainer.learning_rate {float(given):g} is far from {suggested:.1e}, which fits "
                       f"supervised training of {kind} of {family} with hidden size {hidden}")  # fmt: skip
    return out
