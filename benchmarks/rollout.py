"""Our generator against bare `vllm.LLM.generate` on the same engine and the same requests.

Ours builds requests with one seed each, and rollouts with ids, log-probs and text. The bare call gets prepared requests
and its outputs are not processed. `plain` is a bare call without seeds and log-probs, which shows what they cost.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import in_turns
from benchmarks.workload import Workload

WORK = Workload()


def run(rounds: int = 7) -> dict[str, Any]:
    from vllm import SamplingParams, TokensPrompt

    from benchmarks.engine import open_engine, prompts_of
    from pipeline.config.schema import Sampling
    from pipeline.generation.generator import rollouts
    from pipeline.models.models import end_ids
    from pipeline.seeds import derive

    with tempfile.TemporaryDirectory() as folder:
        generator, _, tokenizer = open_engine(Path(folder), WORK)
        prompts = prompts_of(Path(folder), tokenizer, WORK.prompts)
        sampling, ends = Sampling(max_tokens=WORK.max_tokens), end_ids(tokenizer)
        common: dict[str, Any] = {"max_tokens": WORK.max_tokens, "stop_token_ids": sorted(ends), "detokenize": False}
        asked = [TokensPrompt(prompt_token_ids=list(p.ids)) for p in prompts for _ in range(WORK.samples)]
        seeded = [
            SamplingParams(seed=derive("bench", place, sample), logprobs=0, **common)
            for place in range(WORK.prompts)
            for sample in range(WORK.samples)
        ]
        tokens = 0

        def ours() -> None:
            nonlocal tokens
            drawn = rollouts(
                generator,
                prompts,
                sampling,
                samples=WORK.samples,
                key=("bench",),
                tokenizer=tokenizer,
                stop_token_ids=ends,
            )
            tokens = sum(len(r.ids) for r in drawn)

        def bare() -> None:
            answers = generator.llm.generate(asked, seeded, use_tqdm=False)
            assert tokens in (0, sum(len(a.outputs[0].token_ids) for a in answers)), "the requests are not the same"

        def plain() -> None:
            generator.llm.generate(asked, SamplingParams(**common), use_tqdm=False)

        spent = in_turns({"ours": ours, "bare": bare, "plain": plain}, rounds=rounds, warmup=2)
    return {
        "ratios": {"rollout_vs_vllm": spent["bare"]["cpu"] / spent["ours"]["cpu"]},
        "wall_ratio": spent["bare"]["wall"] / spent["ours"]["wall"],
        "seconds": spent,
        "tokens": tokens,
    }
