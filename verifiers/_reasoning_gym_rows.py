"""Entries of reasoning-gym, made in a process of their own whose hash seed is fixed.

Some of its datasets (0.1.25: isomorphic_strings, knight_swap, polynomial_multiplication, ransom_note, word_ladder) walk
over sets of strings, so their entries depend on the hash seed of the process as well as on the given seed: a resumed
run would train on other prompts. decimal_arithmetic sets the precision of `decimal` for its whole process.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


def entries(requests: Sequence[tuple[str, int, int]]) -> list[dict[str, Any]]:
    """The entries of each (dataset, how many, seed) in order, as JSON brings them back.

    Raises RuntimeError with the last line that the process wrote if it fails.
    """
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "verifiers._reasoning_gym_rows"], input=json.dumps(list(requests)), env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"reasoning_gym: {last}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    package = importlib.import_module("reasoning_gym")
    out, sys.stdout = sys.stdout, sys.stderr  # a dataset that prints must not write between the entries
    for dataset, n, seed in json.load(sys.stdin):
        for entry in package.create_dataset(dataset, size=n, seed=seed):
            out.write(json.dumps(entry, default=str) + "\n")


if __name__ == "__main__":
    main()
