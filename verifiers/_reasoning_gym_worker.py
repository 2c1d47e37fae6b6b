"""What the killable process of reasoning_gym.py runs; imported nowhere else, as it loads that package."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import reasoning_gym


@lru_cache(maxsize=128)
def _scorer(dataset: str) -> Callable[..., float]:
    return reasoning_gym.get_score_answer_fn(dataset)


def prepare(request: dict[str, Any]) -> None:
    """Loads the dataset's scorer once and not in every fork; some read large files."""
    _scorer(request["dataset"])


def score(request: dict[str, Any]) -> float:
    """The package's own score of an answer to an entry of a dataset."""
    return float(_scorer(request["dataset"])(request["answer"], entry=request["entry"]))
