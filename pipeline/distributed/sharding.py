"""Parallelism mode requested by the launcher: one copy per device (DDP), or sharded (FSDP2, ZeRO-2, ZeRO-3).

`accelerate launch --config_file configs/accelerate/NAME.yaml` sets it in the environment; under torchrun alone it is
DDP. What is not supported is refused here, before anything loads.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from pipeline.config.install_hint import install_command
from pipeline.config.load import ConfigError

MODES = ("ddp", "fsdp2", "zero2", "zero3")
SHARDED = ("fsdp2", "zero2", "zero3")  # modes in which no rank holds all of what it trains


def mode(environ: Mapping[str, str] | None = None) -> str:
    """One of MODES. Raises ConfigError for FSDP1, another ZeRO stage, Megatron, or DeepSpeed that is not installed."""
    environ = os.environ if environ is None else environ
    if _on(environ, "ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError(["launched for Megatron-LM, which no stage supports; use one of configs/accelerate/"])
    if _on(environ, "ACCELERATE_USE_FSDP"):
        version = environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise ConfigError([f"launched with fsdp_version {version}: only 2 is supported; set fsdp_version: 2, as "
                               "configs/accelerate/fsdp2.yaml does"])  # fmt: skip
        return "fsdp2"
    if not _on(environ, "ACCELERATE_USE_DEEPSPEED"):
        return "ddp"
    stage = environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("2", "3"):
        raise ConfigError([f"launched with zero_stage {stage}: 2 and 3 are supported; see configs/accelerate/"])
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError([f"launched for ZeRO-{stage}, and deepspeed is not installed; {install_command('deepspeed')},"
                           " or use configs/accelerate/fsdp2.yaml, which needs no extra package"])  # fmt: skip
    return f"zero{stage}"


def _on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true", "yes")


def is_sharded() -> bool:
    """True where a model's weights or its optimizer state are sharded over several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and mode() in SHARDED


def is_fsdp2() -> bool:
    """True where torch's fully_shard trains, over several ranks."""
    return is_sharded() and mode() == "fsdp2"


def is_zero() -> bool:
    """True where DeepSpeed's engine trains."""
    return mode().startswith("zero")


def allow_on_cpu(state: Any) -> None:
    """Let accelerate shard on a CPU too. state: its PartialState.

    It supports FSDP on accelerators only and silently falls back to DDP on a CPU; with an accelerator's type it shards.
    The device stays the CPU and the backend gloo.
    """
    from accelerate.utils import DistributedType

    if mode() == "fsdp2" and state.distributed_type == DistributedType.MULTI_CPU:
        state._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def accelerator() -> Any:
    """accelerate's Accelerator for this rank, for a loop that counts its backward passes itself."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # "auto" there is for TRL, and no number
    # otherwise DDP broadcasts rotary tables in each forward, and ranks need not run equally many
    how = DistributedDataParallelKwargs(broadcast_buffers=False)
    without_gpu = not torch.cuda.is_available() and not is_zero()  # with cpu=True it ignores DeepSpeed
    result = Accelerator(cpu=without_gpu, kwargs_handlers=[how])
    forget_zero()
    return result


def check_type(kind: str) -> None:
    """kind: accelerate's distributed type. Raises ConfigError where it is not the mode that was launched."""
    requested = mode()
    fits = {"ddp": ("MULTI_GPU", "MULTI_CPU", "NO"), "fsdp2": ("FSDP",)}.get(requested, ("DEEPSPEED",))
    if kind not in fits:
        raise ConfigError([f"launched for {requested}, and accelerate chose {kind}: weights would not be sharded as "
                           "requested; launch with a file of configs/accelerate/, without --cpu"])  # fmt: skip


def forget_zero() -> None:
    """Models that are loaded from now on, to sample or to evaluate, are not sharded; under ZeRO-3 they would be."""
    if is_zero():
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


__all__ = [
    "MODES", "SHARDED", "accelerator", "allow_on_cpu", "check_type", "forget_zero", "is_fsdp2", "is_sharded", "is_zero",
    "mode",
]  # fmt: skip
