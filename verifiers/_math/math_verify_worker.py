"""Run by fallback.py in a process of its own: lines [gold, answer] in, `true` or `false` out.

The libraries are loaded once; each comparison is a fork that a kernel timer ends after its CPU time, so that a costly
one costs its own time and no reload.
"""

import json
import os
import resource
import signal
import sys

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic
from sympy.matrices import MatrixBase

MEMORY_BYTES = 2 * 2**30


def read(text: str) -> list:
    return parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=False)


def equal(gold: str, answer: str) -> bool:
    """Only what both sides parse to an expression counts; math-verify would compare unparsed text by its letters."""
    golds, answers = ([e for e in read(text) if isinstance(e, Basic | MatrixBase)] for text in (gold, answer))
    if not golds or not answers:
        return False
    return bool(verify(golds, answers, float_rounding=12, numeric_precision=30, strict=True, timeout_seconds=None))


def compare_and_exit(line: bytes, cpu_s: float) -> None:
    """The fork's whole life: exit code 0 for equal."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF's default action ends the process
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))
    try:
        os._exit(0 if equal(*json.loads(line)) else 1)
    except BaseException:  # a library's error on an answer, MemoryError and RecursionError included: not the gold
        os._exit(1)


def main() -> None:
    cpu_s = float(sys.argv[1])
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints is no reply
    equal(r"\lfloor x \rfloor", r"\frac{1}{2}")  # loads what is loaded late
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            compare_and_exit(line, cpu_s)
        _, status = os.waitpid(child, 0)
        replies.write(b"true\n" if status == 0 else b"false\n")
        replies.flush()


main()
