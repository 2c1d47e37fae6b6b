"""Stop strings: what was sampled up to the stop is kept id by id, whatever engine sampled it."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
from loop_kit import tiny_model

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation.generator import Sample, continuations, cut_at_stop, rollouts
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.generation.vllm_engine import VllmGenerator
from pipeline.models import models
from pipeline.records import Prompt, Rollout

WORDS = {1: "a", 2: "</", 3: "answer", 4: ">", 5: "> and more", 6: "</answer>"}
TOKENIZER = SimpleNamespace(
    decode=lambda ids, skip_special_tokens: "".join(WORDS[i] for i in ids),
    batch_decode=lambda rows, skip_special_tokens: ["".join(WORDS[i] for i in row) for row in rows],
)


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        ((1, 2, 3, 4, 1, 1), (1, 2, 3, 4)),
        ((1, 2, 3, 5, 1), (1, 2, 3, 5)),  # the last token says more than the stop: it was sampled, so it stays
        ((6, 1, 6), (6,)),
        ((1, 2, 3), (1, 2, 3)),
        ((), ()),
    ],
)
def test_a_sample_ends_with_the_token_that_completes_the_first_stop(ids, kept):
    sample = Sample(ids, tuple(-0.1 * i for i in range(len(ids))), finished=False)
    cut = cut_at_stop(sample, ["</answer>", "zz"], TOKENIZER)
    assert cut.ids == kept and cut.logprobs == sample.logprobs[: len(kept)]
    assert cut.finished == ("</answer>" in TOKENIZER.decode(ids, skip_special_tokens=False))


def test_a_stop_that_began_in_the_kept_part_of_a_continuation_ends_it():
    rollout = Rollout(Prompt(0, "p", (1,)), 0, (1, 2, 3), (-0.1, -0.2, -0.3), "a</answer", False)
    engine = SimpleNamespace(sample=lambda requests, *_: [Sample((4, 1, 1), (-0.4, -0.5, -0.6), False)])
    (found,) = continuations(
        engine, [(rollout, 3, 0)], Sampling(stop=["</answer>"]), samples=1, key=("k",), tokenizer=TOKENIZER,
        stop_token_ids=frozenset({9}),
    )  # fmt: skip
    assert found.ids == (1, 2, 3, 4) and found.logprobs == (-0.1, -0.2, -0.3, -0.4) and found.finished


@pytest.mark.stages
@pytest.mark.parametrize("kind", ["transformers", "vllm"])
def test_rollouts_of_either_engine_are_those_without_stops_cut_short(tmp_path, kind):
    if kind == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    place = str(tiny_model(tmp_path / "m"))
    tokenizer = models.load_tokenizer(place, Model())
    prompts = [Prompt(i, "p", (3 + i, 8, 13)) for i in range(8)]
    how = {"samples": 4, "key": ("k",), "tokenizer": tokenizer, "stop_token_ids": frozenset({2})}
    if kind == "vllm":
        engine: Any = VllmGenerator(place, Model(), Generate(), max_model_len=64)
    else:
        engine = TransformersGenerator(place, Model(), Generate())
    free = rollouts(engine, prompts, Sampling(max_tokens=12), **how)
    told = []
    sampling = Sampling(max_tokens=12, stop=["R", "1>"])
    stopped = rollouts(engine, prompts, sampling, **how, on_done=lambda i, r: told.append((i, r)))
    assert sorted(told, key=lambda pair: pair[0]) == list(enumerate(stopped))
    cut = 0
    for whole, short in zip(free, stopped, strict=True):
        assert whole.ids[: len(short.ids)] == short.ids and whole.logprobs[: len(short.ids)] == short.logprobs
        if any(stop in whole.text for stop in sampling.stop):
            cut += 1
            assert short.finished and any(stop in short.text for stop in sampling.stop)
            assert not any(stop in tokenizer.decode(list(short.ids[:-1])) for stop in sampling.stop)
        else:
            assert short == whole
    assert cut > 3
