"""One letter of a multiple-choice question; the last statement of the answer counts, and it must name exactly one.

The answer is the last box, or the last statement (`Answer: C`, `**The correct option is (C).**`, `<answer>C</answer>`),
or a last line that is a choice and nothing else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from string import ascii_uppercase
from typing import NotRequired, TypedDict

from verifiers import Example, Verdict, after_thinking, failed, malformed, passed
from verifiers._math.statement import without_markdown
from verifiers._math.text import final_answer, one_spelling, plain_words, unreadable


class Task(TypedDict):
    gold: str  # the letter
    choices: NotRequired[list[str]]  # their texts, A first: then the text of a choice names it too


_LETTER = re.compile(
    r"(?:(?:option|choice|answer) +)?\(?([a-z])\)?(?:[.:]| [-\u2013\u2014])?(?: (.*))?", re.DOTALL
)  # and the rest
_SENTENCE = re.compile(r"(?:\w+\W+){2}\w+.*", re.DOTALL)  # three words or more
_OTHERS = re.compile(r"(?:^|\W)(?:or|and|not|nor|either|both|but|maybe|perhaps)\W|\?")
_REMARKS = ("this ", "it ", "because ", "since ", "as ")
_BARE_LINE = re.compile(r"\s*\(?[A-Za-z]\)?\.?\s*")


def _chosen(answer: str, choices: list[str]) -> str | None:
    """The letter an answer names, None where it names none or more than one.

    `C`, `(C)`, `Option C`, `C. Paris` where Paris is choice C, `Paris`, or `C` and a remark that names no other choice.
    """
    words = plain_words(one_spelling(answer))
    texts = [plain_words(one_spelling(choice)) for choice in choices]
    found = _LETTER.fullmatch(words)
    letter, rest = (found[1].upper(), found[2]) if found else ("", words)
    if rest and texts.count(words) == 1:  # a bare letter is a letter, also where it is another choice's text
        return ascii_uppercase[texts.index(words)]
    if not letter:
        return None
    i = ascii_uppercase.index(letter)
    if choices and i >= len(choices):
        return None
    if not rest or (i < len(texts) and rest == texts[i]):
        return letter
    return letter if _is_remark(rest, texts, i) else None


def _is_remark(rest: str, texts: list[str], chosen: int) -> bool:
    """Whether what follows a letter is a sentence about it, and not another choice: `C. This is the capital.`"""
    others = [text for i, text in enumerate(texts) if i != chosen and text]
    if _OTHERS.search(rest) or re.search(r"(?:^|\W)[b-h](?:\W|$)", rest) or any(text in rest for text in others):
        return False
    if _SENTENCE.fullmatch(rest) is None:
        return False
    own = texts[chosen] if chosen < len(texts) else ""
    return not texts or bool(own and rest.startswith(own)) or rest.startswith(_REMARKS)


def verify(completion: str, task: Task) -> Verdict:
    gold, choices = str(task["gold"]).strip().strip("()").upper(), list(task.get("choices", ()))
    if len(gold) != 1 or gold not in ascii_uppercase[: len(choices) or 26]:
        raise ValueError(f"the gold {task['gold']!r} is not the letter of a choice")
    answer = final_answer(completion, box_needed=False) or _last_line(completion, choices)
    if not answer or unreadable(answer):
        return malformed("no final answer")
    letter = _chosen(answer, choices)
    if letter is None:
        return malformed("the final answer does not name one choice")
    return passed() if letter == gold else failed(f"{letter}, not {gold}")


def _last_line(completion: str, choices: list[str]) -> str | None:
    """The last line where it is a choice and nothing else: `C`, `**(C)**`, `C) Paris`."""
    lines = after_thinking(completion).strip().splitlines()
    line = without_markdown(lines[-1]) if lines else ""
    labelled = [
        f"{letter}{mark} {text}" for letter, text in zip(ascii_uppercase, choices, strict=False) for mark in ".):"
    ]
    return line if _BARE_LINE.fullmatch(line) or line.strip("() ").lower() in map(str.lower, labelled) else None


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    task = example.task
    gold = str(task["gold"])
    others = [letter for letter in ascii_uppercase[: len(task.get("choices", "ABCD"))] if letter != gold]
    for text in (f"Answer: {gold}", f"The answer is ({gold}).", rf"\boxed{{\text{{{gold}}}}}", f"Because.\n{gold}"):
        yield Example("right", text, task)
    other = rng.choice(others)
    for text in (f"Answer: {other}", rf"\boxed{{{gold}, {other}}}", f"Answer: {gold} or {other}", f"not {gold}"):
        yield Example("wrong", text, task)
    yield Example("wrong", f"Answer: {gold}\nAnswer: {other}", task)
    yield Example("wrong", f"Answer: not {gold}", task)


_PARIS = {"gold": "C", "choices": ["London", "Rome", "Paris", "Bern"]}
_SIGNS = {"gold": "B", "choices": ["25°", "$5", "π/2"]}
EXAMPLES = (
    Example("right", "It is the capital.\nAnswer: C", _PARIS),
    Example("right", r"\boxed{\text{(C)}}", _PARIS),
    Example("right", "The answer is C. Paris.", _PARIS),
    Example("right", "The answer is Paris.", _PARIS),
    Example("right", "C", {"gold": "C"}),
    Example("right", "Answer: B. $5", _SIGNS),
    Example("right", "The answer is π/2.", {**_SIGNS, "gold": "C"}),
    Example("right", "Answer: A", {"gold": "A", "choices": ["B", "A"]}),
    Example("right", "**Answer:** C\n\nParis has been the capital since 987.", _PARIS),
    Example("right", "The correct option is **(C)**.", _PARIS),
    Example("right", "<answer>**C**</answer>", _PARIS),
    Example("wrong", "Answer: B", _PARIS),
    Example("wrong", r"At first \boxed{C}, but no: \boxed{A}", _PARIS),
    Example("wrong", "The answer is Rome.", _PARIS),
    Example("malformed", "Consider C. It might be.", _PARIS),
    Example("malformed", "Answer: E", _PARIS),
    Example("malformed", "Answer: C. Rome", _PARIS),
    Example("hostile", r"\boxed{A, B, C, D}", _PARIS),
    Example("hostile", r"\boxed{C or D}", _PARIS),
    Example("hostile", "Answer: any of A to D", _PARIS),
    Example("hostile", "ABCD", _PARIS),
    Example("hostile", "Answer: B\n\nOr is it C?", _PARIS | {"gold": "B"}),
    Example("hostile", "Answer: C. This is not D, B or A.", _PARIS),
)
