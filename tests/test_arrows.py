"""Imports run one way. The real tree is held to it, and the checker is held to planted sources."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.arrows import PACKAGES, Import, broken_arrows, imports_of

ROOT = Path(__file__).resolve().parents[1]

# A small tree in which every arrow is right; each planted fault is added to it.
SOUND = {
    "verifiers/__init__.py": "from dataclasses import dataclass",
    "verifiers/exact.py": "from verifiers import dataclass\nimport regex",
    "rewards/__init__.py": "import verifiers\nimport torch",
    "pipeline/__init__.py": "",
    "pipeline/config.py": "import yaml",
    "pipeline/generate.py": "from pipeline.config import Config\ndef engine():\n    import vllm\n    return vllm",
    "pipeline/credit/__init__.py": "",
    "pipeline/credit/advantages.py": "import math\nimport torch\nfrom torch import nn\nfrom . import shaping",
    "pipeline/credit/shaping.py": "import torch",
    "pipeline/update/losses.py": "import torch.nn.functional as F",
    "pipeline/update/loop.py": "from pipeline.update import losses\nfrom pipeline import config",
    "pipeline/stages/grpo.py": "from pipeline import generate\nimport rewards\nfrom pipeline.update.loop import run",
    "pipeline/report/__init__.py": "from pipeline.stages import grpo",
    "pipeline/__main__.py": "from pipeline.report import page\nfrom pipeline import __version__",
    "benchmarks/rollout.py": "import vllm\nfrom pipeline import generate",
}


def test_the_tree_breaks_no_arrow() -> None:
    sources = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    assert {path.split("/")[0] for path in sources} == set(PACKAGES), "the test looked in the wrong place"
    assert broken_arrows(sources) == []


def test_a_sound_tree_is_found_sound() -> None:
    assert broken_arrows(SOUND) == []


@pytest.mark.parametrize(
    ("path", "source", "told"),
    [
        ("verifiers/exact.py", "import torch", "verifiers/ never imports torch"),
        ("verifiers/exact.py", "def f():\n    from torch import nn", "verifiers/ never imports torch"),
        ("verifiers/exact.py", "import importlib\nimportlib.import_module('torch')", "verifiers/ never imports torch"),
        ("verifiers/exact.py", "__import__('transformers')", "verifiers/ never imports transformers"),
        ("verifiers/exact.py", "from rewards import compose", "verifiers/ never imports rewards/"),
        ("verifiers/sandbox/pool.py", "from pipeline.config import Config", "verifiers/ never imports pipeline/"),
        ("rewards/learned.py", "from pipeline import models", "rewards/ never imports pipeline/"),
        ("rewards/learned.py", "from tests import arrows", "nothing in rewards/ imports tests/"),
        ("pipeline/config.py", "from benchmarks import rollout", "nothing in pipeline/ imports benchmarks/"),
        ("pipeline/config.py", "from pipeline import generate", "stands before pipeline.generate"),
        ("pipeline/config.py", "from . import generate", "stands before pipeline.generate"),
        ("pipeline/config.py", "def f():\n    import pipeline.stages.grpo", "stands before pipeline.stages"),
        ("pipeline/update/loop.py", "from ..stages import grpo", "stands before pipeline.stages"),
        ("pipeline/stages/grpo.py", "from pipeline.report import page", "stands before pipeline.report"),
        ("pipeline/report/__init__.py", "import pipeline.__main__", "stands before pipeline.__main__"),
        ("pipeline/credit/advantages.py", "from pipeline.config import Config", "nothing else"),
        ("pipeline/credit/advantages.py", "from pipeline.update import losses", "nothing else"),
        ("pipeline/credit/advantages.py", "import transformers", "nothing else"),
        ("pipeline/credit/advantages.py", "from .. import records", "nothing else"),
        ("pipeline/update/losses.py", "from pipeline.credit import advantages", "nothing else"),
        ("pipeline/update/losses.py", "from pipeline.update import loop", "nothing else"),
        ("pipeline/generate.py", "import vllm", "inside a function"),
        ("pipeline/generate.py", "class A:\n    from vllm import LLM", "inside a function"),
        ("pipeline/stages/grpo.py", "def f():\n    import vllm", "vllm is imported only in pipeline.generate"),
        ("rewards/learned.py", "def f():\n    from vllm import LLM", "vllm is imported only in pipeline.generate"),
        ("pipeline/novel.py", "import math", "pipeline.novel has no place among the arrows"),
        ("pipeline/novel/part.py", "import math", "pipeline.novel has no place among the arrows"),
    ],
)
def test_a_planted_fault_is_found_and_named(path: str, source: str, told: str) -> None:
    broken = broken_arrows(SOUND | {path: source})
    assert len(broken) == 1
    assert broken[0].startswith(path)
    assert told in broken[0]


def test_an_import_for_the_type_checker_counts_as_lazy_and_its_else_does_not() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vllm\nelse:\n    import vllm.engine\n"
    assert imports_of(source, "pipeline/generate.py")[1:] == [
        Import("vllm", 3, lazy=True),
        Import("vllm.engine", 5, lazy=False),
    ]


def test_relative_imports_are_resolved_as_python_does() -> None:
    def names(source: str, path: str) -> list[str]:
        return [found.name for found in imports_of(source, path)]

    assert names("from . import losses", "pipeline/update/loop.py") == ["pipeline.update.losses"]
    assert names("from .losses import clip, kl", "pipeline/update/loop.py") == [
        "pipeline.update.losses.clip",
        "pipeline.update.losses.kl",
    ]
    assert names("from ..config import Config", "pipeline/update/loop.py") == ["pipeline.config.Config"]
    assert names("from . import advantages", "pipeline/credit/__init__.py") == ["pipeline.credit.advantages"]
