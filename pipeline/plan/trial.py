"""A short trial of this machine on this model: seconds to start, tokens per second sampled and trained on.

`python -m pipeline.plan.trial CONFIG [key=value ...]` prints one JSON object. It runs in a separate process, so that
its memory before any model is that of the libraries, and so that a plan leaves nothing running.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config.load import Config, load
from pipeline.config.schema import trains_adapter
from pipeline.run import process

STEPS = 6  # timed steps, after one warm-up step
MICRO_BATCH = 8192  # tokens, including padding


@dataclass(frozen=True, slots=True)
class Extent:
    """Size of the trial: prompts, samples per prompt, maximum tokens per completion, tokens to train on, and timed
    steps over them."""

    prompts: int = 256
    samples: int = 4
    max_tokens: int | None = None
    learned: int | None = None
    steps: int = STEPS


# for a model above precision.LARGE each token takes long enough that a few are enough to measure the rate
LARGE_EXTENT = Extent(prompts=16, samples=4, max_tokens=8, learned=512, steps=1)


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
    learned_per_s: float = 0.0  # tokens, forward and backward with the optimizer step
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

    from pipeline.generation import engines, generator
    from pipeline.models import adapters, models
    from pipeline.models.precision import LARGE
    from pipeline.run.stage_dir import StageDir
    from pipeline.stages.context import Context

    out = Trial(imports_s=time.monotonic() - started)
    with tempfile.TemporaryDirectory() as place:
        model_dir = cfg.model.path or place
        if cfg.model.path is None:
            assert cfg.model.tiny is not None
            models.make_tiny(cfg.model.tiny, Path(place), seed=cfg.seed)
        out.libraries_bytes = resident()
        block = next((b for b in cfg.blocks.values() if trains_adapter(b) and b.kind != "reward_model"), None)
        model = models.load_policy(model_dir, cfg.model, adapted=block is not None)
        out.shape, weights = shape_of(model), bytes_here(model)
        ctx = Context(cfg, next(iter([*cfg.stages, *cfg.blocks])), StageDir(Path(place), "trial"))
        ctx.policy_path = model_dir
        extent = LARGE_EXTENT if out.shape["parameters"] > LARGE else Extent()
        asked = ctx.train_prompts[: extent.prompts]
        most = min(cfg.sampling.max_tokens, extent.max_tokens or cfg.sampling.max_tokens)
        started = time.monotonic()
        longest = max(len(p.ids) for p in [*ctx.train_prompts, *ctx.heldout_prompts])
        length = engines.model_len(model_dir, longest + cfg.sampling.max_tokens + 16)
        engine = engines.open_generator(model_dir, cfg.model, cfg.generate, max_model_len=length)
        out.generator, out.engine_s = engine.name, time.monotonic() - started
        for warm in (True, False):
            started = time.monotonic()
            drawn = generator.rollouts(
                engine, asked, replace(cfg.sampling, max_tokens=1 if warm and extent.max_tokens else most),
                samples=1 if warm else extent.samples, key=("trial",), tokenizer=ctx.tokenizer,
                stop_token_ids=ctx.stop_token_ids,
            )  # fmt: skip
            out.sampled_per_s = sum(len(r.ids) for r in drawn) / (time.monotonic() - started)
        added = resident() - out.libraries_bytes - weights
        space = int(os.environ.get("VLLM_CPU_KVCACHE_SPACE", "0")) << 30 if engine.name == "vllm" else 0
        out.cache_bytes = min(space, added)  # vLLM on a CPU allocates its full cache at once
        out.generator_bytes = added - out.cache_bytes
        rows = first_tokens([[*r.prompt.ids, *r.ids] for r in drawn[:256]], extent.learned)
        if block is not None:  # train what the stages train, if some of them train an adapter
            model = adapters.add_lora(model, block.peft, key=f"{cfg.path}: {block.kind}")
        out.fetched_per_s, out.learned_per_s = learning_rates(model, rows, extent.steps)
    return out


def first_tokens(rows: Sequence[Sequence[int]], tokens: int | None) -> list[Sequence[int]]:
    """The first rows with at most `tokens` tokens in total, at least one row; None: all rows."""
    out: list[Sequence[int]] = []
    for row in rows:
        if tokens is not None and out and sum(map(len, out)) + len(row) > tokens:
            break
        out.append(row)
    return out


def learning_rates(model: Any, rows: Sequence[Sequence[int]], steps: int = STEPS) -> tuple[float, float]:
    """Tokens per second of these rows: (forward only, forward and backward with AdamW). Runs as many rows at once as a
    stage does, because the logits of all rows would not fit into memory."""
    import torch

    from pipeline.models.models import batches_by_tokens, pad_right

    batches = [[rows[i] for i in places] for places in batches_by_tokens([len(r) for r in rows], MICRO_BATCH)]
    ids = [pad_right(batch, 0, dtype=torch.long, device=model.device) for batch in batches]
    masks = [pad_right([[1] * len(r) for r in batch], 0, dtype=torch.long, device=model.device) for batch in batches]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-9)

    def learn() -> None:
        for ids_BT, mask_BT in zip(ids, masks, strict=True):
            model(input_ids=ids_BT, attention_mask=mask_BT, labels=ids_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def fetch() -> None:
        for ids_BT, mask_BT in zip(ids, masks, strict=True):
            model(input_ids=ids_BT, attention_mask=mask_BT)

    tokens = float(sum(map(len, rows)))
    rates = []
    for act in (fetch, learn):
        act()
        started = time.monotonic()
        for _ in range(steps):
            act()
        rates.append(tokens * steps / (time.monotonic() - started))
    return rates[0], rates[1]


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
    process.prepare(process.thread_count(cfg.threads, cfg.model.path))
    print("\n" + json.dumps(asdict(try_out(cfg))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
