"""Template of a new tool; it passes the conformance kit as written."""

from __future__ import annotations

import keyword
from pathlib import Path

from verifiers.tools import available

TEMPLATE = '''"""{name}: an example that counts the words of a text; replace function and EXAMPLES with your own."""

from __future__ import annotations

from verifiers.tools import ToolExample, ToolError


def {name}(text: str) -> str:
    """Count the words of a text.

    Args:
        text: The text whose words are counted.
    """
    # The docstring and the type hints above are what the model reads. Return text, or anything that JSON can hold.
    # A mistake of the model raises ToolError: it reads the message and may try again. For state between the calls of
    # an episode, write a class `Session` with this function as a method; see docs/tools.md.
    words = text.split()
    if not words:
        raise ToolError("the text has no words")
    return str(len(words))


EXAMPLES = (
    ToolExample("right", [{{"text": "one two three"}}], "3"),
    ToolExample("mistake", [{{"text": "   "}}], "no words"),
    ToolExample("hostile", [{{"text": "word " * 10_000}}]),
)
'''


def write(name: str, directory: str | Path) -> Path:
    """Write the file. Raises ValueError if the name is no module name or is taken, or if the file exists."""
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or name != name.lower():
        raise ValueError(f"{name!r} cannot name a tool: use small letters, digits and _, as in `unit_price`")
    path = Path(directory) / f"{name}.py"
    if path.exists():
        raise ValueError(f"{path} exists already; choose another name")
    Path(directory).mkdir(parents=True, exist_ok=True)
    if name in available([directory]):
        raise ValueError(f"the name {name!r} is taken by one of Whetstone's own tools; choose another")
    path.write_text(TEMPLATE.format(name=name), encoding="utf-8")
    return path
