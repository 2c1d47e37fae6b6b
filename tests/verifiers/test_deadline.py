"""A job that hangs costs its own deadline, never that of another."""

from __future__ import annotations

import threading
import time
from functools import partial

from verifiers.deadline import DeadlinePool


def test_a_pool_whose_every_thread_hangs_refuses_instead_of_waiting() -> None:
    release = threading.Event()
    pool = DeadlinePool(max_threads=8)
    try:
        jobs = [pool.submit(release.wait, 0.05) for _ in range(100)]
        pool.wait(jobs)
        assert all(job.late for job in jobs)
        pool.wait([pool.submit(release.wait, 0.05)])
    finally:
        release.set()
    deadline = time.monotonic() + 5
    while (job := pool.submit(lambda: "again", 1.0)).late and time.monotonic() < deadline:
        time.sleep(0.01)
    pool.wait([job])
    assert job.result == "again"


def test_a_job_that_starts_while_the_caller_waits_for_a_longer_one_keeps_its_own_deadline() -> None:
    release = threading.Event()
    pool = DeadlinePool(max_threads=2)
    try:
        first = pool.submit(release.wait, 60.0)
        brief = pool.submit(lambda: time.sleep(0.3), 60.0)
        hung = pool.submit(release.wait, 0.3)  # it starts when `brief` ends, during the wait for it
        started = time.monotonic()
        pool.wait([hung])
        assert hung.late and brief.done and not first.done
        assert time.monotonic() - started < 20
    finally:
        release.set()


def test_jobs_that_block_run_at_once_and_quick_ones_keep_their_results() -> None:
    pool = DeadlinePool(max_threads=8)
    together = threading.Barrier(8)
    blocked = [pool.submit(lambda: together.wait(30), 60.0) for _ in range(8)]
    pool.wait(blocked)
    assert sorted(job.result for job in blocked) == list(range(8))
    for _ in range(20):  # all threads are idle now and then
        quick = [pool.submit(partial(pow, i, 2), 60.0) for i in range(200)]
        pool.wait(quick)
        assert [job.result for job in quick] == [i * i for i in range(200)]
    blocked = [pool.submit(lambda: together.wait(30), 60.0) for _ in range(8)]
    pool.wait(blocked)
    assert all(job.exception is None and not job.late for job in blocked)
