"""Run one shell script in its own namespaces: this process is its pid 1 and reports the result after the script ends.

The script gets a new tmpfs with the files of the task in `/tmp/work`, a `/proc` that shows only its own processes, and
cannot affect pid 1. When its shell ends, everything it started is killed, and only then are files read: regular files
only, without following links, at most the requested number of bytes. This process does not know the expected values.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from . import wire
from .lockdown import MIB, Limits, hide_memory

WORK = "/tmp/work"
_SCRIPT = "/tmp/.script"
_TICK_MS = 50
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_INODES = 4096
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000
NEW_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWPID


def mount_scratch(libc: ctypes.CDLL, *, megabytes: int, owner: int | None = None, inodes: int = _INODES) -> None:
    """Mount a new tmpfs over /tmp, bounded in bytes and number of files. Raises OSError."""
    owned = "mode=1777" if owner is None else f"mode=700,uid={owner},gid={owner}"
    options = f"size={megabytes}m,nr_inodes={inodes},{owned}".encode()
    if libc.mount(b"tmpfs", b"/tmp", b"tmpfs", _MS_NOSUID | _MS_NODEV, options):
        raise OSError(ctypes.get_errno(), "cannot mount a tmpfs")


def enter(libc: ctypes.CDLL, limits: Limits, owner: int) -> None:
    """Set up the new namespaces. Raises OSError."""
    hide_memory(libc)
    mount_scratch(libc, megabytes=4 * limits.file_mb, owner=owner)
    if libc.mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None):
        raise OSError(ctypes.get_errno(), "cannot mount /proc")


def run_script(
    channel: wire.Channel,
    limits: Limits,
    fork: Callable[[], int],
    lock_down: Callable[[], None],
    job: tuple[str, Mapping[str, str], Sequence[tuple[str, int]], int],
) -> None:
    """Report ["ran", exit code, stdout, [state of each wanted file]], or ["setup", why it could not start].

    job: the script, the initial files, the wanted files as (path below the work directory, maximum bytes to read), and
    the number of output bytes to keep.
    """
    script, files, wanted, stdout_bytes = job
    output, output_end = os.pipe2(os.O_CLOEXEC)
    trouble, trouble_end = os.pipe2(os.O_CLOEXEC)  # closed by a successful exec
    pid = fork()
    if pid == 0:
        _become_shell(output_end, trouble_end, lock_down, script, files)
    os.close(output_end)
    os.close(trouble_end)
    problem = os.read(trouble, 500)
    code, stdout = _wait(pid, output, limits, stdout_bytes)
    if problem:
        channel.send(wire.dumps(["setup", problem.decode("utf-8", "replace")]))
        return
    found = [_look(path, at_most) for path, at_most in wanted]
    channel.send(wire.dumps(["ran", code, stdout.hex(), found]))


def _become_shell(
    output: int, trouble: int, lock_down: Callable[[], None], script: str, files: Mapping[str, str]
) -> NoReturn:
    try:
        os.dup2(output, 1)
        trouble = os.dup2(trouble, 3, inheritable=False)  # replaces pid 1's channel; lock_down closes all above it
        lock_down()
        os.mkdir(WORK)
        _write(_SCRIPT, script)
        for name, text in files.items():
            if "/" in name:
                os.makedirs(os.path.dirname(f"{WORK}/{name}"), exist_ok=True)
            _write(f"{WORK}/{name}", text)
        os.chdir(WORK)
        os.execv("/bin/bash", ["bash", "--noprofile", "--norc", _SCRIPT])
    except BaseException as exc:  # this process must not return into the code of its parent
        os.write(trouble, f"{type(exc).__name__}: {exc}".encode("utf-8", "replace")[:500])
    finally:
        os._exit(127)


def _write(path: str, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    while data:
        data = data[os.write(file, data) :]
    os.close(file)


def _wait(pid: int, output: int, limits: Limits, stdout_bytes: int) -> tuple[int, bytes]:
    """Wait for the shell, kill the remaining processes, return its exit code (128 + n for signal n) and output."""
    kept = bytearray()
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(output, select.POLLIN)
    poll.register(ended, select.POLLIN)
    open_output = True
    look_at = time.monotonic()
    while True:
        ready = [fd for fd, _ in poll.poll(_TICK_MS)]
        if output in ready:
            open_output = _read_some(output, kept, stdout_bytes)
            if not open_output:
                poll.unregister(output)
        if ended in ready:
            break
        if time.monotonic() >= look_at:  # by the clock: also checks a script that never stops writing
            if _resident_bytes() > limits.memory_mb * MIB:
                break
            look_at = time.monotonic() + _TICK_MS / 1000
    status = _kill_all(pid)
    while open_output:
        open_output = _read_some(output, kept, stdout_bytes)
    code = os.waitstatus_to_exitcode(status)
    return (code if code >= 0 else 128 - code), bytes(kept)


def _read_some(fd: int, kept: bytearray, at_most: int) -> bool:
    """Read and keep what fits, drop the rest; return False at the end of the stream."""
    chunk = os.read(fd, 1 << 16)
    kept += chunk[: max(0, at_most - len(kept))]
    return bool(chunk)


def _kill_all(shell: int) -> int:
    """Kill every other process of this pid namespace and reap them all. Returns the shell's wait status."""
    status = 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    try:
        while True:
            pid, pid_status = os.waitpid(-1, 0)
            if pid == shell:
                status = pid_status
    except ChildProcessError:
        return status


def _resident_bytes() -> int:
    """Memory used by the processes of this pid namespace; shared pages are counted for each process."""
    pages = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                with open(f"/proc/{name}/statm") as file:
                    pages += int(file.read().split()[1])
            except (OSError, IndexError):  # it has ended
                continue
    return pages * os.sysconf("SC_PAGESIZE")


def _look(path: str, at_most: int) -> list[Any]:
    """["file", content in hexadecimal], ["absent"] or ["other", what it is]. Does not follow links or open devices."""
    *parents, name = path.split("/")
    descriptor = os.open(WORK, os.O_PATH | os.O_DIRECTORY)
    try:
        for parent in parents:
            inner = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        mode = os.lstat(name, dir_fd=descriptor).st_mode
        if not stat.S_ISREG(mode):
            return ["other", stat.filemode(mode)[0]]
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
        content = b""
        while len(content) < at_most and (more := os.read(file, at_most - len(content))):
            content += more
        os.close(file)
        return ["file", content.hex()]
    except FileNotFoundError:
        return ["absent"]
    except OSError as exc:  # e.g. a parent is a link or a file
        return ["other", os.strerror(exc.errno or 0)]
    finally:
        os.close(descriptor)
