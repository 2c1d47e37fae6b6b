"""Did the text follow its instructions? Checks of form that need no model and no data, after IFEval (arXiv:2311.07911).

    {"check": "words", "at_least": 50, "at_most": 80}        also sentences, paragraphs, bullets, placeholders,
                                                             highlights, lines, characters
    {"check": "includes", "words": ["tea"], "at_least": 2}   each of the words, so often at least
    {"check": "excludes", "words": ["coffee"]}
    {"check": "letter", "letter": "e", "at_most": 3}
    {"check": "starts_with", "text": "Dear"}                 and ends_with
    {"check": "case", "case": "lower"}                       or upper, or title
    {"check": "no", "characters": ",;"}
    {"check": "wrapped", "open": "<<", "close": ">>"}        anywhere; {"whole": true}: around all of the text
    {"check": "sections", "heading": "Part", "exactly": 3}   lines that start with `Part 1`, `Part 2`, ...
    {"check": "json"}                                        the whole text is JSON
    {"check": "postscript"}                                  a last paragraph starting with P.S.
    {"check": "repeats", "text": "..."}                      the text begins with this, word for word
    {"check": "language_marks", "script": "latin"}           letters are of one script

Every instruction must hold to pass. The score of a text that fails is 0, or with `partial` the share that holds.
Form can be had without sense: weigh this beside a reward for content, and prefer tasks with a length to keep.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, after_thinking, failed, malformed, passed

MAX_CHARS = 100_000


class Task(TypedDict):
    instructions: list[dict[str, Any]]
    partial: NotRequired[bool]


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def sentences(text: str) -> list[str]:
    """Runs that end in . ! or ? before white space, and hold a word; abbreviations count as ends, as they do for
    IFEval's simpler checks."""
    return [part for part in re.split(r"(?<=[.!?])[\s\"'”)]+", text) if words(part)]


def paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


COUNTED: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(words(text)),
    "sentences": lambda text: len(sentences(text)),
    "paragraphs": lambda text: len(paragraphs(text)),
    "lines": lambda text: sum(1 for line in text.splitlines() if line.strip()),
    "characters": len,
    "bullets": lambda text: len(re.findall(r"^[ \t]*[-*•][ \t]+\S", text, re.MULTILINE)),
    "placeholders": lambda text: len(re.findall(r"\[[^\[\]\n]{1,60}\]", text)),
    "highlights": lambda text: len(re.findall(r"(?<!\*)\*{1,2}[^*\s\n][^*\n]{0,200}\*{1,2}(?!\*)", text)),
}
BOUNDS = frozenset({"at_least", "at_most", "exactly"})


def _within(count: int, rule: dict[str, Any]) -> bool:
    if not BOUNDS & rule.keys():
        raise ValueError(f"the check {rule['check']!r} needs at_least, at_most or exactly")
    exactly = rule.get("exactly", count)
    return rule.get("at_least", count) <= count <= rule.get("at_most", count) and count == exactly


def _occurrences(word: str, text: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


def _includes(text: str, rule: dict[str, Any]) -> bool:
    return all(_occurrences(word, text) >= rule.get("at_least", 1) for word in _several(rule))


def _excludes(text: str, rule: dict[str, Any]) -> bool:
    return not any(_occurrences(word, text) for word in _several(rule))


def _several(rule: dict[str, Any]) -> list[str]:
    if not isinstance(rule["words"], list) or not rule["words"]:
        raise ValueError(f"the check {rule['check']!r} needs a list of words")
    return rule["words"]


def _letter(text: str, rule: dict[str, Any]) -> bool:
    return _within(text.casefold().count(rule["letter"].casefold()), rule)


def _starts_with(text: str, rule: dict[str, Any]) -> bool:
    return text.startswith(rule["text"])


def _ends_with(text: str, rule: dict[str, Any]) -> bool:
    return text.endswith(rule["text"])


def _case(text: str, rule: dict[str, Any]) -> bool:
    cases: dict[str, Callable[[str], bool]] = {"lower": str.islower, "upper": str.isupper, "title": str.istitle}
    if rule["case"] not in cases:
        raise ValueError(f"case {rule['case']!r}; have: {', '.join(cases)}")
    return cases[rule["case"]](text)


def _no(text: str, rule: dict[str, Any]) -> bool:
    return not set(rule["characters"]) & set(text)


def _wrapped(text: str, rule: dict[str, Any]) -> bool:
    opened, closed = rule["open"], rule["close"]
    before, found, rest = text.partition(opened)
    inside, ended, _ = rest.partition(closed)
    if rule.get("whole", False):
        return bool(found) and not before and text.endswith(closed) and len(text) > len(opened) + len(closed)
    return bool(found and ended and inside.strip())


def _sections(text: str, rule: dict[str, Any]) -> bool:
    """Numbered headings that count up from 1."""
    found = re.findall(rf"^[ \t#*]*{re.escape(rule['heading'])} (\d{{1,3}})\b", text, re.MULTILINE)
    return [int(n) for n in found] == list(range(1, len(found) + 1)) and _within(len(found), rule)


def _json(text: str, rule: dict[str, Any]) -> bool:
    inner = re.fullmatch(r"```(?:json)?\n(.*)\n```", text, re.DOTALL)
    try:
        return isinstance(json.loads(inner[1] if inner else text), dict | list)
    except (ValueError, RecursionError):
        return False


def _postscript(text: str, rule: dict[str, Any]) -> bool:
    last = paragraphs(text)[-1].strip()
    return last.startswith(("P.S.", "P.P.S.")) and len(words(last)) > 2


def _repeats(text: str, rule: dict[str, Any]) -> bool:
    return text.startswith(rule["text"].strip()) and len(text) > len(rule["text"].strip())


def _script(text: str, rule: dict[str, Any]) -> bool:
    letters = [char for char in text if char.isalpha()]
    return bool(letters) and all(rule["script"].upper() in unicodedata.name(char, "") for char in letters)


CHECKS: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "includes": _includes,
    "excludes": _excludes,
    "letter": _letter,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "case": _case,
    "no": _no,
    "wrapped": _wrapped,
    "sections": _sections,
    "json": _json,
    "postscript": _postscript,
    "repeats": _repeats,
    "language_marks": _script,
}


def follows(text: str, rule: dict[str, Any]) -> bool:
    """Whether the text keeps one instruction. Raises ValueError or KeyError where the instruction itself is wrong."""
    name = rule["check"]
    if name in COUNTED:
        return _within(COUNTED[name](text), rule)
    if name not in CHECKS:
        raise ValueError(f"no check {name!r}; have: {', '.join([*COUNTED, *CHECKS])}")
    return CHECKS[name](text, rule)


def verify(completion: str, task: Task) -> Verdict:
    if not task["instructions"]:
        raise ValueError("the task has no instructions")
    said = after_thinking(completion).strip()
    kept = [follows(said[:MAX_CHARS] or "-", rule) for rule in task["instructions"]]  # a wrong task is told on any text
    if not words(said):
        return malformed("no words")
    if len(said) > MAX_CHARS:
        return malformed(f"longer than {MAX_CHARS} characters")
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t\r" for char in said):
        return malformed("control characters")
    if all(kept):
        return passed()
    broken_rule = task["instructions"][kept.index(False)]
    share = sum(kept) / len(kept) if task.get("partial", False) else 0.0
    return failed(f"{len(kept) - sum(kept)} of {len(kept)} not kept, first: {json.dumps(broken_rule)[:100]}", share)


_TEA = {
    "instructions": [
        {"check": "words", "at_least": 5, "at_most": 12},
        {"check": "includes", "words": ["tea"], "at_least": 2},
        {"check": "excludes", "words": ["coffee"]},
        {"check": "no", "characters": ","},
    ]
}
_LETTER = {
    "instructions": [
        {"check": "starts_with", "text": "Dear Ada"},
        {"check": "paragraphs", "exactly": 3},
        {"check": "bullets", "exactly": 2},
        {"check": "postscript"},
        {"check": "placeholders", "at_least": 1},
    ]
}
_LOUD = {"instructions": [{"check": "case", "case": "upper"}, {"check": "sentences", "exactly": 2}], "partial": True}
EXAMPLES = (
    Example("right", "Green tea is tea. I like Tea most.", _TEA),
    Example("right", "Dear Ada,\n\n- come\n- on [day]\n\nP.S. Bring Bob.", _LETTER),
    Example("right", "COME HERE! WHY NOT?", _LOUD),
    Example("wrong", "Green tea is tea, I like tea.", _TEA),
    Example("wrong", "Tea tea.", _TEA),
    Example("wrong", "I like tea and steam and teacups a lot.", _TEA),
    Example("wrong", "Tea is tea but coffee is not tea.", _TEA),
    Example("wrong", "Dear Ada,\n\n- come\n- on [day]\n\nBring Bob.", _LETTER),
    Example("wrong", "COME HERE! WHY not?", _LOUD, 0.5),
    Example("malformed", "", _TEA),
    Example("malformed", "...", _LOUD),
    Example("hostile", "tea " * 50, _TEA),
    Example("hostile", "Dear Ada\n\n\n\n\n\n\n\n- [x]\n- [x]\n\nP.S.", _LETTER),
    Example("hostile", "tea tea green black\x00 white", _TEA),
)
