"""Samples for people to rate, and the files that their ratings go to.

runs/NAME/ratings.jsonl      one row per rated sample: the rollout with its rating, 1 to 7, as its reward
runs/NAME/comparisons.jsonl  two rows per compared pair: the better answer with reward 1, the worse with 0; one pair per
                             prompt, so that no other pair can be read into the file

Both are pools of scored samples: `pool:` of feedme, reward_model, dpo and conditioned reads them, with the token ids
that were sampled.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pipeline.report.collect import tail_rows

RATINGS, COMPARISONS = "ratings.jsonl", "comparisons.jsonl"
LOWEST, HIGHEST = 1, 7
TAIL_BYTES = 8 << 20  # of a rollouts.jsonl: what people rate are the newest samples
Row = dict[str, Any]


def key_of(row: Mapping[str, Any]) -> str:
    """A sample by its tokens: the same answer to the same prompt is rated once."""
    tokens = json.dumps([row.get("prompt_ids"), row.get("ids")])
    return hashlib.sha256(tokens.encode()).hexdigest()[:16]


class RatingDesk:
    """What of one run can be rated, what has been, and where it is written. Safe to use from several threads."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._lock = threading.Lock()
        self._rated = {str(row.get("rated")) for row in read_rows(run / RATINGS)}
        self._compared = {str(row.get("prompt")) for row in read_rows(run / COMPARISONS)}  # prompts

    def counts(self) -> dict[str, int]:
        with self._lock:
            return {"ratings": len(self._rated), "comparisons": len(self._compared)}

    def stages(self) -> list[str]:
        """Stages with samples that can be rated."""
        return sorted(path.parent.name for path in self.run.glob("*/rollouts.jsonl") if path.stat().st_size)

    def samples(self, stage: str) -> dict[str, Row]:
        """Key -> sample of a stage's newest rollouts: single answers that ended by themselves."""
        if stage not in self.stages():
            raise ValueError(f"no stage {stage!r} with samples; have: {', '.join(self.stages()) or 'none'}")
        rows = tail_rows(self.run / stage / "rollouts.jsonl", size=TAIL_BYTES)
        complete = (row for row in rows if row.get("finished") and not row.get("turn") and row.get("ids"))
        return {key_of(row): row for row in complete}

    def next_sample(self, stage: str) -> dict[str, Any] | None:
        """An unrated sample; None when all are rated. The order is that of a hash: neither by time nor by reward."""
        with self._lock:
            rated = set(self._rated)
        samples = self.samples(stage)
        key = min(samples.keys() - rated, default=None)
        return None if key is None else shown(key, samples[key])

    def next_pair(self, stage: str) -> dict[str, Any] | None:
        """Two different answers to a prompt that has not been compared yet; None when there are no more."""
        samples = self.samples(stage)
        by_prompt: dict[str, list[str]] = {}
        for key in sorted(samples):
            by_prompt.setdefault(str(samples[key]["prompt"]), []).append(key)
        with self._lock:
            compared = set(self._compared)
        for prompt, keys in by_prompt.items():
            if prompt in compared:
                continue
            for pair in combinations(keys, 2):
                if samples[pair[0]]["completion"] != samples[pair[1]]["completion"]:
                    return {"prompt": prompt, "answers": [shown(key, samples[key]) for key in pair]}
        return None

    def rate(self, stage: str, key: str, rating: int) -> None:
        """Append a rating. Raises ValueError for a sample that is gone or a rating outside the scale."""
        if not isinstance(rating, int) or isinstance(rating, bool) or not LOWEST <= rating <= HIGHEST:
            raise ValueError(f"a rating is a whole number from {LOWEST} to {HIGHEST}, found {rating!r}")
        row = self._sample(stage, key)
        with self._lock:
            if key not in self._rated:
                append(self.run / RATINGS, [as_scored(row, stage, float(rating)) | {"rating": rating, "rated": key}])
                self._rated.add(key)

    def prefer(self, stage: str, better: str, worse: str) -> None:
        """Append a comparison. Raises ValueError for samples that are gone or answer different prompts."""
        chosen, rejected = self._sample(stage, better), self._sample(stage, worse)
        if chosen["prompt"] != rejected["prompt"] or better == worse:
            raise ValueError("the two must be different answers to one prompt")
        with self._lock:
            if chosen["prompt"] not in self._compared:
                append(self.run / COMPARISONS, [as_scored(chosen, stage, 1.0), as_scored(rejected, stage, 0.0)])
                self._compared.add(str(chosen["prompt"]))

    def pass_over(self, stage: str, keys: Sequence[str]) -> None:
        """Show these samples no more, until the server starts again; nothing is written."""
        prompt = str(self._sample(stage, keys[0])["prompt"]) if keys else ""
        with self._lock:
            if len(keys) == 1:
                self._rated.add(keys[0])
            else:
                self._compared.add(prompt)

    def _sample(self, stage: str, key: str) -> Row:
        row = self.samples(stage).get(key)
        if row is None:
            raise ValueError("this sample is no longer among the newest rollouts; load the next one")
        return row


def shown(key: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What a rater sees: neither the reward nor the verdict, which would sway the rating."""
    return {"key": key, "prompt": row["prompt"], "completion": row["completion"]}


def read_rows(path: Path) -> list[Row]:
    return tail_rows(path, size=path.stat().st_size) if path.is_file() else []


def as_scored(row: Mapping[str, Any], stage: str, reward: float) -> Row:
    """The rollout as a row of a pool, with a person's judgement as its reward."""
    kept = {name: value for name, value in row.items() if name not in ("step_rewards", "asked", "round")}
    return {**kept, "reward": reward, "parts": {"rating": reward}, "status": "pass", "detail": "rated by a person",
            "stage": stage}  # fmt: skip


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Whole lines, on disk when this returns. A line that a crash left half written is ended first."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            lines = lines if file.read(1) == b"\n" else f"\n{lines}"
        file.write(lines.encode("utf-8", "surrogatepass"))
        file.flush()
        os.fsync(file.fileno())


__all__ = ["COMPARISONS", "HIGHEST", "LOWEST", "RATINGS", "RatingDesk", "key_of"]
