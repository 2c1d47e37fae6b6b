"""The weights of a model under training as a saved checkpoint holds them: adapters merged, shards gathered, names
converted.

Since transformers 5 the names in memory need not be those of a checkpoint: experts are fused into one tensor, modules
are renamed when they are loaded. A generator that loads checkpoints needs the names of a checkpoint; a copy of the same
class needs the names in memory. `NamedWeights` gives both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from pipeline.distributed import sharding
from pipeline.models import adapters


def named_weights(model: Any) -> NamedWeights:
    """Every weight of `model`, under an adapter, wrapped by DDP, sharded or quantized; nothing is computed yet."""
    return NamedWeights(model)


class NamedWeights:
    """Iterates over (name, tensor) of every parameter and persistent buffer, as `save_pretrained` would write them.

    A tied tensor comes under all of its names, one after the other: a generator that is not given the second name may
    keep its old head. Tensors are the trainer's own where nothing had to be computed: clone what must outlive the next
    step. Where weights are sharded, each is gathered when it is its turn, so every rank must iterate.
    """

    def __init__(self, model: Any) -> None:
        self.model = unwrapped(model)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        base = adapters.base_of(self.model)
        if not is_converted(base):
            yield from self.in_memory()
            return
        tied = tied_names(base)
        weights = {name: tensor for name, tensor in self.in_memory() if name not in tied}
        aliases: dict[str, list[str]] = {}
        for alias, source in tied.items():
            if source in weights:
                aliases.setdefault(checkpoint_name(base, source), []).append(checkpoint_name(base, alias))
        for name, tensor in in_checkpoint_form(base, weights).items():
            yield name, tensor
            yield from ((alias, tensor) for alias in aliases.get(name, ()) if alias != name)

    def in_memory(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) under the names that the model's own modules have."""
        base = adapters.base_of(self.model)
        merged = adapters.merged_weights(self.model) if adapters.is_adapted(self.model) else _unmerged(base)
        tied = tied_names(base)
        for name, tensor in merged:
            yield name, tensor
            yield from ((alias, tensor) for alias, source in tied.items() if source == name)


def unwrapped(model: Any) -> Any:
    """The model under what distributes it."""
    return model.module if hasattr(model, "module") else model


def _unmerged(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters(remove_duplicate=True):
        yield name, adapters.plain(parameter)
    yield from persistent_buffers(model)


def persistent_buffers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that no optimizer updates and every checkpoint holds, such as Gemma 4's `layer_scalar`."""
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, sharding.full(buffer)


def cast(model: Any, dtype: torch.dtype) -> Any:
    """The model, its parameters and persistent buffers cast in place, as `from_pretrained` loads a checkpoint.

    `model.to(dtype)` also rounds buffers that no checkpoint holds: with the frequencies of rotary embeddings in
    bfloat16, Gemma 3 270M computes distributions that differ by 0.05 (total variation) from those of the loaded model.
    """
    for module in model.modules():
        saved_buffers = module._buffers.keys() - module._non_persistent_buffers_set
        for named, names in ((module._parameters, module._parameters.keys()), (module._buffers, saved_buffers)):
            for name in names:
                tensor = named[name]
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = tensor.data.to(dtype)
    return model


def tied_names(model: Any) -> dict[str, str]:
    """Second name -> first name of each tensor that two modules of the base share; a head that an adapter trains apart
    from its embedding is not tied any more."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    return {alias: source for alias, source in tied.items() if not _trained_apart(model, alias, source)}


def _trained_apart(model: Any, alias: str, source: str) -> bool:
    modules = [model.get_submodule(name.rpartition(".")[0]) for name in (alias, source)]
    trained = [getattr(module, "modules_to_save", None) for module in modules]
    if not any(trained):
        return False
    weights = [adapters.trained_module(module).weight for module in modules]
    return weights[0] is not weights[1]


def is_converted(model: Any) -> bool:
    """Whether names or shapes in memory differ from those of a checkpoint."""
    from transformers import conversion_mapping

    if not hasattr(model, "config"):
        return False
    known = getattr(model, "_weight_conversions", None)
    return bool(known) or bool(conversion_mapping.get_model_conversion_mapping(model, add_legacy=False))


def in_checkpoint_form(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weights`, named in memory, under the names and in the shapes that `save_pretrained` writes."""
    from transformers.core_model_loading import revert_weight_conversion

    converted: dict[str, torch.Tensor] = revert_weight_conversion(model, weights)
    return converted


def checkpoint_name(model: Any, name: str) -> str:
    """What a checkpoint calls the one tensor that is called `name` in memory."""
    return next(iter(in_checkpoint_form(model, {name: torch.empty(0)})))


@torch.no_grad()
def copy_into(model: Any, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write `weights` into a model of the same class, in place. weights: a NamedWeights, or pairs named in memory.

    Raises KeyError for a name that the model does not have.
    """
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(persistent_buffers(model))
    for name, tensor in weights.in_memory() if isinstance(weights, NamedWeights) else weights:
        own[name].copy_(tensor)


__all__ = ["NamedWeights", "copy_into", "in_checkpoint_form", "named_weights", "tied_names", "unwrapped"]
