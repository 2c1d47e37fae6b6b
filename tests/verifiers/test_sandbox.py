"""What the sandbox promises, attacked item by item, under bubblewrap and under the Landlock fallback."""

from __future__ import annotations

import os
import platform
import socket
import tempfile
import threading
from pathlib import Path

import pytest
from sandboxes import greedy_python, namespaces, needs_sandbox, run, says

from verifiers import python_tests, sandbox
from verifiers.sandbox import pool
from verifiers.sandbox.runs import ScriptRun, run_shell

pytestmark = needs_sandbox

# numbers on x86-64 and aarch64, from the kernel's headers
SYSCALLS = {
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "memfd_create": (319, 279), "shmget": (29, 194),
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "socket": (41, 198),
    "setuid": (105, 146), "capset": (126, 91), "seccomp": (317, 277), "kexec_load": (246, 104), "reboot": (169, 142),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "setxattr": (188, 5), "mknodat": (259, 33), "personality": (135, 92), "swapon": (167, 224), "syslog": (103, 116),
    "landlock_create_ruleset": (444, 444), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
}  # fmt: skip


@pytest.fixture(params=["bwrap", "landlock"])
def kind(request, monkeypatch):
    """Each test under each way of isolating that this machine has."""
    monkeypatch.setenv(sandbox.CHOICE, request.param)
    sandbox.close()
    if problem := sandbox.unavailable():
        pytest.skip(problem)
    yield request.param
    sandbox.close()


@pytest.fixture
def one_worker():
    sandbox.set_size(1)
    yield
    sandbox.set_size(None)


# ---------------------------------------------------------------------------------------------------- containment


def test_a_secret_in_the_environment_is_out_of_reach(kind, monkeypatch):
    monkeypatch.setenv("WHETSTONE_TEST_SECRET", "hush-hush")
    sandbox.close()  # so that workers start with it set
    said = says("""
import os, ctypes
found = [repr(os.environ)]
for path in ('/proc/self/environ', '/proc/1/environ', f'/proc/{os.getppid()}/environ'):
    try: found.append(open(path).read())
    except OSError: pass
environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')
i = 0
while environ[i]:
    found.append(environ[i].decode())
    i += 1
return 'found' if 'hush' in ''.join(found) else 'nothing in ' + str(len(''.join(found)))
""")
    assert said.startswith("nothing in "), said


def test_no_server_on_this_machine_can_be_reached(kind):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind("\0whetstone-test")  # an abstract name: no file system stands in the way
        unix.listen()
        said = says(f"""
import socket
for family, place in ((socket.AF_INET, ('127.0.0.1', {tcp.getsockname()[1]})), (socket.AF_UNIX, '\\0whetstone-test'),
                      (socket.AF_INET, ('1.1.1.1', 53))):
    try:
        socket.socket(family).connect(place)
        return 'reached'
    except OSError as e:
        why = e
return 'blocked'
""")
        assert said == "blocked"
        for listener in (tcp, unix):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_files_outside_can_be_neither_read_nor_written(kind):
    places = [Path(tempfile.gettempdir()), Path.home(), Path(__file__).parent]
    places = [place for place in places if os.access(place, os.W_OK)]
    files = []
    try:
        for place in places:
            file = place / f"whetstone-secret-{os.getpid()}"
            file.write_text("hush")
            file.chmod(0o644)
            files.append(file)
        said = says(f"""
got = []
for path in {[str(f) for f in files]} + ['/etc/passwd', '/etc/shadow', '/proc/self/maps', '/proc/1/cmdline']:
    for mode in 'r', 'r+':
        try:
            open(path, mode).close()
            got.append((path, mode))
        except OSError: pass
import sys, os, sysconfig
for place in ['/', '/usr', '/usr/bin', '/etc', '/opt', '/dev', '/var/tmp', '/root', sys.prefix,
              os.path.dirname(os.__file__), sysconfig.get_paths()['purelib'], os.path.dirname(os.getcwd())]:
    try:
        open(place + '/whetstone-written', 'w').close()
        got.append(place)
    except OSError: pass
return repr(got)
""")
        assert said == "[]"
        assert all(f.read_text() == "hush" for f in files)
    finally:
        for file in files:
            file.unlink()


def test_another_rows_tests_are_out_of_reach(kind, one_worker):
    """Rows on one worker: what one row expects is nowhere in the next, nor in a concurrent one."""
    secret = "4815162342"
    for test in (f"assert f() == {secret}", f"x = f()\nassert x == {secret}"):
        assert run("def f(): return 1", test).status == "fail"
    said = says(f"""
import gc, os, glob
half = '{secret[:5]}'
seen = []
for o in gc.get_objects():
    if type(o) in (dict, list, tuple):
        for v in (o.values() if type(o) is dict else o):
            if type(v) in (str, int, bytes) and half in repr(v) and half != v and 'gc.get_objects' not in repr(v):
                seen.append(repr(v))
for path in glob.glob('./**', recursive=True) + glob.glob('/tmp/**', recursive=True):
    try: seen += [path] if half in open(path).read() else []
    except OSError: pass
return repr(seen)[:100]
""")
    assert said == "[]"


def test_there_is_nobody_to_signal_and_nothing_to_start(kind):
    said = says("""
import os, signal, subprocess, sys
done = []
for pid in (1, os.getppid(), 0, -1, *range(2, 60)):
    if pid != os.getpid():
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP, 0):
            try:
                os.kill(pid, number)
                done.append(('kill', pid))
            except OSError: pass
for act in (os.fork, lambda: os.execv(sys.executable, ['x']), lambda: subprocess.run(['/bin/true']),
            lambda: os.posix_spawn(sys.executable, ['x'], {}), lambda: os.setuid(0), lambda: os.nice(-5),
            lambda: os.pidfd_open(1)):
    try:
        act()
        done.append(repr(act))
    except OSError: pass
return repr(done)
""")
    assert said == "[]"
    assert run("def f(): return 1", "assert f() == 1").status == "pass"


def test_limits_and_owners_of_others_cannot_be_changed(kind):
    said = says("""
import fcntl, os, resource
done = []
for pid in (os.getppid(), 1):
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, 4))
        done.append(pid)
    except (OSError, ValueError): pass
r, w = os.pipe()
for command in (fcntl.F_SETOWN, fcntl.F_SETSIG):
    try:
        fcntl.fcntl(r, command, 1)
        done.append(command)
    except OSError: pass
try:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    done.append('raised')
except (OSError, ValueError): pass
return repr(done)
""")
    assert said == "[]"


def test_no_terminal_input_can_be_faked(kind):
    said = says("""
import ctypes, fcntl
libc = ctypes.CDLL(None)
for fd in (0, 1, 2):
    for request in (0x5412, 0x5412 + (1 << 32), 0x541C):
        if libc.ioctl(fd, ctypes.c_ulong(request), ctypes.c_char_p(b'x')) == 0: return 'faked'
    try:
        fcntl.ioctl(fd, 0x5412, b'x')
        return 'faked'
    except OSError: pass
return 'blocked'
""")
    assert said == "blocked"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no table for this machine")
def test_dangerous_system_calls_are_refused(kind):
    column = ("x86_64", "aarch64").index(platform.machine())
    numbers = {name: pair[column] for name, pair in SYSCALLS.items() if pair[column] is not None}
    said = says(f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
allowed = []
for name, number in {numbers}.items():
    ctypes.set_errno(0)
    result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
    if result != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOTSUP):
        allowed.append((name, result, ctypes.get_errno()))
ctypes.set_errno(0)
libc.syscall(435, 0, 0)
allowed += [] if ctypes.get_errno() == errno.ENOSYS else ['clone3']
for flags in (0x10000000, 0x20000, 0x11):
    if libc.syscall({(56, 220)[column]}, flags, 0, 0, 0, 0) != -1: allowed.append(flags)
return repr(allowed)
""")
    assert said == "[]"


def test_another_abi_ends_the_process(kind):
    if platform.machine() != "x86_64":
        pytest.skip("only x86-64 has x32")
    code = "import ctypes\ndef f(): ctypes.CDLL(None).syscall(0x40000000 + 39)"
    verdict = run(code, "assert f() == 1")
    assert verdict.status == "fail" and "SIGSYS" in verdict.detail


def test_the_user_is_nobody_and_stays_so(kind):
    said = says("""
import ctypes, os
libc = ctypes.CDLL(None)
bad = []
if os.geteuid() == 0: bad.append('root')
for call in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0)):
    try:
        call()
        bad.append('changed')
    except OSError: pass
if libc.prctl(39, 0, 0, 0, 0) == 0: bad.append('new privileges')
if libc.prctl(4, 1, 0, 0, 0) == 0: bad.append('prctl')
return repr(bad)
""")
    assert said == ("[]" if os.geteuid() == 0 or kind == "bwrap" else said)
    assert "root" not in said and "changed" not in said


def test_a_sample_leaves_nothing_for_the_next(kind, one_worker):
    leave = """
import os
def f():
    open('left.txt', 'w').close()
    os.makedirs('a/b/c')
    os.chmod('a/b', 0)
    os.symlink('/etc', 'link')
    os.mkfifo('pipe')
    os.chmod('.', 0o000) if hasattr(os, 'chmod') else None
"""
    run(leave, "assert f() == 1")
    look = "import os\ndef f():\n    open('own.txt', 'w').close()\n    return sorted(os.listdir('.'))"
    for _ in range(2):
        verdict = run(look, "assert f() == ['own.txt']")
        assert verdict.status == "pass", verdict


# ------------------------------------------------------------------------------------------------------ resources

QUICK = {"timeout_s": 1.0}
QUICKEST = ("one huge object", "descriptors", "file size", "pipes")


@pytest.mark.parametrize(
    "code", [pytest.param(c, id=n, marks=[] if n in QUICKEST else pytest.mark.slow) for n, c in greedy_python().items()]
)
def test_greed_fails_and_the_next_row_is_right(code):
    for test in ("assert f() == 1", "x = f()\nassert x == 1"):
        assert run(code, test, **QUICK).status == "fail"
    assert run("def f(): return 1", "assert f() == 1", **QUICK).status == "pass"


@pytest.mark.skipif(not namespaces(), reason="only a namespace of its own bounds the scratch place as a whole")
@pytest.mark.parametrize(
    "fill",
    [
        "for i in range(100):\n        with open(f'f{i}', 'wb') as h: h.write(b'x' * 10**6)",
        "for i in range(10**6): open(f'f{i}', 'w').close()",
        "for i in range(10**5):\n        os.mkdir('d')\n        os.chdir('d')",
    ],
    ids=["bytes", "inodes", "depth"],
)
def test_a_full_scratch_place_is_the_fillers_problem_alone(one_worker, fill):
    code = f"import os\ndef f():\n    {fill}"
    verdict = run(code, "assert f() is None")
    assert verdict.status == "fail" and "No space" in verdict.detail
    write = "def f():\n    with open('x', 'wb') as h: return h.write(b'x' * 10**7)"
    assert run(write, "assert f() == 10000000").status == "pass"


def test_what_is_late_says_so():
    assert "deadline" in run("import time\ndef f(): time.sleep(60)", "assert f() == 1", **QUICK).detail
    assert "CPU" in run("def f():\n    while True: pass", "assert f() == 1", timeout_s=1.0).detail


def test_limits_are_checked():
    with pytest.raises(ValueError, match="timeout_s"):
        sandbox.limits_for(0)
    with pytest.raises(ValueError, match="memory_mb"):
        sandbox.Limits(memory_mb=0)


# -------------------------------------------------------------------------------------------------- many at once


def test_threads_get_their_own_rows_right():
    wrong: list[int] = []

    def work(n: int) -> None:
        for i in range(6):
            right = run(f"def f(x): return x + {n}", [f"assert f({i}) == {i + n}"])
            other = run(f"def f(x): return x + {n}", [f"y = f({i})\nassert y == {i + n + 1}"])
            if right.status != "pass" or other.status != "fail":
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_same_code_gives_the_same_verdict_though_it_draws_lots():
    code = "import random\ndef f(): return [random.random(), list({'a', 'b', 'c'}), hash('x')]"
    first = says("import random\nreturn repr([random.random(), list({'a', 'b', 'c'}), hash('x')])")
    assert first == says("import random\nreturn repr([random.random(), list({'a', 'b', 'c'}), hash('x')])")
    assert run(code, f"assert f() == {first}").status == "pass"


def test_a_batch_is_as_its_rows():
    tasks = [{"prompt": "", "entry_point": "f", "tests": [f"assert f() == {i % 3}"]} for i in range(12)]
    codes = [f"def f(): return {i % 2}" for i in range(12)]
    verdicts = python_tests.verify_batch(codes, tasks)  # type: ignore[arg-type]
    assert [v.status == "pass" for v in verdicts] == [i % 2 == i % 3 for i in range(12)]


def test_the_memory_of_a_scripts_processes_together_is_bounded_while_it_never_stops_writing() -> None:
    script = "yes &\nfor i in 1 2 3 4 5 6 7 8; do (x=$(head -c 40M /dev/zero | tr '\\0' x); sleep 5) & done\nwait"
    if (problem := sandbox.unavailable()) or pool.isolation().kind != "bwrap":
        pytest.skip(problem or "scripts want bubblewrap")
    limits = sandbox.Limits(memory_mb=200, wall_s=8.0)
    found = run_shell(f"```bash\n{script}\n```", {}, [], stdout_bytes=1000, limits=limits)
    assert isinstance(found, ScriptRun) and found.exit_code == 128 + 9, "killed by its pid 1, long before its deadline"
