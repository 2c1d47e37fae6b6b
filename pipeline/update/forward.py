"""Rows of token ids -> log-probs of their completions, in micro-batches limited by their number of tokens.

Axes: B rows, L tokens of prompt and completion, T completion tokens, S = T + 1 positions, H hidden size. If the model's
attention supports it, rows are packed without padding and share equal prompts (packing.py). Otherwise they are
right-padded, so that positions count from the left and padding is never attended to; each micro-batch is padded to its
own longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.load import ConfigError
from pipeline.models.models import backbone, batches_by_tokens, pad_right
from pipeline.models.weights import base_of
from pipeline.update import packing
from pipeline.update.divergence import TeacherStates, TeacherTopK, chunked_divergence
from pipeline.update.logprobs import IN_PLACE, chunked_squares, chunked_token_logprobs, token_logprobs, zeros_kept

LARGE_EMBEDDING = 1 << 22  # numbers; below, a second tensor of its size costs less than the search for equal rows


@dataclass(frozen=True, slots=True)
class Row:
    """One completion to train on. mask: True on tokens the policy sampled."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    mask: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.ids)

    @property
    def has_observations(self) -> bool:
        return any(self.mask) and not all(self.mask)


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows as a batch. targets_BT: completion ids; before_BT: index in the row of the hidden state that predicts each
    target; valid_BT: True on real completion tokens; mask_BT: True on those the policy sampled."""

    rows: tuple[Row, ...]
    targets_BT: Tensor
    before_BT: Tensor
    valid_BT: Tensor
    mask_BT: Tensor

    @property
    def device(self) -> torch.device:
        return self.valid_BT.device

    @property
    def ids_BL(self) -> Tensor:
        return pad_right([[*r.prompt_ids, *r.ids] for r in self.rows], 0, dtype=torch.long, device=self.device)

    @property
    def observed_BT(self) -> Tensor:
        """True on what tools or the environment answered, in rows that are trained on."""
        return self.valid_BT & ~self.mask_BT & self.mask_BT.any(1, keepdim=True)

    @property
    def attention_BL(self) -> Tensor:
        return pad_right([[1] * len(r) for r in self.rows], 0, dtype=torch.long, device=self.device)

    @property
    def within_BS(self) -> Tensor:
        """True at the position before each token and at the one after the last."""
        indices_S = torch.arange(self.valid_BT.shape[1] + 1, device=self.device)[None]
        return indices_S <= self.valid_BT.sum(1)[:, None]


def pad_rows(rows: Sequence[Row], device: torch.device) -> Padded:
    lengths = [len(r.ids) for r in rows]
    starts = torch.tensor([len(r.prompt_ids) - 1 for r in rows], device=device)[:, None]
    indices_T = torch.arange(max(lengths), device=device)[None]
    valid_BT = indices_T < torch.tensor(lengths, device=device)[:, None]
    before_BT = torch.where(valid_BT, starts + indices_T, 0)
    return Padded(
        tuple(rows),
        pad_right([r.ids for r in rows], 0, dtype=torch.long, device=device),
        before_BT,
        valid_BT,
        pad_right([r.mask for r in rows], 0, dtype=torch.bool, device=device),
    )


def micro_batches(rows: Sequence[Row], budget: int, *, packs: bool = False) -> list[list[int]]:
    """Indices of rows, split by computed tokens: packed rows have no padding, others are sorted by length."""
    if packs:
        return packing.packed_batches([r.prompt_ids for r in rows], [len(r.ids) for r in rows], budget)
    return batches_by_tokens([len(r) for r in rows], budget)


def packs(forward: nn.Module) -> bool:
    """Whether a forward module, wrapped for several devices or not, packs its rows."""
    return bool(getattr(getattr(forward, "module", forward), "packs", False))


def hidden_states(transformer: Any, batch: Padded, *, packs: bool, last: bool = True) -> Tensor:
    """(B, S, H) last hidden states: one before each completion token and one after the last, at the column equal to the
    row's own length. Later columns are undefined. last False: only the columns before a token are needed, and packed
    rows are computed without their last token."""
    if packs:
        completions = [r.ids if last else r.ids[:-1] for r in batch.rows]
        packed = packing.pack([r.prompt_ids for r in batch.rows], completions, batch.device)
        return packing.hidden_states(transformer, packed)
    output = transformer(input_ids=batch.ids_BL, attention_mask=batch.attention_BL, use_cache=False)
    indices_S = torch.arange(batch.valid_BT.shape[1] + 1, device=batch.device)[None]
    return _at(output.last_hidden_state, torch.where(batch.within_BS, batch.before_BT[:, :1] + indices_S, 0))


class CompletionLogprobs(nn.Module):
    """A causal language model whose forward returns (log-probs, entropies) of completions, both (B, T) float32.

    It is a module so that DDP and FSDP wrap the forward that training calls. The head is applied in chunks and only to
    completion positions: batch x length x vocabulary is never materialized.
    autocast: dtype of the matrix products if the weights are kept in float32; None computes in the weights' dtype.
    float32_head: compute the head's products in float32 nevertheless, which is slower; softmax is always in float32.
    """

    def __init__(
        self, model: Any, *, temperature: float, autocast: torch.dtype | None = None, float32_head: bool = False
    ) -> None:
        super().__init__()
        self.model, self.temperature, self.autocast, self.float32_head = model, temperature, autocast, float32_head
        self.packs = plain_head(model) and packing.enable(self.transformer)

    @property
    def transformer(self) -> Any:
        return backbone(base_of(self.model))

    def forward(
        self, batch: Padded, temperature: float | None = None, *, squares: bool = False,
        teacher: TeacherStates | TeacherTopK | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """temperature: overrides the sampling temperature, for example for demonstrations, which were not sampled.
        squares: also return the sum of the squared probabilities of the vocabulary, (B, T), without gradient.
        teacher: also return the divergence from a teacher, (B, T), on the tokens that the policy sampled."""
        temperature = temperature or self.temperature
        with lowered(batch.device, self.autocast):
            if not squares and teacher is None:
                return self.scored(batch, temperature)
            self.check_plain_head("squares of probabilities" if squares else "a teacher's full distribution")
            hidden_BSH = self.hidden(batch, last=False)
            figures = self.from_hidden(hidden_BSH, batch, temperature)
            return *figures, self.from_head(hidden_BSH, batch, temperature, teacher)

    def check_plain_head(self, what: str) -> None:
        if not plain_head(self.model):
            raise ConfigError([f"{what}: this model's logits are more than a linear head, which is not supported"])

    def from_head(
        self, hidden_BSH: Tensor, batch: Padded, temperature: float, teacher: TeacherStates | TeacherTopK | None
    ) -> Tensor:
        """(B, T) divergence from a teacher, or without one the sum of the squared probabilities."""
        head = base_of(self.model).get_output_embeddings()
        hidden_BTH = self.for_head(hidden_BSH)[:, : batch.targets_BT.shape[1]]
        rest: dict[str, Any] = {"temperature": temperature, "bias_V": head.bias}
        if teacher is None:
            return chunked_squares(hidden_BTH, head.weight, batch.valid_BT, **rest)
        return chunked_divergence(hidden_BTH, head.weight, teacher, batch.mask_BT, **rest)

    def for_head(self, hidden_BSH: Tensor) -> Tensor:
        """Hidden states in the dtype that the head multiplies in; the residual stream is float32 under autocast."""
        if self.float32_head:
            return hidden_BSH.float()
        return hidden_BSH if self.autocast is None else hidden_BSH.to(self.autocast)

    def scored(self, batch: Padded, temperature: float) -> tuple[Tensor, ...]:
        if plain_head(self.model):
            return self.from_hidden(self.hidden(batch, last=False), batch, temperature)
        logits_BLV = self.model(input_ids=batch.ids_BL, attention_mask=batch.attention_BL, use_cache=False).logits
        logprobs_BT, entropy_BT = token_logprobs(
            _at(logits_BLV, batch.before_BT), batch.targets_BT, temperature=temperature
        )
        return logprobs_BT.masked_fill(~batch.valid_BT, 0.0), entropy_BT.masked_fill(~batch.valid_BT, 0.0)

    def hidden(self, batch: Padded, *, last: bool = True) -> Tensor:
        """(B, S, H) last hidden states, after the final norm. last: see `hidden_states`."""
        return hidden_states(self.transformer, batch, packs=self.packs, last=last)

    def from_hidden(self, hidden_BSH: Tensor, batch: Padded, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies, (B, T) each; the state after the last token may be missing and is not used."""
        head = base_of(self.model).get_output_embeddings()
        if self.autocast is not None and not self.float32_head:
            hidden_BSH = hidden_BSH.to(self.autocast)  # the residual stream is float32 under autocast
        return chunked_token_logprobs(
            hidden_BSH[:, : batch.targets_BT.shape[1]], head.weight, batch.targets_BT, temperature=temperature,
            bias_V=head.bias, mask_BT=batch.valid_BT, float32_head=self.float32_head,
        )  # fmt: skip


def add_gradients_in_place(model: Any) -> None:
    """Let backward passes add the head's gradient to `weight.grad` themselves, and leave the gradient of a tied
    embedding sparse until it is added: otherwise each makes a tensor as large as the head per micro-batch.

    Only for a head that `chunked_token_logprobs` computes, in training by one process without a wrapper: DDP and FSDP
    wait for autograd to accumulate each gradient, and `torch.autograd.grad` would not see this one. On a GPU the
    embedding's gradient stays dense, because adding a sparse one is not deterministic there.
    """
    base = base_of(model)
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    if not plain_head(model) or not head.weight.requires_grad:
        return
    setattr(head.weight, IN_PLACE, True)
    if isinstance(embedding, nn.Embedding) and head.weight.dtype == torch.float32:
        embedding.sparse = embedding.weight is head.weight and head.weight.device.type == "cpu"


def add_embedding_gradients_in_place(model: nn.Module) -> None:
    """Let backward passes add the rows that were looked up to the gradient of a large embedding, which keeps its memory
    from step to step: otherwise each micro-batch makes a tensor as large as the embedding.

    For a model whose embedding is nothing else's weight, such as a critic or a reward model, in training by one process
    on a CPU (see `add_gradients_in_place`, which does it for a tied one).
    """
    for embedding in [m for m in model.modules() if isinstance(m, nn.Embedding)]:
        weight = embedding.weight
        alone = sum(getattr(m, "weight", None) is weight for m in model.modules()) == 1
        simple = embedding.max_norm is None and not embedding.scale_grad_by_freq
        trained = weight.requires_grad and weight.dtype == torch.float32 and weight.device.type == "cpu"
        if alone and simple and trained and weight.numel() >= LARGE_EMBEDDING:
            embedding.sparse = True
            embedding.register_forward_pre_hook(_start_gradient)


def _start_gradient(embedding: nn.Module, inputs: Any) -> None:
    if torch.is_grad_enabled() and embedding.weight.grad is None:  # else autograd would keep the first one sparse
        embedding.weight.grad = zeros_kept(embedding.weight)  # type: ignore[arg-type]


def lowered(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast context for matrix products in `dtype`; None disables it."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def affordable_tokens(model: Any, memory: int) -> int:
    """Tokens per micro-batch whose activations, kept for backward in at most float32, fit into `memory` bytes.

    A conservative estimate from the config: per layer about 10 tensors of the hidden size, 5 of the MLP's size, and
    queries, keys and values twice; of sizes that differ by layer (Gemma 3n) the largest counts. A head that is not
    plain adds three tensors of the vocabulary's size; a plain head computes its logits in chunks.
    """
    config = model.config.get_text_config()

    def size(name: str, otherwise: int) -> int:
        value = getattr(config, name, None) or otherwise
        return int(max(value) if isinstance(value, (list, tuple)) else value)

    hidden, heads = config.hidden_size, size("num_attention_heads", 1)
    attention = (heads + 2 * size("num_key_value_heads", heads)) * size("head_dim", hidden // heads)
    layer = 10 * hidden + 5 * size("intermediate_size", 4 * hidden) + 2 * attention
    numbers = getattr(config, "num_hidden_layers", 1) * layer + (0 if plain_head(model) else 3 * config.vocab_size)
    return max(memory // (4 * numbers), 1)


LOGIT_SCALES = (  # what Gemma, Cohere, Granite, Falcon-H1, Grok and others apply to logits after the head
    "final_logit_softcapping", "logits_soft_cap", "logit_scale", "logits_scaling", "lm_head_multiplier",
    "output_multiplier", "output_multiplier_scale", "output_logit_soft_cap", "logits_mup_width_multiplier",
)  # fmt: skip


def plain_head(model: Any) -> bool:
    """Whether logits are exactly head(hidden): no soft cap, no scale, no adapter on the head."""
    config = model.config.get_text_config()  # the language model of a vision-language model
    head = base_of(model).get_output_embeddings()
    return type(head) is nn.Linear and not any(getattr(config, name, None) for name in LOGIT_SCALES)


def _at(x_BLH: Tensor, indices_BT: Tensor) -> Tensor:
    return x_BLH.gather(1, indices_BT[..., None].expand(-1, -1, x_BLH.shape[-1]))


@torch.no_grad()
def completion_logprobs(
    forward: nn.Module, rows: Sequence[Row], *, budget: int, device: torch.device, temperature: float | None = None
) -> list[Tensor]:
    """Log-probs of each row's completion tokens, float32 on the CPU, in the order of rows; no gradient.

    temperature: overrides the sampling temperature.
    """
    return [figures[0] for figures in completion_figures(forward, rows, budget, device, temperature=temperature)]


@torch.no_grad()
def completion_figures(
    forward: nn.Module, rows: Sequence[Row], budget: int, device: torch.device, *, temperature: float | None = None,
    squares: bool = False,
) -> list[list[Tensor]]:  # fmt: skip
    """Per row, what the forward returns for its completion tokens: log-probs, entropies and, if squares, the sum of the
    squared probabilities of the vocabulary; each (its T,), float32 on the CPU, no gradient."""
    out: list[list[Tensor]] = [[] for _ in rows]
    more = {"squares": True} if squares else {}
    for indices in micro_batches(rows, budget, packs=packs(forward)):
        figures = forward(pad_rows([rows[i] for i in indices], device), temperature, **more)
        for figure_BT in figures:
            for i, values in zip(indices, figure_BT.cpu(), strict=True):
                out[i].append(values[: len(rows[i].ids)].clone())  # a view would keep the full batch alive
    return out


def stack(values: Sequence[Tensor | Sequence[float]]) -> Tensor:
    """(B, longest) float32, with zeros after each row's end."""
    # cut from one flat tensor: a tensor per row, as pad_sequence wants them, takes ten times as long
    if all(isinstance(v, Tensor) for v in values):
        counts = [v.shape[0] for v in values]  # type: ignore[union-attr]
        flat_N = torch.cat(list(values)).float()  # type: ignore[arg-type]
    else:
        counts = [len(v) for v in values]
        flat_N = torch.tensor([float(x) for v in values for x in v])
    present_BT = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return flat_N.new_zeros(present_BT.shape).masked_scatter(present_BT.to(flat_N.device), flat_N)
