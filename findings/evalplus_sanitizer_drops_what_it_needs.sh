#!/usr/bin/env bash
# evalplus 0.3.1 (HumanEval+, MBPP+), sanitize(), which its evalplus.codegen applies to every sample: right programs, and
# what is left of them.
#
# Seen, of programs that define the entry point f and give the right value:
#   a helper under @lru_cache, or f itself        dropped: NameError, or imports alone are left
#   a helper without `return` (it appends, prints or yields)   dropped: NameError
#   LOW, HIGH = 0, 3 on module level              dropped: NameError
#   an import within try                          dropped: NameError
#   a table that a loop on module level fills     the loop is dropped, the start of the table is kept: IndexError
#   f, a remark that it is wrong, f again         the first f is kept: 6 instead of 8
#   one fenced block with a short f, then one with four lines of tests   the tests are kept, f is dropped
# From memory one would say: it takes the code out of the prose and drops tests and prints; the last definition wins, as in
# Python, and what f needs is kept ("reachable" is what its own code computes).
# What it costs: pass@1 counts style: models that memoise with a decorator or correct themselves score lower than the same
# programs do when they are run as they are, and a reward built on it teaches to avoid decorators and helpers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q datasets==5.2.0 tree-sitter==0.26.1 tree-sitter-python==0.25.0 wget==3.2 tempdir==0.7.1 \
  appdirs==1.4.4 termcolor==3.3.0 tqdm==4.70.1
"$folder/venv/bin/pip" install -q --no-deps evalplus==0.3.1  # its clients of models are not needed
"$folder/venv/bin/python" - <<'PYTHON'
from evalplus.sanitize import sanitize

PROGRAMS = {
    "decorated helper": ("""
from functools import lru_cache

@lru_cache(None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)

def f(n):
    return fib(n)
""", 13, "NameError"),
    "decorated entry point": ("""
from functools import lru_cache

@lru_cache(None)
def f(n):
    return n if n < 2 else f(n - 1) + f(n - 2)
""", 13, "KeyError"),
    "helper that appends": ("""
def push(xs, x):
    xs.append(x)

def f(n):
    xs = []
    for i in range(n):
        push(xs, i)
    return len(xs)
""", 7, "NameError"),
    "generator": ("""
def evens(n):
    for i in range(0, n, 2):
        yield i

def f(n):
    return sum(evens(n))
""", 12, "NameError"),
    "two names at once": ("""
LOW, HIGH = 0, 3

def f(n):
    return n * HIGH + LOW
""", 21, "NameError"),
    "import within try": ("""
try:
    from math import isqrt as root
except ImportError:
    root = None

def f(n):
    return root(n)
""", 2, "NameError"),
    "table filled by a loop": ("""
TABLE = [0, 1]
for i in range(2, 50):
    TABLE.append(TABLE[-1] + TABLE[-2])

def f(n):
    return TABLE[n]
""", 13, "IndexError"),
    "corrected": ("""
def f(n):
    return n - 1

# Wrong for n = 0. Corrected:
def f(n):
    return n + 1
""", 8, 6),
}


def value_of(program):
    names = {}
    try:
        exec(program, names)
        return names["f"](7)
    except Exception as error:
        return type(error).__name__


for name, (program, wanted, given) in PROGRAMS.items():
    seen = value_of(program), value_of(sanitize(program, "f"))
    print(name, *seen, sep="   ")
    assert seen == (wanted, given), name

fenced = """```python
def f(n):
    return n + 1
```
Tests:
```python
assert f(1) == 2
assert f(2) == 3
assert f(3) == 4
print(f(1))
```"""
left = sanitize(fenced, "f")
print("fenced:", left.split("\n"))
assert left.startswith("assert f(1)") and "def f" not in left
PYTHON
