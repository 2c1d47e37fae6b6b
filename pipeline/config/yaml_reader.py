"""YAML text -> plain mapping, and `key=value` words of the command line into it. Every mistake is one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.mistakes import ConfigError, found, near_path


class _Strict:
    """YAML 1.1, but `1e-6` is a number: PyYAML alone reads it as text. A key given twice is a mistake."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)  # type: ignore[misc]
        except (ValueError, LookupError, AttributeError) as exc:  # PyYAML's own, for an invalid date or number
            reason = f"{node.value!r} is not readable ({exc}); put text in quotes"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from exc


class Loader(_Strict, yaml.SafeLoader):
    """PyYAML's own parser, by whose messages mistakes are reported."""


class QuickLoader(_Strict, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's parser, ten times as fast, where PyYAML was built with it."""


def _unique_mapping(loader: Any, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, (dict, list)):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


for _each in (Loader, QuickLoader):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)$"),
        list("-+0123456789."),
    )
    _each.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def load_yaml(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError."""
    if "\t" not in text:  # of tabs libyaml accepts some that PyYAML reports as a mistake
        with contextlib.suppress(yaml.YAMLError):
            return yaml.load(text, QuickLoader)
    return yaml.load(text, Loader)  # which says what is wrong in its own words


def read_yaml(path: str | Path) -> dict[str, Any]:
    path = Path(path)
    _refuse_others(path)
    if not path.is_file():
        raise ConfigError([f"{path}: no such config file{near_path(path, suffixes=('.yaml', '.yml'))}"])
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        raw = load_yaml(text)
    except yaml.MarkedYAMLError as exc:
        line = f":{exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise ConfigError([f"{path}{line}: {_block_of(exc, text)}{_reason(exc)}"]) from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError([f"{path}: not readable as YAML: {' '.join(str(exc).split())}"]) from exc
    if raw is None:
        raise ConfigError([f"{path}: the file is empty; a YAML begins with keys, such as run: NAME"])
    if not isinstance(raw, dict):
        what = "a list" if isinstance(raw, list) else found(raw) if len(str(raw)) < 60 else "text"
        raise ConfigError([f"{path}: expected keys at the top, such as run: NAME, found {what}"])
    return raw


def _refuse_others(path: Path) -> None:
    """Raise ConfigError for a directory or a file of rows in place of a YAML."""
    if path.is_dir():
        made = any(path.glob("*/manifest.json")) or any(path.glob("*/begun.json"))
        what = "the directory of a run" if made else "a directory"
        raise ConfigError([f"{path} is {what}; give the YAML, as configs/demo/pipeline.yaml"])
    if path.name.lower().endswith((".jsonl", ".jsonl.gz", ".csv", ".parquet")) and path.is_file():
        raise ConfigError([f"{path} is a file of rows, no YAML; give a YAML that has it as prompts: {{path: {path}}}"])


# what PyYAML says -> what it means to somebody who writes a YAML
REASONS = (
    ("but found another document", "a second document begins here; a YAML of ours is one, so remove the line ---"),
    ("expected '<document start>'", "text follows the end of the YAML; keys, such as run: NAME, begin their lines"),
)


def _reason(exc: yaml.MarkedYAMLError) -> str:
    problem = exc.problem or str(exc)
    plain = next((words for theirs, words in REASONS if theirs in problem), problem)
    return re.sub(r"'<[a-z ]+>'", _token, plain)


def _token(match: re.Match[str]) -> str:
    """PyYAML's name of a token, as '<scalar>' or '<stream end>', in plain words."""
    name = match[0].strip("'<>")
    return {"scalar": "text", "stream end": "the end of the file", "block end": "the end of the block",
            "block mapping start": "a block"}.get(name, name)  # fmt: skip


def _block_of(exc: yaml.MarkedYAMLError, text: str) -> str:
    """`in the block of 'prompts': ` for a mistake inside a block of the top level; "" outside one."""
    flow = "flow" in (exc.context or "")  # an unclosed { or [ is noticed lines later, but opened at the context
    mark = exc.context_mark if flow else exc.problem_mark
    lines = text.splitlines()[: mark.line + 1] if mark else []
    if not lines or not (flow or lines[-1][:1].isspace()):
        return ""
    keys = [found[1] for each in lines if (found := re.match(r"([A-Za-z_][\w-]*)\s*:", each))]
    return f"in the block of {keys[-1]!r}: " if keys else ""


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """`a.b=c` into the raw mapping, c read as YAML."""
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError([f"{text!r} on the command line: expected key=value, as in ppo.steps=10"])
        try:
            parsed = load_yaml(value)
        except yaml.YAMLError as exc:
            reason = exc.problem if isinstance(exc, yaml.constructor.ConstructorError) else "the value is not YAML"
            raise ConfigError([f"{text!r} on the command line: {reason}"]) from exc
        *parents, last = key.split(".")
        block = raw
        for parent in parents:
            if block.get(parent) is None:
                block[parent] = {}
            block = block[parent]
            if not isinstance(block, dict):
                raise ConfigError([f"{text!r} on the command line: {parent!r} is not a block of keys"])
        block[last] = parsed
