"""Training rows that share a run of words with a held-out prompt."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.data.prompt_keys import encoded, hash_of


def ngram_hashes(text: str, n: int) -> NDArray[np.uint64]:
    """Hashes of the runs of n words, lower case, punctuation off. A text shorter than n words is one run: itself."""
    words = re.findall(r"\w+", text.lower())
    runs = (" ".join(words[i : i + n]) for i in range(max(len(words) - n + 1, 1) if words else 0))
    return np.array([hash_of(encoded(run)) for run in runs], np.uint64)


def contaminated(train: Iterable[str], heldout: Iterable[str], n: int) -> NDArray[np.integer]:
    """Indices in `train` of texts that share a run of n words with a held-out text. In memory are 8 bytes per held-out
    word.

    Source: 13-grams as in GPT-3, arXiv:2005.14165 appendix C.
    """
    seen = array("Q")
    for text in heldout:
        seen.frombytes(ngram_hashes(text, n).tobytes())
    known = np.unique(np.frombuffer(seen, np.uint64)) if seen else np.empty(0, np.uint64)
    shared = array("q")
    for index, text in enumerate(train):
        hashes = ngram_hashes(text, n)
        at = np.searchsorted(known, hashes)
        inside = at < len(known)
        if (known[at[inside]] == hashes[inside]).any():
            shared.append(index)
    return np.array(shared, np.int64)
