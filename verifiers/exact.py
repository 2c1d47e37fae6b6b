"""The completion is one of the gold texts, after its thinking, up to white space; and nothing else."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from verifiers import Example, Verdict, after_thinking, failed, malformed, passed
from verifiers._math.text import final_answer


class Task(TypedDict):
    gold: str | list[str]  # any of them is right
    ignore_case: NotRequired[bool]
    final: NotRequired[bool]  # compare the final answer (box, <answer> or last line) and not the whole completion


def _spaced(text: str) -> str:
    return " ".join(text.split())


def verify(completion: str, task: Task) -> Verdict:
    golds = [task["gold"]] if isinstance(task["gold"], str) else list(task["gold"])
    if not golds or not all(isinstance(gold, str) and gold.strip() for gold in golds):
        raise ValueError("gold must be a text or several, none of them empty")
    final = task.get("final", False)
    text = final_answer(completion, box_needed=False) if final else after_thinking(completion)
    if not text or not text.strip():
        return malformed("the answer is empty")
    wanted = {_spaced(gold) for gold in golds}
    given = _spaced(text)
    if task.get("ignore_case", False):
        wanted, given = {gold.casefold() for gold in wanted}, given.casefold()
    return passed() if given in wanted else failed("not one of the gold texts")


_ABC = {"gold": ["a b c", "A-B-C"]}
EXAMPLES = (
    Example("right", " a b\n c ", _ABC),
    Example("right", "<think>hm</think>\nA-B-C", _ABC),
    Example("right", "ÉTÉ", {"gold": "été", "ignore_case": True}),
    Example("right", r"So \boxed{a b c}", _ABC | {"final": True}),
    Example("wrong", "a b c d", _ABC),
    Example("wrong", "A B C", _ABC),
    Example("wrong", "ab c", _ABC),
    Example("malformed", " \n", _ABC),
    Example("malformed", "<think>a b c", _ABC),
    Example("malformed", "a b c", _ABC | {"final": True}),
    Example("hostile", "a b c\na b c", _ABC),
    Example("hostile", "a b c\x00", _ABC),
    Example("hostile", "a b c or A-B-C", _ABC),
)
