"""Process settings that must be made before torch is imported, and its peak memory."""

from __future__ import annotations

import logging
import os
import re
import resource
from pathlib import Path

from pipeline.models.model_dir import LARGE, parameters_at


def peak_rss() -> int:
    """Peak resident memory of this process, in bytes.

    Not `ru_maxrss` where the kernel has VmHWM: that is at least what the parent held when it started this process.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def thread_count(threads: int | str | None, model_path: str | None) -> int | None:
    """The config's `threads`; `auto`: one for a small model, which two threads of one process make slower, and as many
    as torch takes (None) for a large one."""
    if threads != "auto":
        assert not isinstance(threads, str)
        return threads
    return None if model_path and parameters_at(model_path) > LARGE else 1


def prepare(threads: int | None) -> None:
    """Quiet libraries, no telemetry, idle threads that sleep, and `threads` threads for torch."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports kernels that it could not fetch
    import torch

    if threads:
        torch.set_num_threads(threads)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
