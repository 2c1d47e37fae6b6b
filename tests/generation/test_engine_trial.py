"""`backend: auto`: both engines really sample, the faster is kept; later stages read the choice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_kit import tiny_model

from pipeline.config.schema import Generate, Model
from pipeline.generation import engine_trial, engines

AUTO = Generate(backend="auto", vllm={"max_num_seqs": 16})


def no_trial(*given: Any, **settings: Any) -> Any:
    raise AssertionError("a trial was run")


@pytest.mark.parametrize("backend", ["vllm", "transformers"])
def test_a_backend_that_is_named_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(engine_trial, "trial", no_trial)
    named = replace(AUTO, backend=backend)
    kept = engine_trial.faster_backend(
        str(tmp_path), Model(), named, max_model_len=64, record=tmp_path / "engine.json", least_bytes=0
    )
    assert kept == named


def test_a_small_model_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_trial, "trial", no_trial)
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    record = tmp_path / "engine.json"
    assert engine_trial.faster_backend(str(tmp_path), Model(), AUTO, max_model_len=64, record=record) is AUTO
    assert not record.exists()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_another_model_of_the_run_is_sampled_by_the_same_engine(tmp_path, monkeypatch, engine) -> None:
    """Policies that are compared draw from one engine, whose completions differ from the other's under equal seeds."""
    model_dir, record = tiny_model(tmp_path), tmp_path / "engine.json"
    monkeypatch.setattr(engine_trial, "backend_for", lambda *given: "vllm")
    monkeypatch.setattr(engine_trial, "trial", no_trial)
    before = json.dumps({"of another model": {"engine": engine, "tokens_per_s": {}}})
    record.write_text(before)
    chosen = engine_trial.faster_backend(str(model_dir), Model(), AUTO, max_model_len=64, record=record, least_bytes=0)
    assert chosen.backend == ("transformers" if engine == "transformers" else "auto")
    assert record.read_text() == before


@pytest.mark.stages
@pytest.mark.usefixtures("no_engine_left_behind")
def test_the_faster_engine_is_kept_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    pytest.importorskip("vllm", reason="no vLLM to be tried")
    model_dir, record = tiny_model(tmp_path), tmp_path / "engine.json"

    def choose() -> Generate:
        return engine_trial.faster_backend(
            str(model_dir), Model(), AUTO, max_model_len=64, record=record, least_bytes=0
        )

    chosen = choose()
    (found,) = json.loads(record.read_text()).values()
    assert set(found["tokens_per_s"]) == {"transformers", "vllm"}
    assert min(found["tokens_per_s"].values()) > 0
    assert found["engine"] == max(found["tokens_per_s"], key=found["tokens_per_s"].__getitem__)
    assert chosen == (AUTO if found["engine"] == "vllm" else replace(AUTO, backend="transformers"))
    assert [key[0] for key in engines._open] == (["vllm"] if found["engine"] == "vllm" else [])
    assert found["engine"] in capfd.readouterr().out

    monkeypatch.setattr(engine_trial, "trial", no_trial)
    assert choose() == chosen
    for engine in ("transformers", "vllm"):  # the record decides, whatever was measured
        record.write_text(json.dumps({next(iter(json.loads(record.read_text()))): {"engine": engine}}))
        assert choose().backend == ("transformers" if engine == "transformers" else "auto")
