"""Python calls in a list: [look(place="north"), add(a=1, b=2)], as Llama 4 and LFM2 write them.

LFM2 puts the list between <|tool_call_start|> and <|tool_call_end|>; elsewhere it is the whole turn. The list is
parsed, never evaluated: arguments are keywords with literal values.
"""

from __future__ import annotations

import ast
import re

from pipeline.generation.tool_calls.turn import MalformedCall, ParsedTurn, Schemas, ToolCall, shown

MARKS = (("<|tool_call_start|>",), ("<|python_start|>",))
OPENING, CLOSING = "<|tool_call_start|>", "<|tool_call_end|>"
WRAPPERS = ("<|python_start|>", "<|python_end|>")  # of Llama 4, around the list
MAX_CHARS = 100_000
_LIST = re.compile(r"\s*\[\s*[A-Za-z_][\w.]*\s*\(")


def parse(text: str, schemas: Schemas) -> ParsedTurn:
    if OPENING in text:
        before, _, rest = text.partition(OPENING)
        body, closing, after = rest.partition(CLOSING)
        if not closing:
            return ParsedTurn(before.strip(), (), (f"the calls do not end with {CLOSING}",))
        content = f"{before.strip()} {after.strip()}".strip()
    else:
        body, content = text, ""
        for wrapper in WRAPPERS:
            body = body.replace(wrapper, "")
        if not _LIST.match(body):
            return ParsedTurn(text.strip())
    try:
        return ParsedTurn(content, tuple(calls_of(body)))
    except MalformedCall as exc:
        return ParsedTurn(content, (), (str(exc),))


def calls_of(text: str) -> list[ToolCall]:
    """The calls of a list. Raises MalformedCall."""
    tree = _parsed(text)
    if not isinstance(tree, ast.List) or not tree.elts:
        raise MalformedCall(f"calls must be a list such as [name(argument=1)], found {shown(text.strip())}")
    return [_call(node) for node in tree.elts]


def one_call(text: str) -> ToolCall:
    """The call name(key="value"). Raises MalformedCall."""
    return _call(_parsed(text))


def _parsed(text: str) -> ast.expr:
    if len(text) > MAX_CHARS:
        raise MalformedCall(f"longer than {MAX_CHARS} characters")
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise MalformedCall(f"not a Python list of calls ({type(exc).__name__}): {shown(text.strip())}") from None


def _call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute):
        raise MalformedCall("a call must be name(argument=value)")
    name = ast.unparse(node.func)
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise MalformedCall(f"the arguments of {name!r} must be written with their names, as argument=value")
    arguments = {}
    for keyword in node.keywords:
        try:
            arguments[str(keyword.arg)] = _value(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            raise MalformedCall(f"{name}: the argument {keyword.arg!r} is not a literal value") from None
    return ToolCall(name, arguments)


def _value(node: ast.expr) -> object:
    """A literal; JSON's own names of constants count too."""
    names = {"true": True, "false": False, "null": None}
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        if any(key is None for key in node.keys):
            raise ValueError("** in a dict")
        return {ast.literal_eval(k): _value(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    return ast.literal_eval(node)
