"""A Python interpreter in the sandbox that keeps its variables and files from one call of an episode to the next."""

from __future__ import annotations

from verifiers import sandbox
from verifiers.sandbox.session import MAX_CODE_CHARS, CallRun, run_python
from verifiers.tools import ToolBroken, ToolError, ToolExample

DEADLINE_S = sandbox.DEADLINE_S


def unavailable() -> str | None:
    return sandbox.unavailable()


class Session:
    """timeout_s: CPU seconds of one call. memory_mb: of the interpreter. max_output_chars: kept of a call's output."""

    def __init__(self, *, timeout_s: float = 5.0, memory_mb: int = 1024, max_output_chars: int = 10_000) -> None:
        self._limits = timeout_s, memory_mb, max_output_chars
        self._calls: list[str] = []
        self._used_s = 0.0

    def python(self, code: str) -> str:
        """Run Python code; returns what it prints and the value of its last line.

        Variables, functions and files are kept for the next call. Only the standard library is installed, and there is
        no network.

        Args:
            code: The Python code to run.
        """
        if len(code) > MAX_CODE_CHARS:
            raise ToolError(f"the code is longer than {MAX_CODE_CHARS} characters")
        timeout_s, memory_mb, keep = self._limits
        try:
            ran = run_python(self._calls, code, keep=keep, timeout_s=timeout_s, used_s=self._used_s,
                             memory_mb=memory_mb)  # fmt: skip
        except (sandbox.InfrastructureError, sandbox.SandboxUnavailable) as exc:
            raise ToolBroken(str(exc)) from exc
        if ran.killed:
            raise ToolError(
                f"the code was stopped: {ran.killed}; variables and files are as they were before this call"
            )
        self._calls.append(code)
        self._used_s = ran.used_s
        return output_of(ran) or "(no output)"


def output_of(ran: CallRun) -> str:
    more = f"\n[{ran.dropped} more characters]" if ran.dropped else ""
    return ran.output.rstrip("\n") + more


_KEPT = [{"code": "import math\nx = 20"}, {"code": "def f(n):\n    return n + x"}, {"code": "f(22)"}]
EXAMPLES = (
    ToolExample("right", [{"code": "print(6 * 7)"}], "42"),
    ToolExample("right", [{"code": "2 ** 10"}], "1024"),
    ToolExample("right", _KEPT, "42"),
    ToolExample("right", [{"code": "open('a.txt', 'w').write('hi')"}, {"code": "open('a.txt').read()"}], "'hi'"),
    ToolExample("right", [{"code": "x = 1\nx / 0"}], "ZeroDivisionError: division by zero (line 2)"),
    ToolExample("right", [{"code": "x = 1\nx / 0"}, {"code": "x"}], "1"),
    ToolExample(
        "right", [{"code": "print('a' * 50)"}], "aaaaaaaaaa\n[41 more characters]", settings={"max_output_chars": 10}
    ),
    ToolExample("right", [{"code": "for i in range(3"}], "SyntaxError: '(' was never closed (line 1)"),
    ToolExample("right", [{"code": "x = 5"}, {"code": "while 1: 1"}, {"code": "x"}], "5", settings={"timeout_s": 1}),
    ToolExample("right", [{"code": "input()"}], "EOFError: EOF when reading a line (line 1)"),
    ToolExample("mistake", [{"code": "import os\nos._exit(0)"}], "was stopped"),
    ToolExample("mistake", [{"code": "while True: pass"}], "used up its 1 s of CPU", settings={"timeout_s": 1}),
    ToolExample("hostile", [{"code": "print('x' * 10**8)"}]),
    ToolExample("hostile", [{"code": "x = []\nwhile True: x.append(' ' * 10**6)"}], settings={"memory_mb": 256}),
    ToolExample("hostile", [{"code": "open('/etc/passwd').read()"}]),
    ToolExample("hostile", [{"code": "import socket\nsocket.create_connection(('127.0.0.1', 80), timeout=1)"}]),
)
