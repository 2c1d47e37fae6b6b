"""The transformers generator, for machines without vLLM.

Axes: B rows, U distinct prompts, W tokens of the longest prompt, K cached tokens, H hidden size, g key-value heads,
G query heads per key-value head, D head size, V vocabulary.

`generate` computes a prompt once per sample, keeps rows that have ended until the last one ends, concatenates every
layer's cache at every token, and builds masks and rotations at every token. `LeanDecoder` draws the same tokens for
FAMILIES with static rotary embeddings and full or sliding-window attention: distinct prompts are computed once, by the
model's own forward; keys and values are written in place; rows that have ended leave the batch; a token goes through
the model's own modules, but not through its forward. Other models, and any whose logits differ from those of its own
forward, are left to `generate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation.generator import OnDone, Request, Sample
from pipeline.generation.seeded_sampler import SeededSampler
from pipeline.models.models import backbone, batches_by_tokens, load_policy, pad_right
from pipeline.models.weights import copy_into

LOGITS = 2**26  # numbers of one micro-batch of `sequence_logprobs`: 256 MiB in float32
FAMILIES = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")
STATIC_ROTATIONS = ("default", "linear", "llama3", "yarn")  # others depend on the length of the sequence
SOFT_CAPS = ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention")
ROOM = 32  # slots that a cache is first given for new tokens; doubled as often as needed
SHRINK_BELOW = 0.8  # share of running rows at which the others leave the batch: a copy of the cache costs a few tokens
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of logits, relative to the largest; lower precision: 0.05


class TransformersGenerator:
    """Samples the same distribution as vLLM does. Holds its own copy of the weights."""

    name = "transformers"

    def __init__(self, model_dir: str, model: Model, generate: Generate) -> None:
        self.model = load_policy(model_dir, model).eval()
        self.batch = generate.batch
        self.decoder: LeanDecoder | None = None
        self.decoder_of: Any = None  # the model that the decoder was made for

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        on_done: OnDone | None = None,
    ) -> list[Sample]:
        out: list[Sample | None] = [None] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].ids), i))
        for start in range(0, len(order), self.batch):
            batch = order[start : start + self.batch]
            samples = self._batch([requests[i] for i in batch], sampling, stop_token_ids)
            for index, sample in zip(batch, samples, strict=True):
                out[index] = sample
                if on_done is not None:
                    on_done(index, sample)
        return [s for s in out if s is not None]

    def _batch(self, requests: Sequence[Request], sampling: Sampling, stop_token_ids: frozenset[int]) -> list[Sample]:
        if self.decoder_of is not self.model:
            self.decoder, self.decoder_of = LeanDecoder.of(self.model), self.model
        if self.decoder is None:
            return self._generate(requests, sampling, stop_token_ids)
        prompts = [r.ids for r in requests]
        sampler = SeededSampler(sampling, [r.seed for r in requests], prompts)
        drawn = self.decoder.sample(prompts, [r.max_tokens for r in requests], sampler, stop_token_ids)
        return [Sample(tuple(ids), tuple(logprobs), finished=ids[-1] in stop_token_ids)
                for ids, logprobs in zip(*drawn, strict=True)]  # fmt: skip

    def _generate(
        self, requests: Sequence[Request], sampling: Sampling, stop_token_ids: frozenset[int]
    ) -> list[Sample]:
        from transformers import GenerationConfig, LogitsProcessorList

        width = max(len(r.ids) for r in requests)
        pad = min(stop_token_ids)
        ids = torch.tensor([[pad] * (width - len(r.ids)) + list(r.ids) for r in requests], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in requests], device=self.model.device)
        limit = max(r.max_tokens for r in requests)
        sampler = SeededSampler(sampling, [r.seed for r in requests], [r.ids for r in requests])
        # replaced as a whole: unset fields would be filled from the model's own
        self.model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=limit, eos_token_id=sorted(stop_token_ids), pad_token_id=pad, use_cache=True
        )  # fmt: skip
        generated = self.model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([sampler]), use_cache=True
        )
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()
        out = []
        for request, row, row_logprobs in zip(requests, generated[:, width:].tolist(), logprobs, strict=True):
            length = next((i + 1 for i, token in enumerate(row) if token in stop_token_ids), len(row))
            length = min(length, request.max_tokens)
            taken = tuple(row[:length])
            out.append(Sample(taken, tuple(row_logprobs[:length]), finished=taken[-1] in stop_token_ids))
        return out

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return sequence_logprobs(self.model, sequences)

    @torch.no_grad()
    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        copy_into(self.model, weights)


@torch.no_grad()
def sequence_logprobs(model: Any, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-prob of every id but the first of each sequence, at temperature 1, in float32."""
    tokens = max(LOGITS // model.config.get_text_config().vocab_size, 1)
    out: list[list[float]] = [[] for _ in sequences]
    for batch in batches_by_tokens([len(s) for s in sequences], tokens):
        rows = [sequences[i] for i in batch]
        ids = pad_right(rows, 0, dtype=torch.long, device=model.device)
        mask = pad_right([[1] * len(r) for r in rows], 0, dtype=torch.long, device=model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].tolist()
        for i, values in zip(batch, picked, strict=True):
            out[i] = values[: len(sequences[i]) - 1]
    return out


class KeyValues:
    """Keys and values of all layers, (B, g, slots, D) each; those of a token are in the same slot in every row.

    A prompt ends where the new tokens begin, so that shorter prompts leave slots empty at the start.
    """

    def __init__(self, cache: Any, prompt_of_B: Tensor, width: int, limit: int) -> None:
        """cache: of U distinct prompts, padded on the left to `width` tokens. prompt_of_B: each row's prompt.
        limit: of the number of new tokens."""
        self.slots = width + min(limit, ROOM)
        self.layers = [
            (self._placed(layer.keys, prompt_of_B, width), self._placed(layer.values, prompt_of_B, width))
            for layer in cache.layers
        ]

    def _placed(self, states_UgKD: Tensor, prompt_of_B: Tensor, width: int) -> Tensor:
        _, heads, known, size = states_UgKD.shape  # a layer with a window has kept its last tokens only
        out = states_UgKD.new_zeros(len(prompt_of_B), heads, self.slots, size)
        out[:, :, width - known : width] = states_UgKD.index_select(0, prompt_of_B)
        return out

    def keep(self, rows: Tensor, used: int) -> None:
        """Keep these rows. used: slots that hold a token."""
        self.layers = [(self._copied(k, used, rows), self._copied(v, used, rows)) for k, v in self.layers]

    def make_room(self, slot: int) -> None:
        if slot >= self.slots:
            self.slots *= 2
            self.layers = [(self._copied(k, slot), self._copied(v, slot)) for k, v in self.layers]

    def _copied(self, states_BgKD: Tensor, used: int, rows: Tensor | None = None) -> Tensor:
        kept_BgKD = states_BgKD[:, :, :used]
        if rows is not None:
            kept_BgKD = kept_BgKD.index_select(0, rows)
        out = states_BgKD.new_empty(*kept_BgKD.shape[:2], self.slots, states_BgKD.shape[3])
        out[:, :, :used] = kept_BgKD
        return out


class LeanDecoder:
    """Decodes with the weights that the model has at the time of the call."""

    def __init__(self, model: Any) -> None:
        self.model, self.transformer = model, backbone(model)
        self.by_layer = model.config.model_type == "gemma3_text"  # a rotation for each type of layer
        self.kinds = [layer.self_attn.layer_type if self.by_layer else None for layer in self.transformer.layers]
        of_all = getattr(model.config, "sliding_window", None)  # Mistral's layers do not have it themselves
        self.windows = [getattr(layer.self_attn, "sliding_window", of_all) for layer in self.transformer.layers]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> LeanDecoder | None:
        """None for a model that is not supported, or whose own forward gives other logits on a few tokens."""
        if not supports(model):
            return None
        decoder = cls(model)
        return decoder if decoder._agrees() else None

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], sampler: SeededSampler,
        stop_token_ids: frozenset[int],
    ) -> tuple[list[list[int]], list[list[float]]]:  # fmt: skip
        """Per row, the sampled ids up to the first end token or the row's limit, and the log-prob of each."""
        logits_BV = self.begin(prompts, max(limits))
        ids: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # those in the batch
        running = set(rows)
        while True:
            ids_B, logprobs_B = sampler.draw(logits_BV)
            for row, token, logprob in zip(rows, ids_B.tolist(), logprobs_B.tolist(), strict=True):
                if row in running:
                    ids[row].append(token)
                    logprobs[row].append(logprob)
                    if token in stop_token_ids or len(ids[row]) >= limits[row]:
                        running.remove(row)
            if not running:
                del self.cache
                return ids, logprobs
            if len(running) < SHRINK_BELOW * len(rows):
                kept = torch.tensor([i for i, row in enumerate(rows) if row in running], device=ids_B.device)
                rows = [row for row in rows if row in running]
                ids_B = ids_B[kept]
                sampler.keep(kept)
                self.keep(kept)
            logits_BV = self.step(ids_B)

    # --- one batch: begin, then step after step ------------------------------------------------------------------

    def begin(self, prompts: Sequence[Sequence[int]], limit: int) -> Tensor:
        """(B, V) logits of each row's first new token. limit: of the number of new tokens."""
        distinct = {tuple(p): u for u, p in enumerate(dict.fromkeys(map(tuple, prompts)))}
        device = self.model.device
        width = max(map(len, distinct))
        ids_UW = torch.tensor([[0] * (width - len(p)) + list(p) for p in distinct], device=device)
        present_UW = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in distinct], device=device)
        positions_UW = (present_UW.cumsum(1) - 1).clamp(min=0)
        out = self.model(
            input_ids=ids_UW, attention_mask=present_UW, position_ids=positions_UW, use_cache=True, logits_to_keep=1
        )
        prompt_of_B = torch.tensor([distinct[tuple(p)] for p in prompts], device=device)
        self.slot = width
        self.cache = KeyValues(out.past_key_values, prompt_of_B, width, limit)
        lengths_U = present_UW.sum(1)
        self.lengths_B = lengths_U[prompt_of_B]  # tokens of each row so far
        self.empty_BW = None if bool((lengths_U == width).all()) else present_UW[prompt_of_B] == 0
        positions_1N = torch.arange(width + limit, device=device)[None]
        like = self.transformer.norm.weight
        self.rotations = {}
        for kind in set(self.kinds):
            cos_1ND, sin_1ND = self.transformer.rotary_emb(like, positions_1N, *([kind] if self.by_layer else []))
            half = sin_1ND.shape[-1] // 2
            self.rotations[kind] = cos_1ND[0], torch.cat([-sin_1ND[0, :, :half], sin_1ND[0, :, half:]], dim=-1)
        first_BV: Tensor = out.logits[:, -1][prompt_of_B]
        return first_BV

    def keep(self, rows: Tensor) -> None:
        """Take all but these rows out of the batch."""
        self.cache.keep(rows, self.slot)
        self.lengths_B = self.lengths_B[rows]
        if self.empty_BW is not None:
            self.empty_BW = self.empty_BW[rows]

    def step(self, ids_B: Tensor) -> Tensor:
        """(B, V) logits after each row's next token."""
        self.cache.make_room(self.slot)
        rotations = {
            kind: (cos_ND[self.lengths_B][:, None, None], sin_ND[self.lengths_B][:, None, None])
            for kind, (cos_ND, sin_ND) in self.rotations.items()
        }
        bias_B11K = self._bias()
        states_B1H = self.transformer.embed_tokens(ids_B[:, None])
        for number, layer in enumerate(self.transformer.layers):
            normed_B1H = layer.input_layernorm(states_B1H)
            mixed_B1H = self._attend(number, layer.self_attn, normed_B1H, rotations[self.kinds[number]], bias_B11K)
            if hasattr(layer, "pre_feedforward_layernorm"):
                states_B1H = states_B1H + layer.post_attention_layernorm(mixed_B1H)
                wide_B1H = layer.mlp(layer.pre_feedforward_layernorm(states_B1H))
                states_B1H = states_B1H + layer.post_feedforward_layernorm(wide_B1H)
            else:
                states_B1H = states_B1H + mixed_B1H
                states_B1H = states_B1H + layer.mlp(layer.post_attention_layernorm(states_B1H))
        self.slot += 1
        self.lengths_B = self.lengths_B + 1
        logits_BV: Tensor = self.model.lm_head(self.transformer.norm(states_B1H))[:, 0]
        return logits_BV

    def _bias(self) -> Tensor | None:
        """(B, 1, 1, K) -inf on empty slots, of this step's K = slot + 1; None without empty slots."""
        if self.empty_BW is None:
            return None
        rows, width = self.empty_BW.shape
        bias_BK = torch.zeros(rows, self.slot + 1, dtype=self.model.dtype, device=self.empty_BW.device)
        bias_BK[:, :width].masked_fill_(self.empty_BW, -torch.inf)
        return bias_BK[:, None, None]

    def _attend(
        self, number: int, attention: Any, states_B1H: Tensor, rotation: tuple[Tensor, Tensor],
        bias_B11K: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """(B, 1, H) output of layer `number`'s attention; writes this token's keys and values to its slot."""
        keys_BgKD, values_BgKD = self.cache.layers[number]
        heads_B1hD = (len(states_B1H), 1, -1, attention.head_dim)
        query = attention.q_proj(states_B1H).view(heads_B1hD)
        key = attention.k_proj(states_B1H).view(heads_B1hD)
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        query = rotated(query, *rotation)
        keys_BgKD[:, :, self.slot] = rotated(key, *rotation)[:, 0]
        values_BgKD[:, :, self.slot] = attention.v_proj(states_B1H).view(heads_B1hD)[:, 0]
        window = self.windows[number]
        first = 0 if window is None else max(self.slot + 1 - window, 0)
        query_BgGD = query.view(len(query), keys_BgKD.shape[1], -1, attention.head_dim)
        mixed_BgGD = torch.nn.functional.scaled_dot_product_attention(
            query_BgGD, keys_BgKD[:, :, first : self.slot + 1], values_BgKD[:, :, first : self.slot + 1],
            attn_mask=None if bias_B11K is None else bias_B11K[..., first:], scale=attention.scaling,
        )  # fmt: skip
        out: Tensor = attention.o_proj(mixed_BgGD.reshape(len(query), 1, -1))
        return out

    def _agrees(self) -> bool:
        """Whether logits step by step are those of the model's own forward of each row alone."""
        vocabulary = self.model.config.vocab_size
        rows = [[(7 * i + n) % vocabulary for i in range(n)] for n in (24, 9, 24, 30)]
        prompts = [row[:-4] for row in rows]
        logits = [self.begin(prompts, 4)]
        for number in range(4):
            logits.append(self.step(torch.tensor([row[number - 4] for row in rows], device=self.model.device)))
        del self.cache
        limit = TOLERANCE.get(self.model.dtype, 0.05)
        for number, row in enumerate(rows):
            own_SV = self.model(input_ids=torch.tensor([row], device=self.model.device)).logits[0, -5:].float()
            lean_SV = torch.stack([step_BV[number] for step_BV in logits]).float()
            if not float((own_SV - lean_SV).abs().max()) <= limit * float(own_SV.abs().max()):
                return False
        return True


def rotated(states_B1hD: Tensor, cos_B11D: Tensor, signed_sin_B11D: Tensor) -> Tensor:
    """The rotary embedding of both halves of a head. signed_sin: negative in its first half.
    Source: RoFormer, arXiv:2104.09864 eq. 34, with pairs (i, i + D/2)."""
    half = states_B1hD.shape[-1] // 2
    return torch.addcmul(states_B1hD * cos_B11D, states_B1hD.roll(half, -1), signed_sin_B11D)


def supports(model: Any) -> bool:
    """Whether the model is of a family whose decoder layers this module knows."""
    config = model.config
    if getattr(config, "model_type", None) not in FAMILIES or any(getattr(config, name, None) for name in SOFT_CAPS):
        return False
    rotary = getattr(config, "rope_parameters", None) or {}
    kinds = [rotary] if "rope_type" in rotary else [one for one in rotary.values() if isinstance(one, dict)]
    return (
        bool(kinds)
        and all(kind.get("rope_type", "default") in STATIC_ROTATIONS for kind in kinds)
        and config._attn_implementation in ("sdpa", "eager")
    )
