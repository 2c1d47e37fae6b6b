"""Imports run one way: the real tree is checked, and the checker is checked with planted sources."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

import pipeline
from tests.arrows import PACKAGES, Import, broken_arrows, imports_of, row_of

ROOT = Path(__file__).resolve().parents[1]

# A small tree in which every arrow is right; each planted fault is added to it.
SOUND = {
    "verifiers/__init__.py": "from dataclasses import dataclass",
    "verifiers/exact.py": "from verifiers import dataclass\nimport regex",
    "rewards/__init__.py": "import verifiers\nimport torch",
    "pipeline/__init__.py": "",
    "pipeline/config/load.py": "import yaml",
    "pipeline/generation/vllm_engine.py": "from pipeline.config.load import A\ndef f():\n    import vllm",
    "pipeline/credit/__init__.py": "",
    "pipeline/credit/advantages.py": "import math\nimport torch\nfrom torch import nn\nfrom . import shaping",
    "pipeline/credit/shaping.py": "import torch",
    "pipeline/update/losses.py": "import torch.nn.functional as F",
    "pipeline/update/loop.py": "from pipeline.update import losses\nfrom pipeline import config",
    "pipeline/stages/grpo.py": "import pipeline.generation.engines\nimport rewards\nimport pipeline.update.loop",
    "pipeline/report/__init__.py": "from pipeline.stages import grpo",
    "pipeline/__main__.py": "from pipeline.report import page\nfrom pipeline import __version__",
    "benchmarks/rollout.py": "import vllm\nfrom pipeline.generation import vllm_engine",
}


def test_the_tree_breaks_no_arrow() -> None:
    sources = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    assert {path.split("/")[0] for path in sources} == set(PACKAGES), "the test looked in the wrong place"
    assert broken_arrows(sources) == []


# names of a contract, so each file that keeps it has its own: a verifier's task, the environment it may play
CONTRACTS = {"Task", "Environment", "Session"}


def test_no_module_name_and_no_public_class_name_stands_twice() -> None:
    paths = [path for package in (*PACKAGES, "examples") for path in sorted((ROOT / package).rglob("*.py"))]
    modules = Counter(path.stem for path in paths if not path.stem.startswith("__"))
    classes = Counter(
        node.name
        for path in paths
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in modules.items() if count > 1] == []
    assert [name for name, count in classes.items() if count > 1 and name not in CONTRACTS] == []


def test_the_map_in_the_package_docstring_is_the_tree_in_the_order_of_the_arrows() -> None:
    listed = re.findall(r"^ *(\w+)/? {2,}\S", pipeline.__doc__ or "", re.M)
    tree = {
        path.stem for path in (ROOT / "pipeline").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(listed) == tree - {"__init__"}
    assert [row_of(name) for name in listed] == sorted(row_of(name) or 0 for name in listed)


def test_a_sound_tree_is_found_sound() -> None:
    assert broken_arrows(SOUND) == []


@pytest.mark.parametrize(
    ("path", "source", "reported"),
    [
        ("verifiers/exact.py", "import torch", "verifiers/ never imports torch"),
        ("verifiers/exact.py", "def f():\n    from torch import nn", "verifiers/ never imports torch"),
        ("verifiers/exact.py", "import importlib\nimportlib.import_module('torch')", "verifiers/ never imports torch"),
        ("verifiers/exact.py", "__import__('transformers')", "verifiers/ never imports transformers"),
        ("verifiers/exact.py", "from rewards import compose", "verifiers/ never imports rewards/"),
        ("verifiers/sandbox/pool.py", "from pipeline.config.load import Config", "verifiers/ never imports pipeline/"),
        ("rewards/learned.py", "from pipeline.models import models", "rewards/ never imports pipeline/"),
        ("rewards/learned.py", "from tests import arrows", "nothing in rewards/ imports tests/"),
        ("pipeline/config/load.py", "from benchmarks import rollout", "nothing in pipeline/ imports benchmarks/"),
        ("pipeline/config/load.py", "from pipeline.generation import vllm_engine", "is below pipeline.generation"),
        ("pipeline/config/load.py", "from .. import generation", "is below pipeline.generation"),
        ("pipeline/config/load.py", "def f():\n    import pipeline.stages.grpo", "is below pipeline.stages"),
        ("pipeline/update/loop.py", "from ..stages import grpo", "is below pipeline.stages"),
        ("pipeline/stages/grpo.py", "from pipeline.report import page", "is below pipeline.report"),
        ("pipeline/report/__init__.py", "import pipeline.__main__", "is below pipeline.__main__"),
        ("pipeline/credit/advantages.py", "from pipeline.config.load import Config", "nothing else"),
        ("pipeline/credit/advantages.py", "from pipeline import score", "nothing else"),
        ("pipeline/credit/advantages.py", "import transformers", "nothing else"),
        ("pipeline/credit/advantages.py", "from .. import records", "nothing else"),
        ("pipeline/update/losses.py", "from pipeline.credit import advantages", "nothing else"),
        ("pipeline/update/losses.py", "from pipeline.update import loop", "nothing else"),
        ("pipeline/generation/vllm_engine.py", "import vllm", "inside a function"),
        ("pipeline/generation/vllm_engine.py", "class A:\n    from vllm import LLM", "inside a function"),
        ("pipeline/stages/grpo.py", "def f():\n    import vllm", "vllm is imported only in pipeline.generation/"),
        ("rewards/learned.py", "def f():\n    from vllm import LLM", "vllm is imported only in pipeline.generation/"),
        ("pipeline/novel.py", "import math", "pipeline.novel is in no row of ROWS"),
        ("pipeline/novel/part.py", "import math", "pipeline.novel is in no row of ROWS"),
    ],
)
def test_a_planted_fault_is_found_and_named(path: str, source: str, reported: str) -> None:
    broken = broken_arrows(SOUND | {path: source})
    assert len(broken) == 1
    assert broken[0].startswith(path)
    assert reported in broken[0]


def test_an_import_for_the_type_checker_counts_as_lazy_and_its_else_does_not() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import vllm\nelse:\n    import vllm.engine\n"
    assert imports_of(source, "pipeline/generation/vllm_engine.py")[1:] == [
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
    assert names("from ..config.load import Config", "pipeline/update/loop.py") == ["pipeline.config.load.Config"]
    assert names("from . import advantages", "pipeline/credit/__init__.py") == ["pipeline.credit.advantages"]
