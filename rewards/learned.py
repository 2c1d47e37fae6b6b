"""A reward model as a reward function for TRL's trainers. It reads token ids, as in training, including the EOS.

    model = pipeline.models.models.LearnedReward("runs/demo/reward_model/model", Model())
    GRPOTrainer(reward_funcs=[rewards.verifier("math_answer"), rewards.learned(model, tokenizer)], ...)

The caller provides the model, so this package does not import torch: any function of (prompt ids, completion ids) that
returns one score per row. TRL passes prompts as text or messages, and completions also as ids; text is tokenized here
only if no ids are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.parts import LearnedReward
from rewards.shaping import RewardFunction, text_of


def learned(model: LearnedReward, tokenizer: Any, *, name: str = "reward_model") -> RewardFunction:
    """Return f(prompts, completions, completion_ids=None, **columns) -> one score per row, None if it is not finite.

    tokenizer: the tokenizer of the reward model, callable on text, with apply_chat_template if prompts are messages.
    """

    def learned_reward(
        prompts: Any, completions: Any, completion_ids: Any = None, prompt_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        prompt_ids_B = (
            [list(ids) for ids in prompt_ids] if prompt_ids is not None else prompt_ids_of(prompts, tokenizer)
        )
        completion_ids_B = completion_ids if completion_ids is not None else completion_ids_of(completions, tokenizer)
        scores = model(prompt_ids_B, [list(ids) for ids in completion_ids_B])
        if len(scores) != len(completions):
            raise ValueError(f"{name}: the model returned {len(scores)} scores for {len(completions)} rows")
        return [score if math.isfinite(score) else None for score in map(float, scores)]

    learned_reward.__name__ = name
    return learned_reward


def prompt_ids_of(prompts: Sequence[Any], tokenizer: Any) -> list[list[int]]:
    """Token ids of prompts as a policy reads them: plain text unchanged, messages through the chat template."""
    out = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = tokenizer(prompt)["input_ids"]
        else:
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template already adds the BOS
        out.append(list(ids))
    return out


def completion_ids_of(completions: Sequence[Any], tokenizer: Any) -> list[list[int]]:
    """Token ids of completions given only as text, which has lost the EOS token that the score is read from."""
    return [
        [*tokenizer(text_of(c), add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for c in completions
    ]


__all__ = ["completion_ids_of", "learned", "prompt_ids_of"]
