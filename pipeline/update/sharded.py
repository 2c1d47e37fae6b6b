"""A model that learns, cut over the ranks of a run: torch's own fully_shard (FSDP2), or DeepSpeed's engine (ZeRO).

Checkpoints hold whole tensors under the names of one process, and go on in any mode with any number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.config.schema import Optimizer
from pipeline.distributed import ranks, sharding
from pipeline.update.replicated import Groups, Passes, Whole, adam, learning, restore

MOMENTS = ("exp_avg", "exp_avg_sq")


class FullyShard(Whole):
    """Weights, gradients and moments cut over all ranks, gathered a layer at a time; everything else in one group."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, groups: Groups, settings: Optimizer) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.accelerator, self.max_grad_norm = accelerator, settings.max_grad_norm
        mesh = init_device_mesh(accelerator.device.type, (ranks.world(),))
        layers = layer_names(model)
        for module in list(model.modules()):
            if type(module).__name__ in layers:
                fully_shard(module, mesh=mesh)
        self.forward = fully_shard(model, mesh=mesh)
        self.optimizer = adam(groups(model), settings)  # of the cut weights: moments are cut with them

    @property
    def bare(self) -> Any:
        return self.forward

    def backward(self, passes: Passes) -> None:
        forward: Any = self.forward
        for number, loss_of in enumerate(passes):
            forward.set_requires_gradient_sync(number == len(passes) - 1)
            (loss_of() * ranks.world()).backward()

    def step(self) -> Tensor:
        norm = nn.utils.clip_grad_norm_(self.forward.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return cast(Tensor, sharding.whole(norm))

    def state(self) -> dict[str, Any]:
        held = {"weights": learning(self.bare), "optimizer": self.optimizer.state_dict()}
        return cast(dict[str, Any], _map_tensors(held, _on_cpu))

    def load_state(self, state: dict[str, Any]) -> None:
        restore(self.bare, state["weights"], lambda own, weight: own.copy_(cut_like(weight, own)))
        saved = state["optimizer"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            place: {name: cut_like(value, parameters[place]) for name, value in one.items()}
            for place, one in saved["state"].items()
        }
        self.optimizer.load_state_dict({**saved, "state": moments})


class Zero(Whole):
    """DeepSpeed's engine, which owns backward and step: gradients and moments are cut, with stage 3 weights too.

    It keeps what Adam works on in flat pieces; what a checkpoint holds of them is read and written by parameter.
    """

    def __init__(self, accelerator: Accelerator, model: nn.Module, groups: Groups, settings: Optimizer) -> None:
        import deepspeed

        made = groups(model)
        self.learned: list[Any] = [p for group in made for p in group["params"]]
        self.counts = [len(group["params"]) for group in made]
        config = zero_config(accelerator, settings, bfloat16=self.learned[0].dtype == torch.bfloat16)
        self.forward, self.zero, *_ = deepspeed.initialize(model=model, optimizer=adam(made, settings), config=config)
        self.optimizer = self.zero.optimizer  # the AdamW under it, of flat pieces

    @property
    def bare(self) -> Any:
        return self.forward.module

    def backward(self, passes: Passes) -> None:
        for number, loss_of in enumerate(passes):
            if number:
                self.forward.step()  # no boundary: it counts the pass and changes nothing
            self.forward.set_gradient_accumulation_boundary(number == len(passes) - 1)
            self.forward.backward(loss_of() * ranks.world())  # it takes the mean over ranks

    def step(self) -> Tensor:
        self.forward.step()
        return torch.as_tensor(self.forward.get_global_grad_norm())

    def state(self) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_fp32_param as master
        from deepspeed.utils import safe_get_full_optimizer_state as moment

        named = {name: p for name, p in self.bare.named_parameters() if p.requires_grad}
        weights = {name: _on_cpu(master(p).detach()) for name, p in named.items()}
        taken = [one["step"] for one in self.optimizer.state.values()]
        moments: dict[int, dict[str, Any]] = {}
        for place, parameter in enumerate(self.learned if taken else []):
            moments[place] = {name: _on_cpu(moment(parameter, name).detach()) for name in MOMENTS}
            moments[place]["step"] = taken[0].clone()
        return {"weights": weights, "optimizer": {"state": moments, "param_groups": self._groups()}}

    def _groups(self) -> list[dict[str, Any]]:
        """Settings of the parameter groups, with the places of their parameters, as one process would save them."""
        places = iter(range(len(self.learned)))
        return [
            {**group, "params": list(islice(places, count))}
            for group, count in zip(self.optimizer.param_groups, self.counts, strict=True)
        ]

    def load_state(self, state: dict[str, Any]) -> None:
        restore(self.bare, state["weights"], self._write)
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
        for place, parameter in enumerate(self.learned):
            for name in MOMENTS:
                self._write_piece(parameter, saved["state"][place][name], name)

    def _flat(self) -> list[Tensor]:
        """This rank's pieces, each the weights of several parameters end to end."""
        pieces = getattr(self.zero, "fp32_partitioned_groups_flat", None)
        return pieces or [p for group in self.optimizer.param_groups for p in group["params"]]

    def _write(self, parameter: Any, weight: Tensor) -> None:
        import deepspeed

        self._write_piece(parameter, weight)
        cut = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0) if cut else contextlib.nullcontext():
            parameter.data.copy_(weight)

    def _write_piece(self, parameter: Any, whole: Tensor, moment: str | None = None) -> None:
        """This rank's piece of a master weight or of a moment."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        value = whole.to(parameter.device, torch.float32)
        if hasattr(parameter, "ds_id"):  # it would not fill up what does not divide by the ranks
            flat, size = value.flatten(), parameter.ds_tensor.numel()
            filled = nn.functional.pad(flat, (0, size * ranks.world() - flat.numel()))
            piece = filled[size * ranks.rank() : size * (ranks.rank() + 1)]
            self.zero.set_local_hp_param(piece, parameter, moment)
        elif moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)


def zero_config(accelerator: Accelerator, settings: Optimizer, *, bfloat16: bool) -> dict[str, Any]:
    """What the launcher says of ZeRO (stage, offloading), and the rest as the stage's YAML has it."""
    asked = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
    told = {name: value for name, value in asked.items() if value != "auto"}
    return {
        "zero_optimization": told,
        "train_micro_batch_size_per_gpu": 1,  # it only counts with these: passes end when they are said to
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "bf16": {"enabled": bfloat16},
        "zero_allow_untested_optimizer": True,  # ours is torch's AdamW
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def layer_names(model: nn.Module) -> set[str]:
    """Class names of the layers that transformers wants in one piece. Raises ValueError where it names none."""
    named = [names for m in model.modules() if (names := getattr(m, "_no_split_modules", None))]
    if not named:
        raise ValueError(f"{type(model).__name__}: no layer of it is known that could be cut by itself")
    return set(named[0])


def cut_like(value: Any, parameter: Any) -> Any:
    """A whole tensor, cut as the parameter of the same shape is; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or not hasattr(parameter, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    whole = value.to(parameter.device_mesh.device_type)
    # every rank has read the same file: nothing need be sent
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _on_cpu(tensor: Tensor) -> Tensor:
    """The whole tensor, moved out of a device's memory, which need not have room for all of them; rank 0 writes it, and
    the others, which help to gather it, keep an empty one."""
    whole: Tensor = sharding.whole(tensor)
    return whole.cpu() if ranks.is_main() else whole.new_empty(0, device="cpu")


def _map_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _map_tensors(inner, change) for name, inner in value.items()}
    if isinstance(value, list):
        return [_map_tensors(inner, change) for inner in value]
    return change(value) if isinstance(value, Tensor) else value


def train_on(accelerator: Accelerator, model: nn.Module, groups: Groups, settings: Optimizer) -> Whole:
    """The model and its optimiser as the launcher asked for them."""
    if not sharding.is_cut():
        return Whole(accelerator, model, groups, settings)
    sharding.check_type(accelerator.distributed_type.value)
    return (FullyShard if sharding.asked() == "fsdp2" else Zero)(accelerator, model, groups, settings)


__all__ = ["FullyShard", "Zero", "train_on"]
