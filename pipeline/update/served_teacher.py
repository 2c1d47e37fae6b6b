"""A teacher behind a vLLM server: log-probs of the policy's completions, over HTTP, as `prompt_logprobs`.

Each completion is sent after the teacher's prompt as token ids, one token is sampled and ignored, and the server says
how likely each token of the prompt was to its model, and for form full which K tokens were most likely. That is the
distribution at temperature 1: vLLM applies a temperature to what it samples only. A server's log-probs depend on how it
batches requests, so a resumed run is not bitwise identical with this teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.config.load import ConfigError
from pipeline.distributed import ranks
from pipeline.generation import vllm_server
from pipeline.records import Prompt
from pipeline.update.forward import Row

AT_ONCE = 64  # requests in flight
PROBES = 4  # prompts on which the tokenizers are compared
Entries = list[Mapping[str, Mapping[str, Any]]]  # per token: id as text -> logprob and rank


class ServedTeacher:
    """location: the config key, for messages. Raises ConfigError where no server answers."""

    def __init__(self, url: str, location: str) -> None:
        how = "vllm serve MODEL --port 8000"
        self.server = vllm_server.ServerClient(url.rstrip("/"), location, how)
        self.model = str(self.server.get("/v1/models")["data"][0]["id"])

    def tokens_there(self, body: dict[str, Any]) -> Any:
        return self.server.post("/tokenize", body)["tokens"]

    def check_tokenizer(self, prompts: Sequence[Prompt], tokenizer: Any) -> None:
        """Raises ConfigError if the server splits the text of some prompts into other token ids than the policy."""
        for prompt in prompts[:PROBES]:
            text = tokenizer.decode(prompt.ids)
            own = list(tokenizer(text, add_special_tokens=False).input_ids)
            body = {"model": self.model, "prompt": text, "add_special_tokens": False}
            theirs = ranks.from_main(partial(self.tokens_there, body))
            if own != theirs:
                words = f"{text[:40]!r} is {theirs[:8]} there and {own[:8]} here"
                raise ConfigError([f"{self.server.location}: the teacher has another tokenizer, but must read the "
                                   f"policy's token ids: {words}"])  # fmt: skip

    def logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        """Per row, (its T,) log-probs at temperature 1."""
        return [
            torch.tensor([entry[str(token)]["logprob"] for entry, token in zip(entries, row.ids, strict=True)])
            for entries, row in zip(self._entries(rows, 0), rows, strict=True)
        ]

    def top_k(self, rows: Sequence[Row], k: int) -> list[tuple[Tensor, Tensor]]:
        """Per row, ids and log-probs of the teacher's k most likely tokens before each token: two (its T, K)."""
        return [top_k_of(entries, k) for entries in self._entries(rows, k)]

    def _entries(self, rows: Sequence[Row], k: int) -> list[Entries]:
        """Per row, what the server says of each completion token; rank 0 asks."""

        def one(row: Row) -> Entries:
            if not any(row.mask):  # the teacher has nothing to say: nothing reads its answer
                nothing = {"logprob": 0.0, "rank": 1}
                return [{str(token): nothing} for token in row.ids]
            body = {"model": self.model, "prompt": [*row.prompt_ids, *row.ids], "max_tokens": 1, "temperature": 1.0,
                    "prompt_logprobs": k}  # fmt: skip
            answer = self.server.post("/v1/completions", body)["choices"][0].get("prompt_logprobs")
            if answer is None:
                raise ConfigError([f"{self.server.location}: {self.server.url} gives no prompt_logprobs; it must be a "
                                   "vLLM server"])  # fmt: skip
            out: Entries = answer[len(row.prompt_ids) :]
            return out

        return ranks.from_main(lambda: vllm_server.at_once(one, rows, most=AT_ONCE))

    # a server's model never changes with the policy

    def after_step(self, step: int) -> None: ...

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None: ...


def top_k_of(entries: Entries, k: int) -> tuple[Tensor, Tensor]:
    """Two (T, K) in order of rank. A server adds the prompt's own token where it is not among the k."""
    ranked = [sorted(entry.items(), key=lambda item: item[1]["rank"])[:k] for entry in entries]
    width = max(map(len, ranked), default=0)  # fewer than k where the vocabulary is smaller
    ids_TK = torch.zeros(len(ranked), width, dtype=torch.long)
    logprobs_TK = torch.full((len(ranked), width), -torch.inf)
    for index, row in enumerate(ranked):
        ids_TK[index, : len(row)] = torch.tensor([int(token) for token, _ in row])
        logprobs_TK[index, : len(row)] = torch.tensor([one["logprob"] for _, one in row])
    return ids_TK, logprobs_TK
