"""Ray Data as the generator: distributes a round's sampling over a Ray cluster, with a vLLM engine for each share.

For stages that sample much at once (FeedME, conditions, evaluate). Ray starts its engines for each call and stops them
afterwards, so PPO and GRPO use `vllm_server` instead. Ray Data distributes rows, feeds engines as they become free, and
repeats the share of a node that died; this module only builds its requests and reads its results. Batch composition
depends on arrival order, so repeating a round does not give bitwise identical results.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config.install_hint import install_command
from pipeline.config.load import ConfigError
from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation.generator import OnDone, Request, Sample
from pipeline.generation.vllm_engine import (
    cache_options,
    engine_options,
    once_where_tied,
    prepare_vllm_environment,
    sampling_fields,
)
from pipeline.generation.vllm_server import SharedWeights, gather_for
from pipeline.models.model_dir import is_local

SENT = ("VLLM_", "HF_", "TORCH", "OMP_")  # environment variables with these prefixes are passed to the engines


class RayGenerator:
    """`generate.ray` holds fields of ray.data.llm's vLLMEngineProcessorConfig (concurrency, batch_size,
    accelerator_type, placement_group_config, ...), `generate.vllm` its engine_kwargs; RAY_ADDRESS names a running
    cluster."""

    name = "ray"

    def __init__(self, model_dir: str, model: Model, generate: Generate, *, max_model_len: int) -> None:
        self.model_source = str(Path(model_dir).resolve()) if is_local(model_dir) else model_dir
        self.checkpoints = SharedWeights(model_dir, generate.weights_dir)
        self.options = {**engine_options(model, max_model_len=max_model_len), **cache_options(), **generate.vllm}
        self.fields: dict[str, Any] = {"batch_size": 64, "concurrency": 1, "log_engine_metrics": False, **generate.ray}
        if not torch.cuda.is_available():
            self.fields.setdefault("placement_group_config", {"bundles": [{"CPU": 1}]})
        prepare_vllm_environment()
        _join_cluster()

    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        on_done: OnDone | None = None,
    ) -> list[Sample]:
        requests_and_fields = [
            (list(r.ids), {**sampling_fields(r, sampling, stop_token_ids), "seed": r.seed % 2**63}) for r in requests
        ]
        out = []
        for index, row in enumerate(self._processed(requests_and_fields)):
            ids = tuple(int(i) for i in row["generated_tokens"])
            logprobs = tuple(float(at[i]["logprob"]) for at, i in zip(row["logprobs"], ids, strict=True))
            out.append(Sample(ids, logprobs, finished=bool(ids) and ids[-1] in stop_token_ids))
            if on_done is not None:
                on_done(index, out[-1])
        return out

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        fields = {"max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0, "detokenize": False}
        rows = self._processed([(list(ids), fields) for ids in sequences])
        return [
            [float(at[token]["logprob"]) for at, token in zip(row["prompt_logprobs"][1:], ids[1:], strict=True)]
            for row, ids in zip(rows, sequences, strict=True)
        ]

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        once = once_where_tied(weights, ())  # a new engine adds the second name itself
        self.model_source = str(gather_for(self.checkpoints.write, once))

    def _processed(self, requests: Sequence[tuple[list[int], dict[str, Any]]]) -> list[dict[str, Any]]:
        """vLLM's results in the order of the requests: (token ids, fields of SamplingParams)."""
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        try:
            config = vLLMEngineProcessorConfig(
                model_source=self.model_source, engine_kwargs=self.options, chat_template_stage=False,
                tokenize_stage=False, detokenize_stage=False, **self.fields,
            )  # fmt: skip
        except (ValueError, TypeError) as exc:
            raise ConfigError([f"generate.ray: {' '.join(str(exc).split())[:300]}"]) from exc
        processor = build_processor(config, preprocess=_request, postprocess=_answer)
        rows = ray.data.from_items(
            [{"request_index": i, "ids": ids, "fields": f} for i, (ids, f) in enumerate(requests)]
        )
        found = {row["request_index"]: row for row in processor(rows).take_all()}
        if len(found) != len(requests):
            raise RuntimeError(f"Ray Data answered {len(found)} of {len(requests)} requests")
        return [found[i] for i in range(len(requests))]


def _request(row: dict[str, Any]) -> dict[str, Any]:
    return {"tokenized_prompt": row["ids"], "sampling_params": row["fields"], "request_index": row["request_index"]}


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row.get(name) for name in ("request_index", "generated_tokens", "logprobs", "prompt_logprobs")}


def _join_cluster() -> None:
    """Join the cluster at RAY_ADDRESS, or start one on this machine. Raises ConfigError if Ray is not available."""
    try:
        import ray
    except ImportError as exc:
        command = install_command("'ray[data]'")
        raise ConfigError([f"generate.backend: ray is not installed; {command}"]) from exc
    if ray.is_initialized():
        return
    sent = {name: value for name, value in os.environ.items() if name.startswith(SENT)}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=os.environ.get("RAY_ADDRESS"), log_to_driver=False, logging_level=logging.ERROR,
            runtime_env={"env_vars": sent},
        )  # fmt: skip
    except (ConnectionError, RuntimeError) as exc:
        where = os.environ.get("RAY_ADDRESS", "this machine")
        raise ConfigError([f"generate.backend: no Ray cluster at {where}: {' '.join(str(exc).split())[:200]}"]) from exc
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray replaces the handler, but a stage must save before it ends
    ray.data.DataContext.get_current().enable_progress_bars = False


__all__ = ["RayGenerator"]
