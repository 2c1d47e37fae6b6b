"""Scoring begins while rollouts are still drawn, and comes to what it would have come to afterwards."""

from __future__ import annotations

import sys
import threading

import pytest

import rewards
from pipeline.records import Prompt, Rollout
from pipeline.score import score, score_while

VERIFIER = """
from typing import NotRequired, TypedDict
from verifiers import Example, Verdict, failed, passed
import tests_events as events

DEADLINE_S = {deadline}

class Task(TypedDict):
    gold: str

def verify(completion, task):
    events.begun.append(completion)
    events.first.set()
    return passed() if completion == task["gold"] else failed(completion)

EXAMPLES = (Example("right", "a", {{"gold": "a"}}),)
"""
PROMPTS = [Prompt(i, f"p{i}", (3, 4), {"gold": "abcdef"[i]}) for i in range(6)]
DRAWN = [Rollout(p, 0, (5, 2), (-0.1, -0.2), "abcxyz"[p.index], True) for p in PROMPTS]


class Events:
    def __init__(self) -> None:
        self.begun: list[str] = []
        self.first = threading.Event()


@pytest.fixture
def events(monkeypatch) -> Events:
    made = Events()
    monkeypatch.setitem(sys.modules, "tests_events", made)
    return made


def scorer(place, deadline: float, **more) -> rewards.Composite:
    name = f"slow_{place.name.replace('-', '_')}_{str(deadline).replace('.', '_')}"
    (place / f"{name}.py").write_text(VERIFIER.format(deadline=deadline))
    return rewards.build({name: {}, **more}, verifier_dirs=[place])


def test_a_slow_verifier_works_while_the_rest_is_drawn(tmp_path, events):
    composite = scorer(tmp_path, 5.0)

    def sample(told):
        told(3, DRAWN[3])
        assert events.first.wait(20), "nobody asked the verifier before all were drawn"
        told(3, DRAWN[3])  # the generator died and began again
        for i in (1, 0, 2, 3, 5, 4):
            told(i, DRAWN[i])
        return DRAWN

    found = score_while(composite, PROMPTS, sample)
    assert found == score(composite, DRAWN)
    assert [s.reward for s in found] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert sorted(events.begun) == sorted("abcxyz" * 2), "each once a scoring"


def test_a_quick_verifier_waits_for_the_batch(tmp_path, events):
    composite = scorer(tmp_path, 1.0)

    def sample(told):
        assert told is None and not events.begun
        return DRAWN

    assert [s.status for s in score_while(composite, PROMPTS, sample)] == ["pass"] * 3 + ["fail"] * 3


def test_functions_see_the_whole_batch_at_once_as_ever(tmp_path, events):
    seen: list[int] = []

    def counting(prompts, completions, **columns):
        seen.append(len(completions))
        return [float(i) for i in range(len(completions))]

    vars(sys.modules["tests_events"])["counting"] = counting
    composite = scorer(tmp_path, 5.0, mine={"kind": "function", "path": "tests_events:counting"})

    def sample(told):
        for i in range(6):
            told(i, DRAWN[i])
        return DRAWN

    found = score_while(composite, PROMPTS, sample)
    assert seen == [6] and [s.parts["mine"] for s in found] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
