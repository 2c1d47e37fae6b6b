"""Search over a local corpus by BM25 (Robertson and Zaragoza, 2009, section 3; the IDF of Lucene, never negative).

The corpus is a JSONL file with `text` and optionally `title` (setting `corpus`), or the task's own `documents`, a list
of texts. The index is built once per corpus, in memory. The formula is written out here because it is thirty lines and
the Python libraries differ in what a user would notice: words of one character dropped, passages without any of the
words returned, a weight of 0 for a word that half of the passages contain.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from verifiers.tools import ToolError, ToolExample

K1, B = 1.2, 0.75
MAX_QUERY_WORDS = 100
_WORD = re.compile(r"\w+")


class Index:
    """BM25 over texts. score(q, d) = sum over words w of q: idf(w) * f / (f + K1 * (1 - B + B * |d| / mean |d|))."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        counted = [Counter(words_of(text)) for text in self.texts]
        self.lengths = [count.total() for count in counted]
        self.mean_length = max(sum(self.lengths) / max(len(self.lengths), 1), 1.0)
        self.postings: dict[str, list[tuple[int, int]]] = {}
        for number, count in enumerate(counted):
            for word, times in count.items():
                self.postings.setdefault(word, []).append((number, times))

    def best(self, query: str, count: int) -> list[tuple[int, float]]:
        """(text number, score) of the `count` best texts that contain a word of the query; equal scores in order."""
        scores: defaultdict[int, float] = defaultdict(float)
        for word in dict.fromkeys(words_of(query)[:MAX_QUERY_WORDS]):
            postings = self.postings.get(word, ())
            idf = math.log(1 + (len(self.texts) - len(postings) + 0.5) / (len(postings) + 0.5))
            for number, times in postings:
                norm = K1 * (1 - B + B * self.lengths[number] / self.mean_length)
                scores[number] += idf * times / (times + norm)
        return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:count]


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


@lru_cache(maxsize=4)
def _index_of(path: str, _changed_ns: int) -> Index:
    texts = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                title = f"{row['title']}\n" if row.get("title") else ""
                texts.append(title + row["text"])
            except (ValueError, KeyError, TypeError) as exc:
                raise ValueError(f"{path}:{number}: a line of a corpus is an object with `text`: {exc}") from exc
    return Index(texts)


class Session:
    """corpus: JSONL file of passages. count: passages of an answer. max_passage_chars: what is shown of each."""

    def __init__(self, *, corpus: str | None = None, count: int = 3, max_passage_chars: int = 1000) -> None:
        self._count, self._chars = count, max_passage_chars
        self._index = _index_of(corpus, Path(corpus).stat().st_mtime_ns) if corpus is not None else None

    def reset(self, documents: Sequence[str] | None = None) -> None:
        if documents is not None:
            self._index = Index(documents)

    def search(self, query: str) -> str:
        """Search the documents; returns the passages that fit the words best.

        Args:
            query: Words to look for.
        """
        if self._index is None:
            raise ValueError("search has nothing to search: give tools.use.search.corpus, or tasks with `documents`")
        if not words_of(query):
            raise ToolError("the query contains no word")
        found = self._index.best(query, self._count)
        if not found:
            return "(no passage contains any of these words)"
        return "\n\n".join(f"[{rank}] {self._index.texts[number][: self._chars]}"
                           for rank, (number, _) in enumerate(found, 1))  # fmt: skip


_DOCUMENTS = {
    "documents": ["The cat sat on the mat.", "Dogs chase cats.", "A bicycle has two wheels.", "The mat is red."]
}
EXAMPLES = (
    ToolExample("right", [{"query": "wheels of a bicycle"}], "[1] A bicycle has two wheels.", _DOCUMENTS),
    ToolExample("right", [{"query": "red MAT"}], "[1] The mat is red.", _DOCUMENTS, {"count": 1}),
    ToolExample("right", [{"query": "zebra"}], "(no passage contains any of these words)", _DOCUMENTS),
    ToolExample("right", [{"query": "cats"}], "[1] Dogs", _DOCUMENTS, {"max_passage_chars": 4}),
    ToolExample("mistake", [{"query": "?!"}], "no word", _DOCUMENTS),
    ToolExample("hostile", [{"query": "mat " * 100_000}], "", _DOCUMENTS),
)
