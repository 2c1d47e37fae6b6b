"""What the tests of several processes share: a chain of every stage, and how to start it once or on several ranks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loop_kit import CHARACTERS

ROOT = Path(__file__).parent.parent
ACCELERATE = ROOT / "configs" / "accelerate"
CHAIN = f"""
run: t
seed: 3
model:
  tiny: {{hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64,
         characters: "{CHARACTERS}"}}
prompts: {{procedural: gridworld, rows: 300, heldout: 0.25}}
rewards: {{variety: {{kind: function, path: "ranks_kit:variety"}}}}
generate: {{backend: transformers}}
sampling: {{max_tokens: 10}}
evaluation: {{samples: 2, prompts: 5, k: 2}}
sft: {{policy: base, trainer: {{max_steps: 8, per_device_train_batch_size: 8, learning_rate: 5.0e-3,
                              logging_steps: 1}}}}
feedme: {{policy: sft, rounds: 2, prompts: 9, samples: 3, filters: [{{threshold: 0.1}}, {{cap: 2}}], sft_share: 0.2,
          trainer: &fit {{max_steps: 3, per_device_train_batch_size: 8, learning_rate: 1.0e-3, logging_steps: 1,
                         dataloader_drop_last: true, adam_epsilon: 1.0e-4}}}}
reward_model: {{policy: sft, prompts: 9, samples: 3, heldout_prompts: 4, trainer: *fit}}
ppo: {{policy: sft, reward: {{reward_model: {{}}}}, steps: 2, prompts: 5, samples: 2, epochs: 2,
       tokens_per_microbatch: 60, kl: {{coef: 0.1}}, critic: {{warmup_steps: 1}}, optimizer: {{learning_rate: 1.0e-2}}}}
grpo: {{policy: sft, steps: 3, prompts: 5, samples: 4, minibatches: 2, tokens_per_microbatch: 120, kl: {{coef: 0.1}},
        loss: {{ptx_coef: 0.1}}, optimizer: {{learning_rate: 1.0e-2}}}}
conditioned: {{policy: sft, prompts: 9, samples: 3, demonstrations: 12, edges: [0.3, 0.5], per_bin: 8, kl_coef: 0.1,
               guidance: 1.5, online_rounds: 1, trainer: *fit}}
evaluate: {{}}
stages: [base, sft, feedme, reward_model, ppo, grpo, conditioned, evaluate]
"""
TRAINED = ("sft", "feedme", "reward_model", "conditioned")
# as many rows a step as one process has with 8
HALVED = [f"{stage}.trainer.per_device_train_batch_size=4" for stage in TRAINED]


def variety(prompts: Any, completions: Sequence[str], **columns: Any) -> list[float | None]:
    """Different letters in the answer: a reward that samples of an untrained model earn more and less of."""
    return [len(set(text)) / 8 for text in completions]


def write_chain(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "chain.yaml"
    path.write_text(CHAIN)
    return path


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    found = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1", **more}


def torchrun(processes: int, *words: str, nodes: int = 1, node: int = 0, port: int | None = None) -> list[str]:
    """The command; words: what follows `python -m pipeline`."""
    where = ["--nnodes", str(nodes), "--node_rank", str(node), "--master_addr", "127.0.0.1"]
    where += ["--master_port", str(port or free_port())]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), *where]
    return [*launcher, "-m", "pipeline", *words]


def accelerated(mode: str, processes: int, *words: str) -> list[str]:
    """`accelerate launch` with one of the files of configs/accelerate/."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE / f"{mode}.yaml")]
    launcher += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    return [*launcher, "-m", "pipeline", *words]


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=env or environment(), capture_output=True, text=True, timeout=900
    )  # fmt: skip
