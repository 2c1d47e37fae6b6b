#!/usr/bin/env bash
# smolagents 1.26.0, LocalPythonExecutor, in which its CodeAgent runs the model's Python by default: plain programs that end
# without an error and with another value than Python's.
#
# Seen (Python, then smolagents):
#   the else of a for or while loop that was not left by break    runs                  never runs: "is 7 prime" is None
#   def f(a, *rest) called with f(1, 5, 6): rest                  (5, 6)                (1, 5, 6): a mean is 4.5, not 4
#   def f(**rest) with a named b, f(1, b=3, c=4): rest            {"c": 4}              {"b": 3, "c": 4}
#   def f(x, seen=[]) appends x, called three times               [1, 2, 3]             [3]
#   [f() for f in [lambda: i for i in range(3)]]                  [2, 2, 2]             [0, 1, 2]
#   counts[draw()] += 1                                           one draw              two: reads one key, writes another
#   @property area, read as square.area                           9                     a bound method
#   a local name that is read before it is assigned               UnboundLocalError     the global of that name
# nonlocal, global, yield, match, := and super() raise.
# From memory one would say: the interpreter allows a part of Python, and raises on the rest.
# What it costs: the agent reads a wrong result of a right program as an observation, and a reward computed on its final answer
# punishes the program; a copy of the same program in a sandbox of another kind is paid.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q smolagents==1.26.0
"$folder/venv/bin/python" - <<'PYTHON'
from smolagents.local_python_executor import LocalPythonExecutor

PROGRAMS = [
    ("""
def is_prime(n):
    for d in range(2, n):
        if n % d == 0:
            return False
    else:
        return True
result = is_prime(7)
""", True, None),
    ("""
n = 3
result = "stopped early"
while n:
    n -= 1
else:
    result = "ran to the end"
""", "ran to the end", "stopped early"),
    ("""
def mean(first, *rest):
    return (first + sum(rest)) / (1 + len(rest))
result = mean(6, 2, 4)
""", 4.0, 4.5),
    ("""
def call(a, b=2, **rest):
    return rest
result = call(1, b=3, c=4)
""", {"c": 4}, {"b": 3, "c": 4}),
    ("""
def remember(x, seen=[]):
    seen.append(x)
    return seen
remember(1)
remember(2)
result = remember(3)
""", [1, 2, 3], [3]),
    ("result = [f() for f in [lambda: i for i in range(3)]]", [2, 2, 2], [0, 1, 2]),
    ("""
deck = ["a", "b", "b", "a"]
counts = {"a": 0, "b": 10}
def draw():
    return deck.pop(0)
counts[draw()] += 1
result = counts, deck
""", ({"a": 1, "b": 10}, ["b", "b", "a"]), ({"a": 0, "b": 1}, ["b", "a"])),
    ("""
class Square:
    def __init__(self, side):
        self.side = side
    @property
    def area(self):
        return self.side ** 2
result = Square(3).area if not callable(Square(3).area) else "a method"
""", 9, "a method"),
    ("""
total = 1
def add():
    before = total
    total = 2
    return before
try:
    result = add()
except UnboundLocalError:
    result = "UnboundLocalError"
""", "UnboundLocalError", 1),
]
for program, wanted, given in PROGRAMS:
    names = {}
    exec(program, names)
    executor = LocalPythonExecutor([])
    executor.send_tools({})
    executor(program)
    seen = names["result"], executor.state["result"]
    print(*seen, sep="   ")
    assert seen == (wanted, given), program
PYTHON
