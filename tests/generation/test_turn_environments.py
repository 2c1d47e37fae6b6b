"""Environments that answer whole turns, and environments that end an episode themselves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from test_tool_episodes import CALL, Scripted, player, sampled_text, tokenizer  # noqa: F401

from pipeline.config.schema import Sampling
from pipeline.data.encoding import render_ids
from pipeline.records import Prompt

SOURCE = '''
from verifiers.tools import Exchange, ToolBroken

class Game:
    """Asks twice, pays 1 for each turn that says "yes"."""

    def reset(self, **task):
        self.task, self.turns, self.total = task, [], 0.0
        if task.get("ends"):
            return Exchange(None)
        return Exchange([{"role": "system", "content": "A game."}, {"role": "user", "content": "Ready?"}])

    def take_turn(self, message, *, finished):
        if message["content"] == "boom":
            raise RuntimeError("the game broke")
        self.turns.append((message["content"], finished))
        self.total += "yes" in message["content"]
        if len(self.turns) == 2:
            return Exchange(None)
        if self.task.get("forgets"):
            return Exchange([{"role": "user", "content": "Start again."}], continues=False)
        return Exchange([{"role": "user", "content": "Sure?"}])

    def get_reward(self):
        return float("nan") if self.task.get("lies") else self.total


class Ending:
    done = False

    def push(self) -> str:
        """Push the button."""
        self.done = True
        return "It is over."

    def get_reward(self):
        return 2.0
'''


def play(tokenizer: Any, folder: Path, name: str, answers: list[str], task: Any = None, **more: Any) -> Any:  # noqa: F811
    (folder / "game.py").write_text(SOURCE)
    cut = more.pop("cut", frozenset())
    one = player(tokenizer, use=[], environment=f"{folder / 'game.py'}:{name}", **more)
    row = {"prompt": "A row", **({"tools": one.tools.schemas} if one.tools.schemas else {})}
    prompt = Prompt(0, "A row", tuple(render_ids(row, one.source, tokenizer)), task or {}, row)
    generator = Scripted(tokenizer, answers, cut)
    return one.play(generator, [prompt], Sampling(max_tokens=60), samples=1, key=(1,)), generator


def test_the_environments_opening_replaces_the_prompt_and_its_answers_are_not_trained_on(tokenizer, tmp_path) -> None:  # noqa: F811
    (row,), generator = play(tokenizer, tmp_path, "Game", ["yes", "yes, sure"])
    asked = [{"role": "system", "content": "A game."}, {"role": "user", "content": "Ready?"}]
    expected = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert list(generator.requests[0].ids) == expected == list(row.prompt.ids)
    assert sampled_text(tokenizer, row) == ["yes<|im_end|>", "yes, sure<|im_end|>"]
    assert (row.episode["ended_by"], row.episode["reward"], row.episode["turns"]) == ("environment", 2.0, 2)
    assert [m["role"] for m in row.episode["messages"]] == ["assistant", "user", "assistant"]


def test_a_new_conversation_of_the_environment_begins_a_new_row(tokenizer, tmp_path) -> None:  # noqa: F811
    rows, generator = play(tokenizer, tmp_path, "Game", ["yes", "no"], {"forgets": True})
    assert [row.turn for row in rows] == [0, 1]
    assert "Ready?" not in tokenizer.decode(generator.requests[1].ids)
    assert rows[-1].episode["reward"] == 1.0


@pytest.mark.parametrize(
    ("answers", "task", "ended_by", "reward"),
    [
        (["boom"], {}, "tool_broken", None),
        (["yes", "yes"], {"lies": True}, "tool_broken", None),
        ([], {"ends": True}, "tool_broken", None),
        (["yes" * 40], {}, "length", 1.0),  # cut off: the environment reads it all the same
    ],
    ids=["raises", "lies", "ends-at-once", "cut-off"],
)
def test_an_environment_that_fails_costs_its_own_episode(tokenizer, tmp_path, answers, task, ended_by, reward) -> None:  # noqa: F811
    rows, _ = play(tokenizer, tmp_path, "Game", answers, task, cut={0} if ended_by == "length" else frozenset())
    assert (rows[-1].episode["ended_by"], rows[-1].episode["reward"]) == (ended_by, reward)
    assert bool(rows[-1].episode["fault"]) == (reward is None or math.isnan(reward))


def test_the_limit_on_turns_ends_an_episode_that_the_environment_would_go_on_with(tokenizer, tmp_path) -> None:  # noqa: F811
    rows, _ = play(tokenizer, tmp_path, "Game", ["yes"], max_turns=1)
    assert (rows[-1].episode["ended_by"], rows[-1].episode["reward"]) == ("max_turns", 1.0)


def test_an_environment_that_is_done_ends_the_episode_after_the_call(tokenizer, tmp_path) -> None:  # noqa: F811
    call = CALL.replace("calculator", "push").replace('{"expression": "6 * 7"}', "{}")
    rows, generator = play(tokenizer, tmp_path, "Ending", [call, "never said"])
    assert len(generator.requests) == 1
    assert (rows[-1].episode["ended_by"], rows[-1].episode["reward"]) == ("environment", 2.0)
    assert rows[-1].episode["messages"][-1]["content"] == "It is over."


def test_an_environment_that_answers_turns_stands_alone(tokenizer, tmp_path) -> None:  # noqa: F811
    (tmp_path / "game.py").write_text(SOURCE)
    with pytest.raises(ValueError, match="can only be the one tool of a run"):
        player(tokenizer, use=["calculator"], environment=f"{tmp_path / 'game.py'}:Game")
