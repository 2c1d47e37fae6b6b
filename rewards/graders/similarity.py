"""How alike two texts are, 0 to 1: the metrics of OpenAI's text_similarity grader. Pure functions, no dependencies.

fuzzy_match is the indel similarity (rapidfuzz's ratio): 2 · LCS / (length + length), over characters. rouge_n and
rouge_l are F1 over words, in lower case, without stemming (Lin 2004). bleu is sentence BLEU up to 4-grams with its
brevity penalty and no smoothing (Papineni et al. 2002). gleu is the smaller of n-gram precision and recall, n up to 4
(Wu et al., arXiv:1609.08144 section 6).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

MAX_CHARS = 20_000  # longer texts are cut: the longest common subsequence costs the product of the lengths


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"\w+", text[:MAX_CHARS].lower())


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bit-parallel rows (Hyyrö 2004)."""
    where: dict[str, int] = {}
    for i, item in enumerate(a):
        where[item] = where.get(item, 0) | 1 << i
    full = (1 << len(a)) - 1
    row = full
    for item in b:
        matches = row & where.get(item, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(a) - row.bit_count()


def fuzzy_match(text: str, reference: str) -> float:
    text, reference = text[:MAX_CHARS], reference[:MAX_CHARS]
    total = len(text) + len(reference)
    return 2 * common_subsequence(text, reference) / total if total else 1.0


def ngrams(items: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def f1(overlap: int, size: int, reference_size: int) -> float:
    return 2 * overlap / (size + reference_size) if overlap else 0.0


def rouge(n: int) -> Callable[[str, str], float]:
    def rouge_n(text: str, reference: str) -> float:
        ours, theirs = ngrams(words(text), n), ngrams(words(reference), n)
        return f1((ours & theirs).total(), ours.total(), theirs.total())

    return rouge_n


def rouge_l(text: str, reference: str) -> float:
    ours, theirs = words(text), words(reference)
    return f1(common_subsequence(ours, theirs), len(ours), len(theirs))


def bleu(text: str, reference: str) -> float:
    ours, theirs = words(text), words(reference)
    precisions = []
    for n in range(1, 5):
        mine = ngrams(ours, n)
        if not mine:
            break  # the text is shorter than n words
        precisions.append((mine & ngrams(theirs, n)).total() / mine.total())
    if not precisions or min(precisions) == 0.0:
        return 0.0
    brevity = min(1.0, math.exp(1 - len(theirs) / len(ours)))
    return brevity * math.exp(math.fsum(map(math.log, precisions)) / len(precisions))


def gleu(text: str, reference: str) -> float:
    ours, theirs = words(text), words(reference)
    mine = Counter[tuple[str, ...]]()
    other = Counter[tuple[str, ...]]()
    for n in range(1, 5):
        mine += ngrams(ours, n)
        other += ngrams(theirs, n)
    return (mine & other).total() / max(mine.total(), other.total(), 1)


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    **{f"rouge_{n}": rouge(n) for n in range(1, 6)},
    "rouge_l": rouge_l,
}
NOT_HERE = {
    "cosine": "it needs an embedding model; take fuzzy_match or rouge_l, or a score_model grader",
    "meteor": "it needs the WordNet data; take rouge_l or gleu",
}

__all__ = ["METRICS", "NOT_HERE"]
