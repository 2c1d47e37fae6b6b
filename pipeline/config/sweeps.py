"""Sweeps: `compare.sweep` turns one method into several, one for each combination of values.

    compare:
      methods: [grpo]
      sweep: {grpo: {optimizer.learning_rate: [1.0e-4, 3.0e-4, 1.0e-3]}}

adds the methods grpo-learning_rate-0.0001 and so on: blocks like any other, so that they resume, share workers and
stand in the table as the methods do.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from typing import Any

from pipeline.config.mistakes import nearest
from pipeline.config.registry import KINDS

MOST = 64  # variants of one method: more is a mistake in a list


def expand(raw: dict[str, Any], mistakes: list[str]) -> None:
    """Add a block and a method for each combination to the raw YAML; mistakes are added as lines."""
    for name, block in list(raw.items()):
        if not isinstance(block, dict) or block.get("kind", name) != "compare" or not block.get("sweep"):
            continue
        if not isinstance(block["sweep"], dict):
            mistakes.append(f"{name}.sweep: expected method -> key -> values, found {block['sweep']!r}")
            continue
        methods = block.get("methods") or []
        block["methods"] = added = list(methods) if isinstance(methods, list) else [methods]
        for method, axes in block["sweep"].items():
            added += [
                one for one in _variants(raw, str(method), axes, f"{name}.sweep.{method}", mistakes) if one not in added
            ]


def _variants(raw: dict[str, Any], method: str, axes: Any, where: str, mistakes: list[str]) -> list[str]:
    """Names of a method's variants, whose blocks are put into the YAML."""
    base = raw.get(method, {} if method in KINDS else None)
    if base is None and method not in raw:
        mistakes.append(f"{where}: no block for {method!r}{nearest(method, raw)}")
        return []
    if not isinstance(axes, Mapping) or not all(isinstance(v, list) and v for v in axes.values()) or not axes:
        mistakes.append(f"{where}: expected key -> list of values, as {{optimizer.learning_rate: [1.0e-4, 3.0e-4]}}")
        return []
    combinations = list(itertools.product(*axes.values()))
    if len(combinations) > MOST:
        mistakes.append(f"{where}: {len(combinations)} combinations; at most {MOST} at once")
        return []
    out = []
    for values in combinations:
        chosen = dict(zip(axes, values, strict=True))
        name = variant_name(method, chosen)
        if name in raw and name not in out:
            mistakes.append(f"{where}: a block is called {name!r} already; rename it")
            continue
        block = {"kind": method, **copy.deepcopy(base or {})}
        for key, value in chosen.items():
            _set(block, str(key).split("."), value)
        raw[name] = block
        out.append(name)
    return out


def variant_name(method: str, chosen: Mapping[str, Any]) -> str:
    """grpo and {optimizer.learning_rate: 0.0003} -> grpo-learning_rate-0.0003, which is the stage's directory too."""
    parts = [f"{last_key(key)}-{value}" for key, value in chosen.items()]
    return re.sub(r"[^\w.+-]+", "_", "-".join([method, *parts]))


def last_key(key: str) -> str:
    """optimizer.learning_rate -> learning_rate."""
    return str(key).rpartition(".")[2]


def _set(block: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = block.get(key)
        block[key] = inner if isinstance(inner, dict) else {}
        block = block[key]
    block[keys[-1]] = value
