"""Metrics of the judge stages -> the comparison's table, traits and sentences. Pure: numbers in, numbers and text out.

Every interval is `crossed_difference`: prompts resampled in pairs, widened by the spread over seeds. A difference
between two methods is reported only if it survives Holm's correction for the number of pairs tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from pipeline.stats import Difference, crossed_difference, holm, is_judged, mean

Judged = Mapping[str, Any]  # the metrics of a judge stage; one per seed
LEVEL = 0.05
RESAMPLES = 4000
OVER = 1.05  # a method that sampled more than this multiple of the budget is marked
KEPT = ("heldout_reward", "pass_at", "kl_from_start", "entropy", "distinct_answers", "mean_completion_tokens",
        "best_answer_mass", "malformed_share", "sampled_tokens", "learned_tokens", "wall_s")  # fmt: skip


def measure(judged: Sequence[Judged]) -> str:
    """What policies are compared by: "reward" where no part of the rewards says right or wrong, else "accuracy"."""
    return "accuracy" if all(is_judged(row) for one in judged for row in one["policies"]) else "reward"


def values_of(judged: Sequence[Judged], method: str) -> list[list[float]]:
    """(S, P): the measure per seed and prompt; the prompts of `comparable`, always in the same order."""
    shared, column = comparable(judged), f"{measure(judged)}_by_prompt"
    out = []
    for one in judged:
        row = next(r for r in one["policies"] if r["policy"] == method)
        out.append([v for p, v in sorted(zip(one["prompts"], row[column], strict=True)) if p in shared])
    return out


def comparable(judged: Sequence[Judged]) -> set[str]:
    """The prompts for which every policy under every seed has a scorable sample: the same set for all comparisons.

    Raises ValueError if there are none.
    """
    shared = set.intersection(*({*j["prompts"]} for j in judged))
    for one in judged:
        for row in one["policies"]:
            values = row["accuracy_by_prompt"]
            shared -= {p for p, v in zip(one["prompts"], values, strict=True) if v is None or math.isnan(v)}
    if not shared:
        raise ValueError("no held-out prompt has a scorable sample of every policy under every seed")
    return shared


def table(judged: Sequence[Judged], methods: Mapping[str, str], start: str, budget: int) -> list[dict[str, Any]]:
    """One row per policy, means over seeds. methods: name -> role (start, method, control of ..., drawn once ...)."""
    rows = []
    before, by = values_of(judged, start), measure(judged)
    for name, role in methods.items():
        found = [next(r for r in j["policies"] if r["policy"] == name) for j in judged]
        values = values_of(judged, name)
        level = crossed_difference(values, [[0.0] * len(v) for v in values], key=name)
        gain = crossed_difference(values, before, key=f"{name}-{start}")
        interval = within_unit(level) if by == "accuracy" else [level.low, level.high]
        row: dict[str, Any] = {"method": name, "role": role, by: level.mean, "ci95": interval,
                               "by_seed": [mean(v) for v in values], "gain": as_json(gain)}  # fmt: skip
        for figure in KEPT:
            row[figure] = averaged([f[figure] for f in found])
        row["flops"] = mean([flops(f, j["parameters"]) for f, j in zip(found, judged, strict=True)])
        row["over_budget"] = row["sampled_tokens"] > OVER * budget
        rows.append(row)
    return rows


def within_unit(d: Difference) -> list[float]:
    """Clip the interval of a share to its bounds, which a Student t ignores."""
    return [max(d.low, 0.0), min(d.high, 1.0)]


def averaged(values: Sequence[Any]) -> Any:
    if isinstance(values[0], list):
        return [mean(column) for column in zip(*values, strict=False)]
    return mean([float(v) for v in values])


def flops(row: Mapping[str, Any], parameters: int) -> float:
    """2 N per token read or sampled, 6 N per trained token (arXiv:2001.08361 §2.1); attention scores not counted."""
    return parameters * (2.0 * row["forward_tokens"] + 6.0 * row["learned_tokens"])


def as_json(d: Difference) -> dict[str, float]:
    return {"mean": d.mean, "low": d.low, "high": d.high, "p": d.p}


def best_of_rows(judged: Sequence[Judged], sizes: Sequence[int], start: str) -> list[dict[str, Any]]:
    """Rows of the table for best-of-n at test time: nothing is trained, and every answer costs n samples. None where
    policies are compared by the reward, since the reward also chooses the best."""
    out: list[dict[str, Any]] = []
    if measure(judged) == "reward":
        return out
    before = values_of(judged, start)
    shared = comparable(judged)
    for n in sizes:
        found = [next((b for b in j["best_of"]["gold"] if b["n"] == n), None) for j in judged]
        if any(f is None for f in found):
            continue
        values = [[v for p, v in sorted(zip(j["prompts"], f["accuracy_by_prompt"], strict=True)) if p in shared]
                  for j, f in zip(judged, found, strict=True) if f is not None]  # fmt: skip
        level = crossed_difference(values, [[0.0] * len(v) for v in values], key=f"best-of-{n}")
        out.append({"method": f"best of {n}", "role": "test time", "accuracy": level.mean,
                    "ci95": within_unit(level), "by_seed": [mean(v) for v in values],
                    "gain": as_json(crossed_difference(values, before, key=f"best-of-{n}-start")),
                    "kl_from_start": mean([f["kl"] for f in found if f]), "samples_an_answer": n})  # fmt: skip
    return out


def pairs(judged: Sequence[Judged], methods: Sequence[str]) -> list[dict[str, Any]]:
    """For every pair of methods: the difference, its interval, and p with Holm's correction over all pairs.

    The correction multiplies the smallest p by the number of pairs, and a bootstrap's smallest p is one over its number
    of resamples: where p may still count after the correction, it is taken again from as many as that needs.
    """
    both = list(combinations(methods, 2))

    def difference(a: str, b: str, resamples: int) -> Difference:
        return crossed_difference(values_of(judged, a), values_of(judged, b), key=f"{a}-{b}", resamples=resamples)

    found = [(a, b, difference(a, b, RESAMPLES)) for a, b in both]
    if 100 * len(both) > RESAMPLES:
        found = [(a, b, difference(a, b, 100 * len(both)) if d.p * len(both) < 1 else d) for a, b, d in found]
    adjusted = holm([d.p for *_, d in found])
    return [{"a": a, "b": b, **as_json(d), "p_holm": p, "significant": p < LEVEL}
            for (a, b, d), p in zip(found, adjusted, strict=True)]  # fmt: skip


def against(judged: Sequence[Judged], twins: Mapping[str, str]) -> list[dict[str, Any]]:
    """A method compared with its control, or with its drawn-once variant: method - twin."""
    out = []
    for method, twin in twins.items():
        d = crossed_difference(values_of(judged, method), values_of(judged, twin), key=f"{method}-{twin}")
        out.append({"method": method, "twin": twin, **as_json(d), "significant": d.p < LEVEL})
    return out


def trajectory(metrics: Sequence[Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Evaluation passes on the held-out prompts during training: at steps of a loop, or after rounds of a chain."""
    looks = [r for r in metrics if "heldout_accuracy" in r] or list(rounds)
    names = {"sampled_tokens": "tokens", "heldout_accuracy": "accuracy", "heldout_reward": "reward", "heldout_kl": "kl",
             "best_answer_mass": "best_answer_mass", "heldout_train_reward": "proxy"}  # fmt: skip
    return [{short: float(r[n]) for n, short in names.items() if r.get(n) is not None} for r in looks]


# --- text -------------------------------------------------------------------------------------------------------


def sentence(
    row: Mapping[str, Any],
    all_pairs: Sequence[Mapping[str, Any]],
    controls: Sequence[Mapping[str, Any]],
    once: Sequence[Mapping[str, Any]],
    *,
    start: str,
    seeds: int,
) -> str:
    """A sentence about a method that claims no more than the data support."""
    name, gain = row["method"], row["gain"]
    by = measure_of(row)
    low, high = (shown(by, x) for x in row["ci95"])
    parts = [
        f"{name} reaches {'' if by == 'accuracy' else 'a mean reward of '}{shown(by, row[by])} (95% {low} to {high})"
    ]
    sampled = row["sampled_tokens"]
    parts.append(
        verdict(by, gain, start)
        + (f", after {sampled / 1000:.0f} k sampled tokens" if sampled else ", without sampling")
    )
    for control in (c for c in controls if c["method"] == name):
        parts.append(verdict(by, control, f"its control {control['twin']}"))
    for twin in (t for t in once if t["method"] == name):
        parts.append(f"fresh samples gain {gap(by, twin['mean'])} over samples drawn once "
                     f"({between(by, twin)}{'' if twin['significant'] else ', not significant'})")  # fmt: skip
    ranks = zip(("above", "below", "no significant difference from"), standing(name, all_pairs), strict=True)
    parts += [f"{words} {listed(others)}" for words, others in ranks if others]
    caution = "" if seeds > 1 else " One seed: how much another training run would differ is unknown."
    return "; ".join(parts) + "." + caution


def verdict(by: str, d: Mapping[str, float], other: str) -> str:
    difference = f"{gap(by, d['mean'])} ({between(by, d)})"
    if d["low"] > 0 or d["high"] < 0:
        return f"{difference} against {other}"
    return f"no significant difference from {other}: {difference}"


def between(by: str, d: Mapping[str, float]) -> str:
    low, high = (gap(by, d[end]).removesuffix(" points") for end in ("low", "high"))
    return f"{low} to {high}"


def standing(name: str, all_pairs: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    above: list[str] = []
    below: list[str] = []
    unclear: list[str] = []
    for pair in all_pairs:
        if name not in (pair["a"], pair["b"]):
            continue
        other, gap = (pair["b"], pair["mean"]) if pair["a"] == name else (pair["a"], -pair["mean"])
        (unclear if not pair["significant"] else above if gap > 0 else below).append(other)
    return above, below, unclear


def measure_of(row: Mapping[str, Any]) -> str:
    """What a row of the table is compared by, as `measure`."""
    return "accuracy" if "accuracy" in row else "reward"


def shown(by: str, x: float) -> str:
    return f"{100 * x:.1f}%" if by == "accuracy" else f"{x:.3f}".replace("-", "−")


def gap(by: str, x: float) -> str:
    return (f"{100 * x:+.1f} points" if by == "accuracy" else f"{x:+.3f}").replace("-", "−")


def markdown(rows: Sequence[Mapping[str, Any]], start: str) -> str:
    """The table in Markdown: what each policy reached over the seeds, and what it cost."""
    by = measure_of(rows[0])
    head = ["method", "role", f"held-out {by}", "95%", "by seed", f"gain over {start}", "KL, nats", "sampled tokens"]
    lines = [head, ["---"] * len(head)]
    for r in rows:
        gain, sampled = r["gain"], r.get("sampled_tokens")
        own = r["role"] == "start"
        low, high = (shown(by, x) for x in r["ci95"])
        lines.append([r["method"], r["role"], shown(by, r[by]), f"{low} to {high}",
                      " ".join(shown(by, x) for x in r["by_seed"]),
                      "" if own else f"{gap(by, gain['mean']).removesuffix(' points')} ({between(by, gain)})",
                      f"{r['kl_from_start']:.2f}", "" if sampled is None else f"{sampled:,.0f}"])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def overoptimised(name: str, path: Sequence[Mapping[str, float]], *, fall: float = 0.02) -> dict[str, Any]:
    """Where the learned reward diverges from the true one: the KL at which gold peaks, if gold ends lower by at least
    `fall` while the proxy ends higher than at the peak. onset None: no divergence on this path."""
    looks = [p for p in path if {"kl", "proxy", "reward"} <= p.keys()]
    if not looks:
        return {"method": name, "onset": None, "words": f"{name}: both rewards were never evaluated together."}
    peak = max(looks, key=lambda p: p["reward"])
    last = looks[-1]
    parted = last["reward"] < peak["reward"] - fall and last["proxy"] > peak["proxy"]
    words = (f"{name}: the true reward peaks at {peak['reward']:.3f} at a KL of {peak['kl']:.2f} nats and ends at "
             f"{last['reward']:.3f} while the learned one rises from {peak['proxy']:+.2f} to {last['proxy']:+.2f}."
             if parted else
             f"{name}: no over-optimisation up to a KL of {last['kl']:.2f} nats; the true reward ends at "
             f"{last['reward']:.3f}, its highest was {peak['reward']:.3f}.")  # fmt: skip
    return {"method": name, "onset": peak["kl"] if parted else None, "words": words}
