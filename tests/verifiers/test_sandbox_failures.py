"""When the sandbox fails, or is missing: every row is still answered, none wrongly, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sandboxes import namespaces, needs_sandbox, run

from verifiers import Verdict, load, sandbox
from verifiers.sandbox import isolation, pool
from verifiers.sandbox.worker import START_S

ROOT = Path(__file__).parents[2]
# right, after long enough for somebody to interfere
SLOW = "import time\ndef f():\n    time.sleep(1)\n    return 1"
TESTS = ("assert f() == 1", "x = f()\nassert x == 1")


def workers() -> list[pool.Worker]:
    return [w for p in pool._pools.values() for w in p._all.values()]


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *descendants(child)]
    return found


def while_running(act: Callable[[], None], test: str, code: str = SLOW) -> Verdict:
    """The verdict on `code` when `act` happens half a second after it started."""
    assert run("def f(): return 1", test).status == "pass"  # so that workers are warm
    timer = threading.Timer(0.5, act)
    timer.start()
    verdict = run(code, test)
    timer.join()
    return verdict


@needs_sandbox
@pytest.mark.parametrize("test", TESTS, ids=["fast", "judged"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_row_whose_worker_is_struck_is_answered_right(number, test):
    def strike() -> None:
        for worker in workers():
            for pid in [worker._process.pid, *descendants(worker._process.pid)]:
                with contextlib.suppress(ProcessLookupError):  # it went with the one before it
                    os.kill(pid, number)

    pool.each(lambda row: run(SLOW, row), [test] * pool.size())  # so that idle ones are struck too
    assert while_running(strike, test).status == "pass"
    sandbox.close()


@needs_sandbox
@pytest.mark.parametrize("test", TESTS, ids=["fast", "judged"])
def test_a_sample_killed_from_outside_is_tried_again_and_then_no_score(test):
    def kill_samples() -> None:
        for worker in workers():
            for pid in descendants(worker._process.pid)[-1:]:
                os.kill(pid, signal.SIGKILL)

    assert while_running(kill_samples, test).status == "pass"
    stop = threading.Event()

    def keep_killing() -> None:
        while not stop.wait(0.3):
            kill_samples()

    killer = threading.Thread(target=keep_killing)
    killer.start()
    verdict = run(SLOW, test)
    stop.set()
    killer.join()
    assert verdict.status == "error" and verdict.score is None
    assert run("def f(): return 1", test).status == "pass"


BUSY = "def f():\n    x = 0\n    for i in range(10**8): x += i\n    return x"


@needs_sandbox
def test_a_right_answer_on_a_machine_four_times_too_busy_passes():
    """It needs .8 s of the 1 s of CPU it may use, and gets them in more than the 2 s it may take."""
    code = "import time\ndef f():\n    while time.process_time() < .8: pass\n    return 1"
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * pool.cores())]
    try:
        for test in TESTS:
            verdict = run(code, test, timeout_s=1.0)
            assert verdict.status == ("pass" if test == TESTS[0] else verdict.status) != "fail", verdict
    finally:
        for process in load:
            process.kill()
            process.wait()


@needs_sandbox
@pytest.mark.parametrize("test", TESTS, ids=["fast", "judged"])
def test_a_sample_that_does_not_get_its_cpu_time_is_no_wrong_answer_however_long_it_takes(test):
    """Stopped nineteen twentieths of the time, as a machine full of other work would."""
    stop = threading.Event()

    def throttle() -> None:
        while not stop.is_set():
            pids = [pid for worker in workers() for pid in descendants(worker._process.pid)[-1:]]
            for number, seconds in ((signal.SIGSTOP, 0.19), (signal.SIGCONT, 0.01)):
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                time.sleep(seconds)

    assert run("def f(): return 1", test).status == "pass"
    timer = threading.Timer(0.2, throttle)
    timer.start()
    verdict = run(BUSY, test, timeout_s=1.0)
    stop.set()
    timer.join()
    sandbox.close()
    assert verdict.status == "error" and verdict.score is None, verdict


@needs_sandbox
@pytest.mark.parametrize("nap", ["time.sleep(60)", "time.sleep(.001)", "time.sleep(.02)"])
def test_a_sample_that_sleeps_its_time_away_has_failed(nap):
    assert run(f"import time\ndef f():\n    while True: {nap}", TESTS[0], timeout_s=1.0).status == "fail"


@needs_sandbox
@pytest.mark.parametrize("test", TESTS, ids=["fast", "judged"])
def test_rows_at_work_when_the_pool_is_closed_are_answered_right(test):
    assert while_running(sandbox.close, test).status == "pass"
    sandbox.close()
    sandbox.close()
    assert run("def f(): return 1", test).status == "pass"


@needs_sandbox
def test_idle_workers_that_died_are_replaced():
    assert run("def f(): return 1", TESTS[1]).status == "pass"
    for worker in workers():
        os.kill(worker._process.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert run("def f(): return 1", TESTS[1]).status == "pass"


@needs_sandbox
def test_a_forked_child_uses_workers_of_its_own():
    assert run("def f(): return 1", TESTS[1]).status == "pass"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if run("def f(): return 2", "assert f() == 2").status == "pass" else 3
            sandbox.close()
        finally:
            os._exit(status)
    for _ in range(5):
        assert run("def f(): return 1", TESTS[1]).status == "pass"
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert run("def f(): return 1", TESTS[1]).status == "pass"


@needs_sandbox
def test_nothing_is_left_after_closing():
    before_fds = set(os.listdir("/proc/self/fd"))
    before_files = set(os.listdir(tempfile.gettempdir()))
    sandbox.close()
    children = set(descendants(os.getpid()))
    for code in ("def f(): return 1", "import os\ndef f(): os._exit(1)", "def f():\n    open('x', 'w')"):
        for test in TESTS:
            run(code, test)
    assert len(set(descendants(os.getpid())) - children) >= 2
    sandbox.close()
    assert set(descendants(os.getpid())) <= children
    assert len(os.listdir("/proc/self/fd")) <= len(before_fds)
    assert not [f for f in set(os.listdir(tempfile.gettempdir())) - before_files if "whetstone" in f]


ENDING = """
import os, sys, threading, time
from verifiers import sandbox
from verifiers.sandbox import pool
def work(code): return sandbox.check_function(code, entry_point='f', tests=['assert f() == 1'], prompt='')
threading.Thread(target=work, args=['def f(): return 1']).start()  # started by a thread that ends
assert work('def f(): return 1').status == 'pass'
threading.Thread(target=work, args=['import time\\ndef f(): time.sleep(60)'], daemon=True).start()
time.sleep(0.5)
print(*[w._process.pid for p in pool._pools.values() for w in p._all.values()], flush=True)
"""


@needs_sandbox
@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), 9)", "os._exit(3)", "raise KeyboardInterrupt"])
def test_workers_end_with_the_program_however_it_ends(ending):
    program = subprocess.run([sys.executable, "-c", ENDING + ending], cwd=ROOT, capture_output=True, text=True)
    pids = [int(p) for p in program.stdout.split()]
    assert pids, program.stderr
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{p}").exists() for p in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [p for p in pids if Path(f"/proc/{p}").exists()]


@needs_sandbox
@pytest.mark.parametrize("test", TESTS, ids=["fast", "judged"])
def test_a_sample_ended_by_a_signal_without_a_name_has_failed(test):
    verdict = run("import os\ndef f():\n    os.kill(os.getpid(), 40)", test)
    assert verdict.status == "fail" and "killed by signal 40" in verdict.detail


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def choose(monkeypatch) -> Iterator[Callable[..., None]]:
    """Set what decides on the isolation; all is forgotten before and after."""

    def set_up(*, choice: str | None = None, path: str | None = None) -> None:
        monkeypatch.setenv(isolation.CHOICE, choice) if choice else monkeypatch.delenv(isolation.CHOICE, raising=False)
        if path is not None:
            monkeypatch.setenv("PATH", path)
        sandbox.close()

    yield set_up
    monkeypatch.undo()
    sandbox.close()


TASK = {"prompt": "", "entry_point": "f", "tests": [TESTS[0]]}


def test_without_bubblewrap_it_refuses_and_names_the_fix(choose, tmp_path):
    choose(path=str(tmp_path))
    with pytest.raises(sandbox.SandboxUnavailable, match="apt-get install bubblewrap"):
        run("def f(): return 1", TESTS[0])
    assert "bubblewrap" in str(sandbox.unavailable())
    [verdict] = load("python_tests").grade(["def f(): return 1"], [TASK])
    assert verdict.status == "error" and "apt-get install bubblewrap" in verdict.detail


def fake_bwrap(tmp_path: Path, script: str) -> str:
    file = tmp_path / "bwrap"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return f"{tmp_path}:/usr/bin:/bin"


def test_a_bubblewrap_that_may_not_isolate_is_refused_with_its_own_words(choose, tmp_path):
    choose(path=fake_bwrap(tmp_path, "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1"))
    started = time.monotonic()
    with pytest.raises(sandbox.SandboxUnavailable, match=r"uid map: Permission denied.*WHETSTONE_SANDBOX=landlock"):
        run("def f(): return 1", TESTS[0])
    assert time.monotonic() - started < START_S, "its end is noticed, not only that it says nothing"


@pytest.mark.parametrize(
    ("setting", "value", "fix"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
    ],
)
def test_a_system_that_forbids_user_namespaces_is_reported_which_switch(tmp_path, monkeypatch, setting, value, fix):
    (tmp_path / setting).parent.mkdir(parents=True)
    (tmp_path / setting).write_text(value + "\n")
    monkeypatch.setattr(isolation, "SETTINGS", tmp_path)
    words = isolation.fix_for(isolation.Isolation("bwrap", user_namespace=True), "no permissions")
    assert f"sysctl -w {fix}" in words and "no permissions" in words


def test_an_unknown_choice_is_refused_with_the_known_ones(choose):
    choose(choice="docker")
    with pytest.raises(ValueError, match="WHETSTONE_SANDBOX='docker'; have: bwrap, landlock, unsafe-none"):
        run("def f(): return 1", TESTS[0])


def test_nothing_weaker_than_bubblewrap_is_taken_without_being_asked_for(choose, tmp_path):
    choose(path=str(tmp_path))
    assert sandbox.unavailable() is not None
    assert [way.kind for way in isolation.candidates({isolation.CHOICE: "landlock"})] == ["landlock"]


def test_no_isolation_is_possible_by_name_and_says_so_loudly(choose):
    choose(choice="unsafe-none")
    with pytest.warns(UserWarning, match="UNTRUSTED CODE RUNS WITHOUT ISOLATION"):
        assert run("def f(): return 1", TESTS[1]).status == "pass"
    assert run("def f():\n    while True: pass", TESTS[0], timeout_s=1.0).status == "fail"


def test_shell_tasks_are_refused_under_the_fallback(choose):
    choose(choice="landlock")
    example = load("shell_task").examples[0]
    [verdict] = load("shell_task").grade([example.completion], [example.task])
    assert verdict.status == "error" and "apt-get install bubblewrap" in verdict.detail


# ------------------------------------------------------------------------------------------------ an ordinary user

AS_NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
CHECK_EXAMPLES = """
import os, sys, tempfile
from verifiers import load, sandbox
assert os.geteuid() == 65534 and sandbox.unavailable() is None, sandbox.unavailable()
for name in sys.argv[1:]:
    expected = {"right": "pass", "wrong": "fail", "malformed": "malformed"}
    for e in load(name).examples:
        [verdict] = load(name).grade([e.completion], [e.task])
        ok = verdict.status == expected[e.kind] if e.kind in expected else verdict.status in ("fail", "malformed")
        assert ok, (name, e.completion, verdict)
secret = tempfile.NamedTemporaryFile("w")
for body in (f"open({secret.name!r}).read()", "open('/proc/1/environ').read()", "__import__('os').fork()",
             "__import__('os').kill(1, 15)", "__import__('socket').socket()", "open('/x', 'w')"):
    code = f"def f():\\n    try: {body}\\n    except OSError: return 'blocked'\\n    return 'open'"
    verdict = sandbox.check_function(code, entry_point="f", tests=["assert f() == 'blocked'"], prompt="")
    assert verdict.status == "pass", (body, verdict)
print("all as it should be")
"""


def nobodys_python(package: Path) -> str | None:
    """An interpreter that an ordinary user can start, for the one running may lie in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        probe = [*AS_NOBODY, python, "-c", "import sys, verifiers; assert sys.version_info >= (3, 11)"]
        if Path(python).exists() and subprocess.run(probe, cwd=package, capture_output=True).returncode == 0:
            return python
    return None


@needs_sandbox
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="takes root to become somebody else")
@pytest.mark.parametrize("choice", ["bwrap", "landlock"])
def test_an_ordinary_user_has_the_same_sandbox(choice):
    with tempfile.TemporaryDirectory() as directory:
        package = Path(directory)
        package.chmod(0o755)
        shutil.copytree(ROOT / "verifiers", package / "verifiers", ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["chmod", "-R", "a+rX", directory], check=True)
        python = nobodys_python(package)
        if python is None:
            pytest.skip("no interpreter that an ordinary user can start")
        if choice == "bwrap" and not namespaces():
            pytest.skip("no bubblewrap")
        names = ["python_tests", "python_stdio", *(["shell_task"] if choice == "bwrap" else [])]
        environment = {"PATH": os.environ["PATH"], isolation.CHOICE: choice, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [*AS_NOBODY, python, "-c", textwrap.dedent(CHECK_EXAMPLES), *names]
        done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True)
        assert done.stdout == "all as it should be\n", done.stderr[-2000:]


# ---------------------------------------------------------------------------------------------------- ten thousand


@pytest.mark.long
@needs_sandbox
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_honest_runs_leave_every_verdict_right_and_nothing_behind():
    verifier = load("python_tests")
    rows = 10_000
    completions, tasks, right = [], [], []
    for i in range(rows):
        wrong = i % 5 == 0
        completions.append(f"```python\ndef f(x):\n    return [x, {i + wrong}]\n```")
        judged = i % 10 < 3
        test = f"r = f({i})\nassert r == [{i}, {i}]" if judged else f"assert f({i}) == [{i}, {i}]"
        tasks.append({"prompt": "", "entry_point": "f", "tests": [test]})
        right.append("fail" if wrong else "pass")
    verifier.grade(completions[:200], tasks[:200])
    fds, pids, memory = len(os.listdir("/proc/self/fd")), len(descendants(os.getpid())), resident_mb()
    seen = []
    for start in range(0, rows, 1000):
        verdicts = verifier.grade(completions[start : start + 1000], tasks[start : start + 1000])
        seen += [v.status for v in verdicts]
    assert seen == right
    assert len(os.listdir("/proc/self/fd")) <= fds
    assert len(descendants(os.getpid())) <= pids
    assert resident_mb() - memory < 50
    sandbox.close()
    assert not [p for p in descendants(os.getpid()) if "zygote" in Path(f"/proc/{p}/cmdline").read_text()]


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
