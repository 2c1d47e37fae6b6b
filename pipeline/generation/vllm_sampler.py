"""vLLM's sampler for seeded requests, drawn together: one uniform number per request and step, through the inverse CDF.

vLLM draws vocabulary-many exponentials for each seeded request, one request after the other: with 262,144 tokens more
than half of a decoding step on CPU. `install` replaces three methods of one engine's sampler:

- the whole sampler, where every request is seeded and samples at a temperature without filters or penalties: log-probs
  and token come of one pass, and no (B, V) log-softmax is made;
- the draw after top-k, top-p, min-p and penalties, where every request is seeded;
- the log-probs of given tokens, as the canary and a teacher need them: the rank of each token in the vocabulary, which
  took a third of the canary's time in the engine, is not computed, as it is not in the first.

Anything else (a greedy or an unseeded request in the batch, bad words, log-probs of more tokens) takes vLLM's own way.
The replaced methods are vLLM's internals, so `install` first checks that they look as they did where this was tested;
where not, it changes nothing and says so: seeded requests then are as slow as they were, and draw other samples.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.generation.seeded_sampler import draw, uniforms

FORWARD = ["logits", "sampling_metadata", "predict_bonus_token", "logprobs_mode_override"]
FILTERED = ["logits", "generators", "k", "p"]
GATHER = ["logprobs", "num_logprobs", "token_ids"]
FIELDS = {
    "temperature", "all_greedy", "all_random", "top_p", "top_k", "generators", "max_num_logprobs", "no_penalties",
    "prompt_token_ids", "frequency_penalties", "presence_penalties", "repetition_penalties", "output_token_ids",
    "allowed_token_ids_mask", "bad_words_token_ids", "logitsprocs", "logprob_token_ids", "spec_token_ids",
    "thinking_budget_state_holder",
}  # fmt: skip


def install(worker: Any) -> str:
    """Replace the methods of this worker's sampler; "" or why not. To be called by `LLM.collective_rpc`."""
    reason = unknown_internals(worker)
    if not reason:
        sampler = worker.model_runner.sampler
        sampler.forward = seeded_forward(sampler.forward)
        sampler.gather_logprobs = unranked(sampler.gather_logprobs)
        filtered = sampler.topk_topp_sampler
        filtered.forward = seeded_filtered(filtered.forward)
    return reason


def unknown_internals(worker: Any) -> str:
    """What differs from the vLLM this was tested with; "" if nothing does. A field that is new may change sampling."""
    sampler = getattr(getattr(worker, "model_runner", None), "sampler", None)
    filtered = getattr(sampler, "topk_topp_sampler", None)
    if sampler is None or filtered is None:
        return "the model runner has no sampler of the known kind"
    from vllm.v1.sample.metadata import SamplingMetadata

    for name, owner, method, known in (
        ("Sampler.forward", sampler, "forward", FORWARD),
        ("Sampler.gather_logprobs", sampler, "gather_logprobs", GATHER),
        ("TopKTopPSampler.forward", filtered, "forward", FILTERED),
    ):
        if list(inspect.signature(getattr(owner, method, lambda: None)).parameters) != known:
            return f"{name} takes other arguments"
    changed = sorted({f.name for f in dataclasses.fields(SamplingMetadata)} ^ FIELDS)
    if changed:
        return f"SamplingMetadata differs in {', '.join(changed)}"
    if sampler.logprobs_mode != "processed_logprobs":
        return f"logprobs_mode is {sampler.logprobs_mode}"
    return ""


def seeded_forward(own: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's `Sampler.forward`, with a way of its own for batches that are `plain`."""

    def forward(
        logits: Tensor, sampling_metadata: Any, predict_bonus_token: bool = False, logprobs_mode_override: Any = None
    ) -> Any:
        if predict_bonus_token or logprobs_mode_override or not plain(sampling_metadata, len(logits)):
            return own(logits, sampling_metadata, predict_bonus_token, logprobs_mode_override)
        from vllm.v1.outputs import LogprobsTensors, SamplerOutput

        ids_B, logprobs_B = draw(logits, _uniforms(sampling_metadata.generators), sampling_metadata.temperature)
        ids_B1 = ids_B.to(torch.int32)[:, None]
        logprobs = None
        if sampling_metadata.max_num_logprobs is not None:
            # the rank of the sampled token, for which one more pass would be needed, is not computed
            logprobs = LogprobsTensors(ids_B1, logprobs_B[:, None], torch.zeros_like(ids_B))
        return SamplerOutput(sampled_token_ids=ids_B1, logprobs_tensors=logprobs)

    return forward


def seeded_filtered(own: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's `TopKTopPSampler.forward`: filters as they are, log-probs too, and another draw."""

    def forward(
        logits: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if set(generators) != set(range(len(logits))):
            return own(logits, generators, k, p)
        from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

        filtered_BV = apply_top_k_top_p(logits, k, p)
        ids_B, _ = draw(filtered_BV, _uniforms(generators))
        return ids_B, filtered_BV.log_softmax(dim=-1, dtype=torch.float32)

    return forward


def unranked(own: Callable[..., Any]) -> Callable[..., Any]:
    """vLLM's `Sampler.gather_logprobs`; where only the given tokens' log-probs are requested, their ranks are 0."""

    def gather_logprobs(logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> Any:
        if num_logprobs:
            return own(logprobs, num_logprobs, token_ids)
        from vllm.v1.outputs import LogprobsTensors

        ids_T1 = token_ids[:, None]
        return LogprobsTensors(ids_T1.to(torch.int32), logprobs.gather(-1, ids_T1), torch.zeros_like(token_ids))

    return gather_logprobs


def plain(metadata: Any, rows: int) -> bool:
    """Whether every row is seeded and nothing but the temperature changes its distribution."""
    return bool(
        metadata.all_random
        and metadata.temperature is not None
        and set(metadata.generators) == set(range(rows))
        and metadata.top_k is None
        and metadata.top_p is None
        and metadata.max_num_logprobs in (None, 0)
        and metadata.no_penalties
        and metadata.allowed_token_ids_mask is None
        and not metadata.bad_words_token_ids
        and not metadata.logprob_token_ids
        and not any(metadata.spec_token_ids or ())
        and not any(_active(p) for p in metadata.logitsprocs.all)
        and not (metadata.thinking_budget_state_holder and metadata.thinking_budget_state_holder.has_tracked_requests())
    )


def _active(processor: Any) -> bool:
    """Whether one of vLLM's logits processors has a request to work on; one that is not known may."""
    for name in ("min_p_count", "biases", "min_toks"):
        if hasattr(processor, name):
            return bool(getattr(processor, name))
    return True


def _uniforms(generators: dict[int, torch.Generator]) -> Tensor:
    return uniforms([generators[row] for row in range(len(generators))])
