"""python_stdio: a program is right when it prints what it should and ends well, for every case."""

from __future__ import annotations

from typing import cast

import pytest
from sandboxes import needs_sandbox

from verifiers import Verdict, python_stdio

pytestmark = needs_sandbox


def run(code: str, *cases: tuple[str, str], timeout_s: float = 2.0) -> Verdict:
    task = {"prompt": "", "cases": [{"stdin": i, "stdout": o} for i, o in cases], "timeout_s": timeout_s}
    return python_stdio.verify(code, cast(python_stdio.Task, task))


RIGHT = {
    "input": "a, b = map(int, input().split())\nprint(a + b)",
    "read": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "lines": "import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))",
    "readline and buffer": "import sys\nprint(sum(map(int, sys.stdin.buffer.readline().split())))",
    "file 0": "print(sum(map(int, open(0).read().split())))",
    "descriptor 0": "import os\nprint(sum(map(int, os.read(0, 100).split())))",
    "write": "import sys\nsys.stdout.write(str(sum(map(int, input().split()))) + '\\n')",
    "descriptor 1": "import os\nos.write(1, b'%d\\n' % sum(map(int, input().split())))",
    "main guard": "def main(): print(sum(map(int, input().split())))\nif __name__ == '__main__': main()",
    "exit": "print(sum(map(int, input().split())))\nexit()",
    "sys.exit": "import sys\nprint(sum(map(int, input().split())))\nsys.exit(0)",
    "atexit": "import atexit\na = sum(map(int, input().split()))\natexit.register(lambda: print(a))",
    "thread at the end": "import threading, time\na = input().split()\n"
    "def late():\n    time.sleep(.2)\n    print(sum(map(int, a)))\nthreading.Thread(target=late).start()",
    "stdout replaced": "import sys, io\nout = sys.stdout\nsys.stdout = io.StringIO()\nprint('no')\n"
    "out.write(str(sum(map(int, input().split()))))",
    "errors aside": "import sys\nprint('debug', file=sys.stderr)\nprint(sum(map(int, input().split())))",
    "trailing blanks": "print(sum(map(int, input().split())), end='  \\n\\n\\n')",
    "deep recursion in a thread": "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 27)\n"
    "def f(n): return n and 1 + f(n - 1)\n"
    "def main():\n    f(20000)\n    print(sum(map(int, input().split())))\n"
    "t = threading.Thread(target=main)\nt.start()\nt.join()",
    "pickles itself": "import pickle\nclass A: pass\n"
    "pickle.loads(pickle.dumps(A()))\nprint(sum(map(int, input().split())))",
}
WRONG = {
    "another number": "print(int(input().split()[0]))",
    "constant": "print(5)",
    "nothing": "input()",
    "crash after printing": "print(sum(map(int, input().split())))\nraise ValueError",
    "exit status": "import sys\nprint(sum(map(int, input().split())))\nsys.exit(1)",
    "exit message": "import sys\nprint(sum(map(int, input().split())))\nsys.exit('done')",
    "killed by a signal": "import os\nprint(sum(map(int, input().split())), flush=True)\nos.abort()",
    "more lines": "print(sum(map(int, input().split())))\nprint()\nprint('x')",
    "leading blank line": "print()\nprint(sum(map(int, input().split())))",
    "every answer": "for i in range(10000): print(i)",
    "unflushed": "import os\nprint(sum(map(int, input().split())))\nos._exit(0)",
    "stops at the protocol's byte": "import os\nos.write(3, b'P5\\n')\nos._exit(0)",
    "reads past the end": "input()\nprint(input())",
}
CASES = (("2 3\n", "5\n"), ("-1 1\n", "0\n"))


@pytest.mark.parametrize("code", [pytest.param(c, id=n) for n, c in RIGHT.items()])
def test_right_programs_pass(code):
    verdict = run(code, *CASES)
    assert verdict.status == "pass", verdict.detail


@pytest.mark.parametrize("code", [pytest.param(c, id=n) for n, c in WRONG.items()])
def test_wrong_programs_fail(code):
    assert run(code, *CASES).status == "fail"


@pytest.mark.parametrize("code", ["", "print(", "```python\nprint(\n```", "x\0", "\ud800 = 1"])
def test_what_is_no_program_is_malformed(code):
    assert run(code, *CASES).status == "malformed"


def fenced(completion: str) -> str:
    """{...} as a Python fence, [...] as a bare one."""
    signs = {"{": "\n```python\n", "}": "\n```\n", "[": "\n```\n", "]": "\n```\n"}
    return "".join(signs.get(char, char) for char in completion)


SUM = "print(sum(map(int, input().split())))"


@pytest.mark.parametrize(
    "completion",
    [
        f"{{{SUM}}}Output:[5]",
        f"{{{SUM}}}Example:[2 3]gives[5]and[total = 5]",
        f"[2 3]is input{{{SUM}}}",
        f"{{{SUM}}}prints[Total(5)]",
        f"[{SUM}]prints[5]",
        f"{{{SUM}}}then a helper that is not needed:{{def helper(): return 1}}",
        "{import sys}{print(sum(map(int, sys.stdin.read().split())))}",
        "{def solve(xs): return sum(xs)}and{print(solve(map(int, input().split())))}",
        "{a, b = map(int, input().split())}then{print(a + b)}",
        "{print(0)}no, it is[" + SUM + "]",
        f"{SUM}\n```",
        f"{SUM}\n```\nIt prints the sum.",
        f"{SUM}\n```\nOutput:\n```\n5\n```",
        f"py\n{SUM}\n```\n",
        f"~~~~markdown{{{SUM}}}~~~~",
        f"\ufeff{SUM}",
        f"```py\n\ufeff{SUM}\n```",
    ],
)
def test_the_program_is_found_among_samples_and_helpers(completion):
    verdict = run(fenced(completion), *CASES)
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize("completion", [f"{{{SUM}}}no:{{print(1)}}", f"{{{SUM}}}no:[print(1)]", "{x = 5}[5]"])
def test_a_last_program_that_is_wrong_fails(completion):
    assert run(fenced(completion), *CASES).status == "fail"


def test_output_without_end_is_cut_off_soon():
    verdict = run("while True: print('x' * 1000)", ("", "x"), timeout_s=20)
    assert verdict.status == "fail" and "far more" in verdict.detail


def test_large_input_and_output_go_through():
    text = "\n".join(map(str, range(200_000)))
    assert run("import sys\nprint(sys.stdin.read())", (text, text)).status == "pass"


def test_text_keeps_its_characters():
    assert run("print(input()[::-1])", ("žluťoučký 🐎\n", "🐎 ýkčuoťulž\n")).status == "pass"


def test_each_case_starts_again():
    code = "import os\nprint(os.path.exists('seen'), end='')\nopen('seen', 'w').close()"
    assert run(code, ("", "False"), ("", "False")).status == "pass"


def test_a_task_without_cases_is_refused():
    with pytest.raises(ValueError, match="no cases"):
        run("print(1)")


def test_examples_are_what_they_say():
    expected = {"right": "pass", "wrong": "fail", "malformed": "malformed", "hostile": "fail"}
    for example in python_stdio.EXAMPLES:
        verdict = python_stdio.verify(example.completion, cast(python_stdio.Task, example.task))
        assert verdict.status == expected[example.kind], (example.completion, verdict)
