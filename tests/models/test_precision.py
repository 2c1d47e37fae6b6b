"""One precision for trainer and generator, whatever `model.dtype` says and the checkpoint is saved in."""

import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_kit import tiny_model

from pipeline.config.schema import Generate, Model
from pipeline.generation import engines
from pipeline.generation.generator import largest_gap
from pipeline.generation.hf_engine import sequence_logprobs
from pipeline.models import models, precision
from pipeline.models.model_dir import parameters_at, thread_count
from pipeline.models.precision import precision_of

AUTO = Model(dtype="auto")


def checkpoint(place: Path, *, rows: int, saved_in: str = "float32") -> str:
    """A directory whose safetensors header names `rows` x 1000 parameters; nobody reads the weights."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "config.json").write_text(json.dumps({"model_type": "qwen2", "dtype": saved_in}))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    header |= {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in
               (("a", [rows, 999]), ("b", [rows]))}  # fmt: skip
    text = json.dumps(header).encode()
    (place / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return str(place)


@pytest.mark.parametrize(
    ("rows", "fast", "saved_in", "expected"),
    [
        (60_000, True, "float32", torch.bfloat16),
        (60_000, False, "float32", torch.float32),
        (40_000, True, "float32", torch.float32),
        (40_000, True, "bfloat16", torch.bfloat16),
        (60_000, False, "float16", torch.float16),
        (60_000, False, "bfloat16", torch.float32),
        (40_000, False, "bfloat16", torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_for_a_large_model_on_a_machine_that_multiplies_it_fast(
    tmp_path, monkeypatch, rows, fast, saved_in, expected
):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    place = checkpoint(tmp_path / "m", rows=rows, saved_in=saved_in)
    assert parameters_at(place) == rows * 1000
    assert precision_of(place, AUTO) == expected
    assert precision_of(place, Model(dtype="float32")) == torch.float32, "a named precision is kept"


def test_a_hub_id_counts_as_a_large_model_before_it_is_fetched_and_after(monkeypatch):
    monkeypatch.setattr(precision, "saved_precision", lambda path: torch.bfloat16)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision_of("org/name-of-the-Hub", AUTO) == torch.float32


@pytest.mark.stages
@pytest.mark.usefixtures("no_engine_left_behind")
@pytest.mark.parametrize("backend", ["transformers", "vllm"])
def test_on_a_float32_checkpoint_auto_is_the_same_for_generator_and_trainer(tmp_path, backend):
    """vLLM by itself lowers a float32 checkpoint, the trainer does not: the canary stopped every such run at step 0."""
    if backend == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    place = str(tiny_model(tmp_path / "m"))
    model = models.load_policy(place, AUTO)
    assert model.dtype == torch.float32
    engine = engines.open_generator(place, AUTO, Generate(backend=backend), max_model_len=64)
    sequences = [[3, 8, 13, 9, 5, 6], [11, 12, 3, 4]]
    assert largest_gap(sequence_logprobs(model, sequences), engine.logprobs(sequences)) < 1e-4


def test_a_large_model_gets_all_threads_and_a_small_one_a_single_thread(tmp_path):
    large, small = (checkpoint(tmp_path / str(rows), rows=rows) for rows in (60_000, 100))
    assert thread_count("auto", large) is None and thread_count("auto", small) == 1
    assert thread_count("auto", None) == 1, "a tiny model made here"
    assert thread_count("auto", "org/name-of-the-Hub") is None, "whether it has been fetched or not"
    assert thread_count(3, large) == 3 and thread_count(None, small) is None
