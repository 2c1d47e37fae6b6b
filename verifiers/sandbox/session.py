"""Sessions of several calls, for tools: a Python interpreter, and a directory with a shell.

A session is the list of its calls. Each call runs in a new sample, after the earlier calls have run again there without
their output. So nothing lives between calls: thousands of sessions cost no memory, a call that is killed leaves the
session as it was before it, and a session of deterministic code has the same outputs on every run. The price is that
earlier calls cost their CPU time again, which is added to the limit of each call.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from verifiers import Verdict

from . import pool
from .guest import wire
from .runs import DEFAULT, Found, decided, how_it_ended, run_shell_script
from .worker import InfrastructureError

MAX_CODE_CHARS = 20_000  # of one call
SPARE_S = 1.0


@dataclass(frozen=True, slots=True)
class CallRun:
    """How a call ended.

    output: at most the requested number of characters. dropped: number of further ones (of a shell at least).
    killed: why the call was killed, else "". used_s: CPU seconds of all calls together.
    exit_code: of a shell; of an interpreter 1 if the code raised.
    """

    output: str
    exit_code: int = 0
    dropped: int = 0
    killed: str = ""
    used_s: float = 0.0


def run_python(
    earlier: Sequence[str], code: str, *, keep: int, timeout_s: float, used_s: float = 0.0, memory_mb: int = 1024
) -> CallRun:
    """Run `code` in an interpreter in which the earlier calls have run.

    keep: characters of output to keep. timeout_s: CPU seconds of this call; asleep it may take twice as long.
    used_s: CPU seconds of the earlier calls. Raises InfrastructureError, SandboxUnavailable.
    """
    cpu_s = math.ceil(used_s + timeout_s)
    limits = replace(DEFAULT, cpu_s=cpu_s, wall_s=2.0 * cpu_s + SPARE_S, memory_mb=memory_mb)

    def run(workers: pool.Workers) -> CallRun:
        with workers("candidate") as worker, worker.sample(limits) as sample:
            sample.give(["cells", list(earlier), code, keep])
            try:
                reply = sample.hear((1 << 16) + 12 * keep)  # a character is at most 12 bytes of JSON
            except wire.TooLong:
                sample.stop()
                sample.end()
                return CallRun("", killed="its process sent what cannot be read")
            report = sample.end(answered=reply is not None)
        if reply is None:
            return CallRun("", killed=how_it_ended(report, limits))
        return _read(reply, keep, report.cpu_s)

    return _or_raise(decided(run))


def _read(reply: bytes, keep: int, used_s: float) -> CallRun:
    """The border: the reply was written by a process that ran untrusted code."""
    try:
        fine, output, dropped = json.loads(reply)
        text = str(output)[:keep].encode("utf-8", "replace").decode()
        return CallRun(text, 0 if fine is True else 1, min(max(int(dropped), 0), 1 << 40), used_s=used_s)
    except (ValueError, TypeError, RecursionError, OverflowError):
        return CallRun("", killed="its process sent what cannot be read")


def run_shell_call(
    earlier: Sequence[str], script: str, files: Mapping[str, str], wanted: Sequence[tuple[str, int]] = (), *,
    keep: int, timeout_s: float,
) -> tuple[CallRun, tuple[Found, ...]]:  # fmt: skip
    """Run a script in a directory with `files` in which the earlier scripts have run; each is a shell of its own.

    wanted: (path, maximum number of bytes) of files to read afterwards. Raises as run_python does.
    """
    limits = replace(DEFAULT, cpu_s=math.ceil(timeout_s), wall_s=2.0 * timeout_s * (len(earlier) + 1) + SPARE_S)
    lines = [f"bash --noprofile --norc -c {shlex.quote(one)} < /dev/null > /dev/null 2>&1" for one in earlier]
    lines += [f"exec timeout -s KILL {2.0 * timeout_s:.2f} bash --noprofile --norc -c {shlex.quote(script)}"
              " < /dev/null 2>&1"]  # fmt: skip
    ran = run_shell_script("\n".join(lines), files, wanted, stdout_bytes=4 * keep + 1, limits=limits)
    if isinstance(ran, Verdict):
        return _or_raise(ran), ()
    text = ran.stdout.decode("utf-8", "replace")
    killed = f"killed after {2.0 * timeout_s:g} s" if ran.exit_code == 137 else ""
    return CallRun(text[:keep], ran.exit_code, max(len(text) - keep, 0), killed), ran.found


def _or_raise(result: CallRun | Verdict) -> CallRun:
    if not isinstance(result, Verdict):
        return result
    if result.status == "error":
        raise InfrastructureError(result.detail)
    return CallRun("", killed=result.detail)
