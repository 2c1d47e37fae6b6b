"""Generators: token ids in, sampled token ids and their log-probs out. vLLM in process, or transformers.

Both draw from the same distribution: every sampling field is sent, log-probs are those of the distribution sampled
from, and each request carries its own seed, so what is sampled does not depend on what shares its batch or on what was
sampled before. Weights are pushed after every update and a canary compares both sides (`canary_gap`).
This is the only file that imports vLLM.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pipeline import ranks
from pipeline.config import ConfigError
from pipeline.draws import SeededSampler
from pipeline.models import batches_by_tokens, load_policy, pad_right
from pipeline.records import Prompt, Rollout
from pipeline.schema import Generate, Model, Sampling
from pipeline.seeds import derive

CANARY_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


@dataclass(frozen=True, slots=True)
class Request:
    ids: tuple[int, ...]
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Sample:
    """ids: sampled ids with the end token where one came. logprobs: nats, one per id."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


OnDone = Callable[[int, Sample], None]


class Generator(Protocol):
    @property
    def name(self) -> str:
        """`vllm` or `transformers`."""
        ...

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, ends: frozenset[int], on_done: OnDone | None = None
    ) -> list[Sample]:
        """One sample a request, in order. on_done is told (place, sample) of each as soon as it is drawn; a generator
        that dies and is opened again tells some twice."""
        ...

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-prob of every id but the first, at temperature 1, as this generator computes it."""
        ...

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Take these weights. Names are a checkpoint's, the tied head's included."""
        ...


def rollouts(
    generator: Generator,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    samples: int,
    key: tuple[int | str, ...],
    tokenizer: Any,
    ends: frozenset[int],
    first: int = 0,
    on_done: Callable[[int, Rollout], None] | None = None,
) -> list[Rollout]:
    """`samples` rollouts of each prompt, prompt-major. The seed of each is a function of (key, place, sample).

    first: the place of the first prompt, where these are a rank's share of more. on_done: told (number, rollout) of
    each as soon as it is drawn, in any order and of some twice.
    """
    requests = [
        Request(prompt.ids, derive(*key, place, sample), sampling.max_tokens)
        for place, prompt in enumerate(prompts, first)
        for sample in range(samples)
    ]

    def rollout(i: int, d: Sample, text: str) -> Rollout:
        return Rollout(prompts[i // samples], i % samples, d.ids, d.logprobs, text, d.finished)

    def tell(i: int, d: Sample) -> None:
        assert on_done is not None
        on_done(i, rollout(i, d, tokenizer.decode(list(d.ids), skip_special_tokens=True)))

    drawn = generator.sample(requests, sampling, ends, *([] if on_done is None else [tell]))
    texts = tokenizer.batch_decode([list(d.ids) for d in drawn], skip_special_tokens=True)
    return [rollout(i, d, text) for i, (d, text) in enumerate(zip(drawn, texts, strict=True))]


def continuations(
    generator: Generator,
    cuts: Sequence[tuple[Rollout, int, int]],
    sampling: Sampling,
    *,
    samples: int,
    key: tuple[int | str, ...],
    tokenizer: Any,
    ends: frozenset[int],
) -> list[Rollout]:
    """For each cut (rollout, at, place): `samples` rollouts that keep its first `at` tokens and are sampled on from
    there, each up to the same limit. Seeds are a function of (key, place, sample)."""
    requests = [
        Request((*r.prompt.ids, *r.ids[:at]), derive(*key, place, sample), sampling.max_tokens - at)
        for r, at, place in cuts
        for sample in range(samples)
    ]
    drawn = generator.sample(requests, sampling, ends)
    kept = [(r, at, sample) for r, at, _ in cuts for sample in range(samples)]
    ids = [(*r.ids[:at], *d.ids) for (r, at, _), d in zip(kept, drawn, strict=True)]
    texts = tokenizer.batch_decode([list(i) for i in ids], skip_special_tokens=True)
    return [
        Rollout(r.prompt, sample, whole, (*r.logprobs[:at], *d.logprobs), text, d.finished)
        for (r, at, sample), d, whole, text in zip(kept, drawn, ids, texts, strict=True)
    ]


def engine_options(model: Model, *, max_model_len: int) -> dict[str, Any]:
    """Fields of vLLM's EngineArgs that samples and their log-probs depend on."""
    return {
        "dtype": model.dtype,
        "max_model_len": max_model_len,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # the model's own would change the sampling distribution
        "logprobs_mode": "processed_logprobs",
        "enforce_eager": not torch.cuda.is_available(),
        # a prompt cut in two makes the engine turn back the seeded generator of its request, which on a CPU raises
        "enable_chunked_prefill": torch.cuda.is_available(),
        "trust_remote_code": model.trust_remote_code,
        "seed": 0,
        **({"gpu_memory_utilization": 0.4} if torch.cuda.is_available() else {}),
    }


def an_engine_a_rank(options: Mapping[str, Any]) -> dict[str, Any]:
    """More of EngineArgs where a launcher made several ranks: left alone, every engine would take the first GPU.

    Raises ConfigError where an engine is to span several GPUs as well.
    """
    if ranks.world() == 1:
        return {}
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        if options.get(name, 1) != 1:
            raise ConfigError([f"generate.vllm.{name}: of several ranks each has an engine on its own GPU; leave it "
                               "at 1, or serve the model apart (generate.backend: vllm_server)"])  # fmt: skip
    return {"distributed_executor_backend": "external_launcher"}  # which asks the launcher's RANK and LOCAL_RANK


def sampling_fields(request: Request, sampling: Sampling, ends: frozenset[int]) -> dict[str, Any]:
    """Fields of vLLM's SamplingParams for one request; all are given, so that no default decides."""
    return {
        "n": 1,
        "seed": request.seed,
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(ends),
        "logprobs": 0,
        "detokenize": False,
        "skip_special_tokens": False,
    }


class VllmGenerator:
    """vLLM's engine inside this process; weights go in through `reload_weights`, no copy on disk.

    With `vllm: {enable_sleep_mode: true}` it sleeps whenever it has sampled, its weights in the machine's memory and
    its cache given up, until it is next called: an update has the GPU to itself.
    """

    name = "vllm"

    def __init__(self, model_dir: str, model: Model, generate: Generate, *, max_model_len: int) -> None:
        prepare_vllm_environment()
        from vllm import LLM

        options = {"disable_log_stats": True, **engine_options(model, max_model_len=max_model_len), **generate.vllm}
        options |= an_engine_a_rank(options)
        with _classes_kept():
            self.llm = LLM(model_dir, **options)
        self.modules = self.llm.apply_model(_module_names)[0]
        self.sleeps, self.asleep = bool(options.get("enable_sleep_mode")), False

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, ends: frozenset[int], on_done: OnDone | None = None
    ) -> list[Sample]:
        from vllm import SamplingParams, TokensPrompt

        parameters = [SamplingParams(**sampling_fields(r, sampling, ends)) for r in requests]
        prompts = [TokensPrompt(prompt_token_ids=list(r.ids)) for r in requests]
        self._wake()
        self.llm.reset_prefix_cache()  # what shares a batch's arithmetic is then the batch alone, also after a resume
        if on_done is None:
            out = [_sample_of(answer, ends) for answer in self.llm.generate(prompts, parameters, use_tqdm=False)]
        else:
            out = self._as_they_end(prompts, parameters, ends, on_done)
        if self.sleeps:
            self.llm.sleep(level=1)
            self.asleep = True
        return out

    def _wake(self) -> None:
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False

    def _as_they_end(
        self, prompts: Sequence[Any], parameters: Sequence[Any], ends: frozenset[int], on_done: OnDone
    ) -> list[Sample]:
        """What `LLM.generate` does, telling of each sample when it ends: same requests in the same batches."""
        engine, out = self.llm.llm_engine, {}
        for place, (prompt, asked) in enumerate(zip(prompts, parameters, strict=True)):
            engine.add_request(str(place), prompt, asked)
        while engine.has_unfinished_requests():
            for answer in engine.step():
                if answer.finished:
                    place = int(answer.request_id.partition("-")[0])  # newer engines add a tail of their own
                    out[place] = _sample_of(answer, ends)
                    on_done(place, out[place])
        return [out[place] for place in range(len(prompts))]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        from vllm import SamplingParams, TokensPrompt

        parameters = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=list(s)) for s in sequences]
        self._wake()
        self.llm.reset_prefix_cache()
        answers: Any = self.llm.generate(prompts, parameters, use_tqdm=False)
        return [
            [place[token].logprob for place, token in zip(a.prompt_logprobs[1:], s[1:], strict=True)]
            for a, s in zip(answers, sequences, strict=True)
        ]

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._wake()
        # a list, not a lazy iterator: the engine may hold a tensor back until its layer is whole
        whole = [(name, tensor.detach()) for name, tensor in once_where_tied(weights, self.modules)]
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(whole)})
        self.llm.reset_prefix_cache()  # cached keys and values belong to the old weights


def _module_names(model: torch.nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_modules())


@contextlib.contextmanager
def _classes_kept() -> Iterator[None]:
    """What vLLM has no code for it runs by transformers' own class, which it wraps in place for its compiler: models of
    that class could not be made outside of the engine any more."""
    from vllm.model_executor.models.transformers import base

    library: Any = base
    wrap, library.support_torch_compile = library.support_torch_compile, lambda **_: lambda cls: cls
    try:
        yield
    finally:
        library.support_torch_compile = wrap


def once_where_tied(
    weights: Iterable[tuple[str, torch.Tensor]], modules: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Without the second name of a tied tensor where it belongs to none of the modules: some heads are the embedding
    itself, and an engine refuses a name that it does not know. A tensor's names follow one another."""
    last = None
    for name, tensor in weights:
        if tensor is not last or name.rpartition(".")[0] in modules:
            yield name, tensor
        last = tensor


def _sample_of(answer: Any, ends: frozenset[int]) -> Sample:
    """answer: vLLM's; Any, for its type allows for log-probs that nobody asked for."""
    one = answer.outputs[0]
    ids = tuple(one.token_ids)
    logprobs = tuple(place[token].logprob for place, token in zip(one.logprobs, ids, strict=True))
    return Sample(ids, logprobs, finished=bool(ids) and ids[-1] in ends)


def preload_vllm() -> None:
    """Import it, for a process that is forked to answer."""
    prepare_vllm_environment()
    import vllm  # noqa: F401


def prepare_vllm_environment() -> None:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # vLLM compiles the ranks of its log-probs: 8 s on first use, and an error where there is no C++ compiler
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


class TransformersGenerator:
    """The same distribution through transformers, for machines without vLLM. Holds a copy of the weights."""

    name = "transformers"

    def __init__(self, model_dir: str, model: Model, generate: Generate) -> None:
        self.model = load_policy(model_dir, model).eval()
        self.batch = generate.batch

    @torch.no_grad()
    def sample(
        self, requests: Sequence[Request], sampling: Sampling, ends: frozenset[int], on_done: OnDone | None = None
    ) -> list[Sample]:
        out: list[Sample | None] = [None] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].ids), i))
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            for place, sample in zip(places, self._batch([requests[i] for i in places], sampling, ends), strict=True):
                out[place] = sample
                if on_done is not None:
                    on_done(place, sample)
        return [s for s in out if s is not None]

    def _batch(self, requests: Sequence[Request], sampling: Sampling, ends: frozenset[int]) -> list[Sample]:
        from transformers import GenerationConfig, LogitsProcessorList

        width = max(len(r.ids) for r in requests)
        pad = min(ends)
        ids = torch.tensor([[pad] * (width - len(r.ids)) + list(r.ids) for r in requests], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(r.ids)) + [1] * len(r.ids) for r in requests], device=self.model.device)
        limit = max(r.max_tokens for r in requests)
        noise = SeededSampler(sampling, [r.seed for r in requests], [r.ids for r in requests])
        self.model.generation_config = GenerationConfig(  # replaced, for unset fields would be filled from the model's
            do_sample=False, max_new_tokens=limit, eos_token_id=sorted(ends), pad_token_id=pad, use_cache=True
        )  # fmt: skip
        grown = self.model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([noise]), use_cache=True
        )
        logprobs = torch.stack(noise.logprobs, dim=1).tolist()
        out = []
        for request, row, row_logprobs in zip(requests, grown[:, width:].tolist(), logprobs, strict=True):
            length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            length = min(length, request.max_tokens)
            taken = tuple(row[:length])
            out.append(Sample(taken, tuple(row_logprobs[:length]), finished=taken[-1] in ends))
        return out

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return sequence_logprobs(self.model, sequences)

    @torch.no_grad()
    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        own = dict(self.model.named_parameters(remove_duplicate=False))
        for name, tensor in weights:
            own[name].copy_(tensor)


@torch.no_grad()
def sequence_logprobs(model: Any, sequences: Sequence[Sequence[int]], *, tokens: int = 16_384) -> list[list[float]]:
    """Log-prob of every id but the first of each sequence, at temperature 1, in float32."""
    out: list[list[float]] = [[] for _ in sequences]
    for batch in batches_by_tokens([len(s) for s in sequences], tokens):
        rows = [sequences[i] for i in batch]
        ids = pad_right(rows, 0, dtype=torch.long, where=model.device)
        mask = pad_right([[1] * len(r) for r in rows], 0, dtype=torch.long, where=model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0].tolist()
        for i, values in zip(batch, picked, strict=True):
            out[i] = values[: len(sequences[i]) - 1]
    return out


def canary_gap(generator: Generator, model: Any, sequences: Sequence[Sequence[int]]) -> float:
    """Largest |log-prob difference| between generator and trainer on fixed tokens: 0 when they hold equal weights."""
    return largest_gap(sequence_logprobs(model, sequences), generator.logprobs(sequences))


def largest_gap(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """Largest |difference|; NaN where either side holds one."""
    gaps = [abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return math.nan if any(map(math.isnan, gaps)) else max(gaps)  # Python's max would pass over a NaN
