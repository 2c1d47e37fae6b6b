"""Which part of a completion is the answer, and which blocks of code it holds. One linear scan; nothing is parsed.

Reasoning between think tags is no answer; an `<answer>` tag, where there is one, holds it. Code stands between
fences as in CommonMark (backticks or tildes, indented in a list or not, the last one perhaps not closed), except that
words may stand before an opening fence with a language. A completion without any fence is code as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

MAX_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; language in lower case, empty where none is named."""

    language: str
    text: str


def answer(completion: str) -> str:
    """The completion without its reasoning. An unclosed think tag leaves nothing after it."""
    kept: list[str] = []
    thinking = False
    for part in re.split("(</?think>)", completion):
        if part == "<think>":
            thinking = True
        elif part == "</think>":
            if not thinking:  # the tag was opened in the prompt: all before its end was reasoning
                kept.clear()
            thinking = False
        elif not thinking:
            kept.append(part)
    text = "".join(kept)
    if "<answer>" in text:
        text = text.rpartition("<answer>")[2].partition("</answer>")[0]
    return text


def blocks(text: str) -> list[Block]:
    """The fenced blocks, in order; one block of everything where there is no fence."""
    found: list[Block] = []
    lines = text.split("\n")
    i = 0
    while i < len(lines):
        opening = _opening(lines[i])
        i += 1
        if opening is None:
            continue
        fence, indent, language = opening
        body = []
        while i < len(lines) and not _closes(lines[i], fence, indent):
            body.append(_unindent(lines[i], indent))
            i += 1
        i += 1
        found.append(Block(language, "\n".join(body)))
    return found or [Block("", text)]


def python_blocks(completion: str) -> list[str]:
    """What may be the Python answer, in order."""
    found = blocks(answer(completion))
    return [b.text for b in found if b.language in ("", "py", "py3", "python", "python3")] or [b.text for b in found]


def shell_script(completion: str) -> str | None:
    """The last block that says it is a shell's, else the last that says nothing. None where there is neither."""
    return last_block(answer(completion), ("bash", "sh", "shell", "zsh", "console"))


def last_block(text: str, languages: Collection[str]) -> str | None:
    """The last block in one of the languages, else the last that names none. None where there is neither."""
    found = blocks(text)
    named = [b.text for b in found if b.language in languages]
    chosen = named or [b.text for b in found if not b.language]
    return chosen[-1] if chosen and chosen[-1].strip() else None


def _opening(line: str) -> tuple[str, int, str] | None:
    """(fence, indentation, language) where a fence opens on this line."""
    stripped = line.strip()
    for mark in "`~":
        length = len(stripped) - len(stripped.lstrip(mark))
        info = stripped[length:]
        if length >= 3 and mark not in info:
            word = info.split()[0] if info.split() else ""
            return mark * length, len(line) - len(line.lstrip()), word.lower()
    before, fence, language = line.rpartition("```")
    language = language.strip()
    if fence and "`" not in before and language.isalnum():
        return fence, 0, language.lower()
    return None


def _closes(line: str, fence: str, indent: int) -> bool:
    stripped = line.strip()
    return (
        len(stripped) >= len(fence)
        and not stripped.strip(fence[0])
        and len(line) - len(line.lstrip()) <= indent + 3  # deeper, it is part of the code: a docstring's example
    )


def _unindent(line: str, indent: int) -> str:
    return line[min(indent, len(line) - len(line.lstrip())) :]
