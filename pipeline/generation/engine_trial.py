"""`generate.backend: auto` for a large model without a GPU: both engines sample for a moment, the faster one is kept.

    runs/NAME/engine.json    model that was tried -> engine and the tokens per second of both

One trial per run: what it found is read again by later stages, by a resumed run and for other models that the run
compares, because two engines draw different completions from equal seeds. Delete the file to measure again.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.distributed import ranks
from pipeline.generation.engines import backend_for, close_generators, open_generator
from pipeline.generation.generator import Generator, Request
from pipeline.models.models import architecture_key
from pipeline.run import console
from pipeline.run.files import atomic_write, dump_json

LEAST_BYTES = 100_000_000  # of weights: a smaller model samples sooner than a second engine opens
ROWS, PROMPT_TOKENS, NEW_TOKENS = 64, 32, 8


def faster_backend(
    model_dir: str,
    model: Model,
    generate: Generate,
    *,
    max_model_len: int,
    record: Path,
    least_bytes: int = LEAST_BYTES,
) -> Generate:
    """`generate` with backend transformers where it is the faster of two, else as it is.

    Only `auto` is tried, and only where vLLM is installed and can run the model, on a CPU, in a run of one process,
    with a model directory of at least `least_bytes`.
    """
    if generate.backend != "auto" or torch.cuda.is_available() or ranks.world() > 1:
        return generate
    if weight_bytes(Path(model_dir)) < least_bytes or backend_for(model_dir, model, generate) != "vllm":
        return generate
    key = hashlib.sha256(architecture_key(model_dir, model).encode()).hexdigest()[:12]
    known = json.loads(record.read_text()) if record.is_file() else {}
    if not known:
        known[key] = trial(model_dir, model, generate, max_model_len=max_model_len)
        atomic_write(record, dump_json(known, indent=1) + "\n")
    found = known.get(key) or next(iter(known.values()))
    return replace(generate, backend="transformers") if found["engine"] == "transformers" else generate


def weight_bytes(directory: Path) -> int:
    """Size of the weights at `directory`; 0 where there are none, as for a Hub id that is not a directory."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def trial(model_dir: str, model: Model, generate: Generate, *, max_model_len: int) -> dict[str, Any]:
    """The faster engine, and the tokens per second of each. The engine that is kept stays open, the other is closed."""
    console.say("generate.backend: auto: a trial of both engines with this model ...")
    vocabulary = _vocabulary(model_dir)
    rates: dict[str, float] = {}
    # vLLM last and under `auto`, which is how the stages open it: it stays open if it is kept
    for name, backend in (("transformers", "transformers"), ("vllm", "auto")):
        close_generators()
        chosen = replace(generate, backend=backend)  # type: ignore[arg-type]
        engine = open_generator(model_dir, model, chosen, max_model_len=max_model_len)
        if engine.name != name:  # vLLM could not start, and a line has said why
            return {"engine": engine.name, "tokens_per_s": rates}
        rates[name] = round(tokens_per_s(engine, vocabulary), 1)
        del engine
    best = max(rates, key=lambda name: rates[name])
    if best != "vllm":
        close_generators()
    console.say(f"generate.backend: auto: {best}, {' against '.join(f'{rates[n]:g} ({n})' for n in rates)} tokens/s "
                f"with {ROWS} rows of {NEW_TOKENS} tokens")  # fmt: skip
    return {"engine": best, "tokens_per_s": rates}


def tokens_per_s(engine: Generator, vocabulary: int) -> float:
    """Tokens per second of ROWS samples, NEW_TOKENS each, after a first call that is not measured."""
    rows = [tuple((31 * row + 7 * i) % vocabulary for i in range(PROMPT_TOKENS)) for row in range(ROWS)]
    stop = frozenset({0})  # one token of a large vocabulary: hardly a row is shorter than the others
    engine.sample([Request(ids, 0, 2) for ids in rows], Sampling(), stop)
    started = time.monotonic()
    samples = engine.sample([Request(ids, seed, NEW_TOKENS) for seed, ids in enumerate(rows)], Sampling(), stop)
    return sum(len(sample.ids) for sample in samples) / (time.monotonic() - started)


def _vocabulary(model_dir: str) -> int:
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(model_dir).get_text_config().vocab_size)
