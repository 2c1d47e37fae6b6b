"""Engines that stages share and that may crash: each user's samples come from its own weights."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
from loop_kit import tiny_model

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation import engines
from pipeline.generation.generator import Request
from pipeline.generation.hf_engine import TransformersGenerator, sequence_logprobs
from pipeline.generation.restarting import Reliable
from pipeline.models import models

pytestmark = pytest.mark.usefixtures("no_engine_left_behind")
TRANSFORMERS = Generate(backend="transformers")
IDS = [[3, 8, 13, 9, 4], [5, 6, 7]]


def reliable(place: str, opened: list[str] | None = None) -> Reliable:
    return Reliable(
        place, Model(), TRANSFORMERS, max_model_len=64, on_open=(opened if opened is not None else []).append
    )


def logprobs_of(place: str) -> list[list[float]]:
    return sequence_logprobs(models.load_policy(place, Model()), IDS)


def test_two_policies_that_take_turns_on_one_engine_each_see_their_own_weights(tmp_path):
    places = [str(tiny_model(tmp_path / str(seed), seed=seed)) for seed in (1, 2)]
    expected = [logprobs_of(place) for place in places]
    assert expected[0] != expected[1]
    users = [reliable(place) for place in places]
    for number in (0, 1, 0, 0, 1):
        assert users[number].logprobs(IDS) == expected[number]
    assert len(engines._open) == 1


def test_an_engine_is_opened_once_and_again_only_after_it_was_closed(tmp_path):
    opened: list[str] = []
    user = reliable(str(tiny_model(tmp_path)), opened)
    user.logprobs(IDS)
    user.sample([Request((3, 4), 1, 4)], Sampling(), frozenset({2}))
    assert opened == ["transformers"] == [user.name]
    engines.close_generators()
    user.logprobs(IDS)
    assert opened == ["transformers"] * 2


def test_an_open_engine_does_not_keep_the_policy_that_was_trained_last(tmp_path):
    place = str(tiny_model(tmp_path))
    user, policy = reliable(place), models.load_policy(place, Model())
    user.weights = partial(models.named_weights, policy)
    user.logprobs(IDS)
    gone = weakref.ref(policy)
    del user, policy
    gc.collect()
    assert gone() is None and len(engines._open) == 1
    assert reliable(place).logprobs(IDS) == logprobs_of(place)


def test_after_a_crash_the_engine_has_the_weights_in_training_and_gives_the_same_samples(tmp_path, monkeypatch, capsys):
    place = str(tiny_model(tmp_path))
    user, policy = reliable(place), models.load_policy(place, Model())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter).cumsum(0))
    user.weights = lambda: models.named_weights(policy)
    requests = [Request((3, 8), seed, 6) for seed in range(4)]
    expected = user.sample(requests, Sampling(), frozenset({2}))
    assert user.logprobs(IDS) == sequence_logprobs(policy, IDS) != logprobs_of(place)
    plain, calls = TransformersGenerator.sample, []

    def crashing(self, *given):
        calls.append(id(self))
        if len(calls) == 1:
            raise RuntimeError("engine core died")
        return plain(self, *given)

    monkeypatch.setattr(TransformersGenerator, "sample", crashing)
    assert user.sample(requests, Sampling(), frozenset({2})) == expected
    assert len(calls) == 2
    assert "crashed (RuntimeError: engine core died); restarting it once" in capsys.readouterr().out


def test_a_call_that_crashes_twice_raises(tmp_path, monkeypatch):
    def crashing(self, *given):
        raise RuntimeError("engine core died")

    monkeypatch.setattr(TransformersGenerator, "logprobs", crashing)
    with pytest.raises(RuntimeError, match="engine core died"):
        reliable(str(tiny_model(tmp_path))).logprobs(IDS)
