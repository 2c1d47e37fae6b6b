"""The final answer as a chat model states it without a box: labels, Markdown, a heading with the answer below it.

The last statement counts. What may follow it is a closing remark; text that takes the answer back (`Or is it?`,
`Wait, ...`) leaves no final answer. Reading one labelled statement never rewards a list of guesses.
"""

from __future__ import annotations

import re

MAX_ANSWER_CHARS = 400
MAX_CLOSING_CHARS = 600
_LABEL = re.compile(
    r"(?:(?:so|thus|hence|therefore|finally|in conclusion|consequently)\b,? *)?"
    r"(?:(?:the|my|our) +)?"
    r"(?:(?:(?:final|correct|right|best|numerical|numeric|exact) +)*answer"
    r"|(?:(?:final|correct|right|best) +)+(?:option|choice|result|value|solution))"
    r"(?: +to (?:the|this|your) (?:question|problem|equation))?"
    r"(?: *(?: is| are|=|:)+(?![a-z]) *| +(?=[-+(\[$\\\d{])|$)",
    re.IGNORECASE,
)
_SUBJECT = re.compile(r"^the [^.!?=]{1,120}? (?:is|are|equals) (?=[-+(\[$\\\d])", re.IGNORECASE)  # `The area is 5`
_START = re.compile(r"(?:^|(?<=[.!?:;]) +|, +(?=(?:so|thus|hence|therefore)\b))", re.IGNORECASE)
_HASHES = re.compile(r"#### *(?=\S)")
_BOLD = re.compile(r"(?<![\w*])(\*\*|__)(?=\S)(.{1,400}?)(?<=\S)\1(?![\w*])")
_WRAPPED = re.compile(r"(\*|_|`)(?=[^\s*_`])([^*_`]{1,400})(?<=\S)\1[.,;:]?")
_MARKS = re.compile(r"^(?:#{1,6} +|> ?|[-*•] +)+")
_TAKES_BACK = re.compile(
    r"\?|\b(?:but|however|wait|actually|alternatively|maybe|perhaps|possibly|instead|sorry|hmm|incorrect|wrong|mistake"
    r"|recheck|reconsider|scratch that)\b|(?:^|[.!?\n]\s*)(?:or|no|not)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(
    r", +(?=(?:as|because|since|which)\b)|(?<=[^\s(A-Za-z.])[.!]\)? +(?=[A-Z(])|(?<=[a-z)}\]$]{2})[.!] +(?=[A-Z(])"
)


def without_markdown(line: str) -> str:
    """A line without bold, heading, quote and list marks. `2**10`, `3*4*5` and `a_1` stay as they are."""
    line = _BOLD.sub(r"\2", line.strip())
    line = _MARKS.sub("", line).strip()
    wrapped = _WRAPPED.fullmatch(line)
    return wrapped[2].strip() if wrapped else line


def unlabelled(text: str) -> str:
    """The answer in a text that is one: Markdown and labels such as `The answer is` taken off."""
    text = without_markdown(text)
    for _ in range(3):
        label = _LABEL.match(text)
        if label is None or not text[label.end() :].strip():
            break
        text = without_markdown(text[label.end() :])
    return text


def last_stated(text: str) -> str | None:
    """The answer of the last statement in a text; None without one, or if what follows takes it back."""
    lines = text.strip().splitlines()
    for at in range(len(lines) - 1, -1, -1):
        found = _stated(lines, at)
        if found is not None:
            answer, closing = found
            if len(closing) > MAX_CLOSING_CHARS or _TAKES_BACK.search(closing):
                return None
            return answer if 0 < len(answer) <= MAX_ANSWER_CHARS else None
        if sum(map(len, lines[at:])) > MAX_CLOSING_CHARS:
            return None
    return None


def _stated(lines: list[str], at: int) -> tuple[str, str] | None:
    """(answer, what follows it) if the line at `at` states an answer, or is a label with the answer below it."""
    raw = lines[at].strip()
    if len(raw) > 4 * MAX_ANSWER_CHARS:
        return None
    if hashes := _HASHES.match(raw):
        answer, below = unlabelled(raw[hashes.end() :]), lines[at + 1 :]
        if answer and not _LABEL.fullmatch(answer):
            return answer, "\n".join(below).strip()
    line = without_markdown(raw)
    for start in reversed(list(_START.finditer(line))):
        label = _LABEL.match(line, start.end())
        if label is None:
            continue
        answer = unlabelled(line[label.end() :])
        if answer in ("$$", "\\["):
            return _below([*lines[:at], answer, *lines[at + 1 :]], at)
        if not answer or _LABEL.fullmatch(answer):
            return _below(lines, at + 1)
        head, rest = _first_sentence(answer)
        return _SUBJECT.sub("", head), "\n".join([rest, *lines[at + 1 :]]).strip()
    return None


def _below(lines: list[str], at: int) -> tuple[str, str] | None:
    r"""The answer on the next line that is not blank; a display `$$ ... $$` or `\[ ... \]` may take several."""
    while at < len(lines) and not lines[at].strip():
        at += 1
    if at == len(lines):
        return None
    end = at + 1
    closes = {"$$": "$$", "\\[": "\\]"}.get(lines[at].strip())
    if closes:
        while end < min(len(lines), at + 6) and lines[end].strip() != closes:
            end += 1
        end += 1
    answer = unlabelled(" ".join(lines[at:end]))
    head, rest = _first_sentence(answer)
    return head, "\n".join([rest, *lines[end:]]).strip()


def _first_sentence(answer: str) -> tuple[str, str]:
    """`73. This agrees with the check.` -> (`73`, the rest). `C. Paris` is one answer, and so is `3.5`."""
    cut = _SENTENCE_END.search(answer)
    return (answer, "") if cut is None else (answer[: cut.start()], answer[cut.end() :])
