"""Did the text follow its instructions? Checks of form that need no model and no data, after IFEval (arXiv:2311.07911).

    {"check": "words", "at_least": 50, "at_most": 80}        also sentences, paragraphs, bullets, placeholders,
                                                             highlights, lines, characters, capital_words
    {"check": "includes", "words": ["tea"], "at_least": 2}   each of the texts, so often at least, within words too
    {"check": "excludes", "words": ["coffee"]}               as words of their own; {"within_words": true}: anywhere
    {"check": "frequency", "word": "tea", "exactly": 2}      as a word of its own; {"within_words": true}: anywhere
    {"check": "letter", "letter": "e", "at_most": 3}
    {"check": "starts_with", "text": "Dear"}
    {"check": "ends_with", "text": "The end."}               quotation marks around the text and case do not matter
    {"check": "case", "case": "lower"}                       or upper, or title
    {"check": "no", "characters": ",;"}
    {"check": "wrapped", "open": "<<", "close": ">>"}        anywhere in a line; {"whole": true}: around all of the text
    {"check": "sections", "heading": "Part", "exactly": 3}   lines that start with `Part 1`, `Part 2`, ...
    {"check": "divided", "exactly": 3}                       paragraphs between the dividers `***` or `* * *`
    {"check": "first_word", "paragraph": 2, "word": "Now"}   and with exactly, so many paragraphs
    {"check": "choice", "options": ["yes", "no"]}            the text holds one of them
    {"check": "two_responses"}                               two different ones, with `******` between them
    {"check": "language", "language": "de"}                  ISO 639-1
    {"check": "language_marks", "script": "latin"}           letters are of one script
    {"check": "json"}                                        all of it is a JSON object or array, perhaps in a fence
    {"check": "postscript", "marker": "P.S."}                a line that starts so and goes on; default: P.P.S. too
    {"check": "repeats", "text": "..."}                      the text begins with this, and goes on

Every instruction must hold to pass. The score of a text that fails is 0, or with `partial` the share that holds.
Form can be had without sense: weigh this beside a reward for content, and prefer tasks with a length to keep.
Where IFEval and the RLVR functions of open-instruct differ, docs/verifiers.md says which one each check follows.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any, NotRequired, TypedDict

from verifiers import Example, Verdict, after_thinking, failed, malformed, passed
from verifiers._languages import KNOWN, language_of
from verifiers.json_schema import read_json

MAX_CHARS = 100_000
# never the end of a sentence; or only before a capital letter
_TITLES = frozenset("mr mrs ms dr prof st rev hon gen col capt lt sgt e.g i.e vs cf viz".split())
_NUMBERED = frozenset("no nos fig figs vol pp p ch art".split())  # before a number
_ENDINGS = frozenset("etc inc ltd co corp jr sr al a.m p.m u.s u.k u.n ph.d m.d b.a m.a dept approx est".split())
_STOPS = "。！？।॥؟۔｡"  # of other scripts: no space follows them


class Task(TypedDict):
    instructions: list[dict[str, Any]]
    partial: NotRequired[bool]


def words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def sentences(text: str) -> list[str]:
    """Runs that end in . ! ? or another script's full stop, and hold a word. Abbreviations, initials and the numbers of
    a list end nothing."""
    pieces = re.split(rf"(?<=[.!?…][\"'”’)\]*_])\s+|(?<=[.!?…])\s+|(?<=[{_STOPS}])\s*", text)
    found: list[str] = []
    for piece in pieces:
        if found and _goes_on(found[-1], piece):
            found[-1] += " " + piece
        else:
            found.append(piece)
    return [piece for piece in found if words(piece)]


def _goes_on(before: str, after: str) -> bool:
    last = before.split()[-1].strip("\"'“”‘’()[]*_") if before.split() else ""
    if not last.endswith("."):
        return False
    word = last[:-1].lower()
    if word in _TITLES or re.fullmatch(r"[A-Z]", last[:-1]):
        return word != "i"  # so is an initial
    if word in _NUMBERED:
        return after[:1].isdigit()
    if re.fullmatch(r"\d{1,3}", word):
        return before.rpartition("\n")[2].strip() == last  # the number of a list's item
    return word in _ENDINGS and not after[:1].isupper()


def paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def highlights(text: str) -> int:
    """*marked* and **marked** runs within a line."""
    found = [*re.findall(r"\*([^\n*]*)\*", text), *re.findall(r"\*\*([^\n*]*)\*\*", text)]
    return sum(1 for inside in found if inside.strip())


COUNTED: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(words(text)),
    "sentences": lambda text: len(sentences(text)),
    "paragraphs": lambda text: len(paragraphs(text)),
    "lines": lambda text: sum(1 for line in text.splitlines() if line.strip()),
    "characters": len,
    "bullets": lambda text: len(re.findall(r"^[ \t]*(?:\*[^*\n]|-)", text, re.MULTILINE)),
    "placeholders": lambda text: len(re.findall(r"\[[ \t]*[^\[\]\s][^\[\]\n]*\]", text)),
    "highlights": highlights,
    "capital_words": lambda text: sum(1 for word in words(text) if word.isupper()),
}
BOUNDS = frozenset({"at_least", "at_most", "exactly"})


def _within(count: int, rule: dict[str, Any]) -> bool:
    if not BOUNDS & rule.keys():
        raise ValueError(f"the check {rule['check']!r} needs at_least, at_most or exactly")
    exactly = rule.get("exactly", count)
    return rule.get("at_least", count) <= count <= rule.get("at_most", count) and count == exactly


def _occurrences(word: str, text: str, *, within_words: bool) -> int:
    pattern = re.escape(word)
    return len(re.findall(pattern if within_words else rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE))


def _includes(text: str, rule: dict[str, Any]) -> bool:
    inside, least = rule.get("within_words", True), rule.get("at_least", 1)
    return all(_occurrences(word, text, within_words=inside) >= least for word in _several(rule, "words"))


def _excludes(text: str, rule: dict[str, Any]) -> bool:
    inside = rule.get("within_words", False)
    return not any(_occurrences(word, text, within_words=inside) for word in _several(rule, "words"))


def _frequency(text: str, rule: dict[str, Any]) -> bool:
    return _within(_occurrences(rule["word"], text, within_words=rule.get("within_words", False)), rule)


def _several(rule: dict[str, Any], field: str) -> list[str]:
    if not isinstance(rule[field], list) or not rule[field]:
        raise ValueError(f"the check {rule['check']!r} needs a list of {field}")
    return rule[field]


def _letter(text: str, rule: dict[str, Any]) -> bool:
    return _within(text.casefold().count(rule["letter"].casefold()), rule)


def _starts_with(text: str, rule: dict[str, Any]) -> bool:
    return text.startswith(rule["text"])


def _ends_with(text: str, rule: dict[str, Any]) -> bool:
    end = rule["text"].strip().casefold()
    return any(ending.casefold().endswith(end) for ending in (text.strip(), text.strip().strip('"“”„«»').strip()))


def _title_case(text: str) -> bool:
    """Each word begins with a capital letter or a digit; a part after an apostrophe or hyphen may begin small."""
    return bool(words(text)) and not (text.isupper() and len(words(text)) > 1) and all(map(_is_title, words(text)))


def _is_title(word: str) -> bool:
    first, *others = re.split("['’-]", word)
    capital = not first[0].isalpha() or first.isupper() or (first[0].isupper() and first[1:] == first[1:].lower())
    return capital and all(part[1:] == part[1:].lower() or part.isupper() for part in others)


def _case(text: str, rule: dict[str, Any]) -> bool:
    cases: dict[str, Callable[[str], bool]] = {"lower": str.islower, "upper": str.isupper, "title": _title_case}
    if rule["case"] not in cases:
        raise ValueError(f"case {rule['case']!r}; have: {', '.join(cases)}")
    return cases[rule["case"]](text)


def _no(text: str, rule: dict[str, Any]) -> bool:
    return not set(rule["characters"]) & set(text)


def _wrapped(text: str, rule: dict[str, Any]) -> bool:
    opened, closed = rule["open"], rule["close"]
    if rule.get("whole", False):
        return text.startswith(opened) and text.endswith(closed) and len(text) > len(opened) + len(closed)
    for line in text.splitlines():
        for part in line.split(opened)[1:]:
            inside, ended, _ = part.partition(closed)
            if ended and inside.strip():
                return True
    return False


def _sections(text: str, rule: dict[str, Any]) -> bool:
    """Numbered headings that count up from 1."""
    found = re.findall(rf"^[ \t#*\"“]*{re.escape(rule['heading'])} (\d{{1,3}})\b", text, re.MULTILINE)
    return [int(n) for n in found] == list(range(1, len(found) + 1)) and _within(len(found), rule)


def _divided(text: str, rule: dict[str, Any]) -> bool:
    """A divider at either end of the text divides nothing; two in a row leave an empty paragraph, which fails."""
    parts = [part.strip() for part in re.split(r"\*\*\*|\* \* \*", text)]
    inner = parts[int(not parts[0]) : len(parts) - int(not parts[-1])] if any(parts) else []
    return all(inner) and _within(len(inner), rule)


def _first_word(text: str, rule: dict[str, Any]) -> bool:
    found = paragraphs(text)
    if BOUNDS & rule.keys() and not _within(len(found), rule):
        return False
    number, wanted = int(rule["paragraph"]), words(str(rule["word"]))
    if number < 1 or not wanted:
        raise ValueError("the check 'first_word' needs a paragraph from 1 on, and a word")
    first = words(found[number - 1])[: len(wanted)] if number <= len(found) else []
    return [word.casefold() for word in first] == [word.casefold() for word in wanted]


def _choice(text: str, rule: dict[str, Any]) -> bool:
    return any(option.strip() in text for option in _several(rule, "options"))


def _two_responses(text: str, rule: dict[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("******")]
    inner = parts[int(not parts[0]) : len(parts) - int(not parts[-1])] if any(parts) else []
    return len(inner) == 2 and all(map(words, inner)) and inner[0] != inner[1]


def _language(text: str, rule: dict[str, Any]) -> bool:
    code = str(rule["language"]).lower().partition("-")[0]
    if code not in KNOWN:
        raise ValueError(f"no language {code!r}; have: {', '.join(sorted(KNOWN))}")
    return language_of(text) == code


def _json(text: str, rule: dict[str, Any]) -> bool:
    inner = re.fullmatch(r"```[ \t]*(?:json[c5]?)?[ \t]*\n(.*?)\n?[ \t]*```", text, re.DOTALL | re.IGNORECASE)
    try:
        return isinstance(read_json((inner[1] if inner else text).strip()), dict | list)
    except (ValueError, RecursionError):
        return False


def _postscript(text: str, rule: dict[str, Any]) -> bool:
    marker = str(rule.get("marker", "")).strip()
    spelt = {"": r"p\.\s?(?:p\.\s?)?s\b\.?", "P.S.": r"p\.\s?s\b\.?", "P.P.S": r"p\.\s?p\.\s?s\b\.?"}
    spelt["P.S"], spelt["P.P.S."] = spelt["P.S."], spelt["P.P.S"]
    begun = re.finditer(rf"^[ \t>#*_]*{spelt.get(marker, re.escape(marker))}", text, re.MULTILINE | re.IGNORECASE)
    return any(words(text[match.end() :]) for match in begun)


def _repeats(text: str, rule: dict[str, Any]) -> bool:
    wanted = rule["text"].strip()
    return text.casefold().startswith(wanted.casefold()) and len(text) > len(wanted)


def _script(text: str, rule: dict[str, Any]) -> bool:
    letters = [char for char in text if char.isalpha()]
    return bool(letters) and all(rule["script"].upper() in unicodedata.name(char, "") for char in letters)


CHECKS: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "includes": _includes,
    "excludes": _excludes,
    "frequency": _frequency,
    "letter": _letter,
    "starts_with": _starts_with,
    "ends_with": _ends_with,
    "case": _case,
    "no": _no,
    "wrapped": _wrapped,
    "sections": _sections,
    "divided": _divided,
    "first_word": _first_word,
    "choice": _choice,
    "two_responses": _two_responses,
    "language": _language,
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
    answer = after_thinking(completion).strip()
    kept = [
        follows(answer[:MAX_CHARS] or "-", rule) for rule in task["instructions"]
    ]  # a wrong task is reported on any text
    if not words(answer):
        return malformed("no words")
    if len(answer) > MAX_CHARS:
        return malformed(f"longer than {MAX_CHARS} characters")
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t\r" for char in answer):
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
    Example("wrong", "I like steam and chamomile, not more.", _TEA),
    Example("wrong", "Tea is tea but coffee is not tea.", _TEA),
    Example("wrong", "Dear Ada,\n\n- come\n- on [day]\n\nBring Bob.", _LETTER),
    Example("wrong", "COME HERE! WHY not?", _LOUD, 0.5),
    Example("malformed", "", _TEA),
    Example("malformed", "...", _LOUD),
    Example("hostile", "tea " * 50, _TEA),
    Example("hostile", "Dear Ada\n\n\n\n\n\n\n\n- [x]\n- [x]\n\nP.S.", _LETTER),
    Example("hostile", "tea tea green black\x00 white", _TEA),
)
