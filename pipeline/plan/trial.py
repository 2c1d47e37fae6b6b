"""A short trial of this machine on this model: seconds to start, tokens per second sampled and trained on.

`python -m pipeline.plan.trial CONFIG [key=value ...]` prints one JSON object. It runs in a separate process, so that
its memory before any model is that of the libraries, and so that a plan leaves nothing running.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.load import Config, load
from pipeline.config.schema import Sampling, trains_adapter
from pipeline.distributed import process
from pipeline.models.model_dir import LARGE, thread_count
from pipeline.records import Prompt, Rollout

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 6  # timed steps, after one warm-up step
MICRO_BATCH = 8192  # tokens, including padding


@dataclass(frozen=True, slots=True)
class Extent:
    """Size of the trial: prompts, samples per prompt, maximum tokens per completion, tokens to train on, and timed
    steps over them. max_tokens None: those of the run, in full."""

    prompts: int = 256
    samples: int = 4
    max_tokens: int | None = None
    learned: int | None = None
    warmup: int | None = None
    steps: int = STEPS


# for a model above model_dir.LARGE each token takes long enough that a few are enough to measure the rate
LARGE_EXTENT = Extent(prompts=16, samples=4, max_tokens=4, learned=256, warmup=1, steps=1)


@dataclass(slots=True)
class Trial:
    imports_s: float = 0.0
    engine_s: float = 0.0
    libraries_bytes: int = 0  # resident before a model is loaded
    generator_bytes: int = 0  # added by a model, a generator and one batch, without weights and cache
    cache_bytes: int = 0
    generator: str = ""
    sampled_per_s: float = 0.0  # tokens
    fetched_per_s: float = 0.0  # tokens, forward only
    learned_per_s: float = 0.0  # tokens, forward and backward
    optimizer_s: float = 0.0  # one step of AdamW, whatever the number of tokens
    shape: dict[str, int] = field(default_factory=dict)


def resident() -> int:
    """Bytes of GPU memory in use, if there is a GPU; else this process's peak resident memory."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return total - free
    return process.peak_rss()


def try_out(cfg: Config) -> Trial:
    started = time.monotonic()
    import trl.trainer.sft_trainer  # noqa: F401

    from pipeline.data import prompts
    from pipeline.generation import engines, generator, vllm_engine
    from pipeline.models import adapters, models
    from pipeline.run.stage_dir import StageDir
    from pipeline.stages.context import Context

    out = Trial(imports_s=time.monotonic() - started)
    with tempfile.TemporaryDirectory() as folder:
        model_dir = cfg.model.path or folder
        if cfg.model.path is None:
            assert cfg.model.tiny is not None
            models.make_tiny(cfg.model.tiny, Path(folder), seed=cfg.seed)
        out.libraries_bytes = resident()
        block = next((b for b in cfg.blocks.values() if trains_adapter(b) and b.kind != "reward_model"), None)
        model = models.load_policy(model_dir, cfg.model, adapted=block is not None)
        out.shape, weights = shape_of(model), bytes_here(model)
        ctx = Context(cfg, next(iter([*cfg.stages, *cfg.blocks])), StageDir(Path(folder), "trial"))
        ctx.policy_path = model_dir
        extent = LARGE_EXTENT if out.shape["parameters"] > LARGE else Extent()
        shown = ctx.train_prompts[: extent.prompts]
        started = time.monotonic()
        longest = prompts.longest(ctx.train_prompts, ctx.heldout_prompts)
        length = engines.model_len(model_dir, longest + cfg.sampling.max_tokens + 16)
        engine = engines.open_generator(model_dir, cfg.model, cfg.generate, max_model_len=length)
        out.generator, out.engine_s = engine.name, time.monotonic() - started
        sample = partial(
            generator.rollouts, engine, key=("trial",), tokenizer=ctx.tokenizer, stop_token_ids=ctx.stop_token_ids
        )
        drawn, out.sampled_per_s = sampling_rate(sample, shown, cfg.sampling, extent)
        added = resident() - out.libraries_bytes - weights
        space = vllm_engine.cache_bytes(cfg.generate) if engine.name == "vllm" else 0
        out.cache_bytes = min(space, added)  # vLLM on a CPU allocates its full cache at once
        out.generator_bytes = added - out.cache_bytes
        rows = first_tokens([[*r.prompt.ids, *r.ids] for r in drawn[:256]], extent.learned)
        if block is not None:  # train what the stages train, if some of them train an adapter
            model = adapters.add_lora(model, block.peft, key=f"{cfg.path}: {block.kind}")
        out.fetched_per_s, out.learned_per_s, out.optimizer_s = learning_rates(model, rows, extent)
    return out


def sampling_rate(
    sample: Callable[..., list[Rollout]], prompts: Sequence[Prompt], sampling: Sampling, extent: Extent
) -> tuple[list[Rollout], float]:
    """Rollouts of the trial, and completion tokens per second.

    Where only a few tokens are sampled, the rate is that of half the run's longest completions: the time to the first
    tokens, which includes the prompts, plus the time of as many further steps as a completion then has.
    """

    def timed(samples: int, tokens: int, some: Sequence[Prompt]) -> tuple[list[Rollout], float]:
        started = time.monotonic()
        drawn = sample(some, replace(sampling, max_tokens=tokens), samples=samples)
        return drawn, time.monotonic() - started

    if extent.max_tokens is None or extent.max_tokens >= sampling.max_tokens:
        timed(1, sampling.max_tokens, prompts)
        drawn, seconds = timed(extent.samples, sampling.max_tokens, prompts)
        return drawn, sum(len(r.ids) for r in drawn) / seconds
    timed(1, 2, prompts[:1])
    _, first_s = timed(extent.samples, 1, prompts)
    drawn, seconds = timed(extent.samples, extent.max_tokens, prompts)
    step_s = max(seconds - first_s, 0.0) / (extent.max_tokens - 1)
    expected = sampling.max_tokens / 2
    return drawn, len(drawn) * expected / (first_s + (expected - 1) * step_s)


def first_tokens(rows: Sequence[Sequence[int]], tokens: int | None) -> list[Sequence[int]]:
    """The first rows with at most `tokens` tokens in total, at least one row; None: all rows."""
    out: list[Sequence[int]] = []
    for row in rows:
        if tokens is not None and out and sum(map(len, out)) + len(row) > tokens:
            break
        out.append(row)
    return out


def learning_rates(model: Any, rows: Sequence[Sequence[int]], extent: Extent) -> tuple[float, float, float]:
    """Tokens per second of these rows, forward only and forward and backward, and seconds of a step of AdamW. Runs as
    many rows at once as a stage does, because the logits of all rows would not fit into memory."""
    import torch

    from pipeline.models.models import batches_by_tokens, pad_right

    def padded(some: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        batches = [[some[i] for i in indices] for indices in batches_by_tokens([len(r) for r in some], MICRO_BATCH)]
        ones = [[[1] * len(r) for r in batch] for batch in batches]
        pad = partial(pad_right, fill=0, dtype=torch.long, device=model.device)
        return [(pad(batch), pad(mask)) for batch, mask in zip(batches, ones, strict=True)]

    def learn(batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        for ids_BT, mask_BT in batches:
            model(input_ids=ids_BT, attention_mask=mask_BT, labels=ids_BT).loss.backward()

    @torch.no_grad()
    def fetch(batches: Sequence[tuple[Tensor, Tensor]]) -> None:
        for ids_BT, mask_BT in batches:
            model(input_ids=ids_BT, attention_mask=mask_BT)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-9)
    warmup, batches, tokens = padded(rows[: extent.warmup]), padded(rows), float(sum(map(len, rows)))
    rates = []
    for act in (fetch, learn):
        act(warmup)
        started = time.monotonic()
        for _ in range(extent.steps):
            act(batches)
        rates.append(tokens * extent.steps / (time.monotonic() - started))
    optimizer.step()  # the first step allocates its state
    started = time.monotonic()
    optimizer.step()
    return rates[0], rates[1], time.monotonic() - started


def bytes_here(model: Any) -> int:
    """Bytes that the weights take of the memory that `resident` measures."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def shape_of(model: Any) -> dict[str, int]:
    """The fields of `pipeline.plan.estimate.Shape`, with tied weights counted once."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "parameters": sum(
            p.quant_state.shape.numel() if hasattr(p, "quant_state") else p.numel() for p in model.parameters()
        ),
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "kv_width": heads * size,
        "vocabulary": config.vocab_size,
        "bytes_each": next(model.parameters()).element_size(),
    }


def main(words: Sequence[str]) -> int:
    cfg = load(words[0], words[1:])
    process.prepare(thread_count(cfg.threads, cfg.model.path))
    print("\n" + json.dumps(asdict(try_out(cfg))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
