"""Run the tests of a task against code in another sandbox. This process never executes code of a completion."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import wire
from .peer import MESSAGE_BYTES, Gone, Peer
from .remote import Remote

Verdict = tuple[str, str]
_TEST_FILE = "test"


def judge(
    candidate: wire.Channel,
    entry: str,
    tests: Sequence[str],
    names: Sequence[str],
    modules: Sequence[str],
    imports: Sequence[tuple[str, str]],
) -> Verdict:
    """Returns (status, detail); `error` if the tests themselves cannot run, independent of the completion.

    names: names that the tests use from the completion besides `entry`; modules: modules they use without an import;
    imports: (module, name or "") for each import of the tests.
    """
    if missing := next((what for what in imports if not _is_importable(*what)), None):
        return "error", f"the task's tests import {' '.join(filter(None, missing))!r}, which is not there"
    peer = Peer(candidate, strict=True)
    try:
        scope = _meet(peer, candidate, entry, names)
        if isinstance(scope, tuple):
            return scope
        scope.update((name, importlib.import_module(name)) for name in modules if name not in scope)
        for number, test in enumerate(tests, 1):
            problem, undefined = _run(test, scope)
            if peer.gone:  # a bare `except:` in a test may have caught it
                raise Gone(peer.gone)
            if undefined and undefined not in names:
                return "error", f"the task's tests[{number - 1}] uses {undefined!r}, which nothing defines"
            if problem:
                return "fail", f"test {number} of {len(tests)}: {problem}"
    except Gone as exc:
        return "fail", f"the completion's process: {exc}"
    return "pass", f"{len(tests)} tests"


def _meet(peer: Peer, candidate: wire.Channel, entry: str, names: Sequence[str]) -> dict[str, Any] | Verdict:
    """The namespace of the tests with the names of the candidate, or the verdict if the completion did not load."""
    try:
        status, detail = wire.decoder(_no_tag)(candidate.receive(MESSAGE_BYTES))
        if status != "ok":
            return ("malformed" if status == "malformed" else "fail"), f"loading the code: {detail}"
        found = dict(peer.decode(candidate.receive(MESSAGE_BYTES)))
        scope = {name: found[name] for name in (entry, *names) if name in found}  # only requested names
    except wire.Closed:
        return "fail", "the completion's process ended while loading"
    except Exception as exc:  # the untrusted border: hostile bytes
        return "fail", f"the completion's process sent what cannot be read: {type(exc).__name__}"
    subject = scope.get(entry)
    if type(subject) is Remote and entry[:1].isupper():  # a class by its spelling; the other side's claim is untrusted
        scope[entry] = Remote(peer, subject._remote_ident_, makes=True)
    scope["__name__"] = "tests"
    return scope


def _no_tag(tag: str, payload: Any) -> Any:
    raise ValueError(tag)


def _is_importable(module: str, name: str) -> bool:
    try:
        found = importlib.import_module(module)
        if name and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def _run(test: str, scope: dict[str, Any]) -> tuple[str, str]:
    """(reason for the failure, "" if the test holds; undefined name that the test itself uses, or ""). Raises Gone."""
    try:
        exec(compile(test, _TEST_FILE, "exec", dont_inherit=True), scope)
    except Gone:
        raise
    except AssertionError as exc:
        return f"{_first_line(test)} does not hold{f': {exc}' if str(exc) else ''}"[:300], ""
    except BaseException as exc:  # the untrusted border: SystemExit is also a failure
        problem = f"{_first_line(test)} raised {type(exc).__name__}: {_lines(exc)}"[:300]
        return problem, _undefined(exc, scope)
    return "", ""


def _undefined(exc: BaseException, scope: Mapping[str, Any]) -> str:
    """The undefined name that the code of the test itself looked up, or "".

    Exceptions of the completion pass through frames of remote.py; a test that raises an exception it received from the
    completion does not count either.
    """
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or type(exc) is not NameError or trace.tb_frame.f_code.co_filename != _TEST_FILE:
        return ""
    name = exc.name if isinstance(exc.name, str) else ""
    return name if name in trace.tb_frame.f_code.co_names and name not in scope and not hasattr(builtins, name) else ""


def _lines(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # the untrusted border: text from a candidate
        return ""


def _first_line(test: str) -> str:
    return next(_nonempty(test), "")[:120]


def _nonempty(text: str) -> Iterator[str]:
    return (line.strip() for line in text.split("\n") if line.strip())
