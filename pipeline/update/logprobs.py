"""Log-probs of given tokens in float32, without materializing batch x length x vocabulary in float32.

Axes: B batch, T tokens, H hidden size, V vocabulary, N flat tokens, C tokens of one chunk.

`chunked_token_logprobs` applies the head to hidden states, so that logits exist for one chunk at a time, in forward and
again in backward; `token_logprobs` starts from existing logits.
Supported: tied and untied heads, a head bias, a float32 head on a bfloat16 body, first-order gradients to hidden
states, head and bias. Not supported: second-order gradients, a head sharded over ranks (gather it first).
"""

from typing import Any

import torch
from torch import Tensor

# Large enough to amortize the launch of the head's products and the accumulation into its gradient, and small enough to
# limit the size of the temporaries: 2**24 float32 numbers are 64 MiB.
CHUNK_NUMBERS = 2**24
MIN_CHUNK = 256  # tokens
# exp(IMPOSSIBLE) is exactly 0, also in float64; a log-prob of -inf (a banned token) would give 0 * -inf = NaN in an
# entropy
IMPOSSIBLE = -1000.0


def token_logprobs(
    logits_BTV: Tensor, ids_BT: Tensor, *, temperature: float, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """log_softmax(logits / temperature) at ids, and the entropy of that distribution; both (B, T) float32.

    temperature: the sampling temperature of the tokens; otherwise ratio and KL are those of another policy.
    chunk: tokens in float32 at a time; None = chosen from the vocabulary size.
    Raises ValueError unless temperature > 0.
    """
    check_temperature(temperature)
    vocabulary = logits_BTV.shape[-1]
    logits_NV, ids_N = logits_BTV.reshape(-1, vocabulary), ids_BT.reshape(-1)
    logprobs_N, entropy_N = _FromLogits.apply(logits_NV, ids_N, temperature, chunk_tokens(chunk, vocabulary))
    return logprobs_N.view(ids_BT.shape), entropy_N.view(ids_BT.shape)


def chunked_token_logprobs(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    ids_BT: Tensor,
    *,
    temperature: float,
    chunk: int | None = None,
    bias_V: Tensor | None = None,
    mask_BT: Tensor | None = None,
    float32_head: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs of ids under softmax((hidden @ weight.T + bias) / temperature), and entropies; both (B, T) float32.

    hidden_BTH: the last hidden state at the position BEFORE each token (after the final norm).
    chunk: tokens whose logits exist at a time; None = chosen from the vocabulary size.
    mask_BT: True = compute this token; elsewhere both outputs are 0 and the head is not applied.
    float32_head: multiply in float32 even if hidden states are bfloat16; otherwise in the hidden states' dtype.
    Raises ValueError unless temperature > 0.
    """
    check_temperature(temperature)
    chunk = chunk_tokens(chunk, weight_VH.shape[0])
    wanted_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    hidden_NH, ids_N = hidden_BTH[wanted_BT], ids_BT[wanted_BT]
    if float32_head:
        hidden_NH = hidden_NH.to(torch.promote_types(hidden_NH.dtype, torch.float32))
    logprobs_N, entropy_N = _FromHidden.apply(hidden_NH, weight_VH, bias_V, ids_N, temperature, chunk)
    if mask_BT is None:
        return logprobs_N.view(ids_BT.shape), entropy_N.view(ids_BT.shape)
    empty_BT = logprobs_N.new_zeros(ids_BT.shape)
    return empty_BT.masked_scatter(wanted_BT, logprobs_N), empty_BT.masked_scatter(wanted_BT, entropy_N)


@torch.no_grad()
def chunked_squares(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    mask_BT: Tensor,
    *,
    temperature: float,
    chunk: int | None = None,
    bias_V: Tensor | None = None,
) -> Tensor:
    """(B, T) float32: the sum of the squared probabilities of the vocabulary, 0 outside the mask; no gradient."""
    check_temperature(temperature)
    chunk = chunk_tokens(chunk, weight_VH.shape[0])
    hidden_NH = hidden_BTH[mask_BT]
    out_BT = torch.zeros(mask_BT.shape, device=hidden_BTH.device)
    with torch.autocast(hidden_NH.device.type, enabled=False):
        head = head_in_dtype(hidden_NH, weight_VH, bias_V)
        parts = []
        for rows in chunk_slices(len(hidden_NH), chunk):
            scaled_CV = scaled_logits(head_logits(hidden_NH[rows], *head), temperature)
            parts.append(((2 * scaled_CV).logsumexp(1) - 2 * scaled_CV.logsumexp(1)).exp())
    return out_BT.masked_scatter(mask_BT, torch.cat(parts).float()) if parts else out_BT


class _FromLogits(torch.autograd.Function):
    """Saves its input logits (they stay alive anyway) instead of the float32 copies that autograd would keep."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_N: Tensor, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
        parts = [
            _measure(scaled_logits(logits_NV[rows], temperature), ids_N[rows])
            for rows in chunk_slices(len(ids_N), chunk)
        ]
        logprobs_N, entropy_N, normaliser_N = _joined(parts, logits_NV)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits_NV, ids_N, entropy_N, normaliser_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits_NV, ids_N, entropy_N, normaliser_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for rows in chunk_slices(len(ids_N), ctx.chunk):
            scaled_CV = scaled_logits(logits_NV[rows], ctx.temperature)
            grad_CV = _grad_scaled(scaled_CV, ids_N[rows], entropy_N[rows], normaliser_N[rows], *_rows(grads, rows))
            grad_NV[rows] = grad_CV.div_(ctx.temperature)
        return grad_NV, None, None, None


class _FromHidden(torch.autograd.Function):
    """Computes the logits of one chunk at a time, and again in backward: one more head product, but far less memory."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        ids_N: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden_NH.device.type, enabled=False):
            head = head_in_dtype(hidden_NH, weight_VH, bias_V)
            parts = [
                _measure(scaled_logits(head_logits(hidden_NH[rows], *head), temperature), ids_N[rows])
                for rows in chunk_slices(len(ids_N), chunk)
            ]
        logprobs_N, entropy_N, normaliser_N = _joined(parts, hidden_NH)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, ids_N, entropy_N, normaliser_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, ids_N, entropy_N, normaliser_N = ctx.saved_tensors
        gradients = HeadGradients(hidden_NH, weight_VH, bias_V, ctx.needs_input_grad[:3])
        with torch.autocast(hidden_NH.device.type, enabled=False):
            head_VH, head_V = head_in_dtype(hidden_NH, weight_VH, bias_V)
            for rows in chunk_slices(len(ids_N), ctx.chunk):
                scaled_CV = scaled_logits(head_logits(hidden_NH[rows], head_VH, head_V), ctx.temperature)
                wide_CV = _grad_scaled(scaled_CV, ids_N[rows], entropy_N[rows], normaliser_N[rows], *_rows(grads, rows))
                gradients.add(rows, wide_CV.div_(ctx.temperature), head_VH)
        return *gradients.read(), None, None, None


class HeadGradients:
    """Gradients of hidden states, head and bias, summed over chunks of the logits' gradient.

    wanted: which of the three to compute; None is read for the others, as autograd expects.
    """

    def __init__(
        self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, wanted: tuple[bool, bool, bool]
    ) -> None:
        self.inputs = hidden_NH, weight_VH, bias_V
        # sum over many chunks: a bfloat16 accumulator would lose small terms
        wide = torch.promote_types(weight_VH.dtype, torch.float32)
        self.hidden_NH = torch.empty_like(hidden_NH) if wanted[0] else None
        self.weight_VH = torch.zeros_like(weight_VH, dtype=wide) if wanted[1] else None
        self.bias_V = torch.zeros_like(bias_V, dtype=wide) if wanted[2] and bias_V is not None else None

    def add(self, rows: slice, wide_CV: Tensor, head_VH: Tensor) -> None:
        """One chunk. wide_CV: gradient of the logits of these rows, float32. head_VH: in the dtype of the products."""
        grad_CV = wide_CV.to(head_VH.dtype)
        if self.hidden_NH is not None:
            self.hidden_NH[rows] = grad_CV @ head_VH
        if self.weight_VH is not None:
            add_product(self.weight_VH, grad_CV.T, self.inputs[0][rows])
        if self.bias_V is not None:
            self.bias_V += wide_CV.sum(0)

    def read(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        _, weight_VH, bias_V = self.inputs
        weight_grad = None if self.weight_VH is None else self.weight_VH.to(weight_VH.dtype)
        bias_grad = None if self.bias_V is None or bias_V is None else self.bias_V.to(bias_V.dtype)
        return self.hidden_NH, weight_grad, bias_grad


def add_product(sum_VH: Tensor, left_VC: Tensor, right_CH: Tensor) -> None:
    if sum_VH.dtype == left_VC.dtype:
        sum_VH.addmm_(left_VC, right_CH)  # avoids a second tensor of the head's size
    else:
        sum_VH += left_VC @ right_CH


def _measure(scaled_CV: Tensor, ids_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-prob at ids, entropy, and log-sum-exp of one chunk. Overwrites scaled_CV."""
    normaliser_C = scaled_CV.logsumexp(1)
    logprobs_C = scaled_CV.gather(1, ids_C[:, None])[:, 0] - normaliser_C
    logprobs_CV = scaled_CV.sub_(normaliser_C[:, None])
    entropy_C = -torch.linalg.vecdot(logprobs_CV.exp(), logprobs_CV.clamp_(min=IMPOSSIBLE))
    return logprobs_C, entropy_C, normaliser_C


def _grad_scaled(
    scaled_CV: Tensor,
    ids_C: Tensor,
    entropy_C: Tensor,
    normaliser_C: Tensor,
    grad_logprobs_C: Tensor | None,
    grad_entropy_C: Tensor | None,
) -> Tensor:
    """d/dz of g·logprob + e·H: g·(onehot - p) - e·p·(log p + H). Overwrites scaled_CV."""
    logprobs_CV = scaled_CV.sub_(normaliser_C[:, None])
    if grad_entropy_C is None and grad_logprobs_C is None:
        return torch.zeros_like(scaled_CV)
    if grad_entropy_C is None:
        grad_CV = logprobs_CV.exp_().mul_(-grad_logprobs_C[:, None])  # type: ignore[index]
    else:
        probabilities_CV = logprobs_CV.exp()
        rest_C = grad_entropy_C * entropy_C + (0.0 if grad_logprobs_C is None else grad_logprobs_C)
        grad_CV = logprobs_CV.clamp_(min=IMPOSSIBLE).mul_(-grad_entropy_C[:, None]).sub_(rest_C[:, None])
        grad_CV.mul_(probabilities_CV)
    if grad_logprobs_C is not None:
        grad_CV.scatter_add_(1, ids_C[:, None], grad_logprobs_C[:, None].to(grad_CV.dtype))
    return grad_CV


def head_in_dtype(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the hidden states' dtype, converted once instead of once per chunk."""
    return weight_VH.to(hidden_NH.dtype), None if bias_V is None else bias_V.to(hidden_NH.dtype)


def head_logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden_CH, weight_VH, bias_V)


def scaled_logits(logits_CV: Tensor, temperature: float) -> Tensor:
    """A new tensor in at least float32, never an alias of the logits: callers overwrite it."""
    return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)) / temperature


def chunk_slices(n: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, n)) for start in range(0, n, chunk)]


def _rows(grads: tuple[Tensor | None, ...], rows: slice) -> tuple[Tensor | None, Tensor | None]:
    logprobs, entropy = (None if grad is None else grad[rows] for grad in grads)
    return logprobs, entropy


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenate the chunks of each output; three empty tensors if there are no tokens."""
    if not parts:
        empty = like.new_zeros(0, dtype=torch.promote_types(like.dtype, torch.float32))
        return empty, empty.clone(), empty.clone()
    logprobs, entropy, normaliser = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs, entropy, normaliser


def chunk_tokens(chunk: int | None, vocabulary: int) -> int:
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk of {chunk} tokens: must be at least 1, or None to choose by vocabulary")
    return chunk or max(MIN_CHUNK, CHUNK_NUMBERS // vocabulary)


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: log-probs need the sampling temperature, above 0")
