"""Run by fallback.py in a process of its own: lines [gold, answer] in, `true` or `false` out."""

import json
import os
import resource
import signal
import sys

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic
from sympy.matrices import MatrixBase


def read(text: str) -> list:
    return parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=False)


def equal(gold: str, answer: str) -> bool:
    """Only what both sides parse to an expression counts; math-verify would compare unparsed text by its letters."""
    golds, answers = ([e for e in read(text) if isinstance(e, Basic | MatrixBase)] for text in (gold, answer))
    if not golds or not answers:
        return False
    return bool(verify(golds, answers, float_rounding=12, numeric_precision=30, strict=True, timeout_seconds=None))


def main() -> None:
    cpu_s = float(sys.argv[1])
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints is no reply
    equal(r"\lfloor x \rfloor", r"\frac{1}{2}")  # loads what is loaded late
    gib = 2**30
    resource.setrlimit(resource.RLIMIT_AS, (2 * gib, 2 * gib))
    for limit, most in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(limit, (most, most))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF's default action ends the process
        try:
            same = equal(*json.loads(line))
        except Exception:  # a library's error on an answer: not the gold
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(b"true\n" if same else b"false\n")
        replies.flush()


main()
