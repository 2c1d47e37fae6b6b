"""Held-out accuracy of a side's current weights, computed by the same code for all sides: sampled at temperature 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.workload import Workload

SAMPLES = 4


def judge(place: Path, model: Any, work: Workload) -> float:
    """Share of samples with full reward on heldout.jsonl, or their mean score, as set by work.judge_by. Does not change
    the side's own random state."""
    import torch
    from transformers import AutoTokenizer

    import verifiers

    verify = verifiers.load(work.verifier, [str(place / "verifiers")]).module.verify
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    rows = [json.loads(line) for line in (place / "heldout.jsonl").read_text().splitlines()]
    asked = tokenizer([r["prompt"] for r in rows], return_tensors="pt", padding=True, padding_side="left")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(work.seed)
        grown = model.generate(
            input_ids=asked["input_ids"], attention_mask=asked["attention_mask"], do_sample=True, temperature=1.0,
            top_k=0, top_p=1.0, max_new_tokens=work.max_tokens, num_return_sequences=SAMPLES, use_cache=True,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    texts = tokenizer.batch_decode(grown[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    tasks = [r["task"] for r in rows for _ in range(SAMPLES)]
    verdicts = [verify(t, task) for t, task in zip(texts, tasks, strict=True)]
    if work.judge_by == "score":
        return sum(v.score for v in verdicts) / len(verdicts)
    return sum(v.status == "pass" for v in verdicts) / len(verdicts)
