"""All randomness is a pure function of (seed, stage, step, index). Nothing else may be random.

A resumed run draws the same numbers, because no generator has a state that would need saving.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np


def derive(*parts: int | str) -> int:
    """A 31-bit seed from any key. Same key, same seed, on every machine; a changed part gives an unrelated seed."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF


def rng(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(derive(*parts))


def permutation(n: int, *parts: int | str) -> list[int]:
    return [int(i) for i in rng(*parts).permutation(n)]


def cycle_indices(n: int, start: int, count: int, *parts: int | str) -> list[int]:
    """Indices start .. start+count of an endless walk over n items, each pass in a new order.

    A pure function of its arguments: step k of a resumed run gets the same items as step k of an uninterrupted one.
    """
    if n < 1:
        raise ValueError("nothing to sample: no rows left after filtering and the held-out split")
    out, order, epoch_of_order = list[int](), np.empty(0, np.int64), -1
    for position in range(start, start + count):
        epoch, offset = divmod(position, n)
        if epoch != epoch_of_order:
            order, epoch_of_order = rng(*parts, epoch).permutation(n), epoch
        out.append(int(order[offset]))
    return out


def seed_everything(*parts: int | str) -> int:
    """Seed Python, NumPy and torch from the key, for libraries that keep a global state."""
    import torch

    seed = derive(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed
