"""The straight-line scripts of examples/ learn, as whole programs, from the seed they are shipped with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.stages
ROOT = Path(__file__).parents[2]
LINES = {"grpo_from_parts.py": 120, "feedme_from_parts.py": 80}


@pytest.mark.parametrize("script", LINES)
def test_an_example_raises_held_out_accuracy(script):
    path = ROOT / "examples" / script
    assert len(path.read_text().splitlines()) <= LINES[script]
    done = subprocess.run([sys.executable, str(path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    reported = re.search(r"held-out accuracy: ([\d.]+) before, ([\d.]+) after", done.stdout)
    assert reported is not None, done.stdout
    before, after = map(float, reported.groups())
    assert after > before + 0.01
