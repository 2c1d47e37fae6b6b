"""Tasks of the package reasoning-gym that its own scorers judge soundly; an optional extra.

Only datasets on the allow-list, which `python -m verifiers._reasoning_gym_survey` writes: each passed the conformance
kit, and its scorer neither evaluates nor parses an answer as code. Its partial credit is not used: 1.0 passes, and
anything less fails. Scorers run in a process with limits of its own. Datasets of EXACT, whose scorers pay for numbers
near the answer, are graded here, by the exact number.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, TypedDict

from verifiers import Example, Verdict, after_thinking, broken, failed, malformed, passed
from verifiers._killable import Killable, Killed, Stalled
from verifiers._reasoning_gym_allowed import ALLOWED
from verifiers._reasoning_gym_rows import entries

WORKER = Killable("verifiers._reasoning_gym_worker:score", cpu_s=1.0, memory_mb=4096)
DEADLINE_S = 2.0
EXACT = frozenset(("decimal_arithmetic",))  # the package pays in full within 0.001
MAX_CHARS = 20_000


class Task(TypedDict):
    dataset: str
    entry: dict[str, Any]  # as the package made it: question, answer, metadata


def unavailable() -> str | None:
    if importlib.util.find_spec("reasoning_gym") is None:
        return 'pip install "whetstone-rl[reasoning-gym]"'
    return None


def verify(completion: str, task: Task) -> Verdict:
    if task["dataset"] not in ALLOWED:
        raise ValueError(f"the dataset {task['dataset']!r} is not on the allow-list")
    return verify_any(completion, task)


def verify_any(completion: str, task: Task) -> Verdict:
    """Without the allow-list; for the survey that makes it."""
    gold = task["entry"].get("answer")
    if gold is None or not str(gold).strip():
        raise ValueError("the entry has no answer: nothing could be right, or anything")
    _, opened, tail = after_thinking(completion).rpartition("<answer>")
    answer, closed, _ = tail.partition("</answer>")
    answer = answer.strip()
    if not (opened and closed and answer) or len(answer) > MAX_CHARS:
        return malformed("no <answer>...</answer>")
    if task["dataset"] in EXACT:
        return passed() if _number(answer) == Fraction(str(gold).strip()) else failed("another number")
    try:
        score = WORKER.ask({"dataset": task["dataset"], "entry": task["entry"], "answer": answer})
    except Killed:
        return failed("over its limit of CPU time or memory")
    except Stalled as exc:
        return broken(str(exc))
    return passed() if score == 1.0 else failed(f"scored {score:g} by the package")


def _number(answer: str) -> Fraction | None:
    return Fraction(answer) if re.fullmatch(r"[+-]?[0-9]{1,40}(\.[0-9]{1,40})?", answer) else None


def rows(dataset: str, n: int, seed: int) -> Iterator[dict[str, Any]]:
    """n rows of one dataset: prompt, completion (the package's own answer) and task, as JSON would bring them back."""
    return (_row(dataset, entry) for entry in entries([(dataset, n, seed)]))


def generate(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows from the allowed datasets in turn."""
    rng = random.Random(seed)
    requests = [(ALLOWED[i % len(ALLOWED)], 1, rng.randrange(2**31)) for i in range(n)]
    return (_row(dataset, entry) for (dataset, _, _), entry in zip(requests, entries(requests), strict=True))


def _row(dataset: str, entry: dict[str, Any]) -> dict[str, Any]:
    prompt = f"{entry['question']}\n\nGive the final answer between <answer> and </answer>."
    completion = f"<answer>{entry['answer']}</answer>"
    return {"prompt": prompt, "completion": completion, "task": {"dataset": dataset, "entry": entry}}


def mutate(example: Example, rng: random.Random) -> Iterator[Example]:
    answer = example.completion.rpartition("<answer>")[2].partition("</answer>")[0]
    yield Example(
        "right", f"I think so.\n<answer>wrong</answer>\n<answer> {answer} </answer> That is it.", example.task
    )
    yield Example("wrong", f"<answer>{answer} and nothing else</answer>", example.task)
    yield Example("wrong", f"<answer>{answer}</answer> or <answer>{rng.randrange(10**9)}x</answer>", example.task)
    yield Example("malformed", answer, example.task)
    yield Example("malformed", f"<answer>{answer}", example.task)


_LEGS = {
    "dataset": "leg_counting",
    "entry": {
        "question": "How many legs are there in total if you have 13 woodlouses, 8 leechs and 8 tigers?",
        "answer": "214",
        "metadata": {"animals": {"woodlouse": 13, "leech": 8, "tiger": 8}, "total_legs": 214},
    },
}
EXAMPLES = (
    Example("right", "13 * 14 + 8 * 4 = 214\n<answer>214</answer>", _LEGS),
    Example("wrong", "<answer>213</answer>", _LEGS),
    Example("wrong", "<answer>214</answer> no, <answer>4</answer>", _LEGS),
    Example("malformed", "214", _LEGS),
    Example("malformed", "<answer></answer>", _LEGS),
    Example("malformed", "<think>Is it <answer>214</answer>?", _LEGS),
    Example("hostile", "<answer>213 214</answer>", _LEGS),
    Example("hostile", "<answer>214 or 215</answer>", _LEGS),
    Example("hostile", "<answer>__import__('os').getpid()</answer>", _LEGS),
)
