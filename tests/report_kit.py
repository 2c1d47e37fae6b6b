"""A run as it lies on disk, written by hand: small, whole, and with figures that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HOSTILE = "</script><script>window.stolen=1</script><img src=x onerror='window.stolen=1'><!-- \0 \ud800 & \u2028 end"
SHARED = {"model": {"dtype": "float32"}, "rewards": {"grid": {"weight": 1.0}}, "generate": {"canary_tolerance": None}}


def write_stage(
    root: Path,
    name: str,
    *,
    kind: str | None = None,
    parents: tuple[str, ...] = (),
    seed: int = 1,
    block: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    steps: list[dict[str, Any]] | None = None,
    rollouts: list[dict[str, Any]] | None = None,
    shared: dict[str, Any] | None = None,
    complete: bool = True,
    tokens: int = 0,
) -> Path:
    place = root / name
    place.mkdir(parents=True, exist_ok=True)
    for file, rows in (("metrics.jsonl", steps), ("rollouts.jsonl", rollouts)):
        if rows is not None:
            (place / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if complete:
        manifest = {
            "stage": name,
            "status": "complete",
            "parents": dict.fromkeys(parents, "0" * 64),
            "seed": seed,
            "config": {"seed": seed, "stage": {"kind": kind or name, **(block or {})}, **SHARED, **(shared or {})},
            "inputs": {},
            "outputs": {"model/x": "ab" * 32},
            "metrics": metrics or {},
            "git": "c" * 40,
            "versions": {"torch": "2.13.0"},
            "tokens": {"prompt": tokens, "completion": tokens},
            "wall_s": 12.5,
        }
        (place / "manifest.json").write_text(json.dumps(manifest))
    return place


def rollout(
    prompt: str, completion: str, *, reward: float | None = 1.0, status: str = "pass", **more: Any
) -> dict[str, Any]:
    ids = list(range(len(completion) % 7 + 1))
    return {
        "prompt": prompt,
        "prompt_index": 0,
        "prompt_ids": [1],
        "task": {"gold": "42"},
        "sample": 0,
        "completion": completion,
        "ids": ids,
        "logprobs": [-0.5] * len(ids),
        "finished": True,
        "reward": reward,
        "status": status,
        "parts": {"grid": reward},
        "detail": "",
        "stage": "x",
        **more,
    }


def judged(policy: str, share: float, *, prompts: int = 20, samples: int = 4) -> list[dict[str, Any]]:
    """Samples of which `share` pass, the same share at every prompt."""
    good = round(share * samples)
    return [
        rollout(
            f"p{p}",
            f"{policy}{i}",
            reward=float(i < good),
            status="pass" if i < good else "fail",
            policy=policy,
            sample=i,
        )
        for p in range(prompts)
        for i in range(samples)
    ]


def figures(accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "heldout_accuracy": accuracy,
        "heldout_accuracy_ci95": [accuracy - 0.05, accuracy + 0.05],
        "pass_at_4": 0.9,
        "heldout_reward": accuracy,
        "entropy": 0.5,
        "distinct_answers": 3.0,
        "mean_completion_tokens": 5.0,
        "malformed_share": 0.0,
        **more,
    }


def write_run(root: Path, *, hostile: str = "") -> Path:
    """base -> sft -> {feedme, grpo, conditioned} -> evaluate, and a stage that was killed."""
    loop = [
        {
            "step": i + 1,
            "reward_mean": i / 30,
            "kl_sequence": i / 10,
            "entropy": 1 - i / 40,
            "length_mean": 5.0,
            "canary_max_abs": 1e-6,
            "mismatch_mean_abs": 0.08 if i == 7 else 0.001,
            "checker_broken": 0.0,
            "malformed": 0.0,
            "truncated": 0.0,
            "groups_with_signal": 0.5,
            "monitor_train": i / 30,
            "monitor_strict": i / 40,
            "monitor_gap_rise": i / 120,
        }
        for i in range(30)
    ]
    rounds = [figures(0.4 + 0.1 * i, kept=100, sampled=800) for i in range(3)]
    curve = [
        {
            "asked": i,
            "label": f"<{i}> ",
            "obtained": 0.1 + 0.2 * i,
            "ci95": [0.2 * i, 0.2 + 0.2 * i],
            "n": 80,
            "accuracy": 0.2 * i,
        }
        for i in range(4)
    ]
    write_stage(root, "base", metrics=figures(0.0))
    write_stage(
        root,
        "sft",
        parents=("base",),
        metrics=figures(0.5),
        block={"trainer": {"max_steps": 40}},
        steps=[{"part": "sft", "step": 10 * i, "loss": 2 - i / 5} for i in range(1, 6)],
    )
    write_stage(
        root,
        "feedme",
        parents=("sft",),
        metrics={**figures(0.75), "rounds": rounds, "random_control_rounds": rounds, "random_control_accuracy": 0.41},
        tokens=1000,
        rollouts=[rollout(f"t{i % 9}", f"RU{i}", round=i // 30) for i in range(90)],
    )
    write_stage(
        root,
        "grpo",
        parents=("sft",),
        metrics=figures(0.7, generator="vllm"),
        steps=loop,
        tokens=2000,
        block={"alarms": {"mismatch_mean_abs": 0.1}, "steps": 30},
        rollouts=[
            rollout(f"t{i % 9}", f"LD{i}", step=i // 6, advantages=0.25, kl=[0.125] * (len(f"LD{i}") % 7 + 1))
            for i in range(180)
        ],
    )
    write_stage(
        root,
        "conditioned",
        parents=("sft",),
        metrics={**figures(0.5), "control_curve": curve, "shuffled_curve": curve, "top_bin_accuracy": 0.6},
    )
    samples = judged("sft", 0.5) + judged("feedme", 0.75) + judged("grpo", 0.5)
    samples += [rollout("p0", hostile, status="malformed", reward=0.0, policy="sft", detail=hostile)] if hostile else []
    rows = [{"policy": n, **figures(a)} for n, a in (("base", 0.0), ("sft", 0.5), ("feedme", 0.75), ("grpo", 0.5))]
    write_stage(
        root,
        "evaluate",
        parents=("sft", "feedme", "grpo"),
        rollouts=samples,
        metrics={"policies": rows, "best_policy": "feedme"},
    )
    write_stage(root, "ppo", complete=False, steps=loop[:5])
    return root
