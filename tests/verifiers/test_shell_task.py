"""shell_task: what a script leaves behind decides, and nothing that it says, links to or writes later."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import pytest
from sandboxes import needs_shell, shell_scripts

from verifiers import Verdict, load, sandbox, shell_task

pytestmark = needs_shell

ERRORS: dict[str, Any] = {
    "prompt": "Write the ERROR lines of app.log, without the word, to errors.txt; leave app.log as it was.",
    "files": {"app.log": "INFO start\nERROR disk full\nINFO ok\nERROR net down\nWARN slow\n"},
    "checks": [{"file": "errors.txt", "equals": "disk full\nnet down\n"}, {"unchanged": "app.log"}],
    "timeout_s": 2.0,
}


def run(script: str, *checks: dict[str, Any], files: dict[str, str] | None = None, timeout_s: float = 2.0) -> Verdict:
    task = {"prompt": "", "files": files or {}, "checks": list(checks), "timeout_s": timeout_s}
    return shell_task.verify(f"```bash\n{script}\n```", cast(shell_task.Task, task))


def prints(script: str, expected: str, **kwargs: Any) -> bool:
    return run(script, {"stdout_equals": expected}, **kwargs).status == "pass"


@pytest.mark.parametrize(("expected", "script"), [pytest.param(e, s, id=f"{e}: {n}") for e, n, s in shell_scripts()])
def test_a_script_is_judged_by_what_it_leaves(expected, script):
    verdict = shell_task.verify(f"```bash\n{script}```", cast(shell_task.Task, ERRORS))
    assert verdict.status == expected, verdict.detail


def test_scripts_leave_nothing_for_each_other():
    """All the attacks on one worker, an honest script between any two."""
    sandbox.set_size(1)
    try:
        honest = "```bash\nsed -n 's/^ERROR //p' app.log > errors.txt\n```"
        for expected, name, script in shell_scripts():
            if expected == "fail" and "fork bomb" not in name:
                shell_task.verify(f"```bash\n{script}```", cast(shell_task.Task, ERRORS))
                assert shell_task.verify(honest, cast(shell_task.Task, ERRORS)).status == "pass", name
    finally:
        sandbox.set_size(None)


def test_each_check_holds_and_fails_on_its_own():
    files = {"in.txt": "a\n", "dir/deep.txt": "b\n"}
    for script, check, expected in (
        ("printf x > o", {"file": "o", "equals": "x"}, "pass"),
        ("printf y > o", {"file": "o", "equals": "x"}, "fail"),
        ("true", {"file": "o", "equals": ""}, "fail"),
        (": > o", {"file": "o", "equals": ""}, "pass"),
        ("mkdir -p p/q; echo hi > p/q/o", {"file": "p/q/o", "equals": "hi\n"}, "pass"),
        ("mkdir p; echo hi > p/o; ln -s p l", {"file": "l/o", "equals": "hi\n"}, "fail"),
        ("printf é > o", {"file": "o", "equals": "é"}, "pass"),
        ("true", {"unchanged": "in.txt"}, "pass"),
        ("true", {"unchanged": "dir/deep.txt"}, "pass"),
        ("cat in.txt > x; mv x in.txt", {"unchanged": "in.txt"}, "pass"),
        ("rm in.txt; ln -s dir/deep.txt in.txt", {"unchanged": "in.txt"}, "fail"),
        ("rm in.txt", {"absent": "in.txt"}, "pass"),
        ("rm -r dir", {"absent": "dir/deep.txt"}, "pass"),
        ("true", {"absent": "in.txt"}, "fail"),
        ("rm in.txt; ln -s nowhere in.txt", {"absent": "in.txt"}, "fail"),
        ("cat in.txt dir/deep.txt", {"stdout_equals": "a\nb\n"}, "pass"),
        ("cat in.txt dir/deep.txt; echo", {"stdout_equals": "a\nb\n"}, "fail"),
        ("echo a >&2", {"stdout_equals": ""}, "pass"),
        ("yes", {"stdout_equals": "y\n"}, "fail"),
        ("exit 3", {"exit_code": 3}, "pass"),
        ("exit 3", {"exit_code": 0}, "fail"),
        ("kill -TERM $$", {"exit_code": 143}, "pass"),
    ):
        assert run(script, check, files=files).status == expected, (script, check)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"checks": []}, "no checks"),
        ({"checks": [{"file": "x"}]}, r"checks\[0\] has the keys \['file'\]"),
        ({"checks": [{"exit_code": 0}, {"equal": "x"}]}, r"checks\[1\]"),
        ({"checks": [{"unchanged": "x"}]}, "not among its files"),
        ({"checks": [{"absent": "../x"}]}, "plain path"),
        ({"checks": [{"absent": "/etc/passwd"}]}, "plain path"),
        ({"files": {"a//b": ""}}, "plain path"),
        ({"files": {"a\0b": ""}}, "plain path"),
    ],
)
def test_a_task_that_judges_nothing_or_leads_elsewhere_is_refused(fields, words):
    task = {"prompt": "", "files": {}, "checks": [{"exit_code": 0}], **fields}
    with pytest.raises(ValueError, match=words):
        shell_task.verify("true", cast(shell_task.Task, task))


def test_a_script_sees_no_secret_no_home_and_no_other_process(monkeypatch):
    monkeypatch.setenv("WHETSTONE_TEST_SECRET", "hush-hush")
    sandbox.close()
    with tempfile.NamedTemporaryFile("w", dir=Path.home()) as file:
        file.write("hush-hush")
        file.flush()
        look = f"""
env | grep -c hush
cat /proc/*/environ 2> /dev/null | grep -c hush
cat {file.name} /root/.bashrc /etc/shadow 2> /dev/null | wc -c
ls -d /home /root /srv /work 2> /dev/null | wc -l
ls /proc | grep -c '^[0-9]' | awk '{{print ($1 < 8)}}'
[ -r /proc/1/environ ] && echo readable || echo closed
ls /proc/1/fd 2> /dev/null | wc -l
"""
        assert prints(look, "0\n0\n0\n0\n1\nclosed\n0\n")
    sandbox.close()


def test_a_script_has_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        script = f"(echo hi > /dev/tcp/127.0.0.1/{server.getsockname()[1]}) 2> /dev/null && echo open || echo closed"
        assert prints(script, "closed\n")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_script_gains_no_power():
    script = """
id -u | awk '{print ($1 > 0)}'
grep -E '^(CapEff|CapPrm|CapAmb):' /proc/self/status | grep -vc 0000000000000000
grep NoNewPrivs /proc/self/status | cut -f2
for act in "unshare -r true" "unshare -m true" "mount -t tmpfs x /mnt" "chroot / true" "setpriv --reuid 0 true" \
    "nsenter -t 1 -m true" "mknod d b 8 0" "dmesg" "chown 0 ." "bash -c 'echo > /proc/sys/kernel/core_pattern'" \
    "bash -c 'echo > /proc/sysrq-trigger'" "touch /usr/x /opt/x /x /etc/x" "rm -f /usr/bin/env" \
    "python3 -c 'import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, 1, 0, 0) != 0)'"; do
  eval "$act" > /dev/null 2>&1 && echo "$act"
done
true
"""
    assert prints(script, "1\n0\n1\n")
    assert Path("/usr/bin/env").exists()


def test_files_and_inodes_are_bounded():
    assert prints(
        "dd if=/dev/zero of=big bs=1M count=500 2> /dev/null; du -m big | cut -f1 | awk '{print ($1 <= 64)}'", "1\n"
    )
    script = "i=0; while : > f$i; do i=$((i+1)); done 2> /dev/null; echo $((i < 10000))"
    assert prints(script, "1\n", timeout_s=5.0)


def test_memory_of_all_its_processes_together_is_bounded():
    one = "python3 -c 'x = bytearray(400 << 20); import time; time.sleep(5)'"
    hog = f"for i in 1 2 3 4 5 6; do {one} & done; wait; echo done"
    started = time.monotonic()
    assert not prints(hog, "done\n")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("script", ["sleep 60", "while :; do :; done", "cat <(sleep 60)"])
def test_a_script_that_never_ends_fails(script):
    assert run(script, {"exit_code": 0}, timeout_s=1.0).status == "fail"


def test_a_late_writer_is_dead_when_the_verdict_is_there():
    mark = f"sleep-{os.getpid()}-31557600"
    assert run(f"bash -c 'exec -a {mark} sleep 31557600' & disown; exit 0", {"exit_code": 0}).status == "pass"
    assert not any(mark.encode() in p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists())


def test_rows_keep_their_order_and_a_bad_row_is_alone():
    rows: list[Any] = [
        ("echo hi", {"prompt": "", "files": {}, "checks": [{"stdout_equals": f"{'hi' if i % 2 else 'ho'}\n"}]})
        for i in range(6)
    ]
    rows.insert(3, ("echo hi", {"prompt": "", "files": {}, "checks": [{"nonsense": 1}]}))
    verdicts = load("shell_task").grade([c for c, _ in rows], [t for _, t in rows])
    assert [v.status for v in verdicts] == ["fail", "pass", "fail", "error", "pass", "fail", "pass"]


def test_examples_are_what_they_say():
    expected = {"right": "pass", "wrong": "fail", "malformed": "malformed"}
    for example in shell_task.EXAMPLES:
        verdict = shell_task.verify(example.completion, cast(shell_task.Task, example.task))
        assert verdict.status == expected.get(example.kind, "fail"), (example.completion, verdict)
