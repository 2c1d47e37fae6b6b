"""Run library code on untrusted text in a process that can be killed at any time.

One child process per function keeps the library loaded. Each request runs in a fork of it, with a kernel timer on its
CPU time and a memory limit, so an expensive request is bounded and nothing is loaded again. This limits cost; it is
not a sandbox. Untrusted code must run in verifiers/sandbox/, not here.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WALL_S = 60.0  # for a reply; if exceeded, the machine is stalled, which must not count as a wrong answer
START_S = 120.0  # for loading the library
REPLY_BYTES = 4_000_000
PR_SET_PDEATHSIG = 1
_START = "import sys; sys.path.insert(0, sys.argv[1]); from verifiers._killable import serve; serve(*sys.argv[2:])"


# how a request can end by itself: the timer of _limit, and crashes of C code that does not check for memory
OWN_FAULTS = frozenset(
    -number for number in (signal.SIGPROF, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
)


class Killed(Exception):
    """The request exceeded its CPU time or memory limit."""


class Stalled(RuntimeError):
    """No reply although the request kept its limits: a problem of the machine or of this code."""


class Killable:
    """function: `package.module:name`, which takes and returns JSON.

    Two optional functions of the same module: warm_up() runs before the first request; prepare(request) runs before
    each fork and can cache data for later requests, but must not touch the untrusted part of the request.
    """

    def __init__(self, function: str, *, cpu_s: float, memory_mb: int) -> None:
        self._arguments = [function, str(cpu_s), str(memory_mb)]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Any) -> Any:
        """Return the function's reply. Raises Killed, Stalled, or ValueError with the text of its exception.

        A request that is killed from outside (an operator, the machine out of memory) is tried again once.
        """
        outcome, value = self._outcome(request)
        if outcome == "killed from outside":
            outcome, value = self._outcome(request)
        if outcome == "killed from outside":
            raise Stalled(f"the request was killed from outside twice: {value}")
        if outcome == "killed":
            raise Killed(value)
        if outcome == "raised":
            raise ValueError(value)
        return value

    def _outcome(self, request: Any) -> tuple[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(line)
                process.stdin.flush()
            except BrokenPipeError:
                self._end()
                raise Stalled("the helper process ended before the request") from None
            reply = self._line(WALL_S)
        outcome, value = json.loads(reply)
        return outcome, value

    def _line(self, timeout_s: float) -> bytes:
        """The next line of the process. If there is no line in time, ends the process and raises Stalled."""
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else b""
        if not line.endswith(b"\n"):
            self._end()
            raise Stalled(
                f"the helper process gave no reply within {timeout_s:g} s" if not ready else "the helper process ended"
            )
        return line

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, str(ROOT), *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"PATH": "/usr/bin:/bin"},
            )
            atexit.register(self._end)
            self._line(START_S)
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # data not yet sent to the killed process
                        pipe.close()
        atexit.unregister(self._end)


def serve(function: str, cpu_s: str, memory_mb: str) -> None:
    """Main loop of the child: one fork per line of stdin, one line on stdout for each."""
    module_name, _, name = function.partition(":")
    module = importlib.import_module(module_name)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be read as a reply
    libc = ctypes.CDLL(None)
    getattr(module, "warm_up", lambda: None)()
    replies.write(b"ready\n")
    replies.flush()
    prepare = getattr(module, "prepare", None)
    for line in sys.stdin.buffer:
        if prepare is not None:
            prepare(json.loads(line))
        receiver, sender = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(receiver)  # else a reply that is too long deadlocks on its own pipe
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # else a sleeping request would outlive this process
            _limit(float(cpu_s), int(memory_mb))
            _reply(getattr(module, name), line, sender)
        os.close(sender)
        with os.fdopen(receiver, "rb") as pipe:
            reply = pipe.read(REPLY_BYTES)
        _, status = os.waitpid(pid, 0)
        replies.write(_ended(os.waitstatus_to_exitcode(status), reply))
        replies.flush()


def _ended(exit_code: int, reply: bytes) -> bytes:
    """The reply of a fork that has ended. Its limits end it by a signal of OWN_FAULTS, by exit 1, or by a cut reply."""
    if exit_code < 0 and exit_code not in OWN_FAULTS:
        return json.dumps(["killed from outside", signal.Signals(-exit_code).name]).encode() + b"\n"
    if exit_code != 0 or not reply.endswith(b"\n"):
        return b'["killed", "over its limit of CPU time or memory"]\n'
    return reply


def _limit(cpu_s: float, memory_mb: int) -> None:
    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF's default action ends the process, whatever it is doing
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20, memory_mb * 2**20))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def _reply(function: Any, line: bytes, sender: int) -> None:
    try:
        reply = json.dumps(["value", function(json.loads(line))])
    except (MemoryError, RecursionError):
        os._exit(1)
    except Exception as exc:  # the untrusted border: reported to the caller
        reply = json.dumps(["raised", f"{type(exc).__name__}: {exc}"])
    try:
        with os.fdopen(sender, "wb") as pipe:
            pipe.write(reply.encode() + b"\n")
    finally:
        os._exit(0)
