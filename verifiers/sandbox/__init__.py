"""The one place where untrusted code runs.

How: a pool of warm workers (pool.py). A worker (worker.py) is an interpreter in namespaces of its own made by
bubblewrap (isolation.py), which forks one process per sample (guest/zygote.py). That process locks itself down
(guest/lockdown.py, guest/seccomp.py) and only then reads what to run. What it says about itself is a claim, compared
with what a test expects in the trusted process (plan.py) or by a judge in a second sandbox (guest/judge_process.py); no
verdict is ever computed where a completion's code runs. Shell scripts get a pid and a mount namespace each
(guest/shell.py), and what they leave is looked at when everything they started is dead.

Covered, each by a test that attacks it:
- verdicts: exits, prints, writes to every descriptor, patched builtins, objects equal to everything, hostile bytes
  and depths, tests read from frames, memory, /proc or an earlier sample: none passes, none breaks the trusted process
- containment: no network, no file but the interpreter's, the libraries' and a scratch place that starts empty, no
  environment, no other process, no privilege to gain, no system call beyond a list
- resources: CPU and wall time, memory of a process, threads, descriptors, output, files in number and size
- the sandbox's own failures: a killed, stopped or full worker is replaced and the sample tried again, once; what
  fails twice is `error`, never a score. So is, after its second try, what was killed from outside, and what a busy
  machine did not give its CPU time: only time asleep counts against a sample's deadline

Not covered:
- the kernel. A hole in it behind a permitted system call is a hole here
- timing and load: samples share cores and caches, and may slow each other down to their deadlines
- the sum of memory over several processes of a shell script: each is bounded, the sum is watched every 50 ms
- a test that accepts wrong answers. `assert f(1) == f(1)` passes what equals itself
- operators between plain data and an object that the test did not make itself by calling the class under test: such
  an object equals nothing that is plain, so a function that returns its own number class is refused
- tests that subclass, patch or monkeypatch the completion's module, or change a list that is an attribute of one of
  its objects: tests see that code from another process. Lists passed as arguments are changed as usual
- installed packages: samples have the standard library
- with WHETSTONE_SANDBOX=landlock: process, user and mount namespaces. Names and sizes of files elsewhere can be
  seen, the scratch place is bounded per file only, shell tasks are refused. With unsafe-none: everything
"""

from .guest.lockdown import Limits
from .isolation import CHOICE, CHOICES, SandboxUnavailable
from .pool import close, set_size, size
from .runs import (
    DEADLINE_S,
    Case,
    Found,
    ScriptRun,
    check_function,
    check_program,
    limits_for,
    run_shell,
    unavailable,
    verify_rows,
)
from .worker import InfrastructureError

__all__ = [
    "CHOICE",
    "CHOICES",
    "DEADLINE_S",
    "Case",
    "Found",
    "InfrastructureError",
    "Limits",
    "SandboxUnavailable",
    "ScriptRun",
    "check_function",
    "check_program",
    "close",
    "limits_for",
    "run_shell",
    "set_size",
    "size",
    "unavailable",
    "verify_rows",
]
