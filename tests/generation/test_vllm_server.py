"""vLLM as a server of its own: rollouts over HTTP, weights by way of a directory."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks_kit
import torch
from loop_kit import manifest, metrics, run_stage, tiny_model
from safetensors.torch import load_file
from transformers import AutoConfig

from pipeline.cli import export
from pipeline.config.schema import Model
from pipeline.generation import engines, vllm_server
from pipeline.models import models
from pipeline.records import Prompt
from pipeline.update.forward import Row
from pipeline.update.served_teacher import ServedTeacher
from tests.family_twins import FAMILIES, save

pytestmark = pytest.mark.usefixtures("no_engine_left_behind")


@pytest.fixture(scope="module", params=["tied", "untied", "gemma2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its head is the embedding under a name of its own, a tensor of its own, or the embedding and nothing else."""
    place = tmp_path_factory.mktemp("model")
    if request.param == "gemma2":
        save(FAMILIES["gemma2"], place)
        return place
    return tiny_model(place, tied=request.param == "tied")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on the model that training starts from."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    run = tmp_path_factory.mktemp("run")
    (run / "export").symlink_to(model)
    port = ranks_kit.free_port()
    words = ["rollouts=true", f"port={port}", "dtype=float32", "max_model_len=64", "enforce_eager"]
    quiet = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
             "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}  # fmt: skip
    log = (run / "server.log").open("w")
    started = subprocess.Popen(export.serve_command(run, words), env=ranks_kit.environment(**quiet), stdout=log,
                               stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        vllm_server.wait_until_ready(url, seconds=480)
        yield url
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(timeout=60)
        except subprocess.TimeoutExpired:  # it waits for an engine that the signal ended while it started
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
        log.close()


def asked(url: str, root: Path) -> list[str]:
    return [
        f"generate={{backend: vllm_server, url: '{url}', weights_dir: {root / 'weights'}}}",
        "grpo.steps=3",
        "grpo.reward={random: {}}",  # a random model may earn nothing by itself, and then no weight moves
    ]


@pytest.mark.long
def test_a_served_teachers_log_probs_are_the_models_own(server, model):
    """vLLM's prompt_logprobs against transformers, for the completion's tokens and for the top 5; and its tokenizer."""
    policy = models.load_policy(str(model), Model()).requires_grad_(False)
    tokenizer = models.load_tokenizer(str(model), Model())
    rows = [Row((5, 6, 7, 8), (9, 6, 5), (True,) * 3), Row((7,), (6, 8), (True,) * 2)]
    # before the test that trains: the server is shared, and holds what was sent last
    served = ServedTeacher(server, "distill.teacher.server")
    served.check_tokenizer([Prompt(0, "", (5, 6, 7), {})], tokenizer)
    tops = served.top_k(rows, 5)
    for row, logprobs_T, (ids_TK, logprobs_TK) in zip(rows, served.logprobs(rows), tops, strict=True):
        start, ids = len(row.prompt_ids), [*row.prompt_ids, *row.ids]
        expected_TV = policy(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
        assert logprobs_T.tolist() == pytest.approx(
            expected_TV.gather(1, torch.tensor(row.ids)[:, None])[:, 0].tolist(), abs=1e-3
        )
        torch.testing.assert_close(logprobs_TK, expected_TV.topk(5).values, rtol=0, atol=1e-3)
        torch.testing.assert_close(logprobs_TK, expected_TV.gather(1, ids_TK), rtol=0, atol=1e-3)


@pytest.mark.long
def test_a_server_samples_with_the_weights_of_the_step(server, model, tmp_path, monkeypatch):
    """Three steps, weights sent after each; then the same with a server that keeps its old ones, which the canary
    stops."""
    assert run_stage(tmp_path, model, "grpo", *asked(server, tmp_path)) == 0
    steps = metrics(tmp_path, "grpo")
    assert [m["step"] for m in steps] == [1, 2, 3] and min(m["grad_norm"] for m in steps) > 0
    assert max(m["canary_max_abs"] for m in steps) < 1e-4 and max(m["mismatch_mean_abs"] for m in steps) < 1e-4
    assert manifest(tmp_path, "grpo")["metrics"]["generator"] == "vllm_server"
    kept = list((tmp_path / "weights").glob("*/*"))
    assert len(kept) == 2, "the last two checkpoints stay, older ones go"
    monkeypatch.setattr(vllm_server, "_reload", lambda server, directory: None)
    engines.close_generators()
    assert not list((tmp_path / "weights").iterdir()), "of a run that has ended nothing stays"
    assert run_stage(tmp_path / "stale", model, "grpo", *asked(server, tmp_path / "stale")) == 3


def settings(place: Path) -> dict[str, Any]:
    return {**AutoConfig.from_pretrained(place).to_dict(), "_name_or_path": ""}


def test_two_writers_of_one_directory_keep_out_of_each_others_checkpoints_and_leave_nothing(tmp_path):
    model = tiny_model(tmp_path / "model")
    one, other = (vllm_server.SharedWeights(str(model), str(tmp_path / "weights")) for _ in range(2))
    first = other.write({"w": torch.tensor([7.0])})
    places = [one.write({"w": torch.tensor([float(i)])}) for i in range(4)]
    assert [p.is_dir() for p in places] == [False, False, True, True] and first.is_dir()
    assert load_file(places[-1] / "model.safetensors")["w"].item() == 3.0
    assert settings(places[-1]) == settings(model)
    if not (child := os.fork()):
        del one, other
        os._exit(0)
    os.waitpid(child, 0)
    assert places[-1].is_dir(), "who was forked removes nothing"
    del one, other
    assert not list((tmp_path / "weights").iterdir())


def test_weights_of_a_model_named_by_its_hub_id_are_written_beside_its_config(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--me--tiny" / "snapshots" / "abc"
    tiny_model(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    writer = vllm_server.SharedWeights("me/tiny", "weights")
    place = writer.write({"w": torch.zeros(1)})
    assert settings(place) == settings(snapshot)
    assert place.is_absolute()


def test_without_a_server_the_mistake_is_reported_with_the_command_that_starts_one(tmp_path, capsys):
    start = tiny_model(tmp_path / "model")
    assert run_stage(tmp_path, start, "grpo", *asked(f"http://127.0.0.1:{ranks_kit.free_port()}", tmp_path)) == 2
    assert "generate.url: no server answers at" in (told := capsys.readouterr().err)
    assert "python -m pipeline serve RUN stage=NAME rollouts=true" in told


def test_a_server_needs_its_url_and_a_url_its_backend(tmp_path, capsys):
    start = tiny_model(tmp_path / "model")
    for block in ("{backend: vllm_server}", "{backend: vllm, url: 'http://localhost:1'}"):
        assert run_stage(tmp_path, start, "grpo", f"generate={block}") == 2
        assert "backend vllm_server and url go together" in capsys.readouterr().err


def test_the_command_of_a_rollout_server_names_what_sampling_needs(tmp_path):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text("{}")
    command = export.serve_command(tmp_path, ["rollouts=true", "tensor_parallel_size=2"])
    assert command[command.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert command[command.index("--generation-config") + 1] == "vllm", "no setting of the model's own leaks in"
    assert command[-2:] == ["--tensor-parallel-size", "2"] and "--rollouts" not in command
    assert "--logprobs-mode" not in export.serve_command(tmp_path, [])
