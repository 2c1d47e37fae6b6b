"""Seeded requests in vLLM: drawn together, from the exact distribution, as transformers draws them."""

import importlib.util
import math
from types import SimpleNamespace

import pytest
import torch
from loop_kit import tiny_model

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation import vllm_sampler
from pipeline.generation.generator import Request
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.generation.vllm_engine import VllmGenerator

pytestmark = [
    pytest.mark.stages,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
ENDS = frozenset({2})
PROMPTS = [(3, 8, 13, 9), (4, 9, 13, 5, 6, 7, 10), (5,), (11, 12, 3, 4, 5, 6)]
FILTERS = {
    "plain": Sampling(temperature=0.7),
    "top-k": Sampling(top_k=5),
    "top-p": Sampling(top_p=0.6),
    "min-p": Sampling(min_p=0.6),
    "penalty": Sampling(repetition_penalty=1.5),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def engine(place):
    return VllmGenerator(place, Model(), Generate(), max_model_len=64)


@pytest.fixture
def draws(monkeypatch):
    """Rows of each call that drew by the inverse CDF."""
    rows: list[int] = []
    plain = vllm_sampler.draw

    def counted(logits, *more):
        rows.append(len(logits))
        return plain(logits, *more)

    monkeypatch.setattr(vllm_sampler, "draw", counted)
    return rows


def requests(count: int = 8, max_tokens: int = 6) -> list[Request]:
    return [Request(p, 100 * i + j, max_tokens) for i, p in enumerate(PROMPTS) for j in range(count)]


@pytest.mark.parametrize("name", FILTERS)
def test_both_engines_draw_the_same_samples_from_the_same_seeds(place, engine, draws, name):
    ours = TransformersGenerator(place, Model(), Generate()).sample(requests(), FILTERS[name], ENDS)
    theirs = engine.sample(requests(), FILTERS[name], ENDS)
    assert sum(draws) == sum(len(s.ids) for s in theirs), "every token was drawn together with its batch"
    same = sum(a.ids == b.ids for a, b in zip(ours, theirs, strict=True))
    assert same >= len(ours) - 1, "rounding may move one draw in thousands over the border of two tokens"
    gaps = [abs(x - y) for a, b in zip(ours, theirs, strict=True) if a.ids == b.ids
            for x, y in zip(a.logprobs, b.logprobs, strict=True)]  # fmt: skip
    assert max(gaps) < 1e-4
    assert len({s.ids for s in theirs}) > len(theirs) // 4, "seeds differ, so do samples"


def test_tokens_come_as_often_as_their_probability_says(place, engine):
    """χ² of 4,000 first tokens; the oracle is the model's own softmax at the sampling temperature."""
    count, temperature = 4000, 0.7
    sampling = Sampling(temperature=temperature, max_tokens=1)
    drawn = engine.sample([Request(PROMPTS[0], seed, 1) for seed in range(count)], sampling, ENDS)
    model = TransformersGenerator(place, Model(), Generate()).model
    with torch.no_grad():
        p = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature).softmax(-1)
    seen = torch.bincount(torch.tensor([d.ids[0] for d in drawn]), minlength=len(p))
    found = float(((seen - count * p) ** 2 / (count * p)).sum())
    freedom = len(p) - 1
    assert found < freedom + 4 * math.sqrt(2 * freedom)


def test_a_sample_does_not_depend_on_what_shares_its_batch(engine):
    together = engine.sample(requests(), Sampling(), ENDS)
    alone = [engine.sample([r], Sampling(), ENDS)[0] for r in requests()[::7]]
    assert [s.ids for s in together[::7]] == [s.ids for s in alone]


def test_requests_that_are_greedy_or_have_no_seed_take_vllms_own_way(engine, draws):
    from vllm import SamplingParams, TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=list(p)) for p in PROMPTS]
    mixed = [SamplingParams(max_tokens=3, detokenize=False, **own) for own in
             ({"temperature": 0.0}, {"seed": 1}, {}, {"seed": 2, "logprobs": 2})]  # fmt: skip
    answers = engine.llm.generate(prompts, mixed, use_tqdm=False)
    assert all(len(a.outputs[0].token_ids) > 0 for a in answers) and not draws
    assert len(answers[3].outputs[0].logprobs[0]) >= 2
    assert min(one.rank for one in answers[3].outputs[0].logprobs[0].values()) == 1


def test_log_probs_of_given_tokens_are_the_models_and_cost_no_pass_for_ranks(place, engine, monkeypatch):
    from vllm.v1.sample import sampler

    passes: list[int] = []
    monkeypatch.setattr(sampler, "batched_count_greater_than", lambda x, values: passes.append(len(x)))
    found = engine.logprobs(PROMPTS)
    assert not passes
    model = TransformersGenerator(place, Model(), Generate()).model
    for ids, logprobs in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            of_all = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        assert logprobs == pytest.approx([float(of_all[i, t]) for i, t in enumerate(ids[1:])], abs=1e-4)


def test_a_vllm_with_other_internals_keeps_its_own_sampler():
    class Other:
        logprobs_mode = "processed_logprobs"

        def __init__(self) -> None:
            self.topk_topp_sampler = SimpleNamespace(forward=lambda logits, generators, k, p: None)

        def forward(self, logits, sampling_metadata, predict_bonus_token=False, logprobs_mode_override=None, new=0):
            return "own"

    sampler = Other()
    worker = SimpleNamespace(model_runner=SimpleNamespace(sampler=sampler))
    assert vllm_sampler.install(worker) == "Sampler.forward takes other arguments"
    assert sampler.forward(None, None) == "own"
    assert "no sampler" in vllm_sampler.install(SimpleNamespace())
