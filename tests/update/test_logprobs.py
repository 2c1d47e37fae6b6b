"""Chunked log-probs and entropies against torch's own log_softmax, Categorical and numerical gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.update.logprobs import chunked_token_logprobs, token_logprobs

B, T, H, V = 3, 5, 6, 11


def problem(dtype: torch.dtype = torch.float64, vocabulary: int = V) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, bias with gradient; ids; a mask with holes."""
    generator = torch.Generator().manual_seed(0)
    hidden_BTH, weight_VH, bias_V = (
        torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
        for shape in ((B, T, H), (vocabulary, H), (vocabulary,))
    )
    ids_BT = torch.randint(vocabulary, (B, T), generator=generator)
    return hidden_BTH, weight_VH, bias_V, ids_BT, torch.rand(B, T, generator=generator) > 0.4


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("chunk, block", [(None, None), (1, 1), (4, 3), (15, 11), (100, 100)])
def test_detail_1_log_probs_are_log_softmax_at_the_sampling_temperature(
    temperature: float, chunk: int | None, block: int | None
) -> None:
    hidden_BTH, weight_VH, bias_V, ids_BT, _ = problem()
    logits_BTV = hidden_BTH @ weight_VH.T + bias_V
    expected_BT = torch.log_softmax(logits_BTV / temperature, -1).gather(-1, ids_BT[..., None])[..., 0]
    entropy_BT = torch.distributions.Categorical(logits=logits_BTV / temperature).entropy()
    from_hidden = chunked_token_logprobs(
        hidden_BTH, weight_VH, ids_BT, temperature=temperature, chunk=chunk, block=block, bias_V=bias_V
    )
    from_logits = token_logprobs(logits_BTV, ids_BT, temperature=temperature, chunk=chunk)
    for logprobs_BT, entropies_BT in (from_hidden, from_logits):
        torch.testing.assert_close(logprobs_BT, expected_BT)
        torch.testing.assert_close(entropies_BT, entropy_BT)


@pytest.mark.parametrize("chunk, block", [(1, 1), (4, 3), (100, 100)])
def test_gradients_through_log_probs_and_entropy_equal_numerical_ones(chunk: int, block: int) -> None:
    hidden_BTH, weight_VH, bias_V, ids_BT, mask_BT = problem()

    def from_hidden(hidden_BTH: Tensor, weight_VH: Tensor, bias_V: Tensor) -> tuple[Tensor, Tensor]:
        return chunked_token_logprobs(
            hidden_BTH, weight_VH, ids_BT, temperature=0.7, chunk=chunk, block=block, bias_V=bias_V, mask_BT=mask_BT
        )

    assert torch.autograd.gradcheck(from_hidden, (hidden_BTH, weight_VH, bias_V))
    logits_BTV = (hidden_BTH @ weight_VH.T).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, ids_BT, temperature=0.7, chunk=chunk), (logits_BTV,))


@pytest.mark.parametrize("used", [0, 1], ids=["log-probs", "entropy"])
def test_either_output_alone_has_the_gradient_autograd_finds(used: int) -> None:
    hidden_BTH, weight_VH, bias_V, ids_BT, _ = problem()
    inputs = (hidden_BTH, weight_VH, bias_V)
    ours = chunked_token_logprobs(hidden_BTH, weight_VH, ids_BT, temperature=0.7, chunk=4, bias_V=bias_V)[used]
    logs_BTV = torch.log_softmax((hidden_BTH @ weight_VH.T + bias_V) / 0.7, -1)
    naive = (logs_BTV.gather(-1, ids_BT[..., None])[..., 0], -(logs_BTV.exp() * logs_BTV).sum(-1))[used]
    weights_BT = torch.randn(B, T, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weights_BT).sum(), inputs),
        torch.autograd.grad((naive * weights_BT).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_detail_14_what_stands_outside_the_mask_is_0_and_gets_no_gradient_even_when_nan() -> None:
    hidden_BTH, weight_VH, _, ids_BT, mask_BT = problem()
    dirty_BTH = hidden_BTH.detach().masked_fill(~mask_BT[..., None], float("nan")).requires_grad_()
    logprobs_BT, entropy_BT = chunked_token_logprobs(dirty_BTH, weight_VH, ids_BT, temperature=1.0, mask_BT=mask_BT)
    (logprobs_BT.sum() + entropy_BT.sum()).backward()
    assert not logprobs_BT[~mask_BT].any() and not entropy_BT[~mask_BT].any()
    assert dirty_BTH.grad is not None and weight_VH.grad is not None
    assert not dirty_BTH.grad[~mask_BT].any()
    assert dirty_BTH.grad[mask_BT].any() and weight_VH.grad.isfinite().all()


def test_a_mask_changes_no_wanted_log_prob_and_no_gradient() -> None:
    hidden_BTH, weight_VH, _, ids_BT, mask_BT = problem()
    masked_BT, _ = chunked_token_logprobs(hidden_BTH, weight_VH, ids_BT, temperature=1.0, chunk=2, mask_BT=mask_BT)
    full_BT, _ = chunked_token_logprobs(hidden_BTH, weight_VH, ids_BT, temperature=1.0)
    torch.testing.assert_close(masked_BT, full_BT * mask_BT)
    for mine, theirs in zip(
        torch.autograd.grad(masked_BT.sum(), (hidden_BTH, weight_VH)),
        torch.autograd.grad((full_BT * mask_BT).sum(), (hidden_BTH, weight_VH)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_no_wanted_token_gives_zeros_and_a_backward_that_runs() -> None:
    hidden_BTH, weight_VH, _, ids_BT, _ = problem(torch.float32)
    logprobs_BT, _ = chunked_token_logprobs(
        hidden_BTH, weight_VH, ids_BT, temperature=1.0, mask_BT=torch.zeros(B, T, dtype=torch.bool)
    )
    logprobs_BT.sum().backward()
    assert logprobs_BT.tolist() == [[0.0] * T] * B
    assert weight_VH.grad is not None and not weight_VH.grad.any()


def test_detail_6_a_float32_head_over_bfloat16_states_loses_no_digits_to_the_product() -> None:
    hidden_BTH, weight_VH, _, ids_BT, _ = problem(torch.bfloat16, vocabulary=200)
    exact_BT, _ = token_logprobs(hidden_BTH.double() @ weight_VH.double().T, ids_BT, temperature=1.0)
    wide_BT, _ = chunked_token_logprobs(hidden_BTH, weight_VH, ids_BT, temperature=1.0, float32_head=True)
    narrow_BT, _ = chunked_token_logprobs(hidden_BTH, weight_VH, ids_BT, temperature=1.0)
    assert wide_BT.dtype == narrow_BT.dtype == torch.float32
    assert float((wide_BT - exact_BT).detach().abs().max()) < 1e-5
    assert float((narrow_BT - exact_BT).detach().abs().max()) > 1e-3
    wide_BT.sum().backward()
    assert hidden_BTH.grad is not None and hidden_BTH.grad.dtype == torch.bfloat16


def test_the_heads_gradient_is_summed_over_chunks_in_float32_under_a_bfloat16_model() -> None:
    weight_VH = torch.zeros(4, 1, dtype=torch.bfloat16, requires_grad=True)
    hidden_BTH = torch.ones(1, 3000, 1, dtype=torch.bfloat16)
    logprobs_BT, _ = chunked_token_logprobs(
        hidden_BTH, weight_VH, torch.zeros(1, 3000, dtype=torch.long), temperature=1.0, chunk=1
    )
    logprobs_BT.sum().backward()
    assert weight_VH.grad is not None
    # 3000 times (1 - 1/4); bfloat16 steps of .75 would stop counting at 256
    assert weight_VH.grad[:, 0].tolist() == pytest.approx([2250, -750, -750, -750], rel=2**-8)


def test_softmax_over_bfloat16_logits_is_taken_in_float32() -> None:
    hidden_BTH, weight_VH, _, ids_BT, _ = problem(torch.bfloat16)
    logits_BTV = (hidden_BTH @ weight_VH.T).detach()
    expected_BT, entropy_BT = token_logprobs(logits_BTV.double(), ids_BT, temperature=0.7)
    logprobs_BT, entropies_BT = token_logprobs(logits_BTV, ids_BT, temperature=0.7)
    torch.testing.assert_close(logprobs_BT.double(), expected_BT, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropies_BT.double(), entropy_BT, rtol=0, atol=1e-5)


def test_autocast_does_not_reach_into_a_float32_head() -> None:
    hidden_BTH, weight_VH, _, ids_BT, _ = problem(torch.float32)
    outside, _ = chunked_token_logprobs(hidden_BTH, weight_VH, ids_BT, temperature=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = chunked_token_logprobs(hidden_BTH, weight_VH, ids_BT, temperature=1.0)
    assert inside.equal(outside)


@pytest.mark.parametrize("block", [2, 4, 11])
def test_tokens_that_the_heads_bias_bans_count_nothing_even_where_a_block_holds_no_other(block: int) -> None:
    hidden_BTH, weight_VH, bias_V, _, _ = problem()
    with torch.no_grad():
        bias_V[:4] = -torch.inf
    ids_BT = torch.full((B, T), 7)
    logprobs_BT, entropy_BT = chunked_token_logprobs(
        hidden_BTH, weight_VH, ids_BT, temperature=0.7, block=block, bias_V=bias_V
    )
    kept_BTV = (hidden_BTH @ weight_VH[4:].T + bias_V[4:]) / 0.7
    torch.testing.assert_close(logprobs_BT, kept_BTV.log_softmax(-1)[..., 7 - 4])
    torch.testing.assert_close(entropy_BT, torch.distributions.Categorical(logits=kept_BTV).entropy())
    (logprobs_BT.sum() + entropy_BT.sum()).backward()
    assert weight_VH.grad is not None and weight_VH.grad.isfinite().all() and not weight_VH.grad[:4].any()


def test_banned_token_with_a_logit_of_minus_infinity_leaves_entropy_and_gradient_finite() -> None:
    logits_BTV = torch.zeros(1, 1, 3)
    logits_BTV[0, 0, 2] = -torch.inf
    logits_BTV.requires_grad_()
    logprobs_BT, entropy_BT = token_logprobs(logits_BTV, torch.tensor([[0]]), temperature=1.0)
    (logprobs_BT + 5 * entropy_BT).sum().backward()
    torch.testing.assert_close(logprobs_BT, torch.tensor([[0.5]]).log())
    torch.testing.assert_close(entropy_BT, torch.tensor([[2.0]]).log())
    assert logits_BTV.grad is not None
    torch.testing.assert_close(logits_BTV.grad, torch.tensor([[[0.5, -0.5, 0.0]]]))


class LargestFloatTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest floating tensor any operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple | list) else (made,):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.numel = max(self.numel, x.numel())
        return made


def test_no_tensor_of_batch_times_length_times_vocabulary_is_ever_made() -> None:
    hidden_BTH, weight_VH, _, ids_BT, _ = problem(torch.float32, vocabulary=1000)
    chunk = 2
    with LargestFloatTensor() as seen:
        logprobs_BT, entropy_BT = chunked_token_logprobs(hidden_BTH, weight_VH, ids_BT, temperature=1.0, chunk=chunk)
        (logprobs_BT.sum() + entropy_BT.sum()).backward()
    assert seen.numel == max(chunk * 1000, weight_VH.numel())
    assert seen.numel < B * T * 1000


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_that_cannot_have_been_sampled_at_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="sampling temperature, above 0"):
        token_logprobs(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature=temperature)


def test_chunk_of_no_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk of 0 tokens"):
        token_logprobs(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), temperature=1.0, chunk=0)
