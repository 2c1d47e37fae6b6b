"""A shell in the sandbox, in a directory that is kept from one call of an episode to the next.

A task may give `files` (name -> text), present at the start, and the `checks` of the verifier shell_task, which are
then what the episode earns: 1 if all hold on the directory that the calls leave, else 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verifiers import sandbox, shell_task
from verifiers.sandbox.session import MAX_CODE_CHARS, run_shell_call
from verifiers.tools import ToolBroken, ToolError, ToolExample
from verifiers.tools.python import output_of

DEADLINE_S = sandbox.DEADLINE_S


def unavailable() -> str | None:
    return sandbox.unavailable(shell=True)


class Session:
    """timeout_s: CPU seconds of one process; a call may take twice as long. max_output_chars: what is kept of it."""

    def __init__(self, *, timeout_s: float = 5.0, max_output_chars: int = 10_000) -> None:
        self._timeout_s, self._keep = timeout_s, max_output_chars
        self._calls: list[str] = []
        self._files: Mapping[str, str] = {}
        self._checks: Sequence[Mapping[str, Any]] = ()

    def reset(self, files: Mapping[str, str] | None = None, checks: Sequence[Mapping[str, Any]] = ()) -> None:
        self._files, self._checks = files or {}, checks
        if checks:
            shell_task.validate(self._files, checks)

    def shell(self, command: str) -> str:
        """Run a command or script with bash in the working directory; returns what it prints.

        Files are kept for the next call; variables and the current directory are not. There is no network.

        Args:
            command: The command or script to run.
        """
        if len(command) > MAX_CODE_CHARS:
            raise ToolError(f"the command is longer than {MAX_CODE_CHARS} characters")
        if "\0" in command:
            raise ToolError("the command contains a NUL character")
        try:
            ran, _ = run_shell_call(self._calls, command, self._files, keep=self._keep, timeout_s=self._timeout_s)
        except (sandbox.InfrastructureError, sandbox.SandboxUnavailable) as exc:
            raise ToolBroken(str(exc)) from exc
        if ran.killed:
            raise ToolError(f"the command was stopped: {ran.killed}; the files are as they were before this call")
        self._calls.append(command)
        code = f"[exit code {ran.exit_code}]" if ran.exit_code else ""
        return "\n".join(filter(None, (output_of(ran), code))) or "(no output)"

    def get_reward(self) -> float | None:
        """1 if the task's checks hold, else 0; None without checks. Raises ToolBroken if the sandbox fails."""
        if not self._checks:
            return None
        wanted = [shell_task.wanted_file(check, self._files) for check in self._checks]
        paths = [one for one in wanted if one is not None]
        *earlier, last = self._calls or [":"]
        keep = shell_task.stdout_bytes(self._checks)
        try:
            ran, found = run_shell_call(earlier, last, self._files, paths, keep=keep, timeout_s=self._timeout_s)
        except (sandbox.InfrastructureError, sandbox.SandboxUnavailable) as exc:
            raise ToolBroken(str(exc)) from exc
        if ran.killed:
            return 0.0
        left = sandbox.ScriptRun(ran.exit_code, ran.output.encode("utf-8", "surrogatepass"), found)
        read = iter(found)
        problems = [shell_task.problem_of(check, self._files, left, next(read) if want is not None else None)
                    for check, want in zip(self._checks, wanted, strict=True)]  # fmt: skip
        return float(not any(problems))


_FILES = {"files": {"a.txt": "one\n", "b/c.txt": "two\n"}}
EXAMPLES = (
    ToolExample("right", [{"command": "cat a.txt b/c.txt"}], "one\ntwo", task=_FILES),
    ToolExample("right", [{"command": "echo 1 > x; mkdir d"}, {"command": "cat x; ls -d d"}], "1\nd"),
    ToolExample("right", [{"command": "true"}], "(no output)"),
    ToolExample("right", [{"command": "cat missing"}], "cat: missing: No such file or directory\n[exit code 1]"),
    ToolExample("right", [{"command": "echo a; exit 3"}], "a\n[exit code 3]"),
    ToolExample("right", [{"command": "exit 3"}, {"command": "echo b"}], "b"),
    ToolExample("right", [{"command": "printf '%s' '```' \"it's\""}], "```it's"),
    ToolExample("right", [{"command": "touch kept"}, {"command": "touch lost; sleep 60"}, {"command": "ls"}], "kept",
            settings={"timeout_s": 0.5}),
    ToolExample("mistake", [{"command": "sleep 60"}], "was stopped", settings={"timeout_s": 0.5}),
    ToolExample("mistake", [{"command": "echo \0"}], "NUL"),
    ToolExample("hostile", [{"command": "yes"}], settings={"timeout_s": 0.5}),
    ToolExample("hostile", [{"command": "cat /etc/shadow; ls /home /root; touch /etc/whetstone-probe"}]),
    ToolExample("hostile", [{"command": "kill -0 1"}]),
    ToolExample("hostile", [{"command": "for i in $(seq 50); do sleep 9 & done; wait"}], settings={"timeout_s": 0.5}),
)  # fmt: skip
