"""Interface of the sandbox for verifiers: check a function with tests, check a program, run a shell script.

Each returns a Verdict. Failures of the sample are `fail` or `malformed`; failures of the sandbox are retried once and
then `error`, never a score. A task that cannot be run at all raises ValueError.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from verifiers import Verdict, broken, failed, malformed, passed

from . import pool
from .extract import MAX_CHARS, Block, python_answer, python_blocks, shell_script
from .guest import wire
from .guest.lockdown import Limits
from .isolation import SandboxUnavailable
from .plan import TestPlan, Undecided, holds, plan
from .worker import InfrastructureError, RunningSample, SampleReport, TooBusy

VERDICT_BYTES = 1 << 16
OUTPUT_BYTES = 1 << 16  # in addition to four times the expected output
DEFAULT = Limits()
DEADLINE_S = 2 * (DEFAULT.wall_s + 3)  # for one verdict: two attempts, and the overhead of the sandbox
T = TypeVar("T")
_NO_SHELL = "shell tasks need bubblewrap: apt-get install bubblewrap; the Landlock fallback runs Python only"


def unavailable(*, shell: bool = False) -> str | None:
    """Why the sandbox cannot run here and how to fix it; None if it can."""
    try:
        kind = pool.isolation().kind
    except SandboxUnavailable as exc:
        return str(exc)
    return _NO_SHELL if shell and kind != "bwrap" else None


def verify_rows(
    verify: Callable[[str, T], Verdict], completions: Sequence[str], tasks: Sequence[T]
) -> list[Verdict]:  # fmt: skip
    """Return verify(completion, task) for all rows, in order; runs as many at the same time as there are workers.

    A row that raises gets `error` and does not affect other rows. Raises SandboxUnavailable without isolation.
    """
    name = verify.__module__.rpartition(".")[2]

    def one(row: tuple[str, T]) -> Verdict:
        try:
            return verify(*row)
        except SandboxUnavailable:
            raise
        except Exception as exc:  # the untrusted border: an error in a row affects only that row
            return broken(f"{name}: {type(exc).__name__}: {exc}")

    return pool.each(one, list(zip(completions, tasks, strict=True)))


def limits_for(timeout_s: float | None) -> Limits:
    """The limits of a task that requests `timeout_s` seconds of CPU; the wall time is twice that, for slow machines.

    Raises ValueError outside (0, 3600].
    """
    if timeout_s is None:
        return DEFAULT
    if not 0 < timeout_s <= 3600:
        raise ValueError(f"the task's timeout_s is {timeout_s!r}; it must be above 0 and at most 3600")
    cpu_s = max(1, round(timeout_s))  # the kernel counts whole seconds
    return replace(DEFAULT, wall_s=2.0 * max(timeout_s, cpu_s), cpu_s=cpu_s)


def check_function(
    completion: str, *, entry_point: str, tests: Sequence[str], prompt: str, limits: Limits = DEFAULT
) -> Verdict:
    """Whether the code in the completion passes all tests.

    Raises ValueError if the task cannot be run, SandboxUnavailable if the code cannot be isolated.
    """
    how = plan(entry_point, tuple(tests), prompt)
    if len(completion) > MAX_CHARS:
        return malformed(f"longer than {MAX_CHARS} characters")
    blocks = python_blocks(completion)
    if not any(block.strip() for block in blocks):
        return malformed("no code")
    if how.calls is not None:
        verdict = decided(partial(_call, blocks=blocks, how=how, limits=limits))
        if verdict is not None:
            return verdict
    return decided(partial(_judge, blocks=blocks, how=how, limits=limits))


def decided(run: Callable[[pool.Workers], T]) -> T | Verdict:
    """The result of run(workers), called again if the sandbox failed; a Verdict if the sample or the sandbox is at
    fault twice."""
    try:
        return pool.attempt(run, lambda doubtful: failed(str(doubtful)))
    except TooBusy as exc:
        return broken(str(exc))
    except InfrastructureError as exc:
        return broken(f"the sandbox failed twice: {exc}")


def _call(workers: pool.Workers, blocks: list[str], how: TestPlan, limits: Limits) -> Verdict | None:
    """Fast path: one sandbox, results compared in this process. None if only a judge can decide."""
    assert how.calls is not None
    with workers("candidate") as worker, worker.sample(limits) as sample:
        sample.give(["calls", blocks, how.entry, how.calls])
        try:
            reply = sample.hear(how.reply_bytes)
        except wire.TooLong:
            sample.stop()
            sample.end()
            return None
        report = sample.end(answered=reply is not None)
    if reply is None:
        return failed(how_it_ended(report, limits))
    return _compare(reply, how)


def _compare(reply: bytes, how: TestPlan) -> Verdict | None:
    """The verdict on the results that a sample reports for its calls; None if only a judge can decide."""
    try:
        (status, detail), *outcomes = json.loads(reply)
        if status != "ok":
            return (malformed if status == "malformed" else failed)(f"loading the code: {detail}"[:400])
        for number, (expectation, outcome) in enumerate(zip(how.expectations, outcomes, strict=False), 1):
            returned, value = outcome
            if returned is not True or not holds(expectation, value):
                what = "gave another value" if returned is True else f"raised {value}"
                return failed(f"test {number} of {len(how.expectations)}: {expectation.source[:120]}: {what}"[:400])
    except Undecided:
        return None
    except (ValueError, TypeError, RecursionError, LookupError):  # the border: hostile bytes
        return failed("the completion's process sent what cannot be read")
    if len(outcomes) != len(how.expectations):
        return failed("the completion's process answered another number of calls")
    return passed(f"{len(outcomes)} tests")


def _judge(workers: pool.Workers, blocks: list[str], how: TestPlan, limits: Limits) -> Verdict:
    """Slow path: the tests run in a second sandbox, and only that sandbox reports their result."""
    patient = replace(limits, wall_s=limits.wall_s + 1)  # so that the code reaches its own deadline first
    with (
        workers("candidate") as code_worker,
        workers("judge") as judge_worker,
        code_worker.sample(limits) as code,
    ):
        code.give(["serve", blocks, how.entry, how.names])
        code.wait_until_ready()
        code.socket.setblocking(True)  # non-blocking mode is a flag that both holders would share
        with judge_worker.sample(patient, peer=code.socket) as court:
            code.socket.close()  # the judge holds it now; when the judge ends, the code ends
            court.give(["judge", how.entry, how.tests, how.names, how.modules, how.imports])
            reply = court.hear(VERDICT_BYTES, extended_with=code)
            court_report = court.end(answered=reply is not None)
        if reply is None:
            code.stop()
        status, detail = json.loads(reply) if reply is not None else ("fail", "")
        code_report = code.end(answered=status != "fail")
        if code_report.late and court_report.wanted_cpu:  # the code waited for tests that did not get enough CPU time
            raise TooBusy("the machine is too busy: the tests took longer than the code may wait")
    if reply is None:
        return failed(f"the tests did not finish: {how_it_ended(court_report, patient)}")
    if status == "fail" and code_report.status:
        detail = f"{detail} ({how_it_ended(code_report, limits)})"
    return {"pass": passed, "malformed": malformed, "error": broken}.get(status, failed)(detail)


def how_it_ended(report: SampleReport, limits: Limits) -> str:
    if report.late:
        return f"killed at its deadline of {limits.wall_s:g} s after {report.cpu_s:.1f} s of CPU"
    if report.status in (-signal.SIGKILL, -signal.SIGXCPU):
        return f"used up its {limits.cpu_s} s of CPU"
    if report.status < 0:
        known = -report.status in {*signal.Signals}  # most real-time signals have no name
        return f"killed by {signal.Signals(-report.status).name if known else f'signal {-report.status}'}"
    return f"exited with status {report.status} before answering"


@dataclass(frozen=True, slots=True)
class Case:
    """The stdin of a program and the stdout it must print."""

    stdin: str
    stdout: str


def check_program(completion: str, cases: Sequence[Case], *, limits: Limits = DEFAULT) -> Verdict:
    """Whether the completion, run as a script, prints the stdout of each case for its stdin and exits with 0.

    Spaces at line ends and empty lines at the end are ignored. Raises the same errors as check_function.
    """
    if not cases:
        raise ValueError("the task has no cases: every completion would pass")
    if len(completion) > MAX_CHARS:
        return malformed(f"longer than {MAX_CHARS} characters")
    blocks = python_answer(completion)
    if not any(block.text.strip() for block in blocks):
        return malformed("no code")
    for number, case in enumerate(cases, 1):
        verdict = decided(partial(_run_program, blocks=blocks, case=case, limits=limits))
        if verdict.status != "pass":
            return replace(verdict, detail=f"case {number} of {len(cases)}: {verdict.detail}")
    return passed(f"{len(cases)} cases")


def _run_program(workers: pool.Workers, blocks: list[Block], case: Case, limits: Limits) -> Verdict:
    wanted = case.stdout.encode("utf-8", "surrogatepass")
    with workers("candidate") as worker, worker.sample(limits) as sample:
        texts, labelled = [b.text for b in blocks], [bool(b.language) for b in blocks]
        sample.give(["program", texts, labelled, case.stdin])
        output = _bounded_output(sample, OUTPUT_BYTES + 4 * len(wanted))
        report = sample.end()
    if output is None:
        return failed("printed far more than expected")
    if output[:1] == b"M":
        return malformed(output[1:].decode("utf-8", "replace"))
    if report.status:
        return failed(how_it_ended(report, limits).removesuffix(" before answering"))
    if _trimmed(output[1:]) != _trimmed(wanted):
        return failed("printed something else")
    return passed()


def run_script(source: str, stdin: str, *, output_bytes: int, limits: Limits = DEFAULT) -> bytes | str:
    """What a whole Python script prints for its stdin, or why there is no output.

    The output is a claim of the script and no verdict: for code that is itself trusted to report, such as a grader that
    somebody else wrote. Raises SandboxUnavailable without isolation.
    """

    def run(workers: pool.Workers) -> bytes | str:
        with workers("candidate") as worker, worker.sample(limits) as sample:
            sample.give(["program", [source], [True], stdin])
            output = _bounded_output(sample, output_bytes)
            report = sample.end()
        if output is None:
            return f"printed more than {output_bytes} bytes"
        if output[:1] == b"M":
            return output[1:].decode("utf-8", "replace")
        return how_it_ended(report, limits).removesuffix(" before answering") if report.status else output[1:]

    result = decided(run)
    return result.detail if isinstance(result, Verdict) else result


def _bounded_output(sample: RunningSample, at_most: int) -> bytes | None:
    try:
        return sample.hear_all(at_most)
    except wire.TooLong:
        sample.stop()
        return None


def _trimmed(text: bytes) -> list[bytes]:
    lines = [line.rstrip() for line in text.split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@dataclass(frozen=True, slots=True)
class Found:
    """What a script left at a path. kind: `file`, `absent`, or `other` for anything that is not a regular file."""

    kind: str
    content: bytes = b""  # at most the requested number of bytes


@dataclass(frozen=True, slots=True)
class ScriptRun:
    """How a script ended and what it left. exit_code: 128 + n if signal n ended its shell."""

    exit_code: int
    stdout: bytes
    found: tuple[Found, ...]


def run_shell(
    completion: str, files: Mapping[str, str], wanted: Sequence[tuple[str, int]], *, stdout_bytes: int, limits: Limits
) -> ScriptRun | Verdict:
    """Run the script of the completion in a directory with `files`; return what it left at each wanted path.

    wanted: (path, maximum number of bytes to read).
    Returns a Verdict if that already decides: malformed, out of time, or the sandbox failed.
    Raises SandboxUnavailable without bubblewrap.
    """
    script = shell_script(completion)
    if script is None or len(completion) > MAX_CHARS:
        return malformed("no shell script" if script is None else f"longer than {MAX_CHARS} characters")
    return run_shell_script(script, files, wanted, stdout_bytes=stdout_bytes, limits=limits)


def run_shell_script(
    script: str, files: Mapping[str, str], wanted: Sequence[tuple[str, int]], *, stdout_bytes: int, limits: Limits
) -> ScriptRun | Verdict:
    """The same for a script that is given as it is."""
    if pool.isolation().kind != "bwrap":
        raise SandboxUnavailable(_NO_SHELL)

    def run(workers: pool.Workers) -> ScriptRun | Verdict:
        with workers("shell") as worker, worker.sample(limits) as sample:
            sample.give([script, dict(files), list(wanted), stdout_bytes])
            reply = sample.hear((1 << 16) + 2 * (stdout_bytes + sum(w[1] for w in wanted)))
            report = sample.end(answered=reply is not None)
        if reply is None:
            return failed(how_it_ended(report, limits))
        kind, *rest = json.loads(reply)  # from pid 1 of the sandbox, which scripts cannot control
        if kind != "ran":
            raise InfrastructureError(f"the shell did not start: {rest}")
        code, stdout, found = rest
        contents = (Found(kind, bytes.fromhex(more[0]) if kind == "file" else b"") for kind, *more in found)
        return ScriptRun(code, bytes.fromhex(stdout), tuple(contents))

    return decided(run)
