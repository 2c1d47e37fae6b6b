"""Rows packed end to end into one sequence without padding; a prompt that several rows share is stored once.

Axes: N tokens of the packed sequence, B rows of a bucket, Q and K tokens of its longest query and key run, S positions
of a row's completion plus one, h heads, D head size. All per-token work (norms, projections, MLP, head) runs on the N
tokens. Only attention mixes tokens, so only attention splits the sequence into rows again, in buckets of similar
length. A completion with a shared prompt uses only its own tokens as queries, and attends to the prompt's keys and
values before its own. No N x N mask is needed.

Supported: causal decoders with full and sliding-window attention through transformers' attention interface, on its SDPA
kernels, including attention sinks, adapters and gradient checkpointing. Not supported, and detected by `enable`:
attention biases, linear or chunked layers, weights that are already sharded, and any model whose packed rows differ
from padded ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

NAME = "whetstone_packed"
WORTH_SHARING = 32  # minimum prompt tokens saved by sharing; below it, the mask for sharing costs more than it saves
# Cost of one more attention call, in padded query-key pairs: on a GPU, calls are expensive and pairs are cheap
CALL_PAIRS = {"cpu": 2**10, "cuda": 2**20}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # on log-probs of packed and padded rows; lower precision: 0.2


@dataclass(frozen=True, slots=True)
class Bucket:
    """Attention of a group of rows. queries_J, keys_J: B x Q and B x K indices into the packed sequence, 0 for padding;
    bias: added to the scores, (B or 1, 1, Q, K); None = causal, and K equals Q."""

    rows: int
    queries_J: Tensor
    keys_J: Tensor
    bias: Tensor | None


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows as one packed sequence. places_BS: index of the prompt's last token, then of each completion token, 0 after
    a row's end; back_N: index of each token's attention output in the concatenated outputs of the buckets."""

    ids_1N: Tensor
    positions_1N: Tensor
    places_BS: Tensor
    buckets: list[Bucket]
    back_N: Tensor
    windows: set[int | None] = field(default_factory=set)  # the attention windows that layers requested
    biases: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by (bucket, window), built once per batch


@dataclass(frozen=True, slots=True)
class _Run:
    """Tokens start .. start + tokens of the packed sequence, which attend causally to themselves and to a prompt."""

    start: int
    tokens: int
    prompt_start: int = 0
    prompt_tokens: int = 0


def pack(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """Pack all rows into one sequence. Equal prompts are shared, whatever their order, if that saves enough."""
    prompt_ids = [tuple(p) for p in prompts]
    counts = Counter(prompt_ids)
    shared: dict[tuple[int, ...], int] = {}  # prompt -> its start
    ids: list[int] = []
    firsts: list[int] = []  # position of each run's first token in its row
    runs: list[_Run] = []
    ends_B: list[int] = []  # index of each row's last prompt token
    starts_B: list[int] = []  # index of its first completion token

    def add(tokens: Sequence[int], first: int, prompt: tuple[int, int] = (0, 0)) -> int:
        start = len(ids)
        runs.append(_Run(start, len(tokens), *prompt))
        firsts.append(first)
        ids.extend(tokens)
        return start

    for prompt, completion in zip(prompt_ids, completions, strict=True):
        if (counts[prompt] - 1) * len(prompt) < WORTH_SHARING:
            end = add([*prompt, *completion], 0) + len(prompt) - 1
            ends_B.append(end)
            starts_B.append(end + 1)
            continue
        if prompt not in shared:
            shared[prompt] = add(prompt, 0)
        ends_B.append(shared[prompt] + len(prompt) - 1)
        starts_B.append(add(completion, len(prompt), (shared[prompt], len(prompt))) if completion else 0)
    lengths_B1 = np.array([[len(c)] for c in completions])
    indices_T = np.arange(lengths_B1.max())
    places_BT = np.where(indices_T < lengths_B1, np.array(starts_B)[:, None] + indices_T, 0)
    places_BS = np.concatenate([np.array(ends_B)[:, None], places_BT], axis=1)
    buckets, back_N = _buckets(runs, len(ids), device)
    return Packed(
        torch.tensor([ids], device=device),
        torch.from_numpy(_ranges(firsts, [r.tokens for r in runs])[None]).to(device),
        torch.from_numpy(places_BS).to(device),
        buckets,
        torch.from_numpy(back_N).to(device),
    )


def _ranges(firsts: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """arange(first, first + count) of each pair, one after another."""
    counts_R = np.array(counts, dtype=np.int64)
    offsets_R = np.array(firsts, dtype=np.int64) - (counts_R.cumsum() - counts_R)
    out_N: np.ndarray = np.arange(counts_R.sum()) + np.repeat(offsets_R, counts_R)
    return out_N


def packed_batches(prompts: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of rows, with rows of the same prompt adjacent, split so that each batch computes at most `budget` tokens
    (a single row may exceed it). lengths: tokens of the completions."""
    first: dict[tuple[int, ...], int] = {}
    order = sorted(range(len(prompts)), key=lambda i: (first.setdefault(tuple(prompts[i]), i), i))
    out: list[list[int]] = []
    tokens = 0
    for i in order:
        same = bool(out) and first[tuple(prompts[i])] == first[tuple(prompts[out[-1][-1]])]
        more = lengths[i] + (0 if same else len(prompts[i]))
        if out and tokens + more <= budget:
            out[-1].append(i)
            tokens += more
        else:
            out.append([i])
            tokens = lengths[i] + len(prompts[i])
    return out


def _buckets(runs: Sequence[_Run], total: int, device: torch.device) -> tuple[list[Bucket], np.ndarray]:
    back_N = np.zeros(total, dtype=np.int64)
    out, offset = [], 0
    for members in _alike(runs, CALL_PAIRS.get(device.type, CALL_PAIRS["cuda"])):
        width = max(r.tokens for r in members)
        counts = [r.tokens for r in members]
        outputs_N = _ranges([offset + number * width for number in range(len(members))], counts)
        back_N[_ranges([r.start for r in members], counts)] = outputs_N
        offset += len(members) * width
        out.append(_bucket(members, width, device))
    return out, back_N


def _alike(runs: Sequence[_Run], call: int) -> Iterator[list[_Run]]:
    """Group runs by length, those with a shared prompt separately, while padding costs less than one more call."""
    group: list[_Run] = []
    pairs = prompt = 0  # of the group: query-key pairs with padding, tokens of its longest prompt
    for run in sorted(runs, key=lambda r: (r.prompt_tokens > 0, r.tokens, r.prompt_tokens, r.start)):
        alone = run.tokens * (run.tokens + run.prompt_tokens)
        if group and (group[0].prompt_tokens > 0) == (run.prompt_tokens > 0):
            # runs come by length: this one is the longest of the group that it joins
            longest_prompt = max(prompt, run.prompt_tokens)
            joined = (len(group) + 1) * run.tokens * (run.tokens + longest_prompt)
            if joined <= pairs + alone + call:
                group.append(run)
                pairs, prompt = joined, longest_prompt
                continue
        if group:
            yield group
        group, pairs, prompt = [run], alone, run.prompt_tokens
    if group:
        yield group


def _bucket(members: Sequence[_Run], width: int, device: torch.device) -> Bucket:
    starts_B1 = np.array([[r.start] for r in members])
    tokens_B1 = np.array([[r.tokens] for r in members])
    own_BQ = np.where(np.arange(width) < tokens_B1, starts_B1 + np.arange(width), 0)
    queries_J = torch.from_numpy(own_BQ.reshape(-1)).to(device)
    prompts = {r.prompt_tokens for r in members}
    longest = max(prompts)
    if not longest:  # padding is on the right, where causal attention ignores it
        return Bucket(len(members), queries_J, queries_J, None)
    # prompts end where completions begin, so shorter prompts are padded on the left
    before_BP = np.arange(longest) - np.array([[longest - r.prompt_tokens] for r in members])
    prompts_BP = np.where(before_BP >= 0, np.array([[r.prompt_start] for r in members]) + before_BP, 0)
    keys_J = torch.from_numpy(np.concatenate([prompts_BP, own_BQ], axis=1).reshape(-1)).to(device)
    bias_B1QK = torch.zeros(len(members) if len(prompts) > 1 else 1, 1, width, longest + width, device=device)
    bias_B1QK[..., longest:].masked_fill_(torch.ones(width, width, device=device).triu(1).bool(), -torch.inf)
    if len(prompts) > 1:
        absent_BP = torch.from_numpy(before_BP < 0).to(device)
        bias_B1QK[..., :longest].masked_fill_(absent_BP[:, None, None], -torch.inf)
    return Bucket(len(members), queries_J, keys_J, bias_B1QK)


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    scaling: float | None = None, packed: Packed | None = None, sliding_window: int | None = None,
    s_aux: Tensor | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface: (1, h, N, D) in, (1, N, h, D) out. Without `packed`, SDPA of padded rows.

    s_aux: (h,) scores of attention sinks, which SDPA in transformers does not compute.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    if packed is None and s_aux is not None:
        key, value = (repeat_kv(x, query.shape[1] // key.shape[1]) for x in (key, value))
        bias = None
        if attention_mask is not None:
            zeros = torch.zeros_like(attention_mask, dtype=query.dtype)
            bias = zeros.masked_fill(attention_mask.logical_not(), -torch.inf)
        return _attend(query, key, value, bias, scaling, s_aux).transpose(1, 2), None
    if packed is None:
        options["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    packed.windows.add(sliding_window)
    query_NhD, key_NhD, value_NhD = (x[0].transpose(0, 1) for x in (query, key, value))
    grouped = query.shape[1] // key.shape[1]
    parts = []
    for number, bucket in enumerate(packed.buckets):
        query_BhQD = _cut(query_NhD, bucket.queries_J, bucket.rows, 1)
        key_BhKD, value_BhKD = (_cut(x, bucket.keys_J, bucket.rows, grouped) for x in (key_NhD, value_NhD))
        bias = _windowed(packed, number, sliding_window)
        bias = None if bias is None else bias.to(query.dtype).expand(bucket.rows, -1, -1, -1)
        out_BhQD = _attend(query_BhQD, key_BhKD, value_BhKD, bias, scaling, s_aux)
        parts.append(out_BhQD.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).index_select(0, packed.back_N)[None], None


def _attend(
    query_BhQD: Tensor, key_BhKD: Tensor, value_BhKD: Tensor, bias: Tensor | None, scaling: float | None,
    sinks_h: Tensor | None,
) -> Tensor:  # fmt: skip
    """SDPA; bias None = causal. sinks_h: per head the score of one more key, whose value is zero (gpt-oss)."""
    if sinks_h is not None:
        queries, keys = query_BhQD.shape[2], key_BhKD.shape[2]
        if bias is None:
            bias = query_BhQD.new_full((queries, keys), -torch.inf).triu(1 + keys - queries)
        of_sinks = sinks_h.to(query_BhQD.dtype)[:, None, None].expand(len(query_BhQD), -1, queries, 1)
        bias = torch.cat([bias.expand(*of_sinks.shape[:3], keys), of_sinks], dim=-1)
        key_BhKD, value_BhKD = (torch.nn.functional.pad(x, (0, 0, 0, 1)) for x in (key_BhKD, value_BhKD))
    return torch.nn.functional.scaled_dot_product_attention(
        query_BhQD, key_BhKD, value_BhKD, attn_mask=bias, is_causal=bias is None, scale=scaling
    )


def _windowed(packed: Packed, number: int, window: int | None) -> Tensor | None:
    """Bias on a bucket's scores in a layer whose window is `window` tokens, including the query; None = causal.

    Prompts end where completions begin, so the distance from key k to query q is K - Q + q - k in every row.
    """
    bucket = packed.buckets[number]
    queries, keys = len(bucket.queries_J) // bucket.rows, len(bucket.keys_J) // bucket.rows
    if window is None or window >= keys:
        return bucket.bias
    if (number, window) not in packed.biases:
        device = bucket.queries_J.device
        distance_QK = keys - queries + torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)
        causal = torch.zeros(1, 1, queries, keys, device=device).masked_fill_(distance_QK < 0, -torch.inf)
        base = causal if bucket.bias is None else bucket.bias
        packed.biases[number, window] = base.masked_fill(distance_QK >= window, -torch.inf)
    return packed.biases[number, window]


def _cut(x_NhD: Tensor, places_J: Tensor, rows: int, repeat: int) -> Tensor:
    x_BJhD = x_NhD.index_select(0, places_J).unflatten(0, (rows, -1))
    return (x_BJhD if repeat == 1 else x_BJhD.repeat_interleave(repeat, dim=2)).transpose(1, 2)


def hidden_states(transformer: Any, packed: Packed) -> Tensor:
    """(B, S, H) last hidden states at packed.places_BS."""
    # transformers passes a 4-dimensional mask through unchanged, so it does not build an N x N mask
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.ids_1N.device)
    output = transformer(
        input_ids=packed.ids_1N, position_ids=packed.positions_1N, attention_mask=unused, packed=packed, use_cache=False
    )
    hidden_NH = output.last_hidden_state[0]
    return hidden_NH.index_select(0, packed.places_BS.reshape(-1)).view(*packed.places_BS.shape, -1)


@torch.no_grad()
def enable(transformer: Any) -> bool:
    """Route the transformer's attention through `packed_attention`, and return whether packed and padded rows agree,
    checked on a few tokens. If they do not, the transformer is left unchanged."""
    config = transformer.config
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    # SDPA in transformers has no sinks, so that a model with sinks is loaded with eager attention
    padded = "eager" if any(name.endswith(".sinks") for name, _ in transformer.named_parameters()) else "sdpa"
    if (
        config._attn_implementation not in (padded, NAME)
        or not hasattr(config, "vocab_size")  # a model of several parts, of which text is one
        or not getattr(transformer, "_supports_attention_backend", False)
        or not layers <= {"full_attention", "sliding_attention"}
        or (getattr(config, "max_position_embeddings", None) or 64) < 64
        or any(hasattr(p, "ds_id") or p.is_meta for p in transformer.parameters())
    ):
        return False
    before, rows = config._attn_implementation, _trial_rows(config.vocab_size)
    expected = [_alone(transformer, *row) for row in rows]
    route(transformer)
    if _agrees(transformer, rows, expected):
        return True
    config._attn_implementation = before
    return False


def route(transformer: Any) -> None:
    """Route the transformer's attention through `packed_attention`, unchecked."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    transformer.config._attn_implementation = NAME


def windows_of(config: Any) -> set[int]:
    """The attention windows of a model's layers, according to its config."""
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    sliding = "sliding_attention" in layers if layers else getattr(config, "use_sliding_window", True)
    return {window} if window and sliding else set()


def _trial_rows(vocabulary: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) of a few rows, some of which share a prompt."""
    long, short = ([(7 * i + k) % vocabulary for i in range(n)] for k, n in ((1, 40), (3, 4)))
    completions = [[(5 * i + n) % vocabulary for i in range(n)] for n in (3, 20, 6, 9)]
    return list(zip([long, long, short, long], completions, strict=True))


def _alone(transformer: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """(its S, H) last hidden states of one row without padding."""
    output = transformer(input_ids=torch.tensor([[*prompt, *completion]], device=transformer.device), use_cache=False)
    states_SH: Tensor = output.last_hidden_state[0, len(prompt) - 1 :].float()
    return states_SH


def _agrees(transformer: Any, rows: Sequence[tuple[list[int], list[int]]], expected: Sequence[Tensor]) -> bool:
    """expected: each row's hidden states, computed by the transformer's own attention."""
    packed = pack([prompt for prompt, _ in rows], [completion for _, completion in rows], transformer.device)
    packed_BSH = hidden_states(transformer, packed).float()
    # these rows may be shorter than the window; then only the windows that the layers requested can be checked
    if packed.windows - {None} != windows_of(transformer.config):
        return False
    gap = 0.0
    for plain_SH, seen_SH in zip(expected, packed_BSH, strict=True):
        gap = max(gap, float((plain_SH - seen_SH[: len(plain_SH)]).abs().max() / plain_SH.abs().max()))
    return gap <= TOLERANCE.get(transformer.dtype, 0.2)
