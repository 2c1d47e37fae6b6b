"""A real pretrained model (benchmarks/real_model.py): sampling with our seeds against bare, unseeded `LLM.generate`.

8 prompts x 8 samples of 64 new tokens, or of fewer where the machine is slow (real_size.py), all sides in turns on one
engine after a warm-up of 2 tokens; bfloat16 where the processor multiplies it in hardware, else float32. `slow` is our
generator with vLLM's own sampling in place of the inverse CDF. MODEL=path measures another model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from benchmarks.measure import in_turns
from benchmarks.real_size import fitting, speed
from benchmarks.real_step import workload

PROMPTS, SAMPLES, TOKENS = 8, 8, (4, 8, 16, 32, 64)
OPERATIONS = 1.6e9  # per sampled token and side: three times the model's products, for the draw


def run(rounds: int = 1) -> dict[str, Any]:
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    from vllm import SamplingParams, TokensPrompt

    from pipeline.config.schema import Generate, Model, Sampling
    from pipeline.generation.generator import Request
    from pipeline.generation.vllm_engine import VllmGenerator
    from pipeline.models.models import load_tokenizer
    from pipeline.seeds import derive
    from verifiers import word_problems

    work = workload()
    path = work.model_path
    assert path is not None
    per_s = speed(work.dtype)
    tokens = fitting(TOKENS, 3 * rounds * PROMPTS * SAMPLES * OPERATIONS, per_s)
    print(f"  {per_s / 1e9:.0f} GFLOP/s: {tokens} tokens per sample", flush=True)
    settings: Any = {"path": path, "dtype": work.dtype}
    model = Model(**settings)
    tokenizer = load_tokenizer(path, model)
    prompts = [tokenizer(row["prompt"]).input_ids for row in word_problems.generate(PROMPTS, 1)]
    engine = VllmGenerator(path, model, Generate(), max_model_len=512)
    no_end = frozenset({len(tokenizer) - 2})  # a token that is never sampled: all sides sample equally many
    requests: list[Request] = []
    plain: list[SamplingParams] = []

    def sized(count: int) -> None:
        requests[:] = [Request(tuple(ids), derive("real", i, k), count)
                       for i, ids in enumerate(prompts) for k in range(SAMPLES)]  # fmt: skip
        plain[:] = [SamplingParams(max_tokens=count, stop_token_ids=sorted(no_end), ignore_eos=True, detokenize=False)]

    sized(2)
    inputs = [TokensPrompt(prompt_token_ids=list(r.ids)) for r in requests]
    sampled: dict[str, int] = {}

    def ours() -> None:
        samples = engine.sample(requests, Sampling(max_tokens=requests[0].max_tokens), no_end)
        sampled["ours"] = sum(len(s.ids) for s in samples)

    def bare() -> None:
        engine.llm.reset_prefix_cache()
        answers = engine.llm.generate(inputs, plain[0], use_tqdm=False)
        sampled["bare"] = sum(len(a.outputs[0].token_ids) for a in answers)

    def slow() -> None:
        engine.llm.collective_rpc(use_own_sampler)
        try:
            ours()
        finally:
            engine.llm.collective_rpc(use_inverse_cdf)

    sides = {"ours": ours, "bare": bare, "slow": slow}
    in_turns(sides, rounds=1, warmup=0)
    sized(tokens)
    spent = in_turns(sides, rounds=rounds, warmup=0, progress=True)
    return {
        "ratios": {f"real_rollout_vs_{name}": ratio for name, ratio in ratios(spent, "cpu").items()},
        "wall_ratios": ratios(spent, "wall"),
        "seconds": spent,
        "sampled_tokens": sampled,
        "tokens_per_sample": tokens,
        "speed": per_s,
        "dtype": work.dtype,
        "threads": torch.get_num_threads(),
    }


def ratios(spent: Mapping[str, Mapping[str, float]], clock: str) -> dict[str, float]:
    return {name: spent[side][clock] / spent["ours"][clock] for name, side in (("bare", "bare"), ("slow_draw", "slow"))}


def use_own_sampler(worker: Any) -> None:
    sampler = worker.model_runner.sampler
    worker.replaced = (sampler.forward, sampler.topk_topp_sampler.forward)
    del sampler.forward
    sampler.topk_topp_sampler.forward = type(sampler.topk_topp_sampler).forward_cpu.__get__(sampler.topk_topp_sampler)


def use_inverse_cdf(worker: Any) -> None:
    sampler = worker.model_runner.sampler
    sampler.forward, sampler.topk_topp_sampler.forward = worker.replaced
