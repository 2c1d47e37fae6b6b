"""No key reaches an error line, a log or a manifest, whoever put it into the message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loop_kit import metrics, run_stage, tiny_model, write_config

import rewards
from pipeline.generation import engines
from rewards.batch import Batch
from verifiers import broken
from verifiers._secrets import REDACTED, hidden

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "a1B2" * 8
PASSWORD = "correct-horse-battery"


@pytest.mark.parametrize(
    ("text", "secret", "kept"),
    [
        (f"401 for https://huggingface.co/x with {TOKEN}", TOKEN, "401 for https://huggingface.co/x with "),
        ("cannot reach https://me:swordfish@example.org/v1", "swordfish", "@example.org/v1"),
        ("GET https://example.org/v1?model=m&api_key=swordfish&n=2", "swordfish", "model=m"),
        ("https://store.example/o?X-Amz-Signature=0badcafe&part=3", "0badcafe", "part=3"),
        ("headers: {'Authorization': 'Bearer abc.d3f', 'Accept': '*/*'}", "abc.d3f", "'Accept': '*/*'"),
        ("sent Authorization: Basic bWU6cHc= and was refused", "bWU6cHc=", "and was refused"),
        ("sent Bearer abc.d3f-ghi", "abc.d3f-ghi", "sent Bearer"),
        ("x-api-key=0123abcd, n=1", "0123abcd", "n=1"),
        ("key sk-" + "x" * 30, "x" * 30, "key "),
    ],
)
def test_keys_are_hidden_by_their_place_and_form(text, secret, kept):
    found = hidden(text)
    assert secret not in found and REDACTED in found and kept in found


@pytest.mark.parametrize(
    "text",
    ["max_tokens=5 and eos_token </s>", "a bearer of good news", "basic arithmetic fails", "key 'lerning_rate'",
     "https://example.org/v1?page=2", "authorization is missing", "step 3: token count 17", "user@example.org"],
)  # fmt: skip
def test_ordinary_words_stay(text):
    assert hidden(text) == text


def test_what_a_secret_variable_holds_is_hidden_wherever_it_stands(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", PASSWORD)
    monkeypatch.setenv("SSH_KEY", sys.executable)  # a path to a key is none
    assert PASSWORD not in hidden(f"login as me with {PASSWORD} failed") and sys.executable in hidden(sys.executable)
    assert PASSWORD not in broken(f"RuntimeError: {PASSWORD}").detail


def leaky(prompts, completions, **columns):
    raise RuntimeError(f"403 for url https://h/?token=swordfish with key {os.environ['MY_API_KEY']} and {TOKEN}")


def test_what_a_reward_function_raises_is_reported_without_its_keys(monkeypatch):
    monkeypatch.setenv("MY_API_KEY", PASSWORD)
    scorer = rewards.build({"leaky": {"kind": "function", "path": "test_secrets:leaky"}})
    (score,) = scorer.score(Batch(["p"], [[1]], ["c"], [[2]], [True], [{}]))
    assert "403 for url" in score.detail and score.status == "error"
    assert not any(secret in score.detail for secret in (PASSWORD, "swordfish", TOKEN))


@pytest.mark.stages
def test_a_run_leaves_no_key_in_any_line_or_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_API_KEY", PASSWORD)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    model = tiny_model(tmp_path / "model")
    code = run_stage(tmp_path, model, "grpo", "rewards.letters.path=test_secrets:leaky")
    said = capsys.readouterr()
    assert code == 3 and "403 for url" in said.err
    fine = run_stage(tmp_path / "b", model, "grpo", "grpo.reward={random: {}}", "grpo.steps=1",
                     f"rewards.letters.options={{api_key: {PASSWORD}, url: 'https://h/?token=swordfish'}}",
                     "rewards.letters.path=test_secrets:made")  # fmt: skip
    assert fine == 0 and metrics(tmp_path / "b", "grpo")
    engines.close_generators()
    written = said.out + said.err + "".join(capsys.readouterr())
    for file in tmp_path.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".html") and file.is_file():
            written += file.read_text()
    assert "letters" in written and REDACTED in written
    assert not any(secret in written for secret in (PASSWORD, "swordfish", TOKEN))


def made(api_key, url):
    return lambda prompts, completions, **columns: [0.0 for _ in completions]


@pytest.mark.parametrize("words", [["grpo.steps=" + TOKEN], ["rewards.letters.path=m:" + TOKEN]])
def test_a_mistake_is_reported_without_the_key_that_stands_in_it(tmp_path, words):
    config = write_config(tmp_path, tmp_path / "nowhere")
    done = subprocess.run([sys.executable, "-m", "pipeline", "plan", str(config), *words], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})  # fmt: skip
    assert done.returncode == 2 and REDACTED in done.stderr and TOKEN not in done.stderr


def test_a_traceback_of_ours_shows_no_key(tmp_path):
    code = (f"import sys\nfrom pipeline import __main__ as m\nsys.excepthook = m.report_traceback\n"
            f"raise RuntimeError('Authorization: Bearer {TOKEN}')")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert "Traceback" in done.stderr and "RuntimeError" in done.stderr and TOKEN not in done.stderr
    assert json.dumps(done.returncode) == "1"
