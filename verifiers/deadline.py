"""Thread pool with a deadline per job: a late job is abandoned, its thread is replaced, and nothing waits for it.

A Python thread cannot be killed, so a hung job keeps its (daemon) thread until it returns; its result is then dropped.
Code that never returns, or that holds the GIL, must run in a process: use verifiers/sandbox/ for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_HUNG = 64  # above this, new jobs are refused as late: every job seems to hang


@dataclass(eq=False, slots=True)
class Job:
    run: Callable[[], Any]
    timeout_s: float
    started: float | None = None
    seconds: float = 0.0  # that it ran
    done: bool = False
    late: bool = False
    awaited: bool = False  # some thread sleeps until it is done
    result: Any = None
    exception: Exception | None = None


class DeadlinePool:
    """Threads are woken one after another, each by the one before it: where jobs take microseconds, the first thread
    does most of them, and a dozen threads do not compete for the interpreter."""

    def __init__(self, max_threads: int = 16) -> None:
        self._max_threads = max_threads
        lock = threading.Lock()
        self._added = threading.Condition(lock)  # idle threads sleep on it until a job is queued
        self._changed = threading.Condition(lock)  # `wait` sleeps on it until its job is done or may be late
        self._queue: deque[Job] = deque()
        self._running: set[Job] = set()
        self._threads = self._idle = self._waking = self._hung = 0
        self._next_check = math.inf  # time.monotonic() at which a thread in `wait` looks for late jobs
        self._closed = False

    def submit(self, run: Callable[[], Any], timeout_s: float) -> Job:
        """Queue a job; its deadline counts from when it starts running, not from when it was queued."""
        job = Job(run, timeout_s)
        with self._changed:
            if self._closed:
                raise RuntimeError("this pool is closed")
            if self._hung >= MAX_HUNG:
                job.done = job.late = True
                return job
            self._queue.append(job)
            if self._idle < len(self._queue) and self._threads < self._max_threads:
                self._start_thread()
            self._wake_one()
        return job

    def wait(self, jobs: Sequence[Job]) -> None:
        """Wait until every job is done or late."""
        with self._changed:
            for job in jobs:
                while not job.done:
                    self._give_up_the_late()
                    if not job.done:
                        job.awaited = True
                        deadlines = [
                            other.started + other.timeout_s for other in self._running if other.started is not None
                        ]
                        self._next_check = min(deadlines, default=math.inf)
                        self._changed.wait(max(0.0, self._next_check - time.monotonic()) if deadlines else None)
                        self._next_check = math.inf  # others that wait are woken by the next job, which is harmless

    def call(self, run: Callable[[], Any], timeout_s: float) -> Any:
        """What `run` returns. Raises what it raises, and TimeoutError if it is late; its thread is then left behind."""
        job = self.submit(run, timeout_s)
        self.wait([job])
        if job.late:
            raise TimeoutError(f"no result within {timeout_s:g} s")
        if job.exception is not None:
            raise job.exception
        return job.result

    def close(self) -> None:
        """End idle threads and abandon queued jobs."""
        with self._changed:
            self._closed = True
            for job in self._queue:
                job.done = job.late = True
            self._queue.clear()
            self._added.notify_all()
            self._changed.notify_all()

    def _wake_one(self) -> None:
        if self._queue and not self._waking and self._idle:
            self._waking += 1
            self._added.notify()

    def _start_thread(self) -> None:
        self._threads += 1
        threading.Thread(target=self._work, name="reward", daemon=True).start()

    def _give_up_the_late(self) -> None:
        now = time.monotonic()
        for job in [j for j in self._running if j.started is not None and now >= j.started + j.timeout_s]:
            self._running.discard(job)
            job.done = job.late = True
            self._hung += 1
            self._threads -= 1
            if self._queue and self._threads < self._max_threads and self._hung < MAX_HUNG:
                self._start_thread()
            elif self._hung >= MAX_HUNG and self._threads == 0:
                for queued in self._queue:
                    queued.done = queued.late = True
                self._queue.clear()
            self._changed.notify_all()

    def _next(self) -> Job | None:
        with self._changed:
            self._idle += 1
            while not self._queue and not self._closed:
                self._added.wait()
                self._waking = 0
            self._idle -= 1
            if not self._queue:
                self._threads -= 1
                return None
            job = self._queue.popleft()
            job.started = time.monotonic()
            self._running.add(job)
            if job.started + job.timeout_s < self._next_check:
                self._changed.notify_all()  # waiting threads have an earlier deadline to check
            self._wake_one()
            return job

    def _work(self) -> None:
        while (job := self._next()) is not None:
            result, exception = None, None
            try:
                result = job.run()
            except Exception as exc:  # passed to the thread that submitted the job
                exception = exc
            except SystemExit as exc:  # it would end this thread without a word
                exception = RuntimeError(f"it called sys.exit({exc.code!r})")
            assert job.started is not None
            seconds = time.monotonic() - job.started
            with self._changed:
                if job.late:
                    self._hung -= 1
                    return  # this thread was replaced when its job was abandoned
                self._running.discard(job)
                job.result, job.exception, job.seconds, job.done = result, exception, seconds, True
                if job.awaited:
                    self._changed.notify_all()
