"""A server of the real OpenEnv package, in an interpreter of its own, played through our generator."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from public_packages import interpreter
from test_tool_episodes import CALL, Scripted, player, sampled_text, tokenizer  # noqa: F401

from pipeline.config.schema import Sampling
from pipeline.data.encoding import render_ids
from pipeline.records import Prompt

pytestmark = pytest.mark.long

VERSION = "0.10"
SERVER = '''
import sys, time
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app
from pydantic import field_validator
import uvicorn

class Guess(Action):
    """A guess of the number."""
    number: int

    @field_validator("number")
    @classmethod
    def positive(cls, value):
        if value < 0:
            raise ValueError("must not be negative")
        return value

class Say(Action):
    text: str

class Hint(Observation):
    hint: str = ""

class Game(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        super().__init__()
        self.secret = 0

    def reset(self, seed=None, episode_id=None, secret=5, **kwargs):
        self.secret = secret
        return Hint(hint="Guess a number.")

    def step(self, action, timeout_s=None, **kwargs):
        number = action.number if isinstance(action, Guess) else int(action.text)
        if number == 13:
            raise RuntimeError("the game broke")
        if number == 14:
            time.sleep(60)
        found = number == self.secret
        reward = 1.0 if found else -0.1
        return Hint(hint="right" if found else "higher" if number < self.secret else "lower", reward=reward, done=found)

    @property
    def state(self):
        return State()

action = {"guess": Guess, "say": Say}[sys.argv[2]]
app = create_fastapi_app(Game, action, Hint, max_concurrent_envs=int(sys.argv[3]))
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
'''
TOOLS = '''
import sys
from fastmcp import FastMCP
from openenv.core.env_server import Observation, State, create_fastapi_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
import uvicorn

class Echo(MCPEnvironment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self):
        server = FastMCP("echo")

        @server.tool
        def shout(text: str) -> str:
            """Say it loudly."""
            return text.upper()

        super().__init__(server)

    def reset(self, seed=None, episode_id=None, **kwargs):
        return Observation()

    def _step_impl(self, action, timeout_s=None, **kwargs):
        return Observation()

    @property
    def state(self):
        return State()

app = create_fastapi_app(Echo, CallToolAction, CallToolObservation, max_concurrent_envs=8)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
'''


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts a server of the source and returns its address."""
    python, folder = interpreter("openenv", VERSION), tmp_path_factory.mktemp("openenv")
    started: list[subprocess.Popen[bytes]] = []

    def start(source: str, *arguments: str) -> str:
        file: Path = folder / f"server{len(started)}.py"
        file.write_text(source)
        port = free_port()
        process = subprocess.Popen([str(python), str(file), str(port), *arguments], cwd=folder,
                                   stderr=(folder / f"{file.stem}.log").open("w"))  # fmt: skip
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        for _ in range(900):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).read()
                return url
            except OSError:
                assert process.poll() is None, (folder / f"{file.stem}.log").read_text()[-2000:]
                time.sleep(0.1)
        raise AssertionError("the server does not start")

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def guessing(serve: Any) -> str:
    return str(serve(SERVER, "guess", "8"))


def play(tokenizer: Any, openenv: dict[str, str], answers: list[str], tasks: Any = None, **more: Any) -> Any:  # noqa: F811
    from pipeline.config.schema import OpenEnv

    one = player(tokenizer, use=[], openenv=OpenEnv(**openenv), **more)
    prompts = []
    for number, task in enumerate(tasks or [{}]):
        row = {"prompt": "Play.", **({"tools": one.tools.schemas} if one.tools.schemas else {})}
        ids = tuple(render_ids(row, one.source, tokenizer))
        prompts.append(Prompt(number, "Play.", ids, {"prompt": "Play.", **task}, row))
    generator = Scripted(tokenizer, answers)
    return one.play(generator, prompts, Sampling(max_tokens=200), samples=1, key=(1,)), generator


def step(number: Any) -> str:
    return CALL.replace("calculator", "step").replace('{"expression": "6 * 7"}', f'{{"number": {number}}}')


def test_the_action_is_a_tool_and_the_environment_ends_the_episode(tokenizer: Any, guessing: str) -> None:  # noqa: F811
    (row,), generator = play(tokenizer, {"url": guessing}, [step(3), step(7), "never said"], [{"secret": 7}])
    episode = row.episode
    assert (episode["ended_by"], episode["reward"], episode["calls"]) == ("environment", pytest.approx(0.9), 2)
    assert [m["content"] for m in episode["messages"] if m["role"] == "tool"] == ["higher", "right"]
    prompt = tokenizer.decode(generator.requests[0].ids)
    assert "Play.\n\nGuess a number." in prompt and "A guess of the number." in prompt
    assert sampled_text(tokenizer, row) == [f"{step(3)}<|im_end|>", f"{step(7)}<|im_end|>"]


def test_what_is_wrong_with_an_action_is_read_by_the_policy(tokenizer: Any, guessing: str) -> None:  # noqa: F811
    calls = [step('"many"'), step(13), step(5)]
    (row,), _ = play(tokenizer, {"url": guessing}, calls)
    said = [m["content"] for m in row.episode["messages"] if m["role"] == "tool"]
    assert "number: Input should be a valid integer" in said[0], row.episode
    assert "the game broke" in said[1] and said[2] == "right"
    assert (row.episode["tool_errors"], row.episode["reward"]) == (2, 1.0)


def test_an_action_whose_validation_ends_the_connection_costs_its_episode(tokenizer: Any, guessing: str) -> None:  # noqa: F811
    """The server cannot write the validation error of a ValueError, and closes."""
    rows, _ = play(tokenizer, {"url": guessing}, [step(-1), step(5)], [{}, {}])
    assert [row.episode["ended_by"] for row in rows] == ["tool_broken", "environment"]


def test_one_that_hangs_costs_its_own_episode(tokenizer: Any, guessing: str) -> None:  # noqa: F811
    rows, _ = play(tokenizer, {"url": guessing}, [step(14), step(5)], [{}, {}], timeout_s=5)
    assert [row.episode["ended_by"] for row in rows] == ["tool_timeout", "environment"]
    assert [row.episode["reward"] for row in rows] == [None, 1.0]


def test_text_is_the_action_where_its_field_is_named(tokenizer: Any, serve: Any) -> None:  # noqa: F811
    url = serve(SERVER, "say", "1")
    given = {"url": url, "action": "text", "observation": "hint"}
    (row,), _ = play(tokenizer, given, ["3", "many", "<think>\nHm.\n</think>\n\n5"])
    said = [m["content"] for m in row.episode["messages"] if m["role"] == "user"]
    assert said[0] == "higher" and "invalid literal" in said[1], row.episode
    assert (row.episode["ended_by"], row.episode["reward"]) == ("environment", pytest.approx(0.9))
    rows, _ = play(tokenizer, given, ["5", "5"], [{}, {}])
    ended = sorted((r.episode["ended_by"], "concurrent environments" in r.episode["fault"]) for r in rows)
    assert ended == [("environment", False), ("tool_broken", True)], [r.episode["fault"] for r in rows]


def test_the_tools_of_an_environment_are_offered_under_their_names(tokenizer: Any, serve: Any) -> None:  # noqa: F811
    call = CALL.replace("calculator", "shout").replace('{"expression": "6 * 7"}', '{"text": "hello"}')
    (row,), _ = play(tokenizer, {"url": serve(TOOLS)}, [call, "Done."])
    assert [m["content"] for m in row.episode["messages"] if m["role"] == "tool"] == ["HELLO"]
    assert row.episode["ended_by"] == "answer"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"url": "http://127.0.0.1:9"}, "answers no schema"),
        ({"url": "ws://x"}, "no http"),
        ({"action": "nmber"}, "number"),
    ],
)
def test_a_server_that_cannot_be_used_is_reported_before_a_run(
    tokenizer: Any,  # noqa: F811
    guessing: str,
    given: dict[str, str],
    words: str,
) -> None:
    with pytest.raises(ValueError, match=words):
        play(tokenizer, {"url": guessing, **given}, [])
