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

from pipeline.distributed import ranks


def unwrapped(model: Any) -> Any:
    """The model under what distributes it."""
    return model.module if hasattr(model, "module") else model


def is_adapted(model: Any) -> bool:
    return hasattr(model, "get_base_model") and hasattr(model, "disable_adapter")


def base_of(model: Any) -> Any:
    """The causal model itself, under an adapter or not; the adapter's layers are in it."""
    return model.get_base_model() if is_adapted(model) else model


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
        base = base_of(self.model)
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
        base = base_of(self.model)
        merged = merged_weights(self.model) if is_adapted(self.model) else _unmerged(base)
        tied = tied_names(base)
        for name, tensor in merged:
            yield name, tensor
            yield from ((alias, tensor) for alias, source in tied.items() if source == name)


def _unmerged(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters(remove_duplicate=True):
        yield name, plain(parameter)
    yield from persistent_buffers(model)


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
        with ranks.gathered_parameters(module.parameters()):
            delta = ranks.full_tensor(module.get_delta_weight(adapter))
        weight = (weight.float() + delta.float()).to(weight.dtype)
    return weight


def plain(parameter: Any) -> torch.Tensor:
    """A weight as numbers, in full: dequantized from 4 bits, gathered where it is sharded."""
    if type(parameter).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        dequantized: torch.Tensor = dequantize_4bit(parameter.data, parameter.quant_state)
        return dequantized
    full: torch.Tensor = ranks.full_tensor(parameter)
    return full.detach()


def persistent_buffers(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that no optimizer updates and every checkpoint holds, such as Gemma 4's `layer_scalar`."""
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, ranks.full_tensor(buffer)


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
    weights = [trained_module(module).weight for module in modules]
    return weights[0] is not weights[1]


def trained_module(module: Any) -> Any:
    """The copy that the adapter trains where `modules_to_save` made one; else the module itself."""
    copies = getattr(module, "modules_to_save", None)
    return copies[module.active_adapters[0]] if copies else module


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


__all__ = [
    "NamedWeights", "base_of", "cast", "copy_into", "in_checkpoint_form", "is_adapted", "merged_weights",
    "named_weights", "plain", "tied_names", "unwrapped",
]  # fmt: skip
