"""One prepared script for the moment a GPU is at hand: `python -m benchmarks gpu`, at most 8 minutes on a bare machine.

Needs torch, transformers, accelerate and peft; TRL, vLLM and the real model (MODEL=path) are measured where they are
found. Each part writes its figures to results/gpu.json when it ends, so that an interrupted run keeps what it has, and
the others continue when one fails. Without a GPU the same parts run on a small model: a rehearsal, whose figures say
nothing about a GPU.

matrix     bfloat16 matrix products, TFLOP/s: the ceiling that MFU is given against
update     tokens per second of forward and backward: packed, padded, with TRL's log-probs; MFU; peak memory
draws      seeded draws of one number per row against unseeded ones, on vocabularies of 151,936 and 262,144 tokens
resume     weights of a run that was stopped and resumed against those of one that was not, with deterministic kernels
stages     every stage for a few steps in bfloat16 (`pipeline gpu-check`) on a random model of the update's shape
real       the update on the model at MODEL
real_stages  every stage for a few steps on the model at MODEL
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import machine
from benchmarks.real_update import body_weights, random_rows
from benchmarks.workload import Workload, make_model

RESULT = Path(__file__).parent / "results" / "gpu.json"
ROOT = Path(__file__).parents[1]
BUDGET_S = 480.0
NO_MODEL = {"left out": "MODEL names no model directory"}
SHAPES = {  # vocabulary, hidden, intermediate, layers, heads, key-value heads: of 0.5B weights, and for a rehearsal
    "mid": (151_936, 896, 4864, 24, 14, 2),
    "small": (1024, 64, 128, 2, 2, 2),
}
LONGEST = {"mid": 1024, "small": 48}
BUDGET_TOKENS = 16_384  # per micro-batch, the default of a policy stage
ROWS, SAMPLES = {"mid": 64, "small": 8}, 4


def run() -> dict[str, Any]:
    import torch

    size = "mid" if torch.cuda.is_available() else "small"
    started = time.monotonic()
    found: dict[str, Any] = {"machine": machine(), "size": size}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "matrix": lambda: matrix(size),
        "update": lambda: update(random_model(size), size, found.get("matrix", {})),
        "draws": lambda: draws(size),
        "resume": lambda: resume(size),
        "stages": lambda: random_stages(size, BUDGET_S - (time.monotonic() - started)),
        "real": lambda: real(found.get("matrix", {})),
        "real_stages": lambda: real_stages(size, BUDGET_S - (time.monotonic() - started)),
    }
    for name, part in parts.items():
        if time.monotonic() - started > BUDGET_S:
            found[name] = {"left out": "no time left"}
            continue
        print(f"{name} ...", flush=True)
        since = time.monotonic()
        try:
            found[name] = part()
        except Exception as exc:  # the figures of the other parts must survive
            found[name] = {"error": f"{type(exc).__name__}: {exc}"[:500]}
        found[name]["seconds"] = round(time.monotonic() - since, 1)
        print(json.dumps(found[name]), flush=True)
        if size != "small":
            RESULT.write_text(json.dumps(found, indent=1) + "\n")
    return {"ratios": {}, **found}


def device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds_of(work: Callable[[], Any], times: int) -> float:
    """Seconds of one call, the mean over `times` calls after one to warm up."""
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    work()
    wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - started) / times


def matrix(size: str) -> dict[str, Any]:
    import torch

    n = 8192 if size == "mid" else 256
    left, right = (torch.randn(n, n, device=device(), dtype=torch.bfloat16) for _ in range(2))
    return {"bfloat16_tflops": 2 * n**3 / seconds_of(lambda: left @ right, 20) / 1e12}


# --- update ------------------------------------------------------------------------------------------------------


def random_model(size: str) -> Any:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    vocabulary, hidden, intermediate, layers, heads, kv_heads = SHAPES[size]
    torch.manual_seed(0)
    make: Any = Qwen2Config
    config = make(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(device())


def update(model: Any, size: str, ceiling: Mapping[str, Any]) -> dict[str, Any]:
    """Forward and backward over rows with a long tail of lengths, weights in float32, products in bfloat16."""
    import torch

    from pipeline.update.forward import CompletionLogprobs

    draw = torch.Generator().manual_seed(1)
    longest = LONGEST[size]
    lengths = [min(int(n) + 4, longest) for n in torch.empty(ROWS[size]).exponential_(4 / longest, generator=draw)]
    rows = random_rows(lengths, SAMPLES, draw)
    rows = [type(r)(tuple(i % 1000 for i in r.prompt_ids), tuple(i % 1000 for i in r.ids), r.mask) for r in rows]
    tokens = sum(len(r) for r in rows)
    weights = body_weights(model.config) + model.config.vocab_size * model.config.hidden_size
    sides: dict[str, Callable[[], None]] = {}
    for name in ("packed", "padded"):
        forward = CompletionLogprobs(model, temperature=1.0, autocast=torch.bfloat16)
        forward.packs = forward.packs and name == "packed"
        sides[name] = lambda forward=forward: ours(forward, rows)  # type: ignore[misc]
    sides["trl_logprobs"] = lambda: trl(model, rows)
    out: dict[str, Any] = {"rows": len(rows), "tokens": tokens, "weights": weights}
    for name, side in sides.items():
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = seconds_of(side, 3)
        except ImportError as exc:
            out[name] = {"left out": str(exc)}
            continue
        rate = tokens / seconds
        out[name] = {"tokens_per_s": rate, "model_tflops": 6 * weights * rate / 1e12}
        if "bfloat16_tflops" in ceiling:
            out[name]["mfu"] = 6 * weights * rate / 1e12 / ceiling["bfloat16_tflops"]
        if torch.cuda.is_available():
            out[name]["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if "tokens_per_s" in out["trl_logprobs"]:
        out["packed_vs_trl"] = out["packed"]["tokens_per_s"] / out["trl_logprobs"]["tokens_per_s"]
    out["packed_vs_padded"] = out["packed"]["tokens_per_s"] / out["padded"]["tokens_per_s"]
    out["planned_gib"] = planned_gib(weights, model.config, rows)
    return out


def planned_gib(weights: int, config: Any, rows: Sequence[Any]) -> float:
    """What `plan` expects of weights, gradients, logits and activations for one micro-batch of these rows."""
    budget = min(BUDGET_TOKENS, sum(map(len, rows)))
    activations = budget * config.hidden_size * config.num_hidden_layers * 34 * 2
    return (2 * 4 * weights + 2 * 256 * config.vocab_size * 4 + activations) / 2**30


def ours(forward: Any, rows: Sequence[Any]) -> None:
    from pipeline.update.forward import micro_batches, pad_rows

    for indices in micro_batches(rows, BUDGET_TOKENS, packs=forward.packs):
        batch = pad_rows([rows[i] for i in indices], device())
        logprobs_BT, _ = forward(batch)
        (logprobs_BT * batch.mask_BT).sum().backward()
    forward.zero_grad()


def trl(model: Any, rows: Sequence[Any], micro_rows: int = 16) -> None:
    """Log-probs as TRL's GRPOTrainer computes them: padded rows, full logits, in micro-batches of 16 rows."""
    import torch
    from trl.trainer.utils import selective_log_softmax

    from pipeline.models.models import pad_right

    for start in range(0, len(rows), micro_rows):
        some = rows[start : start + micro_rows]
        ids_BL = pad_right([[*r.prompt_ids, *r.ids] for r in some], 0, dtype=torch.long, device=device())
        mask_BL = pad_right([[1] * len(r) for r in some], 0, dtype=torch.long, device=device())
        with torch.autocast(device().type, torch.bfloat16):
            logits = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).logits[:, :-1]
        logprobs = selective_log_softmax(logits.float(), ids_BL[:, 1:])
        (logprobs * mask_BL[:, 1:]).sum().backward()
    model.zero_grad()


# --- draws -------------------------------------------------------------------------------------------------------


def draws(size: str) -> dict[str, Any]:
    """Milliseconds of one draw for all rows: one seeded number per row, unseeded exponentials, and seeded exponentials
    as vLLM draws them, row after row."""
    import torch

    from pipeline.generation.seeded_sampler import draw, uniforms

    rows = 256 if size == "mid" else 4
    out = {}
    for vocabulary in (151_936, 262_144):
        logits_BV = torch.randn(rows, vocabulary, device=device())
        generators = [torch.Generator(device()).manual_seed(i) for i in range(rows)]

        def unseeded(logits_BV: Any = logits_BV) -> Any:
            p_BV = logits_BV.softmax(-1)
            return p_BV.div_(torch.empty_like(p_BV).exponential_()).argmax(-1)

        def one_by_one(logits_BV: Any = logits_BV, generators: Any = generators) -> Any:
            q_BV = torch.empty_like(logits_BV)
            for row, generator in enumerate(generators):
                q_BV[row].exponential_(generator=generator)
            return logits_BV.softmax(-1).div_(q_BV).argmax(-1)

        def seeded(logits_BV: Any = logits_BV, generators: Any = generators) -> Any:
            return draw(logits_BV, uniforms(generators))

        spent = {name: 1000 * seconds_of(way, 5) for name, way in
                 (("seeded", seeded), ("unseeded", unseeded), ("seeded_row_by_row", one_by_one))}  # fmt: skip
        ratio = spent["unseeded"] / spent["seeded"]
        out[str(vocabulary)] = {"rows": rows, "milliseconds": spent, "seeded_vs_unseeded": ratio}
    return out


# --- whole runs --------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # torch's deterministic kernels need it


def pipeline(words: Sequence[str], timeout_s: float) -> str:
    done = subprocess.run([sys.executable, "-m", "pipeline", *words], cwd=ROOT, env=environment(), timeout=timeout_s,
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"pipeline {words[0]} exited with {done.returncode}: {(done.stdout + done.stderr)[-400:]}")
    return done.stdout


def resume(size: str, steps: int = 40) -> dict[str, Any]:
    """A GRPO run in one go, and one that gets SIGTERM in the middle and is started again: are the weights the same?"""
    words = ["configs/demo/chaos.yaml", "stages=[base,sft,grpo]", "sft.trainer.max_steps=150", f"grpo.steps={steps}",
             "grpo.alarms.no_signal_steps=1000"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name in ("whole", "stopped"):
            words_of_run = ["run", *words, f"runs_dir={folder}", f"run={name}"]
            if name == "stopped":
                stopped_at = stop_in_the_middle(words_of_run, Path(folder) / name / "grpo" / "metrics.jsonl")
            pipeline(words_of_run, 240.0)
        manifests = [json.loads((Path(folder) / name / "grpo" / "manifest.json").read_text())
                     for name in ("whole", "stopped")]  # fmt: skip
    hashes = [{k: v for k, v in m["outputs"].items() if k.endswith(".safetensors")} for m in manifests]
    return {"stopped_at_step": stopped_at, "steps": steps, "same_weights": hashes[0] == hashes[1]}


def stop_in_the_middle(words: Sequence[str], metrics: Path, after: int = 10) -> int:
    """Start a run, send it SIGTERM once `after` steps are logged, and return the steps that were logged by its end."""
    process = subprocess.Popen([sys.executable, "-m", "pipeline", *words], cwd=ROOT, env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < after):
        time.sleep(0.02)
    process.terminate()
    process.wait(timeout=120)
    return metrics.read_text().count("\n")


def random_stages(size: str, left_s: float) -> dict[str, Any]:
    vocabulary, hidden, intermediate, layers, heads, _ = SHAPES[size]
    work = Workload(hidden_size=hidden, intermediate_size=intermediate, layers=layers, heads=heads,
                    vocabulary=vocabulary, mean_tokens=32)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), work)
        return stages(Path(folder) / "model", size, "bfloat16" if size == "mid" else "float32", left_s)


def real_stages(size: str, left_s: float) -> dict[str, Any]:
    path = os.environ.get("MODEL")
    return stages(Path(path), size, "bfloat16", left_s) if path else dict(NO_MODEL)


def stages(model: Path, size: str, dtype: str, left_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["gpu-check", f"to={folder}", f"size={size}", f"dtype={dtype}", f"model={model}"]
        pipeline(words, max(left_s, 60.0))
        found: dict[str, Any] = json.loads((Path(folder) / "gpu-check.json").read_text())
    return {"stages": found["stages"]}


def real(ceiling: Mapping[str, Any]) -> dict[str, Any]:
    from pipeline.config.schema import Model
    from pipeline.models.models import load_policy

    path = os.environ.get("MODEL")
    if not path:
        return dict(NO_MODEL)
    model = load_policy(path, Model(path=path, dtype="float32")).to(device())
    return update(model, "mid" if device().type == "cuda" else "small", ceiling)
