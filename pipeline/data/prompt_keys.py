"""Texts of prompts where they are only compared: 8 bytes of a hash per text, in arrays and sets of millions of rows.

Two of ten million texts share a hash with a chance of 3 in a million; the later one then counts as a copy.
"""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import Prompts
from pipeline.data.columns import Row
from pipeline.data.lazy_rows import LazyRows, RowView
from pipeline.data.prompt_columns import prompt_text

POINTS = 10_000  # in which shares of the rows are counted


@dataclass(frozen=True, slots=True)
class PromptKeys:
    """Of N rows' prompts: hashes (N,), and points (N,) below POINTS, by which rows are held out."""

    hashes: NDArray[np.uint64]
    points: NDArray[np.uint16]

    def of(self, indices: NDArray[np.integer]) -> PromptKeys:
        return PromptKeys(self.hashes[indices], self.points[indices])

    def first_rows(self) -> NDArray[np.integer]:
        """Indices of the first row of each distinct prompt, ascending."""
        return np.sort(np.unique(self.hashes, return_index=True)[1])


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def hash_of(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def prompt_keys(rows: Sequence[Row], source: Prompts, *, where: str = "prompts") -> PromptKeys:
    """The keys of all rows' prompts. Lazy rows are read once per source; a part of them takes its rows' keys.

    Raises ConfigError naming the first row that has no prompt.
    """
    if not isinstance(rows, LazyRows):
        return _prompt_keys(rows, source, where)
    key = ("prompt keys", repr(source))
    if key not in rows.memo:
        rows.memo[key] = _keys_of_base(rows, key) or _prompt_keys(rows, source, where)
    return rows.memo[key]


def _keys_of_base(rows: LazyRows, key: Any) -> PromptKeys | None:
    """The keys of a part of rows whose own keys are known; None of others."""
    if not isinstance(rows, RowView) or rows.change is not None or not isinstance(rows.base, LazyRows):
        return None
    known: PromptKeys | None = rows.base.memo.get(key)
    return known if known is None or rows.indices is None else known.of(rows.indices)


def _prompt_keys(rows: Iterable[Row], source: Prompts, where: str) -> PromptKeys:
    hashes, points = array("Q"), array("H")
    for number, row in enumerate(rows, 1):
        text = encoded(prompt_text(row, source, number=number, where=where))
        hashes.append(hash_of(text))
        points.append(zlib.crc32(text) % POINTS)
    return PromptKeys(np.array(hashes, np.uint64), np.array(points, np.uint16))


class TextSet(Container[str]):
    """A set of texts that can only be asked whether it contains one. hashes: (N,) of `prompt_keys`."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self.hashes = np.unique(hashes)

    @classmethod
    def of(cls, texts: Iterable[str]) -> TextSet:
        return cls(np.array([hash_of(encoded(text)) for text in texts], np.uint64))

    def __len__(self) -> int:
        return len(self.hashes)

    def __contains__(self, text: object) -> bool:
        if not isinstance(text, str) or not len(self.hashes):
            return False
        wanted = np.uint64(hash_of(encoded(text)))
        index = int(np.searchsorted(self.hashes, wanted))
        return index < len(self.hashes) and bool(self.hashes[index] == wanted)
