"""GRPO on the demo task in one straight line, from the functions that the real loop uses.

    python examples/grpo_from_parts.py

Left out on purpose: checkpoints, several processes, alarms, logs; `whetstone run` adds them. The task: walk from one
field of a 5 x 5 grid to another by text, prompt `a1>d4:`, answer `RRRUUU`. Takes about a minute on one CPU core.
Source: GRPO, arXiv:2402.03300, with one update per batch, so that the old policy is the current one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import rewards
from pipeline.config.schema import Generate, Model, Prompts, Sampling, Tiny
from pipeline.credit.advantages import group_advantages
from pipeline.data.encoding import Demonstrations
from pipeline.data.prompts import LazyPrompts, load_rows, split
from pipeline.generation.generator import rollouts
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.models import models
from pipeline.records import Prompt, Scored
from pipeline.score import score
from pipeline.seeds import cycle_indices
from pipeline.stats import pass_rate
from pipeline.update.forward import CompletionLogprobs, Row, pad_rows, stack
from pipeline.update.losses import aggregate, clipped_surrogate

STEPS, PROMPTS, SAMPLES = 30, 32, 8
SOURCE = Prompts(procedural="gridworld", rows=4000, heldout=0.25)
TINY = Tiny(64, 64, 2, 2, 192, "abcde12345>:<0RLUD ")
CPU = torch.device("cpu")


class SampledTask(NamedTuple):
    """sample(prompts, samples, *key) -> scored rollouts of the policy, prompt-major; the key decides every draw."""

    policy: CompletionLogprobs
    sample: Callable[..., list[Scored]]
    train_prompts: Sequence[Prompt]
    heldout_prompts: Sequence[Prompt]


def main(seed: int = 1, steps: int = STEPS) -> tuple[float, float]:
    """Held-out accuracy before and after."""
    policy, sample, train_prompts, heldout_prompts = setup(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-4, weight_decay=0.0)
    before = pass_rate(sample(heldout_prompts, 4, "before"))
    for step in range(steps):
        # prompts -> rollouts -> scores
        indices = cycle_indices(len(train_prompts), step * PROMPTS, PROMPTS, seed, "order")
        scored = sample([train_prompts[i] for i in indices], SAMPLES, "step", step)
        # scores -> credit: reward minus the group's mean, over its standard deviation
        rewards_PG = torch.tensor([s.reward for s in scored]).view(PROMPTS, SAMPLES)
        advantages_B1 = group_advantages(rewards_PG, scale=True).view(-1, 1)
        # credit -> update
        batch = pad_rows([Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask) for s in scored], CPU)
        logprobs_BT, _ = policy(batch)
        old_BT = logprobs_BT.detach()
        loss_BT = clipped_surrogate(logprobs_BT, old_BT, advantages_B1, batch.mask_BT, clip_low=0.2, clip_high=0.2)
        aggregate(loss_BT, batch.mask_BT, kind="token_mean").backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # the sampler held the same weights, so its log-probs are the trainer's
        mismatch = float((old_BT - stack([s.rollout.logprobs for s in scored])).abs().max())
        if step % 5 == 4:
            print(f"step {step + 1:2d}  reward {rewards_PG.mean():.3f}  largest mismatch {mismatch:.1e}")
    after = pass_rate(sample(heldout_prompts, 4, "after"))
    print(f"held-out accuracy: {before:.3f} before, {after:.3f} after {steps} steps of GRPO")
    return before, after


def setup(seed: int) -> SampledTask:
    """A small model that has seen demonstrations and is right now and then, and what samples and scores its answers."""
    folder = str(Path(tempfile.mkdtemp()) / "model")
    models.make_tiny(TINY, Path(folder), seed=seed)
    tokenizer = models.load_tokenizer(folder, Model())
    ends = models.end_ids(tokenizer)
    policy = CompletionLogprobs(models.load_policy(folder, Model()), temperature=1.0)
    generator = TransformersGenerator(folder, Model(), Generate())
    scorer = rewards.build({"gridworld": {}})
    rows = split(load_rows(SOURCE, seed=seed), SOURCE)
    shown = Demonstrations(rows.train, SOURCE, tokenizer, stop_token_ids=ends)
    short = [d for d in shown if len(d.completion_ids) <= 7]  # most demonstrations wander about before they arrive
    demonstrations = [Row(d.prompt_ids, d.completion_ids, (True,) * len(d.completion_ids)) for d in short]
    imitate(policy, demonstrations, steps=300, lr=5e-3, seed=seed)

    def sample(prompts: Sequence[Prompt], samples: int, *key: int | str) -> list[Scored]:
        generator.sync(models.named_weights(policy.model))
        settings = Sampling(temperature=1.0, max_tokens=12)
        return score(scorer, rollouts(generator, prompts, settings, samples=samples, key=(seed, *key),
                                      tokenizer=tokenizer, stop_token_ids=ends))  # fmt: skip

    prompts = [LazyPrompts(some, SOURCE, tokenizer) for some in (rows.train, rows.heldout)]
    return SampledTask(policy, sample, *prompts)


def imitate(policy: CompletionLogprobs, rows: list[Row], *, steps: int, lr: float, seed: int, size: int = 64) -> None:
    """Supervised steps on the completions: mean negative log-likelihood of their tokens, learning rate down to 0."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        batch = pad_rows([rows[i] for i in cycle_indices(len(rows), step * size, size, seed, "sft")], CPU)
        aggregate(-policy(batch)[0], batch.mask_BT, kind="token_mean").backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    main()
