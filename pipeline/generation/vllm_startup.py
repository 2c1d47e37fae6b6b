"""Two parts of opening a vLLM engine that take longer the more modules and loggers the process has, done cheaply.

With torch, transformers, TRL and vLLM imported they were 4.0 of the 6.8 CPU seconds of opening an engine. Both use
names that vLLM does not document; where a version lacks them, they change nothing and opening takes longer.
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
