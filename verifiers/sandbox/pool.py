"""A pool of warm workers: started on first use, one per core, ended when the program exits.

Safe to use from any thread, and in a forked child (which starts its own workers). A worker that fails is discarded and
the sample is retried once on a new worker: the cause of the failure may also have affected the idle workers.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

from . import worker as worker_module
from .isolation import Isolation, Profile, SandboxUnavailable, candidates
from .worker import Doubtful, InfrastructureError, TooBusy, Worker

T = TypeVar("T")
R = TypeVar("R")
Workers = Callable[[Profile], AbstractContextManager[Worker]]  # exclusive use of a worker with that profile


def cores() -> int:
    return len(os.sched_getaffinity(0))


class Pool:
    """Workers that share one profile."""

    def __init__(self, profile: Profile, size: int) -> None:
        self.profile = profile
        self.size = size
        self._idle: list[Worker] = []
        self._all: dict[int, Worker] = {}
        self._numbers = iter(range(1 << 30))
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def worker(self, *, new: bool) -> Iterator[Worker]:
        """Exclusive use of a worker, which is reused later if nothing is raised. Raises SandboxUnavailable."""
        with self._free:
            worker = self._take()
            if worker is not None and new:
                self._discard(worker)  # never keep more than `size`
                worker = None
            worker = worker or self._start()
            healthy = False
            try:
                yield worker
                healthy = True
            finally:
                self._give_back(worker, healthy)

    def _take(self) -> Worker | None:
        while True:
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None or worker.alive:
                return worker
            self._discard(worker)

    def _start(self) -> Worker:
        with self._lock:
            number = next(self._numbers)
        try:
            worker = Worker(isolation(), self.profile, number)
        except SandboxUnavailable as exc:
            if not _isolation:
                raise
            raise InfrastructureError(str(exc)) from None  # it worked on this machine before
        with self._lock:
            self._all[number] = worker
        return worker

    def _give_back(self, worker: Worker, healthy: bool) -> None:
        with self._lock:
            if healthy and worker.number in self._all:
                self._idle.append(worker)
                return
        self._discard(worker)

    def _discard(self, worker: Worker) -> None:
        with self._lock:
            self._all.pop(worker.number, None)
        worker.close()

    def close(self) -> None:
        """End all workers, including busy ones: their samples are retried on new workers."""
        with self._lock:
            busy = [w for w in self._all.values() if w not in self._idle]
            idle, self._all, self._idle = self._idle, {}, []
        for worker in busy:
            worker.kill()  # its descriptors are in use: the thread that uses it closes them
        for worker in idle:
            worker.close()

    def forget(self) -> None:
        for worker in self._all.values():
            worker.forget()


_pools: dict[str, Pool] = {}
_lock = threading.Lock()
_isolation: list[Isolation] = []
_size: list[int] = []


def pool(profile: Profile) -> Pool:
    with _lock:
        if profile not in _pools:
            _pools[profile] = Pool(profile, size())
        return _pools[profile]


def size() -> int:
    """Maximum number of samples that run at the same time."""
    return _size[0] if _size else cores()


def set_size(workers: int | None) -> None:
    """Set how many samples may run at the same time; None: one per core. Raises ValueError."""
    if workers is not None and workers < 1:
        raise ValueError(f"a sandbox pool of {workers} workers; it must be at least 1")
    close()
    _size[:] = [] if workers is None else [workers]


def isolation() -> Isolation:
    """The first isolation method that works on this machine, detected once. Raises SandboxUnavailable."""
    with _lock:
        if not _isolation:
            _isolation.append(_find())
        return _isolation[0]


def _find() -> Isolation:
    problem: SandboxUnavailable | None = None
    for way in candidates():
        try:
            Worker(way, "candidate", 0).close()
        except SandboxUnavailable as exc:
            problem = problem or exc
            continue
        if way.kind == "unsafe-none":
            warnings.warn("UNTRUSTED CODE RUNS WITHOUT ISOLATION: it can read, write and send anything", stacklevel=2)
        return way
    assert problem is not None
    raise problem


def _worker(profile: Profile, *, new: bool) -> AbstractContextManager[Worker]:
    return pool(profile).worker(new=new)


def attempt(run: Callable[[Workers], T], doubtful: Callable[[Doubtful], R]) -> T | R:
    """Call run(workers), and call it again on new workers if the sandbox failed.

    `doubtful` makes the result if the second attempt also raises Doubtful. Raises InfrastructureError if both attempts
    failed, and TooBusy if the machine did not provide enough CPU time.
    """
    try:
        return run(partial(_worker, new=False))
    except TooBusy:
        raise
    except InfrastructureError:
        pass
    try:
        return run(partial(_worker, new=True))
    except Doubtful as exc:
        return doubtful(exc)


def each(verify: Callable[[R], T], rows: Sequence[R]) -> list[T]:
    """Return verify(row) for all rows, in order; runs as many at the same time as the pool has workers."""
    at_once = min(size(), len(rows))
    if at_once <= 1:
        return [verify(row) for row in rows]
    with ThreadPoolExecutor(at_once, thread_name_prefix="sandbox") as threads:
        return list(threads.map(verify, rows))


def close() -> None:
    """End every worker. The next sample starts new workers."""
    with _lock:
        pools = list(_pools.values())
        _pools.clear()
        _isolation.clear()
    for one in pools:
        one.close()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    worker_module.after_fork()
    for one in _pools.values():
        one.forget()
    _pools.clear()


atexit.register(close)
os.register_at_fork(after_in_child=_after_fork)
