"""A small classifier of prompt and completion, learned online: logistic regression on hashed features of token ids.

Logistic regression on hashed n-grams, because it has no model to load or to serve, costs well under a millisecond per
sample beside a check that takes seconds, its state is one vector and a buffer, and its mistakes are visible: the score
of a surrogate reward is unbiased whatever it predicts, so a better classifier only lowers the variance. What it sees:
n-grams of the completion, its length, and products of what stands at each of the last positions of the prompt with
counts and n-grams of the completion. It works on token ids, not words, and so in any language.

Predictions are calibrated on verified samples that it does not learn from (Platt scaling: Platt 1999; what a calibrated
probability is: arXiv:1706.04599).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

BUCKETS = 2**16
LONGEST = 6  # tokens of an n-gram
PROMPT_TOKENS = 8  # last tokens of the prompt whose products with the completion are features
COUNTED = 64  # distinct completion tokens whose counts are features
REMEMBERED = 4096  # verified samples that are learned from again
HELD_OUT = 5  # every fifth verified sample calibrates and is not learned from
PASSES = 2  # over as many remembered samples as are new, per update
LEARNING_RATE = 0.2
DECAY = 1e-5
BINS = 10


def features(prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> Indices:
    """Sorted distinct feature numbers below BUCKETS of one sample; each has the value 1."""
    ids = tuple(completion_ids)
    own = {f"{n}:{ids[i : i + n]}" for n in range(1, LONGEST + 1) for i in range(len(ids) - n + 1)}
    own.add(f"length:{len(ids)}")
    own |= {f"start:{ids[:n]}" for n in (1, 2, 3)} | {f"end:{ids[-n:]}" for n in (1, 2, 3)}
    counts = {f"count:{token}:{ids.count(token)}" for token in sorted(set(ids))[:COUNTED]}
    near = [f"{i}={token}" for i, token in enumerate(reversed(prompt_ids[-PROMPT_TOKENS:]))]
    crossed = {f"{place}|{what}" for place in near for what in (*counts, f"start:{ids[:1]}", f"end:{ids[-3:]}")}
    names = own | counts | crossed | {"bias"}
    return np.array(sorted({zlib.crc32(name.encode()) % BUCKETS for name in names}), dtype=np.int64)


@dataclass
class NgramClassifier:
    """Probability that a sample passes, or its expected score between `low` and `high`, the extremes seen so far.

    weights, squares: (BUCKETS,), and the sums of squared gradients (AdaGrad). slope, shift: of the calibration.
    seen: verified samples so far. learned, held_out: buffers of (features, score).
    """

    weights: Floats = field(default_factory=lambda: np.zeros(BUCKETS))
    squares: Floats = field(default_factory=lambda: np.zeros(BUCKETS))
    slope: float = 1.0
    shift: float = 0.0
    low: float = 0.0
    high: float = 1.0
    seen: int = 0
    learned: list[tuple[Indices, float]] = field(default_factory=list)
    held_out: list[tuple[Indices, float]] = field(default_factory=list)

    def predict(self, rows: Sequence[Indices]) -> list[float]:
        """Expected score of each sample; before anything was learned the middle of the scale."""
        return [self.low + (self.high - self.low) * _logistic(self.slope * z + self.shift) for z in self._logits(rows)]

    def learn(self, rows: Sequence[Indices], scores: Sequence[float]) -> None:
        """Learn from verified samples, in order; every HELD_OUT-th is kept aside and calibrates."""
        self.low, self.high = min([self.low, *scores]), max([self.high, *scores])
        fresh = []
        for row, score in zip(rows, scores, strict=True):
            self.seen += 1
            if self.seen % HELD_OUT == 0:
                self.held_out.append((row, score))
            else:
                fresh.append((row, score))
        self.learned = [*self.learned, *fresh][-REMEMBERED:]
        self.held_out = self.held_out[-REMEMBERED // HELD_OUT :]
        # the new samples, and as many remembered ones, at an even distance so that no random number is needed
        stride = max(len(self.learned) // max(PASSES * len(fresh), 1), 1)
        for row, score in [*fresh, *self.learned[self.seen % stride :: stride]]:
            self._step(row, self._target(score))
        self._calibrate()

    def _logits(self, rows: Sequence[Indices]) -> list[float]:
        return [float(self.weights[row].sum()) for row in rows]

    def _target(self, score: float) -> float:
        return (score - self.low) / (self.high - self.low)

    def _step(self, row: Indices, target: float) -> None:
        error = _logistic(float(self.weights[row].sum())) - target
        gradient = error + DECAY * self.weights[row]
        self.squares[row] += gradient * gradient
        self.weights[row] -= LEARNING_RATE * gradient / np.sqrt(self.squares[row] + 1e-8) / math.sqrt(len(row))

    def _calibrate(self) -> None:
        """Slope and shift of the logit that fit the held-out samples, by Newton steps with a weak prior at (1, 0)."""
        if len(self.held_out) < 2 * BINS:
            return
        z = np.array(self._logits([row for row, _ in self.held_out]))
        y = np.array([self._target(score) for _, score in self.held_out])
        fitted = np.array([1.0, 0.0])
        design = np.stack([z, np.ones_like(z)], axis=1)
        for _ in range(20):
            p = 1 / (1 + np.exp(-np.clip(design @ fitted, -30, 30)))
            gradient = design.T @ (p - y) + (fitted - [1.0, 0.0])
            curvature = design.T @ (design * (p * (1 - p))[:, None]) + np.eye(2)
            step = np.linalg.solve(curvature, gradient)
            fitted = fitted - step
            if float(np.abs(step).max()) < 1e-10:
                break
        self.slope, self.shift = max(float(fitted[0]), 0.0), float(fitted[1])

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint: numbers, and lists of numbers."""
        used = np.flatnonzero(self.squares)
        buffers = {name: [[row.tolist(), score] for row, score in getattr(self, name)]
                   for name in ("learned", "held_out")}  # fmt: skip
        return {"used": used.tolist(), "weights": self.weights[used].tolist(), "squares": self.squares[used].tolist(),
                "slope": self.slope, "shift": self.shift, "low": self.low, "high": self.high, "seen": self.seen,
                **buffers}  # fmt: skip

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> NgramClassifier:
        """What `to_dict` gave."""
        plain = {name: state[name] for name in ("slope", "shift", "low", "high", "seen")}
        out = cls(**plain)
        used = np.array(state["used"], dtype=np.int64)
        out.weights[used], out.squares[used] = state["weights"], state["squares"]
        for name in ("learned", "held_out"):
            setattr(out, name, [(np.array(row, dtype=np.int64), score) for row, score in state[name]])
        return out


def calibration_error(predicted: Sequence[float], real: Sequence[float]) -> float:
    """Expected calibration error: |mean prediction - mean score| over 10 bins of equal width, weighted by their counts.

    Source: arXiv:1706.04599 eq. 3. NaN for empty input.
    """
    if not predicted:
        return math.nan
    low, high = min(*predicted, 0.0), max(*predicted, 1.0)
    bins: dict[int, list[tuple[float, float]]] = {}
    for p, r in zip(predicted, real, strict=True):
        bins.setdefault(min(int(BINS * (p - low) / (high - low)), BINS - 1), []).append((p, r))
    gaps = [abs(math.fsum(p - r for p, r in pairs)) for _, pairs in sorted(bins.items())]
    return math.fsum(gaps) / len(predicted)


def _logistic(z: float) -> float:
    return 1 / (1 + math.exp(-min(max(z, -30.0), 30.0)))


__all__ = ["NgramClassifier", "calibration_error", "features"]
