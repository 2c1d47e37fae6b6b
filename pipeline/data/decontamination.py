"""Training rows that share a run of words with a held-out prompt."""

from __future__ import annotations

import re


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """Runs of n words, lower case, punctuation off. A text shorter than n words is one run: itself."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return set()
    return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))}


def contaminated(train: list[str], heldout: list[str], n: int) -> list[int]:
    """Indices in `train` of texts that share a run of n words with a held-out text.

    Source: 13-grams as in GPT-3, arXiv:2005.14165 appendix C.
    """
    seen = set().union(*(ngrams(text, n) for text in heldout)) if heldout else set()
    return [index for index, text in enumerate(train) if not seen.isdisjoint(ngrams(text, n))]
