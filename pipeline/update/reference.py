"""The reference policy of the KL: a frozen copy, a copy that follows the policy, or its base with the adapter off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pipeline.config.schema import Kl
from pipeline.distributed import ranks
from pipeline.update.forward import CompletionLogprobs, Row
from pipeline.update.learner import Inference, Learner
from pipeline.update.sharded import on_cpu, shard_like


class Reference(Protocol):
    def logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        """Per row, (its T,) log-probs at the sampling temperature."""
        ...

    def after_step(self, step: int) -> None:
        """Called when the policy has been updated `step` times."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class Copy:
    """A second model. It never changes (`frozen`), follows the policy by a moving average (`ema`, as in WARP,
    arXiv:2406.16768), or is set to the policy every so many steps (`periodic`, as in ProRL, arXiv:2505.24864).

    Under FSDP2 its forward may be sharded like the policy's; a checkpoint holds full tensors either way."""

    def __init__(self, forward: CompletionLogprobs, learner: Learner, settings: Kl) -> None:
        self.forward, self.learner, self.settings = forward.eval().requires_grad_(False), learner, settings
        self.inference = Inference(forward, None, budget=learner.budget, device=learner.device)

    def logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        return self.inference.logprobs(rows)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        kind = self.settings.reference
        if kind == "frozen" or (kind == "periodic" and step % self.settings.every):
            return
        keep = self.settings.ema if kind == "ema" else 0.0
        own = dict(self.forward.model.named_parameters())
        for name, parameter in self.learner.model.named_parameters():
            both = hasattr(parameter, "device_mesh") and hasattr(own[name], "device_mesh")  # the same shard of each
            new = parameter if both else shard_like(ranks.full_tensor(parameter), own[name])
            # written so that keep = 0 copies every bit
            own[name].mul_(keep).add_(new.to(own[name].dtype), alpha=1 - keep)

    def state(self) -> dict[str, Any]:
        if self.settings.reference == "frozen":
            return {}
        held = self.forward.state_dict()
        return {name: on_cpu(value) if hasattr(value, "device_mesh") else value for name, value in held.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        if state:
            own = self.forward.state_dict()
            self.forward.load_state_dict({name: shard_like(value, own.get(name)) for name, value in state.items()})


class AdapterOff:
    """Under LoRA the reference is the policy with its adapter switched off: no second model."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        with self.learner.model.disable_adapter():
            return self.learner.inference.logprobs(rows)

    def after_step(self, step: int) -> None:
        """The base is never trained."""

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to load: the base is what the run started from."""
