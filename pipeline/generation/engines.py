"""The engines of this process: one per backend and architecture, opened once and shared by the stages."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from pipeline.config.load import ConfigError
from pipeline.config.schema import Generate, Model
from pipeline.distributed import ranks
from pipeline.generation.generator import Generator
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.generation.ray_data import RayGenerator
from pipeline.generation.vllm_engine import VllmGenerator, preload_vllm
from pipeline.generation.vllm_server import ServedGenerator
from pipeline.models import families
from pipeline.models.models import architecture_key, load_policy, named_weights
from pipeline.models.precision import precision_of

_open: dict[tuple[str, ...], Generator] = {}
_on_lost: dict[tuple[str, ...], Callable[[], None]] = {}  # notifies whoever an open engine's weights belong to


def close_generators() -> None:
    """Close all engines and free their memory."""
    for notify in _on_lost.values():
        notify()
    _open.clear()
    _on_lost.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def open_generator(
    model_dir: str,
    model: Model,
    generate: Generate,
    *,
    max_model_len: int,
    on_lost: Callable[[], None] = lambda: None,
    weights: Callable[[], Iterable[tuple[str, torch.Tensor]]] | None = None,
) -> Generator:
    """A generator holding the weights at model_dir. One engine per process and architecture: stages share
    it by syncing.

    on_lost: called when the engine gets another caller's weights or is closed; until then it holds this caller's.
    weights: those to load instead. Raises ConfigError if the named backend is not available.
    """
    # `auto` is one precision here: an engine would read it in its own way
    precision: Any = str(precision_of(model_dir, model)).removeprefix("torch.")
    model = replace(model, dtype=precision)
    backend = backend_for(model_dir, model, generate)
    key = (backend, architecture_key(model_dir, model), repr(generate), repr(model), str(max_model_len))
    known = _open.get(key)
    if known is not None:
        _on_lost.pop(key)()
        _on_lost[key] = on_lost
        known.sync(weights() if weights else checkpoint_weights(model_dir, model))
        return known
    if backend == "vllm":
        started = time.monotonic()
        try:
            generator: Generator = VllmGenerator(model_dir, model, generate, max_model_len=max_model_len)
        except Exception as exc:
            if generate.backend == "vllm" or ranks.world() > 1:  # ranks with different engines would disagree
                raise
            print(f"generator: vLLM could not start ({cause_of(exc)}); using transformers")
            generator = TransformersGenerator(model_dir, model, generate)
        else:
            print(f"generator: vLLM ready in {time.monotonic() - started:.1f} s")
    elif backend == "vllm_server":
        generator, weights = (
            ServedGenerator(model_dir, generate),
            weights or (lambda: checkpoint_weights(model_dir, model)),
        )
    elif backend == "ray":
        generator = RayGenerator(model_dir, model, generate, max_model_len=max_model_len)
    else:
        generator = TransformersGenerator(model_dir, model, generate)
    if weights:
        generator.sync(weights())
    _open[key], _on_lost[key] = generator, on_lost
    return generator


def checkpoint_weights(model_dir: str, model: Model) -> Iterable[tuple[str, torch.Tensor]]:
    return named_weights(load_policy(model_dir, model))


def backend_for(model_dir: str, model: Model, generate: Generate) -> str:
    """`choose_backend`, but transformers where vLLM is known to compute another model than the trainer.

    Raises ConfigError where the YAML names vLLM itself.
    """
    backend = choose_backend(generate)
    config = families.read_config(model_dir)
    if backend != "vllm" or config is None or torch.cuda.is_available():
        return backend
    why = families.why_not_vllm_on_cpu(config, model.dtype)
    if why is None:
        return backend
    family = families.family_of(config)
    if generate.backend == "vllm":
        raise ConfigError([f"generate.backend: vllm cannot run {family} here: {why}; use backend: transformers"])
    if family not in _printed:
        _printed.add(family)
        print(f"generator: transformers, not vLLM, for {family}: {why}")
    return "transformers"


def cause_of(exc: BaseException) -> str:
    """The line of an engine's error that says what is wrong: not a count of errors, not a link to a website."""
    lines = [line.strip() for line in str(exc).splitlines()]
    causes = [line for line in lines if line and "validation error" not in line and "http" not in line]
    cause = (causes or [type(exc).__name__])[0].partition(" [type=")[0]
    return cause.removeprefix("Value error, ").removeprefix("Assertion failed, ")[:200]


_printed: set[str] = set()


def choose_backend(generate: Generate) -> str:
    """The engine to open: the one named; `auto` is vLLM where installed. Raises ConfigError where it is missing."""
    if generate.backend in ("transformers", "vllm_server", "ray"):
        return generate.backend
    if importlib.util.find_spec("vllm") is not None:
        return "vllm"
    if generate.backend == "vllm":
        raise ConfigError(["generate.backend: vllm is not installed; `make doctor` says why, or choose transformers"])
    if "no vllm" not in _printed:
        _printed.add("no vllm")
        print("generator: vLLM is not installed; using transformers, which is slower on long completions")
    return "transformers"


def model_len(model_dir: str, needed: int, *, wanted: int = 0) -> int:
    """The engine's context: the model's own where it is small, else what is needed or wanted, in steps of 256.

    wanted: what may be needed as well, as for observations of unknown length; it is cut to what the model has.
    Raises ConfigError where what is needed is more than the model has.
    """
    from transformers import PreTrainedConfig

    config, _ = PreTrainedConfig.get_config_dict(model_dir)  # of a directory or of the Hub
    limit = config.get("text_config", config).get("max_position_embeddings") or 4096
    if needed > limit:
        raise ConfigError([f"sampling.max_tokens: prompts and completions need {needed} tokens; the model has {limit}; "
                           "lower it, or raise model.tiny.max_position_embeddings of a tiny model"])  # fmt: skip
    return limit if limit <= 2048 else min(limit, -(-max(needed, wanted) // 256) * 256)


def preload(generate: Generate) -> None:
    """Import what the generator needs, before a server process forks."""
    if choose_backend(generate) == "vllm":
        preload_vllm()
