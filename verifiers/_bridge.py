"""Sessions with a program that runs in another interpreter, one JSON object per line in each direction.

The program is started once and loads its libraries. It inherits a listening Unix socket (its number is the last
argument of the command) and serves each connection to it in a process of its own, forked from the one that has loaded
everything; verifiers/_bridge_guest.py has the serving side for programs in Python. A session therefore starts in
milliseconds, and one that raises, hangs or ends takes nothing else with it: the program kills a session's processes
when its connection closes, and all of them when this process ends.

    -> {"do": "start", ...}
    <- {"value": ...} | {"raised": "ValueError: why"}
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from verifiers._secrets import hidden

MAX_LINE_BYTES = 64 << 20
SHOWN_CHARS = 600  # of what a program that ended wrote to stderr
FORWARDED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "XDG_CACHE_HOME", "HF_HOME", "UV_CACHE_DIR")


class BridgeFailed(RuntimeError):
    """The session brought no answer: the program raised, ended, or did not answer in time."""


class BridgeLate(BridgeFailed):
    """No answer within the deadline."""


class Bridge:
    """The program behind a command. It starts with the first session, and again where it has ended."""

    def __init__(self, command: Sequence[str], *, environment: Mapping[str, str], start_s: float) -> None:
        """environment: variables besides FORWARDED. start_s: for loading, which counts towards the first answer."""
        self._command, self._environment, self.start_s = list(command), dict(environment), start_s
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._loaded = False

    def open(self) -> BridgeSession:
        """A new session. Raises BridgeFailed where the program cannot be started."""
        with self._lock:
            path = self._running()
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(self.start_s)
                connection.connect(path)
            except OSError as exc:
                connection.close()
                raise BridgeFailed(f"{self._command[0]} accepts no session: {exc}") from exc
        return BridgeSession(self, connection)

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        """One request in a session of its own. Raises BridgeFailed."""
        session = self.open()
        try:
            return session.ask(request, timeout_s=timeout_s)
        finally:
            session.close()

    def loading_s(self) -> float:
        """Seconds to add to the deadline of an answer, for the program's own start."""
        return 0.0 if self._loaded else self.start_s

    def answered(self) -> None:
        self._loaded = True

    def last_words(self) -> str:
        """Why the program ended, from the end of what it wrote to stderr; "" if it runs."""
        process, log = self._process, self._log
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process is not None and log is not None:
                code = process.wait(1.0)  # its connections close before it has ended
                text = _tail(log)
                return f"{self._command[0]} ended with exit code {code}{': ' if text else ''}{text}"
        return ""

    def close(self) -> None:
        """End the program and all of its sessions."""
        with self._lock:
            self._end()

    def _running(self) -> str:
        """The path of the program's socket."""
        if self._process is not None and self._process.poll() is None and self._folder is not None:
            return str(Path(self._folder.name) / "socket")
        self._end()
        self._folder = tempfile.TemporaryDirectory(prefix="bridge-")
        path = str(Path(self._folder.name) / "socket")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen(512)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the program runs
        forwarded = {name: os.environ[name] for name in FORWARDED if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [*self._command, str(listening.fileno())], stdin=subprocess.PIPE, stdout=self._log, stderr=self._log,
                env={**forwarded, **self._environment}, pass_fds=[listening.fileno()], cwd=self._folder.name,
            )  # fmt: skip
        except OSError as exc:
            self._end()
            raise BridgeFailed(f"{self._command[0]} cannot be started: {exc.strerror or exc}") from exc
        finally:
            listening.close()
        atexit.register(self.close)
        return path

    def _end(self) -> None:
        process, self._process, self._loaded = self._process, None, False
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()  # the program ends its sessions and itself
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        atexit.unregister(self.close)


class BridgeSession:
    """One connection. Not for several threads at once."""

    def __init__(self, bridge: Bridge, connection: socket.socket) -> None:
        self._bridge, self._connection = bridge, connection
        self._received = bytearray()

    def ask(self, request: Mapping[str, Any], *, timeout_s: float) -> Any:
        """The program's answer. Raises BridgeFailed; after a BridgeLate the session is closed."""
        deadline = time.monotonic() + timeout_s + self._bridge.loading_s()
        try:
            self._connection.settimeout(max(deadline - time.monotonic(), 0.01))
            self._connection.sendall(json.dumps(request).encode() + b"\n")
            line = self._line(deadline)
        except TimeoutError:
            self.close()
            raise BridgeLate(f"no answer within {timeout_s:g} s") from None
        except OSError as exc:
            raise BridgeFailed(self._bridge.last_words() or f"the session ended: {exc}") from None
        self._bridge.answered()
        return _value(line)

    def _line(self, deadline: float) -> bytes:
        """Raises TimeoutError, ConnectionError, BridgeFailed."""
        while b"\n" not in self._received:
            if len(self._received) > MAX_LINE_BYTES:
                self.close()
                raise BridgeFailed(f"an answer of more than {MAX_LINE_BYTES >> 20} MiB")
            self._connection.settimeout(max(deadline - time.monotonic(), 0.01))
            chunk = self._connection.recv(1 << 16)
            if not chunk:
                raise ConnectionError("its process ended without an answer")
            self._received += chunk
            if time.monotonic() > deadline:
                raise TimeoutError
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        return line

    def close(self) -> None:
        self._connection.close()


def _value(line: bytes) -> Any:
    """The value of an answer. Raises BridgeFailed."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        raise BridgeFailed(f"an answer that is not JSON: {line[:80]!r}") from None
    if isinstance(answer, dict) and "raised" in answer:
        raise BridgeFailed(hidden(str(answer["raised"])))
    if not isinstance(answer, dict) or "value" not in answer:
        raise BridgeFailed(f"an answer without value: {line[:80]!r}")
    return answer["value"]


def _tail(log: IO[bytes]) -> str:
    """The last line of an error log and what stands before it, in one line."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - 8 * SHOWN_CHARS))
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return hidden(" ".join(lines[-1:])[-SHOWN_CHARS:])


__all__ = ["Bridge", "BridgeFailed", "BridgeLate", "BridgeSession"]
