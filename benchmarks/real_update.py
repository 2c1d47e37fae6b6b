"""The update of a real pretrained model: against its matrix products alone, and packed against padded.

Update: the log-probs of the reference and of the policy before the step, and forward and backward of the loss, over 64
rows of 40 prompt and up to 48 completion tokens, or fewer rows where the machine is slow (real_size.py). Floor: as many
floating-point operations as bare matrix products of the model's own shapes and dtype, on as many threads. Packed:
forward and backward of up to 32 rows whose lengths have a long tail, with and without packing. A warm-up of one row
comes first. MODEL=path measures another model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.measure import in_turns
from benchmarks.real_size import fitting, speed
from benchmarks.real_step import workload

PROMPTS, SAMPLES, PROMPT_TOKENS, MAX_TOKENS = (1, 2, 4, 8), 8, 40, 48
TAIL_ROWS = 32  # at 8 prompts; fewer in proportion
OPERATIONS = 3.5e12  # per prompt: of all sides, at the efficiency that they reach
BUDGET = 2048  # tokens per micro-batch


def run(rounds: int = 1) -> dict[str, Any]:
    import torch

    work = workload()
    torch.set_num_threads(work.threads)
    from pipeline.config.schema import Model
    from pipeline.models.models import load_policy
    from pipeline.update.forward import CompletionLogprobs

    assert work.model_path is not None
    settings: Any = {"path": work.model_path, "dtype": work.dtype}
    model = load_policy(work.model_path, Model(**settings)).float()  # as a stage trains it: float32 weights
    autocast = torch.bfloat16 if work.dtype == "bfloat16" else None
    packed, padded = (CompletionLogprobs(model, temperature=1.0, autocast=autocast) for _ in range(2))
    assert packed.packs, "this model's rows are not packed"
    padded.packs = False
    per_s = speed(work.dtype)
    prompts = fitting(PROMPTS, rounds * OPERATIONS, per_s)
    print(f"  {per_s / 1e9:.0f} GFLOP/s: {prompts} prompts", flush=True)
    draw = torch.Generator().manual_seed(work.seed)
    even = torch.randint(8, MAX_TOKENS + 1, (prompts * SAMPLES,), generator=draw).tolist()
    tail = [
        min(int(n) + 4, 256)
        for n in torch.empty(TAIL_ROWS * prompts // max(PROMPTS)).exponential_(1 / 40, generator=draw)
    ]
    even_rows, tail_rows = random_rows(even, SAMPLES, draw), random_rows(tail, 4, draw)
    operations = operations_of(model.config, even_rows)

    def update() -> None:
        for _ in range(2):  # the reference, and the policy before the step
            without_gradient(packed, even_rows)
        backward(packed, even_rows)

    for forward in (packed, padded):
        backward(forward, even_rows[:1])
    spent = in_turns(
        {
            "update": update,
            "floor": products(model.config, operations, autocast or torch.float32),
            "packed": lambda: backward(packed, tail_rows),
            "padded": lambda: backward(padded, tail_rows),
        },
        rounds=rounds, warmup=0, progress=True,
    )  # fmt: skip
    both = zip(without_gradient(packed, tail_rows), without_gradient(padded, tail_rows), strict=True)
    return {
        "ratios": ratios(spent, "cpu"),
        "wall_ratios": ratios(spent, "wall"),
        "largest_logprob_gap": max(float((a - b).abs().max()) for a, b in both),
        "seconds": spent,
        "tera_operations": {name: n / 1e12 for name, n in operations.items()},
        "prompts": prompts,
        "speed": per_s,
        "dtype": work.dtype,
        "threads": work.threads,
    }


def ratios(spent: Mapping[str, Mapping[str, float]], clock: str) -> dict[str, float]:
    return {
        "real_update_vs_floor": spent["floor"][clock] / spent["update"][clock],
        "packed_sliding_vs_padded": spent["padded"][clock] / spent["packed"][clock],
    }


def random_rows(lengths: Sequence[int], samples: int, draw: Any) -> list[Any]:
    """One row per length; `samples` consecutive rows share a prompt."""
    import torch

    from pipeline.update.forward import Row

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 5000, (count,), generator=draw).tolist())

    prompts = [tokens(PROMPT_TOKENS) for _ in range(0, len(lengths), samples)]
    return [Row(prompts[i // samples], tokens(n), (True,) * n) for i, n in enumerate(lengths)]


def without_gradient(forward: Any, rows: Sequence[Any]) -> list[Any]:
    import torch

    from pipeline.update.forward import completion_logprobs

    with torch.no_grad():
        return completion_logprobs(forward, rows, budget=BUDGET, device=torch.device("cpu"))


def backward(forward: Any, rows: Sequence[Any]) -> None:
    import torch

    from pipeline.update.forward import micro_batches, pad_rows

    for indices in micro_batches(rows, BUDGET, packs=forward.packs):
        batch = pad_rows([rows[i] for i in indices], torch.device("cpu"))
        logprobs_BT, _ = forward(batch)
        (logprobs_BT * batch.mask_BT).sum().backward()
    forward.zero_grad()


def operations_of(config: Any, rows: Sequence[Any]) -> dict[str, float]:
    """Floating-point operations of the matrix products of one update, of the body and of the head.

    Two operations per weight and token in a forward; three forwards, and a backward of twice a forward. The head runs
    once more in the backward, because its logits are not kept. A prompt that several rows share is computed once, as
    packing does. Attention's own products are left out.
    """
    completion = sum(len(r.ids) for r in rows)
    computed = completion + sum(map(len, {r.prompt_ids for r in rows}))
    return {
        "body": 2.0 * body_weights(config) * computed * 5,
        "head": 2.0 * config.hidden_size * config.vocab_size * completion * 6,
    }


def body_weights(config: Any) -> int:
    """Weights of the matrix products of all layers."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    width = getattr(config, "head_dim", None) or hidden // heads
    attention = hidden * width * 2 * (heads + config.num_key_value_heads)
    return config.num_hidden_layers * (attention + 3 * hidden * config.intermediate_size)


def products(config: Any, operations: Mapping[str, float], dtype: Any) -> Callable[[], None]:
    """Matrix products of the MLP's and the head's shapes, with as many operations, and nothing else."""
    import torch

    def of_shape(tokens: int, outputs: int, total: float) -> Callable[[], None]:
        left = torch.randn(tokens, config.hidden_size).to(dtype)
        right = torch.randn(config.hidden_size, outputs).to(dtype)
        times = max(round(total / (2.0 * tokens * config.hidden_size * outputs)), 1)

        def multiply() -> None:
            for _ in range(times):
                left @ right

        return multiply

    body = of_shape(1024, config.intermediate_size, operations["body"])
    head = of_shape(256, config.vocab_size, operations["head"])

    def both() -> None:
        body()
        head()

    return both
