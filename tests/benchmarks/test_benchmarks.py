"""The arithmetic of the benchmarks, on figures worked out by hand; what they measure is measured by `make bench`."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import learn, measure, real_size, real_step, scale, scoring, step
from benchmarks.workload import Workload, lay_out
from pipeline.config.schema import Model
from pipeline.distributed import process
from pipeline.models import models


def test_a_cost_that_doubles_with_the_size_has_exponent_one_and_one_that_quadruples_two() -> None:
    assert scale.slope({4: 3.0, 8: 6.0, 16: 12.0}) == pytest.approx(1)
    assert scale.slope({1: 1.0, 2: 4.0, 16: 256.0}) == pytest.approx(2)
    assert scale.slope({128: 5.0, 2048: 5.0, 262_144: 5.0}) == pytest.approx(0)


def test_each_side_goes_first_in_every_other_round() -> None:
    order: list[str] = []
    measure.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert "".join(order) == "abbaabba"


def test_a_workload_is_the_largest_that_its_budget_allows_at_the_measured_speed():
    """By hand: 200 s at 10 operations per second are 2,000 operations."""
    assert [real_size.fitting((1, 2, 4, 8), each, 10.0) for each in (250.0, 251.0, 900.0, 5000.0)] == [8, 4, 2, 1]


def test_speed_is_that_of_matrix_products_over_a_moment(monkeypatch):
    """By hand: a clock that advances 0.1 s per reading: 5 products until 0.55 s are over, 0.7 s at the last reading."""
    readings = itertools.count()
    monkeypatch.setattr(real_size.time, "perf_counter", lambda: next(readings) / 10)
    monkeypatch.setattr(real_size, "TIMED_S", 0.55)
    monkeypatch.setattr(real_size, "OUTPUTS", 8)
    assert real_size.speed("float32") == pytest.approx(5 * 2 * 256 * 640 * 8 / 0.7)


def test_progress_names_the_turn_and_the_time_left(capsys):
    assert measure.turn_line("ours", 3.0, 1, 4, 5.0) == "  turn 1 of 4: ours 3.0 s; about 15 s left"
    assert measure.turn_line("bare", 3.0, 4, 4, 20.0) == "  turn 4 of 4: bare 3.0 s"
    measure.in_turns({"a": lambda: None}, rounds=2, warmup=1, progress=True)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "  turn 1 of 3", "  turn 2 of 3", "  turn 3 of 3"
    ]  # fmt: skip


def test_a_side_left_out_is_no_part_of_the_ratio_and_the_faster_of_each_group_counts():
    def side(cpu: float, peak: float) -> list[dict[str, float]]:
        return [{"cpu": cpu, "wall": cpu, "tokens": 10.0, "peak_mib": peak}]

    steps = {"ours": side(20.0, 5.0), "trl_hf": side(60.0, 10.0)}
    assert real_step.faster_than_the_best_peer(steps, "cpu") == 3.0
    assert real_step.peak(steps, ("ours",)) / real_step.peak(steps, real_step.PEERS) == 0.5
    steps |= {"ours_transformers": side(10.0, 7.0), "trl_vllm": side(40.0, 8.0)}
    assert real_step.faster_than_the_best_peer(steps, "cpu") == 4.0
    assert real_step.peak(steps, real_step.PEERS) == 8.0
    assert real_step.ratios({"ours": steps["ours"]})["ratios"] == {}, "SIDES=ours"


def test_a_side_that_samples_twice_the_tokens_in_twice_the_time_is_no_slower() -> None:
    steps = {
        "ours": [{"cpu": 1.0, "wall": 9.0, "tokens": 100.0}, {"cpu": 2.0, "wall": 9.0, "tokens": 100.0}],
        "theirs": [{"cpu": 2.0, "wall": 9.0, "tokens": 200.0}, {"cpu": 4.0, "wall": 9.0, "tokens": 200.0}],
    }
    assert step.ratio(steps, "theirs") == pytest.approx(1)
    assert step.summary(steps)["ours"]["tokens_per_cpu_s"] == pytest.approx(75)  # the median of 100 and 50


def test_a_side_that_never_reached_the_target_makes_the_ratio_a_bound() -> None:
    def side(cpu: float, reached: bool = True) -> dict[str, Any]:
        return {"cpu": cpu, "reached": reached}

    assert learn.better({"ours": side(10), "trl_hf": side(30), "trl_vllm": side(40)}, "cpu") == 3
    missed = {"ours": side(10), "trl_hf": side(30, False), "trl_vllm": side(40)}
    assert learn.better(missed, "cpu") == 3 and not learn.cheapest(missed, ours=False)["reached"]
    assert learn.better({"ours": side(10, False), "trl_hf": side(30)}, "cpu") == 0
    assert learn.better({"ours": side(1, False), "ours_transformers": side(10), "trl_hf": side(30)}, "cpu") == 3


def _meets_another(program: str) -> bool:
    """Whether a second answer is looked at while this one is."""
    place = Path(os.environ["MEETING"])
    (place / str(os.getpid())).touch()
    until = time.monotonic() + 20
    while len(list(place.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    return len(list(place.iterdir())) == 2


def test_human_evals_way_grades_as_many_at_once_as_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETING", str(tmp_path))
    monkeypatch.setattr(scoring.sandbox, "size", lambda: 2)
    monkeypatch.setattr(scoring, "_check_correctness", _meets_another)
    scoring.graders.cache_clear()
    try:
        scoring.by_human_eval(2)
    finally:
        scoring.graders().shutdown()
        scoring.graders.cache_clear()


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


def test_a_large_vocabulary_is_as_large_as_it_says_and_answers_end_as_often_as_asked(tmp_path: Path) -> None:
    work = Workload(hidden_size=64, intermediate_size=128, layers=2, heads=2, vocabulary=5000, mean_tokens=50)
    lay_out(tmp_path, work)
    model = models.load_policy(str(tmp_path / "model"), Model())
    assert len(model.get_input_embeddings().weight) == 5000
    tokenizer = models.load_tokenizer(str(tmp_path / "model"), Model())
    assert tokenizer.decode([4999, 4998]) == "word4999 word4998 "
    ids = torch.randint(3, 5000, (4, 64), generator=torch.Generator().manual_seed(1))
    ends = model(ids).logits.softmax(-1)[..., tokenizer.eos_token_id]
    assert ends.mean().item() == pytest.approx(1 / 50, rel=0.05) and ends.max() < 2 * ends.min()


def test_the_peak_of_a_process_is_its_own_and_not_what_started_it():
    """A child's ru_maxrss is at least what its parent held; benchmarks start theirs from a process that loaded vLLM."""
    held = bytearray(b"1") * (300 << 20)
    told = subprocess.run(
        [sys.executable, "-c", "from pipeline.distributed.process import peak_rss; print(peak_rss())"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.peak_rss() > len(held) > 3 * int(told.stdout) > 0
