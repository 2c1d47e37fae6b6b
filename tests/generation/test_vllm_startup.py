"""What opening an engine skips: a second configuration of the logging, a scan of modules that are not vLLM's."""

import importlib.util
import logging.config
import sys
from types import SimpleNamespace

import pytest

from pipeline.generation import vllm_startup
from pipeline.generation.vllm_engine import preload_vllm

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
