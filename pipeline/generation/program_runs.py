"""Runs of the user's own program as child processes: the row on stdin, what they print read with a bound, and nothing
of them left running: not after their end, nor when this process is killed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MAX_STDOUT, MAX_STDERR = 1 << 20, 1 << 14  # bytes kept, from the end
AFTER_S = 2.0  # for the pipes to close once the process group is killed

# Reads "+GROUP" and "-GROUP" lines; at the end of its input, which is also the death of its parent, it kills the groups
# that are left.
_GUARD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
left = set()
for line in sys.stdin:
    (left.add if line[0] == "+" else left.discard)(int(line[1:]))
for group in left:
    try: os.killpg(group, signal.SIGKILL)
    except OSError: pass
"""


def program_path() -> str:
    """PATH of a program: the directory of this interpreter first, so that `python` is this one."""
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])


def program_mistakes(command: Sequence[str]) -> list[str]:
    """What would keep the command from starting."""
    if shutil.which(command[0], path=program_path()) is None:
        return [f"program.command: there is no program {command[0]!r}; give its path, or `python` and a script"]
    missing = next((word for word in command[1:] if word.endswith(".py") and not Path(word).is_file()), None)
    return [f"program.command: {missing} does not exist (paths are relative to the directory of the command)"
            ] if missing else []  # fmt: skip


class Guard:
    """A child process that kills the process groups it was given if this process ends without taking them back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen([sys.executable, "-S", "-c", _GUARD], stdin=subprocess.PIPE, text=True,
                                         start_new_session=True)  # fmt: skip

    def add(self, group: int) -> None:
        self._write(f"+{group}\n")

    def remove(self, group: int) -> None:
        self._write(f"-{group}\n")

    def _write(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):  # it was killed: then there is no guard
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def close(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class ProgramEnd:
    """How a run ended. exit_code: negative for a signal, None if the program did not start."""

    exit_code: int | None
    stdout: str
    stderr: str

    @property
    def reason(self) -> str:
        """What went wrong, in one line."""
        last_line = next((line.strip() for line in reversed(self.stderr.splitlines()) if line.strip()), "")
        if self.exit_code is None:
            return f"the program did not start: {last_line}"
        how = f"signal {-self.exit_code}" if self.exit_code < 0 else f"exit code {self.exit_code}"
        return f"the program ended with {how}" + (f": {last_line[-300:]}" if last_line else "")


class ProgramRun:
    """One run, started at once. `ended` is set when it is over, and on_end is called from another thread."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], row: Any, guard: Guard, on_end: Callable[[], None]
    ) -> None:
        self.ended: ProgramEnd | None = None
        self._guard, self._on_end = guard, on_end
        self._process: subprocess.Popen[bytes] | None = None
        with tempfile.TemporaryFile() as stdin:  # a file: a program that does not read it blocks no one
            stdin.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace"))
            stdin.seek(0)
            try:
                self._process = subprocess.Popen(
                    list(command), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environment),
                    start_new_session=True,
                )  # fmt: skip
            except OSError as exc:
                self.ended = ProgramEnd(None, "", str(exc))
                return
        guard.add(self._process.pid)
        threading.Thread(target=self._watch, name="program", daemon=True).start()

    def kill(self) -> None:
        if self._process is not None and self.ended is None:
            _kill_group(self._process.pid)

    def _watch(self) -> None:
        process = self._process
        assert process is not None and process.stdout is not None and process.stderr is not None
        tails = [_Tail(process.stdout, MAX_STDOUT), _Tail(process.stderr, MAX_STDERR)]
        # waits without reaping: until then the group's number cannot be another's
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        _kill_group(process.pid)  # what the program left running, which may hold the pipes open
        self._guard.remove(process.pid)
        code = process.wait()
        stdout, stderr = (tail.text() for tail in tails)
        self.ended = ProgramEnd(code, stdout, stderr)
        self._on_end()


def _kill_group(group: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)


class _Tail:
    """Reads a pipe to its end in a thread and keeps the last bytes."""

    def __init__(self, pipe: IO[bytes], limit: int) -> None:
        self._pipe, self._limit, self._bytes = pipe, limit, b""
        self._thread = threading.Thread(target=self._read, name="program output", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while chunk := os.read(self._pipe.fileno(), 1 << 16):
                self._bytes = (self._bytes + chunk)[-self._limit :]
            self._pipe.close()

    def text(self) -> str:
        self._thread.join(AFTER_S)
        return self._bytes.decode("utf-8", "replace")


def printed(stdout: str) -> tuple[str | None, float | None]:
    """(answer, reward) that a program printed; None for what it did not.

    A last line that is a JSON object with no other keys than `answer` and `reward` gives these; any other text is the
    answer as a whole. Raises ValueError for a reward that is not a finite number.
    """
    text = stdout.strip()
    last = text.rpartition("\n")[2]
    try:
        record = json.loads(last) if last.startswith("{") else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not record or not record.keys() <= {"answer", "reward"}:
        return text or None, None
    answer, reward = record.get("answer"), record.get("reward")
    if reward is not None and (
        isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward)
    ):
        raise ValueError(f"the program printed the reward {str(reward)[:80]!r}, which is not a finite number")
    return None if answer is None else answer if isinstance(answer, str) else json.dumps(answer), reward


__all__ = ["Guard", "ProgramEnd", "ProgramRun", "printed", "program_mistakes", "program_path"]
