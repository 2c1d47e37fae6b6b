"""One side of a comparison in its own process, which runs one step per request.

Two trainers, each with an engine, can thus take turns step by step without sharing a process, memory or threads.
A worker blocks at the start of each step; the time until it blocks again is the time of the step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from benchmarks.gate import Gate, GateStopped
from benchmarks.measure import turn_line
from benchmarks.workload import Workload, lay_out

SIDES = ("ours", "ours_transformers", "trl_hf", "trl_vllm")


class SideProcess:
    """The measuring process's handle: starts a side, requests steps, stops it."""

    def __init__(self, side: str, work: Workload, lay: Callable[[Path, Workload], None] = lay_out) -> None:
        self.side, self.folder = side, tempfile.TemporaryDirectory(prefix=f"bench-{side}-")
        place = Path(self.folder.name)
        lay(place, work)
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        self.log = (place / "log.txt").open("w+")
        command = [sys.executable, "-m", "benchmarks.bench_worker", side, str(place), work.to_json()]
        self.process = subprocess.Popen(
            [*command, str(to_read), str(to_write)], pass_fds=(to_read, to_write), stdout=self.log, stderr=self.log
        )
        os.close(to_read)
        os.close(to_write)
        self.asked, self.told = os.fdopen(self._to, "w"), os.fdopen(self._from)
        self.ready = self._answer()

    def step(self) -> dict[str, float]:
        """Figures of one step: wall, cpu, tokens, peak_mib and the side's own timings."""
        self.asked.write("step\n")
        self.asked.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        line = self.told.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise RuntimeError(f"{self.side} ended with {self.process.returncode}:\n{self.log.read()[-3000:]}")
        return json.loads(line)

    def __enter__(self) -> SideProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.asked.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.told.close()
        self.log.close()
        self.folder.cleanup()


def take_turns(
    workers: Sequence[SideProcess], *, rounds: int, warmup: int, progress: bool = False
) -> dict[str, list[dict[str, float]]]:
    """The steps of each worker, one per round; the order is reversed in every other round."""
    out: dict[str, list[dict[str, float]]] = {w.side: [] for w in workers}
    turns, done, started = (rounds + warmup) * len(workers), 0, time.perf_counter()
    for number in range(rounds + warmup):
        for worker in workers if number % 2 == 0 else list(reversed(workers)):
            figures = worker.step()
            done += 1
            if progress:
                print(turn_line(worker.side, figures["wall"], done, turns, time.perf_counter() - started), flush=True)
            if number >= warmup:
                out[worker.side].append(figures)
    return out


def main(side: str, place: str, work: str, requests: str, answers: str) -> None:
    from benchmarks.measure import prepare_environment

    settings = Workload(**json.loads(work))
    prepare_environment(settings.threads)
    import torch

    torch.set_num_threads(settings.threads)
    gate, folder = Gate(int(requests), int(answers)), Path(place)
    try:
        if side.startswith("ours"):
            from benchmarks import ours

            ours.train(folder, settings, gate, backend="transformers" if side == "ours_transformers" else "vllm")
        else:
            from benchmarks import trl_side

            trl_side.train(folder, settings, gate, vllm=side == "trl_vllm")
        gate.step()
    except GateStopped:
        pass
    sys.stdout.flush()
    os._exit(0)  # engines take seconds to shut down, and nothing of theirs is needed


if __name__ == "__main__":
    main(*sys.argv[1:])
