"""How transformers is made to draw: each row with a seed of its own, from exactly the distribution asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.config.schema import Sampling


class SeededSampler:
    """A logits processor that makes greedy decoding draw a sample: argmax(log p + Gumbel noise) ~ p.

    The noise of a row is its own generator's, so a row's sample does not depend on its neighbours.
    Source: the Gumbel-max trick (Maddison et al. 2014, arXiv:1411.0030 §2).
    """

    def __init__(self, sampling: Sampling, seeds: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """prompts: each row's own ids, without what pads it: a repetition penalty falls on them too."""
        self.sampling, self.prompts = sampling, prompts
        self.seen_BV: torch.Tensor | None = None
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.logprobs: list[torch.Tensor] = []  # one (B,) a step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logprobs_BV = filtered_logprobs(self._penalised(scores), self.sampling)
        uniform_BV = torch.stack([torch.rand(scores.shape[-1], generator=g) for g in self.generators]).to(scores.device)
        noise_BV = -torch.log(-torch.log(uniform_BV.clamp(1e-20, 1 - 1e-7)))
        noisy_BV = logprobs_BV + noise_BV
        chosen_B = noisy_BV.argmax(-1, keepdim=True)
        self.logprobs.append(logprobs_BV.gather(-1, chosen_B)[:, 0].cpu())
        if self.seen_BV is not None:
            self.seen_BV.scatter_(-1, chosen_B, True)
        return noisy_BV

    def _penalised(self, scores_BV: torch.Tensor) -> torch.Tensor:
        """Tokens of the row's prompt and answer made less likely. Source: CTRL, arXiv:1909.05858 §4.1."""
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


def filtered_logprobs(logits_BV: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """(B, V) log-probs of the distribution that is sampled from: temperature, then min-p, top-k, top-p; float32.

    In vLLM's order: what min-p takes away counts in the shares that top-p sums.
    """
    logits = logits_BV.float() / sampling.temperature
    if sampling.min_p > 0:
        probs = logits.softmax(-1)
        logits = logits.masked_fill(probs < sampling.min_p * probs.max(-1, keepdim=True).values, -torch.inf)
    if sampling.top_k:
        kth = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(descending=True, dim=-1)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        cut = before >= sampling.top_p  # the token that crosses top_p stays
        logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -torch.inf)
    return logits.log_softmax(-1)


__all__ = ["SeededSampler", "filtered_logprobs"]
