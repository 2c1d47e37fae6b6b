"""Rank and world size of this process, and collective calls. With one process everything here is the identity.

torchrun and accelerate start one process per device and set its rank in the environment. Sampling, scoring and forward
passes are split over the ranks; their results are gathered, so that every rank holds the whole batch and reaches the
same decision, alarm or minibatch as a single process would. Only rank 0 writes.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipeline.config.load import ConfigError, read_yaml
from pipeline.distributed import sharding

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# how many processes a launcher started: torchrun and accelerate, Open MPI, other MPIs, srun
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


LEAVE_S = 10.0


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def start() -> None:
    """Join the other processes, before anything is written. Raises ConfigError where they are not what was launched."""
    requested, mode = requested_processes(os.environ, _parent_command()), sharding.mode()
    if requested > 1 and "RANK" in os.environ:
        atexit.register(_end)  # before the libraries register theirs, so called after them
        import torch
        from accelerate import PartialState

        sharding.allow_on_cpu(PartialState(cpu=not torch.cuda.is_available()))
    check(requested, _joined())
    if mode in sharding.SHARDED and requested == 1:
        raise ConfigError([f"launched for {mode} with one process, which leaves nothing to shard; raise num_processes, "
                           "or start python -m pipeline without a launcher"])  # fmt: skip


def leave() -> None:
    """Leave the other processes, once all are done: an interpreter that exits inside a group may abort (exit -6).

    Gloo's threads are joined here and not at exit (pytorch issue 190489), but a model that FSDP2 has sharded holds
    groups until its modules are taken apart; so the process ends right after its exit handlers. Not for a process that
    ends early: the barrier would wait for ranks that are still at work.
    """
    if _joined() > 1:
        import torch.distributed

        barrier()
        _second.clear()
        torch.distributed.destroy_process_group()
        _left.append(True)


_left: list[bool] = []


def _end() -> None:
    if _left:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1 if hasattr(sys, "last_value") else 0)  # set by an exception that nothing handled


def requested_processes(environ: Mapping[str, str], parent: Sequence[str]) -> int:
    """How many processes the launcher should have started: by its environment, or by accelerate's own command line.

    `accelerate launch --cpu --num_processes 2` starts one process and sets nothing, so its command line is read.
    """
    sizes = [int(environ[name]) for name in WORLD_SIZES if environ.get(name, "").isdigit()]
    return max([1, *sizes, _accelerate_processes(parent) if "ACCELERATE_MIXED_PRECISION" in environ else 1])


def _accelerate_processes(words: Sequence[str]) -> int:
    """The number of processes in an `accelerate launch` command, from its option or the config file it names."""
    options = {"num_processes": "1", "config_file": ""}
    flat = [part for word in words for part in word.split("=", 1)]
    for word, value in itertools.pairwise(flat):
        name = word.lstrip("-").replace("-", "_")
        if word.startswith("--") and name in options:
            options[name] = value
    if options["num_processes"] == "1" and Path(options["config_file"]).is_file():
        options["num_processes"] = str(read_yaml(options["config_file"]).get("num_processes", 1))
    return int(options["num_processes"]) if re.fullmatch(r"\d+", options["num_processes"]) else 1


def _parent_command() -> list[str]:
    """The command line of the process that started this one; empty where the system does not show it."""
    try:
        raw = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode(errors="replace").split("\0")


def check(requested: int, actual: int) -> None:
    """Raises ConfigError where a launch for several processes silently became another number."""
    if requested != actual:
        raise ConfigError(
            [f"launched for {requested} processes, and this one sees {actual}: each would train alone on its own copy; "
             f"use torchrun --nproc_per_node {requested} -m pipeline ... (accelerate's CPU launch starts only one)"]
        )  # fmt: skip


def _joined() -> int:
    if "torch" not in sys.modules:  # a single process that has joined none; the import takes seconds
        return 1
    import torch.distributed

    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if ready else 1


def lost_another(exc: RuntimeError) -> bool:
    """True where a collective call failed because another rank is gone, or no longer answers."""
    text = f"{type(exc).__name__} {exc}".lower()
    return world() > 1 and any(
        word in text for word in ("gloo", "nccl", "distbackenderror", "connection closed by peer")
    )


def give_up(exc: RuntimeError) -> int:
    """Report what happened and exit soon: tearing down a broken group may wait for the rank that is gone."""
    reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0][:160]
    print(f"rank {rank()}: another rank has died or hangs ({reason}). Its own last lines, or its launcher's, name the "
          "cause (killed by signal 9: often memory). Run the same command to resume from the last checkpoint",
          file=sys.stderr, flush=True)  # fmt: skip
    timer = threading.Timer(LEAVE_S, os._exit, (1,))
    timer.daemon = True
    timer.start()
    return 1


def barrier() -> None:
    if world() > 1:
        import torch.distributed

        torch.distributed.barrier()


_here = threading.local()  # the group of a thread that communicates beside the main one
_second: list[Any] = []


def open_aside() -> None:
    """Create the second process group, on all ranks at the same point: two threads must not share one group."""
    if world() > 1 and not _second:
        import torch.distributed

        _second.append(torch.distributed.new_group(backend="gloo"))


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Collective calls of this thread use the second group, apart from those of the main thread."""
    _here.group = _second[0] if _second else None
    try:
        yield
    finally:
        _here.group = None


def from_main(make: Callable[[], T]) -> T:
    """The result of `make` on rank 0, on every rank; what it raises is raised on every rank, so that none waits."""
    if world() == 1:
        return make()
    import torch.distributed

    box: list[Any] = [None, None]
    group = getattr(_here, "group", None)
    if is_main():
        try:
            box[0] = make()
        except Exception as exc:  # sent on and raised below, on this rank as on the others
            box[1] = exc
    torch.distributed.broadcast_object_list(box, group=group)
    if box[1] is not None:
        raise box[1]
    return box[0]


def gather(items: Sequence[T]) -> list[T]:
    """The items of rank 0, then of rank 1, and so on, on every rank."""
    if world() == 1:
        return list(items)
    import torch.distributed

    parts: list[Any] = [None] * world()
    torch.distributed.all_gather_object(parts, list(items), group=getattr(_here, "group", None))
    return [item for part in parts for item in part]


def share(n: int) -> range:
    """This rank's contiguous part of n indices; `gather` restores the order."""
    return range(n * rank() // world(), n * (rank() + 1) // world())


def mapped(function: Callable[[Sequence[Any]], list[T]], items: Sequence[Any]) -> list[T]:
    """function(items), each rank on its share of them. One result per item, in order."""
    mine = share(len(items))
    return gather(function(items[mine.start : mine.stop]))


def dealt(batches: Sequence[list[int]]) -> list[list[int]]:
    """This rank's micro-batches. Every rank gets equally many, so that all run the same number of forward passes.

    Batches come sorted by length, so dealing them in turn balances the work. Too few are split in halves, largest
    first; a rank that still gets none has [], to be padded with rows of weight 0.
    """
    deck = [list(batch) for batch in batches]
    while len(deck) % world():
        largest = max(range(len(deck)), key=lambda i: len(deck[i]))
        batch = deck[largest]
        if len(batch) < 2:
            deck.append([])
            continue
        half = len(batch) // 2
        deck[largest : largest + 1] = [batch[:half], batch[half:]]
    return deck[rank() :: world()]


def summed(values: Tensor) -> Tensor:
    """The sum over ranks."""
    return _reduced(values, "SUM")


def largest(values: Tensor) -> Tensor:
    return _reduced(values, "MAX")


def _reduced(values: Tensor, how: str) -> Tensor:
    if world() > 1:
        import torch.distributed

        values = values.clone()
        torch.distributed.all_reduce(values, op=getattr(torch.distributed.ReduceOp, how))
    return values


def full_tensor(tensor: Any) -> Any:
    """The full tensor, on every rank; itself where it is not sharded. A collective call where it is."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor()
    if hasattr(tensor, "ds_id"):
        with gathered_parameters([tensor]):
            return tensor.detach().clone()
    return tensor


def gathered_parameters(parameters: Iterable[Any]) -> contextlib.AbstractContextManager[None]:
    """A block in which ZeRO-3's parameters are gathered, to be read; does nothing in other modes."""
    sharded = [p for p in parameters if hasattr(p, "ds_id")]
    if not sharded:
        return contextlib.nullcontext()
    import deepspeed

    return cast(contextlib.AbstractContextManager[None], deepspeed.zero.GatheredParameters(sharded))


__all__ = [
    "aside",
    "barrier",
    "check",
    "dealt",
    "from_main",
    "full_tensor",
    "gather",
    "gathered_parameters",
    "give_up",
    "is_main",
    "largest",
    "leave",
    "lost_another",
    "mapped",
    "open_aside",
    "rank",
    "requested_processes",
    "share",
    "start",
    "summed",
    "world",
]
