"""How a model lies on the devices of a run: one copy each (DDP), or cut over all of them (FSDP2, ZeRO-2, ZeRO-3).

The launcher says which, in the environment that `accelerate launch --config_file configs/accelerate/NAME.yaml` sets;
under torchrun alone it is DDP. What cannot be had is refused here, before anything loads.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from typing import Any, cast

from pipeline.config.load import ConfigError

MODES = ("ddp", "fsdp2", "zero2", "zero3")
CUT = ("fsdp2", "zero2", "zero3")  # modes in which no rank holds all of what it trains


def asked(environ: Mapping[str, str] | None = None) -> str:
    """One of MODES. Raises ConfigError for FSDP1, another ZeRO stage, Megatron, or DeepSpeed where it is missing."""
    told = os.environ if environ is None else environ
    if _on(told, "ACCELERATE_USE_MEGATRON_LM"):
        raise ConfigError(["launched for Megatron-LM, which no stage here runs under; take one of configs/accelerate/"])
    if _on(told, "ACCELERATE_USE_FSDP"):
        version = told.get("FSDP_VERSION", "1")
        if version != "2":
            raise ConfigError([f"launched with fsdp_version {version}: only 2 is supported; set fsdp_version: 2, as "
                               "configs/accelerate/fsdp2.yaml does"])  # fmt: skip
        return "fsdp2"
    if not _on(told, "ACCELERATE_USE_DEEPSPEED"):
        return "ddp"
    stage = told.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("2", "3"):
        raise ConfigError([f"launched with zero_stage {stage}: 2 and 3 are supported; see configs/accelerate/"])
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError([f"launched for ZeRO-{stage}, and deepspeed is not installed; pip install deepspeed, or take "
                           "configs/accelerate/fsdp2.yaml, which needs nothing more"])  # fmt: skip
    return f"zero{stage}"


def _on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "").lower() in ("1", "true", "yes")


def is_cut() -> bool:
    """True where a model's weights or its optimiser are cut over several ranks."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and asked() in CUT


def is_zero() -> bool:
    """True where DeepSpeed's engine is to train."""
    return asked().startswith("zero")


def allow_on_cpu(state: Any) -> None:
    """Let accelerate shard on a CPU too. state: its PartialState.

    It knows FSDP on accelerators only and falls back to DDP on a CPU without a word; with the type of one it does as
    told. The device stays the CPU and the backend gloo.
    """
    from accelerate.utils import DistributedType

    if asked() == "fsdp2" and state.distributed_type == DistributedType.MULTI_CPU:
        state._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def accelerator() -> Any:
    """accelerate's handle on this rank's device and on the others, for a loop that counts its passes itself."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", None)  # "auto" there is for TRL, and no number
    # without: DDP would send rotary tables around in each forward, and ranks need not run equally many
    how = DistributedDataParallelKwargs(broadcast_buffers=False)
    without_gpu = not torch.cuda.is_available() and not is_zero()  # told "cpu", it knows no DeepSpeed
    made = Accelerator(cpu=without_gpu, kwargs_handlers=[how])
    forget_zero()
    return made


def check_type(kind: str) -> None:
    """kind: accelerate's distributed type. Raises ConfigError where it is not what the launcher was told."""
    mode = asked()
    fits = {"ddp": ("MULTI_GPU", "MULTI_CPU", "NO"), "fsdp2": ("FSDP",)}.get(mode, ("DEEPSPEED",))
    if kind not in fits:
        raise ConfigError([f"launched for {mode}, and accelerate made it {kind}: weights would not be cut as asked; "
                           "launch with a file of configs/accelerate/, without --cpu"])  # fmt: skip


def forget_zero() -> None:
    """Models that are loaded from now on, to sample or to judge, are whole; under ZeRO-3 they would be born cut."""
    if is_zero():
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def whole(tensor: Any) -> Any:
    """All of a tensor, on every rank; itself where it is not cut. A collective call where it is."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id"):
        with gathered([tensor]):
            return tensor.detach().clone()
    return tensor


def gathered(parameters: Iterable[Any]) -> contextlib.AbstractContextManager[None]:
    """A block in which ZeRO-3's parameters are whole, to be read; nothing in other modes."""
    cut = [p for p in parameters if hasattr(p, "ds_id")]
    if not cut:
        return contextlib.nullcontext()
    import deepspeed

    return cast(contextlib.AbstractContextManager[None], deepspeed.zero.GatheredParameters(cut))


__all__ = [
    "CUT", "MODES", "accelerator", "allow_on_cpu", "asked", "check_type", "forget_zero", "gathered", "is_cut",
    "is_zero", "whole",
]  # fmt: skip
