"""Policies, tokenizers and reward models: load, save and score with them, and make the tiny demo model."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Tiny
from pipeline.distributed import ranks, sharding
from pipeline.distributed.notices import notice
from pipeline.models import families, model_dir, saved_check, token_rows, weights
from pipeline.models.precision import precision_of as precision_of
from pipeline.models.tiny_text import SPECIAL
from pipeline.models.weights import named_weights as named_weights
from pipeline.seeds import seed_everything


def make_tiny(tiny: Tiny, path: Path, *, seed: int) -> None:
    """A random Qwen2 model and a character tokenizer, saved as any Hub model would be. Deterministic in seed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    # Qwen2's own kind of tokenizer, byte-level BPE, without merges: one token per byte of these characters
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens = dict.fromkeys("".join(piece for piece, _ in byte_level.pre_tokenize_str(tiny.characters)))
    vocab = {token: i for i, token in enumerate([*SPECIAL, *tokens])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer, backend.decoder = byte_level, decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )
    config = Qwen2Config(
        vocab_size=len(vocab),
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.num_hidden_layers,
        num_attention_heads=tiny.num_attention_heads,
        num_key_value_heads=tiny.num_attention_heads,
        max_position_embeddings=tiny.max_position_embeddings,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    seed_everything(seed, "tiny model")
    save(Qwen2ForCausalLM(config), tokenizer, path)


def check_model_dir(path: str, key: str) -> None:
    """Raises ConfigError where a local path holds no model or no tokenizer; a Hub id is left to the Hub."""
    fault = model_dir.fault(path)
    if fault:
        raise ConfigError([f"{key}: {fault}"])


def load_tokenizer(path: str, model: Model) -> Any:
    """The tokenizer, with a pad token. Raises ConfigError where there is none or it has no end-of-sequence token."""
    from transformers import AutoTokenizer

    check_model_dir(path, "model.path")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as exc:
        raise ConfigError([f"model.path: no tokenizer at {path!r}: {' '.join(str(exc).split())[:200]}"]) from exc
    if tokenizer.eos_token_id is None:
        raise ConfigError([f"model.path: the tokenizer at {path!r} has no end-of-sequence token"])
    _without_rowless(tokenizer, path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # safe: our masks come from lengths, never from ids
    if model.chat_template is not None:
        template = model.template_file
        tokenizer.chat_template = template.read_text() if template else model.chat_template
    return tokenizer


def _without_rowless(tokenizer: Any, path: str) -> None:
    """Take out and report tokens that the model at `path` has no row for. Raises ConfigError where that cannot be."""
    config = families.read_config(path)
    rows = families.text_fields(config).get("vocab_size") if config is not None else None
    if not isinstance(rows, int):
        return
    try:
        removed = token_rows.without_rowless(tokenizer, rows)
    except token_rows.TokenWithoutRow as exc:
        raise ConfigError([f"model.path: {path}: {exc}"]) from exc
    if removed:
        names = ", ".join(f"{token!r} (id {i})" for token, i in list(removed.items())[:3])
        words = "token" if len(removed) == 1 else "tokens"
        notice(f"model.path: {path}: the tokenizer has {len(removed)} more {words} than the embedding has rows ({rows})"
               f": {names}; text that holds one is read as ordinary text")  # fmt: skip


def load_policy(path: str, model: Model, *, adapted: bool = False, to_shard: bool = False) -> Any:
    """A causal language model with every dropout off: the log-probs of RL must be a function of the weights.

    adapted: an adapter will be added, and `model.quantization` applies. to_shard: it will be sharded; see `_load`.
    """
    kind = language_model_class(path, model)
    return without_dropout(text_part_trains(_load(kind, path, model, adapted=adapted, to_shard=to_shard)))


def language_model_class(path: str, model: Model) -> Any:
    """The auto class that loads the checkpoint at `path`: for text, else for images and text, of which the text part is
    used alone. Raises ConfigError where transformers has neither."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as exc:
        raise ConfigError([f"model.path: {path}: {' '.join(str(exc).split())[:200]}"]) from exc
    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in kind._model_mapping or kind.__name__ in getattr(config, "auto_map", {}):
            return kind
    raise ConfigError([f"model.path: {path} is a {config.model_type}, which transformers cannot load as a language "
                       "model; take the text model of its family"])  # fmt: skip


def text_part_trains(model: Any) -> Any:
    """Everything outside the decoder and the head is frozen: text alone never reaches a vision tower."""
    decoder = model.get_decoder() if hasattr(model.config, "vision_config") else None
    if decoder is not None:
        text = {id(p) for part in (decoder, model.get_output_embeddings()) for p in part.parameters()}
        for parameter in model.parameters():
            if parameter.is_floating_point():  # 4 bits are frozen by themselves
                parameter.requires_grad_(id(parameter) in text)
    return model


def load_reward_model(path: str, model: Model, *, adapted: bool = False, to_shard: bool = False) -> Any:
    """A sequence classifier with one output, in evaluation mode. to_shard: it will be sharded; see `_load`."""
    from transformers import AutoModelForSequenceClassification as Classifier

    return without_dropout(_load(Classifier, path, model, adapted=adapted, to_shard=to_shard, num_labels=1)).eval()


def _load(kind: Any, path: str, model: Model, *, adapted: bool, to_shard: bool, **more: Any) -> Any:
    """to_shard: under FSDP2 rank 0 alone reads the weights, into host memory, and the other ranks build the model
    without any (on torch's meta device): each rank then receives its shards from rank 0, one layer at a time."""
    if to_shard and sharding.is_fsdp2():
        more["device_map"] = {"": "cpu" if ranks.is_main() else "meta"}
    if adapted and model.quantization is not None:
        if sharding.is_sharded():
            raise ConfigError(
                ["model.quantization: 4 bits cannot be sharded over ranks; use configs/accelerate/ddp.yaml"]
            )
        more |= {"quantization_config": in_4_bits(model), "device_map": {"": device()}}
    attn = families.attention(families.read_config(path), model.attn)
    loaded = kind.from_pretrained(
        path, dtype=precision_of(path, model), attn_implementation=attn,
        trust_remote_code=model.trust_remote_code, **more,
    )  # fmt: skip
    for module in loaded.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # it would repack the 4 bits, rounded, and lose the originals
    return loaded if "device_map" in more else loaded.to(device())


def in_4_bits(model: Model) -> Any:
    """How the base under an adapter is quantized, heads excepted. Source: QLoRA, arXiv:2305.14314 section 3."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=model.quantization, bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if model.dtype == "auto" else getattr(torch, model.dtype),
        llm_int8_skip_modules=["lm_head", "embed_out", "score"],
    )  # fmt: skip


def without_dropout(model: nn.Module) -> nn.Module:
    """Everything random off, whatever the mode: dropout modules, the rates that attention keeps as plain attributes,
    and the routers of experts that multiply by noise (Mixtral) or draw an expert at random (PhiMoE) in train mode."""
    for module in list(model.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
            elif "jitter" in name:  # also a threshold of PhiMoE's routing, so it keeps its value
                module.eval()
                module.train = _keep_mode  # type: ignore[method-assign, assignment]
    return model


def _keep_mode(mode: bool = True) -> None:
    """`train` of a module that stays as it is."""


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def save(model: Any, tokenizer: Any, path: Path, *, dtype: torch.dtype | None = None) -> None:
    """Weights (adapters merged), config and tokenizer, as any Hub model is saved; the config names the EOS token.

    Every rank calls it: sharded weights are gathered, rank 0 writes, and all go on when it has. dtype: what to save in;
    None: as they are. Raises SavedModelDiffers where the directory, loaded again, is not the model that was trained.
    """
    model = weights.unwrapped(model)
    base = weights.base_of(model)
    state: dict[str, torch.Tensor] | None = None
    if sharding.is_sharded() or weights.is_adapted(model) or getattr(base, "is_quantized", False):
        expected = saved_check.outputs(model)
        tied, state = weights.tied_names(base), {}
        for name, tensor in weights.named_weights(model).in_memory():  # every rank helps to gather
            if ranks.is_main() and name not in tied:
                state[name] = tensor.to(dtype or tensor.dtype).cpu() if tensor.is_floating_point() else tensor.cpu()
        written = weights.cast(unadapted(base, tied=bool(tied)), dtype or base.dtype)
    else:
        written = weights.cast(model, dtype) if dtype is not None else model
        expected = saved_check.outputs(written)
    ranks.from_main(lambda: _write(written, tokenizer, path, state, expected, base))


def _write(
    model: Any, tokenizer: Any, path: Path, state: dict[str, torch.Tensor] | None, expected: torch.Tensor, base: Any
) -> None:
    path.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True  # trainers switch it off, and every later generation from the saved model is slower
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False  # TRL switches it on, and batched generation then fails
    model.save_pretrained(path, **({} if state is None else {"state_dict": state}))
    token_rows.save_tokenizer(tokenizer, path, model.config.get_text_config().vocab_size)
    sharding.forget_zero()
    attn = base.config._attn_implementation
    saved_check.check_saved(
        expected, path, kind=_kind_of(base, path), attn=attn if attn in ("eager", "sdpa") else None,
        remote_code=hasattr(base.config, "auto_map"),
    )  # fmt: skip


def _kind_of(base: Any, path: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    remote_code = hasattr(base.config, "auto_map")
    if hasattr(base, "score"):
        return AutoModelForSequenceClassification
    return language_model_class(str(path), Model(trust_remote_code=remote_code))


def unadapted(base: Any, *, tied: bool) -> Any:
    """The same architecture without weights, adapters and 4 bits, and with the generation config of `base`.

    tied: whether embedding and head are still one tensor.
    """
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if not tied and getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False
    with torch.device("meta"):
        empty = type(base)(config)
    if hasattr(base, "_weight_conversions"):  # how it was loaded decides the names it is written under
        empty._weight_conversions = base._weight_conversions
    if getattr(base, "generation_config", None) is not None:
        empty.generation_config = copy.deepcopy(base.generation_config)
    return empty


def end_ids(tokenizer: Any, model: Any = None) -> frozenset[int]:
    """Every id that ends a completion: the tokenizer's EOS and all of the generation config's."""
    stop_token_ids = {tokenizer.eos_token_id}
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    stop_token_ids |= set(own) if isinstance(own, (list, tuple)) else {own}
    return frozenset(i for i in stop_token_ids if i is not None)


def pad_right(
    rows: Sequence[Sequence[float]], fill: float, *, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """(B, longest) from rows of different lengths."""
    width = max((len(row) for row in rows), default=0)
    return torch.tensor([[*row, *([fill] * (width - len(row)))] for row in rows], dtype=dtype, device=device)


@torch.no_grad()
def reward_scores(model: Any, sequences: Sequence[Sequence[int]], *, tokens_per_batch: int = 16_384) -> list[float]:
    """The reward model's score of each sequence of ids, read at its last token, which is found by length.

    Not by id: where pad == eos, the pooling of transformers would read the token before the end.
    """
    scores = [0.0] * len(sequences)
    head = model.score
    for batch in batches_by_tokens([len(s) for s in sequences], tokens_per_batch):
        rows = [sequences[i] for i in batch]
        ids = pad_right(rows, 0, dtype=torch.long, device=model.device)
        mask = pad_right([[1] * len(r) for r in rows], 0, dtype=torch.long, device=model.device)
        hidden = backbone(model)(input_ids=ids, attention_mask=mask).last_hidden_state
        last = torch.tensor([len(r) - 1 for r in rows], device=model.device)
        values = head(hidden[torch.arange(len(rows), device=model.device), last]).float().squeeze(-1)
        for i, value in zip(batch, values.tolist(), strict=True):
            scores[i] = value
    return scores


def backbone(model: Any) -> Any:
    """The transformer under a head."""
    return getattr(model, model.base_model_prefix)


def batches_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices sorted by length, in batches of rows x longest row <= budget (one row may exceed it alone).

    Sorting makes each batch's padding small; the budget bounds memory by tokens, which is what fills it.
    """
    out: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if out and (len(out[-1]) + 1) * lengths[i] <= budget:
            out[-1].append(i)
        else:
            out.append([i])
    return out


def architecture_key(model_dir: str, model: Model) -> str:
    """What an engine cannot change by loading weights: config.json without its name and what only training sets, and
    without the dtype it was saved in where `model` names the one to compute in."""
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        return model_dir
    config = json.loads(path.read_text())
    saved_in = ("dtype", "torch_dtype") if model.dtype != "auto" else ()
    for name in ("_name_or_path", "use_cache", *saved_in):
        config.pop(name, None)
    return json.dumps(config, sort_keys=True)


class LearnedReward:
    """A reward model as a reward function: standardised on its reference samples, loaded on the first call.

    mean and std are those of the samples it was calibrated on, kept in its config; without them the raw score is used.
    """

    def __init__(self, path: str, model: Model) -> None:
        self.path, self.model = path, model
        self._loaded: Any = None

    def __call__(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> list[float]:
        if self._loaded is None:
            self._loaded = load_reward_model(self.path, self.model)
        calibration = getattr(self._loaded.config, "reward_calibration", None) or {"mean": 0.0, "std": 1.0}
        raw = reward_scores(self._loaded, [[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)])
        return [(score - calibration["mean"]) / max(calibration["std"], 1e-8) for score in raw]
