"""One step off-policy: the next step's rollouts are sampled while this step's update runs, with the weights before it.

The update then trains on samples that are one update old (`policy_lag` 1 in the metrics). Importance weights correct
for that; they are taken against the sampler's own log-probs. What is sampled is a function of (seed, stage, step) as
ever, and it is on disk before the checkpoint that a resumed run starts from, since the weights it came from are gone.
Source: one-step off-policy RLHF, arXiv:2410.18252.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.distributed import ranks
from pipeline.records import Prompt, Scored


class PrefetchSource(Protocol):
    """The halves of sampling: `draw` runs in a thread, the others in the loop."""

    def draw(self, prompts: Sequence[Prompt], step: int) -> list[Scored]:
        """Scored rollouts; touches no file and counts nothing."""
        ...

    def keep(self, prompts: Sequence[Prompt], scored: list[Scored], step: int) -> list[Scored]:
        """Write them to disk and count their tokens."""
        ...

    def is_kept(self, step: int) -> bool:
        """Whether an earlier attempt of the stage has kept the step's samples already."""
        ...


def one_thread() -> ThreadPoolExecutor:
    """On this thread's GPU: a new thread starts on the first GPU whatever the rank."""
    import torch

    if not torch.cuda.is_available():
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))


@dataclass(slots=True)
class Prefetch:
    """start, wait and keep are called in this order in each step; take at the start of the next."""

    source: PrefetchSource
    _pool: ThreadPoolExecutor = field(default_factory=one_thread)
    _started: tuple[Sequence[Prompt], int] | None = None
    _pending: Future[list[Scored]] | None = None
    _kept: tuple[int, list[Scored]] | None = None

    def start(self, prompts: Sequence[Prompt], step: int) -> None:
        """Begin to sample for the step, unless its samples are on disk already."""
        if ranks.from_main(lambda: self.source.is_kept(step)):
            return
        self._started, self._pending = (prompts, step), self._pool.submit(self._draw, prompts, step)

    def _draw(self, prompts: Sequence[Prompt], step: int) -> list[Scored]:
        with ranks.aside():
            return self.source.draw(prompts, step)

    def wait(self) -> None:
        """Until they are sampled: before the generator gets other weights."""
        if self._pending is not None:
            self._pending.result()

    def keep(self) -> None:
        """After this step is in the logs and before it is in a checkpoint: a resumed run finds both or neither."""
        if self._pending is not None and self._started is not None:
            prompts, step = self._started
            self._kept, self._pending = (step, self.source.keep(prompts, self._pending.result(), step)), None

    def take(self, step: int) -> list[Scored] | None:
        """The step's samples; None if they have to be read from disk or were never prefetched."""
        if self._kept is None or self._kept[0] != step:
            return None
        (_, scored), self._kept = self._kept, None
        return scored


__all__ = ["Prefetch"]
