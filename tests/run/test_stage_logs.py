"""Seconds and rates of a step's phases."""

from pipeline.run import stage_logs


def test_a_phase_that_took_no_time_has_no_rate() -> None:
    watch = stage_logs.Stopwatch()
    watch.seconds = {"rollout": 2.0, "wait": 1e-7, "update": 2.0}
    assert watch.rates(100) == {
        "rollout": 2.0, "wait": 0.0, "update": 2.0, "rollout_tokens_per_s": 50.0, "update_tokens_per_s": 50.0,
        "tokens_per_s": 25.0,
    }  # fmt: skip
