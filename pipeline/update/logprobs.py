"""Log-probs of given tokens in float32, without materializing batch x length x vocabulary in float32.

Axes: B batch, T tokens, H hidden size, V vocabulary, N flat tokens; C tokens of one chunk and K entries of one block of
the vocabulary, which together are a tile; P blocks.

`chunked_token_logprobs` applies the head to hidden states, so that logits exist for one tile at a time, in forward and
again in backward; `token_logprobs` starts from existing logits. The softmax is summed up over blocks as in online
softmax (arXiv:1805.02867).
Supported: tied and untied heads, a head bias, a float32 head on a bfloat16 body, first-order gradients to hidden
states, head and bias. Not supported: second-order gradients, a head sharded over ranks (gather it first).
"""

from typing import Any

import torch
from torch import Tensor

# Where logits of the whole vocabulary are needed at once: large enough to amortize the head's products and the
# accumulation into its gradient, and small enough to limit the temporaries; 2**24 float32 numbers are 64 MiB.
CHUNK_NUMBERS = 2**24
MIN_CHUNK = 256  # tokens
# Numbers of a tile and the largest block of the vocabulary. On a CPU a tile in float32 (4 MiB) stays in cache through
# all passes over it; on a GPU it has to amortize the launches of its kernels.
TILE_NUMBERS = {"cpu": 2**20, "cuda": 2**25}
BLOCK = {"cpu": 2**11, "cuda": 2**14}
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
    chunk = chunk_tokens(chunk, vocabulary, tile_numbers(logits_NV.device))
    logprobs_N, entropy_N = _FromLogits.apply(logits_NV, ids_N, temperature, chunk)
    return logprobs_N.view(ids_BT.shape), entropy_N.view(ids_BT.shape)


def chunked_token_logprobs(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    ids_BT: Tensor,
    *,
    temperature: float,
    chunk: int | None = None,
    block: int | None = None,
    bias_V: Tensor | None = None,
    mask_BT: Tensor | None = None,
    float32_head: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probs of ids under softmax((hidden @ weight.T + bias) / temperature), and entropies; both (B, T) float32.

    The arguments are those of `chunked_token_figures`.
    """
    logprobs_BT, entropy_BT, _ = chunked_token_figures(
        hidden_BTH, weight_VH, ids_BT, temperature=temperature, chunk=chunk, block=block, bias_V=bias_V,
        mask_BT=mask_BT, float32_head=float32_head,
    )  # fmt: skip
    return logprobs_BT, entropy_BT


def chunked_token_figures(
    hidden_BTH: Tensor,
    weight_VH: Tensor,
    ids_BT: Tensor,
    *,
    temperature: float,
    chunk: int | None = None,
    block: int | None = None,
    bias_V: Tensor | None = None,
    mask_BT: Tensor | None = None,
    float32_head: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs and entropies as `chunked_token_logprobs`, and whether no token is more likely, (B, T) bool.

    hidden_BTH: the last hidden state at the position BEFORE each token (after the final norm).
    chunk, block: tokens and entries of the vocabulary whose logits exist at a time; None = chosen for the device.
    mask_BT: True = compute this token; elsewhere all outputs are 0 and the head is not applied.
    float32_head: multiply in float32 even if hidden states are bfloat16; otherwise in the hidden states' dtype.
    Raises ValueError unless temperature > 0.
    """
    check_temperature(temperature)
    block = block or BLOCK.get(hidden_BTH.device.type, BLOCK["cuda"])
    chunk = chunk_tokens(chunk, min(block, weight_VH.shape[0]), tile_numbers(hidden_BTH.device))
    wanted_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
    hidden_NH, ids_N = hidden_BTH[wanted_BT], ids_BT[wanted_BT]
    if float32_head:
        hidden_NH = hidden_NH.to(torch.promote_types(hidden_NH.dtype, torch.float32))
    figures = _FromHidden.apply(hidden_NH, weight_VH, bias_V, ids_N, temperature, chunk, block)
    logprobs_BT, entropy_BT, likeliest_BT = (
        x.view(ids_BT.shape) if mask_BT is None else x.new_zeros(ids_BT.shape).masked_scatter(wanted_BT, x)
        for x in figures
    )
    return logprobs_BT, entropy_BT, likeliest_BT


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
        for rows in slices(len(hidden_NH), chunk):
            scaled_CV = scaled_logits(head_logits(hidden_NH[rows], *head), temperature)
            parts.append(((2 * scaled_CV).logsumexp(1) - 2 * scaled_CV.logsumexp(1)).exp())
    return out_BT.masked_scatter(mask_BT, torch.cat(parts).float()) if parts else out_BT


class _FromLogits(torch.autograd.Function):
    """Saves its input logits (they stay alive anyway) instead of the float32 copies that autograd would keep."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, ids_N: Tensor, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
        parts = [
            _measure(scaled_logits(logits_NV[rows], temperature), ids_N[rows]) for rows in slices(len(ids_N), chunk)
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
        for rows in slices(len(ids_N), ctx.chunk):
            scaled_CV = scaled_logits(logits_NV[rows], ctx.temperature)
            grad_CV = _grad_scaled(scaled_CV, ids_N[rows], entropy_N[rows], normaliser_N[rows], *_rows(grads, rows))
            grad_NV[rows] = _divided(grad_CV, ctx.temperature)
        return grad_NV, None, None, None


class _FromHidden(torch.autograd.Function):
    """Computes the logits of one tile at a time, and again in backward: one more head product, but far less memory."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        ids_N: Tensor,
        temperature: float,
        chunk: int,
        block: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sums = SoftmaxSums(hidden_NH, -(-len(weight_VH) // block))
        with torch.autocast(hidden_NH.device.type, enabled=False):
            for number, columns in enumerate(slices(len(weight_VH), block)):
                head = head_in_dtype(hidden_NH, weight_VH[columns], None if bias_V is None else bias_V[columns])
                for rows in slices(len(ids_N), chunk):
                    scaled_CK = scaled_logits(head_logits(hidden_NH[rows], *head), temperature)
                    sums.add(number, rows, scaled_CK, ids_N[rows] - columns.start)
        logprobs_N, entropy_N, normaliser_N = sums.read()
        likeliest_N = sums.likeliest()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(likeliest_N)
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, ids_N, entropy_N, normaliser_N)
        ctx.temperature, ctx.chunk, ctx.block = temperature, chunk, block
        return logprobs_N, entropy_N, likeliest_N

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        grads = outputs[:2]
        hidden_NH, weight_VH, bias_V, ids_N, entropy_N, normaliser_N = ctx.saved_tensors
        gradients = HeadGradients(hidden_NH, weight_VH, bias_V, ctx.needs_input_grad[:3])
        with torch.autocast(hidden_NH.device.type, enabled=False):
            # tokens inside blocks: a block's gradient of the weights stays in cache until it is complete
            for columns in slices(len(weight_VH), ctx.block):
                head = head_in_dtype(hidden_NH, weight_VH[columns], None if bias_V is None else bias_V[columns])
                for rows in slices(len(ids_N), ctx.chunk):
                    scaled_CK = scaled_logits(head_logits(hidden_NH[rows], *head), ctx.temperature)
                    local_C = ids_N[rows] - columns.start
                    wide_CK = _grad_scaled(scaled_CK, local_C, entropy_N[rows], normaliser_N[rows], *_rows(grads, rows))
                    gradients.add(rows, _divided(wide_CK, ctx.temperature), head[0], columns)
        return *gradients.read(), None, None, None, None


class SoftmaxSums:
    """Sums over blocks of the vocabulary from which log-probs and entropies are computed, in at least float32.

    Per block and token: the largest scaled logit m, the sum of exp(z - m), and the sum of exp(z - m) (z - m).
    """

    def __init__(self, like_NH: Tensor, blocks: int) -> None:
        wide = torch.promote_types(like_NH.dtype, torch.float32)
        shape = (blocks, len(like_NH))
        self.largest_PN, self.weight_PN, self.product_PN = (like_NH.new_empty(shape, dtype=wide) for _ in range(3))
        self.taken_N = like_NH.new_zeros(len(like_NH), dtype=wide)  # scaled logit of the token itself

    def add(self, number: int, rows: slice, scaled_CK: Tensor, local_C: Tensor) -> None:
        """Tokens `rows` in block `number`. local_C: index of each token in this block, which may lie outside of it.
        Overwrites scaled_CK."""
        inside_C, index_C1 = _within(local_C, scaled_CK.shape[1])
        self.taken_N[rows] += torch.where(inside_C, scaled_CK.gather(1, index_C1)[:, 0], 0.0)
        largest_C = scaled_CK.amax(1).clamp_(min=torch.finfo(scaled_CK.dtype).min / 4)  # all of a block may be banned
        scaled_CK.sub_(largest_C[:, None])
        weight_CK = scaled_CK.exp()
        self.largest_PN[number, rows], self.weight_PN[number, rows] = largest_C, weight_CK.sum(1)
        self.product_PN[number, rows] = torch.linalg.vecdot(weight_CK, scaled_CK.clamp_(min=IMPOSSIBLE))

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) log-probs, entropies, and log-sum-exp of the scaled logits."""
        largest_N = self.largest_PN.amax(0)
        below_PN = self.largest_PN - largest_N
        share_PN = below_PN.exp()
        total_N = (share_PN * self.weight_PN).sum(0)
        product_N = (share_PN * (self.product_PN + below_PN * self.weight_PN)).sum(0)
        normaliser_N = largest_N + total_N.log()
        return self.taken_N - normaliser_N, total_N.log() - product_N / total_N, normaliser_N

    def likeliest(self) -> Tensor:
        """(N,) whether no entry of the vocabulary has a larger logit than the token."""
        return self.taken_N >= self.largest_PN.amax(0)


IN_PLACE, KEPT = "gradient_in_place", "kept_gradient"  # attributes of a weight


class HeadGradients:
    """Gradients of hidden states, head and bias, summed over tiles of the logits' gradient.

    wanted: which of the three to compute; None is read for the others, as autograd expects. The gradient of a float32
    weight whose attribute `gradient_in_place` is true is added to its `.grad` directly, and None is read for it: no
    second tensor of the head's size is made.
    """

    def __init__(
        self, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, wanted: tuple[bool, bool, bool]
    ) -> None:
        self.inputs = hidden_NH, weight_VH, bias_V

        def zeros(like: Tensor | None, wanted: bool) -> Tensor | None:
            # sum over many tiles: a bfloat16 accumulator would lose small terms
            wide = None if like is None else torch.promote_types(like.dtype, torch.float32)
            return torch.zeros_like(like, dtype=wide) if wanted and like is not None else None

        self.in_place = wanted[1] and weight_VH.dtype == torch.float32 and getattr(weight_VH, IN_PLACE, False)
        if self.in_place and weight_VH.grad is None:
            weight_VH.grad = zeros_kept(weight_VH)
        of_weight_VH = weight_VH.grad if self.in_place else zeros(weight_VH, wanted[1])
        self.sums = zeros(hidden_NH, wanted[0]), of_weight_VH, zeros(bias_V, wanted[2])

    def add(self, rows: slice, wide_CK: Tensor, head_KH: Tensor, columns: slice = slice(None)) -> None:
        """One tile. wide_CK: gradient of the logits of these rows and columns, float32. head_KH: the head's rows
        `columns`, in the dtype of the products."""
        hidden_NH, weight_VH, bias_V = self.sums
        grad_CK = wide_CK.to(head_KH.dtype)
        if hidden_NH is not None:
            add_product(hidden_NH[rows], grad_CK, head_KH)
        if weight_VH is not None:
            add_product(weight_VH[columns], grad_CK.T, self.inputs[0][rows])
        if bias_V is not None:
            bias_V[columns] += wide_CK.sum(0)

    def read(self) -> tuple[Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V = (
            None if total is None or like is None else total.to(like.dtype)
            for total, like in zip(self.sums, self.inputs, strict=True)
        )
        return hidden_NH, None if self.in_place else weight_VH, bias_V


def zeros_kept(weight_VH: Tensor) -> Tensor:
    """Zeros for a weight's gradient, in the memory of its last one. `zero_grad` lets go of that, and memory of such a
    size is returned to the system: to find new pages takes several times as long as to clear the old ones."""
    kept: Tensor | None = getattr(weight_VH, KEPT, None)
    if kept is None or kept.device != weight_VH.device or kept.shape != weight_VH.shape:
        kept = torch.zeros_like(weight_VH)
        setattr(weight_VH, KEPT, kept)
        return kept
    return kept.zero_()


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
        inside_C, index_C1 = _within(ids_C, grad_CV.shape[1])
        grad_CV.scatter_add_(1, index_C1, (grad_logprobs_C * inside_C)[:, None].to(grad_CV.dtype))
    return grad_CV


def _within(local_C: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Whether each index is one of 0 .. size - 1, and the (C, 1) nearest that is."""
    index_C1 = local_C.clamp(0, size - 1)[:, None]
    return index_C1[:, 0] == local_C, index_C1


def _divided(x_CV: Tensor, temperature: float) -> Tensor:
    """In place; at temperature 1 without a pass over the tensor."""
    return x_CV if temperature == 1 else x_CV.div_(temperature)


def head_in_dtype(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the hidden states' dtype, converted once instead of once per chunk."""
    return weight_VH.to(hidden_NH.dtype), None if bias_V is None else bias_V.to(hidden_NH.dtype)


def head_logits(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden_CH, weight_VH, bias_V)


def scaled_logits(logits_CV: Tensor, temperature: float) -> Tensor:
    """A new tensor in at least float32, never an alias of the logits: callers overwrite it."""
    return _divided(logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32), copy=True), temperature)


def slices(n: int, chunk: int) -> list[slice]:
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


def chunk_tokens(chunk: int | None, vocabulary: int, numbers: int | None = None) -> int:
    """Tokens at a time. numbers: of a chunk of logits; None = that of a whole vocabulary, with at least MIN_CHUNK
    tokens, because each chunk reads the whole head. Raises ValueError if chunk is below 1."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk of {chunk} tokens: must be at least 1, or None to choose by vocabulary")
    return chunk or (max(MIN_CHUNK, CHUNK_NUMBERS // vocabulary) if numbers is None else max(numbers // vocabulary, 1))


def tile_numbers(device: torch.device) -> int:
    return TILE_NUMBERS.get(device.type, TILE_NUMBERS["cuda"])


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: log-probs need the sampling temperature, above 0")
