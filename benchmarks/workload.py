"""The inputs of both sides: a model of a few million weights, prompts, a reward, and the settings of a step.

The model is random and has a vocabulary of about 80 tokens, so that the end token is sampled by chance: completions
have a mean near 80 tokens and a tail truncated at 256, and about a third of a padded batch is not padding. With a
larger vocabulary the end token is made as likely as `mean_tokens` requires. The learning rate is so small that the
lengths do not change.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from verifiers import word_problems

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;<>=+-*/()?!"
REWARD = "vowel_share"
VERIFIER = '''"""The share of vowels in a completion: quick, dense, and the same number on both sides."""

from typing import TypedDict

from verifiers import Example, Verdict


class Task(TypedDict):
    pass


def verify(completion: str, task: Task) -> Verdict:
    share = sum(c in "aeiouAEIOU" for c in completion) / max(len(completion), 1)
    return Verdict("pass" if share == 1 else "fail", share)


EXAMPLES = (
    Example("right", "aei", {}),
    Example("wrong", "bcd", {}),
    Example("hostile", "", {}),
)
'''


@dataclass(frozen=True, slots=True)
class Workload:
    """kl: coefficient of the KL in the loss; 0 needs no reference. vocabulary: number of tokens; up to the
    number of keyboard characters, 3 are added. mean_tokens: of untruncated completions; None leaves it to chance.
    model_path: a pretrained model in place of the random one. dtype: of the matrix products; weights that are trained
    are float32. micro_rows: rows per micro-batch of TRL; None: all. tokens_per_microbatch 0: by memory."""

    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 768
    vocabulary: int = len(CHARACTERS)
    prompts: int = 8
    samples: int = 8
    prompt_tokens: int = 12
    max_tokens: int = 256
    mean_tokens: int | None = None
    steps: int = 100
    kl: float = 0.04
    learning_rate: float = 1e-6
    tokens_per_microbatch: int = 16_384
    verifier: str = REWARD
    judge_every: int = 0
    judge_by: str = "pass"
    seed: int = 1
    model_path: str | None = None
    dtype: str = "float32"
    threads: int = 1
    micro_rows: int | None = None

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def lay_out(place: Path, work: Workload) -> None:
    """Write model, prompts, verifier and our config to one directory."""
    place.mkdir(parents=True, exist_ok=True)
    if work.model_path is not None:
        (place / "model").symlink_to(Path(work.model_path).resolve())
        rows = [row["prompt"] for row in word_problems.generate(64, work.seed)]
    else:
        make_model(place, work)
        random = Random(work.seed)
        rows = ["".join(random.choices(CHARACTERS[:60], k=work.prompt_tokens)) for _ in range(64)]
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": r, "task": {}}) + "\n" for r in rows))
    (place / "heldout.jsonl").write_text(json.dumps({"prompt": "zz" + rows[0][2:], "task": {}}) + "\n")
    (place / "verifiers").mkdir(exist_ok=True)
    (place / "verifiers" / f"{REWARD}.py").write_text(VERIFIER)
    (place / "ours.yaml").write_text(json.dumps(our_config(place, work)))  # JSON is YAML


def make_model(place: Path, work: Workload) -> None:
    """A random model of the workload's shape, whose completions have its mean length."""
    from pipeline.config.schema import Tiny
    from pipeline.models.models import make_tiny

    tiny = Tiny(
        hidden_size=work.hidden_size, intermediate_size=work.intermediate_size, num_hidden_layers=work.layers,
        num_attention_heads=work.heads, max_position_embeddings=2048,
        characters=CHARACTERS[: work.vocabulary],
    )  # fmt: skip
    make_tiny(tiny, place / "model", seed=work.seed)
    if work.vocabulary > len(CHARACTERS):
        enlarge(place / "model", work.vocabulary, seed=work.seed)
    if work.mean_tokens is not None:
        end_after(place / "model", work.mean_tokens)


def enlarge(model_dir: Path, vocabulary: int, *, seed: int) -> None:
    """Enlarge the vocabulary to this many tokens, in the tokenizer's file and in the model."""
    import torch
    from transformers import AutoModelForCausalLM

    path = model_dir / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    known = tokenizer["model"]["vocab"]
    known |= {f"word{i} ": i for i in range(len(known), vocabulary)}
    path.write_text(json.dumps(tokenizer))
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    torch.manual_seed(seed)
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    model.save_pretrained(model_dir)


def end_after(model_dir: Path, mean_tokens: int) -> None:
    """Make completions end as often as this mean requires: one column of the tied embedding becomes equal for all
    tokens, so that it is part of every hidden state, and larger for the end token, which raises its logit."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir)
    weight, end = model.get_input_embeddings().weight.data, model.config.eos_token_id
    weight[:, 0] = 10.0  # much larger than the rest of a hidden state, so that it varies little between positions
    with torch.no_grad():
        ids = torch.randint(3, len(weight), (8, 64), generator=torch.Generator().manual_seed(0))
        out = model(ids, output_hidden_states=True)
    chance = out.logits.softmax(-1)[..., end].mean().item()
    wanted = math.log(1 / (mean_tokens - 1)) - math.log(chance / (1 - chance))
    weight[end, 0] += wanted / out.hidden_states[-1][..., 0].mean().item()
    model.save_pretrained(model_dir)


def our_config(place: Path, work: Workload) -> dict[str, Any]:
    return {
        "run": "benchmark",
        "seed": work.seed,
        "model": {"path": str(place / "model"), "dtype": work.dtype},
        "threads": work.threads,
        "prompts": {"path": str(place / "prompts.jsonl"), "heldout_path": str(place / "heldout.jsonl")},
        "verifier_dirs": [str(place / "verifiers")],
        "rewards": {work.verifier: {"weight": 1.0}},
        "sampling": {"temperature": 1.0, "max_tokens": work.max_tokens},
        "evaluation": {"samples": 2, "k": 1},
        "stages": ["grpo"],
        "grpo": {
            "policy": "model",
            "steps": work.steps,
            "prompts": work.prompts,
            "samples": work.samples,
            "kl": {"coef": work.kl},
            "optimizer": {"learning_rate": work.learning_rate, "eps": 1e-8},  # as in TRL; with 1e-5 steps are smaller
            **({"tokens_per_microbatch": work.tokens_per_microbatch} if work.tokens_per_microbatch else {}),
            "alarms": {"loss_abs": 1e9},
        },
    }
