"""keep: best over rounds: each round's model is kept until the last, then the best one's alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.distributed import ranks
from pipeline.run import console
from pipeline.stages.context import Context


def score_name(figures: Sequence[Mapping[str, Any]]) -> str:
    """The figure by which rounds are compared: on validation prompts, else on the held-out ones."""
    return "validation_accuracy" if "validation_accuracy" in figures[0] else "heldout_accuracy"


def round_dir(directory: Path, number: int) -> Path:
    """Where the model of a round waits. directory: where the chosen one will be."""
    return directory.with_name(f".{directory.name}-round-{number}")


def keep_best(ctx: Context, directory: Path, figures: Sequence[Mapping[str, Any]]) -> int:
    """Move the best round's model to `directory`, remove the others, and return that round's number, from 0."""
    chosen_by = score_name(figures)
    scores = [f[chosen_by] for f in figures]
    best = scores.index(max(scores))
    why = figures[-1].get("stopped", "all rounds done")
    console.say(f"{ctx.name}: {why}; the model of round {best + 1} is kept")
    if chosen_by == "heldout_accuracy":
        console.say(f"{ctx.name}: chosen by the held-out prompts, so its figures there are those of the best of "
                    f"{len(scores)} tries; prompts.validation: 0.1 chooses by others")  # fmt: skip

    def move() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        round_dir(directory, best).rename(directory)
        for number in range(len(figures)):
            shutil.rmtree(round_dir(directory, number), ignore_errors=True)

    ranks.from_main(move)
    return best


__all__ = ["keep_best", "round_dir", "score_name"]
