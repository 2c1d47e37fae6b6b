"""Classifier-free guidance: samples from the mixture of labelled and unlabelled logits."""

import pytest
import torch

from pipeline.config.schema import Generate, Model, Sampling, Tiny
from pipeline.distributed import ranks
from pipeline.generation.generator import Request
from pipeline.generation.guidance import Guided, guided_logits
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.models.models import make_tiny

ENDS = frozenset({2})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    make_tiny(Tiny(hidden_size=32, intermediate_size=64, num_hidden_layers=2), place, seed=0)
    return str(place)


SAMPLING = Sampling(temperature=0.8, max_tokens=6)
LABELLED = [(5, 6, 7, 8, 9), (5, 7), (6, 6, 6, 9, 10, 11, 12)]
BARE = [(7, 8, 9), (7,), (6, 9, 10, 11, 12)]
REQUESTS = [Request(ids, seed, 6) for ids, seed in zip(LABELLED, (1, 2, 3), strict=True)]


def guided(tiny, scale):
    made = Guided(tiny, Model(), Generate(), unlabelled=dict(zip(LABELLED, BARE, strict=True)), scale=scale)
    torch.manual_seed(0)  # a fresh tiny model hardly tells prompts apart
    for parameter in made.model.parameters():
        parameter.data.mul_(3)
    return made


def test_guided_samples_have_the_log_probs_of_a_full_forward_pass_over_both_prompts(tiny):
    generator, scale = guided(tiny, 2.0), 2.0
    for request, bare, sample in zip(REQUESTS, BARE, generator.sample(REQUESTS, SAMPLING, ENDS), strict=True):
        with torch.no_grad():
            both = [generator.model(torch.tensor([[*p, *sample.ids]])).logits[0, len(p) - 1 : -1].log_softmax(-1)
                    for p in (request.ids, bare)]  # fmt: skip
        mixed = (both[1] + scale * (both[0] - both[1])) / SAMPLING.temperature
        expected = mixed.log_softmax(-1)[range(len(sample.ids)), list(sample.ids)]
        assert torch.allclose(torch.tensor(sample.logprobs), expected, atol=1e-4)


def test_guidance_of_one_samples_as_the_labelled_prompt_alone_does(tiny):
    generator = guided(tiny, 1.0)
    plain = TransformersGenerator(tiny, Model(), Generate())
    plain.model = generator.model
    ours, theirs = (g.sample(REQUESTS, SAMPLING, ENDS) for g in (generator, plain))
    assert [s.ids for s in ours] == [s.ids for s in theirs]


def test_guidance_changes_what_is_sampled(tiny):
    ids = [[s.ids for s in guided(tiny, scale).sample(REQUESTS, SAMPLING, ENDS)] for scale in (0.0, 1.0, 4.0)]
    assert ids[0] != ids[1] != ids[2]


def test_guided_sampling_is_shared_out_over_ranks(tiny, monkeypatch):
    whole = [s.ids for s in guided(tiny, 2.0).sample(REQUESTS, SAMPLING, ENDS)]
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "gather", list)
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append([s.ids for s in guided(tiny, 2.0).sample(REQUESTS, SAMPLING, ENDS)])
    assert all(shares) and shares[0] + shares[1] == whole


def test_guidance_of_nothing_is_the_unlabelled_prompt():
    labelled, bare = torch.randn(3, 7), torch.randn(3, 7)
    assert torch.allclose(guided_logits(labelled, bare, 0.0), bare.log_softmax(-1))
    shifted = guided_logits(labelled + 5, bare - 5, 3.0)
    assert torch.allclose(shifted, guided_logits(labelled, bare, 3.0), atol=1e-4)
