"""What the tests of the policy loop share: a tiny model, a config of one stage, and a run of it through the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.__main__ import main
from pipeline.config.schema import Model, Tiny
from pipeline.models import models

CHARACTERS = "abcde12345>:<0RLUD "
TINY = Tiny(64, 64, 2, 2, 64, CHARACTERS)  # vLLM on CPU wants 32 numbers a head
# a chat without names of roles; an assistant turn ends with the end token
PLAIN_TEMPLATE = """{%- for m in messages -%}
  {{- m.content -}}{%- if m.role == 'assistant' -%}{{- eos_token -}}{%- endif -%}
{%- endfor -%}"""
CONFIG = """
run: t
seed: 3
model: {{path: {model}}}
prompts: {{procedural: gridworld, rows: 200, heldout: 0.25}}
rewards: {{letters: {{kind: function, path: "loop_kit:letters"}}}}
generate: {{backend: transformers}}
sampling: {{max_tokens: 6}}
evaluation: {{samples: 1, prompts: 4, k: 1}}
stages: [grpo]
grpo: {{policy: {model}, steps: 2, prompts: 4, samples: 4, optimizer: {{learning_rate: 1.0e-2}}}}
ppo:
  {{policy: {model}, steps: 2, prompts: 4, samples: 4, epochs: 2, minibatches: 2, critic: {{warmup_steps: 1}},
   optimizer: {{learning_rate: 1.0e-2}}}}
"""


def letters(prompts: Any, completions: Sequence[str], **columns: Any) -> list[float | None]:
    """Share of the letter R: a reward that a policy with no idea of the task can raise."""
    return [text.count("R") / max(len(text), 1) for text in completions]


def near_a_half(prompts: Any, completions: Sequence[str], **columns: Any) -> list[float | None]:
    """1 where half of the letters are R, 0 where all or none are: a task that training on `letters` overshoots."""
    return [1 - abs(2 * text.count("R") / max(len(text), 1) - 1) for text in completions]


def constant(prompts: Any, completions: Sequence[str], **columns: Any) -> list[float | None]:
    return [0.25 for _ in completions]


def broken(prompts: Any, completions: Sequence[str], **columns: Any) -> list[float | None]:
    raise RuntimeError("the checker's disk is full")


def tiny_model(place: Path, *, seed: int = 1, tied: bool = True) -> Path:
    models.make_tiny(TINY, place, seed=seed)
    if not tied:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(place)
        config.tie_word_embeddings = False
        torch.manual_seed(seed)
        models.save(AutoModelForCausalLM.from_config(config), models.load_tokenizer(str(place), Model()), place)
    return place


def write_config(root: Path, model: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "config.yaml"
    path.write_text(CONFIG.format(model=model))
    return path


def run_stage(root: Path, model: Path, stage: str, *overrides: str) -> int:
    """The exit code of `python -m pipeline STAGE config.yaml overrides`; what it wrote is in root/t/STAGE."""
    return main([stage, str(write_config(root, model)), f"runs_dir={root}", *overrides])


def metrics(root: Path, stage: str, run: str = "t") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / run / stage / "metrics.jsonl").read_text().splitlines()]


def manifest(root: Path, stage: str, run: str = "t") -> dict[str, Any]:
    return json.loads((root / run / stage / "manifest.json").read_text())


def weights(root: Path, stage: str, run: str = "t") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(root / run / stage / "model" / "model.safetensors")


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    """The weights in a model's directory."""
    from safetensors.torch import load_file

    return load_file(model / "model.safetensors")
