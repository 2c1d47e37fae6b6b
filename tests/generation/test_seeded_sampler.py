"""Drawing by the inverse CDF: against the exact distribution, at its edges, and independent of the batch."""

import math

import pytest
import torch

from pipeline.generation import seeded_sampler
from pipeline.generation.seeded_sampler import AHEAD, ahead, draw, uniforms


def chi_square(ids: torch.Tensor, probabilities: torch.Tensor) -> float:
    counts = torch.bincount(ids, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(ids)
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_drawn_as_often_as_softmax_says(dtype):
    """200,000 draws of 64 tokens: the statistic has 63 degrees of freedom, mean 63 and standard deviation 11."""
    torch.manual_seed(0)
    logits = (2 * torch.randn(64)).to(dtype)
    generators = [torch.Generator().manual_seed(seed) for seed in range(200)]
    drawn = [draw(logits.expand(200, -1), uniforms(generators), torch.full((200,), 0.7))[0] for _ in range(1000)]
    found = chi_square(torch.cat(drawn), (logits.double() / 0.7).softmax(-1))
    assert found < 63 + 4 * math.sqrt(2 * 63)


def test_evenly_spread_numbers_hit_every_token_of_a_large_vocabulary_in_its_share():
    """Over many blocks: n numbers (i + 1/2) / n give each token its probability to within one count."""
    torch.manual_seed(1)
    vocabulary, n = 3 * seeded_sampler.BLOCK + 77, 40_000
    logits = torch.randn(vocabulary)
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    counts = torch.zeros(vocabulary)
    for part in uniform.split(1000):
        counts += torch.bincount(draw(logits.expand(len(part), -1), part)[0], minlength=vocabulary)
    assert (counts - logits.double().softmax(-1) * n).abs().max() <= 1.01


def test_log_probs_are_those_of_softmax_at_the_temperature():
    torch.manual_seed(2)
    logits, temperature = 5 * torch.randn(6, 1500), torch.tensor([0.5, 0.7, 1.0, 1.3, 2.0, 1.0])
    before = logits.clone()
    ids, logprobs = draw(logits, torch.rand(6, dtype=torch.float64), temperature)
    expected = (logits.double() / temperature[:, None]).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("uniform", [0.0, 1e-300, 0.5, 1 - 2**-53, 1.0])
def test_a_token_that_a_filter_removed_is_never_drawn(uniform):
    """The ends of the interval, where rounding could step over the last likely token; 1.0 is beyond what is drawn."""
    logits = torch.full((2, 2000), -math.inf)
    logits[0, [3, 700, 1400]] = torch.tensor([0.0, 2.0, -30.0])
    logits[1, 1999] = 0.0
    ids, logprobs = draw(logits, torch.full((2,), uniform, dtype=torch.float64))
    assert int(ids[0]) in (3, 700, 1400) and int(ids[1]) == 1999 and float(logprobs[1]) == 0.0


def test_a_row_of_nan_gets_an_id_of_the_vocabulary_and_nan():
    logits = torch.zeros(2, 700)
    logits[0, 5] = math.nan
    ids, logprobs = draw(logits, torch.full((2,), 0.999, dtype=torch.float64))
    assert 0 <= int(ids[0]) < 700 and math.isnan(float(logprobs[0])) and int(ids[1]) == 699


def test_a_rows_token_does_not_depend_on_what_shares_its_batch(monkeypatch):
    torch.manual_seed(3)
    logits = 3 * torch.randn(33, 5000)
    uniform = torch.rand(33, dtype=torch.float64)
    together = draw(logits, uniform)
    for chunk in (1, 2**14, 2**30):  # one row at a time, some, all
        monkeypatch.setattr(seeded_sampler, "CHUNK_NUMBERS", chunk)
        assert all(torch.equal(a, b) for a, b in zip(draw(logits, uniform), together, strict=True))
    alone = [draw(logits[i : i + 1], uniform[i : i + 1]) for i in range(33)]
    assert torch.equal(torch.cat([ids for ids, _ in alone]), together[0])
    assert torch.equal(torch.cat([logprobs for _, logprobs in alone]), together[1])


def test_a_generator_gives_one_number_per_draw_whoever_is_drawn_beside_it():
    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    other = torch.Generator().manual_seed(8)
    together = [float(uniforms([other, first])[1]) for _ in range(3)]
    assert together == [float(uniforms([second])[0]) for _ in range(3)] and len(set(together)) == 3


def test_numbers_drawn_ahead_are_those_of_one_call_per_token():
    seeds = [3, 2**40, 7]
    one_by_one = [torch.Generator().manual_seed(seed) for seed in seeds]
    numbers = ahead([torch.Generator().manual_seed(seed) for seed in seeds])
    for _ in range(2 * AHEAD + 1):
        assert torch.equal(next(numbers), uniforms(one_by_one))
