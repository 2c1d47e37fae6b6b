"""`make test-real`: the recipes, precision and packing on a real pretrained model, by default Gemma 3 270M.

MODEL names its directory. Recipes run with their own settings but for data, sizes and `MODEL=`; their data are files in
the published columns, made here from the word problems.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.real_model import CACHE
from verifiers import word_problems

pytestmark = pytest.mark.real
ROOT = Path(__file__).parents[2]
FEW_STEPS = {"max_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def real() -> str:
    path = os.environ.get("MODEL") or str(CACHE / "model")
    if not (Path(path) / "config.json").is_file():
        pytest.skip("no real model; `make test-real` fetches one, MODEL=path names another")
    return path


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made_by_a_recipe(config: str, real: str, folder: Path, settings: dict[str, Any]) -> Path:
    """The run's directory after `make pipeline CONFIG=... MODEL=... SET=...`."""
    words = [f"{name}={json.dumps(value)}" for name, value in {**settings, "run": "r", "runs_dir": str(folder)}.items()]
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MODEL")}
    command = ["make", "pipeline", f"CONFIG=configs/{config}", f"MODEL={real}", f"SET={shlex.join(words)}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (folder / "r" / "report.html").is_file()
    return folder / "r"


def metrics(run: Path, stage: str) -> dict[str, Any]:
    return json.loads((run / stage / "manifest.json").read_text())["metrics"]


def test_what_a_pretrained_model_knows_survived_the_conversion(real):
    """Weights or token ids that are off by anything would not continue this."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(real)
    tokenizer = AutoTokenizer.from_pretrained(real)
    asked = tokenizer("The capital of France is the city of", return_tensors="pt")
    grown = model.generate(**asked, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(grown[0, asked["input_ids"].shape[1] :])
    turns = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer(turns, add_special_tokens=False)["input_ids"].count(tokenizer.bos_token_id) <= 1


@pytest.mark.timeout(1800)
def test_grpo_on_rows_in_gsm8ks_columns(real, tmp_path):
    rows = [{"question": r["prompt"].partition(" Put the answer")[0],
             "answer": f"{r['completion'].partition(' ')[0]} is the start.\n#### {r['task']['gold']}"}
            for r in word_problems.generate(60, 1)]  # fmt: skip
    run = made_by_a_recipe("gsm8k/qwen2.5-0.5b-grpo.yaml", real, tmp_path, {
        "prompts.path": str(write(tmp_path / "gsm8k.jsonl", rows)), "prompts.name": None, "prompts.heldout": 0.25,
        "prompts.heldout_split": None, "model.dtype": "auto", "sampling.max_tokens": 24, "generate.vllm": {},
        "evaluation": {"samples": 2, "prompts": 2, "k": 2}, "grpo.steps": 2, "grpo.prompts": 2, "grpo.samples": 4,
        "grpo.groups": {},  # the recipe masks cut samples, and a base model seldom ends one
    })  # fmt: skip
    steps = [json.loads(line) for line in (run / "grpo" / "metrics.jsonl").read_text().splitlines()]
    steps = [s for s in steps if "mismatch_mean_abs" in s]
    assert len(steps) == 2 and all(s["mismatch_mean_abs"] < 0.1 for s in steps)
    assert all(s["canary_max_abs"] <= s["canary_limit"] for s in steps)
    assert metrics(run, "evaluate")["best_policy"] in ("base", "grpo")


@pytest.mark.timeout(1800)
def test_rlhf_on_rows_in_tldrs_columns(real, tmp_path):
    problems = list(word_problems.generate(24, 2))
    posts = [f"SUBREDDIT: r/maths\n\nTITLE: Help\n\nPOST: {r['prompt']}\n\nTL;DR:" for r in problems]
    texts = [{"prompt": p, "completion": " " + r["completion"]} for p, r in zip(posts, problems, strict=True)]
    pairs = [{"prompt": p, "chosen": " " + r["completion"], "rejected": " No idea."}
             for p, r in zip(posts, problems, strict=True)]  # fmt: skip
    run = made_by_a_recipe("tldr/smollm2-360m-rlhf.yaml", real, tmp_path, {
        "prompts.path": str(write(tmp_path / "tldr.jsonl", texts)), "prompts.heldout": 0.25,
        "prompts.heldout_split": None, "model.dtype": "auto", "sampling.max_tokens": 16,
        "reward_model.data": {"path": str(write(tmp_path / "pairs.jsonl", pairs)), "format": "tldr", "heldout": 0.25},
        "evaluation": {"samples": 2, "prompts": 2, "k": 2}, "ppo.steps": 1, "ppo.prompts": 4, "ppo.minibatches": 1,
        "ppo.critic.warmup_steps": 0,
        **{f"{stage}.trainer.{name}": value for stage in ("sft", "reward_model") for name, value in FEW_STEPS.items()},
    })  # fmt: skip
    assert metrics(run, "reward_model")["pairs"] > 0
    assert (run / "ppo" / "model" / "model.safetensors").is_file()


def test_packed_rows_have_the_log_probs_of_padded_ones(real):
    """In float32 on sliding windows and 262,144 tokens; bfloat16 differs by rounding (docs/real-model.md)."""
    import torch

    from pipeline.config.schema import Model
    from pipeline.models.models import load_policy
    from pipeline.update.forward import CompletionLogprobs, Row
    from pipeline.update.learner import Inference

    model = load_policy(real, Model(path=real, dtype="float32"))
    ids = torch.randint(1000, 50_000, (3, 40), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [Row(tuple(one[:8]), tuple(one[8 : 8 + n]), (True,) * n) for one, n in zip(ids, (5, 32, 17), strict=True)]
    found = []
    for packs in (True, False):
        forward = CompletionLogprobs(model, temperature=1.0)
        assert forward.packs
        forward.packs = packs
        found.append(Inference(forward, None, budget=200, device=model.device).logprobs(rows, temperature=1.0))
    gaps = [float((a - b).abs().max()) for a, b in zip(*found, strict=True)]
    assert max(gaps) < 1e-3
