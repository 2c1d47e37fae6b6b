"""Sharded training backends: torch's fully_shard (FSDP2) and DeepSpeed's engine (ZeRO).

Under FSDP2 the model comes from rank 0, layer by layer: a rank holds its shards and one layer, never the whole.

Checkpoints hold full tensors under the names of one process and can be resumed in any mode with any number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.config.schema import Optimizer
from pipeline.distributed import ranks, sharding
from pipeline.update import packing
from pipeline.update.replicated import ParameterGroups, ReplicatedBackend, adamw, restore, trainable

MOMENTS = ("exp_avg", "exp_avg_sq")


class Fsdp2Backend(ReplicatedBackend):
    """Weights, gradients and moments sharded over all ranks, gathered one layer at a time; the rest in one group."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, groups: ParameterGroups, settings: Optimizer
    ) -> None:
        self.accelerator, self.max_grad_norm = accelerator, settings.max_grad_norm
        self.forward = shard(model, accelerator.device)
        self.optimizer = adamw(groups(model), settings)  # of the sharded weights: moments are sharded with them

    @property
    def unwrapped(self) -> Any:
        return self.forward

    @contextlib.contextmanager
    def accumulate(self, number: int, count: int) -> Iterator[None]:
        forward: Any = self.forward
        forward.set_requires_gradient_sync(number == count - 1)
        yield

    def backward(self, loss: Tensor) -> None:
        (loss * ranks.world()).backward()

    def step(self) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.forward.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return cast(Tensor, ranks.full_tensor(norm))

    def state(self) -> dict[str, Any]:
        held = {"weights": trainable(self.unwrapped), "optimizer": self.optimizer.state_dict()}
        return cast(dict[str, Any], _map_tensors(held, on_cpu))

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        restore(self.unwrapped, weights, lambda own, weight: own.copy_(shard_like(weight, own)))

    def load_state(self, state: dict[str, Any]) -> None:
        self.load_weights(state["weights"])
        saved = state["optimizer"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            index: {name: shard_like(value, parameters[index]) for name, value in one.items()}
            for index, one in saved["state"].items()
        }
        self.optimizer.load_state_dict({**saved, "state": moments})


class ZeroBackend(ReplicatedBackend):
    """DeepSpeed's engine, which owns backward and step: gradients and moments are sharded, with stage 3 weights too.

    It keeps Adam's state in flat pieces; a checkpoint reads and writes them by parameter.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, groups: ParameterGroups, settings: Optimizer
    ) -> None:
        import deepspeed

        parameter_groups = groups(model)
        self.parameters: list[Any] = [p for group in parameter_groups for p in group["params"]]
        self.counts = [len(group["params"]) for group in parameter_groups]
        config = zero_config(accelerator, settings, bfloat16=self.parameters[0].dtype == torch.bfloat16)
        optimizer = adamw(parameter_groups, settings)
        self.forward, self.zero, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        self.optimizer = self.zero.optimizer  # the AdamW inside, of flat pieces

    @property
    def unwrapped(self) -> Any:
        return self.forward.module

    @contextlib.contextmanager
    def accumulate(self, number: int, count: int) -> Iterator[None]:
        if number:
            self.forward.step()  # not at a boundary: it counts the pass and changes nothing
        self.forward.set_gradient_accumulation_boundary(number == count - 1)
        yield

    def backward(self, loss: Tensor) -> None:
        self.forward.backward(loss * ranks.world())  # it takes the mean over ranks

    def step(self) -> Tensor:
        self.forward.step()
        return torch.as_tensor(self.forward.get_global_grad_norm())

    def state(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_fp32_param as master
        from deepspeed.utils import safe_get_full_optimizer_state as moment

        named = {name: p for name, p in self.unwrapped.named_parameters() if p.requires_grad}
        weights = {name: on_cpu(master(p).detach()) for name, p in named.items()}
        taken = [one["step"] for one in self.optimizer.state.values()]
        moments: dict[int, dict[str, Any]] = {}
        for index, parameter in enumerate(self.parameters if taken else []):
            moments[index] = {name: on_cpu(moment(parameter, name).detach()) for name in MOMENTS}
            moments[index]["step"] = taken[0].clone()
        return {"weights": weights, "optimizer": {"state": moments, "param_groups": self._groups()}}

    def _groups(self) -> list[dict[str, Any]]:
        """Settings of the parameter groups, with the indices of their parameters, as one process would save them."""
        indices = iter(range(len(self.parameters)))
        return [
            {**group, "params": list(islice(indices, count))}
            for group, count in zip(self.optimizer.param_groups, self.counts, strict=True)
        ]

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        restore(self.unwrapped, weights, self._write)

    def load_state(self, state: dict[str, Any]) -> None:
        self.load_weights(state["weights"])
        saved = state["optimizer"]
        for group, settings in zip(self.optimizer.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in settings.items() if name != "params"})
        if not saved["state"]:
            return
        step = saved["state"][0]["step"]
        for flat in self._flat():
            self.optimizer.state[flat] = {"step": step.clone(), **{name: torch.zeros_like(flat) for name in MOMENTS}}
        if hasattr(self.zero, "_lazy_init_hp_params_optimizer_state"):  # ZeRO-2 ties moments to parameters in a step
            self.zero._lazy_init_hp_params_optimizer_state()
        for index, parameter in enumerate(self.parameters):
            for name in MOMENTS:
                self._write_piece(parameter, saved["state"][index][name], name)

    def _flat(self) -> list[Tensor]:
        """This rank's pieces, each the weights of several parameters end to end."""
        pieces = getattr(self.zero, "fp32_partitioned_groups_flat", None)
        return pieces or [p for group in self.optimizer.param_groups for p in group["params"]]

    def _write(self, parameter: Any, weight: Tensor) -> None:
        import deepspeed

        self._write_piece(parameter, weight)
        sharded = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0) if sharded else contextlib.nullcontext():
            parameter.data.copy_(weight)

    def _write_piece(self, parameter: Any, full: Tensor, moment: str | None = None) -> None:
        """This rank's piece of a master weight or of a moment."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        value = full.to(parameter.device, torch.float32)
        if hasattr(parameter, "ds_id"):  # DeepSpeed would not pad what does not divide by the number of ranks
            flat, size = value.flatten(), parameter.ds_tensor.numel()
            filled = nn.functional.pad(flat, (0, size * ranks.world() - flat.numel()))
            piece = filled[size * ranks.rank() : size * (ranks.rank() + 1)]
            self.zero.set_local_hp_param(piece, parameter, moment)
        elif moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)


def zero_config(accelerator: Accelerator, settings: Optimizer, *, bfloat16: bool) -> dict[str, Any]:
    """The launcher's ZeRO settings (stage, offloading), and the rest from the stage's YAML."""
    launched = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    return {
        "zero_optimization": {name: value for name, value in launched.items() if value != "auto"},
        "train_micro_batch_size_per_gpu": 1,  # only counted: boundaries are set by hand in `accumulate`
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": bfloat16},
        "zero_allow_untested_optimizer": True,  # ours is torch's AdamW
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def shard(model: nn.Module, device: torch.device, *, trained: bool = True) -> Any:
    """The model with every layer, and the rest as one group, sharded over all ranks; rank 0's weights are sent.

    trained False: embeddings and head are given back after each forward, where a backward pass would follow otherwise.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, layers = init_device_mesh(device.type, (ranks.world(),)), layer_names(model)
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            receive(module, device)
            fully_shard(module, mesh=mesh)
    receive(model, device)
    sharded = fully_shard(model, mesh=mesh, reshard_after_forward=None if trained else True)
    pack_as_main(model)
    return sharded


@torch.no_grad()
def receive(module: nn.Module, device: torch.device) -> None:
    """Put the weights and buffers that rank 0 holds on the device of every rank, whatever this rank holds; those that
    are sharded already stay. A weight of several names stays one weight."""
    from torch.distributed import broadcast
    from torch.distributed.tensor import DTensor

    received: dict[int, tuple[Tensor, Tensor]] = {}  # both, so that no id is given to another tensor meanwhile
    for part in module.modules():
        tensors: list[dict[str, Any]] = [part._parameters, part._buffers]
        for held in tensors:
            for name, own in held.items():
                if own is None or isinstance(own, DTensor):
                    continue
                if id(own) not in received:
                    data = torch.empty_like(own, device=device) if own.is_meta else own.detach().to(device).contiguous()
                    broadcast(data, src=0)
                    kept = nn.Parameter(data, own.requires_grad) if isinstance(own, nn.Parameter) else data
                    received[id(own)] = own, kept
                held[name] = received[id(own)][1]


def pack_as_main(forward: Any) -> None:
    """Pack rows as rank 0 does: the other ranks had no weights to try it with."""
    if ranks.from_main(lambda: bool(forward.packs)) and not forward.packs:
        packing.route(forward.transformer)
        forward.packs = True


def layer_names(model: nn.Module) -> set[str]:
    """Class names of the layers that transformers does not split. Raises ValueError if it names none."""
    named = [names for m in model.modules() if (names := getattr(m, "_no_split_modules", None))]
    if not named:
        raise ValueError(f"{type(model).__name__}: transformers names no layer class to shard (no _no_split_modules)")
    return set(named[0])


def shard_like(value: Any, parameter: Any) -> Any:
    """A full tensor, sharded as the parameter of the same shape is; anything else unchanged."""
    if not isinstance(value, Tensor) or not hasattr(parameter, "device_mesh") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    full = value.to(parameter.device_mesh.device_type)
    # every rank has read the same file: nothing has to be sent
    return distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)


def on_cpu(tensor: Tensor) -> Tensor:
    """The full tensor, moved off the device, which may not have room for all of them. Rank 0 writes it; the others
    help to gather it and keep an empty one."""
    full: Tensor = ranks.full_tensor(tensor)
    return full.cpu() if ranks.is_main() else full.new_empty(0, device="cpu")


def _map_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _map_tensors(inner, change) for name, inner in value.items()}
    if isinstance(value, list):
        return [_map_tensors(inner, change) for inner in value]
    return change(value) if isinstance(value, Tensor) else value


def train_on(
    accelerator: Accelerator, model: nn.Module, groups: ParameterGroups, settings: Optimizer
) -> ReplicatedBackend:
    """The model and its optimizer in the parallelism mode that the launcher requested."""
    if not sharding.is_sharded():
        return ReplicatedBackend(accelerator, model, groups, settings)
    sharding.check_type(accelerator.distributed_type.value)
    return (Fsdp2Backend if sharding.mode() == "fsdp2" else ZeroBackend)(accelerator, model, groups, settings)


__all__ = ["Fsdp2Backend", "ZeroBackend", "on_cpu", "shard", "shard_like", "train_on"]
