"""Training on samples of earlier policies: later steps' rollouts are sampled while this step's update runs.

The schedule is fixed. With max_lag k, step t trains on what the policy after t - k updates sampled (the first k steps
on what the start sampled), as in an asynchronous system whose queue holds k batches. The clock is thus simulated: which
policy samples what never depends on how long anything takes, so a killed run resumes to the same bytes. Real time is
saved by the thread that samples while the update runs, which one step of lag already allows; more lag shows what
learning loses where generators run elsewhere, and saves no further time here.

The policy that samples and its version are those of the step in which sampling starts; weights are synced after it
ends. What is sampled is on disk before the checkpoint that a resumed run starts from, since the weights it came from
are gone. Importance weights correct for the lag; they are taken against the sampler's own log-probs.
Source: one step, arXiv:2410.18252; several, with a limit, arXiv:2505.24298 (max_head_offpolicyness there, max_staleness
in TRL's AsyncGRPO, max_trajectory_age_steps in NeMo-RL).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.distributed import ranks
from pipeline.records import Prompt, Scored

Queued = tuple[int, dict[str, list[int]]]  # version of the policy that samples, source -> positions of its prompts


class PrefetchSource(Protocol):
    """The halves of sampling: `draw` runs in a thread, the others in the loop."""

    def draw(self, prompts: Sequence[Prompt], step: int) -> list[Scored]:
        """Scored rollouts; writes no file and counts no token."""
        ...

    def keep(self, prompts: Sequence[Prompt], scored: list[Scored], step: int) -> list[Scored]:
        """Write them to disk and count their tokens."""
        ...

    def read(self, prompts: Sequence[Prompt], step: int) -> list[Scored]:
        """What an earlier attempt has kept; counts no token."""
        ...


def one_thread() -> ThreadPoolExecutor:
    """On this thread's GPU: a new thread starts on the first GPU whatever the rank."""
    import torch

    if not torch.cuda.is_available():
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(torch.cuda.current_device(),))


@dataclass(slots=True)
class Prefetch:
    """start, wait and keep are called in this order in each step; take at the start of a later one.

    Leaving it as a context ends its thread: one that outlived a failed step would sample on, from an engine that it
    would open beside whatever the process does next.
    """

    source: PrefetchSource
    _pool: ThreadPoolExecutor = field(default_factory=one_thread)
    _started: Mapping[int, Sequence[Prompt]] = field(default_factory=dict)
    _pending: Future[list[list[Scored]]] | None = None
    _kept: dict[int, list[Scored]] = field(default_factory=dict)
    _closed: bool = False

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        """Begins no other batch and waits for the one that is being sampled. With several ranks it does not wait: that
        batch may need a rank that has stopped."""
        self._closed = True
        self._pool.shutdown(wait=ranks.world() == 1, cancel_futures=True)

    def start(self, batches: Mapping[int, Sequence[Prompt]], *, tokens_left: float = math.inf) -> None:
        """Begin to sample. batches: step -> its prompts. No batch starts once tokens_left completion tokens are
        sampled."""
        self._started = batches
        self._pending = self._pool.submit(self._draw, batches, tokens_left) if batches else None

    def _draw(self, batches: Mapping[int, Sequence[Prompt]], tokens_left: float) -> list[list[Scored]]:
        out: list[list[Scored]] = []
        with ranks.aside():
            for step, prompts in batches.items():
                if tokens_left <= 0 or self._closed:
                    break
                out.append(self.source.draw(prompts, step))
                tokens_left -= sum(sum(s.rollout.mask) for s in out[-1])
        return out

    def wait(self) -> None:
        """Until all is sampled: before the generator gets other weights."""
        if self._pending is not None:
            self._pending.result()

    def keep(self) -> int:
        """After this step is in the logs and before it is in a checkpoint: a resumed run finds both or neither.
        Returns the number of batches that the budget left unsampled."""
        if self._pending is None:
            return 0
        batches, self._pending = self._pending.result(), None
        for (step, prompts), scored in zip(self._started.items(), batches, strict=False):  # fewer if the budget ended
            self._kept[step] = self.source.keep(prompts, scored, step)
        return len(self._started) - len(batches)

    def take(self, prompts: Sequence[Prompt], step: int) -> list[Scored]:
        """The samples of a step that was queued; read from disk if an earlier attempt queued it."""
        return self._kept.pop(step) if step in self._kept else self.source.read(prompts, step)


__all__ = ["Prefetch", "Queued"]
