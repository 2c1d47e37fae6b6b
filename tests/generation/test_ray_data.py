"""Ray Data as the generator, on a cluster of this machine: the same samples as vLLM in process, and a stage with it."""

from __future__ import annotations

from pathlib import Path

import pytest
from loop_kit import manifest, run_stage, tiny_model

from pipeline.config import load
from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation import engines, generator, hf_engine
from pipeline.generation.generator import Request
from pipeline.models import models
from pipeline.plan import preflight

pytestmark = pytest.mark.usefixtures("no_engine_left_behind")
REQUESTS = [Request((3, 4, 5 + i % 3), seed=100 + i, max_tokens=6) for i in range(12)]


def test_a_policy_loop_on_ray_is_refused_before_anything_starts(model, tmp_path):
    assert run_stage(tmp_path, model, "grpo", "generate={backend: ray}") == 2
    cfg = load.load(tmp_path / "config.yaml", ["generate={backend: ray}"])
    assert [line for line in preflight.mistakes(cfg, ["grpo"]) if "ray starts its engines again" in line]


@pytest.mark.long
def test_ray_data_gives_the_samples_and_logprobs_of_vllm_and_takes_new_weights(model, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra that the lock leaves out")
    from pipeline.generation.ray_data import RayGenerator

    settings = Generate(weights_dir=str(tmp_path / "weights"))
    ours = engines.open_generator(str(model), Model(), settings, max_model_len=64)
    theirs = RayGenerator(str(model), Model(), settings, max_model_len=64)
    sampling, ends = Sampling(max_tokens=6), frozenset({2})
    one, two = (engine.sample(REQUESTS, sampling, ends) for engine in (ours, theirs))
    assert [s.ids for s in one] == [s.ids for s in two], "seeds go with the request"
    for a, b in zip(one, two, strict=True):
        assert b.logprobs == pytest.approx(a.logprobs, abs=1e-5) and a.finished == b.finished
    other = models.load_policy(str(tiny_model(tmp_path / "other", seed=9)), Model())
    theirs.sync(models.named_weights(other))
    sequences = [[3, 4, 5, 6, 7], [9, 8, 7]]
    gap = generator.largest_gap(theirs.logprobs(sequences), hf_engine.sequence_logprobs(other, sequences))
    assert gap < 1e-4, "the canary: the engines have the new weights"


@pytest.mark.long
def test_a_round_of_feedme_is_drawn_on_ray(model: Path, tmp_path: Path):
    pytest.importorskip("ray", reason="ray is an extra that the lock leaves out")
    block = (f"feedme={{policy: {model}, rounds: 1, prompts: 8, samples: 4, filters: [{{top_k: 1}}], "
             "trainer: {max_steps: 2}}")  # fmt: skip
    backend = f"generate={{backend: ray, weights_dir: {tmp_path / 'weights'}}}"
    assert run_stage(tmp_path, model, "feedme", block, backend) == 0
    assert manifest(tmp_path, "feedme")["metrics"]["heldout_accuracy"] is not None
