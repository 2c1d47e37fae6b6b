"""Per-row seeded sampling for transformers.generate, from exactly the requested distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.config.schema import Sampling
from pipeline.generation.inverse_cdf import draw, uniforms


class SeededSampler:
    """A logits processor that makes greedy decoding draw a sample: the drawn token gets the largest score.

    The number that decides a row's token is from its own generator, so a sample does not depend on its neighbours.
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """prompts: each row's own ids, without padding: a repetition penalty applies to them too."""
        self.sampling, self.prompts = sampling, prompts
        self.seen_BV: torch.Tensor | None = None
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.logprobs: list[torch.Tensor] = []  # one (B,) per step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: (B, V) logits, overwritten. Returns scores whose largest is the drawn token's."""
        filtered_BV = filtered_logits(self._penalized(scores), self.sampling)
        ids_B, logprobs_B = draw(filtered_BV, uniforms(self.generators).to(scores.device))
        self.logprobs.append(logprobs_B.cpu())
        if self.seen_BV is not None:
            self.seen_BV.scatter_(-1, ids_B[:, None], True)
        return scores.scatter_(-1, ids_B[:, None], torch.inf)

    def _penalized(self, scores_BV: torch.Tensor) -> torch.Tensor:
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


def filtered_logits(logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """(B, V) float32 logits of the distribution that is sampled from: temperature, then min-p, top-k, top-p; -inf where
    a filter removed a token.

    In vLLM's order: top-p sums the shares of what min-p and top-k have left.
    """
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
