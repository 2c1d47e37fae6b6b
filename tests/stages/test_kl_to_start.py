"""KL to the start: one formula, and a start model that is loaded once however often it is measured."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from loop_kit import tiny_model

import rewards
from pipeline.config.schema import Model, Sampling
from pipeline.models import models
from pipeline.records import Prompt, Rollout, Scored
from pipeline.stages.context import Context, Judged
from pipeline.stages.kl_to_start import from_start, mean_kl
from pipeline.update.forward import Row


def test_kl_is_the_mean_log_ratio_per_completion_and_per_token() -> None:
    rows = [Row((1,), (4, 5, 6), (True, False, True)), Row((1,), (4,), (True,))]
    kl = mean_kl(rows, [[-1.0, 99.0, -2.0], [-0.5]], [[-1.5, 0.0, -4.0], [-1.0]])
    assert kl.per_completion == (2.5 + 0.5) / 2  # the masked token counts nowhere
    assert kl.per_token == 3.0 / 3


def test_many_evaluation_passes_load_the_start_once_and_leak_no_thread(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tiny_model(tmp_path / "model"))
    loads: list[Any] = []
    load = models.load_policy

    def counted(*arguments: Any, **options: Any) -> Any:
        loads.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(models, "load_policy", counted)
    cfg: Any = SimpleNamespace(path="x.yaml", model=Model(), sampling=Sampling(), verifier_dirs=())
    ctx = Context(cfg, "grpo", SimpleNamespace(logs=SimpleNamespace(tokens={"completion": 7})))  # type: ignore[arg-type]
    ctx.policy_path = place
    rollout = Rollout(Prompt(0, "a1>c1:", (5, 6), {"gold": "R"}), 0, (4, 2), (-0.5, -0.5), "R", True)
    judged = Judged({}, [Scored(rollout, 1.0, "pass")])
    first = from_start(ctx, judged, {"exact": {}})
    threads = threading.active_count()
    for _ in range(5):
        assert from_start(ctx, judged, {"exact": {}}) == first
    assert len(loads) == 1 and threading.active_count() == threads
    assert isinstance(ctx.scorer_of({"exact": {}}), rewards.Composite)
