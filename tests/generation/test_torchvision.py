"""The stand-in for torchvision: importable, unusable, and behind a real one."""

import subprocess
import sys

import pytest

from pipeline.generation.vllm_engine import TEXT_ONLY

CODE = """
import sys; sys.path.append({path!r})
import torchvision
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvF
import torchvision.transforms.v2.functional
modes = {{InterpolationMode.BILINEAR: 1}}
try:
    tvF.resize(None)
except ImportError as exc:
    print(exc)
"""


def test_everything_can_be_imported_and_nothing_called():
    if "torchvision" in sys.modules:
        pytest.skip("torchvision is installed")
    code = CODE.format(path=str(TEXT_ONLY))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torchvision is not installed, and images are not supported")
