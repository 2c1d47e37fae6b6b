"""python_tests: honest code passes whatever its tests look like, and nothing else does.

The oracle for honest code is plain Python: each solution and its tests are also executed in this process.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
from sandboxes import Honest, honest_python, hostile_python, needs_sandbox, run

from verifiers import load, python_tests
from verifiers.sandbox.plan import plan

pytestmark = needs_sandbox

ADD = ["assert add(1, 2) == 3", "assert add(-5, 5) == 0", "assert add(17, -40) == -23"]
RIGHT = "def add(a, b):\n    return a + b\n"
# the same on the judge's path, which any test that is not `f(literals) == literal` takes
ADD_JUDGED = [*ADD, "total = sum([add(1, 1), 1])\nassert total == 3"]

HONEST = honest_python()
HOSTILE = {
    **hostile_python(),
    "deep parentheses": "def add(a, b):\n    return " + "(" * 5000 + "a + b" + ")" * 5000,
    "deep operators": "def add(a, b):\n    return " + "-" * 100_000 + "a",
    "deep blocks": "".join(" " * i + "if 1:\n" for i in range(200)) + " " * 200 + "add = 0",
}


def each_honest(*, but: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", [pytest.param(r, id=r.name) for r in HONEST if r.name not in but])


@each_honest()
def test_honest_code_passes_as_it_does_in_plain_python(row: Honest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # in plain Python some rows leave a file where they stand
    scope = {"__name__": "plain", "math": __import__("math")}
    exec(compile(row.code, "code", "exec", dont_inherit=True), scope)
    for test in row.tests:
        exec(compile(test, "test", "exec", dont_inherit=True), scope)
    verdict = run(row.code, row.tests, entry=row.entry, prompt=row.prompt)
    assert verdict.status == "pass", verdict.detail


# these two ask for nothing that such an object is not: to differ from 3, and to be itself
@each_honest(but=("not equal", "singleton"))
def test_a_function_that_returns_itself_passes_no_honest_task(row: Honest):
    """The most agreeable object there is, in place of the answer."""
    assert run(YES.replace("ENTRY", row.entry), row.tests, entry=row.entry, prompt=row.prompt).status == "fail"


# equal to everything, every operation of it gives itself again, and it is true
YES = """
class Yes:
    def __eq__(self, o): return True
    def __ne__(self, o): return True
    def __getattr__(self, n): return self if n[:2] != '__' else super().__getattribute__(n)
    def __call__(self, *a, **k): return self
    def __iter__(self): return iter(())
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = lambda s, *a: True
    __hash__ = __len__ = __index__ = __int__ = lambda s: 1
    __sub__ = __rsub__ = __add__ = __radd__ = __abs__ = __round__ = __getitem__ = lambda s, *a: s
    __mul__ = __rmul__ = __neg__ = __next__ = __enter__ = lambda s, *a: s
    __float__ = lambda s: 0.0
    __exit__ = lambda s, *a: True
ENTRY = Yes()
"""


@pytest.mark.parametrize("tests", [ADD, ADD_JUDGED], ids=["fast", "judged"])
@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in HOSTILE.items()])
def test_no_attack_passes_and_none_counts_as_broken(code, tests):
    assert run(code, tests, entry="add").status in ("fail", "malformed")


def test_the_plan_takes_the_fast_way_only_where_it_can_compare():
    assert plan("add", tuple(ADD), "").calls is not None
    assert plan("add", tuple(ADD_JUDGED), "").calls is None
    for test in (
        "assert add(1, 2) == 3 or True",
        "assert add(x, 2) == 3",
        "assert add(1, 2) == x",
        "assert add(1, 2) > 3",
        "assert add(1, 2) is 3",
        "assert add(*[1, 2]) == 3",
        "assert add(1)(2) == 3",
        "assert add.x(1) == 3",
        "assert len(add(1, 2)) == 3",
        "assert add(1, 2) == add(2, 1)",
        "add(1, 2)",
    ):
        assert plan("add", (test,), "").calls is None, test


@pytest.mark.parametrize(
    "magic",
    [
        "__sub__ = __rsub__ = lambda s, o: 0.0",
        "__sub__ = lambda s, o: s\n    __abs__ = lambda s: 0.0",
        "__sub__ = lambda s, o: s\n    __abs__ = lambda s: s\n    __lt__ = lambda s, o: True",
        "__abs__ = lambda s: s\n    __sub__ = lambda s, o: s\n    __rgt__ = __lt__ = lambda s, o: True",
        "__array__ = lambda s, *a: 1.5\n    __sub__ = lambda s, o: s",
    ],
)
def test_an_object_cannot_grade_its_own_distance(magic):
    code = f"class M:\n    {magic}\ndef half(x): return M()"
    assert run(code, ["assert abs(half(3) - 1.5) < 1e-9"], entry="half").status == "fail"


def test_class_whose_methods_return_itself_fails_though_it_equals_everything():
    code = """
class Stack:
    __eq__ = __contains__ = lambda s, o: True
    push = pop = lambda s, *a: RETURNED
    size = property(lambda s: RETURNED)
    __enter__ = lambda s: s
    __exit__ = lambda s, *a: True
"""
    tests = [
        "s = Stack()\ns.push(1)\nassert s.pop() == 1",
        "s = Stack()\nassert s.size == 0",
        "s = Stack()\nassert s.pop() == [1]",
        "x = Stack().pop()\ny = Stack()\nassert x == 1",
        "with Stack() as s:\n    assert s.pop() == 1",
        "with Stack() as s:\n    assert s.pop() - 1 < 1",
        "assert 3 in Stack().pop()",
    ]
    for returned in ("s", "[s]", "Stack()", "Stack"):
        for test in tests:
            assert run(code.replace("RETURNED", returned), test, entry="Stack").status == "fail", (returned, test)


@pytest.mark.parametrize("test", ["assert greet('Bob').startswith('Hello')", "assert greet('Bob').isalpha()"])
def test_an_object_cannot_answer_what_is_asked_of_text(test):
    code = "class Y:\n    startswith = isalpha = lambda s, *a: True\ndef greet(name): return Y()"
    assert run(code, test, entry="greet").status == "fail"
    assert run("def greet(name): return 'Hello'", test, entry="greet").status == "pass"


def test_a_callback_does_not_lead_to_the_tests():
    code = """
found = []
def f(g):
    for path in ('__globals__', '__code__', '__closure__', '__self__', '__func__', 'gi_frame', 'f_globals', '__class__',
                 '__dict__', '__init__', '__reduce__', 'func_globals'):
        try:
            found.append((path, repr(getattr(g, path))))
        except AttributeError:
            pass
    return str([x for x in found if 'hush' in x[1]])
"""
    tests = [
        "secret = 'hush'\ndef g(): return secret\nassert f(g) == '[]', f(g)",
        "class C:\n    def m(self): return secret\nassert f(C().m) == '[]' and f(C) == '[]' and f(C()) == '[]'",
        "assert f(x for x in [secret]) == '[]'",
        "import functools\nassert f(functools.partial(g)) == '[]'",
    ]
    assert run(code, tests).status == "pass"


def test_raw_questions_to_the_judge_lead_nowhere():
    """The candidate speaks the protocol itself, and asks for what it was not given."""
    code = """
import os, json, struct
def ask(op, ident, args):
    m = json.dumps(['?', op, ident, args, []]).encode()
    os.write(3, struct.pack('<I', len(m)) + m)
    n, = struct.unpack('<I', os.read(3, 4))
    return os.read(3, n).decode()
def f(g):
    got = ''
    for ident in (-1, 0, 1, 2):
        for name in ('__globals__', '__code__', '__builtins__', '_exports', 'f_globals'):
            got += ask('getattr', ident, [name])
    for op in ('eval', 'exec', 'import', 'setitem', 'getitem'):
        got += ask(op, 0, ['secret'])
    return got
"""
    verdict = run(code, ["secret = 'hush-hush'\ndef g(): return secret\ngot = f(g)\nassert 'hush' not in got, got"])
    assert verdict.status == "fail" and "hush" not in verdict.detail.replace("'hush' not in got", "")
    assert "cannot be read" in verdict.detail  # an operation that does not exist ends the conversation


def test_what_is_not_in_the_prompt_is_not_taken_from_the_completion():
    code = "def isclose(a, b): return True\ndef helper(): return 1\ndef f(): return 0"
    for test in ("assert isclose(f(), 5)", "assert helper() == 1"):
        verdict = run(code, test, prompt="Write f.")
        assert verdict.status == "error" and "which nothing defines" in verdict.detail
    assert run(code, "assert helper() == 1", prompt="Write f and helper.").status == "pass"
    assert run("def f(): return 0", "assert helper() == 1", prompt="Write f and helper.").status == "fail"


@pytest.mark.parametrize(
    "test",
    [
        "import numpy as np\nassert np.isclose(f(1), 1)",
        "from sortedcontainers import SortedList\nassert f(1) == 1",
        "def check(g):\n    from numpy.testing import assert_allclose\n    assert_allclose(g(1), 1)\ncheck(f)",
        "if f(1) == 1:\n    import pandas.api",
        "from . import sibling\nassert f(1) == 1",
        "import xml.no_such_part\nassert f(1) == 1",
        "from math import no_such_name\nassert f(1) == 1",
    ],
)
def test_a_test_that_cannot_run_whatever_the_answer_is_an_error_and_never_a_wrong_answer(test):
    task = {"prompt": "Write f.", "entry_point": "f", "tests": [test]}
    for code in ("def f(x): return x", "def f(x): return -x", "def f(x): raise SystemExit"):
        (verdict,) = load("python_tests").grade([code], [task])
        assert verdict.status == "error", (code, verdict)


@pytest.mark.parametrize(
    "test",
    [
        "try:\n    import numpy\nexcept ImportError:\n    numpy = None\nassert f(1) == 1",
        "try:\n    from numpy import array\nexcept Exception:\n    array = list\nassert f(1) == 1",
        "import os.path, xml.dom\nfrom xml import dom\nfrom collections.abc import Sequence\nassert f(1) == 1",
        "from math import *\nassert isclose(f(1), 1)",
        "match f(1):\n    case int(n) | [n]:\n        assert n == 1",
    ],
)
def test_guarded_and_standard_imports_are_no_error(test):
    assert run("def f(x): return x", test).status == "pass"


@pytest.mark.parametrize(
    "raised", ["ModuleNotFoundError('numpy', name='numpy')", "NameError('np', name='np')", "ImportError()"]
)
def test_a_completion_cannot_make_itself_an_error_by_what_it_raises(raised):
    code = f"def f(x): raise {raised}"
    for test in ("assert f(1) == 1", "x = f(1)\nassert x == 1", "import math\nassert math.isclose(f(1), 1)"):
        assert run(code, test, prompt="np").status == "fail"
    give = f"def f(x): return {raised}"
    assert run(give, "r = f(1)\nassert r == 1").status == "fail"


@pytest.mark.parametrize(
    "completion",
    [
        "{import math}{def add(a, b): return int(math.fsum([a, b]))}",
        "{def add(a, b): return plus(a, b)}and the helper:{def plus(a, b): return a + b}",
        "{def plus(a, b): return a * b}no:{def plus(a, b): return a + b}{def add(a, b): return plus(a, b)}",
        "{from operator import *}{def plus(a, b): return add_(a, b)\nadd_ = add\n}{def add(a, b): return plus(a, b)}",
        "{import functools, operator}{def total(xs): return functools.reduce(operator.add, xs)}"
        "{from __future__ import annotations\ndef add(a: Int, b: Int): return total([a, b])}",
        "{print('an example')\nraise SystemExit}{def add(a, b): return a + b}",
        "~~~~md\n{def add(a, b): return a + b}~~~~",
        "```markdown\n{def add(a, b): return a + b}```",
        "\ufeff{def add(a, b): return a + b}",
        "```python\n\ufeffdef add(a, b): return a + b\n```",
        "\ufeffdef add(a, b): return a + b",
        "def add(a, b):\n    return a + b\n```",
        "python\ndef add(a, b):\n    return a + b\n```\nIt adds.",
        "def add(a, b):\n    return a + b\n```\nFor example:\n```\nadd(1, 2)\n```\n",
        "I add:\n```\ndef add(a, b):\n    return a + b",
    ],
)
def test_an_answer_in_several_blocks_or_odd_fences_is_read_whole(completion):
    written = completion.replace("{", "\n```python\n").replace("}", "\n```\n")
    verdict = run(written, ADD, entry="add")
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize(
    "completion",
    [
        "{def add(a, b): return a + b}no:{def add(a, b): return a * b}",
        "{def plus(a, b): return a + b}no:{def plus(a, b): return a * b}{def add(a, b): return plus(a, b)}",
        "{import math}{def add(a, b): return int(math.prod([a, b]))}",
        "def add(a, b):\n    return a * b\n```",
    ],
)
def test_a_wrong_last_answer_is_not_saved_by_an_earlier_block(completion):
    written = completion.replace("{", "\n```python\n").replace("}", "\n```\n")
    assert run(written, ADD, entry="add").status == "fail"


def test_a_completion_cannot_lend_its_builtins_to_the_tests():
    code = "import builtins\nbuiltins.abs = builtins.all = abs = all = lambda *a: 0\ndef f(): return 5"
    assert run(code, "assert abs(f() - 1) < 1", prompt="abs all f").status == "fail"


@pytest.mark.parametrize("swallow", ["except Exception:", "except BaseException:", "except:"])
def test_a_test_that_swallows_exceptions_does_not_swallow_the_process_end(swallow):
    test = f"try:\n    f()\n    result = 1\n{swallow}\n    pass"
    assert run("import os\ndef f(): os._exit(0)", test).status == "fail"
    assert run("def f(): raise ValueError", test).status == "pass"


def test_stop_iteration_does_not_end_the_tests_loop_early():
    assert run("def f(x): raise StopIteration", "assert all(map(f, [1, 2]))").status == "fail"


def test_an_earlier_draft_does_not_stand_in_for_a_broken_last_answer():
    good, broken = f"```python\n{RIGHT}```\n", "```python\ndef add(a, b):\n    return a +\n```\n"
    assert run(good + broken, ADD, entry="add").status == "malformed"
    assert run(broken + good, ADD, entry="add").status == "pass"
    assert run(good + "Use it:\n```python\nprint(add(1, 2))\n```\n", ADD, entry="add").status == "pass"
    assert run(good + "```python\nfrom mymodule import add\n```\n", ADD, entry="add").status == "pass"


def test_rows_keep_their_order_and_a_bad_row_is_alone():
    task = {"prompt": "", "entry_point": "add", "tests": ADD}
    bad = {**task, "tests": []}
    worse = {**task, "tests": ["assert ("]}
    odd = {**task, "tests": None}
    rows: list[Any] = [
        (RIGHT, task),
        ("", task),
        (RIGHT, bad),
        (RIGHT, worse),
        (None, task),
        (RIGHT, odd),
        (RIGHT, task),
    ]
    rows *= 3
    verdicts = load("python_tests").grade([c for c, _ in rows], [t for _, t in rows])
    assert [v.status for v in verdicts] == ["pass", "malformed", "error", "error", "error", "error", "pass"] * 3
    assert "no tests" in verdicts[2].detail and "tests[0]" in verdicts[3].detail


def test_examples_are_what_they_say():
    expected = {"right": "pass", "wrong": "fail", "malformed": "malformed"}
    for example in python_tests.EXAMPLES:
        verdict = python_tests.verify(example.completion, cast(python_tests.Task, example.task))
        assert verdict.status == expected.get(example.kind, verdict.status), (example.completion, verdict)
        assert example.kind == "right" or verdict.score == 0.0
