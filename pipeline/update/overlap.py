"""One step off-policy: the next step's samples are drawn while this update runs, with the weights from before it.

The update then trains on samples that are one update old (`policy_lag` 1 in the metrics), which importance weights
correct for: they are taken against the sampler's own log-probs. What is drawn is a function of (seed, stage, step) as
ever, and lies on the disk before the checkpoint that a resumed run starts from: the weights it came from are then gone.
Source: one-step off-policy RLHF, arXiv:2410.18252.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.distributed import ranks
from pipeline.records import Prompt, Scored

Draw = Callable[[Sequence[Prompt], int], list[Scored]]  # (prompts, step) -> scored; touches no file and counts nothing
Keep = Callable[[Sequence[Prompt], list[Scored], int], list[Scored]]  # onto the disk and into the counts


def one_thread() -> ThreadPoolExecutor:
    """On this thread's GPU: by itself a thread begins on the first one, whichever rank it is of."""
    import torch

    if not torch.cuda.is_available():
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))


@dataclass(slots=True)
class Ahead:
    """start, wait and keep are called in this order in each step; take at the start of the next.

    has: whether an earlier try of the stage has kept the step's samples already.
    """

    draw: Draw
    keep_drawn: Keep
    has: Callable[[int], bool]
    _pool: ThreadPoolExecutor = field(default_factory=one_thread)
    _asked: tuple[Sequence[Prompt], int] | None = None
    _pending: Future[list[Scored]] | None = None
    _kept: tuple[int, list[Scored]] | None = None

    def start(self, prompts: Sequence[Prompt], step: int) -> None:
        """Begin to draw the step's samples, unless they lie on the disk."""
        if ranks.from_main(lambda: self.has(step)):
            return
        self._asked, self._pending = (prompts, step), self._pool.submit(self._aside, prompts, step)

    def _aside(self, prompts: Sequence[Prompt], step: int) -> list[Scored]:
        with ranks.aside():
            return self.draw(prompts, step)

    def wait(self) -> None:
        """Until they are drawn: before the generator is given other weights."""
        if self._pending is not None:
            self._pending.result()

    def keep(self) -> None:
        """After this step is in the logs and before it is in a checkpoint: a resumed run finds both or neither."""
        if self._pending is not None and self._asked is not None:
            prompts, step = self._asked
            self._kept, self._pending = (step, self.keep_drawn(prompts, self._pending.result(), step)), None

    def take(self, step: int) -> list[Scored] | None:
        """The step's samples; None where they must be read from the disk, or were never drawn ahead."""
        if self._kept is None or self._kept[0] != step:
            return None
        (_, scored), self._kept = self._kept, None
        return scored


__all__ = ["Ahead"]
