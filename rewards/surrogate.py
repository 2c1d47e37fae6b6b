"""A learned stand-in for a slow part: it scores every row, a random share is really checked, and the sum is unbiased.

With the stand-in's prediction s, the real score r and the share q of rows that are checked, the score of a row is

    s + (r - s) / q   if the row was checked, else s

whose mean over the draw is r, whatever s is; its variance is (1/q - 1) (r - s)^2, so a good stand-in allows a small q.
Source: Horvitz and Thompson 1952; prediction-powered inference, arXiv:2301.09633.

A credit that is linear in the scores (group with scale: false, leave_one_out, gae without whitening) keeps the gradient
unbiased; one that divides by their deviation or takes a maximum does not.
"""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rewards.batch import PREDICTED, REAL, SHARE, Batch, Outcome
from rewards.parts import FunctionPart, Part
from verifiers.deadline import DeadlinePool, Job

if TYPE_CHECKING:
    from rewards.ngram_classifier import NgramClassifier

Sample = tuple[Sequence[int], Sequence[int], Mapping[str, float | None]]  # prompt ids, completion ids, parts

MEMORY = 0.9  # weight per update of the past in the running error and variance


def _ngrams() -> Any:
    """The module of the classifier, which loads NumPy: `import rewards` does not."""
    from rewards import ngram_classifier

    return ngram_classifier


def corrected(predicted: float, real: float | None, share: float) -> float:
    """The Horvitz-Thompson score of a row; real None: it was not checked."""
    return predicted if real is None else predicted + (real - predicted) / share


def needed_share(error: float, variance: float, *, added: float) -> float:
    """The share q at which leaving checks out adds `added` times the variance of the real scores: (1/q - 1) E = a V.

    error: mean squared difference E of prediction and real score. variance: V of the real scores. In [0, 1]; 1 where
    neither is known to vary.
    """
    total = error + added * variance
    return error / total if total > 0 else 1.0


class TimedPool:
    """A pool that adds up the seconds of the jobs it runs."""

    def __init__(self, pool: DeadlinePool) -> None:
        self._pool, self._lock = pool, threading.Lock()
        self.seconds = 0.0

    def submit(self, run: Callable[[], Any], timeout_s: float) -> Job:
        return self._pool.submit(lambda: self._timed(run), timeout_s)

    def wait(self, jobs: Sequence[Job]) -> None:
        self._pool.wait(jobs)

    def _timed(self, run: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return run()
        finally:
            with self._lock:
                self.seconds += time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class SurrogateSettings:
    """verify_share: q, or what it starts from. added_variance: variance that unchecked rows may add to the scores,
    relative to that of the real scores; q then follows the stand-in's error, not below min_share; None: q stays.
    correct: False scores by the stand-in alone, a control. learn_rows: checked rows after which it learns and checks no
    more; None: never. learn: False predicts a constant, a control.
    """

    verify_share: float = 0.25
    added_variance: float | None = None
    min_share: float = 0.05
    correct: bool = True
    learn: bool = True
    learn_rows: int | None = None

    def mistakes(self) -> list[str]:
        """What contradicts itself, each beginning with its key."""
        out = [f".{name}: {value:g} must lie above 0 and not above 1"
               for name, value in (("verify_share", self.verify_share), ("min_share", self.min_share))
               if not 0 < value <= 1]  # fmt: skip
        if self.added_variance is not None and self.added_variance <= 0:
            out.append(f".added_variance: {self.added_variance:g} must be above 0; null keeps verify_share fixed")
        if self.learn_rows is not None and self.correct:
            out.append(".learn_rows: without checks no score can be corrected; give correct: false, or leave it out")
        if self.learn_rows is not None and self.learn_rows < 1:
            out.append(f".learn_rows: {self.learn_rows} must be at least 1")
        return out


@dataclass
class SurrogatePart:
    """The part that scores by a stand-in for `real`. A batch without draws is checked row by row, as by `real` itself.

    share: the present q. error, variance: running means of the squared error and of the scores' variance. seconds,
    rows_timed, rows_skipped: of the checks in this process.
    """

    name: str
    weight: float
    real: Part
    settings: SurrogateSettings
    classifier: NgramClassifier = field(default_factory=lambda: _ngrams().NgramClassifier())
    error: float | None = None
    variance: float | None = None
    seconds: float = 0.0
    rows_timed: int = 0
    rows_skipped: int = 0

    @property
    def share(self) -> float:
        """q: the probability with which a row is checked."""
        settings = self.settings
        if settings.learn_rows is not None and self.classifier.seen >= settings.learn_rows:
            return 0.0
        if settings.added_variance is None or self.error is None or self.variance is None:
            return settings.verify_share
        return max(needed_share(self.error, self.variance, added=settings.added_variance), settings.min_share)

    def start(self, batch: Batch, pool: DeadlinePool) -> Callable[[], list[Outcome]]:
        if batch.draws is None:
            return self.real.start(batch, pool)
        share = self.share
        # parts of one block draw apart: adding a constant keeps a draw uniform
        shift = zlib.crc32(self.name.encode()) / 2**32
        chosen = [i for i, draw in enumerate(batch.draws) if (draw + shift) % 1.0 < share]
        timed = TimedPool(pool)
        finish = self.real.start(batch.rows(chosen), timed) if chosen else list  # type: ignore[arg-type]

        def outcomes() -> list[Outcome]:
            predicted = self._predictions(batch)
            checked = dict(zip(chosen, finish(), strict=True))
            self.seconds += timed.seconds
            self.rows_timed += len(chosen)
            self.rows_skipped += len(batch) - len(chosen)
            return [self._outcome(p, checked.get(i), share) for i, p in enumerate(predicted)]

        return outcomes

    def _predictions(self, batch: Batch) -> list[float]:
        if not self.settings.learn:
            return [0.5 * (self.classifier.low + self.classifier.high)] * len(batch)
        rows = [_ngrams().features(p, c) for p, c in zip(batch.prompt_ids, batch.completion_ids, strict=True)]
        return self.classifier.predict(rows)

    def _outcome(self, predicted: float, real: Outcome | None, share: float) -> Outcome:
        also = {self.name + PREDICTED: predicted, self.name + SHARE: share}
        if real is None:  # nobody knows whether the row is right
            status = None if isinstance(self.real, FunctionPart) else "error"
            return Outcome(predicted, status, "not checked: scored by the surrogate", also=also)  # type: ignore[arg-type]
        if real.value is None:
            return Outcome(None, real.status, real.detail, also=also)
        value = corrected(predicted, real.value, share) if self.settings.correct else predicted
        return Outcome(value, real.status, real.detail, real.steps, also | {self.name + REAL: real.value})

    def observe(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Learn from a step's samples; returns its metrics.

        A pure function of its state and the samples, which are saved with the step: a resumed run repeats it.
        Predictions were made before the samples were learned from, so their error is one on new samples.
        """
        predicted_key, real_key = self.name + PREDICTED, self.name + REAL
        drawn = [sample for sample in samples if sample[2].get(predicted_key) is not None]
        checked = [sample for sample in drawn if sample[2].get(real_key) is not None]
        predicted = [float(sample[2][predicted_key] or 0.0) for sample in checked]
        real = [float(sample[2][real_key] or 0.0) for sample in checked]
        metrics = {f"{self.name}/share_checked": len(checked) / max(len(drawn), 1), f"{self.name}/share": self.share}
        if checked:
            n = len(checked)
            mean = math.fsum(real) / n
            error = math.fsum((p - r) ** 2 for p, r in zip(predicted, real, strict=True)) / n
            variance = math.fsum((r - mean) ** 2 for r in real) / n
            self.error = error if self.error is None else MEMORY * self.error + (1 - MEMORY) * error
            self.variance = variance if self.variance is None else MEMORY * self.variance + (1 - MEMORY) * variance
            metrics |= {f"{self.name}/error": error, f"{self.name}/real_mean": mean,
                        f"{self.name}/real_variance": variance,
                        f"{self.name}/calibration_error": _ngrams().calibration_error(predicted, real)}  # fmt: skip
            self.classifier.learn([_ngrams().features(p, c) for p, c, _ in checked], real)
        if drawn:
            total = math.fsum(float(sample[2][predicted_key] or 0.0) for sample in drawn)
            metrics[f"{self.name}/predicted_mean"] = total / len(drawn)
        return metrics

    @property
    def seconds_saved(self) -> float:
        """Seconds that the skipped checks of this process would have taken, at the mean of those that ran."""
        return self.rows_skipped * self.seconds / self.rows_timed if self.rows_timed else 0.0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"classifier": self.classifier.to_dict(), "error": self.error, "variance": self.variance}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """What `state` gave."""
        self.classifier = _ngrams().NgramClassifier.from_dict(state["classifier"])
        self.error, self.variance = state["error"], state["variance"]


__all__ = ["SurrogatePart", "SurrogateSettings", "corrected", "needed_share"]
