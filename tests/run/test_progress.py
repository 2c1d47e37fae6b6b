"""The line of a step: time left by steps, or by the token budget that ends the work sooner."""

from __future__ import annotations

import pytest

from pipeline.run import console


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_time_left_is_that_of_the_steps_without_a_budget(clock, capsys) -> None:
    progress = console.Progress("grpo", 40, done=10)  # resumed: ten steps cost this process nothing
    clock[0] += 60
    progress.step(20, reward=0.5)
    assert last_line(capsys) == "grpo 20/40  reward 0.500  2:00 left"


def test_a_token_budget_that_ends_sooner_sets_the_time_left(clock, capsys) -> None:
    progress = console.Progress("grpo", 1000, budget_share=0.25)
    clock[0] += 60
    progress.step(20, budget_share=0.5)  # a quarter of the budget in a minute, half of it is left
    assert last_line(capsys).endswith("2:00 left")
    clock[0] += 120
    progress.step(60, budget_share=1.01)
    assert last_line(capsys).endswith("took 3:00")


def test_a_budget_beyond_the_last_step_changes_nothing(clock, capsys) -> None:
    progress = console.Progress("grpo", 4)
    clock[0] += 60
    progress.step(2, budget_share=0.01)
    assert last_line(capsys).endswith("1:00 left")
    clock[0] += 60
    progress.step(4, budget_share=0.02)
    assert last_line(capsys).endswith("took 2:00")
