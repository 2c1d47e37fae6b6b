"""Tests that need no judge: `assert f(literals) == literal`, called in the sandbox and compared here.

Most tests have this form. The sandbox only calls the function; the trusted process compares the reported result with
the expected literal. The comparison walks the expected value, which is trusted, and reads only the needed parts of the
result; nothing is built from hostile data, so deep nesting, size and hash collisions are harmless. What it cannot
decide (a Decimal, the truth value of an object) goes to the judge.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

MAX_SOURCE = 1 << 20
Check = Literal["==", "!=", "is", "truth", "falsehood"]
_PLAIN = (int, float, str, bytes, type(None))


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected result of one call, and the text of the test for messages."""

    check: Check
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class TestPlan:
    """How the tests of a task are run. calls is None if they need the judge; names and modules: see _names_for_tests.

    imports: (module, name in it or "") for each import of the tests, independent of the completion.
    """

    entry: str
    tests: tuple[str, ...]
    names: tuple[str, ...]
    modules: tuple[str, ...]
    imports: tuple[tuple[str, str], ...]
    calls: tuple[tuple[list[Any], dict[str, Any]], ...] | None
    expectations: tuple[Expectation, ...]
    reply_bytes: int


@lru_cache(maxsize=4096)
def plan(entry: str, tests: tuple[str, ...], prompt: str) -> TestPlan:
    """Raises ValueError if there are no tests, or they are not Python or import a package that is not installed."""
    if not tests:
        raise ValueError("the task has no tests: every completion would pass")
    if not entry.isidentifier():
        raise ValueError(f"the task's entry_point {entry!r} is no Python name")
    size = sum(map(len, tests))
    if size > MAX_SOURCE:
        raise ValueError(f"the task's tests are {size} characters long, more than {MAX_SOURCE}")
    entry = unicodedata.normalize("NFKC", entry)
    calls: list[tuple[list[Any], dict[str, Any]]] | None = []
    expectations: list[Expectation] = []
    for number, test in enumerate(tests):
        try:
            statements = ast.parse(test).body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
            raise ValueError(f"the task's tests[{number}] is not Python: {exc}") from None
        if not statements:
            raise ValueError(f"the task's tests[{number}] is empty: every completion would pass")
        for statement in statements:
            simple = _simple(statement, entry)
            if simple is None or calls is None:
                calls = None
            else:
                calls.append(simple[0])
                expectations.append(simple[1])
    imports = tuple(dict.fromkeys(_imports(tests)))
    names, modules = _names_for_tests(tests, entry, prompt)
    fast = tuple(calls) if calls is not None else None
    return TestPlan(
        entry, tests, tuple(names), tuple(modules), imports, fast, tuple(expectations), (1 << 16) + 4 * size
    )


def _imports(tests: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (module, name in it or "") for each import in the tests that is not guarded by `except ImportError`.

    Raises ValueError if a module is not in the standard library: no completion could pass, which is a fault of the
    task and not of the completion.
    """
    for number, test in enumerate(tests):
        waiting: list[ast.AST] = [ast.parse(test)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Try) and any(map(_catches_import_error, node.handlers)):
                waiting += [*node.handlers, *node.orelse, *node.finalbody]
                continue
            waiting += ast.iter_child_nodes(node)
            for module, name in _imported(node):
                if module.partition(".")[0] not in sys.stdlib_module_names:
                    raise ValueError(
                        f"the task's tests[{number}] imports {module!r}; code under test has the standard library only"
                    )
                yield module, name


def _imported(node: ast.AST) -> list[tuple[str, str]]:
    if isinstance(node, ast.Import):
        return [(alias.name, "") for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        return [(module, "" if alias.name == "*" or module == "__future__" else alias.name) for alias in node.names]
    return []


def _catches_import_error(handler: ast.ExceptHandler) -> bool:
    names = {getattr(node, "id", "") for node in ast.walk(handler.type)} if handler.type is not None else {""}
    return handler.type is None or bool(names & {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


def _names_used(tests: Sequence[str]) -> list[str]:
    """Names that the tests read but do not bind and that are not builtins, in order."""
    read: dict[str, None] = {}
    bound = set(dir(builtins))
    for test in tests:
        for node in ast.walk(ast.parse(test)):
            if isinstance(node, ast.Name):
                read.setdefault(node.id) if isinstance(node.ctx, ast.Load) else bound.add(node.id)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.arg):
                bound.add(node.arg)
            elif isinstance(node, ast.alias):
                bound.add(node.asname or node.name.partition(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                bound.add(node.name)
    return [name for name in read if name not in bound]


def _names_for_tests(tests: Sequence[str], entry: str, prompt: str) -> tuple[list[str], list[str]]:
    """Names that the tests use but do not bind, besides the entry point: (names from the completion, standard modules).

    Only names mentioned in the prompt are taken from the completion: else it could supply its own `isclose` to a test
    that forgot the import.
    """
    words = set(re.findall(r"\w+", unicodedata.normalize("NFKC", prompt)))
    used = [name for name in _names_used(tests) if name != entry]
    modules = [name for name in used if name in sys.stdlib_module_names and not name.startswith("_")]
    return [name for name in used if name in words and name not in modules], modules


def _simple(statement: ast.stmt, entry: str) -> tuple[tuple[list[Any], dict[str, Any]], Expectation] | None:
    """The call and its expected result, if the statement has the simple form."""
    if not isinstance(statement, ast.Assert):
        return None
    test, check, expected = statement.test, "truth", None
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, check = test.operand, "falsehood"
    elif isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, right = test.left, test.comparators[0]
        if not _calls(left, entry):
            left, right = right, left
        try:
            expected = ast.literal_eval(right)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
        operator = {ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is"}.get(type(test.ops[0]))
        if operator is None or (operator == "is" and type(expected) not in (bool, type(None))):
            return None
        if not _comparable(expected):
            return None
        test, check = left, operator
    if not _calls(test, entry):
        return None
    assert isinstance(test, ast.Call)
    try:
        args = [ast.literal_eval(a) for a in test.args]
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in test.keywords if k.arg}
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    if len(kwargs) != len(test.keywords):
        return None
    return (args, kwargs), Expectation(check, expected, ast.unparse(statement))  # type: ignore[arg-type]


def _calls(node: ast.expr, entry: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == entry


def _comparable(value: Any) -> bool:
    """Whether `same` can compare it: plain data whose keys and set members are hashable and contain no set."""
    if isinstance(value, list | tuple):
        return all(map(_comparable, value))
    if isinstance(value, dict):
        return all(_is_key(k) and _comparable(v) for k, v in value.items())
    if isinstance(value, set):
        return all(map(_is_key, value))
    return isinstance(value, _PLAIN)


def _is_key(value: Any) -> bool:
    return all(map(_is_key, value)) if isinstance(value, tuple) else isinstance(value, _PLAIN)


_NO_KEY = object()


class Undecided(Exception):
    """The value is not plain data, so only the judge can compare it."""


def holds(expectation: Expectation, got: Any) -> bool:
    """Whether the result (undecoded JSON) meets the expectation. Raises Undecided."""
    if expectation.check == "is":
        return got is expectation.value
    if expectation.check == "==":
        return same(got, expectation.value)
    if expectation.check == "!=":
        if _is_opaque(got):
            raise Undecided
        return not same(got, expectation.value)
    return _truth(got) is (expectation.check == "truth")


def same(got: Any, expected: Any) -> bool:
    """Whether undecoded JSON represents a value equal to `expected`. Raises Undecided."""
    if type(got) is dict:
        ((tag, payload),) = got.items() if len(got) == 1 else (("", None),)
        if tag == "m":
            return type(payload) is list and len(payload) == 2 and same(payload[0], expected)
        if tag == "k":
            raise Undecided
        return _same_tagged(tag, payload, expected)
    if type(got) is list:
        return type(expected) is list and _same_items(got, expected)
    return isinstance(expected, _PLAIN) and bool(got == expected)


def _same_tagged(tag: str, payload: Any, expected: Any) -> bool:
    if tag == "i":
        return isinstance(expected, int | float) and bool(_integer(payload) == expected)
    if tag in ("b", "B"):
        return isinstance(expected, bytes) and payload == expected.hex()
    if type(payload) is not list:
        return False
    if tag == "t":
        return type(expected) is tuple and _same_items(payload, expected)
    if tag in ("s", "f"):
        return isinstance(expected, set) and _same_members(payload, expected)
    if tag == "d":
        return isinstance(expected, dict) and _same_pairs(payload, expected)
    if tag == "c":
        raise Undecided
    return False


def _integer(payload: Any) -> Any:
    try:
        return int(payload, 16)
    except (TypeError, ValueError):
        return _NO_KEY


def _bytes(payload: Any) -> Any:
    try:
        return bytes.fromhex(payload)
    except (TypeError, ValueError):
        return _NO_KEY


def _same_items(got: list[Any], expected: Sequence[Any]) -> bool:
    return len(got) == len(expected) and all(map(same, got, expected))


def _same_members(got: list[Any], expected: set[Any]) -> bool:
    if len(got) != len(expected):
        return False
    found = set()
    for item in got:
        key = _key(item)
        if key not in expected:
            return False
        found.add(key)  # only keys of `expected`: hostile keys are looked up but never stored
    return len(found) == len(expected)


def _same_pairs(got: list[Any], expected: dict[Any, Any]) -> bool:
    if len(got) != len(expected):
        return False
    found = set()
    for pair in got:
        if type(pair) is not list or len(pair) != 2:
            return False
        key = _key(pair[0])
        if key not in expected or not same(pair[1], expected[key]):
            return False
        found.add(key)
    return len(found) == len(expected)


def _key(got: Any, depth: int = 8) -> Any:
    """The hashable value that undecoded JSON represents; an object that equals nothing if there is none."""
    if type(got) is dict:
        ((tag, payload),) = got.items() if len(got) == 1 else (("", None),)
        if tag == "t" and type(payload) is list and depth:
            return tuple(_key(part, depth - 1) for part in payload)
        if tag == "b":
            return _bytes(payload)
        if tag == "i":
            return _integer(payload)
        if tag == "m" and type(payload) is list and payload and depth:
            return _key(payload[0], depth - 1)
        if tag in ("k", "f", "c"):
            raise Undecided
        return _NO_KEY
    return _NO_KEY if type(got) is list else got


def _is_opaque(got: Any) -> bool:
    return type(got) is dict and not (len(got) == 1 and next(iter(got)) in ("t", "s", "f", "d", "b", "B", "i", "c"))


def _truth(got: Any) -> bool:
    """Truth value of plain data. Raises Undecided."""
    if _is_opaque(got):
        raise Undecided
    if type(got) is dict:
        ((tag, payload),) = got.items()
        return any(payload) if tag == "c" and type(payload) is list else bool(payload)
    return bool(got)
