"""Two seccomp filters: the allow-list of the zygote, installed once, and a short filter per sample on top of it.

The cost of an installation grows with the length of the filter, so the long list is installed once and inherited; a
sample adds about fifty instructions. Both are classic BPF over `struct seccomp_data` (linux/seccomp.h): nr at 0, arch
at 4, the six arguments as 64-bit words from 16. Arguments are compared by their low 32 bits if the kernel itself reads
32 (ioctl's command, pids, signals), so high bits set on purpose have no effect; there are no flags beyond 32 bits.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Iterable

from . import syscalls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000  # the other ABI of x86-64: the same calls with other numbers

_CLONE_THREAD = 0x00010000
_CLONE_NEW_NAMESPACES = 0x7E020000  # user, pid, net, mount, ipc, uts, cgroup
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)  # dup, flags, locks, pipe size; not F_SETOWN, F_SETSIG
_PRCTLS = (15, 16)  # thread name
_UNCATCHABLE = (9, 19)  # SIGKILL, SIGSTOP: death by SIGKILL must prove a kill from outside

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k


def _statement(code: int, k: int) -> Instruction:
    return code, 0, 0, k


def _refuse(number: int) -> Instruction:
    return _statement(_RETURN, _ERRNO | number)


def _argument(index: int) -> Instruction:
    """Load the low half of an argument (both architectures are little-endian)."""
    return _statement(_LOAD, 16 + 8 * index)


def _prologue(machine: str) -> list[Instruction]:
    """Refuse other ABIs, then leave the number of the call loaded."""
    program = [
        _statement(_LOAD, 4),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        _statement(_RETURN, _KILL_PROCESS),
        _statement(_LOAD, 0),
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32_BIT), _statement(_RETURN, _KILL_PROCESS)]
    return program


def _per_call(names: Iterable[str], numbers: dict[str, int], action: Instruction) -> list[Instruction]:
    program: list[Instruction] = []
    for name in sorted(names):
        if name in numbers:
            program += [(_EQUAL, 0, 1, numbers[name]), action]
    return program


def _when(name: str, numbers: dict[str, int], body: list[Instruction]) -> list[Instruction]:
    """Apply `body` to the call `name` as the final decision; other calls continue with their number still loaded."""
    if name not in numbers:
        return []
    return [(_EQUAL, 0, len(body), numbers[name]), *body]


def _only(index: int, values: Iterable[int], refusal: int = errno.EPERM) -> list[Instruction]:
    body = [_argument(index)]
    for value in values:
        body += [(_EQUAL, 0, 1, value), _statement(_RETURN, _ALLOW)]
    return [*body, _refuse(refusal)]


def _signal_to(pid: int, signal_index: int) -> list[Instruction]:
    """Allow only signals to the own process, and only those that can be caught."""
    body = [_argument(0), (_EQUAL, 1, 0, pid), _refuse(errno.EPERM), _argument(signal_index)]
    for number in _UNCATCHABLE:
        body += [(_EQUAL, 0, 1, number), _refuse(errno.EPERM)]
    return [*body, _statement(_RETURN, _ALLOW)]


def _clone(allowed_with: int, refused_with: int) -> list[Instruction]:
    """The flags of clone must contain a bit of `allowed_with` (if any) and none of `refused_with`."""
    body = [_argument(0)]
    if refused_with:
        body += [(_ANY_BIT, 0, 1, refused_with), _refuse(errno.EPERM)]
    if allowed_with:
        body += [(_ANY_BIT, 1, 0, allowed_with), _refuse(errno.EPERM)]
    return [*body, _statement(_RETURN, _ALLOW)]


def _allowed(shell: bool) -> frozenset[str]:
    python = syscalls.FILES | syscalls.MEMORY | syscalls.PROCESS | syscalls.EVENTS
    return python | syscalls.SHELL if shell else python


def zygote_filter(*, shell: bool, machine: str | None = None) -> bytes:
    """The allow-list of the zygote and all its children."""
    machine = machine or platform.machine()
    numbers = syscalls.numbers(machine)
    return _assemble(
        [
            *_prologue(machine),
            *_per_call(syscalls.ABSENT, numbers, _refuse(errno.ENOSYS)),
            *_per_call(syscalls.UNSUPPORTED, numbers, _refuse(errno.ENOTSUP)),
            *_per_call(_allowed(shell) | syscalls.ZYGOTE, numbers, _statement(_RETURN, _ALLOW)),
            _refuse(errno.EPERM),
        ]
    )


def sample_filter(*, shell: bool, pid: int, machine: str | None = None) -> bytes:
    """Additional restrictions of a sample. pid: its own pid, the only one it may signal without a pid namespace."""
    machine = machine or platform.machine()
    numbers = syscalls.numbers(machine)
    program = [
        *_prologue(machine),
        *_per_call(syscalls.ZYGOTE - _allowed(shell), numbers, _refuse(errno.EPERM)),
        *_when("ioctl", numbers, _only(1, _IOCTLS, errno.ENOTTY)),
        *_when("fcntl", numbers, _only(1, _FCNTLS)),
        *_when("prctl", numbers, _only(0, _PRCTLS)),
        *_when("prlimit64", numbers, _only(0, (0,))),
        *_when("socketpair", numbers, _only(0, (1,))),  # AF_UNIX
    ]
    if shell:
        program += _when("clone", numbers, _clone(0, _CLONE_NEW_NAMESPACES))
    else:
        program += _when("clone", numbers, _clone(_CLONE_THREAD, 0))
        program += _when("kill", numbers, _signal_to(pid, 1))
        program += _when("tgkill", numbers, _signal_to(pid, 2))
    return _assemble([*program, _statement(_RETURN, _ALLOW)])


def _assemble(program: list[Instruction]) -> bytes:
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    instructions: object  # `filter` is only their address and does not keep them alive
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class Filter:
    """A filter in kernel layout. mark: placeholder in it for the pid of the process that installs it."""

    def __init__(self, program: bytes, mark: int | None = None) -> None:
        buffer = bytearray(program)
        self._words = memoryview(buffer).cast("I")
        self._marks = [i for i, word in enumerate(self._words) if word == mark]
        instructions = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        argument = _Program(len(program) // 8, ctypes.addressof(instructions))
        argument.instructions = instructions
        #: arguments of prctl that install it in this process and its forks, permanently; set no_new_privs first
        self.prctl = (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(argument), 0, 0)

    def put_pid(self, pid: int) -> None:
        for index in self._marks:
            self._words[index] = pid


def for_zygote(*, shell: bool) -> Filter:
    return Filter(zygote_filter(shell=shell))


def for_samples(*, shell: bool) -> Filter:
    """sample_filter built once for all future samples, which differ only in their pid."""
    mark = 0x5EC0BB0F
    return Filter(sample_filter(shell=shell, pid=mark), mark)
