"""Replicated training backend: the full model and its optimizer on each device (single process or DDP).

Gradients add up over micro-batches and ranks, so that a step is the same step in every mode. sharded.py has the modes
in which no rank holds all of the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.config.schema import Optimizer
from pipeline.distributed import ranks
from pipeline.update.forward import CompletionLogprobs, add_embedding_gradients_in_place, add_gradients_in_place

ParameterGroups = Callable[[nn.Module], list[dict[str, Any]]]  # a model -> the parameter groups of its optimizer


class ReplicatedBackend:
    """forward: what training calls, wrapped by what distributes it; unwrapped: the module inside."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, groups: ParameterGroups, settings: Optimizer
    ) -> None:
        self.accelerator, self.max_grad_norm = accelerator, settings.max_grad_norm
        if ranks.world() == 1:
            if isinstance(model, CompletionLogprobs):
                add_gradients_in_place(model.model)
            else:
                add_embedding_gradients_in_place(model)
        # one kernel per parameter; on a GPU torch's own choice takes one for all of them
        optimizer = adamw(groups(model), settings, fused=accelerator.device.type == "cpu")
        self.forward, self.optimizer = accelerator.prepare(model, optimizer)

    @property
    def unwrapped(self) -> Any:
        return self.accelerator.unwrap_model(self.forward)

    @property
    def scheduled(self) -> Any:
        """The optimizer whose learning rates a schedule sets."""
        return self.optimizer

    @contextlib.contextmanager
    def accumulate(self, number: int, count: int) -> Iterator[None]:
        """Around forward and backward of micro-batch `number` of `count`: ranks exchange gradients with the last."""
        with contextlib.nullcontext() if number == count - 1 else self.accelerator.no_sync(self.forward):
            yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss; DDP takes the mean over ranks, which is undone here."""
        self.accelerator.backward(loss * ranks.world())

    def step(self) -> Tensor:
        """Clip, step, clear. Returns the norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.forward.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return cast(Tensor, norm)

    def state(self) -> dict[str, Any]:
        """{"weights", "optimizer"} of what is trained; every rank calls it and gets all of it."""
        return {"weights": trainable(self.unwrapped), "optimizer": self.optimizer.state_dict()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Write the trained weights of `state` back, and leave the optimizer as it is."""
        restore(self.unwrapped, weights)

    def load_state(self, state: dict[str, Any]) -> None:
        self.load_weights(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


def adamw(groups: list[dict[str, Any]], settings: Optimizer, *, fused: bool = False) -> torch.optim.AdamW:
    """fused: the whole step of a parameter in one kernel; False leaves the choice to torch."""
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(
        groups, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay, fused=fused or None
    )


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The trainable weights by name, a tied one once; if sharded, this rank's shard."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore(
    model: nn.Module, weights: dict[str, Tensor], write: Callable[[Tensor, Tensor], Any] = Tensor.copy_
) -> None:
    """Write full weights back. write(parameter, full weight). Raises ValueError if they belong to another model."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != weights.keys():
        differing = sorted(own.keys() ^ weights.keys())[0]
        raise ValueError(f"the checkpoint is of another model: {differing} is on one side only; remove the stage's run")
    for name, weight in weights.items():
        write(own[name], weight)


__all__ = ["ParameterGroups", "ReplicatedBackend", "adamw", "restore", "trainable"]
