"""Peak memory and time of `plan`, an SFT and a GRPO stage on a JSONL file of WHETSTONE_DATA_GB gigabytes (0.2).

Each row has a short sum to answer and a long text beside it that no stage reads, as corpora have metadata. Every
command also runs on 1,000 such rows: what it needs beyond that is the cost of the file's size. A command is a process
of its own with the transformers engine, so that its peak is of one process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NOTES = "The notes of this row are long, and no stage reads them. " * 140
COMMANDS = ("plan", "base", "sft", "grpo")
SMALL_ROWS = 1000
CONFIG = {
    "run": "r", "stages": ["base", "sft", "grpo"], "model": {"tiny": {}}, "rewards": {"math_answer": {}},
    "prompts": {"heldout": 0.01}, "evaluation": {"prompts": 16, "samples": 4}, "sampling": {"max_tokens": 8},
    "generate": {"backend": "transformers"},
    "sft": {"policy": "base", "trainer": {"max_steps": 4, "per_device_train_batch_size": 8}},
    "grpo": {"policy": "sft", "steps": 2, "prompts": 4, "samples": 4},
}  # fmt: skip


def run() -> dict[str, Any]:
    size = float(os.environ.get("WHETSTONE_DATA_GB", "0.2"))
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measured(Path(folder) / name, **limit) for name, limit in
                 (("small", {"rows": SMALL_ROWS}), ("large", {"size": int(size * 1e9)}))}  # fmt: skip
    growth = {c: found["large"][c]["peak_mib"] - found["small"][c]["peak_mib"] for c in COMMANDS}
    peak = max(found["large"][command]["peak_mib"] for command in COMMANDS)
    return {"ratios": {"large_data_peak_mib": peak}, "gigabytes": size, "growth_mib": growth, **found}


def measured(folder: Path, **limit: int) -> dict[str, dict[str, float]]:
    """Command -> its peak resident set and seconds, on a file of so many rows or bytes."""
    folder.mkdir()
    write_rows(folder / "rows.jsonl", **limit)
    (folder / "c.yaml").write_text(json.dumps(CONFIG))
    own = [f"runs_dir={folder / 'runs'}", f"prompts.path={folder / 'rows.jsonl'}"]
    out = {command: spent([command, str(folder / "c.yaml"), *own, *(["trial=false"] if command == "plan" else [])])
           for command in COMMANDS}  # fmt: skip
    shutil.rmtree(folder)
    return out


def write_rows(path: Path, *, rows: int = sys.maxsize, size: int = sys.maxsize) -> int:
    """Write rows until there are so many or the file has that size in bytes. Returns how many there are."""
    notes = f', "notes": {json.dumps(NOTES)}}}\n'  # encoded once: it is nearly all of a row
    written = count = 0
    with path.open("w") as file:
        while count < rows and written < size:
            count += 1
            total = str(2 * count + 7)
            row = {"prompt": f"{count} + {count + 7} =", "completion": total, "gold": total}
            written += file.write(json.dumps(row)[:-1] + notes)
    return count


def spent(arguments: list[str]) -> dict[str, float]:
    """Peak resident set and wall seconds of one command. Raises AssertionError unless it ends with 0."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-m", "pipeline", *arguments], stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)  # usage of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        assert process.returncode == 0, f"{arguments}: exit {process.returncode}\n{log.read()[-2000:]}"
    return {"peak_mib": round(usage.ru_maxrss / 1024, 1), "seconds": round(time.perf_counter() - start, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1)}  # fmt: skip
