"""Seeded sampling, row by row, from exactly the requested distribution: `draw` for every engine, and the logits
processor that lets transformers.generate use it. Pure torch.

Axes: B rows, V vocabulary, K blocks of the vocabulary, C rows of one chunk.

One uniform number per row and step becomes one token: the inverse of the cumulative distribution. A seeded Gumbel or
exponential draw takes as many random numbers per row as the vocabulary has tokens, from one generator per row, one
after the other. This one takes a single number per row, so rows are drawn together, and a row's token depends on
nothing but its own logits and its own number. In a large vocabulary the sum runs over blocks first and then inside the
block that was hit; cumulative sums are in float64, for in float32 they would lose tokens of probability below 1e-7.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.config.schema import Sampling

BLOCK = 512
AHEAD = 16
CHUNK_NUMBERS = 2**20  # logits converted to float32 at a time: 4 MiB, which stay in cache


def uniforms(generators: Sequence[torch.Generator]) -> Tensor:
    """(B,) float64 in [0, 1), one number of each generator, which moves on by one."""
    drawn = [torch.rand(1, generator=g, device=g.device, dtype=torch.float64) for g in generators]
    return torch.cat(drawn)


def ahead(generators: Sequence[torch.Generator]) -> Iterator[Tensor]:
    """What `uniforms` gives call after call, drawn AHEAD numbers at a time: the call takes longer than a number."""
    while True:
        drawn = [torch.rand(AHEAD, generator=g, device=g.device, dtype=torch.float64) for g in generators]
        yield from torch.stack(drawn, dim=1)


def draw(logits_BV: Tensor, uniform_B: Tensor, temperature_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(B,) ids drawn from softmax(logits / temperature), and their (B,) log-probs in float32. Logits stay unchanged.

    logits_BV: -inf where a token must not be drawn; any float dtype. uniform_B: float64 in [0, 1).
    A row that holds NaN, or nothing but -inf, gets an id within the vocabulary and the log-prob NaN.
    Source: inverse transform sampling, Devroye 1986, "Non-Uniform Random Variate Generation", section II.2.
    """
    rows, vocabulary = logits_BV.shape
    chunk = max(CHUNK_NUMBERS // vocabulary, 1) if logits_BV.device.type == "cpu" else rows
    parts = []
    for start in range(0, rows, chunk):
        some = slice(start, start + chunk)
        temperature_C = None if temperature_B is None else temperature_B[some]
        parts.append(_draw_chunk(logits_BV[some], uniform_B[some], temperature_C))
    ids_B, logprobs_B = (torch.cat(column) for column in zip(*parts, strict=True))
    return ids_B, logprobs_B


def _draw_chunk(logits_CV: Tensor, uniform_C: Tensor, temperature_C: Tensor | None) -> tuple[Tensor, Tensor]:
    vocabulary = logits_CV.shape[1]
    largest_C1 = logits_CV.amax(1, keepdim=True).float()
    scaled_CV = logits_CV - largest_C1  # of bfloat16 and float32: converts and subtracts in one pass
    if temperature_C is not None:
        scaled_CV.div_(temperature_C[:, None])
    weights_CV = scaled_CV.exp_()
    token_C1, total_C1 = (_of_one_block if vocabulary <= BLOCK else _of_blocks)(weights_CV, uniform_C)
    token_C1 = token_C1.clamp(max=vocabulary - 1)  # beyond it only where a row holds NaN
    scaled_C1 = logits_CV.gather(1, token_C1).double() - largest_C1.double()
    if temperature_C is not None:
        scaled_C1 = scaled_C1 / temperature_C[:, None].double()
    return token_C1[:, 0], (scaled_C1 - total_C1.log())[:, 0].float()


def _of_one_block(weights_CV: Tensor, uniform_C: Tensor) -> tuple[Tensor, Tensor]:
    """(C, 1) the token that each number falls on, and the (C, 1) sum of the weights in float64."""
    until_CV = weights_CV.double().cumsum(1)
    total_C1 = until_CV[:, -1:]
    return _first_beyond(until_CV, uniform_C[:, None] * total_C1), total_C1


def _of_blocks(weights_CV: Tensor, uniform_C: Tensor) -> tuple[Tensor, Tensor]:
    """`_of_one_block` for a large vocabulary: first the block that is hit, then the token inside it."""
    padding = -weights_CV.shape[1] % BLOCK
    if padding:
        weights_CV = torch.nn.functional.pad(weights_CV, (0, padding))
    blocks_CKN = weights_CV.view(len(weights_CV), -1, BLOCK)
    until_CK = blocks_CKN.sum(-1).double().cumsum(1)
    total_C1 = until_CK[:, -1:]
    target_C1 = uniform_C[:, None] * total_C1
    block_C1 = _first_beyond(until_CK, target_C1)
    before_C1 = torch.where(block_C1 > 0, until_CK.gather(1, (block_C1 - 1).clamp(min=0)), 0.0)
    inside_CN = blocks_CKN[torch.arange(len(block_C1), device=block_C1.device), block_C1[:, 0]].double().cumsum(1)
    return block_C1 * BLOCK + _first_beyond(inside_CN, target_C1 - before_C1), total_C1


def _first_beyond(until_CN: Tensor, target_C1: Tensor) -> Tensor:
    """(C, 1) the first index whose cumulative sum is beyond the target, so its own share is above 0.

    The target may have been rounded up to the whole sum: it is taken to be just below it.
    """
    below_C1 = torch.nextafter(until_CN[:, -1:], torch.zeros_like(target_C1))
    index_C1 = torch.searchsorted(until_CN, torch.minimum(target_C1, below_C1), right=True)
    return index_C1.clamp(max=until_CN.shape[1] - 1)


class SeededSampler:
    """Draws the next token of each row of a batch. The number that decides a row's token is from its own generator, so
    a sample does not depend on its neighbours.

    Called as a logits processor of `generate`, it makes greedy decoding draw: the drawn token gets the largest score.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """prompts: each row's own ids, without padding: a repetition penalty applies to them too."""
        self.sampling, self.prompts = sampling, prompts
        self.seen_BV: Tensor | None = None
        self.numbers = ahead([torch.Generator().manual_seed(seed) for seed in seeds])
        self.rows: Tensor | None = None  # indices of the rows that are left; None: all
        self.logprobs: list[Tensor] = []  # one (B,) per step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: (B, V) logits, overwritten. Returns scores whose largest is the drawn token's."""
        ids_B, logprobs_B = self.draw(scores)
        self.logprobs.append(logprobs_B)
        return scores.scatter_(-1, ids_B[:, None], torch.inf)

    def draw(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """The (B,) ids of each row's next token, and their (B,) log-probs on the CPU."""
        filtered_BV = filtered_logits(self._penalized(logits_BV), self.sampling)
        numbers = next(self.numbers)
        if self.rows is not None:
            numbers = numbers[self.rows]
        ids_B, logprobs_B = draw(filtered_BV, numbers.to(logits_BV.device))
        if self.seen_BV is not None:
            self.seen_BV.scatter_(-1, ids_B[:, None], True)
        return ids_B, logprobs_B.cpu()

    def keep(self, rows: Tensor) -> None:
        """Draw only these rows of the batch from now on."""
        self.rows = rows.cpu() if self.rows is None else self.rows[rows.cpu()]
        if self.seen_BV is not None:
            self.seen_BV = self.seen_BV[rows]

    def _penalized(self, scores_BV: Tensor) -> Tensor:
        """Makes tokens of the row's prompt and answer less likely. Source: CTRL, arXiv:1909.05858 §4.1."""
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0:
            return scores_BV
        if self.seen_BV is None:
            self.seen_BV = torch.zeros_like(scores_BV, dtype=torch.bool)
            for row, ids in enumerate(self.prompts):
                self.seen_BV[row, list(ids)] = True
        return torch.where(
            self.seen_BV, torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty), scores_BV
        )


def filtered_logits(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """(B, V) logits of the distribution that is sampled from, after temperature, then min-p, top-k, top-p; -inf where a
    filter removed a token. In float32, or the given tensor if nothing changes it.

    In vLLM's order: top-p sums the shares of what min-p and top-k have left.
    """
    if sampling.temperature == 1 and not sampling.min_p and not sampling.top_k and sampling.top_p >= 1:
        return logits_BV  # `draw` converts in parts that stay in cache
    logits = logits_BV.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    if sampling.min_p > 0:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < sampling.min_p * probs.max(-1, keepdim=True).values, -torch.inf)
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True, dim=-1)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        beyond = before >= sampling.top_p  # the token that crosses top_p stays
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return logits
