"""keep: best: keep the weights of the best evaluation pass, and stop when passes no longer improve.

Passes are on the validation prompts, which are neither trained on nor held out: the best of many noisy figures is too
high, so the figures that are reported come from other prompts. The weights lie beside the checkpoints, so that a
resumed run chooses among all passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.distributed import ranks
from pipeline.run import console
from pipeline.update.loop_state import LoopDeps, State


def is_due(deps: LoopDeps, state: State, every: int) -> bool:
    """Whether to evaluate after this step: after every so many, and for keep: best after the last one."""
    last = state.step == deps.block.steps or state.budget_spent
    return state.step % every == 0 or (deps.block.keep == "best" and last)


def compare(deps: LoopDeps, state: State, figures: Mapping[str, Any]) -> None:
    """Note an evaluation pass in the state; save the weights if it is the best so far. Of equal passes the first stays.

    Every rank calls it, since sharded tensors are gathered.
    """
    block, name = deps.block, deps.directory.name
    if block.keep != "best":
        return
    # a policy of several turns is chosen by whole episodes, not by its first turns
    score = figures.get(f"validation_episode_{block.keep_by}", figures[f"validation_{block.keep_by}"])
    line = f"{name}: step {state.step}: validation {block.keep_by} {console.number(score)}"
    if score > state.best_score or (math.isnan(state.best_score) and not math.isnan(score)):
        state.best_step, state.best_score, state.passes_since_best = state.step, score, 0
        weights = deps.learner.weights()
        if ranks.is_main():
            deps.directory.checkpoints.save_best(state.step, lambda path: torch.save(weights, path / "weights.pt"))
        ranks.barrier()
        console.say(f"{line}, the best so far")
        return
    state.passes_since_best += 1
    console.say(f"{line}, not above {console.number(state.best_score)} of step {state.best_step}")
    if block.patience is not None and state.passes_since_best >= block.patience and state.step < block.steps:
        state.stopped_early = True
        console.say(f"{name}: stopping at step {state.step} of {block.steps}: {state.passes_since_best} evaluation "
                    "passes without a better one")  # fmt: skip


def restore(deps: LoopDeps, state: State) -> bool:
    """Load the weights of the best pass, if it was not after the last step. Returns whether the learner changed."""
    if deps.block.keep != "best" or state.best_step == state.step:
        return False
    if not state.best_step:
        console.say(f"{deps.directory.name}: no evaluation pass could be scored; the weights of the last step are kept")
        return False
    path = deps.directory.checkpoints.best_path(state.best_step) / "weights.pt"
    deps.learner.load_weights(torch.load(path, weights_only=True, map_location="cpu"))
    console.say(f"{deps.directory.name}: the weights of step {state.best_step} of {state.step} are kept")
    return True


def chosen(deps: LoopDeps, state: State) -> dict[str, Any]:
    """Which step was kept and how it scored, for the manifest."""
    if deps.block.keep != "best":
        return {}
    figures = {"best_step": state.best_step, f"best_validation_{deps.block.keep_by}": state.best_score}
    return {**figures, "stopped_early": state.stopped_early}
