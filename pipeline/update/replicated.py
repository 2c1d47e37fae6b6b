"""A model that learns, with its optimiser, whole on each device of a run: one process, or DDP.

Gradients add up over passes and ranks, so that a step is the same step whatever the mode. `cut.py` has the modes in
which no rank holds all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.config.schema import Optimizer
from pipeline.distributed import ranks

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


def adam(groups: list[dict[str, Any]], settings: Optimizer) -> torch.optim.AdamW:
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=settings.eps, weight_decay=settings.weight_decay)


def learning(model: nn.Module) -> dict[str, Tensor]:
    """The weights that learn, by name, a tied one once; where they are cut, this rank's part."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def restore(
    model: nn.Module, weights: dict[str, Tensor], write: Callable[[Tensor, Tensor], Any] = Tensor.copy_
) -> None:
    """Write whole weights back. write(parameter, whole weight). Raises ValueError where they are another model's."""
    own = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if own.keys() != weights.keys():
        differing = sorted(own.keys() ^ weights.keys())[0]
        raise ValueError(f"the checkpoint is of another model: {differing} is on one side only; remove the stage's run")
    for name, weight in weights.items():
        write(own[name], weight)


__all__ = ["Groups", "Passes", "Whole", "adam", "learning", "restore"]
