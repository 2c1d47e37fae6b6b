"""export to=lora: RUN_DIR/lora/, the adapter alone, for a server that holds the base model already.

Stages save merged weights, so the adapter is read off them: the difference between a matrix after and before a LoRA
stage has at most the adapter's rank, and its singular vectors give the two factors. Several LoRA stages in a row give
one adapter of the sum of their ranks. What is written is loaded onto its base and compared with the merged model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError

SCALE = "base_model.model."  # what PEFT puts before the name of a module
UNCHANGED = 1e-6  # of the largest weight


def lora_chain(chain: Sequence[Mapping[str, Any]], stage: str) -> tuple[str, list[str], int]:
    """(stage whose model is the base, the LoRA stages after it, the sum of their ranks).

    Raises ConfigError if `stage` itself trained all weights.
    """
    blocks = {m["stage"]: m["config"].get("stage") for m in chain}
    adapted, rank, name = list[str](), 0, stage
    while isinstance(block := blocks.get(name), Mapping) and block.get("peft"):
        adapted.insert(0, name)
        rank += int(block["peft"].get("r", 8))
        name = str(block.get("policy"))
    if not adapted:
        raise ConfigError([f"export: {stage!r} trained all weights, so there is no adapter; export without to=lora, or "
                           "train it with a peft block"])  # fmt: skip
    if name not in blocks:
        raise ConfigError([f"export: {adapted[0]!r} starts from {name!r}, which is no stage of this run; export the "
                           "merged model"])  # fmt: skip
    return name, adapted, rank


def write_lora(base: Path, merged: Path, target: Path, rank: int) -> Path:
    """The adapter that turns the model at `base` into the one at `merged`; complete or absent.

    Raises ConfigError where the two differ in more than matrices of that rank.
    """
    from safetensors.torch import save_file

    factors = factorised(base, merged, rank)
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        tensors = {f"{SCALE}{module}.lora_{side}.weight": matrix for module, pair in factors.items()
                   for side, matrix in zip("AB", pair, strict=True)}  # fmt: skip
        save_file(tensors, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        from peft import LoraConfig

        settings: Any = LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(factors), task_type="CAUSAL_LM",
                                   base_model_name_or_path=str(base), inference_mode=True)  # fmt: skip
        settings.save_pretrained(draft)
        compare(base, draft, merged)
        for file in merged.glob("*token*"):
            shutil.copy(file, draft)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def factorised(base: Path, merged: Path, rank: int) -> dict[str, tuple[Any, Any]]:
    """Module -> (A: rank x in, B: out x rank) of every matrix that differs. Raises ConfigError for another change."""
    import torch

    before, after = tensors_of(base), tensors_of(merged)
    out = {}
    for name, old in before.items():
        new = after.get(name)
        if new is None or new.shape != old.shape:
            raise ConfigError([f"export: the two models differ in shape at {name}; export the merged model"])
        delta = new.float() - old.float()
        if float(delta.abs().max()) <= UNCHANGED * float(old.float().abs().max()):
            continue
        if delta.dim() != 2 or not name.endswith(".weight") or "embed" in name:
            raise ConfigError([f"export: {name} was trained in full, not through an adapter; export the merged model"])
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        kept = min(rank, len(values))
        root = values[:kept].sqrt()
        a, b = torch.zeros(rank, delta.shape[1]), torch.zeros(delta.shape[0], rank)
        a[:kept], b[:, :kept] = root[:, None] * right[:kept], left[:, :kept] * root
        out[name.removesuffix(".weight")] = (a, b)
    if not out:
        raise ConfigError(["export: the stage changed no weight, so there is no adapter"])
    return out


def tensors_of(model: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def compare(base: Path, adapter: Path, merged: Path) -> None:
    """Raises SavedModelDiffers where base and adapter together are not the merged model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from pipeline.models import saved_check

    together = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    expected = saved_check.outputs(together.merge_and_unload())
    saved_check.check_saved(expected, merged, kind=AutoModelForCausalLM, attn=None, remote_code=False)


__all__ = ["lora_chain", "write_lora"]
