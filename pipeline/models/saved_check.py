"""Proof that a saved directory holds the model that was trained: both compute the same distributions on fixed tokens.

A save can lose a buffer, tie what was trained apart or merge an adapter twice, and end without an error. The trained
model is therefore asked before it is written, and the directory is loaded again and asked after.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.errors import Alarm

ROWS, LENGTH = 2, 24
# total variation between two next-token distributions: the largest over positions in float32, where only the order of
# additions differs; the mean in lower precision, where merging an adapter rounds each weight
LARGEST_GAP = {torch.float32: 1e-4, torch.float64: 1e-4}
MEAN_GAP = 0.05
# in lower precision a large model rounds more: the limit is then this many times the gap between the saved model's own
# distributions in its precision and in float32 (0.049 for Gemma 3 270M in bfloat16, on tokens that nobody would write)
TIMES_OWN_ROUNDING = 3.0


class SavedModelDiffers(Alarm):
    """The directory just written does not hold the model that was trained. The run stops."""


def fixed_tokens(model: Any) -> Tensor:
    """(ROWS, LENGTH) ids spread over the vocabulary, none of them one that a config names (an image, a padding)."""
    config = model.config
    parts = (config, config.get_text_config())
    special = {v for part in parts for k, v in part.to_dict().items() if k.endswith("token_id") and isinstance(v, int)}
    vocabulary = parts[1].vocab_size
    ids = [i for i in ((13 + 7919 * n) % vocabulary for n in range(4 * ROWS * LENGTH)) if i not in special]
    return torch.tensor(ids[: ROWS * LENGTH]).reshape(ROWS, LENGTH)


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    """On the CPU in float32: (ROWS * LENGTH, V) probabilities of the next token, or a classifier's (ROWS, 1) scores.
    A collective call where the model is sharded."""
    mode = model.training
    model.eval()
    ids = fixed_tokens(model).to(next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()
    model.train(mode)
    return logits.cpu() if logits.dim() == 2 else logits.flatten(0, 1).softmax(-1).cpu()


def device_for(model: Any) -> torch.device:
    """The GPU where a second model fits beside the trained one and its optimizer; else the CPU."""
    if torch.cuda.is_available():
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        if torch.cuda.mem_get_info()[0] > 1.5 * size:
            return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def check_saved(expected: Tensor, path: Path, *, kind: Any, attn: str | None, remote_code: bool) -> float:
    """The gap between `expected`, outputs of the trained model, and those of the model saved at `path`.

    kind: the auto class to load it with. The gap is the total variation of probabilities, or the relative difference of
    a classifier's scores. Raises SavedModelDiffers past the limit.
    """
    saved = kind.from_pretrained(path, dtype="auto", attn_implementation=attn, trust_remote_code=remote_code)
    saved = saved.to(device_for(saved))
    found = outputs(saved)
    gaps = distances(expected, found)
    if saved.dtype in LARGEST_GAP:
        gap, limit = float(gaps.max()), LARGEST_GAP[saved.dtype]
    else:
        gap, limit = float(gaps.mean()), MEAN_GAP
        if gap > limit:
            limit = max(limit, TIMES_OWN_ROUNDING * float(distances(outputs(saved.float()), found).mean()))
    if not gap <= limit:  # also true of NaN
        raise SavedModelDiffers(
            f"{path}: the saved model, loaded again, differs from the trained one by {gap:.3g} (total variation "
            f"of the next token on fixed tokens; limit {limit:.3g}): the save lost or changed a tensor; do not use it"
        )
    return gap


def distances(expected: Tensor, found: Tensor) -> Tensor:
    """Per position the total variation of two distributions; of a classifier's scores the relative difference."""
    if found.shape != expected.shape:
        return torch.ones(1)
    if expected.shape[1] == 1:
        return (found - expected).abs() / (1 + expected.abs())
    return (found - expected).abs().sum(-1) / 2


__all__ = ["SavedModelDiffers", "check_saved", "fixed_tokens", "outputs"]
