"""A stand-in for torchvision: it can be imported, and nothing in it can be used.

vLLM imports torchvision with every model class that can also see, Qwen3.5's text class among them, and fails without;
the CPU lock leaves it out. Models here read text, so no image is ever processed. Whatever is called raises ImportError.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__version__ = "0.0.0"
MODULES = ("io", "ops", "transforms", "transforms.functional", "transforms.v2", "transforms.v2.functional", "utils")


class _Named(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class Absent(metaclass=_Named):
    """Whatever is imported from here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise ImportError("torchvision is not installed, and images are not supported; install torchvision to use them")


def _absent(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent


for _name in MODULES:
    _module: Any = ModuleType(f"{__name__}.{_name}")
    _module.__getattr__ = _absent
    _module.__path__ = []
    sys.modules[_module.__name__] = _module
    _parent, _, _own = _module.__name__.rpartition(".")
    setattr(sys.modules[_parent], _own, _module)

__getattr__ = _absent
