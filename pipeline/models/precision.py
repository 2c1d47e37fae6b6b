"""The precision a model is loaded, sampled and multiplied in: one answer, for the trainer and for its generator."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from pipeline.config.schema import Model
from pipeline.models.model_dir import is_large


def precision_of(path: str, model: Model) -> torch.dtype:
    """What the weights at a path, or of a Hub id, are loaded in.

    `auto`: bfloat16 for a large model where the machine multiplies it several times as fast as float32; float32 for a
    large model saved in bfloat16 on a CPU that does not, since there it takes three times as long; else what the
    checkpoint is saved in.
    """
    if model.dtype != "auto":
        return getattr(torch, model.dtype)
    saved = saved_precision(path)
    if not is_large(path):
        return saved
    if multiplies_bfloat16():
        return torch.bfloat16
    on_cpu = not torch.cuda.is_available()
    return torch.float32 if on_cpu and saved == torch.bfloat16 else saved


def saved_precision(path: str) -> torch.dtype:
    """What the config of a checkpoint names; float32 where it names nothing."""
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(path)
    names = [part.get(key) for part in (config, config.get("text_config", {})) for key in ("dtype", "torch_dtype")]
    return getattr(torch, next((str(name) for name in names if name), "float32"))


@cache
def multiplies_bfloat16() -> bool:
    """Whether this machine's matrix products are much faster in bfloat16: a GPU from Ampere on, AMX or AVX512-BF16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    named: Any = torch.cpu
    return any(
        getattr(named, name, bool)() for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    )  # torch has no public name for them; without these names: no
