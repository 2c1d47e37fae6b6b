"""vLLM inside the trainer's process. Only this folder imports it, lazily."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config.load import ConfigError
from pipeline.config.schema import Generate, Model, Sampling
from pipeline.distributed import process, ranks
from pipeline.generation import vllm_sampler, vllm_startup
from pipeline.generation.generator import OnDone, Request, Sample
from pipeline.models import families

PRELOADED = ("vllm.v1.worker.cpu_worker", "vllm.v1.executor.uniproc_executor", "vllm.v1.attention.backends.cpu_attn",
             "vllm.model_executor.models.transformers", "vllm.model_executor.models.qwen2",
             "vllm.model_executor.model_loader", "vllm.model_executor.layers.quantization.online.base",
             "vllm.v1.core.sched.scheduler", "vllm.entrypoints.launchers.cli_args")  # fmt: skip
CACHE_GIB = "VLLM_CPU_KVCACHE_SPACE"  # vLLM's variable
TEXT_ONLY = Path(__file__).parent / "text_only"


def engine_options(model: Model, *, max_model_len: int) -> dict[str, Any]:
    """Fields of vLLM's EngineArgs that samples and their log-probs depend on."""
    return {
        "dtype": model.dtype,
        "max_model_len": max_model_len,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # the model's own would change the sampling distribution
        "logprobs_mode": "processed_logprobs",
        "enforce_eager": not torch.cuda.is_available(),
        # for a prompt prefilled in two parts the engine rewinds the request's seeded generator, which raises on CPU
        "enable_chunked_prefill": torch.cuda.is_available(),
        "trust_remote_code": model.trust_remote_code,
        "seed": 0,
        **({"gpu_memory_utilization": 0.4} if torch.cuda.is_available() else {}),
    }


def an_engine_a_rank(options: Mapping[str, Any]) -> dict[str, Any]:
    """EngineArgs for a run of several ranks: by default every engine would take the first GPU.

    Raises ConfigError if an engine is configured to span several GPUs.
    """
    if ranks.world() == 1:
        return {}
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        if options.get(name, 1) != 1:
            raise ConfigError([f"generate.vllm.{name}: of several ranks each has an engine on its own GPU; leave it "
                               "at 1, or serve the model apart (generate.backend: vllm_server)"])  # fmt: skip
    return {"distributed_executor_backend": "external_launcher"}  # reads the launcher's RANK and LOCAL_RANK


def sampling_fields(request: Request, sampling: Sampling, stop_token_ids: frozenset[int]) -> dict[str, Any]:
    """Fields of vLLM's SamplingParams for one request; every field is set, so that no default applies."""
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
        "stop_token_ids": sorted(stop_token_ids),
        "logprobs": 0,
        "detokenize": False,
        "skip_special_tokens": False,
    }


class VllmGenerator:
    """vLLM's engine inside this process; weights go in through `reload_weights`, no copy on disk.

    With `vllm: {enable_sleep_mode: true}` it sleeps after each sampling, its weights offloaded to host memory and its
    cache freed, until the next call: an update has the GPU to itself.
    """

    name = "vllm"

    def __init__(self, model_dir: str, model: Model, generate: Generate, *, max_model_len: int) -> None:
        prepare_vllm()
        from vllm import LLM

        of_family = {} if torch.cuda.is_available() else families.vllm_options(families.read_config(model_dir))
        options = {
            "disable_log_stats": True,
            "use_tqdm_on_load": process.verbose(),
            **engine_options(model, max_model_len=max_model_len),
            **of_family,
        }
        options |= cache_options() | generate.vllm
        options |= an_engine_a_rank(options)
        if not torch.cuda.is_available():
            vllm_startup.keep_bfloat16_weights_unpacked()
        if ranks.world() > 1:
            keep_the_trainers_group()
        with _classes_kept(), _configs_kept():
            self.llm = LLM(model_dir, **options)
        self.modules = self.llm.apply_model(_module_names)[0]
        slow = next(filter(None, self.llm.collective_rpc(vllm_sampler.install)), "")
        if slow:
            print(f"generator: this vLLM draws seeded requests one after the other ({slow}); sampling is slower")
        self.sleeps, self.asleep = bool(options.get("enable_sleep_mode")), False

    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        on_done: OnDone | None = None,
    ) -> list[Sample]:
        from vllm import SamplingParams, TokensPrompt

        parameters = [SamplingParams(**sampling_fields(r, sampling, stop_token_ids)) for r in requests]
        prompts = [TokensPrompt(prompt_token_ids=list(r.ids)) for r in requests]
        self._wake()
        self.llm.reset_prefix_cache()  # else results would depend on earlier batches, and a resumed run would differ
        if on_done is None:
            out = [
                _sample_of(answer, stop_token_ids) for answer in self.llm.generate(prompts, parameters, use_tqdm=False)
            ]
        else:
            out = self._stream(prompts, parameters, stop_token_ids, on_done)
        if self.sleeps:
            self.llm.sleep(level=1)
            self.asleep = True
        return out

    def _wake(self) -> None:
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False

    def _stream(
        self, prompts: Sequence[Any], parameters: Sequence[Any], stop_token_ids: frozenset[int], on_done: OnDone
    ) -> list[Sample]:
        """`LLM.generate` with a callback per finished sample: same requests, same batches."""
        engine, out = self.llm.llm_engine, {}
        for index, (prompt, one) in enumerate(zip(prompts, parameters, strict=True)):
            engine.add_request(str(index), prompt, one)
        while engine.has_unfinished_requests():
            for answer in engine.step():
                if answer.finished:
                    index = int(answer.request_id.partition("-")[0])  # newer engines append a suffix
                    out[index] = _sample_of(answer, stop_token_ids)
                    on_done(index, out[index])
        return [out[index] for index in range(len(prompts))]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        from vllm import SamplingParams, TokensPrompt

        parameters = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=list(s)) for s in sequences]
        self._wake()
        self.llm.reset_prefix_cache()
        answers: Any = self.llm.generate(prompts, parameters, use_tqdm=False)
        return [
            [position[token].logprob for position, token in zip(a.prompt_logprobs[1:], s[1:], strict=True)]
            for a, s in zip(answers, sequences, strict=True)
        ]

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._wake()
        # a list, not a lazy iterator: the engine may buffer a tensor until its layer is complete
        named = [(name, tensor.detach()) for name, tensor in once_where_tied(weights, self.modules)]
        kernels = [] if torch.cuda.is_available() else self.llm.apply_model(detach_expert_kernels)[0]
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named)})
        restore_expert_kernels(kernels)
        if not torch.cuda.is_available():
            self.llm.apply_model(refresh_convolutions)
        self.llm.reset_prefix_cache()  # cached keys and values belong to the old weights


def keep_the_trainers_group() -> None:
    """Let an engine that ends destroy its own process groups only.

    vLLM's engine destroys the default group of its process too, which is the trainer's: after a restart of the engine
    the next collective call would fail. After `ranks.leave` no group is left to destroy, and vLLM would raise at exit.
    """
    from vllm.distributed import parallel_state
    from vllm.v1.engine import core

    groups: Any = parallel_state
    library: Any = core

    def destroy_own_groups(shutdown_ray: bool = False) -> None:
        if torch.distributed.is_initialized():
            groups.destroy_model_parallel()
            if groups._WORLD is not None:
                groups._WORLD.destroy()
        groups._WORLD = None

    if hasattr(library, "cleanup_dist_env_and_memory") and hasattr(groups, "_WORLD"):
        library.cleanup_dist_env_and_memory = destroy_own_groups


def detach_expert_kernels(model: torch.nn.Module) -> list[tuple[Any, Any]]:
    """Take the kernel off every layer of experts, so that the next reload packs their weights again.

    Returns pairs of a layer's method and its kernel. A CPU kernel computes with weights in a packed layout, and vLLM
    packs them only while a layer has no kernel: otherwise a reload leaves unpacked experts where the kernel reads
    packed ones, and the same weights loaded a second time move log-probs by 0.8 nats. On a GPU kernels take the layout
    of a checkpoint, and CUDA graphs hold their addresses.
    """
    methods: list[Any] = [getattr(module, "quant_method", None) for module in model.modules()]
    kernels = [(method, method.moe_kernel) for method in methods if getattr(method, "moe_kernel", None) is not None]
    for method, _ in kernels:
        method.moe_kernel = None
    return kernels


def restore_expert_kernels(kernels: Iterable[tuple[Any, Any]]) -> None:
    """Put a kernel back where the reload did not reach the layer's weights: they stay as they were, and the canary
    reports them."""
    for method, kernel in kernels:
        if method.moe_kernel is None:
            method.moe_kernel = kernel


def refresh_convolutions(model: torch.nn.Module) -> None:
    """Give Mamba layers the convolution that was loaded last.

    They read it through a view of the tensor that the engine was opened with. A CPU with bfloat16 products packs the
    weight into another tensor, the one that a reload writes, and keeps the unpacked weight beside it.
    """
    for module in model.modules():
        read = getattr(module, "conv_weights", None)
        loaded = getattr(getattr(module, "conv1d", None), "_cpu_unpacked_conv_weight", None)
        if isinstance(read, torch.Tensor) and isinstance(loaded, torch.Tensor) and read.shape == loaded.shape:
            read.copy_(loaded)


def _module_names(model: torch.nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in model.named_modules())


@contextlib.contextmanager
def _classes_kept() -> Iterator[None]:
    """Models without vLLM code run through transformers' own class, which vLLM wraps in place for its compiler; models
    of that class could then not be constructed outside the engine."""
    from vllm.model_executor.models.transformers import base

    library: Any = base
    wrap, library.support_torch_compile = library.support_torch_compile, lambda **_: lambda cls: cls
    try:
        yield
    finally:
        library.support_torch_compile = wrap


@contextlib.contextmanager
def _configs_kept() -> Iterator[None]:
    """vLLM registers config classes of its own for families that transformers knows (Qwen3.5). AutoConfig would return
    them outside the engine too, and transformers does not find the text part of such a config."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    registered: dict[str, Any] = CONFIG_MAPPING._extra_content
    before = dict(registered)
    try:
        yield
    finally:
        registered.clear()
        registered.update(before)


def once_where_tied(
    weights: Iterable[tuple[str, torch.Tensor]], modules: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Skip the alias of a tied weight if the engine has no module of that name: some heads are the embedding itself,
    and an engine rejects unknown names. The names of one tensor are consecutive.

    In a model with vision the engine's head lies in its text part (`language_model.lm_head`) while a checkpoint calls
    it `lm_head`. On a CPU such a head packs its own copy of the tied weight: without the alias it would keep the old.
    """
    last = None
    for name, tensor in weights:
        if tensor is not last or _has_module(modules, name.rpartition(".")[0]):
            yield name, tensor
        last = tensor


def _has_module(modules: Collection[str], name: str) -> bool:
    """Whether a module has this name, in the model itself or in a part of it."""
    return any(module == name or module.endswith(f".{name}") for module in modules)


def _sample_of(answer: Any, stop_token_ids: frozenset[int]) -> Sample:
    """answer: vLLM's RequestOutput, whose type also allows for absent log-probs."""
    one = answer.outputs[0]
    ids = tuple(one.token_ids)
    logprobs = tuple(position[token].logprob for position, token in zip(one.logprobs, ids, strict=True))
    return Sample(ids, logprobs, finished=bool(ids) and ids[-1] in stop_token_ids)


def preload_vllm() -> None:
    """Import vLLM before a server process forks.

    `import vllm` alone imports next to nothing: the package looks up its names when they are used. Four fifths of the
    time to open an engine are these imports.
    """
    import_vllm()
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # of other versions, or for another device
            importlib.import_module(name)
    vllm_startup.register_kernels_early()


def import_vllm() -> None:
    """Import what every engine of vLLM needs."""
    prepare_vllm()
    from vllm import LLM, SamplingParams, TokensPrompt  # noqa: F401


def stand_in_for_torchvision() -> bool:
    """Let vLLM import its model classes where torchvision is missing, in this process and in those that it starts to
    inspect a class. Returns whether it was missing."""
    if importlib.util.find_spec("torchvision") is not None:
        return str(TEXT_ONLY) in sys.path
    sys.path.append(str(TEXT_ONLY))  # behind everything: a torchvision that is installed later is found first
    paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, str(TEXT_ONLY)])
    return True


def prepare_vllm() -> None:
    """What has to be done before vLLM's modules are imported, or is cheaper then."""
    prepare_vllm_environment()
    vllm_startup.configure_logging_early()
    vllm_startup.scan_only_vllm_for_kernels()


def cache_options() -> dict[str, int]:
    """The key-value cache, which vLLM on a CPU allocates whole when it opens: 1 GiB unless its own variable is set,
    which would also override `kv_cache_memory_bytes` of the config. On a GPU it takes what the model leaves free."""
    if torch.cuda.is_available() or os.environ.get(CACHE_GIB):
        return {}
    return {"kv_cache_memory_bytes": 1 << 30}


def cache_bytes(generate: Generate) -> int:
    """Bytes that vLLM on a CPU allocates for its cache; 0 on a GPU."""
    if torch.cuda.is_available():
        return 0
    if space := os.environ.get(CACHE_GIB):
        return int(space) << 30
    return int((cache_options() | generate.vllm)["kv_cache_memory_bytes"])


def prepare_vllm_environment() -> None:
    stand_in_for_torchvision()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if process.verbose() else "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # vLLM compiles the ranks of log-probs: 8 s on first use, and an error without a C++ compiler
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
