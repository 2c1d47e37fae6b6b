"""Environments of Prime Intellect's real package, in an interpreter of its own, played through our generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import prime_tasksets
import pytest
from public_packages import interpreter
from test_tool_episodes import CALL, Scripted, player, sampled_text, tokenizer  # noqa: F401

from pipeline.config.schema import Prime, Prompts, Sampling
from pipeline.data.encoding import render_ids
from pipeline.data.prompts import load_rows
from pipeline.records import Prompt

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def prime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    python = str(interpreter("verifiers", prime_tasksets.VERSION))
    folder = str(prime_tasksets.written(tmp_path_factory.mktemp("tasksets")))

    def block(taskset: str, **more: Any) -> Prime:
        return Prime(python, taskset, [folder], **more)

    return block


def play(tokenizer: Any, block: Prime, answers: list[str], rows: Any = None, **more: Any) -> Any:  # noqa: F811
    """One episode of each row, in which all say the same next."""
    cut = more.pop("cut", frozenset())
    one = player(tokenizer, use=[], prime=block, timeout_s=more.pop("timeout_s", 60), **more)
    rows = rows or load_rows(Prompts(prime=block, rows=1), seed=0)
    prompts = [Prompt(n, "row", tuple(render_ids(row, one.source, tokenizer)), {k: v for k, v in row.items()}, row)
               for n, row in enumerate(rows)]  # fmt: skip
    said = [answer for answer in answers for _ in rows]
    generator = Scripted(tokenizer, said, cut)
    return one.play(generator, prompts, Sampling(max_tokens=300), samples=1, key=(1,)), generator


def test_the_tasks_of_an_environment_are_rows(prime: Any) -> None:
    rows = load_rows(Prompts(prime=prime("sums")), seed=0)
    assert len(rows) == 8
    assert rows[2]["prompt"] == [{"role": "system", "content": "Add."}, {"role": "user", "content": "3+3"}]
    assert (rows[2]["answer"], rows[2]["prime_task"]["prompt"]) == ("6", "3+3")
    assert len(load_rows(Prompts(prime=prime("sums"), rows=3), seed=0)) == 3


def test_an_environment_with_tools_is_played_to_its_own_reward(tokenizer: Any, prime: Any) -> None:  # noqa: F811
    call = CALL.replace("calculator", "add").replace('{"expression": "6 * 7"}', '{"left": 1, "right": 1}')
    (row,), generator = play(tokenizer, prime("sums"), [call, "<think>\nEasy.\n</think>\n\n2"])
    episode = row.episode
    assert (episode["ended_by"], episode["reward"], episode["calls"]) == ("environment", 1.5, 1), episode
    assert sampled_text(tokenizer, row)[0] == f"{call}<|im_end|>"
    first = tokenizer.decode(generator.requests[0].ids)
    assert '"name": "add"' in first and "Add two numbers." in first, "the environment's tools are in the prompt"
    assert [(m["role"], m["content"]) for m in episode["messages"]][1] == ("tool", "2")


def test_a_call_that_the_environment_refuses_is_read_by_the_policy(tokenizer: Any, prime: Any) -> None:  # noqa: F811
    calls = [CALL.replace("calculator", "subtract"), CALL.replace("calculator", "add")]
    (row,), _ = play(tokenizer, prime("sums"), [*calls, "2"])
    said = [m["content"] for m in row.episode["messages"] if m["role"] == "tool"]
    assert "unknown tool 'subtract'" in said[0] and "left" in said[1]
    assert row.episode["reward"] == 1.5


def test_an_environment_that_speaks_between_the_turns(tokenizer: Any, prime: Any) -> None:  # noqa: F811
    (row,), _ = play(tokenizer, prime("talks"), ["1", "no", "1"])
    assert (row.episode["ended_by"], row.episode["reward"]) == ("environment", pytest.approx(2 / 3))
    assert [m["content"] for m in row.episode["messages"]] == ["1", "2=", "no", "3=", "1"]
    assert sampled_text(tokenizer, row) == ["1<|im_end|>", "no<|im_end|>", "1<|im_end|>"]


def test_limits_end_an_episode_and_the_environment_judges_what_there_is(tokenizer: Any, prime: Any) -> None:  # noqa: F811
    (row,), _ = play(tokenizer, prime("talks"), ["1", "1"], max_turns=2)
    assert (row.episode["ended_by"], row.episode["reward"]) == ("max_turns", pytest.approx(2 / 3))
    (row,), _ = play(tokenizer, prime("talks"), ["1"], cut={0})
    assert (row.episode["ended_by"], row.episode["reward"]) == ("length", pytest.approx(1 / 3))
    (row,), _ = play(tokenizer, prime("talks", config={"player": {"max_turns": 1}}), ["1"])
    assert (row.episode["ended_by"], row.episode["reward"]) == ("environment", pytest.approx(1 / 3))


def test_one_that_raises_hangs_or_lies_costs_its_own_episode(tokenizer: Any, prime: Any) -> None:  # noqa: F811
    rows = load_rows(Prompts(prime=prime("equal"), rows=4), seed=0)
    for row, fault in zip(rows, ("raises", "", "hangs", "lies"), strict=True):
        row["prime_task"]["fault"] = fault
    played, _ = play(tokenizer, prime("equal"), ["1"], rows, timeout_s=6)
    assert [r.episode["ended_by"] for r in played] == ["tool_broken", "environment", "tool_timeout", "tool_broken"]
    assert [r.episode["reward"] for r in played] == [None, 1.0, None, None]
    assert "the reward broke" in played[0].episode["fault"]
    (row,), _ = play(tokenizer, prime("talks"), ["boom"])
    assert row.episode["ended_by"] == "tool_broken" and "the environment broke" in row.episode["fault"]


def test_an_environment_that_is_not_there_is_reported_before_a_run(prime: Any, tmp_path: Path) -> None:
    for block, words in ((prime("no_such_taskset"), "no_such_taskset"),
                         (Prime(str(tmp_path / "python"), "sums"), "does not exist"),
                         (prime("sums", config={"id": "user-sim"}), "the seats assistant, user"),
                         (prime("sums", config={"agent": {"max_turn": 3}}), "max_turn")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            load_rows(Prompts(prime=block), seed=0)
