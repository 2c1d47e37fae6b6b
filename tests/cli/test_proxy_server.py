"""`whetstone proxy`: a policy behind OpenAI's chat completions, and the record of what it sampled."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trl

from pipeline.cli.chat import Voice
from pipeline.cli.proxy_server import Desk, serve_proxy
from pipeline.config.load import ConfigError
from pipeline.config.schema import Generate, Model, Prompts, Sampling, Tiny
from pipeline.generation.hf_engine import TransformersGenerator, sequence_logprobs
from pipeline.generation.proxy import Proxy
from pipeline.models import models

TEMPLATE = Path(trl.__file__).parent / "chat_templates" / "qwen3_instruct_2507.jinja"
KEY = "sk-mine"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    place = tmp_path_factory.mktemp("model")
    characters = "".join(map(chr, range(32, 127))) + "\n"
    models.make_tiny(Tiny(characters=characters, max_position_embeddings=128), place, seed=1)
    tokenizer = models.load_tokenizer(str(place), Model())
    tokenizer.chat_template = TEMPLATE.read_text()
    generator = TransformersGenerator(str(place), Model(), Generate(backend="transformers"))
    voice = Voice(place, Prompts(chat=True), Sampling(max_tokens=8), tokenizer, "", generator, 0)
    return Desk(voice, place / "sessions.jsonl")


@pytest.fixture(scope="module")
def url(desk: Desk) -> Iterator[str]:
    with Proxy(shared_key=KEY) as proxy:

        def answer() -> None:
            while True:
                desk.answer(proxy.take())

        threading.Thread(target=answer, daemon=True).start()
        yield proxy.url


def chat(url: str, session: str, text: str, **more: Any) -> dict[str, Any]:
    body = json.dumps({"messages": [{"role": "user", "content": text}], **more}).encode()
    request = urllib.request.Request(f"{url}/chat/completions", body, {"Authorization": f"Bearer {session}"})
    return json.load(urllib.request.urlopen(request, timeout=60))


def test_answers_are_recorded_with_the_ids_and_log_probs_that_the_model_gives_them(desk: Desk, url: str) -> None:
    said = chat(url, KEY, "hello", n=2, logprobs=True)
    rows = [row for row in map(json.loads, desk.to.read_text().splitlines()) if row["session"] == ""]  # type: ignore[union-attr]
    assert [row["choice"] for row in rows] == [0, 1] and rows[0]["ids"] != rows[1]["ids"]
    for row, choice in zip(rows, said["choices"], strict=True):
        full = [*row["prompt_ids"], *row["ids"]]
        (expected,) = sequence_logprobs(desk.voice.generator.model, [full])
        assert row["logprobs"] == pytest.approx(expected[-len(row["ids"]) :], abs=1e-4)
        assert [t["logprob"] for t in choice["logprobs"]["content"]] == pytest.approx(row["logprobs"], abs=1e-5)
        assert choice["message"] == row["answer"]


def test_a_session_gives_the_same_answers_whatever_else_is_asked(desk: Desk, url: str) -> None:
    one = chat(url, f"{KEY}:a", "hello")["choices"]
    chat(url, f"{KEY}:b", "something else")
    desk.recorded.pop("a")
    assert chat(url, f"{KEY}:a", "hello")["choices"] == one


def test_what_does_not_fit_the_model_is_refused_and_the_next_call_is_answered(url: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        chat(url, f"{KEY}:long", "x" * 500)
    assert caught.value.code == 400 and json.load(caught.value)["error"]["code"] == "context"
    assert chat(url, f"{KEY}:long", "hi")["object"] == "chat.completion"


def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path) -> None:
    for words, said in (
        (["to=none/x.jsonl"], "no directory none"),
        (["port=x"], "port=x"),
        (["prot=1"], "did you mean"),
    ):
        with pytest.raises(ConfigError, match=said):
            serve_proxy(tmp_path, words)
