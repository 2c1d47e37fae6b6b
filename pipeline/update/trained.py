"""A model that learns, with its optimiser, as it lies on the devices of a run: whole on each of them, or cut over all.

`Whole` is one process or DDP, `Cut` is torch's own fully_shard (FSDP2). Both add gradients up over passes and ranks, so
that a step is the same step whatever the mode; checkpoints hold whole tensors, and go on with any number of ranks.
DeepSpeed's engine would have to own backward and step; what it offers here fully_shard does too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline import ranks, spread
from pipeline.config import ConfigError
from pipeline.schema import Optimizer

Groups = Callable[[nn.Module], list[dict[str, Any]]]  # a model -> the parameter groups of its optimiser
Passes = Sequence[Callable[[], Tensor]]  # each computes the loss of one micro-batch


class Whole:
    """forward: what training calls, wrapped by what distributes it; bare: the module under it."""

    def __init__(self, accelerator: Accelerator, model: nn.Module, groups: Groups, settings: Optimizer) -> None:
        self.accelerator, self.max_grad_norm = accelerator, settings.max_grad_norm
        self.forward, self.optimizer = accelerator.prepare(model, adam(groups(model), settings))

    @property
    def bare(self) -> Any:
        return self.accelerator.unwrap_model(self.forward)

    @property
    def scheduled(self) -> Any:
        """The optimiser whose learning rates a schedule sets."""
        return self.optimizer

    def backward(self, passes: Passes) -> None:
        """Gradients add up over passes, and over ranks once, with the last; the mean over ranks is undone."""
        for number, loss_of in enumerate(passes):
            last = number == len(passes) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.forward):
                self.accelerator.backward(loss_of() * ranks.world())

    def step(self) -> Tensor:
        """Clip, step, clear. Returns the norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.forward.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return cast(Tensor, norm)

    def state(self) -> dict[str, Any]:
        """{"weights", "optimizer"} of what learns; every rank calls it and has all of it."""
        return {"weights": learning(self.bare), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        restore(self.bare, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


class Cut(Whole):
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
        return cast(Tensor, spread.whole(norm))

    def state(self) -> dict[str, Any]:
        held = {"weights": learning(self.bare), "optimizer": self.optimizer.state_dict()}
        return cast(dict[str, Any], _map_tensors(held, _on_cpu))

    def load_state(self, state: dict[str, Any]) -> None:
        restore(self.bare, state["weights"])
        saved = state["optimizer"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            place: {name: cut_like(value, parameters[place]) for name, value in one.items()}
            for place, one in saved["state"].items()
        }
        self.optimizer.load_state_dict({**saved, "state": moments})


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
    """The whole tensor, moved out of a device's memory, which need not have room for all of them."""
    return cast(Tensor, spread.whole(tensor).cpu())


def _map_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _map_tensors(inner, change) for name, inner in value.items()}
    if isinstance(value, list):
        return [_map_tensors(inner, change) for inner in value]
    return change(value) if isinstance(value, Tensor) else value


def adam(groups: list[dict[str, Any]], settings: Optimizer) -> torch.optim.AdamW:
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay)


def learning(model: nn.Module) -> dict[str, Tensor]:
    """The weights that learn, by name, a tied one once; where they are cut, this rank's part."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Write whole weights back. Raises ValueError where they are another model's."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != weights.keys():
        differing = sorted(own.keys() ^ weights.keys())[0]
        raise ValueError(f"the checkpoint is of another model: {differing} is on one side only; remove the stage's run")
    for name, weight in weights.items():
        own[name].copy_(cut_like(weight, own[name]))


def train_on(accelerator: Accelerator, model: nn.Module, groups: Groups, settings: Optimizer) -> Whole:
    """The model and its optimiser as the launcher asked for them."""
    if not spread.is_cut():
        return Whole(accelerator, model, groups, settings)
    if spread.asked() != "fsdp2":
        raise ConfigError([f"launched for {spread.asked()}: policy stages run under ddp or fsdp2; take "
                           "configs/accelerate/fsdp2.yaml"])  # fmt: skip
    spread.check_type(accelerator.distributed_type.value)
    return Cut(accelerator, model, groups, settings)


__all__ = ["Cut", "Whole", "adam", "learning", "restore", "train_on"]
