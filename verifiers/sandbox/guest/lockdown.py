"""Drop all privileges of a newly forked process, permanently, before it reads any untrusted byte.

In order: resource limits, the user, capabilities, the file system (Landlock, if there is no mount namespace), new
privileges, system calls. Every step raises OSError if the kernel refuses it: a partly locked sample never starts.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from . import seccomp, syscalls

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CAPABILITY_VERSION_3 = 0x20080522
_DAC_READ_SEARCH = 2
_SIGKILL = 9
MIB = 1 << 20

Confinement = Literal["namespaces", "landlock", "none"]
_Call = tuple[Any, ...]  # number and arguments of a system call


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one sample. The zygote enforces wall_s, the kernel enforces the rest."""

    wall_s: float = 6.0
    cpu_s: int = 3
    memory_mb: int = 1024
    file_mb: int = 16
    open_files: int = 128
    processes: int = 64  # includes threads

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"sandbox limit {name} is {getattr(self, name)!r}; it must be above 0")


def load_libc() -> ctypes.CDLL:
    """The C library, called without releasing the GIL: needed for forks, and it touches less memory."""
    return ctypes.PyDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    """Return the result of a C call. Raises OSError if it indicates an error."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def forbid_new_privileges(libc: ctypes.CDLL) -> None:
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def hide_memory(libc: ctypes.CDLL) -> None:
    """Prevent processes of the same user from reading /proc/PID of this process, including descriptors and memory."""
    check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


class LockDown:
    """All privileges that a sample drops, prepared before the fork as a list of system calls.

    A forked process pays for every page it touches, so it only runs one short loop over this list.
    """

    def __init__(
        self,
        libc: ctypes.CDLL,
        *,
        uid: int | None,
        confinement: Confinement,
        shell: bool,
        readable: Sequence[str] = (),
        scratch: str = "/tmp",
        keep: int = 5,
    ) -> None:
        """keep: descriptors with this number or higher are closed."""
        self._libc = libc
        self._numbers = syscalls.numbers(platform.machine())
        self._uid = uid
        self._confinement = confinement
        self._filter = seccomp.for_samples(shell=shell)
        self._readable = readable
        self._scratch = scratch
        self._keep = keep
        self._limits: Limits | None = None
        self._calls: list[_Call] = []
        self._names: list[str] = []

    def prepare(self, limits: Limits) -> None:
        """Run in the zygote, before the fork."""
        if limits == self._limits:
            return
        self._limits = limits
        number = self._numbers
        named: list[tuple[str, _Call]] = [
            ("close_range", (number["close_range"], self._keep, ctypes.c_long(0xFFFFFFFF), 0)),
            ("setsid", (number["setsid"],)),
            ("chdir", (number["chdir"], ctypes.create_string_buffer(os.fsencode(self._scratch)))),
            *self._limit_calls(limits),
        ]
        if self._confinement != "none":
            named += self._user_calls()
            # must come after the change of user, which clears it
            named.append(("PR_SET_PDEATHSIG", (number["prctl"], 1, _SIGKILL, 0, 0, 0)))
            named.append(("seccomp", (number["prctl"], *self._filter.prctl)))
        self._names = [name for name, _ in named]
        self._calls = [call for _, call in named]

    def apply(self) -> None:
        """Run in the child. Raises OSError."""
        syscall = self._libc.syscall
        self._filter.put_pid(os.getpid())
        for i, call in enumerate(self._calls):
            if self._names[i] == "seccomp" and self._confinement == "landlock":
                restrict_files(self._libc, self._readable, self._scratch)
            if syscall(*call) < 0:
                check(-1, self._names[i])

    def _limit_calls(self, limits: Limits) -> list[tuple[str, _Call]]:
        # no limit if the kernel would count all processes of the user's session
        processes = limits.processes if self._confinement == "namespaces" or self._uid is not None else None
        calls: list[tuple[str, _Call]] = []
        for which, value in (
            (resource.RLIMIT_CPU, limits.cpu_s),
            (resource.RLIMIT_AS, limits.memory_mb * MIB),
            (resource.RLIMIT_FSIZE, limits.file_mb * MIB),
            (resource.RLIMIT_NOFILE, limits.open_files),
            (resource.RLIMIT_NPROC, processes),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_MEMLOCK, 0),
        ):
            if value is not None:
                _, hard = resource.getrlimit(which)
                bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
                # SIGXCPU first, because it shows the cause. A sample that ignores it gets SIGKILL a second later
                spare = int(which == resource.RLIMIT_CPU)
                both = (ctypes.c_uint64 * 2)(bounded, bounded + spare)
                calls.append(("setrlimit", (self._numbers["prlimit64"], 0, which, both, None)))
        return calls

    def _user_calls(self) -> list[tuple[str, _Call]]:
        """Switch to the user of the samples and drop all capabilities.

        Without a mount namespace, CAP_DAC_READ_SEARCH is kept for an interpreter that only root can access: Landlock
        still restricts it.
        """
        calls: list[tuple[str, _Call]] = []
        kept = 0
        if self._uid is not None:
            if self._confinement == "landlock":
                kept = 1 << _DAC_READ_SEARCH
                calls.append(("PR_SET_KEEPCAPS", (self._numbers["prctl"], 8, 1, 0, 0, 0)))
            uid = ctypes.c_long(self._uid)
            calls.append(("setgroups", (self._numbers["setgroups"], 0, None)))
            calls.append(("setresgid", (self._numbers["setresgid"], uid, uid, uid)))
            calls.append(("setresuid", (self._numbers["setresuid"], uid, uid, uid)))
        header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITY_VERSION_3, 0))
        sets = ctypes.create_string_buffer(struct.pack("<6I", kept, kept, 0, 0, 0, 0))
        calls.append(("capset", (self._numbers["capset"], header, sets)))
        return calls


# Landlock: linux/landlock.h; the calls have these numbers on every architecture
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH, _RULESET_VERSION = 1, 1
_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR, _FS_TRUNCATE = 1, 2, 4, 8, 1 << 14
_FS_READ = _FS_EXECUTE | _FS_READ_FILE | _FS_READ_DIR
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def landlock_version(libc: ctypes.CDLL) -> int:
    """The Landlock ABI version of the kernel, 0 if it has none."""
    return max(0, libc.syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION))


def restrict_files(libc: ctypes.CDLL, readable: Sequence[str], scratch: str) -> None:
    """Allow only reads of `readable`, writes to `scratch`, and a few devices; deny the rest of the file system."""
    version = landlock_version(libc)
    # each ABI version adds rights and rejects those it does not know
    every_right = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    network = 3 if version >= 4 else 0  # bind and connect over TCP
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals outside this domain
    attributes = struct.pack("<QQQ", every_right, network, scoped)
    known = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = check(libc.syscall(_CREATE_RULESET, attributes[:known], known, 0), "landlock_create_ruleset")
    try:
        for path, rights in (
            *((p, _FS_READ) for p in readable),
            *((p, _FS_READ_FILE | _FS_WRITE_FILE | _FS_TRUNCATE) for p in _DEVICES),
            (scratch, every_right),
        ):
            if os.path.exists(path):
                _allow(libc, ruleset, path, rights & every_right)
        check(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("<Qi", rights, descriptor)
        check(libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), "landlock_add_rule")
    finally:
        os.close(descriptor)
