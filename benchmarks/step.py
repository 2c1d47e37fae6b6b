"""A GRPO step, ours against stock TRL: sampled completion tokens per second, end to end and by phase.

64 completions per step from 8 prompts, with a reference and its KL in the loss; both sides have the same model,
settings and reward. Each side samples its own completions, so the figure is time per token. `equal_learning` checks the
precondition: on one batch both sides have the same loss and the same gradient.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.bench_worker import SideProcess, take_turns
from benchmarks.measure import medians
from benchmarks.workload import Workload, lay_out

WORK = Workload()
TOLERANCE = 1e-4  # relative, of loss and gradient on one batch


def run(rounds: int = 7) -> dict[str, Any]:
    learning = equal_learning(WORK)
    steps = compare(WORK, ("ours", "trl_vllm", "trl_hf"), rounds)
    names = {"step_vs_trl_hf": "trl_hf", "step_vs_trl_vllm": "trl_vllm"}
    return {
        "ratios": {name: ratio(steps, peer) for name, peer in names.items()},
        "wall_ratios": {name: ratio(steps, peer, "wall") for name, peer in names.items()},
        "equal_learning": learning,
        "rounds": rounds,
        "steps": summary(steps),
    }


def compare(
    work: Workload, sides: Sequence[str], rounds: int, *, warmup: int = 1, progress: bool = False
) -> dict[str, list[dict[str, float]]]:
    with ExitStack() as stack:
        workers = []
        for side in sides:
            workers.append(stack.enter_context(SideProcess(side, work)))
            if progress:
                print(f"  {side} is ready", flush=True)
        return take_turns(workers, rounds=rounds, warmup=warmup, progress=progress)


def ratio(steps: Mapping[str, Sequence[Mapping[str, float]]], peer: str, clock: str = "cpu") -> float:
    """The peer's time per sampled token over ours; the median over rounds."""
    ours, theirs = ([s[clock] / s["tokens"] for s in steps[side]] for side in ("ours", peer))
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def summary(steps: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    out = {}
    for side, taken in steps.items():
        out[side] = medians(taken)
        out[side]["tokens_per_cpu_s"] = statistics.median(s["tokens"] / s["cpu"] for s in taken)
        out[side]["tokens_per_s"] = statistics.median(s["tokens"] / s["wall"] for s in taken)
    return {side: {name: round(x, 4) for name, x in figures.items()} for side, figures in out.items()}


def equal_learning(work: Workload) -> dict[str, float]:
    """Loss and gradient of one batch through TRL's own trainer, padded, and through our learner, packed.

    Raises AssertionError if they differ: a faster step that computes something else is no improvement.
    """

    from benchmarks.trl_side import make_trainer

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lay_out(place, work)
        trainer = make_trainer(place, work)
        rows, advantages = a_batch(work)
        theirs = trl_loss(trainer, rows, advantages)
        their_gradient = gradient_of(trainer.model)
        ours, our_gradient = our_loss(place, work, rows, advantages)
    error = float((our_gradient - their_gradient).norm() / their_gradient.norm())
    assert abs(ours - theirs) <= TOLERANCE * abs(theirs) and error <= TOLERANCE, (ours, theirs, error)
    return {"our_loss": ours, "their_loss": theirs, "gradient_error": error}


def a_batch(work: Workload) -> tuple[list[Any], list[float]]:
    import torch

    from pipeline.update.forward import Row

    generator = torch.Generator().manual_seed(work.seed)
    rows = []
    for _ in range(work.prompts):
        prompt = tuple(torch.randint(3, 60, (work.prompt_tokens,), generator=generator).tolist())
        for _ in range(work.samples):
            length = min(1 + int(torch.empty(1).exponential_(1 / 80, generator=generator)), work.max_tokens)
            ids = tuple(torch.randint(3, 60, (length,), generator=generator).tolist())
            rows.append(Row(prompt, ids, (True,) * length))
    return rows, torch.randn(len(rows), generator=generator).tolist()


def trl_loss(trainer: Any, rows: Sequence[Any], advantages: Sequence[float]) -> float:
    """Through GRPOTrainer.compute_loss, without the KL (its reference is the model itself here)."""
    import torch

    from pipeline.models.models import pad_right

    def padded(values: Sequence[Sequence[int]]) -> Any:
        return pad_right(values, 0, dtype=torch.long, device=torch.device("cpu"))

    trainer.beta = 0.0
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 1
    trainer.model.train()
    trainer.model.zero_grad()
    mask = padded([[1] * len(r.ids) for r in rows])
    loss = trainer.compute_loss(
        trainer.model,
        {
            "prompt_ids": padded([r.prompt_ids for r in rows]),
            "prompt_mask": padded([[1] * len(r.prompt_ids) for r in rows]),
            "completion_ids": padded([r.ids for r in rows]),
            "completion_mask": mask,
            "advantages": torch.tensor(advantages),
            "num_items_in_batch": mask.sum(),
        },
    )
    loss.backward()
    return float(loss.detach())


def our_loss(place: Path, work: Workload, rows: Sequence[Any], advantages: Sequence[float]) -> tuple[float, Any]:
    """Through the learner's forward, micro-batches and loss, as in a stage."""
    import torch

    from pipeline.config.schema import Model
    from pipeline.models.models import load_policy
    from pipeline.update import losses
    from pipeline.update.forward import CompletionLogprobs, micro_batches, pad_rows, stack

    model = load_policy(str(place / "model"), Model())
    forward = CompletionLogprobs(model, temperature=1.0)
    assert forward.packs
    total = losses.denominator(stack([r.mask for r in rows]).bool(), kind="token_mean")
    summed = 0.0
    for places in micro_batches(rows, work.tokens_per_microbatch, packs=True):
        batch = pad_rows([rows[i] for i in places], torch.device("cpu"))
        logprobs_BT, _ = forward(batch)
        advantages_BT = torch.tensor([advantages[i] for i in places])[:, None].expand_as(logprobs_BT)
        loss_BT = losses.clipped_surrogate(
            logprobs_BT, logprobs_BT.detach(), advantages_BT, batch.mask_BT, clip_low=0.2, clip_high=0.2
        )
        loss = losses.aggregate(loss_BT, batch.mask_BT, kind="token_mean", total=total)
        loss.backward()
        summed += float(loss.detach())
    return summed, gradient_of(model)


def gradient_of(model: Any) -> Any:
    import torch

    return torch.cat([p.grad.flatten() for p in model.parameters()])
