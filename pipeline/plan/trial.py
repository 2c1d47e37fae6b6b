"""A short trial of this machine on this model: seconds to start, tokens per second sampled and trained on.

`run` is the body of a separate process (trial_process.py), so that its memory before any model is that of the
libraries, and so that a plan leaves nothing running. Of a large model a few tokens are sampled and trained on, and the
rates of full batches are extrapolated: a step of sampling or of training costs a fixed time plus a time per token.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipeline.config.load import Config
from pipeline.config.schema import Policy, Sampling, trains_adapter
from pipeline.distributed import process
from pipeline.models.model_dir import is_large, thread_count

if TYPE_CHECKING:
    import torch

    from pipeline.generation.generator import Generator, Sample

TRIED_PROMPTS = 256
SAMPLES = 4  # per prompt
STEPS = 6  # timed steps of training, after one warm-up step
MICRO_BATCH = 8192  # tokens of a small model's micro-batch
# a large model: rows and tokens of a prompt in a step of sampling, steps, tokens of the prompts that are timed alone
ROWS, ROW_TOKENS, SAMPLED_STEPS, PROMPT_TOKENS = 64, 2, 2, 128
FEW, MORE, TYPICAL = 32, 128, 512  # tokens trained on, and those of a micro-batch that the rate is extrapolated to
OPTIMIZED = 1 << 24  # at most so many parameters in the timed step of the optimizer


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is sampled from: token ids of some prompts, tokens of the longest of all, ids that end a completion."""

    prompts: tuple[tuple[int, ...], ...]
    longest: int
    stop_token_ids: frozenset[int]


@dataclass(slots=True)
class Trial:
    imports_s: float = 0.0
    engine_s: float = 0.0
    libraries_bytes: int = 0  # resident before a model is loaded
    generator_bytes: int = 0  # added by a model, a generator and one batch, without weights and cache
    cache_bytes: int = 0
    generator: str = ""
    on_gpu: bool = False
    sampled_per_s: float = 0.0  # tokens
    fetched_per_s: float = 0.0  # tokens, forward only
    learned_per_s: float = 0.0  # tokens, forward and backward
    optimizer_s: float = 0.0  # one step of AdamW, whatever the number of tokens
    read_s: float = 0.0  # the tokenizer and all prompts
    load_s: float = 0.0  # a policy from its directory
    sync_s: float = 0.0  # all weights from a trainer to the generator; 0 where it is not worth timing
    canary_s: float = 0.0  # the comparison of log-probs after it
    shape: dict[str, int] = field(default_factory=dict)


Measure = Callable[[Inputs], Trial]


def resident() -> int:
    """Bytes of GPU memory in use, if there is a GPU; else this process's peak resident memory."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return total - free
    return process.peak_rss()


def run(cfg: Config, inputs: Callable[[], Inputs]) -> Trial:
    """The trial of a config. inputs: called when all that does not need them is done; blocks until they are there."""
    large = cfg.model.path is not None and is_large(cfg.model.path)
    started = time.monotonic()
    process.prepare(thread_count(cfg.threads, cfg.model.path))
    if not large:  # else seconds of imports and a hundredth of the memory
        import trl.trainer.sft_trainer  # noqa: F401

    import torch

    from pipeline.generation import engines, vllm_engine
    from pipeline.models import adapters, models
    from pipeline.models.weights import named_weights

    out = Trial(imports_s=time.monotonic() - started, on_gpu=torch.cuda.is_available())
    with tempfile.TemporaryDirectory() as folder:
        model_dir = cfg.model.path or folder
        if cfg.model.path is None:
            assert cfg.model.tiny is not None
            models.make_tiny(cfg.model.tiny, Path(folder), seed=cfg.seed)
        out.libraries_bytes = resident()
        block = next((b for b in cfg.blocks.values() if trains_adapter(b) and b.kind != "reward_model"), None)
        started = time.monotonic()
        model = models.load_policy(model_dir, cfg.model, adapted=block is not None)
        out.load_s = time.monotonic() - started
        out.shape, weights = shape_of(model), bytes_here(model)
        started = time.monotonic()
        if engines.choose_backend(cfg.generate) == "vllm":
            vllm_engine.import_vllm()
        out.engine_s = time.monotonic() - started
        given = inputs()
        started = time.monotonic()
        length = engines.model_len(model_dir, given.longest + cfg.sampling.max_tokens + 16)
        engine = engines.open_generator(model_dir, cfg.model, cfg.generate, max_model_len=length)
        out.generator = engine.name
        out.engine_s += time.monotonic() - started
        sample = partial(sampled, engine, stop_token_ids=given.stop_token_ids)
        rate = few_sampled if large and cfg.sampling.max_tokens > SAMPLED_STEPS else all_sampled
        rows, out.sampled_per_s = rate(sample, given.prompts, cfg.sampling)
        synced = any(isinstance(cfg.blocks[name], Policy) for name in cfg.stages) and cfg.model.quantization is None
        if large and synced and engine.name in ("vllm", "transformers"):
            started = time.monotonic()
            engine.sync(named_weights(model))
            out.sync_s = time.monotonic() - started
        added = resident() - out.libraries_bytes - weights
        space = vllm_engine.cache_bytes(cfg.generate) if engine.name == "vllm" else 0
        out.cache_bytes = min(space, added)  # vLLM on a CPU allocates its full cache at once
        out.generator_bytes = added - out.cache_bytes
        autocast = None
        if block is not None:  # train what the stages train, if some of them train an adapter
            model = adapters.add_lora(model, block.peft, key=f"{cfg.path}: {block.kind}")
        elif model.dtype.is_floating_point and model.dtype.itemsize < 4:  # as a stage: float32 weights
            autocast, model = model.dtype, model.float()
        out.fetched_per_s, out.learned_per_s = learning_rates(model, rows, autocast=autocast, few=large)
        if out.sync_s:
            out.canary_s = canary_seconds(engine, model, rows, autocast=autocast)
        out.optimizer_s = optimizer_seconds(model)
    return out


# --- sampling ---------------------------------------------------------------------------------------------------------

Ids = tuple[int, ...]


def sampled(
    engine: Generator, prompts: Sequence[Ids], sampling: Sampling, *, stop_token_ids: frozenset[int]
) -> tuple[list[Sample], float]:
    """One sample per prompt, and the seconds they took."""
    from pipeline.generation.generator import Request

    requests = [Request(tuple(ids), seed, sampling.max_tokens) for seed, ids in enumerate(prompts)]
    started = time.monotonic()
    samples = engine.sample(requests, sampling, stop_token_ids)
    return samples, time.monotonic() - started


def all_sampled(sample: Callable[..., Any], prompts: Sequence[Ids], sampling: Sampling) -> tuple[list[Ids], float]:
    """Prompts with their completions, SAMPLES of each prompt, and completion tokens per second."""
    sample(prompts, sampling)
    repeated = [ids for ids in prompts for _ in range(SAMPLES)]
    samples, seconds = sample(repeated, sampling)
    rows = [(*ids, *one.ids) for ids, one in zip(repeated, samples, strict=True)]
    return rows[:TRIED_PROMPTS], sum(len(one.ids) for one in samples) / seconds


def few_sampled(sample: Callable[..., Any], prompts: Sequence[Ids], sampling: Sampling) -> tuple[list[Ids], float]:
    """The same, extrapolated to ROWS rows of these prompts and completions of half the maximum length.

    Time per prompt token from a few full prompts; time per step from ROWS rows whose prompts are cut to ROW_TOKENS.
    """

    def seconds(some: Sequence[Ids], tokens: int) -> float:
        return sample(some, replace(sampling, max_tokens=tokens))[1]

    fitting = first_rows(prompts, PROMPT_TOKENS)
    cut = [ids[:ROW_TOKENS] for ids in (prompts[i % len(prompts)] for i in range(ROWS))]
    seconds(cut[:1], 2)  # warm-up
    prompt_s = seconds(fitting, 1) / sum(map(len, fitting))
    step_s = max(seconds(cut, 1 + SAMPLED_STEPS) - seconds(cut, 1), 0.0) / SAMPLED_STEPS
    mean = sum(map(len, prompts)) / len(prompts)
    expected = sampling.max_tokens / 2
    return list(prompts), ROWS * expected / (ROWS * mean * prompt_s + expected * step_s)


def first_rows(rows: Sequence[Ids], tokens: int) -> list[Ids]:
    """The first rows with at most `tokens` tokens in total; one at least, cut to so many tokens."""
    out = [rows[0][:tokens]]
    for row in rows[1:]:
        if sum(map(len, out)) + len(row) > tokens:
            break
        out.append(row)
    return out


# --- training ---------------------------------------------------------------------------------------------------------


def learning_rates(
    model: Any, rows: Sequence[Ids], *, autocast: torch.dtype | None = None, few: bool = False
) -> tuple[float, float]:
    """Tokens per second of these rows, forward only, and forward and backward, as a policy stage computes them.

    few: only FEW and MORE tokens are computed, and the rate is that of TYPICAL tokens at once.
    """
    from pipeline.update.forward import CompletionLogprobs, add_gradients_in_place

    forward = CompletionLogprobs(model, temperature=1.0, autocast=autocast)
    add_gradients_in_place(model)  # as in training by one process
    acts = partial(fetch, forward), partial(learn, forward)
    if not few:
        fetched, learned = (full_rate(act, rows) for act in acts)
        return fetched, learned
    fetched, learned = (extrapolated_rate(act, rows) for act in acts)
    return fetched, learned


def canary_seconds(engine: Generator, model: Any, rows: Sequence[Ids], *, autocast: torch.dtype | None) -> float:
    """Seconds of one canary on rows of these prompts, in the trainer and in the engine."""
    from pipeline.update import canary
    from pipeline.update.forward import CompletionLogprobs, Row
    from pipeline.update.learner import Inference

    forward = CompletionLogprobs(model, temperature=1.0, autocast=autocast)
    inference = Inference(forward, None, budget=MICRO_BATCH, device=model.device)
    some = [Row(ids, ids[: canary.TOKENS_PER_ROW], (True,) * len(ids[: canary.TOKENS_PER_ROW])) for ids in rows]
    started = time.monotonic()
    canary.measure(inference, engine, canary.rows_of_step(some))
    return time.monotonic() - started


def full_rate(act: Callable[[Sequence[Ids]], None], rows: Sequence[Ids]) -> float:
    """Tokens per second of all rows, over STEPS steps after one of warm-up."""
    act(rows)
    started = time.monotonic()
    for _ in range(STEPS):
        act(rows)
    return sum(map(len, rows)) * STEPS / (time.monotonic() - started)


def extrapolated_rate(act: Callable[[Sequence[Ids]], None], rows: Sequence[Ids]) -> float:
    """Tokens per second of TYPICAL tokens, from the line through the seconds of FEW and of MORE tokens.

    Source of the line: a micro-batch reads each weight once, and then multiplies it once per token.
    """
    ids = [token for row in rows for token in row]
    ids = ids * -(-MORE // len(ids))

    def seconds(tokens: int) -> float:
        started = time.monotonic()
        act([tuple(ids[:tokens])])
        return time.monotonic() - started

    seconds(2)  # warm-up
    few_s, more_s = seconds(FEW), seconds(MORE)
    per_token = max(more_s - few_s, 0.0) / (MORE - FEW)
    return TYPICAL / (more_s + (TYPICAL - MORE) * per_token)


def batches_of(rows: Sequence[Ids], device: Any) -> list[Any]:
    """Micro-batches in which every token but the first of a row is trained on."""
    from pipeline.models.models import batches_by_tokens
    from pipeline.update.forward import Row, pad_rows

    split = [Row(ids[:1], ids[1:], (True,) * (len(ids) - 1)) for ids in rows if len(ids) > 1]
    return [pad_rows([split[i] for i in some], device)
            for some in batches_by_tokens([len(r) for r in split], MICRO_BATCH)]  # fmt: skip


def fetch(forward: Any, rows: Sequence[Ids]) -> None:
    """Log-probs of the rows' tokens, without gradient."""
    import torch

    with torch.no_grad():
        for batch in batches_of(rows, forward.model.device):
            forward(batch)


def learn(forward: Any, rows: Sequence[Ids]) -> None:
    """Forward and backward of a loss of the rows' tokens."""
    for batch in batches_of(rows, forward.model.device):
        (forward(batch)[0] * batch.mask_BT).sum().backward()


def optimizer_seconds(model: Any) -> float:
    """Seconds of a step of AdamW over all weights that are trained, in proportion to those of some of them."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    some, total = list[Any](), 0
    for parameter in sorted(trained, key=lambda p: p.numel()):
        if some and total + parameter.numel() > OPTIMIZED:
            break
        total += parameter.numel()
        some.append(parameter)
    for parameter in some:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(some, lr=1e-9)
    optimizer.step()  # the first step allocates its state
    started = time.monotonic()
    optimizer.step()
    return (time.monotonic() - started) * sum(p.numel() for p in trained) / total


# --- the model --------------------------------------------------------------------------------------------------------


def bytes_here(model: Any) -> int:
    """Bytes that the weights take of the memory that `resident` measures."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def shape_of(model: Any) -> dict[str, int]:
    """The fields of `pipeline.plan.estimate.Shape`, with tied weights counted once."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    ends = [getattr(end(), "weight", None) for end in (model.get_input_embeddings, model.get_output_embeddings)]
    return {
        "parameters": sum(
            p.quant_state.shape.numel() if hasattr(p, "quant_state") else p.numel() for p in model.parameters()
        ),
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "kv_width": heads * size,
        "vocabulary": config.vocab_size,
        "bytes_each": next(model.parameters()).element_size(),
        "embedding": sum({id(p): p.numel() for p in ends if p is not None}.values()),
    }


def main(messages: IO[bytes]) -> int:
    """Read a pickled Config and then pickled Inputs, and print the Trial as one line of JSON."""
    cfg: Config = pickle.load(messages)
    print("\n" + json.dumps(asdict(run(cfg, lambda: pickle.load(messages)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin.buffer))
