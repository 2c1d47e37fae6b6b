"""Sandbox: the only package that runs untrusted code.

How it works: a pool of warm workers (pool.py). Each worker (worker.py) is an interpreter in its own namespaces, created
by bubblewrap (isolation.py), that forks one process per sample (guest/zygote.py). That process locks itself down
(guest/lockdown.py, guest/seccomp.py) before it reads the code to run. Its results are untrusted claims: they are
compared with the expected values in the trusted process (plan.py) or by a judge in a second sandbox
(guest/judge_process.py). No verdict is computed in a process that runs the code of a completion. Each shell script gets
its own pid and mount namespaces (guest/script.py); the files it leaves are read only after all its processes are dead.

Covered, each by a test that attacks it:
- verdicts: exits, prints, writes to every descriptor, patched builtins, objects equal to everything, hostile bytes
  and deep nesting, reading the tests from frames, memory, /proc or an earlier sample: no attack passes, and none breaks
  the trusted process
- containment: no network, no files except the interpreter, its libraries and a scratch directory that starts empty, no
  environment, no other processes, no way to gain privileges, no system calls outside the allow-list
- resources: CPU and wall time, memory of a process, threads, descriptors, output, number and size of files
- failures of the sandbox itself: a killed, stopped or full worker is replaced and the sample is retried once; a second
  failure is `error`, never a score. This includes samples killed from outside. A sample that does not get its CPU time
  on a busy machine is also `error`: only time spent asleep counts against its deadline

Not covered:
- the kernel. A kernel vulnerability behind a permitted system call is a vulnerability of this sandbox
- timing and load: samples share cores and caches, and can slow each other down until a deadline expires
- total memory over several processes of a shell script: each process is bounded, the total is checked every 50 ms
- a test that accepts wrong answers. `assert f(1) == f(1)` passes for any value that equals itself
- operators between plain data and an object that the test did not create itself by calling the class under test: such
  an object never equals plain data, so a function that returns its own number class is rejected
- tests that subclass, patch or monkeypatch the module of the completion, or change a list that is an attribute of one
  of its objects: tests access that code from another process. Changes to lists passed as arguments work as usual
- installed packages: samples can import only the standard library
- with WHETSTONE_SANDBOX=landlock: process, user and mount namespaces. Names and sizes of other files are visible, the
  scratch directory is bounded only per file, shell tasks are refused. With unsafe-none: nothing is covered
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
    run_script,
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
    "run_script",
    "run_shell",
    "set_size",
    "size",
    "unavailable",
    "verify_rows",
]
