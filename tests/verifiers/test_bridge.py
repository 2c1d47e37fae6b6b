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
