"""What flows between the parts: Prompt -> Rollout -> Scored. Frozen, and written to disk as one JSON object a line.

Token ids are the truth; text is kept for people and for verifiers that read text. Ids never go through text and back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

Status = Literal["pass", "fail", "malformed", "error"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One distinct prompt. index: its number among the distinct prompts of its split. task: what the verifier needs."""

    index: int
    text: str
    ids: tuple[int, ...]
    task: Mapping[str, Any] = field(default_factory=dict)
    row: Mapping[str, Any] = field(default_factory=dict)  # the dataset row it came from, for relabelling and display
    label: str = ""  # condition label in front of what the user says; not in text, row and task


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion of one prompt.

    ids: completion token ids, the end token included when one was sampled.
    logprobs: log-prob of each id under the generator, at the sampling temperature, in nats.
    finished: True if an end token was sampled, False if the length limit truncated it.
    sampled: per id, True where the policy chose it; None means all. Tool output and environment text are False and
        get no loss, no reward and no GAE step.
    turn: place in an episode whose turns have a prompt each. Rows of one episode follow one another; 0 begins one.
    episode: of the last row of an episode with tools: `messages` after the prompt, the `answer` that verifiers read,
        `ended_by`, the numbers of `calls`, `tool_errors` and `malformed_calls`, the environment's own `reward`.
    """

    prompt: Prompt
    sample: int
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finished: bool
    sampled: tuple[bool, ...] | None = None
    turn: int = 0
    episode: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.logprobs), "one log-prob per token"
        assert self.sampled is None or len(self.sampled) == len(self.ids), "one flag per token"

    @property
    def answer(self) -> str:
        """What verifiers read: of an episode with tools its last turn, else the text."""
        return self.text if self.episode is None else str(self.episode["answer"])

    @property
    def mask(self) -> tuple[bool, ...]:
        return self.sampled if self.sampled is not None else (True,) * len(self.ids)


@dataclass(frozen=True, slots=True)
class Scored:
    """A rollout and its reward. reward is NaN if the checker broke: masked, never zero. If only a checker of weight 0
    broke there is a reward, and status `error` says that it is unknown whether the answer is right.

    step_rewards: (index in ids, reward) of rewards given along the way; not in `reward`, which is given at the end.
    """

    rollout: Rollout
    reward: float
    status: Status
    parts: Mapping[str, float | None] = field(default_factory=dict)
    detail: str = ""
    step_rewards: tuple[tuple[int, float], ...] = ()

    @property
    def scorable(self) -> bool:
        return not math.isnan(self.reward)

    @property
    def earned(self) -> float:
        """The total: at its end and along the way."""
        return self.reward + math.fsum(reward for _, reward in self.step_rewards)


def as_json(scored: Scored, **extra: Any) -> dict[str, Any]:
    """One line of rollouts.jsonl: flat, NaN as null."""
    rollout, prompt = scored.rollout, scored.rollout.prompt
    return {
        **extra,
        "prompt_index": prompt.index,
        "prompt": prompt.text,
        "prompt_ids": list(prompt.ids),
        "task": dict(prompt.task),
        "sample": rollout.sample,
        "completion": rollout.text,
        "ids": list(rollout.ids),
        "logprobs": [round(x, 6) for x in rollout.logprobs],
        "finished": rollout.finished,
        **({} if rollout.sampled is None else {"sampled": list(rollout.sampled)}),
        **({} if not rollout.turn else {"turn": rollout.turn}),
        **({} if rollout.episode is None else {"episode": dict(rollout.episode)}),
        "reward": scored.reward if scored.scorable else None,
        "status": scored.status,
        "parts": dict(scored.parts),
        "detail": scored.detail,
        **({} if not scored.step_rewards else {"step_rewards": [list(pair) for pair in scored.step_rewards]}),
    }


def from_json(row: Mapping[str, Any]) -> Scored:
    prompt = Prompt(row["prompt_index"], row["prompt"], tuple(row["prompt_ids"]), row["task"])
    rollout = Rollout(
        prompt,
        row["sample"],
        tuple(row["ids"]),
        tuple(row["logprobs"]),
        row["completion"],
        row["finished"],
        tuple(row["sampled"]) if "sampled" in row else None,
        row.get("turn", 0),
        row.get("episode"),
    )
    reward = math.nan if row["reward"] is None else row["reward"]
    along = tuple((at, earned) for at, earned in row.get("step_rewards", ()))
    return Scored(rollout, reward, row["status"], row["parts"], row["detail"], along)


def read_scored(path: Path) -> Iterator[Scored]:
    """Rows of a rollouts.jsonl. Raises ValueError naming the line that is not a scored rollout."""
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield from_json(json.loads(line))
            except (json.JSONDecodeError, KeyError, TypeError) as exc:
                raise ValueError(f"{path}:{number}: not a scored rollout ({type(exc).__name__}: {exc})") from exc


def save_scored(path: Path, scored: Sequence[Scored], requests: Sequence[Prompt]) -> None:
    """A lossless copy, so that a resumed stage reuses samples bit for bit; rollouts.jsonl rounds its floats.

    One line each. A prompt of `requests` is saved as its index in it, any other (a later turn's) in full.
    """
    indices = {id(prompt): index for index, prompt in enumerate(requests)}
    encode = json.JSONEncoder(separators=(",", ":")).encode
    with path.open("w", encoding="utf-8") as out:
        for one in scored:
            prompt = one.rollout.prompt
            row = _fields(one, skip="rollout") | {"rollout": _fields(one.rollout, skip="prompt")}
            row["prompt"] = indices[id(prompt)] if id(prompt) in indices else _fields(prompt)
            out.write(encode(row) + "\n")


def load_scored(path: Path, requests: Sequence[Prompt]) -> list[Scored]:
    """What `save_scored` wrote for the same requests."""
    out = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            saved = row.pop("prompt")
            prompt = requests[saved] if isinstance(saved, int) else Prompt(**_tuples(saved))
            rollout = Rollout(prompt=prompt, **_tuples(row.pop("rollout")))
            out.append(Scored(rollout=rollout, **_tuples(row)))
    return out


def same_when_loaded(scored: Sequence[Scored], requests: Sequence[Prompt]) -> bool:
    """Whether `load_scored` would give these very records: JSON keeps them if all they hold is of built-in types."""
    known = set(map(id, requests))
    for one in scored:
        rollout = one.rollout
        if id(rollout.prompt) not in known or rollout.episode is not None or type(one.parts) is not dict:
            return False
        numbers = (one.reward, rollout.sample, rollout.turn, *one.parts.values())
        columns = (rollout.ids, rollout.logprobs, one.step_rewards, *one.step_rewards, rollout.sampled or ())
        single = set(map(type, numbers)).union(*(map(type, column) for column in columns)) - {tuple}
        texts = {type(rollout.text), type(one.status), type(one.detail), *map(type, one.parts)}
        if not (single <= _NUMBERS and texts == {str} and set(map(type, columns)) == {tuple}):
            return False
    return True


_NUMBERS = {int, float, bool, type(None)}
_NAMES = {kind: tuple(f.name for f in fields(kind)) for kind in (Prompt, Rollout, Scored)}
_SINGLE = (str, int, float, tuple, bool, type(None))


def _fields(record: Prompt | Rollout | Scored, skip: str = "") -> dict[str, Any]:
    """Name -> value, mappings as dicts, which is what JSON takes."""
    values = {name: getattr(record, name) for name in _NAMES[type(record)] if name != skip}
    return {k: v if type(v) in _SINGLE or not isinstance(v, Mapping) else dict(v) for k, v in values.items()}


def _tuples(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no tuples; the records have nothing else."""
    return {k: _tuple(v) for k, v in row.items()}


def _tuple(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(map(_tuple, value)) if list in map(type, value) else tuple(value)


def groups(scored: Iterable[Scored]) -> list[list[Scored]]:
    """Samples grouped by prompt, prompts in order of first appearance."""
    by_prompt: dict[int, list[Scored]] = {}
    for one in scored:
        by_prompt.setdefault(one.rollout.prompt.index, []).append(one)
    return list(by_prompt.values())


def episodes(scored: Sequence[Scored]) -> list[list[Scored]]:
    """Rows grouped by episode: a new one begins at each turn 0. A single-turn rollout is an episode of one row."""
    out: list[list[Scored]] = []
    for one in scored:
        if one.rollout.turn == 0 or not out:
            out.append([])
        out[-1].append(one)
    return out


def merge_episode(episode: Sequence[Scored]) -> Scored:
    """An episode as one row, for metrics and display: the first prompt, everything sampled, the sum of rewards.

    Its ids lack what the environment said between the turns, so it cannot be trained on.
    """
    if len(episode) == 1:
        return episode[0]
    rollouts, last = [s.rollout for s in episode], episode[-1]
    joined = replace(
        rollouts[0],
        ids=tuple(i for r in rollouts for i in r.ids),
        logprobs=tuple(x for r in rollouts for x in r.logprobs),
        text=" | ".join(r.text for r in rollouts),
        finished=all(r.finished for r in rollouts),
        sampled=None if all(r.sampled is None for r in rollouts) else tuple(m for r in rollouts for m in r.mask),
        episode=rollouts[-1].episode,
    )
    # rewards along the way keep their sum; an index within one turn's row has no meaning in the merged row
    along = tuple((0, reward) for s in episode for _, reward in s.step_rewards)
    return replace(last, rollout=joined, reward=math.fsum(s.reward for s in episode), step_rewards=along)


def merged_episodes(scored: Sequence[Scored]) -> list[Scored]:
    """One row per completion or episode, in order: what figures are computed from."""
    return [merge_episode(episode) for episode in episodes(scored)]


__all__ = [
    "Prompt", "Rollout", "Scored", "as_json", "episodes", "from_json", "groups", "load_scored", "merge_episode",
    "merged_episodes", "read_scored", "same_when_loaded", "save_scored",
]  # fmt: skip
