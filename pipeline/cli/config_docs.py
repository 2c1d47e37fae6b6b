"""The reference of every key: docs/config.md and configs/schema.json, written from the schema.

    python -m pipeline.cli.config_docs

`whetstone config` prints the same on the terminal, and `whetstone schema` writes the JSON Schema.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import describe
from pipeline.config.load import TOP, Config, ConfigError, nearest
from pipeline.config.presets import PRESETS
from pipeline.config.registry import KINDS, StageKind
from pipeline.config.yaml_schema import json_schema
from pipeline.run.files import atomic_write

ROOT = Path(__file__).parents[2]
INTRO = """# Every key of the YAML

Written by `python -m pipeline.cli.config_docs` from the schema; `whetstone config STAGE` prints the same. Every file in
`configs/` names `configs/schema.json` in its first line, so that an editor with a YAML language server completes keys,
shows their meaning and underlines mistakes.

A key is given in the YAML (`grpo: {kl: {coef: 0.1}}`) or on the command line (`grpo.kl.coef=0.1`). Where a list is
meant, a single value stands for a list of one. A stage has the name of its kind, or a name of its own with a `kind`.
"""
METHODS = """## Methods

`method:` in a block of `ppo` or `grpo` sets credit, loss and KL as a paper does; keys written beside it win.
`whetstone config --method NAME` prints the same.
"""


def stages() -> list[StageKind]:
    """The kinds that a user writes into a YAML, in their usual order."""
    return sorted((kind for kind in KINDS.values() if kind.summary), key=lambda kind: kind.order)


def blocks_of(cls: type, prefix: str, defaults: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, describe.Key]]]]:
    """(dotted block, its keys with their dotted names), the block itself first."""
    out: dict[str, list[tuple[str, describe.Key]]] = {}
    for dotted, key in describe.walk(cls, prefix, defaults):
        out.setdefault(dotted.rpartition(".")[0], []).append((dotted, key))
    return list(out.items())


# --- docs/config.md ---------------------------------------------------------------------------------------------------


def markdown() -> str:
    lines = [INTRO, "## Settings of the whole run", ""]
    for name, rows in top_blocks():
        lines += [f"### `{name}`", ""] if name else []
        lines += _table(rows)
    for kind in stages():
        lines += [f"## `{kind.name}`: {kind.summary}", "", str(kind.schema.__doc__), ""]
        for name, rows in blocks_of(kind.schema, kind.name, kind.defaults):
            lines += [f"### `{name}`", ""] if name != kind.name else []
            lines += _table(rows)
        lines += _mappings(kind)
    lines += [METHODS, "| method | paper | sets | note |", "| --- | --- | --- | --- |"]
    lines += [f"| `{name}` | {p.paper} | `{describe.flow(p.sets)}` | {p.note} |" for name, p in PRESETS.items()]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[tuple[str, describe.Key]]) -> list[str]:
    out = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for dotted, key in rows:
        words = key.type.replace("|", "\\|")
        default = key.default.replace("|", "\\|").replace("`", "'")
        out.append(f"| `{dotted}` | {words} | `{default}` | {key.meaning.replace('|', chr(92) + '|')} |")
    return [*out, ""]


def _mappings(kind: StageKind) -> list[str]:
    """Tables of blocks that stand under names of the user's own, as conditioned.attributes."""
    out: list[str] = []
    for key in describe.keys(kind.schema, kind.defaults):
        if key.block is not None and key.type.startswith("name:"):
            prefix = f"{kind.name}.{key.name}.NAME"
            rows = [(f"{prefix}.{inner.name}", inner) for inner in describe.keys(key.block)]
            out += [f"### `{prefix}`", "", *_table(rows)]
    return out


def top_blocks() -> list[tuple[str, list[tuple[str, describe.Key]]]]:
    found = blocks_of(Config, "", {})
    return [(name, [(d, k) for d, k in rows if d.partition(".")[0] in TOP]) for name, rows in found]


# --- on the terminal --------------------------------------------------------------------------------------------------


def config(words: Sequence[str]) -> str:
    """`config`, `config STAGE`, `config grpo.loss`, `config sampling`, `config --method NAME` as text.

    Raises ConfigError for a name that is none.
    """
    if words and words[0].startswith(("--method", "method=")):
        rest = [words[0].partition("=")[2], *words[1:]] if "=" in words[0] else words[1:]
        return method_text(rest[0] if rest else "")
    if not words:
        rows = [row for name, rows in top_blocks() for row in rows if not name]
        listed = [f"  {kind.name:14} {kind.summary}" for kind in stages()]
        return "\n".join([*_lines(rows), "", "stages; `whetstone config STAGE` shows the keys of one:", *listed])
    wanted = words[0]
    kind = KINDS.get(wanted.partition(".")[0])
    found = blocks_of(kind.schema, kind.name, kind.defaults) if kind else top_blocks()
    chosen = [row for name, rows in found if name == wanted or name.startswith(f"{wanted}.") for row in rows]
    chosen = chosen or [row for _, rows in found for row in rows if row[0] == wanted]
    if not chosen:
        raise ConfigError([f"config: nothing is called {wanted!r}{nearest(wanted, [*KINDS, *TOP])}"])
    return "\n".join([*([f"{kind.schema.__doc__}", ""] if kind and wanted == kind.name else []), *_lines(chosen)])


def method_text(name: str) -> str:
    if name not in PRESETS:
        raise ConfigError([f"config --method: no method {name!r}{nearest(name, PRESETS)}"])
    preset = PRESETS[name]
    blocks = [f"  {key}: {describe.flow(value)}" for key, value in preset.sets.items()]
    note = textwrap.wrap(f"Note: {preset.note}", 100) if preset.note else []
    return "\n".join(
        [f"{name}: {preset.paper}", "method in a policy stage sets, unless the key is given:", *blocks, *note]
    )


def _lines(rows: Sequence[tuple[str, describe.Key]]) -> list[str]:
    out = []
    for dotted, key in rows:
        out.append(f"{dotted}  ({key.type}; default {key.default})")
        out += textwrap.wrap(key.meaning, 100, initial_indent="    ", subsequent_indent="    ")
    return out


# --- files ------------------------------------------------------------------------------------------------------------


def schema_text() -> str:
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def comment(path: Path, schema: Path) -> str:
    """The first line of a YAML that tells editors where the schema is."""
    return f"# yaml-language-server: $schema={os.path.relpath(schema, path.parent)}"


def main() -> int:
    atomic_write(ROOT / "docs/config.md", markdown())
    atomic_write(ROOT / "configs/schema.json", schema_text())
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text, first = path.read_text(encoding="utf-8"), comment(path, ROOT / "configs/schema.json")
        if path.parent.name != "accelerate" and not text.startswith(first):
            rest = text.partition("\n")[2] if text.startswith("# yaml-language-server") else text
            atomic_write(path, f"{first}\n{rest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
