"""Tags in order: `<think>why</think><answer>what</answer>`, each once, none empty, no text outside.

The task may name other tags, state that the prompt already opened the first one, or require free text after the last.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict

from verifiers import Example, Verdict, failed, malformed, passed


class Task(TypedDict):
    tags: NotRequired[list[str]]  # in order; default think, answer
    opened: NotRequired[bool]  # the prompt ends with the first opening tag: the completion may lack it
    tail: NotRequired[bool]  # free text must follow the last tag


DEFAULT_TAGS = ("think", "answer")


def sections(text: str, tags: tuple[str, ...]) -> tuple[dict[str, str], str] | str:
    """The text inside each tag and after the last one, or the fault as one sentence.

    Plain string search: linear in the text, whatever the text.
    """
    inside: dict[str, str] = {}
    for tag in tags:
        for mark in (f"<{tag}>", f"</{tag}>"):
            if (n := text.count(mark)) != 1:
                return f"{mark} occurs {n} times, not once"
    for tag in tags:
        text = text.lstrip()
        if not text.startswith(f"<{tag}>"):
            return f"<{tag}> is not in its place"
        body, closed, text = text[len(tag) + 2 :].partition(f"</{tag}>")
        if not closed or not body.strip():
            return f"<{tag}> is empty or closed before it opens"
        inside[tag] = body.strip()
    return inside, text.strip()


def verify(completion: str, task: Task) -> Verdict:
    tags = tuple(task.get("tags", DEFAULT_TAGS))
    if not tags or len(set(tags)) != len(tags):
        raise ValueError(f"tags must be different and at least one: {tags}")
    opening = f"<{tags[0]}>"
    if task.get("opened", False) and not completion.lstrip().startswith(opening):
        completion = opening + completion
    found = sections(completion, tags)
    if isinstance(found, str):
        return malformed(found)
    inside, tail = found
    for tag, body in inside.items():
        if any(f"<{other}>" in body or f"</{other}>" in body for other in tags):
            return malformed(f"another tag is inside <{tag}>")
    if bool(tail) != bool(task.get("tail", False)):
        return failed("text follows the last tag" if tail else "no text follows the last tag")
    return passed()


EXAMPLES = (
    Example("right", "<think>2+2 is 4</think>\n<answer>4</answer>", {}),
    Example("right", "2+2 is 4</think><answer>4</answer>", {"opened": True}),
    Example("right", "<think>2+2 is 4</think>It is 4.", {"tags": ["think"], "tail": True}),
    Example("wrong", "<think>2+2 is 4</think><answer>4</answer> or 5", {}),
    Example("wrong", "<think>2+2 is 4</think>", {"tags": ["think"], "tail": True}),
    Example("malformed", "", {}),
    Example("malformed", "4", {}),
    Example("malformed", "<answer>4</answer><think>2+2 is 4</think>", {}),
    Example("malformed", "<think> </think><answer>4</answer>", {}),
    Example("malformed", "<think>2+2</think><answer></answer>", {}),
    Example("hostile", "<think>a</think><answer>3</answer><answer>4</answer>", {}),
    Example("hostile", "<think><answer>4</answer></think>", {}),
    Example("hostile", "<think>a<answer>4</answer></think><answer>5</answer>", {}),
    Example("hostile", "<think>" * 20_000 + "<answer>" * 20_000, {}),
)
