"""Rewards that depend on form, not correctness: length, repetition, a missing EOS, random.

Each factory returns a function with TRL's signature, f(prompts, completions, completion_ids, **columns), so that
`GRPOTrainer(reward_funcs=[rewards.length(max_tokens=512, buffer_tokens=64)])` works without changes.
Penalties are in [-1, 0]: give them a positive weight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import verifiers

RewardFunction = Callable[..., list[float | None]]


def text_of(message: str | Sequence[dict[str, Any]]) -> str:
    """A completion or prompt as text: TRL passes conversations as lists of messages; only the last message is used."""
    return message if isinstance(message, str) else str(message[-1]["content"])


def length(*, max_tokens: int, buffer_tokens: int) -> RewardFunction:
    """Soft penalty for overlong completions: 0 up to max - buffer tokens, then linear down to -1 at max, -1 beyond.

    Source: DAPO, arXiv:2503.14476, eq. 13.
    """
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(f"length: buffer_tokens {buffer_tokens} must lie in 1 to max_tokens {max_tokens}")

    def length_reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        over_B = [len(ids) - (max_tokens - buffer_tokens) for ids in completion_ids]
        return [-min(1.0, max(0, over) / buffer_tokens) for over in over_B]

    return length_reward


def repetition(*, ngram: int = 4) -> RewardFunction:
    """Negative share of repeated n-grams of token ids; a completion shorter than one n-gram gets 0.

    It uses token ids, not words: this works for any language and for exactly what the policy sampled.
    Source: the penalty of arXiv:2502.03373 §4.2, per completion.
    """
    if ngram < 1:
        raise ValueError(f"repetition: ngram {ngram} must be at least 1")

    def repetition_reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        rewards_B: list[float | None] = []
        for ids in completion_ids:
            total = len(ids) - ngram + 1
            distinct = len({tuple(ids[i : i + ngram]) for i in range(total)})
            rewards_B.append(distinct / total - 1.0 if total > 0 else 0.0)
        return rewards_B

    return repetition_reward


def missing_eos(*, eos_token_ids: list[int] | None = None) -> RewardFunction:
    """-1 if the completion was truncated, 0 if it ended by itself.

    Reads the column `finished`; without it (in a plain TRL run) the last id must be one of eos_token_ids.
    """

    def missing_eos_reward(
        prompts: Any, completions: Any, completion_ids: Any, finished: Any = None, **columns: Any
    ) -> list[float | None]:
        if finished is None:
            if not eos_token_ids:
                raise ValueError("missing_eos: no column `finished`, so name the eos_token_ids")
            finished = [bool(ids) and ids[-1] in eos_token_ids for ids in completion_ids]
        return [0.0 if ended else -1.0 for ended in finished]

    return missing_eos_reward


def format(*, tags: list[str] | None = None, opened: bool = False, tail: bool = False) -> RewardFunction:
    """1 if the tags are in the right places, else 0; same rules as the verifier `format`."""
    task: dict[str, Any] = {"opened": opened, "tail": tail} | ({"tags": tags} if tags else {})
    verifier = verifiers.load("format")

    def format_reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        texts = [text_of(completion) for completion in completions]
        return [verdict.score for verdict in verifier.grade(texts, [task] * len(texts))]

    return format_reward


def tool_calls(*, free: int = 0) -> RewardFunction:
    """The number of tool calls of an episode above `free`; give it a negative weight to make calls cost something.

    Reads the column `tool_calls`, which episodes with tools have.
    """

    def tool_calls_reward(
        prompts: Any, completions: Any, completion_ids: Any, tool_calls: Any = None, **columns: Any
    ) -> list[float | None]:
        if tool_calls is None:
            raise ValueError("tool_calls: no column `tool_calls`; the run has no tools")
        return [float(max(count - free, 0)) for count in tool_calls]

    return tool_calls_reward


def environment() -> RewardFunction:
    """What the environment itself says that an episode with tools earned (`get_reward`).

    Reads the column `environment_reward`.
    """

    def environment_reward(
        prompts: Any, completions: Any, completion_ids: Any, environment_reward: Any = None, **columns: Any
    ) -> list[float | None]:
        if environment_reward is None or all(reward is None for reward in environment_reward):
            raise ValueError("environment: no tool or environment of this run has a get_reward method")
        return [None if reward is None else float(reward) for reward in environment_reward]

    return environment_reward


def random(*, seed: int = 0, pass_rate: float | None = None) -> RewardFunction:
    """Random reward as a control: uniform in [0, 1), or 1 with probability pass_rate and else 0.

    A pure function of (seed, prompt, token ids): a sample gets the same reward in any order, also after resuming.
    """
    if pass_rate is not None and not 0.0 <= pass_rate <= 1.0:
        raise ValueError(f"random: pass_rate {pass_rate} is not in [0, 1]")

    def random_reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
        rewards_B: list[float | None] = []
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            key = f"{seed}\0{prompt}\0{','.join(map(str, ids))}".encode(errors="surrogatepass")
            uniform = (int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 11) / 2**53
            rewards_B.append(uniform if pass_rate is None else float(uniform < pass_rate))
        return rewards_B

    return random_reward
