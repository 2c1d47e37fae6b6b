"""The conformance kit of tools: a tool file against its own examples, in several sessions at once, and hostile calls.

A tool conforms when every example gives what it says, twice and in any order; sessions do not see each other; calls
with wrong arguments raise ToolError; hostile text gets an answer within the deadline; and the type hints and the
docstring describe every argument, since they are all that the model learns about the tool.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from verifiers._call_timer import CallTimer
from verifiers.tools import Tool, Toolbox, ToolBroken, ToolError, ToolExample, load

DEADLINE_S = 1.0
OUTPUT_CHARS = 1_000_000
HOSTILE = ("", "\x00", "\ud800", "\x1b[2J", "‮⁦​", "../../etc/passwd", "$(id)", "'; DROP TABLE x; --", "%s%n{0}",
           "(" * 2000, "9" * 5000, "\n" * 10_000, "a" * 50_000)  # fmt: skip


def check(tool: Tool) -> list[str]:
    """Faults of the tool, one line each."""
    examples: Sequence[ToolExample] = tuple(getattr(tool.module, "EXAMPLES", ()))
    faults = [f"EXAMPLES has no {kind} one" for kind in ("right", "mistake", "hostile")
              if kind not in {e.kind for e in examples}]  # fmt: skip
    deadline_s = float(getattr(tool.module, "DEADLINE_S", DEADLINE_S))
    for name, function in Toolbox([(tool, examples[0].settings if examples else {})]).functions.items():
        faults += schema_faults(name, function)
    first = [outcome_of(tool, example, deadline_s) for example in examples]
    for example, outcome in zip(examples, first, strict=True):
        faults += _wrong(example, outcome, deadline_s)
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(lambda e: outcome_of(tool, e, deadline_s), reversed(examples)))
    for example, outcome, other in zip(examples, first, reversed(again), strict=True):
        if outcome[:2] != other[:2] and example.kind != "hostile":
            faults.append(
                f"gives {other[1][:80]!r} beside other sessions, {outcome[1][:80]!r} alone, for {shown(example)}"
            )
    return faults + _hostile_faults(tool, examples, deadline_s)


def schema_faults(name: str, function: Any) -> list[str]:
    """What the schema of a function would lack."""
    documented = inspect.getdoc(function) or ""
    faults = [] if documented.strip() else [f"{name} has no docstring: the model reads it"]
    hints = typing.get_type_hints(function)
    for argument in inspect.signature(function).parameters:
        if argument not in hints:
            faults.append(f"{name}: the argument {argument!r} has no type hint")
        if not re.search(rf"^\s*{argument}\s*(\(.*\))?:\s*\S", documented.partition("Args:")[2], re.MULTILINE):
            faults.append(f"{name}: the docstring's `Args:` does not describe {argument!r}")
    return faults


def outcome_of(tool: Tool, example: ToolExample, deadline_s: float) -> tuple[str, str, float]:
    """(`right`, `mistake`, `broken` or the exception's name; text; seconds of the slowest call) of the last call."""
    box = Toolbox([(tool, example.settings)])
    outcome, slowest = ("right", ""), 0.0
    try:
        box.reset(example.task)
        for call in example.calls:
            name, arguments = (next(iter(box.functions)), call) if isinstance(call, Mapping) else call
            with CallTimer() as timer:
                try:
                    outcome = ("right", box.call(name, arguments))
                except ToolError as exc:
                    outcome = ("mistake", str(exc))
            slowest = max(slowest, timer.fair(deadline_s))
    except ToolBroken as exc:
        outcome = ("broken", str(exc))
    except Exception as exc:  # the untrusted border: a fault of the tool
        outcome = (type(exc).__name__, str(exc))
    finally:
        box.close()
    return *outcome, slowest


def _wrong(example: ToolExample, outcome: tuple[str, str, float], deadline_s: float) -> list[str]:
    kind, text, seconds = outcome
    faults = []
    if seconds > deadline_s:
        faults.append(f"took {seconds:.2f} s, over {deadline_s:g} s, for {shown(example)}")
    if example.kind == "hostile":
        if kind not in ("right", "mistake"):
            faults.append(f"{kind}: {text[:100]} for {shown(example)}")
    elif kind != example.kind:
        faults.append(f"{kind}: {text[:100]!r}, not {example.kind}, for {shown(example)}")
    elif example.kind == "right" and text != example.output:
        faults.append(f"returns {text[:100]!r}, not {example.output[:100]!r}, for {shown(example)}")
    elif example.kind == "mistake" and example.output not in text:
        faults.append(f"says {text[:100]!r}, which lacks {example.output[:100]!r}, for {shown(example)}")
    return faults


def _hostile_faults(tool: Tool, examples: Sequence[ToolExample], deadline_s: float) -> list[str]:
    """Calls of wrong shape, and hostile text in place of every text argument of the first right example."""
    right = next((e for e in examples if e.kind == "right"), None)
    if right is None:
        return []
    name = next(iter(Toolbox([(tool, right.settings)]).functions))
    call = right.calls[-1] if isinstance(right.calls[-1], Mapping) else right.calls[-1][1]
    faults = []
    shapes: list[Any] = [None, [], "text", {**call, "no_such_argument": 1}, *([{}] if call else [])]
    for arguments in shapes:
        kind, text, _ = outcome_of(
            tool, ToolExample("mistake", [(name, arguments)], "", right.task, right.settings), deadline_s
        )
        if kind != "mistake":
            faults.append(f"{kind}: {text[:80]!r} for the arguments {arguments!r}, which do not fit")
    texts = [key for key, value in call.items() if isinstance(value, str)]
    for hostile in HOSTILE if texts else ():
        example = ToolExample(
            "hostile", [(name, {**call, **dict.fromkeys(texts, hostile)})], "", right.task, right.settings
        )
        kind, text, seconds = outcome_of(tool, example, deadline_s)
        faults += _wrong(example, (kind, text, seconds), deadline_s)
        if len(text) > OUTPUT_CHARS:
            faults.append(f"returns {len(text)} characters for {shown(example)}")
    return faults


def shown(example: ToolExample) -> str:
    text = ascii(list(example.calls))
    return f"{example.kind} {text if len(text) <= 100 else text[:97] + '...'}"


def check_all(names: Sequence[str], directories: Sequence[str | Path]) -> int:
    """Check each tool and print one line for it. Returns 2 if one does not conform; a skipped one names its reason."""
    worst = 0
    for name in names:
        tool = load(name, directories)
        reason = getattr(tool.module, "unavailable", lambda: None)()
        if reason:
            print(f"{name}  skipped: {reason}")
            continue
        faults = check(tool)
        count = len(getattr(tool.module, "EXAMPLES", ()))
        print(f"{name}  {count} examples  {'ok' if not faults else f'{len(faults)} FAULTS'}")
        for fault in faults[:10]:
            print(f"{name}: {fault}")
        worst = 2 if faults else worst
    return worst
