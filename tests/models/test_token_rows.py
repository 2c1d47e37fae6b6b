"""No saved model holds a token without a row, and none that is loaded can make an id that the model cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Tiny
from pipeline.distributed import notices
from pipeline.models import models, token_rows

ROWS = 22  # of the tiny model: 19 characters, pad, bos, eos


@pytest.fixture
def model(tmp_path) -> Path:
    models.make_tiny(Tiny(characters="abcde12345>:<0RLUD "), tmp_path / "m", seed=1)
    return tmp_path / "m"


def edited(place: Path, **tokens: int) -> Path:
    """Added tokens, written into tokenizer.json by hand as another tool would have."""
    file = place / "tokenizer.json"
    state = json.loads(file.read_text())
    blank = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    state["added_tokens"] += [{"id": i, "content": token, **blank} for token, i in tokens.items()]
    file.write_text(json.dumps(state))
    return place


def test_a_saved_model_has_a_row_for_every_token_that_any_loader_finds(model) -> None:
    saved: Any = AutoModelForCausalLM.from_pretrained(model)
    loaded = AutoTokenizer.from_pretrained(model)  # as an export is loaded elsewhere, by no code of ours
    assert len(loaded) == ROWS == saved.get_input_embeddings().weight.shape[0]
    ids = loaded("ab<|endoftext|>c").input_ids
    assert max(ids) < ROWS


def test_files_that_were_loaded_before_are_not_loaded_again(model, tmp_path, monkeypatch) -> None:
    loaded: list[str] = []

    def load(path: Path) -> Any:
        loaded.append(path.name)
        return from_pretrained(path)

    from_pretrained = AutoTokenizer.from_pretrained
    tokenizer = models.load_tokenizer(str(model), Model())
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)
    monkeypatch.setattr(token_rows, "_sound", set())
    for name, rows in (("one", ROWS), ("two", ROWS), ("wider", 2 * ROWS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": rows}))
        token_rows.save_tokenizer(tokenizer, tmp_path / name, rows)
    assert loaded == ["one", "wider"]


def test_a_token_that_a_loader_adds_is_taken_out_of_every_directory(tmp_path) -> None:
    for name in ("one", "two"):
        models.make_tiny(Tiny(characters="abcde12345>:<0RLUD "), tmp_path / name, seed=1)
        assert len(AutoTokenizer.from_pretrained(tmp_path / name)) == ROWS


def test_text_that_holds_a_token_without_a_row_is_read_as_ordinary_text_and_reported(model, capsys) -> None:
    notices.forget()
    place = edited(model, **{"<abc>": ROWS, "<D>": ROWS + 5})
    assert max(AutoTokenizer.from_pretrained(place)("<abc>").input_ids) == ROWS  # the fault that is guarded against
    tokenizer = models.load_tokenizer(str(place), Model())
    ids = tokenizer("<abc> <D>").input_ids
    assert max(ids) < ROWS and tokenizer.decode(ids) == "<abc> <D>"
    assert "2 more tokens than the embedding has rows (22): '<abc>' (id 22)" in capsys.readouterr().err
    policy = models.load_policy(str(place), Model())
    assert torch.isfinite(policy(torch.tensor([ids])).logits).all()
    models.save(policy, tokenizer, place.with_name("again"))
    assert len(AutoTokenizer.from_pretrained(place.with_name("again"))) == ROWS


def test_one_token_without_a_row_is_reported_in_the_singular(model, capsys) -> None:
    notices.forget()
    models.load_tokenizer(str(edited(model, **{"<abc>": ROWS})), Model())
    assert "1 more token than the embedding has rows" in capsys.readouterr().err


def test_an_end_token_without_a_row_is_refused(model) -> None:
    place = edited(model, **{"<end>": ROWS})
    config = json.loads((place / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<end>"}))
    with pytest.raises(ConfigError, match=r"token '<end>' \(id 22\) has no row .* resize the embedding"):
        models.load_tokenizer(str(place), Model())


def test_the_tokenizer_of_a_larger_model_is_refused(model, tmp_path) -> None:
    models.make_tiny(Tiny(characters="abcdefghijklmnopqrstuvwxyz"), tmp_path / "larger", seed=1)
    (model / "tokenizer.json").write_bytes((tmp_path / "larger" / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match="this is the tokenizer of another model"):
        models.load_tokenizer(str(model), Model())


def test_a_padding_token_without_a_row_becomes_the_end_token(model) -> None:
    place = edited(model, **{"<padding>": ROWS})
    config = json.loads((place / "tokenizer_config.json").read_text())
    (place / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<padding>"}))
    tokenizer = models.load_tokenizer(str(place), Model())
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<eos>", 2)


def test_a_tokenizer_without_a_padding_token_takes_the_end_token_and_keeps_real_ends(model) -> None:
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "pad_token"}))
    tokenizer = models.load_tokenizer(str(model), Model())
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer("ab<eos>").input_ids[-1] == 2


def test_a_vocabulary_that_holds_the_token_too_loses_it_there(model) -> None:
    file = model / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["vocab"]["<D>"] = ROWS
    file.write_text(json.dumps(state))
    tokenizer = models.load_tokenizer(str(edited(model, **{"<D>": ROWS})), Model())
    assert max(tokenizer("<D>").input_ids) < ROWS and not token_rows.rowless(tokenizer, ROWS)
