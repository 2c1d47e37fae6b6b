"""A request may use any CPU time or memory, or raise: it costs its own time, and the next one is answered."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import verifiers
from verifiers import _killable, sql_query
from verifiers._killable import Killable, Killed, Stalled


def forks() -> set[str]:
    """The processes that run `time:sleep`, helpers and their forks."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if b"time:sleep" in (entry / "cmdline").read_bytes():
                    found.add(entry.name)
    return found


@pytest.fixture
def worker() -> Iterator[Callable[[str], Killable]]:
    """A worker around any function of the standard library that takes one JSON value."""
    workers: list[Killable] = []

    def make(function: str) -> Killable:
        workers.append(Killable(function, cpu_s=0.3, memory_mb=256))
        return workers[-1]

    yield make
    for each in workers:
        each._end()


def test_requests_are_answered_and_exceptions_reported(worker: Callable[[str], Killable]) -> None:
    dedent = worker("textwrap:dedent")
    assert dedent.ask("  ü\n  b") == "ü\nb"
    with pytest.raises(ValueError, match="TypeError"):
        dedent.ask(5)
    assert dedent.ask(" x") == "x"


def test_cpu_is_bounded_and_the_next_request_answered(worker: Callable[[str], Killable]) -> None:
    factorial = worker("math:factorial")
    assert factorial.ask(5) == 120
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(Killed):
        factorial.ask(500_000_000)
    assert factorial.ask(6) == 720
    factorial._end()  # only then does its CPU time count as that of our children
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.5


def test_memory_is_bounded(worker: Callable[[str], Killable]) -> None:
    zeros = worker("operator:methodcaller")  # any constructor will do: its reply is not JSON
    with pytest.raises(ValueError, match="TypeError"):
        zeros.ask("x")
    eater = worker("builtins:eval")
    assert eater.ask("len(b'x' * 10**6)") == 10**6
    with pytest.raises(Killed):
        eater.ask("len(b'x' * 10**9)")


def test_nothing_can_be_written_and_a_long_reply_is_refused(worker: Callable[[str], Killable], tmp_path: Path) -> None:
    evaluate = worker("builtins:eval")
    with pytest.raises((Killed, ValueError)):
        evaluate.ask(f"open({str(tmp_path / 'f')!r}, 'w').write('x' * 100000)")
    assert not (tmp_path / "f").exists() or (tmp_path / "f").stat().st_size == 0
    with pytest.raises(Killed):
        evaluate.ask("'x' * 5_000_000")


def test_a_worker_killed_from_outside_is_replaced(worker: Callable[[str], Killable]) -> None:
    factorial = worker("math:factorial")
    factorial.ask(3)
    first = factorial._process
    assert first is not None
    first.kill()
    first.wait()
    assert factorial.ask(4) == 24
    assert factorial._process is not None and factorial._process.pid != first.pid


def kill_forks(worker: Killable, call: Callable[[], Any], times: int) -> Any:
    """What call() returns or raises if the fork that serves its request is killed that many times from outside."""
    assert worker._process is not None
    children = Path(f"/proc/{worker._process.pid}/task/{worker._process.pid}/children")
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(call)
        killed: set[str] = set()
        while len(killed) < times and not result.done():
            for pid in set(children.read_text().split()) - killed:
                os.kill(int(pid), signal.SIGKILL)
                killed.add(pid)
        assert len(killed) == times, "the request ended before its fork was seen"
        return result.result()


def test_a_request_killed_from_outside_is_tried_again(worker: Callable[[str], Killable]) -> None:
    sleeper = worker("time:sleep")
    sleeper.ask(0)
    assert kill_forks(sleeper, lambda: sleeper.ask(0.3), times=1) is None


def test_a_request_killed_from_outside_twice_is_not_at_fault(worker: Callable[[str], Killable]) -> None:
    sleeper = worker("time:sleep")
    sleeper.ask(0)
    with pytest.raises(Stalled, match="SIGKILL"):
        kill_forks(sleeper, lambda: sleeper.ask(30), times=2)
    assert sleeper.ask(0) is None


def test_an_answer_whose_check_is_killed_from_outside_is_an_error() -> None:
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT MAX(i) FROM n"
    task = {"schema": "CREATE TABLE t (a INT)", "query": query}
    grade = verifiers.load("sql_query").grade
    (verdict,) = grade([query], [task])
    assert verdict.status == "pass", verdict
    (verdict,) = kill_forks(sql_query.WORKER, lambda: grade([query], [task]), times=2)
    assert verdict.status == "error" and "SIGKILL" in verdict.detail, verdict


def test_a_crash_of_the_library_is_the_fault_of_the_request(worker: Callable[[str], Killable]) -> None:
    with pytest.raises(Killed):
        worker("builtins:eval").ask("__import__('os').abort()")


def test_a_stalled_worker_is_distinguished_from_a_costly_request(
    worker: Callable[[str], Killable], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = worker("time:sleep")
    sleeper.ask(0)
    monkeypatch.setattr(_killable, "WALL_S", 5.0)
    before = forks()
    with ThreadPoolExecutor(1) as thread:
        reply = thread.submit(sleeper.ask, 3600)
        while not (sleeping := forks() - before) and not reply.done():
            time.sleep(0.01)
        assert sleeping
        with pytest.raises(Stalled):
            reply.result()
    deadline = time.monotonic() + 10
    while sleeping & forks() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not sleeping & forks()
    monkeypatch.setattr(_killable, "WALL_S", 60.0)
    assert sleeper.ask(0) is None


def test_threads_get_their_own_answers(worker: Callable[[str], Killable]) -> None:
    factorial = worker("math:factorial")
    with ThreadPoolExecutor(8) as threads:
        found: list[Any] = list(threads.map(factorial.ask, [n % 7 for n in range(100)]))
    assert found == [[1, 1, 2, 6, 24, 120, 720][n % 7] for n in range(100)]
