"""A batch of completions as a composite scores it, one token per character."""

from __future__ import annotations

from rewards import Batch


def batch_of(completions: list[str], tasks: list[dict] | None = None, finished: list[bool] | None = None) -> Batch:
    n = len(completions)
    return Batch(
        prompts=[f"prompt {i}" for i in range(n)],
        prompt_ids=[[1, 2] for _ in range(n)],
        completions=completions,
        completion_ids=[[ord(c) for c in text] for text in completions],
        finished=finished or [True] * n,
        tasks=tasks or [{"want": "a"}] * n,
    )
