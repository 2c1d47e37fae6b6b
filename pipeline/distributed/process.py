"""Process settings that must be applied before torch is imported, and its peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import re
import resource
import warnings
from pathlib import Path

from pipeline.distributed.late_compile import compile_late

COLLECTED_FROM = 2 << 30  # bytes of peak memory


def peak_rss() -> int:
    """Peak resident memory of this process, in bytes.

    Not `ru_maxrss` where the kernel has VmHWM: that is at least what the parent held when it started this process.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def free_memory() -> None:
    """Free what reference cycles hold, such as the models of a stage that has ended, and return it to the system;
    nothing in a process that has stayed small, where the search takes longer than it is worth.

    glibc keeps freed blocks below one that is still in use: 6 GB after seven stages of a model of 0.27B parameters.
    """
    if peak_rss() <= COLLECTED_FROM:
        return
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)


def verbose() -> bool:
    """Whether the user wants the libraries' own logs: --verbose, or WHETSTONE_VERBOSE=1."""
    return os.environ.get("WHETSTONE_VERBOSE") == "1"


def silence() -> None:
    """No library log that a user cannot act on, in this process and in those it starts.

    Deprecations are about the libraries' own calls; NUMA and thread binding are chosen by us; bars of weights come and
    go within a second. Warnings of other kinds stay.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    quiet = ",".join(f"ignore::{name}" for name in ("DeprecationWarning", "FutureWarning"))
    os.environ.setdefault("PYTHONWARNINGS", quiet)
    # kernels that could not be fetched, and a compiler for GPUs that a CPU machine lacks
    for name in ("bitsandbytes", "torch._library.triton"):
        logging.getLogger(name).setLevel(logging.ERROR)


def prepare(threads: int | None) -> None:
    """Quiet libraries (unless --verbose), no telemetry, idle threads that sleep, and `threads` threads for torch."""
    prepare_environment(threads)
    prepare_libraries(threads)


def prepare_environment(threads: int | None) -> None:
    """The part of `prepare` that imports nothing."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that spin while they wait stall beside another process, those that sleep at once take longer to wake than
    # the operations of a decoding step last. 1,000 turns are a few microseconds (benchmarks/NOTES.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if not verbose():
        silence()


def prepare_libraries(threads: int | None) -> None:
    """The part of `prepare` that imports torch and transformers, which takes seconds."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    compile_late("bitsandbytes")
    import transformers

    if not verbose():
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
