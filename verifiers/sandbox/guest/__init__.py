"""Code that runs inside the sandbox. Imports only the standard library and itself; no other code is visible there.

`zygote` forks one process per sample; `lockdown` and `seccomp` remove its privileges; `candidate`, `cells`,
`judge_process` and `script` do the work of such a process; `wire` and `peer` define how the processes communicate.
"""
