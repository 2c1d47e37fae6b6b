"""A run's model asked by `generate` and `chat`, as its prompts were put to it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.cli import chat
from pipeline.config.load import load
from pipeline.models import models
from pipeline.run.stage_dir import StageDir
from tests.small_chain import CONFIG, write_rows

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
MESSAGES = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}


def finished(tmp_path: Path, *overrides: str) -> Path:
    """A run of one stage whose model has a chat template."""
    cfg = load(CONFIG, [f"runs_dir={tmp_path}", "run=mine", "sampling.max_tokens=4", *overrides])
    stage = StageDir(cfg.run_dir, "base")
    stage.open()
    assert cfg.model.tiny is not None
    models.make_tiny(cfg.model.tiny, stage.model_dir, seed=1)
    tokenizer = models.load_tokenizer(str(stage.model_dir), cfg.model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(stage.model_dir)
    shared = {key: getattr(cfg, key) for key in ("model", "prompts", "rewards", "sampling", "verifier_dirs")}
    stage.complete(config={"stage": {"kind": "base"}, **shared}, seed=1, parents={}, inputs={}, metrics={}, code={})
    return cfg.run_dir


def hears(run: Path, value: str, text: str) -> bool:
    """Does the model get the ids of this text when it is asked the value?"""
    voice = chat.open_voice(run, {})
    return voice.ids(value, "") == tuple(voice.tokenizer(text).input_ids)


@pytest.mark.parametrize(
    ("row", "told"), [(MESSAGES, "<user>ab<assistant>"), ({"prompt": "hi", "completion": "yo"}, "ab")]
)
def test_a_model_that_learned_on_messages_hears_a_line_through_its_chat_template(tmp_path, row, told):
    data = write_rows(tmp_path / "rows.jsonl", [row])
    assert hears(finished(tmp_path, f"prompts={{path: {data}}}"), "ab", told)


def test_where_the_rows_are_gone_the_doubt_is_reported(tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", [MESSAGES])
    run = finished(tmp_path, f"prompts={{path: {data}}}")
    data.unlink()
    assert hears(run, "ab", "ab")
    error = capsys.readouterr().err
    assert "rows.jsonl does not exist" in error and "; sent as plain text, not through the chat template" in error


def test_a_conversation_is_remembered_and_loads_its_model_once(tmp_path, capsys, monkeypatch):
    loaded: list[tuple[Any, ...]] = []
    asked: list[int] = []

    class Counted(chat.TransformersGenerator):
        def __init__(self, *given):
            loaded.append(given)
            super().__init__(*given)

        def sample(self, requests, *given):
            asked.extend(len(r.ids) for r in requests)
            return super().sample(requests, *given)

    monkeypatch.setattr(chat, "TransformersGenerator", Counted)
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\nab\nab\n"))
    data = write_rows(tmp_path / "rows.jsonl", [MESSAGES])
    assert main(["chat", str(finished(tmp_path, f"prompts={{path: {data}}}"))]) == 0
    assert len(loaded) == 1 and asked == sorted(set(asked)) and len(asked) == 3, "every line is asked with those before"


def test_generate_asks_a_text_as_a_turn_too(tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", [MESSAGES])
    run = finished(tmp_path, f"prompts={{path: {data}}}")
    asked = write_rows(tmp_path / "asked.jsonl", [{"prompt": "ab"}, {"prompt": [{"role": "user", "content": "ab"}]}])
    assert main(["generate", str(run), f"prompts={asked}", "temperature=0"]) == 0
    one, other = (json.loads(line)["completion"] for line in capsys.readouterr().out.splitlines())
    assert one == other


def test_a_prompt_of_which_the_model_sees_nothing_is_refused_and_dropped_characters_are_named(tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "hi", "completion": "yo"}])
    run = finished(tmp_path, f"prompts={{path: {data}}}")
    assert main(["generate", str(run), "prompt=\u4e16"]) == 2
    assert "the tokenizer has no token for any part of the prompt '\u4e16'" in capsys.readouterr().err
    assert main(["generate", str(run), "prompt=a\u4e16", "max_tokens=1"]) == 0
    assert "warning: the model does not see '\u4e16'" in capsys.readouterr().err


def test_a_file_without_prompts_is_refused(tmp_path, capsys):
    (tmp_path / "none.jsonl").write_text("\n")
    assert main(["generate", str(tmp_path), f"prompts={tmp_path / 'none.jsonl'}"]) == 2
    assert "none.jsonl: the file has no rows" in capsys.readouterr().err


def test_a_line_that_the_model_cannot_see_does_not_end_a_chat(tmp_path, capsys, monkeypatch):
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "hi", "completion": "yo"}])
    run = finished(tmp_path, f"prompts={{path: {data}}}")
    monkeypatch.setattr("sys.stdin", io.StringIO("\u4e16\nhi\n"))
    assert main(["chat", str(run), "max_tokens=1"]) == 0
    said = capsys.readouterr()
    assert "no token for any part of the prompt" in said.err and said.out.count("> ") == 3
