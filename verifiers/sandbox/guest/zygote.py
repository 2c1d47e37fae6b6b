"""The first process of a sandbox: warm and single-threaded, it forks one child per sample and outlives all of them.

It reads fixed-size headers from its control socket (its stdin) and never a byte of a completion. Each header comes
with the descriptor of the sample's own channel, and optionally with a second one, the channel to a sample of another
sandbox. The child locks itself down, writes R on its channel, and only then reads its job from it. When it has ended,
or has been killed at its deadline, the zygote reports its exit status and times on the control socket, which samples
cannot access.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import contextlib
import ctypes
import gc
import json
import os
import platform
import select
import signal
import socket
import stat
import sys
import threading
import time
from typing import NoReturn

from . import candidate, cells, judge_process, lockdown, script, seccomp, syscalls, wire
from .wire import BUSY_SHARE, EXTENDED, EXTENSIONS, HEADER, KILL, NOT_READY, READY, REPORT, UP

# the modules that completions import most often; imported once here, at no cost for the forks
_WARM = (
    "abc bisect collections collections.abc contextlib copy dataclasses enum functools heapq itertools json math"
    " operator random re string threading typing"
).split()

CHANNEL_FD, PEER_FD = 3, 4
_MNT_DETACH = 2
_CPUCLOCK_SCHED = 2  # clock_getcpuclockid(3): the id of the CPU clock of a process is derived from its pid
TICK_S = 0.25
RECENT_TICKS = 4  # the last second before the deadline shows whether a sample wanted the CPU or slept
REHEARSALS = 20


def warm_up() -> None:
    """Import the modules that samples need, and make the random generator reproducible."""
    for name in _WARM:
        __import__(name)
    sys.modules["random"].seed(0)
    for name in ("exit", "quit"):  # `site`, which is disabled, would have added them
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D"))


def rehearse() -> None:
    """Do what samples do until the interpreter has specialized its code, so that samples need not write these pages.

    CPython 3.11 and later rewrite bytecode in place during the first runs; in a child each such write copies a page.
    """
    stdout = sys.stdout
    code, test = "def f(x):\n    return x\n", "assert f(1) == 1\n"
    for _ in range(REHEARSALS):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            trusted, channel = wire.SocketChannel(ours), wire.Channel(theirs.fileno())
            trusted.send(wire.dump_job(["calls", [code], "f", [[[1, "a", None], {}]]]))
            _, *job = wire.load_job(channel.receive(candidate.JOB_BYTES))
            candidate.run_calls(channel, *job)
            trusted.receive(candidate.JOB_BYTES)
        ours, theirs = socket.socketpair()
        served = wire.Channel(theirs.fileno())
        other = threading.Thread(target=candidate.serve, args=(served, [code], "f", []))
        other.start()
        with theirs, ours:
            judge_process.judge(wire.Channel(ours.fileno()), "f", [test] * 4, [], [], [])
            ours.shutdown(socket.SHUT_RDWR)
            other.join()  # no thread may be left when the first sample is forked
    sys.stdout = stdout
    del sys.modules["solution"]


class Zygote:
    """settings: whether it runs shell scripts; user, confinement, readable paths, scratch directory of the samples."""

    def __init__(
        self,
        control: socket.socket,
        *,
        is_shell: bool,
        uid: int | None,
        confinement: lockdown.Confinement,
        readable: list[str],
        scratch: str,
    ) -> None:
        self.control = control
        self.is_shell = is_shell
        self.uid = uid
        self.confinement = confinement
        self.scratch = scratch
        self.libc = lockdown.load_libc()
        self.lock_down = lockdown.LockDown(
            self.libc,
            uid=uid,
            confinement=confinement,
            shell=is_shell,
            readable=readable,
            scratch=scratch,
            keep=PEER_FD if is_shell else PEER_FD + 1,
        )
        self.clone_number = syscalls.numbers(platform.machine())["clone"]
        self.fork_flags = signal.SIGCHLD | (script.NEW_NAMESPACES if is_shell else 0)

    def prepare(self) -> None:
        if self.confinement == "namespaces":
            if not self.is_shell:
                script.mount_scratch(self.libc, megabytes=lockdown.Limits().file_mb)
        else:
            self._clean()
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C must reach only the user's program
            self.libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if self.confinement != "none":
            lockdown.forbid_new_privileges(self.libc)
            lockdown.check(self.libc.prctl(*seccomp.for_zygote(shell=self.is_shell).prctl), "seccomp")
        if not self.is_shell:
            rehearse()
        gc.collect()
        gc.freeze()  # these objects are never garbage, so garbage collection in a child does not touch them

    def run(self) -> None:
        """Run one sample after another until the control socket closes."""
        self.control.send(UP)
        while True:
            header, descriptors, _, _ = socket.recv_fds(self.control, HEADER.size, 2)
            if not header:
                return
            if header in (KILL, EXTENDED):  # too late: the sample had already ended
                continue
            limits = _unpack(header)
            self.lock_down.prepare(limits)
            started = time.monotonic()
            pid = self._fork(self.fork_flags)
            if pid == 0:
                self._be_sample(limits, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            report = self._watch(pid, started, limits.wall_s)
            if self.confinement == "none":
                _kill_group(pid)
            self._clean()  # before the report, because its reader may start the next sample
            self.control.send(report)

    def _fork(self, flags: int) -> int:
        """os.fork without its handling of threads and hooks, which are not needed here and take a third of the cost of
        a small sample. flags: SIGCHLD and new namespaces.
        """
        pid = self.libc.syscall(self.clone_number, ctypes.c_ulong(flags), None, None, None, None)
        if pid < 0:
            raise OSError(ctypes.get_errno(), "cannot fork")
        return pid

    def _watch(self, pid: int, started: float, wall_s: float) -> bytes:
        """Wait for the sample until its deadline. Kill it early if the control socket sends a message or closes.

        The deadline is extended, at most EXTENSIONS times, while the sample uses the CPU it gets: on a busy machine a
        second of CPU time takes many seconds of wall time, and only time asleep counts against a sample.
        """
        ended = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        ready: set[int] = set()
        stood_still, woke = 0.0, started
        used = [(started, 0.0)]  # (time, CPU seconds so far) at the last ticks
        deadline, extensions = started + wall_s, EXTENSIONS
        while not ready and (left := deadline - woke) > 0:
            tick = min(left, TICK_S)
            ready = {fd for fd, _ in poll.poll(1 + tick * 1000)}
            before, woke = woke, time.monotonic()
            stood_still = max(stood_still, woke - before - tick)
            if self.control.fileno() in ready and self.control.recv(HEADER.size, socket.MSG_PEEK) == EXTENDED:
                self.control.recv(HEADER.size)
                ready.discard(self.control.fileno())
                deadline += wall_s
            if not ready:
                used = [*used[-RECENT_TICKS:], (woke, self._cpu_s(pid))]
                if woke >= deadline and extensions and _share(used) >= BUSY_SHARE:
                    deadline, extensions = woke + wall_s, extensions - 1
                    self.control.send(EXTENDED)
        if ended not in ready:
            os.kill(pid, signal.SIGKILL)
        os.close(ended)
        _, status, usage = os.wait4(pid, 0)
        cpu_s = usage.ru_utime + usage.ru_stime
        switches = usage.ru_nvcsw, usage.ru_nivcsw
        figures = cpu_s, woke - started, stood_still, usage.ru_maxrss / 1024, _share(used), *switches
        return REPORT.pack(status, *figures, not ready)

    def _cpu_s(self, pid: int) -> float:
        """CPU seconds that a running sample has used; for a shell, including everything that it started."""
        try:
            return _cpu_of_others_s() if self.is_shell else time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)
        except OSError:  # it has already ended
            return 0.0

    def _be_sample(self, limits: lockdown.Limits, descriptors: list[int]) -> NoReturn:
        """Run the sample in the child; never returns."""
        status = 1
        try:
            self.control.detach()
            os.dup2(descriptors[0], CHANNEL_FD, inheritable=False)
            if descriptors[-1] != PEER_FD:  # a duplicate of the sample's own channel if there is no second one
                os.dup2(descriptors[-1], PEER_FD)
            os.set_inheritable(PEER_FD, False)
            channel = wire.Channel(CHANNEL_FD)
            sample = self._shell_sample if self.is_shell else self._python_sample
            status = sample(channel, limits)
        except BaseException:  # this process must not return into the zygote's loop
            status = 1
        finally:
            os._exit(status)

    def _python_sample(self, channel: wire.Channel, limits: lockdown.Limits) -> int:
        try:
            self.lock_down.apply()
        except OSError as exc:
            channel.write(NOT_READY + str(exc).encode())
            return 1
        channel.write(READY)
        kind, *job = wire.load_job(channel.receive(candidate.JOB_BYTES))
        if kind != "judge":
            os.close(PEER_FD)
        if kind == "calls":
            candidate.run_calls(channel, *job)
        elif kind == "serve":
            candidate.serve(channel, *job)
        elif kind == "cells":
            cells.run_cells(channel, *job)
        elif kind == "program":
            return candidate.run_program(channel, *job)
        elif kind == "judge":
            verdict = judge_process.judge(wire.Channel(PEER_FD), *job)
            channel.send(wire.dumps(list(verdict)))
        return 0

    def _shell_sample(self, channel: wire.Channel, limits: lockdown.Limits) -> int:
        os.close(PEER_FD)
        try:
            script.enter(self.libc, limits, os.getuid() if self.uid is None else self.uid)
        except OSError as exc:
            channel.write(NOT_READY + str(exc).encode())
            return 1
        channel.write(READY)
        job = wire.load_job(channel.receive(candidate.JOB_BYTES))
        script.run_script(channel, limits, lambda: self._fork(signal.SIGCHLD), self.lock_down.apply, job)
        return 0

    def _clean(self) -> None:
        """Empty the scratch directory for the next sample, in whatever state the last one left it."""
        if self.confinement == "namespaces":
            if not self.is_shell and (os.listdir("/tmp") or stat.S_IMODE(os.stat("/tmp").st_mode) != 0o1777):
                if self.libc.umount2(b"/tmp", _MNT_DETACH):
                    raise OSError(ctypes.get_errno(), "cannot unmount the scratch place")
                script.mount_scratch(self.libc, megabytes=lockdown.Limits().file_mb)
        else:
            _remove_tree(self.scratch)
            os.mkdir(self.scratch, 0o700)
            if self.uid is not None:
                os.chown(self.scratch, self.uid, self.uid)


def _unpack(header: bytes) -> lockdown.Limits:
    wall_s, *counts = HEADER.unpack(header)
    return lockdown.Limits(wall_s, *map(int, counts))


def _share(used: list[tuple[float, float]]) -> float:
    """Share of one core that was used, from (time, CPU seconds so far) at several times."""
    return (used[-1][1] - used[0][1]) / max(TICK_S, used[-1][0] - used[0][0])


def _cpu_of_others_s() -> float:
    """CPU seconds of all processes of this pid namespace except the zygote, including children they waited for."""
    ticks = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                # after the name in brackets, from field 3 on: utime, stime, cutime, cstime are 14 to 17 (proc(5))
                ticks += sum(map(int, file.read().rpartition(b")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _kill_group(pid: int) -> None:
    """Kill what a sample left running, as far as possible, if nothing else prevents it from forking."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _remove_tree(path: str) -> None:
    import shutil  # with its compressors, too large to be forked with every sample

    def make_writable(function: object, name: str, _: object) -> None:
        os.chmod(os.path.dirname(name), 0o700)
        os.chmod(name, 0o700)
        shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)

    shutil.rmtree(path, onerror=make_writable)


def main() -> None:
    """argv: one JSON object with the settings of Zygote. The control socket is stdin; errors go to stderr."""
    settings = json.loads(sys.argv[1])
    warm_up()
    control = socket.socket(fileno=os.dup(0))
    zygote = Zygote(control, **settings)
    zygote.prepare()
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    sys.path[:] = [p for p in sys.path if p != os.path.dirname(os.path.dirname(__file__))]
    zygote.run()
