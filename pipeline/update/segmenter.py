"""Where the segments of a step's rows end (credit.level segment): by count, by text, or by the surprise of the sampler.

Marks in the text are found in what the row's ids decode to, then traced back to the token that completes them, so that
any tokenizer works. Axes: see pipeline/credit/__init__.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import Segments
from pipeline.credit import segments
from pipeline.update.forward import Row, stack

MARKS = {"newline": r"\n+", "sentence": r"[.!?]+[\"')\]]*(?:\n+|(?=\s))|\n+"}


@dataclass(slots=True)
class Segmenter:
    """Segment numbers of rows. tokenizer: the policy's."""

    settings: Segments
    tokenizer: Any
    _pieces: dict[int, str] = field(default_factory=dict)

    def numbers(self, rows: Sequence[Row], logprobs: Sequence[Tensor]) -> list[Tensor]:
        """Per row, (its T,) int: the segment of each token, -1 on tokens that were not sampled.

        logprobs: per row, (its T,) log-probs of the tokens under the generator.
        """
        mask_BT = stack([r.mask for r in rows]).bool()
        if self.settings.by == "tokens":
            ends_BT = segments.fixed_ends(mask_BT, tokens=self.settings.tokens)
        elif self.settings.by == "peaks":
            ends_BT = segments.peak_ends(stack(logprobs), mask_BT)
        else:
            ends_BT = stack([self.mark_ends(r.ids) for r in rows]).bool()
        numbers_BT = segments.segments_of_ends(ends_BT, mask_BT)
        return [n[: len(r.ids)] for n, r in zip(numbers_BT, rows, strict=True)]

    def mark_ends(self, ids: Sequence[int]) -> list[bool]:
        """True on each token that completes a mark."""
        pattern = MARKS.get(self.settings.by) or re.escape(self.settings.marker or "")
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        marks = [match.end() for match in re.finditer(pattern, text)]
        pieces = [self._piece(i) for i in ids]
        out = [False] * len(ids)
        if "".join(pieces) == text:
            reached = 0
            for at, piece in enumerate(pieces):
                reached += len(piece)
                while marks and marks[0] <= reached:
                    marks.pop(0)
                    out[at] = True
            return out
        for end in marks:  # a token alone decodes to something else than within the text
            out[self._token_that_completes(ids, text[:end])] = True
        return out

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self.tokenizer.decode([token], skip_special_tokens=False)
        return self._pieces[token]

    def _token_that_completes(self, ids: Sequence[int], start: str) -> int:
        """The first token up to which the ids decode to `start` and maybe more; half a character decodes to a mark of
        its own, so lengths alone would not do."""
        least, most = 0, len(ids) - 1
        while least < most:
            middle = (least + most) // 2
            if self.tokenizer.decode(ids[: middle + 1], skip_special_tokens=False).startswith(start):
                most = middle
            else:
                least = middle + 1
        return least


def starts_of(numbers_T: Tensor) -> list[int]:
    """Positions of the first tokens of segments, without that of the completion's own first token."""
    first_T = segments.first_tokens(numbers_T[None])[0]
    return [i for i in torch.nonzero(first_T).flatten().tolist() if i]
