"""A shell script against what it must leave behind, in the sandbox.

The answer is the last fenced block labelled bash, sh or shell, else the last one without a language (or the whole
completion if there is no fence). It runs under bash in a directory that contains `files`. The checks run after it ends
and all processes it started have been killed. They read only regular files and follow no links; the expected values
never enter the sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, failed, passed, sandbox
from verifiers.sandbox import Found, ScriptRun, limits_for, run_shell

# each check is one of: {file, equals}, {unchanged: name}, {absent: name}, {stdout_equals: text}, {exit_code: number}
Check = Mapping[str, Any]
_KINDS = ({"file", "equals"}, {"unchanged"}, {"absent"}, {"stdout_equals"}, {"exit_code"})
DEADLINE_S = sandbox.DEADLINE_S
_SPARE_OUTPUT = 1  # one byte more than expected shows that there is too much


class Task(TypedDict):
    prompt: str
    files: dict[str, str]  # name -> text, present at the start; names may contain directories
    checks: list[Check]
    timeout_s: NotRequired[float]  # CPU seconds of one process; the script gets twice as much time


def unavailable() -> str | None:
    return sandbox.unavailable(shell=True)


def verify(completion: str, task: Task) -> Verdict:
    """Raises ValueError if the task cannot be run, SandboxUnavailable without bubblewrap."""
    files, checks = task["files"], task["checks"]
    validate(files, checks)
    wanted = [wanted_file(check, files) for check in checks]
    paths = [w for w in wanted if w is not None]
    limits = limits_for(task.get("timeout_s"))
    run = run_shell(completion, files, paths, stdout_bytes=stdout_bytes(checks), limits=limits)
    if isinstance(run, Verdict):
        return run
    found = iter(run.found)
    for number, (check, want) in enumerate(zip(checks, wanted, strict=True), 1):
        problem = problem_of(check, files, run, next(found) if want is not None else None)
        if problem:
            return failed(f"check {number} of {len(checks)}: {problem}")
    return passed(f"{len(checks)} checks")


def verify_batch(completions: Sequence[str], tasks: Sequence[Task]) -> list[Verdict]:
    """Raises SandboxUnavailable without isolation; any other failure of a row gives that row `error`."""
    return sandbox.verify_rows(verify, completions, tasks)


def stdout_bytes(checks: Sequence[Check]) -> int:
    """Number of bytes of stdout that are enough for the checks."""
    return max((len(_bytes(c["stdout_equals"])) + 1 for c in checks if "stdout_equals" in c), default=0)


def validate(files: Mapping[str, str], checks: Sequence[Check]) -> None:
    """Raises ValueError for checks that are unknown or empty, and for paths that leave the directory."""
    if not checks:
        raise ValueError("the task has no checks: every completion would pass")
    for number, check in enumerate(checks):
        if set(check) not in _KINDS:
            known = " | ".join("{" + ", ".join(sorted(kind, reverse=True)) + "}" for kind in _KINDS)
            raise ValueError(f"the task's checks[{number}] has the keys {sorted(check)}; have: {known}")
        if "unchanged" in check and check["unchanged"] not in files:
            raise ValueError(f"the task's checks[{number}]: {check['unchanged']!r} is not among its files")
    for path in [*files, *(p for check in checks if (p := _path(check)) is not None)]:
        parts = path.split("/")
        if any(part in ("", ".", "..") or "\0" in part or len(_bytes(part)) > 255 for part in parts):
            raise ValueError(f"the task names the file {path!r}; it must be a plain path below the work directory")


def _path(check: Check) -> str | None:
    return next((check[key] for key in ("file", "unchanged", "absent") if key in check), None)


def wanted_file(check: Check, files: Mapping[str, str]) -> tuple[str, int] | None:
    """The path to read and the number of bytes that are enough to check it."""
    path = _path(check)
    if path is None:
        return None
    expected = check["equals"] if "file" in check else files[path] if "unchanged" in check else ""
    return path, len(_bytes(expected)) + _SPARE_OUTPUT


def problem_of(check: Check, files: Mapping[str, str], run: ScriptRun, found: Found | None) -> str:
    """Description of the failure; empty if the check holds."""
    if "exit_code" in check:
        return "" if run.exit_code == check["exit_code"] else f"exit code {run.exit_code}, not {check['exit_code']}"
    if "stdout_equals" in check:
        expected = _bytes(check["stdout_equals"])
        return "" if run.stdout[: len(expected) + _SPARE_OUTPUT] == expected else "stdout differs"
    assert found is not None
    path = _path(check)
    if "absent" in check:
        return "" if found.kind == "absent" else f"{path} is there"
    if found.kind != "file":
        return f"{path} is {'absent' if found.kind == 'absent' else 'no regular file'}"
    expected = _bytes(check["equals"] if "file" in check else files[str(path)])
    return "" if found.content == expected else f"{path} differs"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_ERRORS: Mapping[str, Any] = {
    "prompt": "Write the ERROR lines of app.log, without the word and the space after it, to errors.txt.",
    "files": {"app.log": "INFO start\nERROR disk full\nERROR net down\nWARN slow\n"},
    "checks": [{"file": "errors.txt", "equals": "disk full\nnet down\n"}, {"unchanged": "app.log"}],
}
_COUNT: Mapping[str, Any] = {
    "prompt": "Print the number of lines of list.txt, then delete the file.",
    "files": {"list.txt": "a\nb\nc\n"},
    "checks": [{"stdout_equals": "3\n"}, {"absent": "list.txt"}, {"exit_code": 0}],
}

EXAMPLES = (
    Example("right", "```bash\nsed -n 's/^ERROR //p' app.log > errors.txt\n```", _ERRORS),
    Example("right", "```sh\nawk '/^ERROR /{sub(/^ERROR /, \"\"); print}' app.log >errors.txt\n```", _ERRORS),
    Example("right", "wc -l < list.txt\nrm list.txt", _COUNT),
    Example("wrong", "```bash\ngrep ERROR app.log > errors.txt\n```", _ERRORS),
    Example("wrong", "```bash\nsed -n 's/^ERROR //p' app.log > errors.txt; : > app.log\n```", _ERRORS),
    Example("wrong", "wc -l < list.txt\nrm list.txt\nexit 3", _COUNT),
    Example("malformed", "", _ERRORS),
    Example("malformed", "```python\nprint('no shell')\n```", _ERRORS),
    Example("hostile", "```bash\necho PASS; exit 0\n```", _ERRORS),
    Example("hostile", "```bash\nln -s app.log errors.txt\n```", _ERRORS),
    Example("hostile", "```bash\nmkfifo errors.txt\n```", _ERRORS),
    Example("hostile", "```bash\nkill -9 -1; kill -9 1\n```", _ERRORS),
)
