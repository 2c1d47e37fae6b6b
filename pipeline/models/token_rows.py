"""No token without a row: a tokenizer may name ids that the embedding of its model does not have.

Gemma 3 ships 262,145 tokens for 262,144 rows, and a tokenizer class may add its default unknown token when it loads a
directory that names none. Text that holds such a token becomes an id that the model cannot read: an IndexError, or on
a GPU the end of the process. The tokens are taken out, so that such text is read as ordinary text.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class TokenWithoutRow(ValueError):
    """The tokenizer needs a token that the embedding has no row for."""


def rowless(tokenizer: Any, rows: int) -> dict[str, int]:
    """Token -> id, by rising id, of those whose id is no row of an embedding with so many rows."""
    added = {str(token): i for i, token in sorted(tokenizer.added_tokens_decoder.items()) if i >= rows}
    if len(tokenizer) - len(added) <= rows:
        return added  # the rest has rows; a vocabulary of hundreds of thousands of tokens takes seconds to list
    by_id = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])  # a vocabulary has no order
    return {token: i for token, i in by_id if i >= rows}


def without_rowless(tokenizer: Any, rows: int) -> dict[str, int]:
    """Take the tokens without a row out of the tokenizer, in place; returns them.

    Raises TokenWithoutRow where the end-of-sequence token is one, or where they are part of the vocabulary that text is
    split into: then this is the tokenizer of another model.
    """
    removed = rowless(tokenizer, rows)
    if not removed:
        return {}
    first = min(removed, key=lambda token: removed[token])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not set(removed.values()) <= tokenizer.added_tokens_decoder.keys():
        raise TokenWithoutRow(f"{len(removed)} tokens, such as {first!r} (id {removed[first]}), have no row in the "
                              f"embedding of {rows} rows; this is the tokenizer of another model")  # fmt: skip
    if tokenizer.eos_token in removed:
        raise TokenWithoutRow(f"the end-of-sequence token {tokenizer.eos_token!r} (id {removed[tokenizer.eos_token]}) "
                              f"has no row in the embedding of {rows} rows; resize the embedding")  # fmt: skip
    from tokenizers import Tokenizer

    tokenizer._tokenizer = Tokenizer.from_str(_spliced(backend.to_str(), removed))
    for name, value in list(getattr(tokenizer, "_special_tokens_map", {}).items()):
        if str(value) in removed:
            # an unknown token must be named: a class that has a default would add it again when it loads
            stand_in = (tokenizer.pad_token or tokenizer.eos_token) if name == "unk_token" else None
            setattr(tokenizer, name, None if stand_in in removed else stand_in)
    extra = getattr(tokenizer, "_extra_special_tokens", None)
    if extra:
        tokenizer._extra_special_tokens = [token for token in extra if str(token) not in removed]
    return removed


def _spliced(state: str, found: dict[str, int]) -> str:
    """A tokenizer's JSON without these added tokens. Of hundreds of thousands of merges nothing else is parsed, unless
    the tokens stand in the vocabulary too."""
    start = state.index("[", state.index('"added_tokens"'))
    added, end = json.JSONDecoder().raw_decode(state, start)
    kept = json.dumps([token for token in added if token["content"] not in found])
    out = state[:start] + kept + state[end:]
    if not any(f"{json.dumps(token, ensure_ascii=False)}:" in out for token in found):
        return out
    tokenizer_json = json.loads(out)
    tokenizer_json["model"]["vocab"] = {
        token: i for token, i in tokenizer_json["model"]["vocab"].items() if token not in found
    }
    return json.dumps(tokenizer_json)


def save_tokenizer(tokenizer: Any, path: Path, rows: int) -> None:
    """Save it so that whoever loads the directory gets no token without a row. Raises TokenWithoutRow if that fails.

    Files that this process has loaded before are not loaded again: of a vocabulary of 262,144 tokens that takes 3 s.
    """
    from transformers import AutoTokenizer

    without_rowless(tokenizer, rows)
    tokenizer.save_pretrained(path)
    digest = _digest(path)
    if digest in _sound:
        return
    loaded = AutoTokenizer.from_pretrained(path)
    if not without_rowless(loaded, rows):
        _sound.add(digest)
        return
    loaded.save_pretrained(path)  # without those that the class the loader chose had added
    again = rowless(AutoTokenizer.from_pretrained(path), rows)
    if again:
        raise TokenWithoutRow(f"{path}: loading adds {', '.join(again)}, beyond the {rows} rows of the embedding")


_sound: set[str] = set()  # digests of directories that gave no token without a row when they were loaded


def _digest(path: Path) -> str:
    """Of all that decides what loading the tokenizer gives: its files, and the config with its class and rows."""
    out = hashlib.sha256()
    for file in sorted(f for f in path.iterdir() if f.is_file() and f.suffix not in (".safetensors", ".bin")):
        out.update(f"{file.name}\0{file.stat().st_size}\0".encode() + file.read_bytes())
    return out.hexdigest()


__all__ = ["TokenWithoutRow", "rowless", "save_tokenizer", "without_rowless"]
