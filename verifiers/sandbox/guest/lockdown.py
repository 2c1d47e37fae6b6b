"""A freshly forked process gives up its powers, for good, before it reads a byte that it should not trust.

In order: resource limits, the user, capabilities, the file system (Landlock, where no mount namespace hides it),
new privileges, system calls. Every step raises OSError where the kernel refuses it: a half-locked sample never starts.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from . import seccomp

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 38
_CAPABILITY_VERSION_3 = 0x20080522
_DAC_READ_SEARCH = 2
_SIGKILL = 9
MIB = 1 << 20

Confinement = Literal["namespaces", "landlock", "none"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sample may use. wall_s is the zygote's to enforce, the rest the kernel's."""

    wall_s: float = 6.0
    cpu_s: int = 3
    memory_mb: int = 1024
    file_mb: int = 16
    open_files: int = 128
    processes: int = 64  # threads count too

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"sandbox limit {name} is {getattr(self, name)!r}; it must be above 0")


def load_libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def set_limits(limits: Limits, *, count_processes: bool) -> None:
    """count_processes=False where the kernel would count every process of the user's whole session."""
    processes = ((resource.RLIMIT_NPROC, limits.processes),) if count_processes else ()
    for which, value in (
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_AS, limits.memory_mb * MIB),
        (resource.RLIMIT_FSIZE, limits.file_mb * MIB),
        (resource.RLIMIT_NOFILE, limits.open_files),
        *processes,
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        _, hard = resource.getrlimit(which)
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bounded, bounded))


def become(uid: int | None, libc: ctypes.CDLL, *, keep_reading: bool) -> None:
    """Become `uid` (None: stay who we are) with no capability left.

    keep_reading leaves CAP_DAC_READ_SEARCH, for an interpreter that only root can reach: Landlock still bounds it.
    """
    if uid is not None:
        if keep_reading:
            _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "PR_SET_KEEPCAPS")
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    set_capabilities(1 << _DAC_READ_SEARCH if uid is not None and keep_reading else 0, libc)


def set_capabilities(mask: int, libc: ctypes.CDLL) -> None:
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = struct.pack("<6I", low, low, 0, high, high, 0)
    _check(libc.capset(header, data), "capset")


def forbid_new_privileges(libc: ctypes.CDLL) -> None:
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def hide_memory(libc: ctypes.CDLL) -> None:
    """Nobody of the same user may read /proc/PID of this process, its descriptors and memory included."""
    _check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def lock_down(
    limits: Limits,
    libc: ctypes.CDLL,
    *,
    uid: int | None,
    shell: bool,
    confinement: Confinement,
    readable: Sequence[str] = (),
    scratch: str = "/tmp",
) -> None:
    """Everything, for one sample. After this only the bytes already held are ours."""
    set_limits(limits, count_processes=confinement == "namespaces" or uid is not None)
    if confinement == "none":
        return
    become(uid, libc, keep_reading=confinement == "landlock")
    forbid_new_privileges(libc)
    _check(libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")  # a change of user clears it
    if confinement == "landlock":
        restrict_files(libc, readable, scratch)
    seccomp.install(seccomp.sample_filter(shell=shell, pid=os.getpid()), libc)


# Landlock: linux/landlock.h; the calls have these numbers on every machine
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH, _RULESET_VERSION = 1, 1
_FS_EXECUTE, _FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR, _FS_TRUNCATE = 1, 2, 4, 8, 1 << 14
_FS_READ = _FS_EXECUTE | _FS_READ_FILE | _FS_READ_DIR
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def landlock_version(libc: ctypes.CDLL) -> int:
    """The kernel's Landlock ABI, 0 where it has none."""
    return max(0, libc.syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION))


def restrict_files(libc: ctypes.CDLL, readable: Sequence[str], scratch: str) -> None:
    """Leave `readable` to be read, `scratch` to be written, a few devices, and nothing else of the file system."""
    version = landlock_version(libc)
    # each ABI knows more rights, and refuses to be asked for those it does not know
    every_right = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    network = 3 if version >= 4 else 0  # bind and connect over TCP
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals outside this domain
    attributes = struct.pack("<QQQ", every_right, network, scoped)
    known = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _check(libc.syscall(_CREATE_RULESET, attributes[:known], known, 0), "landlock_create_ruleset")
    try:
        for path, rights in (
            *((p, _FS_READ) for p in readable),
            *((p, _FS_READ_FILE | _FS_WRITE_FILE | _FS_TRUNCATE) for p in _DEVICES),
            (scratch, every_right),
        ):
            if os.path.exists(path):
                _allow(libc, ruleset, path, rights & every_right)
        _check(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("<Qi", rights, place)
        _check(libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0), "landlock_add_rule")
    finally:
        os.close(place)
