"""The arithmetic of the benchmarks, on figures worked out by hand; what they measure is measured by `make bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import measure, scale, step


def test_a_cost_that_doubles_with_the_size_has_exponent_one_and_one_that_quadruples_two() -> None:
    assert scale.slope([3.0, 6.0, 12.0]) == pytest.approx(1)
    assert scale.slope([1.0, 4.0, 16.0]) == pytest.approx(2)
    assert scale.slope([5.0, 5.0, 5.0]) == pytest.approx(0)


def test_each_side_goes_first_in_every_other_round() -> None:
    order: list[str] = []
    measure.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert "".join(order) == "abbaabba"


def test_a_side_that_samples_twice_the_tokens_in_twice_the_time_is_no_slower() -> None:
    steps = {
        "ours": [{"cpu": 1.0, "wall": 9.0, "tokens": 100.0}, {"cpu": 2.0, "wall": 9.0, "tokens": 100.0}],
        "theirs": [{"cpu": 2.0, "wall": 9.0, "tokens": 200.0}, {"cpu": 4.0, "wall": 9.0, "tokens": 200.0}],
    }
    assert step.ratio(steps, "theirs") == pytest.approx(1)
    assert step.summary(steps)["ours"]["tokens_per_cpu_s"] == pytest.approx(75)  # the median of 100 and 50


def test_what_one_benchmark_found_stays_when_another_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LATEST", tmp_path / "results" / "latest.json")
    command.merge("step", {"ratios": {"step_vs_trl_hf": 2.5}, "rounds": 5})
    command.merge("sync", {"ratios": {"sync_vs_copy": 4.0}})
    command.merge("step", {"ratios": {"step_vs_trl_hf": 2.75}, "rounds": 7})
    found = json.loads((tmp_path / "results" / "latest.json").read_text())
    assert found["ratios"] == {"step_vs_trl_hf": 2.75, "sync_vs_copy": 4.0}
    assert found["details"]["step"]["rounds"] == 7 and "sync" in found["details"]
    assert found["machine"]["versions"]["torch"]


def test_a_missed_target_is_said_to_be_missed() -> None:
    told = command.table({"step_vs_trl_hf": 2.1, "memory_vs_trl": 0.5, "sync_vs_copy": 9.0})
    assert [line.split()[-1] for line in told.splitlines()] == ["MISSED", "held", "MISSED"]


def test_an_unknown_benchmark_is_a_mistake_of_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["stepp"]) == 2
    assert "no benchmark 'stepp'" in capsys.readouterr().err
