"""How much code one step of GRPO enters: files and frames, counted by a profiler in a real run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from loop_kit import run_stage

from pipeline.update import loop

pytestmark = [pytest.mark.stages, pytest.mark.usefixtures("no_engine_left_behind")]
ROOT = Path(__file__).parents[2]
OURS = tuple(str(ROOT / name) + "/" for name in ("pipeline", "rewards", "verifiers"))


class Profiler:
    """files: of ours that were entered while it was on. frames: of ours above the loss, from `optimise` on."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.frames: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(OURS):
            return
        self.files.add(str(Path(file).relative_to(ROOT)))
        if frame.f_code.co_name == "clipped_surrogate":
            self.frames = []
            caller: FrameType | None = frame
            while caller is not None and (not self.frames or self.frames[-1] != "optimise"):
                if caller.f_code.co_filename.startswith(OURS):
                    self.frames.append(caller.f_code.co_name)
                caller = caller.f_back


def profiled(monkeypatch: pytest.MonkeyPatch, profiler: Profiler, *names: str) -> None:
    """Turn the profiler on while these functions of the loop run in the second step: nothing is opened for it."""
    for name in names:
        plain = getattr(loop, name)

        def run(deps: Any, state: Any, *given: Any, plain: Any = plain) -> Any:
            if state.step != 1:
                return plain(deps, state, *given)
            sys.setprofile(profiler)
            try:
                return plain(deps, state, *given)
            finally:
                sys.setprofile(None)

        monkeypatch.setattr(loop, name, run)


def test_from_the_loop_to_the_loss_are_six_frames(tmp_path, model, monkeypatch):
    profiler = Profiler()
    profiled(monkeypatch, profiler, "train_step")
    assert run_stage(tmp_path, model, "grpo") == 0
    frames = [name for name in profiler.frames if name != "run"]  # this test's own
    assert frames == ["clipped_surrogate", "policy_loss", "update", "update_policy", "train_step", "optimise"]


def test_from_scored_rollouts_to_new_weights_are_at_most_twenty_files(tmp_path, model, monkeypatch):
    profiler = Profiler()
    profiled(monkeypatch, profiler, "make_experience", "update_policy")
    assert run_stage(tmp_path, model, "grpo") == 0
    assert "pipeline/update/losses.py" in profiler.files
    assert len(profiler.files) <= 20, sorted(profiler.files)


def test_a_whole_step_with_its_logs_is_at_most_forty_files(tmp_path, model, monkeypatch):
    """Sampling, scoring, credit, update, weight sync, canary, alarms and records of plain GRPO. It was 55 while each
    step asked again what the configuration, the model directory and the engine answer at set-up."""
    profiler = Profiler()
    profiled(monkeypatch, profiler, "train_step", "log_step")
    assert run_stage(tmp_path, model, "grpo", "trackers=[]") == 0
    assert {"pipeline/generation/hf_engine.py", "rewards/composite.py", "pipeline/run/stage_logs.py"} <= profiler.files
    assert len(profiler.files) <= 40, sorted(profiler.files)
