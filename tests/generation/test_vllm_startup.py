"""What opening an engine skips: a second configuration of the logging, a scan of modules that are not vLLM's."""

import importlib.util
import logging.config
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loop_kit import tiny_model

from pipeline.config.schema import Generate, Model
from pipeline.generation import vllm_startup
from pipeline.generation.generator import largest_gap
from pipeline.generation.hf_engine import sequence_logprobs
from pipeline.generation.vllm_engine import VllmGenerator, preload_vllm
from pipeline.models.models import load_policy, named_weights

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def dispatcher():
    preload_vllm()
    from vllm.triton_utils import HAS_TRITON, dispatcher

    if HAS_TRITON:
        pytest.skip("with Triton no kernel is replaced")
    return dispatcher


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of deprecated names that the scan touches
def test_every_module_holds_the_replacements_of_vllms_kernels(dispatcher):
    """The full scan that vLLM would have done: no attribute of any module is an original any more."""
    originals = [original for original, _ in dispatcher._registry.values()]
    assert len(originals) >= 5
    held = {
        f"{name}.{key}"
        for name, module in list(sys.modules.items())
        for key, value in list((getattr(module, "__dict__", None) or {}).items())
        if any(value is original or getattr(value, "__dict__", {}).get("kernel") is original for original in originals)
    }
    assert not held
    from vllm.v1.sample import rejection_sampler

    assert isinstance(rejection_sampler.expand_kernel, dispatcher.KernelOverride)


def test_kernels_are_replaced_once_per_process(dispatcher, monkeypatch):
    from vllm.platforms import current_platform

    scans: list[object] = []
    monkeypatch.setattr(dispatcher, "_rebind_kernels", scans.append)
    current_platform.register_triton_kernel_overrides()  # what every engine calls
    assert not scans


def test_a_kernel_with_another_replacement_is_replaced_again():
    one, two = object(), object()
    calls: list[object] = []
    known = SimpleNamespace(_registry={"a": (None, one), "b": (None, one)})
    register = vllm_startup._unregistered(known, calls.append)
    register({"a": one, "b": two, "c": one})
    register({"a": one})
    assert calls == [{"b": two, "c": one}]


def test_the_scan_sees_vllms_modules_and_the_dispatcher_keeps_its_view_of_the_others():
    seen = []
    dispatcher = SimpleNamespace(sys=sys)

    def rebind(overrides):
        seen.extend(dispatcher.sys.modules)
        raise ValueError(overrides)

    with pytest.raises(ValueError):
        vllm_startup._with_vllm_modules(dispatcher, rebind)([])
    assert seen == [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]
    assert dispatcher.sys is sys


def test_logging_is_configured_before_an_engine_opens_and_not_again(dispatcher, monkeypatch):
    from vllm.config.logging import LoggingConfig
    from vllm.logger import configure_logging_if_needed

    configured: list[object] = []
    monkeypatch.setattr("vllm.logger.dictConfig", configured.append)
    configure_logging_if_needed(LoggingConfig())  # what every engine calls
    assert not configured and logging.getLogger("vllm").handlers
    configure_logging_if_needed(LoggingConfig(log_level="DEBUG"))
    assert len(configured) == 1, "another level still takes effect"
    configure_logging_if_needed(LoggingConfig())


@pytest.mark.parametrize(
    ("dtype", "native", "packed"),
    [(torch.bfloat16, False, False), (torch.bfloat16, True, True), (torch.float32, False, True)],
)
def test_only_bfloat16_matrices_of_a_cpu_without_bfloat16_stay_unpacked(monkeypatch, dtype, native, packed):
    monkeypatch.setattr(vllm_startup, "has_bfloat16_products", lambda: native)
    calls = []
    dispatch = vllm_startup._unpacked_in_bfloat16(lambda layer, remove_weight: calls.append(remove_weight))
    layer: Any = torch.nn.Linear(3, 2).to(dtype)
    dispatch(layer, True)
    assert bool(calls) is packed
    if not packed:
        x = torch.randn(4, 3).to(dtype)
        assert torch.equal(layer.cpu_linear(x, layer.weight, layer.bias), layer(x))
    kernels = torch.nn.Conv1d(2, 2, 3).to(dtype)
    calls.clear()
    dispatch(kernels, True)
    assert calls == [True], "what is no matrix is left to vLLM"


@pytest.mark.stages
def test_an_engine_with_unpacked_weights_holds_the_trainers_after_each_sync(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_startup, "has_bfloat16_products", lambda: False)
    place = str(tiny_model(tmp_path / "model"))
    half = Model(dtype="bfloat16")
    engine = VllmGenerator(place, half, Generate(vllm={"kv_cache_memory_bytes": 100 << 20}), max_model_len=64)
    model = load_policy(place, half)
    sequences = [[3, 8, 13, 9, 5, 7], [4, 9, 13, 5, 6, 7, 10]]
    for seed in range(2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert largest_gap(sequence_logprobs(model, sequences), engine.logprobs(sequences)) > 0.2
        engine.sync(named_weights(model))
        assert largest_gap(sequence_logprobs(model, sequences), engine.logprobs(sequences)) < 0.1
    sizes = engine.llm.apply_model(projection_sizes)[0]
    assert sizes and all(sizes), "vLLM empties a weight that it has packed"


def projection_sizes(model):
    return [p.numel() for name, p in model.named_parameters() if name.endswith("proj.weight")]
