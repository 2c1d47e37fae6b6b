"""The bridge to a program in another interpreter: its protocol, with a stand-in program, and what a session may do."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verifiers._bridge import Bridge, BridgeFailed, BridgeLate
from verifiers.tools import Toolbox, ToolBroken, ToolLate, _prime
from verifiers.tools._prime import PrimeEnvironment, prime_tool

GUEST = Path(__file__).parents[2] / "verifiers" / "_bridge_guest.py"
PROGRAM = """
import importlib.util, os, subprocess, sys, time
spec = importlib.util.spec_from_file_location("guest", sys.argv[1])
guest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guest)
LOADED = os.getpid()

def run(requests, answer):
    count = 0
    for request in requests:
        count += 1
        print("noise on stdout")
        if request["do"] == "end":
            os._exit(3)
        if request["do"] == "sleep":
            child = subprocess.Popen(["sleep", "600"])
            open(request["file"], "w").write(f"{os.getpid()} {child.pid}")
            time.sleep(600)
        if request["do"] == "say":
            answer(request["what"])
        else:
            answer({"value": [count, LOADED, os.getpid(), os.environ.get("GIVEN"), os.environ.get("HIDDEN")]})

guest.serve(int(sys.argv[2]), run)
"""


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    monkeypatch.setenv("HIDDEN", "not for the program")
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-P", str(tmp_path / "program.py"), str(GUEST)]
    made = Bridge(command, environment={"GIVEN": "yes"}, start_s=30)
    yield made
    made.close()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(processes: list[int], seconds: float = 5.0) -> bool:
    ends = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < ends:
        time.sleep(0.02)
    return not any(map(alive, processes))


def test_sessions_share_what_was_loaded_and_nothing_else(bridge: Bridge) -> None:
    one, two = bridge.open(), bridge.open()
    first: Any = one.ask({"do": "count"}, timeout_s=10)
    again: Any = one.ask({"do": "count"}, timeout_s=10)
    other: Any = two.ask({"do": "count"}, timeout_s=10)
    assert (first[0], again[0], other[0]) == (1, 2, 1)
    assert first[1] == other[1] and len({first[1], first[2], other[2]}) == 3, "one load, a process for each session"
    assert first[3:] == ["yes", None], "the program gets the variables it is given, and no others"
    one.close()
    assert gone([first[2]])
    assert two.ask({"do": "count"}, timeout_s=10)[0] == 2
    bridge.close()
    assert gone([other[2], first[1]])


def test_a_session_that_does_not_answer_ends_with_what_it_started_and_no_other_waits(
    bridge: Bridge, tmp_path: Path
) -> None:
    hanging, other = bridge.open(), bridge.open()
    other.ask({"do": "count"}, timeout_s=10)
    with pytest.raises(BridgeLate, match=r"no answer within 1 s"):
        hanging.ask({"do": "sleep", "file": str(tmp_path / "pids")}, timeout_s=1)
    assert other.ask({"do": "count"}, timeout_s=10)[0] == 2
    assert gone([int(pid) for pid in (tmp_path / "pids").read_text().split()])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"raised": "KeyError: 'x'"}, "KeyError: 'x'"),
        ({"valeu": 1}, "an answer without value"),
        ([1], "an answer without value"),
        (None, "an answer without value"),
    ],
)
def test_an_answer_that_is_none_fails_and_the_session_goes_on(bridge: Bridge, said: Any, words: str) -> None:
    session = bridge.open()
    with pytest.raises(BridgeFailed, match=words):
        session.ask({"do": "say", "what": said}, timeout_s=10)
    assert session.ask({"do": "count"}, timeout_s=10)[0] == 2


def test_a_session_whose_process_ends_costs_no_other(bridge: Bridge) -> None:
    one, two = bridge.open(), bridge.open()
    two.ask({"do": "count"}, timeout_s=10)
    with pytest.raises(BridgeFailed, match="ended without an answer"):
        one.ask({"do": "end"}, timeout_s=10)
    assert two.ask({"do": "count"}, timeout_s=10)[0] == 2


def test_a_program_that_ends_or_cannot_start_is_reported_with_its_last_words(tmp_path: Path) -> None:
    for command, words in (
        ([sys.executable, "-c", "import sys; sys.exit('no module named prime')"], "exit code 1: no module named prime"),
        ([str(tmp_path / "python")], "cannot be started: No such file"),
    ):
        with pytest.raises(BridgeFailed, match=words):
            Bridge(command, environment={}, start_s=10).ask({"do": "count"}, timeout_s=5)


def test_a_program_that_was_killed_starts_again(bridge: Bridge) -> None:
    loaded = bridge.ask({"do": "count"}, timeout_s=10)[1]
    os.kill(loaded, 9)
    assert gone([loaded])
    assert bridge.ask({"do": "count"}, timeout_s=10)[1] != loaded


# --- an environment that lies, with a stand-in for the program of Prime environments ----------------------------------

STAND_IN = """
import importlib.util, json, sys, time
spec = importlib.util.spec_from_file_location("guest", sys.argv[1])
guest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(guest)
USER = {"role": "user", "content": "1+1"}

def run(requests, answer):
    for request in requests:
        if request["do"] == "describe":
            answer({"value": {}})
        elif request["do"] == "start":
            task = request["task"]
            answer({"value": {"messages": task.get("opening", [USER]), "tools": None}})
        elif request["do"] == "reply":
            if task["then"] == "hang":
                time.sleep(600)
            answer(task["then"] if task["then"] != "end" else {"value": {"end": {"reward": task["reward"]}}})
        else:
            answer({"value": {"end": {"reward": 0.25}}})

guest.serve(int(sys.argv[3]), run)
"""
SAID = {"role": "assistant", "content": "2"}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrimeEnvironment]:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(_prime, "GUEST", tmp_path / "stand_in.py")
    made = PrimeEnvironment(sys.executable, str(tmp_path))
    yield made
    made.bridge().close()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"then": {"value": 7}}, "neither messages nor an end"),
        ({"then": {"value": {"messages": "Hi"}}}, "neither messages nor an end"),
        ({"then": {"valeu": 7}}, "an answer without value"),
        ({"then": {"raised": "ValueError: no"}}, "ValueError: no"),
        ({"then": "end", "reward": "many"}, "not a number"),
        ({"then": "end", "reward": True}, "not a number"),
        ({"then": "end", "reward": float("nan")}, "not a finite number"),
        ({"opening": [{"role": "user", "content": [{"type": "image_url"}]}], "then": "end"}, "not text"),
    ],
)
def test_what_an_environment_says_is_checked(environment: PrimeEnvironment, task: dict[str, Any], words: str) -> None:
    box = Toolbox([(prime_tool(environment, timeout_s=20), {})])
    with pytest.raises(ToolBroken, match=words):
        box.reset(task)
        box.take_turn(SAID, finished=True)
        box.reward()
    box.close()


def test_one_environment_that_hangs_leaves_the_others_and_its_reward_is_not_asked_again(
    environment: PrimeEnvironment,
) -> None:
    tool = prime_tool(environment, timeout_s=1)
    hanging, fine = Toolbox([(tool, {})]), Toolbox([(tool, {})])
    hanging.reset({"then": "hang"})
    fine.reset({"then": "end", "reward": 1})
    with pytest.raises(ToolLate):
        hanging.take_turn(SAID, finished=True)
    assert fine.take_turn(SAID, finished=True).messages is None and fine.reward() == 1.0
    with pytest.raises(ToolBroken):
        hanging.reward()


def test_an_episode_that_is_not_over_is_ended_for_its_reward(environment: PrimeEnvironment) -> None:
    box = Toolbox([(prime_tool(environment, timeout_s=20), {})])
    opening = box.reset({})
    assert not isinstance(opening, str) and opening.messages == [{"role": "user", "content": "1+1"}]
    assert box.reward() == 0.25
    box.close()


def test_messages_that_follow_the_policys_turn_are_appended_and_others_replace_the_conversation(
    environment: PrimeEnvironment,
) -> None:
    first, more = {"role": "user", "content": "1+1"}, {"role": "user", "content": "Sure?"}
    for sent, continues, read in (([first, SAID, more], True, [more]), ([more], False, [more])):
        box = Toolbox([(prime_tool(environment, timeout_s=20), {})])
        box.reset({"then": {"value": {"messages": sent, "tools": None}}})
        exchange = box.take_turn(SAID, finished=True)
        assert (exchange.continues, exchange.messages) == (continues, read)
        box.close()
