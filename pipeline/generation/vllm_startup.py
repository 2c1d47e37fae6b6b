"""What is done more cheaply than vLLM does it: two parts of opening an engine, and packing weights at every sync.

With torch, transformers, TRL and vLLM imported the two parts were 4.0 of the 6.8 CPU seconds of opening an engine. All
use names that vLLM does not document; where a version lacks them, they change nothing and the work takes longer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any


def configure_logging_early() -> None:
    """Configure vLLM's logging before most of its modules have made their loggers; opening an engine then skips it.

    `logging.config` sets the level of each existing child logger, and each time clears the cache of all loggers.
    """
    try:
        from vllm.config.logging import LoggingConfig
        from vllm.logger import configure_logging_if_needed
    except ImportError:
        return
    configure_logging_if_needed(LoggingConfig())


def scan_only_vllm_for_kernels() -> None:
    """Without Triton, vLLM replaces its kernels by C++ functions wherever a module holds one. Scan vLLM's modules alone
    instead of every attribute of all imported modules, and once per process instead of once per engine.

    Kernels imported later are replaced already: the modules that define them hold the replacements.
    """
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:
        return
    library: Any = dispatcher
    names = ("register_kernels", "_rebind_kernels", "_registry")
    if not all(hasattr(library, name) for name in names) or hasattr(library, "scans_only_vllm"):
        return
    library.scans_only_vllm = True
    library._rebind_kernels = _with_vllm_modules(library, library._rebind_kernels)
    library.register_kernels = _unregistered(library, library.register_kernels)


def _with_vllm_modules(dispatcher: Any, rebind: Callable[[Any], None]) -> Callable[[Any], None]:
    """rebind, with `sys.modules` as seen by the dispatcher reduced to vLLM's."""

    def rebind_in_vllm(overrides: Any) -> None:
        modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"}
        dispatcher.sys = SimpleNamespace(modules=modules)
        try:
            rebind(overrides)
        finally:
            dispatcher.sys = sys

    return rebind_in_vllm


def _unregistered(dispatcher: Any, register: Callable[[Any], None]) -> Callable[[Mapping[str, Any]], None]:
    """register, without the kernels whose replacement is in place."""

    def register_new(overrides: Mapping[str, Any]) -> None:
        known = dispatcher._registry
        new = {name: impl for name, impl in overrides.items() if name not in known or known[name][1] is not impl}
        if new:
            register(new)

    return register_new


def register_kernels_early() -> None:
    """Replace the kernels before a server process forks: its children then find them replaced."""
    import torch
    from vllm.platforms import current_platform

    register = getattr(current_platform, "register_triton_kernel_overrides", None)
    if register is not None and not torch.cuda.is_available():
        register()


def keep_bfloat16_weights_unpacked() -> None:
    """On a CPU without bfloat16 instructions let linear layers multiply by their weights as they are: packing takes
    longer than everything else in a weight sync, and makes products of eight rows and more no faster.

    In float32 packed products of few rows are up to three times as fast, so float32 weights are packed as before.
    """
    try:
        from vllm.model_executor.layers import utils
    except ImportError:
        return
    library: Any = utils
    dispatch = getattr(library, "dispatch_cpu_unquantized_gemm", None)
    if dispatch is None or hasattr(library, "packs_everything"):
        return
    library.packs_everything = dispatch
    library.dispatch_cpu_unquantized_gemm = _unpacked_in_bfloat16(dispatch)


def _unpacked_in_bfloat16(dispatch: Callable[[Any, bool], None]) -> Callable[[Any, bool], None]:
    """vLLM's dispatch, which sets a layer's `cpu_linear`, but with torch's own product for bfloat16 matrices."""
    import torch

    def dispatch_layer(layer: Any, remove_weight: bool) -> None:
        weight = layer.weight
        if weight.dtype == torch.bfloat16 and weight.ndim == 2 and not weight.is_meta and not has_bfloat16_products():
            layer.cpu_linear = torch.nn.functional.linear
        else:
            dispatch(layer, remove_weight)

    return dispatch_layer


def has_bfloat16_products() -> bool:
    """Whether this CPU multiplies bfloat16 by itself; True where torch cannot tell."""
    import torch

    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(check is None or check() for check in checks)
