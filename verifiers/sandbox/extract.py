"""Extract the answer of a completion and its code blocks. One linear scan; the code is not parsed.

Reasoning between think tags is not part of the answer; an `<answer>` tag, if present, contains the answer. Code is
fenced as in CommonMark (backticks or tildes, indented in a list or not, the last fence possibly not closed), with three
additions: text may precede an opening fence with a language; a fence whose content is Markdown is searched for nested
fences; and if the prompt opened the fence, the first bare fence of the completion closes it.
A completion without any fence is treated entirely as code. A leading byte-order mark is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

MAX_CHARS = 1 << 20
_BYTE_ORDER_MARK = "\ufeff"
PYTHON = frozenset("py py3 python python3".split())
SHELL = frozenset("bash sh shell zsh console".split())
_LANGUAGE_LINES = PYTHON | SHELL | frozenset("json jsonc json5 sql sqlite sqlite3 mysql postgresql".split())
_MARKDOWN = frozenset(("", "markdown", "md"))
_MAX_NESTING = 3


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block; language in lower case, empty if it is not given."""

    language: str
    text: str


def answer(completion: str) -> str:
    """The completion without its reasoning. Everything after an unclosed think tag is dropped."""
    kept: list[str] = []
    thinking = False
    for part in re.split("(</?think>)", completion):
        if part == "<think>":
            thinking = True
        elif part == "</think>":
            if not thinking:  # the prompt opened the tag: everything before the closing tag was reasoning
                kept.clear()
            thinking = False
        elif not thinking:
            kept.append(part)
    text = "".join(kept)
    if "<answer>" in text:
        text = text.rpartition("<answer>")[2].partition("</answer>")[0]
    return text.lstrip().removeprefix(_BYTE_ORDER_MARK) if text.lstrip()[:1] == _BYTE_ORDER_MARK else text


def blocks(text: str, *, nesting: int = _MAX_NESTING) -> list[Block]:
    """The fenced blocks, in order; a single block with the whole text if there is no fence."""
    scanned = _scan(text.split("\n"))
    if not scanned:
        return [Block("", text)]
    parsed: list[Block] = []
    for block, _ in scanned:
        inner = nesting > 0 and block.language in _MARKDOWN and _starts_with_fence(block.text)
        parsed += blocks(block.text, nesting=nesting - 1) if inner else [block]
    return parsed


def _starts_with_fence(text: str) -> bool:
    first = next((line for line in text.split("\n") if line.strip()), "")
    return _opening(first) is not None


def _scan(lines: list[str]) -> list[tuple[Block, bool]]:
    """Each outermost fenced block, with whether its fence is closed."""
    scanned: list[tuple[Block, bool]] = []
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
        scanned.append((Block(language, "\n".join(body).removeprefix(_BYTE_ORDER_MARK)), i < len(lines)))
        i += 1
    return scanned


def _opened_by_prompt(text: str) -> list[Block] | None:
    """The blocks of a completion that closes a fence opened by the prompt; None if it does not close such a fence.

    This applies only if the normal reading leaves a last bare fence open and the first fence is also bare: then the
    number of bare fences is odd, and one of them has no partner in the completion. The first block is the text before
    the first fence.
    """
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if _opening(line) is not None), None)
    if first is None or lines[first].strip().strip("`~") or not "".join(lines[:first]).strip():
        return None
    last, closed = _scan(lines)[-1]
    if closed or last.language:
        return None
    head = "\n".join(lines[:first]).lstrip("\n").split("\n")
    language = head.pop(0).strip().lower() if head[0].strip().lower() in _LANGUAGE_LINES else ""
    return [Block(language, "\n".join(head)), *(block for block, _ in _scan(lines[first + 1 :]))]


def python_answer(completion: str) -> list[Block]:
    """Candidate blocks for the Python answer, in order: those labelled Python or not labelled, else all of them.

    If the prompt may have opened the fence, the start of the completion is included as the first block.
    """
    text = answer(completion)
    found = blocks(text)
    other = _opened_by_prompt(text)
    if other is not None and other[0].language in ("", *PYTHON):
        found = [Block("python", other[0].text), *(block for block in found if block.text.strip())]
    return [b for b in found if b.language in PYTHON or not b.language] or found


def python_blocks(completion: str) -> list[str]:
    """The texts of the blocks of python_answer."""
    return [block.text for block in python_answer(completion)]


def shell_script(completion: str) -> str | None:
    """The last block labelled as shell, else the last without a label. None if there is neither."""
    return last_block(answer(completion), SHELL)


def last_block(text: str, languages: Collection[str], *, starts: re.Pattern[str] | None = None) -> str | None:
    """The last block in one of the languages, else the last without a language. None if there is neither.

    starts: pattern for the beginning of such a text. If the number of bare fences is odd, it decides whether the start
    of the completion is the answer, in a fence opened by the prompt; without it, that is assumed if nothing follows the
    last fence.
    """
    found = blocks(text)
    named = [b.text for b in found if b.language in languages]
    chosen = named or [b.text for b in found if not b.language]
    other = None if named else _opened_by_prompt(text)
    if other is not None and other[0].language in ("", *languages):
        head, last = other[0].text, chosen[-1] if chosen else ""
        if other[0].language or not last.strip() or (starts and starts.match(head) and not starts.match(last)):
            chosen = [head]
    return chosen[-1] if chosen and chosen[-1].strip() else None


def _opening(line: str) -> tuple[str, int, str] | None:
    """(fence, indentation, language) if a fence opens on this line."""
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
        and len(line) - len(line.lstrip()) <= indent + 3  # deeper: part of the code, e.g. a docstring's example
    )


def _unindent(line: str, indent: int) -> str:
    return line[min(indent, len(line) - len(line.lstrip())) :]
