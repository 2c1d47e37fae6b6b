"""A small simulation of rollout and training, in turns or one step ahead, with heavy-tailed lengths.

    python -m benchmarks.simulate                     the table of docs/scale.md
    python -m benchmarks.simulate PLAIN AHEAD         compares it with timing.jsonl of runs without and with `overlap`

An engine decodes all its live sequences together, one token each at a time, so a batch is as slow as its longest
answer; a slot that becomes free is refilled immediately while sequences are waiting. The cost of training is
proportional to tokens. Networks and caches are not modelled: the questions are how much of the long tail overlap hides,
and when more engines stop helping.
"""

from __future__ import annotations

import heapq
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean


@dataclass(frozen=True, slots=True)
class Cluster:
    """engines: each decodes up to `places` sequences at once. Times are in seconds. sigma: of the log of the lengths; 0
    gives equal lengths, 1 a heavy tail."""

    engines: int = 64
    places: int = 64
    samples: int = 8192
    mean_tokens: float = 4000.0
    most_tokens: int = 32_768
    sigma: float = 1.0
    token_s: float = 0.012  # one decoding step with few sequences
    token_s_each: float = 0.0001  # additional time per live sequence
    train_tokens_per_s: float = 1.2e6
    sync_s: float = 6.0


def lengths_of(cluster: Cluster, rng: random.Random) -> list[int]:
    """Log-normal lengths with the configured mean, truncated at the limit as by a sampler."""
    drawn = (rng.lognormvariate(0.0, cluster.sigma) for _ in range(cluster.samples))
    scale = cluster.mean_tokens / 2.718281828 ** (cluster.sigma**2 / 2)
    return [min(max(int(x * scale), 1), cluster.most_tokens) for x in drawn]


def rollout_s(cluster: Cluster, lengths: Sequence[int]) -> float:
    """Seconds until the last engine is done; sequences are distributed round-robin."""
    return max(engine_s(cluster, lengths[i :: cluster.engines]) for i in range(cluster.engines))


def engine_s(cluster: Cluster, lengths: Sequence[int]) -> float:
    """Seconds one engine takes, computed between consecutive ends of sequences: the live count is constant there."""
    waiting, tokens, clock = list(reversed(lengths)), 0, 0.0
    live: list[int] = []  # heap of the token counts after which each sequence ends
    while waiting or live:
        while waiting and len(live) < cluster.places:
            heapq.heappush(live, tokens + waiting.pop())
        until = live[0]
        clock += (until - tokens) * (cluster.token_s + cluster.token_s_each * len(live))
        tokens = until
        while live and live[0] == tokens:
            heapq.heappop(live)
    return clock


def in_turns(rollouts: Sequence[float], trainings: Sequence[float], sync: float) -> float:
    """Mean seconds per step if training waits for sampling and sampling for training."""
    return mean([r + t + sync for r, t in zip(rollouts, trainings, strict=True)])


def one_ahead(rollouts: Sequence[float], trainings: Sequence[float], sync: float) -> float:
    """Mean seconds per step if the next rollout runs concurrently with this training, on separate machines; the first
    rollout, which overlaps with nothing, is left out."""
    return mean([max(r, t) + sync for r, t in zip(rollouts[1:], trainings[:-1], strict=True)])


def simulate(cluster: Cluster, *, steps: int = 12, seed: int = 1) -> dict[str, float]:
    rng = random.Random(seed)
    batches = [lengths_of(cluster, rng) for _ in range(steps)]
    rollouts = [rollout_s(cluster, batch) for batch in batches]
    trainings = [sum(batch) / cluster.train_tokens_per_s for batch in batches]
    turns, ahead = (f(rollouts, trainings, cluster.sync_s) for f in (in_turns, one_ahead))
    return {"rollout_s": mean(rollouts), "train_s": mean(trainings), "in_turns_s": turns, "one_ahead_s": ahead,
            "gain": turns / ahead}  # fmt: skip


def compare(plain: Path, ahead: Path) -> dict[str, float]:
    """The step time predicted from the phases of a run in turns, and the measured step time of the run with overlap.

    On one machine the two phases compete for cores, which the simulation does not model: `stretched` is the slowdown of
    the update with a concurrent rollout. The first steps, which compile and fill caches, are left out.
    """
    before, after = ([json.loads(line) for line in path.read_text().splitlines()][2:-1] for path in (plain, ahead))
    phases = ("rollout", "experience", "update", "wait", "sync")
    sides = [mean([sum(row.get(name, 0.0) for name in phases) for row in rows]) for rows in (before, after)]
    updates = [mean([row["update"] for row in rows]) for rows in (before, after)]
    beside = [row["update"] for row in before]
    alone = mean([row["experience"] + row["sync"] for row in before])
    return {"in_turns_s": sides[0], "one_ahead_s": sides[1], "predicted_s": one_ahead([r["rollout"] for r in before],
            beside, alone), "stretched": updates[1] / updates[0], "gain": sides[0] / sides[1]}  # fmt: skip


def main(words: Sequence[str]) -> None:
    if words:
        print(json.dumps({k: round(v, 3) for k, v in compare(Path(words[0]), Path(words[1])).items()}))
        return
    base = Cluster()
    for sigma in (0.0, 0.5, 1.0):
        for engines in (32, 64, 128, 256):
            figures = simulate(replace(base, sigma=sigma, engines=engines))
            print(f"| {sigma} | {engines} | " + " | ".join(f"{v:.1f}" for v in list(figures.values())[:-1])
                  + f" | {figures['gain']:.2f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
