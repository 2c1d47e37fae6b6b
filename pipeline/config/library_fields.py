"""Fields of other libraries' config classes, read from their source: importing TRL or vLLM costs seconds.

A `trainer:`, `peft:` or `vllm:` block is passed verbatim to its class. Its keys, and the types of plain values, are
checked here against that class before anything loads.
"""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.config.mistakes import LIBRARY_SYNONYMS, found, nearest

LORA, VLLM_ENGINE = "peft.tuners.lora.config:LoraConfig", "vllm.engine.arg_utils:EngineArgs"
PLAIN = {"int": "a whole number", "float": "a finite number", "bool": "true or false", "str": "text", "None": "null"}


@cache
def library_fields(target: str) -> Mapping[str, str]:
    """Name -> annotation of the fields of a dataclass `module:Class` and its bases; empty if it is not installed."""
    module, class_name = target.split(":")
    source = _source(module)
    if source is None:
        return {}
    tree = ast.parse(source.read_text(encoding="utf-8"))
    found = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), None)
    if found is None:
        return {}
    imported = {
        alias.asname or alias.name: (node.module or "", node.level)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    out: dict[str, str] = {}
    for base in found.bases:
        if not isinstance(base, ast.Name):
            continue
        where, level = imported.get(base.id, (module, 0))
        if level:
            where = ".".join([*module.split(".")[:-level], *([where] if where else [])])
        if base.id == "TrainingArguments":
            where = "transformers.training_args"
        out |= library_fields(f"{where}:{base.id}")
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            out[node.target.id] = ast.unparse(node.annotation)
    return out


def _source(module: str) -> Path | None:
    try:
        top = importlib.util.find_spec(module.split(".")[0])
    except (ImportError, ValueError):
        return None
    if top is None or not top.submodule_search_locations:
        return None
    base = Path(next(iter(top.submodule_search_locations)), *module.split(".")[1:])
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


def block_mistakes(where: str, block: Any, target: str, *, ours: frozenset[str] = frozenset()) -> list[str]:
    """One line for each key that the class lacks or the pipeline sets, and for each plain value of the wrong type."""
    known = library_fields(target)
    if not known or not isinstance(block, Mapping):
        return []  # the library is not installed, or a type error; both are reported elsewhere
    out = []
    for key, value in block.items():
        if key in ours:
            out.append(f"{where}.{key}: the pipeline sets this itself; remove it")
        elif key not in known:
            theirs = LIBRARY_SYNONYMS.get(str(key).lower())
            near = nearest(str(key), known) or f"; its keys are the fields of {target.rpartition(':')[2]}"
            hint = f"; it is {theirs} here" if theirs in known else near
            out.append(f"{where}: unknown key {key!r}{hint}")
        elif not fits(value, known[key]):
            wanted = " or ".join(PLAIN[name] for name in _names(known[key]))
            out.append(f"{where}.{key}: expected {wanted}, found {found(value)}")
    return out


def fits(value: Any, annotation: str) -> bool:
    """False only if the annotation consists of plain types and the value cannot be read as any of them."""
    names = _names(annotation)
    return not set(names) <= PLAIN.keys() or any(_is(value, name) for name in names)


def _names(annotation: str) -> list[str]:
    inner = (
        annotation.removeprefix("Optional[").removesuffix("]") + " | None" if "Optional[" in annotation else annotation
    )
    return [name.strip().strip("'\"") for name in inner.split("|")]


def _is(value: Any, name: str) -> bool:
    if name == "None":
        return value is None
    if name == "str":
        return isinstance(value, str)
    if name == "bool":
        return isinstance(value, bool) or value in ("true", "false")
    if isinstance(value, bool):
        return False
    number = _number(value)
    return number is not None and math.isfinite(number) and (name == "float" or number == int(number))


def _number(value: Any) -> float | None:
    if not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
