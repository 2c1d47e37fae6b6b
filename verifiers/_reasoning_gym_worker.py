"""What the killable process of reasoning_gym.py runs; imported nowhere else, as it loads that package."""

from __future__ import annotations

from typing import Any

import reasoning_gym


def score(request: dict[str, Any]) -> float:
    """The package's own score of an answer to an entry of a dataset."""
    return float(reasoning_gym.get_score_answer_fn(request["dataset"])(request["answer"], entry=request["entry"]))
