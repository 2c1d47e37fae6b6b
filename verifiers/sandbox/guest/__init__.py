"""What runs inside the sandbox. Imports the standard library and itself only, for no other code can be seen from there.

`zygote` forks one process per sample; `lockdown` and `seccomp` take its powers away; `candidate`, `judge` and `shell`
are what such a process then does; `wire` and `peer` are the languages they speak.
"""
