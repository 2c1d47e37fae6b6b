"""How the cost of a step grows with one dimension: fitted exponents, 1 = proportional.

Measures an update (forward, backward, optimizer) on rows of fixed lengths, so that only one size differs: prompts,
samples per prompt, completion length, prompt length, hidden size, layers (parameters at a constant width), vocabulary,
or processes (DDP over gloo) that share the same work. For processes the cost is the total over all of them: 0 would
mean that sharing is free. An exponent below 1 means a fixed cost that is amortised over more work.
"""

from __future__ import annotations

import math
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import in_turns
from benchmarks.workload import Workload, lay_out

BASE = Workload(hidden_size=128, intermediate_size=384, layers=2, prompts=4, samples=4, prompt_tokens=32, max_tokens=48)
PROCESSES = (1, 2, 4)
AXES: dict[str, dict[int, Workload]] = {  # of each dimension: its size -> the work
    "prompts": {n: replace(BASE, prompts=n) for n in (4, 8, 16)},
    "samples": {n: replace(BASE, samples=n) for n in (4, 8, 16)},
    "completion_tokens": {n: replace(BASE, max_tokens=n) for n in (48, 96, 192)},
    "prompt_tokens": {n: replace(BASE, prompt_tokens=n) for n in (32, 64, 128)},
    "hidden_size": {n: replace(BASE, hidden_size=n, intermediate_size=3 * n, heads=n // 32) for n in (128, 256, 512)},
    "layers": {n: replace(BASE, layers=n) for n in (2, 4, 8, 16)},
    "vocabulary": {n: replace(BASE, vocabulary=n) for n in (128, 2048, 32_768, 262_144)},
}


def run(rounds: int = 5) -> dict[str, Any]:
    seconds: dict[str, dict[int, float]] = {}
    for axis, works in AXES.items():
        with tempfile.TemporaryDirectory() as folder:
            sides = {str(n): learning(Path(folder) / str(n), work) for n, work in works.items()}
            spent = in_turns(sides, rounds=rounds)
        seconds[axis] = {n: round(spent[str(n)]["cpu"], 5) for n in works}
    seconds["processes"] = {n: round(shared(n, rounds), 5) for n in PROCESSES}
    exponents = {axis: round(slope(of_sizes), 3) for axis, of_sizes in seconds.items()}
    return {"ratios": {}, "exponents": exponents, "cpu_seconds": seconds, "rounds": rounds}


def shared(processes: int, rounds: int) -> float:
    """CPU seconds that all processes together spend on one update of the same rows."""
    import torch

    with tempfile.TemporaryDirectory() as folder, socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        held.close()
        torch.multiprocessing.spawn(one_of, (processes, port, folder, rounds), nprocs=processes)
        return sum(float(path.read_text()) for path in Path(folder).glob("cpu-*"))


def one_of(rank: int, processes: int, port: int, folder: str, rounds: int) -> None:
    if processes > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
        os.environ |= {name: str(value) for name, value in place.items()}
    import torch

    from pipeline.distributed import sharding

    torch.set_num_threads(1)
    sharding.accelerator()  # the ranks synchronise before rank 0 writes the model that all of them read
    update = learning(Path(folder) / "work", replace(BASE, prompts=16, tokens_per_microbatch=512))
    spent = []
    for _ in range(rounds + 1):
        started = time.process_time()
        update()
        spent.append(time.process_time() - started)
    (Path(folder) / f"cpu-{rank}").write_text(str(statistics.median(spent[1:])))


def slope(values: Mapping[int, float]) -> float:
    """Least-squares exponent of size -> value."""
    return statistics.linear_regression([*map(math.log, values)], [*map(math.log, values.values())]).slope


def learning(place: Path, work: Workload) -> Callable[[], None]:
    """One update of a separate learner on rows that all have the maximum length."""
    import torch
    from accelerate import Accelerator

    from pipeline.config.schema import Loss, Model, Optimizer
    from pipeline.models.models import load_policy
    from pipeline.update.forward import CompletionLogprobs, Row
    from pipeline.update.learner import Learner
    from pipeline.update.policy_loss import Experience

    lay_out(place, work)
    policy = CompletionLogprobs(load_policy(str(place / "model"), Model()).train(), temperature=1.0)
    learner = Learner(
        Accelerator(cpu=True), policy, None, loss=Loss(), optimizer=Optimizer(learning_rate=1e-6),
        critic_settings=None, updates=1000, max_tokens=work.max_tokens, budget=work.tokens_per_microbatch,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(work.seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 60, (count,), generator=draw).tolist())

    prompts = [ids(work.prompt_tokens) for _ in range(work.prompts)]
    mask = (True,) * work.max_tokens
    rows = [Row(prompt, ids(work.max_tokens), mask) for prompt in prompts for _ in range(work.samples)]
    batch = Experience(
        rows,
        [torch.full((work.max_tokens,), (-1.0) ** i) for i in range(len(rows))],
        [torch.zeros(work.max_tokens) for _ in rows],
    )

    def update() -> None:
        learner.update(batch, range(len(rows)), kl_coef=0.0, kl_kind="k3")

    return update
