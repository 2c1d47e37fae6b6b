"""REINFORCE on a reward for the demonstrated answer is supervised learning on it: the identity, by enumeration.

With reward 1 for the answer y* and 0 for any other, E over sampled y of [r(y) grad log p(y)] = p(y*) grad log p(y*).
All answers of a tiny vocabulary are enumerated, so that the expectation is exact; the supervised gradient is that of
transformers' own loss.
"""

import itertools

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from pipeline.credit.advantages import leave_one_out
from pipeline.update.forward import CompletionLogprobs, Row, pad_rows
from pipeline.update.losses import reinforce_surrogate

EOS, LETTERS, LIMIT = 0, (1, 2, 3), 3
PROMPT, DEMONSTRATED = (2, 1), (3, 1, EOS)


def all_answers():
    """Every sequence of letters that ends with EOS within the limit, and every one that the limit truncates."""
    ended = [(*letters, EOS) for n in range(LIMIT) for letters in itertools.product(LETTERS, repeat=n)]
    return ended + list(itertools.product(LETTERS, repeat=LIMIT))


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=4, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double()


def gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def logprobs_and_batch(model, answers):
    batch = pad_rows([Row(PROMPT, ids, (True,) * len(ids)) for ids in answers], torch.device("cpu"))
    return CompletionLogprobs(model, temperature=1.0)(batch)[0], batch


def policy_gradient(model, weights_B, advantages_B):
    """Gradient of the expected REINFORCE loss: each answer's own, weighted by its probability."""
    logprobs_BT, batch = logprobs_and_batch(model, all_answers())
    loss_BT = reinforce_surrogate(logprobs_BT, advantages_B[:, None].expand_as(logprobs_BT), batch.mask_BT)
    return gradient(model, (weights_B * loss_BT.sum(1)).sum())


def probabilities(model):
    with torch.no_grad():
        logprobs_BT, batch = logprobs_and_batch(model, all_answers())
        return logprobs_BT.masked_fill(~batch.mask_BT, 0.0).sum(1).exp().double()


def supervised_gradient(model):
    """Gradient of transformers' loss on the demonstration, as a sum over its tokens."""
    ids = torch.tensor([[*PROMPT, *DEMONSTRATED]])
    labels = torch.tensor([[-100] * len(PROMPT) + list(DEMONSTRATED)])
    return gradient(model, model(input_ids=ids, labels=labels).loss * len(DEMONSTRATED))


def rewards():
    return torch.tensor([float(answer == DEMONSTRATED) for answer in all_answers()], dtype=torch.float64)


def test_the_answers_are_all_there_are(model):
    assert float(probabilities(model).sum()) == pytest.approx(1.0, abs=1e-6)


def test_expected_policy_gradient_is_the_supervised_gradient_times_the_answers_probability(model):
    chances = probabilities(model)
    chance = float(chances[all_answers().index(DEMONSTRATED)])
    expected = policy_gradient(model, chances, rewards())
    assert 0.001 < chance < 0.5
    torch.testing.assert_close(expected, chance * supervised_gradient(model), rtol=1e-4, atol=1e-7)


def test_a_leave_one_out_baseline_leaves_the_expectation_as_it_is(model):
    """Over all pairs of answers that a group of two can be."""
    chances, r = probabilities(model), rewards()
    n = len(r)
    pairs_PG = torch.stack([r[:, None].expand(n, n), r[None].expand(n, n)], -1).reshape(-1, 2)
    first_of_pair = leave_one_out(pairs_PG)[:, 0].reshape(n, n)
    expected = policy_gradient(model, chances, (first_of_pair * chances[None]).sum(1))
    chance = float(chances[all_answers().index(DEMONSTRATED)])
    torch.testing.assert_close(expected, chance * supervised_gradient(model), rtol=1e-4, atol=1e-7)


def test_a_constant_reward_has_no_expected_gradient(model):
    flat = policy_gradient(model, probabilities(model), torch.ones(len(all_answers()), dtype=torch.float64))
    assert float(flat.abs().max()) < 1e-6 < float(supervised_gradient(model).abs().max())
