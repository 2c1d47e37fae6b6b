"""The trusted end of one worker: start it, send it samples one at a time, trust only its zygote.

What a sample reports arrives on its own channel and is untrusted. How it ended is reported by the zygote.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import IO, TypeVar

from .guest import wire
from .guest.lockdown import Limits
from .guest.wire import BUSY_SHARE
from .isolation import Isolation, Profile, SandboxUnavailable, fix_for

T = TypeVar("T")
START_S = 30.0
READY_S = 5.0  # from the header to a locked-down sample; detects a stopped zygote
GRACE_S = 2.0  # extra time for the zygote to report after the deadline of the sample


class InfrastructureError(RuntimeError):
    """The sandbox failed, not the sample: this says nothing about the completion."""


@dataclass(frozen=True, slots=True)
class SampleReport:
    """How a sample ended.

    status: exit code, or the negated signal number. stood_still_s: longest time for which even the zygote did not run.
    recent_share: share of one core used in the last second. waits: number of voluntary context switches;
    preemptions: number of involuntary context switches. late: killed at its deadline.
    """

    status: int
    cpu_s: float
    wall_s: float
    stood_still_s: float
    peak_mb: float
    recent_share: float
    waits: float
    preemptions: float
    late: bool

    @property
    def wanted_cpu(self) -> bool:
        """Whether it was not asleep at the end. A loop of short sleeps waits often and is rarely preempted."""
        return self.stood_still_s > 1 or (self.recent_share >= BUSY_SHARE and self.waits < 100 + 10 * self.preemptions)


class Worker:
    """One zygote and its isolation."""

    def __init__(self, isolation: Isolation, profile: Profile, number: int) -> None:
        """Raises SandboxUnavailable if it does not start."""
        self.number = number
        self.scratch = None if isolation.kind == "bwrap" else tempfile.mkdtemp(prefix="whetstone-sandbox-")
        if self.scratch is not None and isolation.changes_user:
            os.chmod(self.scratch, 0o711)  # the user of the samples must reach its own directory below
        inside = "/tmp" if self.scratch is None else os.path.join(self.scratch, "s")
        if self.scratch is not None:
            os.mkdir(inside)
        command, environment = isolation.command(profile, number, inside)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with tempfile.TemporaryFile() as complaints:
            with theirs:  # closed before the wait: a process that ends without a word is then noticed at once
                self._process = _spawn(command, environment, theirs, complaints)
            try:
                self._expect_up()
            except InfrastructureError:
                self.close()
                complaints.seek(0)
                lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
                raise SandboxUnavailable(fix_for(isolation, lines[-1] if lines else "no word from it")) from None

    def _expect_up(self) -> None:
        if self._hear(START_S) != wire.UP:
            raise InfrastructureError("a sandbox worker did not start")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @contextlib.contextmanager
    def sample(self, limits: Limits, *, peer: socket.socket | None = None) -> Iterator[RunningSample]:
        """Start a sample. peer: an additional descriptor for it. Raises InfrastructureError."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                passed = [theirs.fileno()] + ([peer.fileno()] if peer is not None else [])
                try:
                    socket.send_fds(self._control, [wire.HEADER.pack(*astuple(limits))], passed)
                except OSError as exc:
                    raise InfrastructureError(f"a sandbox worker is gone: {exc}") from None
            yield RunningSample(self, ours, limits)

    def interrupt(self) -> None:
        with contextlib.suppress(OSError):  # gone already
            self._control.send(wire.KILL)

    def report(self, timeout_s: float) -> SampleReport:
        """The report of the zygote on the sample that ended. Raises InfrastructureError."""
        message = self._hear(timeout_s)
        while message == wire.EXTENDED:
            message = self._hear(timeout_s)
        if len(message) != wire.REPORT.size:
            raise InfrastructureError("a sandbox worker ended in the middle of a sample")
        status, *figures, late = wire.REPORT.unpack(message)
        cpu_s, wall_s, stood_still_s, peak_mb, recent_share, waits, preemptions = figures
        exit_code = os.waitstatus_to_exitcode(status)
        return SampleReport(exit_code, cpu_s, wall_s, stood_still_s, peak_mb, recent_share, waits, preemptions, late)

    def speaks_before(self, sock: socket.socket, timeout_s: float) -> bool:
        """Whether the zygote sends something before the socket does, within timeout_s."""
        ready, _, _ = select.select([self._control, sock], [], [], timeout_s)
        return self._control in ready and sock not in ready

    def extend(self) -> None:
        with contextlib.suppress(OSError):  # gone already
            self._control.send(wire.EXTENDED)

    def was_extended(self) -> bool:
        """Whether the zygote has extended the deadline of the running sample since the last call."""
        with contextlib.suppress(OSError):  # nothing to read, or gone: the next read reports it
            if self._control.recv(256, socket.MSG_DONTWAIT | socket.MSG_PEEK) == wire.EXTENDED:
                self._control.recv(256)
                return True
        return False

    def _hear(self, timeout_s: float) -> bytes:
        self._control.settimeout(max(0.001, timeout_s))
        try:
            return self._control.recv(256)
        except TimeoutError:
            raise InfrastructureError(f"a sandbox worker said nothing for {timeout_s:.1f} s") from None
        except OSError as exc:
            raise InfrastructureError(f"a sandbox worker is gone: {exc}") from None

    def close(self) -> None:
        """End the worker unconditionally. Every process in its pid namespace ends with it."""
        self._control.close()
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

    def kill(self) -> None:
        """Kill it from another thread; the thread that uses it then finds it dead."""
        self._process.kill()

    def forget(self) -> None:
        """In a forked child: close our copies and leave the worker to the parent."""
        self._control.close()
        self._process.returncode = 0  # not our child: do not wait for it


class RunningSample:
    """One running sample."""

    def __init__(self, worker: Worker, sock: socket.socket, limits: Limits) -> None:
        self.socket = sock
        self.channel = wire.SocketChannel(sock)
        self._worker = worker
        self._limits = limits
        self._started = time.monotonic()
        self._stopped = False

    def left_s(self) -> float:
        """Seconds after which the zygote itself is considered broken."""
        return max(0.001, self._started + self._limits.wall_s + GRACE_S - time.monotonic())

    def give(self, job: Sequence[object]) -> None:
        """Send it the job, which it reads once it is locked down. Raises InfrastructureError."""
        self.socket.settimeout(self.left_s())
        try:
            self.channel.send(wire.dump_job(list(job)))
        except (wire.Closed, TimeoutError) as exc:
            raise InfrastructureError(f"a sample did not start: {type(exc).__name__}") from None

    def wait_until_ready(self) -> None:
        """Wait until it is locked down; reads no byte after that. Raises InfrastructureError."""
        self.socket.settimeout(READY_S)
        try:
            first = self.socket.recv(1)
            why = self.socket.recv(1000) if first == wire.NOT_READY else b""
        except OSError as exc:  # includes timeouts, caused by a stopped zygote
            raise InfrastructureError(f"a sample did not start: {type(exc).__name__}") from None
        if first != wire.READY:
            raise InfrastructureError(f"a sample could not be locked down: {why.decode('utf-8', 'replace')}")

    def hear(self, at_most: int, *, extended_with: RunningSample | None = None) -> bytes | None:
        """The next message; None if the sample ends without one. Raises TooLong, InfrastructureError.

        extended_with: another sample that it waits for; if that one gets more time, so does this one.
        """
        self.wait_until_ready()
        while extended_with is not None and extended_with._worker.speaks_before(self.socket, self.left_s()):
            if not extended_with._was_extended():
                break  # the other has ended
            self._worker.extend()
            self._started += self._limits.wall_s
        try:
            return self._patiently(lambda: self.channel.receive(at_most))
        except wire.Closed:
            return None

    def hear_all(self, at_most: int) -> bytes:
        """Everything it writes until it ends. Raises TooLong, InfrastructureError."""
        self.wait_until_ready()
        return self._patiently(lambda: self.channel.drain(at_most))

    def _patiently(self, read: Callable[[], T]) -> T:
        """Call read(), and wait longer while the zygote gives the sample more time. Raises InfrastructureError."""
        while True:
            self.socket.settimeout(self.left_s())
            try:
                return read()
            except TimeoutError:
                if not self._was_extended():
                    raise InfrastructureError("a sample outlived its deadline: its zygote is broken") from None

    def _was_extended(self) -> bool:
        if extended := self._worker.was_extended():
            self._started += self._limits.wall_s
        return extended

    def stop(self) -> None:
        """Request that it be killed, because it is no longer needed."""
        self._stopped = True
        self._worker.interrupt()

    def end(self, *, answered: bool = False) -> SampleReport:
        """Wait for its end. Raises InfrastructureError, also if another process killed it before it answered.

        A sample cannot send itself SIGKILL, and the kernel sends it only at the CPU time limit or when the machine is
        out of memory: in that case it is retried, and the second time the sample that used much memory is at fault.
        A sample killed at its deadline with CPU time left either slept, which is its own fault, or wanted the CPU and
        did not get it, which is not its fault.
        """
        while self._was_extended():
            pass
        report = self._worker.report(self.left_s())
        if answered or self._stopped or report.status != -signal.SIGKILL:
            return report
        if not report.late and report.cpu_s < 0.9 * self._limits.cpu_s:
            if report.peak_mb < 0.25 * self._limits.memory_mb:
                raise InfrastructureError("a sample was killed from outside")
            raise Doubtful(f"killed when the machine was out of memory, holding {report.peak_mb:.0f} MB")
        if report.late and report.cpu_s < self._limits.cpu_s and report.wanted_cpu:
            raise TooBusy(
                f"the machine is too busy: killed after {report.wall_s:.0f} s with {report.cpu_s:.1f} of its "
                f"{self._limits.cpu_s} s of CPU used"
            )
        return report


class TooBusy(InfrastructureError):
    """The machine did not give a sample its CPU time even after all extensions: a retry would not help."""


class Doubtful(InfrastructureError):
    """Either the machine or the sample is at fault: the first time the machine, the second time the sample."""


# bwrap dies with the thread that started it (PR_SET_PDEATHSIG), so a long-lived thread starts the workers
_spawner: list[ThreadPoolExecutor] = []


def _spawn(
    command: Sequence[str], environment: Mapping[str, str], control: socket.socket, complaints: IO[bytes]
) -> subprocess.Popen[bytes]:
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=control.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=complaints,
            start_new_session=True,  # Ctrl-C must reach only the user's program
        )

    if not _spawner:
        _spawner.append(ThreadPoolExecutor(1, thread_name_prefix="sandbox-spawner"))
    return _spawner[0].submit(start).result()


def after_fork() -> None:
    """Reset the spawner in a forked child, where its thread does not exist."""
    _spawner.clear()
