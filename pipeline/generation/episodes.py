"""Multi-turn tasks: the policy answers, the environment returns an observation, the policy reads it and answers again.

There are two kinds of memory, which determine how an episode is stored (tools and chat templates: tool_episodes.py):

    state     each turn's prompt is only the last observation. One Rollout per turn, numbered by `turn`; what is learned
              in a state applies to every episode that passes through it.
    history   each turn's prompt is everything before it. One Rollout per episode, with `sampled` False on the
              environment's tokens: they have no loss, no reward and no GAE step.

An environment is a class in a verifier's file (`verifiers/gridworld.py`). An exception in it ends that episode as
broken: the episode has no score, and no other row is affected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import verifiers
from pipeline.config.load import ConfigError
from pipeline.config.schema import Sampling
from pipeline.data.completion_text import completion_texts
from pipeline.generation.generator import Generator, Request, Sample, sample_until_stop
from pipeline.records import Prompt, Rollout, Scored, Status
from pipeline.seeds import derive

Memory = Literal["state", "history"]


class Environment(Protocol):
    """One episode. Each episode uses a new instance."""

    def reset(self, task: Any) -> str:
        """The first observation."""
        ...

    def step(self, action: str) -> tuple[str, float, bool]:
        """(observation, reward, done) for an answer, given as text without its end token."""
        ...


def load_environment(name: str, dirs: Sequence[str] = (), *, where: str = "environment") -> Callable[[], Environment]:
    """The `Environment` of the verifier `name`. Raises ConfigError if there is none."""
    try:
        module = verifiers.load(name, dirs).module
    except ValueError as exc:
        raise ConfigError([f"{where}: {exc}"]) from exc
    if not hasattr(module, "Environment"):
        raise ConfigError([f"{where}: verifier {name!r} has no Environment, so it has no turns; leave the key out"])
    return module.Environment


@dataclass(slots=True)
class _Turn:
    prompt_ids: tuple[int, ...]
    prompt_text: str
    sample: Sample
    text: str
    reward: float


@dataclass(slots=True)
class _Play:
    """One episode in progress."""

    environment: Environment
    start: Prompt
    sample: int
    prompt_ids: tuple[int, ...]
    prompt_text: str
    turns: list[_Turn] = field(default_factory=list)
    done: bool = False
    fault: str = ""


def play(
    generator: Generator,
    environment: Callable[[], Environment],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    samples: int,
    max_turns: int,
    memory: Memory,
    key: tuple[int | str, ...],
    tokenizer: Any,
    stop_token_ids: frozenset[int],
    read: Callable[[str], Sequence[int]] | None = None,
    first: int = 0,
    context: int | None = None,
) -> list[Scored]:
    """Play `samples` episodes per prompt; returns them prompt-major, with the rows of an episode adjacent.

    prompts: the starts; `task` goes to the environment, and the ids are the first prompt that the policy reads. A
    turn's row holds its own prompt under the start's index, and the turn's reward. The seed of each turn is a function
    of (key, prompt index, sample, turn), whatever else is played with it. All episodes take each turn together.
    read: returns an observation's ids; None tokenizes it as plain text, with a BOS only if it is a prompt by itself.
    An answer that hits the length limit ends its episode, because the rest of the answer is not known.
    first: index of the first prompt, if these are a rank's share of a larger list.
    context: context length of the engine in tokens. An observation that leaves no room for an answer ends its episode
    as broken, with the reason.
    """
    read = read or (lambda text: tokenizer(text, add_special_tokens=memory == "state").input_ids)
    plays = [_begin(environment(), prompt, sample) for prompt in prompts for sample in range(samples)]
    for turn in range(max_turns):
        live = [(index, one) for index, one in enumerate(plays) if not one.done]
        if not live:
            break
        requests = [
            Request(one.prompt_ids, derive(*key, first + index // samples, one.sample, turn), sampling.max_tokens)
            for index, one in live
        ]
        drawn = sample_until_stop(generator, requests, sampling, stop_token_ids, tokenizer)
        texts = completion_texts(tokenizer, [d.ids for d in drawn], [one.prompt_ids for _, one in live])
        for (_, one), sample, text in zip(live, drawn, texts, strict=True):
            _advance(one, sample, text, memory, read)
            _check_room(one, context, sampling.max_tokens)
    write = _rows if memory == "state" else _sequence
    return [row for one in plays for row in write(one)]


def _begin(environment: Environment, prompt: Prompt, sample: int) -> _Play:
    one = _Play(environment, prompt, sample, prompt.ids, prompt.text)
    try:
        environment.reset(prompt.task)
    except Exception as exc:  # untrusted code: an environment's exception never becomes a reward
        one.fault = f"reset raised {type(exc).__name__}: {exc}"
    return one


def _advance(one: _Play, sample: Sample, text: str, memory: Memory, read: Callable[[str], Sequence[int]]) -> None:
    """Pass the answer to the environment and build the next prompt from its observation."""
    observation, reward, one.done = "", 0.0, True
    if sample.finished and not one.fault:
        try:
            observation, reward, one.done = one.environment.step(text)
        except Exception as exc:  # untrusted code, as above
            one.fault = f"step {len(one.turns) + 1} raised {type(exc).__name__}: {exc}"
    one.turns.append(_Turn(one.prompt_ids, one.prompt_text, sample, text, float(reward)))
    if one.done:
        return
    observation_ids = tuple(read(observation))
    if not observation_ids:
        one.fault, one.done = f"step {len(one.turns)} gave an empty observation: there is nothing to answer", True
    if memory == "state":
        one.prompt_ids, one.prompt_text = observation_ids, observation
    else:
        one.prompt_ids = (
            *one.prompt_ids,
            *sample.ids,
            *observation_ids,
        )  # token in, token out: ids never go through text
        one.prompt_text = f"{one.prompt_text}{text}{observation}"


def _check_room(one: _Play, context: int | None, max_tokens: int) -> None:
    """End the episode if its next prompt and an answer would not fit into the engine's context."""
    needed = len(one.prompt_ids) + max_tokens
    if not one.done and context is not None and needed > context:
        one.fault, one.done = (
            f"after step {len(one.turns)} the next turn needs {needed} tokens and the engine has {context}; raise "
            "episodes.max_observation_tokens, lower max_turns, or let the environment say less",
            True,
        )


def _status(one: _Play) -> Status:
    if one.fault:
        return "error"
    return "pass" if sum(t.reward for t in one.turns) > 0 else "fail"


def _rows(one: _Play) -> list[Scored]:
    """One row per turn."""
    out = []
    for number, turn in enumerate(one.turns):
        prompt = replace(one.start, ids=turn.prompt_ids, text=turn.prompt_text)
        rollout = Rollout(
            prompt, one.sample, turn.sample.ids, turn.sample.logprobs, turn.text, turn.sample.finished, turn=number
        )
        out.append(Scored(rollout, math.nan if one.fault else turn.reward, _status(one), {}, one.fault))
    return out


def _sequence(one: _Play) -> list[Scored]:
    """One row, with the environment's tokens between the turns masked."""
    ids: list[int] = []
    logprobs: list[float] = []
    sampled: list[bool] = []
    ends: list[int] = []
    prefix = len(one.start.ids)
    for turn in one.turns:
        between = turn.prompt_ids[prefix + len(ids) :]  # the observation
        ids += [*between, *turn.sample.ids]
        logprobs += [*(0.0 for _ in between), *turn.sample.logprobs]
        sampled += [*(False for _ in between), *(True for _ in turn.sample.ids)]
        ends.append(len(ids) - 1)
    last = one.turns[-1]
    text = last.prompt_text.removeprefix(one.start.text) + last.text
    finished = all(turn.sample.finished for turn in one.turns)
    rollout = Rollout(one.start, one.sample, tuple(ids), tuple(logprobs), text, finished, tuple(sampled))
    step_rewards = tuple((at, t.reward) for at, t in zip(ends[:-1], one.turns, strict=False) if t.reward)
    return [Scored(rollout, math.nan if one.fault else last.reward, _status(one), {}, one.fault, step_rewards)]
